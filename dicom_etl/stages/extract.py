"""extract: files that are new or changed -> `tag_profiles`, `headers`, `files` of each unit.

A unit of very many files is read in chunks that are joined when all are there, so that memory does not grow with it.
`files` is written last and is the commit: a unit whose three tables do not carry the fingerprint of its inventory is
extracted again, and takes over the rows of files that did not change.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
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
    TAG_PROFILES,
    headers,
)
from dicom_etl.lake.tables import Lake
from dicom_etl.sources import Source, SourceError
from dicom_etl.stages.chunks import JoinTask, extract_piece, is_large, join_unit, pieces_of
from dicom_etl.stages.duplicates import mark_duplicates
from dicom_etl.stages.unit import UnitDone, UnitTask, reader_mark

_FEW_FILES = 8000  # below, starting worker processes (a second) costs more than it gains
_FEW_ROWS = 200_000  # the same for joining
_BLOCK = 100_000  # entries


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
        for folder in ("tag_profiles", "headers", "files", "findings/extract"):
            lake.sweep(f"{folder}/{encode_name(name)}")
        lake.remove_parts(f"headers/{encode_name(name)}")
        gone = _remove_gone(lake, name, units)
        tasks = [
            UnitTask(source, lake, unit, entries, mark)
            for unit, entries in units.items()
            if subjects is None or unit in subjects
            for mark in [_fingerprint(entries)]
            if force or not _is_made(lake, name, unit, mark)
        ]
        if force:
            _forget(lake, name, tasks)
        try:
            read, failures = _run(engine, tasks, progress, name)
        finally:
            lake.remove_parts(f"headers/{encode_name(name)}")
        done = mark_duplicates(source, lake, units, failures, changed=bool(tasks or gone))
        # a footer of so many columns takes as long to read as several headers: what was just written is known
        written = {unit: several for unit, several in read.items() if unit not in failures}
        rows = sum(one.rows for several in written.values() for one in several) + sum(
            lake.row_count(headers(), dataset=name, unit=unit) for unit in units.keys() - written.keys()
        )
    if rows == 0 and not failures:
        total = sum(entries.num_rows for entries in units.values())
        raise SourceError(f"dataset {name}: none of the {total} files under {source.location} is DICOM")
    findings = lake.row_count(DATASET_FINDINGS, stage="extract", dataset=name) + sum(
        lake.row_count(FINDINGS, stage="extract", dataset=name, unit=unit) for unit in units
    )
    made, opened = len(tasks) - len(failures), sum(one.files_opened for several in read.values() for one in several)
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


def _fingerprint(entries: pa.Table) -> str:
    """Of a unit's part of the inventory. Millions of entries pass here in each run: no Python object per entry."""
    digest = hashlib.sha256()
    for field in INVENTORY.schema:
        for start in range(0, entries.num_rows, _BLOCK):
            column = entries[field.name].slice(start, _BLOCK).combine_chunks()
            digest.update(b"\0" if start and field.type == pa.string() else b"")
            digest.update(_texts(column) if field.type == pa.string() else column.cast(pa.int64()).to_numpy())
    return f"{reader_mark()}-{digest.hexdigest()[:32]}"


def _texts(column: pa.Array) -> pa.Buffer:
    """The texts of a column, joined."""
    filled = pc.fill_null(column, "\1")
    return pc.binary_join(pa.ListArray.from_arrays([0, len(filled)], filled), "\0")[0].as_buffer()


def _is_made(lake: Lake, dataset: str, unit: str, mark: str) -> bool:
    """Whether all three tables were made from this inventory. A marked duplicate adds `+...` in `headers`."""
    made = (lake.fingerprint(table, dataset=dataset, unit=unit) for table in (FILES, headers(), TAG_PROFILES))
    return all(found is not None and found.split("+")[0] == mark for found in made)


def _forget(lake: Lake, dataset: str, tasks: list[UnitTask]) -> None:
    for task in tasks:
        lake.remove(FILES.path(dataset=dataset, unit=task.unit))


def _remove_gone(lake: Lake, dataset: str, units: Collection[str]) -> int:
    """Remove the tables of units that are no longer in the inventory; the commit first."""
    kept = {encode_name(unit) for unit in units}
    folder = encode_name(dataset)
    gone = 0
    for tables in ("files", "headers", "tag_profiles", "findings/extract"):
        for name in lake.names(f"{tables}/{folder}", ".parquet"):
            if name not in kept:
                lake.remove(f"{tables}/{folder}/{name}.parquet")
                gone += tables == "files"
    return gone


def _run(
    engine: Engine, tasks: list[UnitTask], progress: Progress, dataset: str
) -> tuple[dict[str, list[UnitDone]], dict[str, BaseException]]:
    """Extract the units; returns what was done with the pieces of each, and the failures by unit."""
    pieces = [piece for task in tasks for piece in pieces_of(task)]
    total, done = sum(_files(piece) for piece in pieces), 0
    read: dict[str, list[UnitDone]] = defaultdict(list)
    failed: dict[tuple[str, int], BaseException] = {}
    for result in engine.map(extract_piece, pieces, small=total < _FEW_FILES, weight=_files):
        if result.value is None:
            failed[result.item.unit, result.item.chunk or 0] = result.error or RuntimeError("no result")
        else:
            read[result.item.unit].append(result.value)
        done += _files(result.item)
        progress(f"extract {dataset}", done, total)
    # of several failures of a unit, that of its first chunk is told: which came first says nothing
    failures = {unit: failed[unit, chunk] for unit, chunk in sorted(failed, reverse=True)}
    joins = [_join_task(task, read[task.unit]) for task in tasks if is_large(task) and task.unit not in failures]
    failures |= _join(engine, joins, progress, dataset)
    return read, failures


def _files(task: UnitTask) -> int:
    return int(task.entries.num_rows)


def _join_task(task: UnitTask, read: list[UnitDone]) -> JoinTask:
    rows, to_retry = sum(one.rows for one in read), any(one.to_retry for one in read)
    return JoinTask(task.lake, task.source.dataset, task.unit, task.fingerprint, len(read), rows, to_retry)


def _join(engine: Engine, tasks: list[JoinTask], progress: Progress, dataset: str) -> dict[str, BaseException]:
    """Write the tables of the units that were read in chunks; returns the failures by unit."""
    failures: dict[str, BaseException] = {}
    total, done = sum(task.rows for task in tasks), 0
    for result in engine.map(join_unit, tasks, small=total < _FEW_ROWS, weight=lambda task: task.rows):
        if result.error:
            failures[result.item.unit] = result.error
        result.item.lake.remove_folder(result.item.parts)
        done += result.item.rows
        progress(f"join {dataset}", done, total)
    return failures
