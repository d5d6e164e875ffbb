"""Reading a piece, in a worker: its files that are new or changed, and the former rows of all others.

What the piece gave is written as Arrow files (`pieces`); the last one says that all are there.
"""

from __future__ import annotations

import errno
import gc
import hashlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import BinaryIO, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.extraction.pieces import KINDS, Piece
from dicom_etl.findings import Finding, counted, finding, findings_table
from dicom_etl.headers.batch import Batch
from dicom_etl.headers.catalogue import catalogue
from dicom_etl.headers.fast import FastReader, Row
from dicom_etl.headers.reader import READER_VERSION, ColumnProblem, NotRead
from dicom_etl.headers.tag_profile import table_of, tag_text
from dicom_etl.identity.masking import mask_value
from dicom_etl.lake.fingerprints import fingerprint, version_of
from dicom_etl.lake.schemas import FILES, FINDINGS, SCHEMA_VERSION, TAG_PROFILES, Table, headers
from dicom_etl.sources.prefetch import Opener, open_files

_OBJECTS = 100_000  # between two collections of garbage: what pydicom makes of some hundred files
_MOST_VALUES = 5  # different unusable values of one tag in one series that are each worth a finding
_TO_RETRY = frozenset({"file-changed", "file-missing", "header-unreadable"})
_COUNTED = frozenset({"non-dicom-file", "pixel-data-absent"})  # one finding for many files


class PieceRead(NamedTuple):
    """What became of a piece."""

    files_opened: int
    rows: dict[str, int]  # of the header table, by unit
    files: dict[str, int]  # rows of the table of files, by unit
    to_retry: dict[str, str]  # units of which a file could not be opened, with a digest of what could be read
    uid_hashes: np.ndarray  # 8 bytes for each SOPInstanceUID, in the order of the rows


class _FilesRead(NamedTuple):
    """What the files of a piece gave."""

    rows: pa.Table
    files: pa.Table
    tag_profiles: pa.Table
    findings: list[Finding]
    opened: int
    to_retry: frozenset[str]


def reader_mark() -> str:
    """Which reader and which catalogue made a row: rows of another are never taken over."""
    return fingerprint(READER_VERSION, SCHEMA_VERSION, version_of("dicom_etl.headers:catalogue.csv"))[:8]


def read_piece(piece: Piece) -> PieceRead:
    """Read the files of a piece that are new or changed, and put aside what it gives.

    A piece that was read before is taken as it is, but not one with files that could not be opened.
    """
    if _is_there(piece):
        rows, files = (piece.lake.read_part(piece.path(kind)) for kind in ("headers", "files"))
        return _summary(rows, files, 0, frozenset())
    read = _read_files(piece)
    rows, files = (
        part.sort_by([("unit", "ascending"), ("path", "ascending")]).combine_chunks()
        for part in (read.rows, read.files)
    )
    parts = {
        "findings": findings_table(read.findings if piece.is_chunk else most_frequent(read.findings)),
        "tag_profiles": read.tag_profiles.combine_chunks(),
        "headers": rows,
        "files": files,
    }
    sizes = {kind: piece.lake.write_part(piece.path(kind), parts[kind]) for kind in KINDS}
    if not read.to_retry:
        piece.lake.write_part_marker(piece.path("done"), orjson.dumps(sizes))
    summary = _summary(rows, files, read.opened, read.to_retry)
    del read, parts, rows, files
    pa.default_memory_pool().release_unused()  # it keeps what a piece took, as if the next one took it elsewhere
    return summary


def _is_there(piece: Piece) -> bool:
    marker = piece.lake.read_bytes(piece.path("done"))
    return marker is not None and orjson.loads(marker) == {kind: piece.lake.size(piece.path(kind)) for kind in KINDS}


def _summary(rows: pa.Table, files: pa.Table, files_opened: int, to_retry: frozenset[str]) -> PieceRead:
    digests = {}
    for unit in sorted(to_retry):
        own = files.filter(pc.equal(files["unit"], unit)).select(["path", "kind", "reason"])
        digests[unit] = fingerprint([column.to_pylist() for column in own.itercolumns()])[:8]
    return PieceRead(files_opened, _counts(rows), _counts(files), digests, uid_hashes(rows["SOPInstanceUID"]))


