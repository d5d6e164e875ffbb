"""Reading a chunk, in a worker: files that are new or changed are opened, the rows of all others are reused.

The result is stored as Arrow files (`chunks`); a marker that is written last states that all of them are complete.
"""

from __future__ import annotations

import errno
import gc
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import BinaryIO, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.extraction.chunks import CHUNK_TABLES, COMPLETE_MARKER, Chunk
from dicom_etl.extraction.findings import ValueProblem, limit_value_findings, make_file_findings, make_value_findings
from dicom_etl.findings import Finding, tabulate_findings
from dicom_etl.headers import READER_VERSION
from dicom_etl.headers.catalogue import column_index
from dicom_etl.headers.columns import HeaderColumns
from dicom_etl.headers.fast import FastReader
from dicom_etl.headers.row import NoRowError, Row
from dicom_etl.headers.tag_profile import tag_profile_columns
from dicom_etl.lake.fingerprints import compute_fingerprint, hash_package_files
from dicom_etl.lake.schemas import FILES, FINDINGS, SCHEMA_VERSION, TAG_PROFILES, Table, header_table
from dicom_etl.sources.prefetch import Opener, open_files

_COLLECTED_OBJECTS = 100_000  # between two garbage collections: as many as pydicom creates for some hundred files
_REASONS_TO_RETRY = frozenset({"file-changed", "file-missing", "header-unreadable"})


class ChunkSummary(NamedTuple):
    """The result of a chunk in numbers; returned to the main process."""

    files_opened: int
    rows: dict[str, int]  # of the header table, by unit
    files: dict[str, int]  # rows of the table of files, by unit
    to_retry: dict[str, str]  # units with a file that could not be opened, with a digest of what could be read
    uid_hashes: np.ndarray  # 8 bytes for each SOPInstanceUID, in the order of the rows


class _ChunkResult(NamedTuple):
    rows: pa.Table
    files: pa.Table
    tag_profiles: pa.Table
    findings: list[Finding]
    files_opened: int
    to_retry: frozenset[str]


def reader_fingerprint() -> str:
    """The fingerprint of the readers and the catalogue. Rows that have another one are never reused."""
    catalogue = hash_package_files("dicom_etl.headers:catalogue.csv")
    return compute_fingerprint(READER_VERSION, SCHEMA_VERSION, catalogue)[:8]


def read_chunk(chunk: Chunk) -> ChunkSummary:
    """Read the files of a chunk that are new or changed, and store its result in the lake.

    A result that an earlier run has stored is used, unless there were files that could not be opened.
    """
    marker = chunk.lake.read_bytes(chunk.path(COMPLETE_MARKER))  # the sizes of the tables of a stored result
    stored_sizes = {table: chunk.lake.get_size(chunk.path(table)) for table in CHUNK_TABLES}
    if marker is not None and orjson.loads(marker) == stored_sizes:
        rows, files = (chunk.lake.read_arrow(chunk.path(table)) for table in ("headers", "files"))
        return _summarize(rows, files, 0, frozenset())
    result = _read_files(chunk)
    rows, files = (
        table.sort_by([("unit", "ascending"), ("path", "ascending")]).combine_chunks()
        for table in (result.rows, result.files)
    )
    tables = {
        # those of a part are limited when all parts of the unit are there
        "findings": tabulate_findings(result.findings if chunk.is_part else limit_value_findings(result.findings)),
        "tag_profiles": result.tag_profiles.combine_chunks(),
        "headers": rows,
        "files": files,
    }
    sizes = {table: chunk.lake.write_arrow(chunk.path(table), tables[table]) for table in CHUNK_TABLES}
    if not result.to_retry:
        chunk.lake.write_unsynced(chunk.path(COMPLETE_MARKER), orjson.dumps(sizes))
    summary = _summarize(rows, files, result.files_opened, result.to_retry)
    del result, tables, rows, files
    pa.default_memory_pool().release_unused()  # else the pool keeps the memory of this chunk during the next one
    return summary


def _summarize(rows: pa.Table, files: pa.Table, files_opened: int, to_retry: frozenset[str]) -> ChunkSummary:
    digests = {}
    for unit in sorted(to_retry):
        unit_files = files.filter(pc.equal(files["unit"], unit)).select(["path", "kind", "reason"])
        digests[unit] = compute_fingerprint([column.to_pylist() for column in unit_files.itercolumns()])[:8]
    uid_hashes = hash_uids(rows["SOPInstanceUID"])
    return ChunkSummary(files_opened, _rows_by_unit(rows), _rows_by_unit(files), digests, uid_hashes)


def _rows_by_unit(rows: pa.Table) -> dict[str, int]:
    return {count["values"]: count["counts"] for count in pc.value_counts(rows["unit"]).to_pylist()}


