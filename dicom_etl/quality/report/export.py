"""Tables of the lake as files for people: CSV for spreadsheets, and Parquet.

A CSV cell that a spreadsheet would evaluate as a formula gets an apostrophe in front (OWASP, CSV injection): values of
tags are hostile. Numbers are written as numbers. Rows are written in batches, so that a table may have any size.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

__all__ = ["write_csv", "write_parquet"]

_FORMULA = "^[=+\\-@\t\r＝＋－＠]"  # some spreadsheets treat the full-width forms as the plain ones


def write_csv(sink: IO[bytes], schema: pa.Schema, batches: Iterable[pa.Table]) -> int:
    """Write rows as CSV (UTF-8, comma, a header, nothing for null); returns their number."""
    rows = 0
    with csv.CSVWriter(sink, schema) as writer:
        for batch in batches:
            columns = [
                _escape_formulas(column) if pa.types.is_string(column.type) else column
                for column in batch.select(schema.names).itercolumns()
            ]
            writer.write_table(pa.table(columns, schema=schema))
            rows += batch.num_rows
    return rows


def write_parquet(sink: IO[bytes], schema: pa.Schema, batches: Iterable[pa.Table]) -> int:
    """Write rows as Parquet; returns their number."""
    rows = 0
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_table(batch.select(schema.names))
            rows += batch.num_rows
    return rows


def _escape_formulas(column: pa.ChunkedArray) -> pa.ChunkedArray:
    is_formula = pc.fill_null(pc.match_substring_regex(column, _FORMULA), False)
    if not pc.any(is_formula).as_py():
        return column
    return pc.if_else(is_formula, pc.binary_join_element_wise("'", column, ""), column)
