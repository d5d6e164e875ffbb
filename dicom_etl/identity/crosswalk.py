"""The crosswalk file: the patients of subjects as decided by people (CSV: dataset, subject, system, value)."""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

from dicom_etl.csv_files import read_rows
from dicom_etl.settings import URI, SettingsError


class CrosswalkEntry(NamedTuple):
    """A line of the crosswalk: the identifier (`system`, `value`) of a subject's patient."""

    dataset: str
    subject: str
    system: str
    value: str


def read_crosswalk(path: str | None) -> list[CrosswalkEntry]:
    """The entries of the crosswalk; none if no file is configured.

    Raises:
        SettingsError: it cannot be read, lacks a column or value, has a system that is not a URI, or decides a subject
            twice. A crosswalk that was read only in part would assign studies to other patients.
    """
    entries = [_parse_entry(where, row) for where, row in read_rows("the crosswalk", path, CrosswalkEntry._fields)]
    for (dataset, subject), count in Counter((entry.dataset, entry.subject) for entry in entries).items():
        if count > 1:
            raise SettingsError(f"the crosswalk {path} has {count} lines for subject {subject} of {dataset}; keep one")
    return entries


def _parse_entry(where: str, row: dict[str, str]) -> CrosswalkEntry:
    entry = CrosswalkEntry(*(row[field] for field in CrosswalkEntry._fields))
    if empty := [field for field in CrosswalkEntry._fields if not row[field]]:
        raise SettingsError(f"{where} has no value in column {empty[0]}")
    if not re.fullmatch(URI, entry.system):
        raise SettingsError(f"{where}: the system {entry.system} is not a URI")
    return entry
