"""Completeness of a small dataset; every expected number is counted by hand from the rows below."""

import datetime
from typing import Any

import pyarrow as pa
import pytest

from dicom_etl.lake.schemas import COMPLETENESS
from dicom_etl.quality.completeness import count_completeness
from dicom_etl.quality.occurrences import GROUPS
from tests.support.lake_tables import CT, ENHANCED_MR, MR, UNKNOWN_CLASS, database_of, header_rows

NAME, BODY_PART, KVP, ECHO_TIME, LATERALITY = "00100010", "00180015", "00180060", "00180081", "00200060"
STATION, STUDY_DATE, SERIES_CODE, OVERLAY_ROWS = "00081010", "00080020", "0008103F", "60020010"
EMPTY, FILLED = 1, 2


def row(tag_profile: int, study: str, series: str, sop_class: str, **more: Any) -> dict[str, Any]:
    return {
        "tag_profile": tag_profile,
        "StudyInstanceUID": study,
        "SeriesInstanceUID": series,
        "SOPClassUID": sop_class,
        "StudyDate": datetime.date(2020, 1, 2),
        **more,
    }


# A: two CT of three files, one of them a copy; B: enhanced MR, its echo time in functional groups; C: two MR of
# ANONYMOUS with a private tag in two blocks; D: an object of no known class.
ROWS = [
    row(1, "S1", "A", CT, Modality="CT", Manufacturer="ONE", subject="sub-1", PatientName="Doe^J", KVP=120.0),
    row(2, "S1", "A", CT, Modality="CT", Manufacturer="ONE", subject="sub-1", PatientName="Doe^J"),
    row(1, "S1", "A", CT, Modality="CT", PatientName="Doe^J", KVP=120.0, subject="sub-1", duplicate="identical"),
    row(3, "S1", "B", ENHANCED_MR, Modality="MR", subject="sub-1", EchoTime=30.0),
    row(4, "S2", "C", MR, Modality="MR", subject="sub-2", PatientName="ANONYMOUS"),
    row(5, "S2", "C", MR, Modality="MR", subject="sub-2", PatientName="Anonymous^"),
    row(6, "S3", "D", UNKNOWN_CLASS, subject="sub-2", PatientName="Roe^J", StudyDate=None),
]
TAG_PROFILES = {
    1: [(NAME, FILLED), (BODY_PART, EMPTY), (KVP, FILLED), (OVERLAY_ROWS, FILLED)],
    2: [(NAME, FILLED)],
    3: [(NAME, EMPTY)],
    4: [(NAME, FILLED), ("00290010", FILLED), ("00291008", FILLED, "VENDOR")],
    5: [(NAME, FILLED), ("00290011", FILLED), ("00291108", EMPTY, "VENDOR")],
    6: [(NAME, FILLED), (STUDY_DATE, FILLED)],
    7: [("00100020", FILLED)],  # of no row: it is ignored
}
COUNTS = ("applicable", "unknown", "absent", "empty", "unusable", "filled", "partial")


@pytest.fixture(scope="module")
def table() -> pa.Table:
    with database_of(header_rows(*ROWS), TAG_PROFILES, {**GROUPS, "subject": "subject"}) as database:
        return count_completeness("d", database)


@pytest.fixture(scope="module")
def counted(table: pa.Table) -> dict[tuple[Any, ...], dict[str, Any]]:
    key = ("level", "group_by", "group", "tag", "creator")
    return {tuple(row[name] for name in key): row for row in table.to_pylist()}


def counts(row: dict[str, Any]) -> tuple[int | None, ...]:
    return tuple(row[f"n_{name}"] for name in COUNTS)


def test_the_table_has_the_schema_of_the_lake(table: pa.Table) -> None:
    assert table.schema.equals(COMPLETENESS.schema)


@pytest.mark.parametrize(
    ("level", "tag", "requirement", "expected"),
    [
        #                              applicable, unknown, absent, empty, unusable, filled, partial
        ("instance", NAME, "2", (6, 0, 0, 1, 2, 3, None)),
        ("series", NAME, "2", (4, 0, 0, 1, 1, 2, 0)),
        ("study", NAME, "2", (3, 0, 0, 0, 1, 1, 1)),
        ("instance", KVP, "2", (2, 0, 1, 0, 0, 1, None)),
        ("series", KVP, "2", (1, 0, 0, 0, 0, 0, 1)),
        ("instance", BODY_PART, "3", (5, 0, 4, 1, 0, 0, None)),
        ("series", BODY_PART, "3", (3, 0, 2, 1, 0, 0, 0)),
        ("instance", LATERALITY, "2C", (5, 5, 0, 0, 0, 0, None)),
        ("instance", STATION, "3", (5, 0, 5, 0, 0, 0, None)),
        ("instance", STUDY_DATE, "2", (6, 0, 0, 0, 1, 5, None)),
    ],
    ids=str,
)
def test_states_are_counted(
    counted: dict[Any, Any], level: str, tag: str, requirement: str, expected: tuple[int | None, ...]
) -> None:
    row = counted[level, "all", "all", tag, None]
    assert (row["requirement"], counts(row)) == (requirement, expected)


