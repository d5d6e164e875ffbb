"""The upload ledger: the state of each resource on a server, and a journal of the attempts to send it.

It has three tables in the lake's database (`lake.database`). `resources` has a row per resource: its state, what the
server has of it, and the reason if something is wrong. `attempts` is the journal: an attempt is committed before its
request, and deleted by the answer. After a kill, the open attempts are exactly the resources that must be looked up on
the server. `units` has the fingerprint of each unit of which everything is stored.

All statements run in one thread, not on the event loop; calls that arrive together share a transaction, and no
transaction is open during a request. `TRANSITIONS` alone defines how a state changes. Not here: decisions that follow
from rows.
"""

from __future__ import annotations

import queue
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from dicom_etl.lake import database
from dicom_etl.lake.database import DatabaseError
from dicom_etl.lake.tables import Lake

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine, RowMapping

Key = tuple[str, str]  # resource type, and id in the lake or on the server
T = TypeVar("T")

_NEVER = datetime(1, 1, 1, tzinfo=UTC)
_FORMAT = 1  # of the tables; another one is refused
_MAX_VALUES = 400  # in one IN (...)
_MAX_JOBS = 200  # in one transaction


# -- states -----------------------------------------------------------------------------------------------------------


class State(StrEnum):
    """The state of a resource on the server."""

    STORED = "stored"  # the server has it as sent
    UNCONFIRMED = "unconfirmed"  # sent, answer unknown
    REJECTED = "rejected"  # the server refuses it, until the resource or the server changes
    FAILED = "failed"  # the last attempt failed after all retries
    HELD = "held"  # on hold: not sent until a person decides
    ORPHANED = "orphaned"  # on the server, no longer produced by the lake


class Event(StrEnum):
    """An event that changes the state of a resource."""

    SENT = "sent"  # it is about to be sent
    STORED = "stored"  # the server has it as it should be
    REFUSED = "refused"
    FAILED = "failed"  # it was not sent, or not accepted, after all retries
    UNANSWERED = "unanswered"  # it was sent, and it is not known whether it arrived
    HELD = "held"
    DROPPED = "dropped"  # the lake no longer produces it
    PRODUCED = "produced"  # the lake produces it again as it was stored
    MISSING = "missing"  # the server no longer has it


_ANY = (None, *State)
TRANSITIONS: dict[tuple[State | None, Event], State] = {
    **{(state, Event.SENT): State.UNCONFIRMED for state in _ANY},
    **{(state, Event.STORED): State.STORED for state in _ANY},
    **{(state, Event.REFUSED): State.REJECTED for state in _ANY},
    **{(state, Event.FAILED): State.FAILED for state in _ANY},
    **{(state, Event.UNANSWERED): State.UNCONFIRMED for state in _ANY},
    **{(state, Event.HELD): State.HELD for state in _ANY},
    **{(state, Event.DROPPED): State.ORPHANED for state in State},
    (State.ORPHANED, Event.PRODUCED): State.STORED,
    **{(state, Event.MISSING): state for state in State if state is not State.STORED},
    (State.STORED, Event.MISSING): State.FAILED,
}
FAILED_STATES = (State.REJECTED, State.FAILED, State.UNCONFIRMED)  # sent again by --failed
UNFINISHED_STATES = (*FAILED_STATES, State.HELD)  # a person must do something


