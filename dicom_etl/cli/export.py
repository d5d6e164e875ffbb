"""Export of rows of lake tables as CSV or Parquet, for `completeness` and `findings`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.cli.output import count_noun
from dicom_etl.cli.session import Session
from dicom_etl.errors import UserError
from dicom_etl.lake.schemas import Table
from dicom_etl.quality.report.export import write_csv, write_parquet

_FORMATS: dict[str, Callable[[IO[bytes], pa.Schema, Iterable[pa.Table]], int]] = {
    ".csv": write_csv,
    ".parquet": write_parquet,
}


def write_rows(
    session: Session,
    table: Table,
    batches: Iterable[pa.Table],
    output: Path | None,
    filters: Mapping[str, list[str] | None] | None = None,
) -> None:
    """Write rows of a lake table to a .csv or .parquet file, or as CSV to standard output.

    Args:
        session: shows how many rows were written to a file.
        table: gives the schema.
        batches: its rows.
        output: the file; None: standard output.
        filters: column -> the values that a row must have one of; an empty list does not limit anything.

    Raises:
        UserError: the file cannot be written, or its name does not end in .csv or .parquet.
    """
    rows = _filter(batches, filters or {})
    if output is None:
        _print_csv(table, rows)
        return
    write = _FORMATS.get(output.suffix.lower())
    if write is None:
        raise UserError(f"--output {output}: the name must end in {' or '.join(_FORMATS)}")
    unfinished = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as sink:
            count = write(sink, table.schema, rows)
        unfinished.replace(output)
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror or error}") from None
    finally:
        unfinished.unlink(missing_ok=True)
    session.notify(f"{output}: {count_noun(count, 'row')}")


def _filter(batches: Iterable[pa.Table], filters: Mapping[str, list[str] | None]) -> Iterator[pa.Table]:
    for batch in batches:
        rows = batch
        for column, values in filters.items():
            if values:
                rows = rows.filter(pc.is_in(rows[column], pa.array(values, pa.string())))
        yield rows


def _print_csv(table: Table, batches: Iterable[pa.Table]) -> None:
    """Print CSV; a reader that closes the pipe early (`| head`) is not an error."""
    try:
        write_csv(sys.stdout.buffer, table.schema, batches)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
