"""Pieces: the files that a worker reads at once, many small units or a part of a large one.

What a piece gave waits as Arrow files in a hidden folder of the lake until its shard is written. A piece that is there
already, since the run that read it was killed, is not read again: its name is a digest of all that it is made from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from dicom_etl.identity.name_encoding import encode_name
from dicom_etl.lake.fingerprints import fingerprint
from dicom_etl.lake.tables import Lake
from dicom_etl.sources import Source

PIECE_FILES = 2_500  # of many units
CHUNK_FILES = 5_000  # of one unit, at most
KINDS = ("findings", "tag_profiles", "headers", "files")


class UnitRows(NamedTuple):
    """A unit to be read: where its files are in the inventory, and its fingerprint now and at the last extraction."""

    unit: str
    start: int
    files: int
    fingerprint: str
    former: str | None


class Piece(NamedTuple):
    """Files to be read together; travels to a worker."""

    source: Source
    lake: Lake
    entries: pa.Table  # of the inventory, sorted by unit and path
    units: tuple[str, ...]
    former_shards: tuple[int, ...]  # that hold rows of these units which may be taken over
    key: str
    is_chunk: bool  # a part of one unit

    @property
    def dataset(self) -> str:
        """The name of the dataset."""
        return self.source.dataset

    def path(self, kind: str) -> str:
        """The path of what it gave of a kind."""
        return piece_path(self.dataset, self.key, kind)


def pieces_folder(dataset: str) -> str:
    """The folder of the pieces of a dataset."""
    return f".chunks/extract/{encode_name(dataset)}"


def piece_path(dataset: str, key: str, kind: str) -> str:
    """The path of what a piece gave: an Arrow file of `KINDS`, or `done`."""
    return f"{pieces_folder(dataset)}/{key}.{kind}"


def cut_pieces(
    source: Source, lake: Lake, inventory: pa.Table, units: Iterable[UnitRows], former_shards: tuple[int, ...]
) -> Iterator[Piece]:
    """The pieces of some units of a shard, in their order; they depend on the units alone."""
    waiting: list[UnitRows] = []
    files = 0
    for unit in units:
        if unit.files > CHUNK_FILES:
            for number, chunk in enumerate(cut_unit(inventory.slice(unit.start, unit.files))):
                key = fingerprint(unit.fingerprint, unit.former, number)
                yield Piece(source, lake, _copied(chunk), (unit.unit,), former_shards, key, is_chunk=True)
            continue
        if files and files + unit.files > PIECE_FILES:
            yield join_units(source, lake, inventory, waiting, former_shards)
            waiting, files = [], 0
        waiting.append(unit)
        files += unit.files
    if waiting:
        yield join_units(source, lake, inventory, waiting, former_shards)


def join_units(
    source: Source, lake: Lake, inventory: pa.Table, units: Sequence[UnitRows], former_shards: tuple[int, ...]
) -> Piece:
    """Whole units as one piece."""
    rows = np.concatenate([np.arange(unit.start, unit.start + unit.files) for unit in units])
    key = fingerprint([(unit.fingerprint, unit.former) for unit in units])
    names = tuple(unit.unit for unit in units)
    return Piece(source, lake, inventory.take(pa.array(rows)), names, former_shards, key, is_chunk=False)


def _copied(entries: pa.Table) -> pa.Table:
    """Entries with buffers of their own: else a slice travels with the whole inventory."""
    return entries.take(pa.array(np.arange(entries.num_rows)))


def cut_unit(entries: pa.Table) -> Iterator[pa.Table]:
    """The chunks of a large unit: neighbours in the order of their paths."""
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
