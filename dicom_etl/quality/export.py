"""The quality tables as CSV for spreadsheets.

A cell that a spreadsheet would run as a formula gets an apostrophe in front (OWASP, CSV injection): values of tags are
hostile. Numbers are written as numbers.
"""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

__all__ = ["defused_csv"]

_RUN = "^[=+\\-@\t\r＝＋－＠]"  # the wide forms too, which some spreadsheets take for the narrow ones


def defused_csv(table: pa.Table) -> bytes:
    """The table as CSV (UTF-8, comma, a header, null as nothing)."""
    columns = [_defused(column) if pa.types.is_string(column.type) else column for column in table.itercolumns()]
    sink = io.BytesIO()
    csv.write_csv(pa.table(columns, names=table.column_names), sink)
    return sink.getvalue()


def _defused(column: pa.ChunkedArray) -> pa.ChunkedArray:
    run = pc.fill_null(pc.match_substring_regex(column, _RUN), False)
    return pc.if_else(run, pc.binary_join_element_wise("'", column, ""), column)
