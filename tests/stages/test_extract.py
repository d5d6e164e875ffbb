"""extract: header rows, tag profiles and file rows of each unit, always those that the inventory asks for."""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from dicom_etl.engine import Engine
from dicom_etl.headers.tag_profile import EMPTY, FILLED
from dicom_etl.lake.commits import read_commits
from dicom_etl.lake.schemas import FILES, TAG_PROFILES, Table, header_table
from dicom_etl.lake.shard_reader import read_unit
from dicom_etl.lake.shard_writer import ShardWriter
from dicom_etl.lake.tables import Lake
from dicom_etl.sources import Entry, Scan, Source, SourceError
from dicom_etl.stages.crawl import crawl
from dicom_etl.stages.extract import ExtractResult, extract
from tests.support.datasets import WRITTEN, Tree, make_lake, make_tree, rows_by, touch, uid, write_instance


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return make_tree(tmp_path)


@dataclass
class WatchedSource:
    """A source that records which files are opened, and can fail, or call a function before it opens one."""

    source: Source
    opened: list[str] = field(default_factory=list)
    failing: dict[str, OSError] = field(default_factory=dict)
    before: dict[str, Callable[[], object]] = field(default_factory=dict)

    @property
    def dataset(self) -> str:
        return self.source.dataset

    @property
    def location(self) -> str:
        return self.source.location

    def scan(self, scan: Scan) -> Iterator[Entry]:
        return self.source.scan(scan)

    def open(self, path: str) -> BinaryIO:
        name = path.removeprefix("primary/")
        self.opened.append(name)
        if name in self.before:
            self.before[name]()
        if name in self.failing:
            raise self.failing[name]
        return self.source.open(path)


def run(tree: Tree, *, accept_missing: bool = False, **options: Any) -> tuple[ExtractResult, list[str]]:
    """Crawl and extract; the counts, and the files that were opened."""
    tree.crawl(accept_missing=accept_missing)
    source = WatchedSource(tree.source)
    return extract_from(tree, source, **options), sorted(source.opened)


def extract_from(tree: Tree, source: WatchedSource, **options: Any) -> ExtractResult:
    """Extract from a source without crawling it again."""
    return extract(source, tree.lake, Engine(), **options)  # type: ignore[arg-type]  # not a kind of source in the settings


def table(tree: Tree, kind: Table, unit: str) -> list[dict[str, Any]]:
    if kind is not TAG_PROFILES:
        return read_unit(tree.lake, kind, dataset=tree.name, unit=unit).to_pylist()
    used = {row["tag_profile"] for row in table(tree, header_table(), unit)}
    return [row for row in whole(tree, TAG_PROFILES) if row["tag_profile"] in used]


def whole(tree: Tree, kind: Table) -> list[dict[str, Any]]:
    """The rows of a table of all shards."""
    shards = read_commits(tree.lake, "extract", tree.name)
    return [row for shard in shards for row in tree.lake.read(kind, dataset=tree.name, shard=shard).to_pylist()]


def rows(tree: Tree, unit: str = "sub-1") -> dict[str, dict[str, Any]]:
    """The header rows of a unit by path below primary/."""
    by_path = rows_by(read_unit(tree.lake, header_table(), dataset=tree.name, unit=unit), "path")
    return {path.removeprefix("primary/"): row for path, row in by_path.items()}


def files(tree: Tree, unit: str = "sub-1") -> dict[str, tuple[str, str | None]]:
    """Kind and reason of each file of a unit."""
    return {row["path"].removeprefix("primary/"): (row["kind"], row["reason"]) for row in table(tree, FILES, unit)}


def codes(tree: Tree, unit: str | None = "sub-1") -> list[str]:
    """The codes of the findings, except that of images without pixel data: none of these files has any."""
    return [code for code in tree.codes("extract", unit) if code != "pixel-data-absent"]


