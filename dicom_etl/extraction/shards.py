"""Writing the shards whose units, duplicate flags or checksums changed, with the workers of an engine.

Not here: the tables of one shard (`assembly`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.engine import Engine, Progress
from dicom_etl.extraction.assembly import ShardTask, StoredChunk, assemble_shard
from dicom_etl.extraction.duplicates import CHECKSUM_COLUMNS, Duplicates
from dicom_etl.extraction.plan import Plan, PreviousUnit
from dicom_etl.extraction.reading import ProgressCounter, UnitsRead
from dicom_etl.lake.commits import Commit, remove_other_shards
from dicom_etl.lake.fingerprints import compute_fingerprint
from dicom_etl.lake.schemas import EXTRACT_COMMITS, FILES
from dicom_etl.lake.shard_writer import exchange_folders
from dicom_etl.lake.shards import assign_shard
from dicom_etl.lake.tables import Lake

# below this number of rows, starting worker processes (a second each) costs more than it saves
FEW_ROWS = 60_000


def write_shards(
    lake: Lake,
    engine: Engine,
    dataset: str,
    plan: Plan,
    units_read: UnitsRead,
    duplicates: Duplicates,
    progress: Progress,
) -> pa.Table:
    """Write the shards that changed; returns the rows of all commits as they are then.

    A shard that cannot be written fails its units: they are added to the failures of `units_read`.
    """
    commit_rows = _commit_rows(plan, units_read, duplicates)
    chunks: dict[int, list[StoredChunk]] = defaultdict(list)
    for chunk, _ in units_read.chunks:
        shard = assign_shard(chunk.units[0], plan.units.shards)
        chunks[shard].append(StoredChunk(chunk.key, chunk.units, chunk.is_part))
    tasks = [
        _shard_task(lake, dataset, plan, duplicates, shard, units, chunks[shard])
        for shard, units in sorted(commit_rows.items())
        if plan.is_resharded or chunks[shard] or _has_changed(lake, plan.commits.get(shard), units, duplicates)
    ]
    counter = ProgressCounter(f"write {dataset}", sum(task.rows for task in tasks), progress)
    for answer in engine.map(assemble_shard, tasks, small=counter.total < FEW_ROWS, weight=lambda task: task.rows):
        task = answer.item
        counter.add(task.rows)
        if answer.error is None:
            continue
        if plan.is_resharded:
            raise answer.error
        # the shard stays as it was, and the next run reads its changed units again
        units_read.failures |= {unit: answer.error for chunk in task.chunks for unit in chunk.units}
        previous = plan.commits.get(task.shard)
        commit_rows[task.shard] = previous.units if previous else EXTRACT_COMMITS.schema.empty_table()
    if plan.is_resharded:
        exchange_folders(lake, "extract", dataset)
    remove_other_shards(lake, "extract", dataset, commit_rows.keys())
    return pa.concat_tables([EXTRACT_COMMITS.schema.empty_table(), *(rows for _, rows in sorted(commit_rows.items()))])


def _commit_rows(plan: Plan, units_read: UnitsRead, duplicates: Duplicates) -> dict[int, pa.Table]:
    """The rows of the commit of each shard. A unit that was never read has no rows and no fingerprint."""
    read = _read_units(units_read)
    columns: dict[int, list[list[object]]] = defaultdict(lambda: [[] for _ in EXTRACT_COMMITS.schema])
    for unit, current, shard in zip(plan.units.names, plan.units.fingerprints, plan.shard_of_unit, strict=True):
        row = plan.previous.get(unit)
        if now := read.get(unit):
            row = now._replace(fingerprint=f"{current}!{now.fingerprint}" if now.to_retry else current)
        elif unit in units_read.failures:
            row = (row or PreviousUnit(None, 0, 0, to_retry=True, duplicates=None))._replace(to_retry=True)
        if row is None:  # a run that is limited to other subjects does not read it
            continue
        flags = duplicates.flags.get(unit)
        row = row._replace(duplicates=compute_fingerprint(sorted(flags.items()))[:8] if flags else None)
        for column, value in zip(columns[shard], (unit, *row), strict=True):
            column.append(value)
    return {
        shard: pa.table(
            [pa.array(values, field.type) for values, field in zip(lists, EXTRACT_COMMITS.schema, strict=True)],
            schema=EXTRACT_COMMITS.schema,
        )
        for shard, lists in columns.items()
    }


def _read_units(units_read: UnitsRead) -> dict[str, PreviousUnit]:
    """The units that were read, with the sums over their chunks; `fingerprint` is a digest of files to be retried."""
    units: dict[str, PreviousUnit] = {}
    for chunk, summary in units_read.chunks:
        for unit in chunk.units:
            rows, files = summary.rows.get(unit, 0), summary.files.get(unit, 0)
            before = units.get(unit, PreviousUnit("", 0, 0, to_retry=False, duplicates=None))
            digest = f"{before.fingerprint}{summary.to_retry.get(unit, '')}"
            to_retry = before.to_retry or unit in summary.to_retry
            units[unit] = PreviousUnit(digest, before.rows + rows, before.files + files, to_retry, None)
    return units


def _has_changed(lake: Lake, commit: Commit | None, units: pa.Table, duplicates: Duplicates) -> bool:
    """Whether a shard without changed files has other units, duplicate flags or checksums than its commit."""
    if commit is None or not commit.units.equals(units):
        return True
    files = lake.read(FILES, list(CHECKSUM_COLUMNS), dataset=commit.dataset, shard=commit.shard)
    files = files.filter(pc.is_valid(files["sha256"]))
    stored = dict(zip(files["path"].to_pylist(), files["sha256"].to_pylist(), strict=True))
    names = duplicates.checksums.keys() & set(units["unit"].to_pylist())
    return stored != {
        path: checksum for unit in names for path, checksum in duplicates.checksums[unit].items() if checksum
    }


def _shard_task(
    lake: Lake,
    dataset: str,
    plan: Plan,
    duplicates: Duplicates,
    shard: int,
    units: pa.Table,
    chunks: Sequence[StoredChunk],
) -> ShardTask:
    names = units["unit"].to_pylist()
    changed = {unit for chunk in chunks for unit in chunk.units}
    flags, checksums = duplicates.flags, duplicates.checksums
    return ShardTask(
        lake=lake,
        dataset=dataset,
        shard=shard,
        shards=plan.units.shards,
        new_folders=plan.is_resharded,
        previous_shards=plan.previous_shards(shard),
        units=units,
        unchanged=tuple(name for name in names if name not in changed),
        chunks=tuple(chunks),
        duplicate_flags={path: flag for unit in flags.keys() & set(names) for path, flag in flags[unit].items()},
        checksums={path: value for unit in checksums.keys() & set(names) for path, value in checksums[unit].items()},
    )
