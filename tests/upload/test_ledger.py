"""The upload ledger, on SQLite and on PostgreSQL: the same tests for both."""

import asyncio
import os
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from dicom_etl.lake import database
from dicom_etl.lake.schemas import UPLOAD_LEDGER
from dicom_etl.lake.tables import Lake
from dicom_etl.upload.items import UploadItem
from dicom_etl.upload.ledger import (
    Attempt,
    Event,
    Key,
    Ledger,
    LedgerError,
    ResourceRow,
    State,
    count_resources,
    create_tables,
    read_resources,
    read_servers,
)
from dicom_etl.upload.results import export_ledger
from dicom_etl.upload.scheduling import resolve_from_ledger
from tests.servers import postgres_server
from tests.servers.postgres_server import PostgresServer

ROOT = Path(__file__).parents[2]
SERVER = "server_80_fhir"
WAIT = 30.0  # seconds; none of the tests needs one of them
NOON = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
FULL = ResourceRow(
    type="Patient",
    id="a1",
    dataset="Études/日本",
    unit="sub-Ä 'quoted\" %s :name",
    subject="sub-Ä",
    business_key="urn:x|Ω\\1",
    server_id="other-id",
    is_external=True,
    hash="0f",
    server_hash="1e",
    version="a/b=\u00e9",
    etag='W/"a/b"',
    contribution='{"name":[{"family":"Łódź 😀"}]}',
    is_indexed=False,
    state=State.HELD,
    reason="patient-conflict",
    reason_text="birthDate differs\non two lines",
    http_status=412,
    attempts=7,
    time=NOON,
)
EMPTY = ResourceRow("ImagingStudy", "b2", "ds", state=State.REJECTED, time=NOON)


@pytest.fixture(params=["sqlite", "postgresql"])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    """A lake with a database of each kind."""
    url = request.getfixturevalue("postgres_url") if request.param == "postgresql" else None
    return Lake(str(tmp_path / "lake"), ledger_url=url).open()


@pytest.fixture
def sqlite_lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake")).open()


def row(identity: str, **values: Any) -> ResourceRow:
    """A study that is stored."""
    known = {"dataset": "ds", "unit": "u1", "state": State.STORED, "server_id": identity, "hash": "h", "time": NOON}
    return ResourceRow("ImagingStudy", identity, **known | values)


def attempt(identity: str, **values: Any) -> Attempt:
    return Attempt(**{"type": "ImagingStudy", "id": identity, "hash": "h", "server_hash": "s", "if_match": ""} | values)


def query(lake: Lake, statement: str) -> list[tuple[Any, ...]]:
    """The rows of a statement on a connection that has nothing to do with the ledger's."""
    engine = sa.create_engine(database.database_url(lake), poolclass=NullPool)
    with engine.begin() as connection:
        result = connection.exec_driver_sql(statement)
        return [tuple(found) for found in result] if result.returns_rows else []


@dataclass
class Observed:
    """What happened on the connections of an engine: commits, statements, and in which threads."""

    commits: int = 0
    statements: list[str] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)
    pragmas: dict[str, Any] = field(default_factory=dict)


@contextmanager
def observed_ledger(lake: Lake, **arguments: Any) -> Iterator[tuple[Ledger, Observed]]:
    """An open ledger whose statements are observed."""
    engine, observed = database.open_engine(lake), Observed()
    create_tables(engine)

    def note_statement(
        _connection: Any, cursor: Any, statement: str, _parameters: Any, _context: Any, _many: Any
    ) -> None:
        observed.statements.append(statement)
        observed.threads.add(threading.current_thread().name)

    def note_commit(_connection: Any) -> None:
        observed.commits += 1
        observed.threads.add(threading.current_thread().name)

    sa.event.listen(engine, "before_cursor_execute", note_statement)
    sa.event.listen(engine, "commit", note_commit)
    with Ledger(engine, lake.lake_id, SERVER, **arguments) as ledger:
        yield ledger, observed


@contextmanager
def ends_with(error: type[Exception], match: str | None = None) -> Iterator[None]:
    """The body ends with this error."""
    with pytest.raises(error, match=match):
        yield


class Gate:
    """Lets the ledger's first transaction wait until it is opened."""

    def __init__(self) -> None:
        self.is_reached, self._is_open = threading.Event(), threading.Event()

    def __call__(self, _connection: Any) -> None:
        self.is_reached.set()
        assert self._is_open.wait(WAIT)

    def open(self) -> None:
        self._is_open.set()


# -- rows -------------------------------------------------------------------------------------------------------------


def test_every_column_is_read_as_it_was_written(lake: Lake) -> None:
    with Ledger.from_lake(lake, SERVER) as ledger:
        ledger.write_rows([FULL, EMPTY])
        assert ledger.read_rows([FULL.key, EMPTY.key, ("Patient", "unknown")]).result(WAIT) == {
            FULL.key: FULL,
            EMPTY.key: EMPTY,
        }
    with Ledger.from_lake(lake, SERVER) as ledger:
        rows = ledger.read_rows([FULL.key, EMPTY.key]).result(WAIT)
    assert rows == {FULL.key: FULL, EMPTY.key: EMPTY}
    assert rows[FULL.key].time.tzinfo == UTC
    assert isinstance(rows[EMPTY.key].is_external, bool)
    assert isinstance(rows[EMPTY.key].state, State)


