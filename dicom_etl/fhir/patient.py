"""Header rows of a person -> Patient (R4).

A Patient carries the identifier of its own scope and what the headers agree on; no SDS identifiers, so that two
datasets that share a person build the same Patient. PHI beyond name, sex and birth date stays out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dicom_etl.fhir.context import Context
from dicom_etl.fhir.rows import Group, Place
from dicom_etl.identity.persons import Person, is_placeholder

COLUMNS = ("PatientName", "PatientSex", "PatientBirthDate", "IssuerOfPatientID")

_GENDER = {"M": "male", "F": "female", "O": "other"}  # PS3.3 C.7.1.1
_SHEET_GENDER = {"m": "male", "male": "male", "f": "female", "female": "female", "other": "other"}
# PS3.5 6.2.1.1: component groups, as FHIR's iso21090-EN-representation names them
_REPRESENTATION = ("ABC", "IDE", "SYL")
_REPRESENTATION_URL = "http://hl7.org/fhir/StructureDefinition/iso21090-EN-representation"
_MEDICAL_RECORD = {
    "coding": [
        {
            "system": "http://terminology.hl7.org/CodeSystem/v2-0203",
            "code": "MR",
            "display": "Medical record number",
        }
    ]
}


def patient(identifier: str, person: Person, rows: Group, context: Context, place: Place) -> dict[str, Any]:
    """The Patient `identifier` of a person from the rows of all its studies in a unit."""
    resource: dict[str, Any] = {
        "resourceType": "Patient",
        "id": identifier,
        "identifier": [_identifier(person, rows)],
        "active": True,
    }
    if names := _names(rows.agreed("PatientName", place)):
        resource["name"] = names
    if gender := _gender(rows, context.subject_sheet or {}, place):
        resource["gender"] = gender
    if born := rows.agreed("PatientBirthDate", place):
        resource["birthDate"] = born.isoformat()
    return resource


def _identifier(person: Person, rows: Group) -> dict[str, Any]:
    identifier: dict[str, Any] = {"use": "usual", "system": person.system, "value": person.value}
    if person.rule in ("authority", "patient-id"):
        identifier["type"] = _MEDICAL_RECORD
        issuers = rows.distinct("IssuerOfPatientID")
        # free text: two hospitals' "HIS" are two, so it is no system
        if person.rule == "patient-id" and len(issuers) == 1:
            identifier["assigner"] = {"display": issuers[0]}
    return identifier


def _names(text: str | None) -> list[dict[str, Any]]:
    """PN (PS3.5 6.2.1): up to three component groups, each family^given^middle^prefix^suffix."""
    groups = (text or "").split("\\")[0].split("=")[:3]
    names = []
    for group, representation in zip(groups, _REPRESENTATION, strict=False):
        if name := _name(group):
            if representation != "ABC":
                name["extension"] = [{"url": _REPRESENTATION_URL, "valueCode": representation}]
            names.append(name)
    return names


def _name(group: str) -> dict[str, Any]:
    parts = [part.strip() for part in group.split("^")] + [""] * 5
    family, given, middle, prefix, suffix = parts[:5]
    if is_placeholder(" ".join(parts)):
        return {}
    name: dict[str, Any] = {"use": "usual", "family": family}
    name["given"] = [word for part in (given, middle) for word in part.split()]
    name["prefix"], name["suffix"] = prefix.split(), suffix.split()
    return {key: value for key, value in name.items() if value}


def _gender(rows: Group, sheet: Mapping[str, str], place: Place) -> str | None:
    """PatientSex; where the header has none, what the subjects sheet says."""
    sex = rows.agreed("PatientSex", place)
    said = _SHEET_GENDER.get(sheet.get("sex", "").lower())
    if sex is None:
        if said and not rows.distinct("PatientSex"):
            place.add("sex-from-sheet", "PatientSex", said)
            return said
        return None
    gender = _GENDER.get(sex)
    if gender is None:
        place.add("value-left-out", "PatientSex", sex, message="PatientSex is none of M, F, O")
    elif said and said != gender:
        place.add("sex-disagrees", "PatientSex", sex, message=f"the subjects sheet says {said}")
    return gender
