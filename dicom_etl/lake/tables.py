"""The lake: a folder or object store that contains the tables; reading and writing of single files.

Every write is atomic (a temporary file in the same folder, renamed to its final name) and deterministic (rows sorted,
fixed row groups, no clock). A table that is one file has the fingerprint of its inputs in its footer; tables in shards
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
    """The lake cannot be used in its present state; the text says what to do."""


class DamagedTableError(LakeError):
    """A table that is one file cannot be read."""

    @classmethod
    def from_error(cls, path: str, error: Exception) -> DamagedTableError:
        """The error of a file of the lake, from what pyarrow raised."""
        return cls(f"{path} is damaged ({error}): remove this file from the lake, then run again to rebuild it")


@dataclass(frozen=True)
class Lake:
    """The lake at `root`: a local folder, or a URL that fsspec can open.

    Attributes:
        root: the folder or URL.
        lock_wait: seconds to wait for a lock that another run holds.
        notify: called with sentences for the user.
        ledger_url: address of the database, where it is not SQLite in the folder of the lake.
    """

    root: str
    lock_wait: float = 3600.0
    notify: Any = field(default=print, compare=False, repr=False)
    ledger_url: str | None = field(default=None, compare=False, repr=False)  # it may contain a password
    _advisory_locks: list[Any] = field(default_factory=list, compare=False, repr=False)

    def __reduce__(self) -> tuple[type[Lake], tuple[str, float]]:
        """What workers get of a lake: neither the console of the process that sends it nor its database."""
        return Lake, (self.root, self.lock_wait)

    @property
    def is_local(self) -> bool:
        """Whether the lake is in the file system of this machine."""
        return "://" not in self.root

    @property
    def root_path(self) -> UPath:
        """The root as a path."""
        return UPath(self.root)

    def resolve(self, path: str) -> UPath:
        """The full path of a path below the root that was made by `schemas.make_path` or `Table.path`."""
        return self.root_path / path

    # -- the lake as a whole ----------------------------------------------------------------------------------------

    def open(self, *, rebuild: bool = False, id_key: str | None = None) -> Lake:
        """Create the lake if there is none; check its schema version and the key of its resource ids.

        Args:
            rebuild: its derived tables will be removed next: an older schema and another key are accepted.
            id_key: fingerprint of the key that resource ids are made with; None: not compared, and a new lake is
                created without one.

        Raises:
            LakeError: the folder contains other files, or a lake of another schema version or key, or the lake cannot
                be created.
        """
        if not self.exists(DESCRIPTION_FILE):
            self._create(id_key)
        description = self.describe()
        if description.has_no_database and self._has_previous_ledgers():
            raise LakeError(
                f"the lake {self.root} has schema version {description.schema} and upload ledgers of that version, and "
                "this version of dicom-etl makes other resource ids. First delete its resources from the FHIR server: "
                "run `dicom-etl forget` with the version of dicom-etl that wrote the lake, or empty the server. Then "
                f"remove the folder {self.resolve('outcomes')} and run `dicom-etl run --rebuild`"
            )
        if not description.is_current and not (rebuild and description.is_outdated):
            version = description.schema
            raise LakeError(f"the lake {self.root} has schema version {version}, {_advice(version)}")
        if not rebuild:
            self.check_id_key(id_key)
        return self

    def describe(self) -> LakeDescription:
        """Read `lake.json`.

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
        """The random id of the lake, which distinguishes lakes in a shared database.

        Raises:
            LakeError: it has an older schema, and no id.
        """
        lake_id = self.describe().lake_id
        if lake_id is None:
            raise LakeError(f"the lake {self.root} has no id, since it has an older schema")
        return lake_id

    def check_id_key(self, id_key: str | None) -> None:
        """Compare the configured key of resource ids with that of the lake; None is not compared.

        Args:
            id_key: fingerprint of the configured key.

        Raises:
            LakeError: they differ.
        """
        description = self.describe()
        if description.has_other_key(id_key):
            raise LakeError(
                f"the resource ids of the lake {self.root} were made with the key {description.id_key}, not with the "
                f"configured key {id_key} (fingerprints): set DICOM_ETL_ID_KEY or id_key_file to the key of the lake "
                "(without either, the key is derived from `namespace`). Or rebuild all of its datasets with the "
                "configured key: `dicom-etl run --rebuild`; resources on a FHIR server keep their old ids, so delete "
                "them there first"
            )

    def _create(self, id_key: str | None) -> None:
        if self._contains_other_files() and not self.exists(DESCRIPTION_FILE):  # another run may have just created it
            raise LakeError(f"{self.root} is not empty and is not a lake: choose an empty or a new folder")
        content = LakeDescription.new(id_key).dump()
        try:
            if self.is_local:
                Path(self.root).mkdir(parents=True, exist_ok=True, mode=0o700)
                _write_if_absent(Path(self.root) / DESCRIPTION_FILE, content)
            else:
                self.write_bytes(DESCRIPTION_FILE, content)
        except OSError as error:
            raise LakeError(f"the lake {self.root} cannot be created: {error.strerror or error}") from None

    def _has_previous_ledgers(self) -> bool:
        """Whether there are upload ledgers in Parquet, as schemas before the database had them."""
        folder = self.resolve("outcomes")
        return folder.exists() and any(any(folder.glob(name)) for name in ("*/shared.parquet", "*/*/*.parquet"))

    def _contains_other_files(self) -> bool:
        """Whether the root contains more than locks and temporary files of runs that are creating the lake."""
        base = self.root_path
        if not base.exists():
            return False
        if not base.is_dir():
            return True
        return any(child.name != "locks" and not child.name.startswith(".lake.json.") for child in base.iterdir())

    @contextmanager
    def lock(self, name: str, doing: str) -> Iterator[None]:
        """Hold the lock of a dataset (or of what datasets share) while the body writes it.

        It is an advisory lock in PostgreSQL if `ledger_url` is a PostgreSQL database, so that runs on several machines
        exclude each other; otherwise it is a file lock.

        Args:
            name: the dataset, or what datasets share.
            doing: what the holder does, for others to read, such as `extract of breast`.

        Raises:
            LockHeldError: another run holds it for longer than `lock_wait`.
            LakeError: it cannot be taken.
        """
        with ExitStack() as held:
            lock = self._database_lock if self._locks_in_database else self._file_lock
            held.enter_context(lock(name, doing))
            self._remove_temporary_files_of(encode_name(name))
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
        folder = locks.choose_lock_folder(self.root, is_local=self.is_local)
        with ExitStack() as held:
            lock = locks.hold_lock(folder, encode_name(name), doing, wait=self.lock_wait, notify=self.notify)
            try:
                held.enter_context(lock)
            except OSError as error:
                raise LakeError(f"the lake {self.root} cannot be written to: {error.strerror or error}") from None
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
        """Check that this run still holds its locks; called before each commit.

        Args:
            connection: a connection to the database whose transaction depends on the locks; None: that of each lock.

        Raises:
            LakeError: a lock in PostgreSQL was lost together with its connection.
        """
        for lock in self._advisory_locks:
            if connection is None:
                lock.require()
            else:
                lock.require_on(connection)

    def remove_new_folders(self, dataset: str) -> None:
        """Remove the hidden folders that a run writes into when the number of shards changes."""
        for folder in (folder for stage in recovery.STAGES for folder in recovery.list_stage_folders(stage, dataset)):
            self.remove_folder(recovery.make_new_path(folder))

    def _remove_temporary_files_of(self, name: str) -> None:
        """Remove temporary files of killed writers of a dataset, not those of another whose name begins like it."""
        self.remove_temporary_files(f"quality/{name}")
        self.remove_temporary_files(f"fhir/Endpoint/{name}")
        for stage in self.list_names("findings"):
            self.remove_temporary_files(f"findings/{stage}/{name}")
        pattern = re.compile(rf"\.{re.escape(name)}\.parquet\.\d+\.tmp")
        for folder in _DATASET_FOLDERS if self.is_local else ():
            for file in Path(self.root, folder).glob(".*.tmp"):
                if pattern.fullmatch(file.name):
                    file.unlink(missing_ok=True)

    # -- tables -----------------------------------------------------------------------------------------------------

    def write(self, table: Table, rows: pa.Table, *, fingerprint: str = "", **names: str | int) -> str:
        """Write `rows` as the table identified by `names` (dataset, shard, stage, server); returns its path.

        Raises:
            SchemaError: a column is missing, unknown or of another type.
        """
        return self.write_batches(table, [rows], fingerprint=fingerprint, **names)

    def write_batches(
        self, table: Table, batches: Iterable[pa.Table], *, fingerprint: str = "", **names: str | int
    ) -> str:
        """Write batches of rows as one table, the same bytes as `write`, with few batches in memory at a time.

        Args:
            table: as in `write`.
            batches: each comes after the previous one in the order of the table.
            fingerprint: as in `write`.
            names: as in `write`.

        Raises:
            SchemaError: a column of a batch is missing, unknown or of another type; a batch is out of order.
        """
        self.require_locks()
        path = table.path(**names)
        with self._replacing(path, sync=table.is_synced) as sink:
            write_row_groups(sink, table, batches, metadata={_FINGERPRINT: fingerprint.encode()})
        return path

    def write_rows(self, table: Table, rows: list[dict[str, Any]], *, fingerprint: str = "", **names: str | int) -> str:
        """As `write`, from a short list of rows."""
        return self.write(table, pa.Table.from_pylist(rows, schema=table.schema), fingerprint=fingerprint, **names)

    def read(self, table: Table, columns: list[str] | None = None, **names: str | int) -> pa.Table:
        """Read a table; an empty one if the file does not exist."""
        try:
            with self._reading(table.path(**names)) as source:
                return read_parquet(source, columns)
        except FileNotFoundError:
            return make_empty_table(table, columns)

    def read_batches(self, table: Table, columns: list[str] | None = None, **names: str | int) -> Iterator[pa.Table]:
        """Read a table one row group at a time; nothing if the file does not exist."""
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
        """Read the rows whose values are in ranges, in their order.

        Args:
            table: as in `read`.
            ranges: by column, the first and the last value, both included.
            columns: the columns to return; None: all.
            names: as in `read`.
        """
        batches = self.read_batches_between(table, ranges, columns, **names)
        return pa.concat_tables([make_empty_table(table, columns), *batches])

    def read_batches_between(
        self,
        table: Table,
        ranges: Mapping[str, tuple[str, str]],
        columns: Sequence[str] | None = None,
        **names: str | int,
    ) -> Iterator[pa.Table]:
        """As `read_between`, one row group at a time; row groups that cannot contain such rows are not read."""
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
        """The fingerprint in the footer of a table; None if it does not exist or is damaged."""
        try:
            with self._reading(table.path(**names)) as source:
                metadata = pq.read_metadata(source).metadata or {}
        except (FileNotFoundError, DamagedTableError):  # a damaged table is rebuilt
            return None
        fingerprint: bytes = metadata.get(_FINGERPRINT, b"")
        return fingerprint.decode()

    def count_rows(self, table: Table, **names: str | int) -> int:
        """The number of rows of a table, from its footer only; 0 if it does not exist."""
        try:
            with self._reading(table.path(**names)) as source:
                return int(pq.read_metadata(source).num_rows)
        except FileNotFoundError:
            return 0

    def list_names(self, folder: str, suffix: str = "") -> list[str]:
        """The names (encoded, without `suffix`) of the entries of a folder, sorted; hidden ones are not listed."""
        try:
            entries = [child.name for child in self.resolve(folder).iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(n.removesuffix(suffix) for n in entries if n.endswith(suffix) and not n.startswith("."))

    def datasets(self) -> list[str]:
        """The names of the datasets that have an inventory, sorted."""
        datasets: set[str] = set()
        for encoded in self.list_names("inventory", ".parquet"):
            with self.resolve(f"inventory/{encoded}.parquet").open("rb") as file:
                datasets |= set(pc.unique(read_parquet(file, ["dataset"])["dataset"]).to_pylist())
        return sorted(datasets)

    # -- other files ------------------------------------------------------------------------------------------------

    def write_bytes(self, path: str, content: bytes) -> str:
        """Write a file of the lake; returns its path."""
        self.require_locks()
        with self._replacing(path) as sink:
            sink.write(content)
        return path

    def read_bytes(self, path: str) -> bytes | None:
        """The content of a file of the lake; None if it does not exist."""
        try:
            with self.open_file(path) as source:
                content: bytes = source.read()
                return content
        except FileNotFoundError:
            return None

    def get_size(self, path: str) -> int | None:
        """The size of a file in bytes; None if it does not exist."""
        try:
            if self.is_local:  # asked for many small files: a Path costs more than the call
                return os.stat(f"{self.root}/{path}").st_size  # noqa: PTH116
            return int(self.resolve(path).stat().st_size)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def compute_digest(self, path: str) -> str | None:
        """The SHA-256 of a small file; None if it does not exist."""
        content = self.read_bytes(path)
        return None if content is None else hashlib.sha256(content).hexdigest()

    def get_file_identity(self, path: str) -> tuple[object, ...] | None:
        """A value that changes when the file is replaced; None if it does not exist."""
        try:
            stat = self.resolve(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return stat.st_size, stat.st_mtime, getattr(stat, "st_ino", None)

    def read_slice(self, path: str, offset: int, length: int) -> bytes:
        """Read `length` bytes of a file from the position `offset`."""
        with self.open_file(path) as source:
            source.seek(offset)
            return source.read(length)

    def exists(self, path: str) -> bool:
        """Whether the file or folder exists."""
        return bool(self.resolve(path).exists())

    def remove(self, path: str) -> None:
        """Remove a file; no error if it does not exist."""
        self.resolve(path).unlink(missing_ok=True)

    # -- results of chunks, in hidden folders ------------------------------------------------------------------------

    def write_arrow(self, path: str, rows: pa.Table) -> int:
        """Write rows as an Arrow file, which is faster to read than Parquet; returns its size in bytes.

        It is not synced: a file that a loss of power truncated has another size, and its chunk is processed again.
        """
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with self._replacing(path, sync=False) as sink, pa.ipc.new_file(sink, rows.schema, options=options) as writer:
            writer.write_table(rows)
        return self.get_size(path) or 0

    def write_unsynced(self, path: str, content: bytes) -> None:
        """Write a file without syncing it, such as the marker of a finished chunk."""
        with self._replacing(path, sync=False) as sink:
            sink.write(content)

    def read_arrow(self, path: str) -> pa.Table:
        """Read an Arrow file.

        Raises:
            FileNotFoundError: it does not exist.
        """
        with self.open_file(path) as source:
            return pa.ipc.open_file(source).read_all()

    def remove_other_chunks(self, folder: str, keys: Collection[str]) -> None:
        """Remove the results of chunks in a hidden folder that killed runs left, except for those of some keys."""
        self.remove_temporary_files(folder)
        for name in self.list_names(folder):
            if name.partition(".")[0] not in keys:
                self.remove(f"{folder}/{name}")

    def remove_folder(self, path: str) -> None:
        """Remove a folder of the lake with all its content; no error if it does not exist."""
        folder = self.resolve(path)
        if self.is_local:
            shutil.rmtree(Path(self.root) / path, ignore_errors=True)  # a worker of a killed run may still write there
        elif folder.exists():
            folder.fs.rm(folder.path, recursive=True)

    def remove_temporary_files(self, folder: str) -> None:
        """Remove the temporary files of killed writers from a folder of the lake; the caller holds its lock."""
        path = self.resolve(folder)
        if self.is_local and path.is_dir():
            for file in path.glob(".*.tmp"):
                file.unlink(missing_ok=True)

    @contextmanager
    def _reading(self, path: str) -> Iterator[IO[bytes]]:
        """An open table; an error of pyarrow in the body is raised as one that names the file."""
        with self.open_file(path) as source:
            try:
                yield source
            except (pa.ArrowException, OSError) as error:
                raise DamagedTableError.from_error(path, error) from error

    def open_file(self, path: str) -> IO[bytes]:
        """Open a file of the lake for reading.

        Raises:
            FileNotFoundError: it does not exist.
        """
        file: IO[bytes] = open(Path(self.root) / path, "rb") if self.is_local else self.resolve(path).open("rb")  # noqa: SIM115, PTH123
        return file

    @contextmanager
    def _replacing(self, path: str, *, sync: bool = True) -> Iterator[IO[bytes]]:
        """A new file that replaces the old one when the body ends; if the body raises, the old one stays."""
        if not self.is_local:  # an object is created as a whole
            buffer = io.BytesIO()
            yield buffer
            self.resolve(path).write_bytes(buffer.getvalue())
            return
        target = Path(self.root) / path
        # with the process id, since a worker that outlives a killed run may write the same file as the next run
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with _create_file(temporary) as sink:
                yield sink
                if sync:
                    sink.flush()
                    os.fsync(sink.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _write_if_absent(path: Path, content: bytes) -> None:
    """Write a complete file, or leave the one that another process wrote first."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as sink:
            sink.write(content)
            sink.flush()
            os.fsync(sink.fileno())
        try:
            path.hardlink_to(temporary)  # unlike a rename, it fails if the file exists
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            with suppress(FileExistsError), path.open("xb") as sink:
                sink.write(content)
    finally:
        temporary.unlink(missing_ok=True)


def _create_file(path: Path) -> IO[bytes]:
    """Open an empty file; its folder is created only if that fails, since most folders exist."""
    try:
        return path.open("wb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path.open("wb")


def _advice(version: object) -> str:
    if isinstance(version, int) and version < SCHEMA_VERSION:
        return (
            f"older than {SCHEMA_VERSION}, which this version of dicom-etl writes: run `dicom-etl run --rebuild` with "
            "all of its datasets to rebuild its tables from the source files"
        )
    return (
        f"and this version of dicom-etl writes {SCHEMA_VERSION}: use the version that wrote it, or choose another lake"
    )
