"""What the report shows: the quality tables of a dataset turned into the rows of its sections.

Pure: from rows of COMPLETENESS and MEASURES and the counts of findings to frozen rows that the template prints as they
are. Texts are cleaned of what no reader can see; escaping is the template's. Not here: HTML, colours, words that
explain, the findings themselves (`finding_groups`).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from dicom_etl.findings import finding_codes
from dicom_etl.headers.catalogue import catalogue
from dicom_etl.headers.tag_profile import tag_text
from dicom_etl.identity.masking import clean_text
from dicom_etl.quality.check_table import quality_checks
from dicom_etl.quality.report.finding_groups import FindingCounts, FindingGroup, keyword_of

__all__ = ["LEVELS", "View", "listed_subjects", "view"]

Row = Mapping[str, Any]
_Place = tuple[str, str | None, str]  # group_by, group, tag

LEVELS = ("series", "study", "instance")  # the first is the one that is shown first
NO_VALUE = "(no value)"

_MOST_MODALITIES, _MOST_MANUFACTURERS, _MOST_SCANNER_TAGS = 14, 8, 40
_MOST_REASONS = 5
_SPREAD = 20  # percentage points between scanners from which a tag is worth a line
_TYPES = ("1", "1C", "2", "2C", "3", None)
_STATES = ("partial", "unusable", "empty", "absent", "unknown")


@dataclass(frozen=True)
class Cell:
    """How a tag is filled in a group."""

    percent: int
    step: int  # 0 to 10, of the colour scale
    requirement: str | None
    broken: bool  # less than its type asks
    undecided: bool  # what is not filled stands under a condition (Type 1C, 2C)
    counts: str


@dataclass(frozen=True)
class TagRow:
    """A tag over groups; a cell is None where the tag does not apply."""

    tag: str
    name: str
    used_for: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Block:
    """The tags of one type."""

    requirement: str | None
    rows: tuple[TagRow, ...]


@dataclass(frozen=True)
class HeatMap:
    """Tags by modality at one level."""

    level: str
    columns: tuple[tuple[str, int], ...]  # name, how many entities
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class CheckRow:
    """A quality check and its result."""

    title: str
    category: str
    counts: str
    level: str
    n_pass: int
    n_applicable: int
    percent: int | None
    result: str
    reasons: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Scanners:
    """The tags that vary between manufacturers, by series."""

    columns: tuple[tuple[str, int], ...]
    rows: tuple[TagRow, ...]


@dataclass(frozen=True)
class SubjectRow:
    """A subject: what there is of it, and what is missing."""

    subject: str
    studies: int
    series: tuple[int, ...]  # by modality
    instances: int
    unreadable: int
    gaps: int  # Type 1 and 2 tags with a gap
    findings: int
    note: str


@dataclass(frozen=True)
class View:
    """Everything that the report shows of a dataset."""

    dataset: str
    counts: Mapping[str, int]
    findings: tuple[tuple[str, int, int], ...]  # severity, findings, occurrences
    check_results: Mapping[str, int]  # number of checks by result
    checks: tuple[CheckRow, ...]
    nothing_to_judge: tuple[str, ...]  # titles of checks to which nothing applies
    readiness: tuple[CheckRow, ...]
    maps: tuple[HeatMap, ...]
    other_tags: int
    private_tags: int
    scanners: Scanners
    modalities: tuple[str, ...]
    subjects: tuple[SubjectRow, ...]
    subjects_left_out: int
    groups: tuple[FindingGroup, ...]
    kinds: tuple[tuple[str, str, int], ...]


def view(dataset: str, tags: Sequence[Row], measures: Sequence[Row], findings: FindingCounts) -> View:
    """The view of a dataset from rows of its COMPLETENESS and MEASURES, and from its findings."""
    inventory = [row for row in measures if row["check"] == "inventory"]
    modalities = _largest(inventory, "modality", "series", _MOST_MODALITIES)
    broken = _broken(measures)
    subjects = _subjects(measures, findings, [name for name, _ in modalities])
    checks = _check_rows(measures)
    everything = [r for r in tags if (r["level"], r["group_by"]) == ("instance", "all")]
    return View(
        dataset=_clean(dataset),
        counts=_counts(inventory, measures),
        findings=findings.by_severity,
        check_results=Counter(check.result for check in checks if check.n_applicable),
        checks=tuple(c for c in checks if c.category != "fhir-readiness" and c.n_applicable),
        nothing_to_judge=tuple(dict.fromkeys(check.title for check in checks if not check.n_applicable)),
        readiness=tuple(check for check in checks if check.category == "fhir-readiness"),
        maps=tuple(_heat_map(level, tags, inventory, modalities, broken) for level in LEVELS),
        other_tags=sum(row["tag"] not in _used_for() for row in everything),
        private_tags=sum(row["creator"] is not None for row in everything),
        scanners=_scanners(tags, broken),
        modalities=tuple(_named(name) for name, _ in modalities),
        subjects=tuple(subjects),
        subjects_left_out=sum(r["n_fail"] for r in measures if r["check"] == "subjects-listed" and not r["reason"]),
        groups=findings.groups,
        kinds=_kinds(measures),
    )


def _clean(text: str) -> str:
    return clean_text(text)


def _named(group: str | None) -> str:
    return NO_VALUE if group is None else _clean(group) or NO_VALUE


# -- summary ----------------------------------------------------------------------------------------------------------


def _counts(inventory: Sequence[Row], measures: Sequence[Row]) -> dict[str, int]:
    counts = {row["level"]: row["n_applicable"] for row in inventory if row["group_by"] == "all"}
    counts |= {level: counts.get(level, 0) for level in ("subject", "study", "series", "instance")}
    files = sum(row["n_applicable"] for row in measures if row["check"] == "files-by-kind")
    unread = [r for r in measures if (r["check"], r["group_by"], r["reason"]) == ("files-readable", "all", None)]
    return {**counts, "file": files, "unreadable": sum(row["n_fail"] for row in unread)}


def _check_rows(measures: Sequence[Row]) -> list[CheckRow]:
    """The checks in the order of their table, each with the most frequent reasons of its failures."""
    order = {name: place for place, name in enumerate(quality_checks())}
    results, reasons = [], defaultdict(list)
    for row in measures:
        if row["group_by"] != "all" or not quality_checks()[row["check"]].is_check:
            continue
        if row["reason"] is None and row["tag"] is None:
            results.append(row)
        else:
            reasons[row["check"], row["level"]].append(row)
    results.sort(key=lambda row: (order[row["check"]], row["level"]))
    return [_check_row(row, reasons[row["check"], row["level"]]) for row in results]


def _check_row(row: Row, reasons: Sequence[Row]) -> CheckRow:
    check = quality_checks()[row["check"]]
    named = [(_reason(r), r["n_fail"]) for r in reasons]
    named.sort(key=lambda item: (-item[1], item[0]))
    rest = len(named) - _MOST_REASONS
    if rest > 0:
        named = [*named[:_MOST_REASONS], (f"{rest} more", sum(n for _, n in named[_MOST_REASONS:]))]
    return CheckRow(
        check.title,
        check.category,
        check.counts,
        row["level"],
        row["n_pass"],
        row["n_applicable"],
        _percent(row["n_pass"], row["n_applicable"]),
        row["result"],
        tuple(named),
    )


def _reason(row: Row) -> str:
    keyword = keyword_of(row["tag"])
    known = finding_codes().get(row["reason"] or "")
    return _clean(" ".join(part for part in (keyword, known.meaning if known else row["reason"]) if part))


def _percent(n: int, of: int) -> int | None:
    """A percentage that is 0 or 100 only where none or all are meant."""
    if not of:
        return None
    return max(1, min(99, math.floor(n / of * 100 + 0.5))) if n < of and n else n // of * 100


# -- tags -------------------------------------------------------------------------------------------------------------


@cache
def _used_for() -> Mapping[str, str]:
    """The tags of the catalogue, and what each is kept for."""
    return {tag_text(column.tag): column.used_for for column in reversed(catalogue())}


def _largest(inventory: Sequence[Row], group_by: str, level: str, most: int) -> list[tuple[str | None, int]]:
    found = [(r["group"], r["n_applicable"]) for r in inventory if (r["group_by"], r["level"]) == (group_by, level)]
    return sorted(found, key=lambda item: (-item[1], item[0] or ""))[:most]


def _heat_map(
    level: str,
    tags: Sequence[Row],
    inventory: Sequence[Row],
    modalities: Sequence[tuple[str | None, int]],
    broken: frozenset[_Place],
) -> HeatMap:
    sizes = {
        (r["group_by"], r["group"]): r["n_applicable"]
        for r in inventory
        if r["level"] == level and r["group_by"] in ("all", "modality")
    }
    groups = [("all", "all"), *(("modality", name) for name, _ in modalities)]
    columns = [("all", sizes.get(groups[0], 0)), *((_named(g[1]), sizes.get(g, 0)) for g in groups[1:])]
    table: dict[str, dict[tuple[str, str | None], Row]] = defaultdict(dict)
    for row in tags:
        if row["level"] == level and row["group_by"] in ("all", "modality") and row["tag"] in _used_for():
            table[row["tag"]][row["group_by"], row["group"]] = row
    blocks: dict[str | None, list[Row]] = {requirement: [] for requirement in _TYPES}
    for by_group in table.values():
        blocks[_usual_type(by_group.values())].append(by_group["all", "all"])
    return HeatMap(
        level,
        tuple(columns),
        tuple(
            Block(
                requirement,
                tuple(
                    _tag_row(row, [table[row["tag"]].get(group) for group in groups], broken)
                    for row in sorted(rows, key=_by_gap)
                ),
            )
            for requirement, rows in blocks.items()
            if rows
        ),
    )


def _usual_type(rows: Iterable[Row]) -> str | None:
    """The type that most entities of a tag ask, over its modalities: one that a single object asks says little."""
    weights: Counter[str | None] = Counter()
    for row in rows:
        if row["group_by"] == "modality":
            weights[row["requirement"]] += row["n_applicable"]
    return min(weights, key=lambda requirement: (-weights[requirement], _TYPES.index(requirement)), default=None)


def _by_gap(row: Row) -> tuple[bool, float, str]:
    return (_is_undecided(row), row["n_filled"] / row["n_applicable"], row["tag"])


def _is_undecided(row: Row) -> bool:
    return bool(0 < row["n_unknown"] == row["n_applicable"] - row["n_filled"])


def _tag_row(row: Row, groups: Iterable[Row | None], broken: frozenset[_Place]) -> TagRow:
    tag = row["tag"]
    cells = tuple(_cell(group, broken) if group else None for group in groups)
    return TagRow(f"({tag[:4]},{tag[4:]})", row["keyword"] or tag, _used_for().get(tag, ""), cells)


def _cell(row: Row, broken: frozenset[_Place]) -> Cell:
    of, filled = row["n_applicable"], row["n_filled"]
    percent = _percent(filled, of) or 0
    states = [f"{row[f'n_{state}']} {state}" for state in _STATES if row[f"n_{state}"]]
    return Cell(
        percent,
        percent // 10,
        None if row["group_by"] == "all" else row["requirement"],
        (row["group_by"], row["group"], row["tag"]) in broken,
        _is_undecided(row),
        ", ".join([f"{filled} of {of} filled", *states]),
    )


def _broken(measures: Sequence[Row]) -> frozenset[_Place]:
    """Where an instance has less than the type of its own IOD asks: Type 1 neither absent nor empty, Type 2 there."""
    return frozenset(
        (row["group_by"], row["group"], row["tag"])
        for row in measures
        if row["check"] in ("type-1", "type-2") and row["tag"] is not None
    )


def _scanners(tags: Sequence[Row], broken: frozenset[_Place]) -> Scanners:
    """The tags whose share of filled series differs most between manufacturers."""
    rows = [r for r in tags if (r["level"], r["group_by"]) == ("series", "manufacturer") and r["tag"] in _used_for()]
    sizes: Counter[str | None] = Counter()
    for row in rows:  # SOPClassUID and its like apply to every series
        sizes[row["group"]] = max(sizes[row["group"]], row["n_applicable"])
    columns = sorted(sizes.items(), key=lambda item: (-item[1], item[0] or ""))[:_MOST_MANUFACTURERS]
    table: dict[str, dict[str | None, Row]] = defaultdict(dict)
    for row in rows:
        table[row["tag"]][row["group"]] = row
    varying = []
    for tag, by_group in table.items():
        percents = [
            _percent(r["n_filled"], r["n_applicable"]) or 0 for g, r in by_group.items() if (g, sizes[g]) in columns
        ]
        if len(percents) > 1 and max(percents) - min(percents) >= _SPREAD:
            varying.append((min(percents) - max(percents), tag))
    return Scanners(
        tuple((_named(name), n) for name, n in columns),
        tuple(
            _tag_row(next(iter(table[tag].values())), [table[tag].get(name) for name, _ in columns], broken)
            for _, tag in sorted(varying)[:_MOST_SCANNER_TAGS]
        ),
    )


# -- subjects ---------------------------------------------------------------------------------------------------------


def listed_subjects(measures: Iterable[Row]) -> list[str | None]:
    """The subjects of which MEASURES has counts, sub-2 before sub-10; the files of no subject last."""
    return sorted({row["group"] for row in measures if row["group_by"] == "subject"}, key=_natural)


def _subjects(measures: Sequence[Row], findings: FindingCounts, modalities: Sequence[str | None]) -> list[SubjectRow]:
    sizes: dict[str | None, dict[str, int]] = defaultdict(dict)
    series: dict[str | None, Counter[str | None]] = defaultdict(Counter)
    unreadable: Counter[str | None] = Counter()
    gaps: Counter[str | None] = Counter()
    notes: dict[str | None, str] = {}
    for row in measures:
        if row["group_by"] != "subject":
            continue
        subject = row["group"]
        if row["check"] == "inventory":
            sizes[subject][row["level"]] = row["n_applicable"]
        elif row["check"] == "series-by-modality":
            series[subject][row["reason"]] = row["n_applicable"]
        elif row["check"] == "files-readable" and row["reason"] is None:
            unreadable[subject] = row["n_fail"]
        elif row["check"] == "tags-with-gaps":
            gaps[subject] = row["n_applicable"]
        elif row["check"] == "subjects-match" and row["reason"]:
            notes[subject] = row["reason"]
    return [
        SubjectRow(
            _named(subject),
            sizes[subject].get("study", 0),
            tuple(series[subject][modality] for modality in modalities),
            sizes[subject].get("instance", 0),
            unreadable[subject],
            gaps[subject],
            findings.by_subject.get(subject, 0),
            _clean(notes.get(subject, "")),
        )
        for subject in listed_subjects(measures)
    ]


def _natural(subject: str | None) -> tuple[bool, int, str]:
    digits = "".join(c for c in subject or "" if c.isascii() and c.isdigit())
    return (subject is None, int(digits or 0) if len(digits) < 19 else 0, subject or "")


# -- files ------------------------------------------------------------------------------------------------------------


def _kinds(measures: Iterable[Row]) -> tuple[tuple[str, str, int], ...]:
    found = [
        (_clean(row["group"]), _clean(row["reason"] or ""), row["n_applicable"])
        for row in measures
        if row["check"] == "files-by-kind"
    ]
    return tuple(sorted(found, key=lambda kind: (-kind[2], kind)))