# -- rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ResourceRow:
    """The ledger's row of a resource. `server_id` is None until the server is known to have it.

    What the server has (`server_id` to `contribution`) and the result of the last attempt (`state` to `time`) are
    separate: a failure does not change what is known of the server.
    """

    type: str
    id: str
    dataset: str
    unit: str | None = None
    subject: str | None = None
    business_key: str | None = None  # StudyInstanceUID, identifier of a Patient, address of an Endpoint
    server_id: str | None = None
    is_external: bool = False  # it belongs to another client; studies refer to it, or are merged into it
    hash: str | None = None  # of the resource as this lake stored it last; None where it never did
    server_hash: str | None = None  # of what the server had then, without references (`items.compute_content_hash`)
    version: str | None = None  # as the server names it: opaque
    etag: str | None = None  # of that version, verbatim
    contribution: str | None = None  # of Patients: the content that this lake sent last, before it was merged
    is_indexed: bool = True  # False: this lake created it, and no search has found it yet
    state: State = State.FAILED
    reason: str | None = None  # code of a finding
    reason_text: str | None = None
    http_status: int | None = None
    attempts: int = 0
    time: datetime = _NEVER

    @property
    def key(self) -> Key:
        """Type and id in the lake."""
        return self.type, self.id

    @property
    def server_key(self) -> Key:
        """Type and id on the server."""
        return self.type, self.server_id or self.id

    @property
    def is_on_server(self) -> bool:
        """Whether the server has it, as far as is known."""
        return self.server_id is not None

    @property
    def is_owned(self) -> bool:
        """Whether this lake stored what the server has; if not, another client did."""
        return self.is_on_server and self.hash is not None and not self.is_external

    def after(self, event: Event, **changes: Any) -> ResourceRow:
        """Return the row after an event: the state from `TRANSITIONS`, the reason only where `changes` has one.

        Raises:
            KeyError: the event cannot happen in this state.
        """
        state = TRANSITIONS[self.state, event]
        if event not in (Event.SENT, Event.MISSING):
            changes = {"reason": None, "reason_text": None, "http_status": None} | changes
        return replace(self, state=state, time=datetime.now(UTC), **changes)

    def with_changes(self, **changes: Any) -> ResourceRow:
        """Return the row with other values but the same state; its time is new if a value differs."""
        changed = replace(self, **changes)
        return self if changed == self else replace(changed, time=datetime.now(UTC))


@dataclass(frozen=True, slots=True)
class Attempt:
    """A resource that is about to be sent. `number` is assigned by the database."""

    type: str
    id: str
    hash: str  # as `ResourceRow.hash` once it is stored
    server_hash: str
    if_match: str  # empty: whatever version the server has
    contribution: str | None = None
    server_id: str | None = None
    number: int | None = None
    time: datetime = _NEVER

    @property
    def key(self) -> Key:
        """Type and id in the lake."""
        return self.type, self.id


