"""Recovery: a kill at any moment leaves a shard as it was, or one that is completed; and nothing hidden."""

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
from tests.lake.shards_written import files_of, generations, write_dataset, write_shard
from tests.support.datasets import make_lake
from tests.support.kill import KilledError, kill_at_rename

RENAMES = 1 + 4 + 1  # the pending commit; NDJSON, elements, findings; the commit
FOLDERS = 5  # of the stage build
EXCHANGE = 1 + 2 * FOLDERS  # the marker; each folder out of the way, and the new one in


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return make_lake(tmp_path)


def lake_at(folder: Path, write: Callable[[Lake], object]) -> dict[str, bytes]:
    """The files of a fresh lake."""
    fresh = make_lake(folder)
    write(fresh)
    return files_of(fresh)


def recover_all(lake: Lake) -> None:
    recover_dataset(Path(lake.root), "ds")


def hidden_of(lake: Lake) -> list[str]:
    """Hidden files, and files in hidden folders."""
    root = Path(lake.root)
    files = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return [path.as_posix() for path in files if any(part.startswith(".") for part in path.parts)]


# -- a shard ----------------------------------------------------------------------------------------------------------


def test_a_shard_is_put_in_place_by_six_renames_the_commit_last(lake: Lake) -> None:
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
def test_a_kill_between_the_renames_of_a_shard_leaves_it_or_is_completed(
    lake: Lake, tmp_path: Path, rename: int
) -> None:
    write_shard(lake, "first")
    before = files_of(lake)
    with kill_at_rename(rename), pytest.raises(KilledError):
        write_shard(lake, "second", ["sub-1", "sub-9"])
    recover_all(lake)
    after = lake_at(tmp_path / "fresh", lambda fresh: write_shard(fresh, "second", ["sub-1", "sub-9"]))
    assert files_of(lake) == (before if rename == 0 else after)
    assert generations(lake) == {"first" if rename == 0 else "second"}


@pytest.mark.parametrize("rename", range(RENAMES))
def test_a_first_shard_that_is_killed_is_not_there_or_completed(lake: Lake, tmp_path: Path, rename: int) -> None:
    with kill_at_rename(rename), pytest.raises(KilledError):
        write_shard(lake, "first")
    recover_all(lake)
    after = lake_at(tmp_path / "fresh", lambda fresh: write_shard(fresh, "first"))
    assert files_of(lake) == ({} if rename == 0 else after)
    assert generations(lake) == (None if rename == 0 else {"first"})


@pytest.mark.parametrize("rename", range(1, RENAMES))
@pytest.mark.parametrize("again", range(RENAMES - 1))
def test_a_recovery_that_is_killed_is_completed_by_the_next(lake: Lake, rename: int, again: int) -> None:
    write_shard(lake, "first")
    with kill_at_rename(rename), pytest.raises(KilledError):
        write_shard(lake, "second")
    left = RENAMES - rename
    with kill_at_rename(again) as done, contextlib.suppress(KilledError):
        recover_all(lake)
    assert len(done) == min(left, again)
    recover_all(lake)
    assert generations(lake) == {"second"}
    assert hidden_of(lake) == []


