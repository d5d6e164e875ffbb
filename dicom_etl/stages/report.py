"""report: the quality tables of a dataset -> `report.html`, `summary.json`, `completeness.csv`, `findings.csv`.

Needs no server and reads nothing but `quality/D`. The same tables and settings give the same bytes, and nothing is
written again while they are as they were: `summary.json` has the fingerprint. A CSV file that would be too long for a
spreadsheet is not written; the report names the command that writes it.
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
from dicom_etl.quality.report.finding_groups import COLUMNS, count_findings
from dicom_etl.quality.report.render import CsvFile, render
from dicom_etl.quality.report.view import View, listed_subjects, view
from dicom_etl.settings import Settings
from dicom_etl.sources import SourceError
from dicom_etl.version import VERSION

# Raised when the code that reports changes what it makes of the same tables.
REPORT_VERSION = 2

MOST_CSV_ROWS = 200_000  # 40 MB of findings; a spreadsheet takes a million rows and is slow long before

_TABLES = (
    "dicom_etl:finding_codes.csv",
    "dicom_etl.headers:catalogue.csv",
    "dicom_etl.quality.tables:quality_checks.json",
    "dicom_etl.quality.report:report.html.j2",
    "dicom_etl.quality.report:report.css",
)
_CSV = {"completeness.csv": COMPLETENESS, "findings.csv": ALL_FINDINGS}


@dataclass(frozen=True)
class ReportSummary:
    """What a report says in short, and where it is in the lake."""

    dataset: str
    report: str
    files: tuple[str, ...]
    check_results: Mapping[str, int]  # number of checks by result
    findings: Mapping[str, int]  # by severity


def report(dataset: str, lake: Lake, settings: Settings) -> ReportSummary:
    """Write the report of a dataset, unless it is there as it would be written.

    Raises:
        SourceError: the dataset has not been measured.
    """
    with lake.lock(dataset, f"report of {dataset}"):
        measured = lake.read_fingerprint(ALL_FINDINGS, dataset=dataset)
        if measured is None:
            raise SourceError(f"dataset {dataset}: it has no quality tables; measure it first")
        mark = _fingerprint(measured, settings)
        summary = _former(lake, dataset, mark) or _make(lake, dataset, settings, mark)
    files = tuple(make_report_path(dataset, name) for name in summary["files"])
    by_severity = {severity: counts["findings"] for severity, counts in summary["findings"].items()}
    return ReportSummary(dataset, files[0], files, summary["check_results"], by_severity)


# -- whether to write -------------------------------------------------------------------------------------------------


def _fingerprint(measured: str, settings: Settings) -> str | None:
    """The fingerprint of all that a report is made from; None where the tables have none."""
    if not measured:
        return None
    return compute_fingerprint(
        REPORT_VERSION, VERSION, hash_package_files(*_TABLES), measured, settings.reference_date, MOST_CSV_ROWS
    )


def _former(lake: Lake, dataset: str, mark: str | None) -> dict[str, Any] | None:
    """The summary of the report that is there, if it has this fingerprint and all of its files."""
    content = lake.read_bytes(make_report_path(dataset, "summary.json"))
    try:
        summary: dict[str, Any] = orjson.loads(content or b"")
        is_current = mark is not None and summary["fingerprint"] == mark
        files = [make_report_path(dataset, name) for name in summary["files"]]
    except (ValueError, KeyError, TypeError):
        return None
    return summary if is_current and all(map(lake.exists, files)) else None


# -- writing ----------------------------------------------------------------------------------------------------------


def _make(lake: Lake, dataset: str, settings: Settings, mark: str | None) -> dict[str, Any]:
    """Write the files of the report; the summary is the last, and the commit."""
    lake.remove(make_report_path(dataset, "summary.json"))
    rows = lake.read(MEASURES, dataset=dataset).to_pylist()
    findings = count_findings(lake.read_batches(ALL_FINDINGS, COLUMNS, dataset=dataset), listed_subjects(rows))
    content = view(dataset, _shown(lake.read(COMPLETENESS, dataset=dataset)).to_pylist(), rows, findings)
    tables = {name: _write_csv(lake, dataset, name, table) for name, table in _CSV.items()}
    page = render(content, tables, reference_date=settings.reference_date)
    lake.write_bytes(make_report_path(dataset, "report.html"), page.encode())
    summary = _summary(content, rows, settings.reference_date) | {
        "fingerprint": mark,
        "files": ["report.html", "summary.json", *(name for name, file in tables.items() if file.is_written)],
        "tables": {name: {"rows": file.rows, "command": file.command(dataset)} for name, file in tables.items()},
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


def _shown(completeness: pa.Table) -> pa.Table:
    """The rows that the page shows."""
    level, group_by = completeness["level"], completeness["group_by"]
    wide = pc.is_in(group_by, pa.array(["all", "modality"]))
    makers = pc.and_(pc.equal(group_by, "manufacturer"), pc.equal(level, "series"))
    return completeness.filter(pc.or_(wide, makers))


def _summary(content: View, measures: Sequence[Mapping[str, Any]], reference_date: str | None) -> dict[str, Any]:
    """The results of the checks, the counts and the findings for programs."""
    columns = ("check", "category", "level", "n_applicable", "n_pass", "n_fail", "result")
    results = [row for row in measures if row["group_by"] == "all" and row["tag"] is None and row["reason"] is None]
    return {
        "dataset": content.dataset,
        "version": VERSION,
        "reference_date": reference_date,
        "counts": dict(content.counts),
        "check_results": dict(content.check_results),
        "checks": [{key: row[key] for key in columns} for row in results if quality_checks()[row["check"]].is_check],
        "findings": {severity: {"findings": n, "occurrences": times} for severity, n, times in content.findings},
        "codes": {
            group.code: {"findings": group.findings, "occurrences": group.occurrences} for group in content.groups
        },
    }
