"""crawl: what lies in a dataset, and that nothing is believed gone too easily. No file here holds DICOM."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pytest

from dicom_etl.lake.schemas import INVENTORY, SHEETS
from dicom_etl.sources import Entry, Scan, SourceError
from dicom_etl.stages.crawl import CrawlResult, DatasetStoppedError, crawl
from tests.support.datasets import Tree, make_tree


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return make_tree(tmp_path)


def fill(tree: Tree, *paths: str) -> None:
    for path in paths:
        target = tree.root / "primary" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(path)
        os.utime(target, ns=(0, 1_600_000_000_123_456_789))


def inventory(tree: Tree) -> list[dict[str, Any]]:
    return tree.lake.read(INVENTORY, dataset=tree.name).to_pylist()


def paths(tree: Tree) -> list[str]:
    return [row["path"].removeprefix("primary/") for row in inventory(tree)]


def cells(tree: Tree) -> set[tuple[str, str | None, str, str]]:
    rows = tree.lake.read(SHEETS, dataset=tree.name).to_pylist()
    return {(row["sheet"], row["subject"], row["field"], row["value"]) for row in rows}


def snapshot(tree: Tree) -> dict[str, bytes]:
    """The content of the lake but its findings and locks."""
    lake = Path(tree.lake.root)
    files = (path for path in sorted(lake.rglob("*")) if path.is_file())
    kept = {path.relative_to(lake).as_posix(): path.read_bytes() for path in files}
    return {name: content for name, content in kept.items() if not name.startswith(("findings/", "locks/"))}


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes a folder refuse to be listed (permissions do not stop a superuser)."""
    refused: set[Path] = set()
    listed = os.scandir

    def scandir(path: Any = ".") -> Any:
        if not isinstance(path, int) and Path(path) in refused:
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    return refused.add


# -- the inventory ----------------------------------------------------------------------------------------------------


def test_a_row_says_where_a_file_lies_and_what_the_file_system_knows(tree: Tree) -> None:
    fill(tree, "sub-1/sam-2/1.dcm")
    tree.crawl()
    assert inventory(tree) == [
        {
            "dataset": "ds",
            "unit": "sub-1",
            "subject": "sub-1",
            "sample": "sam-2",
            "role": "primary",
            "path": "primary/sub-1/sam-2/1.dcm",
            "size": 17,
            "mtime": datetime.datetime(2020, 9, 13, 12, 26, 40, 123456, datetime.UTC),
        }
    ]


def test_rows_are_sorted_by_unit_and_path(tree: Tree) -> None:
    fill(tree, "sub-2/1.dcm", "sub-10/1.dcm", "sub-1/b.dcm", "sub-1/a/1.dcm")
    tree.crawl()
    assert paths(tree) == ["sub-1/a/1.dcm", "sub-1/b.dcm", "sub-10/1.dcm", "sub-2/1.dcm"]


def test_the_answer_counts_files_units_new_gone_and_findings(tree: Tree) -> None:
    fill(tree, *(f"sub-1/{number}.dcm" for number in range(10)), "sub-2/1.dcm")
    assert tree.crawl() == CrawlResult("ds", files=11, units=2, new=11, removed=0, findings=0)
    (tree.root / "primary/sub-1/3.dcm").unlink()
    fill(tree, "sub-3/1.dcm", "sub-3/2.dcm", "sub-3/.DS_Store")
    assert tree.crawl() == CrawlResult("ds", files=12, units=3, new=2, removed=1, findings=1)


def test_another_crawl_of_the_same_tree_writes_the_same_bytes(tree: Tree) -> None:
    fill(tree, "sub-2/1.dcm", "sub-1/1.dcm")
    tree.sheet("subjects", {"subject id": "sub-1", "sex": "F"})
    tree.crawl()
    first = snapshot(tree)
    tree.crawl()
    assert snapshot(tree) == first


def test_a_dataset_without_files_is_refused(tree: Tree) -> None:
    with pytest.raises(SourceError, match="dataset ds: no file that could be DICOM under file://"):
        tree.crawl()


def test_a_name_that_no_text_can_hold_is_a_file_like_any_other(tree: Tree) -> None:
    fill(tree, "sub-1/ünïcode 名.dcm")
    tree.crawl()
    assert paths(tree) == ["sub-1/ünïcode 名.dcm"]


def test_a_file_name_that_is_no_utf_8_is_said_and_the_rest_is_crawled(tree: Tree) -> None:
    fill(tree, "sub-1/1.dcm")
    Path(os.fsdecode(os.fsencode(tree.root / "primary/sub-1") + b"/M\xfcller.dcm")).write_text("x")
    tree.crawl()
    assert paths(tree) == ["sub-1/1.dcm"]
    assert [(f["code"], f["path"]) for f in tree.findings("crawl")] == [
        ("name-undecodable", "primary/sub-1/M\N{REPLACEMENT CHARACTER}ller.dcm")
    ]


