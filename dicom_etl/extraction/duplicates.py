"""Duplicates: the same SOPInstanceUID in several files of a dataset.

Every file keeps its row; `duplicate` flags all but the first by path: `identical` if the files have the same SHA-256
(computed for duplicates only), else `conflict`. The whole dataset is needed for this, so it is decided after all chunks
are read and before shards are written, from a 64-bit hash of the UID of each instance.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.extraction.chunk_reader import ChunkSummary, hash_uids
from dicom_etl.extraction.chunks import Chunk, chunk_path
from dicom_etl.extraction.plan import Plan
from dicom_etl.findings import Finding, make_finding
from dicom_etl.lake.schemas import FILES, header_table
from dicom_etl.lake.tables import Lake
from dicom_etl.sources import Source

CHECKSUM_COLUMNS = ("path", "sha256")  # of rows of the table of files
_HEADER_COLUMNS = ("unit", "path", "subject", "sample", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


@dataclass
class Duplicates:
    """The duplicates of a dataset: by unit, the flags and checksums by path."""

    flags: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    checksums: dict[str, dict[str, str | None]] = field(default_factory=lambda: defaultdict(dict))
    findings: list[Finding] = field(default_factory=list)
    files_opened: int = 0
    is_complete: bool = True  # all checksums could be computed


class _Instances(NamedTuple):
    """Some instances of a dataset: the hashes of their UIDs, and how to read their rows and checksums."""

    hashes: np.ndarray
    read_rows: Callable[[], pa.Table]  # `_HEADER_COLUMNS`, in the order of the hashes
    read_checksums: Callable[[], pa.Table]  # `CHECKSUM_COLUMNS`


class _Copy(NamedTuple):
    """A file with a SOPInstanceUID that several files have."""

    path: str
    row: Mapping[str, Any]
    sha256: str | None


def find_duplicates(source: Source, lake: Lake, plan: Plan, chunks: Sequence[tuple[Chunk, ChunkSummary]]) -> Duplicates:
    """Find the duplicates among all instances that the dataset will have.

    Args:
        source: opens the files whose checksums are needed.
        lake: with the results of chunks, and with the shards of the last extraction.
        plan: of the extraction.
        chunks: those that were read.
    """
    duplicates = Duplicates()
    for copies in _copies(list(_instances(lake, source.dataset, plan, chunks))):
        with_checksums = [copy if copy.sha256 else copy._replace(sha256=_sha256(source, copy)) for copy in copies]
        duplicates.files_opened += sum(copy.sha256 is None for copy in copies)
        duplicates.is_complete &= all(copy.sha256 for copy in with_checksums)
        for copy in with_checksums:
            duplicates.checksums[copy.row["unit"]][copy.path] = copy.sha256
        first, *others = with_checksums
        for copy in others:
            is_identical = copy.sha256 is not None and copy.sha256 == first.sha256
            duplicates.flags[copy.row["unit"]][copy.path] = "identical" if is_identical else "conflict"
            duplicates.findings.append(_finding(source.dataset, copy, first, is_identical=is_identical))
    return duplicates


def _instances(
    lake: Lake, dataset: str, plan: Plan, chunks: Sequence[tuple[Chunk, ChunkSummary]]
) -> Iterator[_Instances]:
    """All instances that the dataset will have: those of chunks, and those of previous rows that stay."""
    for chunk, summary in chunks:
        read_rows = partial(_chunk_rows, lake, chunk, "headers", _HEADER_COLUMNS)
        read_checksums = partial(_chunk_rows, lake, chunk, "files", CHECKSUM_COLUMNS)
        yield _Instances(summary.uid_hashes, read_rows, read_checksums)
    replaced = plan.removed.union(*(chunk.units for chunk, _ in chunks))
    for shard in sorted(plan.commits):
        rows = _other_rows(lake, dataset, shard, ("unit", "SOPInstanceUID"), replaced)
        if rows.num_rows:
            read_rows = partial(_other_rows, lake, dataset, shard, _HEADER_COLUMNS, replaced)
            read_checksums = partial(lake.read, FILES, list(CHECKSUM_COLUMNS), dataset=dataset, shard=shard)
            yield _Instances(hash_uids(rows["SOPInstanceUID"]), read_rows, read_checksums)


def _chunk_rows(lake: Lake, chunk: Chunk, table: str, columns: Iterable[str]) -> pa.Table:
    return lake.read_arrow(chunk_path(chunk.dataset, chunk.key, table)).select(list(columns))


def _other_rows(lake: Lake, dataset: str, shard: int, columns: Iterable[str], replaced: Collection[str]) -> pa.Table:
    """The header rows of a shard, except those of some units."""
    rows = lake.read(header_table(), list(columns), dataset=dataset, shard=shard)
    return rows.filter(pc.invert(pc.is_in(rows["unit"], pa.array(replaced, pa.string()))))


def _copies(all_instances: Sequence[_Instances]) -> Iterable[list[_Copy]]:
    """The files of each UID that several files have, sorted by path."""
    hashes = np.concatenate([np.empty(0, np.uint64), *(instances.hashes for instances in all_instances)])
    values, counts = np.unique(hashes, return_counts=True)
    repeated = values[counts > 1]
    by_uid: dict[str, list[_Copy]] = defaultdict(list)
    for instances in all_instances:
        if not len(repeated) or not np.isin(instances.hashes, repeated).any():
            continue
        rows = instances.read_rows()
        candidates = rows.filter(pa.array(np.isin(hash_uids(rows["SOPInstanceUID"]), repeated)))
        files = instances.read_checksums()
        checksums = dict(zip(files["path"].to_pylist(), files["sha256"].to_pylist(), strict=True))
        for row in candidates.to_pylist():
            by_uid[row["SOPInstanceUID"]].append(_Copy(row["path"], row, checksums.get(row["path"])))
    return [sorted(by_uid[uid]) for uid in sorted(by_uid) if len(by_uid[uid]) > 1]


def _sha256(source: Source, copy: _Copy) -> str | None:
    """The checksum of a file; None if it can no longer be read, and then no other file is identical to it."""
    try:
        with source.open(copy.path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # open files have readinto
    except OSError:
        return None


def _finding(dataset: str, copy: _Copy, first: _Copy, *, is_identical: bool) -> Finding:
    return make_finding(
        "duplicate-identical" if is_identical else "duplicate-conflict",
        dataset,
        unit=copy.row["unit"],
        subject=copy.row["subject"],
        sample=copy.row["sample"],
        study_uid=copy.row["StudyInstanceUID"],
        series_uid=copy.row["SeriesInstanceUID"],
        sop_uid=copy.row["SOPInstanceUID"],
        path=copy.path,
        message=f"same SOPInstanceUID as {first.path}, with {'identical' if is_identical else 'different'} content",
    )
