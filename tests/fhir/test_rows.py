"""Header rows: groups, common values and combinations; collectors of findings."""

import datetime

import pyarrow as pa
import pytest

from dicom_etl.fhir.rows import HeaderRows
from tests.support.header_rows import codes_and_tags, header_rows, new_findings


def test_values_are_in_the_order_of_rows() -> None:
    assert header_rows({"Modality": "MR"}, {}, {"Modality": "CT"}).values("Modality") == ["MR", None, "CT"]


def test_distinct_values_are_sorted_and_without_nulls() -> None:
    assert header_rows({"SeriesNumber": 10}, {}, {"SeriesNumber": 9}, {"SeriesNumber": 10}).distinct(
        "SeriesNumber"
    ) == [
        9,
        10,
    ]


def test_groups_are_sorted_with_null_last() -> None:
    rows = header_rows({"sample": "b"}, {}, {"sample": "a"}, {"sample": "b"})
    assert [(value, part.rows) for value, part in rows.group_by("sample").items()] == [
        ("a", (2,)),
        ("b", (0, 3)),
        (None, (1,)),
    ]


def test_rows_are_filtered_by_a_predicate() -> None:
    assert header_rows({}, {}, {}).filter(lambda row: row != 1).rows == (0, 2)


def test_the_value_of_all_rows_is_common() -> None:
    assert header_rows({"Modality": "MR"}, {"Modality": "MR"}).common_value("Modality", new_findings()) == "MR"


def test_without_values_there_is_no_common_value_and_no_finding() -> None:
    findings = new_findings()
    assert header_rows({}, {}).common_value("Modality", findings) is None
    assert codes_and_tags(findings) == []


def test_conflicting_values_have_no_common_value_but_a_finding() -> None:
    findings = new_findings()
    assert header_rows({"Modality": "MR"}, {"Modality": "CT"}).common_value("Modality", findings) is None
    assert [(f.code, f.tag, f.unit, f.study_uid, f.message) for f in findings.collected] == [
        ("values-conflict", "00080060", "sub-1", "1.2.3", "Modality has 2 different values")
    ]


def test_a_combination_contained_in_another_is_left_out() -> None:
    day = datetime.date(2024, 1, 5)
    rows = header_rows(
        {"StudyDate": day},
        {"StudyDate": day, "StudyTime": "10"},
        {"StudyDate": day, "StudyTime": "10", "TimezoneOffsetFromUTC": "+0100"},
        {"StudyDate": day, "StudyTime": "11"},
        {},
    )
    assert rows.combinations("StudyDate", "StudyTime", "TimezoneOffsetFromUTC") == [
        (day, "10", "+0100"),
        (day, "11", None),
    ]


def test_rows_without_values_have_one_empty_combination() -> None:
    assert header_rows({}, {}).combinations("StudyDate", "StudyTime") == [(None, None)]


def test_findings_within_a_study_are_in_the_list_of_its_unit() -> None:
    findings = new_findings()
    findings.within(series_uid="1.2.3.1").add("series-two-samples")
    assert [(f.code, f.series_uid) for f in findings.collected] == [("series-two-samples", "1.2.3.1")]


def test_a_value_that_identifies_is_masked_in_a_finding() -> None:
    findings = new_findings()
    findings.add("value-omitted", "PatientName", "Doe^John")
    findings.add("value-omitted", "Modality", "FOO")
    assert [(f.tag, f.value) for f in findings.collected] == [("00100010", "(masked)"), ("00080060", "FOO")]


def test_no_rows_have_length_zero() -> None:
    assert len(HeaderRows({}, ())) == 0


class TestTable:
    def test_columns_without_values_are_listed(self) -> None:
        table = pa.table({"Modality": ["MR", None], "Laterality": pa.nulls(2, pa.string())})
        rows = HeaderRows.from_table(table, ("Modality", "Laterality"))
        assert rows.columns == {"Modality": ["MR", None], "Laterality": [None, None]}
        assert rows.empty == {"Laterality"}
        assert (
            rows.select([0]).empty == rows.filter(bool).empty == rows.group_by("Modality")["MR"].empty == {"Laterality"}
        )

    def test_rows_are_numbered_by_value(self) -> None:
        assert header_rows({"sample": "b"}, {}, {"sample": "b"}).row_numbers_by("sample") == {"b": [0, 2], None: [1]}

    def test_a_union_is_in_the_order_of_the_table(self) -> None:
        rows = header_rows({}, {}, {}, {})
        assert HeaderRows.union([rows.select([3, 1]), rows.select([1, 0])]).rows == (0, 1, 3)
        assert HeaderRows.union([rows.select([3, 1])]).rows == (3, 1)

    def test_a_copy_has_its_own_columns(self) -> None:
        rows = header_rows({"Modality": "MR"}, {"Modality": "CT"}, {"Modality": "US"})
        copied = rows.select([2, 0]).copy()
        assert (copied.columns["Modality"], copied.rows) == (["US", "MR"], (0, 1))
        assert rows.columns["Modality"] == ["MR", "CT", "US"]

    @pytest.mark.parametrize("value", [None, "MR"])
    def test_one_row_behaves_like_several_equal_rows(self, value: str | None) -> None:
        one, two = header_rows({"Modality": value}), header_rows({"Modality": value}, {"Modality": value})
        assert one.distinct("Modality") == two.distinct("Modality")
        assert one.common_value("Modality", new_findings()) == two.common_value("Modality", new_findings()) == value
        assert one.combinations("Modality", "sample") == two.combinations("Modality", "sample") == [(value, None)]
        assert list(one.group_by("Modality")) == list(two.group_by("Modality")) == [value]
