"""crawl: the inventory, the sheets, and that files are not too easily considered missing. No file is DICOM here."""

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
    """The content of the lake, without findings and locks."""
    lake = Path(tree.lake.root)
    files = (path for path in sorted(lake.rglob("*")) if path.is_file())
    contents = {path.relative_to(lake).as_posix(): path.read_bytes() for path in files}
    return {name: content for name, content in contents.items() if not name.startswith(("findings/", "locks/"))}


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


class TestInventory:
    def test_a_row_describes_a_file(self, tree: Tree) -> None:
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

    def test_rows_are_sorted_by_unit_and_path(self, tree: Tree) -> None:
        fill(tree, "sub-2/1.dcm", "sub-10/1.dcm", "sub-1/b.dcm", "sub-1/a/1.dcm")
        tree.crawl()
        assert paths(tree) == ["sub-1/a/1.dcm", "sub-1/b.dcm", "sub-10/1.dcm", "sub-2/1.dcm"]

    def test_the_result_counts_files_units_new_removed_and_findings(self, tree: Tree) -> None:
        fill(tree, *(f"sub-1/{number}.dcm" for number in range(10)), "sub-2/1.dcm")
        assert tree.crawl() == CrawlResult("ds", files=11, units=2, new=11, removed=0, findings=0)
        (tree.root / "primary/sub-1/3.dcm").unlink()
        fill(tree, "sub-3/1.dcm", "sub-3/2.dcm", "sub-3/.DS_Store")
        assert tree.crawl() == CrawlResult("ds", files=12, units=3, new=2, removed=1, findings=1)

    def test_a_second_crawl_writes_the_same_bytes(self, tree: Tree) -> None:
        fill(tree, "sub-2/1.dcm", "sub-1/1.dcm")
        tree.sheet("subjects", {"subject id": "sub-1", "sex": "F"})
        tree.crawl()
        first = snapshot(tree)
        tree.crawl()
        assert snapshot(tree) == first

    def test_a_dataset_without_files_is_refused(self, tree: Tree) -> None:
        with pytest.raises(SourceError, match="dataset ds: no file that could be DICOM under file://"):
            tree.crawl()

    def test_a_name_with_other_scripts(self, tree: Tree) -> None:
        fill(tree, "sub-1/ünïcode 名.dcm")
        tree.crawl()
        assert paths(tree) == ["sub-1/ünïcode 名.dcm"]

    def test_a_file_name_that_is_not_utf_8_is_reported(self, tree: Tree) -> None:
        fill(tree, "sub-1/1.dcm")
        Path(os.fsdecode(os.fsencode(tree.root / "primary/sub-1") + b"/M\xfcller.dcm")).write_text("x")
        tree.crawl()
        assert paths(tree) == ["sub-1/1.dcm"]
        assert [(f["code"], f["path"]) for f in tree.findings("crawl")] == [
            ("name-undecodable", "primary/sub-1/M\N{REPLACEMENT CHARACTER}ller.dcm")
        ]


