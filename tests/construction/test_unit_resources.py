"""The resources of units, without a lake: those of one unit, and how units affect each other."""

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
    """A header table: rows with the values of `ROW` and their own; other columns are null."""
    filled = [ROW | row for row in rows]
    assert {name for row in filled for name in row} <= set(COLUMNS)
    return pa.table(
        {name: pa.array([r.get(name) for r in filled], header_table().schema.field(name).type) for name in COLUMNS}
    )


def match(number: int, **fields: Any) -> PatientMatch:
    """The match of study 1.<number>, the only one in unit sub-<number>."""
    unit = fields.get("unit", f"sub-{number}")
    defaults = {"subject": unit, "system": PATIENT_ID, "value": f"P-{number}", "rule": "patient-id", "state": "ok"}
    return PatientMatch(**{"study_uid": f"1.{number}", "unit": unit, "building_unit": unit, **defaults, **fields})


def inputs(
    *matches: PatientMatch, unit: str = "sub-1", context: Context = CONTEXT, corrections: Any = ()
) -> UnitInputs:
    return UnitInputs(unit, matches, context, tuple(corrections))


def row_of(number: int, **fields: Any) -> dict[str, Any]:
    """The row of the one instance of study 1.<number> in unit sub-<number>."""
    uids = {
        "StudyInstanceUID": f"1.{number}",
        "SeriesInstanceUID": f"1.{number}.1",
        "SOPInstanceUID": f"1.{number}.1.1",
    }
    return {"unit": f"sub-{number}", "subject": f"sub-{number}", "PatientID": f"P-{number}"} | uids | fields


def make(units: Sequence[UnitInputs], *rows: dict[str, Any]) -> list[UnitResources]:
    return list(build_resources(units, table(*rows)))


def parsed(result: UnitResources, kind: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.lines[kind].splitlines()]


def codes(result: UnitResources) -> list[str]:
    return sorted(finding.code for finding in result.findings)


def id_of(kind: str, *key: str) -> str:
    """The id of a resource (`tests/identity/test_ids.py` has examples)."""
    return IDS.resource_id(kind, *key)


