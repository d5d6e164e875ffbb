"""Transactions that are cut until the bad resource is alone, PUTs of their own, and when it is no use to go on."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson
import pytest

from dicom_etl.server.addressing import Addressing
from dicom_etl.server.client import Client
from dicom_etl.server.sending import Sender
from dicom_etl.server.transactions import Item, Outcome, canonical, digest
from tests.server.proxy import Asked, Proxy, Reply, proxy


def item(identity: str, size: int = 10, kind: str = "Patient") -> Item:
    body = canonical({"resourceType": kind, "id": identity, "text": "x" * size})
    return Item(kind, identity, body, digest(body))


def answer(*responses: dict[str, str]) -> dict[str, Any]:
    return {"resourceType": "Bundle", "type": "transaction-response", "entry": [{"response": r} for r in responses]}


def ids(asked: Asked) -> list[str]:
    return re.findall(r'"url":"Patient/(\w+)"', _plain(asked))


def _plain(asked: Asked) -> str:
    return asked.body.decode()  # aiohttp's server has unpacked it


def taken(asked: Asked) -> Reply:
    entries = [{"status": "201", "location": f"Patient/{one}/_history/1"} for one in ids(asked)]
    return Reply(200, orjson.dumps(answer(*entries)))


def send(
    rule: Any, items: list[list[Item]], retry_seconds: float = 600
) -> tuple[dict[str, Outcome], Sender, list[Any]]:
    """What becomes of some bundles, the sender afterwards, and the ids in each request."""
    found: dict[str, Outcome] = {}

    async def no_pause(_: float) -> None:
        return None

    with proxy(rule=rule) as server:

        async def whole() -> Sender:
            async with Client(server.url) as client:
                sender = Sender(client, retry_seconds, sleep=no_pause)
                for bundle in items:
                    await sender.send(bundle, lambda one, outcome: found.update({one.id: outcome}))
                return sender

        sender = asyncio.run(whole())
        requests = [ids(one) if one.method == "POST" else one.path for one in server.asked]
    return found, sender, requests


def test_a_refused_bundle_is_cut_until_the_bad_resource_is_alone():
    def one_is_bad(asked: Asked) -> Reply:
        return Reply(400, b"") if "e" in ids(asked) else taken(asked)

    found, sender, requests = send(one_is_bad, [[item(c) for c in "abcdefgh"]])

    assert {one: outcome.state for one, outcome in found.items()} == {
        **dict.fromkeys("abcdfgh", "stored"),
        "e": "rejected",
    }
    assert found["e"] == Outcome("rejected", 400, None, 4, "HTTP 400: Bad Request")
    assert [sorted(one) for one in requests] == [
        list("abcdefgh"),
        list("abcd"),
        list("efgh"),
        list("ef"),
        ["e"],
        ["f"],
        list("gh"),
    ]
    assert sender.stopped is None


def test_a_token_that_is_not_taken_stops_everything_and_nothing_is_cut():
    found, sender, requests = send(lambda _: Reply(401), [[item("a"), item("b")], [item("c")]])

    assert {outcome.state for outcome in found.values()} == {"gave-up"}
    assert requests == [["a", "b"]]
    assert sender.stopped is not None
    assert "check the token" in sender.stopped
    assert not sender.unreachable


def test_a_server_that_goes_away_is_not_asked_for_each_resource():
    found, sender, requests = send(lambda _: Reply(503), [[item("a"), item("b")], [item("c")]], retry_seconds=0)

    assert {one: outcome.state for one, outcome in found.items()} == dict.fromkeys("abc", "gave-up")
    assert requests == [["a", "b"], "metadata"]
    assert sender.unreachable


def test_a_resource_that_makes_the_server_fail_is_given_up_alone():
    def one_is_poison(asked: Asked) -> Reply:
        return Reply(200, b"{}") if asked.path == "metadata" else Reply(500) if "b" in ids(asked) else taken(asked)

    found, sender, _ = send(one_is_poison, [[item("a"), item("b")]], retry_seconds=0)

    assert {one: outcome.state for one, outcome in found.items()} == {"a": "stored", "b": "gave-up"}
    assert found["b"].status == 500
    assert sender.stopped is None


def test_a_server_that_takes_nothing_though_it_answers_is_left_alone():
    def read_only(asked: Asked) -> Reply:
        return Reply(200, b"{}") if asked.path == "metadata" else Reply(503)

    found, sender, requests = send(read_only, [[item(c)] for c in "abcde"], retry_seconds=0)

    assert {outcome.state for outcome in found.values()} == {"gave-up"}
    assert requests == [["a"], "metadata", ["b"], "metadata", ["c"], "metadata"]
    assert sender.stopped is not None


# -- by a request of its own ------------------------------------------------------------------------------------------

LARGE = 500  # bytes: what has more travels alone here


def put(rule: Callable[[Asked], Reply], items: list[Item], retry_seconds: float = 600) -> tuple[Any, Any, Proxy]:
    """What becomes of items some of which are large, those that must be looked at again, and the requests."""
    found: dict[str, Outcome] = {}

    async def no_pause(_: float) -> None:
        return None

    with proxy(rule=rule) as server:

        async def whole() -> list[Item]:
            async with Client(server.url) as client:
                sender = Sender(client, retry_seconds, in_flight=3, alone_bytes=LARGE, sleep=no_pause)
                return await sender.send(items, lambda one, outcome: found.update({one.id: outcome}))

        stale = asyncio.run(whole())
    return found, stale, server


def stored(status: int = 201, **headers: str) -> Callable[[Asked], Reply]:
    return lambda asked: Reply(status, headers=headers) if asked.method == "PUT" else taken(asked)


def test_a_large_resource_is_a_put_and_the_small_ones_a_transaction():
    found, stale, server = put(stored(ETag='W/"4"'), [item("a"), item("b", 600), item("c")])

    assert found == {
        "a": Outcome("stored", 201, "1", 1),
        "b": Outcome("stored", 201, "4", 1),
        "c": Outcome("stored", 201, "1", 1),
    }
    assert stale == []
    assert sorted(server.sent()) == ["POST ", "PUT Patient/b"]
    [request] = [one for one in server.asked if one.method == "PUT"]
    assert orjson.loads(request.body)["id"] == "b"
    assert request.headers["Prefer"] == "return=minimal"
    assert "If-Match" not in request.headers


@pytest.mark.parametrize(
    ("reply", "version"),
    [
        (Reply(200, headers={"ETag": 'W/"7"'}), "7"),
        (Reply(201, headers={"Location": "https://h/fhir/Patient/b/_history/3"}), "3"),
        (Reply(200, b'{"resourceType": "Patient", "id": "b", "meta": {"versionId": "5"}}'), "5"),
        (Reply(200), ""),  # it names none
    ],
)
def test_the_version_is_read_from_wherever_the_server_names_it(reply: Reply, version: str):
    found, _, _ = put(lambda _: reply, [item("b", 600)])

    assert found == {"b": Outcome("stored", reply.status, version, 1)}


def test_the_version_that_a_put_may_replace_is_a_header():
    _, _, server = put(stored(200), [replace(item("b", 600), if_match="4")])

    assert server.asked[0].headers["If-Match"] == 'W/"4"'


@pytest.mark.parametrize("status", [409, 412])
def test_a_put_whose_version_moved_is_looked_at_again(status: int):
    one = replace(item("b", 600), if_match="4")
    found, stale, _ = put(lambda asked: Reply(status) if asked.method == "PUT" else taken(asked), [item("a"), one])

    assert stale == [one]
    assert found["b"].state == "retrying"


def test_a_large_resource_that_is_refused_is_rejected_alone():
    def one_is_bad(asked: Asked) -> Reply:
        return Reply(422) if asked.path == "Patient/b" else stored()(asked)

    found, _, server = put(one_is_bad, [item("a"), item("b", 600), item("c", 600)])

    assert {one: outcome.state for one, outcome in found.items()} == {"a": "stored", "b": "rejected", "c": "stored"}
    assert len(server.asked) == 3


def test_a_page_of_somebody_else_is_not_taken_for_success():
    found, _, _ = put(lambda _: Reply(200, b"<html>Log in</html>"), [item("b", 600)])

    assert found["b"].state == "rejected"
    assert "not JSON" in str(found["b"].error)


def test_as_many_are_on_their_way_as_are_allowed_and_no_more():
    at_once, most = 0, 0

    class Counting:
        async def put(self, path: str, body: bytes, *, if_match: str) -> dict[str, str]:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            await asyncio.sleep(0.01)
            at_once -= 1
            return {"status": "201", "location": path, "etag": "1"}

    async def whole() -> None:
        sender = Sender(Counting(), 0, in_flight=3, alone_bytes=0)  # type: ignore[arg-type]
        await sender.send([item(c) for c in "abcdefgh"], lambda *_: None)

    asyncio.run(whole())

    assert most == 3


@pytest.mark.parametrize(("bad", "asked"), [(6, 20), (20, 9)])
def test_large_resources_that_always_fail_stop_the_others_after_two_rounds_and_not_before(bad: int, asked: int):
    """Three at once: six may fail in a row, as those that a gateway cuts off do; then the server takes nothing."""

    def some_fail(asked: Asked) -> Reply:
        if asked.path == "metadata":
            return Reply(200, b"{}")
        return Reply(504) if int(asked.path.removeprefix("Patient/")) < bad else stored()(asked)

    found, _, server = put(some_fail, [item(str(number), 600) for number in range(20)], retry_seconds=0)

    assert [found[str(number)].state for number in range(20)] == ["gave-up"] * bad + ["stored"] * (20 - bad)
    assert 7 <= len(server.sent("PUT")) <= asked


def test_when_something_fails_that_is_not_the_servers_fault_the_others_end():
    """A disk that is full, say: what no ledger can tell of is not to go on being sent."""
    began: list[str] = []
    ended: list[str] = []

    class Slow:
        async def put(self, path: str, body: bytes, *, if_match: str) -> dict[str, str]:
            began.append(path)
            await asyncio.sleep(0.05)
            ended.append(path)
            return {"status": "201", "location": path, "etag": "1"}

    def full(one: Item, _: Outcome) -> None:
        if one.id == "a":
            raise OSError(28, "No space left on device")

    async def whole() -> None:
        sender = Sender(Slow(), 0, in_flight=2, alone_bytes=0)  # type: ignore[arg-type]
        with pytest.raises(OSError, match="No space"):
            await sender.send([item(c) for c in "abcdef"], full)
        await asyncio.sleep(0.2)

    asyncio.run(whole())

    assert ended == ["Patient/a", "Patient/b"]
    assert len(began) <= 4


# -- where a server that gives ids has something ----------------------------------------------------------------------


def located(number: int) -> Item:
    condition = Addressing("https://site.example", takes_ids=False).condition(f"p{number}")
    return replace(item(f"p{number}"), condition=condition)


def test_places_are_asked_for_in_searches_whose_urls_stay_short():
    def found(asked: Asked) -> Reply:
        tokens = parse_qs(urlsplit(asked.path).query)["identifier"][0].split(",")
        entries = [
            {"resource": {"resourceType": "Patient", "id": f"there-{value}", "identifier": [{"value": value}]}}
            for value in (token.partition("|")[2] for token in tokens)
        ]
        return Reply(200, orjson.dumps({"resourceType": "Bundle", "entry": entries}))

    async def whole(server: Proxy) -> dict[Any, Any]:
        async with Client(server.url) as client:
            return await Sender(client, 0).places([located(number) for number in range(60)])

    with proxy(rule=found) as server:
        places = asyncio.run(whole(server))

    assert places == {("Patient", f"p{number}"): ("Patient", f"there-p{number}") for number in range(60)}
    assert len(server.asked) == 3
    assert max(len(asked.path) for asked in server.asked) < 2_000


def test_what_was_taken_is_not_rejected_when_the_server_will_not_say_where_it_is():
    def forgetful(asked: Asked) -> Reply:
        return Reply(404) if asked.method == "GET" else Reply(200, orjson.dumps(answer({"status": "201"})))

    found, _, _ = send(forgetful, [[located(1)]])

    assert found["p1"].state == "gave-up"
    assert "the server took it" in str(found["p1"].error)
