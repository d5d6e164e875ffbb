"""What the two readers say of a file, in a form that can be compared."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dicom_etl.headers.fast import FastReader
from dicom_etl.headers.reference import NoRowError, read_header
from dicom_etl.headers.tag_profile import Presence


class Said(NamedTuple):
    """A row. Values are their `repr`, so that 1 is not 1.0, and nan is nan."""

    values: tuple[str, ...]
    tag_profile: int
    presences: tuple[Presence, ...]
    problems: tuple[tuple[str, str, str], ...]
    pixel_data_truncated: bool
    pixel_data_absent: bool


class Refused(NamedTuple):
    """A file that gives no row."""

    kind: str
    code: str


def decided(content: bytes, name: str = "1.dcm", size: int | None = None) -> Said | Refused:
    """What the reader that decides says of a file; `size` is that of the inventory, if it is not the true one."""
    return decided_of(io.BytesIO(content), name, len(content) if size is None else size)


def decided_of(file: BinaryIO, name: str, size: int) -> Said | Refused:
    """What the reader that decides says of an open file."""
    try:
        header = read_header(file, name, size)
    except NoRowError as why:
        return Refused(why.kind, why.code)
    return Said(
        tuple(map(repr, header.values)),
        header.tag_profile.id,
        header.tag_profile.presences(),
        tuple((column.name, *problem) for column, problem in header.problems),
        header.pixel_data_truncated,
        header.pixel_data_absent,
    )


def said(reader: FastReader, content: bytes, name: str = "1.dcm", size: int | None = None) -> Said | Refused:
    """What the fast reader says."""
    return said_of(reader, io.BytesIO(content), name, len(content) if size is None else size)


def said_of(reader: FastReader, file: BinaryIO, name: str, size: int) -> Said | Refused:
    """What the fast reader says of an open file."""
    try:
        row = reader.read(file, name, size)
    except NoRowError as why:
        return Refused(why.kind, why.code)
    return Said(
        tuple(map(repr, row.values())),
        row.tag_profile.id,
        row.tag_profile.presences(),
        tuple((column.name, *problem) for column, problem in row.problems),
        row.pixel_data_truncated,
        row.pixel_data_absent,
    )


def downloaded() -> Iterator[Path]:
    """The files of the package `pydicom-data`."""
    found = importlib.util.find_spec("data_store")
    assert found is not None, "pydicom-data is not installed: pip install -e '.[dev]'"
    assert found.origin is not None
    folder = Path(found.origin).parent / "data"
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
