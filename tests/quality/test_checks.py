"""Folders, sheets and headers against each other."""

import datetime
from typing import Any, NamedTuple

import pyarrow as pa
import pytest

from dicom_etl.lake.schemas import SHEETS
from dicom_etl.quality.check_table import Measure, quality_checks
from dicom_etl.quality.checks import COUNTED_BY_SUBJECT, COUNTING_FUNCTIONS, MeasuredDataset
from dicom_etl.quality.checks.sheets import create_sheets
from dicom_etl.quality.terms import create_terms
from tests.support.lake_tables import CT, Row, database_of, header_rows, table_of

CHECKS = (
    "subjects-match",
    "samples-match",
    "counts-agree",
    "modality-known",
    "body-part-known",
    "series-one-sample",
    "birth-before-study",
    "study-date-range",
)


class Counted(NamedTuple):
    """Measures and findings, and the mismatches of subjects."""

    measures: list[Measure]
    findings: list[Row]
    notes: dict[str, str]


def instances(study: str | None, series: str, n: int = 1, **values: Any) -> list[Row]:
    """Header rows of `n` instances."""
    row = {"unit": "sub-1", "subject": "sub-1", "StudyInstanceUID": study, "SeriesInstanceUID": series, **values}
    return [{**row, "path": str(number)} for number in range(n)]


def count(*rows: list[Row], folders: Any = (), sheets: list[Row] | None = None, reference_date: Any = None) -> Counted:
    folder_rows = pa.Table.from_pylist(
        [{"subject": subject, "sample": sample} for subject, sample in folders],
        schema=pa.schema([("subject", pa.string()), ("sample", pa.string())]),
    )
    with database_of(header_rows(*(row for part in rows for row in part))) as database:
        create_terms(database)
        create_sheets(database, [folder_rows], [table_of(SHEETS, sheets or [])])
        dataset = MeasuredDataset("d", database, reference_date)
        measures = [measure for check in CHECKS for measure in COUNTING_FUNCTIONS[check](dataset)]
        notes = {row["subject"]: row["note"] for row in database.fetch_rows("FROM subject_notes")}
        return Counted(measures, database.fetch_rows("FROM findings"), notes)


def result(counted: Counted, check: str, level: str | None = None) -> tuple[int, int, str]:
    """n_pass, n_fail and result of a check over all."""
    (measure,) = [m for m in counted.measures if m.check == check and is_result(m) and level in (None, m.level)]
    return measure.n_pass, measure.n_fail, measure.result


def is_result(measure: Measure) -> bool:
    return measure.reason is None and measure.tag is None and measure.group_by == "all"


def cell(sheet: str, field: str, value: str, subject: str | None = None, sample: str | None = None) -> dict[str, Any]:
    return {"sheet": sheet, "field": field, "value": value, "subject": subject, "sample": sample}


def test_each_check_of_the_table_is_counted() -> None:
    assert {*COUNTING_FUNCTIONS, *COUNTED_BY_SUBJECT} == set(quality_checks())


@pytest.mark.parametrize("check", CHECKS)
def test_a_counting_function_counts_the_check_it_is_listed_for(check: str) -> None:
    with database_of(header_rows(*instances("S", "A"))) as database:
        create_terms(database)
        create_sheets(database, [], [table_of(SHEETS, [])])
        assert {m.check for m in COUNTING_FUNCTIONS[check](MeasuredDataset("d", database))} == {check}


@pytest.mark.parametrize(
    ("n_applicable", "n_pass", "expected"),
    [(0, 0, "not-evaluated"), (20, 20, "pass"), (20, 19, "warn"), (100, 94, "fail")],
)
def test_the_result_follows_from_the_thresholds(n_applicable: int, n_pass: int, expected: str) -> None:
    check = quality_checks()["files-readable"]  # warns below 100 %, fails below 95 %
    assert check.evaluate(n_applicable, n_pass) == expected


def test_a_check_without_thresholds_is_not_evaluated() -> None:
    assert quality_checks()["identifying-tags"].evaluate(10, 1) == "not-evaluated"


