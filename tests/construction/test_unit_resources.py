"""The resources of a batch of units, without a lake: what each unit gets, and what one unit does to the others."""

import datetime
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest

from dicom_etl.construction import unit_resources
from dicom_etl.construction.unit_resources import COLUMNS, UnitInputs, UnitResources, build_resources
from dicom_etl.fhir.context import Context
from dicom_etl.fhir.corrections import Correction
from dicom_etl.identity.ids import ResourceIds
from dicom_etl.identity.matching import PatientMatch
from dicom_etl.lake.schemas import FHIR_ELEMENTS, header_table

SITE = "https://site.example"
PATIENT_ID = f"{SITE}/ds/patient-id"
MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
DCM = "http://dicom.nema.org/resources/ontology/DCM"
IDS = ResourceIds.from_key(SITE, None)
CONTEXT = Context("ds", IDS, ZoneInfo("Europe/Berlin"), "endpoint-1")
ROW: dict[str, Any] = {
    "unit": "sub-1",
    "subject": "sub-1",
    "sample": "sam-1",
    "StudyInstanceUID": "1.1",
    "SeriesInstanceUID": "1.1.1",
    "SOPInstanceUID": "1.1.1.1",
    "SOPClassUID": MR_IMAGE,
    "Modality": "MR",
    "StudyDate": datetime.date(2024, 1, 5),
    "StudyTime": "101500",
    "PatientID": "P-1",
}


def table(*rows: dict[str, Any]) -> pa.Table:
    """A header table of rows over those of `ROW`; what is not said is null."""
    filled = [ROW | row for row in rows]
    assert {name for row in filled for name in row} <= set(COLUMNS)
    return pa.table(
        {name: pa.array([r.get(name) for r in filled], header_table().schema.field(name).type) for name in COLUMNS}
    )


def person(number: int, **fields: Any) -> PatientMatch:
    """The person of study 1.<number>, alone in unit sub-<number>."""
    unit = fields.get("unit", f"sub-{number}")
    known = {"subject": unit, "system": PATIENT_ID, "value": f"P-{number}", "rule": "patient-id", "state": "ok"}
    return PatientMatch(**{"study_uid": f"1.{number}", "unit": unit, "building_unit": unit, **known, **fields})


def plan(*people: PatientMatch, unit: str = "sub-1", context: Context = CONTEXT, corrections: Any = ()) -> UnitInputs:
    return UnitInputs(unit, people, context, tuple(corrections))


def row_of(number: int, **fields: Any) -> dict[str, Any]:
    """The row of the one instance of study 1.<number> in unit sub-<number>."""
    uids = {
        "StudyInstanceUID": f"1.{number}",
        "SeriesInstanceUID": f"1.{number}.1",
        "SOPInstanceUID": f"1.{number}.1.1",
    }
    return {"unit": f"sub-{number}", "subject": f"sub-{number}", "PatientID": f"P-{number}"} | uids | fields


def make(plans: Sequence[UnitInputs], *rows: dict[str, Any]) -> list[UnitResources]:
    return list(build_resources(plans, table(*rows)))


def parsed(made: UnitResources, kind: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in made.lines[kind].splitlines()]


def codes(made: UnitResources) -> list[str]:
    return sorted(found.code for found in made.findings)


def id_of(kind: str, *key: str) -> str:
    """The id of a resource (`tests/identity/test_ids.py` has known ones)."""
    return IDS.resource_id(kind, *key)


# -- one unit ---------------------------------------------------------------------------------------------------------


