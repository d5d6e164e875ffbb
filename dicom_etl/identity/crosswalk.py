"""The crosswalk file: whose a subject is, decided by people (CSV: dataset, subject, system, value)."""

from __future__ import annotations

import csv
import re
from collections import Counter
from pathlib import Path

from dicom_etl.identity.persons import CrosswalkLine
from dicom_etl.settings import URI, SettingsError


def read_crosswalk(path: str | None) -> list[CrosswalkLine]:
    """The lines of the crosswalk; none where no file is configured.

    Raises:
        SettingsError: it cannot be read, lacks a column or value, has a system that is no URI, or decides a subject
            twice. A crosswalk that was half read would turn persons into others.
    """
    if path is None:
        return []
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = set(CrosswalkLine._fields) - set(reader.fieldnames or ())
            if missing:
                raise SettingsError(f"the crosswalk {path} lacks the column {', '.join(sorted(missing))}")
            lines = [_line(path, reader.line_num, row) for row in reader]
    except OSError as error:
        raise SettingsError(f"the crosswalk {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"the crosswalk {path} is not UTF-8 text: save it as CSV UTF-8") from None
    for (dataset, subject), count in Counter((line.dataset, line.subject) for line in lines).items():
        if count > 1:
            raise SettingsError(f"the crosswalk {path} has several lines for subject {subject} of {dataset}")
    return lines


def _line(path: str, number: int, row: dict[str, str | None]) -> CrosswalkLine:
    values = [(row[field] or "").strip() for field in CrosswalkLine._fields]
    if not all(values):
        raise SettingsError(f"line {number} of the crosswalk {path} lacks a value")
    line = CrosswalkLine(*values)
    if not re.fullmatch(URI, line.system):
        raise SettingsError(f"line {number} of the crosswalk {path}: the system {line.system} is no URI")
    return line
