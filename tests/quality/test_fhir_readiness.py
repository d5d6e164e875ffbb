"""How often resources have their FHIR elements, and the reasons why not."""

import datetime
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pytest

from dicom_etl.lake.schemas import FHIR_ELEMENTS, IDENTITIES
from dicom_etl.quality.checks.counting import MeasuredDataset
from dicom_etl.quality.checks.fhir_readiness import COUNTING_FUNCTIONS, create_cases, create_resources
from dicom_etl.quality.terms import create_terms
from tests.support.lake_tables import CT, Row, TagProfiles, database_of, header_rows, table_of

DAY = datetime.date(2020, 1, 2)
STUDY_DATE, DESCRIPTION, SEX = "00080020", "00081030", "00100040"
EMPTY, FILLED = 1, 2
NOT_BUILT = "not built (on hold or omitted)"


def count(
    *rows: Row,
    elements: Iterable[Row] = (),
    identities: Iterable[Row] = (),
    tag_profiles: TagProfiles | None = None,
    built: Iterable[str] = ("u",),
    has_time_zone: bool = True,
) -> dict[str, tuple[int, dict[str, int]]]:
    """check -> passes, failures by reason."""
    with database_of(header_rows(*rows), tag_profiles) as database:
        create_terms(database)
        create_resources(
            database,
            pa.table({"unit": pa.array(list(built), pa.string())}),
            [table_of(FHIR_ELEMENTS, elements)],
            [table_of(IDENTITIES, identities)],
        )
        create_cases(database, has_time_zone=has_time_zone)
        dataset = MeasuredDataset("d", database)
        measures = [measure for count in COUNTING_FUNCTIONS.values() for measure in count(dataset)]
    return {
        m.check: (m.n_pass, {r.reason: r.n_fail for r in measures if r.check == m.check and r.reason})
        for m in measures
        if m.reason is None
    }


def row(study: str = "S", series: str = "A", **values: Any) -> Row:
    common = {"unit": "u", "subject": "sub-1", "tag_profile": 1}
    return common | {"StudyInstanceUID": study, "SeriesInstanceUID": series, **values}


def study(uid: str = "S", **flags: bool) -> Row:
    none = dict.fromkeys(("started", "started_time", "accession", "description"), False)
    return {"unit": "u", "level": "study", "study_uid": uid, **none, **flags}


def series(uid: str = "A", **flags: bool) -> Row:
    none = dict.fromkeys(("description", "body_site", "laterality"), False)
    return {"unit": "u", "level": "series", "study_uid": "S", "series_uid": uid, **none, **flags}


def patient(name: str, *, birth_date: bool = False, gender: bool = False, unit: str = "u") -> Row:
    return {"unit": unit, "level": "patient", "patient": name, "birth_date": birth_date, "gender": gender}


def identity(uid: str, name: str | None, rule: str = "patient-id", reason: str | None = None) -> Row:
    return {"unit": "u", "study_uid": uid, "patient": name, "rule": rule, "reason": reason}


@pytest.mark.parametrize(
    ("values", "flags", "has_time_zone", "dated", "timed"),
    [
        ({"StudyDate": DAY, "StudyTime": "101500"}, (True, True), True, (1, {}), (1, {})),
        ({"StudyDate": DAY, "StudyTime": "101500"}, (True, False), False, (1, {}), (0, {"no time zone": 1})),
        (
            {"StudyDate": DAY, "StudyTime": "101500", "TimezoneOffsetFromUTC": "+0100"},
            (True, True),
            False,
            (1, {}),
            (1, {}),
        ),
        ({"StudyDate": DAY}, (True, False), True, (1, {}), (0, {"no StudyTime": 1})),
        (
            {"StudyDate": DAY, "StudyTime": "10"},
            (True, False),
            True,
            (1, {}),
            (0, {"StudyTime is partial or invalid": 1}),
        ),
        (
            {"StudyDate": DAY, "StudyTime": "10", "TimezoneOffsetFromUTC": "UTC"},
            (True, False),
            False,
            (1, {}),
            (0, {"no time zone": 1}),
        ),
        ({}, (False, False), True, (0, {"absent": 1}), (0, {"absent": 1})),
    ],
)
def test_started(values: Row, flags: tuple[bool, bool], has_time_zone: bool, dated: Any, timed: Any) -> None:
    element = study(started=flags[0], started_time=flags[1])
    counted = count(row(**values), elements=[element], has_time_zone=has_time_zone)
    assert (counted["fhir-started"], counted["fhir-started-time"]) == (dated, timed)


@pytest.mark.parametrize(
    ("status", "value", "reason"),
    [
        (None, None, "absent"),
        (EMPTY, None, "empty"),
        (FILLED, "ANONYMOUS", "unusable (a placeholder or invalid)"),
    ],
)
def test_the_header_explains_a_missing_description(status: int | None, value: str | None, reason: str) -> None:
    profiles = {1: [(DESCRIPTION, status)] if status else []}
    counted = count(row(StudyDescription=value), elements=[study()], tag_profiles=profiles)
    assert counted["fhir-study-description"] == (0, {reason: 1})


