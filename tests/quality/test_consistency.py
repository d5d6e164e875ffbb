"""Folders, sheets and headers against each other."""

import datetime
from typing import Any, NamedTuple

import pyarrow as pa
import pytest

from dicom_etl.lake.schemas import SHEETS
from dicom_etl.quality.check_table import Measure
from dicom_etl.quality.checks.consistency import consistency
from dicom_etl.quality.checks.sheets import create_sheets, sample_matches, subject_matches
from dicom_etl.quality.terms import create_terms
from tests.support.lake_tables import Row, database_of, header_rows, table_of


class Judged(NamedTuple):
    """Measures and findings, and what the report notes of subjects."""

    measures: list[Measure]
    findings: list[Row]
    notes: dict[str, str]


def fact(study: str | None, series: str, n: int = 1, **values: Any) -> list[Row]:
    """Header rows of `n` instances."""
    row = {"unit": "sub-1", "subject": "sub-1", "StudyInstanceUID": study, "SeriesInstanceUID": series, **values}
    return [{**row, "path": str(number)} for number in range(n)]


def judge(*facts: list[Row], folders: Any = (), sheets: list[Row] | None = None, reference_date: Any = None) -> Judged:
    places = pa.Table.from_pylist(
        [{"subject": subject, "sample": sample} for subject, sample in folders],
        schema=pa.schema([("subject", pa.string()), ("sample", pa.string())]),
    )
    with database_of(header_rows(*(row for rows in facts for row in rows))) as database:
        create_terms(database)
        create_sheets(database, [places], [table_of(SHEETS, sheets or [])])
        judgements = (
            subject_matches(database, "d"),
            sample_matches(database, "d"),
            consistency(database, "d", reference_date),
        )
        notes = {row["subject"]: row["note"] for row in database.rows("FROM subject_notes")}
    measures = [measure for some, _ in judgements for measure in some]
    return Judged(measures, [row for _, tables in judgements for found in tables for row in found.to_pylist()], notes)


def verdict(judged: Judged, check: str, level: str | None = None) -> tuple[int, int, str]:
    """n_pass, n_fail, result of a check over all."""
    found = [m for m in judged.measures if m.check == check and is_verdict(m) and level in (None, m.level)]
    assert len(found) == 1
    return found[0].n_pass, found[0].n_fail, found[0].result


def is_verdict(measure: Measure) -> bool:
    return measure.reason is None and measure.tag is None and measure.group_by == "all"


def cell(sheet: str, field: str, value: str, subject: str | None = None, sample: str | None = None) -> dict[str, Any]:
    return {"sheet": sheet, "field": field, "value": value, "subject": subject, "sample": sample}


def test_sheets() -> None:
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
            name: {tuple(row.values()) for row in database.rows(f"FROM {name}")}
            for name in ("sheet_subjects", "sheet_pools", "sheet_samples", "metadata_only", "sheets")
        }
    assert tables["sheet_subjects"] == {("sub-1",), ("sub-2",)}
    assert tables["sheet_pools"] == {("pool-1",)}
    assert tables["sheet_samples"] == {("sub-1", "sam-1")}
    assert tables["metadata_only"] == {("sub-2", None)}
    assert {("subjects",), ("samples",)} <= tables["sheets"]


def test_subjects_of_sheet_and_folders() -> None:
    sheets = [
        *(cell("subjects", "subject id", subject, subject) for subject in ("sub-1", "sub-2", "sub-3")),
        cell("subjects", "pool id", "pool-1", "sub-1"),
        cell("subjects", "metadata only", "yes", "sub-3"),
    ]
    judged = judge(folders=[("sub-1", None), ("sub-9", "sam-1"), ("pool-1", None)], sheets=sheets)
    # sub-1, sub-3 (no folder is meant), pool-1 pass; sub-2 has no folder, sub-9 no row
    assert verdict(judged, "subjects-match") == (3, 2, "warn")
    assert {(f["code"], f["subject"]) for f in judged.findings} == {
        ("subject-not-in-tree", "sub-2"),
        ("subject-not-in-sheet", "sub-9"),
    }
    assert judged.notes == {"sub-2": "row without a folder", "sub-9": "folder without a row in the sheet"}


def test_without_a_sheet_there_is_nothing_to_judge() -> None:
    judged = judge(folders=[("sub-1", "sam-1")])
    assert verdict(judged, "subjects-match") == (0, 0, "not-evaluated")
    assert verdict(judged, "samples-match") == (0, 0, "not-evaluated")
    assert judged.findings == []


def test_samples_are_those_of_their_subject() -> None:
    sheets = [cell("samples", "sample id", f"sam-{n}", f"sub-{n}", f"sam-{n}") for n in (1, 2)]
    judged = judge(folders=[("sub-1", "sam-1"), ("sub-2", "sam-1")], sheets=sheets)
    assert verdict(judged, "samples-match") == (1, 2, "fail")
    assert {(f["code"], f["subject"], f["sample"]) for f in judged.findings} == {
        ("sample-not-in-sheet", "sub-2", "sam-1"),
        ("sample-not-in-tree", "sub-2", "sam-2"),
    }