class TestSheets:
    def test_cells_are_stored(self, tree: Tree) -> None:
        fill(tree, "sub-1/1.dcm")
        tree.sheet("subjects", {"subject id": "sub-1", "sex": "Female"})
        tree.crawl()
        assert cells(tree) == {("subjects", "sub-1", "subject id", "sub-1"), ("subjects", "sub-1", "sex", "Female")}

    def test_a_damaged_sheet_keeps_its_previous_cells(self, tree: Tree) -> None:
        fill(tree, "sub-1/1.dcm")
        path = tree.sheet("subjects", {"subject id": "sub-1", "sex": "Female"})
        tree.sheet("samples", {"sample id": "sam-1", "subject id": "sub-1"})
        tree.crawl()
        before = cells(tree)
        path.write_bytes(b"subject id\nM\xfcller\n")
        tree.crawl()
        assert cells(tree) == before
        assert [(f["code"], f["path"]) for f in tree.findings("crawl")] == [("sheet-unreadable", "subjects.csv")]

    def test_a_sheet_that_stays_damaged_keeps_them_too(self, tree: Tree) -> None:
        fill(tree, "sub-1/1.dcm")
        path = tree.sheet("subjects", {"subject id": "sub-1", "sex": "Female"})
        tree.crawl()
        path.write_bytes(b"\xff")
        tree.crawl()
        tree.crawl()
        assert ("subjects", "sub-1", "sex", "Female") in cells(tree)

    def test_a_repaired_sheet_replaces_them(self, tree: Tree) -> None:
        fill(tree, "sub-1/1.dcm")
        path = tree.sheet("subjects", {"subject id": "sub-1", "sex": "Female"})
        tree.crawl()
        path.write_bytes(b"\xff")
        tree.crawl()
        tree.sheet("subjects", {"subject id": "sub-1", "sex": "Male"})
        tree.crawl()
        assert cells(tree) == {("subjects", "sub-1", "subject id", "sub-1"), ("subjects", "sub-1", "sex", "Male")}

    def test_a_removed_sheet_has_no_cells(self, tree: Tree) -> None:
        fill(tree, "sub-1/1.dcm")
        path = tree.sheet("subjects", {"subject id": "sub-1", "sex": "Female"})
        tree.crawl()
        path.unlink()
        tree.crawl()
        assert cells(tree) == set()

    def test_a_damaged_samples_sheet_keeps_the_subjects_of_samples(self, tree: Tree) -> None:
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


@pytest.fixture
def crawled(tree: Tree) -> Tree:
    """A crawled dataset of 40 files in two subjects."""
    fill(tree, *(f"sub-1/{number:02}.dcm" for number in range(38)), "sub-2/1.dcm", "sub-2/2.dcm")
    tree.crawl()
    return tree


def remove(tree: Tree, *names: str) -> None:
    for name in names:
        (tree.root / "primary" / name).unlink()


class TestMissingFiles:
    def test_a_tenth_of_the_files_may_be_missing(self, crawled: Tree) -> None:
        remove(crawled, *(f"sub-1/{number:02}.dcm" for number in range(4)))
        assert (crawled.crawl().removed, len(paths(crawled))) == (4, 36)

    def test_more_than_a_tenth_of_the_files_stops_the_dataset(self, crawled: Tree) -> None:
        remove(crawled, *(f"sub-1/{number:02}.dcm" for number in range(5)))
        with pytest.raises(DatasetStoppedError, match=r"^dataset ds: 5 of 40 files are missing; .* --accept-missing$"):
            crawled.crawl()
        assert [(f["code"], f["count"]) for f in crawled.findings("crawl")] == [("files-missing", 5)]

    def test_a_whole_subject_stops_the_dataset(self, crawled: Tree) -> None:
        remove(crawled, "sub-2/1.dcm", "sub-2/2.dcm")
        with pytest.raises(DatasetStoppedError, match="subject sub-2 is missing"):
            crawled.crawl()
        assert [(f["code"], f["unit"]) for f in crawled.findings("crawl")] == [("subject-missing", "sub-2")]

    def test_a_renamed_subject_is_missing(self, crawled: Tree) -> None:
        (crawled.root / "primary/sub-2").rename(crawled.root / "primary/sub-3")
        with pytest.raises(DatasetStoppedError, match="sub-2"):
            crawled.crawl()

    def test_a_stopped_dataset_is_unchanged(self, crawled: Tree) -> None:
        crawled.sheet("subjects", {"subject id": "sub-1", "sex": "Female"})
        crawled.crawl()
        before = snapshot(crawled)
        remove(crawled, "sub-2/1.dcm", "sub-2/2.dcm")
        crawled.sheet("subjects", {"subject id": "sub-1", "sex": "Male"})
        with pytest.raises(DatasetStoppedError):
            crawled.crawl()
        assert snapshot(crawled) == before

    def test_a_stopped_dataset_stays_stopped(self, crawled: Tree) -> None:
        remove(crawled, "sub-2/1.dcm", "sub-2/2.dcm")
        for _ in range(2):
            with pytest.raises(DatasetStoppedError):
                crawled.crawl()

    def test_missing_files_can_be_accepted(self, crawled: Tree) -> None:
        remove(crawled, "sub-2/1.dcm", "sub-2/2.dcm")
        assert crawled.crawl(accept_missing=True).removed == 2
        assert crawled.findings("crawl") == []
        assert {row["unit"] for row in inventory(crawled)} == {"sub-1"}

    def test_files_that_come_back_need_no_acceptance(self, crawled: Tree) -> None:
        remove(crawled, "sub-2/1.dcm", "sub-2/2.dcm")
        with pytest.raises(DatasetStoppedError):
            crawled.crawl()
        fill(crawled, "sub-2/1.dcm", "sub-2/2.dcm")
        assert crawled.crawl().removed == 0
        assert crawled.findings("crawl") == []

    def test_an_empty_root_is_refused_even_if_missing_is_accepted(self, crawled: Tree) -> None:
        before = snapshot(crawled)
        (crawled.root / "primary").rename(crawled.root.parent / "away")
        with pytest.raises(SourceError, match="no file that could be DICOM"):
            crawled.crawl(accept_missing=True)
        assert snapshot(crawled) == before


