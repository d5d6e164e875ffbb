"""Commits: what a reader finds in a shard is of one generation and as it was written, or the damaged file is named."""

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
from tests.lake.shards_written import UNITS, files_of, generations, line, write_dataset, write_shard
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


# -- what a commit holds ----------------------------------------------------------------------------------------------


def test_a_commit_has_the_size_and_the_sha_256_of_each_file_of_the_shard(lake: Lake) -> None:
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
        "files": {path: list(known) for path, known in commit.files.items()},
    }


def test_a_commit_has_a_row_per_unit_that_says_where_its_lines_are(lake: Lake) -> None:
    write_shard(lake, "first", ["a", "bb"])
    commit = read_commit(lake, "build", "ds", 0)
    assert commit is not None
    first, second = line("Patient", "a", "first"), line("Patient", "bb", "first")
    assert list(commit.rows) == ["a", "bb"]
    row = commit.rows["bb"]
    assert (row["fingerprint"], row["to_retry"]) == ("first", False)
    assert {name: row[f"Patient_{name}"] for name in ("offset", "length", "lines", "digest")} == {
        "offset": len(first),
        "length": len(second),
        "lines": 1,
        "digest": hashlib.sha256(second).hexdigest()[:32],
    }


def test_nothing_else_is_left_of_writing_a_shard(lake: Lake) -> None:
    write_shard(lake, "first")
    assert sorted(files_of(lake)) == sorted([*FILES, "commits/build/ds/0000.parquet"])


def test_the_same_rows_give_the_same_bytes(lake: Lake, tmp_path: Path) -> None:
    other = make_lake(tmp_path / "other")
    for written in (lake, other, other):
        write_shard(written, "first")
    assert files_of(lake) == files_of(other)


def test_the_folders_of_shards_are_open_to_their_owner_alone(lake: Lake) -> None:
    write_shard(lake, "first")
    write_dataset(lake, "second", 2)
    for path in (*FILES, "commits/build/ds/0001.parquet"):
        assert stat.S_IMODE(Path(lake.root, path).parent.stat().st_mode) == 0o700, path


# -- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 2, 4])
def test_the_rows_and_lines_of_a_unit_are_found_in_its_shard(lake: Lake, shards: int) -> None:
    write_dataset(lake, "first", shards)
    assert count_shards(lake, "build", "ds") == shards
    assert sorted(read_commits(lake, "build", "ds")) == list(range(shards))
    for unit in UNITS:
        rows = read_unit(lake, FINDINGS, ["unit", "message"], dataset="ds", unit=unit, stage="build")
        assert rows.to_pylist() == [{"unit": unit, "message": "first"}]
        assert read_lines(lake, "Patient", dataset="ds", unit=unit) == line("Patient", unit, "first")
    found = [
        unit for rows in read_shards(lake, FINDINGS, dataset="ds", stage="build") for unit in rows["unit"].to_pylist()
    ]
    assert sorted(found) == list(UNITS)


def test_of_what_is_not_there_nothing_is_found(lake: Lake) -> None:
    assert read_unit(lake, header_table(), dataset="ds", unit="sub-1").equals(header_table().schema.empty_table())
    write_shard(lake, "first")
    assert read_unit(lake, FINDINGS, ["code"], dataset="ds", unit="sub-9", stage="build").to_pylist() == []
    assert read_unit(lake, FHIR_ELEMENTS, dataset="other", unit="sub-1").num_rows == 0
    assert read_lines(lake, "Patient", dataset="ds", unit="sub-9") == b""
    assert read_lines(lake, "Patient", dataset="other", unit="sub-1") == b""
    assert list(read_shards(lake, FINDINGS, dataset="other", stage="build")) == []
    assert (read_commit(lake, "build", "ds", 1), count_shards(lake, "extract", "ds")) == (None, 0)


def test_commits_of_several_numbers_of_shards_are_taken_for_none(lake: Lake) -> None:
    write_shard(lake, "first", ["sub-4"])
    write_shard(lake, "second", ["sub-1"], shard=1, shards=2)
    assert read_commits(lake, "build", "ds") == {}


def test_other_shards_are_removed_with_all_their_files(lake: Lake) -> None:
    write_dataset(lake, "first", 4)
    lake.write_bytes("findings/build/ds/dataset.parquet", b"of the dataset")
    remove_other_shards(lake, "build", "ds", [0, 2])
    assert sorted(read_commits(lake, "build", "ds")) == [0, 2]
    assert [name for name in files_of(lake) if "0001." in name or "0003." in name] == []
    for commit in read_commits(lake, "build", "ds").values():
        remove_shard(lake, commit)
    assert list(files_of(lake)) == ["findings/build/ds/dataset.parquet"]