class _Instant(sa.TypeDecorator[datetime]):
    """A time in UTC, also in SQLite, which stores no zone, and in PostgreSQL, which answers in the session's zone."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return value.astimezone(UTC).replace(tzinfo=None) if value and dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


_METADATA = sa.MetaData()
_KEY = ("lake_id", "server", "type", "id")


def _key_columns(*, primary: bool) -> list[sa.Column[Any]]:
    return [sa.Column(name, sa.Text, primary_key=primary, nullable=False) for name in _KEY]


_RESOURCES = sa.Table(
    "resources",
    _METADATA,
    *_key_columns(primary=True),
    sa.Column("dataset", sa.Text, nullable=False),
    sa.Column("unit", sa.Text),
    sa.Column("subject", sa.Text),
    sa.Column("business_key", sa.Text),
    sa.Column("server_id", sa.Text),
    sa.Column("is_external", sa.Boolean, nullable=False),
    sa.Column("hash", sa.Text),
    sa.Column("server_hash", sa.Text),
    sa.Column("version", sa.Text),
    sa.Column("etag", sa.Text),
    sa.Column("contribution", sa.Text),
    sa.Column("is_indexed", sa.Boolean, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("reason_text", sa.Text),
    sa.Column("http_status", sa.Integer),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("time", _Instant, nullable=False),
    sa.Index("resources_of_unit", "lake_id", "server", "dataset", "unit"),
)
_ATTEMPTS = sa.Table(
    "attempts",
    _METADATA,
    sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    *_key_columns(primary=False),
    sa.Column("server_id", sa.Text),
    sa.Column("hash", sa.Text, nullable=False),
    sa.Column("server_hash", sa.Text, nullable=False),
    sa.Column("if_match", sa.Text, nullable=False),
    sa.Column("contribution", sa.Text),
    sa.Column("time", _Instant, nullable=False),
    sa.Index("attempts_of_resource", *_KEY),
)
_UNITS = sa.Table(
    "units",
    _METADATA,
    sa.Column("lake_id", sa.Text, primary_key=True),
    sa.Column("server", sa.Text, primary_key=True),
    sa.Column("dataset", sa.Text, primary_key=True),
    sa.Column("unit", sa.Text, primary_key=True),
    sa.Column("fingerprint", sa.Text, nullable=False),
)
_FORMATS = sa.Table("ledger_format", _METADATA, sa.Column("format", sa.Integer, primary_key=True))

_ROW_FIELDS = tuple(field.name for field in fields(ResourceRow))
_ATTEMPT_FIELDS = tuple(field.name for field in fields(Attempt))


# -- the ledger -------------------------------------------------------------------------------------------------------


class LedgerError(DatabaseError):
    """The ledger cannot be read or written; nothing more is sent."""


Job = Callable[["Connection"], T]


class Ledger:
    """The ledger of a lake for one server, used as a context manager: its end waits for all writes.

    Methods that begin with `read_`, `write_` or `delete_` run their statements in the ledger's thread and return a
    Future; statements run in the order of the calls, so that a read sees all earlier writes. After a write that fails
    all later calls fail. `write_attempts` must have succeeded before anything is sent.
    """

    def __init__(
        self,
        engine: Engine,
        lake_id: str,
        server: str,
        *,
        require_lock: Callable[[Connection], None] = lambda _: None,
    ) -> None:
        """Make a ledger that is not open yet.

        Args:
            engine: of the lake's database.
            lake_id: the id of the lake.
            server: the name of the server.
            require_lock: called in each transaction; raises where this run may no longer write.
        """
        self.server = server
        self._engine, self._lake_id, self._require_lock = engine, lake_id, require_lock
        self._jobs: queue.SimpleQueue[tuple[Job[Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._failure: LedgerError | None = None
        self._resources = ExitStack()

    @classmethod
    def from_lake(cls, lake: Lake, server: str, *, is_dry_run: bool = False) -> Self:
        """Make the ledger of a server from a lake; for a dry run, from a copy that is deleted at the end.

        Raises:
            DatabaseError: the lake's database cannot be used.
        """
        try:
            if not is_dry_run:
                engine = database.open_engine(lake)
                create_tables(engine)
                return cls(engine, lake.lake_id, server, require_lock=lake.require_locks)
            folder = tempfile.TemporaryDirectory(prefix="dicom-etl-")
            ledger = cls(_copy_ledger(lake, Path(folder.name), server), lake.lake_id, server)
        except sa.exc.SQLAlchemyError as error:
            raise LedgerError(
                f"the upload ledger cannot be opened: {database.describe_database_error(error)}"
            ) from None
        ledger._resources.enter_context(folder)
        return ledger

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run_jobs, name="ledger", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._jobs.put(None)
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._resources.close()
        if kind is None and self._failure is not None:
            raise self._failure

    # -- reading

    def read_rows(self, keys: Iterable[Key]) -> Future[dict[Key, ResourceRow]]:
        """Read the rows of some resources, as far as they have one."""
        requested = list(keys)
        return self._submit(lambda connection: self._select_rows(connection, requested))

    def read_units(self, dataset: str, units: Collection[str]) -> Future[dict[Key, ResourceRow]]:
        """Read the rows of some units of a dataset."""

        def read(connection: Connection) -> dict[Key, ResourceRow]:
            return {
                row.key: row
                for names in _split(units)
                for row in self._select_where(connection, _RESOURCES.c.dataset == dataset, _RESOURCES.c.unit.in_(names))
            }

        return self._submit(read)

    def read_where(
        self,
        *,
        dataset: str | None = None,
        states: Collection[State] = (),
        is_shared: bool | None = None,
        is_notable: bool = False,
        is_indexed: bool | None = None,
    ) -> Future[list[ResourceRow]]:
        """Read the rows that meet all given conditions, by type and id.

        Args:
            dataset: of this dataset.
            states: in one of these states; empty: in any.
            is_shared: True: of what datasets share (no unit); False: of units.
            is_notable: only those that are not stored, are external, or have a reason.
            is_indexed: whether a search has found it since it was created.
        """
        columns = _RESOURCES.c
        conditions = [columns.dataset == dataset] if dataset is not None else []
        conditions += [columns.state.in_([str(state) for state in states])] if states else []
        if is_shared is not None:
            conditions.append(columns.unit.is_(None) if is_shared else columns.unit.is_not(None))
        if is_indexed is not None:
            conditions.append(columns.is_indexed.is_(is_indexed))
        if is_notable:
            conditions.append(
                sa.or_(columns.state != str(State.STORED), columns.is_external, columns.reason.is_not(None))
            )

        def read(connection: Connection) -> list[ResourceRow]:
            rows = {row.key: row for row in self._select_where(connection, *conditions)}
            return [rows[key] for key in sorted(rows)]

        return self._submit(read)

    def read_unit_names(self, dataset: str) -> Future[set[str]]:
        """Read the names of the units of a dataset that have rows."""
        query = sa.select(_RESOURCES.c.unit).where(*self._scope(_RESOURCES), _RESOURCES.c.dataset == dataset)
        query = query.where(_RESOURCES.c.unit.is_not(None)).distinct()
        return self._submit(lambda connection: set(connection.execute(query).scalars()))

    def read_datasets(self) -> Future[set[str]]:
        """Read the names of the datasets that have rows."""
        query = sa.select(_RESOURCES.c.dataset).where(*self._scope(_RESOURCES)).distinct()
        return self._submit(lambda connection: set(connection.execute(query).scalars()))

    def read_counts(self, dataset: str) -> Future[dict[tuple[str, State, bool], int]]:
        """Count the resources of a dataset's units by type, state, and whether they are external."""
        columns = _RESOURCES.c
        query = sa.select(columns.type, columns.state, columns.is_external, sa.func.count())
        query = query.where(*self._scope(_RESOURCES), columns.dataset == dataset, columns.unit.is_not(None))
        query = query.group_by(columns.type, columns.state, columns.is_external)

        def read(connection: Connection) -> dict[tuple[str, State, bool], int]:
            return {
                (resource_type, State(state), bool(is_external)): number
                for resource_type, state, is_external, number in connection.execute(query)
            }

        return self._submit(read)

    def read_other_ids(self) -> Future[dict[Key, str]]:
        """Read the server ids of the Patients that have another id in the lake."""
        columns = _RESOURCES.c
        query = sa.select(columns.type, columns.id, columns.server_id).where(*self._scope(_RESOURCES))
        query = query.where(columns.type == "Patient", columns.server_id != columns.id)
        return self._submit(lambda connection: {(row.type, row.id): row.server_id for row in connection.execute(query)})

    def read_page(self, dataset: str, after: Key, size: int) -> Future[list[ResourceRow]]:
        """Read the next rows of a dataset after a key, in the order of their keys' bytes."""

        def read(connection: Connection) -> list[ResourceRow]:
            names: list[sa.ColumnElement[str]] = [_RESOURCES.c.type, _RESOURCES.c.id]
            if connection.dialect.name == "postgresql":  # other collations have other orders
                names = [sa.collate(name, "C") for name in names]
            query = sa.select(_RESOURCES).where(*self._scope(_RESOURCES), _RESOURCES.c.dataset == dataset)
            query = query.where(sa.tuple_(*names) > sa.tuple_(*after)).order_by(*names).limit(size)
            return [_make_row(values) for values in connection.execute(query).mappings()]

        return self._submit(read)

    def read_generation(self, dataset: str) -> Future[str]:
        """Read a text that changes whenever a row of a dataset does; it begins with the number of rows."""
        query = sa.select(sa.func.count(), sa.func.max(_RESOURCES.c.time))
        query = query.where(*self._scope(_RESOURCES), _RESOURCES.c.dataset == dataset)

        def read(connection: Connection) -> str:
            count, newest = connection.execute(query).one()
            return f"{count} {newest}"

        return self._submit(read)

    def read_fingerprints(self, dataset: str) -> Future[dict[str, str]]:
        """Read the fingerprints of the units of which everything was stored."""
        query = sa.select(_UNITS.c.unit, _UNITS.c.fingerprint).where(*self._scope(_UNITS), _UNITS.c.dataset == dataset)
        return self._submit(lambda connection: {row.unit: row.fingerprint for row in connection.execute(query)})

    def read_rows_and_attempts(
        self, keys: Iterable[Key]
    ) -> Future[tuple[dict[Key, ResourceRow], dict[Key, list[Attempt]]]]:
        """Read the rows and the open attempts of some resources, as `read_rows` and `read_attempts` return them."""
        requested = list(keys)
        return self._submit(
            lambda connection: (self._select_rows(connection, requested), self._select_attempts(connection, requested))
        )

    def read_attempts(self, keys: Iterable[Key]) -> Future[dict[Key, list[Attempt]]]:
        """Read the open attempts of some resources, oldest first, as far as they have any."""
        requested = list(keys)
        return self._submit(lambda connection: self._select_attempts(connection, requested))

    # -- writing

    def write_attempts(
        self, attempts: Sequence[Attempt], rows: Sequence[ResourceRow], *, closed: Sequence[int] = ()
    ) -> Future[list[int]]:
        """Open attempts, close others, and write the rows that go with them; returns the numbers of the new attempts.

        Wait for the result before anything is sent.
        """
        now = datetime.now(UTC)
        names = [name for name in _ATTEMPT_FIELDS if name != "number"]
        values = [
            self._add_scope({name: getattr(attempt, name) for name in names} | {"time": now}) for attempt in attempts
        ]

        def write(connection: Connection) -> list[int]:
            self._upsert(connection, rows)
            self._close(connection, closed)
            if not values:
                return []
            insert = sa.insert(_ATTEMPTS).returning(_ATTEMPTS.c.number, sort_by_parameter_order=True)
            return list(connection.execute(insert, values).scalars())

        return self._submit(write)

    def write_rows(self, rows: Sequence[ResourceRow], *, closed: Sequence[int] = ()) -> Future[None]:
        """Write rows, and close the attempts that an answer, or a read from the server, has completed."""

        def write(connection: Connection) -> None:
            self._upsert(connection, rows)
            self._close(connection, closed)

        return self._submit(write)

    def delete_rows(self, keys: Collection[Key]) -> Future[None]:
        """Delete the rows of some resources, with their open attempts."""

        def write(connection: Connection) -> None:
            for table in (_ATTEMPTS, _RESOURCES):
                for resource_type, ids in _group_by_type(keys):
                    connection.execute(
                        sa.delete(table).where(*self._scope(table), table.c.type == resource_type, table.c.id.in_(ids))
                    )

        return self._submit(write)

    def write_fingerprints(self, dataset: str, fingerprints: dict[str, str | None]) -> Future[None]:
        """Write the fingerprints of units of which everything is stored; None: something is not."""
        scope = {"lake_id": self._lake_id, "server": self.server, "dataset": dataset}
        values = [
            scope | {"unit": unit, "fingerprint": value} for unit, value in fingerprints.items() if value is not None
        ]

        def write(connection: Connection) -> None:
            for units in _split([unit for unit, value in fingerprints.items() if value is None]):
                conditions = (*self._scope(_UNITS), _UNITS.c.dataset == dataset, _UNITS.c.unit.in_(units))
                connection.execute(sa.delete(_UNITS).where(*conditions))
            if values:
                self._upsert_into(connection, _UNITS, values)

        return self._submit(write)

    def delete_fingerprints(self, dataset: str) -> Future[None]:
        """Delete the fingerprints of all units of a dataset."""
        conditions = (*self._scope(_UNITS), _UNITS.c.dataset == dataset)

        def write(connection: Connection) -> None:
            connection.execute(sa.delete(_UNITS).where(*conditions))

        return self._submit(write)

    def flush(self) -> None:
        """Wait until all writes are committed.

        Raises:
            LedgerError: something could not be written.
        """
        self._submit(lambda _: None).result()

    def erase_deleted(self) -> None:
        """Remove deleted rows from the files of the database, too: SQLite's log has them until it is emptied.

        Raises:
            LedgerError: the database cannot be used.
        """
        self.flush()
        if self._engine.dialect.name != "sqlite":
            return
        try:
            with closing(self._engine.raw_connection()) as connection:  # a checkpoint is not part of a transaction
                connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sa.exc.SQLAlchemyError as error:
            raise LedgerError(f"the upload ledger cannot be used: {database.describe_database_error(error)}") from None

    # -- statements

    def _scope(self, table: sa.Table) -> tuple[sa.ColumnElement[bool], ...]:
        return table.c.lake_id == self._lake_id, table.c.server == self.server

    def _add_scope(self, values: dict[str, Any]) -> dict[str, Any]:
        return values | {"lake_id": self._lake_id, "server": self.server}

    def _select_where(self, connection: Connection, *conditions: sa.ColumnElement[bool]) -> list[ResourceRow]:
        query = sa.select(_RESOURCES).where(*self._scope(_RESOURCES), *conditions)
        return [_make_row(values) for values in connection.execute(query).mappings()]

    def _select_rows(self, connection: Connection, keys: Iterable[Key]) -> dict[Key, ResourceRow]:
        return {row.key: row for row in map(_make_row, self._select_keys(connection, _RESOURCES, keys))}

    def _select_attempts(self, connection: Connection, keys: Iterable[Key]) -> dict[Key, list[Attempt]]:
        attempts: dict[Key, list[Attempt]] = {}
        for values in self._select_keys(connection, _ATTEMPTS, keys):
            attempt = Attempt(**{name: values[name] for name in _ATTEMPT_FIELDS})
            attempts.setdefault(attempt.key, []).append(attempt)
        return {key: sorted(journal, key=lambda attempt: attempt.number or 0) for key, journal in attempts.items()}

    def _select_keys(self, connection: Connection, table: sa.Table, keys: Iterable[Key]) -> Iterator[RowMapping]:
        for resource_type, ids in _group_by_type(keys):
            query = sa.select(table).where(*self._scope(table), table.c.type == resource_type, table.c.id.in_(ids))
            yield from connection.execute(query).mappings()

    def _close(self, connection: Connection, numbers: Sequence[int]) -> None:
        for chosen in _split(numbers):
            connection.execute(sa.delete(_ATTEMPTS).where(_ATTEMPTS.c.number.in_(chosen)))

    def _upsert(self, connection: Connection, rows: Sequence[ResourceRow]) -> None:
        if rows:
            self._upsert_into(connection, _RESOURCES, [self._add_scope(_make_values(row)) for row in rows])

    def _upsert_into(self, connection: Connection, table: sa.Table, values: list[dict[str, Any]]) -> None:
        insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)
        keys = [column.name for column in table.primary_key]
        others = {column.name: insert.excluded[column.name] for column in table.c if column.name not in keys}
        connection.execute(insert.on_conflict_do_update(index_elements=keys, set_=others), values)

    # -- the thread

    def _submit(self, job: Job[T]) -> Future[T]:
        future: Future[T] = Future()
        if self._failure is not None:
            future.set_exception(self._failure)
        else:
            self._jobs.put((job, future))
        return future

    def _run_jobs(self) -> None:
        """Run jobs until the end; those that are queued at the same time share a transaction."""
        jobs: list[tuple[Job[Any], Future[Any]]] = []
        try:
            with self._engine.connect() as connection:
                while queued := self._take_jobs():
                    # a cancelled job is not run; a running one can no longer be cancelled
                    jobs = [job for job in queued if job[1].set_running_or_notify_cancel()]
                    self.run_transaction(connection, jobs)
                    jobs = []
        except sa.exc.SQLAlchemyError as error:
            self._fail(
                jobs, LedgerError(f"the upload ledger cannot be used: {database.describe_database_error(error)}")
            )
        except DatabaseError as error:
            self._fail(jobs, LedgerError(str(error)))
        except Exception as error:  # noqa: BLE001 - every failure must reach those who wait for a Future
            self._fail(jobs, LedgerError(f"the upload ledger cannot be used: {type(error).__name__}"))
        finally:
            self._engine.dispose()

    def _take_jobs(self) -> list[tuple[Job[Any], Future[Any]]]:
        """Take the queued jobs, waiting for the first; none at the end."""
        jobs = []
        job = self._jobs.get()
        while job is not None:
            jobs.append(job)
            if len(jobs) >= _MAX_JOBS or self._jobs.empty():
                return jobs
            job = self._jobs.get()
        self._jobs.put(None)  # for the next turn
        return jobs

    def run_transaction(self, connection: Connection, jobs: Sequence[tuple[Job[Any], Future[Any]]]) -> None:
        """Run jobs in one transaction of the ledger's thread, and set their results after the commit."""
        with connection.begin():
            self._require_lock(connection)
            results = [job(connection) for job, _ in jobs]
        for (_, future), result in zip(jobs, results, strict=True):
            future.set_result(result)

    def _fail(self, jobs: Sequence[tuple[Job[Any], Future[Any]]], failure: LedgerError) -> None:
        """Let all jobs fail: these, those that are queued, and those still to come."""
        self._failure = failure
        for _, future in jobs:
            future.set_exception(failure)
        while (job := self._jobs.get()) is not None:
            if job[1].set_running_or_notify_cancel():
                job[1].set_exception(failure)


