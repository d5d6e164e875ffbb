"""Occurrences: the distinct combinations of the values of a header row that are measured, with their number.

`CHECKED_COLUMNS` are the columns of the header table that quality checks may use. The thousand slices of a series
nearly always have the same values in all of them, and are one occurrence. So the work that follows grows with the
series of a dataset, not with its instances.

Not here: evaluating the values (`tag_states`, `checks`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.lake.schemas import header_table
from dicom_etl.quality.value_states import pack_states, packed_columns, value_columns
from dicom_etl.quality.working_database import Database

__all__ = ["CHECKED_COLUMNS", "GROUPS", "HEADER_COLUMNS", "create_occurrences", "find_occurrences"]

# Name of a grouping -> SQL expression over an occurrence. Counts by subject are not stored (`subject_completeness`).
GROUPS: Mapping[str, str] = {
    "modality": '"Modality"',
    "sop_class": '"SOPClassUID"',
    "manufacturer": '"Manufacturer"',
    "model": '"ManufacturerModelName"',
    "study_year": 'CAST(year("StudyDate") AS VARCHAR)',
}
CHECKED_COLUMNS = (
    "unit",
    "subject",
    "sample",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "tag_profile",
    "SOPClassUID",
    "Modality",
    "Manufacturer",
    "ManufacturerModelName",
    "StudyDate",
    "StudyTime",
    "TimezoneOffsetFromUTC",
    "BodyPartExamined",
    "Laterality",
    "ImageLaterality",
    "FrameLaterality",
    "PatientBirthDate",
    "NumberOfStudyRelatedSeries",
    "NumberOfStudyRelatedInstances",
    "NumberOfSeriesRelatedInstances",
)
HEADER_COLUMNS: tuple[str, ...] = tuple(
    dict.fromkeys([*CHECKED_COLUMNS, "duplicate", *(column.name for column in value_columns())])
)


def find_occurrences(rows: pa.Table) -> pa.Table:
    """The occurrences of header rows: `CHECKED_COLUMNS`, packed value states, and their number `n`.

    `rows` have `HEADER_COLUMNS`; those with a duplicate flag are not counted.
    """
    counted_rows = rows.filter(pc.is_null(rows["duplicate"]))
    columns = {name: counted_rows[name] for name in CHECKED_COLUMNS} | pack_states(counted_rows)
    counts = pa.table(columns).group_by(list(columns), use_threads=False).aggregate([([], "count_all")])
    return counts.select([*columns, "count_all"]).rename_columns([*columns, "n"])


def create_occurrences(database: Database, batches: Iterable[pa.Table]) -> None:
    """Create `studies`, `series`, `state_profiles`, `occurrences` and `profile_counts`.

    An occurrence has the numbers of its study, series and state profile (`tag_states`); the first two are null where
    the header has no UID. `profile_counts` has the number `n` of instances by state profile,
    `modality` and `manufacturer`.

    Args:
        database: takes the tables.
        batches: the occurrences of batches of header rows; several batches may have the same one.
    """
    schema = header_table().schema
    no_rows = pa.schema([schema.field(name) for name in HEADER_COLUMNS]).empty_table()
    database.create("occurrences_in", find_occurrences(no_rows))
    for batch in batches:
        database.append("occurrences_in", batch)
    words = ", ".join(packed_columns())
    database.run("""
        CREATE TABLE studies AS
        SELECT row_number() OVER (ORDER BY study_uid) AS study, study_uid
        FROM (SELECT DISTINCT "StudyInstanceUID" AS study_uid FROM occurrences_in WHERE study_uid IS NOT NULL)
    """)
    database.run("""
        CREATE TABLE series AS
        SELECT row_number() OVER (ORDER BY study, series_uid) AS series, study, series_uid
        FROM (SELECT DISTINCT study, "SeriesInstanceUID" AS series_uid
              FROM occurrences_in JOIN studies ON "StudyInstanceUID" = study_uid WHERE series_uid IS NOT NULL)
    """)
    database.run(f"""
        CREATE TABLE state_profiles AS
        SELECT row_number() OVER () AS state_profile, *
        FROM (SELECT DISTINCT tag_profile, "SOPClassUID" AS sop_class, {words} FROM occurrences_in)
    """)
    same_words = " AND ".join(f"p.{word} = o.{word}" for word in packed_columns())
    database.run(f"""
        CREATE TABLE occurrences AS
        SELECT o.* EXCLUDE ("StudyInstanceUID", "SeriesInstanceUID", tag_profile, {words}),
               s.study, r.series, p.state_profile
        FROM occurrences_in o
        JOIN state_profiles p ON p.tag_profile IS NOT DISTINCT FROM o.tag_profile
             AND p.sop_class IS NOT DISTINCT FROM o."SOPClassUID" AND {same_words}
        LEFT JOIN studies s ON s.study_uid = o."StudyInstanceUID"
        LEFT JOIN series r ON r.study = s.study AND r.series_uid = o."SeriesInstanceUID"
    """)
    database.run("""
        CREATE TABLE profile_counts AS
        SELECT state_profile, "Modality" AS modality, "Manufacturer" AS manufacturer, sum(n) AS n
        FROM occurrences GROUP BY ALL
    """)
    database.run("DROP TABLE occurrences_in")
