"""The findings of a dataset by severity, code and subject, with a few examples of each code.

There may be a finding for every study of a hundred thousand: they are counted by queries, and only the examples become
objects. Not here: HTML.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from pydicom.datadict import keyword_for_tag

from dicom_etl.findings import finding_codes
from dicom_etl.identity.masking import clean_text
from dicom_etl.lake.schemas import ALL_FINDINGS
from dicom_etl.quality.working_database import Database, open_database

__all__ = ["COLUMNS", "FindingCounts", "FindingGroup", "count_findings", "keyword_of"]

COLUMNS = [name for name in ALL_FINDINGS.schema.names if name not in ("dataset", "unit", "study_uid", "sop_uid")]

_SEVERITIES = ("error", "warning", "info")
_MOST_EXAMPLES = 5
_CANDIDATES = 50  # findings of a code that examples are chosen from: several may read the same

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
    """How many findings there are."""

    by_severity: tuple[tuple[str, int, int], ...]  # severity, findings, occurrences
    groups: tuple[FindingGroup, ...]  # the gravest and most frequent first
    by_subject: Mapping[str | None, int] = field(default_factory=dict)  # of the subjects that were asked for


def count_findings(pieces: Iterable[pa.Table], subjects: Iterable[str | None] = ()) -> FindingCounts:
    """Count findings.

    Args:
        pieces: rows of ALL_FINDINGS with `COLUMNS`, in pieces.
        subjects: whose findings are counted by subject.
    """
    with open_database() as database:
        schema = ALL_FINDINGS.schema
        database.create("findings", pa.schema([schema.field(name) for name in COLUMNS]).empty_table())
        for piece in pieces:
            database.append("findings", piece.select(COLUMNS))
        database.create("subjects", pa.table({"subject": pa.array(list(subjects), pa.string())}))
        by_subject = database.rows("""
            SELECT s.subject, count(*) AS n FROM findings f JOIN subjects s ON s.subject IS NOT DISTINCT FROM f.subject
            GROUP BY s.subject
        """)
        counts = {row["subject"]: row["n"] for row in by_subject}
        return FindingCounts(_by_severity(database), _groups(database), counts)


def _by_severity(database: Database) -> tuple[tuple[str, int, int], ...]:
    counted = database.rows(
        "SELECT severity, count(*) AS n, sum(count)::BIGINT AS times FROM findings GROUP BY severity"
    )
    numbers = {row["severity"]: (row["n"], row["times"]) for row in counted}
    return tuple((severity, *numbers.get(severity, (0, 0))) for severity in _SEVERITIES)


def _groups(database: Database) -> tuple[FindingGroup, ...]:
    candidates = database.rows(f"""
        SELECT * FROM findings
        QUALIFY row_number() OVER (
            PARTITION BY code ORDER BY count DESC, path, subject, sample, series_uid, message, tag, value
        ) <= {_CANDIDATES}
    """)
    by_code: dict[str, list[Row]] = {}
    for row in candidates:
        by_code.setdefault(row["code"], []).append(row)
    counted = database.rows("""
        SELECT code, min(severity) AS severity, min(stage) AS stage, min(message) AS message,
               count(*) AS n, sum(count)::BIGINT AS times
        FROM findings GROUP BY code
    """)
    groups = [_group(row, by_code[row["code"]]) for row in counted]
    return tuple(sorted(groups, key=lambda g: (_SEVERITIES.index(g.severity), -g.occurrences, g.code)))


def _group(counted: Row, candidates: list[Row]) -> FindingGroup:
    known = finding_codes().get(counted["code"])
    ranked = sorted(candidates, key=lambda row: (-row["count"], _example(row)))
    return FindingGroup(
        clean_text(counted["code"]),
        counted["severity"] if counted["severity"] in _SEVERITIES else "info",
        counted["stage"],
        known.meaning if known else clean_text(counted["message"] or ""),
        known.action if known else "see the message",
        counted["n"],
        counted["times"],
        tuple(dict.fromkeys(_example(row) for row in ranked))[:_MOST_EXAMPLES],
    )


def _example(row: Row) -> str:
    """Where a finding is, and what it says beyond its code."""
    known = finding_codes().get(row["code"])
    keyword = keyword_of(row["tag"])
    message = row["message"] if not known or row["message"] != known.meaning else None
    where = row["path"] or "/".join(part for part in (row["subject"], row["sample"]) if part)
    value = f"{keyword or 'value'} = {row['value']}" if row["value"] else None
    times = f"× {row['count']}" if row["count"] > 1 else None
    parts = (
        where,
        f"series {row['series_uid']}" if row["series_uid"] and not row["path"] else None,
        message,
        value,
        times,
    )
    return " · ".join(clean_text(part) for part in parts if part) or "the whole dataset"


def keyword_of(tag: str | None) -> str | None:
    """The keyword of a tag GGGGEEEE; the tag itself where it has none."""
    return tag and ((None if "x" in tag else keyword_for_tag(int(tag, 16))) or tag)
