"""Validation: errors that `fhir.resources` finds, and errors that it does not find."""

import copy
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from dicom_etl.fhir import validation
from dicom_etl.fhir.validation import find_errors

CLASS = {"system": "urn:ietf:rfc:3986", "code": "urn:oid:1.2.840.10008.5.1.4.1.1.4"}
STUDY: dict[str, Any] = {
    "resourceType": "ImagingStudy",
    "id": "s1",
    "status": "available",
    "subject": {"reference": "Patient/p1"},
    "numberOfSeries": 1,
    "numberOfInstances": 2,
    "started": "2024-01-05T10:15:00+01:00",
    "series": [
        {
            "uid": "1.2.3",
            "modality": {"code": "MR"},
            "number": 1,
            "started": "2024-01-05",
            "instance": [
                {"uid": "1.2.3.1", "sopClass": dict(CLASS), "number": 1},
                {"uid": "1.2.3.2", "sopClass": dict(CLASS)},
            ],
        }
    ],
}


def changed(*path: Any, to: Any = None) -> dict[str, Any]:
    """The study with another value at a path; None removes it."""
    study = copy.deepcopy(STUDY)
    findings: Any = study
    for key in path[:-1]:
        findings = findings[key]
    if to is None:
        del findings[path[-1]]
    else:
        findings[path[-1]] = to
    return study


def test_a_valid_study_has_no_errors() -> None:
    assert find_errors(STUDY) == []


@pytest.mark.parametrize(
    "resource",
    [
        {"resourceType": "Patient", "id": "p1", "birthDate": "1966-03-12", "gender": "female"},
        {"resourceType": "Patient", "id": "p1"},
    ],
)
def test_a_valid_patient_has_no_errors(resource: dict[str, Any]) -> None:
    assert find_errors(resource) == []


@pytest.mark.parametrize(
    ("resource", "named"),
    [
        ({"resourceType": "Patient", "id": "p 1"}, "id"),
        ({"resourceType": "Patient", "id": "p1", "birthDate": "1966-02-30"}, "birthDate"),
        ({"resourceType": "Patient", "id": "p1", "brithDate": "1966-03-12"}, "brithDate"),
        ({"resourceType": "Endpoint", "id": "e1", "status": "active"}, "connectionType"),
        (changed("status"), "status"),
        (changed("subject"), "subject"),
        (changed("description", to=""), "description"),
        (changed("numberOfSeries", to=2_147_483_648), "numberOfSeries"),
        (changed("series", 0, "number", to=-1), "number"),
        (changed("series", 0, "modality"), "modality"),
        (changed("series", 0, "instance", 0, "sopClass"), "sopClass"),
    ],
)
def test_errors_of_fhir_resources_have_the_path_of_the_element(resource: dict[str, Any], named: str) -> None:
    errors = find_errors(resource)
    assert errors
    assert named in " ".join(errors)


@pytest.mark.parametrize(
    ("study", "sentence"),
    [
        (changed("series", 0, "instance", 1, "number", to=-3), "instance 1.2.3.2: number -3 is not an unsignedInt"),
        (
            changed("series", 0, "instance", 1, "uid", to="1.2.3.1"),
            "instance 1.2.3.1 is in series 1.2.3 twice",
        ),
        (changed("series", 0, "instance", 1, "uid", to="1_2"), "instance 1_2: uid or sopClass is not valid"),
        (
            changed("series", 0, "instance", 1, "sopClass", "code"),
            "instance 1.2.3.2: uid or sopClass is not valid",
        ),
    ],
)
def test_errors_that_fhir_resources_does_not_find(study: dict[str, Any], sentence: str) -> None:
    assert find_errors(study) == [sentence]


@pytest.mark.parametrize(
    "started",
    [
        "2024-01-05T10:15:00",
        "2024-01-05T10:15+01:00",
        "2024-01-05T24:00:00Z",
        "2024-01-05T10:15:00+14:30",
        "05.01.2024",
    ],
)
def test_a_date_time_without_seconds_or_zone_is_an_error(started: str) -> None:
    assert len(find_errors(changed("started", to=started))) == 1
    assert len(find_errors(changed("series", 0, "started", to=started))) == 1


# -- the same as full validation ---------------------------------------------------------------------------------------