def _counts(rows: pa.Table) -> dict[str, int]:
    return {count["values"]: count["counts"] for count in pc.value_counts(rows["unit"]).to_pylist()}


def uid_hashes(uids: pa.ChunkedArray) -> np.ndarray:
    """8 bytes for each UID, so that ten million instances take 80 MB."""
    digests = [hashlib.blake2b((uid or "").encode(), digest_size=8).digest() for uid in uids.to_pylist()]
    return np.frombuffer(b"".join(digests), np.uint64)


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """Python looks for garbage in cycles after every 700 objects; of ours few are garbage, and most of them plain.

    What is decorated has let go of its own objects when Python may look again.
    """
    usual = gc.get_threshold()
    gc.set_threshold(_OBJECTS, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)


@_seldom_collected()
def _read_files(piece: Piece) -> _FilesRead:
    """Read the files that are new or changed, and take over the rows of the others."""
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # what it warns of becomes findings
    kept_rows, kept_files = _unchanged(piece)
    known = set(kept_files["path"].to_pylist())
    reading = _Reading(piece.entries)
    numbers = [number for number, path in enumerate(reading.paths) if path not in known]
    openings = open_files(piece.source.open, [reading.paths[number] for number in numbers])
    with closing(openings):
        for number, opening in zip(numbers, openings, strict=True):
            reading.read(number, opening)
    rows = _joined(_relocated(kept_rows, piece.entries), reading.headers())
    files = _joined(kept_files, reading.files())
    tag_profiles = _tag_profiles(piece, reading, kept_rows)
    findings = [*_file_findings(files), *_value_findings(piece, reading.problems)]
    return _FilesRead(rows, files, tag_profiles, findings, reading.opened, frozenset(reading.to_retry))


# -- what is taken over -----------------------------------------------------------------------------------------------


def _unchanged(piece: Piece) -> tuple[pa.Table, pa.Table]:
    """Header rows and file rows that can be taken over from the last extraction."""
    files, rows, findings = (_former(piece, table) for table in (FILES, headers(), FINDINGS))
    if not files.num_rows:
        return rows.slice(0, 0), files
    # value findings are counted per series: a series that has some is read again, so that they can be counted again
    troubled = pc.unique(findings["series_uid"].drop_null())
    counted_anew = pc.or_(pc.is_null(rows["SeriesInstanceUID"]), pc.is_in(rows["SeriesInstanceUID"], troubled))
    rows = rows.filter(pc.invert(counted_anew))
    now = {(e["path"], e["size"], e["mtime"]) for e in piece.entries.select(["path", "size", "mtime"]).to_pylist()}
    readable = set(rows["path"].to_pylist())
    same = [
        (f["path"], f["size"], f["mtime"]) in now
        and f["reason"] not in _TO_RETRY
        and (f["kind"] != "dicom" or f["path"] in readable)
        for f in files.to_pylist()
    ]
    files = files.filter(pa.array(same, pa.bool_()))
    return rows.filter(pc.is_in(rows["path"], pc.unique(files["path"]))), files


def _former(piece: Piece, table: Table) -> pa.Table:
    """The rows of a table that the units of a piece had; of a chunk those between its first and last path."""
    ranges = {"unit": (piece.units[0], piece.units[-1])}
    if piece.is_chunk and table is not FINDINGS:
        paths = piece.entries["path"]
        ranges["path"] = paths[0].as_py(), paths[-1].as_py()
    where = {"dataset": piece.dataset, "stage": "extract"}
    parts = [piece.lake.read_between(table, ranges, shard=shard, **where) for shard in piece.former_shards]
    rows = pa.concat_tables([table.schema.empty_table(), *parts])
    return rows.filter(pc.is_in(rows["unit"], pa.array(piece.units)))


def _relocated(rows: pa.Table, entries: pa.Table) -> pa.Table:
    """Rows taken over, with subject, sample and role as the inventory says them now, and no duplicate mark yet."""
    if rows.num_rows == 0:
        return rows
    places = pc.index_in(rows["path"], entries["path"].combine_chunks())
    for column in ("subject", "sample", "role"):
        rows = rows.set_column(rows.column_names.index(column), column, entries[column].take(places))
    return rows.set_column(rows.column_names.index("duplicate"), "duplicate", pa.nulls(rows.num_rows, pa.string()))


