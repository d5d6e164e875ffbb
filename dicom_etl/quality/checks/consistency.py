"""Whether the headers of a study or series agree with each other and with the standard's terms.

Not here: completeness, sheets (`sheets`), FHIR.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator

import pyarrow as pa

from dicom_etl.headers.catalogue import by_name
from dicom_etl.headers.tag_profile import tag_text
from dicom_etl.quality.check_table import Measure
from dicom_etl.quality.checks.counting import CheckCount, count_failures, entity_findings
from dicom_etl.quality.working_database import Database

__all__ = ["consistency"]

_EARLIEST_STUDY = datetime.date(1975, 1, 1)  # the first clinical CT; ACR-NEMA is of 1985


def consistency(
    database: Database, dataset: str, reference_date: datetime.date | None
) -> tuple[list[Measure], list[pa.Table]]:
    """Measures and findings of the dataset whose tables `database` has, those of `create_terms` among them."""
    measures, findings = _counts(database, dataset)
    known, unknown = _modalities(database, dataset)
    return [
        *measures,
        *known,
        *count_failures(database, "body-part-known", "series", _BODY_PART),
        *count_failures(database, "series-one-sample", "series", _ONE_SAMPLE),
        *count_failures(database, "birth-before-study", "study", _BIRTH),
        *count_failures(database, "study-date-range", "study", _study_date(reference_date)),
    ], [*findings, unknown]


# -- numbers ----------------------------------------------------------------------------------------------------------


def _counts(database: Database, dataset: str) -> tuple[list[Measure], list[pa.Table]]:
    """The NumberOf... tags against what was counted."""
    of_studies, of_series = CheckCount("counts-agree", "study"), CheckCount("counts-agree", "series")
    findings = [
        _count(database, dataset, "NumberOfStudyRelatedSeries", "study", "count(DISTINCT series)", of_studies),
        _count(database, dataset, "NumberOfStudyRelatedInstances", "study", "sum(n)", of_studies),
        _count(database, dataset, "NumberOfSeriesRelatedInstances", "series", "sum(n)", of_series),
    ]
    return [*of_studies.measures(), *of_series.measures()], findings


def _count(database: Database, dataset: str, column: str, level: str, counted: str, tally: CheckCount) -> pa.Table:
    """Compare what the instances of each entity say with what was counted; returns the findings."""
    database.run(f"""
        CREATE OR REPLACE TABLE numbers AS
        SELECT {level}, {counted} AS counted, min("{column}") AS lowest, max("{column}") AS highest
        FROM occurrences WHERE {level} IS NOT NULL GROUP BY {level}
        HAVING lowest IS NOT NULL
    """)
    for row in database.rows("""
        SELECT lowest = counted AND highest = counted AS agrees, count(*) AS n FROM numbers GROUP BY agrees
    """):
        tally.add(None if row["agrees"] else f"{column}: another number was counted", row["n"])
    failing = f"""
        SELECT {level}, array_to_string(list_sort(list(DISTINCT "{column}")), ' and ') AS value,
               concat('{column} says ', value, '; ', counted, ' counted') AS message, '{_tag(column)}' AS tag
        FROM occurrences JOIN numbers USING ({level})
        WHERE lowest <> counted OR highest <> counted GROUP BY {level}, counted
    """
    return entity_findings(database, "count-conflict", dataset, level, failing)


def _tag(column: str) -> str:
    return tag_text(by_name()[column].tag)


# -- terms and dates --------------------------------------------------------------------------------------------------


def _modalities(database: Database, dataset: str) -> tuple[Iterator[Measure], pa.Table]:
    measures = count_failures(
        database,
        "modality-known",
        "series",
        """
        SELECT shown AS failure, count(*) AS n FROM (
            SELECT min(value) FILTER (NOT known) AS value
            FROM occurrences JOIN modalities ON value = "Modality" WHERE series IS NOT NULL GROUP BY series
        ) LEFT JOIN modalities USING (value) GROUP BY shown
        """,
    )
    failing = f"""
        SELECT DISTINCT series, shown AS value, '{_tag("Modality")}' AS tag
        FROM occurrences JOIN modalities ON value = "Modality" WHERE NOT known AND series IS NOT NULL
    """
    return measures, entity_findings(database, "modality-unknown", dataset, "series", failing)


_BODY_PART = """
    SELECT shown AS failure, count(*) AS n FROM (
        SELECT min(value) FILTER (NOT known) AS value
        FROM occurrences JOIN body_parts ON value = "BodyPartExamined" WHERE series IS NOT NULL GROUP BY series
    ) LEFT JOIN body_parts USING (value) GROUP BY shown
"""

_ONE_SAMPLE = """
    SELECT CASE WHEN samples > 1 THEN concat('in the folders of ', samples, ' samples') END AS failure, count(*) AS n
    FROM (
        SELECT count(*) AS samples
        FROM (SELECT DISTINCT series, subject, sample FROM occurrences WHERE series IS NOT NULL AND sample <> '')
        GROUP BY series
    ) GROUP BY failure
"""

_BIRTH = """
    SELECT CASE WHEN born > first_date THEN 'born after the study' END AS failure, count(*) AS n FROM (
        SELECT max("PatientBirthDate") AS born, min("StudyDate") AS first_date
        FROM occurrences WHERE study IS NOT NULL GROUP BY study
    ) WHERE born IS NOT NULL AND first_date IS NOT NULL GROUP BY failure
"""


def _study_date(reference_date: datetime.date | None) -> str:
    is_future = f"last_date > DATE '{reference_date.isoformat()}'" if reference_date else "false"
    return f"""
        SELECT CASE WHEN first_date < DATE '{_EARLIEST_STUDY.isoformat()}' THEN 'before 1975'
                    WHEN {is_future} THEN 'in the future' END AS failure, count(*) AS n
        FROM (
            SELECT min("StudyDate") AS first_date, max("StudyDate") AS last_date
            FROM occurrences WHERE study IS NOT NULL GROUP BY study
        ) WHERE first_date IS NOT NULL GROUP BY failure
    """