def hash_uids(uids: pa.ChunkedArray) -> np.ndarray:
    """Hash each UID to 8 bytes, so that ten million instances take 80 MB."""
    digests = [hashlib.blake2b((uid or "").encode(), digest_size=8).digest() for uid in uids.to_pylist()]
    return np.frombuffer(b"".join(digests), np.uint64)


@contextmanager
def _rare_garbage_collection() -> Iterator[None]:
    """Let Python look for reference cycles less often than after every 700 objects: few of these objects are garbage.

    The decorated function has released its objects by the time the usual threshold is back.
    """
    threshold = gc.get_threshold()
    gc.set_threshold(_COLLECTED_OBJECTS, *threshold[1:])
    try:
        yield
    finally:
        gc.set_threshold(*threshold)


@_rare_garbage_collection()
def _read_files(chunk: Chunk) -> _ChunkResult:
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its warnings become findings
    reused_rows, reused_files = _reusable(chunk)
    reused_paths = set(reused_files["path"].to_pylist())
    files_read = _FilesRead(chunk.entries)
    numbers = [number for number, path in enumerate(files_read.paths) if path not in reused_paths]
    openers = open_files(chunk.source.open, [files_read.paths[number] for number in numbers])
    with closing(openers):
        for number, opener in zip(numbers, openers, strict=True):
            files_read.read(number, opener)
    rows = _concatenate(_with_inventory_columns(reused_rows, chunk.entries), files_read.headers())
    files = _concatenate(reused_files, files_read.files())
    tag_profiles = _tag_profiles(chunk, files_read, reused_rows)
    findings = [*make_file_findings(files), *make_value_findings(chunk.entries, files_read.problems)]
    return _ChunkResult(rows, files, tag_profiles, findings, files_read.opened, frozenset(files_read.to_retry))


# -- reused rows ------------------------------------------------------------------------------------------------------


def _reusable(chunk: Chunk) -> tuple[pa.Table, pa.Table]:
    """Header rows and file rows of the last extraction that can be reused."""
    files, rows, findings = (_previous_rows(chunk, table) for table in (FILES, header_table(), FINDINGS))
    if not files.num_rows:
        return rows.slice(0, 0), files
    # value findings are counted by series: a series that has some is read again, so that they can be counted again
    series = rows["SeriesInstanceUID"]
    has_findings = pc.or_(pc.is_null(series), pc.is_in(series, pc.unique(findings["series_uid"].drop_null())))
    rows = rows.filter(pc.invert(has_findings))
    entries = chunk.entries.select(["path", "size", "mtime"]).to_pylist()
    current = {(entry["path"], entry["size"], entry["mtime"]) for entry in entries}
    paths_with_rows = set(rows["path"].to_pylist())
    is_reusable = [
        (file["path"], file["size"], file["mtime"]) in current
        and file["reason"] not in _REASONS_TO_RETRY
        and (file["kind"] != "dicom" or file["path"] in paths_with_rows)
        for file in files.to_pylist()
    ]
    files = files.filter(pa.array(is_reusable, pa.bool_()))
    return rows.filter(pc.is_in(rows["path"], pc.unique(files["path"]))), files


def _previous_rows(chunk: Chunk, table: Table) -> pa.Table:
    """The previous rows of the units of a chunk; for a part of a unit those between its first and last path."""
    ranges = {"unit": (chunk.units[0], chunk.units[-1])}
    if chunk.is_part and table is not FINDINGS:
        paths = chunk.entries["path"]
        ranges["path"] = paths[0].as_py(), paths[-1].as_py()
    names = {"dataset": chunk.dataset, "stage": "extract"}
    by_shard = [chunk.lake.read_between(table, ranges, shard=shard, **names) for shard in chunk.previous_shards]
    rows = pa.concat_tables([table.schema.empty_table(), *by_shard])
    return rows.filter(pc.is_in(rows["unit"], pa.array(chunk.units)))


def _with_inventory_columns(rows: pa.Table, entries: pa.Table) -> pa.Table:
    """Reused rows with the current subject, sample and role of the inventory, and no duplicate flag yet."""
    if rows.num_rows == 0:
        return rows
    indices = pc.index_in(rows["path"], entries["path"].combine_chunks())
    for column in ("subject", "sample", "role"):
        rows = rows.set_column(rows.column_names.index(column), column, entries[column].take(indices))
    return rows.set_column(rows.column_names.index("duplicate"), "duplicate", pa.nulls(rows.num_rows, pa.string()))


def _tag_profiles(chunk: Chunk, files_read: _FilesRead, reused_rows: pa.Table) -> pa.Table:
    """The tag profiles of the rows: those that were read, and those that reused rows have."""
    profiles = files_read.tag_profiles()
    if not reused_rows.num_rows:
        return profiles
    for shard in chunk.previous_shards:
        previous = chunk.lake.read(TAG_PROFILES, dataset=chunk.dataset, shard=shard)
        is_needed = pc.is_in(previous["tag_profile"], pc.unique(reused_rows["tag_profile"]))
        is_present = pc.is_in(previous["tag_profile"], pc.unique(profiles["tag_profile"]))
        profiles = _concatenate(previous.filter(pc.and_not(is_needed, is_present)), profiles)
    return profiles