@pytest.mark.parametrize("written", range(1, 5))
def test_a_kill_while_the_files_are_written_leaves_the_shard_as_it_was(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    write_shard(lake, "first")
    before = files_of(lake)
    calls = 0

    def dying(name: str) -> Callable[..., None]:
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
            patched.setattr(ShardWriter, name, dying(name))
        with pytest.raises(KilledError):
            write_shard(lake, "second")
    assert generations(lake) == {"first"}
    assert len(hidden_of(lake)) == written
    recover_all(lake)
    assert files_of(lake) == before


def test_other_datasets_are_left_alone(lake: Lake) -> None:
    other = [
        "findings/build/ds-2/.0000.parquet.new",
        "commits/build/.ds-2.exchange",
        "commits/build/ds-2/.0000.parquet.7.tmp",
    ]
    for path in other:
        lake.write_bytes(path, b"[]")
    recover_all(lake)
    assert sorted(hidden_of(lake)) == sorted(other)


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
def test_what_a_kill_left_hidden_is_removed_with_the_lock(lake: Lake, path: str) -> None:
    write_shard(lake, "first")
    before = files_of(lake)
    lake.write_bytes(path, b"half a fi")
    with lake.lock("ds", "a test"):
        assert hidden_of(lake) == []
        assert files_of(lake) == before


def test_a_lake_without_the_dataset_needs_no_recovery(lake: Lake) -> None:
    before = files_of(lake)
    recover_all(lake)
    assert files_of(lake) == before


# -- folders ----------------------------------------------------------------------------------------------------------


def test_the_folders_of_the_stages_are_known_that_of_the_commits_last() -> None:
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


def grown(lake: Lake) -> None:
    write_dataset(lake, "first", 1)
    lake.write_bytes("findings/build/ds/dataset.parquet", b"of the dataset")


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_an_exchange_puts_all_shards_in_place_and_keeps_what_is_no_shard(
    lake: Lake, tmp_path: Path, shards: int
) -> None:
    grown(lake)
    write_dataset(lake, "second", shards)
    after = lake_at(tmp_path / "fresh", lambda fresh: write_dataset(fresh, "second", shards))
    assert files_of(lake) == after | {"findings/build/ds/dataset.parquet": b"of the dataset"}
    assert hidden_of(lake) == []
    assert {stat.S_IMODE(Path(lake.root, folder).stat().st_mode) for folder in list_stage_folders("build", "ds")} == {
        0o700
    }


@pytest.mark.parametrize("rename", range(EXCHANGE))
@pytest.mark.parametrize(("former", "shards"), [(1, 4), (4, 1)])
def test_a_kill_between_the_renames_of_an_exchange_leaves_the_folders_or_is_completed(
    lake: Lake, tmp_path: Path, former: int, shards: int, rename: int
) -> None:
    write_dataset(lake, "first", former)
    lake.write_bytes("findings/build/ds/dataset.parquet", b"of the dataset")
    before = files_of(lake)
    with kill_at_rename(rename), pytest.raises(KilledError):
        write_dataset(lake, "second", shards)
    recover_all(lake)
    after = lake_at(tmp_path / "fresh", lambda fresh: write_dataset(fresh, "second", shards))
    after |= {"findings/build/ds/dataset.parquet": b"of the dataset"}
    assert files_of(lake) == (before if rename == 0 else after)
    assert hidden_of(lake) == []
    assert count_shards(lake, "build", "ds") == (former if rename == 0 else shards)


def test_an_exchange_has_so_many_renames(lake: Lake) -> None:
    write_dataset(lake, "first", 1)
    with kill_at_rename(-1) as done:
        write_dataset(lake, "second", 2)
    assert len(done) == EXCHANGE
    assert done[1:3] == ["ds -> ds", "ds -> ds"]


@pytest.mark.parametrize("removed", range(FOLDERS + 1))
def test_a_kill_after_the_renames_of_an_exchange_leaves_no_old_folder(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, removed: int
) -> None:
    write_dataset(lake, "first", 1)
    remove = shutil.rmtree
    done: list[Path] = []

    def dying(path: Path, **options: Any) -> None:
        if len(done) == removed:
            raise KilledError
        done.append(path)
        remove(path, **options)

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", dying)
        if removed < FOLDERS:
            with pytest.raises(KilledError):
                write_dataset(lake, "second", 2)
        else:
            write_dataset(lake, "second", 2)
    assert sorted(read_commits(lake, "build", "ds")) == [0, 1]
    recover_all(lake)
    assert hidden_of(lake) == []
    assert generations(lake) == {"second"}


def test_new_folders_that_no_marker_names_are_removed(lake: Lake) -> None:
    write_dataset(lake, "first", 1)
    before = files_of(lake)
    write_shard(lake, "second", ["sub-4"], shard=0, shards=2, new_folders=True)
    assert generations(lake) == {"first"}
    recover_all(lake)
    assert files_of(lake) == before
    assert hidden_of(lake) == []


@pytest.mark.parametrize("shards", [1, 4])
def test_on_an_object_store_new_files_are_copied_to_their_places(lake: Lake, shards: int) -> None:
    remote = Lake(f"memory://test-recovery/lake-{shards}", notify=lambda _: None).open()
    for written in (remote, lake):
        write_dataset(written, "first", 2)
        written.write_bytes("findings/build/ds/dataset.parquet", b"of the dataset")
    write_shard(remote, "killed", ["sub-4"], shard=3, shards=8, new_folders=True)
    assert generations(remote) == {"first"}
    with remote.lock("ds", "a test"):  # what a killed run wrote is removed
        for written in (remote, lake):
            write_dataset(written, "second", shards)
    held = {path.path.removeprefix(remote.root_path.path).lstrip("/"): path for path in remote.root_path.rglob("*")}
    del held["lake.json"]
    assert {name: path.read_bytes() for name, path in held.items() if path.is_file()} == files_of(lake)