def _tag_profiles(piece: Piece, reading: _Reading, kept_rows: pa.Table) -> pa.Table:
    """The tag profiles of the rows: those read now, and of the former ones those that rows taken over still have."""
    profiles = reading.tag_profiles()
    if not kept_rows.num_rows:
        return profiles
    for shard in piece.former_shards:
        former = piece.lake.read(TAG_PROFILES, dataset=piece.dataset, shard=shard)
        needed = pc.is_in(former["tag_profile"], pc.unique(kept_rows["tag_profile"]))
        known = pc.is_in(former["tag_profile"], pc.unique(profiles["tag_profile"]))
        profiles = _joined(former.filter(pc.and_not(needed, known)), profiles)
    return profiles


def _joined(former: pa.Table, new: pa.Table) -> pa.Table:
    return pa.concat_tables([former, new]) if former.num_rows else new


# -- what is read -----------------------------------------------------------------------------------------------------


class _Problem(NamedTuple):
    column: ColumnProblem
    number: int  # of the entry
    study_uid: str | None
    series_uid: str | None


class _Reading:
    """The files of a piece while they are read: their outcomes, and the rows as they come."""

    def __init__(self, entries: pa.Table) -> None:
        self._entries = entries
        self.paths: list[str] = entries["path"].to_pylist()
        self._sizes: list[int] = entries["size"].to_pylist()
        self._mtimes: list[int] = entries["mtime"].cast(pa.int64()).to_pylist()
        self.to_retry: set[str] = set()  # units
        self.problems: list[_Problem] = []
        self._reader, self._batch = FastReader(), Batch()
        self._numbers: list[int] = []
        self._outcomes: list[tuple[str, str | None, str | None]] = []  # kind, reason, message
        names = [column.name for column in catalogue()]
        self._study, self._series = names.index("StudyInstanceUID"), names.index("SeriesInstanceUID")

    @property
    def opened(self) -> int:
        """How many files were opened."""
        return len(self._numbers)

    def read(self, number: int, opening: Opener) -> None:
        """Read one file: a header row, or the reason why there is none."""
        path, kind, reason, message, changed = self.paths[number], "dicom", None, None, False
        try:
            with opening() as file:
                changed, size = self._now(file, number)
                reason = self._add(number, self._reader.read(file, path, size))
        except NotRead as why:
            kind, message = why.kind, why.message
            reason = None if kind == "dicomdir" else why.code
        except FileNotFoundError:
            kind, reason = "unreadable", "file-missing"
        except OSError as error:
            kind, reason, message = "unreadable", "header-unreadable", error.strerror
            if error.errno != errno.EINVAL:  # what is damaged for good is not tried again
                self.to_retry.add(self._entries["unit"][number].as_py())
        if changed:  # what else is wrong with it may come of that
            reason, message = "file-changed", None
        self._numbers.append(number)
        self._outcomes.append((kind, reason, message))

    def _now(self, file: BinaryIO, number: int) -> tuple[bool, int]:
        """Whether an open file is no longer the one that the inventory saw, and its size."""
        size = self._sizes[number]
        try:
            stat = os.fstat(file.fileno())
        except (OSError, AttributeError):  # no file of the operating system
            return False, size
        return stat.st_size != size or stat.st_mtime_ns // 1000 != self._mtimes[number], stat.st_size

    def _add(self, number: int, row: Row) -> str | None:
        self._batch.add(number, row)
        study, series = row.value(self._study), row.value(self._series)
        if row.problems:
            study_uid, series_uid = str(study) if study else None, str(series) if series else None
            self.problems += [_Problem(problem, number, study_uid, series_uid) for problem in row.problems]
        if not study or not series:
            return "uid-missing"
        if row.pixel_data_cut:
            return "pixel-data-truncated"
        return "pixel-data-absent" if row.pixel_data_absent else None

    def headers(self) -> pa.Table:
        """The header rows."""
        numbers, tag_profiles, columns = self._batch.columns()
        entries = _taken(self._entries, numbers)
        columns |= {name: entries[name] for name in ("dataset", "unit", "subject", "sample", "role", "path")}
        columns |= {"duplicate": pa.nulls(len(numbers), pa.string()), "tag_profile": tag_profiles}
        schema = headers().schema
        return pa.table([columns[name] for name in schema.names], schema=schema)

    def files(self) -> pa.Table:
        """One row per file that was opened."""
        entries = _taken(self._entries, self._numbers)
        outcomes = list(zip(*self._outcomes, strict=True)) or [(), (), ()]
        columns = {name: entries[name] for name in ("dataset", "unit", "subject", "path", "size", "mtime")}
        for name, values in zip(("kind", "reason", "message"), outcomes, strict=True):
            columns[name] = pa.array(values, pa.string())
        columns["sha256"] = pa.nulls(len(self._numbers), pa.string())
        return pa.table([columns[name] for name in FILES.schema.names], schema=FILES.schema)

    def tag_profiles(self) -> pa.Table:
        """The tag profiles that were met."""
        columns = table_of(self._batch.tag_profiles())
        return pa.table([columns[name] for name in TAG_PROFILES.schema.names], schema=TAG_PROFILES.schema)


