"""Derives the committed tables of the DICOM standard from the data that the highdicom wheel ships.

A maintainer runs this in an environment that has highdicom, after `pip install highdicom==<version>`:

    python scripts/derive_standard_tables.py           # writes both tables
    python scripts/derive_standard_tables.py --check   # exit code 1 if they differ from a fresh derivation

highdicom is not a dependency of dicom_etl, neither at run time nor in the tests: the package contains only the
tables that this script writes. The same version of highdicom gives the same bytes. Only JSON files of the wheel are
read; highdicom is never imported. The modules that read the tables explain them: `dicom_etl.fhir.terminology` and
`dicom_etl.quality.requirements`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from pydicom._dicom_dict import RepeatersDictionary
from pydicom.datadict import tag_for_keyword

ROOT = Path(__file__).resolve().parent.parent
ANNEX_L = Path("dicom_etl/fhir/tables/annex_l.json")
REQUIREMENTS = Path("dicom_etl/quality/tables/requirements.json")

LICENCE = "MIT, Copyright 2020 MGH Computational Pathology, see NOTICE"
TYPES = ("1", "1C", "2", "2C", "3")  # PS3.5 section 7.4
USAGES = ("M", "C", "U")  # PS3.3 section A.1.3

# The source lists the attributes of a macro with the types of the macro, even if a module includes the macro only on a
# condition. PS3.3 Table C.17-5 includes these depending on the Value Type of the content item (NUM, CODE, IMAGE,
# SCOORD...), which is CONTAINER at the root of a document: if they were required, every SR document would lack them.
CONDITIONALLY_INCLUDED: Mapping[str, frozenset[str]] = {
    "sr-document-content": frozenset(
        {
            "ConceptCodeSequence",
            "GraphicData",
            "GraphicType",
            "MeasuredValueSequence",
            "ReferencedFrameOfReferenceUID",
            "ReferencedSOPSequence",
            "TabulatedValuesSequence",
            "TemporalRangeType",
        }
    )
}


class SourceDataError(ValueError):
    """The data of the wheel does not have the structure that this script expects."""


def header(version: str, standard: str) -> dict[str, Any]:
    """The first fields of each table: its origin, licence and sections of the standard."""
    return {"source": "highdicom", "version": version, "licence": LICENCE, "standard": standard}


def derive_annex_l(regions: Mapping[str, Sequence[Any]], version: str) -> dict[str, Any]:
    """Body Part Examined terms of PS3.16 Annex L: term -> [SNOMED CT code, display, paired]."""
    terms = {}
    for term, (scheme, code, display, paired) in sorted(regions.items()):
        if scheme != "SCT" or not code.isdigit():
            raise SourceDataError(f"Annex L term {term} has no SNOMED CT code: {scheme} {code}")
        terms[term] = [code, display, paired]
    return {**header(version, "PS3.16 Annex L"), "terms": terms}


def derive_requirements(
    sop_classes: Mapping[str, str],
    iods: Mapping[str, Sequence[Mapping[str, str]]],
    modules: Mapping[str, Sequence[Mapping[str, Any]]],
    version: str,
) -> dict[str, Any]:
    """SOP class -> IOD -> usage -> modules -> type -> tags of the top-level attributes (PS3.3, PS3.4).

    The result contains only IODs that a SOP class refers to, and only modules that such an IOD refers to. A module that
    the source names without describing it (it is older than PS3.3 there) has no attributes.
    """
    used_iods = sorted(set(sop_classes.values()))
    used_modules = sorted({module["key"] for iod in used_iods for module in iods[iod]})
    return {
        **header(version, "PS3.3 Annex A and C, PS3.4 Annex B"),
        "sop_classes": {uid: sop_classes[uid] for uid in sorted(sop_classes, key=_uid_components)},
        "iods": {iod: _modules_by_usage(iods[iod]) for iod in used_iods},
        "modules": {
            module: _tags_by_type(modules.get(module, ()), CONDITIONALLY_INCLUDED.get(module, frozenset()))
            for module in used_modules
        },
    }


def format_tag(keyword: str) -> str:
    """The tag of an attribute as GGGGEEEE in upper-case hex; repeating groups as `60xxEEEE` (PS3.6 section 6)."""
    tag = tag_for_keyword(keyword)
    if tag is not None:
        return f"{tag:08X}"
    for mask, entry in RepeatersDictionary.items():
        if entry[4] == keyword:
            return mask[:4] + mask[4:].upper()
    raise SourceDataError(f"pydicom has no attribute {keyword}: use a newer pydicom")


def render(table: Mapping[str, Any]) -> str:
    """JSON with one line per term, SOP class, IOD or module, so that a diff shows what changed."""
    members = []
    for key, value in table.items():
        if isinstance(value, Mapping):
            entries = (f"{json.dumps(name)}: {_compact(entry)}" for name, entry in value.items())
            members.append(f"{json.dumps(key)}: {{\n" + ",\n".join(entries) + "\n}")
        else:
            members.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(members) + "\n}\n"


def derive() -> dict[Path, str]:
    """Derive both tables from the installed highdicom; returns path -> text."""
    wheel = distribution("highdicom")

    def read(name: str) -> Any:
        path = Path(str(wheel.locate_file(f"highdicom/_standard/{name}.json")))
        return json.loads(path.read_text(encoding="utf-8"))

    requirements = derive_requirements(
        read("sop_class_iod_map"), read("iod_module_map"), read("module_attribute_map"), wheel.version
    )
    annex_l = derive_annex_l(read("anatomic_regions"), wheel.version)
    return {ANNEX_L: render(annex_l), REQUIREMENTS: render(requirements)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables, or compare them with `--check`; returns 1 if they differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to write to")
    options = parser.parse_args(arguments)
    differing = 0
    for path, text in derive().items():
        target = options.root / path
        is_same = target.exists() and target.read_bytes() == text.encode()
        differing += not is_same
        if not options.check:
            target.write_bytes(text.encode())
        print(f"{path}: {len(text.encode())} bytes, {'as before' if is_same else 'differs'}")
    return int(options.check and differing > 0)


def _modules_by_usage(modules: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    # The letters as in the JSON: the ModuleUsageValues of highdicom have the names of U and C swapped.
    unknown = {module["usage"] for module in modules} - set(USAGES)
    if unknown:
        raise SourceDataError(f"module usage {sorted(unknown)}")
    by_usage = {usage: sorted(m["key"] for m in modules if m["usage"] == usage) for usage in USAGES}
    return {usage: keys for usage, keys in by_usage.items() if keys}


def _tags_by_type(
    attributes: Sequence[Mapping[str, Any]], conditionally_included: frozenset[str]
) -> dict[str, list[str]]:
    # Type None occurs in modules of normalised SOP classes and DIMSE-N services, which are not stored objects.
    types = {a["keyword"]: a["type"] for a in attributes if not a["path"] and a["type"] is not None}
    unknown = set(types.values()) - set(TYPES) | conditionally_included - types.keys()
    if unknown:
        raise SourceDataError(f"types or attributes {sorted(unknown)}")
    types |= {keyword: _conditional(types[keyword]) for keyword in conditionally_included}
    by_type = {type_: sorted(format_tag(keyword) for keyword in types if types[keyword] == type_) for type_ in TYPES}
    return {type_: tags for type_, tags in by_type.items() if tags}


def _conditional(type_: str) -> str:
    return {"1": "1C", "2": "2C"}.get(type_, type_)


def _uid_components(uid: str) -> list[int]:
    return [int(component) for component in uid.split(".")]


def _compact(entry: Any) -> str:
    return json.dumps(entry, separators=(",", ":"))


if __name__ == "__main__":
    sys.exit(main())
