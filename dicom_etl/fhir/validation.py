"""Validation of resources: by `fhir.resources`, and by checks of our own for errors that it does not find.

An ImagingStudy is validated by `fhir.resources` with one instance per series; all instances are checked here. This
finds the same errors and is twenty times faster.

Coded elements repeat over a dataset. An element that `fhir.resources` has found valid is passed to it as the object
that it created then, not as a dictionary. The validity of an element depends on nothing but its type and value, so no
check is skipped. Elements that are not valid are never cached: they are validated each time, with the same messages.

Not here: validation against profiles, which needs a server (`upload`).
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


# element -> its type, with * if it repeats, or the schema of an element that contains such elements
CachedElements = Mapping[str, Any]
_IN_SERIES: Mapping[str, CachedElements] = {
    "R4": {"modality": "Coding", "bodySite": "Coding", "laterality": "Coding"},
    "R5": {"modality": "CodeableConcept", "bodySite": "CodeableReference", "laterality": "CodeableConcept"},
}
_CACHED: Mapping[str, CachedElements] = {
    version: {
        "meta": "Meta",
        "identifier": {"type": "CodeableConcept"},
        "endpoint": "Reference*",
        **in_study,
        "series": {**_IN_SERIES[version], "instance": {"sopClass": "Coding"}},
    }
    for version, in_study in {
        "R4": {"modality": "Coding*", "procedureCode": "CodeableConcept*", "reasonCode": "CodeableConcept*"},
        "R5": {"modality": "CodeableConcept*", "procedure": "CodeableReference*", "reason": "CodeableReference*"},
    }.items()
}


@cache
def _class(version: str, resource_type: str) -> Any:
    """The class that validates a type; imported when it is needed, since the import of each version is slow."""
    return getattr(importlib.import_module(f"{_MODULES[version]}.{resource_type.lower()}"), resource_type)


def find_errors(resource: dict[str, Any], version: str = "R4") -> list[str]:
    """The errors of a resource of a FHIR version, one sentence each; an empty list if it is valid."""
    reduced = resource
    if resource["resourceType"] == "ImagingStudy":
        reduced = resource | {"series": [s | {"instance": s["instance"][:1]} for s in resource["series"]]}
    cached = _CACHED[version] if resource["resourceType"] in ("ImagingStudy", "Patient") else {}
    try:
        _class(version, resource["resourceType"]).model_validate(_reuse_objects(reduced, cached, version))
    except ValidationError as error:
        return [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
    if resource["resourceType"] == "ImagingStudy":
        return list(find_study_errors(resource))
    return []


def _reuse_objects(value: Any, cached: CachedElements, version: str) -> Any:
    """A copy of a value, or of each value in a list, with objects in place of the valid elements that are cached."""
    if type(value) is list:
        return [_reuse_objects(item, cached, version) for item in value]
    if type(value) is not dict:
        return value
    copied = dict(value)
    for name in cached.keys() & value.keys():
        element, type_or_elements = value[name], cached[name]
        if not isinstance(type_or_elements, str):
            copied[name] = _reuse_objects(element, type_or_elements, version)
        elif type_or_elements.endswith("*"):
            # an object is iterable, and an element that is not in a list must not be turned into one
            if type(element) is list:
                copied[name] = [_object_of(item, type_or_elements[:-1], version) for item in element]
        else:
            copied[name] = _object_of(element, type_or_elements, version)
    return copied


def _object_of(value: Any, type_: str, version: str) -> Any:
    """The object of a valid element; any other value as it is."""
    if type(value) is not dict:
        return value
    valid = validate_element(version, type_, repr(value))
    return value if valid is None else valid


@lru_cache(maxsize=4096)
def validate_element(version: str, type_: str, text: str) -> Any:
    """The object of the element that is written in `text` as a Python literal; None if it is not valid."""
    try:
        return _class(version, type_).model_validate(ast.literal_eval(text))
    except (ValidationError, ValueError, TypeError, SyntaxError):  # not valid, or not a literal: NaN
        return None


def find_study_errors(study: dict[str, Any]) -> Iterator[str]:
    """The errors of an ImagingStudy that `fhir.resources` does not find, and those of its instances."""
    yield from _element_errors("study", study)
    for series in study["series"]:
        yield from _element_errors(f"series {series['uid']}", series)
        seen_uids: set[str] = set()
        for instance in series["instance"]:
            uid = instance["uid"]
            if uid in seen_uids:
                yield f"instance {uid} is in series {series['uid']} twice"
            seen_uids.add(uid)
            if not _FHIR_ID.fullmatch(uid) or not instance["sopClass"].get("code"):
                yield f"instance {uid}: uid or sopClass is not valid"
            yield from _unsigned_errors(f"instance {uid}", instance)


def _element_errors(where: str, element: dict[str, Any]) -> Iterator[str]:
    started = element.get("started")
    if started is not None and not _DATE_TIME.fullmatch(started):
        yield f"{where}: started {started} is not a dateTime"
    yield from _unsigned_errors(where, element)


def _unsigned_errors(where: str, element: dict[str, Any]) -> Iterator[str]:
    for name in _UNSIGNED:
        value = element.get(name, 0)
        if not isinstance(value, int) or not 0 <= value <= 2_147_483_647:
            yield f"{where}: {name} {value} is not an unsignedInt"
