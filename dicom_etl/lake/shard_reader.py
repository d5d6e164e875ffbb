"""Reading of shards: all rows are of the same generation, even while a run writes.

Not here: queries of users, which read the files directly.
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
_ATTEMPTS = 40
PAUSE = 0.05  # seconds between attempts; a commit is a dozen renames


def read_unit(
    lake: Lake, table: Table, columns: Sequence[str] | None = None, *, dataset: str, unit: str, stage: str = "extract"
) -> pa.Table:
    """Read the rows of one unit of a table in shards that has a column `unit`; only row groups that may contain it.

    Raises:
        DamagedShardError: a file of its shard does not match its commit.
    """
    stage_of = "build" if table.name == "fhir_elements" else stage

    def read(commit: Commit) -> pa.Table:
        ranges = {"unit": (unit, unit)}
        return lake.read_between(table, ranges, columns, dataset=dataset, stage=stage_of, shard=commit.shard)

    rows = _read_shard(lake, stage_of, dataset, unit, read)
    return make_empty_table(table, columns) if rows is None else rows


def read_shards(
    lake: Lake, table: Table, columns: Sequence[str] | None = None, *, dataset: str, stage: str = "extract"
) -> Iterator[pa.Table]:
    """Read a table of all shards of a dataset, one shard at a time.

    Raises:
        DamagedShardError: a file of a shard does not match its commit.
    """
    stage_of = "build" if table.name == "fhir_elements" else stage
    names = None if columns is None else list(columns)
    total = _count_settled_shards(lake, stage_of, dataset)
    for shard in range(total):

        def read(commit: Commit) -> tuple[int, pa.Table]:
            return commit.shards, lake.read(table, names, dataset=dataset, stage=stage_of, shard=commit.shard)

        result = read_consistently(lake, stage_of, dataset, shard, read)
        if result is not None and result[0] == total:
            yield result[1]
        elif result is not None or _count_settled_shards(lake, stage_of, dataset) != total:
            raise _reshard_error(dataset)


def _reshard_error(dataset: str) -> DamagedShardError:
    return DamagedShardError(f"the number of shards of {dataset} changed while it was read: run the command again")


def _count_settled_shards(lake: Lake, stage: str, dataset: str) -> int:
    """The number of shards of a dataset, while its folders are not being exchanged."""
    for _ in range(_ATTEMPTS if lake.is_local else 0):
        if not lake.exists(recovery.make_exchange_marker_path(stage, dataset)):
            break
        time.sleep(PAUSE)
    return count_shards(lake, stage, dataset)


def read_lines(lake: Lake, kind: str, *, dataset: str, unit: str) -> bytes:
    """Read the NDJSON lines of a resource type of one unit; empty if it has none.

    Raises:
        DamagedShardError: they do not match the commit of their shard.
    """
    return _read_shard(lake, "build", dataset, unit, lambda commit: read_unit_lines(lake, commit, kind, unit)) or b""


def _read_shard(lake: Lake, stage: str, dataset: str, unit: str, read: Callable[[Commit], Value]) -> Value | None:
    """The result of `read` for the shard of a unit, even if the number of shards changes meanwhile."""
    for _ in range(_ATTEMPTS):
        shards = count_shards(lake, stage, dataset) or 1
        result = read_consistently(
            lake, stage, dataset, assign_shard(unit, shards), lambda commit: (commit.shards, read(commit))
        )
        if result is None and (count_shards(lake, stage, dataset) or 1) == shards:
            return None
        if result is not None and result[0] == shards:
            return result[1]
    raise _reshard_error(dataset)


def read_unit_lines(lake: Lake, commit: Commit, kind: str, unit: str) -> bytes:
    """As `read_lines`, for a shard whose commit was read already.

    Raises:
        DamagedShardError: they do not match the commit.
    """
    row = commit.rows.get(unit)
    if row is None or not row[f"{kind}_length"]:
        return b""
    path = make_path(RESOURCE_PATH, type=kind, dataset=commit.dataset, shard=commit.shard)
    lines = lake.read_slice(path, row[f"{kind}_offset"], row[f"{kind}_length"])
    if hash_lines(lines) != row[f"{kind}_digest"]:
        raise DamagedShardError.from_path(f"{path} (the lines of {unit})")
    return lines


def read_consistently(
    lake: Lake, stage: str, dataset: str, shard: int, read: Callable[[Commit], Value]
) -> Value | None:
    """The result of `read` over the files of a shard, all of one generation; None if the shard was never written.

    A run may be writing, so the commit and the sizes of the files are compared before and after.

    Args:
        lake, stage, dataset, shard: identify the shard.
        read: may be called several times.

    Raises:
        DamagedShardError: a file of the shard does not match its commit.
    """
    path = COMMITS[stage].path(dataset=dataset, shard=shard)
    reason, commit = "", None
    for _ in range(_ATTEMPTS):
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
                # While files are renamed, some are of the next generation, which only their digests show. The order
                # matters: a commit that is no longer pending has another identity than before.
                is_pending = _is_pending(lake, stage, dataset, path)
                if (
                    lake.get_file_identity(path) == before
                    and find_damaged_file(lake, commit, digests=is_pending) is None
                ):
                    return value
                reason = f"{path} changes continually"
        else:
            reason = f"{damaged if commit else path}{_MISMATCH}"
        time.sleep(PAUSE)
    if commit and (damaged := find_damaged_file(lake, commit, digests=True)) and damaged not in reason:
        reason = f"{damaged}{_MISMATCH}"
    raise DamagedShardError(f"{reason}: run `dicom-etl run` or `dicom-etl audit` again to rebuild it")


def _is_pending(lake: Lake, stage: str, dataset: str, path: str) -> bool:
    """Whether the files of a shard, or the folders of its dataset, are being renamed."""
    pending = recovery.make_hidden_path(PurePosixPath(path), recovery.PENDING)
    return lake.is_local and (
        lake.exists(str(pending)) or lake.exists(recovery.make_exchange_marker_path(stage, dataset))
    )
