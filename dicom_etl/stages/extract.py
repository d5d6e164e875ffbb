"""extract: files that are new or changed -> `layouts`, `headers`, `files` of each unit.

`files` is written last and is the commit: a unit whose three tables do not carry the fingerprint of its inventory is
extracted again, and takes over the rows of files that did not change.
"""

from __future__ import annotations

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.engine import Engine, Progress
from dicom_etl.findings import Finding, counted, finding, findings_table
from dicom_etl.headers.catalogue import catalogue
from dicom_etl.headers.layout import Presence, layout_id, tag_text
from dicom_etl.headers.reader import READER_VERSION, ColumnProblem, Header, NotRead, read_header
from dicom_etl.identity.masking import shown
from dicom_etl.identity.names import encode_name
from dicom_etl.lake.fingerprints import fingerprint, version_of
from dicom_etl.lake.schemas import (
    DATASET_FINDINGS,
    FILES,
    FINDINGS,
    INVENTORY,
    LAYOUTS,
    SCHEMA_VERSION,
    headers,
)
from dicom_etl.lake.tables import Lake
from dicom_etl.sources import Source, SourceError
from dicom_etl.stages.duplicates import mark_duplicates

_FEW_FILES = 400  # below, starting worker processes costs more than it gains
_MOST_VALUES = 5  # different unusable values of one tag in one series that are each worth a finding


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


class UnitTask(NamedTuple):
    """A unit to be extracted; travels to a worker."""

    source: Source
    lake: Lake
    unit: str
    entries: pa.Table
    fingerprint: str


class UnitDone(NamedTuple):
    """What a worker did with a unit."""

    files_opened: int
    rows: int


def extract(
    source: Source,
    lake: Lake,
    engine: Engine,
    *,
    subjects: Collection[str] | None = None,
    force: bool = False,
    progress: Progress = lambda *_: None,
) -> Extracted:
    """Bring the header tables of a dataset up to its inventory.

    Args:
        source: opens the files.
        lake: holds the inventory.
        engine: where the units are read.
        subjects: only these units; None: all.
        force: read every file again.
        progress: called with ("extract NAME", files done, files to do).

    Raises:
        SourceError: there is no inventory, or not one DICOM file in it.
    """
    name = source.dataset
    with lake.lock(name, f"extract of {name}"):
        units = _units(lake, name)
        for folder in ("layouts", "headers", "files", "findings/extract"):
            lake.sweep(f"{folder}/{encode_name(name)}")
        gone = _remove_gone(lake, name, units)
        tasks = [
            UnitTask(source, lake, unit, entries, mark)
            for unit, entries in units.items()
            if subjects is None or unit in subjects
            for mark in [_fingerprint(entries)]
            if force or not _is_made(lake, name, unit, mark)
        ]
        if force:
            _forget(lake, name, tasks)
        opened, failures = _run(engine, tasks, progress, name)
        done = mark_duplicates(source, lake, units, failures, changed=bool(tasks or gone))
        rows = sum(lake.row_count(headers(), dataset=name, unit=unit) for unit in units)
    if rows == 0 and not failures:
        total = sum(entries.num_rows for entries in units.values())
        raise SourceError(f"dataset {name}: none of the {total} files under {source.location} is DICOM")
    findings = lake.row_count(DATASET_FINDINGS, stage="extract", dataset=name) + sum(
        lake.row_count(FINDINGS, stage="extract", dataset=name, unit=unit) for unit in units
    )
    made = len(tasks) - len(failures)
    return Extracted(name, len(units), made, len(failures), opened + done, rows, findings)


def _units(lake: Lake, dataset: str) -> dict[str, pa.Table]:
    """The inventory by unit (it lies sorted by unit and path)."""
    inventory = lake.read(INVENTORY, dataset=dataset)
    if inventory.num_rows == 0:
        raise SourceError(f"dataset {dataset}: there is no inventory; crawl it first")
    ends = pc.run_end_encode(inventory["unit"].combine_chunks())
    units, start = {}, 0
    for unit, end in zip(ends.values.to_pylist(), ends.run_ends.to_pylist(), strict=True):
        units[unit] = inventory.slice(start, end - start)
        start = end
    return units


