"""CSV files that people write and settings name: read whole, or refused with a sentence that says why.

Not here: what their lines mean.
"""

from __future__ import annotations

import csv
from collections.abc import Collection
from pathlib import Path

from dicom_etl.settings import SettingsError


def read_lines(
    what: str, path: str | None, needed: Collection[str], known: Collection[str] | None = None
) -> list[tuple[str, dict[str, str]]]:
    """The lines of a file, each with the words that name it in a sentence; none where no file is configured.

    Args:
        what: the file is, as in `the crosswalk`.
        path: of the file, in UTF-8.
        needed: columns that it must have; blanks around values are dropped.
        known: all columns that it may have; None: any.

    Raises:
        SettingsError: it cannot be read, lacks a column or has one that is not known. A file that was half read would
            change what nobody meant to change.
    """
    if path is None:
        return []
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or ()
            if missing := sorted(set(needed) - set(columns)):
                raise SettingsError(f"{what} {path} lacks the column {', '.join(missing)}")
            if known is not None and (unknown := sorted(set(columns) - set(known))):
                raise SettingsError(f"{what} {path} has the column {unknown[0]}; there are {', '.join(sorted(known))}")
            return [(f"line {reader.line_num} of {what} {path}", _plain(row)) for row in reader]
    except OSError as error:
        raise SettingsError(f"{what} {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{what} {path} is not UTF-8 text: save it as CSV UTF-8") from None


def _plain(row: dict[str | None, str | list[str] | None]) -> dict[str, str]:
    """The cells as text; what stands beyond the last column is left out."""
    return {key: value.strip() if isinstance(value, str) else "" for key, value in row.items() if key}
