"""The elements that depend on data and that a resource has, in R4 and R5."""

from typing import Any

import pytest

from dicom_etl.fhir.elements import list_element_rows
from dicom_etl.lake.schemas import FHIR_ELEMENTS

UID = {"use": "official", "system": "urn:dicom:uid", "value": "urn:oid:1.2"}
ACCESSION = {"type": {"coding": [{"code": "ACSN"}]}, "value": "A-1"}
STUDY: dict[str, Any] = {"resourceType": "ImagingStudy", "id": "s", "identifier": [UID], "series": [{"uid": "1.2.3"}]}
PATIENT: dict[str, Any] = {"resourceType": "Patient", "id": "p1"}


def rows(resource: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows with the columns that apply."""
    rows = list(list_element_rows(resource, "ds", "sub-1"))
    for row in rows:
        assert list(row) == FHIR_ELEMENTS.schema.names
        assert (row["dataset"], row["unit"]) == ("ds", "sub-1")
    return [{k: v for k, v in row.items() if v is not None and k not in ("dataset", "unit")} for row in rows]


def test_a_patient_without_elements() -> None:
    assert rows(PATIENT) == [{"level": "patient", "patient": "p1", "birth_date": False, "gender": False}]


def test_a_patient_with_elements() -> None:
    (row,) = rows(PATIENT | {"gender": "other", "birthDate": "1966"})
    assert (row["birth_date"], row["gender"]) == (True, True)


def test_a_study_has_a_row_and_one_for_each_series() -> None:
    series = {"level": "series", "study_uid": "1.2", "description": False, "body_site": False, "laterality": False}
    assert rows(STUDY | {"series": [{"uid": "1.2.3"}, {"uid": "1.2.4"}]}) == [
        {
            "level": "study",
            "study_uid": "1.2",
            "started": False,
            "started_time": False,
            "accession": False,
            "description": False,
        },
        series | {"series_uid": "1.2.3"},
        series | {"series_uid": "1.2.4"},
    ]


@pytest.mark.parametrize(
    ("started", "expected"),
    [("2024", (True, False)), ("2024-01-05", (True, False)), ("2024-01-05T10:15:00Z", (True, True))],
)
def test_a_date_has_no_time(started: str, expected: tuple[bool, bool]) -> None:
    row = rows(STUDY | {"started": started})[0]
    assert (row["started"], row["started_time"]) == expected


@pytest.mark.parametrize(
    "more", [{"identifier": [UID, ACCESSION]}, {"basedOn": [{"type": "ServiceRequest", "identifier": ACCESSION}]}]
)
def test_the_accession_number_in_r4_and_r5(more: dict[str, Any]) -> None:
    assert rows(STUDY | more)[0]["accession"] is True


@pytest.mark.parametrize(
    ("site", "coded"),
    [
        ({"system": "http://snomed.info/sct", "code": "72696002"}, True),
        ({"display": "LEFT LEG"}, False),
        ({"concept": {"coding": [{"code": "72696002"}]}}, True),
        ({"concept": {"text": "LEFT LEG"}}, False),
    ],
)
def test_a_body_site_counts_if_it_has_a_code(site: dict[str, Any], coded: bool) -> None:
    assert rows(STUDY | {"series": [{"uid": "1.2.3", "bodySite": site}]})[1]["body_site"] is coded


def test_descriptions_and_laterality_of_a_series() -> None:
    series = {"uid": "1.2.3", "description": "t1", "laterality": {"code": "24028007"}}
    study, row = rows(STUDY | {"description": "MR", "series": [series]})
    assert study["description"] is True
    assert (row["description"], row["laterality"]) == (True, True)