def _reader_mark() -> str:
    """Which reader and which catalogue made a row: rows of another are never taken over."""
    return fingerprint(READER_VERSION, SCHEMA_VERSION, version_of("dicom_etl.headers:catalogue.csv"))[:8]


def _fingerprint(entries: pa.Table) -> str:
    columns = [entries[column].cast(pa.string()).to_pylist() for column in INVENTORY.schema.names]
    return f"{_reader_mark()}-{fingerprint(columns)}"


def _is_made(lake: Lake, dataset: str, unit: str, mark: str) -> bool:
    """Whether all three tables were made from this inventory. A marked duplicate adds `+...` in `headers`."""
    made = (lake.fingerprint(table, dataset=dataset, unit=unit) for table in (FILES, headers(), LAYOUTS))
    return all(found is not None and found.split("+")[0] == mark for found in made)


def _forget(lake: Lake, dataset: str, tasks: list[UnitTask]) -> None:
    for task in tasks:
        lake.remove(FILES.path(dataset=dataset, unit=task.unit))


def _remove_gone(lake: Lake, dataset: str, units: Collection[str]) -> int:
    """Remove the tables of units that are no longer in the inventory; the commit first."""
    kept = {encode_name(unit) for unit in units}
    folder = encode_name(dataset)
    gone = 0
    for tables in ("files", "headers", "layouts", "findings/extract"):
        for name in lake.names(f"{tables}/{folder}", ".parquet"):
            if name not in kept:
                lake.remove(f"{tables}/{folder}/{name}.parquet")
                gone += tables == "files"
    return gone


def _run(
    engine: Engine, tasks: list[UnitTask], progress: Progress, dataset: str
) -> tuple[int, dict[str, BaseException]]:
    """Extract the units; returns files opened and the failures by unit."""
    total, done, opened = sum(task.entries.num_rows for task in tasks), 0, 0
    failures: dict[str, BaseException] = {}
    for result in engine.map(extract_unit, tasks, small=total < _FEW_FILES):
        if result.value is None:
            failures[result.item.unit] = result.error or RuntimeError("no result")
        else:
            opened += result.value.files_opened
        done += result.item.entries.num_rows
        progress(f"extract {dataset}", done, total)
    return opened, failures


# -- one unit, in a worker --------------------------------------------------------------------------------------------


def extract_unit(task: UnitTask) -> UnitDone:
    """Read the files of a unit that are new or changed, and write its tables."""
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # what it warns of becomes findings
    dataset, unit = task.source.dataset, task.unit
    kept_rows, kept_files = _unchanged(task)
    known = set(kept_files["path"].to_pylist())
    table = _Rows()
    for entry in task.entries.to_pylist():
        if entry["path"] not in known:
            table.read(task.source, entry)
    rows = pa.concat_tables([_relocated(kept_rows, task.entries), table.headers()])
    files = pa.concat_tables([kept_files, table.files()])
    layouts = _layouts(task, table, rows)
    where = {"dataset": dataset, "unit": unit}
    # a file that could not be opened may be whole: without the true mark the unit is extracted again next time
    lake, mark = task.lake, task.fingerprint + "!" * table.to_retry
    findings = findings_table([*_file_findings(files), *_value_findings(table.problems)])
    lake.write(FINDINGS, findings, stage="extract", fingerprint=mark, **where)
    lake.write(LAYOUTS, layouts, fingerprint=mark, **where)
    lake.write(headers(), rows, fingerprint=mark, **where)
    lake.write(FILES, files, fingerprint=mark, **where)
    return UnitDone(table.opened, rows.num_rows)


