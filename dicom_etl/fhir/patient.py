"""Header rows of a person -> Patient (R4 and R5).

A Patient carries the identifier of its own scope and what the headers agree on; no SDS identifiers, so that two
datasets that share a person build the same Patient. What no header says, the subjects sheet may say. Addresses and
telephone numbers stay out unless a setting asks for them.
"""

from __future__ import annotations

import datetime
import re
from functools import partial
from typing import Any

from dicom_etl.fhir import terminology
from dicom_etl.fhir.context import SHEET_GENDERS, Context
from dicom_etl.fhir.mapping import Concept, Rule, fill_elements, list_columns, make_concept
from dicom_etl.fhir.person_names import convert_person_name
from dicom_etl.fhir.rows import FindingCollector, HeaderRows
from dicom_etl.fhir.rules import COMMON, strip_text
from dicom_etl.fhir.species import is_human, look_up_gender_status, look_up_species
from dicom_etl.identity.matching import PatientMatch

COLUMNS = list_columns("patient")

_GENDER = {"M": "male", "F": "female", "O": "other"}  # PS3.3 C.7.1.1
_SHEET_DATE = re.compile(r"(\d{4})-?(\d\d)-?(\d\d)", re.ASCII)
_MEDICAL_RECORD = {
    "coding": [
        {
            "system": "http://terminology.hl7.org/CodeSystem/v2-0203",
            "code": "MR",
            "display": "Medical record number",
        }
    ]
}
_ANIMAL = "http://hl7.org/fhir/StructureDefinition/patient-animal"


def make_patient(
    identifier: str, person: PatientMatch, rows: HeaderRows, context: Context, findings: FindingCollector
) -> dict[str, Any]:
    """The Patient `identifier` of a person from the rows of all its studies in a unit."""
    rules = _RULES | {"person": partial(_identifier, person)}
    given = {"id": identifier, "active": True}
    return {"resourceType": "Patient"} | fill_elements("patient", rules, rows, context, findings, given)


def _identifier(
    person: PatientMatch, rows: HeaderRows, _columns: tuple[str, ...], _context: Context, _findings: FindingCollector
) -> list[dict[str, Any]]:
    identifier: dict[str, Any] = {"use": "usual", "system": person.system, "value": person.value}
    if person.rule in ("authority", "patient-id"):
        identifier["type"] = _MEDICAL_RECORD
        issuers = rows.distinct("IssuerOfPatientID")
        # free text: two hospitals' "HIS" are two, so it is no system
        if person.rule == "patient-id" and len(issuers) == 1:
            identifier["assigner"] = {"display": issuers[0]}
    return [identifier]


def _names(
    rows: HeaderRows, columns: tuple[str, ...], _context: Context, findings: FindingCollector
) -> list[dict[str, Any]]:
    """All names that the instances give; a person who has several keeps them."""
    names: list[dict[str, Any]] = []
    for text in rows.distinct(columns[0]):
        names += [name for name in convert_person_name(text) if name not in names]
    if sum("extension" not in name for name in names) > 1:
        findings.add("values-conflict", columns[0], message=f"{columns[0]} has several values: all are kept")
    return names


def _gender(rows: HeaderRows, columns: tuple[str, ...], context: Context, findings: FindingCollector) -> str | None:
    """PatientSex; where the header has none, what the subjects sheet says."""
    said = SHEET_GENDERS.get(context.subject_sheet.get("sex", "").lower())
    sex = rows.common_value(columns[0], findings)
    gender = _GENDER.get(sex)
    if sex is not None and gender is None:
        findings.add("value-omitted", columns[0], sex, message="PatientSex is none of M, F, O")
        return None
    return gender if _header_counts(rows, columns[:1], gender, said, "gender", findings) else said


def _birth_date(rows: HeaderRows, columns: tuple[str, ...], context: Context, findings: FindingCollector) -> str | None:
    """PatientBirthDate; where the header has none, a whole date of the subjects sheet."""
    said = _sheet_date(context.subject_sheet.get("date of birth", ""))
    born = rows.common_value(columns[0], findings)
    own = born.isoformat() if born else None
    return own if _header_counts(rows, columns[:1], own, said, "birthDate", findings) else said


