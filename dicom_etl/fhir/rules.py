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
from dicom_etl.fhir.datetimes import Moment, instant, moment, moment_of
from dicom_etl.fhir.mapping import Concept, Rule, concept, distinct_concepts
from dicom_etl.fhir.names import in_a_line
from dicom_etl.fhir.rows import Group, Place

UNSIGNED_INT_MAX = 2_147_483_647  # R4 2.24.0.1
_PSEUDONYMIZED = {
    "system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue",
    "code": "PSEUDED",
    "display": "pseudonymized",
}
_FUNCTION = "http://terminology.hl7.org/CodeSystem/v3-ParticipationType"


def shown_text(text: str | None) -> str | None:
    """Text without blanks around it (no-break spaces among them); None where nothing is left, as FHIR asks."""
    return (text or "").strip() or None


def text(rows: Group, columns: tuple[str, ...], _context: Context, place: Place) -> str | None:
    """The text that the instances agree on."""
    return shown_text(rows.agreed(columns[0], place))


def unsigned(rows: Group, columns: tuple[str, ...], _context: Context, place: Place) -> int | None:
    """A number that is not negative and not too large."""
    number: int | None = rows.agreed(columns[0], place)
    if number is not None and not 0 <= number <= UNSIGNED_INT_MAX:
        place.add("value-omitted", columns[0], number, message=f"{columns[0]} is no unsignedInt of FHIR")
        return None
    return number


def security(rows: Group, columns: tuple[str, ...], _context: Context, _place: Place) -> list[dict[str, str]] | None:
    """A label where all instances say that the identity was removed.

    Of the labels that could be meant, pseudonymized is the one that asks for care: ids and UIDs may lead back.
    """
    values = {(value or "").strip().upper() for value in rows.values(columns[0])}
    return [_PSEUDONYMIZED] if values == {"YES"} else None


# -- dates ------------------------------------------------------------------------------------------------------------

Source = tuple[str, ...]  # the column of a DT, or those of a date and a time


def started(rows: Group, columns: tuple[str, ...], context: Context, place: Place) -> str | None:
    """Date, time and offset of one and the same instance; where instances disagree, the earliest.

    The first source is the element's own; the others stand in for it where it has no value, and there original images
    alone count: a date of a derived object is that of its making (PS3.3 C.7.6.1.1.2).
    """
    own, *others = _sources(columns)
    value = _earliest(own, rows, context, place)
    if value:
        return value
    originals = rows.where(_is_original(rows))
    for source in others:
        if value := _earliest(source, originals, context, place):
            message = f"{own[0]} has no value; {' and '.join(source)} of the original images instead"
            place.add("date-substituted", own[0], message=message)
            return value
    return None


def _sources(columns: tuple[str, ...]) -> Iterator[Source]:
    """The columns of dates, each with its time."""
    for column in columns:
        if column.endswith("DateTime"):
            yield (column,)
        elif column.endswith("Date"):
            yield (column, f"{column.removesuffix('Date')}Time")


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
            place.add("value-omitted", source[0], parts[0])
    usable = [(one.value, one.code, parts) for one, parts in made if one.value]
    if not usable:
        return None
    if len(usable) > 1:
        words = " and ".join(source)
        place.add("values-conflict", source[0], message=f"{words}: the earliest of {len(usable)} is taken")
    value, code, parts = min(usable, key=lambda one: (instant(one[0]), one[0]))
    if code:
        place.add(code, source[-1], f"{parts[-2]} {parts[-1] or ''}".strip())
    return value


# -- codes ------------------------------------------------------------------------------------------------------------


def codes(rows: Group, columns: tuple[str, ...], context: Context, place: Place) -> list[Concept]:
    """The different coded entries of the instances: value, scheme, meaning, long value, URN value (PS3.3 8.1)."""
    made = []
    for value, scheme, meaning, long, urn in rows.combination(*columns):
        if urn and not (value or long):
            made.append(concept(terminology.Coding(terminology.URI, urn, shown_text(meaning)).as_fhir()))
        else:
            made.append(_coded(value or long, scheme, meaning, None, columns[0], context, place))
    return distinct_concepts(made)


