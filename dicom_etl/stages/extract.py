"""extract: files that are new or changed -> `tag_profiles`, `headers`, `files` and findings, in shards.

Units are read in pieces, duplicates are decided over the dataset, then the shards are written whose rows or marks
changed. What is changed, kept and taken over is decided from the commits, without opening another file. A unit that
fails keeps its former rows and is read again by the next run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.engine import Engine, Progress
from dicom_etl.extraction.assembly import Part, ShardTask, assemble_shard
from dicom_etl.extraction.duplicates import COLUMNS, SUM_COLUMNS, Duplicates, Instances, find_duplicates
from dicom_etl.extraction.pieces import Piece, cut_pieces, join_units, piece_path, pieces_folder
from dicom_etl.extraction.plan import FormerUnit, Plan, Units, plan, state_of
from dicom_etl.extraction.reading import PieceRead, read_piece, uid_hashes
from dicom_etl.findings import describe_error, finding, findings_table
from dicom_etl.lake.commits import Commit, find_damage, read_commits, remove_other_shards
from dicom_etl.lake.fingerprints import fingerprint
from dicom_etl.lake.schemas import (
    DATASET_FINDINGS,
    EXTRACT_COMMITS,
    FILES,
    FINDINGS,
    INVENTORY,
    headers,
)
from dicom_etl.lake.shard_writer import exchange_folders
from dicom_etl.lake.shards import shard_of
from dicom_etl.lake.tables import Lake
from dicom_etl.sources import Source, SourceError

_FEW_FILES = 20_000  # below, starting worker processes (a second each) costs more than it gains
_FEW_ROWS = 60_000  # the same for writing shards


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


@dataclass
class _Read:
    """What became of the pieces."""

    parts: list[tuple[Piece, PieceRead]] = field(default_factory=list)  # of units that did not fail
    failures: dict[str, BaseException] = field(default_factory=dict)  # by unit


def extract(
    source: Source,
    lake: Lake,
    engine: Engine,
    *,
    subjects: Collection[str] | None = None,
    force: bool = False,
    progress: Progress = lambda *_: None,
) -> Extracted:
    """Update the header tables of a dataset to match its inventory.

    Args:
        source: opens the files.
        lake: holds the inventory.
        engine: where the pieces are read.
        subjects: only these units; None: all.
        force: read every file again.
        progress: called with ("extract NAME", files done, files to do).

    Raises:
        SourceError: there is no inventory, or not one DICOM file in it.
    """
    name = source.dataset
    with lake.lock(name, f"extract of {name}"):
        units = Units(_inventory(lake, name))
        todo, commits = _plan(lake, name, units, subjects=subjects, force=force)
        if force:
            lake.remove_folder(pieces_folder(name))
        read = _read_units(source, lake, engine, todo, progress)
        state = lake.fingerprint(DATASET_FINDINGS, stage="extract", dataset=name)
        opened = sum(summary.files_opened for _, summary in read.parts)
        former = _units_of(commits.values())
        # decided over the whole dataset: wherever something changed, or a killed run did not record its result
        if todo.changed or todo.gone or todo.moves or state != state_of(former):
            found = find_duplicates(source, _instances(lake, name, todo, read))
            opened += found.files_opened
            former = _write_shards(lake, engine, todo, commits, read, found, name, progress)
            _write_findings(lake, name, read, found, state_of(former))
        lake.remove_folder(pieces_folder(name))
        findings = _count_findings(lake, name)
    rows = pc.sum(former["rows"]).as_py() or 0
    if rows == 0 and not read.failures:
        total = sum(units.counts)
        raise SourceError(f"dataset {name}: none of the {total} files under {source.location} is DICOM")
    failed = len(read.failures)
    return Extracted(name, len(units.names), len(todo.changed) - failed, failed, opened, rows, findings)


def _inventory(lake: Lake, dataset: str) -> pa.Table:
    inventory = lake.read(INVENTORY, dataset=dataset)
    if inventory.num_rows == 0:
        raise SourceError(f"dataset {dataset}: there is no inventory; crawl it first")
    return inventory


def _plan(
    lake: Lake, dataset: str, units: Units, *, subjects: Collection[str] | None, force: bool
) -> tuple[Plan, dict[int, Commit]]:
    """What is to be read, and the commits that hold. Of a shard that is to be written the bytes are checked first."""
    commits = read_commits(lake, "extract", dataset)
    commits = {shard: commit for shard, commit in commits.items() if not find_damage(lake, commit)}
    todo = plan(units, commits, subjects=subjects, force=force)
    changed = {shard_of(units.names[number], units.shards) for number in todo.changed}
    touched = set(commits) if todo.moves else changed & commits.keys()
    damaged = [shard for shard in sorted(touched) if find_damage(lake, commits[shard], digests=True)]
    for shard in damaged:
        del commits[shard]
    return plan(units, commits, subjects=subjects, force=force) if damaged else todo, commits


def _units_of(commits: Iterable[Commit]) -> pa.Table:
    return pa.concat_tables([EXTRACT_COMMITS.schema.empty_table(), *(commit.units for commit in commits)])


def _write_findings(lake: Lake, dataset: str, read: _Read, found: Duplicates, state: str) -> None:
    failed = [
        finding("unit-failed", dataset, unit=unit, message=describe_error(error))
        for unit, error in read.failures.items()
    ]
    rows = findings_table([*failed, *found.findings])
    # without the state the next run decides again
    state = "" if read.failures or not found.is_complete else state
    lake.write(DATASET_FINDINGS, rows, fingerprint=state, stage="extract", dataset=dataset)


def _count_findings(lake: Lake, dataset: str) -> int:
    shards = read_commits(lake, "extract", dataset)
    return lake.row_count(DATASET_FINDINGS, stage="extract", dataset=dataset) + sum(
        lake.row_count(FINDINGS, stage="extract", dataset=dataset, shard=shard) for shard in shards
    )


# -- reading ----------------------------------------------------------------------------------------------------------


def _read_units(source: Source, lake: Lake, engine: Engine, todo: Plan, progress: Progress) -> _Read:
    """Read the units that changed; those of a piece that fails are read once more, each by itself."""
    groups, inventory = list(todo.to_read()), todo.units.inventory
    pieces = [
        piece
        for shard, usable, units in groups
        for piece in cut_pieces(source, lake, inventory, units, todo.former_shards(shard) if usable else ())
    ]
    lake.remove_other_parts(pieces_folder(source.dataset), {piece.key for piece in pieces})
    counter = _Counter(f"extract {source.dataset}", sum(map(_files, pieces)), progress)
    read = _Read()
    alone: list[Piece] = []
    by_name = {unit.unit: (unit, shard, usable) for shard, usable, units in groups for unit in units}
    for piece, error in _read_pieces(engine, pieces, read, counter, small=counter.total < _FEW_FILES):
        if len(piece.units) == 1:
            read.failures.setdefault(piece.units[0], error)
            continue
        for unit, shard, usable in (by_name[name] for name in piece.units):
            former = todo.former_shards(shard) if usable else ()
            alone.append(join_units(source, lake, inventory, [unit], former))
    for piece, error in _read_pieces(engine, alone, read, counter, small=counter.total < _FEW_FILES):
        read.failures[piece.units[0]] = error
    read.failures = dict(sorted(read.failures.items()))
    whole = (part for part in read.parts if read.failures.keys().isdisjoint(part[0].units))
    # the chunks of a unit in the order of their paths, whichever worker was the first
    read.parts = sorted(whole, key=lambda part: (part[0].units[0], part[0].entries["path"][0].as_py()))
    return read


def _read_pieces(
    engine: Engine, pieces: list[Piece], read: _Read, counter: _Counter, *, small: bool
) -> Iterator[tuple[Piece, BaseException]]:
    """Read pieces; yields those that failed, in their order."""
    place = {piece.key: number for number, piece in enumerate(pieces)}
    failed: list[tuple[Piece, BaseException]] = []
    for result in engine.map(read_piece, pieces, small=small, weight=_files):
        if result.value is None:
            failed.append((result.item, result.error or RuntimeError("no result")))
        else:
            read.parts.append((result.item, result.value))
        if result.value is not None or len(result.item.units) == 1:
            counter.add(_files(result.item))
    # report the failure of the first chunk of a unit, whichever worker failed first
    yield from sorted(failed, key=lambda item: place[item[0].key])


class _Counter:
    """Files done of those to do."""

    def __init__(self, what: str, total: int, progress: Progress) -> None:
        self.total, self._done = total, 0
        self._what, self._progress = what, progress

    def add(self, files: int) -> None:
        self._done += files
        self._progress(self._what, self._done, self.total)


def _files(piece: Piece) -> int:
    return int(piece.entries.num_rows)


# -- duplicates -------------------------------------------------------------------------------------------------------


def _instances(lake: Lake, dataset: str, todo: Plan, read: _Read) -> list[Instances]:
    """All instances that the dataset will have: those of pieces, and those of former rows that stay."""
    instances = [
        Instances(
            summary.uid_hashes,
            partial(_read_part, lake, dataset, piece.key, "headers", COLUMNS),
            partial(_read_part, lake, dataset, piece.key, "files", SUM_COLUMNS),
        )
        for piece, summary in read.parts
    ]
    replaced = todo.gone.union(*(piece.units for piece, _ in read.parts))
    for shard in sorted(todo.whole):
        rows = _kept_rows(lake, dataset, shard, ("unit", "SOPInstanceUID"), replaced)
        if rows.num_rows:
            read_rows = partial(_kept_rows, lake, dataset, shard, COLUMNS, replaced)
            read_sums = partial(lake.read, FILES, list(SUM_COLUMNS), dataset=dataset, shard=shard)
            instances.append(Instances(uid_hashes(rows["SOPInstanceUID"]), read_rows, read_sums))
    return instances


def _read_part(lake: Lake, dataset: str, key: str, kind: str, columns: tuple[str, ...]) -> pa.Table:
    return lake.read_part(piece_path(dataset, key, kind)).select(list(columns))


def _kept_rows(lake: Lake, dataset: str, shard: int, columns: tuple[str, ...], replaced: Collection[str]) -> pa.Table:
    rows = lake.read(headers(), list(columns), dataset=dataset, shard=shard)
    return rows.filter(pc.invert(pc.is_in(rows["unit"], pa.array(replaced, pa.string()))))


# -- shards -----------------------------------------------------------------------------------------------------------


def _write_shards(
    lake: Lake,
    engine: Engine,
    todo: Plan,
    commits: Mapping[int, Commit],
    read: _Read,
    found: Duplicates,
    dataset: str,
    progress: Progress,
) -> pa.Table:
    """Write the shards whose rows or marks change; returns what all commits then say."""
    rows = _commit_rows(todo, read, found)
    parts: dict[int, list[Part]] = defaultdict(list)
    for piece, _ in read.parts:
        parts[shard_of(piece.units[0], todo.units.shards)].append(Part(piece.key, piece.units, piece.is_chunk))
    tasks = [
        _shard_task(lake, dataset, todo, found, shard, units, parts[shard])
        for shard, units in sorted(rows.items())
        if todo.moves or parts[shard] or _is_other(lake, commits.get(shard), units, found)
    ]
    counter = _Counter(f"write {dataset}", sum(task.rows for task in tasks), progress)
    for result in engine.map(assemble_shard, tasks, small=counter.total < _FEW_ROWS, weight=lambda task: task.rows):
        counter.add(result.item.rows)
        if result.error is None:
            continue
        if todo.moves:
            raise result.error
        # the shard is as it was, and its units are read again by the next run
        read.failures |= {unit: result.error for part in result.item.parts for unit in part.units}
        former = commits.get(result.item.shard)
        rows[result.item.shard] = former.units if former else EXTRACT_COMMITS.schema.empty_table()
    if todo.moves:
        exchange_folders(lake, "extract", dataset)
    remove_other_shards(lake, "extract", dataset, rows.keys())
    return pa.concat_tables([EXTRACT_COMMITS.schema.empty_table(), *(rows[shard] for shard in sorted(rows))])


def _commit_rows(todo: Plan, read: _Read, found: Duplicates) -> dict[int, pa.Table]:
    """By shard, the rows of its commit. A unit that was never read has no rows and no fingerprint."""
    renewed: dict[str, FormerUnit] = {}
    for piece, summary in read.parts:
        for unit in piece.units:
            rows, files = summary.rows.get(unit, 0), summary.files.get(unit, 0)
            before = renewed.get(unit, FormerUnit("", 0, 0, to_retry=False, duplicates=None))
            digest = f"{before.fingerprint}{summary.to_retry.get(unit, '')}"
            retry = before.to_retry or unit in summary.to_retry
            renewed[unit] = FormerUnit(digest, before.rows + rows, before.files + files, retry, None)
    columns: dict[int, list[list[object]]] = defaultdict(lambda: [[] for _ in EXTRACT_COMMITS.schema])
    for unit, print_, shard in zip(todo.units.names, todo.units.fingerprints, todo.shard_of_unit, strict=True):
        row = todo.former.get(unit)
        if now := renewed.get(unit):
            row = now._replace(fingerprint=f"{print_}!{now.fingerprint}" if now.to_retry else print_)
        elif unit in read.failures:
            row = (row or FormerUnit(None, 0, 0, to_retry=True, duplicates=None))._replace(to_retry=True)
        if row is None:  # a run that is limited to some subjects has not come to it
            continue
        marks = found.marks.get(unit)
        row = row._replace(duplicates=fingerprint(sorted(marks.items()))[:8] if marks else None)
        for column, value in zip(columns[shard], (unit, *row), strict=True):
            column.append(value)
    return {
        shard: pa.table(
            [pa.array(values, field.type) for values, field in zip(lists, EXTRACT_COMMITS.schema, strict=True)],
            schema=EXTRACT_COMMITS.schema,
        )
        for shard, lists in columns.items()
    }


def _is_other(lake: Lake, commit: Commit | None, units: pa.Table, found: Duplicates) -> bool:
    """Whether a shard of former rows has other units, marks or check sums than its commit says."""
    if commit is None or not commit.units.equals(units):
        return True
    stored = lake.read(FILES, list(SUM_COLUMNS), dataset=commit.dataset, shard=commit.shard)
    stored = stored.filter(pc.is_valid(stored["sha256"]))
    names = found.sums.keys() & set(units["unit"].to_pylist())
    sums = {path: digest for unit in names for path, digest in found.sums[unit].items() if digest}
    return dict(zip(stored["path"].to_pylist(), stored["sha256"].to_pylist(), strict=True)) != sums


def _shard_task(
    lake: Lake, dataset: str, todo: Plan, found: Duplicates, shard: int, units: pa.Table, parts: list[Part]
) -> ShardTask:
    names = units["unit"].to_pylist()
    renewed = {unit for part in parts for unit in part.units}
    return ShardTask(
        lake,
        dataset,
        shard,
        todo.units.shards,
        todo.moves,
        todo.former_shards(shard),
        units,
        tuple(name for name in names if name not in renewed),
        tuple(parts),
        {path: mark for unit in found.marks.keys() & set(names) for path, mark in found.marks[unit].items()},
        {path: digest for unit in found.sums.keys() & set(names) for path, digest in found.sums[unit].items()},
    )
