"""The inventory of a dataset: the files of a scan as a table, compared with the files of the previous crawl.

A file is missing only if its folder could be read and does not contain it. A missing subject and many missing files are
reported, since an unmounted folder looks the same.

Not here: reading and writing the table in the lake, and the consequences of a report (`stages.crawl`).
"""

from __future__ import annotations

from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.findings import Finding, make_finding
from dicom_etl.lake.schemas import INVENTORY
from dicom_etl.sources.base import Entry, Scan, Source

MISSING_LIMIT = 0.1  # share of the previous files of which more must not be missing
_ROWS_AT_ONCE = 50_000  # millions of entries as Python objects would need gigabytes


def list_files(source: Source, scan: Scan) -> pa.Table:
    """Scan a source: the inventory of what it contains now; `scan` is filled."""
    entries = source.scan(scan)
    tables = [INVENTORY.schema.empty_table()]
    while rows := list(islice(entries, _ROWS_AT_ONCE)):
        tables.append(_build_table(source.dataset, rows))
    return pa.concat_tables(tables)


def _build_table(dataset: str, entries: list[Entry]) -> pa.Table:
    columns = dict(zip(Entry._fields, zip(*entries, strict=True), strict=True))
    columns["mtime"] = tuple(ns // 1000 for ns in columns["mtime"])
    columns["dataset"] = (dataset,) * len(entries)
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in INVENTORY.schema})


def add_unread_files(current: pa.Table, previous: pa.Table, scan: Scan) -> pa.Table:
    """The current inventory with the previous rows of files and folders that could not be read now."""
    is_unread = pc.is_in(previous["path"], pa.array(scan.unread_files, pa.string()))
    for folder in scan.unread_folders:
        is_unread = pc.or_(is_unread, pc.starts_with(previous["path"], f"{folder}/" if folder else ""))
    unread = find_missing_files(current, previous.filter(is_unread))
    return pa.concat_tables([current, unread]) if unread.num_rows else current


def find_missing_files(current: pa.Table, previous: pa.Table) -> pa.Table:
    """The rows of the previous inventory whose files the current one lacks."""
    return previous.filter(pc.invert(pc.is_in(previous["path"], current["path"].combine_chunks())))


def report_missing(dataset: str, current: pa.Table, previous: pa.Table) -> list[Finding]:
    """A finding for each subject that is missing, and one if more than `MISSING_LIMIT` of the files are."""
    missing = find_missing_files(current, previous).num_rows
    if missing == 0:
        return []
    units = sorted(set(pc.unique(previous["unit"]).to_pylist()) - set(pc.unique(current["unit"]).to_pylist()))
    findings = [
        make_finding(
            "subject-missing",
            dataset,
            unit=unit,
            message=f"subject {unit} is missing; if it was removed on purpose, run again with --accept-missing",
        )
        for unit in units
    ]
    if missing > MISSING_LIMIT * previous.num_rows:
        text = (
            f"{missing} of {previous.num_rows} files are missing; "
            "if they were removed on purpose, run again with --accept-missing"
        )
        findings.append(make_finding("files-missing", dataset, count=missing, message=text))
    return findings
