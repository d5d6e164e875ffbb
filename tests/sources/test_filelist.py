"""A dataset that is a CSV file with one line per DICOM file."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicom_etl.settings import DatasetSettings
from dicom_etl.sources import Entry, FileListSource, Scan, SourceError, open_source


def scan_list(tmp_path: Path, text: str) -> tuple[list[Entry], Scan]:
    (tmp_path / "list.csv").write_text(text, encoding="utf-8")
    scan = Scan()
    return list(FileListSource("ds", tmp_path / "list.csv").scan(scan)), scan


@pytest.fixture(autouse=True)
def files(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"123")
    (tmp_path / "b.dcm").write_bytes(b"12345")


def test_a_line_names_path_subject_and_sample(tmp_path: Path) -> None:
    entries, _ = scan_list(tmp_path, "path,subject,sample\na.dcm,sub-1,sam-2\n")
    assert [entry[:6] for entry in entries] == [("a.dcm", "sub-1", "sub-1", "sam-2", "primary", 3)]


def test_subject_and_sample_may_be_unknown(tmp_path: Path) -> None:
    entries, _ = scan_list(tmp_path, "path\na.dcm\n")
    assert [entry[:4] for entry in entries] == [("a.dcm", ".", None, None)]


def test_blanks_around_a_cell_are_ignored(tmp_path: Path) -> None:
    entries, _ = scan_list(tmp_path, "path,subject\n a.dcm , sub-1 \n")
    assert [entry[:3] for entry in entries] == [("a.dcm", "sub-1", "sub-1")]


def test_paths_are_relative_to_the_list_or_absolute(tmp_path: Path) -> None:
    absolute = str(tmp_path / "b.dcm")
    entries, _ = scan_list(tmp_path, f"path\na.dcm\n{absolute}\n")
    assert {entry.path: entry.size for entry in entries} == {"a.dcm": 3, absolute: 5}


def test_a_path_that_is_listed_twice_is_one_file(tmp_path: Path) -> None:
    entries, _ = scan_list(tmp_path, "path,subject\na.dcm,sub-1\na.dcm,sub-2\n")
    assert [(entry.path, entry.subject) for entry in entries] == [("a.dcm", "sub-1")]


def test_a_missing_listed_file_is_reported(tmp_path: Path) -> None:
    entries, scan = scan_list(tmp_path, "path,subject\ngone.dcm,sub-1\nb.dcm,sub-1\n")
    assert [entry.path for entry in entries] == ["b.dcm"]
    assert [(f.code, f.path, f.subject) for f in scan.findings] == [("listed-file-missing", "gone.dcm", "sub-1")]


def test_an_unreadable_listed_file_is_not_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat = Path.stat

    def failing(path: Path, **options: bool) -> object:
        if path.name == "a.dcm":
            raise OSError(5, "Input/output error")
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", failing)
    entries, scan = scan_list(tmp_path, "path\na.dcm\nb.dcm\n")
    assert [entry.path for entry in entries] == ["b.dcm"]
    assert scan.unread_files == ["a.dcm"]
    assert [finding.code for finding in scan.findings] == ["file-unreadable"]


def test_empty_lines_and_a_byte_order_mark_are_ignored(tmp_path: Path) -> None:
    entries, _ = scan_list(tmp_path, "\ufeffpath,subject\n\na.dcm\n,sub-1\n")
    assert [entry.path for entry in entries] == ["a.dcm"]


def test_a_list_without_paths_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has no column 'path'"):
        scan_list(tmp_path, "file\na.dcm\n")


def test_a_list_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"path\nM\xfcller.dcm\n")
    with pytest.raises(SourceError, match="cannot be read"):
        list(FileListSource("ds", tmp_path / "list.csv").scan(Scan()))


def test_a_missing_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        open_source("ds", DatasetSettings(root=str(tmp_path / "gone.csv"), kind="list"))


def test_a_listed_file_is_opened(tmp_path: Path) -> None:
    with FileListSource("ds", tmp_path / "list.csv").open("b.dcm") as file:
        assert file.read() == b"12345"