def _line(resource: dict[str, Any]) -> bytes:
    return json.dumps(resource, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


class TestOneUnit:
    def test_a_unit_with_one_instance_is_a_patient_and_a_study(self) -> None:
        (result,) = make([inputs(match(1))], row_of(1, PatientSex="F", AccessionNumber="A-1", BodyPartExamined="KNEE"))
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
        assert result.lines == {
            kind: _line(expected) for kind, expected in (("Patient", patient), ("ImagingStudy", study))
        }
        assert result.counts == {"Patient": 1, "ImagingStudy": 1}
        assert (result.unit, result.findings, result.error) == ("sub-1", [], None)
        where = dict.fromkeys(FHIR_ELEMENTS.schema.names) | {"dataset": "ds", "unit": "sub-1"}
        assert result.elements == [
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

    def test_lines_are_sorted_by_id(self) -> None:
        uids = [f"1.{number}" for number in range(1, 9)]
        matches = [match(1, study_uid=uid, value=f"P-{uid}") for uid in uids]
        (result,) = make([inputs(*matches)], *(row_of(1, StudyInstanceUID=uid) for uid in uids))
        assert result.counts == {"Patient": 8, "ImagingStudy": 8}
        for kind in result.counts:
            ids = [resource["id"] for resource in parsed(result, kind)]
            assert ids == sorted(ids)

    def test_studies_of_one_patient_have_one_patient_from_all_rows(self) -> None:
        matches = [match(1), match(1, study_uid="1.5")]
        other = row_of(1, StudyInstanceUID="1.5", PatientBirthDate=datetime.date(1966, 3, 12))
        (result,) = make([inputs(*matches)], row_of(1, PatientSex="F"), other)
        (patient,) = parsed(result, "Patient")
        assert (patient["gender"], patient["birthDate"]) == ("female", "1966-03-12")
        assert [study["subject"]["reference"] for study in parsed(result, "ImagingStudy")] == [
            f"Patient/{patient['id']}"
        ] * 2

    def test_resources_of_r5_have_its_elements(self) -> None:
        context = replace(CONTEXT, version="R5")
        (result,) = make([inputs(match(1), context=context)], row_of(1, AccessionNumber="A-1", BodyPartExamined="KNEE"))
        (study,) = parsed(result, "ImagingStudy")
        assert study["series"][0]["modality"]["coding"][0]["code"] == "MR"
        assert study["basedOn"][0]["identifier"]["value"] == "A-1"
        assert [(e["accession"], e["body_site"]) for e in result.elements[1:]] == [(True, None), (None, True)]

    def test_a_series_in_two_studies_is_reported(self) -> None:
        matches = [match(1), match(1, study_uid="1.5")]
        (result,) = make([inputs(*matches)], row_of(1), row_of(1, StudyInstanceUID="1.5"))
        assert [(f.code, f.series_uid) for f in result.findings] == [("series-two-studies", "1.1.1")]


class TestHeldStudies:
    def test_a_unit_without_studies_has_empty_lines(self) -> None:
        (result,) = make([inputs()], row_of(2))
        assert result == UnitResources(
            "sub-1", {"Patient": b"", "ImagingStudy": b""}, {"Patient": 0, "ImagingStudy": 0}, [], []
        )

    def test_a_held_study_is_not_built_but_reported(self) -> None:
        held = match(1, state="held", reason="study-two-patients")
        (result,) = make([inputs(held)], row_of(1))
        assert result.counts == {"Patient": 0, "ImagingStudy": 0}
        assert [(f.code, f.subject, f.study_uid) for f in result.findings] == [("study-two-patients", "sub-1", "1.1")]

    def test_the_building_unit_uses_rows_of_other_units(self) -> None:
        match_1, match_2 = (match(1, unit=unit, building_unit="sub-1", subject=unit) for unit in ("sub-1", "sub-2"))
        rows = [row_of(1), row_of(1, unit="sub-2", subject="sub-2", SOPInstanceUID="1.1.1.2")]
        first, second = make([inputs(match_1), inputs(match_2, unit="sub-2")], *rows)
        assert [study["numberOfInstances"] for study in parsed(first, "ImagingStudy")] == [2]
        assert second.counts == {"Patient": 0, "ImagingStudy": 0}

    def test_a_study_without_valid_instances_is_held(self) -> None:
        (result,) = make([inputs(match(1))], row_of(1, Modality=None))
        assert codes(result) == ["instance-excluded", "study-held"]
        assert result.counts == {"Patient": 1, "ImagingStudy": 0}
        assert [row["level"] for row in result.elements] == ["patient"]

    def test_studies_of_an_invalid_patient_are_held(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            unit_resources, "find_errors", lambda resource, _: ["it is odd"] * (resource["resourceType"] == "Patient")
        )
        (result,) = make([inputs(match(1))], row_of(1))
        assert result.counts == {"Patient": 0, "ImagingStudy": 0}
        assert [(f.code, (f.message or "")[-29:]) for f in result.findings] == [
            ("resource-invalid", f"{id_of('Patient', PATIENT_ID, 'P-1')}: it is odd"[-29:]),
            ("study-held", "its Patient: it is not valid"),
        ]

    def test_strict_mode_holds_a_study_with_an_omitted_value(self) -> None:
        context = replace(CONTEXT, strict=True)
        (result,) = make([inputs(match(1), context=context)], row_of(1, SeriesNumber=-1))
        assert codes(result) == ["study-held", "value-omitted"]
        assert result.counts == {"Patient": 1, "ImagingStudy": 0}


ROWS = [
    row_of(1, PatientSex="F", StudyDescription="one", BodyPartExamined="KNEE"),
    row_of(2, Laterality="Q", SeriesNumber=-1),
    row_of(3, PatientName="Fictional^Ada", ReferringPhysicianName="Doe^Jane", StudyTime="1015"),
    row_of(3, SOPInstanceUID="1.3.1.2", SeriesDescription="other"),
]


UNITS = [inputs(match(number), unit=f"sub-{number}") for number in (1, 2, 3)]


class TestSeveralUnits:
    def test_units_are_built_together_as_one_by_one(self) -> None:
        one_by_one = [make([unit], *(row for row in ROWS if row["unit"] == unit.unit))[0] for unit in UNITS[::-1]]
        assert make(UNITS[::-1], *ROWS) == one_by_one
        assert [result.unit for result in one_by_one] == ["sub-3", "sub-2", "sub-1"]
        assert [len(result.findings) for result in one_by_one] == [1, 2, 0]

    def test_the_order_of_rows_has_no_effect(self) -> None:
        assert make(UNITS, *ROWS[::-1]) == make(UNITS, *ROWS)

    def test_a_unit_that_fails_does_not_affect_others(self) -> None:
        first, second, third = make(UNITS, *(row for row in ROWS if row["unit"] != "sub-2"))
        assert isinstance(second.error, KeyError)  # it has a study without rows
        assert second[:5] == ("sub-2", {}, {}, [], [])
        assert [(result.error, result.counts["ImagingStudy"]) for result in (first, third)] == [(None, 1)] * 2

    def test_a_correction_changes_only_its_unit(self) -> None:
        line = Correction("ds", None, None, None, None, "StudyDescription", "corrected", "", "line 2")
        units = [inputs(match(1), corrections=[line]), *UNITS[1:]]
        first, *others = make(units, *ROWS)
        assert parsed(first, "ImagingStudy")[0]["description"] == "corrected"
        assert codes(first) == ["value-corrected"]
        assert others == make(UNITS, *ROWS)[1:]

    def test_a_correction_fills_a_column_that_is_empty_in_all_units(self) -> None:
        line = Correction("ds", None, None, None, None, "SeriesTime", "1200", "", "line 2")
        date = Correction("ds", None, None, None, None, "SeriesDate", "20240107", "", "line 3")
        first, _ = make([inputs(match(1), corrections=[line, date]), UNITS[1]], row_of(1), row_of(2))
        assert parsed(first, "ImagingStudy")[0]["series"][0]["started"] == "2024-01-07"
