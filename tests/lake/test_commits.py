"""Commits: a reader gets one generation of a shard as it was written, or an error that names the damaged file."""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import stat
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dicom_etl.lake import shard_reader, shard_writer
from dicom_etl.lake.commits import (
    DamagedShardError,
    count_shards,
    find_damaged_file,
    read_commit,
    read_commits,
    remove_other_shards,
    remove_shard,
)
from dicom_etl.lake.schemas import FHIR_ELEMENTS, FINDINGS, header_table
from dicom_etl.lake.shard_reader import read_lines, read_shards, read_unit
from dicom_etl.lake.tables import Lake
from tests.lake.written_shards import UNITS, make_line, read_files, read_generations, write_dataset, write_shard
from tests.support.datasets import make_lake

FILES = (
    "fhir/ImagingStudy/ds/0000.ndjson",
    "fhir/Patient/ds/0000.ndjson",
    "fhir_elements/ds/0000.parquet",
    "findings/build/ds/0000.parquet",
)


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return make_lake(tmp_path)


class TestCommit:
    def test_it_has_size_and_sha_256_of_each_file_of_the_shard(self, lake: Lake) -> None:
        write_shard(lake, "first")
        commit = read_commit(lake, "build", "ds", 0)
        assert commit is not None
        assert (commit.stage, commit.dataset, commit.shard, commit.shards) == ("build", "ds", 0, 1)
        contents = {path: Path(lake.root, path).read_bytes() for path in FILES}
        assert dict(commit.files) == {
            path: (len(content), hashlib.sha256(content).hexdigest()) for path, content in contents.items()
        }
        footer = json.loads(
            pq.read_metadata(Path(lake.root, "commits/build/ds/0000.parquet")).metadata[b"dicom_etl.commit"]
        )
        assert footer == {
            "stage": "build",
            "dataset": "ds",
            "shard": 0,
            "shards": 1,
            "files": {path: list(size_and_digest) for path, size_and_digest in commit.files.items()},
        }

    def test_it_has_a_row_per_unit_with_the_position_of_its_lines(self, lake: Lake) -> None:
        write_shard(lake, "first", ["a", "bb"])
        commit = read_commit(lake, "build", "ds", 0)
        assert commit is not None
        first, second = make_line("Patient", "a", "first"), make_line("Patient", "bb", "first")
        assert list(commit.rows) == ["a", "bb"]
        row = commit.rows["bb"]
        assert (row["fingerprint"], row["to_retry"]) == ("first", False)
        assert {name: row[f"Patient_{name}"] for name in ("offset", "length", "lines", "digest")} == {
            "offset": len(first),
            "length": len(second),
            "lines": 1,
            "digest": hashlib.sha256(second).hexdigest()[:32],
        }

    def test_a_written_shard_leaves_no_other_files(self, lake: Lake) -> None:
        write_shard(lake, "first")
        assert sorted(read_files(lake)) == sorted([*FILES, "commits/build/ds/0000.parquet"])

    def test_the_same_rows_give_the_same_bytes(self, lake: Lake, tmp_path: Path) -> None:
        other = make_lake(tmp_path / "other")
        for written in (lake, other, other):
            write_shard(written, "first")
        assert read_files(lake) == read_files(other)

    def test_only_the_owner_can_open_the_folders_of_shards(self, lake: Lake) -> None:
        write_shard(lake, "first")
        write_dataset(lake, "second", 2)
        for path in (*FILES, "commits/build/ds/0001.parquet"):
            assert stat.S_IMODE(Path(lake.root, path).parent.stat().st_mode) == 0o700, path


