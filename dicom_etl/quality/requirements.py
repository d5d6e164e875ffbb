"""The requirements of the standard on the top-level attributes of an object: Type 1, 1C, 2, 2C or 3.

`TYPES` is PS3.5 section 7.4: what each type requires of an absent or empty attribute. Everything that depends on this
rule takes it from there. The table `tables/requirements.json`, written by `scripts/derive_standard_tables.py`, maps a
SOP class to its IOD (PS3.4 Annex B), an IOD to its modules with their usage (PS3.3 Annex A), and a module to its
attributes with their type (PS3.3 Annex C). `find_attributes` selects those that apply to one instance, by its SOP class
and the set of its tags.

Not here: the conditions of Types 1C and 2C, which are not evaluated; attributes inside sequences; values; counting.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from types import MappingProxyType
from typing import Literal, NamedTuple, cast

__all__ = [
    "TYPES",
    "AttributeType",
    "TypeRule",
    "find_attributes",
    "find_functional_group_attributes",
    "find_iod",
    "rank_type",
    "to_standard_tag",
]

AttributeType = Literal["1", "1C", "2", "2C", "3"]


class TypeRule(NamedTuple):
    """What a type requires of an attribute that has no value (PS3.5 section 7.4).

    `undecided`: it depends on a condition, and conditions are not evaluated.
    """

    if_absent: Literal["violation", "undecided", "allowed"]
    if_empty: Literal["violation", "allowed"]
    meaning: str


# PS3.5 section 7.4, the strictest type first
TYPES: Mapping[AttributeType, TypeRule] = {
    "1": TypeRule("violation", "violation", "required, with a value"),
    "1C": TypeRule("undecided", "violation", "required under a condition; with a value"),
    "2": TypeRule("violation", "allowed", "required, may be empty"),
    "2C": TypeRule("undecided", "allowed", "required under a condition; may be empty"),
    "3": TypeRule("allowed", "allowed", "optional"),
}

_WEAKENED: Mapping[AttributeType, AttributeType] = {"1": "1C", "1C": "1C", "2": "2C", "2C": "2C", "3": "3"}

_Module = Mapping[str, AttributeType]

# The tag profile of a header ends before the pixel data, so an absence cannot be seen from this group on.
_PIXEL_DATA_GROUP = "7FE0"


def rank_type(attribute_type: AttributeType) -> int:
    """The rank of a type, 0 for the strictest (Type 1)."""
    return _RANKS[attribute_type]


_RANKS: Mapping[AttributeType, int] = {attribute_type: rank for rank, attribute_type in enumerate(TYPES)}


def find_iod(sop_class: str) -> str | None:
    """The IOD of a storage SOP class (PS3.4 section B.5), for example `ct-image`; None if it is unknown."""
    return _load_table().sop_classes.get(sop_class)


def find_attributes(sop_class: str, present: frozenset[str]) -> Mapping[str, AttributeType] | None:
    """The top-level attributes that apply to an instance, tag -> type; None for an unknown SOP class.

    `present` are the tags (GGGGEEEE, upper-case hex) of the instance's top-level data set, filled or empty; private
    tags and tags that the IOD lacks are ignored. A tag that is not in the result does not belong to the IOD, or belongs
    to a module that the instance does not use.

    - Mandatory modules always apply. Conditional and optional ones (PS3.3 section A.1.3) apply if an attribute is
      present that they contain and no mandatory module does.
    - An attribute may be in several modules that are not mandatory (Rows and Columns are in the three image pixel
      modules of a parametric map, ShutterShape is in two shutter modules). It is evidence only for those modules that
      another attribute shows to be in use. If no attribute does so, it is undecided which of the modules is in use.
      Attributes of all of these modules then apply, with the least strict of their types. Attributes of only some of
      them become conditional (Type 1 as 1C, 2 as 2C), unless a module in use requires them.
    - A tag in several modules has the strictest of its types.
    - Repeating groups (PS3.5 section 7.6): the attributes of overlays are listed once for each overlay group that is
      present, and not at all without one.
    - Attributes from the pixel data on (7FE0,eeee) are omitted, since tag profiles end before them.
    """
    iod = find_iod(sop_class)
    return None if iod is None else _find_attributes(iod, present)


@cache
def find_functional_group_attributes(iod: str) -> Mapping[str, AttributeType]:
    """The attributes of an enhanced IOD that are in functional groups and count under their own tag; tag -> type.

    PS3.3 C.7.6.16; the table `tables/functional_groups.json`.
    """
    text = files("dicom_etl.quality.tables").joinpath("functional_groups.json").read_text(encoding="utf-8")
    document = json.loads(text)
    return dict.fromkeys(document["iods"].get(iod, ()), document["requirement"])


def to_standard_tag(tag: str) -> str:
    """The form in which the standard lists a tag: `60020010` is `60xx0010` (PS3.5 section 7.6).

    This concerns overlays (60xx) and the retired curves (50xx), in even groups. Any other tag is returned unchanged:
    odd groups are private (PS3.5 section 7.8).
    """
    repeating = tag[:2] in {"50", "60"} and tag[3:4] in set("02468ACE")
    return f"{tag[:2]}xx{tag[4:]}" if repeating else tag


@dataclass(frozen=True)
class _Iod:
    """The modules of an IOD."""

    mandatory: _Module
    """The attributes of all mandatory modules."""
    optional: Mapping[str, _Module]
    """The conditional and optional modules by name."""
    modules_of_tag: Mapping[str, tuple[str, ...]]
    """The optional modules that contain a tag, for each tag that no mandatory module contains."""


@dataclass(frozen=True)
class _Table:
    sop_classes: Mapping[str, str]
    iods: Mapping[str, Mapping[str, list[str]]]
    modules: Mapping[str, _Module]


@cache
def _load_table() -> _Table:
    text = files("dicom_etl.quality.tables").joinpath("requirements.json").read_text(encoding="utf-8")
    document = json.loads(text)
    modules = {
        name: {tag: cast(AttributeType, type_) for type_, tags in by_type.items() for tag in tags}
        for name, by_type in document["modules"].items()
    }
    return _Table(document["sop_classes"], document["iods"], modules)


@cache
def _load_iod(name: str) -> _Iod:
    table = _load_table()
    usages = table.iods[name]
    mandatory = _strictest(table.modules[module] for module in usages["M"])
    optional = {module: table.modules[module] for usage in ("C", "U") for module in usages.get(usage, ())}
    modules_of_tag: dict[str, tuple[str, ...]] = {}
    for module, attributes in optional.items():
        for tag in attributes.keys() - mandatory.keys():
            modules_of_tag[tag] = (*modules_of_tag.get(tag, ()), module)
    return _Iod(mandatory, optional, modules_of_tag)


@lru_cache(maxsize=1024)
def _find_attributes(iod_name: str, present: frozenset[str]) -> Mapping[str, AttributeType]:
    iod = _load_iod(iod_name)
    evidence = {iod.modules_of_tag[tag] for tag in map(to_standard_tag, present) if tag in iod.modules_of_tag}
    used = frozenset(modules[0] for modules in evidence if len(modules) == 1)
    undecided = frozenset(modules for modules in evidence if used.isdisjoint(modules))
    overlay_groups = frozenset(tag[:4] for tag in present if to_standard_tag(tag).startswith("60xx"))
    return _select_attributes(iod_name, used, undecided, overlay_groups)


@lru_cache(maxsize=1024)
def _select_attributes(
    iod_name: str,
    used: frozenset[str],
    undecided: frozenset[tuple[str, ...]],
    overlay_groups: frozenset[str],
) -> Mapping[str, AttributeType]:
    # there are many tag profiles and few combinations of modules: equal results are one object
    iod = _load_iod(iod_name)
    candidates = [[iod.optional[module] for module in modules] for modules in undecided]
    certain = _strictest([iod.mandatory, *(iod.optional[module] for module in used), *map(_common_types, candidates)])
    types = {**_strictest(map(_weakened_types, candidates)), **certain}
    selected: dict[str, AttributeType] = {}
    for tag, type_ in types.items():
        if tag.startswith("60xx"):
            selected |= {group + tag[4:]: type_ for group in overlay_groups}
        elif tag[:4] < _PIXEL_DATA_GROUP:
            selected[tag] = type_
    return MappingProxyType(dict(sorted(selected.items())))


def _strictest(modules: Iterable[_Module]) -> _Module:
    """The attributes of any of the modules, each with its strictest type."""
    strictest: dict[str, AttributeType] = {}
    for module in modules:
        for tag, type_ in module.items():
            strictest[tag] = min(strictest.get(tag, type_), type_, key=rank_type)
    return strictest


def _common_types(modules: list[_Module]) -> _Module:
    """The attributes of all of the modules, each with its least strict type."""
    tags = set(modules[0]).intersection(*modules[1:])
    return {tag: max((module[tag] for module in modules), key=rank_type) for tag in tags}


def _weakened_types(modules: list[_Module]) -> _Module:
    """The attributes of any of the modules, as conditional ones."""
    return {tag: _WEAKENED[type_] for tag, type_ in _strictest(modules).items()}
