"""Metadata sheets as cells of text: four file types give the same cells."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from dicom_etl.sources import sheets
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
def test_all_file_types_give_the_same_cells(tmp_path: Path, suffix: str) -> None:
    assert cells("subjects", write(tmp_path / f"subjects.{suffix}", SUBJECTS)) == SUBJECT_CELLS


def test_json_records_may_be_under_a_key(tmp_path: Path) -> None:
    path = tmp_path / "subjects.json"
    path.write_text(json.dumps({"subjects": [{"subject id": "sub-1", "sex": "F"}]}))
    assert cells("subjects", path) == {(2, "sub-1", "subject id", "sub-1"), (2, "sub-1", "sex", "F")}


@pytest.mark.parametrize(
    "null", ["", " ", "n/a", "NA", "nan", "Unknown", "Not Defined", "asked-answered-unknown", "not-applicable"]
)
def test_null_values_of_sds_are_omitted(tmp_path: Path, null: str) -> None:
    path = write(tmp_path / "subjects.csv", [["subject id", "age"], ["sub-1", null]])
    assert cells("subjects", path) == {(2, "sub-1", "subject id", "sub-1")}


def test_a_row_of_samples_names_subject_and_sample(tmp_path: Path) -> None:
    path = write(tmp_path / "samples.csv", [["sample_id", "subject_id"], ["sam-1", "sub-2"]])
    assert {(cell.subject, cell.sample) for cell in read_sheet("samples", path, "samples.csv")} == {("sub-2", "sam-1")}


def test_a_date_cell_has_no_time(tmp_path: Path) -> None:
    path = write(tmp_path / "subjects.xlsx", [["subject id", "date of birth"], ["s", datetime.datetime(1980, 3, 4)]])  # noqa: DTZ001
    assert (2, "s", "date of birth", "1980-03-04") in cells("subjects", path)


def test_quoted_commas_and_line_ends_do_not_separate(tmp_path: Path) -> None:
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
def test_an_empty_sheet_has_no_cells(tmp_path: Path, suffix: str) -> None:
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


def describe(path: Path) -> dict[str, str]:
    """The values of a dataset description by field."""
    return {cell.field: cell.value for cell in read_sheet("dataset_description", path, path.name)}


SUBJECTS_1 = ["subject_id", "pool_id", "experimental group", "age", "sex", "reference_atlas", "handedness"]
DESCRIBED_1 = ["Lab-based schema for identifying each subject, should match folder names", "a pool", "", "", "", "", ""]
EXAMPLE_1 = ["sub-1", "pool-1", "Control", "4 weeks", "Male", "Paxinos Rat V3", "right"]


class TestSdsVersions:
    @pytest.mark.parametrize(
        ("header", "version"),
        [
            ("Metadata Version DO NOT CHANGE", "1.2.3"),
            ("Metadata Version", "2.0.0"),
            ("Metadata Version", "2.1.0"),
            ("Metadata Version", "3.0.0"),
            ("Metadata version", "3.0.1"),
            ("Metadata version", "3.0.2"),
        ],
    )
    def test_the_version_is_read_from_every_version(self, tmp_path: Path, header: str, version: str) -> None:
        rows = [["Metadata element", "Description", "Example", "Value"], [header, "", "", version]]
        assert describe(write(tmp_path / "dataset_description.xlsx", rows)) == {"metadata version": version}

    def test_template_rows_of_1_2_3_are_omitted(self, tmp_path: Path) -> None:
        rows = [SUBJECTS_1, DESCRIBED_1, EXAMPLE_1, ["sub-1", "", "Treated", "30y", "Female", "", ""]]
        assert cells("subjects", write(tmp_path / "subjects.xlsx", rows)) == {
            (4, "sub-1", "subject id", "sub-1"),
            (4, "sub-1", "experimental group", "Treated"),
            (4, "sub-1", "age", "30y"),
            (4, "sub-1", "sex", "Female"),
        }

    def test_a_row_that_resembles_a_template_row_is_kept(self, tmp_path: Path) -> None:
        rows = [SUBJECTS_1, ["sub-1", "pool-1", "", "", "", "", "right"]]
        assert cells("subjects", write(tmp_path / "subjects.csv", rows)) == {
            (2, "sub-1", "subject id", "sub-1"),
            (2, "sub-1", "pool id", "pool-1"),
            (2, "sub-1", "handedness", "right"),
        }

    def test_samples_of_1_2_3_have_composite_ids_and_mixed_headers(self, tmp_path: Path) -> None:
        rows = [
            ["subject_id", "sample_id", "wasDerivedFromSample", "pool_id", "specimen type"],
            [
                "Lab-based schema for identifying each subject",
                "Lab-based schema for identifying each sample",
                "",
                "",
                "",
            ],
            ["sub-1", "sub-1_sam-2", "sub-1_sam-1", "", "tissue"],
        ]
        read = read_sheet("samples", write(tmp_path / "samples.xlsx", rows), "samples.xlsx")
        assert [(cell.row, cell.subject, cell.sample, cell.field, cell.value) for cell in read] == [
            (3, "sub-1", "sub-1_sam-2", "subject id", "sub-1"),
            (3, "sub-1", "sub-1_sam-2", "sample id", "sub-1_sam-2"),
            (3, "sub-1", "sub-1_sam-2", "was derived from", "sub-1_sam-1"),
            (3, "sub-1", "sub-1_sam-2", "specimen type", "tissue"),
        ]

    def test_headers_of_2_and_3_have_blanks(self, tmp_path: Path) -> None:
        rows = [["sample id", "subject id", "Laterality", "metadata only"], ["sam-1", "sub-1", "left", True]]
        read = read_sheet("samples", write(tmp_path / "samples.xlsx", rows), "samples.xlsx")
        assert {(cell.subject, cell.sample, cell.field, cell.value) for cell in read} == {
            ("sub-1", "sam-1", "sample id", "sam-1"),
            ("sub-1", "sam-1", "subject id", "sub-1"),
            ("sub-1", "sam-1", "laterality", "left"),
            ("sub-1", "sam-1", "metadata only", "True"),
        }

    @pytest.mark.parametrize(
        "null",
        """not-applicable not-available asked-answered-unknown asked-answered-invalid asked-not-answered not-asked
    not-asked-not-applicable asked-not-applicable""".split(),
    )
    def test_null_values_of_3_are_omitted(self, tmp_path: Path, null: str) -> None:
        path = write(tmp_path / "subjects.csv", [["subject id", "sex"], ["sub-1", null]])
        assert cells("subjects", path) == {(2, "sub-1", "subject id", "sub-1")}


class TestJsonDescriptions:
    def test_a_description_may_be_a_plain_object(self, tmp_path: Path) -> None:
        path = tmp_path / "dataset_description.json"
        content = {"Title": "Breast", "keywords": ["MRI", "breast"], "Funding": "", "Number_of_subjects": 2, "a": None}
        path.write_text(json.dumps(content))
        assert describe(path) == {"title": "Breast", "keywords": "MRI | breast", "number of subjects": "2"}

    def test_groups_of_a_plain_object_are_not_fields(self, tmp_path: Path) -> None:
        path = tmp_path / "dataset_description.json"
        content = {
            "Basic information": {"Title": "Breast", "Metadata version": "3.0.2"},
            "Contributors": [{"Contributor name": "A, B"}, {"Contributor name": "C, D", "Contributor role": "n/a"}],
        }
        path.write_text(json.dumps(content))
        assert describe(path) == {"title": "Breast", "metadata version": "3.0.2", "contributor name": "A, B | C, D"}

    @pytest.mark.parametrize("under_a_name", [False, True])
    def test_a_description_may_be_records(self, tmp_path: Path, under_a_name: bool) -> None:
        records = [{"Metadata element": "Title", "Value": "Breast", "Value 2": ""}]
        path = tmp_path / "dataset_description.json"
        path.write_text(json.dumps({"dataset_description": records} if under_a_name else records))
        assert describe(path) == {"title": "Breast"}

    def test_a_list_in_a_record_is_one_value(self, tmp_path: Path) -> None:
        path = tmp_path / "subjects.json"
        path.write_text(json.dumps({"subject id": "sub-1", "member of": ["pop-1", "pop-2"]}))
        assert (2, "sub-1", "member of", "pop-1 | pop-2") in cells("subjects", path)


class TestLimits:
    @pytest.mark.parametrize("suffix", ["xlsx", "csv", "tsv", "json"])
    def test_a_sheet_that_is_too_large_is_not_read(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"subjects.{suffix}"
        with path.open("wb") as file:
            file.truncate(50_000_001)
        with pytest.raises(SheetError, match=r"it has 50,000,001 bytes; sheets of at most 50,000,000 are read"):
            read_sheet("subjects", path, path.name)

    def test_a_workbook_that_inflates_too_much_is_not_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = write(tmp_path / "subjects.xlsx", SUBJECTS)
        monkeypatch.setattr(sheets, "MAX_INFLATED_BYTES", 1000)
        with pytest.raises(SheetError, match=r"it inflates to [0-9,]+ bytes; workbooks of at most 1,000 are read"):
            read_sheet("subjects", path, path.name)

    def test_a_pipe_with_the_name_of_a_sheet_is_refused(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "subjects.csv")
        with pytest.raises(SheetError, match="it is not a file"):
            read_sheet("subjects", tmp_path / "subjects.csv", "subjects.csv")
