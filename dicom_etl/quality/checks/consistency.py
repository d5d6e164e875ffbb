"""Checks of headers against each other: counts agree, a series is in one sample, and dates are plausible.

Not here: terms of the standard (`conformance`), metadata sheets (`sheets`).
"""

from __future__ import annotations

import datetime

from dicom_etl.headers.catalogue import columns_by_name
from dicom_etl.headers.tag_profile import tag_text
from dicom_etl.quality.check_table import Measure
from dicom_etl.quality.checks.counting import CheckCount, MeasuredDataset, count_failures

__all__ = ["count_birth_dates", "count_related_counts", "count_samples_of_series", "count_study_dates"]

_EARLIEST_STUDY = datetime.date(1975, 1, 1)  # shortly after the first clinical CT; ACR-NEMA is from 1985


def count_related_counts(dataset: MeasuredDataset) -> list[Measure]:
    """Check `counts-agree`: the NumberOf… tags are the numbers of series and instances in the dataset."""
    studies, series = CheckCount("counts-agree", "study"), CheckCount("counts-agree", "series")
    _compare(dataset, studies, "NumberOfStudyRelatedSeries", "count(DISTINCT series)")
    _compare(dataset, studies, "NumberOfStudyRelatedInstances", "sum(n)")
    _compare(dataset, series, "NumberOfSeriesRelatedInstances", "sum(n)")
    return [*studies.to_measures(), *series.to_measures()]


def _compare(dataset: MeasuredDataset, count: CheckCount, column: str, number: str) -> None:
    """Compare the values of a column in the instances of each entity with a number (SQL), and add to the count."""
    database, level = dataset.database, count.level
    database.run(f"""
        CREATE OR REPLACE TABLE numbers AS
        SELECT {level}, {number} AS number, min("{column}") AS lowest, max("{column}") AS highest
        FROM occurrences WHERE {level} IS NOT NULL GROUP BY {level}
        HAVING lowest IS NOT NULL
    """)
    for row in database.fetch_rows("""
        SELECT lowest = number AND highest = number AS agrees, count(*) AS n FROM numbers GROUP BY agrees
    """):
        count.add(None if row["agrees"] else f"{column} differs from the number in the dataset", row["n"])
    failing = f"""
        SELECT {level}, array_to_string(list_sort(list(DISTINCT "{column}")), ' and ') AS value,
               concat('{column} is ', value, '; the dataset has ', number) AS message,
               '{tag_text(columns_by_name()[column].tag)}' AS tag
        FROM occurrences JOIN numbers USING ({level})
        WHERE lowest <> number OR highest <> number GROUP BY {level}, number
    """
    dataset.add_entity_findings("count-conflict", level, failing)


def count_samples_of_series(dataset: MeasuredDataset) -> list[Measure]:
    """Check `series-one-sample`: the files of a series are in the folder of one sample."""
    sql = """
        SELECT CASE WHEN samples > 1 THEN concat('in the folders of ', samples, ' samples') END AS failure,
               count(*) AS n
        FROM (
            SELECT count(*) AS samples
            FROM (SELECT DISTINCT series, subject, sample FROM occurrences WHERE series IS NOT NULL AND sample <> '')
            GROUP BY series
        ) GROUP BY failure
    """
    return count_failures(dataset, "series-one-sample", "series", sql)


def count_birth_dates(dataset: MeasuredDataset) -> list[Measure]:
    """Check `birth-before-study`: PatientBirthDate is not after StudyDate."""
    sql = """
        SELECT CASE WHEN born > first_date THEN 'born after the study' END AS failure, count(*) AS n FROM (
            SELECT max("PatientBirthDate") AS born, min("StudyDate") AS first_date
            FROM occurrences WHERE study IS NOT NULL GROUP BY study
        ) WHERE born IS NOT NULL AND first_date IS NOT NULL GROUP BY failure
    """
    return count_failures(dataset, "birth-before-study", "study", sql)


def count_study_dates(dataset: MeasuredDataset) -> list[Measure]:
    """Check `study-date-range`: StudyDate is not before 1975, and not after the reference date if one is set."""
    reference_date = dataset.reference_date
    is_future = f"last_date > DATE '{reference_date.isoformat()}'" if reference_date else "false"
    sql = f"""
        SELECT CASE WHEN first_date < DATE '{_EARLIEST_STUDY.isoformat()}' THEN 'before 1975'
                    WHEN {is_future} THEN 'after the reference date' END AS failure, count(*) AS n
        FROM (
            SELECT min("StudyDate") AS first_date, max("StudyDate") AS last_date
            FROM occurrences WHERE study IS NOT NULL GROUP BY study
        ) WHERE first_date IS NOT NULL GROUP BY failure
    """
    return count_failures(dataset, "study-date-range", "study", sql)