def test_a_time_of_another_zone_is_the_same_instant_in_utc(lake: Lake) -> None:
    elsewhere = NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))
    with Ledger.from_lake(lake, SERVER) as ledger:
        ledger.write_rows([row("a", time=elsewhere)])
        time = ledger.read_rows([("ImagingStudy", "a")]).result(WAIT)["ImagingStudy", "a"].time
    assert (time, time.utcoffset()) == (NOON, timedelta())


def test_times_of_a_postgresql_server_in_another_zone_are_in_utc(tmp_path: Path, postgres_url: str) -> None:
    lake = Lake(str(tmp_path / "lake"), ledger_url=postgres_url).open()
    name = postgres_url.rpartition("/")[2]
    query(lake, f"ALTER DATABASE {name} SET timezone TO 'America/New_York'")
    with Ledger.from_lake(lake, SERVER) as ledger:
        ledger.write_rows([row("a")])
        time = ledger.read_rows([("ImagingStudy", "a")]).result(WAIT)["ImagingStudy", "a"].time
        generation = ledger.read_generation("ds").result(WAIT)
    assert (time, time.utcoffset()) == (NOON, timedelta())
    assert generation == "1 2026-03-01 12:00:00.123456+00:00"


def test_writing_a_row_again_replaces_all_of_it(lake: Lake) -> None:
    bare = ResourceRow(FULL.type, FULL.id, "ds", state=State.FAILED, time=NOON + timedelta(seconds=1))
    with Ledger.from_lake(lake, SERVER) as ledger:
        ledger.write_rows([FULL])
        ledger.write_rows([bare])
        assert ledger.read_rows([FULL.key]).result(WAIT) == {FULL.key: bare}
    assert query(lake, "SELECT count(*) FROM resources") == [(1,)]


def test_of_two_rows_in_one_write_the_later_is_kept(lake: Lake) -> None:
    with Ledger.from_lake(lake, SERVER) as ledger:
        ledger.write_rows([row("a", version="1"), row("b"), row("a", version="2")])
        rows = ledger.read_rows([("ImagingStudy", "a")]).result(WAIT)
    assert rows["ImagingStudy", "a"].version == "2"


def test_a_unit_that_moves_takes_its_row_with_it(lake: Lake) -> None:
    with Ledger.from_lake(lake, SERVER) as ledger:
        ledger.write_rows([row("a", unit="before")])
        ledger.write_rows([row("a", unit="after", dataset="other")])
        assert ledger.read_units("ds", ["before", "after"]).result(WAIT) == {}
        assert set(ledger.read_units("other", ["before", "after"]).result(WAIT)) == {("ImagingStudy", "a")}
        assert ledger.read_unit_names("ds").result(WAIT) == set()
    assert query(lake, "SELECT dataset, unit FROM resources") == [("other", "after")]


def test_more_keys_than_a_statement_takes_are_found(lake: Lake) -> None:
    rows = [row(f"{number:05}", unit=f"u{number}") for number in range(1_234)]
    with Ledger.from_lake(lake, SERVER) as ledger:
        ledger.write_rows(rows)
        assert len(ledger.read_rows([one.key for one in rows]).result(WAIT)) == 1_234
        assert len(ledger.read_units("ds", [str(one.unit) for one in rows]).result(WAIT)) == 1_234
        numbers = ledger.write_attempts([attempt(one.id) for one in rows], []).result(WAIT)
        opened = ledger.read_attempts([one.key for one in rows]).result(WAIT)
        # the numbers are in the order of the attempts
        assert [opened[one.key][0].number for one in rows] == numbers
        ledger.delete_rows([one.key for one in rows])
        ledger.flush()
    assert query(lake, "SELECT count(*) FROM resources") == [(0,)]
    assert query(lake, "SELECT count(*) FROM attempts") == [(0,)]


def test_a_statement_without_keys_has_no_effect(lake: Lake) -> None:
    with Ledger.from_lake(lake, SERVER) as ledger:
        ledger.write_rows([row("a")])
        assert ledger.read_rows([]).result(WAIT) == {}
        assert ledger.read_units("ds", []).result(WAIT) == {}
        assert ledger.write_attempts([], []).result(WAIT) == []
        ledger.write_rows([])
        ledger.delete_rows([])
        ledger.write_fingerprints("ds", {})
        assert len(ledger.read_where().result(WAIT)) == 1


