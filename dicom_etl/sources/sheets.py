"""SDS metadata sheets (xlsx, csv, tsv, json) as cells of text.

Reads what a sheet says and judges nothing: headers are normalised (lower case, `_` as blank), empty cells and the
null values of SDS are left out. Works for the sheets of SDS 1.2.3, 2.x and 3.x.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import openpyxl

from dicom_etl.sources.base import SheetCell

_NULL = frozenset(
    """na n/a nan none null unknown not-applicable not-available asked-answered-unknown asked-answered-invalid
    asked-not-answered not-asked not-asked-not-applicable asked-not-applicable""".split()
) | {"", "not defined"}
_MOST_ROWS = 1_000_000
_ENTITY = {"subject": ("subject id",), "sample": ("sample id",)}


class SheetError(Exception):
    """A sheet cannot be read; the text says why."""


def read_sheet(kind: str, path: Path, name: str) -> list[SheetCell]:
    """The filled cells of the sheet `kind` at `path`; `name` is its path in the dataset.

    Raises:
        SheetError: it is damaged, or of a type that we do not read.
    """
    try:
        rows = [[_text(value) for value in row] for row in _READERS[path.suffix.lower()](path)]
    except Exception as error:  # openpyxl raises a dozen kinds on damaged files; all become the caller's finding
        raise SheetError(f"{type(error).__name__}: {error}") from error
    cells = _description(rows) if kind == "dataset_description" else _listed(rows)
    return [SheetCell(kind, name, *cell) for cell in cells]


def _xlsx(path: Path) -> Iterator[Iterable[Any]]:
    book = openpyxl.load_workbook(io.BytesIO(path.read_bytes()), read_only=True, data_only=True)
    yield from book.worksheets[0].iter_rows(values_only=True, max_row=_MOST_ROWS)


def _separated(path: Path) -> Iterator[Iterable[Any]]:
    text = path.read_text(encoding="utf-8-sig")
    yield from csv.reader(io.StringIO(text), delimiter="\t" if path.suffix.lower() == ".tsv" else ",")


def _json(path: Path) -> Iterator[Iterable[Any]]:
    records = json.loads(path.read_text(encoding="utf-8-sig"))
    if isinstance(records, dict):
        lists = [value for value in records.values() if isinstance(value, list)]
        records = lists[0] if lists else [records]
    header = list(dict.fromkeys(key for record in records for key in record))
    yield header
    yield from ([record.get(key) for key in header] for record in records)


_READERS = {".xlsx": _xlsx, ".csv": _separated, ".tsv": _separated, ".json": _json}


def _text(value: Any) -> str:
    """A cell as text; midnight of a date cell is the date."""
    text = "" if value is None else str(value).strip()
    return text.removesuffix(" 00:00:00")


def _field(header: str) -> str:
    return " ".join(header.lower().replace("_", " ").split())


def _listed(rows: list[list[str]]) -> Iterator[tuple[int, str | None, str | None, str, str]]:
    """One entity per row under a row of headers."""
    if not rows:
        return
    fields = [_field(header) for header in rows[0]]
    for number, row in enumerate(rows[1:], start=2):
        values = {f: v for f, v in zip(fields, row, strict=False) if f and v.lower() not in _NULL}
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
