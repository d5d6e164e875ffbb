"""What the report shows of subjects: counts of at most `MOST_SUBJECTS` of them.

A dataset may have a hundred thousand subjects; their counts are kept for those alone that are listed: those with the
most that is wrong, else the first. Completeness by subject is counted when it is asked for.

Not here: how the list looks.
"""

from __future__ import annotations

from dicom_etl.quality.check_table import Measure
from dicom_etl.quality.checks.counting import CheckCount, size_measure
from dicom_etl.quality.checks.standard import BROKEN, SHOULD_BE_DICOM
from dicom_etl.quality.working_database import Database

__all__ = ["MOST_SUBJECTS", "subject_measures"]

MOST_SUBJECTS = 200

_SUBJECTS = f"""
    CREATE TABLE subjects AS
    WITH sizes AS (
        SELECT subject, count(DISTINCT study) AS studies, sum(n)::BIGINT AS instances FROM occurrences GROUP BY subject
    ), opened AS (
        SELECT subject, coalesce(sum(n) FILTER (kind = 'dicom'), 0)::BIGINT AS readable,
               coalesce(sum(n) FILTER (kind <> 'dicom'), 0)::BIGINT AS unreadable
        FROM files WHERE {SHOULD_BE_DICOM} GROUP BY subject
    ), broken AS (
        SELECT DISTINCT profile, tag FROM states WHERE {" OR ".join(f"({broken})" for broken in BROKEN.values())}
    ), gaps AS (
        SELECT subject, count(DISTINCT tag) AS gaps FROM occurrences JOIN broken USING (profile) GROUP BY subject
    ), found AS (
        SELECT subject, count(*) AS findings FROM findings WHERE subject IS NOT NULL GROUP BY subject
    ), listed AS (
        SELECT subject FROM sizes UNION SELECT subject FROM opened UNION SELECT subject FROM subject_notes
    )
    SELECT l.subject, studies, instances, readable, coalesce(unreadable, 0) AS unreadable, coalesce(gaps, 0) AS gaps,
           note, coalesce(findings, 0) AS findings
    FROM listed l
    LEFT JOIN sizes s ON s.subject IS NOT DISTINCT FROM l.subject
    LEFT JOIN opened o ON o.subject IS NOT DISTINCT FROM l.subject
    LEFT JOIN gaps g ON g.subject IS NOT DISTINCT FROM l.subject
    LEFT JOIN subject_notes n ON n.subject = l.subject
    LEFT JOIN found f ON f.subject = l.subject
"""


def subject_measures(database: Database) -> list[Measure]:
    """How many subjects there are to list, and of those that are listed what there is, what is missing and why.

    `database` has, beside the tables of occurrences and states, `files`, `subject_notes` and `findings`.
    """
    database.run(_SUBJECTS)
    database.run(f"""
        CREATE TABLE listed_subjects AS FROM subjects
        ORDER BY unreadable > 0 OR note IS NOT NULL DESC, gaps DESC, findings DESC, subject LIMIT {MOST_SUBJECTS}
    """)
    (total,) = database.rows("SELECT (SELECT count(*) FROM subjects) AS n, (SELECT count(*) FROM listed_subjects) AS k")
    listed = CheckCount("subjects-listed", "subject", n_pass=total["k"])
    if total["n"] > total["k"]:
        listed.add("not listed", total["n"] - total["k"])
    measures = [*listed.measures()]
    for row in database.rows("FROM listed_subjects ORDER BY subject NULLS LAST"):
        by_subject = {"group_by": "subject", "group": row["subject"]}
        if row["instances"] is not None:
            measures.append(size_measure("inventory", "study", row["studies"], **by_subject))
            measures.append(size_measure("inventory", "instance", row["instances"], **by_subject))
        if row["readable"] is not None:
            tally = CheckCount("files-readable", "file", row["readable"], **by_subject)
            if row["unreadable"]:
                tally.add("not read", row["unreadable"])
            measures += tally.measures()
        if row["gaps"]:
            measures.append(size_measure("tags-with-gaps", "tag", row["gaps"], **by_subject))
        if row["note"]:
            tally = CheckCount("subjects-match", "subject", **by_subject)
            tally.add(row["note"])
            measures += tally.measures()
    return [*measures, *_series(database)]


def _series(database: Database) -> list[Measure]:
    """The series of the listed subjects by modality."""
    return [
        size_measure(
            "series-by-modality", "series", row["n"], group_by="subject", group=row["subject"], reason=row["modality"]
        )
        for row in database.rows("""
            SELECT o.subject, "Modality" AS modality, count(DISTINCT series) AS n
            FROM occurrences o JOIN listed_subjects l ON l.subject IS NOT DISTINCT FROM o.subject
            WHERE series IS NOT NULL GROUP BY ALL ORDER BY ALL
        """)
    ]
