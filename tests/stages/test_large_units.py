"""A unit of very many files is read in parts: the same bytes as in one chunk, with every engine and after failures."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pytest

from dicom_etl.engine import Engine
from dicom_etl.extraction import chunks
from dicom_etl.lake.schemas import EXTRACT_COMMITS, FILES, header_table
from dicom_etl.lake.tables import Lake
from dicom_etl.sources import Entry, Scan, Source
from dicom_etl.stages.crawl import crawl
from dicom_etl.stages.extract import ExtractResult, extract
from tests.servers.dask_cluster import DaskCluster
from tests.stages.test_extract import WatchedSource, extract_from, replace_bytes, rows, run, snapshot
from tests.support.datasets import Tree, make_lake, make_tree, touch, uid


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "PART_FILES", 4)
    monkeypatch.setattr(chunks, "CHUNK_FILES", 4)


@pytest.fixture
def tree(tmp_path: Path, small_chunks: None) -> Tree:
    """sub-1 has 14 files and is read in five parts; sub-2 and sub-3 are read in one chunk."""
    tree = make_tree(tmp_path)
    for name in ("a/1", "a/2", "a/3", "b/1", "b/2", "c/1", "c/2", "c/3", "c/4", "c/5", "c/6", "c/7", "d/1"):
        tree.write(f"sub-1/{name}.dcm", InstanceNumber=int(name[-1]), PatientWeight=70 if name == "d/1" else None)
    (tree.root / "primary/sub-1/d/notes.txt").write_text("notes")
    for subject in ("sub-2", "sub-3"):
        tree.write(f"{subject}/1.dcm", PatientID=subject)
    return tree


def in_one_chunk(tree: Tree, tmp_path: Path) -> dict[str, bytes]:
    """The tables of a new lake in which no unit of the tree is split."""
    lake = make_lake(tmp_path / "whole")
    crawl(tree.source, lake)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(chunks, "PART_FILES", 5000)
        patched.setattr(chunks, "CHUNK_FILES", 5000)
        extract(tree.source, lake, Engine())
    return snapshot(lake)


def hidden_files(lake: Lake) -> list[str]:
    """The hidden files of the lake: results of chunks, or leftovers."""
    paths = (path.relative_to(lake.root) for path in Path(lake.root).rglob("*") if path.is_file())
    return [str(path) for path in paths if any(part.startswith(".") for part in path.parts)]


def sizes(*paths: str) -> list[int]:
    entries = pa.table({"path": list(paths)})
    return [part.num_rows for part in chunks.split_unit(entries)]


class TestParts:
    def test_a_unit_is_split_where_a_folder_ends(self, small_chunks: None) -> None:
        assert sizes("a/1", "a/2", "a/3", "b/1", "b/2", "b/3", "c/1") == [3, 4]
        assert sizes("a/1", "a/2", "a/3", "a/4", "b/1") == [4, 1]

    def test_a_large_folder_is_split_within(self, small_chunks: None) -> None:
        assert sizes(*(f"a/{number}" for number in range(9))) == [4, 4, 1]

    def test_a_part_is_not_made_small_to_end_with_a_folder(self, small_chunks: None) -> None:
        assert sizes("a/1", "a/2", "b/1", "b/2", "b/3", "b/4", "b/5") == [4, 3]

    def test_a_small_unit_is_not_split(self, small_chunks: None) -> None:
        assert sizes("a/1", "b/1", "c/1", "d/1") == [4]


class TestSameBytes:
    def test_a_unit_in_parts_has_the_same_bytes_as_in_one_chunk(self, tree: Tree, tmp_path: Path) -> None:
        run(tree)
        assert len(rows(tree)) == 13
        assert snapshot(tree.lake) == in_one_chunk(tree, tmp_path)
        assert hidden_files(tree.lake) == []

    def test_duplicates_in_different_parts_are_flagged(self, tree: Tree, tmp_path: Path) -> None:
        tree.write("sub-1/e/1.dcm", instance="ds/sub-1/a/1.dcm")
        tree.write("sub-2/2.dcm", instance="ds/sub-1/a/2.dcm")
        run(tree)
        assert rows(tree)["sub-1/e/1.dcm"]["duplicate"] == "conflict"
        assert snapshot(tree.lake) == in_one_chunk(tree, tmp_path)

    def test_value_findings_are_counted_over_all_parts(self, tree: Tree, tmp_path: Path) -> None:
        for number in range(1, 8):  # seven values in a series that is in two parts
            day = 30 if number == 7 else 29 + number
            replace_bytes(tree.root / f"primary/sub-1/c/{number}.dcm", b"20240105", b"202402%d" % day)
        run(tree)
        findings = [f for f in tree.findings("extract", "sub-1") if f["code"] == "value-invalid"]
        assert {f["series_uid"] for f in findings} == {uid("ds/sub-1/c")}
        assert {f["value"]: f["count"] for f in findings} == {
            "20240230": 2,
            "20240231": 1,
            "20240232": 1,
            "20240233": 1,
            "20240234": 1,
            "(1 further values)": 1,
        }
        assert snapshot(tree.lake) == in_one_chunk(tree, tmp_path)

    def test_findings_of_files_are_counted_over_all_parts(self, tree: Tree, tmp_path: Path) -> None:
        for folder in "abcd":
            (tree.root / f"primary/sub-1/{folder}/0.txt").write_text("notes")
        (tree.root / "primary/sub-1/b/cut.dcm").write_bytes((tree.root / "primary/sub-1/b/1.dcm").read_bytes()[:-3])
        run(tree)
        counts = {(f["code"], f["value"], f["path"]): f["count"] for f in tree.findings("extract", "sub-1")}
        assert counts == {
            ("non-dicom-file", ".txt", None): 5,
            ("pixel-data-absent", None, None): 13,
            ("header-truncated", None, "primary/sub-1/b/cut.dcm"): 1,
        }
        assert snapshot(tree.lake) == in_one_chunk(tree, tmp_path)

    @pytest.mark.parametrize("kind", ["processes", "dask"])
    def test_all_engines_write_the_same_bytes(
        self, tree: Tree, tmp_path: Path, kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("dicom_etl.extraction.reading.FEW_FILES", 0)
        monkeypatch.setattr("dicom_etl.extraction.shards.FEW_ROWS", 0)
        for number in range(9):  # a second large unit, so that workers join
            tree.write(f"sub-4/{number}.dcm", PatientID="sub-4", InstanceNumber=number)
        scheduler = request.getfixturevalue("dask_cluster").address if kind == "dask" else None
        run(tree)
        other = make_lake(tmp_path / "other")
        crawl(tree.source, other)
        extract(tree.source, other, Engine(kind, 2, scheduler))
        assert snapshot(other) == snapshot(tree.lake) == in_one_chunk(tree, tmp_path)
        assert hidden_files(other) == []

    def test_large_units_are_stored_in_an_object_store(self, tree: Tree) -> None:
        run(tree)
        remote = Lake("memory://test-large-units/lake", notify=lambda _: None).open()
        crawl(tree.source, remote)
        extract(tree.source, remote, Engine())
        for table in (header_table(), FILES, EXTRACT_COMMITS):
            path = table.path(dataset="ds", shard=0)
            assert remote.read_bytes(path) == tree.lake.read_bytes(path)
        assert remote.list_names(".chunks/extract/ds") == []


class TestChangedFiles:
    def test_only_a_changed_file_of_a_large_unit_is_opened(self, tree: Tree, tmp_path: Path) -> None:
        run(tree)
        touch(tree.write("sub-1/c/6.dcm", StudyDescription="changed"))
        assert run(tree)[1] == ["sub-1/c/6.dcm"]
        assert rows(tree)["sub-1/c/6.dcm"]["StudyDescription"] == "changed"
        assert snapshot(tree.lake) == in_one_chunk(tree, tmp_path)

    def test_only_new_files_are_opened_when_the_parts_move(self, tree: Tree, tmp_path: Path) -> None:
        run(tree)
        (tree.root / "primary/sub-1/a/2.dcm").unlink()
        tree.write("sub-1/a/0.dcm")
        tree.write("sub-1/bb/1.dcm")
        tree.write("sub-1/z/1.dcm")
        assert run(tree)[1] == ["sub-1/a/0.dcm", "sub-1/bb/1.dcm", "sub-1/z/1.dcm"]
        assert snapshot(tree.lake) == in_one_chunk(tree, tmp_path)

    def test_a_unit_that_grows_large_and_small_again_keeps_its_rows(self, tree: Tree, tmp_path: Path) -> None:
        run(tree)
        added = [tree.write(f"sub-2/{number}.dcm", PatientID="sub-2") for number in range(2, 9)]
        assert len(run(tree)[1]) == 7
        assert snapshot(tree.lake) == in_one_chunk(tree, tmp_path)
        for path in added:
            path.unlink()
        assert run(tree, accept_missing=True)[1] == []
        shutil.rmtree(tmp_path / "whole")
        assert snapshot(tree.lake) == in_one_chunk(tree, tmp_path)

    def test_a_series_with_value_findings_is_read_again_in_all_parts(self, tree: Tree, tmp_path: Path) -> None:
        replace_bytes(tree.root / "primary/sub-1/c/1.dcm", b"20240105", b"20240230")
        run(tree)
        touch(tree.root / "primary/sub-1/d/1.dcm")
        assert run(tree)[1] == [*(f"sub-1/c/{number}.dcm" for number in range(1, 8)), "sub-1/d/1.dcm"]
        assert snapshot(tree.lake) == in_one_chunk(tree, tmp_path)

    def test_an_unchanged_large_unit_stays_as_it_is(self, tree: Tree) -> None:
        run(tree)
        before = snapshot(tree.lake)
        answer, opened = run(tree)
        assert (answer.units_processed, opened) == (0, [])
        assert snapshot(tree.lake) == before

    def test_progress_is_reported_for_each_chunk_and_for_the_shard(self, tree: Tree) -> None:
        reports: list[tuple[str, int, int]] = []
        run(tree, progress=lambda *report: reports.append(report))
        assert reports == [
            ("extract ds", 3, 16),  # a
            ("extract ds", 7, 16),  # b, and the first two of c
            ("extract ds", 11, 16),
            ("extract ds", 14, 16),
            ("extract ds", 16, 16),  # sub-2 and sub-3
            ("write ds", 15, 15),
        ]


@dataclass(frozen=True)
class Deadly:
    """A source whose file `deadly` kills its reader: once if a marker is given, else always."""

    source: Source
    deadly: str
    marker: str | None = None

    @property
    def dataset(self) -> str:
        return self.source.dataset

    @property
    def location(self) -> str:
        return self.source.location

    def scan(self, scan: Scan) -> Iterator[Entry]:
        return self.source.scan(scan)

    def open(self, path: str) -> BinaryIO:
        if path.endswith(self.deadly) and not (self.marker and Path(self.marker).exists()):
            if self.marker:
                Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.source.open(path)


@pytest.fixture(params=["processes", "dask"])
def spread(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The engines whose workers can die."""
    monkeypatch.setattr("dicom_etl.extraction.reading.FEW_FILES", 0)
    cluster: DaskCluster | None = request.getfixturevalue("dask_cluster") if request.param == "dask" else None
    return Engine(request.param, 2, cluster.address if cluster else None)