# -- sheets -----------------------------------------------------------------------------------------------------------


def test_what_the_sheets_say_is_kept(tree: Tree) -> None:
    fill(tree, "sub-1/1.dcm")
    tree.sheet("subjects", {"subject id": "sub-1", "sex": "Female"})
    tree.crawl()
    assert cells(tree) == {("subjects", "sub-1", "subject id", "sub-1"), ("subjects", "sub-1", "sex", "Female")}


def test_a_damaged_sheet_keeps_what_it_said_before(tree: Tree) -> None:
    fill(tree, "sub-1/1.dcm")
    path = tree.sheet("subjects", {"subject id": "sub-1", "sex": "Female"})
    tree.sheet("samples", {"sample id": "sam-1", "subject id": "sub-1"})
    tree.crawl()
    before = cells(tree)
    path.write_bytes(b"subject id\nM\xfcller\n")
    tree.crawl()
    assert cells(tree) == before
    assert [(f["code"], f["path"]) for f in tree.findings("crawl")] == [("sheet-unreadable", "subjects.csv")]


def test_a_sheet_that_stays_damaged_keeps_it_still(tree: Tree) -> None:
    fill(tree, "sub-1/1.dcm")
    path = tree.sheet("subjects", {"subject id": "sub-1", "sex": "Female"})
    tree.crawl()
    path.write_bytes(b"\xff")
    tree.crawl()
    tree.crawl()
    assert ("subjects", "sub-1", "sex", "Female") in cells(tree)


def test_a_mended_sheet_replaces_what_was_kept(tree: Tree) -> None:
    fill(tree, "sub-1/1.dcm")
    path = tree.sheet("subjects", {"subject id": "sub-1", "sex": "Female"})
    tree.crawl()
    path.write_bytes(b"\xff")
    tree.crawl()
    tree.sheet("subjects", {"subject id": "sub-1", "sex": "Male"})
    tree.crawl()
    assert cells(tree) == {("subjects", "sub-1", "subject id", "sub-1"), ("subjects", "sub-1", "sex", "Male")}


def test_a_removed_sheet_says_nothing_any_more(tree: Tree) -> None:
    fill(tree, "sub-1/1.dcm")
    path = tree.sheet("subjects", {"subject id": "sub-1", "sex": "Female"})
    tree.crawl()
    path.unlink()
    tree.crawl()
    assert cells(tree) == set()


def test_flat_samples_stay_with_their_subjects_while_the_samples_sheet_is_damaged(tree: Tree) -> None:
    fill(tree, "sam-1/1.dcm", "sam-2/1.dcm")
    path = tree.sheet(
        "samples",
        {"sample id": "sam-1", "subject id": "sub-1"},
        {"sample id": "sam-2", "subject id": "sub-2"},
    )
    tree.crawl()
    path.write_bytes(b"\xff")
    tree.crawl()
    assert [row["unit"] for row in inventory(tree)] == ["sub-1", "sub-2"]


# -- vanishing --------------------------------------------------------------------------------------------------------


@pytest.fixture
def known(tree: Tree) -> Tree:
    """A crawled dataset of 40 files in two subjects."""
    fill(tree, *(f"sub-1/{number:02}.dcm" for number in range(38)), "sub-2/1.dcm", "sub-2/2.dcm")
    tree.crawl()
    return tree


def remove(tree: Tree, *names: str) -> None:
    for name in names:
        (tree.root / "primary" / name).unlink()


def test_a_tenth_of_the_files_may_go(known: Tree) -> None:
    remove(known, *(f"sub-1/{number:02}.dcm" for number in range(4)))
    assert (known.crawl().removed, len(paths(known))) == (4, 36)


def test_more_than_a_tenth_of_the_files_stops_the_dataset(known: Tree) -> None:
    remove(known, *(f"sub-1/{number:02}.dcm" for number in range(5)))
    with pytest.raises(DatasetStoppedError, match=r"^dataset ds: 5 of 40 files are missing; .* --accept-missing$"):
        known.crawl()
    assert [(f["code"], f["count"]) for f in known.findings("crawl")] == [("files-missing", 5)]


def test_a_whole_subject_stops_the_dataset(known: Tree) -> None:
    remove(known, "sub-2/1.dcm", "sub-2/2.dcm")
    with pytest.raises(DatasetStoppedError, match="subject sub-2 is missing"):
        known.crawl()
    assert [(f["code"], f["unit"]) for f in known.findings("crawl")] == [("subject-missing", "sub-2")]