def _unchanged(task: UnitTask) -> tuple[pa.Table, pa.Table]:
    """Header rows and file rows that can be taken over from the last extraction."""
    lake, where = task.lake, {"dataset": task.source.dataset, "unit": task.unit}
    nothing = headers().schema.empty_table(), FILES.schema.empty_table()
    marks = {(lake.fingerprint(table, **where) or "").split("+")[0] for table in (FILES, headers(), LAYOUTS)}
    if len(marks) != 1 or not marks.pop().startswith(_reader_mark()):
        return nothing
    files, rows = lake.read(FILES, None, **where), lake.read(headers(), None, **where)
    # value findings are counted per series: a series that has some is read again, so that they can be counted again
    findings = lake.read(FINDINGS, ["series_uid"], stage="extract", **where)
    troubled = pc.unique(findings["series_uid"].drop_null())
    counted_anew = pc.or_(pc.is_null(rows["SeriesInstanceUID"]), pc.is_in(rows["SeriesInstanceUID"], troubled))
    rows = rows.filter(pc.invert(counted_anew))
    now = {(e["path"], e["size"], e["mtime"]) for e in task.entries.select(["path", "size", "mtime"]).to_pylist()}
    readable = set(rows["path"].to_pylist())
    same = [
        (f["path"], f["size"], f["mtime"]) in now
        and f["reason"] not in {"file-changed", "file-gone", "unreadable"}
        and (f["kind"] != "dicom" or f["path"] in readable)
        for f in files.to_pylist()
    ]
    files = files.filter(pa.array(same, pa.bool_()))
    return rows.filter(pc.is_in(rows["path"], files["path"].combine_chunks())), files


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


def _layouts(task: UnitTask, table: _Rows, rows: pa.Table) -> pa.Table:
    """The layouts of the rows: those read now, and of the former ones those that rows taken over still have."""
    former = task.lake.read(LAYOUTS, dataset=task.source.dataset, unit=task.unit)
    needed = pc.unique(rows["layout"])
    new = table.layout_table()
    known = pc.is_in(former["layout"], pc.unique(new["layout"]))
    former = former.filter(pc.and_(pc.is_in(former["layout"], needed), pc.invert(known)))
    return pa.concat_tables([former, new])


class _Problem(NamedTuple):
    column: ColumnProblem
    entry: dict[str, Any]
    study_uid: str | None
    series_uid: str | None


class _Rows:
    """The columns of the tables of one unit while its files are read."""

    def __init__(self) -> None:
        self.opened = 0
        self.to_retry = False
        self.problems: list[_Problem] = []
        self._files: list[dict[str, Any]] = []
        self._places: list[dict[str, Any]] = []
        self._values: list[tuple[Any, ...]] = []
        self._layouts: dict[tuple[Presence, ...], int] = {}
        names = [column.name for column in catalogue()]
        self._study, self._series = names.index("StudyInstanceUID"), names.index("SeriesInstanceUID")

    def read(self, source: Source, entry: dict[str, Any]) -> None:
        """Read one file: a header row, or the reason why there is none."""
        kind, reason, message = "dicom", None, None
        changed = False
        self.opened += 1
        try:
            with source.open(entry["path"]) as file:
                changed, size = _now(file, entry)
                reason = self._add(entry, read_header(file, entry["path"], size))
        except NotRead as why:
            kind, message = why.kind, why.message
            reason = None if kind == "dicomdir" else why.code
        except FileNotFoundError:
            kind, reason = "unreadable", "file-gone"
        except OSError as error:
            kind, reason, message = "unreadable", "unreadable", error.strerror
            self.to_retry = True
        if changed:  # what else is wrong with it may come of that
            reason, message = "file-changed", None
        place = {key: entry[key] for key in ("dataset", "unit", "subject", "path", "size", "mtime")}
        self._files.append({**place, "kind": kind, "reason": reason, "message": message, "sha256": None})

    def _add(self, entry: dict[str, Any], header: Header) -> str | None:
        study, series = header.values[self._study], header.values[self._series]
        layout = self._layouts.setdefault(header.layout, 0) or layout_id(header.layout)
        self._layouts[header.layout] = layout
        self._places.append({**entry, "duplicate": None, "layout": layout})
        self._values.append(header.values)
        study_uid, series_uid = str(study) if study else None, str(series) if series else None
        self.problems += [_Problem(problem, entry, study_uid, series_uid) for problem in header.problems]
        if not study or not series:
            return "uid-missing"
        if header.pixel_data_cut:
            return "pixel-data-cut"
        return "pixel-data-absent" if header.pixel_data_absent else None

    def headers(self) -> pa.Table:
        """The header rows."""
        columns = list(zip(*self._values, strict=True)) or [()] * len(catalogue())
        values = {column.name: part for column, part in zip(catalogue(), columns, strict=True)}
        schema = headers().schema
        arrays = [
            pa.array(
                values[field.name] if field.name in values else [place[field.name] for place in self._places],
                field.type,
            )
            for field in schema
        ]
        return pa.table(arrays, schema=schema)

    def files(self) -> pa.Table:
        """One row per file that was opened."""
        return pa.Table.from_pylist(self._files, schema=FILES.schema)

    def layout_table(self) -> pa.Table:
        """The layouts that were met."""
        rows = [
            {"layout": number, "tag": tag_text(tag), "creator": creator, "status": status}
            for layout, number in self._layouts.items()
            for tag, creator, status in layout
        ]
        return pa.Table.from_pylist(rows, schema=LAYOUTS.schema)


