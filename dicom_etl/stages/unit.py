"""Part of extract: one unit, in a worker. Reads its files that are new or changed, and writes its tables.

A unit of very many files is read in chunks (`stages.chunks`), each by the same functions.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.findings import Finding, counted, finding, findings_table
from dicom_etl.headers.batch import Batch
from dicom_etl.headers.catalogue import catalogue
from dicom_etl.headers.fast import FastReader, Row
from dicom_etl.headers.reader import READER_VERSION, ColumnProblem, NotRead
from dicom_etl.headers.tag_profile import table_of, tag_text
from dicom_etl.identity.masking import shown
from dicom_etl.lake.fingerprints import fingerprint, version_of
from dicom_etl.lake.schemas import FILES, FINDINGS, SCHEMA_VERSION, TAG_PROFILES, headers
from dicom_etl.lake.tables import Lake
from dicom_etl.sources import Source
from dicom_etl.sources.ahead import Opening, opened

_OBJECTS = 100_000  # between two collections of garbage: what pydicom makes of some hundred files
_MOST_VALUES = 5  # different unusable values of one tag in one series that are each worth a finding
_TO_RETRY = frozenset({"file-changed", "file-gone", "unreadable"})
_COUNTED = frozenset({"other-file", "pixel-data-absent"})  # one finding for many files


class UnitTask(NamedTuple):
    """A unit to be extracted, or a chunk of it; travels to a worker."""

    source: Source
    lake: Lake
    unit: str
    entries: pa.Table
    fingerprint: str  # of the whole unit
    chunk: int | None = None  # its number; None: the whole unit

    def __reduce__(self) -> tuple[type[UnitTask], tuple[object, ...]]:
        """Entries get buffers of their own: else a slice travels with the whole inventory."""
        alone = self.entries.take(pa.array(np.arange(self.entries.num_rows)))
        return UnitTask, tuple(self._replace(entries=alone))

    @property
    def where(self) -> dict[str, str]:
        """The names of the unit's tables."""
        return {"dataset": self.source.dataset, "unit": self.unit}


class UnitDone(NamedTuple):
    """What a worker did with a unit or a chunk."""

    files_opened: int
    rows: int
    to_retry: bool


class FilesRead(NamedTuple):
    """What the files of a unit or a chunk gave."""

    rows: pa.Table
    files: pa.Table
    tag_profiles: pa.Table
    file_findings: list[Finding]
    value_findings: list[Finding]  # all of them
    opened: int
    to_retry: bool

    @property
    def done(self) -> UnitDone:
        """The figures."""
        return UnitDone(self.opened, self.rows.num_rows, self.to_retry)


def reader_mark() -> str:
    """Which reader and which catalogue made a row: rows of another are never taken over."""
    return fingerprint(READER_VERSION, SCHEMA_VERSION, version_of("dicom_etl.headers:catalogue.csv"))[:8]


def made_mark(mark: str, *, to_retry: bool) -> str:
    """The fingerprint of the tables of a unit.

    A file that could not be opened may be whole: without the true mark the unit is extracted again next time.
    """
    return mark + "!" * to_retry


def extract_unit(task: UnitTask) -> UnitDone:
    """Read the files of a unit that are new or changed, and write its tables; `files` last, as the commit."""
    read = read_files(task)
    lake, where, mark = task.lake, task.where, made_mark(task.fingerprint, to_retry=read.to_retry)
    findings = findings_table([*read.file_findings, *most_frequent(read.value_findings)])
    lake.write(FINDINGS, findings, stage="extract", fingerprint=mark, **where)
    lake.write(TAG_PROFILES, read.tag_profiles, fingerprint=mark, **where)
    lake.write(headers(), read.rows, fingerprint=mark, **where)
    lake.write(FILES, read.files, fingerprint=mark, **where)
    return read.done


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
def read_files(task: UnitTask) -> FilesRead:
    """Read the files that are new or changed, and take over the rows of the others."""
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # what it warns of becomes findings
    kept_rows, kept_files = _unchanged(task)
    known = set(kept_files["path"].to_pylist())
    reading = _Reading(task)
    numbers = [number for number, path in enumerate(reading.paths) if path not in known]
    openings = opened(task.source.open, [reading.paths[number] for number in numbers])
    with closing(openings):
        for number, opening in zip(numbers, openings, strict=True):
            reading.read(number, opening)
    rows = _joined(_relocated(kept_rows, task.entries), reading.headers())
    files = _joined(kept_files, reading.files())
    tag_profiles = _tag_profiles(task, reading, rows)
    file_findings, value_findings = _file_findings(files), list(_value_findings(task, reading.problems))
    return FilesRead(rows, files, tag_profiles, file_findings, value_findings, reading.opened, reading.to_retry)


# -- what is taken over -----------------------------------------------------------------------------------------------


