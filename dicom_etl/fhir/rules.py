"""Rules that several elements of the mapping share: texts, numbers, dates, codes, staff and locations.

A rule maps columns of header rows to the value of an element; None if there is no value. If instances that should have
the same value disagree, the value is omitted with a finding.

Not here: rules of only one resource (`imaging_study`, `patient`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from dicom_etl.fhir import terminology
from dicom_etl.fhir.context import Context
from dicom_etl.fhir.datetimes import convert_date_time, convert_dt, to_instant
from dicom_etl.fhir.mapping import Concept, Rule, make_concept, remove_duplicates
from dicom_etl.fhir.person_names import format_person_name
from dicom_etl.fhir.rows import FindingCollector, HeaderRows

UNSIGNED_INT_MAX = 2_147_483_647  # R4 2.24.0.1
_PSEUDONYMIZED = {
    "system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue",
    "code": "PSEUDED",
    "display": "pseudonymized",
}
_PARTICIPATION_TYPE = "http://terminology.hl7.org/CodeSystem/v3-ParticipationType"


def strip_text(text: str | None) -> str | None:
    """Text without blanks around it (no-break spaces included); None if nothing remains: FHIR has no empty strings."""
    return (text or "").strip() or None


def map_text(rows: HeaderRows, columns: tuple[str, ...], _context: Context, findings: FindingCollector) -> str | None:
    """The text that all instances have."""
    return strip_text(rows.common_value(columns[0], findings))


def map_unsigned(
    rows: HeaderRows, columns: tuple[str, ...], _context: Context, findings: FindingCollector
) -> int | None:
    """An unsignedInt: a number that is not negative and not too large."""
    number: int | None = rows.common_value(columns[0], findings)
    if number is not None and not 0 <= number <= UNSIGNED_INT_MAX:
        findings.add("value-omitted", columns[0], number, message=f"{columns[0]} is not an unsignedInt of FHIR")
        return None
    return number


def map_security(
    rows: HeaderRows, columns: tuple[str, ...], _context: Context, _findings: FindingCollector
) -> list[dict[str, str]] | None:
    """A security label, if the patient's identity was removed from all instances.

    Of the possible labels, "pseudonymized" implies that re-identification may be possible: by ids and UIDs.
    """
    values = {(value or "").strip().upper() for value in rows.values(columns[0])}
    return [_PSEUDONYMIZED] if values == {"YES"} else None


# -- dates ------------------------------------------------------------------------------------------------------------

DateColumns = tuple[str, ...]  # the column of a DT, or those of a date and a time


def map_started(rows: HeaderRows, columns: tuple[str, ...], context: Context, findings: FindingCollector) -> str | None:
    """Date, time and offset of one and the same instance; if instances disagree, the earliest.

    The first date is the element's own. The others are substitutes if it has no value, and only from original images:
    the dates of a derived object are those of the derivation (PS3.3 C.7.6.1.1.2).
    """
    first, *substitutes = _split_dates(columns)
    value = _map_earliest(first, rows, context, findings)
    if value:
        return value
    types = rows.columns["ImageType"]
    originals = rows.filter(lambda row: (types[row] or "").split("\\")[0].strip() == "ORIGINAL")
    for substitute in substitutes:
        if value := _map_earliest(substitute, originals, context, findings):
            message = f"{first[0]} has no value; {' and '.join(substitute)} of the original images instead"
            findings.add("date-substituted", first[0], message=message)
            return value
    return None


def _split_dates(columns: tuple[str, ...]) -> Iterator[DateColumns]:
    """The date columns, each with its time column."""
    for column in columns:
        if column.endswith("DateTime"):
            yield (column,)
        elif column.endswith("Date"):
            yield (column, f"{column.removesuffix('Date')}Time")


def _map_earliest(columns: DateColumns, rows: HeaderRows, context: Context, findings: FindingCollector) -> str | None:
    """The earliest dateTime that these columns have in the rows."""
    usable = []
    for values in rows.combinations(*columns, "TimezoneOffsetFromUTC"):
        if values[0] is None:
            continue
        if len(values) == 2:  # a DT and an offset
            value, code = convert_dt(values[0], values[1], context.zone)
        else:  # a date, a time and an offset
            value, code = convert_date_time(values[0], values[1], values[2], context.zone)
        if value:
            usable.append((value, code, values))
        else:
            findings.add("value-omitted", columns[0], values[0])
    if not usable:
        return None
    if len(usable) > 1:
        message = f"{' and '.join(columns)}: {len(usable)} different values; the earliest is used"
        findings.add("values-conflict", columns[0], message=message)
    value, code, values = min(usable, key=lambda item: (to_instant(item[0]), item[0]))
    if code:
        findings.add(code, columns[-1], f"{values[-2]} {values[-1] or ''}".strip())
    return value


# -- codes ------------------------------------------------------------------------------------------------------------


def map_codes(
    rows: HeaderRows, columns: tuple[str, ...], context: Context, findings: FindingCollector
) -> list[Concept]:
    """The distinct coded entries of the instances: value, scheme, meaning, long value, URN value (PS3.3 8.1)."""
    concepts = []
    for value, scheme, meaning, long_value, urn in rows.combinations(*columns):
        if urn and not (value or long_value):
            concepts.append(make_concept(terminology.Coding(terminology.URI, urn, strip_text(meaning)).as_fhir()))
        else:
            concepts.append(_map_code(value or long_value, scheme, meaning, None, columns[0], context, findings))
    return remove_duplicates(concepts)


def map_reasons(
    rows: HeaderRows, columns: tuple[str, ...], context: Context, findings: FindingCollector
) -> list[Concept]:
    """The distinct reasons of the instances: a code, a text, or both."""
    return remove_duplicates(
        _map_code(value, scheme, meaning, text, columns[0], context, findings)
        for value, scheme, meaning, text in rows.combinations(*columns)
    )


def _map_code(
    value: str | None,
    scheme: str | None,
    meaning: str | None,
    text: str | None,
    column: str,
    context: Context,
    findings: FindingCollector,
) -> Concept | None:
    """A coded entry as a concept; a scheme without a known URI gets one of the dataset, with a finding."""
    value, scheme, meaning = strip_text(value), strip_text(scheme), strip_text(meaning)
    if not value or not scheme:
        return make_concept(None, strip_text(text) or meaning)
    coding = terminology.convert_coded_entry(value, scheme, meaning)
    if coding is None:
        findings.add("coding-scheme-unknown", column, f"{value} ({scheme})")
        # a URI for a scheme that is valid only within this dataset
        parts = (quote(part, safe="") for part in (context.dataset, "coding-scheme", scheme))
        system = "/".join([context.namespace.rstrip("/"), *parts])
        coding = terminology.Coding(system, value, meaning)
    return make_concept(coding.as_fhir(), strip_text(text))


# -- staff, locations, specimens --------------------------------------------------------------------------------------


def map_staff(
    rows: HeaderRows, columns: tuple[str, ...], context: Context, findings: FindingCollector
) -> dict[str, Any] | None:
    """A member of the staff by name and code; only with the setting `staff_names`."""
    if not context.staff_names:
        return None
    return _make_practitioner(*(rows.common_value(column, findings) for column in columns))


def map_staff_list(
    rows: HeaderRows, columns: tuple[str, ...], context: Context, _findings: FindingCollector
) -> list[dict[str, Any]]:
    """All members of the staff in the instances; only with the setting `staff_names`.

    The code of an instance with several names is that of the first name.
    """
    if not context.staff_names:
        return []
    practitioners: dict[str, dict[str, Any]] = {}
    for value, *code in rows.combinations(*columns):
        for number, name in enumerate((value or "").split("\\")):
            if practitioner := _make_practitioner(name, *code if number == 0 else ()):
                practitioners.setdefault(practitioner["display"], practitioner)
    return [practitioners[display] for display in sorted(practitioners)]


def make_performer_rule(code: str, display: str) -> Rule:
    """Make the rule of ImagingStudy.series.performer for one function (v3-ParticipationType)."""
    function = {"coding": [{"system": _PARTICIPATION_TYPE, "code": code, "display": display}]}

    def map_performer(
        rows: HeaderRows, columns: tuple[str, ...], context: Context, findings: FindingCollector
    ) -> list[dict[str, Any]]:
        return [{"function": function, "actor": actor} for actor in map_staff_list(rows, columns, context, findings)]

    return map_performer


def _make_practitioner(name: str | None, code: str | None = None) -> dict[str, Any] | None:
    display = format_person_name(name or "")
    if not display:
        return None
    practitioner: dict[str, Any] = {"type": "Practitioner", "display": display}
    return practitioner | {"identifier": {"value": code}} if code else practitioner


def map_location(
    rows: HeaderRows, columns: tuple[str, ...], _context: Context, findings: FindingCollector
) -> dict[str, str] | None:
    """Institution and department of one and the same instance, else where the procedure was performed."""
    *institution, performed = columns
    names = [
        name
        for values in rows.combinations(*institution)
        if (name := ", ".join(value for value in map(strip_text, values) if value))
    ]
    if len(names) > 1:
        findings.add("values-conflict", institution[0], message=f"{institution[0]} has {len(names)} different values")
        return None
    display = names[0] if names else strip_text(rows.common_value(performed, findings))
    return {"display": display} if display else None


def map_specimen(
    rows: HeaderRows, columns: tuple[str, ...], _context: Context, _findings: FindingCollector
) -> list[dict[str, Any]]:
    """Logical references to the specimens of the instances."""
    references = []
    for value, issuer in rows.combinations(*columns):
        if strip_text(value):
            identifier: dict[str, Any] = {"value": value.strip()}
            if strip_text(issuer):
                identifier["assigner"] = {"display": issuer.strip()}
            references.append({"type": "Specimen", "identifier": identifier})
    return references


COMMON_RULES: dict[str, Rule] = {
    "text": map_text,
    "unsigned": map_unsigned,
    "security": map_security,
    "started": map_started,
    "codes": map_codes,
    "reasons": map_reasons,
    "staff": map_staff,
    "staff_list": map_staff_list,
    "location": map_location,
    "specimen": map_specimen,
    "performer": make_performer_rule("PRF", "performer"),
    "operator": make_performer_rule("SPRF", "secondary performer"),
}
