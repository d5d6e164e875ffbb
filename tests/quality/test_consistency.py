"""Folders, sheets and headers against each other."""

import datetime
from collections.abc import Mapping
from typing import Any

import pytest

from dicom_etl.quality.checks import Measure
from dicom_etl.quality.consistency import Judged, Sheets, consistency, sheets_of
from dicom_etl.quality.facts import FACT_COLUMNS, by_series, by_study


def fact(study: str, series: str, n: int = 1, **values: Any) -> dict[str, Any]:
    row = dict.fromkeys(FACT_COLUMNS) | {"unit": "sub-1", "subject": "sub-1", "n": n, **values}
    return row | {"StudyInstanceUID": study, "SeriesInstanceUID": series}


NO_SHEETS = Sheets()


def judge(*rows: Mapping[str, Any], folders: Any = (), sheets: Sheets = NO_SHEETS, as_of: Any = None) -> Judged:
    studies = by_study(rows)
    return consistency("d", studies, by_series(studies), folders, sheets, as_of)


def verdict(judged: Judged, check: str, level: str | None = None) -> tuple[int, int, str]:
    """n_pass, n_fail, status of a check over all."""
    found = [m for m in judged.measures if m.check == check and is_verdict(m) and level in (None, m.level)]
    assert len(found) == 1
    return found[0].n_pass, found[0].n_fail, found[0].status


def is_verdict(measure: Measure) -> bool:
    return measure.reason is None and measure.tag is None and measure.group_by == "all"


def cell(sheet: str, field: str, value: str, subject: str | None = None, sample: str | None = None) -> dict[str, Any]:
    return {"sheet": sheet, "field": field, "value": value, "subject": subject, "sample": sample}


def test_sheets() -> None:
    sheets = sheets_of(
        [
            cell("dataset_description", "title", "x"),
            cell("subjects", "subject id", "sub-1", "sub-1"),
            cell("subjects", "pool id", "pool-1", "sub-1"),
            cell("subjects", "subject id", "sub-2", "sub-2"),
            cell("subjects", "metadata only", "TRUE", "sub-2"),
            cell("samples", "sample id", "sam-1", "sub-1", "sam-1"),
            cell("samples", "metadata only", "FALSE", "sub-1", "sam-1"),
        ]
    )
    assert sheets.subjects == {"sub-1", "sub-2"}
    assert sheets.pools == {"pool-1"}
    assert sheets.samples == {("sub-1", "sam-1")}
    assert sheets.metadata_only == {("sub-2", None)}
    assert (sheets.has_subjects, sheets.has_samples) == (True, True)


def test_subjects_of_sheet_and_folders() -> None:
    sheets = Sheets(
        subjects=frozenset({"sub-1", "sub-2", "sub-3"}),
        pools=frozenset({"pool-1"}),
        metadata_only=frozenset({("sub-3", None)}),
        has_subjects=True,
    )
    judged = judge(folders=[("sub-1", None), ("sub-9", "sam-1"), ("pool-1", None)], sheets=sheets)
    # sub-1, sub-3 (no folder is meant), pool-1 pass; sub-2 has no folder, sub-9 no row
    assert verdict(judged, "subjects-match") == (3, 2, "warn")
    assert {(f.code, f.subject) for f in judged.findings} == {
        ("subject-not-in-tree", "sub-2"),
        ("subject-not-in-sheet", "sub-9"),
    }
    own = {m.group: m.reason for m in judged.measures if m.group_by == "subject" and m.reason}
    assert own == {"sub-2": "row without a folder", "sub-9": "folder without a row in the sheet"}


def test_without_a_sheet_there_is_nothing_to_judge() -> None:
    judged = judge(folders=[("sub-1", "sam-1")])
    assert verdict(judged, "subjects-match") == (0, 0, "info")
    assert verdict(judged, "samples-match") == (0, 0, "info")
    assert judged.findings == []


def test_samples_are_those_of_their_subject() -> None:
    sheets = Sheets(samples=frozenset({("sub-1", "sam-1"), ("sub-2", "sam-2")}), has_samples=True)
    judged = judge(folders=[("sub-1", "sam-1"), ("sub-2", "sam-1")], sheets=sheets)
    assert verdict(judged, "samples-match") == (1, 2, "fail")
    assert {(f.code, f.subject, f.sample) for f in judged.findings} == {
        ("sample-not-in-sheet", "sub-2", "sam-1"),
        ("sample-not-in-tree", "sub-2", "sam-2"),
    }


def test_a_sheet_without_subjects_names_samples_of_the_dataset() -> None:
    sheets = Sheets(samples=frozenset({(None, "sam-1"), (None, "sam-2")}), has_samples=True)
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
    assert (found.code, found.series_uid, found.value) == ("count-disagrees", "B", "5")
    assert found.message == "NumberOfSeriesRelatedInstances says 5; 1 counted"


def test_modalities_and_body_parts_are_terms() -> None:
    judged = judge(
        fact("S", "A", Modality="MR", BodyPartExamined="BREAST"),
        fact("S", "B", Modality="XYZ", BodyPartExamined="MAMMA"),
        fact("S", "C"),
    )
    assert verdict(judged, "modality-known") == (1, 1, "fail")
    assert verdict(judged, "body-part-known") == (1, 1, "warn")
    assert [f.value for f in judged.findings] == ["XYZ"]
    assert {m.reason for m in judged.measures if m.check == "body-part-known"} == {None, "MAMMA"}


def test_a_series_lies_in_one_sample() -> None:
    judged = judge(fact("S", "A", sample="sam-1"), fact("S", "A", sample="sam-2"), fact("S", "B", sample="sam-1"))
    assert verdict(judged, "series-one-sample") == (1, 1, "warn")


@pytest.mark.parametrize(
    ("date", "as_of", "expected"),
    [
        (datetime.date(2020, 1, 1), None, (1, 0, "pass")),
        (datetime.date(1960, 1, 1), None, (0, 1, "warn")),
        (datetime.date(2020, 1, 1), datetime.date(2019, 12, 31), (0, 1, "warn")),
        (None, None, (0, 0, "info")),
    ],
)
def test_study_dates(date: Any, as_of: Any, expected: tuple[int, int, str]) -> None:
    assert verdict(judge(fact("S", "A", StudyDate=date), as_of=as_of), "study-date-range") == expected


def test_nobody_is_born_after_the_study() -> None:
    dates = {"StudyDate": datetime.date(2020, 1, 1), "PatientBirthDate": datetime.date(2021, 1, 1)}
    assert verdict(judge(fact("S", "A", **dates), fact("T", "B")), "birth-before-study") == (0, 1, "fail")


def test_rows_of_no_study_are_left_out() -> None:
    assert by_study([fact("S", "A"), {**fact("", "B"), "StudyInstanceUID": None}])[0].instances == 1