def test_a_sheet_without_subjects_names_samples_of_the_dataset() -> None:
    sheets = [cell("samples", "sample id", f"sam-{n}", None, f"sam-{n}") for n in (1, 2)]
    judged = judge(folders=[("sub-1", "sam-1")], sheets=sheets)
    assert verdict(judged, "samples-match") == (1, 1, "warn")


def test_numbers_are_compared_with_what_was_counted() -> None:
    judged = judge(
        fact("S", "A", 3, NumberOfSeriesRelatedInstances=3, NumberOfStudyRelatedSeries=2),
        fact("S", "B", 1, NumberOfSeriesRelatedInstances=5),
        fact("T", "C", 2),
    )
    assert verdict(judged, "counts-agree", "study") == (1, 0, "pass")
    assert verdict(judged, "counts-agree", "series") == (1, 1, "warn")
    (found,) = judged.findings
    assert (found["code"], found["series_uid"], found["value"]) == ("count-conflict", "B", "5")
    assert (found["unit"], found["subject"], found["study_uid"]) == ("sub-1", "sub-1", "S")
    assert found["message"] == "NumberOfSeriesRelatedInstances says 5; 1 counted"


def test_modalities_and_body_parts_are_terms() -> None:
    judged = judge(
        fact("S", "A", Modality="MR", BodyPartExamined="BREAST"),
        fact("S", "B", Modality="XYZ", BodyPartExamined="MAMMA"),
        fact("S", "C"),
    )
    assert verdict(judged, "modality-known") == (1, 1, "fail")
    assert verdict(judged, "body-part-known") == (1, 1, "warn")
    assert [f["value"] for f in judged.findings] == ["XYZ"]
    assert {m.reason for m in judged.measures if m.check == "body-part-known"} == {None, "MAMMA"}


def test_a_series_lies_in_one_sample() -> None:
    judged = judge(fact("S", "A", sample="sam-1"), fact("S", "A", sample="sam-2"), fact("S", "B", sample="sam-1"))
    assert verdict(judged, "series-one-sample") == (1, 1, "warn")


@pytest.mark.parametrize(
    ("date", "reference_date", "expected"),
    [
        (datetime.date(2020, 1, 1), None, (1, 0, "pass")),
        (datetime.date(1960, 1, 1), None, (0, 1, "warn")),
        (datetime.date(2020, 1, 1), datetime.date(2019, 12, 31), (0, 1, "warn")),
        (None, None, (0, 0, "not-evaluated")),
    ],
)
def test_study_dates(date: Any, reference_date: Any, expected: tuple[int, int, str]) -> None:
    assert verdict(judge(fact("S", "A", StudyDate=date), reference_date=reference_date), "study-date-range") == expected


def test_nobody_is_born_after_the_study() -> None:
    dates = {"StudyDate": datetime.date(2020, 1, 1), "PatientBirthDate": datetime.date(2021, 1, 1)}
    assert verdict(judge(fact("S", "A", **dates), fact("T", "B")), "birth-before-study") == (0, 1, "fail")


def test_rows_of_no_study_are_left_out() -> None:
    judged = judge(fact("S", "A", Modality="MR"), fact(None, "B", Modality="XYZ"))
    assert verdict(judged, "modality-known") == (1, 0, "pass")


def test_a_finding_names_the_first_unit_of_its_entity() -> None:
    rows = [fact("S", "A", unit=unit, subject=unit, Modality="XYZ") for unit in ("sub-2", "sub-1")]
    (found,) = judge(*rows).findings
    assert (found["unit"], found["subject"], found["count"]) == ("sub-1", "sub-1", 1)


def test_numbers_that_instances_do_not_agree_on_are_named() -> None:
    rows = [fact("S", "A", NumberOfSeriesRelatedInstances=number) for number in (10, 2)]
    (found,) = judge(*rows).findings
    assert found["message"] == "NumberOfSeriesRelatedInstances says 2 and 10; 2 counted"


def test_metadata_only_samples_need_no_folder() -> None:
    sheets = [
        cell("samples", "sample id", "sam-1", "sub-1", "sam-1"),
        cell("samples", "metadata only", "1", "sub-1", "sam-1"),
        cell("samples", "sample id", "sam-2", "sub-2", "sam-2"),
        cell("subjects", "metadata only", "true", "sub-2"),
        cell("samples", "sample id", "sam-3", "sub-3", "sam-3"),
    ]
    judged = judge(sheets=sheets)
    assert verdict(judged, "samples-match") == (2, 1, "warn")
    assert [f["sample"] for f in judged.findings if f["code"] == "sample-not-in-tree"] == ["sam-3"]
