"""Commits: which files belong to a shard, and how they are replaced together.

A shard of a stage consists of several files: tables and NDJSON. Its commit
(`commits/<stage>/<dataset>/<shard>.parquet`) has one row per unit and, in its footer, the size and SHA-256 of each of
these files. It is written last. On a local lake:

1. All files are written and synced under hidden, fixed names (`.0003.parquet.new`), then a pending commit.
2. The files are renamed to their final names, the commit last.

If a run is killed before the pending commit is written, the shard stays as it was; if it is killed afterwards,
`recovery` completes the shard. If the number of shards changes, all files are written into hidden folders, which are
exchanged in the same way (`exchange_folders`). An object store has no renames: there the commit is removed first,
files are copied out of the hidden folders, and a shard without a commit is rebuilt.

Not here: which units are in which shard (`lake.shards`), reading rows (`lake.shard_reader`) and writing them
(`lake.shard_writer`).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from dicom_etl.identity.name_encoding import encode_name
from dicom_etl.lake import recovery
from dicom_etl.lake.row_groups import read_parquet
from dicom_etl.lake.schemas import COMMITS
from dicom_etl.lake.tables import Lake, LakeError

_DAMAGED = ".damaged"


class DamagedShardError(LakeError):
    """A file of a shard does not match the size or digest in its commit; the text names it."""

    @classmethod
    def from_path(cls, path: str) -> DamagedShardError:
        """The error of a file."""
        return cls(f"{path} does not match its commit: run `dicom-etl run` or `dicom-etl audit` again to rebuild it")


@dataclass(frozen=True)
class Commit:
    """What is stored in a shard of a stage.

    Attributes:
        stage: `extract` or `build`.
        dataset: its dataset.
        shard: its number.
        shards: how many shards the dataset has.
        units: a row per unit, with the columns of the commits of the stage.
        files: by path, the size in bytes and SHA-256 of each file.
    """

    stage: str
    dataset: str
    shard: int
    shards: int
    units: pa.Table
    files: Mapping[str, tuple[int, str]]

    @property
    def unit_names(self) -> list[str]:
        """The names of its units, sorted."""
        names: list[str] = self.units["unit"].to_pylist()
        return names

    @cached_property
    def rows(self) -> dict[str, dict[str, Any]]:
        """The rows of `units`, by unit."""
        return {row["unit"]: row for row in self.units.to_pylist()}


# -- reading ----------------------------------------------------------------------------------------------------------


def read_commits(lake: Lake, stage: str, dataset: str) -> dict[int, Commit]:
    """The commits of a dataset by shard; none if they do not agree on the number of shards."""
    commits: dict[int, Commit] = {}
    for name in lake.list_names(f"commits/{stage}/{encode_name(dataset)}", ".parquet"):
        if name.isdecimal() and (commit := read_commit(lake, stage, dataset, int(name))):
            commits[commit.shard] = commit
    counts = {commit.shards for commit in commits.values()}
    return commits if len(counts) < 2 else {}


def read_commit(lake: Lake, stage: str, dataset: str, shard: int) -> Commit | None:
    """The commit of a shard; None if it does not exist or cannot be read."""
    content = lake.read_bytes(COMMITS[stage].path(dataset=dataset, shard=shard))
    if content is None:
        return None
    try:
        file = pq.ParquetFile(io.BytesIO(content))
        footer = orjson.loads((file.metadata.metadata or {})[recovery.COMMIT_KEY])
        if (footer["stage"], footer["dataset"], footer["shard"]) != (stage, dataset, shard):
            return None  # the file of another shard
        units = read_parquet(io.BytesIO(content))
        files = {path: (size, digest) for path, (size, digest) in footer["files"].items()}
        return Commit(stage, dataset, shard, footer["shards"], units.cast(COMMITS[stage].schema), files)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):  # OSError: checksums, not the disk
        return None


def count_shards(lake: Lake, stage: str, dataset: str) -> int:
    """The number of shards of a dataset, from one of its commits; 0 if there is none."""
    for name in lake.list_names(f"commits/{stage}/{encode_name(dataset)}", ".parquet"):
        if name.isdecimal() and (commit := read_commit(lake, stage, dataset, int(name))):
            return commit.shards
    return 0


def find_damaged_file(lake: Lake, commit: Commit, *, digests: bool = False) -> str | None:
    """The first file that is missing, or whose size (with `digests` also SHA-256) is not the one in the commit."""
    for path, (size, digest) in sorted(commit.files.items()):
        if lake.get_size(path) != size:
            return path
        if digests and hashlib.sha256(lake.read_bytes(path) or b"").hexdigest() != digest:
            return path
    return None


def warn_of_damage(lake: Lake, commit: Commit, *, digests: bool = False) -> str | None:
    """As `find_damaged_file`; also notifies the user that the units of the shard are processed again."""
    path = find_damaged_file(lake, commit, digests=digests)
    if path:
        lake.notify(f"{path} does not match its commit: the {commit.units.num_rows} units of its shard are rebuilt")
    return path


def require_undamaged(lake: Lake, stage: str, dataset: str, commits: Iterable[Commit], *, digests: bool) -> None:
    """Check the shards of a stage before another stage reads them; the caller holds the lock of their dataset.

    Args:
        lake, stage, dataset: identify the shards.
        commits: all commits of the shards.
        digests: check the SHA-256 of files, not only their sizes.

    Raises:
        DamagedShardError: a file does not match its commit. Its shard is discarded, so that the next run rebuilds it.
    """
    for commit in commits:
        if path := find_damaged_file(lake, commit, digests=digests):
            lake.write_bytes(make_damage_marker_path(stage, dataset, commit.shard), b"")
            lake.remove(COMMITS[stage].path(dataset=dataset, shard=commit.shard))
            raise DamagedShardError.from_path(path)
    folder = lake.resolve(f"commits/{stage}/{encode_name(dataset)}")
    for name in [child.name for child in folder.iterdir()] if folder.is_dir() else []:
        if name.startswith(".") and name.endswith(_DAMAGED):
            table = COMMITS[stage].path(dataset=dataset, shard=int(name[1:].removesuffix(_DAMAGED)))
            raise DamagedShardError.from_path(table)


def make_damage_marker_path(stage: str, dataset: str, shard: int) -> str:
    """The path of a marker, which exists while a shard is damaged and not rebuilt yet."""
    return f"commits/{stage}/{encode_name(dataset)}/.{shard:04d}{_DAMAGED}"


def remove_shard(lake: Lake, commit: Commit) -> None:
    """Remove a shard that no longer has a unit; its commit first."""
    lake.remove(COMMITS[commit.stage].path(dataset=commit.dataset, shard=commit.shard))
    for path in commit.files:
        lake.remove(path)


def remove_other_shards(lake: Lake, stage: str, dataset: str, shards: Collection[int]) -> None:
    """Remove all shards of a dataset except for some, which are those that have a unit; their commits first."""
    for folder in reversed(recovery.list_stage_folders(stage, dataset)):
        for name in lake.list_names(folder):
            number = name.partition(".")[0]
            if number.isdecimal() and int(number) not in shards:
                lake.remove(f"{folder}/{name}")
                lake.remove(make_damage_marker_path(stage, dataset, int(number)))


def hash_lines(lines: bytes) -> str:
    """The digest of the NDJSON lines of a unit: the first 32 hexadecimal digits of their SHA-256."""
    return hashlib.sha256(lines).hexdigest()[:32]