class UnreadableFile:
    """A source with one file that cannot be read now."""

    def __init__(self, tree: Tree, path: str) -> None:
        self._source, self._path = tree.source, f"primary/{path}"
        self.dataset, self.location = self._source.dataset, self._source.location

    def scan(self, scan: Scan) -> Iterator[Entry]:
        scan.unread_files.append(self._path)
        return (entry for entry in self._source.scan(scan) if entry.path != self._path)

    def open(self, path: str) -> BinaryIO:
        return self._source.open(path)


class TestReadErrors:
    def test_the_files_of_an_unreadable_folder_are_kept(
        self, crawled: Tree, unreadable: Callable[[Path], None]
    ) -> None:
        before = snapshot(crawled)
        unreadable(crawled.root / "primary/sub-1")
        assert crawled.crawl().removed == 0
        assert snapshot(crawled) == before
        assert [(f["code"], f["path"]) for f in crawled.findings("crawl")] == [("folder-unreadable", "primary/sub-1")]

    def test_a_folder_with_a_similar_name_is_missing_if_it_is_missing(
        self, crawled: Tree, unreadable: Callable[[Path], None]
    ) -> None:
        fill(crawled, "sub-1/part/1.dcm", "sub-1/part-2/1.dcm")
        crawled.crawl()
        unreadable(crawled.root / "primary/sub-1/part")
        remove(crawled, "sub-1/part-2/1.dcm")
        assert crawled.crawl().removed == 1
        assert "sub-1/part/1.dcm" in paths(crawled)
        assert "sub-1/part-2/1.dcm" not in paths(crawled)

    def test_an_unreadable_root_changes_nothing(self, crawled: Tree, unreadable: Callable[[Path], None]) -> None:
        crawled.sheet("subjects", {"subject id": "sub-1", "sex": "Female"})
        crawled.crawl()
        before = snapshot(crawled)
        unreadable(crawled.root)
        crawled.crawl()
        assert snapshot(crawled) == before

    def test_an_unreadable_file_is_kept(self, crawled: Tree) -> None:
        before = snapshot(crawled)
        result = crawl(UnreadableFile(crawled, "sub-2/1.dcm"), crawled.lake)  # type: ignore[arg-type]  # cannot be created from settings
        assert (result.removed, result.files) == (0, 40)
        assert snapshot(crawled) == before

    def test_the_inventory_has_the_columns_of_its_schema(self, crawled: Tree) -> None:
        table = crawled.lake.read(INVENTORY, dataset="ds")
        assert isinstance(table, pa.Table)
        assert table.schema.names == ["dataset", "unit", "subject", "sample", "role", "path", "size", "mtime"]
