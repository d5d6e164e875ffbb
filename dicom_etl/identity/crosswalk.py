"""The crosswalk file: whose a subject is, decided by people (CSV: dataset, subject, system, value)."""

from __future__ import annotations

import re
from collections import Counter

from dicom_etl.csv_files import read_lines
from dicom_etl.identity.persons import CrosswalkLine
from dicom_etl.settings import URI, SettingsError


def read_crosswalk(path: str | None) -> list[CrosswalkLine]:
    """The lines of the crosswalk; none where no file is configured.

    Raises:
        SettingsError: it cannot be read, lacks a column or value, has a system that is no URI, or decides a subject
            twice. A crosswalk that was half read would turn persons into others.
    """
    lines = [_line(where, row) for where, row in read_lines("the crosswalk", path, CrosswalkLine._fields)]
    for (dataset, subject), count in Counter((line.dataset, line.subject) for line in lines).items():
        if count > 1:
            raise SettingsError(f"the crosswalk {path} has several lines for subject {subject} of {dataset}")
    return lines


def _line(where: str, row: dict[str, str]) -> CrosswalkLine:
    values = [row[field] for field in CrosswalkLine._fields]
    if not all(values):
        raise SettingsError(f"{where} lacks a value")
    line = CrosswalkLine(*values)
    if not re.fullmatch(URI, line.system):
        raise SettingsError(f"{where}: the system {line.system} is no URI")
    return line