def test_conditions_choose_rows(lake: Lake) -> None:
    rows = {
        "stored": row("stored"),
        "shared": row("shared", unit=None),
        "held": row("held", state=State.HELD, reason="changed-on-server"),
        "noted": row("noted", reason="concurrent-overwrite"),
        "external": row("external", is_external=True),
        "fresh": row("fresh", is_indexed=False),
        "elsewhere": row("elsewhere", dataset="other"),
    }
    with Ledger.from_lake(lake, SERVER) as ledger:
        ledger.write_rows(list(rows.values()))

        def chosen(**conditions: Any) -> list[str]:
            return [one.id for one in ledger.read_where(**conditions).result(WAIT)]

        assert chosen() == sorted(rows)
        assert chosen(dataset="other") == ["elsewhere"]
        assert chosen(is_shared=True) == ["shared"]
        assert chosen(is_shared=False, dataset="ds") == ["external", "fresh", "held", "noted", "stored"]
        assert chosen(states=[State.HELD, State.FAILED]) == ["held"]
        assert chosen(is_notable=True) == ["external", "held", "noted"]
        assert chosen(is_indexed=False) == ["fresh"]
        assert chosen(dataset="ds", is_shared=False, states=[State.STORED], is_notable=True) == ["external", "noted"]
        assert ledger.read_datasets().result(WAIT) == {"ds", "other"}
        assert ledger.read_unit_names("ds").result(WAIT) == {"u1"}
        assert ledger.read_counts("ds").result(WAIT) == {
            ("ImagingStudy", State.STORED, False): 3,
            ("ImagingStudy", State.STORED, True): 1,
            ("ImagingStudy", State.HELD, False): 1,
        }


def test_other_server_ids_are_those_of_patients(lake: Lake) -> None:
    with Ledger.from_lake(lake, SERVER) as ledger:
        patients = [
            ResourceRow("Patient", "p1", "ds", server_id="p1", time=NOON),
            ResourceRow("Patient", "p2", "ds", server_id="17", time=NOON),
            ResourceRow("Patient", "p3", "ds", time=NOON),
        ]
        ledger.write_rows([*patients, row("s", server_id="18")])
        assert ledger.read_other_ids().result(WAIT) == {("Patient", "p2"): "17"}


def test_a_generation_changes_with_every_row(lake: Lake) -> None:
    with Ledger.from_lake(lake, SERVER) as ledger:
        generations = [ledger.read_generation("ds").result(WAIT)]
        for write in (
            lambda: ledger.write_rows([row("a")]),
            lambda: ledger.write_rows([row("b")]),
            lambda: ledger.write_rows([row("a", time=NOON + timedelta(microseconds=1))]),
            lambda: ledger.delete_rows([("ImagingStudy", "b")]),
        ):
            write()
            generations.append(ledger.read_generation("ds").result(WAIT))
        ledger.write_rows([row("c", dataset="other", time=NOON + timedelta(days=1))])
        assert ledger.read_generation("ds").result(WAIT) == generations[-1]
    assert generations[0].startswith("0 ")
    assert len(set(generations)) == len(generations)


def test_the_exported_table_follows_a_unit_that_moved(sqlite_lake: Lake) -> None:
    stored = row("a", unit="before")
    item = UploadItem({"resourceType": "ImagingStudy", "id": "a"}, "ds", "after", hash="h")
    with Ledger.from_lake(sqlite_lake, SERVER) as ledger:
        ledger.write_rows([stored])
        asyncio.run(export_ledger(sqlite_lake, ledger, "ds"))
        resolved = resolve_from_ledger(item, stored, has_attempts=False)
        assert resolved is not None
        ledger.write_rows([resolved])
        asyncio.run(export_ledger(sqlite_lake, ledger, "ds"))
    exported = sqlite_lake.read(UPLOAD_LEDGER, ["id", "unit"], server=SERVER, dataset="ds").to_pylist()
    assert exported == [{"id": "a", "unit": "after"}]


# -- attempts ---------------------------------------------------------------------------------------------------------


def test_attempts_and_rows_are_committed_before_the_future_is_done(lake: Lake) -> None:
    with observed_ledger(lake) as (ledger, observed):
        before = observed.commits
        sent = [row(one).after(Event.SENT) for one in "ab"]
        numbers = ledger.write_attempts([attempt("a"), attempt("b")], sent).result(WAIT)
        assert observed.commits == before + 1
        seen = query(lake, "SELECT a.number, a.id, r.state FROM attempts a JOIN resources r USING (id) ORDER BY 1")
        assert seen == [(numbers[0], "a", "unconfirmed"), (numbers[1], "b", "unconfirmed")]


def test_another_process_sees_an_attempt_once_its_future_is_done(sqlite_lake: Lake) -> None:
    code = (
        "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('SELECT id, hash FROM attempts').fetchall())"
    )
    with Ledger.from_lake(sqlite_lake, SERVER) as ledger:
        ledger.write_attempts([attempt("a")], []).result(WAIT)
        command = [sys.executable, "-c", code, str(Path(sqlite_lake.root, "ledger.sqlite"))]
        seen = subprocess.run(command, capture_output=True, text=True, check=True)
    assert seen.stdout == "[('a', 'h')]\n"


def test_an_attempt_is_read_as_it_was_opened(lake: Lake) -> None:
    opened = attempt("a", if_match='W/"é"', contribution="{}", server_id="17", hash="x", server_hash="y")
    with Ledger.from_lake(lake, SERVER) as ledger:
        before = datetime.now(UTC)
        numbers = ledger.write_attempts([opened, attempt("a")], []).result(WAIT)
        attempts = ledger.read_attempts([("ImagingStudy", "a"), ("ImagingStudy", "b")]).result(WAIT)
    assert list(attempts) == [("ImagingStudy", "a")]
    first, second = attempts["ImagingStudy", "a"]
    assert replace(first, time=opened.time) == replace(opened, number=numbers[0])
    assert (second.number, second.if_match, second.contribution, second.server_id) == (numbers[1], "", None, None)
    assert before - timedelta(seconds=1) <= first.time <= datetime.now(UTC) + timedelta(seconds=1)


