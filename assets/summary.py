"""The summary of a stage as Dagster metadata: numbers that Dagster can plot, and the folder of the tables."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dagster as dg

from dicom_etl.pipeline import Pipeline
from dicom_etl.stages.report import ReportSummary
from dicom_etl.stages.upload import UploadSummary

Result = dg.MaterializeResult[None]

_ROWS = ("rows", "files", "studies", "measures")  # the number of rows of an asset: the first of these that it has


def _count_states(summary: Any) -> dict[str, int]:
    """The resources of an upload by state, the quality checks of a report by result."""
    totals: Counter[str] = Counter()
    for states in getattr(summary, "counts", {}).values():
        totals.update(states)
    for result, number in getattr(summary, "check_results", {}).items():
        totals[f"checks {result}"] = number
    return dict(sorted(totals.items()))


def make_result(pipeline: Pipeline, tables: str, summary: Any) -> Result:
    """The result of an asset.

    Args:
        pipeline: has the settings.
        tables: path of the written tables below the root of the lake.
        summary: the summary of the stage, a dataclass.
    """
    values = asdict(summary) | _count_states(summary)
    values.pop("dataset")
    metadata: dict[str, Any] = {
        key: value
        for key, value in values.items()
        if isinstance(value, int | float | str) and not isinstance(value, bool)
    }
    rows = next((values[key] for key in _ROWS if isinstance(values.get(key), int)), None)
    if rows is not None:
        metadata["dagster/row_count"] = rows
    folder = Path(pipeline.settings.lake) / tables
    metadata["folder"] = dg.MetadataValue.path(str(folder))
    report = folder / "report.html"
    if isinstance(summary, ReportSummary) and report.exists():
        metadata["report"] = dg.MetadataValue.path(str(report))  # as text: browsers do not open files from a link
    if isinstance(summary, UploadSummary) and summary.server is None:
        metadata["note"] = "no server is set (fhir.url): nothing was uploaded; the NDJSON files are the result"
    return Result(metadata=metadata)
