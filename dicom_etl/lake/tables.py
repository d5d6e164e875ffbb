"""The lake: the folder (or object store) in which the tables lie, and how they are written and read.

Every write is atomic (a temporary name in the same folder, renamed into place) and deterministic (rows sorted, fixed
row groups, no clock), and carries in its footer the fingerprint of what it was made from. Nothing else in the package
writes into the lake.
"""

from __future__ import annotations

import io
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from upath import UPath

from dicom_etl.identity.names import encode_name
from dicom_etl.lake import locks
from dicom_etl.lake.schemas import SCHEMA_VERSION, Table

_DATASET_FOLDERS = ("inventory", "sheets", "identities", "withdrawn")  # one file per dataset
_FINGERPRINT = b"dicom_etl.fingerprint"
_BATCH = 5_000  # rows


class LakeError(Exception):
    """The lake cannot be used as it is; the text says what to do."""


class SchemaError(LakeError):
    """A table does not fit its description."""


@dataclass(frozen=True)
class Lake:
    """The lake at `root`: a local folder, or a URL that fsspec knows."""

    root: str
    lock_wait: float = 3600.0
    tell: Any = field(default=print, compare=False, repr=False)

    def __reduce__(self) -> tuple[type[Lake], tuple[str, float]]:
        """A lake travels to workers without the console of the process that sends it."""
        return Lake, (self.root, self.lock_wait)

    @property
    def local(self) -> bool:
        """Whether the lake lies in a folder of this machine."""
        return "://" not in self.root

    @property
    def base(self) -> UPath:
        """The root as a path."""
        return UPath(self.root)

    def at(self, place: str) -> UPath:
        """The path of `place`, a path below the root made by `schemas.place` or `Table.path`."""
        return self.base / place

    # -- the lake as a whole ----------------------------------------------------------------------------------------

    def open(self) -> Lake:
        """Make the lake if it is not there, and check its schema version.

        Raises:
            LakeError: the folder holds something else, or a lake of another schema version, or cannot be made.
        """
        marker = self.at("lake.json")
        if not marker.exists():
            self._create()
            return self
        try:
            version = orjson.loads(marker.read_bytes())["schema"]
        except (ValueError, KeyError, TypeError):
            raise LakeError(f"{marker} cannot be read: restore it, or choose another lake") from None
        if version != SCHEMA_VERSION:
            raise LakeError(
                f"the lake {self.root} has schema version {version}, and this dicom-etl writes {SCHEMA_VERSION}: "
                "use the dicom-etl that made it, or choose a new lake and run everything again"
            )
        return self

    def _create(self) -> None:
        if self._holds_something() and not self.at("lake.json").exists():  # another run may have made it just now
            raise LakeError(f"{self.root} is not empty and is no lake: choose an empty or a new folder")
        try:
            if self.local:
                Path(self.root).mkdir(parents=True, exist_ok=True, mode=0o700)
            self.write_bytes("lake.json", orjson.dumps({"schema": SCHEMA_VERSION}))
        except OSError as error:
            raise LakeError(f"the lake {self.root} cannot be made: {error.strerror or error}") from None

    def _holds_something(self) -> bool:
        """Whether the root holds more than locks and what runs that make it leave on their way."""
        base = self.base
        if not base.exists():
            return False
        if not base.is_dir():
            return True
        return any(child.name != "locks" and not child.name.startswith(".lake.json.") for child in base.iterdir())

    @contextmanager
    def lock(self, name: str, doing: str) -> Iterator[None]:
        """Hold the lock of a dataset (or of what datasets share) while a stage writes it."""
        folder = locks.lock_folder(self.root, local=self.local)
        with locks.hold(folder, encode_name(name), doing, wait=self.lock_wait, tell=self.tell):
            self._sweep_dataset(encode_name(name))
            yield

    def _sweep_dataset(self, name: str) -> None:
        """Remove what killed writers left of the dataset's own files, not of another whose name begins like it."""
        self.sweep(f"quality/{name}")
        left = re.compile(rf"\.{re.escape(name)}\.parquet\.\d+\.tmp")
        folders = [*_DATASET_FOLDERS, *(f"findings/{stage}" for stage in self.names("findings"))] if self.local else []
        for folder in folders:
            for file in Path(self.root, folder).glob(".*.tmp"):
                if left.fullmatch(file.name):
                    file.unlink(missing_ok=True)

    # -- tables -----------------------------------------------------------------------------------------------------

    def write(self, table: Table, rows: pa.Table, *, fingerprint: str = "", **names: str) -> str:
        """Write `rows` as the table that `names` (dataset, unit, stage, server) point at; returns its place.

        Raises:
            SchemaError: a column is missing, unknown or of another type.
        """
        return self.write_pieces(table, [rows], fingerprint=fingerprint, **names)

    def write_pieces(self, table: Table, pieces: Iterable[pa.Table], *, fingerprint: str = "", **names: str) -> str:
        """As one `write` of all pieces, the same bytes, but holds only few of them at a time.

        Args:
            table: as in `write`.
            pieces: each comes after the one before it in the order of the table.
            fingerprint: as in `write`.
            names: as in `write`.

        Raises:
            SchemaError: a column of a piece is missing, unknown or of another type; a piece is out of order.
        """
        place = table.path(**names)
        with (
            self._replacing(place) as sink,
            pq.ParquetWriter(sink, table.schema, **_options(table)) as writer,
        ):
            groups = _RowGroups(table, writer)
            for piece in pieces:
                groups.add(piece)
            groups.finish()
            writer.add_key_value_metadata({_FINGERPRINT: fingerprint.encode()})
        return place

    def write_rows(self, table: Table, rows: list[dict[str, Any]], *, fingerprint: str = "", **names: str) -> str:
        """As `write`, from a (short) list of rows."""
        return self.write(table, pa.Table.from_pylist(rows, schema=table.schema), fingerprint=fingerprint, **names)

    def read(self, table: Table, columns: list[str] | None = None, **names: str) -> pa.Table:
        """The rows of a table; an empty table where there is none."""
        try:
            with self._opened(table.path(**names)) as source:
                return read_parquet(source, columns)
        except FileNotFoundError:
            schema = table.schema
            wanted = [schema.field(name) for name in columns] if columns else schema
            return pa.schema(wanted).empty_table()

    def read_pieces(self, table: Table, **names: str) -> Iterator[pa.Table]:
        """The rows of a table, row group by row group; none where there is no table."""
        try:
            with self._opened(table.path(**names)) as source:
                file = pq.ParquetFile(source)
                for group in range(file.num_row_groups):
                    yield file.read_row_group(group, use_threads=False)
        except FileNotFoundError:
            return

    def read_between(self, table: Table, first: str, last: str, **names: str) -> pa.Table:
        """The rows whose first column of the table's order lies between two values, both included.

        Reads only the row groups in which such rows can lie, and of them some rows at a time.
        """
        column, found = table.order[0], [table.schema.empty_table()]
        try:
            with self._opened(table.path(**names)) as source:
                file = pq.ParquetFile(source)
                groups = list(_groups_between(file.metadata, column, first, last))
                for rows in file.iter_batches(_BATCH, row_groups=groups, use_threads=False):
                    within = pc.and_(pc.greater_equal(rows[column], first), pc.less_equal(rows[column], last))
                    found.append(pa.Table.from_batches([rows.filter(within)]))
        except FileNotFoundError:
            pass
        return pa.concat_tables(found)

    def fingerprint(self, table: Table, **names: str) -> str | None:
        """The fingerprint in the footer of a table; None where there is no such table."""
        try:
            with self._opened(table.path(**names)) as source:
                metadata = pq.read_metadata(source).metadata or {}
        except FileNotFoundError:
            return None
        mark: bytes = metadata.get(_FINGERPRINT, b"")
        return mark.decode()

    def row_count(self, table: Table, **names: str) -> int:
        """How many rows a table has, from its footer alone; 0 where there is no such table."""
        try:
            with self._opened(table.path(**names)) as source:
                return int(pq.read_metadata(source).num_rows)
        except FileNotFoundError:
            return 0

    def names(self, folder: str, suffix: str = "") -> list[str]:
        """The names (encoded, without `suffix`) of the entries of a folder of the lake, sorted."""
        try:
            found = [child.name for child in self.at(folder).iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(n.removesuffix(suffix) for n in found if n.endswith(suffix) and not n.startswith("."))

    # -- other files ------------------------------------------------------------------------------------------------

    def write_bytes(self, place: str, content: bytes) -> str:
        """Write a file of the lake; returns its place."""
        with self._replacing(place) as sink:
            sink.write(content)
        return place

    def read_bytes(self, place: str) -> bytes | None:
        """The content of a file of the lake, or None."""
        try:
            with self._opened(place) as source:
                content: bytes = source.read()
                return content
        except FileNotFoundError:
            return None

    def exists(self, place: str) -> bool:
        """Whether there is such a file."""
        return bool(self.at(place).exists())

    def remove(self, place: str) -> None:
        """Remove a file; no error where there is none."""
        self.at(place).unlink(missing_ok=True)

    # -- parts ------------------------------------------------------------------------------------------------------

    def write_part(self, place: str, rows: pa.Table) -> None:
        """Write rows that wait to be joined, at a place in a hidden folder: an Arrow file, as they are."""
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with self._replacing(place) as sink, pa.ipc.new_file(sink, rows.schema, options=options) as writer:
            writer.write_table(rows)

    def read_part(self, place: str) -> pa.Table:
        """The rows of a part.

        Raises:
            FileNotFoundError: there is none.
        """
        with self._opened(place) as source:
            return pa.ipc.open_file(source).read_all()

    def remove_parts(self, folder: str) -> None:
        """Remove all hidden folders of parts in a folder of the lake (the caller holds its lock)."""
        path = self.at(folder)
        for name in [child.name for child in path.iterdir()] if path.is_dir() else []:
            if name.startswith(".") and name.endswith(".parts"):
                self.remove_folder(f"{folder}/{name}")

    def remove_folder(self, place: str) -> None:
        """Remove a folder of the lake with all that it holds; no error where there is none."""
        path = self.at(place)
        if self.local:
            shutil.rmtree(Path(self.root) / place, ignore_errors=True)  # a worker of a killed run may still write there
        elif path.exists():
            path.fs.rm(path.path, recursive=True)

    def sweep(self, folder: str) -> None:
        """Remove what killed writers left behind in a folder of the lake (the caller holds its lock)."""
        path = self.at(folder)
        if self.local and path.is_dir():
            for left in path.glob(".*.tmp"):
                left.unlink(missing_ok=True)

    def _opened(self, place: str) -> IO[bytes]:
        opened: IO[bytes] = open(Path(self.root) / place, "rb") if self.local else self.at(place).open("rb")  # noqa: SIM115, PTH123
        return opened

    @contextmanager
    def _replacing(self, place: str) -> Iterator[IO[bytes]]:
        """A file that takes the place of the old one when the body ends, or not at all."""
        if not self.local:  # an object appears whole, when it is closed
            buffer = io.BytesIO()
            yield buffer
            self.at(place).write_bytes(buffer.getvalue())
            return
        target = Path(self.root) / place
        # the process id keeps apart a worker that outlives a killed run and the run that follows
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with _new_file(temporary) as sink:
                yield sink
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _new_file(path: Path) -> IO[bytes]:
    """An empty file, its folder made only where there is none: most folders are there."""
    try:
        return path.open("wb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path.open("wb")


def _options(table: Table) -> dict[str, Any]:
    """How a table is written. A unit has a file of its own, often a small one: what costs bytes per column is left out.

    Without ARROW:schema the footer is a third smaller, and the plain types need it not; statistics stand where queries
    choose by them. Dictionaries take longer than they save: zstd finds the same repetitions.
    """
    return {
        "compression": "zstd",
        "store_schema": False,
        "write_statistics": list(table.sought) or False,
        "use_dictionary": False,
    }


class _RowGroups:
    """Pieces of a table as row groups of its fixed size, whatever the size of the pieces."""

    def __init__(self, table: Table, parquet: pq.ParquetWriter) -> None:
        self._table, self._parquet = table, parquet
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
        size = self._table.row_group
        if sum(piece.num_rows for piece in self._waiting) >= size:
            rows = pa.concat_tables(self._waiting)
            whole = rows.num_rows - rows.num_rows % size
            self._write(rows.slice(0, whole))
            self._waiting = [rows.slice(whole)]

    def finish(self) -> None:
        """Write what waits for a full row group."""
        rows = pa.concat_tables(self._waiting) if self._waiting else self._table.schema.empty_table()
        if rows.num_rows or self._is_empty:
            self._write(rows)

    def _write(self, rows: pa.Table) -> None:
        self._parquet.write_table(rows.combine_chunks(), row_group_size=self._table.row_group)
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


def _groups_between(metadata: pq.FileMetaData, column: str, first: str, last: str) -> Iterator[int]:
    """The row groups that may hold values of a column between two values, by the statistics of the footer."""
    place = metadata.schema.names.index(column)
    for group in range(metadata.num_row_groups):
        known = metadata.row_group(group).column(place).statistics
        if known is None or not known.has_min_max or (known.min <= last and first <= known.max):
            yield group


def read_parquet(source: IO[bytes], columns: list[str] | None = None) -> pa.Table:
    """The rows of an open Parquet file.

    Not `pq.read_table`: over a Python file its threads may outlive the interpreter and abort the process (pyarrow 26).
    """
    return pq.ParquetFile(source).read(columns=columns, use_threads=False)


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


def rows_of(table: pa.Table, **equal: Any) -> list[dict[str, Any]]:
    """The rows of a (small) table as dictionaries, those alone whose columns equal the given values."""
    return [row for row in table.to_pylist() if all(row[k] == v for k, v in equal.items())]


def grouped(rows: list[dict[str, Any]], key: str) -> Mapping[Any, list[dict[str, Any]]]:
    """The rows by the value of one column, in their order."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups
