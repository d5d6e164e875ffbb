"""extract: files that are new or changed -> `layouts`, `headers`, `files` of each unit.

`files` is written last and is the commit: a unit whose three tables do not carry the fingerprint of its inventory is
extracted again, and takes over the rows of files that did not change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.engine import Engine, Progress
from dicom_etl.identity.names import encode_name
from dicom_etl.lake.schemas import (
    DATASET_FINDINGS,
    FILES,
    FINDINGS,
    INVENTORY,
    LAYOUTS,
    headers,
)
from dicom_etl.lake.tables import Lake
from dicom_etl.sources import Source, SourceError
from dicom_etl.stages.duplicates import mark_duplicates
from dicom_etl.stages.unit import UnitTask, extract_unit, reader_mark

_FEW_FILES = 400  # below, starting worker processes costs more than it gains


@dataclass(frozen=True)
class Extracted:
    """What an extraction did. `files_opened` counts every file that was opened, also for check sums."""

    dataset: str
    units: int
    units_made: int
    units_failed: int
    files_opened: int
    rows: int
    findings: int


def extract(
    source: Source,
    lake: Lake,
    engine: Engine,
    *,
    subjects: Collection[str] | None = None,
    force: bool = False,
    progress: Progress = lambda *_: None,
) -> Extracted:
    """Bring the header tables of a dataset up to its inventory.

    Args:
        source: opens the files.
        lake: holds the inventory.
        engine: where the units are read.
        subjects: only these units; None: all.
        force: read every file again.
        progress: called with ("extract NAME", files done, files to do).

    Raises:
        SourceError: there is no inventory, or not one DICOM file in it.
    """
    name = source.dataset
    with lake.lock(name, f"extract of {name}"):
        units = _units(lake, name)
        for folder in ("layouts", "headers", "files", "findings/extract"):
            lake.sweep(f"{folder}/{encode_name(name)}")
        gone = _remove_gone(lake, name, units)
        tasks = [
            UnitTask(source, lake, unit, _alone(entries), mark)
            for unit, entries in units.items()
            if subjects is None or unit in subjects
            for mark in [_fingerprint(entries)]
            if force or not _is_made(lake, name, unit, mark)
        ]
        if force:
            _forget(lake, name, tasks)
        opened, failures = _run(engine, tasks, progress, name)
        done = mark_duplicates(source, lake, units, failures, changed=bool(tasks or gone))
        rows = sum(lake.row_count(headers(), dataset=name, unit=unit) for unit in units)
    if rows == 0 and not failures:
        total = sum(entries.num_rows for entries in units.values())
        raise SourceError(f"dataset {name}: none of the {total} files under {source.location} is DICOM")
    findings = lake.row_count(DATASET_FINDINGS, stage="extract", dataset=name) + sum(
        lake.row_count(FINDINGS, stage="extract", dataset=name, unit=unit) for unit in units
    )
    made = len(tasks) - len(failures)
    return Extracted(name, len(units), made, len(failures), opened + done, rows, findings)


def _units(lake: Lake, dataset: str) -> dict[str, pa.Table]:
    """The inventory by unit (it lies sorted by unit and path)."""
    inventory = lake.read(INVENTORY, dataset=dataset)
    if inventory.num_rows == 0:
        raise SourceError(f"dataset {dataset}: there is no inventory; crawl it first")
    ends = pc.run_end_encode(inventory["unit"].combine_chunks())
    units, start = {}, 0
    for unit, end in zip(ends.values.to_pylist(), ends.run_ends.to_pylist(), strict=True):
        units[unit] = inventory.slice(start, end - start)
        start = end
    return units


def _alone(entries: pa.Table) -> pa.Table:
    """A part of the inventory with buffers of its own: a slice travels to a worker with the whole inventory."""
    return entries.take(pa.array(range(entries.num_rows), pa.int64()))


def _fingerprint(entries: pa.Table) -> str:
    """Of a unit's part of the inventory. Millions of entries pass here in each run: no Python object per entry."""
    digest = hashlib.sha256()
    for field in INVENTORY.schema:
        column = entries[field.name].combine_chunks()
        if field.type == pa.string():
            column = pc.fill_null(column, "\1")
            digest.update(pc.binary_join(pa.ListArray.from_arrays([0, len(column)], column), "\0")[0].as_buffer())
        else:
            digest.update(column.cast(pa.int64()).to_numpy())
    return f"{reader_mark()}-{digest.hexdigest()[:32]}"


def _is_made(lake: Lake, dataset: str, unit: str, mark: str) -> bool:
    """Whether all three tables were made from this inventory. A marked duplicate adds `+...` in `headers`."""
    made = (lake.fingerprint(table, dataset=dataset, unit=unit) for table in (FILES, headers(), LAYOUTS))
    return all(found is not None and found.split("+")[0] == mark for found in made)


def _forget(lake: Lake, dataset: str, tasks: list[UnitTask]) -> None:
    for task in tasks:
        lake.remove(FILES.path(dataset=dataset, unit=task.unit))


def _remove_gone(lake: Lake, dataset: str, units: Collection[str]) -> int:
    """Remove the tables of units that are no longer in the inventory; the commit first."""
    kept = {encode_name(unit) for unit in units}
    folder = encode_name(dataset)
    gone = 0
    for tables in ("files", "headers", "layouts", "findings/extract"):
        for name in lake.names(f"{tables}/{folder}", ".parquet"):
            if name not in kept:
                lake.remove(f"{tables}/{folder}/{name}.parquet")
                gone += tables == "files"
    return gone


def _run(
    engine: Engine, tasks: list[UnitTask], progress: Progress, dataset: str
) -> tuple[int, dict[str, BaseException]]:
    """Extract the units; returns files opened and the failures by unit."""
    total, done, opened = sum(task.entries.num_rows for task in tasks), 0, 0
    failures: dict[str, BaseException] = {}
    for result in engine.map(extract_unit, tasks, small=total < _FEW_FILES):
        if result.value is None:
            failures[result.item.unit] = result.error or RuntimeError("no result")
        else:
            opened += result.value.files_opened
        done += result.item.entries.num_rows
        progress(f"extract {dataset}", done, total)
    return opened, failures
