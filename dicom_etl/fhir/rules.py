"""Rules that several elements of the mapping share: texts, numbers, dates, codes, persons of the staff.

A rule makes the value of an element from the columns of some rows; None where there is nothing to say. Values that
instances should share and do not are left out with a finding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

from dicom_etl.fhir import terminology
from dicom_etl.fhir.context import Context
from dicom_etl.fhir.datetimes import FhirDateTime, convert_date_time, convert_dt, to_instant
from dicom_etl.fhir.mapping import Concept, Rule, make_concept, remove_duplicates
from dicom_etl.fhir.person_names import format_person_name
from dicom_etl.fhir.rows import FindingCollector, HeaderRows

UNSIGNED_INT_MAX = 2_147_483_647  # R4 2.24.0.1
_PSEUDONYMIZED = {
    "system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue",
    "code": "PSEUDED",
    "display": "pseudonymized",
}
_FUNCTION = "http://terminology.hl7.org/CodeSystem/v3-ParticipationType"


def strip_text(text: str | None) -> str | None:
    """Text without blanks around it (no-break spaces among them); None where nothing is left, as FHIR asks."""
    return (text or "").strip() or None


def text(rows: HeaderRows, columns: tuple[str, ...], _context: Context, findings: FindingCollector) -> str | None:
    """The text that the instances agree on."""
    return strip_text(rows.common_value(columns[0], findings))


def unsigned(rows: HeaderRows, columns: tuple[str, ...], _context: Context, findings: FindingCollector) -> int | None:
    """A number that is not negative and not too large."""
    number: int | None = rows.common_value(columns[0], findings)
    if number is not None and not 0 <= number <= UNSIGNED_INT_MAX:
        findings.add("value-omitted", columns[0], number, message=f"{columns[0]} is no unsignedInt of FHIR")
        return None
    return number


def security(
    rows: HeaderRows, columns: tuple[str, ...], _context: Context, _findings: FindingCollector
) -> list[dict[str, str]] | None:
    """A label where all instances say that the identity was removed.

    Of the labels that could be meant, pseudonymized is the one that asks for care: ids and UIDs may lead back.
    """
    values = {(value or "").strip().upper() for value in rows.values(columns[0])}
    return [_PSEUDONYMIZED] if values == {"YES"} else None


# -- dates ------------------------------------------------------------------------------------------------------------

Source = tuple[str, ...]  # the column of a DT, or those of a date and a time


def started(rows: HeaderRows, columns: tuple[str, ...], context: Context, findings: FindingCollector) -> str | None:
    """Date, time and offset of one and the same instance; where instances disagree, the earliest.

    The first source is the element's own; the others stand in for it where it has no value, and there original images
    alone count: a date of a derived object is that of its making (PS3.3 C.7.6.1.1.2).
    """
    own, *others = _sources(columns)
    value = _earliest(own, rows, context, findings)
    if value:
        return value
    originals = rows.filter(_is_original(rows))
    for source in others:
        if value := _earliest(source, originals, context, findings):
            message = f"{own[0]} has no value; {' and '.join(source)} of the original images instead"
            findings.add("date-substituted", own[0], message=message)
            return value
    return None


def _sources(columns: tuple[str, ...]) -> Iterator[Source]:
    """The columns of dates, each with its time."""
    for column in columns:
        if column.endswith("DateTime"):
            yield (column,)
        elif column.endswith("Date"):
            yield (column, f"{column.removesuffix('Date')}Time")


def _is_original(rows: HeaderRows) -> Callable[[int], bool]:
    types = rows.columns["ImageType"]
    return lambda row: (types[row] or "").split("\\")[0].strip() == "ORIGINAL"


def _moment(parts: tuple[Any, ...], context: Context) -> FhirDateTime:
    """Of a DT and an offset, or of a date, a time and an offset."""
    if len(parts) == 2:
        return convert_dt(parts[0], parts[1], context.zone)
    return convert_date_time(parts[0], parts[1], parts[2], context.zone)


def _earliest(source: Source, rows: HeaderRows, context: Context, findings: FindingCollector) -> str | None:
    """The earliest convert_date_time that a source has in the rows."""
    found = [c for c in rows.combinations(*source, "TimezoneOffsetFromUTC") if c[0] is not None]
    made = [(_moment(parts, context), parts) for parts in found]
    for unusable, parts in made:
        if unusable.value is None:
            findings.add("value-omitted", source[0], parts[0])
    usable = [(one.value, one.code, parts) for one, parts in made if one.value]
    if not usable:
        return None
    if len(usable) > 1:
        words = " and ".join(source)
        findings.add("values-conflict", source[0], message=f"{words}: the earliest of {len(usable)} is taken")
    value, code, parts = min(usable, key=lambda one: (to_instant(one[0]), one[0]))
    if code:
        findings.add(code, source[-1], f"{parts[-2]} {parts[-1] or ''}".strip())
    return value


# -- codes ------------------------------------------------------------------------------------------------------------


def codes(rows: HeaderRows, columns: tuple[str, ...], context: Context, findings: FindingCollector) -> list[Concept]:
    """The different coded entries of the instances: value, scheme, meaning, long value, URN value (PS3.3 8.1)."""
    made = []
    for value, scheme, meaning, long, urn in rows.combinations(*columns):
        if urn and not (value or long):
            made.append(make_concept(terminology.Coding(terminology.URI, urn, strip_text(meaning)).as_fhir()))
        else:
            made.append(_coded(value or long, scheme, meaning, None, columns[0], context, findings))
    return remove_duplicates(made)


def reasons(rows: HeaderRows, columns: tuple[str, ...], context: Context, findings: FindingCollector) -> list[Concept]:
    """The different reasons of the instances: a code, a text, or both."""
    return remove_duplicates(
        _coded(value, scheme, meaning, said, columns[0], context, findings)
        for value, scheme, meaning, said in rows.combinations(*columns)
    )


def _coded(
    value: str | None,
    scheme: str | None,
    meaning: str | None,
    said: str | None,
    column: str,
    context: Context,
    findings: FindingCollector,
) -> Concept | None:
    """A coded entry as a make_concept; a scheme without a known URI gets one of the dataset's own, and a finding."""
    value, scheme, meaning = strip_text(value), strip_text(scheme), strip_text(meaning)
    if not value or not scheme:
        return make_concept(None, strip_text(said) or meaning)
    coding = terminology.convert_coded_entry(value, scheme, meaning)
    if coding is None:
        findings.add("coding-scheme-unknown", column, f"{value} ({scheme})")
        coding = terminology.Coding(_local_system(context, scheme), value, meaning)
    return make_concept(coding.as_fhir(), strip_text(said))


