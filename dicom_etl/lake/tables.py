"""The lake: the folder (or object store) that holds the tables, and how single files are written and read.

Every write is atomic (a temporary name in the same folder, renamed into place) and deterministic (rows sorted, fixed
row groups, no clock). A table that is one file carries the fingerprint of its inputs in its footer; tables in shards
are described by their commits. Only modules of `lake` write files of the lake.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from upath import UPath

from dicom_etl.errors import UserError
from dicom_etl.identity.name_encoding import encode_name
from dicom_etl.lake import locks, recovery
from dicom_etl.lake.description import LakeDescription
from dicom_etl.lake.location import DESCRIPTION_FILE
from dicom_etl.lake.row_groups import make_empty_table, read_parquet, select_row_groups, write_row_groups
from dicom_etl.lake.schemas import SCHEMA_VERSION, Table

_DATASET_FOLDERS = ("inventory", "sheets", "identities", "withdrawn")  # one file per dataset
_FINGERPRINT = b"dicom_etl.fingerprint"


class LakeError(UserError):
    """The lake cannot be used as it is; the text says what to do."""


class DamagedTableError(LakeError):
    """A table that is one file cannot be read."""

    @classmethod
    def of(cls, place: str, error: Exception) -> DamagedTableError:
        """The error of a file of the lake."""
        return cls(f"{place} is damaged ({error}): remove this file of the lake and run again, which rebuilds it")


@dataclass(frozen=True)
class Lake:
    """The lake at `root`: a local folder, or a URL that fsspec knows."""

    root: str
    lock_wait: float = 3600.0
    notify: Any = field(default=print, compare=False, repr=False)
    ledger_url: str | None = field(default=None, compare=False, repr=False)  # it may contain a password
    _advisory_locks: list[Any] = field(default_factory=list, compare=False, repr=False)

    def __reduce__(self) -> tuple[type[Lake], tuple[str, float]]:
        """A lake travels to workers without the console of the process that sends it."""
        return Lake, (self.root, self.lock_wait)

    @property
    def is_local(self) -> bool:
        """Whether the lake lies in a folder of this machine."""
        return "://" not in self.root

    @property
    def root_path(self) -> UPath:
        """The root as a path."""
        return UPath(self.root)

    def resolve(self, place: str) -> UPath:
        """The path of `place`, a path below the root made by `schemas.make_path` or `Table.path`."""
        return self.root_path / place

    # -- the lake as a whole ----------------------------------------------------------------------------------------

    def open(self, *, rebuild: bool = False, id_key: str | None = None) -> Lake:
        """Create the lake if there is none; check its schema version and the key of its resource ids.

        Args:
            rebuild: its derived tables are about to be removed: an older schema and another key are accepted.
            id_key: the fingerprint of the key with which resource ids are made; None: not compared, and a lake that is
                created has none to compare with.

        Raises:
            LakeError: the folder holds something else, or a lake of another schema version or another key, or it
                cannot be created.
        """
        if not self.exists(DESCRIPTION_FILE):
            self._create(id_key)
        description = self.describe()
        if description.has_no_database and self._has_former_ledgers():
            raise LakeError(
                f"the lake {self.root} has schema version {description.schema} and ledgers of uploads, and resource "
                "ids change with this dicom-etl: delete its resources from the FHIR server (with `forget` of the "
                f"dicom-etl that wrote it, or empty the server), remove the folder {self.resolve('outcomes')}, then "
                "`dicom-etl run --rebuild`"
            )
        if not description.is_current and not (rebuild and description.is_outdated):
            version = description.schema
            raise LakeError(f"the lake {self.root} has schema version {version}, {_advice(version)}")
        if not rebuild:
            self.check_id_key(id_key)
        return self

    def describe(self) -> LakeDescription:
        """What `lake.json` says.

        Raises:
            LakeError: it cannot be read.
        """
        try:
            return LakeDescription.parse(self.read_bytes(DESCRIPTION_FILE) or b"")
        except ValueError:
            raise LakeError(
                f"{self.resolve(DESCRIPTION_FILE)} cannot be read: restore it, or choose another lake"
            ) from None

    @cached_property
    def lake_id(self) -> str:
        """The random id of the lake, by which a server's records tell lakes apart.

        Raises:
            LakeError: it has none, since it has an older schema.
        """
        lake_id = self.describe().lake_id
        if lake_id is None:
            raise LakeError(f"the lake {self.root} has no id, since it has an older schema")
        return lake_id

    def check_id_key(self, id_key: str | None) -> None:
        """Compare the key of resource ids, given by its fingerprint, with that of the lake; None is not compared.

        Raises:
            LakeError: they differ.
        """
        description = self.describe()
        if description.has_other_key(id_key):
            raise LakeError(
                f"the resource ids of the lake {self.root} were made with the key {description.id_key}, not with the "
                f"configured key {id_key} (fingerprints): set DICOM_ETL_ID_KEY or id_key_file to the lake's key "
                "(without either, `namespace` decides), or rebuild all of its datasets with the configured key by "
                "`dicom-etl run --rebuild`; resources on a FHIR server keep their old ids, so delete them there first"
            )

    def _create(self, id_key: str | None) -> None:
        if self._holds_something() and not self.exists(DESCRIPTION_FILE):  # another run may have made it just now
            raise LakeError(f"{self.root} is not empty and is no lake: choose an empty or a new folder")
        content = LakeDescription.new(id_key).dump()
        try:
            if self.is_local:
                Path(self.root).mkdir(parents=True, exist_ok=True, mode=0o700)
                _write_if_absent(Path(self.root) / DESCRIPTION_FILE, content)
            else:
                self.write_bytes(DESCRIPTION_FILE, content)
        except OSError as error:
            raise LakeError(f"the lake {self.root} cannot be made: {error.strerror or error}") from None

    def _has_former_ledgers(self) -> bool:
        """Whether there are ledgers of uploads, in the form that older schemas have."""
        folder = self.resolve("outcomes")
        return folder.exists() and any(any(folder.glob(name)) for name in ("*/shared.parquet", "*/*/*.parquet"))

    def _holds_something(self) -> bool:
        """Whether the root holds more than locks and what runs that make it leave on their way."""
        base = self.root_path
        if not base.exists():
            return False
        if not base.is_dir():
            return True
        return any(child.name != "locks" and not child.name.startswith(".lake.json.") for child in base.iterdir())

    @contextmanager
    def lock(self, name: str, doing: str) -> Iterator[None]:
        """Hold the lock of a dataset (or of what datasets share) while a stage writes it.

        It is in PostgreSQL where `ledger_url` names one, so that runs on several machines exclude each other, and a
        lock of the file system otherwise.

        Raises:
            LockHeldError: another run holds it for longer than `lock_wait`.
            LakeError: it cannot be taken.
        """
        with ExitStack() as held:
            lock = self._database_lock if self._locks_in_database else self._file_lock
            held.enter_context(lock(name, doing))
            self._sweep_dataset(encode_name(name))
            if self.is_local:
                recovery.recover_dataset(Path(self.root), name)
            else:
                self.remove_new_folders(name)
            yield

    @cached_property
    def _locks_in_database(self) -> bool:
        if not self.ledger_url:
            return False
        from dicom_etl.lake.database import is_postgresql  # noqa: PLC0415 - workers need no database

        return is_postgresql(self)

    @contextmanager
    def _file_lock(self, name: str, doing: str) -> Iterator[None]:
        folder = locks.choose_lock_folder(self.root, local=self.is_local)
        with ExitStack() as held:
            lock = locks.hold_lock(folder, encode_name(name), doing, wait=self.lock_wait, notify=self.notify)
            try:
                held.enter_context(lock)
            except OSError as error:
                raise LakeError(f"the lake {self.root} cannot be written: {error.strerror or error}") from None
            yield

    @contextmanager
    def _database_lock(self, name: str, doing: str) -> Iterator[None]:
        from dicom_etl.lake import advisory_locks  # noqa: PLC0415

        with advisory_locks.hold_advisory_lock(self, name, doing, wait=self.lock_wait, notify=self.notify) as lock:
            self._advisory_locks.append(lock)
            try:
                yield
            finally:
                self._advisory_locks.remove(lock)

    def require_locks(self, connection: Any = None) -> None:
        """Make sure that this run still holds its locks: asked before each commit.

        Args:
            connection: one to the database, whose transaction depends on the locks; None: each lock's own.

        Raises:
            LakeError: a lock in PostgreSQL was lost with its connection.
        """
        for lock in self._advisory_locks:
            if connection is None:
                lock.require()
            else:
                lock.require_on(connection)

    def remove_new_folders(self, dataset: str) -> None:
        """Remove the hidden folders into which a run writes where the number of shards changes."""
        for folder in (folder for stage in recovery.STAGES for folder in recovery.list_stage_folders(stage, dataset)):
            self.remove_folder(recovery.make_new_path(folder))

    def _sweep_dataset(self, name: str) -> None:
        """Remove what killed writers left of the dataset's own files, not of another whose name begins like it."""
        self.remove_temporary_files(f"quality/{name}")
        self.remove_temporary_files(f"fhir/Endpoint/{name}")
        for stage in self.list_names("findings"):
            self.remove_temporary_files(f"findings/{stage}/{name}")
        left = re.compile(rf"\.{re.escape(name)}\.parquet\.\d+\.tmp")
        for folder in _DATASET_FOLDERS if self.is_local else ():
            for file in Path(self.root, folder).glob(".*.tmp"):
                if left.fullmatch(file.name):
                    file.unlink(missing_ok=True)

    # -- tables -----------------------------------------------------------------------------------------------------

    def write(self, table: Table, rows: pa.Table, *, fingerprint: str = "", **names: str | int) -> str:
        """Write `rows` as the table that `names` (dataset, unit, stage, server) point at; returns its place.

        Raises:
            SchemaError: a column is missing, unknown or of another type.
        """
        return self.write_batches(table, [rows], fingerprint=fingerprint, **names)

    def write_batches(
        self, table: Table, pieces: Iterable[pa.Table], *, fingerprint: str = "", **names: str | int
    ) -> str:
        """As one `write` of all pieces, the same bytes, but holds only few of them at a time.

        Args:
            table: as in `write`.
            pieces: each comes after the one before it in the order of the table.
            fingerprint: as in `write`.
            names: as in `write`.

        Raises:
            SchemaError: a column of a piece is missing, unknown or of another type; a piece is out of order.
        """
        self.require_locks()
        place = table.path(**names)
        with self._replacing(place, sync=table.is_synced) as sink:
            write_row_groups(sink, table, pieces, metadata={_FINGERPRINT: fingerprint.encode()})
        return place

    def write_rows(self, table: Table, rows: list[dict[str, Any]], *, fingerprint: str = "", **names: str | int) -> str:
        """As `write`, from a (short) list of rows."""
        return self.write(table, pa.Table.from_pylist(rows, schema=table.schema), fingerprint=fingerprint, **names)

    def read(self, table: Table, columns: list[str] | None = None, **names: str | int) -> pa.Table:
        """The rows of a table; an empty table where there is none."""
        try:
            with self._reading(table.path(**names)) as source:
                return read_parquet(source, columns)
        except FileNotFoundError:
            return make_empty_table(table, columns)

    def read_batches(self, table: Table, columns: list[str] | None = None, **names: str | int) -> Iterator[pa.Table]:
        """The rows of a table, row group by row group; none where there is no table."""
        try:
            with self._reading(table.path(**names)) as source:
                file = pq.ParquetFile(source, page_checksum_verification=True)
                for group in range(file.num_row_groups):
                    yield file.read_row_group(group, columns, use_threads=False)
        except FileNotFoundError:
            return

    def read_between(
        self,
        table: Table,
        ranges: Mapping[str, tuple[str, str]],
        columns: Sequence[str] | None = None,
        **names: str | int,
    ) -> pa.Table:
        """The rows whose values of some columns are between two values each, both included; in their order."""
        pieces = self.read_batches_between(table, ranges, columns, **names)
        return pa.concat_tables([make_empty_table(table, columns), *pieces])

    def read_batches_between(
        self,
        table: Table,
        ranges: Mapping[str, tuple[str, str]],
        columns: Sequence[str] | None = None,
        **names: str | int,
    ) -> Iterator[pa.Table]:
        """As `read_between`, row group by row group; those in which no such row can be are not read."""
        wanted = None if columns is None else list(dict.fromkeys([*columns, *ranges]))
        try:
            with self._reading(table.path(**names)) as source:
                file = pq.ParquetFile(source, page_checksum_verification=True)
                for group in select_row_groups(file.metadata, ranges):
                    rows = file.read_row_group(group, wanted, use_threads=False)
                    for column, (first, last) in ranges.items():
                        rows = rows.filter(
                            pc.and_(pc.greater_equal(rows[column], first), pc.less_equal(rows[column], last))
                        )
                    yield rows.select(list(columns)) if columns else rows
        except FileNotFoundError:
            return

    def read_fingerprint(self, table: Table, **names: str | int) -> str | None:
        """The fingerprint in the footer of a table; None where there is no such table."""
        try:
            with self._reading(table.path(**names)) as source:
                metadata = pq.read_metadata(source).metadata or {}
        except (FileNotFoundError, DamagedTableError):  # what is damaged is made again
            return None
        mark: bytes = metadata.get(_FINGERPRINT, b"")
        return mark.decode()

    def count_rows(self, table: Table, **names: str | int) -> int:
        """How many rows a table has, from its footer alone; 0 where there is no such table."""
        try:
            with self._reading(table.path(**names)) as source:
                return int(pq.read_metadata(source).num_rows)
        except FileNotFoundError:
            return 0

    def list_names(self, folder: str, suffix: str = "") -> list[str]:
        """The names (encoded, without `suffix`) of the entries of a folder of the lake, sorted."""
        try:
            found = [child.name for child in self.resolve(folder).iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(n.removesuffix(suffix) for n in found if n.endswith(suffix) and not n.startswith("."))

    def datasets(self) -> list[str]:
        """The names of the datasets that have an inventory, sorted."""
        datasets: set[str] = set()
        for encoded in self.list_names("inventory", ".parquet"):
            with self.resolve(f"inventory/{encoded}.parquet").open("rb") as file:
                datasets |= set(pc.unique(read_parquet(file, ["dataset"])["dataset"]).to_pylist())
        return sorted(datasets)

    # -- other files ------------------------------------------------------------------------------------------------

    def write_bytes(self, place: str, content: bytes) -> str:
        """Write a file of the lake; returns its place."""
        self.require_locks()
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

    def get_size(self, place: str) -> int | None:
        """The size of a file in bytes; None where there is none."""
        try:
            if self.is_local:  # asked for many small files: a Path costs more than the call
                return os.stat(f"{self.root}/{place}").st_size  # noqa: PTH116
            return int(self.resolve(place).stat().st_size)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def compute_digest(self, place: str) -> str | None:
        """The SHA-256 of a (small) file; None where there is none."""
        content = self.read_bytes(place)
        return None if content is None else hashlib.sha256(content).hexdigest()

    def get_file_identity(self, place: str) -> tuple[object, ...] | None:
        """What changes when a file is replaced; None where there is none."""
        try:
            stat = self.resolve(place).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return stat.st_size, stat.st_mtime, getattr(stat, "st_ino", None)

    def read_slice(self, place: str, offset: int, length: int) -> bytes:
        """Some bytes of a file."""
        with self._opened(place) as source:
            source.seek(offset)
            return source.read(length)

    def exists(self, place: str) -> bool:
        """Whether there is such a file."""
        return bool(self.resolve(place).exists())

    def remove(self, place: str) -> None:
        """Remove a file; no error where there is none."""
        self.resolve(place).unlink(missing_ok=True)

    # -- parts ------------------------------------------------------------------------------------------------------

    def write_arrow(self, place: str, rows: pa.Table) -> int:
        """Write rows that wait to be joined, at a place in a hidden folder, as an Arrow file; returns its size.

        Not synced: a part that a loss of power cuts off has another size, and is made again.
        """
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with self._replacing(place, sync=False) as sink, pa.ipc.new_file(sink, rows.schema, options=options) as writer:
            writer.write_table(rows)
        return self.get_size(place) or 0

    def write_unsynced(self, place: str, content: bytes) -> None:
        """Write a small file beside parts."""
        with self._replacing(place, sync=False) as sink:
            sink.write(content)

    def read_arrow(self, place: str) -> pa.Table:
        """The rows of a part.

        Raises:
            FileNotFoundError: there is none.
        """
        with self._opened(place) as source:
            return pa.ipc.open_file(source).read_all()

    def remove_other_chunks(self, folder: str, keys: Collection[str]) -> None:
        """Remove the parts in a hidden folder that killed runs left, but those of the given keys."""
        self.remove_temporary_files(folder)
        for name in self.list_names(folder):
            if name.partition(".")[0] not in keys:
                self.remove(f"{folder}/{name}")

    def remove_folder(self, place: str) -> None:
        """Remove a folder of the lake with all that it holds; no error where there is none."""
        path = self.resolve(place)
        if self.is_local:
            shutil.rmtree(Path(self.root) / place, ignore_errors=True)  # a worker of a killed run may still write there
        elif path.exists():
            path.fs.rm(path.path, recursive=True)

    def remove_temporary_files(self, folder: str) -> None:
        """Remove what killed writers left behind in a folder of the lake (the caller holds its lock)."""
        path = self.resolve(folder)
        if self.is_local and path.is_dir():
            for left in path.glob(".*.tmp"):
                left.unlink(missing_ok=True)

    @contextmanager
    def _reading(self, place: str) -> Iterator[IO[bytes]]:
        """A table, opened; what pyarrow cannot read of it is named."""
        with self._opened(place) as source:
            try:
                yield source
            except (pa.ArrowException, OSError) as error:
                raise DamagedTableError.of(place, error) from error

    def _opened(self, place: str) -> IO[bytes]:
        opened: IO[bytes] = open(Path(self.root) / place, "rb") if self.is_local else self.resolve(place).open("rb")  # noqa: SIM115, PTH123
        return opened

    @contextmanager
    def _replacing(self, place: str, *, sync: bool = True) -> Iterator[IO[bytes]]:
        """A file that takes the place of the old one when the body ends, or not at all."""
        if not self.is_local:  # an object appears whole, when it is closed
            buffer = io.BytesIO()
            yield buffer
            self.resolve(place).write_bytes(buffer.getvalue())
            return
        target = Path(self.root) / place
        # the process id keeps apart a worker that outlives a killed run and the run that follows
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with _new_file(temporary) as sink:
                yield sink
                if sync:
                    sink.flush()
                    os.fsync(sink.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _write_if_absent(path: Path, content: bytes) -> None:
    """Write a file whole, or leave the one that another process wrote first."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as sink:
            sink.write(content)
            sink.flush()
            os.fsync(sink.fileno())
        try:
            path.hardlink_to(temporary)  # unlike a rename, it fails where there is a file
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            with suppress(FileExistsError), path.open("xb") as sink:
                sink.write(content)
    finally:
        temporary.unlink(missing_ok=True)


def _new_file(path: Path) -> IO[bytes]:
    """An empty file, its folder made only where there is none: most folders are there."""
    try:
        return path.open("wb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path.open("wb")


def _advice(version: object) -> str:
    if isinstance(version, int) and version < SCHEMA_VERSION:
        return (
            f"older than {SCHEMA_VERSION}, which this dicom-etl writes: `dicom-etl run --rebuild`, with all of its "
            "datasets, builds its tables again from the source files"
        )
    return f"and this dicom-etl writes {SCHEMA_VERSION}: use the dicom-etl that wrote it, or choose another lake"
