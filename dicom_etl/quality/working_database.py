"""The working database of a measurement: DuckDB, in memory, and in a temporary folder where memory is short.

Not here: what its tables hold.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import duckdb
import pyarrow as pa

__all__ = ["Database", "open_database"]

_BATCH_ROWS = 50_000


class Database:
    """Tables and queries. Made by `open_database`."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    def run(self, sql: str) -> None:
        """Run a statement."""
        self._connection.execute(sql)

    def create(self, name: str, rows: pa.Table) -> None:
        """Make a table of rows."""
        self._connection.register("new_rows", rows)
        self.run(f"CREATE TABLE {name} AS SELECT * FROM new_rows")
        self._connection.unregister("new_rows")

    def append(self, name: str, rows: pa.Table) -> None:
        """Add rows to a table."""
        self._connection.register("new_rows", rows)
        self.run(f"INSERT INTO {name} SELECT * FROM new_rows")
        self._connection.unregister("new_rows")

    def query(self, sql: str) -> pa.Table:
        """The rows of a query."""
        return self._connection.sql(sql).to_arrow_table()

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """The (few) rows of a query as dictionaries."""
        rows: list[dict[str, Any]] = self.query(sql).to_pylist()
        return rows

    def batches(self, sql: str, size: int = _BATCH_ROWS) -> Iterator[pa.Table]:
        """The rows of a query, some at a time. No other query until the last one is read."""
        for batch in self._connection.sql(sql).to_arrow_reader(size):
            yield pa.Table.from_batches([batch])


@contextmanager
def open_database() -> Iterator[Database]:
    """An empty database that is gone when the body ends."""
    with tempfile.TemporaryDirectory(prefix="dicom-etl-") as spill, duckdb.connect() as connection:
        # in-memory databases would spill into the current folder
        connection.execute("SET temp_directory = ?", [spill])
        connection.execute("SET preserve_insertion_order = false")
        yield Database(connection)
