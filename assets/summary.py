"""A stage's summary as Dagster metadata: numbers that Dagster can plot, and where the tables lie."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dagster as dg

from dicom_etl.pipeline import Pipeline
from dicom_etl.stages.report import ReportSummary
from dicom_etl.stages.upload import UploadSummary

Result = dg.MaterializeResult[None]

_ROWS = ("rows", "files", "studies", "measures")  # what counts as the rows of an asset, first that it has


def _states(summary: Any) -> dict[str, int]:
    """Counts within a summary: the resources of an upload by state, of a quality measurement the checks by result."""
    totals: Counter[str] = Counter()
    for states in getattr(summary, "counts", {}).values():
        totals.update(states)
    for result, number in getattr(summary, "check_results", {}).items():
        totals[f"checks {result}"] = number
    return dict(sorted(totals.items()))


def facts(pipeline: Pipeline, tables: str, summary: Any) -> Result:
    """The result of an asset from the summary of its stage; `tables` is the place in the lake where they lie."""
    values = asdict(summary) | _states(summary)
    values.pop("dataset")
    metadata: dict[str, Any] = {
        key: value
        for key, value in values.items()
        if isinstance(value, int | float | str) and not isinstance(value, bool)
    }
    rows = next((values[key] for key in _ROWS if isinstance(values.get(key), int)), None)
    if rows is not None:
        metadata["dagster/row_count"] = rows
    place = Path(pipeline.settings.lake) / tables
    metadata["folder"] = dg.MetadataValue.path(str(place))
    report = place / "report.html"
    if isinstance(summary, ReportSummary) and report.exists():
        metadata["report"] = dg.MetadataValue.path(str(report))  # no browser follows a link to a file from a page
    if isinstance(summary, UploadSummary) and summary.server is None:
        metadata["note"] = "no server is set (fhir.url): nothing was sent, and the NDJSON files are the result"
    return Result(metadata=metadata)
