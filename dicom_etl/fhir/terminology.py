"""Codes of DICOM as FHIR Codings: body site, modality, laterality, SOP class, coded entries.

Every function looks up a table of the standard: PS3.16 Annex L and the alias table in `tables/`, and the context groups
(CID), UID names and SNOMED mapping of pydicom. A value that is not in the table is None, and the caller adds a finding;
nothing is guessed. Tables are read at first use.

Not here: choosing among the values of an object (series, instance, sequence), and corrections.
"""

from __future__ import annotations

import csv
import importlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files

from pydicom.config import IGNORE
from pydicom.uid import UID

__all__ = [
    "CHEST_CODINGS",
    "DCM",
    "SCT",
    "URI",
    "AnatomicRegion",
    "Coding",
    "convert_coded_entry",
    "convert_sop_class",
    "is_paired",
    "look_up_body_site",
    "look_up_laterality",
    "look_up_modality",
    "look_up_scheme_uri",
    "read_annex_l",
    "read_snomed_ct_by_rt",
]

_DISTINCT = 4096  # inputs whose result is cached: codes and names of the standard repeat, free text may not

DCM = "http://dicom.nema.org/resources/ontology/DCM"
SCT = "http://snomed.info/sct"
URI = "urn:ietf:rfc:3986"

# Coding Scheme Designator (PS3.16 section 8, Table 8-1) -> code system URI as registered in HL7 Terminology
_SCHEME_URIS: Mapping[str, str] = {
    "C4": "http://www.ama-assn.org/go/cpt",
    "DCM": DCM,
    "I10": "http://hl7.org/fhir/sid/icd-10",
    "I10C": "http://hl7.org/fhir/sid/icd-10-cm",
    "I9C": "http://hl7.org/fhir/sid/icd-9-cm",
    "ICDO3": "http://terminology.hl7.org/CodeSystem/icd-o-3",
    "ISO3166_1": "urn:iso:std:iso:3166",
    "LN": "http://loinc.org",
    "NCIt": "http://ncicb.nci.nih.gov/xml/owl/EVS/Thesaurus.owl",
    "RADLEX": "http://radlex.org",
    "RFC5646": "urn:ietf:bcp:47",
    "SCT": SCT,
    "UCUM": "http://unitsofmeasure.org",
}

# designators of SNOMED RT codes (PS3.16 Table 8-1), all retired in favour of SCT
_SNOMED_RT = frozenset({"SRT", "SNM3", "99SDM"})

# texts that can have another meaning than the Annex L term with the same letters: CTSPINE is the cervico-thoracic
# spine, but `CT SPINE` can be a CT of any part of the spine
_MISLEADING = frozenset({"CT SPINE"})


@dataclass(frozen=True, slots=True)
class Coding:
    """A FHIR Coding: code system URI, code, and display if it is known."""

    system: str
    code: str
    display: str | None = None

    def as_fhir(self) -> dict[str, str]:
        """The Coding as a FHIR JSON object; an unknown display is omitted."""
        coding = {"system": self.system, "code": self.code}
        return coding if self.display is None else coding | {"display": self.display}


# codes of CHEST and THORAX: Annex L has 816094009, profiles of the German Medical Informatics Initiative use 43799004
CHEST_CODINGS: Mapping[str, Coding] = {
    "816094009": Coding(SCT, "816094009", "Chest"),
    "43799004": Coding(SCT, "43799004", "Thoracic cavity structure"),
}


def look_up_body_site(body_part_examined: str, chest: str = "816094009") -> Coding | None:
    """The SNOMED CT code of a Body Part Examined (0018,0015) by PS3.16 Annex L.

    The text is looked up as it is, then in capitals without blanks and punctuation (`C-SPINE`, `whole body`), then as
    an alias (`KIDNEYS`). A text that is not ASCII or has several values (`HEAD\\NECK`) is only looked up as it is.

    Args:
        body_part_examined: the text.
        chest: the code for CHEST and THORAX, one of `CHEST_CODINGS`.
    """
    entry = _annex_l_entry(body_part_examined)
    if entry is None:
        return None
    return CHEST_CODINGS[chest] if entry.coding.code in CHEST_CODINGS else entry.coding


def is_paired(body_part_examined: str) -> bool | None:
    """Whether a body part is one of a pair, so that it needs a laterality (PS3.16 Annex L); None if unknown.

    The same texts are known as for `look_up_body_site`. Terms differ even if their code is the same: URETER is paired,
    ENDOURETERIC is not.
    """
    entry = _annex_l_entry(body_part_examined)
    return None if entry is None else entry.paired


