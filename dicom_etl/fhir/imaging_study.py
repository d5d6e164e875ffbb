"""Header rows of a study -> ImagingStudy (R4 and R5).

What each element is made from, and by which rule, stands in `tables/mapping.csv`. Here are the rules that only an
ImagingStudy has, and how studies, series and instances are put together. Counts are of what was seen.
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
from dicom_etl.fhir.rules import COMMON, UNSIGNED_INT_MAX, strip_text
from dicom_etl.findings import Finding
from dicom_etl.identity.matching import authority_uri

MAPPING_VERSION = 3  # counts up when rules change what is made; the tables have marks of their own

COLUMNS: tuple[str, ...] = tuple(dict.fromkeys(["subject", "sample", *list_columns("study", "series", "instance")]))

_FHIR_ID = re.compile(r"[A-Za-z0-9.-]{1,64}")
_ACCESSION = {
    "coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "ACSN", "display": "Accession ID"}]
}
_TITLES = list_element_columns("instance", "title")
SHEET_SIDES = {
    **dict.fromkeys(("l", "left"), "L"),
    **dict.fromkeys(("r", "right"), "R"),
    **dict.fromkeys(("b", "both", "bilateral", "left and right", "right and left"), "B"),
}
# what a note tells of a value that is not the header's own
_NOTED = {
    "value-from-sheet": "from the samples sheet",
    "value-corrected": "as corrected by the data's stewards",
}


# -- rules of a study -------------------------------------------------------------------------------------------------


def _study_uid(
    _rows: HeaderRows, _columns: tuple[str, ...], _context: Context, findings: FindingCollector
) -> list[dict[str, str]]:
    return [{"use": "official", "system": "urn:dicom:uid", "value": f"urn:oid:{findings.study_uid}"}]


def _accession(
    rows: HeaderRows, columns: tuple[str, ...], _context: Context, findings: FindingCollector
) -> list[dict[str, Any]]:
    number, issuer, universal, kind = (strip_text(rows.common_value(column, findings)) for column in columns)
    if not number:
        return []
    identifier: dict[str, Any] = {"use": "usual", "type": _ACCESSION}
    if system := authority_uri(universal, kind):
        identifier["system"] = system
    identifier["value"] = number
    if issuer:
        identifier["assigner"] = {"display": issuer}
    return [identifier]


def _accession_order(
    rows: HeaderRows, columns: tuple[str, ...], context: Context, findings: FindingCollector
) -> list[dict[str, Any]]:
    """R5: the accession number is that of the order."""
    found = _accession(rows, columns, context, findings)
    return [{"type": "ServiceRequest", "identifier": identifier} for identifier in found]


def _sds(
    _rows: HeaderRows, _columns: tuple[str, ...], context: Context, findings: FindingCollector
) -> list[dict[str, str]]:
    study = f"urn:uid:{findings.subject or '-'}-{findings.study_uid}"
    return [
        {"use": "temp", "system": context.dataset_system, "value": f"urn:uid:{context.dataset}"},
        {"use": "temp", "system": context.study_system, "value": study},
    ]


# -- rules of a series ------------------------------------------------------------------------------------------------


def _modality(
    rows: HeaderRows, columns: tuple[str, ...], _context: Context, findings: FindingCollector
) -> Concept | None:
    counts = Counter(value for value in rows.values(columns[0]) if strip_text(value))
    if len(counts) > 1:
        findings.add("values-conflict", columns[0], message="Modality differs in a series: the most frequent is taken")
    code, _ = min(counts.items(), key=lambda item: (-item[1], item[0]))
    known = terminology.look_up_modality(code)
    # a code that CID 33 does not hold is no code of the DICOM ontology
    return make_concept(known.as_fhir() if known else {"code": " ".join(code.split())})


def _body_site(
    rows: HeaderRows, columns: tuple[str, ...], context: Context, findings: FindingCollector
) -> Concept | None:
    """The coded region, else BodyPartExamined by PS3.16 Annex L, else the samples sheet; text alone as it is."""
    code, designator, meaning, part = (strip_text(rows.common_value(column, findings)) for column in columns)
    if code and designator and (coding := terminology.convert_coded_entry(code, designator, meaning)):
        return make_concept(coding.as_fhir())
    if part or meaning:
        return _region(part, context, findings) if part else make_concept(None, meaning)
    if any(rows.distinct(column) for column in columns):  # they disagree
        return None
    said = _in_sample_sheets(rows, "sample anatomical location", context)
    if said:
        findings.add("value-from-sheet", columns[-1], said, message="bodySite: the samples sheet says it")
    return _region(said, context, findings) if said else None


def _region(text: str, context: Context, findings: FindingCollector) -> Concept | None:
    if site := terminology.look_up_body_site(text, context.chest):
        return make_concept(site.as_fhir())
    findings.add("body-part-unmapped", "BodyPartExamined", text)
    return make_concept(None, text)


def _laterality(
    rows: HeaderRows, columns: tuple[str, ...], context: Context, findings: FindingCollector
) -> Concept | None:
    """R, L and B of CID 244. ImageLaterality U means unpaired (PS3.3 C.8.11.2): nothing. Several: nothing."""
    sides = {side for column in columns for side in rows.distinct(column)}
    if len(sides) > 1:
        findings.add("laterality-conflict", columns[0], ", ".join(sorted(sides)))
        return None
    side = next(iter(sides), None) or _side_in_sheets(rows, context, findings)
    coding = terminology.look_up_laterality(side) if side else None
    if side and side != "U" and not coding:
        findings.add("value-omitted", columns[0], side, message="laterality is none of R, L, B")
    return make_concept(coding.as_fhir()) if coding else None


def _side_in_sheets(rows: HeaderRows, context: Context, findings: FindingCollector) -> str | None:
    said = _in_sample_sheets(rows, "laterality", context)
    side = SHEET_SIDES.get(said.lower()) if said else None
    if side:
        findings.add("value-from-sheet", "Laterality", side, message="laterality: the samples sheet says it")
    return side


def _in_sample_sheets(rows: HeaderRows, field: str, context: Context) -> str | None:
    """What the samples sheet says of all samples of the rows; None where it says nothing or several things."""
    samples = set(rows.values("sample"))
    said = {context.sample_sheets.get(sample or "", {}).get(field) for sample in samples}
    return said.pop() if len(said) == 1 else None


_RULES: dict[str, Rule] = COMMON | {
    "study_uid": _study_uid,
    "accession": _accession,
    "accession_order": _accession_order,
    "sds": _sds,
    "modality": _modality,
    "body_site": _body_site,
    "laterality": _laterality,
}


# -- the resource -----------------------------------------------------------------------------------------------------


def make_imaging_study(
    identifier: str, patient_id: str, rows: HeaderRows, context: Context, findings: FindingCollector
) -> dict[str, Any] | None:
    """The ImagingStudy of the rows of one study; None where no instance can stand in it.

    Args:
        identifier: the resource's id.
        patient_id: the id of its Patient.
        rows: of one StudyInstanceUID, duplicates left out.
        context: settings and sheets.
        findings: names dataset, unit, subject and study; takes the findings.
    """
    usable = _usable(rows, findings)
    series = [_series(uid, group, context, findings) for uid, group in usable.group_by("SeriesInstanceUID").items()]
    if not series:
        return None
    series.sort(key=lambda s: (s.get("number", UNSIGNED_INT_MAX), s["uid"]))
    given = {
        "id": identifier,
        "status": "available",
        "modality": _modalities(series),
        "subject": {"reference": f"Patient/{patient_id}"},
        "endpoint": [{"reference": f"Endpoint/{context.endpoint_id}"}],
        "numberOfSeries": len(series),
        "numberOfInstances": sum(s["numberOfInstances"] for s in series),
        "note": _notes(findings.collected, findings.study_uid),
        "series": series,
    }
    return {"resourceType": "ImagingStudy"} | fill_elements("study", _RULES, usable, context, findings, given)


def _modalities(series: Iterable[dict[str, Any]]) -> list[Any]:
    """The different modalities of the series, by code; they have their form already."""
    by_code = {_code_of(one["modality"]): one["modality"] for one in series}
    return [by_code[code] for code in sorted(by_code)]


def _code_of(modality: dict[str, Any]) -> tuple[str, str]:
    coding = modality["coding"][0] if "coding" in modality else modality
    return coding["code"], coding.get("system", "")


def _notes(found: Iterable[Finding], study_uid: str | None) -> list[dict[str, str]]:
    """Which elements say something that no header says."""
    said = {
        ((finding.message or "").partition(":")[0], _NOTED[finding.code])
        for finding in found
        if finding.code in _NOTED and finding.study_uid == study_uid
    }
    return [{"text": f"{element} {origin}"} for element, origin in sorted(said)]


def _usable(rows: HeaderRows, findings: FindingCollector) -> HeaderRows:
    """The rows that can be instances; those that lack what FHIR requires are counted in a finding."""
    columns = rows.columns
    with_modality = {columns["SeriesInstanceUID"][row] for row in rows.rows if strip_text(columns["Modality"][row])}
    reasons: Counter[tuple[str | None, str]] = Counter()
    keep = []
    for row in rows.rows:
        lacks = [
            name for name in ("SeriesInstanceUID", "SOPInstanceUID") if not _FHIR_ID.fullmatch(columns[name][row] or "")
        ]
        lacks += ["SOPClassUID"] if not columns["SOPClassUID"][row] else []
        # a series has one modality: what some of its instances say is true of all
        lacks += ["Modality"] if columns["SeriesInstanceUID"][row] not in with_modality else []
        if lacks:
            reasons[columns["SeriesInstanceUID"][row], " and ".join(lacks)] += 1
        else:
            keep.append(row)
    for (series, lacks_what), count in sorted(reasons.items(), key=str):
        findings.within(series_uid=series or "").add(
            "instance-excluded", count=count, message=f"{lacks_what} absent, empty or not valid in FHIR"
        )
    return rows.select(keep)


def _series(uid: str, rows: HeaderRows, context: Context, findings: FindingCollector) -> dict[str, Any]:
    here = findings.within(series_uid=uid)
    if len(samples := rows.distinct("sample")) > 1:
        here.add("series-two-samples", message=f"in the folders of {', '.join(samples)}")
    given = {"uid": uid, "numberOfInstances": len(rows), "instance": _instances(rows, here)}
    return fill_elements("series", _RULES, rows, context, here, given)


def _instances(rows: HeaderRows, findings: FindingCollector) -> list[dict[str, Any]]:
    columns = rows.columns
    out_of_range: Counter[int] = Counter()
    classes: dict[str, dict[str, str]] = {}
    instances = []
    for row in rows.rows:
        class_uid = columns["SOPClassUID"][row]
        if class_uid not in classes:
            classes[class_uid] = terminology.convert_sop_class(class_uid).as_fhir()
        instance: dict[str, Any] = {"uid": columns["SOPInstanceUID"][row], "sopClass": classes[class_uid]}
        number = columns["InstanceNumber"][row]
        if number is not None and 0 <= number <= UNSIGNED_INT_MAX:
            instance["number"] = number
        elif number is not None:
            out_of_range[number] += 1
        if title := _title(columns, row):
            instance["title"] = title
        instances.append(instance)
    for number, count in sorted(out_of_range.items()):
        findings.add(
            "value-omitted",
            "InstanceNumber",
            number,
            count=count,
            message="InstanceNumber is no unsignedInt of FHIR",
        )
    instances.sort(key=lambda i: (i.get("number", UNSIGNED_INT_MAX), i["uid"]))
    return instances


def _title(columns: dict[str, list[Any]], row: int) -> str | None:
    """What a person would call the object: the title of a document, the type of an image."""
    return next((text for name in _TITLES if (text := strip_text(columns[name][row]))), None)
