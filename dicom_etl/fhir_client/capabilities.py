"""Capabilities of a server (FHIR R4, 5.1: CapabilityStatement), and whether they are sufficient for an upload."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dicom_etl.fhir_client.errors import (
    ConflictError,
    InvalidAnswerError,
    PermanentError,
    TransientError,
    UnreachableError,
    UnsuitableServerError,
)
from dicom_etl.fhir_client.resources import get_text

if TYPE_CHECKING:
    from dicom_etl.fhir_client.client import FhirClient

UPLOADED_TYPES = ("Patient", "Endpoint", "ImagingStudy")
_VERSIONS = {"R4": ("4.0.", "4.1.", "4.3."), "R5": ("5.0.",)}
_RETRY_SECONDS = 5.0  # a person at a terminal wants to know soon that the server is down
_ANSWER_SECONDS = 60.0  # a server that has just started may need long to compute its statement


@dataclass(frozen=True)
class Capabilities:
    """What a CapabilityStatement offers; elements of another shape than the specification's are taken as missing.

    Attributes:
        statement: its JSON.
    """

    statement: dict[str, Any]

    @property
    def fhir_version(self) -> str:
        """Such as 4.0.1; `none` where the server names none."""
        version = self.statement.get("fhirVersion")
        return get_text(version) if get_text(version).isprintable() and get_text(version) else "none"

    @property
    def accepts_client_ids(self) -> bool:
        """Whether the client may choose the ids of all types of an upload.

        `updateCreate` is optional, and HAPI permits it without saying so: only a plain no is taken for a no.
        """
        return not any(offer.get("updateCreate") is False for offer in self._offers())

    @property
    def assigns_ids(self) -> bool:
        """Whether the server assigns ids itself."""
        return not self.accepts_client_ids

    def unsuitable(self, fhir_version: str) -> str | None:
        """Why an upload to this server is not possible (the rest of a sentence); None if it is.

        Args:
            fhir_version: that of the resources, R4 or R5.
        """
        if not self.fhir_version.startswith(_VERSIONS[fhir_version]):
            return (
                f"has FHIR version {self.fhir_version[:40]}, but the resources have {fhir_version}: "
                "choose a server of that version, or set fhir.version"
            )
        if "transaction" not in _get_codes(self._rest):
            return "does not accept transactions, which the upload needs: choose another server"
        for name in UPLOADED_TYPES:
            offer = self._offer(name)
            if offer is None or "update" not in _get_codes(offer):
                return f"does not permit to write {name} resources (update): choose or configure another server"
            if offer.get("updateCreate") is False and offer.get("conditionalUpdate") is False:
                return f"lets the client neither choose ids of {name} resources nor find them (conditionalUpdate)"
        return None

    @property
    def _rest(self) -> dict[str, Any]:
        return next((rest for rest in _select_objects(self.statement.get("rest")) if rest.get("mode") == "server"), {})

    def _offer(self, resource_type: str) -> dict[str, Any] | None:
        return next(
            (offer for offer in _select_objects(self._rest.get("resource")) if offer.get("type") == resource_type), None
        )

    def _offers(self) -> list[dict[str, Any]]:
        return [self._offer(name) or {} for name in UPLOADED_TYPES]


async def check_server(client: FhirClient, fhir_version: str, client_assigned_ids: bool | None = None) -> bool:
    """Ask the server for its capabilities; returns whether the client chooses ids.

    Args:
        client: asks.
        fhir_version: of the resources, R4 or R5.
        client_assigned_ids: what the settings say of ids; None: what the server says.

    Raises:
        UnreachableError: it does not answer, or is failing.
        UnsuitableServerError: it answers, and an upload is not possible, or our credentials are not accepted.
    """
    failure: UnreachableError | UnsuitableServerError
    try:
        capabilities = await client.capabilities(retry_seconds=_RETRY_SECONDS, timeout_seconds=_ANSWER_SECONDS)
    except UnreachableError:
        raise
    except InvalidAnswerError as error:
        failure = UnsuitableServerError(f"{client.url} does not answer /metadata as a FHIR server does: {error}")
    except (TransientError, ConflictError) as error:
        failure = UnreachableError(f"{client.url} answers, but is failing: {error}")
        failure.attempts = error.attempts
        failure.retry_after = error.retry_after if isinstance(error, TransientError) else None
    except PermanentError as error:
        failure = UnsuitableServerError(f"{client.url}: {error}")
    else:
        if problem := capabilities.unsuitable(fhir_version):
            raise UnsuitableServerError(f"{client.url} {problem}")
        return capabilities.accepts_client_ids if client_assigned_ids is None else client_assigned_ids
    raise failure


def _select_objects(value: object) -> list[dict[str, Any]]:
    """The objects of a list; none where it is not a list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _get_codes(part: dict[str, Any]) -> set[str]:
    return {get_text(interaction.get("code")) for interaction in _select_objects(part.get("interaction"))}
