"""Findings: problems in the data, all of one shape, and the catalogue of their codes.

The catalogue is `finding_codes.csv` beside this module: code, severity, stage, meaning, action. `make_finding` takes
severity and stage from it. The table of codes in `docs/reference/findings.md` is generated from it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from operator import attrgetter
from typing import Any

import pyarrow as pa

from dicom_etl.lake.schemas import FINDINGS


@dataclass(frozen=True, slots=True)
class FindingCode:
    """A line of the catalogue.

    Attributes:
        code: `noun-problem`.
        severity: `error`: something was not loaded; `warning`: loaded, but check it; `info`: good to know.
        stage: the stage that detects it.
        meaning: the default message of its findings.
        action: what to do about it; `none` where nothing is to be done.
    """

    code: str
    severity: str
    stage: str
    meaning: str
    action: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem: what is wrong, where, and how often. The fields are the columns of the tables of findings."""

    code: str
    severity: str
    stage: str
    dataset: str
    unit: str | None = None
    subject: str | None = None
    sample: str | None = None
    study_uid: str | None = None
    series_uid: str | None = None
    sop_uid: str | None = None
    path: str | None = None
    tag: str | None = None
    value: str | None = None  # masked already (`identity.masking`) where it is the value of a tag
    message: str | None = None
    count: int = 1


@cache
def finding_codes() -> dict[str, FindingCode]:
    """The catalogue by code, in its order."""
    text = resources.files(__package__).joinpath("finding_codes.csv").read_text(encoding="utf-8")
    return {line["code"]: FindingCode(**line) for line in csv.DictReader(text.splitlines())}


def make_finding(code: str, dataset: str, **fields: Any) -> Finding:
    """Make a finding; severity, stage and the default message come from the catalogue.

    Args:
        code: a code of the catalogue.
        dataset: name of the dataset.
        fields: further fields of `Finding`.

    Raises:
        KeyError: the code is not in the catalogue.
    """
    entry = finding_codes()[code]
    fields.setdefault("message", entry.meaning)
    return Finding(code=code, severity=entry.severity, stage=entry.stage, dataset=dataset, **fields)


def describe_error(error: BaseException | None) -> str:
    """The message of a finding about an exception; at most 300 characters."""
    return f"{type(error).__name__}: {error}"[:300]


_all_but_count = attrgetter(*[field.name for field in fields(Finding) if field.name != "count"])


def merge_equal(findings: Iterable[Finding]) -> list[Finding]:
    """Replace equal findings by one with the sum of their counts; returns them sorted by their fields."""
    counts: dict[tuple[str | None, ...], int] = {}
    for finding in findings:
        key = _all_but_count(finding)
        counts[key] = counts.get(key, 0) + finding.count
    ordered = sorted(counts, key=lambda key: tuple([value or "" for value in key]))
    return [Finding(*key, counts[key]) for key in ordered]  # type: ignore[arg-type,call-arg]  # the order is that of the fields


def tabulate_findings(findings: Iterable[Finding]) -> pa.Table:
    """Make a table of findings with the columns of the lake; equal findings are merged."""
    merged = merge_equal(findings)
    columns = [pa.array([getattr(finding, field.name) for finding in merged], field.type) for field in FINDINGS.schema]
    return pa.table(columns, schema=FINDINGS.schema)
