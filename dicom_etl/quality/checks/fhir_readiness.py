"""Checks of FHIR readiness: how often the resources have each FHIR element that depends on the data, and why not.

Whether an element is present is a column of FHIR_ELEMENTS, which `build` writes; no rule of the mapping is repeated
here. The reason of a missing element comes from the states of its tags and from the terms and times that the mapping
looks up, once for each different value. Only studies, series and patients of built units are counted. Constants and
numbers that are computed are not counted.

Not here: building resources.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import pyarrow as pa
from pydicom.datadict import tag_for_keyword

from dicom_etl.fhir.datetimes import convert_date_time
from dicom_etl.headers.tag_profile import tag_text
from dicom_etl.lake.schemas import FHIR_ELEMENTS
from dicom_etl.quality.check_table import Measure
from dicom_etl.quality.checks.counting import CountingFunction, MeasuredDataset, count_failures
from dicom_etl.quality.working_database import Database

__all__ = ["COUNTING_FUNCTIONS", "ELEMENT_COLUMNS", "IDENTITY_COLUMNS", "create_cases", "create_resources"]

ELEMENT_COLUMNS = [name for name in FHIR_ELEMENTS.schema.names if name not in ("dataset", "unit")]
IDENTITY_COLUMNS = ["study_uid", "patient", "rule", "reason"]  # of IDENTITIES

_FLAGS = [name for name in ELEMENT_COLUMNS if FHIR_ELEMENTS.schema.field(name).type == pa.bool_()]


class _Element(NamedTuple):
    """A FHIR element: when it is present, and the reason why not, as SQL over the cases of its level."""

    level: str
    keywords: tuple[str, ...]  # tags whose states are the reason
    is_present: str
    reason: str = "NULL"  # other than the states of the tags
    applies: str = "true"


_BODY_SITE_TAGS = ("BodyPartExamined", "AnatomicRegionSequence")
_LATERALITY_TAGS = ("Laterality", "ImageLaterality", "FrameLaterality")

_NO_TIME_REASON = """
    CASE WHEN NOT has_date THEN NULL
         WHEN NOT has_time THEN 'no StudyTime'
         WHEN NOT has_zone THEN 'no time zone'
         WHEN has_unusable_times THEN 'StudyTime is partial or invalid' END
"""
_NO_BODY_SITE_REASON = "CASE WHEN first_part = last_part AND NOT is_term THEN 'text is not a term of Annex L' END"
_NO_LATERALITY_REASON = """
    CASE WHEN first_laterality <> last_laterality THEN 'images with different laterality'
         WHEN first_laterality = 'U' THEN 'unpaired (U)'
         WHEN first_laterality IS NOT NULL THEN 'not R, L or B'
         WHEN coalesce(is_paired, false) THEN NULL
         ELSE 'undecided: unknown whether the body part is paired' END
"""
# Series with a laterality, with a paired body part, or with a body part that is unknown: without the last, omitting the
# body part would improve the figure.
_NEEDS_LATERALITY = """
    coalesce(first_laterality <> 'U' OR last_laterality <> 'U', false) OR first_part IS NULL OR may_be_paired
"""
_NO_IDENTIFIER_REASON = """
    CASE WHEN is_shared THEN 'PatientID of several subjects'
         WHEN is_placeholder THEN 'PatientID is a placeholder' END
