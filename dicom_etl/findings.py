"""Findings: problems in the data, all of one shape, and the catalogue of their codes.

The catalogue is `finding_codes.csv` beside this module: code, severity, stage, meaning, action. `make_finding` takes
severity and stage from it. The table of codes in `docs/quality.md` is generated from it.
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
    """A line of the catalogue."""

    code: str
    severity: str  # error: something was not loaded; warning: loaded, but look at it; info: good to know
    stage: str
    meaning: str
    action: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: what, where, and how often."""

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
    value: str | None = None  # already masked (identity.masking.mask_value) where it is a tag's
    message: str | None = None
    count: int = 1


@cache
def finding_codes() -> dict[str, FindingCode]:
    """The catalogue, by code."""
    text = resources.files(__package__).joinpath("finding_codes.csv").read_text(encoding="utf-8")
    return {line["code"]: FindingCode(**line) for line in csv.DictReader(text.splitlines())}


def make_finding(code: str, dataset: str, **where: Any) -> Finding:
    """A finding of a catalogued code; `where` are further fields of `Finding`."""
    known = finding_codes()[code]
    where.setdefault("message", known.meaning)
    return Finding(code=code, severity=known.severity, stage=known.stage, dataset=dataset, **where)


def describe_error(error: BaseException | None) -> str:
    """An exception as the message of a finding."""
    return f"{type(error).__name__}: {error}"[:300]


_what = attrgetter(*[field.name for field in fields(Finding) if field.name != "count"])


def merge_equal(findings: Iterable[Finding]) -> list[Finding]:
    """Equal findings as one with the sum of their counts, sorted."""
    counts: dict[tuple[str | None, ...], int] = {}
    for found in findings:
        key = _what(found)
        counts[key] = counts.get(key, 0) + found.count
    ordered = sorted(counts, key=lambda key: tuple([value or "" for value in key]))
    return [Finding(*key, counts[key]) for key in ordered]  # type: ignore[arg-type,call-arg]  # the order is that of the fields


def tabulate_findings(findings: Iterable[Finding]) -> pa.Table:
    """The findings in the schema of the lake, equal ones counted."""
    found = merge_equal(findings)
    columns = [pa.array([getattr(one, field.name) for one in found], field.type) for field in FINDINGS.schema]
    return pa.table(columns, schema=FINDINGS.schema)