def reasons(rows: Group, columns: tuple[str, ...], context: Context, place: Place) -> list[Concept]:
    """The different reasons of the instances: a code, a text, or both."""
    return distinct_concepts(
        _coded(value, scheme, meaning, said, columns[0], context, place)
        for value, scheme, meaning, said in rows.combination(*columns)
    )


def _coded(
    value: str | None,
    scheme: str | None,
    meaning: str | None,
    said: str | None,
    column: str,
    context: Context,
    place: Place,
) -> Concept | None:
    """A coded entry as a concept; a scheme without a known URI gets one of the dataset's own, and a finding."""
    value, scheme, meaning = shown_text(value), shown_text(scheme), shown_text(meaning)
    if not value or not scheme:
        return concept(None, shown_text(said) or meaning)
    coding = terminology.coded(value, scheme, meaning)
    if coding is None:
        place.add("coding-scheme-unknown", column, f"{value} ({scheme})")
        coding = terminology.Coding(_local_system(context, scheme), value, meaning)
    return concept(coding.as_fhir(), shown_text(said))


def _local_system(context: Context, scheme: str) -> str:
    """A URI for a scheme that means something in this dataset alone."""
    parts = (quote(part, safe="") for part in (context.dataset, "coding-scheme", scheme))
    return "/".join([context.namespace.rstrip("/"), *parts])


# -- people and places ------------------------------------------------------------------------------------------------


def staff(rows: Group, columns: tuple[str, ...], context: Context, place: Place) -> dict[str, Any] | None:
    """A person of the staff by name and code, if names of staff are wanted."""
    if not context.staff_names:
        return None
    return _practitioner(*(rows.agreed(column, place) for column in columns))


def staff_list(rows: Group, columns: tuple[str, ...], context: Context, _place: Place) -> list[dict[str, Any]]:
    """All persons that the instances name, if names of staff are wanted; the code is that of the first name."""
    if not context.staff_names:
        return []
    made: dict[str, dict[str, Any]] = {}
    for value, *code in rows.combination(*columns):
        for number, name in enumerate((value or "").split("\\")):
            if person := _practitioner(name, *code if number == 0 else ()):
                made.setdefault(person["display"], person)
    return [made[display] for display in sorted(made)]


def performer_as(code: str, display: str) -> Rule:
    """The rule of ImagingStudy.series.performer for one function (v3-ParticipationType)."""
    function = {"coding": [{"system": _FUNCTION, "code": code, "display": display}]}

    def rule(rows: Group, columns: tuple[str, ...], context: Context, place: Place) -> list[dict[str, Any]]:
        return [{"function": function, "actor": actor} for actor in staff_list(rows, columns, context, place)]

    return rule


def _practitioner(name: str | None, code: str | None = None) -> dict[str, Any] | None:
    line = in_a_line(name or "")
    if not line:
        return None
    person: dict[str, Any] = {"type": "Practitioner", "display": line}
    return person | {"identifier": {"value": code}} if code else person


def location(rows: Group, columns: tuple[str, ...], _context: Context, place: Place) -> dict[str, str] | None:
    """Institution and department of one and the same instance, else where the procedure was performed."""
    *institution, performed = columns
    found = rows.combination(*institution)
    named = [line for parts in found if (line := ", ".join(part for part in map(shown_text, parts) if part))]
    if len(named) > 1:
        place.add("values-conflict", institution[0], message=f"{institution[0]} has {len(named)} different values")
        return None
    display = named[0] if named else shown_text(rows.agreed(performed, place))
    return {"display": display} if display else None


def specimen(rows: Group, columns: tuple[str, ...], _context: Context, _place: Place) -> list[dict[str, Any]]:
    """Logical references to the specimens that the instances name."""
    made = []
    for value, issuer in rows.combination(*columns):
        if shown_text(value):
            identifier: dict[str, Any] = {"value": value.strip()}
            if shown_text(issuer):
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