def snapshot(lake: Lake, *folders: str) -> dict[str, bytes]:
    """The files of the lake below some folders."""
    root = Path(lake.root)
    folders = folders or ("headers", "tag_profiles", "files", "findings/extract", "commits/extract")
    paths = (path for folder in folders for path in sorted((root / folder).rglob("*")) if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def from_scratch(tree: Tree, tmp_path: Path) -> dict[str, bytes]:
    """The tables that an empty lake would get from the tree as it is."""
    lake = make_lake(tmp_path / "fresh")
    crawl(tree.source, lake)
    extract(tree.source, lake, Engine())
    return snapshot(lake)


def replace_bytes(path: Path, old: bytes, new: bytes) -> Path:
    """Replace bytes of a file by the same number of others."""
    content = path.read_bytes()
    assert content.count(old) == 1
    assert len(old) == len(new)
    path.write_bytes(content.replace(old, new))
    os.utime(path, (WRITTEN, WRITTEN))
    return path


class TestRows:
    def test_a_header_row_has_location_and_values(self, tree: Tree) -> None:
        tree.write("sub-1/sam-2/1.dcm", PatientName="Müller^Grete", SpecificCharacterSet="ISO_IR 100", SeriesNumber=0)
        run(tree)
        row = rows(tree)["sub-1/sam-2/1.dcm"]
        place = [row[name] for name in ("dataset", "unit", "subject", "sample", "role", "duplicate")]
        assert place == ["ds", "sub-1", "sub-1", "sam-2", "primary", None]
        assert (row["PatientName"], row["SeriesNumber"], row["ImageType"]) == ("Müller^Grete", 0, "ORIGINAL\\PRIMARY")
        assert row["StudyDate"] == datetime.date(2024, 1, 5)
        assert row["StudyInstanceUID"] == uid("ds/sub-1")
        assert row["AccessionNumber"] is None

    def test_a_file_row_has_size_time_and_kind(self, tree: Tree) -> None:
        path = tree.write("sub-1/1.dcm")
        run(tree)
        (row,) = table(tree, FILES, "sub-1")
        assert (row["path"], row["kind"], row["size"], row["sha256"]) == (
            "primary/sub-1/1.dcm",
            "dicom",
            path.stat().st_size,
            None,
        )
        assert row["mtime"] == datetime.datetime.fromtimestamp(WRITTEN, datetime.UTC)

    def test_a_tag_profile_is_stored_once_for_its_rows(self, tree: Tree) -> None:
        tree.write("sub-1/1.dcm", PatientID="")
        tree.write("sub-1/2.dcm", PatientID="")
        run(tree)
        by_path = rows(tree)
        tag_profile = by_path["sub-1/1.dcm"]["tag_profile"]
        assert by_path["sub-1/2.dcm"]["tag_profile"] == tag_profile
        listed = [
            (row["tag"], row["status"])
            for row in table(tree, TAG_PROFILES, "sub-1")
            if row["tag_profile"] == tag_profile
        ]
        assert len(dict(listed)) == len(listed) == len(table(tree, TAG_PROFILES, "sub-1"))
        assert (dict(listed)["00100020"], dict(listed)["00100010"]) == (EMPTY, FILLED)

    def test_each_unit_has_its_own_rows(self, tree: Tree) -> None:
        tree.write("sub-1/1.dcm")
        tree.write("sub-2/1.dcm")
        answer, _ = run(tree)
        assert (answer.units, answer.units_processed, answer.units_failed, answer.rows) == (2, 2, 0, 2)
        assert (list(rows(tree, "sub-1")), list(rows(tree, "sub-2"))) == (["sub-1/1.dcm"], ["sub-2/1.dcm"])

    def test_rows_are_sorted_by_path(self, tree: Tree) -> None:
        for name in ("b", "a", "10", "9"):
            tree.write(f"sub-1/{name}.dcm")
        run(tree)
        assert list(rows(tree)) == ["sub-1/10.dcm", "sub-1/9.dcm", "sub-1/a.dcm", "sub-1/b.dcm"]

    def test_files_without_a_row_have_a_kind_and_a_reason(self, tree: Tree) -> None:
        tree.write("sub-1/1.dcm")
        content = (tree.root / "primary/sub-1/1.dcm").read_bytes()
        for name, damaged in {
            "empty.dcm": b"",
            "text.dcm": b"notes",
            "notes.txt": b"notes",
            "cut.dcm": content[:-3],
        }.items():
            (tree.root / "primary/sub-1" / name).write_bytes(damaged)
        run(tree)
        assert files(tree) == {
            "sub-1/1.dcm": ("dicom", "pixel-data-absent"),
            "sub-1/cut.dcm": ("unreadable", "header-truncated"),
            "sub-1/empty.dcm": ("unreadable", "file-empty"),
            "sub-1/notes.txt": ("other", "non-dicom-file"),
            "sub-1/text.dcm": ("other", "file-not-dicom"),
        }
        assert list(rows(tree)) == ["sub-1/1.dcm"]
        assert sorted(codes(tree)) == ["file-empty", "file-not-dicom", "header-truncated", "non-dicom-file"]

    def test_a_file_without_study_has_a_row_and_a_finding(self, tree: Tree) -> None:
        write_instance(tree.root / "primary/sub-1/1.dcm", StudyInstanceUID="")
        run(tree)
        assert rows(tree)["sub-1/1.dcm"]["StudyInstanceUID"] is None
        assert codes(tree) == ["uid-missing"]

    def test_images_without_pixel_data_are_counted_in_one_finding(self, tree: Tree) -> None:
        for number in range(3):
            tree.write(f"sub-1/{number}.dcm")
        run(tree)
        assert [(f["code"], f["count"], f["path"]) for f in tree.findings("extract", "sub-1")] == [
            ("pixel-data-absent", 3, None)
        ]

    def test_other_files_are_counted_by_suffix(self, tree: Tree) -> None:
        tree.write("sub-1/1.dcm")
        for name in ("a.txt", "b.TXT", "c.nii.gz", "notes"):
            (tree.root / "primary/sub-1" / name).write_text("no header at all")
        run(tree)
        findings = [f for f in tree.findings("extract", "sub-1") if f["code"] == "non-dicom-file"]
        assert {f["value"]: f["count"] for f in findings} == {".txt": 2, ".gz": 1, "(no suffix)": 1}

    def test_an_unusable_value_is_one_finding_for_each_series(self, tree: Tree) -> None:
        for number in range(3):
            replace_bytes(tree.write(f"sub-1/a/{number}.dcm", StudyTime="101500"), b"20240105", b"20240230")
        run(tree)
        (finding,) = [f for f in tree.findings("extract", "sub-1") if f["code"] == "value-invalid"]
        assert (finding["tag"], finding["value"], finding["count"]) == ("00080020", "20240230", 3)
        assert finding["series_uid"] == uid("ds/sub-1/a")
        assert [row["StudyDate"] for row in rows(tree).values()] == [None] * 3

    def test_the_most_frequent_of_many_unusable_values_are_shown(self, tree: Tree) -> None:
        for number in range(8):
            replace_bytes(tree.write(f"sub-1/a/{number}.dcm"), b"20240105", b"202402%d" % (30 + number))
        replace_bytes(tree.write("sub-1/a/8.dcm"), b"20240105", b"20240237")
        run(tree)
        values = [(f["value"], f["count"]) for f in tree.findings("extract", "sub-1") if f["code"] == "value-invalid"]
        assert sorted(values) == [
            ("(3 further values)", 3),
            ("20240230", 1),
            ("20240231", 1),
            ("20240232", 1),
            ("20240233", 1),
            ("20240237", 2),
        ]

    def test_an_identifying_value_is_masked_in_a_finding(self, tree: Tree) -> None:
        replace_bytes(tree.write("sub-1/1.dcm"), b"19660312", b"19660399")
        run(tree)
        (finding,) = [f for f in tree.findings("extract", "sub-1") if f["code"] == "value-invalid"]
        assert (finding["tag"], finding["value"]) == ("00100030", "(masked)")
        assert b"19660399" not in b"".join(snapshot(tree.lake, "findings").values())

    def test_without_an_inventory_there_is_nothing_to_extract(self, tree: Tree) -> None:
        with pytest.raises(SourceError, match="dataset ds: there is no inventory; crawl it first"):
            tree.extract()

    def test_a_dataset_without_dicom_files_is_refused(self, tree: Tree) -> None:
        (tree.root / "primary/sub-1").mkdir(parents=True)
        (tree.root / "primary/sub-1/notes.dcm").write_text("notes")
        tree.crawl()
        with pytest.raises(SourceError, match=r"none of the 1 files under file://.* is a DICOM file"):
            tree.extract()


@pytest.fixture
def extracted(tree: Tree) -> Tree:
    """Two subjects of three and one files, extracted."""
    for name in ("a/1", "a/2", "b/1"):
        tree.write(f"sub-1/{name}.dcm")
    tree.write("sub-2/1.dcm")
    run(tree)
    return tree


class TestChangedFiles:
    def test_every_file_is_opened_once(self, tree: Tree) -> None:
        names = ["sub-1/a/1.dcm", "sub-1/b/1.dcm", "sub-2/1.dcm"]
        for name in names:
            tree.write(name)
        answer, opened = run(tree)
        assert (opened, answer.files_opened) == (names, 3)

    def test_no_file_is_opened_if_nothing_changed(self, extracted: Tree) -> None:
        before = snapshot(extracted.lake)
        answer, opened = run(extracted)
        assert (opened, answer.units_processed, answer.files_opened, answer.rows) == ([], 0, 0, 4)
        assert snapshot(extracted.lake) == before

    def test_only_a_changed_file_is_opened(self, extracted: Tree, tmp_path: Path) -> None:
        touch(extracted.write("sub-1/a/2.dcm", StudyDescription="changed"))
        answer, opened = run(extracted)
        assert (opened, answer.units_processed) == (["sub-1/a/2.dcm"], 1)
        assert rows(extracted)["sub-1/a/2.dcm"]["StudyDescription"] == "changed"
        assert snapshot(extracted.lake) == from_scratch(extracted, tmp_path)

    def test_a_file_of_another_size_with_the_same_time_is_opened(self, extracted: Tree) -> None:
        extracted.write("sub-1/a/2.dcm", StudyDescription="longer than before")
        assert run(extracted)[1] == ["sub-1/a/2.dcm"]

    def test_only_a_new_file_is_opened(self, extracted: Tree, tmp_path: Path) -> None:
        extracted.write("sub-2/2.dcm", PatientID="")
        assert run(extracted)[1] == ["sub-2/2.dcm"]
        assert snapshot(extracted.lake) == from_scratch(extracted, tmp_path)

    def test_a_removed_file_loses_its_row_and_its_tag_profile(self, tree: Tree, tmp_path: Path) -> None:
        for number in range(20):
            tree.write(f"sub-1/{number}.dcm")
        odd = tree.write("sub-1/odd.dcm", PatientWeight=70)
        run(tree)
        odd.unlink()
        assert run(tree)[1] == []
        assert "sub-1/odd.dcm" not in rows(tree)
        assert {row["tag"] for row in table(tree, TAG_PROFILES, "sub-1")}.isdisjoint({"00101030"})
        assert snapshot(tree.lake) == from_scratch(tree, tmp_path)

    def test_a_series_with_value_findings_is_read_again_as_a_whole(self, tree: Tree, tmp_path: Path) -> None:
        replace_bytes(tree.write("sub-1/a/1.dcm"), b"20240105", b"20240230")
        for name in ("a/2", "a/3", "b/1"):
            tree.write(f"sub-1/{name}.dcm")
        run(tree)
        touch(tree.root / "primary/sub-1/a/3.dcm")
        assert run(tree)[1] == ["sub-1/a/1.dcm", "sub-1/a/2.dcm", "sub-1/a/3.dcm"]
        assert codes(tree) == ["value-invalid"]
        assert snapshot(tree.lake) == from_scratch(tree, tmp_path)

    def test_a_changed_file_of_another_series_leaves_the_value_findings(self, tree: Tree, tmp_path: Path) -> None:
        replace_bytes(tree.write("sub-1/a/1.dcm"), b"20240105", b"20240230")
        tree.write("sub-1/b/1.dcm")
        run(tree)
        touch(tree.root / "primary/sub-1/b/1.dcm")
        run(tree)
        assert codes(tree) == ["value-invalid"]
        assert snapshot(tree.lake) == from_scratch(tree, tmp_path)

    def test_the_value_findings_of_a_file_without_series_are_kept(self, tree: Tree, tmp_path: Path) -> None:
        odd = write_instance(tree.root / "primary/sub-1/odd.dcm", SeriesInstanceUID="")
        replace_bytes(odd, b"20240105", b"20240230")
        tree.write("sub-1/b/1.dcm")
        run(tree)
        touch(tree.root / "primary/sub-1/b/1.dcm")
        run(tree)
        assert sorted(codes(tree)) == ["uid-missing", "value-invalid"]
        assert snapshot(tree.lake) == from_scratch(tree, tmp_path)

    def test_a_fixed_value_loses_its_finding(self, tree: Tree) -> None:
        path = replace_bytes(tree.write("sub-1/a/1.dcm"), b"20240105", b"20240230")
        run(tree)
        touch(replace_bytes(path, b"20240230", b"20240105"))
        run(tree)
        assert codes(tree) == []

    def test_a_removed_subject_has_no_rows(self, extracted: Tree, tmp_path: Path) -> None:
        shutil.rmtree(extracted.root / "primary/sub-2")
        answer, opened = run(extracted, accept_missing=True)
        assert (answer.units, opened) == (1, [])
        assert [name for name in snapshot(extracted.lake) if "sub-2" in name] == []
        assert snapshot(extracted.lake) == from_scratch(extracted, tmp_path)

    def test_a_renamed_subject_is_read_under_its_new_name(self, extracted: Tree, tmp_path: Path) -> None:
        (extracted.root / "primary/sub-2").rename(extracted.root / "primary/sub-9")
        assert run(extracted, accept_missing=True)[1] == ["sub-9/1.dcm"]
        assert rows(extracted, "sub-9")["sub-9/1.dcm"]["subject"] == "sub-9"
        assert rows(extracted, "sub-2") == {}
        assert snapshot(extracted.lake) == from_scratch(extracted, tmp_path)

    def test_a_file_that_moves_to_another_subject_has_one_row_there(self, extracted: Tree, tmp_path: Path) -> None:
        (extracted.root / "primary/sub-1/b/1.dcm").rename(extracted.root / "primary/sub-2/moved.dcm")
        assert run(extracted, accept_missing=True)[1] == ["sub-2/moved.dcm"]
        assert sorted([*rows(extracted), *rows(extracted, "sub-2")]) == [
            "sub-1/a/1.dcm",
            "sub-1/a/2.dcm",
            "sub-2/1.dcm",
            "sub-2/moved.dcm",
        ]
        assert snapshot(extracted.lake) == from_scratch(extracted, tmp_path)

    def test_force_reads_every_file_and_writes_the_same_bytes(self, extracted: Tree) -> None:
        before = snapshot(extracted.lake)
        answer, opened = run(extracted, force=True)
        assert (len(opened), answer.units_processed) == (4, 2)
        assert snapshot(extracted.lake) == before

    def test_only_files_of_selected_subjects_are_opened(self, extracted: Tree) -> None:
        touch(extracted.root / "primary/sub-1/a/1.dcm")
        touch(extracted.root / "primary/sub-2/1.dcm")
        assert run(extracted, subjects=["sub-2"])[1] == ["sub-2/1.dcm"]
        assert run(extracted)[1] == ["sub-1/a/1.dcm"]

    def test_rows_of_another_reader_are_not_reused(self, extracted: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dicom_etl.extraction.chunk_reader.READER_VERSION", -1)
        assert len(run(extracted)[1]) == 4

    def test_progress_is_reported_in_files(self, tree: Tree) -> None:
        tree.write("sub-1/1.dcm")
        tree.write("sub-1/2.dcm")
        tree.write("sub-2/1.dcm")
        reports: list[tuple[str, int, int]] = []
        run(tree, progress=lambda *report: reports.append(report))
        assert reports == [("extract ds", 3, 3), ("write ds", 3, 3)]


class TestCommit:
    def test_the_commit_of_a_shard_is_written_last(self, tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
        order: list[str] = []
        replace = Path.replace

        def noting(path: Path, target: Path) -> Path:
            order.append(path.name if path.name.endswith(".pending") else target.parent.parent.name)
            return replace(path, target)

        tree.write("sub-1/1.dcm")
        tree.crawl()
        monkeypatch.setattr(Path, "replace", noting)
        tree.extract()
        shard = order.index(".0000.parquet.pending")
        assert sorted(order[shard - 4 : shard]) == ["extract", "files", "headers", "tag_profiles"]

    @pytest.mark.parametrize("writes", [1, 2, 3, 4])
    def test_a_run_killed_while_it_writes_a_shard_leaves_it_as_it_was(
        self, extracted: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
    ) -> None:
        before = snapshot(extracted.lake)
        write = ShardWriter.write_table
        written: list[str] = []

        def dying(writer: ShardWriter, kind: Table, *args: Any) -> None:
            write(writer, kind, *args)
            written.append(kind.name)
            if len(written) == writes:
                raise KeyboardInterrupt

        touch(extracted.write("sub-1/a/2.dcm", StudyDescription="changed"))
        extracted.crawl()
        with monkeypatch.context() as patched:
            patched.setattr(ShardWriter, "write_table", dying)
            with pytest.raises(KeyboardInterrupt):
                extracted.extract()
        shown = {name: content for name, content in snapshot(extracted.lake).items() if "/." not in name}
        assert shown == before
        assert run(extracted)[1] == []  # the result of the killed run is used
        assert snapshot(extracted.lake) == from_scratch(extracted, tmp_path)

    @pytest.mark.parametrize("renames", range(6))
    def test_a_run_killed_between_renames_is_completed_by_the_next(
        self, extracted: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int
    ) -> None:
        replace = Path.replace
        done: list[Path] = []

        def dying(path: Path, target: Path) -> Path:
            if path.name.endswith((".new", "0000.parquet.pending")):
                if len(done) == renames:
                    raise KeyboardInterrupt
                done.append(path)
            return replace(path, target)

        touch(extracted.write("sub-1/a/2.dcm", StudyDescription="changed"))
        extracted.crawl()
        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", dying)
            if renames < 5:
                with pytest.raises(KeyboardInterrupt):
                    extracted.extract()
            else:
                extracted.extract()
        assert run(extracted)[1] == []
        assert snapshot(extracted.lake) == from_scratch(extracted, tmp_path)

    @pytest.mark.parametrize("name", ["headers", "tag_profiles", "files", "findings/extract", "commits/extract"])
    def test_a_lost_table_is_rebuilt(self, extracted: Tree, name: str) -> None:
        before = snapshot(extracted.lake)
        (Path(extracted.lake.root) / name / "ds/0000.parquet").unlink()
        run(extracted)
        assert snapshot(extracted.lake) == before

    @pytest.mark.parametrize("name", ["headers", "files", "commits/extract"])
    def test_a_truncated_table_is_rebuilt(self, extracted: Tree, name: str) -> None:
        before = snapshot(extracted.lake)
        path = Path(extracted.lake.root) / name / "ds/0000.parquet"
        path.write_bytes(path.read_bytes()[:-100])
        run(extracted)
        assert snapshot(extracted.lake) == before

    @pytest.mark.parametrize("damage", ["truncate", "flip"])
    def test_units_of_a_damaged_shard_are_read_again(
        self, tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
    ) -> None:
        monkeypatch.setattr("dicom_etl.lake.shards.SHARD_ROWS", 2)
        for number in range(1, 9):
            tree.write(f"sub-{number}/1.dcm")
        run(tree)
        before = snapshot(tree.lake)
        path = sorted((Path(tree.lake.root) / "headers/ds").iterdir())[0]
        content = bytearray(path.read_bytes())
        content = content[:-50] if damage == "truncate" else content.replace(b"ACME", b"ACMF")
        path.write_bytes(content)
        run(tree, force=damage == "flip")
        assert snapshot(tree.lake) == before


def busy(tmp_path: Path) -> Tree:
    """A dataset with duplicates, unusable values, another file, and several samples."""
    tree = make_tree(tmp_path)
    for subject in ("sub-1", "sub-2", "sub-3"):
        for number in range(3):
            tree.write(f"{subject}/sam-1/{number}.dcm", InstanceNumber=number, PatientID=subject)
        replace_bytes(tree.write(f"{subject}/sam-2/bad.dcm"), b"20240105", b"20240230")
    tree.write("sub-3/copy.dcm", instance="ds/sub-1/sam-1/0.dcm")
    (tree.root / "primary/sub-2/notes.txt").write_text("notes")
    return tree


class TestSameBytes:
    def test_two_engines_write_the_same_bytes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dicom_etl.extraction.reading.FEW_FILES", 0)
        tree = busy(tmp_path)
        tree.crawl()
        other = make_lake(tmp_path / "other")
        crawl(tree.source, other)
        extract(tree.source, tree.lake, Engine("serial"))
        extract(tree.source, other, Engine("processes", 2))
        assert snapshot(tree.lake) == snapshot(other)

    def test_repetition_writes_the_same_bytes(self, tmp_path: Path) -> None:
        tree = busy(tmp_path)
        run(tree)
        first = snapshot(tree.lake)
        run(tree, force=True)
        assert snapshot(tree.lake) == first
        assert first == from_scratch(tree, tmp_path)


def duplicate_flags(tree: Tree, *units: str) -> dict[str, str | None]:
    return {path: row["duplicate"] for unit in units for path, row in rows(tree, unit).items()}


def checksums(tree: Tree, *units: str) -> dict[str, str | None]:
    return {row["path"].removeprefix("primary/"): row["sha256"] for unit in units for row in table(tree, FILES, unit)}


class TestDuplicates:
    def test_all_copies_but_the_first_by_path_are_flagged(self, tree: Tree) -> None:
        path = tree.write("sub-2/1.dcm")
        (tree.root / "primary/sub-1").mkdir()
        shutil.copy2(path, tree.root / "primary/sub-1/z.dcm")
        tree.write("sub-1/a.dcm")
        run(tree)
        assert duplicate_flags(tree, "sub-1", "sub-2") == {
            "sub-1/a.dcm": None,
            "sub-1/z.dcm": None,
            "sub-2/1.dcm": "identical",
        }
        assert [(f["code"], f["unit"], f["path"], f["sop_uid"]) for f in tree.findings("extract")] == [
            ("duplicate-identical", "sub-2", "primary/sub-2/1.dcm", uid("ds/sub-2/1.dcm"))
        ]

    def test_an_instance_with_different_contents_is_a_conflict(self, tree: Tree) -> None:
        tree.write("sub-1/1.dcm", instance="one")
        tree.write("sub-2/1.dcm", instance="one", StudyDescription="other")
        run(tree)
        assert duplicate_flags(tree, "sub-1", "sub-2") == {"sub-1/1.dcm": None, "sub-2/1.dcm": "conflict"}
        assert [(f["code"], f["severity"]) for f in tree.findings("extract")] == [("duplicate-conflict", "error")]

    def test_checksums_are_computed_for_duplicates_only(self, tree: Tree) -> None:
        tree.write("sub-1/1.dcm", instance="one")
        tree.write("sub-1/2.dcm", instance="one", StudyDescription="other")
        tree.write("sub-1/3.dcm")
        answer, opened = run(tree)
        assert [path for path, digest in checksums(tree, "sub-1").items() if digest] == ["sub-1/1.dcm", "sub-1/2.dcm"]
        assert (len(opened), answer.files_opened) == (5, 5)

    def test_stored_checksums_are_not_computed_again(self, tree: Tree) -> None:
        tree.write("sub-1/1.dcm", instance="one")
        tree.write("sub-2/1.dcm", instance="one")
        run(tree)
        tree.write("sub-3/1.dcm", instance="one")
        assert run(tree)[1] == ["sub-3/1.dcm", "sub-3/1.dcm"]

    @pytest.mark.parametrize("gone", ["sub-1", "sub-2"])
    def test_a_removed_duplicate_leaves_no_trace(self, tree: Tree, tmp_path: Path, gone: str) -> None:
        for subject in ("sub-1", "sub-2"):
            tree.write(f"{subject}/1.dcm", instance="one")
            tree.write(f"{subject}/2.dcm")
        run(tree)
        (tree.root / "primary" / gone / "1.dcm").unlink()
        assert run(tree, accept_missing=True)[1] == []
        assert set(duplicate_flags(tree, "sub-1", "sub-2").values()) == {None}
        assert tree.findings("extract") == []
        assert snapshot(tree.lake) == from_scratch(tree, tmp_path)

    def test_a_flag_stays_when_another_file_of_its_unit_changes(self, tree: Tree, tmp_path: Path) -> None:
        tree.write("sub-1/1.dcm", instance="one")
        tree.write("sub-2/1.dcm", instance="one", StudyDescription="other")
        tree.write("sub-2/2.dcm")
        run(tree)
        touch(tree.root / "primary/sub-2/2.dcm")
        assert run(tree)[1] == ["sub-2/2.dcm"]
        assert duplicate_flags(tree, "sub-2") == {"sub-2/1.dcm": "conflict", "sub-2/2.dcm": None}
        assert snapshot(tree.lake) == from_scratch(tree, tmp_path)

    def test_an_unchanged_dataset_with_duplicates_stays_as_it_is(self, tmp_path: Path) -> None:
        tree = busy(tmp_path)
        run(tree)
        before = snapshot(tree.lake)
        answer, opened = run(tree)
        assert (answer.units_processed, opened) == (0, [])
        assert snapshot(tree.lake) == before

    def test_a_duplicate_without_a_checksum_is_a_conflict(self, tree: Tree) -> None:
        tree.write("sub-1/1.dcm", instance="one")
        tree.write("sub-2/1.dcm", instance="one")
        tree.crawl()
        source = WatchedSource(tree.source)

        def fail_the_second_time() -> None:
            if source.opened.count("sub-2/1.dcm") == 2:
                raise PermissionError(13, "Permission denied")

        source.before["sub-2/1.dcm"] = fail_the_second_time
        extract_from(tree, source)
        assert duplicate_flags(tree, "sub-2") == {"sub-2/1.dcm": "conflict"}


def denied() -> PermissionError:
    return PermissionError(13, "Permission denied")


class TestFailures:
    def test_a_file_that_cannot_be_opened_is_a_finding(self, tree: Tree) -> None:
        for name in ("1", "2", "3"):
            tree.write(f"sub-1/{name}.dcm")
        tree.crawl()
        answer = extract_from(tree, WatchedSource(tree.source, failing={"sub-1/2.dcm": denied()}))
        assert list(rows(tree)) == ["sub-1/1.dcm", "sub-1/3.dcm"]
        assert (answer.units_failed, answer.rows) == (0, 2)
        findings = [f for f in tree.findings("extract", "sub-1") if f["code"] == "header-unreadable"]
        assert [(f["path"], f["message"]) for f in findings] == [("primary/sub-1/2.dcm", "Permission denied")]

    def test_only_a_file_that_could_not_be_opened_is_retried(self, tree: Tree, tmp_path: Path) -> None:
        for name in ("1", "2", "3"):
            tree.write(f"sub-1/{name}.dcm")
        tree.crawl()
        extract_from(tree, WatchedSource(tree.source, failing={"sub-1/2.dcm": denied()}))
        assert run(tree)[1] == ["sub-1/2.dcm"]
        assert codes(tree) == []
        assert snapshot(tree.lake) == from_scratch(tree, tmp_path)

    def test_an_unchanged_damaged_file_is_not_read_again(self, tree: Tree) -> None:
        tree.write("sub-1/1.dcm")
        whole = tree.write("sub-1/2.dcm")
        whole.write_bytes(whole.read_bytes()[:-3])
        run(tree)
        assert run(tree)[1] == []
        assert codes(tree) == ["header-truncated"]

    def test_a_file_removed_since_the_crawl_is_a_finding(self, tree: Tree) -> None:
        tree.write("sub-1/1.dcm")
        tree.write("sub-1/2.dcm")
        tree.crawl()
        (tree.root / "primary/sub-1/2.dcm").unlink()
        tree.extract()
        assert (files(tree)["sub-1/2.dcm"], list(rows(tree))) == (("unreadable", "file-missing"), ["sub-1/1.dcm"])

    def test_a_file_changed_since_the_crawl_is_read_with_a_finding(self, tree: Tree) -> None:
        tree.write("sub-1/1.dcm")
        tree.crawl()
        touch(tree.write("sub-1/1.dcm", StudyDescription="changed since"))
        tree.extract()
        assert rows(tree)["sub-1/1.dcm"]["StudyDescription"] == "changed since"
        assert files(tree) == {"sub-1/1.dcm": ("dicom", "file-changed")}
        assert codes(tree) == ["file-changed"]

    def test_a_file_that_is_still_being_copied_is_not_damaged(self, tree: Tree) -> None:
        path = tree.write("sub-1/1.dcm")
        tree.write("sub-1/2.dcm")
        content = path.read_bytes()
        path.write_bytes(content[:200])
        tree.crawl()
        path.write_bytes(content[:-3])
        tree.extract()
        assert files(tree)["sub-1/1.dcm"] == ("unreadable", "file-changed")

    def test_the_next_crawl_completes_a_changed_file(self, tree: Tree, tmp_path: Path) -> None:
        tree.write("sub-1/1.dcm")
        tree.crawl()
        touch(tree.write("sub-1/1.dcm", StudyDescription="changed since"))
        tree.extract()
        assert run(tree)[1] == ["sub-1/1.dcm"]
        assert codes(tree) == []
        assert snapshot(tree.lake) == from_scratch(tree, tmp_path)

    def test_a_failed_unit_keeps_its_rows_and_the_others_are_read(self, extracted: Tree) -> None:
        before = {name: content for name, content in snapshot(extracted.lake).items() if "sub-1" in name}
        touch(extracted.root / "primary/sub-1/a/1.dcm")
        touch(extracted.write("sub-2/1.dcm", StudyDescription="changed"))
        extracted.crawl()

        def fail() -> None:
            raise RuntimeError("an unexpected error")

        answer = extract_from(extracted, WatchedSource(extracted.source, before={"sub-1/a/1.dcm": fail}))
        assert (answer.units_processed, answer.units_failed) == (1, 1)
        assert rows(extracted, "sub-2")["sub-2/1.dcm"]["StudyDescription"] == "changed"
        assert {name: content for name, content in snapshot(extracted.lake).items() if "sub-1" in name} == before
        assert [(f["code"], f["unit"], f["message"]) for f in extracted.findings("extract")] == [
            ("unit-failed", "sub-1", "RuntimeError: an unexpected error")
        ]

    def test_a_failed_unit_is_read_by_the_next_run(self, extracted: Tree, tmp_path: Path) -> None:
        touch(extracted.root / "primary/sub-1/a/1.dcm")
        extracted.crawl()

        def fail() -> None:
            raise RuntimeError

        extract_from(extracted, WatchedSource(extracted.source, before={"sub-1/a/1.dcm": fail}))
        assert run(extracted)[0].units_failed == 0
        assert snapshot(extracted.lake) == from_scratch(extracted, tmp_path)

    def test_a_unit_with_an_unusual_name_has_its_rows(self, tree: Tree) -> None:
        names = ["sub-1 ünïcode", "sub-a%b", "sub-x.parquet"]
        for name in names:
            tree.write(f"{name}/1.dcm")
        run(tree)
        assert [list(rows(tree, name)) for name in names] == [[f"{name}/1.dcm"] for name in names]

    def test_every_finding_names_its_dataset_and_stage(self, tmp_path: Path) -> None:
        tree = busy(tmp_path)
        run(tree)
        findings = [f for unit in ("sub-1", "sub-2", "sub-3", None) for f in tree.findings("extract", unit)]
        assert {(f["dataset"], f["stage"]) for f in findings} == {("ds", "extract")}
