"""Completeness of a small dataset; every expected number is counted by hand from the rows below."""

import datetime
from typing import Any

import pyarrow as pa
import pytest

from dicom_etl.lake.schemas import COMPLETENESS
from dicom_etl.quality.completeness import completeness
from dicom_etl.quality.occurrences import GROUPS
from tests.support.lake_tables import CT, ENHANCED_MR, MR, NOBODYS_CLASS, database_of, header_rows

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
    row(6, "S3", "D", NOBODYS_CLASS, subject="sub-2", PatientName="Roe^J", StudyDate=None),
]
TAG_PROFILES = {
    1: [(NAME, FILLED), (BODY_PART, EMPTY), (KVP, FILLED), (OVERLAY_ROWS, FILLED)],
    2: [(NAME, FILLED)],
    3: [(NAME, EMPTY)],
    4: [(NAME, FILLED), ("00290010", FILLED), ("00291008", FILLED, "VENDOR")],
    5: [(NAME, FILLED), ("00290011", FILLED), ("00291108", EMPTY, "VENDOR")],
    6: [(NAME, FILLED), (STUDY_DATE, FILLED)],
    7: [("00100020", FILLED)],  # of no row: a superset does no harm
}
COUNTS = ("applicable", "unknown", "absent", "empty", "unusable", "filled", "partial")


@pytest.fixture(scope="module")
def table() -> pa.Table:
    with database_of(header_rows(*ROWS), TAG_PROFILES, {**GROUPS, "subject": "subject"}) as database:
        return completeness("d", database)


@pytest.fixture(scope="module")
def found(table: pa.Table) -> dict[tuple[Any, ...], dict[str, Any]]:
    key = ("level", "group_by", "group", "tag", "creator")
    return {tuple(row[name] for name in key): row for row in table.to_pylist()}


def counts(row: dict[str, Any]) -> tuple[int | None, ...]:
    return tuple(row[f"n_{name}"] for name in COUNTS)


def test_it_fits_the_lake(table: pa.Table) -> None:
    assert table.schema.equals(COMPLETENESS.schema)


@pytest.mark.parametrize(
    ("level", "tag", "requirement", "expected"),
    [
        #                              applicable, unknown, absent, empty, unusable, filled, some
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
    found: dict[Any, Any], level: str, tag: str, requirement: str, expected: tuple[int | None, ...]
) -> None:
    counted = found[level, "all", "all", tag, None]
    assert (counted["requirement"], counts(counted)) == (requirement, expected)


def test_enhanced_objects_count_by_the_resolved_value(found: dict[Any, Any]) -> None:
    # the enhanced MR has it in a functional group; both MR lack it (Type 2)
    assert counts(found["instance", "all", "all", ECHO_TIME, None]) == (3, 0, 2, 0, 0, 1, None)
    assert counts(found["series", "all", "all", ECHO_TIME, None]) == (2, 0, 1, 0, 0, 1, 0)


def test_what_an_enhanced_object_lacks_is_unknown_and_not_inapplicable(found: dict[Any, Any]) -> None:
    # RepetitionTime: Type 1C in its functional groups, 2C in MR; a CT has none
    assert counts(found["instance", "all", "all", "00180080", None])[:3] == (3, 3, 0)


def test_a_tag_of_another_modality_is_no_gap(found: dict[Any, Any]) -> None:
    assert ("instance", "modality", "MR", KVP, None) not in found
    assert counts(found["instance", "modality", "CT", KVP, None]) == (2, 0, 1, 0, 0, 1, None)


def test_an_unknown_sop_class_asks_for_nothing(found: dict[Any, Any]) -> None:
    tags = {key[3] for key in found if key[:3] == ("instance", "sop_class", NOBODYS_CLASS)}
    assert tags == {NAME, STUDY_DATE, "00080016", "0020000D", "0020000E"}  # what it has, its three UIDs among them
    assert found["instance", "sop_class", NOBODYS_CLASS, NAME, None]["requirement"] is None


def test_private_tags_count_by_creator_whatever_their_block(found: dict[Any, Any]) -> None:
    private = found["instance", "all", "all", "0029xx08", "VENDOR"]
    assert counts(private) == (2, 0, 0, 1, None, 1, None)
    assert (private["keyword"], private["requirement"]) == (None, None)
    assert not [key for key in found if key[3].startswith("002900")]  # the reservations of blocks are no tags


def test_overlay_groups_count_as_they_are(found: dict[Any, Any]) -> None:
    overlay = found["instance", "all", "all", OVERLAY_ROWS, None]
    assert overlay["keyword"] == "OverlayRows"
    assert overlay["n_filled"] == 1


def test_optional_tags_that_nobody_has_are_left_out_unless_catalogued(found: dict[Any, Any]) -> None:
    assert ("instance", "all", "all", SERIES_CODE, None) not in found
    assert ("instance", "all", "all", STATION, None) in found


def test_required_tags_that_nobody_has_are_there(found: dict[Any, Any]) -> None:
    # RescaleIntercept is Type 1 in the CT image module; PatientSpeciesDescription 1C in the patient module
    assert counts(found["instance", "modality", "CT", "00281052", None]) == (2, 0, 2, 0, None, 0, None)
    assert counts(found["instance", "modality", "CT", "00102201", None]) == (2, 2, 0, 0, 0, 0, None)


def test_groups(found: dict[Any, Any]) -> None:
    groups: dict[str, set[str | None]] = {}
    for _, group_by, group, *_ in found:
        groups.setdefault(group_by, set()).add(group)
    assert groups == {
        "all": {"all"},
        "subject": {"sub-1", "sub-2"},
        "modality": {"CT", "MR", None},
        "sop_class": {CT, MR, ENHANCED_MR, NOBODYS_CLASS},
        "manufacturer": {"ONE", None},
        "model": {None},
        "study_year": {"2020", None},
    }


def test_a_series_counts_in_each_group_that_it_lies_in() -> None:
    rows = [row(2, "S", "A", CT, Manufacturer=maker, PatientName="Doe^J") for maker in ("ONE", "TWO")]
    with database_of(header_rows(*rows), TAG_PROFILES) as database:
        table = completeness("d", database).to_pylist()
    names = {
        (r["group_by"], r["group"]): r["n_filled"]
        for r in table
        if r["level"] == "series" and r["tag"] == NAME and r["group_by"] in ("all", "manufacturer")
    }
    assert names == {("all", "all"): 1, ("manufacturer", "ONE"): 1, ("manufacturer", "TWO"): 1}


def test_instances_without_a_series_count_as_instances_alone() -> None:
    rows = [row(2, "S", "A", CT, PatientName="Doe^J") | {"SeriesInstanceUID": None}]
    with database_of(header_rows(*rows), TAG_PROFILES) as database:
        levels = {r["level"] for r in completeness("d", database).to_pylist()}
    assert levels == {"instance", "study"}


def test_a_dataset_without_instances_has_no_rows() -> None:
    with database_of(header_rows()) as database:
        assert completeness("d", database).num_rows == 0


def test_arithmetic(table: pa.Table) -> None:
    assert arithmetic_holds(table)


def arithmetic_holds(table: pa.Table) -> bool:
    parts = ("unknown", "absent", "empty", "unusable", "filled", "partial")
    return all(sum(row[f"n_{part}"] or 0 for part in parts) == row["n_applicable"] > 0 for row in table.to_pylist())