MR = {"system": "http://dicom.nema.org/resources/ontology/DCM", "code": "MR", "display": "Magnetic Resonance"}
TYPE = {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "ACSN"}], "text": "Accession"}
LABEL = {"security": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue", "code": "PSEUDED"}]}
IDENTIFIERS = [
    {"use": "official", "system": "urn:dicom:uid", "value": "urn:oid:1.2"},
    {"use": "usual", "type": TYPE, "value": "A-1", "assigner": {"display": "HIS"}},
]
REPEATED = {"meta": LABEL, "identifier": IDENTIFIERS, "endpoint": [{"reference": "Endpoint/e1"}]}
INSTANCE = {"uid": "1.2.3.1", "sopClass": CLASS, "number": 1, "title": "ORIGINAL"}
R4_STUDY = {
    **STUDY,
    **REPEATED,
    "modality": [MR],
    "procedureCode": [{"coding": [MR]}],
    "reasonCode": [{"text": "ache"}],
    "note": [{"text": "bodySite from the samples sheet"}],
    "series": [{**STUDY["series"][0], "modality": MR, "bodySite": MR, "laterality": MR, "instance": [INSTANCE]}],
}
R5_SERIES = {
    "modality": {"coding": [MR]},
    "bodySite": {"concept": {"coding": [MR]}},
    "laterality": {"coding": [MR]},
}
R5_STUDY = {
    **STUDY,
    **REPEATED,
    "modality": [{"coding": [MR]}],
    "basedOn": [{"type": "ServiceRequest", "identifier": IDENTIFIERS[1]}],
    "procedure": [{"concept": {"coding": [MR]}}],
    "reason": [{"concept": {"text": "ache"}}],
    "series": [{**STUDY["series"][0], **R5_SERIES, "instance": [INSTANCE]}],
}
PATIENT = {
    "resourceType": "Patient",
    "id": "p1",
    "meta": LABEL,
    "extension": [
        {"url": "http://example.org/animal", "extension": [{"url": "species", "valueCodeableConcept": TYPE}]}
    ],
    "identifier": IDENTIFIERS,
    "active": True,
    "name": [{"use": "usual", "family": "Fictional", "given": ["Ada"]}],
    "telecom": [{"system": "phone", "value": "+49 1"}],
    "gender": "female",
    "birthDate": "1966-03-12",
    "address": [{"text": "Road 1"}],
}
RESOURCES = [("R4", R4_STUDY), ("R5", R5_STUDY), ("R4", PATIENT), ("R5", PATIENT)]
ODD_TEXTS = [
    "",
    " ",
    "\x00",
    "a b",
    "a\nb",
    "é",
    "x" * 300,
    "2024-13-01",
    "2024-01-05T25:00:00Z",
    "2024-01-05T10:15:00",
]
ODD_CODINGS = [{"code": ""}, {"code": " MR"}, {"code": "MR", "display": ""}, {"system": float("nan")}, {"code": "MR"}]
ODD_CONCEPTS = [
    {"coding": []},
    {"coding": [None]},
    {"coding": [{"code": "MR", "odd": 1}]},
    {"coding": [{"code": "MR"}]},
]
ODD_VALUES: list[Any] = [
    *ODD_TEXTS,
    *ODD_CODINGS,
    *ODD_CONCEPTS,
    {"concept": {"coding": [{"code": 1}]}},
    {"concept": {"coding": [{"code": "MR"}]}},
    {"reference": 1},
    {"reference": "Patient/1"},
    {"resourceType": "Coding", "code": "MR"},
    *(None, 0, -1, 2**31, 1.5, float("nan"), True, {}, (), b"MR"),
    *(
        [],
        [None],
        [""],
        ["x"],
        [[]],
        [{}],
        [{"code": "MR"}],
        [{"coding": [{"code": "MR"}]}],
        [{"reference": "Patient/1"}],
    ),
]


def paths(value: Any) -> list[tuple[Any, ...]]:
    """The path of each element below a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, part in items for path in [(key,), *((key, *rest) for rest in paths(part))]]


def is_compared(path: tuple[Any, ...]) -> bool:
    """Whether a path may change: not the lists of series and instances, which every study has."""
    return path not in {("resourceType",), ("series",), ("series", 0), ("series", 0, "instance")} and path[3:] != (0,)


def mutations(resource: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The resource with each element removed, with an unknown element next to it, and with each of the odd values."""
    for path in filter(is_compared, paths(resource)):
        for number in range(len(ODD_VALUES) + 2):
            mutated = copy.deepcopy(resource)
            findings: Any = mutated
            for key in path[:-1]:
                findings = findings[key]
            if number < len(ODD_VALUES):
                findings[path[-1]] = ODD_VALUES[number]
            elif number == len(ODD_VALUES):
                del findings[path[-1]]
            elif isinstance(findings, dict):
                findings["odd"] = "x"
            yield mutated


def whole_validation(resource: dict[str, Any], version: str) -> list[str]:
    """The errors that `fhir.resources` finds in a whole resource; if there are none, those of our own checks."""
    module = "fhir.resources.R4B" if version == "R4" else "fhir.resources"
    type_ = resource["resourceType"]
    try:
        getattr(importlib.import_module(f"{module}.{type_.lower()}"), type_).model_validate(resource)
    except ValidationError as error:
        return [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
    return list(validation.find_study_errors(resource)) if type_ == "ImagingStudy" else []


def outcome(check: Callable[[dict[str, Any], str], list[str]], resource: dict[str, Any], version: str) -> Any:
    """The result of a check, or the error that it raises."""
    try:
        return check(resource, version)
    except Exception as error:  # noqa: BLE001  (whatever both raise is compared)
        return repr(error)


@pytest.mark.parametrize(("version", "resource"), RESOURCES)
def test_the_same_errors_are_found_as_by_full_validation(version: str, resource: dict[str, Any]) -> None:
    assert find_errors(resource, version) == whole_validation(resource, version) == []
    changed_resources = list(mutations(resource))
    refused = 0
    for mutated in changed_resources:
        expected = outcome(whole_validation, mutated, version)
        assert outcome(find_errors, mutated, version) == expected  # the first time
        assert outcome(find_errors, mutated, version) == expected  # and with the elements that were cached then
        refused += expected != []
    assert 0.5 < refused / len(changed_resources) < 0.95


def test_only_valid_elements_are_cached() -> None:
    assert validation.validate_element("R4", "Coding", repr(MR)).code == "MR"
    assert validation.validate_element("R4", "Coding", repr({"code": ""})) is None
    assert validation.validate_element("R4", "Coding", repr({"code": object()})) is None


def test_validation_does_not_change_a_resource() -> None:
    study = copy.deepcopy(R4_STUDY)
    assert find_errors(study) == []
    assert study == R4_STUDY
