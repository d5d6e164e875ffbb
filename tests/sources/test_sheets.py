"""Metadata sheets as cells of text: four file types, one answer."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from dicom_etl.sources.sheets import SheetError, read_sheet

SUBJECTS: list[list[Any]] = [["Subject_ID", "  SEX ", "age"], ["sub-1", "Female", "30y"], ["sub-2", "n/a", 41]]
SUBJECT_CELLS = {
    (2, "sub-1", "subject id", "sub-1"),
    (2, "sub-1", "sex", "Female"),
    (2, "sub-1", "age", "30y"),
    (3, "sub-2", "subject id", "sub-2"),
    (3, "sub-2", "age", "41"),
}


def write(path: Path, rows: list[list[Any]]) -> Path:
    if path.suffix == ".xlsx":
        book = openpyxl.Workbook()
        for row in rows:
            book.active.append(row)
        book.save(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps([dict(zip(rows[0], row, strict=False)) for row in rows[1:]]))
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        path.write_text("\n".join(separator.join(str(cell) for cell in row) for row in rows))
    return path


def cells(kind: str, path: Path) -> set[tuple[int, str | None, str, str]]:
    read = read_sheet(kind, path, path.name)
    assert {(cell.sheet, cell.path) for cell in read} <= {(kind, path.name)}
    return {(cell.row, cell.subject, cell.field, cell.value) for cell in read}


@pytest.mark.parametrize("suffix", ["xlsx", "csv", "tsv", "json"])
def test_a_sheet_says_the_same_in_every_type(tmp_path: Path, suffix: str) -> None:
    assert cells("subjects", write(tmp_path / f"subjects.{suffix}", SUBJECTS)) == SUBJECT_CELLS


def test_a_json_sheet_may_hold_its_records_under_a_name(tmp_path: Path) -> None:
    path = tmp_path / "subjects.json"
    path.write_text(json.dumps({"subjects": [{"subject id": "sub-1", "sex": "F"}]}))
    assert cells("subjects", path) == {(2, "sub-1", "subject id", "sub-1"), (2, "sub-1", "sex", "F")}


@pytest.mark.parametrize(
    "null", ["", " ", "n/a", "NA", "nan", "Unknown", "Not Defined", "asked-answered-unknown", "not-applicable"]
)
def test_a_null_value_of_sds_is_no_cell(tmp_path: Path, null: str) -> None:
    path = write(tmp_path / "subjects.csv", [["subject id", "age"], ["sub-1", null]])
    assert cells("subjects", path) == {(2, "sub-1", "subject id", "sub-1")}


def test_a_row_of_samples_names_subject_and_sample(tmp_path: Path) -> None:
    path = write(tmp_path / "samples.csv", [["sample_id", "subject_id"], ["sam-1", "sub-2"]])
    assert {(cell.subject, cell.sample) for cell in read_sheet("samples", path, "samples.csv")} == {("sub-2", "sam-1")}


def test_a_date_cell_is_a_date(tmp_path: Path) -> None:
    path = write(tmp_path / "subjects.xlsx", [["subject id", "date of birth"], ["s", datetime.datetime(1980, 3, 4)]])  # noqa: DTZ001
    assert (2, "s", "date of birth", "1980-03-04") in cells("subjects", path)


def test_quotes_commas_and_line_ends_of_csv_are_no_separators(tmp_path: Path) -> None:
    path = tmp_path / "subjects.csv"
    path.write_bytes(b'\xef\xbb\xbfsubject id,comment\r\nsub-1,"a, ""b""\r\nc"\r\n')
    assert (2, "sub-1", "comment", 'a, "b"\nc') in cells("subjects", path)


def test_the_dataset_description_is_read_by_rows(tmp_path: Path) -> None:
    rows = [
        ["Metadata element", "Description", "Example", "Value", "Value 2"],
        ["Title", "of it", "My title", "Breast", ""],
        ["Keywords", "of it", "brain", "MRI", "breast"],
        ["Funding", "of it", "a grant", "", ""],
    ]
    path = write(tmp_path / "dataset_description.csv", rows)
    assert cells("dataset_description", path) == {(2, None, "title", "Breast"), (3, None, "keywords", "MRI | breast")}


@pytest.mark.parametrize("suffix", ["csv", "tsv", "xlsx"])
def test_an_empty_sheet_says_nothing(tmp_path: Path, suffix: str) -> None:
    assert cells("subjects", write(tmp_path / f"subjects.{suffix}", [])) == set()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("subjects.xlsx", b"no archive"),
        ("subjects.xlsx", b"PK\x05\x06" + bytes(18)),
        ("subjects.csv", b"subject id\nM\xfcller\n"),
        ("subjects.json", b'[{"subject id": "sub-1"'),
        ("subjects.json", b'["sub-1"]'),
        ("subjects.json", b"3"),
    ],
)
def test_a_damaged_sheet_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SheetError):
        read_sheet("subjects", tmp_path / name, name)


def test_a_folder_with_the_name_of_a_sheet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "subjects.csv").mkdir()
    with pytest.raises(SheetError):
        read_sheet("subjects", tmp_path / "subjects.csv", "subjects.csv")
