"""Reading shards: rows of one generation, also while a run writes.

Not here: queries of users, which read the files as they are.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import TypeVar

import pyarrow as pa

from dicom_etl.lake import recovery
from dicom_etl.lake.commits import Commit, DamagedShardError, count_shards, find_damaged_file, hash_lines, read_commit
from dicom_etl.lake.row_groups import make_empty_table
from dicom_etl.lake.schemas import COMMITS, RESOURCE_PATH, Table, make_path
from dicom_etl.lake.shards import assign_shard
from dicom_etl.lake.tables import Lake, LakeError

Value = TypeVar("Value")

_MISMATCH = " does not match its commit"
_TRIES, _PAUSE = 40, 0.05  # seconds; a commit is a dozen renames


def read_unit(
    lake: Lake, table: Table, columns: Sequence[str] | None = None, *, dataset: str, unit: str, stage: str = "extract"
) -> pa.Table:
    """The rows of one unit of a table in shards that has a column `unit`; of the row groups alone that may hold some.

    Raises:
        DamagedShardError: a file of its shard is not what its commit says.
    """
    stage_of = "build" if table.name == "fhir_elements" else stage

    def read(commit: Commit) -> pa.Table:
        ranges = {"unit": (unit, unit)}
        return lake.read_between(table, ranges, columns, dataset=dataset, stage=stage_of, shard=commit.shard)

    rows = _read_shard_of(lake, stage_of, dataset, unit, read)
    return make_empty_table(table, columns) if rows is None else rows


def read_shards(
    lake: Lake, table: Table, columns: Sequence[str] | None = None, *, dataset: str, stage: str = "extract"
) -> Iterator[pa.Table]:
    """The rows of a table of all shards of a dataset, shard by shard.

    Raises:
        DamagedShardError: a file of a shard is not what its commit says.
    """
    stage_of = "build" if table.name == "fhir_elements" else stage
    wanted = None if columns is None else list(columns)
    total = _settled_total(lake, stage_of, dataset)
    for shard in range(total):

        def read(commit: Commit) -> tuple[int, pa.Table]:
            return commit.shards, lake.read(table, wanted, dataset=dataset, stage=stage_of, shard=commit.shard)

        found = read_consistently(lake, stage_of, dataset, shard, read)
        if found is not None and found[0] == total:
            yield found[1]
        elif found is not None or _settled_total(lake, stage_of, dataset) != total:
            raise _moved(dataset)


def _moved(dataset: str) -> DamagedShardError:
    text = f"the number of shards of {dataset} changed while it was read: run the command again"
    return DamagedShardError(text)


def _settled_total(lake: Lake, stage: str, dataset: str) -> int:
    """The number of shards of a dataset, when its folders are not being exchanged."""
    for _ in range(_TRIES if lake.is_local else 0):
        if not lake.exists(recovery.make_exchange_marker_path(stage, dataset)):
            break
        time.sleep(_PAUSE)
    return count_shards(lake, stage, dataset)


def read_lines(lake: Lake, kind: str, *, dataset: str, unit: str) -> bytes:
    """The NDJSON lines of a resource type of one unit; nothing where it has none.

    Raises:
        DamagedShardError: they are not what the commit of their shard says.
    """
    return _read_shard_of(lake, "build", dataset, unit, lambda commit: read_unit_lines(lake, commit, kind, unit)) or b""


def _read_shard_of(lake: Lake, stage: str, dataset: str, unit: str, read: Callable[[Commit], Value]) -> Value | None:
    """What `read` makes of the shard of a unit; the number of shards may change meanwhile."""
    for _ in range(_TRIES):
        shards = count_shards(lake, stage, dataset) or 1
        found = read_consistently(
            lake, stage, dataset, assign_shard(unit, shards), lambda commit: (commit.shards, read(commit))
        )
        if found is None and (count_shards(lake, stage, dataset) or 1) == shards:
            return None
        if found is not None and found[0] == shards:
            return found[1]
    raise _moved(dataset)


def read_unit_lines(lake: Lake, commit: Commit, kind: str, unit: str) -> bytes:
    """As `read_lines`, of a shard whose commit is known.

    Raises:
        DamagedShardError: they are not what the commit says.
    """
    row = commit.rows.get(unit)
    if row is None or not row[f"{kind}_length"]:
        return b""
    path = make_path(RESOURCE_PATH, type=kind, dataset=commit.dataset, shard=commit.shard)
    lines = lake.read_slice(path, row[f"{kind}_offset"], row[f"{kind}_length"])
    if hash_lines(lines) != row[f"{kind}_digest"]:
        raise DamagedShardError.of(f"{path} (the lines of {unit})")
    return lines


def read_consistently(
    lake: Lake, stage: str, dataset: str, shard: int, read: Callable[[Commit], Value]
) -> Value | None:
    """The result of `read` over the files of a shard, all of one generation; None where the shard was never written.

    The commit is compared before and after, and so are the sizes of the files: a run may be writing.

    Args:
        lake, stage, dataset, shard: identify the shard.
        read: may be called several times.

    Raises:
        DamagedShardError: a file of the shard is not what its commit says.
    """
    path = COMMITS[stage].path(dataset=dataset, shard=shard)
    reason, commit = "", None
    for _ in range(_TRIES):
        before = lake.get_file_identity(path)
        commit = read_commit(lake, stage, dataset, shard)
        if commit is None and before is None and not _is_pending(lake, stage, dataset, path) and not lake.exists(path):
            return None
        if commit is not None and (damaged := find_damaged_file(lake, commit)) is None:
            try:
                value = read(commit)
            except (LakeError, pa.ArrowException, OSError, ValueError) as error:
                reason = re.sub(r"( is damaged|: run `).*", "", str(error)).removesuffix(_MISMATCH) + _MISMATCH
            else:
                # While files are renamed, some are of the next generation; only their digests tell which. Asked in
                # this order: a commit that is no longer pending is another one than before.
                is_pending = _is_pending(lake, stage, dataset, path)
                if (
                    lake.get_file_identity(path) == before
                    and find_damaged_file(lake, commit, digests=is_pending) is None
                ):
                    return value
                reason = f"{path} changes again and again"
        else:
            reason = f"{damaged if commit else path}{_MISMATCH}"
        time.sleep(_PAUSE)
    if commit and (damaged := find_damaged_file(lake, commit, digests=True)) and damaged not in reason:
        reason = f"{damaged}{_MISMATCH}"
    raise DamagedShardError(f"{reason}: run `dicom-etl run` or `audit` again, which rebuilds it")


def _is_pending(lake: Lake, stage: str, dataset: str, path: str) -> bool:
    """Whether files of the shard of a commit are being renamed, or their folders."""
    pending = recovery.make_hidden_path(PurePosixPath(path), recovery.PENDING)
    return lake.is_local and (
        lake.exists(str(pending)) or lake.exists(recovery.make_exchange_marker_path(stage, dataset))
    )
