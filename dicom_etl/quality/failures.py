"""Failing entities, listed by a query, as findings; and counts of failures, as measures.

Not here: which entities fail.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from dicom_etl.findings import codes
from dicom_etl.lake.schemas import FINDINGS
from dicom_etl.quality.checks import Measure, Tally
from dicom_etl.quality.database import Database

__all__ = ["entity_findings", "failure_findings", "tallied"]

_UIDS = {
    "study": "(SELECT study, study_uid, NULL AS series_uid FROM studies)",
    "series": "(SELECT series, study_uid, series_uid FROM series JOIN studies USING (study))",
}


def tallied(database: Database, check: str, level: str, sql: str) -> Iterator[Measure]:
    """The measures of a check from a query with the columns `failure` (null: passed) and `n`."""
    tally = Tally(check, level)
    for row in database.rows(sql):
        tally.add(row["failure"], row["n"])
    return tally.measures()


def entity_findings(database: Database, code: str, dataset: str, level: str, sql: str) -> pa.Table:
    """A finding for each row of a query, with its place: the first unit and subject that have instances of the entity.

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
    known = codes()[code]
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
