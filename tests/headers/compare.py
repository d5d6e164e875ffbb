"""Both readers on the same file, with results that can be compared."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dicom_etl.headers.fast import FastReader
from dicom_etl.headers.reference import read_header
from dicom_etl.headers.row import NoRowError
from dicom_etl.headers.tag_profile import Presence


class RowContent(NamedTuple):
    """The content of a row. Values are their `repr`, so that 1 differs from 1.0, and nan equals nan."""

    values: tuple[str, ...]
    tag_profile: int
    presences: tuple[Presence, ...]
    problems: tuple[tuple[str, str, str], ...]
    pixel_data_truncated: bool
    pixel_data_absent: bool


class NoRow(NamedTuple):
    """A file that gives no row."""

    kind: str
    code: str


Result = RowContent | NoRow


def read_with_reference(content: bytes, name: str = "1.dcm", size: int | None = None) -> Result:
    """Read a file with the reference reader; `size` is that of the inventory, if it is not the true one."""
    return read_file_with_reference(io.BytesIO(content), name, len(content) if size is None else size)


def read_file_with_reference(file: BinaryIO, name: str, size: int) -> Result:
    """Read an open file with the reference reader."""
    try:
        header = read_header(file, name, size)
    except NoRowError as error:
        return NoRow(error.kind, error.code)
    return RowContent(
        tuple(map(repr, header.values)),
        header.tag_profile.id,
        header.tag_profile.presences(),
        tuple((column.name, *problem) for column, problem in header.problems),
        header.pixel_data_truncated,
        header.pixel_data_absent,
    )


def read_fast(reader: FastReader, content: bytes, name: str = "1.dcm", size: int | None = None) -> Result:
    """Read a file with a fast reader; `size` as above."""
    return read_file_fast(reader, io.BytesIO(content), name, len(content) if size is None else size)


def read_file_fast(reader: FastReader, file: BinaryIO, name: str, size: int) -> Result:
    """Read an open file with a fast reader."""
    try:
        row = reader.read(file, name, size)
    except NoRowError as error:
        return NoRow(error.kind, error.code)
    return RowContent(
        tuple(map(repr, row.values())),
        row.tag_profile.id,
        row.tag_profile.presences(),
        tuple((column.name, *problem) for column, problem in row.problems),
        row.pixel_data_truncated,
        row.pixel_data_absent,
    )


def pydicom_data_files() -> Iterator[Path]:
    """The files of the package `pydicom-data`."""
    package = importlib.util.find_spec("data_store")
    assert package is not None, "pydicom-data is not installed: pip install -e '.[dev]'"
    assert package.origin is not None
    folder = Path(package.origin).parent / "data"
    return (path for path in sorted(folder.rglob("*")) if path.is_file())
