"""A Patient that the server already holds under another id is linked, not copied.

Only for identifiers that mean the same everywhere (the caller's rules crosswalk and authority), only on exactly one
match, only where birth date and sex do not contradict. Nothing here writes to the server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from dicom_etl.server.client import Client, escaped
from dicom_etl.server.searching import searched
from dicom_etl.upload.merging import same_date

_AT_ONCE = 10  # identifiers in one search
_PAGE = 50


class Identifier(NamedTuple):
    """A Patient's identifier that means the same everywhere."""

    system: str
    value: str


@dataclass(frozen=True)
class Link:
    """What the server has for one of our Patients.

    `state`: `none` (send ours), `own` (ours is there), `appeared` (ours is there, and another beside it), `linked`
    (use `id`), `contradicts`, `ambiguous`.
    """

    state: str
    id: str | None = None
    version: str | None = None
    detail: str = ""


async def patients_with(client: Client, identifiers: Sequence[Identifier]) -> dict[Identifier, list[dict[str, Any]]]:
    """The server's Patients of each identifier (a Patient that was merged into another is none).

    Raises:
        FhirError: the search failed.
    """
    found: dict[Identifier, list[dict[str, Any]]] = {identifier: [] for identifier in identifiers}
    for start in range(0, len(identifiers), _AT_ONCE):
        some = identifiers[start : start + _AT_ONCE]
        tokens = ",".join(f"{escaped(system)}|{escaped(value)}" for system, value in some)
        first = partial(client.search_unseen, "Patient", identifier=tokens, _count=str(_PAGE))
        for patient in await searched(client, "Patient", first):
            for identifier in some:
                if _has(patient, identifier):
                    found[identifier].append(patient)
    return found


def _has(patient: Mapping[str, Any], identifier: Identifier) -> bool:
    """Whether a Patient really has it: servers may ignore case, or a parameter that they do not know."""
    if any(link.get("type") == "replaced-by" for link in patient.get("link", [])):
        return False
    return any((held.get("system"), held.get("value")) == identifier for held in patient.get("identifier", []))


def link_of(ours: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> Link:
    """What to do with our Patient, from the server's Patients of its identifier."""
    others = sorted((p for p in found if p["id"] != ours["id"]), key=lambda p: str(p["id"]))
    if len(others) < len(found):
        return Link("appeared", detail=_listed(others)) if others else Link("own")
    if not others:
        return Link("none")
    if len(others) > 1:
        return Link("ambiguous", detail=_listed(others))
    [other] = others
    if elements := contradictions(ours, other):
        return Link("contradicts", detail=f"{' and '.join(elements)} of {_listed(others)}")
    return Link("linked", str(other["id"]), str(other.get("meta", {}).get("versionId", "")))


def contradictions(ours: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The elements that show two Patients to be two persons: birthDate and gender, where both say it."""
    found = []
    births = ours.get("birthDate"), other.get("birthDate")
    if all(births) and not same_date(str(births[0]), str(births[1])):
        found.append("birthDate")
    genders = {p.get("gender") for p in (ours, other)} - {None, "unknown"}
    if len(genders) > 1:
        found.append("gender")
    return found


def _listed(patients: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"Patient/{patient['id']}" for patient in patients)
