"""Building the units that changed, chunk by chunk, with the workers of an engine.

Not here: what a worker does with a chunk (`chunk_builder`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from dicom_etl.construction.chunk_builder import build_chunk
from dicom_etl.construction.chunks import BuiltChunk, Chunk, ShardUnits, chunks_folder, group_units
from dicom_etl.construction.plan import Plan
from dicom_etl.engine import Engine, Progress
from dicom_etl.findings import describe_error
from dicom_etl.lake.fingerprints import compute_fingerprint
from dicom_etl.lake.tables import Lake

# below this number of seconds, starting worker processes (a second each) costs more than it saves
FEW_SECONDS = 4.0
_SECONDS_PER_UNIT, _SECONDS_PER_ROW = 0.0004, 0.00002  # as measured


@dataclass
class UnitsBuilt:
    """The result of building units."""

    chunks: list[tuple[Chunk, BuiltChunk]] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)  # of the units that failed


def build_units(lake: Lake, engine: Engine, dataset: str, plan: Plan, progress: Progress) -> UnitsBuilt:
    """Build the units that changed; if a chunk of several units fails, each unit is built once more by itself."""
    chunks = list(_make_chunks(lake, dataset, plan))
    lake.remove_other_chunks(chunks_folder(dataset), {chunk.key for chunk in chunks})
    total, done = sum(chunk.row_count for chunk in chunks), 0
    seconds = sum(len(chunk.inputs.units) for chunk in chunks) * _SECONDS_PER_UNIT + total * _SECONDS_PER_ROW
    result = UnitsBuilt()
    while chunks:
        retried: list[Chunk] = []
        small = seconds < FEW_SECONDS
        for answer in engine.map(build_chunk, chunks, small=small, weight=lambda chunk: chunk.row_count):
            chunk = answer.item
            units = chunk.inputs.units
            if answer.value is not None:
                result.chunks.append((chunk, answer.value))
                result.errors |= answer.value.errors
            elif len(units) == 1:
                result.errors[units[0]] = describe_error(answer.error)
            else:
                retried += [_make_chunk(lake, dataset, plan, [unit]) for unit in units]
                continue
            done += chunk.row_count
            progress(f"build {dataset}", min(done, total), total)
        chunks = retried
    return result


def _make_chunks(lake: Lake, dataset: str, plan: Plan) -> Iterator[Chunk]:
    """The chunks of all changed units: each of units of one shard of header rows, in their order."""
    by_shard: dict[int, list[str]] = defaultdict(list)
    for unit in plan.changed:
        by_shard[plan.inputs.units.shard_of[unit]].append(unit)
    for shard in sorted(by_shard):
        for units in group_units((unit, plan.inputs.row_count(unit)) for unit in sorted(by_shard[shard])):
            yield _make_chunk(lake, dataset, plan, units)


def _make_chunk(lake: Lake, dataset: str, plan: Plan, units: Sequence[str]) -> Chunk:
    inputs = plan.inputs
    sources: dict[int, set[str]] = defaultdict(set)
    for source in {source for unit in units for source in inputs.source_units(unit)}:
        if source in inputs.units.shard_of:
            sources[inputs.units.shard_of[source]].add(source)
    return Chunk(
        lake=lake,
        dataset=dataset,
        inputs=inputs.for_chunk(units),
        sources=tuple(ShardUnits(shard, tuple(sorted(names))) for shard, names in sorted(sources.items())),
        row_count=sum(inputs.row_count(unit) for unit in units),
        key=compute_fingerprint([inputs.fingerprints[unit] for unit in units]),
    )
