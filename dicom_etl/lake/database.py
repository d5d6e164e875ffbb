"""The database of a lake: SQLite in its folder, or PostgreSQL that the setting `ledger_url` names.

It contains what cannot be derived from the source files. Not here: its tables (`upload.ledger`), and which run may
write (`locks`, `advisory_locks`).
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from dicom_etl.lake.tables import Lake, LakeError

if TYPE_CHECKING:
    from sqlalchemy.engine import URL, Engine
    from sqlalchemy.engine.interfaces import DBAPIConnection

DATABASE_FILE = "ledger.sqlite"
_LOGGING_NAME = "dicom-etl"
BUSY_SECONDS = 30.0  # how long SQLite waits while another process writes

_ADVICE = {  # by the beginning of the message of a driver
    "database is locked": "another process writes it: run again when that has ended",
    "file is not a database": "restore the file from a backup",
    "connection failed": "check ledger_url, and that PostgreSQL is running",
}

# SQLite in WAL mode shares memory between processes through the file system, which these do not support
# (https://www.sqlite.org/wal.html, "does not work over a network filesystem")
_SHARED_FILE_SYSTEMS = ("nfs", "cifs", "smb", "fuse", "afs", "ceph", "lustre", "beegfs", "gpfs", "glusterfs")
_LOCAL_FUSE = ("fuseblk",)  # a local disk, NTFS for one
_OCTAL = re.compile(r"\\([0-7]{3})")  # escaped characters, such as blanks, in /proc/mounts (fstab(5))


class DatabaseError(LakeError):
    """The database of the lake cannot be used; the text says what to do."""


def database_url(lake: Lake) -> URL:
    """The address of the lake's database.

    Raises:
        DatabaseError: `ledger_url` is not an address of SQLite or PostgreSQL, or SQLite cannot be used at its location.
    """
    if lake.ledger_url:
        return _configured_url(lake.ledger_url)
    if not lake.is_local:
        raise DatabaseError(
            f"the lake {lake.root} is on an object store, which cannot contain the upload ledger: set ledger_url to a "
            "PostgreSQL database, or to sqlite:////path of a file on a local disk"
        )
    file = Path(lake.root).resolve() / DATABASE_FILE
    kind = detect_file_system(file.parent)
    if is_shared_file_system(kind):
        raise DatabaseError(
            f"the lake {lake.root} is on a shared file system ({kind}), where SQLite could lose the upload ledger: set "
            "ledger_url to a PostgreSQL database, or to sqlite:////path of a file on a local disk"
        )
    return sa.URL.create("sqlite", database=str(file))


def _configured_url(text: str) -> URL:
    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError):  # ValueError: the port is not a number
        raise DatabaseError(
            "ledger_url is not the address of a database, such as postgresql://user@host/name"
        ) from None
    backend = url.get_backend_name()
    if backend == "sqlite":
        if not url.database or url.database == ":memory:":
            raise DatabaseError("ledger_url contains no file: set it to sqlite:////path/to/ledger.sqlite")
        kind = detect_file_system(Path(url.database).parent)
        if is_shared_file_system(kind):
            raise DatabaseError(f"the file in ledger_url is on a shared file system ({kind}): choose a local disk")
        return url.set(drivername="sqlite", query={})  # options of a URI could create it in memory
    if backend in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    raise DatabaseError(f"ledger_url is the address of a {backend} database; only sqlite and postgresql are supported")


def is_postgresql(lake: Lake) -> bool:
    """Whether `ledger_url` is the address of a PostgreSQL database."""
    return bool(lake.ledger_url) and _configured_url(str(lake.ledger_url)).get_backend_name() == "postgresql"


def open_engine(lake: Lake, *, to_write: bool = True) -> Engine:
    """The engine of the lake's database. Its connections are not pooled.

    Args:
        lake: the lake that the database belongs to.
        to_write: transactions of SQLite take the write lock when they begin (BEGIN IMMEDIATE), so that none fails
            halfway because another process was faster.

    Raises:
        DatabaseError: as `database_url`; or the driver of PostgreSQL is not installed.
    """
    url = database_url(lake)
    try:
        engine = make_engine(url, poolclass=NullPool, connect_args=_connect_args(url))
    except ModuleNotFoundError:
        raise DatabaseError("ledger_url needs the driver of PostgreSQL: pip install 'dicom-etl[postgres]'") from None
    if url.get_backend_name() == "sqlite":
        _create_file(Path(str(url.database)))
        sa.event.listen(engine, "connect", _configure_sqlite)
        begin = "BEGIN IMMEDIATE" if to_write else "BEGIN"
        sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def make_engine(url: URL, **options: Any) -> Engine:
    """An engine whose messages and logs contain no parameters and no rows, since these are data of patients."""
    engine = sa.create_engine(url, hide_parameters=True, logging_name=_LOGGING_NAME, **options)
    # at DEBUG, SQLAlchemy logs each row that it reads, even with hide_parameters
    logging.getLogger(f"sqlalchemy.engine.Engine.{_LOGGING_NAME}").setLevel(logging.INFO)
    return engine


def has_database(lake: Lake) -> bool:
    """Whether there is a database to read: a file that exists, or a server, which is not contacted."""
    if not lake.ledger_url and not lake.is_local:
        return False
    url = database_url(lake)
    return url.get_backend_name() != "sqlite" or Path(str(url.database)).exists()


def check_connection(lake: Lake) -> None:
    """Connect to the database once.

    Raises:
        DatabaseError: it cannot be reached.
    """
    engine = open_engine(lake, to_write=False)
    try:
        with engine.connect() as connection:
            connection.execute(sa.text("SELECT 1"))
    except sa.exc.SQLAlchemyError as error:
        raise DatabaseError(f"the upload ledger cannot be used: {describe_database_error(error)}") from None
    finally:
        engine.dispose()


def describe_database_error(error: sa.exc.SQLAlchemyError) -> str:
    """One line of the message of the driver, and what to do; without statement and parameters."""
    cause = getattr(error, "orig", None) or error
    lines = str(cause).strip().splitlines()
    message = lines[0] if lines else type(cause).__name__
    advice = next((text for start, text in _ADVICE.items() if message.startswith(start)), None)
    return f"{message}; {advice}" if advice else message


def _connect_args(url: URL) -> dict[str, object]:
    if url.get_backend_name() == "sqlite":
        return {"timeout": BUSY_SECONDS}
    # a connection that was lost silently is detected within half a minute
    alive = {"keepalives": 1, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
    return alive | {"connect_timeout": 30, "application_name": "dicom-etl"}


def _create_file(file: Path) -> None:
    """Create an empty file that only its owner can read; SQLite gives the same mode to `-wal` and `-shm`."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise DatabaseError(f"the upload ledger {file} cannot be written: {error.strerror}") from None


