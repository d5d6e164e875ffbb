"""One Patient of what several datasets say of a person.

Add-only and the same in whatever order the datasets were loaded: lists are united and sorted, single values taken
where they agree. Where they contradict each other, what the server got last stays as long as somebody still says it;
otherwise the first by name counts, and the contradiction is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

# elements of which a resource may have one form alone (FHIR R4, 2.1.0.6: choice of data types)
_CHOICES = ("deceased", "multipleBirth")
_SILENT = {"gender": "unknown"}


class Contribution(NamedTuple):
    """What one dataset (or unit) says of a Patient."""

    by: str
    patient: Mapping[str, Any]


class Contradiction(NamedTuple):
    """An element of which contributors say different things."""

    element: str
    by: tuple[str, ...]


@dataclass(frozen=True)
class Merged:
    """A Patient, and what could not be agreed on."""

    patient: dict[str, Any]
    contradictions: tuple[Contradiction, ...]


class _Said(NamedTuple):
    by: str
    element: str  # as written: deceasedBoolean
    value: Any


def merged(contributions: Sequence[Contribution], stored: Mapping[str, Any] | None = None) -> Merged:
    """The Patient of all contributions (at least one); `stored` is what the server got last."""
    patient: dict[str, Any] = {}
    contradictory: list[Contradiction] = []
    for name, said in sorted(_by_element(contributions).items()):
        if isinstance(said[0].value, list):
            patient[name] = _united(said)
            continue
        claims = _distinct(said)
        if len(claims) > 1:
            contradictory.append(Contradiction(name, tuple(sorted({one.by for one in said}))))
        chosen = next((one for one in claims if _was(one, stored)), claims[0])
        patient[chosen.element] = chosen.value
    return Merged(patient, tuple(contradictory))


def same_date(one: str, other: str) -> bool:
    """Whether two FHIR dates may be the same day: 1980 and 1980-05-01 may."""
    return one.startswith(other) or other.startswith(one)


def _by_element(contributions: Sequence[Contribution]) -> dict[str, list[_Said]]:
    """What is said of each element, in the order of the contributors' names (and then of the content)."""
    said: dict[str, list[_Said]] = {}
    for by, patient in sorted(contributions, key=lambda c: (c.by, _canonical(c.patient))):
        for element, value in patient.items():
            name = next((choice for choice in _CHOICES if element.startswith(choice)), element)
            if _SILENT.get(name) != value:
                said.setdefault(name, []).append(_Said(by, element, value))
    for by, patient in contributions:
        for name, silent in _SILENT.items():
            if patient.get(name) == silent and name not in said:
                said[name] = [_Said(by, name, silent)]
    return said


def _united(said: Sequence[_Said]) -> list[Any]:
    items = {_canonical(item): item for one in said for item in one.value}
    return [items[text] for text in sorted(items)]


def _distinct(said: Sequence[_Said]) -> list[_Said]:
    """The different values, first by name first; a date that is part of a more precise one is no value of its own."""
    kept: dict[bytes, _Said] = {}
    for one in said:
        kept.setdefault(_canonical([one.element, one.value]), one)
    values = list(kept.values())
    if values[0].element != "birthDate":
        return values
    return [
        one
        for one in values
        if not any(other.value != one.value and str(other.value).startswith(one.value) for other in values)
    ]


def _was(one: _Said, stored: Mapping[str, Any] | None) -> bool:
    return stored is not None and stored.get(one.element) == one.value


def _canonical(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
