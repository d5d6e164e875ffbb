"""Sizes and failures by subject, for the subjects that the report lists: at most `MOST_SUBJECTS` of them.

A dataset may have a hundred thousand subjects; their counts are stored only for those with the most failures.
Completeness by subject is counted on request (`subject_completeness`).

Not here: how the report shows them.
"""

from __future__ import annotations

from dicom_etl.quality.check_table import Measure
from dicom_etl.quality.checks.attribute_types import VIOLATIONS
from dicom_etl.quality.checks.counting import CheckCount, MeasuredDataset, make_size
from dicom_etl.quality.checks.files import EXPECTED_DICOM

__all__ = ["MOST_SUBJECTS", "count_by_subject"]

MOST_SUBJECTS = 200

_SUBJECTS = f"""
    CREATE TABLE subjects AS
    WITH sizes AS (
        SELECT subject, count(DISTINCT study) AS studies, sum(n)::BIGINT AS instances FROM occurrences GROUP BY subject
    ), opened AS (
        SELECT subject, coalesce(sum(n) FILTER (kind = 'dicom'), 0)::BIGINT AS readable,
               coalesce(sum(n) FILTER (kind <> 'dicom'), 0)::BIGINT AS unreadable
        FROM files WHERE {EXPECTED_DICOM} GROUP BY subject
    ), violations AS (
        SELECT DISTINCT state_profile, tag FROM states WHERE {" OR ".join(VIOLATIONS.values())}
    ), gaps AS (
        SELECT subject, count(DISTINCT tag) AS gaps FROM occurrences JOIN violations USING (state_profile)
        GROUP BY subject
    ), finding_counts AS (
        SELECT subject, count(*) AS findings FROM findings WHERE subject IS NOT NULL GROUP BY subject
    ), names AS (
        SELECT subject FROM sizes UNION SELECT subject FROM opened UNION SELECT subject FROM subject_notes
    )
    SELECT l.subject, studies, instances, readable, coalesce(unreadable, 0) AS unreadable, coalesce(gaps, 0) AS gaps,
           note, coalesce(findings, 0) AS findings
    FROM names l
    LEFT JOIN sizes s ON s.subject IS NOT DISTINCT FROM l.subject
    LEFT JOIN opened o ON o.subject IS NOT DISTINCT FROM l.subject
    LEFT JOIN gaps g ON g.subject IS NOT DISTINCT FROM l.subject
    LEFT JOIN subject_notes n ON n.subject = l.subject
    LEFT JOIN finding_counts f ON f.subject = l.subject
"""


def count_by_subject(dataset: MeasuredDataset) -> list[Measure]:
    """`subjects-listed`, and of each listed subject its sizes, unreadable files, tags with gaps and mismatch.

    Run it after all checks: it needs `subject_notes` and counts the findings of the checks.
    """
    database = dataset.database
    database.run(_SUBJECTS)
    database.run(f"""
        CREATE TABLE listed_subjects AS FROM subjects
        ORDER BY unreadable > 0 OR note IS NOT NULL DESC, gaps DESC, findings DESC, subject LIMIT {MOST_SUBJECTS}
    """)
    (counts,) = database.fetch_rows("""
        SELECT (SELECT count(*) FROM subjects) AS total, (SELECT count(*) FROM listed_subjects) AS listed
    """)
    listing = CheckCount("subjects-listed", "subject", n_pass=counts["listed"])
    if counts["total"] > counts["listed"]:
        listing.add("not listed", counts["total"] - counts["listed"])
    measures = listing.to_measures()
    for row in database.fetch_rows("FROM listed_subjects ORDER BY subject NULLS LAST"):
        by_subject = {"group_by": "subject", "group": row["subject"]}
        if row["instances"] is not None:
            measures.append(make_size("inventory", "study", row["studies"], **by_subject))
            measures.append(make_size("inventory", "instance", row["instances"], **by_subject))
        if row["readable"] is not None:
            readable = CheckCount("files-readable", "file", row["readable"], **by_subject)
            if row["unreadable"]:
                readable.add("not read", row["unreadable"])
            measures += readable.to_measures()
        if row["gaps"]:
            measures.append(make_size("tags-with-gaps", "tag", row["gaps"], **by_subject))
        if row["note"]:
            mismatch = CheckCount("subjects-match", "subject", **by_subject)
            mismatch.add(row["note"])
            measures += mismatch.to_measures()
    return [*measures, *_count_series(dataset)]


def _count_series(dataset: MeasuredDataset) -> list[Measure]:
    """The series of the listed subjects by modality."""
    rows = dataset.database.fetch_rows("""
        SELECT o.subject, "Modality" AS modality, count(DISTINCT series) AS n
        FROM occurrences o JOIN listed_subjects l ON l.subject IS NOT DISTINCT FROM o.subject
        WHERE series IS NOT NULL GROUP BY ALL ORDER BY ALL
    """)
    return [
        make_size(
            "series-by-modality", "series", row["n"], group_by="subject", group=row["subject"], reason=row["modality"]
        )
        for row in rows
    ]
