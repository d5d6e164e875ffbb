"""Searches with all their pages."""

import asyncio
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson

from dicom_etl.server.client import Client
from dicom_etl.upload.reconciling import fetched
from tests.server.proxy import Asked, Proxy, Reply, proxy

IDS = [f"p{number}" for number in range(5)]


def paging(asked: Asked) -> Reply:
    """A server that gives two at a time, whatever it is asked for, and a remark with each page."""
    query = parse_qs(urlsplit(asked.path).query)
    ids = query["_id"][0].split(",") if "_id" in query else query["rest"][0].split(",")
    entries: list[dict[str, Any]] = [{"resource": {"resourceType": "Patient", "id": one}} for one in ids[:2]]
    entries.append({"resource": {"resourceType": "OperationOutcome"}, "search": {"mode": "outcome"}})
    links = [{"relation": "next", "url": f"/fhir?rest={','.join(ids[2:])}"}] if ids[2:] else []
    return Reply(200, orjson.dumps({"resourceType": "Bundle", "type": "searchset", "entry": entries, "link": links}))


def found(server: Proxy) -> dict[str, Any]:
    async def whole() -> dict[str, Any]:
        async with Client(server.url) as client:
            return await fetched(client, "Patient", IDS)

    return asyncio.run(whole())


def test_a_server_may_give_fewer_at_a_time_than_it_was_asked_for():
    with proxy(rule=paging) as server:
        there = found(server)
    assert list(there) == IDS
    assert len(server.asked) == 3


def test_a_page_that_names_itself_as_the_next_ends_the_search():
    page = {"resourceType": "Bundle", "link": [{"relation": "next", "url": "/fhir?again=1"}]}
    with proxy(rule=lambda _: Reply(200, orjson.dumps(page))) as server:
        assert found(server) == {}
    assert len(server.asked) == 2