def _now(file: Any, entry: dict[str, Any]) -> tuple[bool, int]:
    """Whether an open file is no longer the one that the inventory saw, and its size."""
    try:
        stat = os.fstat(file.fileno())
    except (OSError, AttributeError):  # no file of the operating system
        return False, entry["size"]
    seen = pa.scalar(entry["mtime"], INVENTORY.schema.field("mtime").type).value
    return bool((stat.st_size, stat.st_mtime_ns // 1000) != (entry["size"], seen)), stat.st_size


# -- findings ---------------------------------------------------------------------------------------------------------


def _file_findings(files: pa.Table) -> list[Finding]:
    """What the file rows say, one finding per file; files that nobody would take for DICOM by suffix."""
    findings, many = [], Counter[tuple[str, str, str, str | None, str | None]]()
    for file in files.to_pylist():
        if file["reason"] in {"other-file", "pixel-data-absent"}:
            other = file["reason"] == "other-file"
            suffix = (os.path.splitext(file["path"])[1].lower() or "(no suffix)") if other else None  # noqa: PTH122
            many[file["reason"], file["dataset"], file["unit"], file["subject"], suffix] += 1
        elif file["reason"] or file["kind"] == "dicomdir":
            code = file["reason"] or "dicomdir"
            detail = {"message": file["message"]} if file["message"] else {}
            where = {key: file[key] for key in ("unit", "subject", "path")}
            findings.append(finding(code, file["dataset"], **where, **detail))
    for (code, dataset, unit, subject, suffix), count in many.items():
        findings.append(finding(code, dataset, unit=unit, subject=subject, value=suffix, count=count))
    return findings


def _value_findings(problems: list[_Problem]) -> list[Finding]:
    """Values that are not in their columns: one finding per series, tag and value, of the most frequent values."""
    by_place: dict[tuple[Any, ...], list[Finding]] = defaultdict(list)
    for (column, problem), entry, study_uid, series_uid in problems:
        found = finding(
            problem.code,
            entry["dataset"],
            unit=entry["unit"],
            subject=entry["subject"],
            sample=entry["sample"],
            study_uid=study_uid,
            series_uid=series_uid,
            tag=tag_text(column.path[-1]),
            value=shown(column.keyword, problem.raw),
            message=f"{column.name} is not a {column.kind}" if problem.code == "value-unusable" else column.name,
        )
        by_place[series_uid, column.name, problem.code].append(found)
    return [f for findings in by_place.values() for f in _most_frequent(counted(findings))]


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