def create_tables(engine: Engine) -> None:
    """Create the tables that do not exist yet.

    Raises:
        LedgerError: they have the format of another version of dicom-etl.
    """
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":  # two runs may begin at the same moment
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(6277101735386680763)"))
        _METADATA.create_all(connection)
        if not _has_format(connection):
            connection.execute(sa.insert(_FORMATS).values(format=_FORMAT))


def _has_format(connection: Connection) -> bool:
    """Whether the database has the format of this version; False where it has none yet.

    Raises:
        LedgerError: it has another format.
    """
    formats = list(connection.execute(sa.select(_FORMATS.c.format)).scalars())
    if formats not in ([], [_FORMAT]):
        raise LedgerError(
            f"the upload ledger has format {formats[0]}, and this version of dicom-etl writes format {_FORMAT}; "
            "use the version that wrote it"
        )
    return bool(formats)


def _make_row(values: RowMapping) -> ResourceRow:
    row = {name: values[name] for name in _ROW_FIELDS}
    return ResourceRow(**row | {"state": State(row["state"])})


def _make_values(row: ResourceRow) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in _ROW_FIELDS}
    # PostgreSQL stores no NUL in a text
    values |= {
        name: value.replace("\0", "\ufffd") for name, value in values.items() if type(value) is str and "\0" in value
    }
    return values | {"state": str(row.state)}


