"""Species and gender status of animal patients as FHIR Codings.

A species is looked up in `tables/species.csv`, which has the SNOMED CT codes of PS3.16 CID 7454: by the name of the
species, by its common name in the NCBI Taxonomy (`rat`) and by its number there; an adjective (`canine`) is a genus. A
species that is not in the table is None: the caller can use its text.

Not here: choosing between header and subjects sheet, and the extension that contains these Codings (`patient`).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from dicom_etl.fhir.terminology import SCT, Coding

__all__ = ["is_human", "look_up_gender_status", "look_up_species"]

# the SNOMED RT code L-85B00 of older headers is converted to 30996001
_HUMAN = frozenset({(SCT, "337915000"), (SCT, "30996001")})

_GENDER_STATUS = "http://hl7.org/fhir/animal-genderstatus"  # the same in R4 and R5
_STATUS_BY_NEUTERED: Mapping[str, Coding] = {
    "ALTERED": Coding(_GENDER_STATUS, "neutered", "Neutered"),
    "UNALTERED": Coding(_GENDER_STATUS, "intact", "Intact"),
}


def look_up_species(text: str) -> Coding | None:
    """The SNOMED CT code of a species by its name; case, blanks and punctuation are ignored.

    A text that is not ASCII or has several values (`Mus\\Musculus`) is not looked up: without the characters between,
    it could be another name.
    """
    if not text.isascii() or "\\" in text:
        return None
    return _read_species().get(re.sub(r"[^A-Z0-9]", "", text.upper()))


def is_human(concept: Mapping[str, Any]) -> bool:
    """Whether a CodeableConcept of a species is human: by its SNOMED CT code, else by its display or text."""
    codings = concept.get("coding", [])
    if any((coding.get("system"), coding.get("code")) in _HUMAN for coding in codings):
        return True
    names = [coding.get("display") for coding in codings] + [concept.get("text")]
    named = [look_up_species(name) for name in names if name]
    return any(coding is not None and (coding.system, coding.code) in _HUMAN for coding in named)


def look_up_gender_status(neutered: str) -> Coding | None:
    """The gender status of a Patient's Sex Neutered (0010,2203); empty means unknown."""
    return _STATUS_BY_NEUTERED.get(neutered.strip())


@cache
def _read_species() -> Mapping[str, Coding]:
    text = files("dicom_etl.fhir.tables").joinpath("species.csv").read_text(encoding="utf-8")
    return {row["alias"]: Coding(SCT, row["code"], row["display"]) for row in csv.DictReader(text.splitlines())}
