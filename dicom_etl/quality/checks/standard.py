"""Measures that are counted from the states of tags and from the files: what the standard asks, privacy, inventory.

Not here: what needs values (consistency, readiness).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydicom.datadict import keyword_for_tag

from dicom_etl.fhir import terminology
from dicom_etl.findings import Finding, make_finding
from dicom_etl.identity.masking import IDENTIFYING_KEYWORDS, clean_text
from dicom_etl.quality.check_table import Measure, quality_checks
from dicom_etl.quality.checks.counting import CheckCount, count_failures, size_measure
from dicom_etl.quality.working_database import Database

__all__ = ["BROKEN", "SHOULD_BE_DICOM", "file_measures", "inventory", "standard_measures"]

# What a Type asks for: the rank in `states.REQUIREMENTS` and the states that break it. A Type 1C attribute may be
# absent where its condition is not met, and is never empty (PS3.5 7.4).
BROKEN = {
    "type-1": "(rank = 0 AND state IN (1, 2)) OR (rank = 1 AND state = 2)",
    "type-2": "rank = 2 AND state = 1",
}
_ASKED = {"type-1": "rank = 0 OR (rank = 1 AND state >= 2)", "type-2": "rank = 2"}
_MISSING = {"type-1": "type-1-missing", "type-2": "type-2-missing"}
_GROUPS_OF_TAGS = {"all": "'all'", "modality": "modality", "manufacturer": "manufacturer"}
_REASON = "CASE state WHEN 1 THEN 'absent' ELSE 'empty' END"


# -- what the standard asks -------------------------------------------------------------------------------------------


def standard_measures(dataset: str, database: Database) -> tuple[list[Measure], list[Finding]]:
    """Type 1 and 2, unclassified SOP classes, identifying tags; with the findings of tags that are asked for."""
    database.run("""
        CREATE TABLE profile_counts AS
        SELECT profile, "Modality" AS modality, "Manufacturer" AS manufacturer, sum(n) AS n
        FROM occurrences GROUP BY ALL
    """)
    measures = [*_unclassified(database)]
    findings: list[Finding] = []
    for check in BROKEN:
        measures += _verdicts(database, check)
        measures += _by_tag(database, check)
        findings += _violations(dataset, database, check)
    measures += _identifying(database)
    return measures, findings


def _unclassified(database: Database) -> Iterator[Measure]:
    tally = CheckCount("sop-class-known", "instance")
    for row in database.rows("""
        SELECT sop_class, demand IS NOT NULL AS known, sum(n)::BIGINT AS n
        FROM profile_counts JOIN profiles USING (profile) LEFT JOIN demands USING (tag_profile, sop_class)
        GROUP BY ALL ORDER BY ALL
    """):
        tally.add(None if row["known"] else sop_class_name(row["sop_class"]), row["n"])
    return tally.measures()


def sop_class_name(uid: str | None) -> str:
    """The name of a SOP class with its UID, as people know it."""
    name = terminology.convert_sop_class(uid or "").display
    return f"{name} ({clean_text(uid or '')})" if name else clean_text(uid or "(none)")


def _verdicts(database: Database, check: str) -> Iterator[Measure]:
    """Instances of known SOP classes with nothing broken, over all and by modality."""
    for group_by, column in (("all", "'all'"), ("modality", "modality")):
        for row in database.rows(f"""
            WITH broken AS (SELECT profile, bool_or({BROKEN[check]}) AS broken FROM states GROUP BY profile)
            SELECT {column} AS "group", coalesce(sum(n) FILTER (WHERE NOT broken), 0)::BIGINT AS n_pass,
                   coalesce(sum(n) FILTER (WHERE broken), 0)::BIGINT AS n_fail
            FROM profile_counts JOIN profiles USING (profile) JOIN demands USING (tag_profile, sop_class)
            JOIN broken USING (profile)
            GROUP BY ALL ORDER BY ALL
        """):
            applicable = row["n_pass"] + row["n_fail"]
            result = quality_checks()[check].result(applicable, row["n_pass"])
            yield Measure(
                check,
                quality_checks()[check].category,
                "instance",
                applicable,
                row["n_pass"],
                row["n_fail"],
                result,
                group_by,
                row["group"],
            )


def _by_tag(database: Database, check: str) -> Iterator[Measure]:
    """The tags that break it, one measure per group, tag and reason."""
    for group_by, column in _GROUPS_OF_TAGS.items():
        for row in database.rows(f"""
            SELECT {column} AS "group", tag, coalesce(sum(n) FILTER (WHERE {_ASKED[check]}), 0)::BIGINT AS asked,
                   coalesce(sum(n) FILTER (WHERE ({BROKEN[check]}) AND state = 1), 0)::BIGINT AS absent,
                   coalesce(sum(n) FILTER (WHERE ({BROKEN[check]}) AND state = 2), 0)::BIGINT AS empty
            FROM profile_counts JOIN states USING (profile)
            GROUP BY "group", tag HAVING absent + empty > 0 ORDER BY "group", tag
        """):
            passed = row["asked"] - row["absent"] - row["empty"]
            result = quality_checks()[check].result(row["asked"], passed)
            for reason in ("absent", "empty"):
                if row[reason]:
                    yield Measure(
                        check,
                        quality_checks()[check].category,
                        "instance",
                        row["asked"],
                        passed,
                        row[reason],
                        result,
                        group_by,
                        row["group"],
                        row["tag"],
                        reason,
                    )


def _violations(dataset: str, database: Database, check: str) -> Iterator[Finding]:
    """One finding per SOP class and tag: the instances of a series nearly always break the same."""
    for row in database.rows(f"""
        SELECT sop_class, tag, {_REASON} AS reason, sum(n)::BIGINT AS n
        FROM profile_counts JOIN profiles USING (profile) JOIN states USING (profile)
        WHERE {BROKEN[check]} GROUP BY ALL ORDER BY ALL
    """):
        keyword = keyword_for_tag(int(row["tag"], 16)) or row["tag"]
        yield make_finding(
            _MISSING[check],
            dataset,
            tag=row["tag"],
            value=sop_class_name(row["sop_class"]),
            message=f"{keyword} is {row['reason']}",
            count=row["n"],
        )


# -- privacy ----------------------------------------------------------------------------------------------------------


def _identifying(database: Database) -> Iterator[Measure]:
    """Instances with no identifying tag filled, and how often each is."""
    tags = {row["tag"] for row in database.rows("SELECT DISTINCT tag FROM states WHERE creator IS NULL")}
    identifying = sorted(
        tag for tag in tags if "x" not in tag and keyword_for_tag(int(tag, 16)) in IDENTIFYING_KEYWORDS
    )
    listed = ", ".join(f"'{tag}'" for tag in identifying) or "''"
    total, clean = (
        database.rows(sql)[0]["n"]
        for sql in (
            "SELECT coalesce(sum(n), 0)::BIGINT AS n FROM profile_counts",
            f"""SELECT coalesce(sum(n), 0)::BIGINT AS n FROM profile_counts
                WHERE profile NOT IN (SELECT profile FROM states WHERE state = 4 AND tag IN ({listed}))""",
        )
    )
    check = quality_checks()["identifying-tags"]
    row = ("identifying-tags", check.category, "instance", total)
    yield Measure(*row, clean, total - clean, check.result(total, clean))
    for tag in database.rows(f"""
        SELECT tag, sum(n)::BIGINT AS n FROM profile_counts JOIN states USING (profile)
        WHERE state = 4 AND tag IN ({listed}) GROUP BY tag ORDER BY tag
    """):
        n = tag["n"]
        yield Measure(*row, total - n, n, check.result(total, total - n), tag=tag["tag"], reason="filled")


# -- files and inventory ----------------------------------------------------------------------------------------------

SHOULD_BE_DICOM = "(kind IN ('dicom', 'unreadable') OR reason = 'file-not-dicom')"  # of a row of `files`


def file_measures(database: Database, copies: Mapping[str | None, int]) -> list[Measure]:
    """What became of the files.

    Args:
        database: has a table `files`, numbers `n` of files by subject, kind and reason.
        copies: numbers of header rows by their duplicate mark (None, same, conflict).
    """
    readable = count_failures(
        database,
        "files-readable",
        "file",
        f"""SELECT CASE WHEN kind <> 'dicom' THEN reason END AS failure, sum(n)::BIGINT AS n
            FROM files WHERE {SHOULD_BE_DICOM} GROUP BY failure""",
    )
    once, agree = CheckCount("instances-once", "instance"), CheckCount("copies-agree", "instance")
    for mark, n in copies.items():
        once.add(mark and f"another copy ({mark})", n)
        agree.add("content differs" if mark == "conflict" else None, n)
    kinds = database.rows("SELECT kind, reason, sum(n)::BIGINT AS n FROM files GROUP BY ALL ORDER BY ALL")
    return [
        *readable,
        *once.measures(),
        *agree.measures(),
        *(
            size_measure("files-by-kind", "file", row["n"], group_by="kind", group=row["kind"], reason=row["reason"])
            for row in kinds
        ),
    ]


def inventory(database: Database) -> list[Measure]:
    """How much there is, over all and by modality. Subjects are the folders."""
    sizes = database.rows("""
        SELECT level, group_by, "group", sum(n)::BIGINT AS n FROM weights
        WHERE group_by IN ('all', 'modality') GROUP BY ALL ORDER BY ALL
    """)
    (subjects,) = database.rows("SELECT count(DISTINCT subject) AS n FROM folders WHERE subject <> ''")
    return [
        size_measure("inventory", "subject", subjects["n"]),
        *(size_measure("inventory", r["level"], r["n"], group_by=r["group_by"], group=r["group"]) for r in sizes),
    ]