"""
_HAS_IDENTIFIER = "rule IN ('crosswalk', 'authority', 'patient-id')"

_ELEMENTS = {
    "fhir-started": _Element("study", ("StudyDate",), "started"),
    "fhir-started-time": _Element("study", ("StudyDate",), "started_time", _NO_TIME_REASON),
    "fhir-accession": _Element("study", ("AccessionNumber",), "accession"),
    "fhir-study-description": _Element("study", ("StudyDescription",), "description"),
    "fhir-series-description": _Element("series", ("SeriesDescription",), "description"),
    "fhir-body-site": _Element("series", _BODY_SITE_TAGS, "body_site", _NO_BODY_SITE_REASON, "has_tag"),
    "fhir-laterality": _Element(
        "series", _LATERALITY_TAGS, "laterality", _NO_LATERALITY_REASON, f"has_tag AND ({_NEEDS_LATERALITY})"
    ),
    "fhir-patient-identifier": _Element("patient", ("PatientID",), _HAS_IDENTIFIER, _NO_IDENTIFIER_REASON),
    "fhir-patient-birth-date": _Element("patient", ("PatientBirthDate",), "birth_date"),
    "fhir-patient-gender": _Element("patient", ("PatientSex",), "gender"),
}


# -- counting ---------------------------------------------------------------------------------------------------------


def _count_built(dataset: MeasuredDataset) -> list[Measure]:
    """Check `fhir-built`: the studies that are ImagingStudy resources."""
    sql = """
        SELECT CASE WHEN NOT is_built THEN 'not built yet'
                    WHEN NOT has_resource THEN 'on hold or omitted' END AS failure, count(*) AS n
        FROM study_cases GROUP BY failure
    """
    return count_failures(dataset, "fhir-built", "study", sql)


def _count_element(check: str, dataset: MeasuredDataset) -> list[Measure]:
    """The check of an element: how often it is present, and the reasons why it is not."""
    element = _ELEMENTS[check]
    tags = ", ".join(f"'{tag_text(tag_for_keyword(keyword) or 0)}'" for keyword in element.keywords)
    # the best state of its tags
    dataset.database.run(f"""
        CREATE OR REPLACE TABLE best_states AS
        SELECT profile_set,
               max(list_position(['unknown', 'absent', 'empty', 'unusable', 'partial', 'filled'], state)) AS state
        FROM set_states JOIN tag_classes USING (tag_class)
        WHERE creator IS NULL AND tag IN ({tags}) GROUP BY profile_set
    """)
    cases = f"(SELECT *, profile_set IN (SELECT profile_set FROM best_states) AS has_tag FROM {element.level}_cases)"
    patients = (
        "(SELECT patient, max(state) AS state FROM patient_sets JOIN best_states USING (profile_set) GROUP BY patient)"
    )
    states = f"{patients} USING (patient)" if element.level == "patient" else "best_states USING (profile_set)"
    sql = f"""
        SELECT CASE WHEN NOT has_resource THEN 'not built (on hold or omitted)'
                    WHEN {element.is_present} THEN NULL
                    ELSE coalesce({element.reason},
                                  CASE WHEN coalesce(state, 1) <= 2 THEN 'absent'
                                       WHEN state = 3 THEN 'empty'
                                       WHEN state = 4 THEN 'unusable (a placeholder or invalid)'
                                       WHEN instances > 1 THEN 'instances disagree'
                                       ELSE 'omitted' END) END AS failure,
               count(*) AS n
        FROM {cases} LEFT JOIN {states} WHERE is_built AND ({element.applies}) GROUP BY failure
    """
    return count_failures(dataset, check, element.level, sql)


COUNTING_FUNCTIONS: dict[str, CountingFunction] = {
    "fhir-built": _count_built,
    **{check: partial(_count_element, check) for check in _ELEMENTS},
}


# -- resources --------------------------------------------------------------------------------------------------------


def create_resources(
    database: Database, built_units: pa.Table, elements: Iterable[pa.Table], identities: Iterable[pa.Table]
) -> None:
    """Create `built_units`, `elements` and `identities`.

    Args:
        database: takes the tables.
        built_units: a column `unit`.
        elements: rows of FHIR_ELEMENTS with `ELEMENT_COLUMNS`, in batches.
        identities: rows of IDENTITIES with `IDENTITY_COLUMNS`, in batches.
    """
    database.create("built_units", built_units)
    columns = pa.schema([FHIR_ELEMENTS.schema.field(name) for name in ELEMENT_COLUMNS])
    database.create_from_batches("elements_in", columns, elements)
    columns = pa.schema([(name, pa.string()) for name in IDENTITY_COLUMNS])
    database.create_from_batches("identities_in", columns, identities)
    # two units may build the same Patient: the server gets the elements of both
    flags = ", ".join(f"bool_or({flag}) AS {flag}" for flag in _FLAGS)
    database.run(f"""
        CREATE TABLE elements AS SELECT level, study_uid, series_uid, patient, {flags} FROM elements_in GROUP BY ALL;
        CREATE TABLE identities AS
        SELECT study_uid, min(patient) AS patient, min(rule) AS rule, min(reason) AS reason
        FROM identities_in GROUP BY study_uid;
        DROP TABLE elements_in;
        DROP TABLE identities_in
    """)


def create_cases(database: Database, *, has_time_zone: bool) -> None:
    """Create `study_cases`, `series_cases`, `patient_cases` and `patient_sets`: all that the elements depend on.

    Args:
        database: has the tables of occurrences, states, terms and resources.
        has_time_zone: whether a time zone is set for the dataset.
    """
    _create_studies(database, has_time_zone=has_time_zone)
    _create_series(database)
    _create_patients(database)


def _create_studies(database: Database, *, has_time_zone: bool) -> None:
    """Create `study_cases`: the studies, with all that their elements depend on."""
    database.run(f"""
        CREATE TABLE study_cases AS
        SELECT f.*, profile_set, e.* EXCLUDE (level, study_uid, series_uid, patient),
               e.study_uid IS NOT NULL AS has_resource, false AS has_unusable_times
        FROM (
            SELECT study, sum(n) AS instances, bool_or(unit IN (FROM built_units)) AS is_built,
                   count("StudyDate") > 0 AS has_date, count("StudyTime") > 0 AS has_time,
                   {"true" if has_time_zone else "coalesce(bool_or(is_known), false)"} AS has_zone
            FROM occurrences LEFT JOIN offsets ON value = "TimezoneOffsetFromUTC"
            WHERE study IS NOT NULL GROUP BY study
        ) f
        JOIN studies USING (study)
        JOIN (FROM entities WHERE level = 'study') n ON n.entity = f.study
        LEFT JOIN (FROM elements WHERE level = 'study') e ON e.study_uid = studies.study_uid
    """)
    _mark_unusable_times(database)


def _mark_unusable_times(database: Database) -> None:
    """Find the studies that have a date and a time of which the mapping makes no time."""
    database.run("""
        CREATE TABLE times AS
        SELECT DISTINCT study, "StudyDate" AS date, "StudyTime" AS time FROM occurrences JOIN study_cases USING (study)
        WHERE has_resource AND NOT started_time AND has_zone AND date IS NOT NULL AND time IS NOT NULL
    """)
    rows = database.fetch_rows("SELECT DISTINCT date, time FROM times")
    usable = [row for row in rows if convert_date_time(row["date"], row["time"], "+0000", None).code is None]
    schema = pa.schema([("date", pa.date32()), ("time", pa.string())])
    database.create("usable_times", pa.Table.from_pylist(usable, schema=schema))
    database.run("""
        UPDATE study_cases SET has_unusable_times = true
        WHERE study IN (FROM (SELECT study FROM times))
          AND study NOT IN (SELECT study FROM times JOIN usable_times USING (date, time))
    """)


def _create_series(database: Database) -> None:
    """Create `series_cases`: the series, with all that their elements depend on."""
    database.run("""
        CREATE TABLE series_cases AS
        SELECT f.*, profile_set, e.* EXCLUDE (level, study_uid, series_uid, patient),
               e.study_uid IS NOT NULL AS has_resource
        FROM (
            SELECT series, sum(n) AS instances, bool_or(unit IN (FROM built_units)) AS is_built,
                   min("BodyPartExamined") AS first_part, max("BodyPartExamined") AS last_part,
                   bool_and(is_known) AS is_term, bool_or(p.is_paired) AS is_paired,
                   coalesce(bool_or(value IS NOT NULL AND p.is_paired IS DISTINCT FROM false), false) AS may_be_paired,
                   min(least("Laterality", "ImageLaterality", "FrameLaterality")) AS first_laterality,
                   max(greatest("Laterality", "ImageLaterality", "FrameLaterality")) AS last_laterality
            FROM occurrences LEFT JOIN body_parts p ON value = "BodyPartExamined"
            WHERE series IS NOT NULL GROUP BY series
        ) f
        JOIN series USING (series)
        JOIN studies USING (study)
        JOIN (FROM entities WHERE level = 'series') n ON n.entity = f.series
        LEFT JOIN (FROM elements WHERE level = 'series') e
            ON e.study_uid = studies.study_uid AND e.series_uid = series.series_uid
    """)


def _create_patients(database: Database) -> None:
    """Create `patient_cases` and `patient_sets`: the patients of the built studies, and their sets of state profiles.

    A study on hold is counted as one patient, since its patient is unknown.
    """
    database.run("""
        CREATE TABLE patient_studies AS
        SELECT coalesce(i.patient, 'held ' || study_uid) AS patient, rule, reason, profile_set, instances
        FROM study_cases JOIN studies USING (study) LEFT JOIN identities i USING (study_uid) WHERE is_built;
        CREATE TABLE patient_sets AS SELECT DISTINCT patient, profile_set FROM patient_studies;
        CREATE TABLE patient_cases AS
        SELECT p.*, e.* EXCLUDE (level, study_uid, series_uid, patient), e.patient IS NOT NULL AS has_resource,
               true AS is_built
        FROM (
            SELECT patient, NULL::BIGINT AS profile_set, sum(instances) AS instances, min(rule) AS rule,
                   coalesce(bool_or(reason = 'patient-id-shared'), false) AS is_shared,
                   coalesce(bool_or(reason = 'patient-id-placeholder'), false) AS is_placeholder
            FROM patient_studies GROUP BY patient
        ) p LEFT JOIN (FROM elements WHERE level = 'patient') e USING (patient)
    """)
