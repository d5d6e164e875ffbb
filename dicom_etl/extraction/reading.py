"""Reading the units that changed, chunk by chunk, with the workers of an engine.

Not here: what a worker does with a chunk (`chunk_reader`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from dicom_etl.engine import Engine, Progress
from dicom_etl.extraction.chunk_reader import ChunkSummary, read_chunk
from dicom_etl.extraction.chunks import Chunk, UnitFiles, chunks_folder, make_chunk, split_units
from dicom_etl.extraction.plan import Plan
from dicom_etl.lake.tables import Lake
from dicom_etl.sources import Source

# below this number of files, starting worker processes (a second each) costs more than it saves
FEW_FILES = 20_000


class ProgressCounter:
    """Reports how much of the work is done: files that are read, or rows that are written."""

    def __init__(self, title: str, total: int, progress: Progress) -> None:
        """Count to `total` under a title."""
        self.total, self._done = total, 0
        self._title, self._progress = title, progress

    def add(self, count: int) -> None:
        """Report that so many more are done."""
        self._done += count
        self._progress(self._title, self._done, self.total)


@dataclass
class UnitsRead:
    """The result of reading units."""

    chunks: list[tuple[Chunk, ChunkSummary]] = field(default_factory=list)  # of units that did not fail
    failures: dict[str, BaseException] = field(default_factory=dict)  # by unit


def read_units(source: Source, lake: Lake, engine: Engine, plan: Plan, progress: Progress) -> UnitsRead:
    """Read the units that changed; if a chunk of several units fails, each unit is read once more by itself."""
    inventory = plan.units.inventory
    chunks: list[Chunk] = []
    retries: dict[str, tuple[UnitFiles, tuple[int, ...]]] = {}
    for shard, is_reusable, units in plan.units_to_read():
        previous_shards = plan.previous_shards(shard) if is_reusable else ()
        chunks += split_units(source, lake, inventory, units, previous_shards)
        retries |= {unit.unit: (unit, previous_shards) for unit in units}
    lake.remove_other_chunks(chunks_folder(source.dataset), {chunk.key for chunk in chunks})
    counter = ProgressCounter(f"extract {source.dataset}", sum(chunk.file_count for chunk in chunks), progress)
    result = UnitsRead()
    retried: list[Chunk] = []
    for chunk, error in _read_chunks(engine, chunks, result, counter):
        if len(chunk.units) == 1:
            result.failures.setdefault(chunk.units[0], error)
            continue
        for unit, previous_shards in map(retries.__getitem__, chunk.units):
            retried.append(make_chunk(source, lake, inventory, [unit], previous_shards))
    for chunk, error in _read_chunks(engine, retried, result, counter):
        result.failures[chunk.units[0]] = error
    result.failures = dict(sorted(result.failures.items()))
    whole = (read for read in result.chunks if result.failures.keys().isdisjoint(read[0].units))
    # the parts of a unit in the order of their paths, whichever worker finished first
    result.chunks = sorted(whole, key=lambda read: (read[0].units[0], read[0].entries["path"][0].as_py()))
    return result


def _read_chunks(
    engine: Engine, chunks: list[Chunk], result: UnitsRead, counter: ProgressCounter
) -> Iterator[tuple[Chunk, BaseException]]:
    """Read chunks; yields those that failed, in their order, whichever worker failed first."""
    order = {chunk.key: number for number, chunk in enumerate(chunks)}
    failed: list[tuple[Chunk, BaseException]] = []
    small = counter.total < FEW_FILES
    for answer in engine.map(read_chunk, chunks, small=small, weight=lambda chunk: chunk.file_count):
        chunk = answer.item
        if answer.value is None:
            failed.append((chunk, answer.error or RuntimeError("no result")))
        else:
            result.chunks.append((chunk, answer.value))
        if answer.value is not None or len(chunk.units) == 1:  # the others are read once more
            counter.add(chunk.file_count)
    yield from sorted(failed, key=lambda failure: order[failure[0].key])
