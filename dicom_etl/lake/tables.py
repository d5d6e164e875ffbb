"""The lake: the folder (or object store) in which the tables lie, and how they are written and read.

Every write is atomic (a temporary name in the same folder, renamed into place) and deterministic (rows sorted, fixed
row groups, no clock), and carries in its footer the fingerprint of what it was made from. Nothing else in the package
writes into the lake.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from dicom_etl.identity.names import encode_name
from dicom_etl.lake import locks
from dicom_etl.lake.schemas import SCHEMA_VERSION, Table

_DATASET_FOLDERS = ("inventory", "sheets", "identities")  # one file per dataset
_ROW_GROUP = 100_000
_FINGERPRINT = b"dicom_etl.fingerprint"


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
            LakeError: the folder holds something else, or a lake of another schema version.
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
        if self.local:
            Path(self.root).mkdir(parents=True, exist_ok=True, mode=0o700)
        self.write_bytes("lake.json", orjson.dumps({"schema": SCHEMA_VERSION}))

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
        rows = _fitting(table, rows).sort_by([(name, "ascending") for name in table.order])
        place = table.path(**names)
        with (
            self._replacing(place) as sink,
            pq.ParquetWriter(sink, rows.schema, **_options(table, rows)) as writer,
        ):
            writer.write_table(rows, row_group_size=_ROW_GROUP)
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
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # the process id keeps apart a worker that outlives a killed run and the run that follows
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as sink:
                yield sink
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def _options(table: Table, rows: pa.Table) -> dict[str, Any]:
    """How a table is written. A unit has a file of its own, often a small one: what costs bytes per column is left out.

    Without ARROW:schema the footer is a third smaller, and the plain types need it not; statistics stand where queries
    choose by them; a column of nulls needs no dictionary.
    """
    filled = [name for name in rows.column_names if rows[name].null_count < rows.num_rows]
    return {
        "compression": "zstd",
        "store_schema": False,
        "write_statistics": [name for name in table.sought if name in rows.column_names] or False,
        "use_dictionary": [name for name in filled if not pa.types.is_list(rows[name].type)] or False,
    }


def read_parquet(source: IO[bytes], columns: list[str] | None = None) -> pa.Table:
    """The rows of an open Parquet file.

    Not `pq.read_table`: over a Python file its threads may outlive the interpreter and abort the process (pyarrow 26).
    """
    return pq.ParquetFile(source).read(columns=columns, use_threads=False)


def _fitting(table: Table, rows: pa.Table) -> pa.Table:
    schema = table.schema
    if set(rows.column_names) != set(schema.names):
        odd = sorted(set(rows.column_names) ^ set(schema.names))
        raise SchemaError(f"{table.name}: missing or unknown columns: {', '.join(odd)}")
    rows = rows.select(schema.names)
    for wanted, got in zip(schema, rows.schema, strict=True):
        if wanted.type != got.type and not pa.types.is_null(got.type):
            raise SchemaError(f"{table.name}.{wanted.name} is {got.type} and should be {wanted.type}")
    return rows.cast(schema).combine_chunks()


def rows_of(table: pa.Table, **equal: Any) -> list[dict[str, Any]]:
    """The rows of a (small) table as dictionaries, those alone whose columns equal the given values."""
    return [row for row in table.to_pylist() if all(row[k] == v for k, v in equal.items())]


def grouped(rows: list[dict[str, Any]], key: str) -> Mapping[Any, list[dict[str, Any]]]:
    """The rows by the value of one column, in their order."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups
