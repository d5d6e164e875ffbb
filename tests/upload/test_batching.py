"""Batches and requests, against a stub of `FhirClient` (`stub_client`): the journal, halves, and errors."""

import asyncio
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from dicom_etl.fhir_client import WriteRequest
from dicom_etl.fhir_client.errors import (
    AccessDeniedError,
    BusyError,
    ConflictError,
    FhirError,
    RejectedError,
    ServerFailureError,
    TimedOutError,
    UnreachableError,
)
from dicom_etl.lake import database
from dicom_etl.lake.tables import Lake
from dicom_etl.upload.batching import Delivery, TransactionSizes, deliver, pack
from dicom_etl.upload.items import Action, Decision, UploadItem, encode_canonical
from dicom_etl.upload.ledger import Attempt, Ledger, LedgerError, ResourceRow, State
from tests.upload.support.stub_client import StubClient


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.from_lake(Lake(str(tmp_path / "lake")).open(), "server") as opened:
        yield opened


def item(identity: str, size: int = 10) -> UploadItem:
    return UploadItem({"resourceType": "ImagingStudy", "id": identity}, "ds", body=b"x" * size)


def delivery(identity: str, *, size: int = 0, condition: str = "") -> Delivery:
    resource = {"resourceType": "ImagingStudy", "id": identity, "description": "x" * size}
    request = WriteRequest(
        "ImagingStudy", "" if condition else identity, encode_canonical(resource), condition=condition
    )
    row = ResourceRow("ImagingStudy", identity, "ds", "u")
    attempt = Attempt("ImagingStudy", identity, "h", "s", "")
    return Delivery(UploadItem(resource, "ds"), Decision(Action.SEND), row, request, attempt)


def send(
    client: StubClient, ledger: Ledger, deliveries: Sequence[Delivery], single: int = 10**6
) -> dict[str, Delivery]:
    """The result or error of each delivery, by id."""
    done = asyncio.run(deliver(client, ledger, deliveries, single, TransactionSizes()))  # type: ignore[arg-type]
    assert len(done) == len(deliveries)
    return {one.item.id: one for one in done}


def transactions(client: StubClient) -> list[str]:
    """The transactions, each as the ids of its resources in one word."""
    return ["".join(path.rpartition("/")[2] for path in paths) for paths in client.methods("transaction")]


def open_attempts(ledger: Ledger, ids: str) -> dict[str, list[int | None]]:
    attempts = ledger.read_attempts([("ImagingStudy", one) for one in ids]).result(30)
    return {key[1]: [one.number for one in found] for key, found in attempts.items()}


def failing(error: type[FhirError], bad: str, status: int | None = None) -> Any:
    """A server that refuses every write that contains a resource."""

    def on_call(_method: str, what: Any) -> None:
        if bad in "".join(path.rpartition("/")[2] for path in what):
            raise error("refused", status=status)

    return on_call


# -- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "max_entries", "max_bytes", "batches"),
    [
        ([], 2, 100, []),
        ([10, 10, 10], 2, 100, [2, 1]),
        ([40, 40, 40], 9, 100, [2, 1]),
        ([50, 50], 9, 100, [2]),
        ([50, 51], 9, 100, [1, 1]),
        ([10, 500, 10], 9, 100, [1, 1, 1]),
        ([500, 10, 10], 9, 100, [1, 2]),
        ([500, 500], 9, 100, [1, 1]),
        ([10, 10], 1, 100, [1, 1]),
        ([0, 0, 0], 9, 0, [3]),
    ],
)
def test_batches_are_limited_in_entries_and_bytes(
    sizes: list[int], max_entries: int, max_bytes: int, batches: list[int]
) -> None:
    items = [item(str(number), size) for number, size in enumerate(sizes)]
    packed = list(pack(iter(items), max_entries, max_bytes))
    assert [len(batch) for batch in packed] == batches
    assert [one for batch in packed for one in batch] == items


def test_no_resource_is_in_a_batch_twice() -> None:
    packed = pack([item("a"), item("b"), item("a"), item("c"), item("c")], 9, 1000)
    assert ["".join(one.id for one in batch) for batch in packed] == ["ab", "ac", "c"]


def test_batches_are_made_lazily() -> None:
    taken = []

    def items() -> Iterator[UploadItem]:
        for number in range(100):
            taken.append(number)
            yield item(str(number))

    next(pack(items(), 3, 1000))
    assert len(taken) == 4


# -- the journal ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_attempts_are_committed_before_the_request_is_sent(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    url = request.getfixturevalue("postgres_url") if kind == "postgresql" else None
    lake = Lake(str(tmp_path / "lake"), ledger_url=url).open()
    engine = sa.create_engine(database.database_url(lake), poolclass=NullPool)
    seen: list[list[tuple[Any, ...]]] = []

    def on_call(_method: str, _what: Any) -> None:
        with engine.begin() as connection:
            query = "SELECT a.id, r.state FROM attempts a JOIN resources r USING (type, id) ORDER BY 1"
            seen.append([tuple(row) for row in connection.exec_driver_sql(query)])
            if kind == "postgresql":
                query = "SELECT count(*) FROM pg_stat_activity WHERE xact_start IS NOT NULL"
                query += " AND datname = current_database() AND pid <> pg_backend_pid()"
                assert connection.exec_driver_sql(query).scalar() == 0
        if kind == "sqlite":  # at once, or "database is locked"
            other = sqlite3.connect(Path(lake.root, "ledger.sqlite"), timeout=0, isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            other.close()

    client = StubClient()
    client.on_call = on_call
    with Ledger.from_lake(lake, "server") as ledger:
        send(client, ledger, [delivery("a"), delivery("b"), delivery("c", size=500)], single=200)
    every = [("a", "unconfirmed"), ("b", "unconfirmed"), ("c", "unconfirmed")]
    assert seen == [every, every]


def test_nothing_is_sent_if_the_journal_cannot_be_written(tmp_path: Path) -> None:
    lake, client = Lake(str(tmp_path / "lake")).open(), StubClient()
    ledger = Ledger.from_lake(lake, "server").__enter__()
    with sqlite3.connect(Path(lake.root, "ledger.sqlite")) as other:
        other.execute("DROP TABLE attempts")
    with pytest.raises(LedgerError):
        send(client, ledger, [delivery("a")])
    with pytest.raises(LedgerError):
        ledger.__exit__(None, None, None)
    assert client.calls == []


def test_the_journal_is_not_written_on_the_event_loop(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake")).open()
    engine = database.open_engine(lake)
    with Ledger.from_lake(lake, "server"):
        pass
    threads = set()
    sa.event.listen(engine, "before_cursor_execute", lambda *_: threads.add(threading.get_ident()))
    with Ledger(engine, lake.lake_id, "server") as ledger:
        send(StubClient(), ledger, [delivery("a"), delivery("b")])
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_deliveries_have_the_numbers_of_their_attempts(ledger: Ledger) -> None:
    done = send(StubClient(), ledger, [delivery("a"), delivery("b")])
    assert {one: [done[one].attempt.number] for one in "ab"} == open_attempts(ledger, "ab")
    assert {one.row.state for one in done.values()} == {State.UNCONFIRMED}
    assert all(one.result is not None and one.result.status == 201 and one.error is None for one in done.values())


def test_no_deliveries_give_no_requests(ledger: Ledger) -> None:
    client = StubClient()
    assert send(client, ledger, []) == {}
    assert client.calls == []


# -- requests ---------------------------------------------------------------------------------------------------------


def test_small_resources_share_a_transaction_and_large_ones_do_not(ledger: Ledger) -> None:
    client = StubClient()
    send(client, ledger, [delivery("a"), delivery("b", size=500), delivery("c")], single=200)
    assert transactions(client) == ["ac"]
    assert client.methods("put") == ["ImagingStudy/b"]


def test_a_large_conditional_update_is_sent_in_a_transaction(ledger: Ledger) -> None:
    client = StubClient()
    send(client, ledger, [delivery("a", size=500, condition="identifier=x")], single=200)
    assert (len(client.methods("transaction")), client.methods("put")) == (1, [])


def test_the_error_of_a_large_resource_affects_no_other(ledger: Ledger) -> None:
    client = StubClient()
    client.on_call = lambda method, _: (_ for _ in ()).throw(TimedOutError("late")) if method == "put" else None
    done = send(client, ledger, [delivery("a"), delivery("b", size=500)], single=200)
    assert done["a"].error is None
    assert isinstance(done["b"].error, TimedOutError)


# -- halves -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ("d", ["abcde", "ab", "cde", "c", "de", "d", "e"]),
        ("a", ["abcde", "ab", "a", "b", "cde"]),
        ("e", ["abcde", "ab", "cde", "c", "de", "d", "e"]),
    ],
)
def test_halving_isolates_a_bad_resource_and_stores_the_others(ledger: Ledger, bad: str, expected: list[str]) -> None:
    client = StubClient()
    client.on_call = failing(RejectedError, bad, 422)
    done = send(client, ledger, [delivery(one) for one in "abcde"])
    assert transactions(client) == expected
    assert {identity for identity, one in done.items() if one.error} == {bad}
    assert not done[bad].error.may_have_arrived  # type: ignore[union-attr]
    assert {key[1] for key, versions in client.versions.items() if versions} == set("abcde") - {bad}
    # one attempt of each is open, the last one
    assert open_attempts(ledger, "abcde") == {one: [done[one].attempt.number] for one in "abcde"}
    assert all(client.retries)


def test_if_all_resources_are_bad_each_is_refused_by_itself(ledger: Ledger) -> None:
    client = StubClient()
    client.on_call = lambda method, what: (_ for _ in ()).throw(RejectedError("no", status=422))
    done = send(client, ledger, [delivery(one) for one in "abcd"])
    assert transactions(client) == ["abcd", "ab", "a", "b", "cd", "c", "d"]
    assert all(isinstance(one.error, RejectedError) for one in done.values())
    assert {one: len(numbers) for one, numbers in open_attempts(ledger, "abcd").items()} == dict.fromkeys("abcd", 1)


@pytest.mark.parametrize(("error", "status"), [(ConflictError, 412), (AccessDeniedError, 401)])
def test_errors_that_halving_cannot_fix_are_not_halved(ledger: Ledger, error: type[FhirError], status: int) -> None:
    client = StubClient()
    client.on_call = failing(error, "b", status)
    done = send(client, ledger, [delivery(one) for one in "abc"])
    assert transactions(client) == ["abc"]
    assert all(isinstance(one.error, error) for one in done.values())


def test_nothing_is_sent_after_the_server_is_given_up(ledger: Ledger) -> None:
    client = StubClient()

    def on_call(_method: str, _what: Any) -> None:
        client.stop_reason = "the server does not answer"
        raise UnreachableError("no connection")

    client.on_call = on_call
    done = send(client, ledger, [delivery(one) for one in "abc"])
    assert transactions(client) == ["abc"]
    assert all(isinstance(one.error, UnreachableError) for one in done.values())


def test_a_resource_that_crashes_the_server_is_isolated_without_retries(ledger: Ledger) -> None:
    client = StubClient()
    client.on_call = failing(ServerFailureError, "b", 500)
    done = send(client, ledger, [delivery(one) for one in "abcd"])
    assert transactions(client) == ["abcd", "ab", "a", "b", "cd"]
    assert client.retries == [True, False, False, False, False]
    assert {identity for identity, one in done.items() if one.error} == {"b"}


@pytest.mark.parametrize(
    ("error", "status", "may_have_arrived"),
    [
        (BusyError, 429, True),
        (UnreachableError, None, True),
        (ConflictError, 412, True),
        (AccessDeniedError, 401, True),
        (TimedOutError, None, True),
        (RejectedError, 422, False),  # what is rejected alone was not stored together with others
    ],
)
def test_an_unsent_half_may_have_arrived_with_the_whole_transaction(
    ledger: Ledger, error: type[FhirError], status: int | None, may_have_arrived: bool
) -> None:
    """The whole is stored, and its answer is a failure of a gateway; then the server is gone."""
    client = StubClient()

    def on_call(_method: str, _what: Any) -> None:
        if len(client.calls) > 1:
            raise error("refused", status=status)

    def after_write(_method: str, _what: Any) -> None:
        raise ServerFailureError("gateway", status=504)

    client.on_call, client.after_write = on_call, after_write
    done = send(client, ledger, [delivery(one) for one in "abc"])
    assert {key[1] for key, versions in client.versions.items() if versions} == set("abc")
    assert {one.error.may_have_arrived for one in done.values() if one.error} == {may_have_arrived}
    assert set(open_attempts(ledger, "abc")) == set("abc")


def test_a_half_that_is_refused_after_a_refusal_has_not_arrived(ledger: Ledger) -> None:
    client = StubClient()
    client.on_call = lambda _method, what: (_ for _ in ()).throw(
        RejectedError("no", status=422) if len(what) > 1 else BusyError("busy", status=429)
    )
    done = send(client, ledger, [delivery(one) for one in "ab"])
    assert [one.error.may_have_arrived for one in done.values() if one.error] == [False, False]
