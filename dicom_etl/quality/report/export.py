"""Quality tables as files for people: CSV for spreadsheets, and Parquet.

A CSV cell that a spreadsheet would run as a formula gets an apostrophe in front (OWASP, CSV injection): values of tags
are hostile. Numbers are written as numbers. Rows are written in pieces, so that a table may be of any size.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

__all__ = ["write_csv", "write_parquet"]

_FORMULA = "^[=+\\-@\t\r＝＋－＠]"  # the wide forms too, which some spreadsheets take for the narrow ones


def write_csv(sink: IO[bytes], schema: pa.Schema, pieces: Iterable[pa.Table]) -> int:
    """Write rows as CSV (UTF-8, comma, a header, null as nothing); returns how many there were."""
    rows = 0
    with csv.CSVWriter(sink, schema) as writer:
        for piece in pieces:
            writer.write_table(_defuse(piece.select(schema.names)))
            rows += piece.num_rows
    return rows


def write_parquet(sink: IO[bytes], schema: pa.Schema, pieces: Iterable[pa.Table]) -> int:
    """Write rows as Parquet; returns how many there were."""
    rows = 0
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for piece in pieces:
            writer.write_table(piece.select(schema.names))
            rows += piece.num_rows
    return rows


def _defuse(rows: pa.Table) -> pa.Table:
    columns = [_defused(column) if pa.types.is_string(column.type) else column for column in rows.itercolumns()]
    return pa.table(columns, schema=rows.schema)


def _defused(column: pa.ChunkedArray) -> pa.ChunkedArray:
    is_formula = pc.fill_null(pc.match_substring_regex(column, _FORMULA), False)
    if not pc.any(is_formula).as_py():
        return column
    return pc.if_else(is_formula, pc.binary_join_element_wise("'", column, ""), column)
