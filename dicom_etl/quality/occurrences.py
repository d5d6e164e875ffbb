"""Occurrences: the distinct combinations of what measures read of a header row, each with its number of instances.

The thousand slices of a series nearly always differ in nothing that is measured, and are one occurrence. So what is
judged afterwards grows with the series of a dataset, not with its instances. Not here: judging.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.lake.schemas import header_table
from dicom_etl.quality.value_states import packed_names, packed_states, watched
from dicom_etl.quality.working_database import Database

__all__ = ["GROUPS", "HEADER_COLUMNS", "create_occurrences", "occurrences"]

# Name of a group-by -> its value in the table of occurrences. Groups by subject are counted when they are asked for.
GROUPS: Mapping[str, str] = {
    "modality": '"Modality"',
    "sop_class": '"SOPClassUID"',
    "manufacturer": '"Manufacturer"',
    "model": '"ManufacturerModelName"',
    "study_year": 'CAST(year("StudyDate") AS VARCHAR)',
}
_COLUMNS = (
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
HEADER_COLUMNS: tuple[str, ...] = tuple(dict.fromkeys([*_COLUMNS, "duplicate", *(c.name for c in watched())]))


def occurrences(rows: pa.Table) -> pa.Table:
    """The occurrences of header rows, which have `HEADER_COLUMNS`; marked duplicates are left out."""
    kept = rows.filter(pc.is_null(rows["duplicate"]))
    columns = {name: kept[name] for name in _COLUMNS} | packed_states(kept)
    counted = pa.table(columns).group_by(list(columns), use_threads=False).aggregate([([], "count_all")])
    return counted.select([*columns, "count_all"]).rename_columns([*columns, "n"])


def create_occurrences(database: Database, pieces: Iterable[pa.Table]) -> None:
    """Tables `studies`, `series`, `profiles` and `occurrences`, from the occurrences of pieces of the header tables.

    An occurrence names its study, series and profile by their number; the first two are null where the header has no
    UID. It may be there several times, from several pieces.
    """
    schema = header_table().schema
    nothing = pa.schema([schema.field(name) for name in HEADER_COLUMNS]).empty_table()
    database.create("pieces", occurrences(nothing))
    for piece in pieces:
        database.append("pieces", piece)
    words = ", ".join(packed_names())
    database.run("""
        CREATE TABLE studies AS
        SELECT row_number() OVER (ORDER BY study_uid) AS study, study_uid
        FROM (SELECT DISTINCT "StudyInstanceUID" AS study_uid FROM pieces WHERE study_uid IS NOT NULL)
    """)
    database.run("""
        CREATE TABLE series AS
        SELECT row_number() OVER (ORDER BY study, series_uid) AS series, study, series_uid
        FROM (SELECT DISTINCT study, "SeriesInstanceUID" AS series_uid
              FROM pieces JOIN studies ON "StudyInstanceUID" = study_uid WHERE series_uid IS NOT NULL)
    """)
    database.run(f"""
        CREATE TABLE profiles AS
        SELECT row_number() OVER () AS profile, *
        FROM (SELECT DISTINCT tag_profile, "SOPClassUID" AS sop_class, {words} FROM pieces)
    """)
    same_words = " AND ".join(f"p.{word} = o.{word}" for word in packed_names())
    database.run(f"""
        CREATE TABLE occurrences AS
        SELECT o.* EXCLUDE ("StudyInstanceUID", "SeriesInstanceUID", tag_profile, {words}), s.study, r.series, p.profile
        FROM pieces o
        JOIN profiles p ON p.tag_profile IS NOT DISTINCT FROM o.tag_profile
             AND p.sop_class IS NOT DISTINCT FROM o."SOPClassUID" AND {same_words}
        LEFT JOIN studies s ON s.study_uid = o."StudyInstanceUID"
        LEFT JOIN series r ON r.study = s.study AND r.series_uid = o."SeriesInstanceUID"
    """)
    database.run("DROP TABLE pieces")
