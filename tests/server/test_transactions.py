"""Packing, matching and cutting of transaction bundles."""

import asyncio
import re
from typing import Any

import orjson
import pytest

from dicom_etl.server.client import Client
from dicom_etl.server.errors import ServerError
from dicom_etl.server.transactions import (
    Item,
    Outcome,
    Packer,
    Sender,
    canonical,
    digest,
    outcomes,
    transaction,
)
from tests.server.proxy import Asked, Reply, proxy


def item(identity: str, size: int = 10, kind: str = "Patient") -> Item:
    body = canonical({"resourceType": kind, "id": identity, "text": "x" * size})
    return Item(kind, identity, body, digest(body))


def packed(items: list[Item], resources: int, size: int) -> list[list[str]]:
    packer: Packer[Item] = Packer(resources, size)
    bundles = [bundle for one in items if (bundle := packer.add(one))]
    return [[one.id for one in bundle] for bundle in [*bundles, packer.rest()]]


def test_bundles_are_limited_by_number():
    assert packed([item(c) for c in "abcde"], 2, 10_000) == [["a", "b"], ["c", "d"], ["e"]]


def test_bundles_are_limited_by_bytes_and_a_large_resource_travels_alone():
    assert packed([item("a", 300), item("b", 300), item("c", 5000), item("d", 300)], 10, 1000) == [
        ["a", "b"],
        ["c"],
        ["d"],
    ]


def test_a_resource_stands_in_a_bundle_once():
    assert packed([item("a"), item("b"), item("a")], 10, 10_000) == [["a", "b"], ["a"]]


def test_the_same_content_has_the_same_digest_whatever_its_order():
    assert canonical({"b": 1, "a": [2]}) == canonical({"a": [2], "b": 1}) == b'{"a":[2],"b":1}'


def test_each_resource_is_a_put_under_its_own_id():
    bundle = orjson.loads(orjson.dumps(transaction([item("a")])))

    assert bundle["type"] == "transaction"
    assert bundle["entry"][0]["request"] == {"method": "PUT", "url": "Patient/a"}
    assert bundle["entry"][0]["resource"]["id"] == "a"


def answer(*responses: dict[str, str]) -> dict[str, Any]:
    return {"resourceType": "Bundle", "type": "transaction-response", "entry": [{"response": r} for r in responses]}


def test_outcomes_are_matched_by_location_in_any_order():
    found = outcomes(
        answer(
            {"status": "200 OK", "location": "https://h/fhir/Patient/b/_history/7"},
            {"status": "201 Created", "location": "Patient/a", "etag": 'W/"3"'},
            {"status": "204"},
        ),
        attempts=2,
    )

    assert found == {
        ("Patient", "b"): Outcome("stored", 200, "7", 2),
        ("Patient", "a"): Outcome("stored", 201, "3", 2),
    }


@pytest.mark.parametrize("wrong", [None, [], {"resourceType": "OperationOutcome"}, answer({"status": "400 Bad"})])
def test_an_answer_without_success_is_an_error(wrong):
    with pytest.raises(ServerError):
        outcomes(wrong, attempts=1)


# -- sending ----------------------------------------------------------------------------------------------------------


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