class TestSheets:
    def test_the_tables_of_the_sheets(self) -> None:
        cells = [
            cell("dataset_description", "title", "x"),
            cell("subjects", "subject id", "sub-1", "sub-1"),
            cell("subjects", "pool id", "pool-1", "sub-1"),
            cell("subjects", "subject id", "sub-2", "sub-2"),
            cell("subjects", "metadata only", "TRUE", "sub-2"),
            cell("samples", "sample id", "sam-1", "sub-1", "sam-1"),
            cell("samples", "metadata only", "FALSE", "sub-1", "sam-1"),
        ]
        with database_of(header_rows()) as database:
            create_sheets(database, [], [table_of(SHEETS, cells)])
            tables = {
                name: {tuple(row.values()) for row in database.fetch_rows(f"FROM {name}")}
                for name in ("sheet_subjects", "sheet_pools", "sheet_samples", "metadata_only", "sheets")
            }
        assert tables["sheet_subjects"] == {("sub-1",), ("sub-2",)}
        assert tables["sheet_pools"] == {("pool-1",)}
        assert tables["sheet_samples"] == {("sub-1", "sam-1")}
        assert tables["metadata_only"] == {("sub-2", None)}
        assert {("subjects",), ("samples",)} <= tables["sheets"]

    def test_subjects_of_sheet_and_folders(self) -> None:
        sheets = [
            *(cell("subjects", "subject id", subject, subject) for subject in ("sub-1", "sub-2", "sub-3")),
            cell("subjects", "pool id", "pool-1", "sub-1"),
            cell("subjects", "metadata only", "yes", "sub-3"),
        ]
        counted = count(folders=[("sub-1", None), ("sub-9", "sam-1"), ("pool-1", None)], sheets=sheets)
        # sub-1, sub-3 (it needs no folder) and pool-1 pass; sub-2 has no folder, sub-9 no row
        assert result(counted, "subjects-match") == (3, 2, "warn")
        assert {(f["code"], f["subject"]) for f in counted.findings} == {
            ("subject-not-in-tree", "sub-2"),
            ("subject-not-in-sheet", "sub-9"),
        }
        assert counted.notes == {"sub-2": "row without a folder", "sub-9": "folder without a row in the sheet"}

    def test_without_a_sheet_nothing_is_evaluated(self) -> None:
        counted = count(folders=[("sub-1", "sam-1")])
        assert result(counted, "subjects-match") == (0, 0, "not-evaluated")
        assert result(counted, "samples-match") == (0, 0, "not-evaluated")
        assert counted.findings == []

    def test_samples_are_those_of_their_subject(self) -> None:
        sheets = [cell("samples", "sample id", f"sam-{n}", f"sub-{n}", f"sam-{n}") for n in (1, 2)]
        counted = count(folders=[("sub-1", "sam-1"), ("sub-2", "sam-1")], sheets=sheets)
        assert result(counted, "samples-match") == (1, 2, "fail")
        assert {(f["code"], f["subject"], f["sample"]) for f in counted.findings} == {
            ("sample-not-in-sheet", "sub-2", "sam-1"),
            ("sample-not-in-tree", "sub-2", "sam-2"),
        }

    def test_a_sheet_without_subjects_names_samples_of_the_dataset(self) -> None:
        sheets = [cell("samples", "sample id", f"sam-{n}", None, f"sam-{n}") for n in (1, 2)]
        assert result(count(folders=[("sub-1", "sam-1")], sheets=sheets), "samples-match") == (1, 1, "warn")

    def test_samples_that_are_metadata_only_need_no_folder(self) -> None:
        sheets = [
            cell("samples", "sample id", "sam-1", "sub-1", "sam-1"),
            cell("samples", "metadata only", "1", "sub-1", "sam-1"),
            cell("samples", "sample id", "sam-2", "sub-2", "sam-2"),
            cell("subjects", "metadata only", "true", "sub-2"),
            cell("samples", "sample id", "sam-3", "sub-3", "sam-3"),
        ]
        counted = count(sheets=sheets)
        assert result(counted, "samples-match") == (2, 1, "warn")
        assert [f["sample"] for f in counted.findings if f["code"] == "sample-not-in-tree"] == ["sam-3"]


class TestAttributeTypes:
    """A CT with an empty attribute of each type, and without all others."""

    EMPTY = (("00080060", 1), ("00120063", 1), ("00100020", 1), ("00200060", 1), ("00081030", 1))

    @pytest.fixture(scope="class")
    @classmethod
    def violations(cls) -> dict[tuple[str, str | None], str | None]:
        """(check, tag) -> reason."""
        (row,) = instances("S", "A", SOPClassUID=CT, tag_profile=1)
        with database_of(header_rows(row), {1: list(cls.EMPTY)}) as database:
            dataset = MeasuredDataset("d", database)
            measures = [m for check in ("type-1", "type-2") for m in COUNTING_FUNCTIONS[check](dataset)]
        return {(m.check, m.tag): m.reason for m in measures if m.tag and m.group_by == "all"}

    def test_type_1_attributes_need_a_value(self, violations: dict[Any, Any]) -> None:
        assert violations["type-1", "00080060"] == "empty"  # Modality
        assert violations["type-1", "00281052"] == "absent"  # RescaleIntercept

    def test_type_1c_attributes_are_not_empty_but_may_be_absent(self, violations: dict[Any, Any]) -> None:
        assert violations["type-1", "00120063"] == "empty"  # DeidentificationMethod
        assert ("type-1", "00102201") not in violations  # PatientSpeciesDescription

    def test_type_2_attributes_are_present_but_may_be_empty(self, violations: dict[Any, Any]) -> None:
        assert violations["type-2", "00180060"] == "absent"  # KVP
        assert ("type-2", "00100020") not in violations  # PatientID

    def test_type_2c_and_3_attributes_violate_nothing(self, violations: dict[Any, Any]) -> None:
        tags = {tag for _, tag in violations}
        assert not tags & {"00200060", "00081030", "00180015"}  # Laterality, StudyDescription, BodyPartExamined


