"""What the standard asks of an object's top-level attributes: Type 1, 1C, 2, 2C or 3 (PS3.5 section 7.4).

The table (`tables/requirements.json`, written by `scripts/derive_standard_tables.py`) leads from a SOP class
(PS3.4 Annex B) to its IOD, the modules of that IOD with their usage (PS3.3 Annex A) and the attributes of
each module with their type (PS3.3 Annex C). This module answers which of them apply to one instance, from
nothing but its SOP class and the set of its tags.

Not here: the conditions of Types 1C and 2C (an absent one is `unknown`), the project's own rules, attributes
inside sequences, values, and counting.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from types import MappingProxyType
from typing import Literal, cast

__all__ = ["Fulfilment", "Requirement", "Status", "applicable", "fulfilment", "iod_of", "standard_tag"]

Requirement = Literal["1", "1C", "2", "2C", "3"]
Status = Literal["absent", "empty", "filled"]
Fulfilment = Literal["met", "unmet", "unknown", "optional"]

_Module = Mapping[str, Requirement]

_STRICTNESS: Mapping[Requirement, int] = {"1": 0, "1C": 1, "2": 2, "2C": 3, "3": 4}

_CONDITIONAL: Mapping[Requirement, Requirement] = {"1": "1C", "1C": "1C", "2": "2C", "2C": "2C", "3": "3"}

# A header's tag profile ends before the pixel data: what stands from there on cannot be seen to be absent.
_PIXEL_DATA_GROUP = "7FE0"

# PS3.5 section 7.4. A Type 1C attribute may be absent, never empty; a Type 2 or 2C one may be empty.
_FULFILMENT: Mapping[Requirement, Mapping[Status, Fulfilment]] = {
    "1": {"absent": "unmet", "empty": "unmet", "filled": "met"},
    "1C": {"absent": "unknown", "empty": "unmet", "filled": "met"},
    "2": {"absent": "unmet", "empty": "met", "filled": "met"},
    "2C": {"absent": "unknown", "empty": "met", "filled": "met"},
    "3": {"absent": "optional", "empty": "optional", "filled": "optional"},
}


def iod_of(sop_class: str) -> str | None:
    """The IOD of a storage SOP class (PS3.4 section B.5), for example `ct-image`; None if it is unknown."""
    return _table().sop_classes.get(sop_class)


def applicable(sop_class: str, present: frozenset[str]) -> Mapping[str, Requirement] | None:
    """The top-level attributes that apply to an instance, tag -> type; None for an unknown SOP class.

    `present` holds the tags, GGGGEEEE in upper-case hex, that the instance's top-level data set has, filled
    or empty; private tags and others that the IOD lacks do no harm. A tag that is not in the answer is none
    of the object's business, or belongs to a module that it does not use.

    - Mandatory modules count always. Conditional and optional ones (PS3.3 section A.1.3) count when an
      attribute is present that they hold and no mandatory module does.
    - Several modules that are not mandatory may hold that attribute (Rows and Columns stand in the three
      image pixel modules of a parametric map, ShutterShape in two shutter modules). It then speaks for those
      of them that another attribute shows to be in use. If there is none, it is undecided which one is in
      use: what all of them ask counts, in its least strict form; what some of them ask is conditional
      (Type 1 as 1C, 2 as 2C), unless a module in use asks for it anyhow.
    - A tag in several modules has the strictest of its types.
    - Repeating groups (PS3.5 section 7.6): the attributes of overlays are listed once for each overlay group
      that is present, and not at all without one.
    - Attributes from the pixel data on (7FE0,eeee) are left out, since tag profiles end before them.
    """
    iod = iod_of(sop_class)
    return None if iod is None else _applicable(iod, present)


def fulfilment(requirement: Requirement, status: Status) -> Fulfilment:
    """Whether an attribute of that type is as PS3.5 section 7.4 asks.

    Conditions are not evaluated: an absent Type 1C or 2C attribute is `unknown`. Type 3 is `optional`,
    whatever its status.
    """
    return _FULFILMENT[requirement][status]


def standard_tag(tag: str) -> str:
    """The form in which the standard lists a tag: `60020010` is `60xx0010` (PS3.5 section 7.6).

    That concerns overlays (60xx) and the retired curves (50xx), in even groups. Any other tag is returned as
    it is, odd groups being private (PS3.5 section 7.8).
    """
    repeating = tag[:2] in {"50", "60"} and tag[3:4] in set("02468ACE")
    return f"{tag[:2]}xx{tag[4:]}" if repeating else tag


@dataclass(frozen=True)
class _Iod:
    """An IOD made ready for look-ups."""

    mandatory: _Module
    """The attributes of all mandatory modules."""
    optional: Mapping[str, _Module]
    """The conditional and optional modules by name."""
    holders: Mapping[str, tuple[str, ...]]
    """The optional modules that hold a tag, for each tag that no mandatory module holds."""


@dataclass(frozen=True)
class _Table:
    sop_classes: Mapping[str, str]
    iods: Mapping[str, Mapping[str, list[str]]]
    modules: Mapping[str, _Module]


@cache
def _table() -> _Table:
    text = files("dicom_etl.quality.tables").joinpath("requirements.json").read_text(encoding="utf-8")
    document = json.loads(text)
    modules = {
        name: {tag: cast(Requirement, type_) for type_, tags in by_type.items() for tag in tags}
        for name, by_type in document["modules"].items()
    }
    return _Table(document["sop_classes"], document["iods"], modules)


@cache
def _iod(name: str) -> _Iod:
    table = _table()
    usages = table.iods[name]
    mandatory = _strictest(table.modules[module] for module in usages["M"])
    optional = {module: table.modules[module] for usage in ("C", "U") for module in usages.get(usage, ())}
    holders: dict[str, tuple[str, ...]] = {}
    for module, attributes in optional.items():
        for tag in attributes.keys() - mandatory.keys():
            holders[tag] = (*holders.get(tag, ()), module)
    return _Iod(mandatory, optional, holders)


@lru_cache(maxsize=1024)
def _applicable(iod_name: str, present: frozenset[str]) -> Mapping[str, Requirement]:
    iod = _iod(iod_name)
    witnesses = {iod.holders[tag] for tag in map(standard_tag, present) if tag in iod.holders}
    used = frozenset(modules[0] for modules in witnesses if len(modules) == 1)
    undecided = frozenset(modules for modules in witnesses if used.isdisjoint(modules))
    overlay_groups = frozenset(tag[:4] for tag in present if standard_tag(tag).startswith("60xx"))
    return _listed(iod_name, used, undecided, overlay_groups)


@lru_cache(maxsize=1024)
def _listed(
    iod_name: str,
    used: frozenset[str],
    undecided: frozenset[tuple[str, ...]],
    overlay_groups: frozenset[str],
) -> Mapping[str, Requirement]:
    # Tag profiles are many, combinations of modules are few: equal answers are one object.
    iod = _iod(iod_name)
    candidates = [[iod.optional[module] for module in modules] for modules in undecided]
    certain = _strictest([iod.mandatory, *(iod.optional[module] for module in used), *map(_asked_by_all, candidates)])
    types = {**_strictest(map(_asked_by_some, candidates)), **certain}
    listed: dict[str, Requirement] = {}
    for tag, type_ in types.items():
        if tag.startswith("60xx"):
            listed |= {group + tag[4:]: type_ for group in overlay_groups}
        elif tag[:4] < _PIXEL_DATA_GROUP:
            listed[tag] = type_
    return MappingProxyType(dict(sorted(listed.items())))


def _strictest(modules: Iterable[_Module]) -> _Module:
    strictest: dict[str, Requirement] = {}
    for module in modules:
        for tag, type_ in module.items():
            strictest[tag] = min(strictest.get(tag, type_), type_, key=_STRICTNESS.__getitem__)
    return strictest


def _asked_by_all(modules: list[_Module]) -> _Module:
    tags = set(modules[0]).intersection(*modules[1:])
    return {tag: max((module[tag] for module in modules), key=_STRICTNESS.__getitem__) for tag in tags}


def _asked_by_some(modules: list[_Module]) -> _Module:
    return {tag: _CONDITIONAL[type_] for tag, type_ in _strictest(modules).items()}
