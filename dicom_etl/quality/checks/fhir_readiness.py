"""FHIR readiness: for each element that depends on data, how often the resources have it, and why not.

Whether an element is there is a column of FHIR_ELEMENTS, which `build` fills; no rule of the mapping is repeated here.
Why it is not there comes from the states of its tags and from the terms and times that the mapping looks up, one
question for each different value. Studies, series and patients are those of the units that were built. Constants and
counts that we compute are no elements here.

Not here: making resources.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pyarrow as pa
from pydicom.datadict import tag_for_keyword

from dicom_etl.fhir.datetimes import convert_date_time
from dicom_etl.headers.tag_profile import tag_text
from dicom_etl.lake.schemas import FHIR_ELEMENTS
from dicom_etl.quality.check_table import Measure
from dicom_etl.quality.checks.counting import count_failures
from dicom_etl.quality.working_database import Database

__all__ = ["ELEMENT_COLUMNS", "IDENTITY_COLUMNS", "create_resources", "readiness"]

ELEMENT_COLUMNS = [name for name in FHIR_ELEMENTS.schema.names if name not in ("dataset", "unit")]
IDENTITY_COLUMNS = ["study_uid", "patient", "rule", "reason"]  # of IDENTITIES

_FLAGS = [name for name in ELEMENT_COLUMNS if FHIR_ELEMENTS.schema.field(name).type == pa.bool_()]


class _Element(NamedTuple):
    """An element: the check that counts it, and where it is and why it is not, as SQL over the cases of its level."""

    check: str
    keywords: tuple[str, ...]  # whose states tell why it is not there
    is_there: str
    why: str = "NULL"  # a reason beyond the states
    applies: str = "true"


_SITE = ("BodyPartExamined", "AnatomicRegionSequence")
_SIDES = ("Laterality", "ImageLaterality", "FrameLaterality")

_WHY_NO_TIME = """
    CASE WHEN NOT has_date THEN NULL
         WHEN NOT has_time THEN 'no StudyTime'
         WHEN NOT has_zone THEN 'no time zone'
         WHEN has_unusable_times THEN 'StudyTime is partial or not valid' END
"""
_WHY_NO_SITE = "CASE WHEN first_part = last_part AND NOT is_term THEN 'text is no term of Annex L' END"
_WHY_NO_SIDE = """
    CASE WHEN first_side <> last_side THEN 'images of several sides'
         WHEN first_side = 'U' THEN 'said to be unpaired'
         WHEN first_side IS NOT NULL THEN 'none of R, L, B'
         WHEN coalesce(is_paired, false) THEN NULL
         ELSE 'undecided: the body part does not tell whether it is paired' END
"""
# Series that have a side, whose body part is one of a pair, or whose body part does not tell: a body part that is not
# known counts, else it would improve the figure to leave it out.
_SIDE_IS_ASKED = """
    coalesce(first_side <> 'U' OR last_side <> 'U', false) OR first_part IS NULL OR may_be_paired
"""
_WHY_NO_IDENTIFIER = """
    CASE WHEN is_shared THEN 'PatientID stands for several subjects'
         WHEN is_placeholder THEN 'PatientID is a placeholder' END