class TestHeaders:
    def test_number_of_tags_are_compared_with_the_numbers_in_the_dataset(self) -> None:
        counted = count(
            instances("S", "A", 3, NumberOfSeriesRelatedInstances=3, NumberOfStudyRelatedSeries=2),
            instances("S", "B", 1, NumberOfSeriesRelatedInstances=5),
            instances("T", "C", 2),
        )
        assert result(counted, "counts-agree", "study") == (1, 0, "pass")
        assert result(counted, "counts-agree", "series") == (1, 1, "warn")
        (finding,) = counted.findings
        assert (finding["code"], finding["series_uid"], finding["value"]) == ("count-conflict", "B", "5")
        assert (finding["unit"], finding["subject"], finding["study_uid"]) == ("sub-1", "sub-1", "S")
        assert finding["message"] == "NumberOfSeriesRelatedInstances is 5; the dataset has 1"

    def test_all_values_of_a_number_of_tag_are_named(self) -> None:
        rows = [instances("S", "A", NumberOfSeriesRelatedInstances=number) for number in (10, 2)]
        (finding,) = count(*rows).findings
        assert finding["message"] == "NumberOfSeriesRelatedInstances is 2 and 10; the dataset has 2"

    def test_modalities_and_body_parts_are_terms(self) -> None:
        counted = count(
            instances("S", "A", Modality="MR", BodyPartExamined="BREAST"),
            instances("S", "B", Modality="XYZ", BodyPartExamined="MAMMA"),
            instances("S", "C"),
        )
        assert result(counted, "modality-known") == (1, 1, "fail")
        assert result(counted, "body-part-known") == (1, 1, "warn")
        assert [f["value"] for f in counted.findings] == ["XYZ"]
        assert {m.reason for m in counted.measures if m.check == "body-part-known"} == {None, "MAMMA"}

    def test_a_series_is_in_one_sample(self) -> None:
        rows = [instances("S", series, sample=sample) for series, sample in (("A", "1"), ("A", "2"), ("B", "1"))]
        assert result(count(*rows), "series-one-sample") == (1, 1, "warn")

    @pytest.mark.parametrize(
        ("date", "reference_date", "expected"),
        [
            (datetime.date(2020, 1, 1), None, (1, 0, "pass")),
            (datetime.date(1960, 1, 1), None, (0, 1, "warn")),
            (datetime.date(2020, 1, 1), datetime.date(2019, 12, 31), (0, 1, "warn")),
            (None, None, (0, 0, "not-evaluated")),
        ],
    )
    def test_study_dates(self, date: Any, reference_date: Any, expected: tuple[int, int, str]) -> None:
        counted = count(instances("S", "A", StudyDate=date), reference_date=reference_date)
        assert result(counted, "study-date-range") == expected

    def test_a_birth_date_after_the_study_fails(self) -> None:
        dates = {"StudyDate": datetime.date(2020, 1, 1), "PatientBirthDate": datetime.date(2021, 1, 1)}
        counted = count(instances("S", "A", **dates), instances("T", "B"))
        assert result(counted, "birth-before-study") == (0, 1, "fail")

    def test_rows_without_a_study_are_not_counted(self) -> None:
        counted = count(instances("S", "A", Modality="MR"), instances(None, "B", Modality="XYZ"))
        assert result(counted, "modality-known") == (1, 0, "pass")

    def test_a_finding_names_the_first_unit_of_its_series(self) -> None:
        rows = [instances("S", "A", unit=unit, subject=unit, Modality="XYZ") for unit in ("sub-2", "sub-1")]
        (finding,) = count(*rows).findings
        assert (finding["unit"], finding["subject"], finding["count"]) == ("sub-1", "sub-1", 1)
