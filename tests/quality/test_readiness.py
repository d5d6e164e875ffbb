"""How often FHIR elements can be filled, and why not."""

import datetime
from typing import Any

import pytest

from dicom_etl.quality.facts import FACT_COLUMNS, by_series, by_study
from dicom_etl.quality.readiness import Built, collect, readiness

DAY = datetime.date(2020, 1, 2)
ABSENT_SITE = {"BodyPartExamined": "absent", "Laterality": "unknown"}


def judged(
    *rows: dict[str, Any],
    outcomes: Any = None,
    built: Built | None = None,
    zone: bool = True,
    sexes: frozenset[str] = frozenset(),
) -> dict[str, tuple[int, dict[str, int]]]:
    """check -> passes, failures by reason."""
    facts = [dict.fromkeys(FACT_COLUMNS) | {"unit": "u", "subject": "sub-1", "n": 1} | row for row in rows]
    studies = by_study(facts)
    measures = readiness(studies, by_series(studies), outcomes or {}, built or Built(), zone=zone, sex_in_sheet=sexes)
    return {
        m.check: (m.n_pass, {r.reason: r.n_fail for r in measures if r.check == m.check and r.reason})
        for m in measures
        if m.reason is None
    }


def row(study: str = "S", series: str = "A", **values: Any) -> dict[str, Any]:
    return {"StudyInstanceUID": study, "SeriesInstanceUID": series, **values}


@pytest.mark.parametrize(
    ("values", "zone", "dated", "timed"),
    [
        ({"StudyDate": DAY, "StudyTime": "101500"}, True, (1, {}), (1, {})),
        ({"StudyDate": DAY, "StudyTime": "101500"}, False, (1, {}), (0, {"no time zone": 1})),
        ({"StudyDate": DAY, "StudyTime": "101500", "TimezoneOffsetFromUTC": "+0100"}, False, (1, {}), (1, {})),
        ({"StudyDate": DAY}, True, (1, {}), (0, {"no StudyTime": 1})),
        ({"StudyDate": DAY, "StudyTime": "10"}, True, (1, {}), (0, {"StudyTime is partial or not valid": 1})),
        ({}, True, (0, {"absent": 1}), (0, {"absent": 1})),
    ],
)
def test_started(values: dict[str, Any], zone: bool, dated: Any, timed: Any) -> None:
    found = judged(row(**values), zone=zone)
    assert (found["fhir-started"], found["fhir-started-time"]) == (dated, timed)


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [("absent", "absent"), ("empty", "empty"), ("unusable", "not usable (a dummy or not valid)")],
)
def test_the_headers_say_why_a_description_is_missing(outcome: str, reason: str) -> None:
    found = judged(row(), outcomes={("S", None): {"StudyDescription": outcome}})
    assert found["fhir-study-description"] == (0, {reason: 1})


def test_instances_that_disagree_are_a_reason() -> None:
    rows = row(StudyDescription="x"), row(StudyDescription="y")
    found = judged(*rows, outcomes={("S", None): {"StudyDescription": "filled"}})
    assert found["fhir-study-description"] == (0, {"instances disagree": 1})


def test_body_sites() -> None:
    tag = {"BodyPartExamined": "filled"}
    found = judged(
        row(series="coded", BodyPartExamined="BREAST"),
        row(series="text", BodyPartExamined="MAMMA"),
        row(series="region", AnatomicRegionCodeValue="76752008", AnatomicRegionSchemeDesignator="SCT"),
        row(series="none"),
        row(series="report"),
        outcomes={
            ("S", "coded"): tag,
            ("S", "text"): tag,
            ("S", "region"): ABSENT_SITE,
            ("S", "none"): ABSENT_SITE,
        },
    )
    assert found["fhir-body-site"] == (2, {"text is no term of Annex L": 1, "absent": 1})  # no report has a body site


def test_lateralities() -> None:
    undecided = "undecided: the body part does not tell whether it is paired"
    rows = {
        "left": {"BodyPartExamined": "BREAST", "Laterality": "L"},
        "paired": {"BodyPartExamined": "BREAST"},
        "unpaired": {"BodyPartExamined": "HEART"},
        "unknown": {},
        "said": {"BodyPartExamined": "BREAST", "ImageLaterality": "U"},
    }
    found = judged(
        *(row(series=name, **values) for name, values in rows.items()),
        outcomes={("S", name): {"Laterality": "absent"} for name in rows},
    )
    assert found["fhir-laterality"] == (1, {"absent": 1, undecided: 1, "said to be unpaired": 1})


def test_images_of_both_sides() -> None:
    rows = [row(BodyPartExamined="BREAST", ImageLaterality=side) for side in "LR"]
    found = judged(*rows, outcomes={("S", "A"): {"ImageLaterality": "filled"}})
    assert found["fhir-laterality"] == (0, {"images of several sides": 1})


def test_persons_of_headers_alone() -> None:
    found = judged(
        row("S1", PatientID="P1", PatientSex="F", PatientBirthDate=DAY),
        row("S2", PatientID="P1", PatientSex="F", PatientBirthDate=DAY),
        row("S3", PatientID="ANONYMOUS", subject="sub-3"),
        row("S4", subject="sub-4"),
        outcomes={("S3", None): {"PatientSex": "empty"}},
        sexes=frozenset({"sub-4"}),
    )
    assert found["fhir-patient-identifier"] == (1, {"PatientID is a placeholder": 1, "absent": 1})
    assert found["fhir-patient-gender"] == (2, {"empty": 1})
    assert found["fhir-patient-birth-date"] == (1, {"absent": 2})


def resource_of(study: str, **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "ImagingStudy",
        "identifier": [{"system": "urn:dicom:uid", "value": f"urn:oid:{study}"}],
        **more,
    }


def test_where_there_are_resources_they_count() -> None:
    built = Built()
    series = [{"uid": "A", "bodySite": {"display": "MAMMA"}, "instance": [{"uid": "x"}]}]
    patient = {"resourceType": "Patient", "id": "p", "gender": "female"}
    collect(built, "u", [resource_of("S", started="2020-01-02", series=series), patient])
    built.persons["S"] = {"patient": "p", "rule": "subject"}
    found = judged(
        row(StudyDate=DAY, StudyTime="1015", StudyDescription="x", BodyPartExamined="MAMMA", PatientID="P"),
        row("held", StudyDate=DAY),
        outcomes={("S", "A"): {"BodyPartExamined": "filled"}, ("S", None): {"StudyDescription": "filled"}},
        built=built,
    )
    assert found["fhir-started"] == (1, {"not built (held or left out)": 1})
    assert found["fhir-study-description"] == (0, {"left out": 1, "not built (held or left out)": 1})
    assert found["fhir-body-site"] == (0, {"text is no term of Annex L": 1})
    assert found["fhir-patient-gender"][0] == 1
    assert found["fhir-patient-identifier"][1]["PatientID stands for several subjects"] == 1
    assert "instance" not in built.series["S", "A"]
