"""The mapping table: each element of each resource, with the tags that it is mapped from and the rule that maps them.

`tables/mapping.csv` has one line per element: its name and type in R4 and in R5 (empty if a version does not have it),
the name of its rule, the columns of the header table, and how an absent or invalid value is handled. An element without
a rule is omitted, and its line has the reason. A rule makes the same value for both versions, which is then converted
to the type of the element. The inputs of the build and `docs/reference/mapping.md` are derived from this table.

Not here: the rules themselves (`rules`, `imaging_study`, `patient`).
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any, Literal, NamedTuple

from dicom_etl.fhir.context import Context
from dicom_etl.fhir.rows import FindingCollector, HeaderRows

MAPPING_TABLES = ("mapping.csv", "annex_l.json", "body_part_aliases.csv", "species.csv")
COMPUTED = "computed"  # the rule of an element that is computed with its resource, not mapped from single columns
# rules that make no value and no finding if all of their columns are null, whatever sheets and settings are
NEED_VALUES = frozenset(
    """accession accession_order address codes location names operator performer reasons security specimen staff
    staff_list started telecom text unsigned""".split()
)

Version = Literal["R4", "R5"]
Rule = Callable[[HeaderRows, tuple[str, ...], Context, FindingCollector], Any]
Concept = dict[str, Any]  # CodeableConcept: how rules represent codes, whatever the type of the element


class MappingLine(NamedTuple):
    """A line of the table, with its columns as in the file."""

    resource: str
    level: str
    r4: str
    r4_type: str
    r5: str
    r5_type: str
    rule: str
    columns: tuple[str, ...]
    how: str
    absent: str
    invalid: str


class Element(NamedTuple):
    """An element that is mapped, in one version of FHIR."""

    name: str
    type: str  # of one value
    repeats: bool
    rule: str
    columns: tuple[str, ...]


@cache
def read_mapping() -> tuple[MappingLine, ...]:
    """All lines of the table, also those of omitted elements."""
    text = files("dicom_etl.fhir.tables").joinpath("mapping.csv").read_text(encoding="utf-8")
    return tuple(
        MappingLine(**{**row, "columns": tuple(row["columns"].split())})  # type: ignore[arg-type]  # not a str
        for row in csv.DictReader(text.splitlines())
    )


@cache
def list_elements(level: str, version: Version) -> tuple[Element, ...]:
    """The mapped elements of a level (study, series, instance, patient, endpoint), in the order of FHIR."""
    elements = []
    for line in read_mapping():
        name, type_ = (line.r4, line.r4_type) if version == "R4" else (line.r5, line.r5_type)
        if line.level == level and line.rule and name:
            elements.append(Element(name, type_.removesuffix("*"), type_.endswith("*"), line.rule, line.columns))
    return tuple(elements)


@lru_cache(maxsize=64)
def list_elements_with_values(level: str, version: Version, empty: frozenset[str]) -> tuple[Element, ...]:
    """The elements of a level that can have a value if the columns `empty` have none in any row."""
    return tuple(
        element
        for element in list_elements(level, version)
        if element.rule not in NEED_VALUES or not empty.issuperset(element.columns)
    )


@cache
def list_columns(*levels: str) -> tuple[str, ...]:
    """The columns that these levels are mapped from, in either version."""
    mapped = (line for line in read_mapping() if line.level in levels and line.rule)
    return tuple(dict.fromkeys(column for line in mapped for column in line.columns))


def list_element_columns(level: str, element: str) -> tuple[str, ...]:
    """The columns of one element; `element` is its name in R4."""
    return next(line.columns for line in read_mapping() if (line.level, line.r4) == (level, element) and line.rule)


def fill_elements(
    level: str,
    rules: Mapping[str, Rule],
    rows: HeaderRows,
    context: Context,
    findings: FindingCollector,
    computed: Mapping[str, Any],
) -> dict[str, Any]:
    """The elements of a level as a FHIR JSON object; an element without a value is omitted.

    Args:
        level: as in `list_elements`.
        rules: by name; each returns a value, a list of values if the element repeats, or None.
        rows: of the study, series or patient.
        context: settings and sheets.
        findings: collects the findings of the rules.
        computed: by name, the elements whose rule is `COMPUTED`.
    """
    filled: dict[str, Any] = {}
    for element in list_elements_with_values(level, context.version, rows.empty):
        if element.rule == COMPUTED:
            value = computed.get(element.name)
        else:
            value = rules[element.rule](rows, element.columns, context, findings)
        if value is not None and value != []:
            _set_element(filled, element, value)
    return filled


def _set_element(target: dict[str, Any], element: Element, value: Any) -> None:
    """Set an element of a JSON object, or add to it if it repeats; `meta.security` is nested."""
    name = element.name
    if "." in name:
        outer, _, name = name.partition(".")
        target = target.setdefault(outer, {})
    if element.type in ("Coding", "CodeableReference"):
        value = (
            [convert_concept(item, element.type) for item in value]
            if element.repeats
            else convert_concept(value, element.type)
        )
    if element.repeats and name in target:
        target[name] = [*target[name], *value]
    else:
        target[name] = list(value) if element.repeats else value


def convert_concept(value: Any, type_: str) -> Any:
    """Convert a concept to the type of an element: CodeableReference (R5) or Coding (R4); others stay as they are."""
    if type_ == "CodeableReference":
        return {"concept": value}
    if type_ == "Coding" and isinstance(value, dict) and ("coding" in value or "text" in value):
        return value["coding"][0] if "coding" in value else {"display": value["text"]}
    return value


def make_concept(coding: Mapping[str, str] | None, text: str | None = None) -> Concept | None:
    """A CodeableConcept with a coding, a text, or both; None if there is neither."""
    concept: Concept = {"coding": [dict(coding)]} if coding else {}
    if text:
        concept["text"] = text
    return concept or None


def remove_duplicates(concepts: Iterable[Concept | None]) -> list[Concept]:
    """The distinct concepts in their order, without None."""
    distinct: list[Concept] = []
    for concept in concepts:
        if concept and concept not in distinct:
            distinct.append(concept)
    return distinct