def _concatenate(reused: pa.Table, new: pa.Table) -> pa.Table:
    return pa.concat_tables([reused, new]) if reused.num_rows else new


# -- files that are read ----------------------------------------------------------------------------------------------


class _FileResult(NamedTuple):
    """Columns of the table of files."""

    kind: str
    reason: str | None
    message: str | None


class _FilesRead:
    """The files of a chunk while they are read: header rows, a result for each file, and problems of values."""

    def __init__(self, entries: pa.Table) -> None:
        self._entries = entries
        self.paths: list[str] = entries["path"].to_pylist()
        self._sizes: list[int] = entries["size"].to_pylist()
        self._mtimes: list[int] = entries["mtime"].cast(pa.int64()).to_pylist()
        self.to_retry: set[str] = set()  # units
        self.problems: list[ValueProblem] = []
        self._reader, self._header_columns = FastReader(), HeaderColumns()
        self._numbers: list[int] = []
        self._results: list[_FileResult] = []
        self._study, self._series = column_index("StudyInstanceUID"), column_index("SeriesInstanceUID")

    @property
    def opened(self) -> int:
        """The number of files that were opened."""
        return len(self._numbers)

    def read(self, number: int, opener: Opener) -> None:
        """Read one file: add a header row, or the reason why there is none."""
        path, kind, reason, message, is_changed = self.paths[number], "dicom", None, None, False
        try:
            with opener() as file:
                is_changed, size = self._compare_with_inventory(file, number)
                reason = self._add(number, self._reader.read(file, path, size))
        except NoRowError as error:
            kind, message = error.kind, error.message
            reason = None if kind == "dicomdir" else error.code
        except FileNotFoundError:
            kind, reason = "unreadable", "file-missing"
        except OSError as error:
            kind, reason, message = "unreadable", "header-unreadable", error.strerror
            if error.errno != errno.EINVAL:  # a damaged file is not tried again
                self.to_retry.add(self._entries["unit"][number].as_py())
        if is_changed:  # which may be the cause of any other error
            reason, message = "file-changed", None
        self._numbers.append(number)
        self._results.append(_FileResult(kind, reason, message))

    def _compare_with_inventory(self, file: BinaryIO, number: int) -> tuple[bool, int]:
        """Whether an open file has another size or time than in the inventory, and its size."""
        size = self._sizes[number]
        try:
            stat = os.fstat(file.fileno())
        except (OSError, AttributeError):  # not a file of the operating system
            return False, size
        return stat.st_size != size or stat.st_mtime_ns // 1000 != self._mtimes[number], stat.st_size

    def _add(self, number: int, row: Row) -> str | None:
        """Add a header row; returns the code of a finding on the file."""
        self._header_columns.add(number, row)
        study, series = row.value(self._study), row.value(self._series)
        if row.problems:
            study_uid, series_uid = str(study) if study else None, str(series) if series else None
            self.problems += [ValueProblem(problem, number, study_uid, series_uid) for problem in row.problems]
        if not study or not series:
            return "uid-missing"
        if row.pixel_data_truncated:
            return "pixel-data-truncated"
        return "pixel-data-absent" if row.pixel_data_absent else None

    def headers(self) -> pa.Table:
        """The header rows."""
        numbers, tag_profiles, columns = self._header_columns.to_columns()
        entries = self._entries.take(pa.array(numbers, pa.int64()))
        columns |= {name: entries[name] for name in ("dataset", "unit", "subject", "sample", "role", "path")}
        columns |= {"duplicate": pa.nulls(len(numbers), pa.string()), "tag_profile": tag_profiles}
        schema = header_table().schema
        return pa.table([columns[name] for name in schema.names], schema=schema)

    def files(self) -> pa.Table:
        """One row for each file that was opened."""
        entries = self._entries.take(pa.array(self._numbers, pa.int64()))
        columns = {name: entries[name] for name in ("dataset", "unit", "subject", "path", "size", "mtime")}
        results = list(zip(*self._results, strict=True)) or [(), (), ()]
        for name, values in zip(_FileResult._fields, results, strict=True):
            columns[name] = pa.array(values, pa.string())
        columns["sha256"] = pa.nulls(len(self._numbers), pa.string())
        return pa.table([columns[name] for name in FILES.schema.names], schema=FILES.schema)

    def tag_profiles(self) -> pa.Table:
        """The tag profiles of the header rows."""
        columns = tag_profile_columns(self._header_columns.tag_profiles())
        return pa.table([columns[name] for name in TAG_PROFILES.schema.names], schema=TAG_PROFILES.schema)
