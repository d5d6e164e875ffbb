"""The checks as data (`tables/checks.json`), and the shape of a measure.

A measure with neither tag nor reason is the verdict of its check. Measures with a reason divide its failures: their
`n_fail` add up to that of the verdict. Always n_pass + n_fail = n_applicable in a verdict; what cannot be decided
counts as not passed, so that missing data never improves a figure.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.resources import files

import pyarrow as pa

from dicom_etl.lake.schemas import MEASURES

__all__ = ["Check", "Measure", "Tally", "checks", "measures_table", "share"]


@dataclass(frozen=True, slots=True)
class Check:
    """A line of the catalogue of checks."""

    check: str
    category: str
    title: str
    counts: str
    warn_below: float | None = None
    fail_below: float | None = None
    gate: bool = True

    def status(self, n_applicable: int, n_pass: int) -> str:
        """`pass`, `warn` or `fail` by the thresholds; `info` where there are none or nothing to judge."""
        if (self.warn_below is None and self.fail_below is None) or n_applicable == 0:
            return "info"
        passed = n_pass / n_applicable
        if self.fail_below is not None and passed < self.fail_below:
            return "fail"
        return "warn" if self.warn_below is not None and passed < self.warn_below else "pass"


@dataclass(frozen=True, slots=True)
class Measure:
    """A row of the table of measures, without its dataset."""

    check: str
    category: str
    level: str
    n_applicable: int
    n_pass: int
    n_fail: int
    status: str
    group_by: str = "all"
    group: str | None = "all"
    tag: str | None = None
    reason: str | None = None


@dataclass
class Tally:
    """Counts of one check: passes, and failures by reason."""

    check: str
    level: str
    n_pass: int = 0
    group_by: str = "all"
    group: str | None = "all"

    def __post_init__(self) -> None:
        self.reasons: Counter[str] = Counter()

    def add(self, failure: str | None, n: int = 1) -> None:
        """Count `n` entities that passed (None) or failed for a reason."""
        if failure is None:
            self.n_pass += n
        else:
            self.reasons[failure] += n

    def measures(self) -> Iterator[Measure]:
        """The verdict, then one measure per reason."""
        check = checks()[self.check]
        failed = sum(self.reasons.values())
        verdict = Measure(
            self.check,
            check.category,
            self.level,
            self.n_pass + failed,
            self.n_pass,
            failed,
            check.status(self.n_pass + failed, self.n_pass),
            self.group_by,
            self.group,
        )
        yield verdict
        for reason, n in sorted(self.reasons.items()):
            yield replace(verdict, reason=reason, n_fail=n)


@cache
def checks() -> dict[str, Check]:
    """The catalogue, by check."""
    text = files("dicom_etl.quality.tables").joinpath("checks.json").read_text(encoding="utf-8")
    return {line["check"]: Check(**line) for line in json.loads(text)["checks"]}


def share(n: int, of: int) -> float | None:
    """`n / of`, None where there is nothing."""
    return n / of if of else None


def measures_table(dataset: str, measures: Iterable[Measure]) -> pa.Table:
    """The measures in the schema of the lake."""
    rows = [{"dataset": dataset, **asdict(measure)} for measure in measures]
    return pa.Table.from_pylist(rows, schema=MEASURES.schema)