def test_an_answer_closes_its_attempt_and_no_other(lake: Lake) -> None:
    with Ledger.from_lake(lake, SERVER) as ledger:
        numbers = ledger.write_attempts([attempt("a"), attempt("a"), attempt("b")], []).result(WAIT)
        ledger.write_rows([row("a")], closed=[numbers[0]])
        left = ledger.read_attempts([("ImagingStudy", "a"), ("ImagingStudy", "b")]).result(WAIT)
        assert {one.number for found in left.values() for one in found} == set(numbers[1:])


def test_halves_are_reopened_in_one_commit(lake: Lake) -> None:
    with observed_ledger(lake) as (ledger, observed):
        numbers = ledger.write_attempts([attempt("a"), attempt("b")], []).result(WAIT)
        before = observed.commits
        reopened = ledger.write_attempts([attempt("a")], [row("a")], closed=[numbers[0]]).result(WAIT)
        assert observed.commits == before + 1
    assert {number for (number,) in query(lake, "SELECT number FROM attempts")} == {*reopened, numbers[1]}
    assert len({*reopened, *numbers}) == 3  # no number is given twice


def test_a_number_is_not_reused_while_its_attempt_is_open(lake: Lake) -> None:
    with Ledger.from_lake(lake, SERVER) as ledger:
        (first,) = ledger.write_attempts([attempt("a")], []).result(WAIT)
        (second,) = ledger.write_attempts([attempt("b")], [], closed=[first]).result(WAIT)
        (third,) = ledger.write_attempts([attempt("c")], []).result(WAIT)
        opened = ledger.read_attempts([("ImagingStudy", one) for one in "abc"]).result(WAIT)
    assert {key[1]: found[0].number for key, found in opened.items()} == {"b": second, "c": third}
    assert second != third


def test_deleting_rows_deletes_their_attempts(lake: Lake) -> None:
    with Ledger.from_lake(lake, SERVER) as ledger:
        ledger.write_attempts([attempt("a"), attempt("b")], [row("a"), row("b")])
        ledger.delete_rows([("ImagingStudy", "a")])
        assert [one.id for one in ledger.read_where().result(WAIT)] == ["b"]
        assert set(ledger.read_attempts([("ImagingStudy", one) for one in "ab"]).result(WAIT)) == {
            ("ImagingStudy", "b")
        }


# -- fingerprints of units --------------------------------------------------------------------------------------------


def test_fingerprints_are_written_replaced_and_deleted(lake: Lake) -> None:
    with Ledger.from_lake(lake, SERVER) as ledger:
        ledger.write_fingerprints("ds", {"u1": "f1", "ü2": "f2"})
        ledger.write_fingerprints("other", {"u1": "g1"})
        assert ledger.read_fingerprints("ds").result(WAIT) == {"u1": "f1", "ü2": "f2"}
        ledger.write_fingerprints("ds", {"u1": None, "ü2": "f3", "never": None})
        assert ledger.read_fingerprints("ds").result(WAIT) == {"ü2": "f3"}
        ledger.delete_fingerprints("ds")
        assert ledger.read_fingerprints("ds").result(WAIT) == {}
        assert ledger.read_fingerprints("other").result(WAIT) == {"u1": "g1"}


# -- order, threads and commits ---------------------------------------------------------------------------------------


def test_a_read_sees_earlier_writes(lake: Lake) -> None:
    with Ledger.from_lake(lake, SERVER) as ledger:
        reads = []
        for number in range(50):
            ledger.write_rows([row("a", version=str(number))])
            reads.append(ledger.read_rows([("ImagingStudy", "a")]))
        versions = [read.result(WAIT)["ImagingStudy", "a"].version for read in reads]
    assert versions == [str(number) for number in range(50)]


def test_calls_that_wait_together_are_committed_together(lake: Lake) -> None:
    gate = Gate()
    with observed_ledger(lake, require_lock=gate) as (ledger, observed):
        first = ledger.write_rows([row("first")])
        assert gate.is_reached.wait(WAIT)
        before = observed.commits
        others = [ledger.write_rows([row(str(number))]) for number in range(150)]
        gate.open()
        first.result(WAIT)
        for other in others:
            other.result(WAIT)
        assert observed.commits - before == 2
    assert query(lake, "SELECT count(*) FROM resources") == [(151,)]


def test_no_statement_runs_in_the_thread_of_the_caller(lake: Lake) -> None:
    with observed_ledger(lake) as (ledger, observed):
        observed.threads.clear()
        ledger.write_attempts([attempt("a")], [row("a")]).result(WAIT)
        ledger.write_fingerprints("ds", {"u1": "f"})
        ledger.delete_fingerprints("ds")
        for read in (
            ledger.read_rows([("ImagingStudy", "a")]),
            ledger.read_units("ds", ["u1"]),
            ledger.read_where(),
            ledger.read_unit_names("ds"),
            ledger.read_datasets(),
            ledger.read_counts("ds"),
            ledger.read_other_ids(),
            ledger.read_page("ds", ("", ""), 10),
            ledger.read_generation("ds"),
            ledger.read_fingerprints("ds"),
            ledger.read_attempts([("ImagingStudy", "a")]),
        ):
            read.result(WAIT)
        ledger.delete_rows([("ImagingStudy", "a")])
        ledger.flush()
    assert observed.threads == {"ledger"}


