"""Parquet files of the lake: rows in a fixed order, in row groups of fixed sizes.

Not here: the location of a table (`lake.tables`), and the sizes of row groups (`lake.schemas`, `lake.shards`).
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
    """The columns or the order of rows do not match the description of the table."""


def make_empty_table(table: Table, columns: Sequence[str] | None = None) -> pa.Table:
    """A table without rows; `columns` None: all of its columns."""
    schema = table.schema
    return pa.schema([schema.field(name) for name in columns] if columns else schema).empty_table()


def write_row_groups(
    sink: IO[bytes],
    table: Table,
    batches: Iterable[pa.Table],
    groups: Sequence[int] | None = None,
    *,
    metadata: Mapping[bytes, bytes],
) -> None:
    """Write a table into an open file, one row group at a time.

    Without ARROW:schema the footer is a third smaller, and the plain types do not need it. Only columns that queries
    filter by have statistics. Dictionary encoding costs more time than it saves: zstd finds the same repetitions.

    Args:
        sink: the file.
        table: its description.
        batches: rows; each batch comes after the previous one in the order of the table.
        groups: the sizes of the row groups; None: that of the table. The bytes do not depend on the batches.
        metadata: keys and values of the footer.

    Raises:
        SchemaError: a column of a batch is missing, unknown or of another type; a batch is out of order.
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
        row_groups = _RowGroups(table, writer, groups)
        for batch in batches:
            row_groups.add(batch)
        row_groups.finish()
        writer.add_key_value_metadata(metadata)


class _RowGroups:
    """Writes batches of any size as row groups of given sizes."""

    def __init__(self, table: Table, parquet: pq.ParquetWriter, sizes: Sequence[int] | None) -> None:
        self._table, self._parquet = table, parquet
        self._sizes = iter(sizes) if sizes is not None else repeat(table.row_group_size)
        self._size = next(self._sizes, table.row_group_size)
        self._pending: list[pa.Table] = []
        self._last: tuple[Any, ...] | None = None
        self._is_empty = True

    def add(self, rows: pa.Table) -> None:
        """Add a batch; its rows may be in any order."""
        rows = _match_schema(self._table, rows)
        if not _is_sorted(rows, self._table.order):
            rows = rows.sort_by([(name, "ascending") for name in self._table.order])
        self._check_order(rows)
        self._pending.append(rows)
        if sum(batch.num_rows for batch in self._pending) >= self._size:
            rows = pa.concat_tables(self._pending)
            while rows.num_rows >= self._size:
                self._write(rows.slice(0, self._size))
                rows = rows.slice(self._size)
                self._size = next(self._sizes, self._table.row_group_size)
            self._pending = [rows]

    def finish(self) -> None:
        """Write the last, incomplete row group."""
        rows = pa.concat_tables(self._pending) if self._pending else self._table.schema.empty_table()
        if rows.num_rows or self._is_empty:
            self._write(rows)

    def _write(self, rows: pa.Table) -> None:
        self._parquet.write_table(rows.combine_chunks(), row_group_size=max(1, rows.num_rows))
        self._is_empty = False

    def _check_order(self, rows: pa.Table) -> None:
        if rows.num_rows == 0:
            return
        first, last = (_sort_key(rows[name][index] for name in self._table.order) for index in (0, -1))
        if self._last is not None and first < self._last:
            raise SchemaError(f"{self._table.name}: a batch begins before the end of the previous one")
        self._last = last


def _sort_key(values: Iterable[pa.Scalar]) -> tuple[Any, ...]:
    """Values in a form that compares like the order of a sort: a null is last."""
    return tuple((value is None, "" if value is None else value) for value in (scalar.as_py() for scalar in values))


def select_row_groups(metadata: pq.FileMetaData, ranges: Mapping[str, tuple[str, str]]) -> Iterator[int]:
    """The numbers of row groups that may contain rows with values in ranges; by column the first and last value."""
    numbers = [(metadata.schema.names.index(column), first, last) for column, (first, last) in ranges.items()]
    for group in range(metadata.num_row_groups):
        chunks = metadata.row_group(group)
        if all(_may_contain(chunks.column(number).statistics, first, last) for number, first, last in numbers):
            yield group


def _may_contain(statistics: pq.Statistics | None, first: str, last: str) -> bool:
    return statistics is None or not statistics.has_min_max or (statistics.min <= last and first <= statistics.max)


def read_parquet(source: IO[bytes], columns: list[str] | None = None) -> pa.Table:
    """Read an open Parquet file; `columns` None: all.

    Not with `pq.read_table`: its threads over a Python file may outlive the interpreter and abort the process (pyarrow
    26).
    """
    return pq.ParquetFile(source, page_checksum_verification=True).read(columns=columns, use_threads=False)


def _match_schema(table: Table, rows: pa.Table) -> pa.Table:
    schema = table.schema
    if rows.schema.equals(schema):
        return rows.combine_chunks()
    if set(rows.column_names) != set(schema.names):
        different = sorted(set(rows.column_names) ^ set(schema.names))
        raise SchemaError(f"{table.name}: missing or unknown columns: {', '.join(different)}")
    rows = rows.select(schema.names)
    for expected, actual in zip(schema, rows.schema, strict=True):
        if expected.type != actual.type and not pa.types.is_null(actual.type):
            raise SchemaError(f"{table.name}.{expected.name} is {actual.type} and should be {expected.type}")
    return rows.cast(schema).combine_chunks()


def _is_sorted(rows: pa.Table, order: Sequence[str]) -> bool:
    """Whether rows are certainly in an order already; cheaper than a sort, and False if it is not certain."""
    is_tied = pa.scalar(True)
    for name in order:
        previous, following = rows[name].slice(0, max(0, rows.num_rows - 1)), rows[name].slice(1)
        if rows[name].null_count:
            return False
        if pc.any(pc.and_(is_tied, pc.greater(previous, following))).as_py():
            return False
        is_tied = pc.and_(is_tied, pc.equal(previous, following))
        if not pc.any(is_tied).as_py():
            return True
    return True
