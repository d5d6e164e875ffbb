"""report: the quality tables of a dataset -> `report.html`, `summary.json`, `completeness.csv`, `findings.csv`.

Needs no server and reads only `quality/D`. The same tables and settings give the same bytes, and nothing is written if
they are unchanged: `summary.json` contains their fingerprint. A CSV file that would be too long for a spreadsheet is
not written; the report names the command that writes it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.lake.fingerprints import compute_fingerprint, hash_package_files
from dicom_etl.lake.schemas import ALL_FINDINGS, COMPLETENESS, MEASURES, Table, make_report_path
from dicom_etl.lake.tables import Lake
from dicom_etl.quality.check_table import quality_checks
from dicom_etl.quality.report.export import write_csv
from dicom_etl.quality.report.finding_groups import FINDING_COLUMNS, count_findings
from dicom_etl.quality.report.html import CsvFile, render_report
from dicom_etl.quality.report.view import View, find_listed_subjects, make_view
from dicom_etl.settings import Settings
from dicom_etl.sources import SourceError
from dicom_etl.version import VERSION

# Raise it when a change of the code changes the report of the same tables.
REPORT_VERSION = 2

MOST_CSV_ROWS = 200_000  # 40 MB of findings; spreadsheets take a million rows, but are slow long before

_TABLES = (
    "dicom_etl:finding_codes.csv",
    "dicom_etl.headers:catalogue.csv",
    "dicom_etl.quality.tables:quality_checks.json",
    "dicom_etl.quality.report:report.html.j2",
    "dicom_etl.quality.report:report.css",
)
_CSV_TABLES = {"completeness.csv": COMPLETENESS, "findings.csv": ALL_FINDINGS}


@dataclass(frozen=True)
class ReportSummary:
    """The paths of a report in the lake, and its main counts."""

    dataset: str
    report: str
    files: tuple[str, ...]
    check_results: Mapping[str, int]  # number of checks by result
    findings: Mapping[str, int]  # number by severity


def report(dataset: str, lake: Lake, settings: Settings) -> ReportSummary:
    """Write the report of a dataset, unless nothing has changed since it was written last.

    Raises:
        SourceError: the dataset has not been measured.
    """
    with lake.lock(dataset, f"report of {dataset}"):
        tables_fingerprint = lake.read_fingerprint(ALL_FINDINGS, dataset=dataset)
        if tables_fingerprint is None:
            raise SourceError(f"dataset {dataset}: it has no quality tables; measure it first")
        fingerprint = _compute_fingerprint(tables_fingerprint, settings)
        summary = _read_summary(lake, dataset, fingerprint) or _write_report(lake, dataset, settings, fingerprint)
    files = tuple(make_report_path(dataset, name) for name in summary["files"])
    by_severity = {severity: counts["findings"] for severity, counts in summary["findings"].items()}
    return ReportSummary(dataset, files[0], files, summary["check_results"], by_severity)


def _compute_fingerprint(tables_fingerprint: str, settings: Settings) -> str | None:
    """The fingerprint of all inputs of a report; None if its tables have no fingerprint."""
    if not tables_fingerprint:
        return None
    return compute_fingerprint(
        REPORT_VERSION,
        VERSION,
        hash_package_files(*_TABLES),
        tables_fingerprint,
        settings.reference_date,
        MOST_CSV_ROWS,
    )


def _read_summary(lake: Lake, dataset: str, fingerprint: str | None) -> dict[str, Any] | None:
    """The summary of the existing report, if it has this fingerprint and all of its files."""
    content = lake.read_bytes(make_report_path(dataset, "summary.json"))
    try:
        summary: dict[str, Any] = orjson.loads(content or b"")
        is_current = fingerprint is not None and summary["fingerprint"] == fingerprint
        files = [make_report_path(dataset, name) for name in summary["files"]]
    except (ValueError, KeyError, TypeError):
        return None
    return summary if is_current and all(map(lake.exists, files)) else None


def _write_report(lake: Lake, dataset: str, settings: Settings, fingerprint: str | None) -> dict[str, Any]:
    """Write the files of the report; the summary is the last, and the commit."""
    lake.remove(make_report_path(dataset, "summary.json"))
    measures = lake.read(MEASURES, dataset=dataset).to_pylist()
    finding_batches = lake.read_batches(ALL_FINDINGS, FINDING_COLUMNS, dataset=dataset)
    findings = count_findings(finding_batches, find_listed_subjects(measures))
    completeness = _select_shown(lake.read(COMPLETENESS, dataset=dataset)).to_pylist()
    view = make_view(dataset, completeness, measures, findings)
    csv_files = {name: _write_csv(lake, dataset, name, table) for name, table in _CSV_TABLES.items()}
    page = render_report(view, csv_files, reference_date=settings.reference_date)
    lake.write_bytes(make_report_path(dataset, "report.html"), page.encode())
    summary = _summarize(view, measures, settings.reference_date) | {
        "fingerprint": fingerprint,
        "files": ["report.html", "summary.json", *(name for name, file in csv_files.items() if file.is_written)],
        "tables": {
            name: {"rows": file.rows, "command": file.make_command(dataset)} for name, file in csv_files.items()
        },
    }
    text = orjson.dumps(summary, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2) + b"\n"
    lake.write_bytes(make_report_path(dataset, "summary.json"), text)
    return summary


def _write_csv(lake: Lake, dataset: str, name: str, table: Table) -> CsvFile:
    """Write a table as CSV if it is not too long."""
    path, rows = make_report_path(dataset, name), lake.count_rows(table, dataset=dataset)
    if rows > MOST_CSV_ROWS:
        lake.remove(path)
        return CsvFile(name, rows, is_written=False)
    sink = io.BytesIO()
    write_csv(sink, table.schema, lake.read_batches(table, dataset=dataset))
    lake.write_bytes(path, sink.getvalue())
    return CsvFile(name, rows, is_written=True)


def _select_shown(completeness: pa.Table) -> pa.Table:
    """The rows that the page shows."""
    level, group_by = completeness["level"], completeness["group_by"]
    is_in_heat_map = pc.is_in(group_by, pa.array(["all", "modality"]))
    is_of_scanners = pc.and_(pc.equal(group_by, "manufacturer"), pc.equal(level, "series"))
    return completeness.filter(pc.or_(is_in_heat_map, is_of_scanners))


def _summarize(view: View, measures: Sequence[Mapping[str, Any]], reference_date: str | None) -> dict[str, Any]:
    """The results of the checks, the counts and the findings, for programs."""
    columns = ("check", "category", "level", "n_applicable", "n_pass", "n_fail", "result")
    results = [row for row in measures if row["group_by"] == "all" and row["tag"] is None and row["reason"] is None]
    return {
        "dataset": view.dataset,
        "version": VERSION,
        "reference_date": reference_date,
        "counts": dict(view.counts),
        "check_results": dict(view.check_results),
        "checks": [{key: row[key] for key in columns} for row in results if quality_checks()[row["check"]].is_check],
        "findings": {severity: {"findings": n, "occurrences": times} for severity, n, times in view.findings},
        "codes": {
            group.code: {"findings": group.findings, "occurrences": group.occurrences} for group in view.finding_groups
        },
    }