# -- damage -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_reader, "_PAUSE", 0.001)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def alter(path: Path) -> None:
    """Change a byte of the values of the first column, or of the first line; the size stays."""
    content, place = bytearray(path.read_bytes()), 40
    if path.suffix == ".parquet":
        column = pq.read_metadata(path).row_group(0).column(0)
        place = column.data_page_offset + column.total_compressed_size - 1
    content[place] ^= 0xFF
    path.write_bytes(bytes(content))


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("damage", [truncate, alter, Path.unlink], ids=["truncated", "altered", "removed"])
@pytest.mark.parametrize("path", ["findings/build/ds/0000.parquet", "fhir/Patient/ds/0000.ndjson"])
def test_a_damaged_file_is_named(lake: Lake, path: str, damage: object) -> None:
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
    assert generations(lake) == {"second"}


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("content", [b"", b"PAR1", b"x" * 500])
def test_a_commit_that_cannot_be_read_is_named(lake: Lake, content: bytes) -> None:
    write_shard(lake, "first")
    Path(lake.root, "commits/build/ds/0000.parquet").write_bytes(content)
    assert read_commits(lake, "build", "ds") == {}
    with pytest.raises(DamagedShardError, match=r"^commits/build/ds/0000.parquet does not match its commit: run"):
        read_unit(lake, FINDINGS, dataset="ds", unit="sub-1", stage="build")


def test_size_is_looked_at_first_and_digests_only_if_asked_for(lake: Lake) -> None:
    write_shard(lake, "first")
    [commit] = read_commits(lake, "build", "ds").values()
    assert find_damaged_file(lake, commit, digests=True) is None
    alter(Path(lake.root, "findings/build/ds/0000.parquet"))
    assert find_damaged_file(lake, commit) is None
    assert find_damaged_file(lake, commit, digests=True) == "findings/build/ds/0000.parquet"


# -- readers beside a writer ------------------------------------------------------------------------------------------


def _write_again_and_again(root: str, resharding: bool) -> None:
    lake = Lake(root, notify=lambda _: None)
    for number in itertools.count():
        generation = f"{number:06}"  # of one length, so that files of two generations are of one size
        if resharding:
            write_dataset(lake, generation, 1 << number % 3)
        else:
            write_shard(lake, generation)


@pytest.mark.parametrize("resharding", [False, True], ids=["one shard", "other numbers of shards"])
def test_a_reader_finds_one_generation_while_a_writer_commits_again_and_again(lake: Lake, resharding: bool) -> None:
    write_dataset(lake, "first-", 1)
    writer = multiprocessing.get_context("spawn").Process(target=_write_again_and_again, args=(lake.root, resharding))
    writer.start()
    seen: set[str] = set()
    reads, end = 0, time.monotonic() + 8
    try:
        while time.monotonic() < end:
            assert writer.is_alive()
            found = generations(lake)
            assert found is not None
            # with several shards there may be no unit in shard 0
            assert len(found) <= 1
            seen |= found
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


# -- object stores ----------------------------------------------------------------------------------------------------


def test_an_object_store_takes_shards_without_renames(lake: Lake) -> None:
    remote = Lake("memory://test-commits/lake", notify=lambda _: None).open()
    write_shard(remote, "first")
    write_shard(lake, "first")
    for path in (*FILES, "commits/build/ds/0000.parquet"):
        assert remote.read_bytes(path) == lake.read_bytes(path), path
    assert generations(remote) == {"first"}
    assert read_lines(remote, "Patient", dataset="ds", unit="sub-2") == line("Patient", "sub-2", "first")
    write_dataset(remote, "second", 2)
    assert sorted(read_commits(remote, "build", "ds")) == [0, 1]
    assert generations(remote, 1) == {"second"}


def test_on_an_object_store_a_shard_that_is_being_written_has_no_commit() -> None:
    remote = Lake("memory://test-commits/half", notify=lambda _: None).open()
    write_shard(remote, "first")
    shard_writer.ShardWriter(remote, "build", "ds", 0, 1).write_lines("Patient", [b"{}\n"])
    assert read_commits(remote, "build", "ds") == {}
    assert read_lines(remote, "Patient", dataset="ds", unit="sub-1") == b""


def test_the_commit_of_another_shard_is_not_taken_for_its_own(lake: Lake) -> None:
    write_dataset(lake, "first", 2)
    first, second = (Path(lake.root, f"commits/build/ds/000{number}.parquet") for number in (0, 1))
    content = first.read_bytes(), second.read_bytes()
    first.write_bytes(content[1])
    second.write_bytes(content[0])
    assert read_commits(lake, "build", "ds") == {}
