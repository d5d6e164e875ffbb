"""The corrections file: values that override wrong or missing header values in a build.

It is a CSV file with the columns dataset, subject, sample, study, series, tag, value, reason. An empty cell in subject,
sample, study or series matches any value; a line that names nothing but a dataset matches all of its instances. Lines
are applied in their order: a later one overrides an earlier one. An empty value removes the value of the header. Header
tables do not change; each application is a finding of severity info.

Not here: the rules of the mapping, which do not distinguish corrected rows from others.
"""

from __future__ import annotations

import datetime
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from dicom_etl.csv_files import read_rows
from dicom_etl.fhir.rows import FindingCollector, HeaderRows
from dicom_etl.renames import COLUMNS
from dicom_etl.settings import SettingsError

# the columns of header rows that a correction is compared with, in the order of its fields
LOCATION_COLUMNS = ("subject", "sample", "StudyInstanceUID", "SeriesInstanceUID")
_LOCATION_FIELDS = ("subject", "sample", "study", "series")
_REQUIRED = ("dataset", "tag", "value")


class Correctable(NamedTuple):
    """A tag that can be corrected."""

    element: str  # of the resource that it is mapped to
    pattern: str  # of its values
    removed_columns: tuple[str, ...] = ()  # whose values would take precedence over the correction or contradict it


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
    """A line of the corrections file; a location field that is None matches any value."""

    dataset: str
    subject: str | None
    sample: str | None
    study: str | None
    series: str | None
    tag: str
    value: str | None  # None: the value of the header is removed
    reason: str
    line: str  # where it is in the file, as in `line 7`

    def matches(self, location: Sequence[Any]) -> bool:
        """Whether it applies to an instance with these values of `LOCATION_COLUMNS`."""
        return all(wanted in (None, actual) for wanted, actual in zip(self[1:5], location, strict=True))


def read_corrections(path: str | None) -> list[Correction]:
    """The lines of the corrections file; none if no file is configured.

    Raises:
        SettingsError: it cannot be read, lacks a column, or a line has no dataset, a tag that cannot be corrected, or
            a value that is not valid for the tag.
    """
    allowed = {*_REQUIRED, *_LOCATION_FIELDS, "reason"}
    rows = read_rows("the corrections file", path, _REQUIRED, allowed, COLUMNS["corrections"])
    return [_parse_line(where, row) for where, row in rows]


def _parse_line(where: str, row: dict[str, str]) -> Correction:
    if not row["dataset"]:
        raise SettingsError(f"{where} has no dataset")
    tag, value = row["tag"], row["value"]
    if tag not in CORRECTABLE:
        can_be = f"these tags can be: {', '.join(CORRECTABLE)}"
        raise SettingsError(f"{where}: {f'{tag} cannot be corrected' if tag else 'it has no tag'}; {can_be}")
    if value and not _is_valid(CORRECTABLE[tag], value):
        raise SettingsError(f"{where}: {value} is not a valid value of {tag}")
    subject, sample, study, series = (row.get(field) or None for field in _LOCATION_FIELDS)
    reason, line = row.get("reason", ""), where.partition(" of ")[0]
    return Correction(row["dataset"], subject, sample, study, series, tag, value or None, reason, line)


def _is_valid(correctable: Correctable, value: str) -> bool:
    if not re.fullmatch(correctable.pattern, value):
        return False
    if correctable.pattern is _DATE:
        try:
            datetime.date.fromisoformat(value)
        except ValueError:
            return False
    return True


def apply_corrections(rows: HeaderRows, corrections: Iterable[Correction], findings: FindingCollector) -> HeaderRows:
    """The rows with corrected values; each correction that changes a value is one finding in each study."""
    columns = dict(rows.columns)
    empty = rows.empty
    for correction in corrections:
        correctable = CORRECTABLE[correction.tag]
        value: Any = correction.value
        if value is not None and correctable.pattern is _DATE:
            value = datetime.date.fromisoformat(value)
        new_values = {correction.tag: value, **dict.fromkeys(correctable.removed_columns)}
        location = [columns[name] for name in LOCATION_COLUMNS]
        changed = [
            row
            for row in rows.rows
            if correction.matches([column[row] for column in location])
            and any(columns[name][row] != new_value for name, new_value in new_values.items())
        ]
        if not changed:
            continue
        for name, new_value in new_values.items():
            values = list(columns[name])
            for row in changed:
                values[row] = new_value
            columns[name] = values
        empty -= {correction.tag}
        _report(correction, Counter(columns["StudyInstanceUID"][row] for row in changed), findings)
    return HeaderRows(columns, rows.rows, empty)


def _report(correction: Correction, instances: Counter[str], findings: FindingCollector) -> None:
    """Report a correction with the numbers of instances that it changed, by study."""
    element = CORRECTABLE[correction.tag].element
    reason = f" ({correction.reason})" if correction.reason else ""
    for study_uid, count in sorted(instances.items()):
        findings.within(study_uid=study_uid).add(
            "value-corrected",
            correction.tag,
            correction.value or "(removed)",
            count=count,
            message=f"{element}: by {correction.line} of the corrections file{reason}",
        )
