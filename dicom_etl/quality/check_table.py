"""The quality checks as a table (`tables/quality_checks.json`), and the measures that they give.

A measure without tag and reason is the result of its check. Measures with a reason divide its failures: their `n_fail`
add up to that of the result. In a result, n_pass + n_fail = n_applicable always; what cannot be decided counts as
failed, so that missing data never improves a figure.

Not here: counting (`checks`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files

import pyarrow as pa

from dicom_etl.lake.schemas import MEASURES

__all__ = ["Measure", "QualityCheck", "quality_checks", "tabulate_measures"]

NOT_EVALUATED = "not-evaluated"


@dataclass(frozen=True, slots=True)
class QualityCheck:
    """A row of the table of quality checks. Where `is_check` is False it is a number without result, such as a size."""

    check: str
    category: str
    title: str
    counted: str  # the objects that are counted, in words
    warn_below: float | None = None  # share of passes, 0 to 1
    fail_below: float | None = None
    is_check: bool = True

    def evaluate(self, n_applicable: int, n_pass: int) -> str:
        """`pass`, `warn` or `fail` by the thresholds; `not-evaluated` without thresholds or objects."""
        if (self.warn_below is None and self.fail_below is None) or n_applicable == 0:
            return NOT_EVALUATED
        share = n_pass / n_applicable
        if self.fail_below is not None and share < self.fail_below:
            return "fail"
        return "warn" if self.warn_below is not None and share < self.warn_below else "pass"


@dataclass(frozen=True, slots=True)
class Measure:
    """A row of the table MEASURES, without its dataset."""

    check: str
    category: str
    level: str
    n_applicable: int
    n_pass: int
    n_fail: int
    result: str
    group_by: str = "all"
    group: str | None = "all"
    tag: str | None = None
    reason: str | None = None


@cache
def quality_checks() -> dict[str, QualityCheck]:
    """All quality checks, by their id, in the order of the table."""
    text = files("dicom_etl.quality.tables").joinpath("quality_checks.json").read_text(encoding="utf-8")
    return {row["check"]: QualityCheck(**row) for row in json.loads(text)["checks"]}


def tabulate_measures(dataset: str, measures: Iterable[Measure]) -> pa.Table:
    """The measures of a dataset, in the schema of MEASURES."""
    rows = [{"dataset": dataset, **asdict(measure)} for measure in measures]
    return pa.Table.from_pylist(rows, schema=MEASURES.schema)
