"""Recovery: after a kill at any moment a shard is as before or completed, and no hidden file is left."""

from __future__ import annotations

import contextlib
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dicom_etl.lake.commits import count_shards, read_commits
from dicom_etl.lake.recovery import list_stage_folders, recover_dataset
from dicom_etl.lake.shard_writer import ShardWriter
from dicom_etl.lake.tables import Lake
from tests.lake.written_shards import read_files, read_generations, write_dataset, write_shard
from tests.support.datasets import make_lake
from tests.support.kill import KilledError, kill_at_rename

RENAMES = 1 + 4 + 1  # the pending commit; NDJSON, elements, findings; the commit
FOLDERS = 5  # of the stage build
EXCHANGE = 1 + 2 * FOLDERS  # the marker; of each folder the old version, then the new one


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return make_lake(tmp_path)


def read_new_lake(folder: Path, write: Callable[[Lake], object]) -> dict[str, bytes]:
    """The files of a new lake after a write."""
    fresh = make_lake(folder)
    write(fresh)
    return read_files(fresh)


def recover(lake: Lake) -> None:
    recover_dataset(Path(lake.root), "ds")


def list_hidden_files(lake: Lake) -> list[str]:
    """Hidden files, and files in hidden folders."""
    root = Path(lake.root)
    files = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return [path.as_posix() for path in files if any(part.startswith(".") for part in path.parts)]


class TestShard:
    def test_it_is_committed_by_six_renames_with_the_commit_last(self, lake: Lake) -> None:
        with kill_at_rename(-1) as done:
            write_shard(lake, "first")
        assert done[1:] == [
            ".0000.ndjson.new -> 0000.ndjson",
            ".0000.ndjson.new -> 0000.ndjson",
            ".0000.parquet.new -> 0000.parquet",
            ".0000.parquet.new -> 0000.parquet",
            ".0000.parquet.pending -> 0000.parquet",
        ]
        assert len(done) == RENAMES

    @pytest.mark.parametrize("rename", range(RENAMES))
    def test_a_kill_between_renames_leaves_the_old_or_is_completed(
        self, lake: Lake, tmp_path: Path, rename: int
    ) -> None:
        write_shard(lake, "first")
        before = read_files(lake)
        with kill_at_rename(rename), pytest.raises(KilledError):
            write_shard(lake, "second", ["sub-1", "sub-9"])
        recover(lake)
        after = read_new_lake(tmp_path / "fresh", lambda fresh: write_shard(fresh, "second", ["sub-1", "sub-9"]))
        assert read_files(lake) == (before if rename == 0 else after)
        assert read_generations(lake) == {"first" if rename == 0 else "second"}

    @pytest.mark.parametrize("rename", range(RENAMES))
    def test_a_killed_first_write_leaves_no_shard_or_is_completed(
        self, lake: Lake, tmp_path: Path, rename: int
    ) -> None:
        with kill_at_rename(rename), pytest.raises(KilledError):
            write_shard(lake, "first")
        recover(lake)
        after = read_new_lake(tmp_path / "fresh", lambda fresh: write_shard(fresh, "first"))
        assert read_files(lake) == ({} if rename == 0 else after)
        assert read_generations(lake) == (None if rename == 0 else {"first"})

    @pytest.mark.parametrize("rename", range(1, RENAMES))
    @pytest.mark.parametrize("again", range(RENAMES - 1))
    def test_a_killed_recovery_is_completed_by_the_next(self, lake: Lake, rename: int, again: int) -> None:
        write_shard(lake, "first")
        with kill_at_rename(rename), pytest.raises(KilledError):
            write_shard(lake, "second")
        remaining = RENAMES - rename
        with kill_at_rename(again) as done, contextlib.suppress(KilledError):
            recover(lake)
        assert len(done) == min(remaining, again)
        recover(lake)
        assert read_generations(lake) == {"second"}
        assert list_hidden_files(lake) == []

    @pytest.mark.parametrize("written", range(1, 5))
    def test_a_kill_while_files_are_written_leaves_the_old_shard(
        self, lake: Lake, monkeypatch: pytest.MonkeyPatch, written: int
    ) -> None:
        write_shard(lake, "first")
        before = read_files(lake)
        calls = 0

        def make_dying(name: str) -> Callable[..., None]:
            method = getattr(ShardWriter, name)

            def write(writer: ShardWriter, *args: Any) -> None:
                nonlocal calls
                calls += 1
                method(writer, *args)
                if calls == written:
                    raise KilledError

            return write

        with monkeypatch.context() as patched:
            for name in ("write_lines", "write_table"):
                patched.setattr(ShardWriter, name, make_dying(name))
            with pytest.raises(KilledError):
                write_shard(lake, "second")
        assert read_generations(lake) == {"first"}
        assert len(list_hidden_files(lake)) == written
        recover(lake)
        assert read_files(lake) == before

    def test_files_of_other_datasets_stay(self, lake: Lake) -> None:
        other = [
            "findings/build/ds-2/.0000.parquet.new",
            "commits/build/.ds-2.exchange",
            "commits/build/ds-2/.0000.parquet.7.tmp",
        ]
        for path in other:
            lake.write_bytes(path, b"[]")
        recover(lake)
        assert sorted(list_hidden_files(lake)) == sorted(other)

    @pytest.mark.parametrize(
        "path",
        [
            "headers/ds/.0003.parquet.new",
            "fhir/Patient/ds/.0000.ndjson.new",
            "commits/build/ds/..0000.parquet.pending.4711.tmp",
            "commits/extract/..ds.exchange.4711.tmp",
            ".moving/new/headers/ds/0000.parquet",
            ".moving/old/commits/build/ds/0000.parquet",
            "fhir/Endpoint/ds/.0000.ndjson.4711.tmp",
        ],
    )
    def test_hidden_files_of_a_killed_run_are_removed_with_the_lock(self, lake: Lake, path: str) -> None:
        write_shard(lake, "first")
        before = read_files(lake)
        lake.write_bytes(path, b"half a fi")
        with lake.lock("ds", "a test"):
            assert list_hidden_files(lake) == []
            assert read_files(lake) == before

    def test_a_lake_without_the_dataset_needs_no_recovery(self, lake: Lake) -> None:
        before = read_files(lake)
        recover(lake)
        assert read_files(lake) == before


