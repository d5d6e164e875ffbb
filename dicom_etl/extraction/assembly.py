"""Assembling a shard of header tables, in a worker: previous rows of unchanged units, and the results of chunks.

The bytes of a shard depend on nothing but its rows: not on their chunks, nor on where they come from. Memory is that of
a shard; a unit that is larger than a shard passes through in parts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.extraction.chunks import chunk_path
from dicom_etl.extraction.findings import merge_findings
from dicom_etl.lake.commits import find_damaged_file, read_commits, remove_other_shards, remove_shard
from dicom_etl.lake.schemas import FILES, FINDINGS, TAG_PROFILES, Table, header_table
from dicom_etl.lake.shard_writer import ShardWriter
from dicom_etl.lake.shards import SHARD_ROWS, choose_row_groups
from dicom_etl.lake.tables import Lake


class StoredChunk(NamedTuple):
    """The stored result of a chunk: its name, its units, and whether it is a part of one large unit."""

    key: str
    units: tuple[str, ...]
    is_part: bool


class ShardTask(NamedTuple):
    """A shard to be written; sent to a worker."""

    lake: Lake
    dataset: str
    shard: int
    shards: int
    new_folders: bool  # the number of shards changes
    previous_shards: tuple[int, ...]  # with the previous rows of its units
    units: pa.Table  # rows of its commit
    unchanged: tuple[str, ...]  # units whose previous rows are reused, sorted
    chunks: tuple[StoredChunk, ...]  # of the other units, in their order
    duplicate_flags: Mapping[str, str]  # by path
    checksums: Mapping[str, str | None]  # by path

    @property
    def rows(self) -> int:
        """The number of its header rows."""
        return int(pc.sum(self.units["rows"]).as_py() or 0)


class _UnitGroup(NamedTuple):
    """Neighbouring units that are assembled together: several small ones, or one large one."""

    units: tuple[str, ...]
    is_large: bool


def assemble_shard(task: ShardTask) -> None:
    """Write all tables of a shard, and its commit."""
    writer = ShardWriter(task.lake, "extract", task.dataset, task.shard, task.shards, new_folders=task.new_folders)
    writer.write_table(FINDINGS, [_findings(task)])
    groups = _group_units(task.units)
    tag_profiles: set[int] = set()
    writer.write_table(
        header_table(), _header_rows(task, groups, tag_profiles), choose_row_groups(task.units["rows"].to_pylist())
    )
    file_rows = (_set_column(rows, "sha256", task.checksums) for rows in _rows(task, FILES, "files", groups))
    writer.write_table(FILES, file_rows, choose_row_groups(task.units["files"].to_pylist()))
    writer.write_table(TAG_PROFILES, [_tag_profiles(task, tag_profiles)])
    writer.commit(task.units)
    pa.default_memory_pool().release_unused()


def _group_units(units: pa.Table) -> list[_UnitGroup]:
    groups: list[_UnitGroup] = []
    small_units: list[str] = []
    group_size = 0
    for unit, rows, files in zip(*(units[name].to_pylist() for name in ("unit", "rows", "files")), strict=True):
        size = max(rows, files)
        if small_units and group_size + size > SHARD_ROWS:
            groups.append(_UnitGroup(tuple(small_units), is_large=False))
            small_units, group_size = [], 0
        if size > SHARD_ROWS:
            groups.append(_UnitGroup((unit,), is_large=True))
        else:
            small_units.append(unit)
            group_size += size
    return [*groups, _UnitGroup(tuple(small_units), is_large=False)] if small_units else groups


def _header_rows(task: ShardTask, groups: Sequence[_UnitGroup], tag_profiles: set[int]) -> Iterator[pa.Table]:
    """The header rows; their tag profiles are added to `tag_profiles`."""
    for rows in _rows(task, header_table(), "headers", groups):
        tag_profiles.update(pc.unique(rows["tag_profile"]).to_pylist())
        yield _set_column(rows, "duplicate", task.duplicate_flags)


def _set_column(rows: pa.Table, column: str, values: Mapping[str, str | None]) -> pa.Table:
    """Set a column by path; null for paths without a value."""
    if values:
        array = pa.array([values.get(path) for path in rows["path"].to_pylist()], pa.string())
    elif rows[column].null_count == rows.num_rows:
        return rows
    else:
        array = pa.nulls(rows.num_rows, pa.string())
    return rows.set_column(rows.column_names.index(column), column, array)


def _rows(task: ShardTask, table: Table, name: str, groups: Sequence[_UnitGroup]) -> Iterator[pa.Table]:
    """The rows of a table in its order, group by group; `name` is that of the table in the results of chunks."""
    all_unchanged = set(task.unchanged)
    for group in groups:
        unchanged = [unit for unit in group.units if unit in all_unchanged]
        is_reused = len(unchanged) == len(group.units)
        chunks = [chunk for chunk in task.chunks if not is_reused and _may_have_rows(chunk, group)]
        if group.is_large:
            tables = _previous_rows(task, table, unchanged) if unchanged else _read_chunks(task, chunks, name)
            yield from (rows for rows in tables if rows.num_rows)
            continue
        units = pa.array(group.units)
        changed = [rows.filter(pc.is_in(rows["unit"], units)) for rows in _read_chunks(task, chunks, name)]
        previous = _previous_rows(task, table, unchanged)
        yield pa.concat_tables([table.schema.empty_table(), *previous, *changed]).combine_chunks()


def _may_have_rows(chunk: StoredChunk, group: _UnitGroup) -> bool:
    """Whether a chunk may have rows of a group of units."""
    if chunk.is_part or group.is_large:
        return chunk.is_part and chunk.units[0] in group.units
    return chunk.units[0] <= group.units[-1] and group.units[0] <= chunk.units[-1]


def _previous_rows(task: ShardTask, table: Table, units: Sequence[str]) -> Iterator[pa.Table]:
    if not units:
        return
    ranges, unit_array = {"unit": (units[0], units[-1])}, pa.array(units)
    names = {"dataset": task.dataset, "stage": "extract"}
    for shard in task.previous_shards:
        for rows in task.lake.read_batches_between(table, ranges, shard=shard, **names):
            yield rows.filter(pc.is_in(rows["unit"], unit_array))


def _read_chunks(task: ShardTask, chunks: Iterable[StoredChunk], name: str) -> Iterator[pa.Table]:
    return (task.lake.read_arrow(chunk_path(task.dataset, chunk.key, name)) for chunk in chunks)


def _tag_profiles(task: ShardTask, needed: set[int]) -> pa.Table:
    """The tag profiles of the rows of the shard, each once."""
    previous = (
        task.lake.read(TAG_PROFILES, dataset=task.dataset, shard=shard)
        for shard in task.previous_shards
        if task.unchanged
    )
    profiles = TAG_PROFILES.schema.empty_table()
    missing = pa.array(needed, pa.int64())
    for candidates in (*previous, *_read_chunks(task, task.chunks, "tag_profiles")):
        added = candidates.filter(pc.is_in(candidates["tag_profile"], missing))
        if added.num_rows:
            profiles = pa.concat_tables([profiles, added])
            missing = missing.filter(pc.invert(pc.is_in(missing, pc.unique(added["tag_profile"]))))
    return profiles


def _findings(task: ShardTask) -> pa.Table:
    previous = _previous_rows(task, FINDINGS, task.unchanged)
    whole = [chunk for chunk in task.chunks if not chunk.is_part]
    parts: dict[str, list[StoredChunk]] = {}
    for chunk in task.chunks:
        if chunk.is_part:
            parts.setdefault(chunk.units[0], []).append(chunk)
    merged = (merge_findings(partial(_read_chunks, task, chunks, "findings")) for chunks in parts.values())
    return pa.concat_tables([FINDINGS.schema.empty_table(), *previous, *_read_chunks(task, whole, "findings"), *merged])


# -- removal ----------------------------------------------------------------------------------------------------------


def remove_units(lake: Lake, dataset: str, units: Collection[str]) -> None:
    """Remove units from the shards of a dataset (the caller holds its lock). Duplicate flags stay as they are.

    A damaged shard is removed as a whole: the next run reads its other units again.
    """
    commits = read_commits(lake, "extract", dataset)
    remove_other_shards(lake, "extract", dataset, commits.keys())  # files without a commit may hold any unit
    for shard, commit in commits.items():
        rows = commit.units.filter(pc.invert(pc.is_in(commit.units["unit"], pa.array(units, pa.string()))))
        if rows.num_rows == commit.units.num_rows:
            continue
        if not rows.num_rows or find_damaged_file(lake, commit, digests=True):
            remove_shard(lake, commit)
            continue
        header_rows = lake.read(header_table(), ["path", "duplicate"], dataset=dataset, shard=shard)
        file_rows = lake.read(FILES, ["path", "sha256"], dataset=dataset, shard=shard)
        assemble_shard(
            ShardTask(
                lake=lake,
                dataset=dataset,
                shard=shard,
                shards=commit.shards,
                new_folders=False,
                previous_shards=(shard,),
                units=rows,
                unchanged=tuple(rows["unit"].to_pylist()),
                chunks=(),
                duplicate_flags=_by_path(header_rows, "duplicate"),
                checksums=_by_path(file_rows, "sha256"),
            )
        )


def _by_path(rows: pa.Table, column: str) -> dict[str, str]:
    rows = rows.filter(pc.is_valid(rows[column]))
    return dict(zip(rows["path"].to_pylist(), rows[column].to_pylist(), strict=True))