def _unchanged(task: UnitTask) -> tuple[pa.Table, pa.Table]:
    """Header rows and file rows that can be taken over from the last extraction."""
    lake, where = task.lake, task.where
    marks = {(lake.fingerprint(table, **where) or "").split("+")[0] for table in (FILES, headers(), TAG_PROFILES)}
    if len(marks) != 1 or not marks.pop().startswith(reader_mark()):
        return _nothing()
    first, last = (task.entries["path"][place].as_py() for place in (0, -1))
    files, rows = (lake.read_between(table, first, last, **where) for table in (FILES, headers()))
    # value findings are counted per series: a series that has some is read again, so that they can be counted again
    findings = lake.read(FINDINGS, ["series_uid"], stage="extract", **where)
    troubled = pc.unique(findings["series_uid"].drop_null())
    counted_anew = pc.or_(pc.is_null(rows["SeriesInstanceUID"]), pc.is_in(rows["SeriesInstanceUID"], troubled))
    rows = rows.filter(pc.invert(counted_anew))
    now = {(e["path"], e["size"], e["mtime"]) for e in task.entries.select(["path", "size", "mtime"]).to_pylist()}
    readable = set(rows["path"].to_pylist())
    same = [
        (f["path"], f["size"], f["mtime"]) in now
        and f["reason"] not in _TO_RETRY
        and (f["kind"] != "dicom" or f["path"] in readable)
        for f in files.to_pylist()
    ]
    files = files.filter(pa.array(same, pa.bool_()))
    return rows.filter(pc.is_in(rows["path"], files["path"].combine_chunks())), files


@cache
def _nothing() -> tuple[pa.Table, pa.Table]:
    return headers().schema.empty_table(), FILES.schema.empty_table()


def _relocated(rows: pa.Table, entries: pa.Table) -> pa.Table:
    """Rows taken over, with subject, sample and role as the inventory says them now, and no duplicate mark yet."""
    if rows.num_rows == 0:
        return rows
    places = {e["path"]: e for e in entries.select(["path", "subject", "sample", "role"]).to_pylist()}
    paths = rows["path"].to_pylist()
    for column in ("subject", "sample", "role"):
        values = pa.array([places[path][column] for path in paths], pa.string())
        rows = rows.set_column(rows.column_names.index(column), column, values)
    marks = pa.nulls(len(paths), pa.string())
    return rows.set_column(rows.column_names.index("duplicate"), "duplicate", marks)


def _tag_profiles(task: UnitTask, reading: _Reading, rows: pa.Table) -> pa.Table:
    """The tag profiles of the rows: those read now, and of the former ones those that rows taken over still have."""
    new = reading.tag_profiles()
    former = task.lake.read(TAG_PROFILES, None, **task.where)
    if former.num_rows == 0:
        return new
    needed = pc.unique(rows["tag_profile"])
    known = pc.is_in(former["tag_profile"], pc.unique(new["tag_profile"]))
    former = former.filter(pc.and_(pc.is_in(former["tag_profile"], needed), pc.invert(known)))
    return _joined(former, new)


def _joined(former: pa.Table, new: pa.Table) -> pa.Table:
    return pa.concat_tables([former, new]) if former.num_rows else new


# -- what is read -----------------------------------------------------------------------------------------------------


class _Problem(NamedTuple):
    column: ColumnProblem
    number: int  # of the entry
    study_uid: str | None
    series_uid: str | None


class _Reading:
    """The files of a unit while they are read: their outcomes, and the rows as they come."""

    def __init__(self, task: UnitTask) -> None:
        self._entries = task.entries
        self.paths: list[str] = task.entries["path"].to_pylist()
        self._sizes: list[int] = task.entries["size"].to_pylist()
        self._mtimes: list[int] = task.entries["mtime"].cast(pa.int64()).to_pylist()
        self.to_retry = False
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

    def read(self, number: int, opening: Opening) -> None:
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
            kind, reason = "unreadable", "file-gone"
        except OSError as error:
            kind, reason, message = "unreadable", "unreadable", error.strerror
            self.to_retry |= error.errno != errno.EINVAL  # what is damaged for good is not tried again
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
            return "pixel-data-cut"
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
            value = suffix if file["reason"] == "other-file" else None
            many[file["reason"], file["dataset"], file["unit"], file["subject"], value] += 1
        else:
            detail = {"message": file["message"]} if file["message"] else {}
            code = file["reason"] or "dicomdir"
            findings.append(finding(code, file["dataset"], path=file["path"], **where, **detail))
    for (code, dataset, unit, subject, value), count in many.items():
        findings.append(finding(code, dataset, unit=unit, subject=subject, value=value, count=count))
    return findings


def _value_findings(task: UnitTask, problems: list[_Problem]) -> Iterator[Finding]:
    """Values that are not in their columns: one finding each."""
    entries = _taken(task.entries, [problem.number for problem in problems]).select(["subject", "sample"]).to_pylist()
    for ((column, problem), _, study_uid, series_uid), entry in zip(problems, entries, strict=True):
        yield finding(
            problem.code,
            task.source.dataset,
            unit=task.unit,
            subject=entry["subject"],
            sample=entry["sample"],
            study_uid=study_uid,
            series_uid=series_uid,
            tag=tag_text(column.path[-1]),
            value=shown(column.keyword, problem.raw),
            message=f"{column.name} is not a {column.kind}" if problem.code == "value-unusable" else column.name,
        )


def most_frequent(findings: Iterable[Finding]) -> list[Finding]:
    """Value findings, of each series and column those of the most frequent values, and one for all others."""
    by_place: dict[tuple[str | None, ...], list[Finding]] = defaultdict(list)
    for found in findings:
        by_place[found.series_uid, found.message, found.code].append(found)  # the message names the column
    return [found for findings in by_place.values() for found in _most_frequent(counted(findings))]


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
