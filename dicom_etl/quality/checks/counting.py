"""Tools of the counting functions: from numbers to measures, and from the entities that fail to findings.

A counting function gets a `MeasuredDataset` and returns the measures of its check: first the result of the check, then
one measure per reason of failure. It may add findings to the dataset. Its query gives a row for each reason, with the
columns `failure` (the reason; null: passed) and `n`.

Not here: which entities fail (the other modules of this package).
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from dicom_etl.findings import finding_codes
from dicom_etl.lake.schemas import FINDINGS
from dicom_etl.quality.check_table import NOT_EVALUATED, Measure, quality_checks
from dicom_etl.quality.working_database import Database

__all__ = ["CheckCount", "CountingFunction", "MeasuredDataset", "count_failures", "make_size"]

_UIDS = {
    "study": "(SELECT study, study_uid, NULL AS series_uid FROM studies)",
    "series": "(SELECT series, study_uid, series_uid FROM series JOIN studies USING (study))",
}


@dataclass(frozen=True)
class MeasuredDataset:
    """A dataset in its working database (`inputs`), and the setting that its checks depend on."""

    name: str
    database: Database
    reference_date: datetime.date | None = None  # dates after it are in the future

    def add_findings(self, code: str, rows: pa.Table) -> None:
        """Add a finding for each row; its columns are columns of FINDINGS, and the code gives the others."""
        entry = finding_codes()[code]
        constants = {
            "code": code,
            "severity": entry.severity,
            "stage": entry.stage,
            "dataset": self.name,
            "message": entry.meaning,
            "count": 1,
        }
        columns = [
            rows[field.name].cast(field.type)
            if field.name in rows.column_names
            else pa.repeat(pa.scalar(constants.get(field.name), field.type), rows.num_rows)
            for field in FINDINGS.schema
        ]
        self.database.append("findings", pa.table(columns, schema=FINDINGS.schema))

    def add_entity_findings(self, code: str, level: str, sql: str) -> None:
        """Add a finding for each study or series that a query returns, at the first unit and subject with instances.

        Args:
            code: of the findings.
            level: study or series.
            sql: a query with the number of the entity in a column named as the level, and other columns of FINDINGS.
        """
        self.database.run(f"CREATE OR REPLACE TABLE failing AS {sql}")
        rows = self.database.query(f"""
            SELECT * EXCLUDE ({level}) FROM failing JOIN {_UIDS[level]} USING ({level}) JOIN (
                SELECT {level}, arg_min_null(subject, unit) AS subject, min(unit) AS unit
                FROM occurrences WHERE {level} IN (SELECT {level} FROM failing) GROUP BY {level}
            ) USING ({level})
        """)
        self.add_findings(code, rows)


CountingFunction = Callable[[MeasuredDataset], list[Measure]]


@dataclass
class CheckCount:
    """Counts of one check in one group: passes, and failures by reason."""

    check: str
    level: str
    n_pass: int = 0
    group_by: str = "all"
    group: str | None = "all"
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, failure: str | None, n: int = 1) -> None:
        """Count `n` entities that passed (None) or failed for a reason."""
        if failure is None:
            self.n_pass += n
        else:
            self.reasons[failure] += n

    def to_measures(self) -> list[Measure]:
        """The result of the check, then one measure per reason."""
        check = quality_checks()[self.check]
        n_fail = sum(self.reasons.values())
        n_applicable = self.n_pass + n_fail
        result = Measure(
            self.check,
            check.category,
            self.level,
            n_applicable,
            self.n_pass,
            n_fail,
            check.evaluate(n_applicable, self.n_pass),
            self.group_by,
            self.group,
        )
        return [result, *(replace(result, reason=reason, n_fail=n) for reason, n in sorted(self.reasons.items()))]


def count_failures(dataset: MeasuredDataset, check: str, level: str, sql: str) -> list[Measure]:
    """The measures of a check from a query with the columns `failure` (a reason; null: passed) and `n`."""
    count = CheckCount(check, level)
    for row in dataset.database.fetch_rows(sql):
        count.add(row["failure"], row["n"])
    return count.to_measures()


def make_size(check: str, level: str, n: int, **columns: Any) -> Measure:
    """A number without result, such as the size of the dataset."""
    return Measure(check, quality_checks()[check].category, level, n, n, 0, NOT_EVALUATED, **columns)