def _group_by_type(keys: Iterable[Key]) -> Iterator[tuple[str, list[str]]]:
    """Group ids by type, with as many in a group as a statement accepts."""
    ids: dict[str, list[str]] = {}
    for resource_type, identity in sorted(set(keys)):
        ids.setdefault(resource_type, []).append(identity)
    for resource_type, identities in ids.items():
        for chosen in _split(identities):
            yield resource_type, chosen


def _split(values: Collection[T]) -> Iterator[list[T]]:
    """Split values into lists that are as long as a statement accepts."""
    ordered = list(values)
    for start in range(0, len(ordered), _MAX_VALUES):
        yield ordered[start : start + _MAX_VALUES]


def _copy_ledger(lake: Lake, folder: Path, server: str) -> Engine:
    """Make a database in `folder` with the rows of one server; empty where the lake has no ledger yet."""
    url = sa.URL.create("sqlite", database=str(folder / database.DATABASE_FILE))
    copy = database.make_engine(url)
    _METADATA.create_all(copy)
    if not database.has_database(lake):
        return copy
    engine = database.open_engine(lake, to_write=False)
    with engine.connect() as source, copy.begin() as target:
        if not sa.inspect(source).has_table(_FORMATS.name) or not _has_format(source):
            return copy
        for table in (_RESOURCES, _ATTEMPTS, _UNITS):
            query = sa.select(table).where(table.c.lake_id == lake.lake_id, table.c.server == server)
            for rows in source.execution_options(yield_per=1000).execute(query).mappings().partitions():
                target.execute(sa.insert(table), [dict(row) for row in rows])
    engine.dispose()
    return copy


