"""CSV files that people write and that settings name: read completely, or refused with the reason.

Not here: the meaning of their rows (`identity.crosswalk`, `fhir.corrections`).
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping
from pathlib import Path

from dicom_etl.renames import describe_rename
from dicom_etl.settings import SettingsError


def read_rows(
    name: str,
    path: str | None,
    required: Collection[str],
    allowed: Collection[str] | None = None,
    renames: Mapping[str, str] | None = None,
) -> list[tuple[str, dict[str, str]]]:
    """The rows of a file, each with its location as text for messages; none if no file is configured.

    Args:
        name: of the file in messages, as in `the crosswalk`.
        path: of the file, in UTF-8.
        required: columns that it must have; blanks around values are removed.
        allowed: all columns that it may have; None: any.
        renames: columns of earlier versions -> their names now.

    Raises:
        SettingsError: it cannot be read, lacks a column or has an unknown one. A file that was read only in part would
            change data that nobody meant to change.
    """
    if path is None:
        return []
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or ()
            for column in columns:
                if sentence := describe_rename(renames or {}, column, "column"):
                    raise SettingsError(f"{name} {path}: {sentence}")
            if missing := sorted(set(required) - set(columns)):
                raise SettingsError(f"{name} {path} lacks the column {', '.join(missing)}")
            if allowed is not None and (unknown := sorted(set(columns) - set(allowed))):
                allowed_names = ", ".join(sorted(allowed))
                raise SettingsError(f"{name} {path} has the column {unknown[0]}; there are {allowed_names}")
            return [(f"line {reader.line_num} of {name} {path}", _clean(row)) for row in reader]
    except OSError as error:
        raise SettingsError(f"{name} {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{name} {path} is not UTF-8 text: save it as CSV UTF-8") from None


def _clean(row: dict[str | None, str | list[str] | None]) -> dict[str, str]:
    """The cells as text; cells beyond the last column are ignored."""
    return {key: value.strip() if isinstance(value, str) else "" for key, value in row.items() if key}