def write_first_generation(lake: Lake) -> None:
    write_dataset(lake, "first", 1)
    lake.write_bytes("findings/build/ds/dataset.parquet", b"of the dataset")


class TestFolders:
    def test_the_folders_of_a_stage_end_with_that_of_its_commits(self) -> None:
        assert list_stage_folders("extract", "a b") == [
            "headers/a%20b",
            "tag_profiles/a%20b",
            "files/a%20b",
            "findings/extract/a%20b",
            "commits/extract/a%20b",
        ]
        assert list_stage_folders("build", "ds") == [
            "fhir_elements/ds",
            "findings/build/ds",
            "fhir/Patient/ds",
            "fhir/ImagingStudy/ds",
            "commits/build/ds",
        ]

    @pytest.mark.parametrize("shards", [1, 2, 4])
    def test_an_exchange_replaces_all_shards_and_keeps_other_files(
        self, lake: Lake, tmp_path: Path, shards: int
    ) -> None:
        write_first_generation(lake)
        write_dataset(lake, "second", shards)
        after = read_new_lake(tmp_path / "fresh", lambda fresh: write_dataset(fresh, "second", shards))
        assert read_files(lake) == after | {"findings/build/ds/dataset.parquet": b"of the dataset"}
        assert list_hidden_files(lake) == []
        assert {
            stat.S_IMODE(Path(lake.root, folder).stat().st_mode) for folder in list_stage_folders("build", "ds")
        } == {0o700}

    @pytest.mark.parametrize("rename", range(EXCHANGE))
    @pytest.mark.parametrize(("previous", "shards"), [(1, 4), (4, 1)])
    def test_a_kill_between_renames_leaves_the_old_or_is_completed(
        self, lake: Lake, tmp_path: Path, previous: int, shards: int, rename: int
    ) -> None:
        write_dataset(lake, "first", previous)
        lake.write_bytes("findings/build/ds/dataset.parquet", b"of the dataset")
        before = read_files(lake)
        with kill_at_rename(rename), pytest.raises(KilledError):
            write_dataset(lake, "second", shards)
        recover(lake)
        after = read_new_lake(tmp_path / "fresh", lambda fresh: write_dataset(fresh, "second", shards))
        after |= {"findings/build/ds/dataset.parquet": b"of the dataset"}
        assert read_files(lake) == (before if rename == 0 else after)
        assert list_hidden_files(lake) == []
        assert count_shards(lake, "build", "ds") == (previous if rename == 0 else shards)

    def test_an_exchange_renames_each_folder_twice(self, lake: Lake) -> None:
        write_dataset(lake, "first", 1)
        with kill_at_rename(-1) as done:
            write_dataset(lake, "second", 2)
        assert len(done) == EXCHANGE
        assert done[1:3] == ["ds -> ds", "ds -> ds"]

    @pytest.mark.parametrize("removed", range(FOLDERS + 1))
    def test_a_kill_after_the_renames_leaves_no_old_folder(
        self, lake: Lake, monkeypatch: pytest.MonkeyPatch, removed: int
    ) -> None:
        write_dataset(lake, "first", 1)
        remove = shutil.rmtree
        done: list[Path] = []

        def make_dying(path: Path, **options: Any) -> None:
            if len(done) == removed:
                raise KilledError
            done.append(path)
            remove(path, **options)

        with monkeypatch.context() as patched:
            patched.setattr(shutil, "rmtree", make_dying)
            if removed < FOLDERS:
                with pytest.raises(KilledError):
                    write_dataset(lake, "second", 2)
            else:
                write_dataset(lake, "second", 2)
        assert sorted(read_commits(lake, "build", "ds")) == [0, 1]
        recover(lake)
        assert list_hidden_files(lake) == []
        assert read_generations(lake) == {"second"}

    def test_new_folders_without_a_marker_are_removed(self, lake: Lake) -> None:
        write_dataset(lake, "first", 1)
        before = read_files(lake)
        write_shard(lake, "second", ["sub-4"], shard=0, shards=2, new_folders=True)
        assert read_generations(lake) == {"first"}
        recover(lake)
        assert read_files(lake) == before
        assert list_hidden_files(lake) == []

    @pytest.mark.parametrize("shards", [1, 4])
    def test_an_object_store_copies_new_files_to_their_final_paths(self, lake: Lake, shards: int) -> None:
        remote = Lake(f"memory://test-recovery/lake-{shards}", notify=lambda _: None).open()
        for written in (remote, lake):
            write_dataset(written, "first", 2)
            written.write_bytes("findings/build/ds/dataset.parquet", b"of the dataset")
        write_shard(remote, "killed", ["sub-4"], shard=3, shards=8, new_folders=True)
        assert read_generations(remote) == {"first"}
        with remote.lock("ds", "a test"):  # what a killed run wrote is removed
            for written in (remote, lake):
                write_dataset(written, "second", shards)
        files = {
            path.path.removeprefix(remote.root_path.path).lstrip("/"): path for path in remote.root_path.rglob("*")
        }
        del files["lake.json"]
        assert {name: path.read_bytes() for name, path in files.items() if path.is_file()} == read_files(lake)
