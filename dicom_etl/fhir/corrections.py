"""The corrections file: what data stewards know better than the headers, laid over them at the build.

CSV with the columns dataset, subject, sample, study, series, tag, value, why. An empty place means any: a line with a
dataset alone speaks of all its instances. Lines count in their order, later ones over earlier ones. An empty value
takes the header's away. Header tables stay as they are; each application is a finding of severity info.

Not here: rules of the mapping, which see corrected rows as any others.
"""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from dicom_etl.csv_files import read_rows
from dicom_etl.fhir.rows import FindingCollector, HeaderRows
from dicom_etl.settings import SettingsError

CORRECTED_FROM = ("subject", "sample", "StudyInstanceUID", "SeriesInstanceUID")
_PLACES = ("subject", "sample", "study", "series")
_NEEDED = ("dataset", "tag", "value")


class Correctable(NamedTuple):
    """A tag that may be corrected: the element it makes, its values, and the columns that would speak against it."""

    element: str
    pattern: str
    against: tuple[str, ...] = ()


_DATE = r"\d{4}-?\d\d-?\d\d"
_TIME = r"\d\d(:?\d\d(:?\d\d(\.\d{1,6})?)?)?"
_TEXT = r".{1,1024}"
CORRECTABLE: dict[str, Correctable] = {
    "Modality": Correctable("modality", r"[A-Z0-9_ ]{1,16}"),
    "BodyPartExamined": Correctable(
        "bodySite",
        _TEXT,
        ("AnatomicRegionCodeValue", "AnatomicRegionSchemeDesignator", "AnatomicRegionCodeMeaning"),
    ),
    "Laterality": Correctable("laterality", "[RLB]", ("ImageLaterality", "FrameLaterality")),
    "StudyDate": Correctable("started", _DATE),
    "StudyTime": Correctable("started", _TIME),
    "SeriesDate": Correctable("series.started", _DATE),
    "SeriesTime": Correctable("series.started", _TIME),
    "TimezoneOffsetFromUTC": Correctable("started", r"[+-]\d{4}"),
    "StudyDescription": Correctable("description", _TEXT),
    "SeriesDescription": Correctable("series.description", _TEXT),
    "PatientSex": Correctable("gender", "[MFO]"),
    "PatientBirthDate": Correctable("birthDate", _DATE),
    "PatientSpeciesDescription": Correctable(
        "species", _TEXT, ("PatientSpeciesCodeValue", "PatientSpeciesSchemeDesignator", "PatientSpeciesCodeMeaning")
    ),
}


class Correction(NamedTuple):
    """A line of the corrections file; None where it means any."""

    dataset: str
    subject: str | None
    sample: str | None
    study: str | None
    series: str | None
    tag: str
    value: str | None
    why: str
    line: str  # its words in a sentence: `line 7`

    def touches(self, places: Sequence[Any]) -> bool:
        """Whether it speaks of (subject, sample, StudyInstanceUID, SeriesInstanceUID)."""
        return all(wanted in (None, here) for wanted, here in zip(self[1:5], places, strict=True))


def read_corrections(path: str | None) -> list[Correction]:
    """The lines of the corrections file; none where no file is configured.

    Raises:
        SettingsError: it cannot be read, lacks a column, or a line has no dataset, a tag that cannot be corrected, or
            a value that the tag cannot have.
    """
    known = {*_NEEDED, *_PLACES, "why"}
    return [_line(where, row) for where, row in read_rows("the corrections file", path, _NEEDED, known)]


def _line(where: str, row: dict[str, str]) -> Correction:
    if not row["dataset"]:
        raise SettingsError(f"{where} names no dataset")
    entry = CORRECTABLE.get(row["tag"])
    if entry is None:
        raise SettingsError(f"{where}: {row['tag'] or 'no tag'} cannot be corrected; {', '.join(CORRECTABLE)} can")
    if row["value"] and not (re.fullmatch(entry.pattern, row["value"]) and _is_day(entry, row["value"])):
        raise SettingsError(f"{where}: {row['value']} is no value of {row['tag']}")
    subject, sample, study, series = (row.get(place) or None for place in _PLACES)
    value, why = row["value"] or None, row.get("why", "")
    where = where.partition(" of ")[0]
    return Correction(row["dataset"], subject, sample, study, series, row["tag"], value, why, where)


def _is_day(entry: Correctable, value: str) -> bool:
    if entry.pattern is not _DATE:
        return True
    try:
        return bool(_day(value))
    except ValueError:
        return False


def _day(value: str) -> datetime.date:
    return datetime.date.fromisoformat(value)


def apply_corrections(rows: HeaderRows, corrections: Iterable[Correction], findings: FindingCollector) -> HeaderRows:
    """The rows as the corrections have them; each that changes something is a finding in each study."""
    columns = dict(rows.columns)
    empty = rows.empty
    for correction in corrections:
        entry = CORRECTABLE[correction.tag]
        value: Any = correction.value
        if value is not None and entry.pattern is _DATE:
            value = _day(value)
        touched = _touched(HeaderRows(columns, rows.rows), correction, value, entry)
        if not touched:
            continue
        for column in (correction.tag, *entry.against):
            values = list(columns[column])
            for row in touched:
                values[row] = value if column == correction.tag else None
            columns[column] = values
        empty -= {correction.tag}
        _tell(columns, touched, correction, entry, findings)
    return HeaderRows(columns, rows.rows, empty)


def _touched(rows: HeaderRows, correction: Correction, value: Any, entry: Correctable) -> list[int]:
    """The rows that a correction changes."""
    places = [rows.columns[column] for column in CORRECTED_FROM]
    wanted = (value, *(None for _ in entry.against))
    now = [rows.columns[column] for column in (correction.tag, *entry.against)]
    return [
        row
        for row in rows.rows
        if correction.touches([column[row] for column in places]) and tuple(column[row] for column in now) != wanted
    ]


def _tell(
    columns: dict[str, list[Any]],
    touched: list[int],
    correction: Correction,
    entry: Correctable,
    findings: FindingCollector,
) -> None:
    studies = Counter(columns["StudyInstanceUID"][row] for row in touched)
    why = f" ({correction.why})" if correction.why else ""
    for study, count in sorted(studies.items()):
        findings.within(study_uid=study).add(
            "value-corrected",
            correction.tag,
            correction.value or "(taken away)",
            count=count,
            message=f"{entry.element}: by {correction.line} of the corrections file{why}",
        )
