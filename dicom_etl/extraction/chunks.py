"""Chunks: the files that a worker reads at once, those of many small units or a part of one large unit.

The result of a chunk is stored as Arrow files in a hidden folder of the lake until its shard is written. The name of a
chunk is a digest of all of its inputs, so a run that follows a killed one does not read the same chunk again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from dicom_etl.identity.name_encoding import encode_name
from dicom_etl.lake.fingerprints import compute_fingerprint
from dicom_etl.lake.tables import Lake
from dicom_etl.sources import Source

CHUNK_FILES = 2_500  # of several units, at most
PART_FILES = 5_000  # of a part of one unit, at most
CHUNK_TABLES = ("findings", "tag_profiles", "headers", "files")
COMPLETE_MARKER = "done"  # suffix of the file that is written when all tables of a result are complete


class UnitFiles(NamedTuple):
    """A unit to be read: where its files are in the inventory, and its fingerprint now and at the last extraction."""

    unit: str
    start: int
    files: int
    fingerprint: str
    previous_fingerprint: str | None


class Chunk(NamedTuple):
    """Files to be read together; sent to a worker."""

    source: Source
    lake: Lake
    entries: pa.Table  # rows of the inventory, sorted by unit and path
    units: tuple[str, ...]
    previous_shards: tuple[int, ...]  # with rows of these units that may be reused
    key: str
    is_part: bool  # of one unit that is too large for a chunk

    @property
    def dataset(self) -> str:
        """The name of the dataset."""
        return self.source.dataset

    @property
    def file_count(self) -> int:
        """The number of files."""
        return int(self.entries.num_rows)

    def path(self, suffix: str) -> str:
        """The path of a table of its result (`CHUNK_TABLES`), or of the marker (`COMPLETE_MARKER`)."""
        return chunk_path(self.dataset, self.key, suffix)


def chunks_folder(dataset: str) -> str:
    """The hidden folder of the chunks of a dataset."""
    return f".chunks/extract/{encode_name(dataset)}"


def chunk_path(dataset: str, key: str, suffix: str) -> str:
    """The path of a table of a chunk's result (`CHUNK_TABLES`), or of the marker (`COMPLETE_MARKER`)."""
    return f"{chunks_folder(dataset)}/{key}.{suffix}"


def split_units(
    source: Source, lake: Lake, inventory: pa.Table, units: Iterable[UnitFiles], previous_shards: tuple[int, ...]
) -> Iterator[Chunk]:
    """Split units of a shard into chunks, in their order; the chunks depend on nothing but the units."""
    waiting: list[UnitFiles] = []
    files = 0
    for unit in units:
        if unit.files > PART_FILES:
            for number, part in enumerate(split_unit(inventory.slice(unit.start, unit.files))):
                key = compute_fingerprint(unit.fingerprint, unit.previous_fingerprint, number)
                # with buffers of its own: a slice would be sent with the whole inventory
                entries = part.take(pa.array(np.arange(part.num_rows)))
                yield Chunk(source, lake, entries, (unit.unit,), previous_shards, key, is_part=True)
            continue
        if files and files + unit.files > CHUNK_FILES:
            yield make_chunk(source, lake, inventory, waiting, previous_shards)
            waiting, files = [], 0
        waiting.append(unit)
        files += unit.files
    if waiting:
        yield make_chunk(source, lake, inventory, waiting, previous_shards)


def make_chunk(
    source: Source, lake: Lake, inventory: pa.Table, units: Sequence[UnitFiles], previous_shards: tuple[int, ...]
) -> Chunk:
    """Make one chunk of whole units."""
    rows = np.concatenate([np.arange(unit.start, unit.start + unit.files) for unit in units])
    key = compute_fingerprint([(unit.fingerprint, unit.previous_fingerprint) for unit in units])
    names = tuple(unit.unit for unit in units)
    return Chunk(source, lake, inventory.take(pa.array(rows)), names, previous_shards, key, is_part=False)


def split_unit(entries: pa.Table) -> Iterator[pa.Table]:
    """Split the inventory rows of a large unit into parts: neighbours in the order of their paths."""
    start = 0
    while entries.num_rows - start > PART_FILES:
        size = _part_size(entries["path"].slice(start, PART_FILES + 1).to_pylist())
        yield entries.slice(start, size)
        start += size
    yield entries.slice(start)


def _part_size(paths: list[str]) -> int:
    """How many of these paths, except the last, make a part: up to the end of a folder, to keep a series together."""
    folders = [path.rpartition("/")[0] for path in paths]
    most = len(paths) - 1
    folder_ends = (index for index in range(most, most // 2, -1) if folders[index] != folders[index - 1])
    return next(folder_ends, most)