def _header_counts(
    rows: HeaderRows, columns: tuple[str, ...], own: Any, said: Any, element: str, findings: FindingCollector
) -> bool:
    """Whether the header's value is taken, not the sheet's; says where the sheet fills a gap or disagrees.

    A header whose instances disagree has no value, and still the sheet does not decide.
    """
    is_silent = not any(rows.distinct(column) for column in columns)
    if said is None or own == said:
        return True
    if is_silent:
        findings.add("value-from-sheet", columns[0], message=f"{element}: the subjects sheet says it")
        return False
    if own is not None:
        findings.add("sheet-conflict", columns[0], message=f"{element}: the subjects sheet says something else")
    return True


def _sheet_date(text: str) -> str | None:
    match = _SHEET_DATE.fullmatch(text.strip())
    try:
        return datetime.date(*map(int, match.groups())).isoformat() if match else None
    except ValueError:
        return None


# -- animals ----------------------------------------------------------------------------------------------------------


def _animal(
    rows: HeaderRows, columns: tuple[str, ...], context: Context, findings: FindingCollector
) -> list[dict[str, Any]]:
    """The extension patient-animal where the species is known and not human."""
    code, scheme, meaning, text = (strip_text(rows.common_value(column, findings)) for column in columns[:4])
    own = _species(code, scheme, meaning or text)
    said = _species(None, None, strip_text(context.subject_sheet.get("species")))
    if said and is_human(said) and own is None:
        said = None  # nothing is taken from it
    compared = own if own and said and _is_alike(own, said) else said
    kind = own if _header_counts(rows, columns[:4], own, compared, "species", findings) else said
    if kind is None or is_human(kind):
        return []
    breed, status = _breed(rows, columns[4:7], findings), _status(rows, columns[7], findings)
    parts = [("species", kind), ("breed", breed), ("genderStatus", status)]
    made = [{"url": url, "valueCodeableConcept": value} for url, value in parts if value]
    return [{"url": _ANIMAL, "extension": made}]


def _is_alike(one: Concept, other: Concept) -> bool:
    """Whether two concepts can mean the same: codes that are equal, or a text that nobody can compare."""
    if is_human(one) and is_human(other):
        return True
    codes = [concept_["coding"][0]["code"] for concept_ in (one, other) if "coding" in concept_]
    texts = {concept_["text"].casefold() for concept_ in (one, other) if "text" in concept_}
    return len(texts) == 1 if not codes else len(codes) == 1 or codes[0] == codes[1]


def _species(code: str | None, scheme: str | None, text: str | None) -> Concept | None:
    if code and scheme and (coding := terminology.convert_coded_entry(code, scheme, text)):
        return make_concept(coding.as_fhir())
    known = look_up_species(text) if text else None
    return make_concept(known.as_fhir()) if known else make_concept(None, text)


def _breed(rows: HeaderRows, columns: tuple[str, ...], findings: FindingCollector) -> Concept | None:
    _code, meaning, text = (strip_text(rows.common_value(column, findings)) for column in columns)
    return make_concept(None, text or meaning)


def _status(rows: HeaderRows, column: str, findings: FindingCollector) -> Concept | None:
    coding = look_up_gender_status(rows.common_value(column, findings) or "")
    return make_concept(coding.as_fhir()) if coding else None


# -- by setting -------------------------------------------------------------------------------------------------------


def _telecom(
    rows: HeaderRows, columns: tuple[str, ...], context: Context, _findings: FindingCollector
) -> list[dict[str, str]]:
    if not context.contact_details:
        return []
    numbers = {number.strip() for value in rows.distinct(columns[0]) for number in value.split("\\")}
    return [{"system": "phone", "value": number} for number in sorted(numbers - {""})]


def _address(
    rows: HeaderRows, columns: tuple[str, ...], context: Context, findings: FindingCollector
) -> list[dict[str, str]]:
    text = strip_text(rows.common_value(columns[0], findings)) if context.contact_details else None
    return [{"text": text}] if text else []


_RULES: dict[str, Rule] = COMMON | {
    "names": _names,
    "gender": _gender,
    "birth_date": _birth_date,
    "animal": _animal,
    "telecom": _telecom,
    "address": _address,
}
