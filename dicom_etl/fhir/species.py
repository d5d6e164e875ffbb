"""Species and gender status of animal patients as FHIR Codings.

A species is looked up in `tables/species.csv`, which holds what PS3.16 CID 7454 has of SNOMED CT: a species by its
name, by the common name that the NCBI Taxonomy gives it (`rat`) and by its number there; an adjective (`canine`) is a
genus. What the table does not hold is None, and its text is all that can be said.

Not here: choosing among header and subjects sheet, and the extension that these Codings go into.
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

# 30996001 is what the SNOMED RT code L-85B00 of older headers is converted to.
_HUMAN = frozenset({(SCT, "337915000"), (SCT, "30996001")})

_GENDER_STATUS = "http://hl7.org/fhir/animal-genderstatus"  # the same in R4 and R5
_STATUS_BY_NEUTERED: Mapping[str, Coding] = {
    "ALTERED": Coding(_GENDER_STATUS, "neutered", "Neutered"),
    "UNALTERED": Coding(_GENDER_STATUS, "intact", "Intact"),
}


def look_up_species(text: str) -> Coding | None:
    """SNOMED CT code of a species named in text; case, blanks and punctuation do not matter.

    Text that is not ASCII or has several values (`Mus\\Musculus`) is not looked up: dropping what is in between
    could spell another name.
    """
    if not text.isascii() or "\\" in text:
        return None
    return _species().get(re.sub(r"[^A-Z0-9]", "", text.upper()))


def is_human(concept: Mapping[str, Any]) -> bool:
    """Whether a CodeableConcept of a species means human: by SNOMED CT, else by a display or text that says so."""
    codings = concept.get("coding", [])
    if any((coding.get("system"), coding.get("code")) in _HUMAN for coding in codings):
        return True
    names = [coding.get("display") for coding in codings] + [concept.get("text")]
    known = [look_up_species(name) for name in names if name]
    return any(coding is not None and (coding.system, coding.code) in _HUMAN for coding in known)


def look_up_gender_status(neutered: str) -> Coding | None:
    """Gender status by Patient's Sex Neutered (0010,2203); empty means that it is not known."""
    return _STATUS_BY_NEUTERED.get(neutered.strip())


@cache
def _species() -> Mapping[str, Coding]:
    text = files("dicom_etl.fhir.tables").joinpath("species.csv").read_text(encoding="utf-8")
    return {row["alias"]: Coding(SCT, row["code"], row["display"]) for row in csv.DictReader(text.splitlines())}
