"""SDS metadata sheets (xlsx, csv, tsv, json) as cells of text.

Column headers are normalised (lower case, `_` as blank); empty cells and the null values of SDS are omitted. The sheets
of SDS 1.2.3, 2.x and 3.x are supported.

Not here: checks of the values (`quality`), and the subjects that sheets assign (`sheet_subjects`).
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
MAX_ROWS = 1_000_000
MAX_BYTES = 50_000_000
MAX_INFLATED_BYTES = 500_000_000  # of the parts of a workbook


class SheetError(Exception):
    """A sheet cannot be read; the text is the reason."""


def read_sheet(kind: str, path: Path, name: str) -> list[SheetCell]:
    """The filled cells of the sheet `kind` at `path`; `name` is its path in the dataset.

    Raises:
        SheetError: it is damaged, too large, or not a file.
    """
    try:
        rows = [[_to_text(value) for value in row] for row in _parse(kind, path.suffix.lower(), _read_content(path))]
    except SheetError:
        raise
    except Exception as error:  # openpyxl raises a dozen types for damaged files; all become a finding
        raise SheetError(f"{type(error).__name__}: {error}") from error
    cells = _list_description(rows) if kind == "dataset_description" else _list_records(rows)
    return [SheetCell(kind, name, *cell) for cell in cells]


def _read_content(path: Path) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer
        raise SheetError("it is not a file")
    if status.st_size > MAX_BYTES:
        raise SheetError(f"it has {status.st_size:,} bytes; sheets of at most {MAX_BYTES:,} are read")
    with path.open("rb") as file:
        return file.read(MAX_BYTES)


def _parse(kind: str, suffix: str, content: bytes) -> Iterable[Iterable[Any]]:
    if suffix == ".xlsx":
        return _parse_workbook(content)
    text = content.decode("utf-8-sig")
    if suffix == ".json":
        return _parse_json(json.loads(text), is_description=kind == "dataset_description")
    return csv.reader(io.StringIO(text, newline=None), delimiter="\t" if suffix == ".tsv" else ",")


def _parse_workbook(content: bytes) -> Iterator[Iterable[Any]]:
    with zipfile.ZipFile(io.BytesIO(content)) as parts:
        inflated = sum(part.file_size for part in parts.infolist())
    if inflated > MAX_INFLATED_BYTES:
        raise SheetError(f"it inflates to {inflated:,} bytes; workbooks of at most {MAX_INFLATED_BYTES:,} are read")
    import openpyxl  # noqa: PLC0415  (workers that read DICOM files do not need it)

    book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
    yield from book.worksheets[0].iter_rows(values_only=True, max_row=MAX_ROWS)


def _parse_json(content: Any, *, is_description: bool) -> Iterator[Iterable[Any]]:
    """A list of records, at the top or under a key; a description may also be one object with a key for each field."""
    lists = [value for value in content.values() if _is_record_list(value)] if isinstance(content, dict) else []
    if is_description and isinstance(content, dict) and not (len(content) == 1 and lists):
        yield ["metadata element", "value"]
        yield from ([key, " | ".join(values)] for key, values in _collect_fields(content).items())
        return
    records = (lists[0] if lists else [content]) if isinstance(content, dict) else content
    header = list(dict.fromkeys(key for record in records for key in record))
    yield header
    yield from ([record.get(key) for key in header] for record in records)


def _is_record_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(record, dict) for record in value)


def _collect_fields(content: dict[str, Any]) -> dict[str, list[str]]:
    """The values of an object by key; nested objects are groups of fields."""
    fields: dict[str, list[str]] = defaultdict(list)
    for key, value in content.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, dict):
                for inner, values in _collect_fields(item).items():
                    fields[inner] += values
            elif (text := _to_text(item)).lower() not in _NULL:
                fields[key].append(text)
    return fields


def _to_text(value: Any) -> str:
    """A cell as text; a date cell has no time of day."""
    if isinstance(value, list):
        return " | ".join(map(_to_text, value))
    text = "" if value is None else str(value).strip()
    return text.removesuffix(" 00:00:00")


def _normalise_field(header: str) -> str:
    field = " ".join(header.lower().replace("_", " ").split())
    return _field_aliases().get(field, field)


@cache
def _field_aliases() -> dict[str, str]:
    """Fields that versions of SDS spell differently -> the name used here."""
    return {entry["alias"]: entry["field"] for entry in load_grammar()["field_aliases"]}


def _is_template(values: dict[str, str]) -> bool:
    """Whether a row is one of the explanations and examples in an empty sheet of SDS 1.2.3."""
    return any(
        all(re.fullmatch(pattern, values.get(field, "")) for field, pattern in row.items())
        for row in load_grammar()["template_rows"]
    )


def _list_records(rows: list[list[str]]) -> Iterator[tuple[int, str | None, str | None, str, str]]:
    """One entity per row under a row of headers."""
    if not rows:
        return
    fields = [_normalise_field(header) for header in rows[0]]
    for number, row in enumerate(rows[1:], start=2):
        values = {f: v for f, v in zip(fields, row, strict=False) if f and v.lower() not in _NULL}
        if _is_template(values):
            continue
        for field, value in values.items():
            yield number, values.get("subject id"), values.get("sample id"), field, value


def _list_description(rows: list[list[str]]) -> Iterator[tuple[int, str | None, str | None, str, str]]:
    """One field per row: its name in the first column, values in the columns headed Value."""
    if not rows:
        return
    columns = [i for i, header in enumerate(rows[0]) if _normalise_field(header).startswith("value")]
    for number, row in enumerate(rows[1:], start=2):
        values = [row[i] for i in columns if i < len(row) and row[i].lower() not in _NULL]
        if row and row[0] and values:
            yield number, None, None, _normalise_field(row[0]), " | ".join(values)
