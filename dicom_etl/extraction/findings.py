"""Findings of an extraction: on files, and on values that their columns cannot hold.

There may be very many of both, so equal ones are counted. Not here: duplicates (`duplicates`).
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.findings import Finding, make_finding, merge_equal, tabulate_findings
from dicom_etl.headers.catalogue import Kind
from dicom_etl.headers.row import ColumnProblem
from dicom_etl.headers.tag_profile import tag_text
from dicom_etl.identity.masking import mask_value
from dicom_etl.lake.schemas import FINDINGS

_SHOWN_VALUES = 5  # of the unusable values of one column in one series, each with a finding of its own
_PROBLEMS: dict[Kind, str] = {
    "text": "is not a text",
    "date": "is not a date",
    "integer": "is not an integer",
    "number": "is not a number",
    "numbers": "is not a list of numbers",
}
_CHARSET_PROBLEM = "does not conform to a known character set"
_COUNTED = frozenset({"non-dicom-file", "pixel-data-absent"})  # one finding for many files


class ValueProblem(NamedTuple):
    """A value that its column cannot hold, and the file with it."""

    problem: ColumnProblem
    number: int  # row of the inventory
    study_uid: str | None
    series_uid: str | None


def make_file_findings(files: pa.Table) -> list[Finding]:
    """Findings from rows of the table of files: one for each file, or one for all files if there may be very many."""
    findings, counts = [], Counter[tuple[str, str, str, str | None, str | None]]()
    with_findings = files.filter(pc.or_(pc.is_valid(files["reason"]), pc.equal(files["kind"], "dicomdir")))
    for file in with_findings.to_pylist():
        owner = {key: file[key] for key in ("unit", "subject")}
        if file["reason"] in _COUNTED:
            suffix = os.path.splitext(file["path"])[1].lower() or "(no suffix)"  # noqa: PTH122
            value = suffix if file["reason"] == "non-dicom-file" else None
            counts[file["reason"], file["dataset"], file["unit"], file["subject"], value] += 1
        else:
            message = {"message": file["message"]} if file["message"] else {}
            code = file["reason"] or "dicomdir"
            findings.append(make_finding(code, file["dataset"], path=file["path"], **owner, **message))
    for (code, dataset, unit, subject, value), count in counts.items():
        findings.append(make_finding(code, dataset, unit=unit, subject=subject, value=value, count=count))
    return findings


def make_value_findings(entries: pa.Table, problems: Sequence[ValueProblem]) -> Iterator[Finding]:
    """Make a finding of each value that its column cannot hold.

    Args:
        entries: rows of the inventory.
        problems: with the numbers of these rows.
    """
    numbers = pa.array([problem.number for problem in problems], pa.int64())
    units = entries.take(numbers).select(["dataset", "unit", "subject", "sample"]).to_pylist()
    for ((column, problem), _, study_uid, series_uid), unit in zip(problems, units, strict=True):
        yield make_finding(
            problem.code,
            study_uid=study_uid,
            series_uid=series_uid,
            tag=tag_text(column.path[-1]),
            value=mask_value(column.keyword, problem.raw),
            message=f"{column.name} {_PROBLEMS[column.kind] if problem.code == 'value-invalid' else _CHARSET_PROBLEM}",
            **unit,
        )


def limit_value_findings(findings: Iterable[Finding]) -> list[Finding]:
    """Keep the most frequent values of each unit, series and column, and summarize all others in one finding.

    Findings without a tag, those of files, stay as they are.
    """
    by_column: dict[tuple[str | None, ...], list[Finding]] = defaultdict(list)
    on_files = []
    for item in findings:
        if item.tag is None:
            on_files.append(item)
        else:  # the message names the column
            by_column[item.unit, item.series_uid, item.message, item.code].append(item)
    return [*on_files, *(item for group in by_column.values() for item in _most_frequent(merge_equal(group)))]


def _most_frequent(findings: list[Finding]) -> list[Finding]:
    ranked = sorted(findings, key=lambda item: (-item.count, item.value or ""))
    others = ranked[_SHOWN_VALUES:]
    if not others:
        return ranked
    summary = make_finding(
        others[0].code,
        others[0].dataset,
        unit=others[0].unit,
        subject=others[0].subject,
        study_uid=others[0].study_uid,
        series_uid=others[0].series_uid,
        tag=others[0].tag,
        value=f"({len(others)} further values)",
        message=others[0].message,
        count=sum(item.count for item in others),
    )
    return [*ranked[:_SHOWN_VALUES], summary]


def merge_findings(read_parts: Callable[[], Iterable[pa.Table]]) -> pa.Table:
    """Merge the findings of the parts of one unit: those of files counted, those of values limited.

    Args:
        read_parts: reads the findings of each part, in order; called twice, since they may be too large for memory.
    """
    last_part = {
        series: number
        for number, findings in enumerate(read_parts())
        for series in pc.unique(findings["series_uid"]).to_pylist()
    }
    on_files, on_values, waiting = [], list[Finding](), list[Finding]()
    for number, findings in enumerate(read_parts()):
        on_files.append(findings.filter(pc.is_null(findings["tag"])))
        waiting += [Finding(**row) for row in findings.filter(pc.is_valid(findings["tag"])).to_pylist()]
        # a series is limited after its last part: most series are in one part, so few findings wait
        on_values += limit_value_findings(item for item in waiting if last_part[item.series_uid] == number)
        waiting = [item for item in waiting if last_part[item.series_uid] > number]
    # equal findings on files become one with the sum of their counts
    keys = [name for name in FINDINGS.schema.names if name != "count"]
    summed = pa.concat_tables(on_files).group_by(keys, use_threads=False).aggregate([("count", "sum")])
    counted = summed.rename_columns([*keys, "count"]).select(FINDINGS.schema.names)
    return pa.concat_tables([counted, tabulate_findings(on_values)])
