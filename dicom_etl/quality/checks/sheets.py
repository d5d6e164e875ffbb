"""Whether the metadata sheets of a dataset and its folders name the same subjects and samples.

Not here: headers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from dicom_etl.quality.check_table import Measure
from dicom_etl.quality.checks.counting import count_failures, failure_findings
from dicom_etl.quality.working_database import Database

__all__ = ["SHEET_COLUMNS", "create_sheets", "sample_matches", "subject_matches"]

SHEET_COLUMNS = ["sheet", "subject", "sample", "field", "value"]  # of the table of sheets

_FOLDERS = pa.schema([("subject", pa.string()), ("sample", pa.string())])


def create_sheets(database: Database, folders: Iterable[pa.Table], cells: Iterable[pa.Table]) -> None:
    """Tables `folders`, and of the sheets `sheet_subjects`, `sheet_pools`, `sheet_samples` and `metadata_only`.

    Args:
        database: takes the tables.
        folders: columns `subject` and `sample` of the inventory, in pieces.
        cells: the columns `SHEET_COLUMNS` of SHEETS, in pieces.
    """
    database.create("folders_in", _FOLDERS.empty_table())
    for piece in folders:
        database.append("folders_in", piece.select(_FOLDERS.names).group_by(_FOLDERS.names).aggregate([]))
    database.run("CREATE TABLE folders AS SELECT DISTINCT subject, sample FROM folders_in")
    database.create("cells", pa.schema([(name, pa.string()) for name in SHEET_COLUMNS]).empty_table())
    for piece in cells:
        database.append("cells", piece.select(SHEET_COLUMNS))
    # a row that is metadata only needs no folder
    database.run("""
        CREATE TABLE sheet_subjects AS SELECT DISTINCT subject FROM cells WHERE sheet = 'subjects' AND subject <> '';
        CREATE TABLE sheet_pools AS SELECT DISTINCT value AS subject FROM cells WHERE field = 'pool id' AND value <> '';
        CREATE TABLE sheet_samples AS
            SELECT DISTINCT subject, sample FROM cells WHERE sheet = 'samples' AND sample <> '';
        CREATE TABLE metadata_only AS
            SELECT DISTINCT subject, CASE sheet WHEN 'samples' THEN sample END AS sample
            FROM cells WHERE field = 'metadata only' AND lower(value) IN ('true', 'yes', '1');
        CREATE TABLE sheets AS SELECT DISTINCT sheet FROM cells;
        DROP TABLE folders_in;
        DROP TABLE cells
    """)


def subject_matches(database: Database, dataset: str) -> tuple[list[Measure], list[pa.Table]]:
    """Subjects of sheet and folders: measures and findings. Makes the table `subject_notes`."""
    database.run("""
        CREATE TABLE matched_subjects AS
        SELECT subject, CASE
            WHEN subject NOT IN (FROM sheet_subjects) AND subject NOT IN (FROM sheet_pools)
                THEN 'folder without a row in the sheet'
            WHEN subject NOT IN (SELECT subject FROM folders WHERE subject <> '')
                 AND subject NOT IN (SELECT subject FROM metadata_only WHERE subject IS NOT NULL AND sample IS NULL)
                THEN 'row without a folder'
            END AS failure
        FROM (SELECT subject FROM folders WHERE subject <> '' UNION FROM sheet_subjects)
        WHERE 'subjects' IN (FROM sheets);
        CREATE TABLE subject_notes AS SELECT subject, failure AS note FROM matched_subjects WHERE failure IS NOT NULL
    """)
    measures = _matches(database, "subjects-match", "subject", "matched_subjects")
    listed = "SELECT subject AS unit, subject FROM matched_subjects WHERE failure = 'folder without a row in the sheet'"
    missing = "SELECT subject FROM matched_subjects WHERE failure = 'row without a folder'"
    return list(measures), [
        failure_findings("subject-not-in-sheet", dataset, database.query(listed)),
        failure_findings("subject-not-in-tree", dataset, database.query(missing)),
    ]


def sample_matches(database: Database, dataset: str) -> tuple[list[Measure], list[pa.Table]]:
    """Samples of sheet and folders: measures and findings. A row without a subject names a sample of the dataset."""
    database.run("""
        CREATE TABLE matched_samples AS
        SELECT f.subject, f.sample, CASE WHEN r.sample IS NULL AND f.sample NOT IN
                    (SELECT sample FROM sheet_samples WHERE subject IS NULL)
                THEN 'folder without a row in the sheet' END AS failure
        FROM folders f LEFT JOIN sheet_samples r ON r.subject = f.subject AND r.sample = f.sample
        WHERE f.sample <> '' AND 'samples' IN (FROM sheets)
        UNION ALL
        SELECT r.subject, r.sample, CASE WHEN m.is_exempt IS NULL THEN 'row without a folder' END
        FROM (
            SELECT subject, sample FROM sheet_samples WHERE subject IS NOT NULL
                AND (subject, sample) NOT IN (SELECT (subject, sample) FROM folders
                                              WHERE sample <> '' AND subject IS NOT NULL)
            UNION ALL
            SELECT subject, sample FROM sheet_samples WHERE subject IS NULL
                AND sample NOT IN (SELECT sample FROM folders WHERE sample <> '')
        ) r LEFT JOIN (
            SELECT DISTINCT s.subject, s.sample, true AS is_exempt FROM sheet_samples s JOIN metadata_only m
                ON m.subject IS NOT DISTINCT FROM s.subject AND (m.sample IS NULL OR m.sample = s.sample)
        ) m ON m.subject IS NOT DISTINCT FROM r.subject AND m.sample = r.sample
    """)
    measures = _matches(database, "samples-match", "sample", "matched_samples")
    listed = """SELECT subject AS unit, subject, sample FROM matched_samples
                WHERE failure = 'folder without a row in the sheet'"""
    missing = "SELECT subject, sample FROM matched_samples WHERE failure = 'row without a folder'"
    return list(measures), [
        failure_findings("sample-not-in-sheet", dataset, database.query(listed)),
        failure_findings("sample-not-in-tree", dataset, database.query(missing)),
    ]


def _matches(database: Database, check: str, level: str, table: str) -> Iterator[Measure]:
    return count_failures(database, check, level, f"SELECT failure, count(*) AS n FROM {table} GROUP BY failure")
