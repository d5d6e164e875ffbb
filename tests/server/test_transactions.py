"""What goes into one request, and what its answer says of each resource."""

from dataclasses import replace
from typing import Any

import orjson
import pytest

from dicom_etl.server.errors import ServerError
from dicom_etl.server.transactions import (
    Item,
    Outcome,
    Packer,
    canonical,
    digest,
    outcomes,
    shipments,
    transaction,
)


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


def test_large_resources_go_one_by_one_and_the_others_together():
    items = [item("a"), item("b", 3000), item("c"), item("d", 2000)]

    assert [[one.id for one in some] for some in shipments(items, 1000)] == [["a", "c"], ["b"], ["d"]]
    assert [[one.id for one in some] for some in shipments(items[1::2], 1000)] == [["b"], ["d"]]
    assert [[one.id for one in some] for some in shipments(items, 4000)] == [["a", "b", "c", "d"]]


def test_a_conditional_put_stays_in_a_transaction_however_large():
    conditional = replace(item("b", 3000), condition="identifier=x")

    assert [[one.id for one in some] for some in shipments([item("a"), conditional], 1000)] == [["a", "b"]]