"""
_IS_OWN_IDENTIFIER = "rule IN ('crosswalk', 'authority', 'patient-id')"

_ELEMENTS = {
    "study": (
        _Element("fhir-started", ("StudyDate",), "started"),
        _Element("fhir-started-time", ("StudyDate",), "started_time", _WHY_NO_TIME),
        _Element("fhir-accession", ("AccessionNumber",), "accession"),
        _Element("fhir-study-description", ("StudyDescription",), "description"),
    ),
    "series": (
        _Element("fhir-series-description", ("SeriesDescription",), "description"),
        _Element("fhir-body-site", _SITE, "body_site", _WHY_NO_SITE, "has_tag"),
        _Element("fhir-laterality", _SIDES, "laterality", _WHY_NO_SIDE, f"has_tag AND ({_SIDE_IS_ASKED})"),
    ),
    "patient": (
        _Element("fhir-patient-identifier", ("PatientID",), _IS_OWN_IDENTIFIER, _WHY_NO_IDENTIFIER),
        _Element("fhir-patient-birth-date", ("PatientBirthDate",), "birth_date"),
        _Element("fhir-patient-gender", ("PatientSex",), "gender"),
    ),
}


def create_resources(
    database: Database, built_units: pa.Table, elements: Iterable[pa.Table], identities: Iterable[pa.Table]
) -> None:
    """Tables `built_units`, `elements` and `identities`.

    Args:
        database: takes the tables.
        built_units: a column `unit`.
        elements: rows of FHIR_ELEMENTS with `ELEMENT_COLUMNS`, in pieces.
        identities: rows of IDENTITIES with `IDENTITY_COLUMNS`, in pieces.
    """
    database.create("built_units", built_units)
    schema = FHIR_ELEMENTS.schema
    database.create("elements_in", pa.schema([schema.field(name) for name in ELEMENT_COLUMNS]).empty_table())
    for piece in elements:
        database.append("elements_in", piece.select(ELEMENT_COLUMNS))
    # two units may build one Patient: the server has what either of them gives
    flags = ", ".join(f"bool_or({flag}) AS {flag}" for flag in _FLAGS)
    database.run(f"""
        CREATE TABLE elements AS SELECT level, study_uid, series_uid, patient, {flags} FROM elements_in GROUP BY ALL;
        DROP TABLE elements_in
    """)
    database.create("identities_in", pa.schema([(name, pa.string()) for name in IDENTITY_COLUMNS]).empty_table())
    for piece in identities:
        database.append("identities_in", piece.select(IDENTITY_COLUMNS))
    database.run("""
        CREATE TABLE identities AS
        SELECT study_uid, min(patient) AS patient, min(rule) AS rule, min(reason) AS reason
        FROM identities_in GROUP BY study_uid;
        DROP TABLE identities_in
    """)


def readiness(database: Database, *, has_zone: bool) -> list[Measure]:
    """The measures of all elements, and of the studies that were built.

    Args:
        database: has the tables of occurrences, states, terms and resources.
        has_zone: whether a time zone is set for the dataset.
    """
    _create_studies(database, has_zone=has_zone)
    _create_series(database)
    _create_patients(database)
    return [
        *count_failures(database, "fhir-built", "study", _BUILT),
        *(
            measure
            for level, elements in _ELEMENTS.items()
            for element in elements
            for measure in _measures(database, level, element)
        ),
    ]


_BUILT = """
    SELECT CASE WHEN NOT is_built THEN 'not built yet' WHEN NOT has_resource THEN 'held or left out' END AS failure,
           count(*) AS n
    FROM study_cases GROUP BY failure
