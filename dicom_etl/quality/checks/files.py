"""Checks of the files of a dataset: are they readable, and is each instance in one file; and the size of the dataset.

Not here: the values in the headers.
"""

from __future__ import annotations

from dicom_etl.quality.check_table import Measure
from dicom_etl.quality.checks.counting import MeasuredDataset, count_failures, make_size

__all__ = [
    "EXPECTED_DICOM",
    "count_equal_copies",
    "count_files_by_kind",
    "count_inventory",
    "count_readable_files",
    "count_single_files",
]

# condition on a row of the table `files`: DICOM by its content, or supposed to be by its name
EXPECTED_DICOM = "(kind IN ('dicom', 'unreadable') OR reason = 'file-not-dicom')"


def count_readable_files(dataset: MeasuredDataset) -> list[Measure]:
    """Check `files-readable`."""
    sql = f"""
        SELECT CASE WHEN kind <> 'dicom' THEN reason END AS failure, sum(n)::BIGINT AS n
        FROM files WHERE {EXPECTED_DICOM} GROUP BY failure
    """
    return count_failures(dataset, "files-readable", "file", sql)


def count_single_files(dataset: MeasuredDataset) -> list[Measure]:
    """Check `instances-once`: header rows with a duplicate flag fail."""
    sql = """
        SELECT CASE WHEN duplicate IS NOT NULL THEN concat('another copy (', duplicate, ')') END AS failure, n
        FROM duplicate_flags
    """
    return count_failures(dataset, "instances-once", "instance", sql)


def count_equal_copies(dataset: MeasuredDataset) -> list[Measure]:
    """Check `copies-agree`: header rows with the duplicate flag `conflict` fail."""
    sql = "SELECT CASE WHEN duplicate = 'conflict' THEN 'different content' END AS failure, n FROM duplicate_flags"
    return count_failures(dataset, "copies-agree", "instance", sql)


def count_files_by_kind(dataset: MeasuredDataset) -> list[Measure]:
    """The number of files of each kind, and the reasons why they were not read."""
    rows = dataset.database.fetch_rows("SELECT kind, reason, sum(n)::BIGINT AS n FROM files GROUP BY ALL ORDER BY ALL")
    return [
        make_size("files-by-kind", "file", row["n"], group_by="kind", group=row["kind"], reason=row["reason"])
        for row in rows
    ]


def count_inventory(dataset: MeasuredDataset) -> list[Measure]:
    """The numbers of instances, series and studies, over all and by modality, and of subjects (their folders)."""
    sizes = dataset.database.fetch_rows("""
        SELECT level, group_by, "group", sum(n)::BIGINT AS n FROM weights
        WHERE group_by IN ('all', 'modality') GROUP BY ALL ORDER BY ALL
    """)
    (subjects,) = dataset.database.fetch_rows("SELECT count(DISTINCT subject) AS n FROM folders WHERE subject <> ''")
    return [
        make_size("inventory", "subject", subjects["n"]),
        *(make_size("inventory", r["level"], r["n"], group_by=r["group_by"], group=r["group"]) for r in sizes),
    ]