def test_enhanced_objects_are_counted_by_the_resolved_value(counted: dict[Any, Any]) -> None:
    # the enhanced MR has it in a functional group; both MR lack it (Type 2)
    assert counts(counted["instance", "all", "all", ECHO_TIME, None]) == (3, 0, 2, 0, 0, 1, None)
    assert counts(counted["series", "all", "all", ECHO_TIME, None]) == (2, 0, 1, 0, 0, 1, 0)


def test_a_tag_that_an_enhanced_object_lacks_is_unknown(counted: dict[Any, Any]) -> None:
    # RepetitionTime: Type 1C in its functional groups, 2C in MR; a CT has none
    assert counts(counted["instance", "all", "all", "00180080", None])[:3] == (3, 3, 0)


def test_a_tag_of_another_modality_is_no_gap(counted: dict[Any, Any]) -> None:
    assert ("instance", "modality", "MR", KVP, None) not in counted
    assert counts(counted["instance", "modality", "CT", KVP, None]) == (2, 0, 1, 0, 0, 1, None)


def test_an_unknown_sop_class_requires_nothing(counted: dict[Any, Any]) -> None:
    tags = {key[3] for key in counted if key[:3] == ("instance", "sop_class", UNKNOWN_CLASS)}
    assert tags == {NAME, STUDY_DATE, "00080016", "0020000D", "0020000E"}  # its own tags, among them its three UIDs
    assert counted["instance", "sop_class", UNKNOWN_CLASS, NAME, None]["requirement"] is None


def test_private_tags_are_counted_by_creator_in_any_block(counted: dict[Any, Any]) -> None:
    private = counted["instance", "all", "all", "0029xx08", "VENDOR"]
    assert counts(private) == (2, 0, 0, 1, None, 1, None)
    assert (private["keyword"], private["requirement"]) == (None, None)
    assert not [key for key in counted if key[3].startswith("002900")]  # the reservations of blocks are no tags


def test_each_overlay_group_is_counted(counted: dict[Any, Any]) -> None:
    overlay = counted["instance", "all", "all", OVERLAY_ROWS, None]
    assert overlay["keyword"] == "OverlayRows"
    assert overlay["n_filled"] == 1


def test_optional_tags_without_any_instance_are_omitted(counted: dict[Any, Any]) -> None:
    assert ("instance", "all", "all", SERIES_CODE, None) not in counted
    assert ("instance", "all", "all", STATION, None) in counted


def test_required_tags_without_any_instance_are_counted(counted: dict[Any, Any]) -> None:
    # RescaleIntercept is Type 1 in the CT image module; PatientSpeciesDescription 1C in the patient module
    assert counts(counted["instance", "modality", "CT", "00281052", None]) == (2, 0, 2, 0, None, 0, None)
    assert counts(counted["instance", "modality", "CT", "00102201", None]) == (2, 2, 0, 0, 0, 0, None)


def test_groups(counted: dict[Any, Any]) -> None:
    groups: dict[str, set[str | None]] = {}
    for _, group_by, group, *_ in counted:
        groups.setdefault(group_by, set()).add(group)
    assert groups == {
        "all": {"all"},
        "subject": {"sub-1", "sub-2"},
        "modality": {"CT", "MR", None},
        "sop_class": {CT, MR, ENHANCED_MR, UNKNOWN_CLASS},
        "manufacturer": {"ONE", None},
        "model": {None},
        "study_year": {"2020", None},
    }


def test_a_series_is_counted_in_each_of_its_groups() -> None:
    rows = [row(2, "S", "A", CT, Manufacturer=maker, PatientName="Doe^J") for maker in ("ONE", "TWO")]
    with database_of(header_rows(*rows), TAG_PROFILES) as database:
        table = count_completeness("d", database).to_pylist()
    names = {
        (r["group_by"], r["group"]): r["n_filled"]
        for r in table
        if r["level"] == "series" and r["tag"] == NAME and r["group_by"] in ("all", "manufacturer")
    }
    assert names == {("all", "all"): 1, ("manufacturer", "ONE"): 1, ("manufacturer", "TWO"): 1}


def test_instances_without_a_series_are_counted_in_no_series() -> None:
    rows = [row(2, "S", "A", CT, PatientName="Doe^J") | {"SeriesInstanceUID": None}]
    with database_of(header_rows(*rows), TAG_PROFILES) as database:
        levels = {r["level"] for r in count_completeness("d", database).to_pylist()}
    assert levels == {"instance", "study"}


def test_a_dataset_without_instances_has_no_rows() -> None:
    with database_of(header_rows()) as database:
        assert count_completeness("d", database).num_rows == 0


def test_the_states_add_up_to_the_applicable(table: pa.Table) -> None:
    states = ("unknown", "absent", "empty", "unusable", "filled", "partial")
    for row in table.to_pylist():
        assert sum(row[f"n_{state}"] or 0 for state in states) == row["n_applicable"] > 0
