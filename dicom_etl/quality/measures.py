"""Measures that are counted from the states of tags and from the files: what the standard asks, privacy, inventory.

Not here: what needs values (consistency, readiness).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydicom.datadict import keyword_for_tag

from dicom_etl.fhir import terminology
from dicom_etl.findings import Finding, finding
from dicom_etl.identity.masking import IDENTIFYING, shown
from dicom_etl.quality.checks import Measure, Tally, checks
from dicom_etl.quality.facts import Group
from dicom_etl.quality.states import States

__all__ = ["FileCount", "file_measures", "inventory", "outcomes_of", "standard_measures"]

FileCount = Mapping[str, Any]  # subject, kind, reason, n

# What a Type asks for: the rank in `states.REQUIREMENTS` and the states that break it. A Type 1C attribute may be
# absent where its condition is not met, and is never empty (PS3.5 7.4).
_BROKEN = {
    "type-1": "(rank = 0 AND state IN (1, 2)) OR (rank = 1 AND state = 2)",
    "type-2": "rank = 2 AND state = 1",
}
_ASKED = {"type-1": "rank = 0 OR (rank = 1 AND state >= 2)", "type-2": "rank = 2"}
_MISSING = {"type-1": "type-1-missing", "type-2": "type-2-missing"}
_GROUPS_OF_TAGS = {"all": "'all'", "modality": "modality", "manufacturer": "manufacturer", "subject": "subject"}
_REASON = "CASE state WHEN 1 THEN 'absent' ELSE 'empty' END"


# -- what the standard asks -------------------------------------------------------------------------------------------


def standard_measures(dataset: str, states: States) -> tuple[list[Measure], list[Finding]]:
    """Type 1 and 2, unclassified SOP classes, identifying tags; with the findings of tags that are asked for."""
    measures = [*_unclassified(states)]
    findings: list[Finding] = []
    for check in _BROKEN:
        measures += _verdicts(states, check)
        measures += _by_tag(states, check)
        findings += _violations(dataset, states, check)
    measures += _identifying(states)
    return measures, findings


def _unclassified(states: States) -> Iterator[Measure]:
    tally = Tally("sop-class-known", "instance")
    for row in states.rows("""
        SELECT sop_class, demand IS NOT NULL AS known, sum(n)::BIGINT AS n
        FROM occurrences LEFT JOIN demands USING (tag_profile, sop_class) GROUP BY ALL ORDER BY ALL
    """):
        tally.add(None if row["known"] else sop_class_name(row["sop_class"]), row["n"])
    return tally.measures()


def sop_class_name(uid: str | None) -> str:
    """The name of a SOP class with its UID, as people know it."""
    name = terminology.sop_class(uid or "").display
    return f"{name} ({shown('', uid or '')})" if name else shown("", uid or "(none)")


def _verdicts(states: States, check: str) -> Iterator[Measure]:
    """Instances of known SOP classes with nothing broken, over all and by modality."""
    for group_by, column in (("all", "'all'"), ("modality", "modality")):
        for row in states.rows(f"""
            WITH broken AS (SELECT profile, bool_or({_BROKEN[check]}) AS broken FROM states GROUP BY profile)
            SELECT {column} AS "group", coalesce(sum(n) FILTER (WHERE NOT broken), 0)::BIGINT AS n_pass,
                   coalesce(sum(n) FILTER (WHERE broken), 0)::BIGINT AS n_fail
            FROM occurrences JOIN demands USING (tag_profile, sop_class) JOIN broken USING (profile)
            GROUP BY ALL ORDER BY ALL
        """):
            applicable = row["n_pass"] + row["n_fail"]
            status = checks()[check].status(applicable, row["n_pass"])
            yield Measure(
                check,
                checks()[check].category,
                "instance",
                applicable,
                row["n_pass"],
                row["n_fail"],
                status,
                group_by,
                row["group"],
            )


def _by_tag(states: States, check: str) -> Iterator[Measure]:
    """The tags that break it, one measure per group, tag and reason."""
    for group_by, column in _GROUPS_OF_TAGS.items():
        for row in states.rows(f"""
            SELECT {column} AS "group", tag, coalesce(sum(n) FILTER (WHERE {_ASKED[check]}), 0)::BIGINT AS asked,
                   coalesce(sum(n) FILTER (WHERE ({_BROKEN[check]}) AND state = 1), 0)::BIGINT AS absent,
                   coalesce(sum(n) FILTER (WHERE ({_BROKEN[check]}) AND state = 2), 0)::BIGINT AS empty
            FROM occurrences JOIN states USING (profile)
            GROUP BY "group", tag HAVING absent + empty > 0 ORDER BY "group", tag
        """):
            passed = row["asked"] - row["absent"] - row["empty"]
            status = checks()[check].status(row["asked"], passed)
            for reason in ("absent", "empty"):
                if row[reason]:
                    yield Measure(
                        check,
                        checks()[check].category,
                        "instance",
                        row["asked"],
                        passed,
                        row[reason],
                        status,
                        group_by,
                        row["group"],
                        row["tag"],
                        reason,
                    )


def _violations(dataset: str, states: States, check: str) -> Iterator[Finding]:
    """One finding per SOP class and tag: the instances of a series nearly always break the same."""
    for row in states.rows(f"""
        SELECT sop_class, tag, {_REASON} AS reason, sum(n)::BIGINT AS n
        FROM occurrences JOIN states USING (profile) WHERE {_BROKEN[check]} GROUP BY ALL ORDER BY ALL
    """):
        keyword = keyword_for_tag(int(row["tag"], 16)) or row["tag"]
        yield finding(
            _MISSING[check],
            dataset,
            tag=row["tag"],
            value=sop_class_name(row["sop_class"]),
            message=f"{keyword} is {row['reason']}",
            count=row["n"],
        )


# -- privacy ----------------------------------------------------------------------------------------------------------


def _identifying(states: States) -> Iterator[Measure]:
    """Instances with no identifying tag filled, and how often each is."""
    tags = {row["tag"] for row in states.rows("SELECT DISTINCT tag FROM states WHERE creator IS NULL")}
    identifying = sorted(tag for tag in tags if "x" not in tag and keyword_for_tag(int(tag, 16)) in IDENTIFYING)
    listed = ", ".join(f"'{tag}'" for tag in identifying) or "''"
    total, clean = (
        states.rows(sql)[0]["n"]
        for sql in (
            "SELECT coalesce(sum(n), 0)::BIGINT AS n FROM occurrences",
            f"""SELECT coalesce(sum(n), 0)::BIGINT AS n FROM occurrences
                WHERE profile NOT IN (SELECT profile FROM states WHERE state = 4 AND tag IN ({listed}))""",
        )
    )
    check = checks()["identifying-tags"]
    row = ("identifying-tags", check.category, "instance", total)
    yield Measure(*row, clean, total - clean, check.status(total, clean))
    for tag in states.rows(f"""
        SELECT tag, sum(n)::BIGINT AS n FROM occurrences JOIN states USING (profile)
        WHERE state = 4 AND tag IN ({listed}) GROUP BY tag ORDER BY tag
    """):
        n = tag["n"]
        yield Measure(*row, total - n, n, check.status(total, total - n), tag=tag["tag"], reason="filled")


# -- files and inventory ----------------------------------------------------------------------------------------------

_SHOULD_BE_DICOM = frozenset({"not-dicom"})  # reasons of kind `other`


def file_measures(files: Iterable[FileCount], copies: Mapping[str | None, int]) -> list[Measure]:
    """What became of the files.

    Args:
        files: numbers of files by subject, kind and reason.
        copies: numbers of header rows by their duplicate mark (None, same, conflict).
    """
    readable = Tally("files-readable", "file")
    by_subject: dict[str | None, Tally] = {}
    kinds: dict[tuple[str, str | None], int] = {}
    for file in files:
        key = (file["kind"], file["reason"])
        kinds[key] = kinds.get(key, 0) + file["n"]
        if file["kind"] in {"dicom", "unreadable"} or file["reason"] in _SHOULD_BE_DICOM:
            failure = None if file["kind"] == "dicom" else file["reason"]
            readable.add(failure, file["n"])
            own = Tally("files-readable", "file", group_by="subject", group=file["subject"])
            by_subject.setdefault(file["subject"], own).add(failure, file["n"])
    measures = [*readable.measures()]
    for subject in sorted(by_subject, key=str):
        measures += by_subject[subject].measures()
    once, agree = Tally("instances-once", "instance"), Tally("copies-agree", "instance")
    for mark, n in copies.items():
        once.add(mark and f"another copy ({mark})", n)
        agree.add("content differs" if mark == "conflict" else None, n)
    measures += [*once.measures(), *agree.measures()]
    measures += [
        _count("files-by-kind", "file", n, group_by="kind", group=kind, reason=reason)
        for (kind, reason), n in sorted(kinds.items(), key=str)
    ]
    return measures


def inventory(states: States, series: Iterable[Group], subjects: Iterable[str]) -> list[Measure]:
    """How much there is: over all, by modality, by subject; and the series of each subject by modality."""
    sizes = states.rows("""
        SELECT level, group_by, "group", sum(n)::BIGINT AS n FROM weights
        WHERE group_by IN ('all', 'subject', 'modality') GROUP BY ALL ORDER BY ALL
    """)
    measures = [
        _count("inventory", "subject", len(set(subjects))),
        *(_count("inventory", r["level"], r["n"], group_by=r["group_by"], group=r["group"]) for r in sizes),
    ]
    crossed: dict[tuple[str | None, str | None], int] = {}
    for group in series:
        for place in {(row["subject"], row["Modality"]) for row in group.rows}:
            crossed[place] = crossed.get(place, 0) + 1
    measures += [
        _count("series-by-modality", "series", n, group_by="subject", group=subject, reason=modality)
        for (subject, modality), n in sorted(crossed.items(), key=str)
    ]
    return measures


def _count(check: str, level: str, n: int, **where: Any) -> Measure:
    return Measure(check, checks()[check].category, level, n, n, 0, "info", **where)


def outcomes_of(states: States, tags: Mapping[str, str]) -> dict[tuple[str, str | None], dict[str, str]]:
    """How the given tags (tag -> name) are filled in each study and series that they apply to."""
    listed = ", ".join(f"'{tag}'" for tag in tags)
    found: dict[tuple[str, str | None], dict[str, str]] = {}
    for row in states.rows(f"""
        SELECT study, series, tag, outcome FROM entities JOIN outcomes USING (entity)
        WHERE creator IS NULL AND tag IN ({listed})
    """):
        found.setdefault((row["study"], row["series"]), {})[tags[row["tag"]]] = row["outcome"]
    return found
