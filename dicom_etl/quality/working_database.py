"""The working database of a measurement: DuckDB in memory, with a temporary folder for what does not fit.

Not here: the tables in it (`inputs` and the modules that it calls).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import duckdb
import pyarrow as pa

__all__ = ["Database", "open_database"]

_BATCH_ROWS = 50_000


class Database:
    """Tables and queries. Opened by `open_database`."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    def run(self, sql: str) -> None:
        """Run a statement."""
        self._connection.execute(sql)

    def create(self, name: str, rows: pa.Table) -> None:
        """Create a table with these rows."""
        self._connection.register("new_rows", rows)
        self.run(f"CREATE TABLE {name} AS SELECT * FROM new_rows")
        self._connection.unregister("new_rows")

    def append(self, name: str, rows: pa.Table) -> None:
        """Append rows to a table; their columns must have its order."""
        self._connection.register("new_rows", rows)
        self.run(f"INSERT INTO {name} SELECT * FROM new_rows")
        self._connection.unregister("new_rows")

    def create_from_batches(self, name: str, schema: pa.Schema, batches: Iterable[pa.Table]) -> None:
        """Create a table with the columns of `schema` of all batches."""
        self.create(name, schema.empty_table())
        for batch in batches:
            self.append(name, batch.select(schema.names))

    def query(self, sql: str) -> pa.Table:
        """The rows of a query."""
        return self._connection.sql(sql).to_arrow_table()

    def fetch_rows(self, sql: str) -> list[dict[str, Any]]:
        """The rows of a query as dictionaries, for queries with few rows."""
        rows: list[dict[str, Any]] = self.query(sql).to_pylist()
        return rows

    def fetch_batches(self, sql: str, size: int = _BATCH_ROWS) -> Iterator[pa.Table]:
        """The rows of a query, in batches of `size`. Run no other query before the last batch is read."""
        for batch in self._connection.sql(sql).to_arrow_reader(size):
            yield pa.Table.from_batches([batch])


@contextmanager
def open_database() -> Iterator[Database]:
    """Open an empty database; it is removed at the end of the `with` block."""
    with tempfile.TemporaryDirectory(prefix="dicom-etl-") as spill, duckdb.connect() as connection:
        # without this, a database in memory would spill into the current folder
        connection.execute("SET temp_directory = ?", [spill])
        connection.execute("SET preserve_insertion_order = false")
        yield Database(connection)