def _configure_sqlite(connection: DBAPIConnection, _record: object) -> None:
    connection.isolation_level = None  # otherwise the driver begins transactions itself, and too late
    cursor = connection.cursor()
    # secure_delete: rows of a withdrawn subject must not stay in free pages of the file
    for pragma in (
        f"busy_timeout={int(BUSY_SECONDS * 1000)}",
        "journal_mode=WAL",
        "synchronous=FULL",
        "secure_delete=ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


# -- file systems -----------------------------------------------------------------------------------------------------


def is_shared_file_system(kind: str) -> bool:
    """Whether several machines may use a file system at once, by the name of its type."""
    return kind.startswith(_SHARED_FILE_SYSTEMS) and kind not in _LOCAL_FUSE


def detect_file_system(folder: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """The type of the file system of a folder; empty if it is unknown (not on Linux)."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except OSError:
        return ""
    path = os.path.realpath(folder)
    kind, longest = "", -1
    for line in filter(None, lines):
        fields = line.split(" ")
        point = _OCTAL.sub(lambda escape: chr(int(escape[1], 8)), fields[1])
        is_inside = path == point or path.startswith(point.rstrip("/") + "/")
        if is_inside and len(point) >= longest:  # of two mounts at one point the later one is in use
            kind, longest = fields[2], len(point)
    return kind
