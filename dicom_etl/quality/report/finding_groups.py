"""The findings of a dataset by severity, code and subject, with a few examples of each code.

There may be a finding for each of a hundred thousand studies: they are counted by queries, and only the examples become
Python objects.

Not here: HTML.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from dicom_etl.findings import finding_codes
from dicom_etl.identity.masking import clean_text
from dicom_etl.lake.schemas import ALL_FINDINGS
from dicom_etl.quality.completeness import find_keyword
from dicom_etl.quality.working_database import Database, open_database

__all__ = ["FINDING_COLUMNS", "FindingCounts", "FindingGroup", "count_findings"]

FINDING_COLUMNS = [
    name for name in ALL_FINDINGS.schema.names if name not in ("dataset", "unit", "study_uid", "sop_uid")
]

_SEVERITIES = ("error", "warning", "info")
_MOST_EXAMPLES = 5
_CANDIDATES = 50  # findings of a code from which examples are chosen: several may have the same text

Row = Mapping[str, Any]


@dataclass(frozen=True)
class FindingGroup:
    """The findings of one code."""

    code: str
    severity: str
    stage: str
    meaning: str
    action: str
    findings: int
    occurrences: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class FindingCounts:
    """The number of findings by severity, code and subject."""

    by_severity: tuple[tuple[str, int, int], ...]  # severity, findings, occurrences
    groups: tuple[FindingGroup, ...]  # the most severe and most frequent first
    by_subject: Mapping[str | None, int] = field(default_factory=dict)  # only of the requested subjects


def count_findings(batches: Iterable[pa.Table], subjects: Iterable[str | None] = ()) -> FindingCounts:
    """Count findings.

    Args:
        batches: rows of ALL_FINDINGS with `FINDING_COLUMNS`, in batches.
        subjects: the subjects whose findings are counted by subject.
    """
    with open_database() as database:
        schema = pa.schema([ALL_FINDINGS.schema.field(name) for name in FINDING_COLUMNS])
        database.create_from_batches("findings", schema, batches)
        database.create("subjects", pa.table({"subject": pa.array(list(subjects), pa.string())}))
        rows = database.fetch_rows("""
            SELECT s.subject, count(*) AS n FROM findings f JOIN subjects s ON s.subject IS NOT DISTINCT FROM f.subject
            GROUP BY s.subject
        """)
        by_subject = {row["subject"]: row["n"] for row in rows}
        return FindingCounts(_count_by_severity(database), _make_groups(database), by_subject)


def _count_by_severity(database: Database) -> tuple[tuple[str, int, int], ...]:
    rows = database.fetch_rows("""
        SELECT severity, count(*) AS n, sum(count)::BIGINT AS occurrences FROM findings GROUP BY severity
    """)
    counts = {row["severity"]: (row["n"], row["occurrences"]) for row in rows}
    return tuple((severity, *counts.get(severity, (0, 0))) for severity in _SEVERITIES)


def _make_groups(database: Database) -> tuple[FindingGroup, ...]:
    candidates: dict[str, list[Row]] = {}
    for row in database.fetch_rows(f"""
        SELECT * FROM findings
        QUALIFY row_number() OVER (
            PARTITION BY code ORDER BY count DESC, path, subject, sample, series_uid, message, tag, value
        ) <= {_CANDIDATES}
    """):
        candidates.setdefault(row["code"], []).append(row)
    counts = database.fetch_rows("""
        SELECT code, min(severity) AS severity, min(stage) AS stage, min(message) AS message,
               count(*) AS n, sum(count)::BIGINT AS occurrences
        FROM findings GROUP BY code
    """)
    groups = [_make_group(row, candidates[row["code"]]) for row in counts]
    return tuple(sorted(groups, key=lambda g: (_SEVERITIES.index(g.severity), -g.occurrences, g.code)))


def _make_group(counts: Row, candidates: list[Row]) -> FindingGroup:
    entry = finding_codes().get(counts["code"])
    ranked = sorted(candidates, key=lambda row: (-row["count"], _describe(row)))
    return FindingGroup(
        clean_text(counts["code"]),
        counts["severity"] if counts["severity"] in _SEVERITIES else "info",
        counts["stage"],
        entry.meaning if entry else clean_text(counts["message"] or ""),
        entry.action if entry else "see the message",
        counts["n"],
        counts["occurrences"],
        tuple(dict.fromkeys(_describe(row) for row in ranked))[:_MOST_EXAMPLES],
    )


def _describe(row: Row) -> str:
    """The location of a finding, and its message and value as far as the code does not imply them."""
    entry = finding_codes().get(row["code"])
    location = row["path"] or "/".join(part for part in (row["subject"], row["sample"]) if part)
    tag = row["tag"] and (find_keyword(row["tag"]) or row["tag"])
    parts = (
        location,
        f"series {row['series_uid']}" if row["series_uid"] and not row["path"] else None,
        row["message"] if not entry or row["message"] != entry.meaning else None,
        f"{tag or 'value'} = {row['value']}" if row["value"] else None,
        f"× {row['count']}" if row["count"] > 1 else None,
    )
    return " · ".join(clean_text(part) for part in parts if part) or "the whole dataset"
