"""SDS metadata sheets (xlsx, csv, tsv, json) as cells of text.

Reads what a sheet says and judges nothing: headers are normalised (lower case, `_` as blank), empty cells and the
null values of SDS are left out. Works for the sheets of SDS 1.2.3, 2.x and 3.x.
"""

from __future__ import annotations

import csv
import io
import json
import re
import stat
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from dicom_etl.sources.base import SheetCell
from dicom_etl.sources.grammar import load_grammar

_NULL = frozenset(
    """na n/a nan none null unknown not-applicable not-available asked-answered-unknown asked-answered-invalid
    asked-not-answered not-asked not-asked-not-applicable asked-not-applicable""".split()
) | {"", "not defined"}
_MOST_ROWS = 1_000_000
_MOST_BYTES = 50_000_000
_MOST_INFLATED = 500_000_000  # of the parts of a workbook
_ENTITY = {"subject": ("subject id",), "sample": ("sample id",)}


class SheetError(Exception):
    """A sheet cannot be read; the text says why."""


def read_sheet(kind: str, path: Path, name: str) -> list[SheetCell]:
    """The filled cells of the sheet `kind` at `path`; `name` is its path in the dataset.

    Raises:
        SheetError: it is damaged, or of a type that we do not read.
    """
    try:
        rows = [[_text(value) for value in row] for row in _rows(kind, path.suffix.lower(), _content(path))]
    except SheetError:
        raise
    except Exception as error:  # openpyxl raises a dozen kinds on damaged files; all become the caller's finding
        raise SheetError(f"{type(error).__name__}: {error}") from error
    cells = _description(rows) if kind == "dataset_description" else _listed(rows)
    return [SheetCell(kind, name, *cell) for cell in cells]


def _content(path: Path) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer
        raise SheetError("it is no file")
    if status.st_size > _MOST_BYTES:
        raise SheetError(f"it has {status.st_size:,} bytes; sheets of at most {_MOST_BYTES:,} are read")
    with path.open("rb") as file:
        return file.read(_MOST_BYTES)


def _rows(kind: str, suffix: str, content: bytes) -> Iterable[Iterable[Any]]:
    if suffix == ".xlsx":
        return _xlsx(content)
    text = content.decode("utf-8-sig")
    if suffix == ".json":
        return _json(json.loads(text), description=kind == "dataset_description")
    return csv.reader(io.StringIO(text, newline=None), delimiter="\t" if suffix == ".tsv" else ",")


def _xlsx(content: bytes) -> Iterator[Iterable[Any]]:
    with zipfile.ZipFile(io.BytesIO(content)) as parts:
        inflated = sum(part.file_size for part in parts.infolist())
    if inflated > _MOST_INFLATED:
        raise SheetError(f"it inflates to {inflated:,} bytes; workbooks of at most {_MOST_INFLATED:,} are read")
    import openpyxl  # noqa: PLC0415  (workers that read DICOM files need none of it)

    book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
    yield from book.worksheets[0].iter_rows(values_only=True, max_row=_MOST_ROWS)


def _json(content: Any, *, description: bool) -> Iterator[Iterable[Any]]:
    """Records, alone or under a name; of the description also one object with a key for each field."""
    lists = [value for value in content.values() if _are_records(value)] if isinstance(content, dict) else []
    if description and isinstance(content, dict) and not (len(content) == 1 and lists):
        yield ["metadata element", "value"]
        yield from ([key, " | ".join(values)] for key, values in _leaves(content).items())
        return
    records = (lists[0] if lists else [content]) if isinstance(content, dict) else content
    header = list(dict.fromkeys(key for record in records for key in record))
    yield header
    yield from ([record.get(key) for key in header] for record in records)


def _are_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(record, dict) for record in value)


def _leaves(content: dict[str, Any]) -> dict[str, list[str]]:
    """The values of an object by key; groups of fields are no fields."""
    found: dict[str, list[str]] = defaultdict(list)
    for key, value in content.items():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict):
                for inner, values in _leaves(part).items():
                    found[inner] += values
            elif (text := _text(part)).lower() not in _NULL:
                found[key].append(text)
    return found


def _text(value: Any) -> str:
    """A cell as text; midnight of a date cell is the date."""
    if isinstance(value, list):
        return " | ".join(map(_text, value))
    text = "" if value is None else str(value).strip()
    return text.removesuffix(" 00:00:00")


def _field(header: str) -> str:
    field = " ".join(header.lower().replace("_", " ").split())
    return _same_fields().get(field, field)


@cache
def _same_fields() -> dict[str, str]:
    """Fields that versions of SDS write differently."""
    return {entry["written"]: entry["field"] for entry in load_grammar()["same_fields"]}


def _is_template(values: dict[str, str]) -> bool:
    """Whether a row is one of those that explain the empty sheet (SDS 1.2.3)."""
    return any(
        all(re.fullmatch(pattern, values.get(field, "")) for field, pattern in row.items())
        for row in load_grammar()["template_rows"]
    )


def _listed(rows: list[list[str]]) -> Iterator[tuple[int, str | None, str | None, str, str]]:
    """One entity per row under a row of headers."""
    if not rows:
        return
    fields = [_field(header) for header in rows[0]]
    for number, row in enumerate(rows[1:], start=2):
        values = {f: v for f, v in zip(fields, row, strict=False) if f and v.lower() not in _NULL}
        if _is_template(values):
            continue
        subject, sample = (_first(values, _ENTITY[kind]) for kind in ("subject", "sample"))
        for field, value in values.items():
            yield number, subject, sample, field, value


def _first(values: dict[str, str], fields: tuple[str, ...]) -> str | None:
    return next((values[field] for field in fields if field in values), None)


def _description(rows: list[list[str]]) -> Iterator[tuple[int, str | None, str | None, str, str]]:
    """One field per row: its name in the first column, values in the columns headed Value."""
    if not rows:
        return
    columns = [i for i, header in enumerate(rows[0]) if _field(header).startswith("value")]
    for number, row in enumerate(rows[1:], start=2):
        values = [row[i] for i in columns if i < len(row) and row[i].lower() not in _NULL]
        if row and row[0] and values:
            yield number, None, None, _field(row[0]), " | ".join(values)
