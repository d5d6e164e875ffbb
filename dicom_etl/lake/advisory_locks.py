"""Locks of datasets in PostgreSQL, so that runs on several machines exclude each other.

A session-level advisory lock (PostgreSQL 15, 13.3.5) on a connection of its own: the server gives it back when that
connection ends, also by a kill. A run whose connection was lost no longer holds the lock, so every commit asks first.
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

_PAUSE = 0.2  # seconds between two tries
_HELD = sa.text(
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND pid = :pid AND objsubid = 1 "
    "AND classid = :high AND objid = :low "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


class LockLostError(DatabaseError):
    """The connection that held the lock of a dataset was lost: another run may have it by now."""


@dataclass(frozen=True)
class AdvisoryLock:
    """A lock that is held. `pid` is that of the backend of its connection, `key` its number."""

    name: str
    connection: Connection
    pid: int
    key: int

    def require(self) -> None:
        """Ask over the lock's own connection whether it is still held.

        Raises:
            LockLostError: it is not.
        """
        try:
            self.require_on(self.connection)
        except sa.exc.SQLAlchemyError as error:
            raise self._lost(describe_database_error(error)) from None

    def require_on(self, connection: Connection) -> None:
        """As `require`, over another connection, and so in the transaction that depends on it.

        Raises:
            LockLostError: it is not held.
        """
        unsigned = self.key & 0xFFFFFFFFFFFFFFFF
        where = {"pid": self.pid, "high": unsigned >> 32, "low": unsigned & 0xFFFFFFFF}
        if not connection.execute(_HELD, where).scalar():
            raise self._lost("its connection has ended")

    def _lost(self, why: str) -> LockLostError:
        return LockLostError(f"the lock of {self.name} in PostgreSQL was lost ({why}): the run was stopped; run again")


def lock_key(lake_id: str, name: str) -> int:
    """The number of a lock: 64 bits, signed, of the lake's id and the lock's name."""
    digest = hashlib.sha256(f"{lake_id}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


@contextmanager
def hold_advisory_lock(
    lake: Lake, name: str, doing: str, *, wait: float, notify: Callable[[str], None]
) -> Iterator[AdvisoryLock]:
    """Hold the advisory lock of a dataset of the lake while the body runs.

    Args:
        lake: whose `ledger_url` names the database.
        name: of the dataset, or of what datasets share.
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
            with suppress(sa.exc.SQLAlchemyError):  # a connection that was lost holds nothing
                connection.execute(sa.text("SELECT pg_advisory_unlock(:key)"), {"key": key})


def _acquire(
    connection: Connection, key: int, name: str, doing: str, wait: float, notify: Callable[[str], None]
) -> int:
    """Take the lock; returns the pid of the backend."""
    label = f"dicom-etl: {doing} on {socket.gethostname()} ({os.getpid()})"[:63]
    connection.execute(sa.text("SELECT set_config('application_name', :label, false)"), {"label": label})
    until, told = time.monotonic() + wait, False
    while not connection.execute(sa.text("SELECT pg_try_advisory_lock(:key)"), {"key": key}).scalar():
        holder = _holder(connection, key)
        if time.monotonic() >= until:
            raise LockHeldError(f"{name} is being written by {holder}; try again when that has ended")
        if not told:
            notify(f"{name} is being written by {holder}; waiting up to {wait:.0f} s")
            told = True
        time.sleep(_PAUSE)
    return int(connection.execute(sa.text("SELECT pg_backend_pid()")).scalar_one())


def _holder(connection: Connection, key: int) -> str:
    unsigned = key & 0xFFFFFFFFFFFFFFFF
    found = connection.execute(
        sa.text(
            "SELECT a.application_name FROM pg_locks l JOIN pg_stat_activity a USING (pid) "
            "WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.classid = :high AND l.objid = :low"
        ),
        {"high": unsigned >> 32, "low": unsigned & 0xFFFFFFFF},
    ).scalar()
    return str(found) if found else "another run"
