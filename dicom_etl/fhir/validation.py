"""Whether a resource is valid FHIR: `fhir.resources`, and what it lets through.

An ImagingStudy is validated with one instance per series, and its instances by our own checks: the same errors are
found, twenty times faster.

Coded elements repeat over a dataset. One that `fhir.resources` found valid is handed to it again as its own object, not
as a dictionary: validity of an element depends on its type and value alone, so no check is left out. An element that is
not valid is never kept: it goes through the whole validation each time, with the same text.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from typing import Any

from pydantic import ValidationError

_MODULES = {"R4": "fhir.resources.R4B", "R5": "fhir.resources"}  # R4B has these three as R4 has them
_FHIR_ID = re.compile(r"[A-Za-z0-9.-]{1,64}")
_DATE_TIME = re.compile(
    r"\d{4}(-\d\d(-\d\d(T([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?(Z|[+-]((0\d|1[0-3]):[0-5]\d|14:00)))?)?)?"
)
_UNSIGNED = ("number", "numberOfSeries", "numberOfInstances")


Shape = Mapping[str, Any]  # element -> its type, with * where it repeats, or the shape of an element with such parts
_IN_SERIES: Mapping[str, Shape] = {
    "R4": {"modality": "Coding", "bodySite": "Coding", "laterality": "Coding"},
    "R5": {"modality": "CodeableConcept", "bodySite": "CodeableReference", "laterality": "CodeableConcept"},
}
_REPEATED: Mapping[str, Shape] = {
    version: {
        "meta": "Meta",
        "identifier": {"type": "CodeableConcept"},
        "endpoint": "Reference*",
        **of_study,
        "series": {**_IN_SERIES[version], "instance": {"sopClass": "Coding"}},
    }
    for version, of_study in {
        "R4": {"modality": "Coding*", "procedureCode": "CodeableConcept*", "reasonCode": "CodeableConcept*"},
        "R5": {"modality": "CodeableConcept*", "procedure": "CodeableReference*", "reason": "CodeableReference*"},
    }.items()
}


@cache
def _class(version: str, resource_type: str) -> Any:
    """The class that validates a type; loaded when it is needed, since each version takes a while."""
    return getattr(importlib.import_module(f"{_MODULES[version]}.{resource_type.lower()}"), resource_type)


def find_errors(resource: dict[str, Any], version: str = "R4") -> list[str]:
    """What is wrong with a resource of a FHIR version, one sentence each; an empty list where nothing is."""
    slim = resource
    if resource["resourceType"] == "ImagingStudy":
        slim = resource | {"series": [s | {"instance": s["instance"][:1]} for s in resource["series"]]}
    try:
        _class(version, resource["resourceType"]).model_validate(_reuse(slim, _shape(resource, version), version))
    except ValidationError as error:
        return [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
    if resource["resourceType"] == "ImagingStudy":
        return list(_study_errors(resource))
    return []


def _shape(resource: dict[str, Any], version: str) -> Shape:
    return _REPEATED[version] if resource["resourceType"] in ("ImagingStudy", "Patient") else {}


def _reuse(value: Any, shape: Shape, version: str) -> Any:
    """A copy of a value, or of each in a list, with the objects of the valid elements that the shape names."""
    if type(value) is list:
        return [_reuse(one, shape, version) for one in value]
    if type(value) is not dict:
        return value
    copied = dict(value)
    for name in shape.keys() & value.keys():
        part, inner = value[name], shape[name]
        if not isinstance(inner, str):
            copied[name] = _reuse(part, inner, version)
        elif inner.endswith("*"):
            # an object is iterable, and a list of elements must not be made of one element
            if type(part) is list:
                copied[name] = [_object_of(one, inner[:-1], version) for one in part]
        else:
            copied[name] = _object_of(part, inner, version)
    return copied


def _object_of(value: Any, type_: str, version: str) -> Any:
    """The object of a valid element, else the value as it is."""
    if type(value) is not dict:
        return value
    known = _valid_object(version, type_, repr(value))
    return value if known is None else known


@lru_cache(maxsize=4096)
def _valid_object(version: str, type_: str, text: str) -> Any:
    """The object of the element that is written in `text` as a Python literal; None where it is not valid."""
    try:
        return _class(version, type_).model_validate(ast.literal_eval(text))
    except (ValidationError, ValueError, TypeError, SyntaxError):  # not valid, or not a literal: NaN
        return None


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