def _taken(entries: pa.Table, numbers: Sequence[int]) -> pa.Table:
    return entries.take(pa.array(numbers, pa.int64()))


# -- findings ---------------------------------------------------------------------------------------------------------


def _file_findings(files: pa.Table) -> list[Finding]:
    """What the file rows say: one finding per file, but one for all files of which there may be very many."""
    findings, many = [], Counter[tuple[str, str, str, str | None, str | None]]()
    telling = files.filter(pc.or_(pc.is_valid(files["reason"]), pc.equal(files["kind"], "dicomdir")))
    for file in telling.to_pylist():
        where = {key: file[key] for key in ("unit", "subject")}
        if file["reason"] in _COUNTED:
            suffix = os.path.splitext(file["path"])[1].lower() or "(no suffix)"  # noqa: PTH122
            value = suffix if file["reason"] == "non-dicom-file" else None
            many[file["reason"], file["dataset"], file["unit"], file["subject"], value] += 1
        else:
            detail = {"message": file["message"]} if file["message"] else {}
            code = file["reason"] or "dicomdir"
            findings.append(finding(code, file["dataset"], path=file["path"], **where, **detail))
    for (code, dataset, unit, subject, value), count in many.items():
        findings.append(finding(code, dataset, unit=unit, subject=subject, value=value, count=count))
    return findings


def _value_findings(piece: Piece, problems: list[_Problem]) -> Iterator[Finding]:
    """Values that are not in their columns: one finding each."""
    numbers = [problem.number for problem in problems]
    entries = _taken(piece.entries, numbers).select(["unit", "subject", "sample"]).to_pylist()
    for ((column, problem), _, study_uid, series_uid), entry in zip(problems, entries, strict=True):
        yield finding(
            problem.code,
            piece.dataset,
            unit=entry["unit"],
            subject=entry["subject"],
            sample=entry["sample"],
            study_uid=study_uid,
            series_uid=series_uid,
            tag=tag_text(column.path[-1]),
            value=mask_value(column.keyword, problem.raw),
            message=f"{column.name} is not a {column.kind}" if problem.code == "value-invalid" else column.name,
        )


def most_frequent(findings: Iterable[Finding]) -> list[Finding]:
    """Of the value findings of each unit, series and column those of the most frequent values, and one for all others.

    Findings without a tag, those of files, stay as they are.
    """
    by_place: dict[tuple[str | None, ...], list[Finding]] = defaultdict(list)
    kept = []
    for found in findings:
        if found.tag is None:
            kept.append(found)
        else:  # the message names the column
            by_place[found.unit, found.series_uid, found.message, found.code].append(found)
    return [*kept, *(found for findings in by_place.values() for found in _most_frequent(counted(findings)))]


def _most_frequent(findings: list[Finding]) -> list[Finding]:
    ranked = sorted(findings, key=lambda found: (-found.count, found.value or ""))
    rest = ranked[_MOST_VALUES:]
    if not rest:
        return ranked
    others = finding(
        rest[0].code,
        rest[0].dataset,
        unit=rest[0].unit,
        subject=rest[0].subject,
        study_uid=rest[0].study_uid,
        series_uid=rest[0].series_uid,
        tag=rest[0].tag,
        value=f"({len(rest)} further values)",
        message=rest[0].message,
        count=sum(found.count for found in rest),
    )
    return [*ranked[:_MOST_VALUES], others]
