"""Header rows of a study -> ImagingStudy (R4).

The mapping is three tables, study, series and instance: element and the function that makes it from rows. A function
returns None where there is nothing to say; the element is then left out. Values that instances should share and do
not are left out with a finding; counts are of what was seen.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from dicom_etl.fhir import terminology
from dicom_etl.fhir.context import Context
from dicom_etl.fhir.datetimes import Moment, instant, moment, moment_of
from dicom_etl.fhir.rows import Group, Place
from dicom_etl.identity.persons import universal_system

MAPPING_VERSION = 2

_FHIR_ID = re.compile(r"[A-Za-z0-9.-]{1,64}")
_UNSIGNED_INT_MAX = 2_147_483_647  # R4 2.24.0.1
_ACCESSION = {
    "coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "ACSN", "display": "Accession ID"}]
}

Rule = Callable[[Group, Context, Place], Any]


class Element(NamedTuple):
    """A line of the mapping: the element, how it is made, and the columns that it is made from."""

    name: str
    rule: Rule
    columns: tuple[str, ...]


# -- rules ------------------------------------------------------------------------------------------------------------


def _text(column: str) -> Rule:
    def rule(rows: Group, _context: Context, place: Place) -> Any:
        return _shown(rows.agreed(column, place))

    return rule


def _shown(text: str | None) -> str | None:
    """Text without blanks around it (no-break spaces among them); None where nothing is left, as FHIR asks."""
    return (text or "").strip() or None


Source = tuple[str, ...]  # the column of a DT, or those of a date and a time


def _started(*sources: Source) -> Rule:
    """Date, time and offset of one and the same instance; where instances disagree, the earliest.

    The first source is the element's own; the others stand in for it where it has no value, and there original images
    alone count: a date of a derived object is that of its making (PS3.3 C.7.6.1.1.2).
    """

    def rule(rows: Group, context: Context, place: Place) -> str | None:
        value = _earliest(sources[0], rows, context, place)
        if value:
            return value
        originals = rows.where(_is_original(rows))
        for source in sources[1:]:
            if value := _earliest(source, originals, context, place):
                words = " and ".join(source)
                message = f"{sources[0][0]} has no value; {words} of the original images instead"
                place.add("date-stands-in", sources[0][0], message=message)
                return value
        return None

    return rule


def _is_original(rows: Group) -> Callable[[int], bool]:
    types = rows.columns["ImageType"]
    return lambda row: (types[row] or "").split("\\")[0].strip() == "ORIGINAL"


def _moment(parts: tuple[Any, ...], context: Context) -> Moment:
    """Of a DT and an offset, or of a date, a time and an offset."""
    if len(parts) == 2:
        return moment_of(parts[0], parts[1], context.zone)
    return moment(parts[0], parts[1], parts[2], context.zone)


def _earliest(source: Source, rows: Group, context: Context, place: Place) -> str | None:
    """The earliest moment that a source has in the rows."""
    found = [c for c in rows.combination(*source, "TimezoneOffsetFromUTC") if c[0] is not None]
    made = [(_moment(parts, context), parts) for parts in found]
    for unusable, parts in made:
        if unusable.value is None:
            place.add("value-left-out", source[0], parts[0])
    usable = [(one.value, one.code, parts) for one, parts in made if one.value]
    if not usable:
        return None
    if len(usable) > 1:
        words = " and ".join(source)
        place.add("values-disagree", source[0], message=f"{words}: the earliest of {len(usable)} is taken")
    value, code, parts = min(usable, key=lambda one: (instant(one[0]), one[0]))
    if code:
        place.add(code, source[-1], f"{parts[-2]} {parts[-1] or ''}".strip())
    return value


def _unsigned(column: str) -> Rule:
    def rule(rows: Group, _context: Context, place: Place) -> Any:
        number = rows.agreed(column, place)
        if number is not None and not 0 <= number <= _UNSIGNED_INT_MAX:
            place.add("value-left-out", column, number, message=f"{column} is no unsignedInt of FHIR")
            return None
        return number

    return rule


def _coded(value: str, scheme: str, meaning: str, text: str | None = None) -> Rule:
    """A coded entry, first item of its sequence, as a list of one CodeableConcept."""

    def rule(rows: Group, _context: Context, place: Place) -> list[dict[str, Any]] | None:
        code, designator, words = (rows.agreed(column, place) for column in (value, scheme, meaning))
        coding = terminology.coded(code, designator, words) if code and designator else None
        said = (rows.agreed(text, place) if text else None) or words
        concept = {"coding": [coding.as_fhir()]} if coding else {}
        if said:
            concept["text"] = said
        return [concept] if concept else None

    return rule


def _identifiers(rows: Group, context: Context, place: Place) -> list[dict[str, Any]]:
    uid = place.study_uid
    identifiers: list[dict[str, Any]] = [
        {"use": "official", "system": "urn:dicom:uid", "value": f"urn:oid:{uid}"},
    ]
    if accession := rows.agreed("AccessionNumber", place):
        identifiers.append(_accession(accession, rows, place))
    subject = place.subject or "-"
    identifiers += [
        {"use": "temp", "system": context.dataset_system, "value": f"urn:uid:{context.dataset}"},
        {"use": "temp", "system": context.study_system, "value": f"urn:uid:{subject}-{uid}"},
    ]
    return identifiers


def _accession(accession: str, rows: Group, place: Place) -> dict[str, Any]:
    identifier: dict[str, Any] = {"use": "usual", "type": _ACCESSION, "value": accession}
    universal = rows.agreed("IssuerOfAccessionNumberUniversalID", place)
    kind = rows.agreed("IssuerOfAccessionNumberUniversalIDType", place)
    if system := universal_system(universal, kind):
        identifier["system"] = system
    if issuer := rows.agreed("IssuerOfAccessionNumber", place):
        identifier["assigner"] = {"display": issuer}
    return identifier


def _modality_coding(code: str) -> dict[str, Any]:
    known = terminology.modality(code)
    # a code that CID 33 does not hold is no code of the DICOM ontology
    return known.as_fhir() if known else {"code": " ".join(code.split())}


def _series_modality(rows: Group, _context: Context, place: Place) -> dict[str, Any]:
    counts = Counter(value for value in rows.values("Modality") if _shown(value))
    if len(counts) > 1:
        place.add("values-disagree", "Modality", message="Modality differs in a series: the most frequent is taken")
    code, _ = min(counts.items(), key=lambda item: (-item[1], item[0]))
    return _modality_coding(code)


def _body_site(rows: Group, _context: Context, place: Place) -> dict[str, Any] | None:
    """AnatomicRegionSequence, else BodyPartExamined by PS3.16 Annex L, else its text alone."""
    code, designator, meaning = (
        rows.agreed(f"AnatomicRegion{part}", place) for part in ("CodeValue", "SchemeDesignator", "CodeMeaning")
    )
    if code and designator and (coding := terminology.coded(code, designator, meaning)):
        return coding.as_fhir()
    text = rows.agreed("BodyPartExamined", place)
    if not text:
        return {"display": meaning} if meaning else None
    if site := terminology.body_site(text):
        return site.as_fhir()
    place.add("body-part-unmapped", "BodyPartExamined", text)
    return {"display": text}


def _laterality(rows: Group, _context: Context, place: Place) -> dict[str, Any] | None:
    """R, L and B of CID 244. ImageLaterality U means unpaired (PS3.3 C.8.11.2): nothing. Several: nothing."""
    columns = ("Laterality", "ImageLaterality", "FrameLaterality")
    sides = {side for column in columns for side in rows.distinct(column)}
    if len(sides) > 1:
        place.add("laterality-mixed", "Laterality", ", ".join(sorted(sides)))
        return None
    side = next(iter(sides - {"U"}), None)
    coding = terminology.laterality(side) if side else None
    if side and not coding:
        place.add("value-left-out", "Laterality", side, message="laterality is none of R, L, B")
    return coding.as_fhir() if coding else None


def _referrer(rows: Group, context: Context, place: Place) -> dict[str, str] | None:
    name = rows.agreed("ReferringPhysicianName", place) if context.staff_names else None
    return {"display": " ".join(name.replace("^", " ").split())} if name else None


def _started_element(*sources: Source) -> Element:
    columns = (*(column for source in sources for column in source), "TimezoneOffsetFromUTC", "ImageType")
    return Element("started", _started(*sources), columns)


# -- the mapping ------------------------------------------------------------------------------------------------------

_REASON = "ReasonForRequestedProcedure"
STUDY: tuple[Element, ...] = (
    Element(
        "identifier",
        _identifiers,
        (
            "AccessionNumber",
            "IssuerOfAccessionNumber",
            "IssuerOfAccessionNumberUniversalID",
            "IssuerOfAccessionNumberUniversalIDType",
        ),
    ),
    _started_element(("StudyDate", "StudyTime"), ("AcquisitionDateTime",)),
    Element("referrer", _referrer, ("ReferringPhysicianName",)),
    Element(
        "procedureCode",
        _coded("ProcedureCodeValue", "ProcedureCodeSchemeDesignator", "ProcedureCodeMeaning"),
        ("ProcedureCodeValue", "ProcedureCodeSchemeDesignator", "ProcedureCodeMeaning"),
    ),
    Element(
        "reasonCode",
        _coded(
            f"{_REASON}CodeValue",
            f"{_REASON}SchemeDesignator",
            f"{_REASON}CodeMeaning",
            "ReasonForTheRequestedProcedure",
        ),
        (
            f"{_REASON}CodeValue",
            f"{_REASON}SchemeDesignator",
            f"{_REASON}CodeMeaning",
            "ReasonForTheRequestedProcedure",
        ),
    ),
    Element("description", _text("StudyDescription"), ("StudyDescription",)),
)
SERIES: tuple[Element, ...] = (
    Element("number", _unsigned("SeriesNumber"), ("SeriesNumber",)),
    Element("modality", _series_modality, ("Modality",)),
    Element("description", _text("SeriesDescription"), ("SeriesDescription",)),
    Element(
        "bodySite",
        _body_site,
        (
            "AnatomicRegionCodeValue",
            "AnatomicRegionSchemeDesignator",
            "AnatomicRegionCodeMeaning",
            "BodyPartExamined",
        ),
    ),
    Element("laterality", _laterality, ("Laterality", "ImageLaterality", "FrameLaterality")),
    _started_element(
        ("SeriesDate", "SeriesTime"),
        ("AcquisitionDateTime",),
        ("AcquisitionDate", "AcquisitionTime"),
        ("ContentDate", "ContentTime"),
    ),
)
_INSTANCE_COLUMNS = (
    "SOPInstanceUID",
    "SOPClassUID",
    "InstanceNumber",
    "ImageType",
    "ConceptNameCodeMeaning",
    "DocumentTitle",
    "ContentLabel",
)
COLUMNS: tuple[str, ...] = tuple(
    dict.fromkeys(
        [
            "subject",
            "sample",
            "StudyInstanceUID",
            "SeriesInstanceUID",
            *(column for element in STUDY + SERIES for column in element.columns),
            *_INSTANCE_COLUMNS,
        ]
    )
)


# as the specification lists the elements: what a person reads first comes first
_ORDER = (
    "resourceType",
    "id",
    "identifier",
    "status",
    "modality",
    "subject",
    "started",
    "referrer",
    "endpoint",
    "numberOfSeries",
    "numberOfInstances",
    "procedureCode",
    "reasonCode",
    "description",
    "series",
)


def imaging_study(
    identifier: str, patient_id: str, rows: Group, context: Context, place: Place
) -> dict[str, Any] | None:
    """The ImagingStudy of the rows of one study; None where no instance can stand in it.

    Args:
        identifier: the resource's id.
        patient_id: the id of its Patient.
        rows: of one StudyInstanceUID, duplicates left out.
        context: settings and sheets.
        place: names dataset, unit, subject and study; takes the findings.
    """
    usable = _usable(rows, place)
    series = [_series(uid, group, context, place) for uid, group in usable.by("SeriesInstanceUID").items()]
    if not series:
        return None
    series.sort(key=lambda s: (s.get("number", _UNSIGNED_INT_MAX), s["uid"]))
    modalities = {(m.get("system"), m["code"]): m for m in (s["modality"] for s in series)}
    resource: dict[str, Any] = {
        "resourceType": "ImagingStudy",
        "id": identifier,
        "status": "available",
        "modality": [modalities[key] for key in sorted(modalities, key=lambda k: k[1])],
        "subject": {"reference": f"Patient/{patient_id}"},
        "endpoint": [{"reference": f"Endpoint/{context.endpoint_id}"}],
        "numberOfSeries": len(series),
        "numberOfInstances": sum(s["numberOfInstances"] for s in series),
    }
    resource |= _elements(STUDY, usable, context, place)
    resource["series"] = series
    return {name: resource[name] for name in sorted(resource, key=_ORDER.index)}


def _elements(elements: tuple[Element, ...], rows: Group, context: Context, place: Place) -> dict[str, Any]:
    made = ((element.name, element.rule(rows, context, place)) for element in elements)
    return {name: value for name, value in made if value is not None}


def _usable(rows: Group, place: Place) -> Group:
    """The rows that can be instances; those that lack what FHIR requires are counted in a finding."""
    columns = rows.columns
    with_modality = {columns["SeriesInstanceUID"][row] for row in rows.rows if _shown(columns["Modality"][row])}
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
        place.within(series_uid=series or "").add(
            "instance-left-out", count=count, message=f"{lacks_what} absent, empty or not valid in FHIR"
        )
    return Group(columns, tuple(keep))


def _series(uid: str, rows: Group, context: Context, place: Place) -> dict[str, Any]:
    here = place.within(series_uid=uid)
    if len(samples := rows.distinct("sample")) > 1:
        here.add("series-two-samples", message=f"in the folders of {', '.join(samples)}")
    series = {"uid": uid, **_elements(SERIES, rows, context, here)}
    series["numberOfInstances"] = len(rows)
    series["instance"] = _instances(rows, here)
    return series


def _instances(rows: Group, place: Place) -> list[dict[str, Any]]:
    columns = rows.columns
    out_of_range: Counter[int] = Counter()
    classes: dict[str, dict[str, str]] = {}
    instances = []
    for row in rows.rows:
        class_uid = columns["SOPClassUID"][row]
        if class_uid not in classes:
            classes[class_uid] = terminology.sop_class(class_uid).as_fhir()
        instance: dict[str, Any] = {"uid": columns["SOPInstanceUID"][row], "sopClass": classes[class_uid]}
        number = columns["InstanceNumber"][row]
        if number is not None and 0 <= number <= _UNSIGNED_INT_MAX:
            instance["number"] = number
        elif number is not None:
            out_of_range[number] += 1
        if title := _title(columns, row):
            instance["title"] = title
        instances.append(instance)
    for number, count in sorted(out_of_range.items()):
        place.add(
            "value-left-out",
            "InstanceNumber",
            number,
            count=count,
            message="InstanceNumber is no unsignedInt of FHIR",
        )
    instances.sort(key=lambda i: (i.get("number", _UNSIGNED_INT_MAX), i["uid"]))
    return instances


def _title(columns: dict[str, list[Any]], row: int) -> str | None:
    """What a person would call the object: the title of a document, the type of an image."""
    names = ("ConceptNameCodeMeaning", "DocumentTitle", "ContentLabel", "ImageType")
    return next((text for name in names if (text := _shown(columns[name][row]))), None)
