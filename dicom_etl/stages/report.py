"""report: the quality tables of a dataset -> `report.html`, `summary.json`, `completeness.csv`, `findings.csv`.

Needs no server and reads nothing but `quality/D`. The same tables and settings give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl import __version__
from dicom_etl.lake.schemas import ALL_FINDINGS, COMPLETENESS, MEASURES, report_file
from dicom_etl.lake.tables import Lake
from dicom_etl.quality.checks import checks
from dicom_etl.quality.export import defused_csv
from dicom_etl.quality.render import render
from dicom_etl.quality.view import View, view
from dicom_etl.settings import Settings
from dicom_etl.sources import SourceError


@dataclass(frozen=True)
class Reported:
    """What a report says in short, and where it lies in the lake."""

    dataset: str
    report: str
    files: tuple[str, ...]
    gates: Mapping[str, int]  # verdicts by status
    findings: Mapping[str, int]  # by severity


def report(dataset: str, lake: Lake, settings: Settings) -> Reported:
    """Write the report of a dataset.

    Raises:
        SourceError: the dataset has not been measured.
    """
    with lake.lock(dataset, f"report of {dataset}"):
        if lake.fingerprint(ALL_FINDINGS, dataset=dataset) is None:
            raise SourceError(f"dataset {dataset}: it has no quality tables; measure it first")
        completeness = lake.read(COMPLETENESS, dataset=dataset)
        rows = lake.read(MEASURES, dataset=dataset).to_pylist()
        findings = lake.read(ALL_FINDINGS, dataset=dataset)
        seen = view(dataset, _shown(completeness).to_pylist(), rows, findings.to_pylist())
        contents = {
            "report.html": render(seen, as_of=settings.as_of).encode(),
            "summary.json": _summary(seen, rows, settings.as_of),
            "completeness.csv": defused_csv(completeness),
            "findings.csv": defused_csv(findings),
        }
        files = tuple(
            # the names of the files are ours: only the dataset's needs encoding
            lake.write_bytes(report_file(dataset, name), content)
            for name, content in contents.items()
        )
    by_severity = {severity: n for severity, n, _ in seen.findings}
    return Reported(dataset, files[0], files, dict(seen.verdicts), by_severity)


def _shown(completeness: pa.Table) -> pa.Table:
    """The rows that the page shows."""
    level, group_by = completeness["level"], completeness["group_by"]
    wide = pc.is_in(group_by, pa.array(["all", "modality"]))
    makers = pc.and_(pc.equal(group_by, "manufacturer"), pc.equal(level, "series"))
    return completeness.filter(pc.or_(wide, makers))


def _summary(seen: View, rows: Sequence[Mapping[str, Any]], as_of: str | None) -> bytes:
    """The verdicts, counts and findings for machines."""
    verdicts = [
        {key: row[key] for key in ("check", "category", "level", "n_applicable", "n_pass", "n_fail", "status")}
        for row in rows
        if row["group_by"] == "all" and row["tag"] is None and row["reason"] is None and checks()[row["check"]].gate
    ]
    content = {
        "dataset": seen.dataset,
        "version": __version__,
        "as_of": as_of,
        "counts": seen.counts,
        "verdicts": dict(seen.verdicts),
        "checks": verdicts,
        "findings": {severity: {"findings": n, "occurrences": times} for severity, n, times in seen.findings},
        "codes": {group.code: {"findings": group.findings, "occurrences": group.occurrences} for group in seen.groups},
    }
    return orjson.dumps(content, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2) + b"\n"