def deadly(tree: Tree, engine: Engine, *named: Any) -> ExtractResult:
    tree.crawl()
    return extract(Deadly(tree.source, *named), tree.lake, engine)  # type: ignore[arg-type]  # not a kind of source in the settings


class TestFailures:
    def test_a_failed_part_fails_only_its_unit_which_keeps_its_rows(self, tree: Tree, tmp_path: Path) -> None:
        run(tree)
        before = rows(tree)
        for name in ("sub-1/a/1", "sub-1/c/6", "sub-2/1"):
            touch(tree.root / f"primary/{name}.dcm")
        tree.crawl()

        def fail() -> None:
            raise RuntimeError("an unexpected error")

        answer = extract_from(tree, WatchedSource(tree.source, before={"sub-1/c/6.dcm": fail}))
        assert (answer.units_processed, answer.units_failed) == (1, 1)
        assert rows(tree) == before
        assert [(f["code"], f["unit"], f["message"]) for f in tree.findings("extract")] == [
            ("unit-failed", "sub-1", "RuntimeError: an unexpected error")
        ]
        assert hidden_files(tree.lake) == []
        assert run(tree)[0].units_failed == 0
        assert snapshot(tree.lake) == in_one_chunk(tree, tmp_path)

    def test_only_a_file_that_could_not_be_opened_is_retried(self, tree: Tree, tmp_path: Path) -> None:
        tree.crawl()
        denied = PermissionError(13, "Permission denied")
        extract_from(tree, WatchedSource(tree.source, failing={"sub-1/c/6.dcm": denied}))
        assert len(rows(tree)) == 12
        assert run(tree)[1] == ["sub-1/c/6.dcm"]
        assert snapshot(tree.lake) == in_one_chunk(tree, tmp_path)

    def test_incomplete_chunks_of_a_killed_run_are_removed(self, tree: Tree, tmp_path: Path) -> None:
        left = Path(tree.lake.root, ".chunks/extract/ds/0123456789ab.headers")
        left.parent.mkdir(parents=True)
        left.write_bytes(b"half a par")
        run(tree)
        assert hidden_files(tree.lake) == []
        assert snapshot(tree.lake) == in_one_chunk(tree, tmp_path)

    def test_a_killed_worker_is_replaced(self, tree: Tree, tmp_path: Path, spread: Engine) -> None:
        answer = deadly(tree, spread, "sub-1/c/3.dcm", str(tmp_path / "killed"))
        assert (tmp_path / "killed").exists()
        assert (answer.units_processed, answer.units_failed) == (3, 0)
        assert snapshot(tree.lake) == in_one_chunk(tree, tmp_path)

    def test_a_part_that_always_kills_its_worker_fails_only_its_unit(self, tree: Tree, spread: Engine) -> None:
        answer = deadly(tree, spread, "sub-1/c/3.dcm")
        assert (answer.units_processed, answer.units_failed) == (2, 1)
        assert [(f["code"], f["unit"], f["message"]) for f in tree.findings("extract")] == [
            ("unit-failed", "sub-1", "WorkerDiedError: its worker died (killed, out of memory, or crashed)")
        ]
        assert list(rows(tree, "sub-2")) == ["sub-2/1.dcm"]
        assert hidden_files(tree.lake) == []
