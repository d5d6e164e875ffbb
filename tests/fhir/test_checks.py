"""Validity: what fhir.resources finds, and what it lets through."""

import copy
from typing import Any

import pytest

from dicom_etl.fhir.checks import errors

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
    """The study with another value at a path; None takes it out."""
    study = copy.deepcopy(STUDY)
    here: Any = study
    for key in path[:-1]:
        here = here[key]
    if to is None:
        del here[path[-1]]
    else:
        here[path[-1]] = to
    return study


def test_a_valid_study_has_no_errors() -> None:
    assert errors(STUDY) == []


@pytest.mark.parametrize(
    "resource",
    [
        {"resourceType": "Patient", "id": "p1", "birthDate": "1966-03-12", "gender": "female"},
        {"resourceType": "Patient", "id": "p1"},
    ],
)
def test_a_valid_patient_has_no_errors(resource: dict[str, Any]) -> None:
    assert errors(resource) == []


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
def test_what_fhir_resources_finds_is_said_with_its_place(resource: dict[str, Any], named: str) -> None:
    found = errors(resource)
    assert found
    assert named in " ".join(found)


@pytest.mark.parametrize(
    ("study", "sentence"),
    [
        (changed("series", 0, "instance", 1, "number", to=-3), "instance 1.2.3.2: number -3 is no unsignedInt"),
        (
            changed("series", 0, "instance", 1, "uid", to="1.2.3.1"),
            "instance 1.2.3.1 stands twice in series 1.2.3",
        ),
        (changed("series", 0, "instance", 1, "uid", to="1_2"), "instance 1_2: uid or sopClass is not valid"),
        (
            changed("series", 0, "instance", 1, "sopClass", "code"),
            "instance 1.2.3.2: uid or sopClass is not valid",
        ),
    ],
)
def test_what_fhir_resources_lets_through_is_found(study: dict[str, Any], sentence: str) -> None:
    assert errors(study) == [sentence]


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
def test_a_date_time_without_seconds_or_zone_is_found(started: str) -> None:
    assert len(errors(changed("started", to=started))) == 1
    assert len(errors(changed("series", 0, "started", to=started))) == 1