def test_a_unit_with_one_instance_is_a_patient_and_a_study() -> None:
    (made,) = make([plan(person(1))], row_of(1, PatientSex="F", AccessionNumber="A-1", BodyPartExamined="KNEE"))
    patient = {
        "resourceType": "Patient",
        "id": id_of("Patient", PATIENT_ID, "P-1"),
        "identifier": [
            {
                "use": "usual",
                "system": PATIENT_ID,
                "value": "P-1",
                "type": {
                    "coding": [
                        {
                            "system": "http://terminology.hl7.org/CodeSystem/v2-0203",
                            "code": "MR",
                            "display": "Medical record number",
                        }
                    ]
                },
            }
        ],
        "active": True,
        "gender": "female",
    }
    accession = {
        "coding": [
            {
                "system": "http://terminology.hl7.org/CodeSystem/v2-0203",
                "code": "ACSN",
                "display": "Accession ID",
            }
        ]
    }
    study = {
        "resourceType": "ImagingStudy",
        "id": id_of("ImagingStudy", "ds", "1.1"),
        "identifier": [
            {"use": "official", "system": "urn:dicom:uid", "value": "urn:oid:1.1"},
            {"use": "usual", "type": accession, "value": "A-1"},
            {"use": "temp", "system": "urn:sparc_dataset:uid", "value": "urn:uid:ds"},
            {"use": "temp", "system": "urn:sparc_study:uid", "value": "urn:uid:sub-1-1.1"},
        ],
        "status": "available",
        "modality": [{"system": DCM, "code": "MR", "display": "Magnetic Resonance"}],
        "subject": {"reference": f"Patient/{id_of('Patient', PATIENT_ID, 'P-1')}"},
        "started": "2024-01-05T10:15:00+01:00",
        "endpoint": [{"reference": "Endpoint/endpoint-1"}],
        "numberOfSeries": 1,
        "numberOfInstances": 1,
        "series": [
            {
                "uid": "1.1.1",
                "modality": {"system": DCM, "code": "MR", "display": "Magnetic Resonance"},
                "numberOfInstances": 1,
                "bodySite": {"system": "http://snomed.info/sct", "code": "72696002", "display": "Knee"},
                "instance": [
                    {
                        "uid": "1.1.1.1",
                        "sopClass": {
                            "system": "urn:ietf:rfc:3986",
                            "code": f"urn:oid:{MR_IMAGE}",
                            "display": "MR Image Storage",
                        },
                    }
                ],
            }
        ],
    }
    assert made.lines == {kind: _line(expected) for kind, expected in (("Patient", patient), ("ImagingStudy", study))}
    assert made.counts == {"Patient": 1, "ImagingStudy": 1}
    assert (made.unit, made.findings, made.error) == ("sub-1", [], None)
    where = dict.fromkeys(FHIR_ELEMENTS.schema.names) | {"dataset": "ds", "unit": "sub-1"}
    assert made.elements == [
        where | {"level": "patient", "patient": patient["id"], "birth_date": False, "gender": True},
        where
        | {
            "level": "study",
            "study_uid": "1.1",
            "started": True,
            "started_time": True,
            "accession": True,
            "description": False,
        },
        where
        | {
            "level": "series",
            "study_uid": "1.1",
            "series_uid": "1.1.1",
            "description": False,
            "body_site": True,
            "laterality": False,
        },
    ]


def _line(resource: dict[str, Any]) -> bytes:
    return json.dumps(resource, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def test_lines_are_sorted_by_id() -> None:
    uids = [f"1.{number}" for number in range(1, 9)]
    people = [person(1, study_uid=uid, value=f"P-{uid}") for uid in uids]
    (made,) = make([plan(*people)], *(row_of(1, StudyInstanceUID=uid) for uid in uids))
    assert made.counts == {"Patient": 8, "ImagingStudy": 8}
    for kind in made.counts:
        ids = [resource["id"] for resource in parsed(made, kind)]
        assert ids == sorted(ids)


def test_studies_of_one_person_have_one_patient_of_all_their_rows() -> None:
    people = [person(1), person(1, study_uid="1.5")]
    other = row_of(1, StudyInstanceUID="1.5", PatientBirthDate=datetime.date(1966, 3, 12))
    (made,) = make([plan(*people)], row_of(1, PatientSex="F"), other)
    (patient,) = parsed(made, "Patient")
    assert (patient["gender"], patient["birthDate"]) == ("female", "1966-03-12")
    assert [study["subject"]["reference"] for study in parsed(made, "ImagingStudy")] == [f"Patient/{patient['id']}"] * 2


def test_resources_of_r5_have_its_elements() -> None:
    context = replace(CONTEXT, version="R5")
    (made,) = make([plan(person(1), context=context)], row_of(1, AccessionNumber="A-1", BodyPartExamined="KNEE"))
    (study,) = parsed(made, "ImagingStudy")
    assert study["series"][0]["modality"]["coding"][0]["code"] == "MR"
    assert study["basedOn"][0]["identifier"]["value"] == "A-1"
    assert [(e["accession"], e["body_site"]) for e in made.elements[1:]] == [(True, None), (None, True)]


def test_a_series_in_two_studies_is_reported() -> None:
    people = [person(1), person(1, study_uid="1.5")]
    (made,) = make([plan(*people)], row_of(1), row_of(1, StudyInstanceUID="1.5"))
    assert [(f.code, f.series_uid) for f in made.findings] == [("series-two-studies", "1.1.1")]


# -- studies that are not made ----------------------------------------------------------------------------------------


def test_a_unit_without_studies_has_empty_lines() -> None:
    (made,) = make([plan()], row_of(2))
    assert made == UnitResources(
        "sub-1", {"Patient": b"", "ImagingStudy": b""}, {"Patient": 0, "ImagingStudy": 0}, [], []
    )


def test_a_study_on_hold_is_not_made_and_reported_at_its_subject() -> None:
    held = person(1, state="held", reason="study-two-patients")
    (made,) = make([plan(held)], row_of(1))
    assert made.counts == {"Patient": 0, "ImagingStudy": 0}
    assert [(f.code, f.subject, f.study_uid) for f in made.findings] == [("study-two-patients", "sub-1", "1.1")]


def test_the_owner_makes_a_study_also_of_the_rows_in_other_units() -> None:
    person_1, person_2 = (person(1, unit=unit, building_unit="sub-1", subject=unit) for unit in ("sub-1", "sub-2"))
    rows = [row_of(1), row_of(1, unit="sub-2", subject="sub-2", SOPInstanceUID="1.1.1.2")]
    first, second = make([plan(person_1), plan(person_2, unit="sub-2")], *rows)
    assert [study["numberOfInstances"] for study in parsed(first, "ImagingStudy")] == [2]
    assert second.counts == {"Patient": 0, "ImagingStudy": 0}


def test_a_study_of_which_fhir_can_represent_nothing_is_on_hold() -> None:
    (made,) = make([plan(person(1))], row_of(1, Modality=None))
    assert codes(made) == ["instance-excluded", "study-held"]
    assert made.counts == {"Patient": 1, "ImagingStudy": 0}
    assert [row["level"] for row in made.elements] == ["patient"]


def test_a_patient_that_is_not_valid_holds_its_studies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        unit_resources, "find_errors", lambda resource, _: ["it is odd"] * (resource["resourceType"] == "Patient")
    )
    (made,) = make([plan(person(1))], row_of(1))
    assert made.counts == {"Patient": 0, "ImagingStudy": 0}
    assert [(f.code, (f.message or "")[-29:]) for f in made.findings] == [
        ("resource-invalid", f"{id_of('Patient', PATIENT_ID, 'P-1')}: it is odd"[-29:]),
        ("study-held", "its Patient: it is not valid"),
    ]