class TestReading:
    @pytest.mark.parametrize("shards", [1, 2, 4])
    def test_rows_and_lines_of_a_unit_are_read_from_its_shard(self, lake: Lake, shards: int) -> None:
        write_dataset(lake, "first", shards)
        assert count_shards(lake, "build", "ds") == shards
        assert sorted(read_commits(lake, "build", "ds")) == list(range(shards))
        for unit in UNITS:
            rows = read_unit(lake, FINDINGS, ["unit", "message"], dataset="ds", unit=unit, stage="build")
            assert rows.to_pylist() == [{"unit": unit, "message": "first"}]
            assert read_lines(lake, "Patient", dataset="ds", unit=unit) == make_line("Patient", unit, "first")
        units = [
            unit
            for rows in read_shards(lake, FINDINGS, dataset="ds", stage="build")
            for unit in rows["unit"].to_pylist()
        ]
        assert sorted(units) == list(UNITS)

    def test_nothing_is_read_of_missing_units_and_datasets(self, lake: Lake) -> None:
        assert read_unit(lake, header_table(), dataset="ds", unit="sub-1").equals(header_table().schema.empty_table())
        write_shard(lake, "first")
        assert read_unit(lake, FINDINGS, ["code"], dataset="ds", unit="sub-9", stage="build").to_pylist() == []
        assert read_unit(lake, FHIR_ELEMENTS, dataset="other", unit="sub-1").num_rows == 0
        assert read_lines(lake, "Patient", dataset="ds", unit="sub-9") == b""
        assert read_lines(lake, "Patient", dataset="other", unit="sub-1") == b""
        assert list(read_shards(lake, FINDINGS, dataset="other", stage="build")) == []
        assert (read_commit(lake, "build", "ds", 1), count_shards(lake, "extract", "ds")) == (None, 0)

    def test_commits_that_disagree_on_the_number_of_shards_are_ignored(self, lake: Lake) -> None:
        write_shard(lake, "first", ["sub-4"])
        write_shard(lake, "second", ["sub-1"], shard=1, shards=2)
        assert read_commits(lake, "build", "ds") == {}

    def test_other_shards_are_removed_with_all_their_files(self, lake: Lake) -> None:
        write_dataset(lake, "first", 4)
        lake.write_bytes("findings/build/ds/dataset.parquet", b"of the dataset")
        remove_other_shards(lake, "build", "ds", [0, 2])
        assert sorted(read_commits(lake, "build", "ds")) == [0, 2]
        assert [name for name in read_files(lake) if "0001." in name or "0003." in name] == []
        for commit in read_commits(lake, "build", "ds").values():
            remove_shard(lake, commit)
        assert list(read_files(lake)) == ["findings/build/ds/dataset.parquet"]


@pytest.fixture
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_reader, "PAUSE", 0.001)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def alter(path: Path) -> None:
    """Change a byte of the values of the first column, or of the first make_line, but not the size."""
    content, position = bytearray(path.read_bytes()), 40
    if path.suffix == ".parquet":
        column = pq.read_metadata(path).row_group(0).column(0)
        position = column.data_page_offset + column.total_compressed_size - 1
    content[position] ^= 0xFF
    path.write_bytes(bytes(content))


class TestDamage:
    @pytest.mark.usefixtures("short_pause")
    @pytest.mark.parametrize("damage", [truncate, alter, Path.unlink], ids=["truncated", "altered", "removed"])
    @pytest.mark.parametrize("path", ["findings/build/ds/0000.parquet", "fhir/Patient/ds/0000.ndjson"])
    def test_the_error_names_a_damaged_file(self, lake: Lake, path: str, damage: object) -> None:
        write_shard(lake, "first")
        damage(Path(lake.root, path))  # type: ignore[operator]
        reads = {
            "findings/build/ds/0000.parquet": [
                lambda: read_unit(lake, FINDINGS, dataset="ds", unit="sub-1", stage="build"),
                lambda: list(read_shards(lake, FINDINGS, dataset="ds", stage="build")),
            ],
            "fhir/Patient/ds/0000.ndjson": [lambda: read_lines(lake, "Patient", dataset="ds", unit="sub-1")],
        }
        for read in reads[path]:
            with pytest.raises(
                DamagedShardError,
                match=rf"^{path}.* does not match its commit: run",
            ):
                read()
        [commit] = read_commits(lake, "build", "ds").values()
        assert find_damaged_file(lake, commit, digests=True) == path
        write_shard(lake, "second")
        assert read_generations(lake) == {"second"}

    @pytest.mark.usefixtures("short_pause")
    @pytest.mark.parametrize("content", [b"", b"PAR1", b"x" * 500])
    def test_the_error_names_a_commit_that_cannot_be_read(self, lake: Lake, content: bytes) -> None:
        write_shard(lake, "first")
        Path(lake.root, "commits/build/ds/0000.parquet").write_bytes(content)
        assert read_commits(lake, "build", "ds") == {}
        with pytest.raises(DamagedShardError, match=r"^commits/build/ds/0000.parquet does not match its commit: run"):
            read_unit(lake, FINDINGS, dataset="ds", unit="sub-1", stage="build")

    def test_digests_are_checked_only_on_request(self, lake: Lake) -> None:
        write_shard(lake, "first")
        [commit] = read_commits(lake, "build", "ds").values()
        assert find_damaged_file(lake, commit, digests=True) is None
        alter(Path(lake.root, "findings/build/ds/0000.parquet"))
        assert find_damaged_file(lake, commit) is None
        assert find_damaged_file(lake, commit, digests=True) == "findings/build/ds/0000.parquet"


