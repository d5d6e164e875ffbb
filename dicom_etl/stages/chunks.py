"""Part of extract: a unit of very many files, read in chunks by several workers and joined by one.

What a chunk gave waits as parts in a hidden folder beside the unit's header table. The tables of a unit are the same
bytes however it was cut, and reading, waiting and joining take the memory of a chunk and not of the unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.findings import Finding, findings_table
from dicom_etl.lake.schemas import FILES, FINDINGS, TAG_PROFILES, headers, place
from dicom_etl.lake.tables import Lake
from dicom_etl.stages.unit import UnitDone, UnitTask, extract_unit, made_mark, most_frequent, read_files

CHUNK_FILES = 5_000  # at most; a unit of no more is read in one piece

_PARTS = "headers/{dataset}/.{unit}.{mark}.parts"


class JoinTask(NamedTuple):
    """A unit whose chunks are all read; travels to a worker."""

    lake: Lake
    dataset: str
    unit: str
    fingerprint: str
    chunks: int
    rows: int
    to_retry: bool

    @property
    def parts(self) -> str:
        """The folder of its parts."""
        return _parts(self.dataset, self.unit, self.fingerprint)


def is_large(task: UnitTask) -> bool:
    """Whether a unit is read in chunks."""
    return bool(task.entries.num_rows > CHUNK_FILES)


def pieces_of(task: UnitTask) -> list[UnitTask]:
    """The unit itself, or its chunks: they depend on its part of the inventory alone."""
    if not is_large(task):
        return [task]
    return [task._replace(entries=chunk, chunk=number) for number, chunk in enumerate(_cut(task.entries))]


def extract_piece(task: UnitTask) -> UnitDone:
    """Extract a unit, or read a chunk of one and put aside what it gave."""
    return extract_unit(task) if task.chunk is None else _read_chunk(task)


def join_unit(task: JoinTask) -> None:
    """Write the tables of a unit from the parts of its chunks; `files` last, as the commit.

    The parts stay: whoever asked for it removes them, so that a join whose worker died can be done again.
    """
    lake, where = task.lake, {"dataset": task.dataset, "unit": task.unit}
    mark = made_mark(task.fingerprint, to_retry=task.to_retry)
    parts = {
        kind: _Parts(lake, task.parts, task.chunks, kind) for kind in ("findings", "tag_profiles", "headers", "files")
    }
    lake.write(FINDINGS, _joined_findings(parts["findings"]), stage="extract", fingerprint=mark, **where)
    lake.write(TAG_PROFILES, _joined_tag_profiles(parts["tag_profiles"]), fingerprint=mark, **where)
    lake.write_pieces(headers(), parts["headers"], fingerprint=mark, **where)
    lake.write_pieces(FILES, parts["files"], fingerprint=mark, **where)


# -- cutting ----------------------------------------------------------------------------------------------------------


def _cut(entries: pa.Table) -> Iterator[pa.Table]:
    """Neighbours in the order of their paths."""
    start = 0
    while entries.num_rows - start > CHUNK_FILES:
        size = _chunk_size(entries["path"].slice(start, CHUNK_FILES + 1).to_pylist())
        yield entries.slice(start, size)
        start += size
    yield entries.slice(start)


def _chunk_size(paths: list[str]) -> int:
    """How many of these paths, but the last, make a chunk: to where a folder ends, so that a series stays together."""
    folders = [path.rpartition("/")[0] for path in paths]
    most = len(paths) - 1
    ends = (place for place in range(most, most // 2, -1) if folders[place] != folders[place - 1])
    return next(ends, most)


# -- a chunk ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Parts:
    """The parts of one kind, in the order of the chunks; read whenever they are gone through."""

    lake: Lake
    folder: str
    chunks: int
    kind: str

    def __iter__(self) -> Iterator[pa.Table]:
        return (self.lake.read_part(self.place(number)) for number in range(self.chunks))

    def place(self, number: int) -> str:
        """Where the part of a chunk lies."""
        return f"{self.folder}/{number:06}.{self.kind}.arrow"


def _parts(dataset: str, unit: str, mark: str) -> str:
    # the mark keeps apart what a worker that outlives a killed run may still write, of another inventory
    return place(_PARTS, dataset=dataset, unit=unit, mark=mark[-12:])


def _read_chunk(task: UnitTask) -> UnitDone:
    read = read_files(task)
    folder, number = _parts(task.source.dataset, task.unit, task.fingerprint), task.chunk or 0
    given = {
        "findings": findings_table([*read.file_findings, *read.value_findings]),
        "tag_profiles": read.tag_profiles,
        "headers": read.rows.sort_by(headers().order[0]),
        "files": read.files.sort_by(FILES.order[0]),
    }
    for kind, rows in given.items():
        task.lake.write_part(_Parts(task.lake, folder, number + 1, kind).place(number), rows.combine_chunks())
    done = read.done
    del read, given
    pa.default_memory_pool().release_unused()  # it keeps what a chunk took, as if the next one took it elsewhere
    return done


# -- joining ----------------------------------------------------------------------------------------------------------


def _joined_findings(parts: _Parts) -> pa.Table:
    """The findings of files with their counts summed, and those of values, of which the most frequent are shown."""
    last_chunk = {
        series: number for number, part in enumerate(parts) for series in pc.unique(part["series_uid"]).to_pylist()
    }
    of_files, of_values, waiting = [], list[Finding](), list[Finding]()
    for number, part in enumerate(parts):
        of_files.append(part.filter(pc.is_null(part["tag"])))
        waiting += [Finding(**row) for row in part.filter(pc.is_valid(part["tag"])).to_pylist()]
        # a series is counted once all its chunks are there: most lie in one, so that few findings wait
        of_values += most_frequent(found for found in waiting if last_chunk[found.series_uid] == number)
        waiting = [found for found in waiting if last_chunk[found.series_uid] > number]
    return pa.concat_tables([_summed(pa.concat_tables(of_files)), findings_table(of_values)])


def _summed(findings: pa.Table) -> pa.Table:
    """Equal findings as one with the sum of their counts."""
    keys = [name for name in FINDINGS.schema.names if name != "count"]
    summed = findings.group_by(keys, use_threads=False).aggregate([("count", "sum")])
    return summed.rename_columns([*keys, "count"]).select(FINDINGS.schema.names)


def _joined_tag_profiles(parts: _Parts) -> pa.Table:
    found = TAG_PROFILES.schema.empty_table()
    for part in parts:
        known = pc.is_in(part["tag_profile"], pc.unique(found["tag_profile"]))
        found = pa.concat_tables([found, part.filter(pc.invert(known))])
    return found
