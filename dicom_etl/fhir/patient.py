"""The Patient of one or several studies (R4 and R5).

A Patient has the identifier of its match and the values that the headers have in common. It has no SDS identifiers, so
that two datasets with the same patient build the same Patient. The subjects sheet fills in values that headers do not
have. Addresses and telephone numbers are omitted unless a setting includes them.
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
from dicom_etl.fhir.rules import COMMON_RULES, strip_text
from dicom_etl.fhir.species import is_human, look_up_gender_status, look_up_species
from dicom_etl.identity.matching import PatientMatch

COLUMNS = list_columns("patient")

_GENDERS = {"M": "male", "F": "female", "O": "other"}  # PS3.3 C.7.1.1
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
    resource_id: str, match: PatientMatch, rows: HeaderRows, context: Context, findings: FindingCollector
) -> dict[str, Any]:
    """Make the Patient of a match.

    Args:
        resource_id: its id.
        match: of one of the patient's studies.
        rows: of all of the patient's studies in a unit, without duplicates.
        context: settings and sheets.
        findings: the collector of the unit.
    """
    rules = RULES | {"person": partial(_map_identifier, match)}
    computed = {"id": resource_id, "active": True}
    return {"resourceType": "Patient"} | fill_elements("patient", rules, rows, context, findings, computed)


def _map_identifier(
    match: PatientMatch, rows: HeaderRows, _columns: tuple[str, ...], _context: Context, _findings: FindingCollector
) -> list[dict[str, Any]]:
    identifier: dict[str, Any] = {"use": "usual", "system": match.system, "value": match.value}
    if match.rule in ("authority", "patient-id"):
        identifier["type"] = _MEDICAL_RECORD
        issuers = rows.distinct("IssuerOfPatientID")
        # free text is not a system: the "HIS" of two hospitals are two authorities
        if match.rule == "patient-id" and len(issuers) == 1:
            identifier["assigner"] = {"display": issuers[0]}
    return [identifier]


def _map_names(
    rows: HeaderRows, columns: tuple[str, ...], _context: Context, findings: FindingCollector
) -> list[dict[str, Any]]:
    """All names of the instances: a person may have several."""
    names: list[dict[str, Any]] = []
    for text in rows.distinct(columns[0]):
        names += [name for name in convert_person_name(text) if name not in names]
    if sum("extension" not in name for name in names) > 1:
        findings.add("values-conflict", columns[0], message=f"{columns[0]} has several values: all are kept")
    return names


def _map_gender(rows: HeaderRows, columns: tuple[str, ...], context: Context, findings: FindingCollector) -> str | None:
    """PatientSex; if headers have none, the sex of the subjects sheet."""
    sheet_gender = SHEET_GENDERS.get(context.subject_sheet.get("sex", "").lower())
    sex = rows.common_value(columns[0], findings)
    gender = _GENDERS.get(sex)
    if sex is not None and gender is None:
        findings.add("value-omitted", columns[0], sex, message="PatientSex is not one of M, F, O")
        return None
    if _header_takes_precedence(rows, columns[:1], gender, sheet_gender, "gender", findings):
        return gender
    return sheet_gender


def _map_birth_date(
    rows: HeaderRows, columns: tuple[str, ...], context: Context, findings: FindingCollector
) -> str | None:
    """PatientBirthDate; if headers have none, a complete date of the subjects sheet."""
    sheet_date = _parse_sheet_date(context.subject_sheet.get("date of birth", ""))
    header_date = rows.common_value(columns[0], findings)
    birth_date = header_date.isoformat() if header_date else None
    if _header_takes_precedence(rows, columns[:1], birth_date, sheet_date, "birthDate", findings):
        return birth_date
    return sheet_date


def _header_takes_precedence(
    rows: HeaderRows,
    columns: tuple[str, ...],
    header_value: Any,
    sheet_value: Any,
    element: str,
    findings: FindingCollector,
) -> bool:
    """Whether the value of the header is used, and not that of the sheet; adds a finding unless both are equal.

    If the headers disagree, they have no common value; that of the sheet is not used either.
    """
    if sheet_value is None or header_value == sheet_value:
        return True
    if not any(rows.distinct(column) for column in columns):
        findings.add("value-from-sheet", columns[0], message=f"{element}: from the subjects sheet")
        return False
    if header_value is not None:
        findings.add("sheet-conflict", columns[0], message=f"{element}: the subjects sheet has another value")
    return True


def _parse_sheet_date(text: str) -> str | None:
    match = _SHEET_DATE.fullmatch(text.strip())
    try:
        return datetime.date(*map(int, match.groups())).isoformat() if match else None
    except ValueError:
        return None


# -- animals ----------------------------------------------------------------------------------------------------------


def _map_animal(
    rows: HeaderRows, columns: tuple[str, ...], context: Context, findings: FindingCollector
) -> list[dict[str, Any]]:
    """The extension patient-animal, if the species is known and not human."""
    code, scheme, meaning, text = (strip_text(rows.common_value(column, findings)) for column in columns[:4])
    header_species = _make_species(code, scheme, meaning or text)
    sheet_species = _make_species(None, None, strip_text(context.subject_sheet.get("species")))
    if sheet_species and is_human(sheet_species) and header_species is None:
        sheet_species = None  # no element has this value, so it is not worth a finding
    is_same = header_species and sheet_species and _can_be_same(header_species, sheet_species)
    compared = header_species if is_same else sheet_species
    species = sheet_species
    if _header_takes_precedence(rows, columns[:4], header_species, compared, "species", findings):
        species = header_species
    if species is None or is_human(species):
        return []
    _code, meaning, text = (strip_text(rows.common_value(column, findings)) for column in columns[4:7])
    breed = make_concept(None, text or meaning)
    coding = look_up_gender_status(rows.common_value(columns[7], findings) or "")
    status = make_concept(coding.as_fhir()) if coding else None
    parts = [("species", species), ("breed", breed), ("genderStatus", status)]
    return [
        {
            "url": _ANIMAL,
            "extension": [{"url": url, "valueCodeableConcept": value} for url, value in parts if value],
        }
    ]


def _can_be_same(concept: Concept, other: Concept) -> bool:
    """Whether two concepts can have the same meaning: equal codes, or a code and a text, which cannot be compared."""
    if is_human(concept) and is_human(other):
        return True
    codes = [item["coding"][0]["code"] for item in (concept, other) if "coding" in item]
    texts = {item["text"].casefold() for item in (concept, other) if "text" in item}
    return len(texts) == 1 if not codes else len(codes) == 1 or codes[0] == codes[1]


def _make_species(code: str | None, scheme: str | None, text: str | None) -> Concept | None:
    if code and scheme and (coding := terminology.convert_coded_entry(code, scheme, text)):
        return make_concept(coding.as_fhir())
    species = look_up_species(text) if text else None
    return make_concept(species.as_fhir()) if species else make_concept(None, text)


# -- by setting -------------------------------------------------------------------------------------------------------


def _map_telecom(
    rows: HeaderRows, columns: tuple[str, ...], context: Context, _findings: FindingCollector
) -> list[dict[str, str]]:
    if not context.contact_details:
        return []
    numbers = {number.strip() for value in rows.distinct(columns[0]) for number in value.split("\\")}
    return [{"system": "phone", "value": number} for number in sorted(numbers - {""})]


def _map_address(
    rows: HeaderRows, columns: tuple[str, ...], context: Context, findings: FindingCollector
) -> list[dict[str, str]]:
    text = strip_text(rows.common_value(columns[0], findings)) if context.contact_details else None
    return [{"text": text}] if text else []


RULES: dict[str, Rule] = COMMON_RULES | {
    "names": _map_names,
    "gender": _map_gender,
    "birth_date": _map_birth_date,
    "animal": _map_animal,
    "telecom": _map_telecom,
    "address": _map_address,
}