def test_a_renamed_subject_is_one_that_vanished(known: Tree) -> None:
    (known.root / "primary/sub-2").rename(known.root / "primary/sub-3")
    with pytest.raises(DatasetStoppedError, match="sub-2"):
        known.crawl()


def test_a_stopped_dataset_is_left_as_it_was(known: Tree) -> None:
    known.sheet("subjects", {"subject id": "sub-1", "sex": "Female"})
    known.crawl()
    before = snapshot(known)
    remove(known, "sub-2/1.dcm", "sub-2/2.dcm")
    known.sheet("subjects", {"subject id": "sub-1", "sex": "Male"})
    with pytest.raises(DatasetStoppedError):
        known.crawl()
    assert snapshot(known) == before


def test_a_stopped_dataset_stays_stopped(known: Tree) -> None:
    remove(known, "sub-2/1.dcm", "sub-2/2.dcm")
    for _ in range(2):
        with pytest.raises(DatasetStoppedError):
            known.crawl()


def test_what_vanished_can_be_accepted(known: Tree) -> None:
    remove(known, "sub-2/1.dcm", "sub-2/2.dcm")
    assert known.crawl(accept_missing=True).removed == 2
    assert known.findings("crawl") == []
    assert {row["unit"] for row in inventory(known)} == {"sub-1"}


def test_what_comes_back_needs_no_acceptance(known: Tree) -> None:
    remove(known, "sub-2/1.dcm", "sub-2/2.dcm")
    with pytest.raises(DatasetStoppedError):
        known.crawl()
    fill(known, "sub-2/1.dcm", "sub-2/2.dcm")
    assert known.crawl().removed == 0
    assert known.findings("crawl") == []


def test_an_emptied_root_is_refused_even_if_vanishing_is_accepted(known: Tree) -> None:
    before = snapshot(known)
    (known.root / "primary").rename(known.root.parent / "away")
    with pytest.raises(SourceError, match="no file that could be DICOM"):
        known.crawl(accept_missing=True)
    assert snapshot(known) == before


# -- a read error is never "gone" -------------------------------------------------------------------------------------


def test_the_files_of_an_unreadable_folder_still_count(known: Tree, unreadable: Callable[[Path], None]) -> None:
    before = snapshot(known)
    unreadable(known.root / "primary/sub-1")
    assert known.crawl().removed == 0
    assert snapshot(known) == before
    assert [(f["code"], f["path"]) for f in known.findings("crawl")] == [("folder-unreadable", "primary/sub-1")]


def test_a_folder_whose_name_begins_as_an_unreadable_one_is_gone_if_it_is_gone(
    known: Tree, unreadable: Callable[[Path], None]
) -> None:
    fill(known, "sub-1/part/1.dcm", "sub-1/part-2/1.dcm")
    known.crawl()
    unreadable(known.root / "primary/sub-1/part")
    remove(known, "sub-1/part-2/1.dcm")
    assert known.crawl().removed == 1
    assert "sub-1/part/1.dcm" in paths(known)
    assert "sub-1/part-2/1.dcm" not in paths(known)


def test_an_unreadable_root_leaves_everything_as_it_was(known: Tree, unreadable: Callable[[Path], None]) -> None:
    known.sheet("subjects", {"subject id": "sub-1", "sex": "Female"})
    known.crawl()
    before = snapshot(known)
    unreadable(known.root)
    known.crawl()
    assert snapshot(known) == before


class Unanswered:
    """A source one of whose files the file system does not answer for."""

    def __init__(self, tree: Tree, path: str) -> None:
        self._source, self._path = tree.source, f"primary/{path}"
        self.dataset, self.location = self._source.dataset, self._source.location

    def scan(self, scan: Scan) -> Iterator[Entry]:
        scan.unread_files.append(self._path)
        return (entry for entry in self._source.scan(scan) if entry.path != self._path)

    def open(self, path: str) -> BinaryIO:
        return self._source.open(path)


def test_a_file_that_the_file_system_does_not_answer_for_still_counts(known: Tree) -> None:
    before = snapshot(known)
    answer = crawl(Unanswered(known, "sub-2/1.dcm"), known.lake)  # type: ignore[arg-type]  # no kind of the settings
    assert (answer.removed, answer.files) == (0, 40)
    assert snapshot(known) == before


def test_the_inventory_has_the_columns_of_its_schema(known: Tree) -> None:
    table = known.lake.read(INVENTORY, dataset="ds")
    assert isinstance(table, pa.Table)
    assert table.schema.names == ["dataset", "unit", "subject", "sample", "role", "path", "size", "mtime"]