def test_strict_mode_holds_a_study_with_a_value_that_fhir_cannot_represent() -> None:
    context = replace(CONTEXT, strict=True)
    (made,) = make([plan(person(1), context=context)], row_of(1, SeriesNumber=-1))
    assert codes(made) == ["study-held", "value-omitted"]
    assert made.counts == {"Patient": 1, "ImagingStudy": 0}


# -- units of one batch -----------------------------------------------------------------------------------------------

BATCH = [
    row_of(1, PatientSex="F", StudyDescription="one", BodyPartExamined="KNEE"),
    row_of(2, Laterality="Q", SeriesNumber=-1),
    row_of(3, PatientName="Fictional^Ada", ReferringPhysicianName="Doe^Jane", StudyTime="1015"),
    row_of(3, SOPInstanceUID="1.3.1.2", SeriesDescription="other"),
]
PLANS = [plan(person(number), unit=f"sub-{number}") for number in (1, 2, 3)]


def test_units_are_made_in_a_batch_as_alone_and_in_the_order_of_the_plans() -> None:
    alone = [make([one], *(row for row in BATCH if row["unit"] == one.unit))[0] for one in PLANS[::-1]]
    assert make(PLANS[::-1], *BATCH) == alone
    assert [made.unit for made in alone] == ["sub-3", "sub-2", "sub-1"]
    assert [len(made.findings) for made in alone] == [1, 2, 0]


def test_the_order_of_the_rows_does_not_matter() -> None:
    assert make(PLANS, *BATCH[::-1]) == make(PLANS, *BATCH)


def test_a_unit_that_fails_fails_alone() -> None:
    first, second, third = make(PLANS, *(row for row in BATCH if row["unit"] != "sub-2"))
    assert isinstance(second.error, KeyError)  # it has a study and no rows of it
    assert second[:5] == ("sub-2", {}, {}, [], [])
    assert [(made.error, made.counts["ImagingStudy"]) for made in (first, third)] == [(None, 1)] * 2


def test_a_correction_changes_its_unit_alone() -> None:
    line = Correction("ds", None, None, None, None, "StudyDescription", "corrected", "", "line 2")
    plans = [plan(person(1), corrections=[line]), *PLANS[1:]]
    first, *others = make(plans, *BATCH)
    assert parsed(first, "ImagingStudy")[0]["description"] == "corrected"
    assert codes(first) == ["value-corrected"]
    assert others == make(PLANS, *BATCH)[1:]


def test_a_correction_fills_a_column_that_is_empty_in_the_whole_batch() -> None:
    line = Correction("ds", None, None, None, None, "SeriesTime", "1200", "", "line 2")
    date = Correction("ds", None, None, None, None, "SeriesDate", "20240107", "", "line 3")
    first, _ = make([plan(person(1), corrections=[line, date]), PLANS[1]], row_of(1), row_of(2))
    assert parsed(first, "ImagingStudy")[0]["series"][0]["started"] == "2024-01-07"
