"""Parquet as the lake writes and reads it: rows in a fixed order, in row groups of fixed sizes.

Not here: where a table is stored (`lake.tables`), and how large its row groups are (`lake.schemas`, `lake.shards`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dicom_etl.lake.schemas import Table


class SchemaError(Exception):
    """A table does not fit its description."""


def make_empty_table(table: Table, columns: Sequence[str] | None = None) -> pa.Table:
    """A table without rows."""
    schema = table.schema
    return pa.schema([schema.field(name) for name in columns] if columns else schema).empty_table()


def write_row_groups(
    sink: IO[bytes],
    table: Table,
    pieces: Iterable[pa.Table],
    groups: Sequence[int] | None = None,
    *,
    metadata: Mapping[bytes, bytes],
) -> None:
    """Write a table into an open file, a row group at a time.

    Without ARROW:schema the footer is a third smaller, and the plain types need it not; statistics stand where queries
    choose by them. Dictionaries take longer than they save: zstd finds the same repetitions.

    Args:
        sink: the file.
        table: its description.
        pieces: rows; each piece comes after the one before it in the order of the table.
        groups: the sizes of the row groups; None: those of the table. The bytes do not depend on the pieces.
        metadata: of the footer.

    Raises:
        SchemaError: a column of a piece is missing, unknown or of another type; a piece is out of order.
    """
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        store_schema=False,
        write_statistics=list(table.statistics_columns) or False,
        use_dictionary=False,
        write_page_checksum=True,
    ) as writer:
        written = _RowGroups(table, writer, groups)
        for piece in pieces:
            written.add(piece)
        written.finish()
        writer.add_key_value_metadata(metadata)


class _RowGroups:
    """Pieces of a table as row groups of given sizes, whatever the size of the pieces."""

    def __init__(self, table: Table, parquet: pq.ParquetWriter, sizes: Sequence[int] | None) -> None:
        self._table, self._parquet = table, parquet
        self._sizes = iter(sizes) if sizes is not None else repeat(table.row_group_size)
        self._size = next(self._sizes, table.row_group_size)
        self._waiting: list[pa.Table] = []
        self._last: tuple[Any, ...] | None = None
        self._is_empty = True

    def add(self, rows: pa.Table) -> None:
        """Take rows, in any order among themselves."""
        rows = _fitting(self._table, rows)
        if not _in_order(rows, self._table.order):
            rows = rows.sort_by([(name, "ascending") for name in self._table.order])
        self._check_order(rows)
        self._waiting.append(rows)
        if sum(piece.num_rows for piece in self._waiting) >= self._size:
            rows = pa.concat_tables(self._waiting)
            while rows.num_rows >= self._size:
                self._write(rows.slice(0, self._size))
                rows = rows.slice(self._size)
                self._size = next(self._sizes, self._table.row_group_size)
            self._waiting = [rows]

    def finish(self) -> None:
        """Write what waits for a full row group."""
        rows = pa.concat_tables(self._waiting) if self._waiting else self._table.schema.empty_table()
        if rows.num_rows or self._is_empty:
            self._write(rows)

    def _write(self, rows: pa.Table) -> None:
        self._parquet.write_table(rows.combine_chunks(), row_group_size=max(1, rows.num_rows))
        self._is_empty = False

    def _check_order(self, rows: pa.Table) -> None:
        if rows.num_rows == 0:
            return
        first, last = (_sort_key(rows[name][place] for name in self._table.order) for place in (0, -1))
        if self._last is not None and first < self._last:
            raise SchemaError(f"{self._table.name}: a piece begins before the end of the one before it")
        self._last = last


def _sort_key(values: Iterable[pa.Scalar]) -> tuple[Any, ...]:
    """Values as they are ordered by a sort: a null is the last."""
    return tuple((value is None, "" if value is None else value) for value in (scalar.as_py() for scalar in values))


def select_row_groups(metadata: pq.FileMetaData, ranges: Mapping[str, tuple[str, str]]) -> Iterator[int]:
    """The row groups that may hold rows of which each of some columns has a value between two values."""
    numbers = [(metadata.schema.names.index(column), first, last) for column, (first, last) in ranges.items()]
    for group in range(metadata.num_row_groups):
        chunks = metadata.row_group(group)
        if all(_may_hold(chunks.column(number).statistics, first, last) for number, first, last in numbers):
            yield group


def _may_hold(known: pq.Statistics | None, first: str, last: str) -> bool:
    return known is None or not known.has_min_max or (known.min <= last and first <= known.max)


def read_parquet(source: IO[bytes], columns: list[str] | None = None) -> pa.Table:
    """The rows of an open Parquet file.

    Not `pq.read_table`: over a Python file its threads may outlive the interpreter and abort the process (pyarrow 26).
    """
    return pq.ParquetFile(source, page_checksum_verification=True).read(columns=columns, use_threads=False)


def _fitting(table: Table, rows: pa.Table) -> pa.Table:
    schema = table.schema
    if rows.schema.equals(schema):
        return rows.combine_chunks()
    if set(rows.column_names) != set(schema.names):
        odd = sorted(set(rows.column_names) ^ set(schema.names))
        raise SchemaError(f"{table.name}: missing or unknown columns: {', '.join(odd)}")
    rows = rows.select(schema.names)
    for wanted, got in zip(schema, rows.schema, strict=True):
        if wanted.type != got.type and not pa.types.is_null(got.type):
            raise SchemaError(f"{table.name}.{wanted.name} is {got.type} and should be {wanted.type}")
    return rows.cast(schema).combine_chunks()


def _in_order(rows: pa.Table, order: Sequence[str]) -> bool:
    """Whether rows lie in an order already, as far as can be seen at little cost."""
    tied = pa.scalar(True)
    for name in order:
        former, next_ = rows[name].slice(0, max(0, rows.num_rows - 1)), rows[name].slice(1)
        if rows[name].null_count:
            return False
        if pc.any(pc.and_(tied, pc.greater(former, next_))).as_py():
            return False
        tied = pc.and_(tied, pc.equal(former, next_))
        if not pc.any(tied).as_py():
            return True
    return True
