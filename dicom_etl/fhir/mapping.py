"""The mapping table: each element of each resource once, with the tags that it is made from and the rule that makes it.

`tables/mapping.csv` has one line per element: its name and type in R4 and in R5 (empty where a version has it not), the
name of its rule, the columns of the header table, and what becomes of a value that is absent or invalid. A line without
a rule is left out, and says why. Rules make one thing for both versions; the element's type gives it its form. The
inputs of the build and `docs/mapping.md` come from here.

Not here: the rules themselves.
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
GIVEN = "given"  # made with the resource itself, not from columns
# rules that make nothing and find nothing where all of their columns are null, whatever sheets and settings say
NEED_VALUES = frozenset(
    """accession accession_order address codes location names operator performer reasons security specimen staff
    staff_list started telecom text unsigned""".split()
)

Version = Literal["R4", "R5"]
Rule = Callable[[HeaderRows, tuple[str, ...], Context, FindingCollector], Any]
Concept = dict[str, Any]  # CodeableConcept: what rules make of codes, whatever the element's type


class Line(NamedTuple):
    """A line of the table as it stands there."""

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
    """A line of the mapping in one version of FHIR."""

    name: str
    type: str  # of one value
    repeats: bool
    rule: str
    columns: tuple[str, ...]

    @property
    def needs_form(self) -> bool:
        """Whether a value of this type may have to change its form."""
        return self.type in ("Coding", "CodeableReference")


@cache
def lines() -> tuple[Line, ...]:
    """All lines, also those of what is left out."""
    text = files("dicom_etl.fhir.tables").joinpath("mapping.csv").read_text(encoding="utf-8")
    return tuple(
        Line(**{**row, "columns": tuple(row["columns"].split())})  # type: ignore[arg-type]  # columns are no str
        for row in csv.DictReader(text.splitlines())
    )


@cache
def elements(level: str, version: Version) -> tuple[Element, ...]:
    """The elements of a level (study, series, instance, patient, endpoint) that are made, in FHIR's order."""
    made = []
    for line in lines():
        name, type_ = (line.r4, line.r4_type) if version == "R4" else (line.r5, line.r5_type)
        if line.level == level and line.rule and name:
            made.append(Element(name, type_.removesuffix("*"), type_.endswith("*"), line.rule, line.columns))
    return tuple(made)


@lru_cache(maxsize=64)
def elements_with_values(level: str, version: Version, empty: frozenset[str]) -> tuple[Element, ...]:
    """The elements of a level that columns can give a value, if `empty` are those that have none in any row."""
    return tuple(e for e in elements(level, version) if e.rule not in NEED_VALUES or not empty.issuperset(e.columns))


@cache
def list_columns(*levels: str) -> tuple[str, ...]:
    """The columns that these levels are made from, in either version."""
    return tuple(dict.fromkeys(c for line in lines() if line.level in levels and line.rule for c in line.columns))


def list_element_columns(level: str, element: str) -> tuple[str, ...]:
    """The columns of one element that is the same in both versions."""
    return next(line.columns for line in lines() if (line.level, line.r4) == (level, element) and line.rule)


def fill_elements(
    level: str,
    rules: Mapping[str, Rule],
    rows: HeaderRows,
    context: Context,
    findings: FindingCollector,
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """The elements of a level from rows; what has no value is left out.

    Args:
        level: as in `elements`.
        rules: by name; each gives a value, a list of them where the element repeats, or None.
        rows: of the study, series or person.
        context: settings and sheets.
        findings: takes the findings.
        given: by name, the elements whose rule is `given`.
    """
    made: dict[str, Any] = {}
    for element in elements_with_values(level, context.version, rows.empty):
        if element.rule == GIVEN:
            value = given.get(element.name)
        else:
            value = rules[element.rule](rows, element.columns, context, findings)
        if value is not None and value != []:
            _put(made, element, value)
    return made


def _put(made: dict[str, Any], element: Element, value: Any) -> None:
    """Add a value at its findings: `meta.security` is an element in an element."""
    name, target = element.name, made
    if "." in name:
        outer, _, name = name.partition(".")
        target = made.setdefault(outer, {})
    if element.needs_form:
        value = (
            [convert_concept(one, element.type) for one in value]
            if element.repeats
            else convert_concept(value, element.type)
        )
    if element.repeats and name in target:
        target[name] = [*target[name], *value]
    else:
        target[name] = list(value) if element.repeats else value


def convert_concept(value: Any, type_: str) -> Any:
    """A value as its type asks: a concept as CodeableConcept, as CodeableReference (R5), or as Coding (R4)."""
    if type_ == "CodeableReference":
        return {"concept": value}
    if type_ == "Coding" and isinstance(value, dict) and ("coding" in value or "text" in value):
        return value["coding"][0] if "coding" in value else {"display": value["text"]}
    return value


def make_concept(coding: Mapping[str, str] | None, text: str | None = None) -> Concept | None:
    """A CodeableConcept of a coding, of a text, or of both; None of nothing."""
    made: Concept = {"coding": [dict(coding)]} if coding else {}
    if text:
        made["text"] = text
    return made or None


def remove_duplicates(concepts: Iterable[Concept | None]) -> list[Concept]:
    """Without those that are there already."""
    made: list[Concept] = []
    for one in concepts:
        if one and one not in made:
            made.append(one)
    return made