def test_the_end_waits_for_all_writes(lake: Lake) -> None:
    with Ledger.from_lake(lake, SERVER) as ledger:
        for number in range(500):
            ledger.write_rows([row(str(number))])
    assert query(lake, "SELECT count(*) FROM resources") == [(500,)]


def test_the_end_waits_also_when_the_body_fails(lake: Lake) -> None:
    with ends_with(RuntimeError, match="broken"), Ledger.from_lake(lake, SERVER) as ledger:
        ledger.write_rows([row("a")])
        raise RuntimeError("broken")
    assert query(lake, "SELECT count(*) FROM resources") == [(1,)]


def test_a_cancelled_call_does_not_affect_others(lake: Lake) -> None:
    gate = Gate()
    with observed_ledger(lake, require_lock=gate) as (ledger, _):
        first = ledger.write_rows([row("a")])
        assert gate.is_reached.wait(WAIT)
        cancelled = ledger.read_rows([("ImagingStudy", "a")])
        assert cancelled.cancel()
        later = ledger.write_rows([row("b")])
        gate.open()
        first.result(WAIT)
        later.result(WAIT)
        with pytest.raises(CancelledError):
            cancelled.result(WAIT)
        assert [one.id for one in ledger.read_where().result(WAIT)] == ["a", "b"]


def test_a_cancelled_attempt_is_not_opened(lake: Lake) -> None:
    gate = Gate()
    with observed_ledger(lake, require_lock=gate) as (ledger, _):
        ledger.write_rows([row("a")])
        assert gate.is_reached.wait(WAIT)
        assert ledger.write_attempts([attempt("a")], [row("a").after(Event.SENT)]).cancel()
        gate.open()
        assert ledger.read_attempts([("ImagingStudy", "a")]).result(WAIT) == {}
        assert ledger.read_rows([("ImagingStudy", "a")]).result(WAIT)["ImagingStudy", "a"].state is State.STORED


# -- failures ---------------------------------------------------------------------------------------------------------

SECRETS = ("Mustermann", "sub-Mustermann", "1.2.840.99", "geheim", "INSERT", "SELECT", "parameters")


def assert_all_fails(ledger: Ledger, sentence: str) -> None:
    """A write of a row with identifiers, and all calls after it, fail with a sentence that has none of them."""
    telling = row("1.2.840.99", unit="sub-Mustermann", subject="Mustermann")
    calls = [
        ledger.write_attempts([attempt("1.2.840.99")], [telling]),
        ledger.write_rows([telling]),
        ledger.read_rows([telling.key]),
        ledger.write_fingerprints("ds", {"sub-Mustermann": "f"}),
    ]
    texts = set()
    for call in calls:
        with pytest.raises(LedgerError) as failure:
            call.result(WAIT)
        texts.add(str(failure.value))
    with pytest.raises(LedgerError) as failure:
        ledger.flush()
    assert texts == {str(failure.value)}
    text = str(failure.value)
    assert text.startswith(sentence)
    assert "\n" not in text
    assert [word for word in SECRETS if word in text] == []


