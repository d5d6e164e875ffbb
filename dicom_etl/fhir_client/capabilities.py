"""Capabilities of a server (FHIR R4, 5.1: CapabilityStatement), and the check that they suffice for an upload."""

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
from dicom_etl.fhir_client.models import get_text

if TYPE_CHECKING:
    from dicom_etl.fhir_client.client import FhirClient

UPLOADED_TYPES = ("Patient", "Endpoint", "ImagingStudy")
_VERSIONS = {"R4": ("4.0.", "4.1.", "4.3."), "R5": ("5.0.",)}
RETRY_SECONDS = 5.0  # so that a person at a terminal soon learns that the server is down
_ANSWER_SECONDS = 60.0  # a server that has just started may need much time to compute its statement


@dataclass(frozen=True)
class Capabilities:
    """A CapabilityStatement; elements with another structure than the specification's are treated as missing.

    Attributes:
        statement: its JSON.
    """

    statement: dict[str, Any]

    @property
    def fhir_version(self) -> str:
        """The FHIR version, such as 4.0.1; `none` if the server states none."""
        version = self.statement.get("fhirVersion")
        return get_text(version) if get_text(version).isprintable() and get_text(version) else "none"

    @property
    def accepts_client_ids(self) -> bool:
        """Whether the client may assign the ids of all uploaded types.

        `updateCreate` is optional, and HAPI permits it without stating it: only an explicit false means no.
        """
        return not any(entry.get("updateCreate") is False for entry in map(self._find_entry, UPLOADED_TYPES) if entry)

    @property
    def assigns_ids(self) -> bool:
        """Whether the server assigns ids itself."""
        return not self.accepts_client_ids

    def find_problem(self, fhir_version: str) -> str | None:
        """The problem that prevents an upload (a sentence without its subject); None if there is none.

        Args:
            fhir_version: version of the resources, R4 or R5.
        """
        if not self.fhir_version.startswith(_VERSIONS[fhir_version]):
            return (
                f"has FHIR version {self.fhir_version[:40]}, but the resources have {fhir_version}: "
                "choose a server of that version, or set fhir.version"
            )
        if "transaction" not in _get_codes(self._rest):
            return "does not accept transactions, which the upload needs: choose another server"
        for name in UPLOADED_TYPES:
            entry = self._find_entry(name)
            if entry is None or "update" not in _get_codes(entry):
                return f"does not permit writing {name} resources (update): choose or configure another server"
            if entry.get("updateCreate") is False and entry.get("conditionalUpdate") is False:
                return (
                    f"permits neither client-assigned ids nor conditional updates of {name} resources: "
                    "choose or configure another server"
                )
        return None

    @property
    def _rest(self) -> dict[str, Any]:
        return next((rest for rest in _select_objects(self.statement.get("rest")) if rest.get("mode") == "server"), {})

    def _find_entry(self, resource_type: str) -> dict[str, Any] | None:
        """The element `rest.resource` of a type."""
        entries = _select_objects(self._rest.get("resource"))
        return next((entry for entry in entries if entry.get("type") == resource_type), None)


async def check_server(client: FhirClient, fhir_version: str, client_assigned_ids: bool | None = None) -> bool:
    """Check that the server can take an upload; returns whether the client assigns the ids of resources.

    Args:
        client: client of the server.
        fhir_version: of the resources, R4 or R5.
        client_assigned_ids: the setting; None: as the server supports.

    Raises:
        UnreachableError: it does not answer, or it answers with server errors.
        UnsuitableServerError: an upload is not possible, or the credentials are not accepted.
    """
    failure: UnreachableError | UnsuitableServerError
    try:
        capabilities = await client.capabilities(retry_seconds=RETRY_SECONDS, timeout_seconds=_ANSWER_SECONDS)
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
        if problem := capabilities.find_problem(fhir_version):
            raise UnsuitableServerError(f"{client.url} {problem}")
        return capabilities.accepts_client_ids if client_assigned_ids is None else client_assigned_ids
    raise failure


def _select_objects(value: object) -> list[dict[str, Any]]:
    """The objects in a list; an empty list if the value is not a list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _get_codes(entry: dict[str, Any]) -> set[str]:
    return {get_text(interaction.get("code")) for interaction in _select_objects(entry.get("interaction"))}