def _write_continually(root: str, resharding: bool) -> None:
    lake = Lake(root, notify=lambda _: None)
    for number in itertools.count():
        generation = f"{number:06}"  # of one length, so that files of two generations have the same size
        if resharding:
            write_dataset(lake, generation, 1 << number % 3)
        else:
            write_shard(lake, generation)


class TestReaderDuringWrites:
    @pytest.mark.parametrize("resharding", [False, True], ids=["one shard", "other numbers of shards"])
    def test_it_reads_one_generation_while_a_writer_commits(self, lake: Lake, resharding: bool) -> None:
        write_dataset(lake, "first-", 1)
        writer = multiprocessing.get_context("spawn").Process(target=_write_continually, args=(lake.root, resharding))
        writer.start()
        seen: set[str] = set()
        reads, start = 0, time.monotonic()
        try:
            # for 8 seconds, and longer on a busy machine, until enough was read
            while (elapsed := time.monotonic() - start) < 8 or (elapsed < 60 and (reads <= 20 or len(seen) <= 10)):
                assert writer.is_alive()
                current = read_generations(lake)
                assert current is not None
                # with several shards there may be no unit in shard 0
                assert len(current) <= 1
                seen |= current
                lines = [read_lines(lake, kind, dataset="ds", unit="sub-3") for kind in ("Patient", "ImagingStudy")]
                assert [text.count(b"\n") for text in lines] == [1, 1]
                rows = read_unit(lake, FINDINGS, ["unit"], dataset="ds", unit="sub-3", stage="build")
                assert rows.to_pylist() == [{"unit": "sub-3"}]
                reads += 1
        finally:
            writer.kill()
            writer.join()
        assert reads > 20
        assert len(seen) > 10


class TestObjectStore:
    def test_shards_are_written_without_renames(self, lake: Lake) -> None:
        remote = Lake("memory://test-commits/lake", notify=lambda _: None).open()
        write_shard(remote, "first")
        write_shard(lake, "first")
        for path in (*FILES, "commits/build/ds/0000.parquet"):
            assert remote.read_bytes(path) == lake.read_bytes(path), path
        assert read_generations(remote) == {"first"}
        assert read_lines(remote, "Patient", dataset="ds", unit="sub-2") == make_line("Patient", "sub-2", "first")
        write_dataset(remote, "second", 2)
        assert sorted(read_commits(remote, "build", "ds")) == [0, 1]
        assert read_generations(remote, 1) == {"second"}

    def test_a_shard_that_is_being_written_has_no_commit(self) -> None:
        remote = Lake("memory://test-commits/half", notify=lambda _: None).open()
        write_shard(remote, "first")
        shard_writer.ShardWriter(remote, "build", "ds", 0, 1).write_lines("Patient", [b"{}\n"])
        assert read_commits(remote, "build", "ds") == {}
        assert read_lines(remote, "Patient", dataset="ds", unit="sub-1") == b""

    def test_the_commit_of_another_shard_is_ignored(self, lake: Lake) -> None:
        write_dataset(lake, "first", 2)
        first, second = (Path(lake.root, f"commits/build/ds/000{number}.parquet") for number in (0, 1))
        content = first.read_bytes(), second.read_bytes()
        first.write_bytes(content[1])
        second.write_bytes(content[0])
        assert read_commits(lake, "build", "ds") == {}
