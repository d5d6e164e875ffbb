"""The ImagingStudy of a study (R4 and R5).

The tags and the rule of each element are in `tables/mapping.csv`. This module has the rules that only an ImagingStudy
has, and composes studies, series and instances. Series and instances are counted, not read from header values.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from dicom_etl.fhir import terminology
from dicom_etl.fhir.context import Context
from dicom_etl.fhir.mapping import Concept, Rule, fill_elements, list_columns, list_element_columns, make_concept
from dicom_etl.fhir.rows import FindingCollector, HeaderRows
from dicom_etl.fhir.rules import COMMON_RULES, UNSIGNED_INT_MAX, strip_text
from dicom_etl.findings import Finding
from dicom_etl.identity.matching import authority_uri

MAPPING_VERSION = 3  # counts up when rules change what is mapped; the tables have fingerprints of their own

COLUMNS: tuple[str, ...] = tuple(dict.fromkeys(["subject", "sample", *list_columns("study", "series", "instance")]))

_FHIR_ID = re.compile(r"[A-Za-z0-9.-]{1,64}")
_ACCESSION = {
    "coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "ACSN", "display": "Accession ID"}]
}
_TITLE_COLUMNS = list_element_columns("instance", "title")
# a "laterality" of the samples sheet -> a code of PS3.16 CID 244
SHEET_LATERALITIES = {
    **dict.fromkeys(("l", "left"), "L"),
    **dict.fromkeys(("r", "right"), "R"),
    **dict.fromkeys(("b", "both", "bilateral", "left and right", "right and left"), "B"),
}
# findings of values that do not come from a header -> what the note of the study says about them
_NOTES = {"value-from-sheet": "from the samples sheet", "value-corrected": "as corrected by the data's stewards"}


# -- rules of a study -------------------------------------------------------------------------------------------------


def _map_study_uid(
    _rows: HeaderRows, _columns: tuple[str, ...], _context: Context, findings: FindingCollector
) -> list[dict[str, str]]:
    return [{"use": "official", "system": "urn:dicom:uid", "value": f"urn:oid:{findings.study_uid}"}]


def _map_accession(
    rows: HeaderRows, columns: tuple[str, ...], _context: Context, findings: FindingCollector
) -> list[dict[str, Any]]:
    number, issuer, universal_id, id_type = (strip_text(rows.common_value(column, findings)) for column in columns)
    if not number:
        return []
    identifier: dict[str, Any] = {"use": "usual", "type": _ACCESSION}
    if system := authority_uri(universal_id, id_type):
        identifier["system"] = system
    identifier["value"] = number
    if issuer:
        identifier["assigner"] = {"display": issuer}
    return [identifier]


def _map_accession_order(
    rows: HeaderRows, columns: tuple[str, ...], context: Context, findings: FindingCollector
) -> list[dict[str, Any]]:
    """R5: the accession number identifies the order."""
    identifiers = _map_accession(rows, columns, context, findings)
    return [{"type": "ServiceRequest", "identifier": identifier} for identifier in identifiers]


def _map_sds(
    _rows: HeaderRows, _columns: tuple[str, ...], context: Context, findings: FindingCollector
) -> list[dict[str, str]]:
    study = f"urn:uid:{findings.subject or '-'}-{findings.study_uid}"
    return [
        {"use": "temp", "system": context.dataset_system, "value": f"urn:uid:{context.dataset}"},
        {"use": "temp", "system": context.study_system, "value": study},
    ]


# -- rules of a series ------------------------------------------------------------------------------------------------


def _map_modality(
    rows: HeaderRows, columns: tuple[str, ...], _context: Context, findings: FindingCollector
) -> Concept | None:
    counts = Counter(value for value in rows.values(columns[0]) if strip_text(value))
    if len(counts) > 1:
        message = f"Modality has {len(counts)} different values in a series: the most frequent is used"
        findings.add("values-conflict", columns[0], message=message)
    code, _ = min(counts.items(), key=lambda item: (-item[1], item[0]))
    coding = terminology.look_up_modality(code)
    # a code that is not in CID 33 is not a code of the DICOM ontology
    return make_concept(coding.as_fhir() if coding else {"code": " ".join(code.split())})


def _map_body_site(
    rows: HeaderRows, columns: tuple[str, ...], context: Context, findings: FindingCollector
) -> Concept | None:
    """The coded region, else BodyPartExamined by PS3.16 Annex L, else the samples sheet; text if there is no code."""
    code, designator, meaning, body_part = (strip_text(rows.common_value(column, findings)) for column in columns)
    if code and designator and (coding := terminology.convert_coded_entry(code, designator, meaning)):
        return make_concept(coding.as_fhir())
    if body_part:
        return _map_body_part(body_part, context, findings)
    if meaning:
        return make_concept(None, meaning)
    if any(rows.distinct(column) for column in columns):  # the instances disagree
        return None
    location = _read_sample_sheets(rows, "sample anatomical location", context)
    if not location:
        return None
    findings.add("value-from-sheet", columns[-1], location, message="bodySite: from the samples sheet")
    return _map_body_part(location, context, findings)


def _map_body_part(text: str, context: Context, findings: FindingCollector) -> Concept | None:
    if site := terminology.look_up_body_site(text, context.chest):
        return make_concept(site.as_fhir())
    findings.add("body-part-unmapped", "BodyPartExamined", text)
    return make_concept(None, text)


def _map_laterality(
    rows: HeaderRows, columns: tuple[str, ...], context: Context, findings: FindingCollector
) -> Concept | None:
    """R, L and B of CID 244; omitted if there are several, and for U (unpaired, PS3.3 C.8.11.2)."""
    values = {value for column in columns for value in rows.distinct(column)}
    if len(values) > 1:
        findings.add("laterality-conflict", columns[0], ", ".join(sorted(values)))
        return None
    code = next(iter(values), None)
    if not code:
        cell = _read_sample_sheets(rows, "laterality", context)
        code = SHEET_LATERALITIES.get(cell.lower()) if cell else None
        if code:
            findings.add("value-from-sheet", "Laterality", code, message="laterality: from the samples sheet")
    coding = terminology.look_up_laterality(code) if code else None
    if code and code != "U" and not coding:
        findings.add("value-omitted", columns[0], code, message="laterality is not one of R, L, B")
    return make_concept(coding.as_fhir()) if coding else None


def _read_sample_sheets(rows: HeaderRows, field: str, context: Context) -> str | None:
    """The cell of the samples sheet that all samples of the rows have in common; None if there is none."""
    samples = set(rows.values("sample"))
    cells = {context.sample_sheets.get(sample or "", {}).get(field) for sample in samples}
    return cells.pop() if len(cells) == 1 else None


RULES: dict[str, Rule] = COMMON_RULES | {
    "study_uid": _map_study_uid,
    "accession": _map_accession,
    "accession_order": _map_accession_order,
    "sds": _map_sds,
    "modality": _map_modality,
    "body_site": _map_body_site,
    "laterality": _map_laterality,
}


# -- the resource -----------------------------------------------------------------------------------------------------


def make_imaging_study(
    resource_id: str, patient_id: str, rows: HeaderRows, context: Context, findings: FindingCollector
) -> dict[str, Any] | None:
    """Make the ImagingStudy of one study; None if FHIR cannot represent any of its instances.

    Args:
        resource_id: its id.
        patient_id: the id of its Patient.
        rows: of one StudyInstanceUID, without duplicates.
        context: settings and sheets.
        findings: the collector of the study.
    """
    instances = _select_instances(rows, findings)
    series = [
        _make_series(uid, part, context, findings) for uid, part in instances.group_by("SeriesInstanceUID").items()
    ]
    if not series:
        return None
    series.sort(key=lambda item: (item.get("number", UNSIGNED_INT_MAX), item["uid"]))
    computed = {
        "id": resource_id,
        "status": "available",
        "modality": _list_modalities(series),
        "subject": {"reference": f"Patient/{patient_id}"},
        "endpoint": [{"reference": f"Endpoint/{context.endpoint_id}"}],
        "numberOfSeries": len(series),
        "numberOfInstances": sum(item["numberOfInstances"] for item in series),
        "note": _make_notes(findings.collected, findings.study_uid),
        "series": series,
    }
    return {"resourceType": "ImagingStudy"} | fill_elements("study", RULES, instances, context, findings, computed)


def _list_modalities(series: Iterable[dict[str, Any]]) -> list[Any]:
    """The distinct modalities of the series, sorted by code and system."""
    by_code = {}
    for item in series:
        modality = item["modality"]  # a Coding (R4) or CodeableConcept (R5)
        coding = modality["coding"][0] if "coding" in modality else modality
        by_code[coding["code"], coding.get("system", "")] = modality
    return [by_code[code] for code in sorted(by_code)]


def _make_notes(findings: Iterable[Finding], study_uid: str | None) -> list[dict[str, str]]:
    """A note for each element whose value does not come from a header; findings begin with the name of the element."""
    elements = {
        ((finding.message or "").partition(":")[0], _NOTES[finding.code])
        for finding in findings
        if finding.code in _NOTES and finding.study_uid == study_uid
    }
    return [{"text": f"{element} {origin}"} for element, origin in sorted(elements)]


def _select_instances(rows: HeaderRows, findings: FindingCollector) -> HeaderRows:
    """The rows that have everything that FHIR requires of an instance; the others are counted in findings."""
    columns = rows.columns
    with_modality = {columns["SeriesInstanceUID"][row] for row in rows.rows if strip_text(columns["Modality"][row])}
    excluded: Counter[tuple[str | None, str]] = Counter()
    selected = []
    for row in rows.rows:
        series_uid = columns["SeriesInstanceUID"][row]
        missing = [
            name for name in ("SeriesInstanceUID", "SOPInstanceUID") if not _FHIR_ID.fullmatch(columns[name][row] or "")
        ]
        missing += ["SOPClassUID"] if not columns["SOPClassUID"][row] else []
        # a series has one modality: a value in some of its instances is valid for all
        missing += ["Modality"] if series_uid not in with_modality else []
        if missing:
            excluded[series_uid, " and ".join(missing)] += 1
        else:
            selected.append(row)
    for (series_uid, names), count in sorted(excluded.items(), key=str):
        findings.within(series_uid=series_uid or "").add(
            "instance-excluded", count=count, message=f"{names} absent, empty or not valid in FHIR"
        )
    return rows.select(selected)


def _make_series(uid: str, rows: HeaderRows, context: Context, findings: FindingCollector) -> dict[str, Any]:
    series_findings = findings.within(series_uid=uid)
    if len(samples := rows.distinct("sample")) > 1:
        series_findings.add("series-two-samples", message=f"in the folders of {', '.join(samples)}")
    computed = {"uid": uid, "numberOfInstances": len(rows), "instance": _make_instances(rows, series_findings)}
    return fill_elements("series", RULES, rows, context, series_findings, computed)


def _make_instances(rows: HeaderRows, findings: FindingCollector) -> list[dict[str, Any]]:
    columns = rows.columns
    out_of_range: Counter[int] = Counter()
    sop_classes: dict[str, dict[str, str]] = {}
    instances = []
    for row in rows.rows:
        class_uid = columns["SOPClassUID"][row]
        if class_uid not in sop_classes:
            sop_classes[class_uid] = terminology.convert_sop_class(class_uid).as_fhir()
        instance: dict[str, Any] = {"uid": columns["SOPInstanceUID"][row], "sopClass": sop_classes[class_uid]}
        number = columns["InstanceNumber"][row]
        if number is not None and 0 <= number <= UNSIGNED_INT_MAX:
            instance["number"] = number
        elif number is not None:
            out_of_range[number] += 1
        # the title of a document, or the type of an image
        if title := next((text for name in _TITLE_COLUMNS if (text := strip_text(columns[name][row]))), None):
            instance["title"] = title
        instances.append(instance)
    for number, count in sorted(out_of_range.items()):
        message = "InstanceNumber is not an unsignedInt of FHIR"
        findings.add("value-omitted", "InstanceNumber", number, count=count, message=message)
    instances.sort(key=lambda instance: (instance.get("number", UNSIGNED_INT_MAX), instance["uid"]))
    return instances