def test_instances_that_disagree_are_a_reason() -> None:
    rows = row(StudyDescription="x"), row(StudyDescription="y")
    counted = count(*rows, elements=[study()], tag_profiles={1: [(DESCRIPTION, FILLED)]})
    assert counted["fhir-study-description"] == (0, {"instances disagree": 1})


def test_body_sites() -> None:
    image = {"SOPClassUID": CT}
    counted = count(
        row(series="coded", BodyPartExamined="BREAST", **image),
        row(series="text", BodyPartExamined="MAMMA", **image),
        row(series="region", AnatomicRegionCodeValue="76752008", AnatomicRegionSchemeDesignator="SCT", **image),
        row(series="none", **image),
        row(series="report"),
        elements=[
            series("coded", body_site=True),
            series("text"),
            series("region", body_site=True),
            series("none"),
            series("report"),
        ],
    )
    # a report has no body site
    assert counted["fhir-body-site"] == (2, {"text is not a term of Annex L": 1, "absent": 1})


def test_lateralities() -> None:
    undecided = "undecided: unknown whether the body part is paired"
    rows = {
        "left": {"BodyPartExamined": "BREAST", "Laterality": "L"},
        "paired": {"BodyPartExamined": "BREAST"},
        "unpaired": {"BodyPartExamined": "HEART"},
        "unknown": {},
        "unpaired by tag": {"BodyPartExamined": "BREAST", "ImageLaterality": "U"},
        "report": {"SOPClassUID": None},  # has no laterality
    }
    counted = count(
        *(row(series=name, **{"SOPClassUID": CT} | values) for name, values in rows.items()),
        elements=[series(name, laterality=name == "left") for name in rows],
    )
    assert counted["fhir-laterality"] == (1, {"absent": 1, undecided: 1, "unpaired (U)": 1})


def test_images_of_both_sides() -> None:
    rows = [row(BodyPartExamined="BREAST", ImageLaterality=side) for side in "LR"]
    counted = count(*rows, elements=[series()])
    assert counted["fhir-laterality"] == (0, {"images with different laterality": 1})


def test_an_invalid_laterality() -> None:
    counted = count(row(BodyPartExamined="HEART", Laterality="X"), elements=[series()])
    assert counted["fhir-laterality"] == (0, {"not R, L or B": 1})


def test_patients_are_those_of_the_identities() -> None:
    counted = count(
        row("S1", PatientID="P1", PatientSex="F", PatientBirthDate=DAY),
        row("S2", PatientID="P1", PatientSex="F", PatientBirthDate=DAY),
        row("S3", PatientID="ANONYMOUS", tag_profile=3),
        row("S4"),
        elements=[
            *(study(uid) for uid in ("S1", "S2", "S3", "S4")),
            patient("p1", birth_date=True, gender=True),
            patient("p3"),
            patient("p4", gender=True),
        ],
        identities=[
            identity("S1", "p1"),
            identity("S2", "p1"),
            identity("S3", "p3", "subject", "patient-id-placeholder"),
            identity("S4", "p4", "subject"),
        ],
        tag_profiles={3: [(SEX, EMPTY)]},
    )
    assert counted["fhir-patient-identifier"] == (1, {"PatientID is a placeholder": 1, "absent": 1})
    assert counted["fhir-patient-gender"] == (2, {"empty": 1})
    assert counted["fhir-patient-birth-date"] == (1, {"absent": 2})


def test_resources_decide_whether_an_element_is_present() -> None:
    counted = count(
        row(StudyDate=DAY, StudyTime="1015", StudyDescription="x", BodyPartExamined="MAMMA", PatientID="P"),
        row("held", StudyDate=DAY),
        elements=[study(started=True), series(), patient("p", gender=True)],
        identities=[identity("S", "p", "subject", "patient-id-shared"), identity("held", None, "patient-id")],
        tag_profiles={1: [(DESCRIPTION, FILLED), (STUDY_DATE, FILLED)]},
    )
    assert counted["fhir-built"] == (1, {"on hold or omitted": 1})
    assert counted["fhir-started"] == (1, {NOT_BUILT: 1})
    assert counted["fhir-study-description"] == (0, {"omitted": 1, NOT_BUILT: 1})
    assert counted["fhir-body-site"] == (0, {"text is not a term of Annex L": 1})
    assert counted["fhir-patient-gender"][0] == 1
    assert counted["fhir-patient-identifier"][1]["PatientID of several subjects"] == 1


def test_a_patient_of_two_units_has_the_elements_of_both() -> None:
    counted = count(
        row("S1"),
        row("S2", unit="v"),
        elements=[patient("p", gender=True), patient("p", birth_date=True, unit="v")],
        identities=[identity("S1", "p"), identity("S2", "p")],
        built=("u", "v"),
    )
    assert counted["fhir-patient-gender"] == (1, {})
    assert counted["fhir-patient-birth-date"] == (1, {})


def test_units_that_are_not_built_are_counted_separately() -> None:
    counted = count(row(StudyDate=DAY), row("later", unit="v", StudyDate=DAY), elements=[study(started=True)])
    assert counted["fhir-built"] == (1, {"not built yet": 1})
    assert counted["fhir-started"] == (1, {})
    assert counted["fhir-patient-gender"] == (0, {NOT_BUILT: 1})  # without a Patient
