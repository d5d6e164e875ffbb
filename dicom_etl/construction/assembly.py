"""Assembling a shard of resources, in a worker: the lines of units as bytes, from previous shards and from chunks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.construction.chunks import UnitLines, chunk_path
from dicom_etl.lake.commits import Commit, find_damaged_file, read_commits, remove_other_shards, remove_shard
from dicom_etl.lake.schemas import (
    BUILD_COMMITS,
    FHIR_ELEMENTS,
    FINDINGS,
    RESOURCE_PATH,
    UNIT_RESOURCE_TYPES,
    Table,
    make_path,
)
from dicom_etl.lake.shard_writer import ShardWriter
from dicom_etl.lake.tables import Lake


class StoredUnit(NamedTuple):
    """A unit of a shard: its fingerprint, and where its lines are, in a chunk or in a previous shard."""

    unit: str
    fingerprint: str | None
    to_retry: bool
    chunk: str | None  # the key of a chunk
    previous_shard: int | None
    lines: Mapping[str, UnitLines]  # by resource type; empty if the unit was never built


class ShardTask(NamedTuple):
    """A shard to be written; sent to a worker."""

    lake: Lake
    dataset: str
    shard: int
    shards: int
    new_folders: bool  # the number of shards changes
    units: tuple[StoredUnit, ...]  # sorted

    @property
    def weight(self) -> int:
        """The number of bytes of its resources."""
        return sum(lines.length for unit in self.units for lines in unit.lines.values())


def assemble_shard(task: ShardTask) -> None:
    """Write the NDJSON files and tables of a shard, and its commit."""
    writer = ShardWriter(task.lake, "build", task.dataset, task.shard, task.shards, new_folders=task.new_folders)
    for kind in UNIT_RESOURCE_TYPES:
        writer.write_lines(kind, _read_lines(task, kind))
    writer.write_table(FHIR_ELEMENTS, [_read_rows(task, FHIR_ELEMENTS, "elements")])
    writer.write_table(FINDINGS, [_read_rows(task, FINDINGS, "findings")])
    writer.commit(commit_rows(task.units))
    pa.default_memory_pool().release_unused()


def commit_rows(units: Sequence[StoredUnit]) -> pa.Table:
    """The rows of a shard's commit; lines are stored in the order of the units."""
    offsets = dict.fromkeys(UNIT_RESOURCE_TYPES, 0)
    rows: list[dict[str, Any]] = []
    for unit in units:
        row: dict[str, Any] = {"unit": unit.unit, "fingerprint": unit.fingerprint, "to_retry": unit.to_retry}
        for kind in UNIT_RESOURCE_TYPES:
            lines = unit.lines.get(kind, UnitLines(0, 0, 0, ""))
            row |= {f"{kind}_{name}": value for name, value in lines._replace(offset=offsets[kind])._asdict().items()}
            offsets[kind] += lines.length
        rows.append(row)
    columns = [pa.array([row[field.name] for row in rows], field.type) for field in BUILD_COMMITS.schema]
    return pa.table(columns, schema=BUILD_COMMITS.schema)


def list_stored_units(commit: Commit) -> dict[str, StoredUnit]:
    """The units of a previous shard, and where their lines are in it."""
    return {
        unit: StoredUnit(
            unit,
            row["fingerprint"],
            row["to_retry"],
            None,
            commit.shard,
            {kind: UnitLines(*(row[f"{kind}_{name}"] for name in UnitLines._fields)) for kind in UNIT_RESOURCE_TYPES},
        )
        for unit, row in commit.rows.items()
    }


def _read_lines(task: ShardTask, kind: str) -> Iterator[bytes]:
    """The lines of all units; those of units that are neighbours in their file too are read at once."""
    path, start, end = "", 0, 0
    for unit in task.units:
        if not (lines := unit.lines.get(kind)) or not lines.length:
            continue
        unit_path = _lines_path(task, unit, kind)
        if unit_path != path or lines.offset != end:
            if end > start:
                yield task.lake.read_slice(path, start, end - start)
            path, start = unit_path, lines.offset
        end = lines.offset + lines.length
    if end > start:
        yield task.lake.read_slice(path, start, end - start)


def _lines_path(task: ShardTask, unit: StoredUnit, kind: str) -> str:
    if unit.chunk is not None:
        return chunk_path(task.dataset, unit.chunk, kind)
    return make_path(RESOURCE_PATH, type=kind, dataset=task.dataset, shard=unit.previous_shard or 0)


def _read_rows(task: ShardTask, table: Table, suffix: str) -> pa.Table:
    """The rows of a table of all units; `suffix` is that of the table's file in a chunk."""
    reused: dict[int, list[str]] = {}
    chunks: dict[str, None] = {}  # in the order of the units
    for unit in task.units:
        if unit.chunk is not None:
            chunks[unit.chunk] = None
        elif unit.previous_shard is not None:
            reused.setdefault(unit.previous_shard, []).append(unit.unit)
    tables = [table.schema.empty_table()]
    for shard, units in reused.items():
        rows = task.lake.read(table, stage="build", dataset=task.dataset, shard=shard)
        tables.append(rows.filter(pc.is_in(rows["unit"], pa.array(units))))
    tables += [task.lake.read_arrow(chunk_path(task.dataset, key, suffix)) for key in chunks]
    return pa.concat_tables(tables)


def remove_units(lake: Lake, dataset: str, units: Collection[str]) -> None:
    """Remove the resources of units from the shards of a dataset; the caller holds the lock of the dataset.

    A shard that is damaged is removed as a whole: the next run rebuilds its other units.
    """
    commits = read_commits(lake, "build", dataset)
    remove_other_shards(lake, "build", dataset, commits.keys())  # files without a commit may have any unit
    for shard, commit in commits.items():
        remaining = tuple(stored for unit, stored in list_stored_units(commit).items() if unit not in units)
        if len(remaining) == commit.units.num_rows:
            continue
        if remaining and not find_damaged_file(lake, commit, digests=True):
            assemble_shard(ShardTask(lake, dataset, shard, commit.shards, False, remaining))
        else:
            remove_shard(lake, commit)
