"""How often resources have their FHIR elements, and why not."""

import datetime
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pytest

from dicom_etl.lake.schemas import FHIR_ELEMENTS, IDENTITIES
from dicom_etl.quality.checks.fhir_readiness import create_resources, readiness
from dicom_etl.quality.terms import create_terms
from tests.support.lake_tables import CT, Row, TagProfiles, database_of, header_rows, table_of

DAY = datetime.date(2020, 1, 2)
STUDY_DATE, DESCRIPTION, SEX = "00080020", "00081030", "00100040"
EMPTY, FILLED = 1, 2
HELD = "not built (held or left out)"


def judged(
    *rows: Row,
    elements: Iterable[Row] = (),
    identities: Iterable[Row] = (),
    tag_profiles: TagProfiles | None = None,
    built: Iterable[str] = ("u",),
    zone: bool = True,
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
        measures = readiness(database, has_zone=zone)
    return {
        m.check: (m.n_pass, {r.reason: r.n_fail for r in measures if r.check == m.check and r.reason})
        for m in measures
        if m.reason is None
    }


def row(study: str = "S", series: str = "A", **values: Any) -> Row:
    place = {"unit": "u", "subject": "sub-1", "tag_profile": 1}
    return place | {"StudyInstanceUID": study, "SeriesInstanceUID": series, **values}


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
    ("values", "flags", "zone", "dated", "timed"),
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
            (0, {"StudyTime is partial or not valid": 1}),
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
def test_started(values: Row, flags: tuple[bool, bool], zone: bool, dated: Any, timed: Any) -> None:
    made = study(started=flags[0], started_time=flags[1])
    found = judged(row(**values), elements=[made], zone=zone)
    assert (found["fhir-started"], found["fhir-started-time"]) == (dated, timed)


@pytest.mark.parametrize(
    ("status", "value", "reason"),
    [
        (None, None, "absent"),
        (EMPTY, None, "empty"),
        (FILLED, "ANONYMOUS", "not usable (a dummy or not valid)"),
    ],
)
def test_the_headers_say_why_a_description_is_missing(status: int | None, value: str | None, reason: str) -> None:
    profiles = {1: [(DESCRIPTION, status)] if status else []}
    found = judged(row(StudyDescription=value), elements=[study()], tag_profiles=profiles)
    assert found["fhir-study-description"] == (0, {reason: 1})


def test_instances_that_disagree_are_a_reason() -> None:
    rows = row(StudyDescription="x"), row(StudyDescription="y")
    found = judged(*rows, elements=[study()], tag_profiles={1: [(DESCRIPTION, FILLED)]})
    assert found["fhir-study-description"] == (0, {"instances disagree": 1})


def test_body_sites() -> None:
    image = {"SOPClassUID": CT}
    found = judged(
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
    assert found["fhir-body-site"] == (2, {"text is no term of Annex L": 1, "absent": 1})  # no report has a body site


def test_lateralities() -> None:
    undecided = "undecided: the body part does not tell whether it is paired"
    rows = {
        "left": {"BodyPartExamined": "BREAST", "Laterality": "L"},
        "paired": {"BodyPartExamined": "BREAST"},
        "unpaired": {"BodyPartExamined": "HEART"},
        "unknown": {},
        "said": {"BodyPartExamined": "BREAST", "ImageLaterality": "U"},
        "report": {"SOPClassUID": None},  # has no laterality
    }
    found = judged(
        *(row(series=name, **{"SOPClassUID": CT} | values) for name, values in rows.items()),
        elements=[series(name, laterality=name == "left") for name in rows],
    )
    assert found["fhir-laterality"] == (1, {"absent": 1, undecided: 1, "said to be unpaired": 1})


def test_images_of_both_sides() -> None:
    rows = [row(BodyPartExamined="BREAST", ImageLaterality=side) for side in "LR"]
    found = judged(*rows, elements=[series()])
    assert found["fhir-laterality"] == (0, {"images of several sides": 1})


def test_a_side_that_is_none() -> None:
    found = judged(row(BodyPartExamined="HEART", Laterality="X"), elements=[series()])
    assert found["fhir-laterality"] == (0, {"none of R, L, B": 1})


def test_patients_are_those_of_the_identities() -> None:
    found = judged(
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
    assert found["fhir-patient-identifier"] == (1, {"PatientID is a placeholder": 1, "absent": 1})
    assert found["fhir-patient-gender"] == (2, {"empty": 1})
    assert found["fhir-patient-birth-date"] == (1, {"absent": 2})


def test_where_there_are_resources_they_count() -> None:
    found = judged(
        row(StudyDate=DAY, StudyTime="1015", StudyDescription="x", BodyPartExamined="MAMMA", PatientID="P"),
        row("held", StudyDate=DAY),
        elements=[study(started=True), series(), patient("p", gender=True)],
        identities=[identity("S", "p", "subject", "patient-id-shared"), identity("held", None, "patient-id")],
        tag_profiles={1: [(DESCRIPTION, FILLED), (STUDY_DATE, FILLED)]},
    )
    assert found["fhir-built"] == (1, {"held or left out": 1})
    assert found["fhir-started"] == (1, {HELD: 1})
    assert found["fhir-study-description"] == (0, {"left out": 1, HELD: 1})
    assert found["fhir-body-site"] == (0, {"text is no term of Annex L": 1})
    assert found["fhir-patient-gender"][0] == 1
    assert found["fhir-patient-identifier"][1]["PatientID stands for several subjects"] == 1


def test_a_patient_of_two_units_has_what_either_gives() -> None:
    found = judged(
        row("S1"),
        row("S2", unit="v"),
        elements=[patient("p", gender=True), patient("p", birth_date=True, unit="v")],
        identities=[identity("S1", "p"), identity("S2", "p")],
        built=("u", "v"),
    )
    assert found["fhir-patient-gender"] == (1, {})
    assert found["fhir-patient-birth-date"] == (1, {})


def test_units_that_are_not_built_are_counted_apart() -> None:
    found = judged(row(StudyDate=DAY), row("later", unit="v", StudyDate=DAY), elements=[study(started=True)])
    assert found["fhir-built"] == (1, {"not built yet": 1})
    assert found["fhir-started"] == (1, {})
    assert found["fhir-patient-gender"] == (0, {HELD: 1})  # no Patient was built for it
