"""The content of the report: the quality tables of a dataset as the rows of its sections.

Pure: rows of COMPLETENESS and MEASURES and the counts of findings become frozen rows, which the template prints
unchanged. Texts are cleaned of invisible characters; escaping is done by the template.

Not here: HTML, colours, explanations, the findings themselves (`finding_groups`).
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
from dicom_etl.quality.completeness import find_keyword
from dicom_etl.quality.report.finding_groups import FindingCounts, FindingGroup
from dicom_etl.quality.requirements import TYPES, AttributeType

__all__ = ["LEVELS", "View", "find_listed_subjects", "make_view"]

Row = Mapping[str, Any]
_CellKey = tuple[str, str | None, str]  # group_by, group, tag

LEVELS = ("series", "study", "instance")  # the first is shown at first
NO_VALUE = "(no value)"

_MOST_MODALITIES, _MOST_MANUFACTURERS, _MOST_SCANNER_TAGS = 14, 8, 40
_MOST_REASONS = 5
_LEAST_DIFFERENCE = 20  # percentage points between scanners, for a tag to be shown
_TYPES: tuple[AttributeType | None, ...] = (*TYPES, None)
_STATES = ("partial", "unusable", "empty", "absent", "unknown")


@dataclass(frozen=True)
class Cell:
    """The share of a group in which a tag is filled."""

    percent: int
    step: int  # 0 to 10, of the colour scale
    requirement: str | None
    is_violation: bool  # some instance violates the type of the tag
    is_undecided: bool  # all gaps are required only under a condition (Type 1C, 2C)
    numbers: str


@dataclass(frozen=True)
class TagRow:
    """A tag by group; a cell is None if the tag does not apply to the group."""

    tag: str
    name: str
    used_for: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class TypeSection:
    """The tags of one type; None: those without a type in the IODs of the dataset."""

    attribute_type: str | None
    meaning: str
    rows: tuple[TagRow, ...]


@dataclass(frozen=True)
class HeatMap:
    """Tags by modality at one level."""

    level: str
    columns: tuple[tuple[str, int], ...]  # name, number of objects
    sections: tuple[TypeSection, ...]


@dataclass(frozen=True)
class CheckRow:
    """A quality check and its result."""

    title: str
    category: str
    counted: str
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
    """A subject: its sizes and its gaps."""

    subject: str
    studies: int
    series: tuple[int, ...]  # by modality
    instances: int
    unreadable: int
    gaps: int  # number of Type 1 and 2 tags with a gap
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
    not_applicable: tuple[str, ...]  # titles of checks to which nothing applies
    readiness: tuple[CheckRow, ...]
    maps: tuple[HeatMap, ...]
    other_tags: int
    private_tags: int
    scanners: Scanners
    modalities: tuple[str, ...]
    subjects: tuple[SubjectRow, ...]
    subjects_not_listed: int
    finding_groups: tuple[FindingGroup, ...]
    file_kinds: tuple[tuple[str, str, int], ...]  # kind, reason, number


def make_view(dataset: str, tags: Sequence[Row], measures: Sequence[Row], findings: FindingCounts) -> View:
    """The content of the report, from rows of COMPLETENESS and MEASURES and from the counts of findings."""
    inventory = [row for row in measures if row["check"] == "inventory"]
    sizes = [
        (r["group"], r["n_applicable"]) for r in inventory if (r["group_by"], r["level"]) == ("modality", "series")
    ]
    modalities = sorted(sizes, key=lambda item: (-item[1], item[0] or ""))[:_MOST_MODALITIES]
    violations = _find_violations(measures)
    subjects = _make_subjects(measures, findings, [name for name, _ in modalities])
    checks = _make_check_rows(measures)
    all_tags = [r for r in tags if (r["level"], r["group_by"]) == ("instance", "all")]
    return View(
        dataset=clean_text(dataset),
        counts=_count_sizes(inventory, measures),
        findings=findings.by_severity,
        check_results=Counter(check.result for check in checks if check.n_applicable),
        checks=tuple(c for c in checks if c.category != "fhir-readiness" and c.n_applicable),
        not_applicable=tuple(dict.fromkeys(check.title for check in checks if not check.n_applicable)),
        readiness=tuple(check for check in checks if check.category == "fhir-readiness"),
        maps=tuple(_make_heat_map(level, tags, inventory, modalities, violations) for level in LEVELS),
        other_tags=sum(row["tag"] not in _load_uses() for row in all_tags),
        private_tags=sum(row["creator"] is not None for row in all_tags),
        scanners=_compare_scanners(tags, violations),
        modalities=tuple(_name_group(name) for name, _ in modalities),
        subjects=tuple(subjects),
        subjects_not_listed=sum(r["n_fail"] for r in measures if r["check"] == "subjects-listed" and not r["reason"]),
        finding_groups=findings.groups,
        file_kinds=_count_kinds(measures),
    )


def _name_group(group: str | None) -> str:
    return NO_VALUE if group is None else clean_text(group) or NO_VALUE


# -- summary ----------------------------------------------------------------------------------------------------------


def _count_sizes(inventory: Sequence[Row], measures: Sequence[Row]) -> dict[str, int]:
    counts = {row["level"]: row["n_applicable"] for row in inventory if row["group_by"] == "all"}
    counts |= {level: counts.get(level, 0) for level in ("subject", "study", "series", "instance")}
    files = sum(row["n_applicable"] for row in measures if row["check"] == "files-by-kind")
    readable = ("files-readable", "all", None)
    unreadable = sum(row["n_fail"] for row in measures if (row["check"], row["group_by"], row["reason"]) == readable)
    return {**counts, "file": files, "unreadable": unreadable}


def _make_check_rows(measures: Sequence[Row]) -> list[CheckRow]:
    """The checks in the order of their table, each with the most frequent reasons of its failures."""
    order = list(quality_checks())
    results, reasons = [], defaultdict(list)
    for row in measures:
        if row["group_by"] != "all" or not quality_checks()[row["check"]].is_check:
            continue
        if row["reason"] is None and row["tag"] is None:
            results.append(row)
        else:
            reasons[row["check"], row["level"]].append(row)
    results.sort(key=lambda row: (order.index(row["check"]), row["level"]))
    return [_make_check_row(row, reasons[row["check"], row["level"]]) for row in results]


def _make_check_row(row: Row, reasons: Sequence[Row]) -> CheckRow:
    check = quality_checks()[row["check"]]
    texts = sorted(((_describe_reason(r), r["n_fail"]) for r in reasons), key=lambda item: (-item[1], item[0]))
    if len(texts) > _MOST_REASONS:
        rest = texts[_MOST_REASONS:]
        texts = [*texts[:_MOST_REASONS], (f"{len(rest)} more", sum(n for _, n in rest))]
    return CheckRow(
        check.title,
        check.category,
        check.counted,
        row["level"],
        row["n_pass"],
        row["n_applicable"],
        _round_percent(row["n_pass"], row["n_applicable"]),
        row["result"],
        tuple(texts),
    )


def _describe_reason(row: Row) -> str:
    keyword = row["tag"] and (find_keyword(row["tag"]) or row["tag"])
    entry = finding_codes().get(row["reason"] or "")
    return clean_text(" ".join(part for part in (keyword, entry.meaning if entry else row["reason"]) if part))


def _round_percent(n: int, of: int) -> int | None:
    """A percentage that is 0 or 100 only if there are none or all."""
    if not of:
        return None
    return max(1, min(99, math.floor(n / of * 100 + 0.5))) if n < of and n else n // of * 100


# -- tags -------------------------------------------------------------------------------------------------------------


@cache
def _load_uses() -> Mapping[str, str]:
    """The tags of the catalogue, and the use of each."""
    return {tag_text(column.tag): column.used_for for column in reversed(catalogue())}


def _make_heat_map(
    level: str,
    tags: Sequence[Row],
    inventory: Sequence[Row],
    modalities: Sequence[tuple[str | None, int]],
    violations: frozenset[_CellKey],
) -> HeatMap:
    sizes = {
        (r["group_by"], r["group"]): r["n_applicable"]
        for r in inventory
        if r["level"] == level and r["group_by"] in ("all", "modality")
    }
    groups = [("all", "all"), *(("modality", name) for name, _ in modalities)]
    columns = [("all", sizes.get(groups[0], 0)), *((_name_group(g[1]), sizes.get(g, 0)) for g in groups[1:])]
    table: dict[str, dict[tuple[str, str | None], Row]] = defaultdict(dict)
    for row in tags:
        if row["level"] == level and row["group_by"] in ("all", "modality") and row["tag"] in _load_uses():
            table[row["tag"]][row["group_by"], row["group"]] = row
    rows_by_type: dict[AttributeType | None, list[Row]] = {attribute_type: [] for attribute_type in _TYPES}
    for by_group in table.values():
        rows_by_type[_find_usual_type(by_group.values())].append(by_group["all", "all"])
    sections = [
        TypeSection(
            attribute_type,
            TYPES[attribute_type].meaning if attribute_type else "not in the IODs of these objects",
            tuple(
                _make_tag_row(row, [table[row["tag"]].get(group) for group in groups], violations)
                for row in sorted(rows, key=_by_gap)
            ),
        )
        for attribute_type, rows in rows_by_type.items()
        if rows
    ]
    return HeatMap(level, tuple(columns), tuple(sections))


def _find_usual_type(rows: Iterable[Row]) -> AttributeType | None:
    """The type that a tag has in most objects, over the modalities."""
    weights: Counter[AttributeType | None] = Counter()
    for row in rows:
        if row["group_by"] == "modality":
            weights[row["requirement"]] += row["n_applicable"]
    return min(weights, key=lambda requirement: (-weights[requirement], _TYPES.index(requirement)), default=None)


def _by_gap(row: Row) -> tuple[bool, float, str]:
    return (_is_undecided(row), row["n_filled"] / row["n_applicable"], row["tag"])


def _is_undecided(row: Row) -> bool:
    return bool(0 < row["n_unknown"] == row["n_applicable"] - row["n_filled"])


def _make_tag_row(row: Row, groups: Iterable[Row | None], violations: frozenset[_CellKey]) -> TagRow:
    tag = row["tag"]
    cells = tuple(_make_cell(group, violations) if group else None for group in groups)
    return TagRow(f"({tag[:4]},{tag[4:]})", row["keyword"] or tag, _load_uses().get(tag, ""), cells)


def _make_cell(row: Row, violations: frozenset[_CellKey]) -> Cell:
    of, filled = row["n_applicable"], row["n_filled"]
    percent = _round_percent(filled, of) or 0
    states = [f"{row[f'n_{state}']} {state}" for state in _STATES if row[f"n_{state}"]]
    return Cell(
        percent,
        percent // 10,
        None if row["group_by"] == "all" else row["requirement"],
        (row["group_by"], row["group"], row["tag"]) in violations,
        _is_undecided(row),
        ", ".join([f"{filled} of {of} filled", *states]),
    )


def _find_violations(measures: Sequence[Row]) -> frozenset[_CellKey]:
    """The cells in which an instance violates the type that the tag has in its own IOD."""
    return frozenset(
        (row["group_by"], row["group"], row["tag"])
        for row in measures
        if row["check"] in ("type-1", "type-2") and row["tag"] is not None
    )


def _compare_scanners(tags: Sequence[Row], violations: frozenset[_CellKey]) -> Scanners:
    """The tags whose share of filled series differs most between manufacturers."""
    rows = [r for r in tags if (r["level"], r["group_by"]) == ("series", "manufacturer") and r["tag"] in _load_uses()]
    sizes: Counter[str | None] = Counter()
    for row in rows:  # tags such as SOPClassUID apply to every series
        sizes[row["group"]] = max(sizes[row["group"]], row["n_applicable"])
    columns = sorted(sizes.items(), key=lambda item: (-item[1], item[0] or ""))[:_MOST_MANUFACTURERS]
    table: dict[str, dict[str | None, Row]] = defaultdict(dict)
    for row in rows:
        table[row["tag"]][row["group"]] = row
    varying = []
    for tag, by_group in table.items():
        percents = [
            _round_percent(r["n_filled"], r["n_applicable"]) or 0
            for g, r in by_group.items()
            if (g, sizes[g]) in columns
        ]
        if len(percents) > 1 and max(percents) - min(percents) >= _LEAST_DIFFERENCE:
            varying.append((min(percents) - max(percents), tag))
    return Scanners(
        tuple((_name_group(name), n) for name, n in columns),
        tuple(
            _make_tag_row(next(iter(table[tag].values())), [table[tag].get(name) for name, _ in columns], violations)
            for _, tag in sorted(varying)[:_MOST_SCANNER_TAGS]
        ),
    )


# -- subjects ---------------------------------------------------------------------------------------------------------


def find_listed_subjects(measures: Iterable[Row]) -> list[str | None]:
    """The subjects of MEASURES, sub-2 before sub-10; files without a subject come last."""
    return sorted({row["group"] for row in measures if row["group_by"] == "subject"}, key=_natural_order)


def _make_subjects(
    measures: Sequence[Row], findings: FindingCounts, modalities: Sequence[str | None]
) -> list[SubjectRow]:
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
            _name_group(subject),
            sizes[subject].get("study", 0),
            tuple(series[subject][modality] for modality in modalities),
            sizes[subject].get("instance", 0),
            unreadable[subject],
            gaps[subject],
            findings.by_subject.get(subject, 0),
            clean_text(notes.get(subject, "")),
        )
        for subject in find_listed_subjects(measures)
    ]


def _natural_order(subject: str | None) -> tuple[bool, int, str]:
    digits = "".join(c for c in subject or "" if c.isascii() and c.isdigit())
    return (subject is None, int(digits or 0) if len(digits) < 19 else 0, subject or "")


# -- files ------------------------------------------------------------------------------------------------------------


def _count_kinds(measures: Iterable[Row]) -> tuple[tuple[str, str, int], ...]:
    kinds = [
        (clean_text(row["group"]), clean_text(row["reason"] or ""), row["n_applicable"])
        for row in measures
        if row["check"] == "files-by-kind"
    ]
    return tuple(sorted(kinds, key=lambda kind: (-kind[2], kind)))
