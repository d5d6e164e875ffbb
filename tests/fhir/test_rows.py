"""Groups of header rows: what they agree on."""

import datetime

from dicom_etl.fhir.rows import Group
from tests.fhir.rows_of import group, place, told


def test_values_come_row_by_row() -> None:
    assert group({"Modality": "MR"}, {}, {"Modality": "CT"}).values("Modality") == ["MR", None, "CT"]


def test_distinct_values_are_sorted_and_without_nulls() -> None:
    assert group({"SeriesNumber": 10}, {}, {"SeriesNumber": 9}, {"SeriesNumber": 10}).distinct("SeriesNumber") == [
        9,
        10,
    ]


def test_rows_by_a_value_come_sorted_with_null_last() -> None:
    rows = group({"sample": "b"}, {}, {"sample": "a"}, {"sample": "b"})
    assert [(value, part.rows) for value, part in rows.by("sample").items()] == [
        ("a", (2,)),
        ("b", (0, 3)),
        (None, (1,)),
    ]


def test_rows_are_chosen_by_a_condition() -> None:
    assert group({}, {}, {}).where(lambda row: row != 1).rows == (0, 2)


def test_what_all_rows_say_is_agreed() -> None:
    assert group({"Modality": "MR"}, {"Modality": "MR"}).agreed("Modality", place()) == "MR"


def test_what_no_row_says_is_none_and_no_finding() -> None:
    here = place()
    assert group({}, {}).agreed("Modality", here) is None
    assert told(here) == []


def test_what_rows_contradict_each_other_in_is_none_and_a_finding() -> None:
    here = place()
    assert group({"Modality": "MR"}, {"Modality": "CT"}).agreed("Modality", here) is None
    assert [(f.code, f.tag, f.unit, f.study_uid, f.message) for f in here.found] == [
        ("values-disagree", "00080060", "sub-1", "1.2.3", "Modality has 2 different values")
    ]


def test_a_combination_that_a_fuller_one_contains_is_not_one_of_its_own() -> None:
    day = datetime.date(2024, 1, 5)
    rows = group(
        {"StudyDate": day},
        {"StudyDate": day, "StudyTime": "10"},
        {"StudyDate": day, "StudyTime": "10", "TimezoneOffsetFromUTC": "+0100"},
        {"StudyDate": day, "StudyTime": "11"},
        {},
    )
    assert rows.combination("StudyDate", "StudyTime", "TimezoneOffsetFromUTC") == [
        (day, "10", "+0100"),
        (day, "11", None),
    ]


def test_rows_that_say_nothing_are_one_empty_combination() -> None:
    assert group({}, {}).combination("StudyDate", "StudyTime") == [(None, None)]


def test_a_narrower_place_tells_its_findings_to_the_wider_one() -> None:
    here = place()
    here.within(series_uid="1.2.3.1").add("series-two-samples")
    assert [(f.code, f.series_uid) for f in here.found] == [("series-two-samples", "1.2.3.1")]


def test_a_value_that_identifies_is_masked_in_a_finding() -> None:
    here = place()
    here.add("value-left-out", "PatientName", "Doe^John")
    here.add("value-left-out", "Modality", "FOO")
    assert [(f.tag, f.value) for f in here.found] == [("00100010", "(masked)"), ("00080060", "FOO")]


def test_an_empty_group_has_no_length() -> None:
    assert len(Group({}, ())) == 0
