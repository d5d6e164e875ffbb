"""Checks of the metadata sheets: they and the folders of the dataset name the same subjects and samples.

Not here: headers; reading the sheets (`sources.sheets`).
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from dicom_etl.quality.check_table import Measure
from dicom_etl.quality.checks.counting import MeasuredDataset, count_failures
from dicom_etl.quality.working_database import Database

__all__ = ["FOLDER_COLUMNS", "SHEET_COLUMNS", "count_matching_samples", "count_matching_subjects", "create_sheets"]

FOLDER_COLUMNS = ["subject", "sample"]  # of INVENTORY
SHEET_COLUMNS = ["sheet", "subject", "sample", "field", "value"]  # of SHEETS

_NO_ROW = "folder without a row in the sheet"
_NO_FOLDER = "row without a folder"


def create_sheets(database: Database, folders: Iterable[pa.Table], cells: Iterable[pa.Table]) -> None:
    """Create `folders`, and from the sheets `sheet_subjects`, `sheet_pools`, `sheet_samples` and `metadata_only`.

    Args:
        database: takes the tables.
        folders: the columns `FOLDER_COLUMNS` of INVENTORY, in batches.
        cells: the columns `SHEET_COLUMNS` of SHEETS, in batches.
    """
    different = (batch.select(FOLDER_COLUMNS).group_by(FOLDER_COLUMNS).aggregate([]) for batch in folders)
    database.create_from_batches("folders_in", _text_columns(FOLDER_COLUMNS), different)
    database.create_from_batches("cells", _text_columns(SHEET_COLUMNS), cells)
    # a row that is metadata only needs no folder
    database.run("""
        CREATE TABLE folders AS SELECT DISTINCT subject, sample FROM folders_in;
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


def _text_columns(names: list[str]) -> pa.Schema:
    return pa.schema([(name, pa.string()) for name in names])


def count_matching_subjects(dataset: MeasuredDataset) -> list[Measure]:
    """Check `subjects-match`. Creates `subject_notes`, the mismatch of each subject."""
    dataset.database.run(f"""
        CREATE TABLE matched_subjects AS
        SELECT subject, CASE
            WHEN subject NOT IN (FROM sheet_subjects) AND subject NOT IN (FROM sheet_pools)
                THEN '{_NO_ROW}'
            WHEN subject NOT IN (SELECT subject FROM folders WHERE subject <> '')
                 AND subject NOT IN (SELECT subject FROM metadata_only WHERE subject IS NOT NULL AND sample IS NULL)
                THEN '{_NO_FOLDER}'
            END AS failure
        FROM (SELECT subject FROM folders WHERE subject <> '' UNION FROM sheet_subjects)
        WHERE 'subjects' IN (FROM sheets);
        CREATE TABLE subject_notes AS SELECT subject, failure AS note FROM matched_subjects WHERE failure IS NOT NULL
    """)
    _add_findings(dataset, "subject-not-in-sheet", "subject AS unit, subject", "matched_subjects", _NO_ROW)
    _add_findings(dataset, "subject-not-in-tree", "subject", "matched_subjects", _NO_FOLDER)
    return _count_matches(dataset, "subjects-match", "subject", "matched_subjects")


def count_matching_samples(dataset: MeasuredDataset) -> list[Measure]:
    """Check `samples-match`. A row without a subject matches the sample of any subject."""
    dataset.database.run(f"""
        CREATE TABLE matched_samples AS
        SELECT f.subject, f.sample, CASE WHEN r.sample IS NULL AND f.sample NOT IN
                    (SELECT sample FROM sheet_samples WHERE subject IS NULL)
                THEN '{_NO_ROW}' END AS failure
        FROM folders f LEFT JOIN sheet_samples r ON r.subject = f.subject AND r.sample = f.sample
        WHERE f.sample <> '' AND 'samples' IN (FROM sheets)
        UNION ALL
        SELECT r.subject, r.sample, CASE WHEN m.is_exempt IS NULL THEN '{_NO_FOLDER}' END
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
    _add_findings(dataset, "sample-not-in-sheet", "subject AS unit, subject, sample", "matched_samples", _NO_ROW)
    _add_findings(dataset, "sample-not-in-tree", "subject, sample", "matched_samples", _NO_FOLDER)
    return _count_matches(dataset, "samples-match", "sample", "matched_samples")


def _add_findings(dataset: MeasuredDataset, code: str, columns: str, table: str, failure: str) -> None:
    dataset.add_findings(code, dataset.database.query(f"SELECT {columns} FROM {table} WHERE failure = '{failure}'"))


def _count_matches(dataset: MeasuredDataset, check: str, level: str, table: str) -> list[Measure]:
    return count_failures(dataset, check, level, f"SELECT failure, count(*) AS n FROM {table} GROUP BY failure")