def test_a_full_disk_makes_all_later_calls_fail(sqlite_lake: Lake) -> None:
    engine = database.open_engine(sqlite_lake)
    create_tables(engine)

    def fill(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA max_page_count=1")  # no page beyond those that there are

    sa.event.listen(engine, "connect", fill)
    ledger = Ledger(engine, sqlite_lake.lake_id, SERVER).__enter__()
    ledger.write_rows([row(f"{number:0500}") for number in range(2_000)])
    assert_all_fails(ledger, "the upload ledger cannot be used: database or disk is full")
    with pytest.raises(LedgerError, match="disk is full"):
        ledger.__exit__(None, None, None)
    assert query(sqlite_lake, "SELECT count(*) FROM resources") == [(0,)]


def test_a_read_only_database_makes_all_later_calls_fail(sqlite_lake: Lake) -> None:
    engine = database.open_engine(sqlite_lake)
    create_tables(engine)
    sa.event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA query_only=1"))
    with ends_with(LedgerError), Ledger(engine, sqlite_lake.lake_id, SERVER) as ledger:
        assert_all_fails(ledger, "the upload ledger cannot be used: attempt to write a readonly database")


def test_a_closed_connection_makes_all_later_calls_fail(tmp_path: Path, postgres_url: str) -> None:
    lake = Lake(str(tmp_path / "lake"), ledger_url=postgres_url).open()
    with ends_with(LedgerError), Ledger.from_lake(lake, SERVER) as ledger:
        ledger.write_rows([row("a")])
        ledger.flush()
        query(lake, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'dicom-etl'")
        assert_all_fails(ledger, "the upload ledger cannot be used: ")
    assert query(lake, "SELECT id FROM resources") == [("a",)]
    assert query(lake, "SELECT count(*) FROM attempts") == [(0,)]


def test_an_error_of_the_body_is_not_hidden_by_one_of_the_ledger(lake: Lake) -> None:
    with ends_with(RuntimeError, match="broken"), Ledger.from_lake(lake, SERVER) as ledger:
        query(lake, "DROP TABLE resources")
        with pytest.raises(LedgerError):
            ledger.write_rows([row("a")]).result(WAIT)
        raise RuntimeError("broken")


def test_nothing_of_a_failed_commit_is_stored(lake: Lake) -> None:
    gate = Gate()
    with ends_with(LedgerError), observed_ledger(lake, require_lock=gate) as (ledger, _):
        ledger.write_rows([row("before")])
        assert gate.is_reached.wait(WAIT)
        together = [ledger.write_rows([row("a")]), ledger.write_attempts([attempt("a", hash=None)], [])]
        gate.open()
        for call in together:
            with pytest.raises(LedgerError):
                call.result(WAIT)
    assert query(lake, "SELECT id FROM resources") == [("before",)]


def test_a_value_that_cannot_be_stored_fails_without_blocking(lake: Lake) -> None:
    with ends_with(LedgerError), Ledger.from_lake(lake, SERVER) as ledger:
        unwritable = ledger.write_rows([row("sub-Mustermann\udcff")])
        with pytest.raises(LedgerError) as failure:
            unwritable.result(WAIT)
        assert "Mustermann" not in str(failure.value)
        assert_all_fails(ledger, "the upload ledger cannot be used: ")


def test_a_cancelled_call_does_not_block_after_a_failure(sqlite_lake: Lake) -> None:
    gate = Gate()
    with ends_with(LedgerError), observed_ledger(sqlite_lake, require_lock=gate) as (ledger, _):
        failing = ledger.write_attempts([attempt("a", hash=None)], [])
        assert gate.is_reached.wait(WAIT)
        cancelled, later = ledger.read_where(), ledger.read_where()
        assert cancelled.cancel()
        gate.open()
        for call in (failing, later):
            with pytest.raises(LedgerError):
                call.result(WAIT)


def test_an_unreachable_database_is_reported_without_its_password(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path), ledger_url="postgresql://somebody:geheim@127.0.0.1:1/name").open()
    with pytest.raises(LedgerError) as failure:
        Ledger.from_lake(lake, SERVER)
    text = str(failure.value)
    assert text.startswith("the upload ledger cannot be opened: connection failed: ")
    assert "geheim" not in text
    assert "\n" not in text
    assert "geheim" not in repr(lake)


def test_a_lost_lock_stops_the_commit_that_depends_on_it(lake: Lake) -> None:
    asked: list[Any] = []

    def require_lock(connection: Any) -> None:
        asked.append(connection)
        if len(asked) > 1:
            raise database.DatabaseError("the lock was lost")

    with (
        ends_with(LedgerError, match="the lock was lost"),
        observed_ledger(lake, require_lock=require_lock) as (ledger, _),
    ):
        ledger.write_rows([row("a")]).result(WAIT)
        with pytest.raises(LedgerError, match=r"^the lock was lost$"):
            ledger.write_attempts([attempt("b")], [row("b")]).result(WAIT)
    assert query(lake, "SELECT id FROM resources") == [("a",)]
    assert query(lake, "SELECT count(*) FROM attempts") == [(0,)]


# -- several lakes and servers in one database ------------------------------------------------------------------------


def every_reading(ledger: Ledger) -> dict[str, Any]:
    """What a ledger says, by all of its readings."""
    key: Key = ("ImagingStudy", "a")
    readings = {
        "rows": ledger.read_rows([key]),
        "units": ledger.read_units("ds", ["u1"]),
        "where": ledger.read_where(),
        "unit names": ledger.read_unit_names("ds"),
        "datasets": ledger.read_datasets(),
        "counts": ledger.read_counts("ds"),
        "page": ledger.read_page("ds", ("", ""), 10),
        "generation": ledger.read_generation("ds"),
        "fingerprints": ledger.read_fingerprints("ds"),
        "attempts": ledger.read_attempts([key]),
        "other ids": ledger.read_other_ids(),
    }
    return {name: reading.result(WAIT) for name, reading in readings.items()}


@pytest.mark.parametrize(("other_lake", "other_server"), [(False, True), (True, False)])
def test_lakes_and_servers_in_one_database_are_separate(lake: Lake, other_lake: bool, other_server: bool) -> None:
    second_id, second_server = "another-lake" if other_lake else lake.lake_id, "other" if other_server else SERVER
    with Ledger.from_lake(lake, SERVER) as one, Ledger(database.open_engine(lake), second_id, second_server) as other:
        nothing = every_reading(other)
        one.write_attempts([attempt("a")], [row("a"), ResourceRow("Patient", "a", "ds", server_id="x", time=NOON)])
        one.write_fingerprints("ds", {"u1": "f"})
        before = every_reading(one)
        assert every_reading(other) == nothing
        other.write_attempts([attempt("a", hash="z")], [row("a", version="2")])
        other.write_fingerprints("ds", {"u1": "g"})
        other.flush()
        assert every_reading(one) == before
        other.delete_rows([("ImagingStudy", "a")])
        other.write_fingerprints("ds", {"u1": None})
        other.delete_fingerprints("ds")
        other.flush()
        assert every_reading(one) == before
        assert every_reading(other) == nothing


def test_reading_all_servers_is_limited_to_this_lake(lake: Lake) -> None:
    with Ledger.from_lake(lake, SERVER) as ledger, Ledger(database.open_engine(lake), "another-lake", SERVER) as other:
        ledger.write_rows([row("b"), row("a", unit="u2", state=State.HELD)])
        other.write_rows([row("c")])
    with Ledger.from_lake(lake, "second") as ledger:
        ledger.write_rows([row("a")])
    assert read_servers(lake) == ["second", SERVER]
    assert count_resources(lake) == {
        ("ds", SERVER, State.STORED): 1,
        ("ds", SERVER, State.HELD): 1,
        ("ds", "second", State.STORED): 1,
    }
    assert [(server, one.id) for server, one in read_resources(lake, "ds")] == [
        ("second", "a"),
        (SERVER, "a"),
        (SERVER, "b"),
    ]
    assert [one.id for _, one in read_resources(lake, "ds", unit="u2")] == ["a"]
    assert [one.id for _, one in read_resources(lake, "ds", states=[State.HELD])] == ["a"]
    assert read_resources(lake, "unknown") == []


def test_reading_without_a_ledger_creates_none(tmp_path: Path, postgres_url: str) -> None:
    for number, url in enumerate([None, postgres_url]):
        lake = Lake(str(tmp_path / str(number)), ledger_url=url).open()
        assert (read_servers(lake), count_resources(lake), read_resources(lake, "ds")) == ([], {}, [])
    assert not (tmp_path / "0" / "ledger.sqlite").exists()
    assert query(lake, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'") == []


# -- dry runs ---------------------------------------------------------------------------------------------------------


def test_a_dry_run_uses_a_copy_and_changes_nothing(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with Ledger.from_lake(lake, "other") as other:
        other.write_rows([row("of another server")])
    with Ledger.from_lake(lake, SERVER) as ledger:
        ledger.write_attempts([attempt("a", if_match='W/"1"')], [FULL, EMPTY, row("a")])
        ledger.write_fingerprints("ds", {"u1": "f"})
        before = every_reading(ledger)
    dump = [query(lake, f"SELECT * FROM {table}") for table in ("resources", "attempts", "units")]

    with Ledger.from_lake(lake, SERVER, is_dry_run=True) as ledger:
        assert every_reading(ledger) == before
        assert ledger.read_rows([FULL.key, EMPTY.key]).result(WAIT) == {FULL.key: FULL, EMPTY.key: EMPTY}
        assert ledger.read_where(dataset="ds").result(WAIT) == [row("a"), EMPTY]
        (number,) = ledger.write_attempts([attempt("b")], [row("b")]).result(WAIT)
        ledger.write_rows([row("a", version="9")], closed=[number - 1])
        ledger.delete_rows([FULL.key])
        ledger.delete_fingerprints("ds")
        ledger.flush()
        assert every_reading(ledger) != before
        assert list((tmp_path / "temporary").iterdir()) != []

    assert [query(lake, f"SELECT * FROM {table}") for table in ("resources", "attempts", "units")] == dump
    assert list((tmp_path / "temporary").iterdir()) == []


# -- the format of the tables -----------------------------------------------------------------------------------------


def test_another_format_is_refused(lake: Lake) -> None:
    with Ledger.from_lake(lake, SERVER) as ledger:
        ledger.write_rows([row("a")])
    query(lake, "UPDATE ledger_format SET format = 2")
    for is_dry_run in (False, True):
        with pytest.raises(LedgerError, match="has format 2, and this version of dicom-etl writes format 1; "):
            Ledger.from_lake(lake, SERVER, is_dry_run=is_dry_run)
    assert query(lake, "SELECT id FROM resources") == [("a",)]


def test_reopening_keeps_the_format(lake: Lake) -> None:
    for _ in range(3):
        with Ledger.from_lake(lake, SERVER):
            pass
    assert query(lake, "SELECT format FROM ledger_format") == [(1,)]


def test_a_file_that_is_not_a_database_is_refused(sqlite_lake: Lake) -> None:
    Path(sqlite_lake.root, "ledger.sqlite").write_bytes(b"not a database, and longer than its header" * 100)
    with pytest.raises(LedgerError, match=r"^the upload ledger cannot be opened: file is not a database"):
        Ledger.from_lake(sqlite_lake, SERVER)


# -- pages ------------------------------------------------------------------------------------------------------------

ODD_IDS = [
    "a",
    "A",
    "b",
    "B",
    "Z",
    "z",
    "ä",
    "é",
    "e\u0301",
    "_",
    "-1",
    "10",
    "9",
    "a b",
    "ab",
    "a-b",
    "日",
    "😀",
    "\uffee",
]


def pages(lake: Lake, size: int) -> list[list[Key]]:
    """The keys of all pages, the last of which is empty."""
    found = []
    with Ledger.from_lake(lake, SERVER) as ledger:
        after: Key = ("", "")
        while True:
            page = [one.key for one in ledger.read_page("ds", after, size).result(WAIT)]
            found.append(page)
            if not page:
                return found
            after = page[-1]


def write_odd_rows(lake: Lake) -> list[Key]:
    """Rows with odd ids; their keys in the order of their bytes."""
    rows = [
        replace(row(identity), type=kind) for kind in ("Patient", "ImagingStudy", "Endpoint") for identity in ODD_IDS
    ]
    with Ledger.from_lake(lake, SERVER) as ledger:
        ledger.write_rows([*rows, row("elsewhere", dataset="other")])
    return sorted((one.key for one in rows), key=lambda key: (key[0].encode(), key[1].encode()))


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_pages_are_in_the_order_of_bytes(lake: Lake, size: int) -> None:
    expected = write_odd_rows(lake)
    found = pages(lake, size)
    assert [key for page in found for key in page] == expected
    assert {len(page) for page in found[:-2]} <= {size}


def test_pages_are_in_the_order_of_bytes_with_any_collation(tmp_path: Path, postgres: PostgresServer) -> None:
    address = postgres.url.removesuffix("/postgres")
    with postgres_server.fresh_database(postgres) as url:
        admin, name = Lake(str(tmp_path), ledger_url=url), url.rpartition("/")[2]
        engine = sa.create_engine(database.database_url(admin), isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql(
                f"CREATE DATABASE {name}_icu TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US' LOCALE 'C'"
            )
            try:
                lake = Lake(str(tmp_path / "lake"), ledger_url=f"{address}/{name}_icu").open()
                assert query(lake, "SELECT 'a' < 'B' AND 'ä' < 'B'") == [(True,)]  # other than the bytes
                expected = write_odd_rows(lake)
                assert [key for page in pages(lake, 5) for key in page] == expected
            finally:
                connection.exec_driver_sql(f"DROP DATABASE {name}_icu WITH (FORCE)")


# -- SQLite -----------------------------------------------------------------------------------------------------------


def test_a_commit_survives_a_power_failure(sqlite_lake: Lake) -> None:
    pragmas = {}

    def read_pragmas(connection: Any) -> None:
        for name in ("journal_mode", "synchronous", "busy_timeout"):
            pragmas[name] = connection.exec_driver_sql(f"PRAGMA {name}").scalar()

    with observed_ledger(sqlite_lake, require_lock=read_pragmas) as (ledger, _):
        ledger.flush()
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "busy_timeout": 30_000}


def test_only_the_owner_can_read_the_files(sqlite_lake: Lake) -> None:
    folder, before = Path(sqlite_lake.root), os.umask(0)
    try:
        with Ledger.from_lake(sqlite_lake, SERVER) as ledger:
            ledger.write_rows([row("a")])
            ledger.flush()
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.glob("ledger.sqlite*")}
    finally:
        os.umask(before)
    assert modes == {"ledger.sqlite": 0o600, "ledger.sqlite-wal": 0o600, "ledger.sqlite-shm": 0o600}


def test_transactions_take_the_write_lock_when_they_begin(sqlite_lake: Lake) -> None:
    with observed_ledger(sqlite_lake) as (ledger, observed):
        ledger.write_rows([row("a")]).result(WAIT)
        begins = [statement for statement in observed.statements if statement.startswith("BEGIN")]
    assert set(begins) == {"BEGIN IMMEDIATE"}


_WRITER = """
import sys
from dicom_etl.lake.tables import Lake
from dicom_etl.upload.ledger import Attempt, Ledger, ResourceRow, State
name, batches = sys.argv[2], int(sys.argv[3])
sys.stdin.readline()  # all begin at once
with Ledger.from_lake(Lake(sys.argv[1]), "server") as ledger:
    for number in range(batches):
        rows = [ResourceRow("Patient", f"{name}-{number}-{one}", name, "u") for one in range(3)]
        attempts = [Attempt("Patient", one.id, "h", "s", "") for one in rows]
        opened = ledger.write_attempts(attempts, rows).result(120)
        read = ledger.read_rows([one.key for one in rows]).result(120)
        assert read == {one.key: one for one in rows}, read
        ledger.write_rows(rows, closed=opened[:2])
"""


def test_eight_processes_write_one_ledger_without_loss(sqlite_lake: Lake) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, sqlite_lake.root, f"w{number}", "200"],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for number in range(8)
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    errors = [writer.communicate(timeout=300)[1] for writer in writers]
    assert [(writer.returncode, error) for writer, error in zip(writers, errors, strict=True)] == [(0, "")] * 8
    assert query(sqlite_lake, "SELECT dataset, count(*) FROM resources GROUP BY 1 ORDER BY 1") == [
        (f"w{number}", 600) for number in range(8)
    ]
    assert query(sqlite_lake, "SELECT count(*), count(DISTINCT id), count(DISTINCT number) FROM attempts") == [
        (1600, 1600, 1600)
    ]
    assert query(sqlite_lake, "SELECT format FROM ledger_format") == [(1,)]
    assert query(sqlite_lake, "PRAGMA integrity_check") == [("ok",)]
