"""Tools of the functions that count checks: measures from counts, and findings from the entities that fail.

Not here: which entities fail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from dicom_etl.findings import finding_codes
from dicom_etl.lake.schemas import FINDINGS
from dicom_etl.quality.check_table import NOT_EVALUATED, Measure, quality_checks
from dicom_etl.quality.working_database import Database

__all__ = ["CheckCount", "count_failures", "entity_findings", "failure_findings", "size_measure"]

_UIDS = {
    "study": "(SELECT study, study_uid, NULL AS series_uid FROM studies)",
    "series": "(SELECT series, study_uid, series_uid FROM series JOIN studies USING (study))",
}


@dataclass
class CheckCount:
    """Counts of one check in one group: passes, and failures by reason."""

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
            check.result(n_applicable, self.n_pass),
            self.group_by,
            self.group,
        )
        yield result
        for reason, n in sorted(self.reasons.items()):
            yield replace(result, reason=reason, n_fail=n)


def count_failures(database: Database, check: str, level: str, sql: str) -> Iterator[Measure]:
    """The measures of a check from a query with the columns `failure` (a reason; null: passed) and `n`."""
    count = CheckCount(check, level)
    for row in database.rows(sql):
        count.add(row["failure"], row["n"])
    return count.measures()


def size_measure(check: str, level: str, n: int, **columns: Any) -> Measure:
    """A number that is not checked, such as the size of the dataset."""
    return Measure(check, quality_checks()[check].category, level, n, n, 0, NOT_EVALUATED, **columns)


def entity_findings(database: Database, code: str, dataset: str, level: str, sql: str) -> pa.Table:
    """A finding for each row of a query, located at the first unit and subject that have instances of the entity.

    Args:
        database: has the tables of the occurrences.
        code: of the findings.
        dataset: of the findings.
        level: study or series.
        sql: a query with the number of the entity in a column named as the level, and further columns of FINDINGS.
    """
    database.run(f"CREATE OR REPLACE TABLE failing AS {sql}")
    rows = database.query(f"""
        SELECT * EXCLUDE ({level}) FROM failing JOIN {_UIDS[level]} USING ({level}) JOIN (
            SELECT {level}, arg_min_null(subject, unit) AS subject, min(unit) AS unit
            FROM occurrences WHERE {level} IN (SELECT {level} FROM failing) GROUP BY {level}
        ) USING ({level})
    """)
    return failure_findings(code, dataset, rows)


def failure_findings(code: str, dataset: str, rows: pa.Table) -> pa.Table:
    """A finding for each row; its columns are columns of FINDINGS, and what they do not give is as the code says."""
    known = finding_codes()[code]
    constants = {
        "code": code,
        "severity": known.severity,
        "stage": known.stage,
        "dataset": dataset,
        "message": known.meaning,
        "count": 1,
    }
    return pa.table(
        [
            rows[field.name].cast(field.type)
            if field.name in rows.column_names
            else pa.repeat(pa.scalar(constants.get(field.name), field.type), rows.num_rows)
            for field in FINDINGS.schema
        ],
        schema=FINDINGS.schema,
    )
