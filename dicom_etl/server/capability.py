"""What a server says it can do, and whether that is enough; asked before anything is sent."""

from __future__ import annotations

import asyncio
from typing import Any

from dicom_etl.server.client import Client
from dicom_etl.server.errors import ServerError, TimedOutError, UnreachableError, UnsuitableServerError
from dicom_etl.server.retry import Budget, is_transient, persist

TYPES = ("Patient", "Endpoint", "ImagingStudy")
_NUMBERS = {"R4": ("4.0.", "4.1.", "4.3."), "R5": ("5.0.",)}
_PATIENCE = 5.0  # seconds of retries: whoever waits at a terminal wants to know that the server is down
_ANSWER_SECONDS = 60.0  # a server that has just started may compute its statement for long


async def first_contact(client: Client, version: str, *, client_ids: bool | None = None) -> bool:
    """Ask the server what it can do; returns whether it lets us choose ids.

    updateCreate is optional, and HAPI allows it without saying so: only a plain no is taken for a no.

    Args:
        client: asks.
        version: of FHIR, R4 or R5.
        client_ids: what the settings say of ids; None: the server says it.

    Raises:
        UnreachableError: it does not answer.
        UnsuitableServerError: it answers and cannot do what the upload needs, or lets nobody in.
    """
    try:
        statement, _ = await persist(lambda: _statement(client), Budget(_PATIENCE))
    except ServerError as error:
        if is_transient(error):
            raise UnreachableError(f"{client.url} is there but does not serve: {error}") from None
        raise UnsuitableServerError(f"{client.url}: {error}") from None
    if complaint := unsuitable(statement, version):
        raise UnsuitableServerError(f"{client.url} {complaint}")
    return takes_ids(statement) if client_ids is None else client_ids


async def _statement(client: Client) -> Any:
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            return await client.execute("metadata", method="get")
    except TimeoutError:
        slow = TimedOutError(f"{client.url} did not answer within {_ANSWER_SECONDS:g} s")
    raise slow


def unsuitable(statement: Any, version: str) -> str | None:
    """Why a server of this CapabilityStatement cannot be used (the rest of a sentence), or None."""
    if not isinstance(statement, dict) or statement.get("resourceType") != "CapabilityStatement":
        return "is no FHIR server: its /metadata is no CapabilityStatement; check fhir.url"
    number = str(statement.get("fhirVersion", "none"))
    if not number.startswith(_NUMBERS[version]):
        return f"speaks FHIR {number}, and the resources are {version}: choose a server of that version"
    rest = _rest(statement)
    if "transaction" not in _codes(rest):
        return "does not take transactions, which the upload needs: choose another server"
    for name in TYPES:
        offered = _offered(rest, name)
        if offered is None or "update" not in _codes(offered):
            return f"does not let {name} resources be written (update): choose or configure another server"
        if offered.get("updateCreate") is False and offered.get("conditionalUpdate") is False:
            return f"lets the client neither choose ids of {name} resources nor find them (conditionalUpdate)"
    return None


def takes_ids(statement: dict[str, Any]) -> bool:
    """Whether the client may choose the ids of all that we write."""
    offered = [_offered(_rest(statement), name) or {} for name in TYPES]
    return not any(one.get("updateCreate") is False for one in offered)


def _rest(statement: dict[str, Any]) -> dict[str, Any]:
    return next((r for r in statement.get("rest", []) if r.get("mode") == "server"), {})


def _offered(rest: dict[str, Any], name: str) -> dict[str, Any] | None:
    return next((r for r in rest.get("resource", []) if r.get("type") == name), None)


def _codes(part: dict[str, Any]) -> set[str]:
    return {interaction.get("code", "") for interaction in part.get("interaction", [])}