def _local_system(context: Context, scheme: str) -> str:
    """A URI for a scheme that means something in this dataset alone."""
    parts = (quote(part, safe="") for part in (context.dataset, "coding-scheme", scheme))
    return "/".join([context.namespace.rstrip("/"), *parts])


# -- people and places ------------------------------------------------------------------------------------------------


def staff(
    rows: HeaderRows, columns: tuple[str, ...], context: Context, findings: FindingCollector
) -> dict[str, Any] | None:
    """A person of the staff by name and code, if names of staff are wanted."""
    if not context.staff_names:
        return None
    return _practitioner(*(rows.common_value(column, findings) for column in columns))


def staff_list(
    rows: HeaderRows, columns: tuple[str, ...], context: Context, _findings: FindingCollector
) -> list[dict[str, Any]]:
    """All persons that the instances name, if names of staff are wanted; the code is that of the first name."""
    if not context.staff_names:
        return []
    made: dict[str, dict[str, Any]] = {}
    for value, *code in rows.combinations(*columns):
        for number, name in enumerate((value or "").split("\\")):
            if person := _practitioner(name, *code if number == 0 else ()):
                made.setdefault(person["display"], person)
    return [made[display] for display in sorted(made)]


def performer_as(code: str, display: str) -> Rule:
    """The rule of ImagingStudy.series.performer for one function (v3-ParticipationType)."""
    function = {"coding": [{"system": _FUNCTION, "code": code, "display": display}]}

    def rule(
        rows: HeaderRows, columns: tuple[str, ...], context: Context, findings: FindingCollector
    ) -> list[dict[str, Any]]:
        return [{"function": function, "actor": actor} for actor in staff_list(rows, columns, context, findings)]

    return rule


def _practitioner(name: str | None, code: str | None = None) -> dict[str, Any] | None:
    line = format_person_name(name or "")
    if not line:
        return None
    person: dict[str, Any] = {"type": "Practitioner", "display": line}
    return person | {"identifier": {"value": code}} if code else person


def location(
    rows: HeaderRows, columns: tuple[str, ...], _context: Context, findings: FindingCollector
) -> dict[str, str] | None:
    """Institution and department of one and the same instance, else where the procedure was performed."""
    *institution, performed = columns
    found = rows.combinations(*institution)
    named = [line for parts in found if (line := ", ".join(part for part in map(strip_text, parts) if part))]
    if len(named) > 1:
        findings.add("values-conflict", institution[0], message=f"{institution[0]} has {len(named)} different values")
        return None
    display = named[0] if named else strip_text(rows.common_value(performed, findings))
    return {"display": display} if display else None


def specimen(
    rows: HeaderRows, columns: tuple[str, ...], _context: Context, _findings: FindingCollector
) -> list[dict[str, Any]]:
    """Logical references to the specimens that the instances name."""
    made = []
    for value, issuer in rows.combinations(*columns):
        if strip_text(value):
            identifier: dict[str, Any] = {"value": value.strip()}
            if strip_text(issuer):
                identifier["assigner"] = {"display": issuer.strip()}
            made.append({"type": "Specimen", "identifier": identifier})
    return made


COMMON: dict[str, Rule] = {
    "text": text,
    "unsigned": unsigned,
    "security": security,
    "started": started,
    "codes": codes,
    "reasons": reasons,
    "staff": staff,
    "staff_list": staff_list,
    "location": location,
    "specimen": specimen,
    "performer": performer_as("PRF", "performer"),
    "operator": performer_as("SPRF", "secondary performer"),
}