def look_up_modality(code: str) -> Coding | None:
    """The Coding of a Modality (0008,0060) by PS3.16 CID 33; None for a retired or unknown code."""
    code = code.strip()
    meaning = _read_modalities().get(code)
    return None if meaning is None else Coding(DCM, code, meaning)


def look_up_laterality(code: str) -> Coding | None:
    """The Coding of a Laterality (0020,0060), Image Laterality (0020,0062) or Frame Laterality (0020,9072).

    By PS3.16 CID 244, but R, L and B only: `U` means unpaired (PS3.3 section C.8.11.2), not unilateral as in CID 244.
    """
    return _LATERALITIES.get(code.strip())


@lru_cache(maxsize=_DISTINCT)
def convert_sop_class(uid: str) -> Coding:
    """A SOP Class UID (0008,0016) as the Coding of ImagingStudy, with its name in PS3.6 Annex A if it has one."""
    uid = uid.strip()
    name = UID(uid, validation_mode=IGNORE).name
    return Coding(URI, f"urn:oid:{uid}", None if name == uid else name)


def look_up_scheme_uri(designator: str) -> str | None:
    """The code system URI of a Coding Scheme Designator (0008,0102), if it is unambiguous.

    SRT and its older names are None: `convert_coded_entry` converts their codes.
    """
    return _SCHEME_URIS.get(designator.strip())


def convert_coded_entry(code: str, designator: str, meaning: str | None) -> Coding | None:
    """Convert a coded entry (PS3.3 section 8.8): Code Value, Coding Scheme Designator, Code Meaning.

    SNOMED RT codes (SRT, SNM3, 99SDM) are converted to SNOMED CT by pydicom's mapping. None if the scheme has no
    unambiguous URI, the code is empty, or a SNOMED RT code is not in the mapping.
    """
    code, designator = code.strip(), designator.strip()
    if designator in _SNOMED_RT:
        code, designator = read_snomed_ct_by_rt().get(code, ""), "SCT"
    system = look_up_scheme_uri(designator)
    if system is None or not code:
        return None
    return Coding(system, code, (meaning or "").strip() or None)


_LATERALITIES: Mapping[str, Coding] = {
    "R": Coding(SCT, "24028007", "Right"),
    "L": Coding(SCT, "7771000", "Left"),
    "B": Coding(SCT, "51440002", "Right and left"),
}


@dataclass(frozen=True, slots=True)
class AnatomicRegion:
    """A term of PS3.16 Annex L: its code, and whether the body part is one of a pair."""

    coding: Coding
    paired: bool


@lru_cache(maxsize=_DISTINCT)
def _annex_l_entry(text: str) -> AnatomicRegion | None:
    regions = read_annex_l()
    text = text.strip()
    if text in regions:
        return regions[text]
    words = re.sub(r"[^A-Z0-9]+", " ", text.upper()).strip()
    if not text.isascii() or "\\" in text or words in _MISLEADING:
        return None
    term = words.replace(" ", "")
    return regions.get(_read_aliases().get(term, term))


@cache
def read_annex_l() -> Mapping[str, AnatomicRegion]:
    """The terms of PS3.16 Annex L."""
    terms = json.loads(_read("annex_l.json"))["terms"]
    return {term: AnatomicRegion(Coding(SCT, code, display), paired) for term, (code, display, paired) in terms.items()}


@cache
def _read_aliases() -> Mapping[str, str]:
    rows = csv.DictReader(_read("body_part_aliases.csv").splitlines())
    return {row["alias"]: row["term"] for row in rows}


def _read(name: str) -> str:
    return files("dicom_etl.fhir.tables").joinpath(name).read_text(encoding="utf-8")


@cache
def _read_modalities() -> Mapping[str, str]:
    from pydicom.sr.codedict import codes  # noqa: PLC0415  # all of PS3.16: 15 MB

    return {concept.value: concept.meaning for concept in codes.cid33.concepts.values()}


@cache
def read_snomed_ct_by_rt() -> Mapping[str, str]:
    """SNOMED RT code -> SNOMED CT code; empty if this version of pydicom does not have the mapping."""
    # pydicom uses this mapping to compare codes, but has no public function that converts one
    try:
        module = importlib.import_module("pydicom.sr._snomed_dict")
    except ImportError:
        return {}
    mapping: Mapping[str, Mapping[str, str]] = getattr(module, "mapping", {})
    return mapping.get("SRT", {})
