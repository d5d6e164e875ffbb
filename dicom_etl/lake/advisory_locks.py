"""Locks of datasets in PostgreSQL, so that runs on several machines exclude each other.

A session-level advisory lock (PostgreSQL 15, 13.3.5) is held on a connection of its own: the server releases it when
that connection ends, also after a kill. A run that lost this connection no longer holds the lock, so it is checked
before each commit.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from dicom_etl.lake.database import DatabaseError, describe_database_error, open_engine
from dicom_etl.lake.locks import LockHeldError

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

    from dicom_etl.lake.tables import Lake

_PAUSE = 0.2  # seconds between two attempts
_HELD = sa.text(
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = :pid AND objsubid = 1 "
    "AND classid = :high AND objid = :low "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


class LockLostError(DatabaseError):
    """The connection that held the lock of a dataset was lost: another run may hold the lock by now."""


@dataclass(frozen=True)
class AdvisoryLock:
    """A lock that is held.

    Attributes:
        name: the dataset, or what datasets share.
        connection: holds it.
        pid: process id of the backend of the connection.
        key: the number of the lock in PostgreSQL.
    """

    name: str
    connection: Connection
    pid: int
    key: int

    def require(self) -> None:
        """Check over the connection of the lock that it is still held.

        Raises:
            LockLostError: it is not.
        """
        try:
            self.require_on(self.connection)
        except sa.exc.SQLAlchemyError as error:
            raise self._lost(describe_database_error(error)) from None

    def require_on(self, connection: Connection) -> None:
        """Check over another connection, and so in the transaction that depends on the lock.

        Raises:
            LockLostError: it is not held.
        """
        unsigned = self.key & 0xFFFFFFFFFFFFFFFF
        parameters = {"pid": self.pid, "high": unsigned >> 32, "low": unsigned & 0xFFFFFFFF}
        if not connection.execute(_HELD, parameters).scalar():
            raise self._lost("its connection has ended")

    def _lost(self, reason: str) -> LockLostError:
        return LockLostError(
            f"the lock of {self.name} in PostgreSQL was lost ({reason}), so the run was stopped: run it again"
        )


def lock_key(lake_id: str, name: str) -> int:
    """The number of a lock, 64 bits, signed: a hash of the id of the lake and the name of the lock."""
    digest = hashlib.sha256(f"{lake_id}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


@contextmanager
def hold_advisory_lock(
    lake: Lake, name: str, doing: str, *, wait: float, notify: Callable[[str], None]
) -> Iterator[AdvisoryLock]:
    """Hold the advisory lock of a dataset while the body runs.

    Args:
        lake: its `ledger_url` is the address of the database.
        name: the dataset, or what datasets share.
        doing: what the holder does, for others to read (`application_name` of the connection).
        wait: seconds to wait; 0 does not wait.
        notify: called once with a sentence when it has to wait.

    Raises:
        LockHeldError: another run holds it for longer than `wait`.
        DatabaseError: the database cannot be reached.
    """
    key = lock_key(lake.lake_id, name)
    try:
        connection = open_engine(lake).connect().execution_options(isolation_level="AUTOCOMMIT")
    except sa.exc.SQLAlchemyError as error:
        raise DatabaseError(f"the database of ledger_url cannot be reached: {describe_database_error(error)}") from None
    with connection:
        try:
            pid = _acquire(connection, key, name, doing, wait, notify)
        except sa.exc.SQLAlchemyError as error:
            raise DatabaseError(
                f"the database of ledger_url cannot be used: {describe_database_error(error)}"
            ) from None
        try:
            yield AdvisoryLock(name, connection, pid, key)
        finally:
            with suppress(sa.exc.SQLAlchemyError):  # a lost connection holds no lock
                connection.execute(sa.text("SELECT pg_advisory_unlock(:key)"), {"key": key})


def _acquire(
    connection: Connection, key: int, name: str, doing: str, wait: float, notify: Callable[[str], None]
) -> int:
    """Take the lock; returns the pid of the backend."""
    label = f"dicom-etl: {doing} on {socket.gethostname()} ({os.getpid()})"[:63]
    connection.execute(sa.text("SELECT set_config('application_name', :label, false)"), {"label": label})
    deadline, is_notified = time.monotonic() + wait, False
    while not connection.execute(sa.text("SELECT pg_try_advisory_lock(:key)"), {"key": key}).scalar():
        holder = _holder(connection, key)
        if time.monotonic() >= deadline:
            raise LockHeldError(f"{name} is being written by {holder}; run again when that has ended")
        if not is_notified:
            notify(f"{name} is being written by {holder}; waiting up to {wait:.0f} s")
            is_notified = True
        time.sleep(_PAUSE)
    return int(connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one())


def _holder(connection: Connection, key: int) -> str:
    unsigned = key & 0xFFFFFFFFFFFFFFFF
    application = connection.execute(
        sa.text(
            "SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a USING (pid) "
            "WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.classid = :high AND l.objid = :low"
        ),
        {"high": unsigned >> 32, "low": unsigned & 0xFFFFFFFF},
    ).scalar()
    return str(application) if application else "another run"