"""


def _measures(database: Database, level: str, element: _Element) -> Iterator[Measure]:
    """How often an element is there, and the reasons why it is not."""
    tags = ", ".join(f"'{tag_text(tag_for_keyword(keyword) or 0)}'" for keyword in element.keywords)
    # in order of how much is there: the best state of its tags
    database.run(f"""
        CREATE OR REPLACE TABLE best_states AS
        SELECT profile_set,
               max(list_position(['unknown', 'absent', 'empty', 'unusable', 'partial', 'filled'], outcome)) AS state
        FROM outcomes JOIN tag_classes USING (tag_class)
        WHERE creator IS NULL AND tag IN ({tags}) GROUP BY profile_set
    """)
    cases = f"(SELECT *, profile_set IN (SELECT profile_set FROM best_states) AS has_tag FROM {level}_cases)"
    sets = (
        "(SELECT patient, max(state) AS state FROM patient_sets JOIN best_states USING (profile_set) GROUP BY patient)"
    )
    states = f"{sets} USING (patient)" if level == "patient" else "best_states USING (profile_set)"
    return count_failures(
        database,
        element.check,
        level,
        f"""
        SELECT CASE WHEN NOT has_resource THEN 'not built (held or left out)'
                    WHEN {element.is_there} THEN NULL
                    ELSE coalesce({element.why},
                                  CASE WHEN coalesce(state, 1) <= 2 THEN 'absent'
                                       WHEN state = 3 THEN 'empty'
                                       WHEN state = 4 THEN 'not usable (a dummy or not valid)'
                                       WHEN instances > 1 THEN 'instances disagree'
                                       ELSE 'left out' END) END AS failure,
               count(*) AS n
        FROM {cases} LEFT JOIN {states} WHERE is_built AND ({element.applies}) GROUP BY failure
        """,
    )


# -- the cases --------------------------------------------------------------------------------------------------------


def _create_studies(database: Database, *, has_zone: bool) -> None:
    """Table `study_cases`: the studies with what their elements are judged by."""
    database.run(f"""
        CREATE TABLE study_cases AS
        SELECT f.*, profile_set, e.* EXCLUDE (level, study_uid, series_uid, patient),
               e.study_uid IS NOT NULL AS has_resource, false AS has_unusable_times
        FROM (
            SELECT study, sum(n) AS instances, bool_or(unit IN (FROM built_units)) AS is_built,
                   count("StudyDate") > 0 AS has_date, count("StudyTime") > 0 AS has_time,
                   {"true" if has_zone else "coalesce(bool_or(known), false)"} AS has_zone
            FROM occurrences LEFT JOIN offsets ON value = "TimezoneOffsetFromUTC"
            WHERE study IS NOT NULL GROUP BY study
        ) f
        JOIN studies USING (study)
        JOIN (FROM entities WHERE level = 'study') n ON n.entity = f.study
        LEFT JOIN (FROM elements WHERE level = 'study') e ON e.study_uid = studies.study_uid
    """)
    _mark_unusable_times(database)


def _mark_unusable_times(database: Database) -> None:
    """Ask the mapping about the times of the studies that have a date and a time, and no time in FHIR."""
    database.run("""
        CREATE TABLE times AS
        SELECT DISTINCT study, "StudyDate" AS date, "StudyTime" AS time FROM occurrences JOIN study_cases USING (study)
        WHERE has_resource AND NOT started_time AND has_zone AND date IS NOT NULL AND time IS NOT NULL
    """)
    rows = database.rows("SELECT DISTINCT date, time FROM times")
    usable = [row for row in rows if convert_date_time(row["date"], row["time"], "+0000", None).code is None]
    schema = pa.schema([("date", pa.date32()), ("time", pa.string())])
    database.create("usable_times", pa.Table.from_pylist(usable, schema=schema))
    database.run("""
        UPDATE study_cases SET has_unusable_times = true
        WHERE study IN (FROM (SELECT study FROM times))
          AND study NOT IN (SELECT study FROM times JOIN usable_times USING (date, time))
    """)


def _create_series(database: Database) -> None:
    """Table `series_cases`: the series with what their elements are judged by."""
    database.run("""
        CREATE TABLE series_cases AS
        SELECT f.*, profile_set, e.* EXCLUDE (level, study_uid, series_uid, patient),
               e.study_uid IS NOT NULL AS has_resource
        FROM (
            SELECT series, sum(n) AS instances, bool_or(unit IN (FROM built_units)) AS is_built,
                   min("BodyPartExamined") AS first_part, max("BodyPartExamined") AS last_part,
                   bool_and(known) AS is_term, bool_or(paired) AS is_paired,
                   coalesce(bool_or(value IS NOT NULL AND paired IS DISTINCT FROM false), false) AS may_be_paired,
                   min(least("Laterality", "ImageLaterality", "FrameLaterality")) AS first_side,
                   max(greatest("Laterality", "ImageLaterality", "FrameLaterality")) AS last_side
            FROM occurrences LEFT JOIN body_parts ON value = "BodyPartExamined"
            WHERE series IS NOT NULL GROUP BY series
        ) f
        JOIN series USING (series)
        JOIN studies USING (study)
        JOIN (FROM entities WHERE level = 'series') n ON n.entity = f.series
        LEFT JOIN (FROM elements WHERE level = 'series') e
            ON e.study_uid = studies.study_uid AND e.series_uid = series.series_uid
    """)


def _create_patients(database: Database) -> None:
    """Tables `patient_cases` and `patient_sets`: the patients of the built studies, and their sets of profiles.

    A study that is held is a patient of its own, since nobody knows whose it is.
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