# -- reading the ledgers of all servers -------------------------------------------------------------------------------


def count_resources(lake: Lake) -> dict[tuple[str, str, State], int]:
    """Count the resources of a lake by dataset, server and state."""
    columns = _RESOURCES.c
    query = sa.select(columns.dataset, columns.server, columns.state, sa.func.count())
    query = query.where(columns.lake_id == lake.lake_id).group_by(columns.dataset, columns.server, columns.state)
    return {(row[0], row[1], State(row[2])): int(row[3]) for row in _query(lake, query)}


def read_resources(
    lake: Lake, dataset: str, *, unit: str | None = None, states: Collection[State] = ()
) -> list[tuple[str, ResourceRow]]:
    """Read the rows of a dataset, or of a unit of it, each with its server; in some states, or in all."""
    columns = _RESOURCES.c
    query = sa.select(_RESOURCES).where(columns.lake_id == lake.lake_id, columns.dataset == dataset)
    if unit is not None:
        query = query.where(columns.unit == unit)
    if states:
        query = query.where(columns.state.in_([str(state) for state in states]))
    rows = [(record.server, _make_row(record._mapping)) for record in _query(lake, query)]
    return sorted(rows, key=lambda pair: (pair[0], pair[1].key))


def read_servers(lake: Lake) -> list[str]:
    """Read the names of the servers for which the lake has a ledger."""
    query = sa.select(_RESOURCES.c.server).where(_RESOURCES.c.lake_id == lake.lake_id).distinct()
    return sorted(str(row[0]) for row in _query(lake, query))


def _query(lake: Lake, query: sa.Select[Any]) -> Sequence[Any]:
    """Run a query; returns no rows where there is no ledger yet.

    Raises:
        LedgerError: the database cannot be read.
    """
    if not database.has_database(lake):
        return []
    engine = database.open_engine(lake, to_write=False)
    try:
        with engine.connect() as connection:
            if not sa.inspect(connection).has_table(_RESOURCES.name):
                return []
            return connection.execute(query).all()
    except sa.exc.SQLAlchemyError as error:
        raise LedgerError(f"the upload ledger cannot be read: {database.describe_database_error(error)}") from None
    finally:
        engine.dispose()
