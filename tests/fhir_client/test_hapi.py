"""The client with a real server (HAPI): what the tests with fakes rely on is what a server does."""

import asyncio
import uuid
from typing import Any

import orjson
import pytest

from dicom_etl.fhir_client import (
    ConflictError,
    FhirClient,
    RejectedError,
    WriteRequest,
    check_server,
)
from tests.servers.hapi_server import HapiServer
from tests.support.fhir_answers import run


def patient(identity: str, family: str = "A") -> WriteRequest:
    resource = {"resourceType": "Patient", "id": identity, "name": [{"family": family}]}
    return WriteRequest("Patient", identity, orjson.dumps(resource, option=orjson.OPT_SORT_KEYS))


def change(request: WriteRequest, if_match: str) -> WriteRequest:
    body = request.body.replace(b'"A"', b'"B"')
    return WriteRequest(request.type, request.id, body, if_match)


@pytest.fixture
def name() -> str:
    """A part of all ids of a test, since tests share the server."""
    return f"t{uuid.uuid4().hex[:12]}"


def test_a_resource_is_created_read_updated_and_deleted(hapi: HapiServer, name: str) -> None:
    async def use(client: FhirClient) -> None:
        assert await check_server(client, "R4")
        assert await client.read("Patient", name) is None
        created = await client.put(patient(name))
        assert (created.status, created.server_id, created.version, created.etag) == (201, name, "1", 'W/"1"')
        stored = await client.read("Patient", name)
        assert stored is not None
        assert (stored.id, stored.version, stored.if_match) == (name, "1", created.etag)
        assert (await client.put(change(patient(name), stored.if_match))).version == "2"
        with pytest.raises(ConflictError):
            await client.put(change(patient(name), stored.if_match))
        old = await client.read_version("Patient", name, "1")
        assert old is not None
        assert old.resource["name"] == [{"family": "A"}]
        assert await client.delete("Patient", name)
        assert await client.read("Patient", name) is None
        versions = await client.read_history("Patient", name)
        assert versions is not None
        assert [version and version.version for version in versions] == [None, "2", "1"]

    run(hapi.base_url, use)


def test_a_history_that_is_read_again_has_new_versions(hapi: HapiServer, name: str) -> None:
    async def use(client: FhirClient) -> None:
        first = patient(name)
        await client.put(first)
        before = await client.read_history("Patient", name)
        await client.put(patient(name, "B"))
        after = await client.read_history("Patient", name)
        assert before is not None
        assert [version and version.version for version in before] == ["1"]
        assert after is not None
        assert [version and version.version for version in after] == ["2", "1"]

    run(hapi.base_url, use)


def test_results_of_a_transaction_are_in_the_order_of_requests(hapi: HapiServer, name: str) -> None:
    async def use(client: FhirClient) -> None:
        requests = [patient(f"{name}-{number}") for number in range(30)]
        results = await client.transaction(requests)
        assert [result.server_id for result in results] == [request.id for request in requests]
        assert {(result.status, result.version) for result in results} == {(201, "1")}
        again = await client.transaction(requests[::-1])
        assert {(result.status, result.version) for result in again} == {(200, "1")}
        stale = change(requests[0], 'W/"9"')
        with pytest.raises(ConflictError):
            await client.transaction([requests[1], stale])

    run(hapi.base_url, use)


def test_many_identifiers_are_searched_for_in_the_body(hapi: HapiServer, name: str) -> None:
    """The body has more than 1,000 bytes; other bodies of that size are compressed."""

    async def use(client: FhirClient) -> None:
        await client.transaction([patient(f"{name}-{number}") for number in range(9)])
        wanted = [f"{name}-{number}" for number in range(3, 60)]
        matches = await client.search("Patient", {"_id": ",".join(wanted)}, in_body=True)
        assert sorted(resource["id"] for resource in matches) == wanted[:6]

    run(hapi.base_url, use)


@pytest.mark.parametrize("in_body", [False, True])
def test_a_search_has_all_its_pages(hapi: HapiServer, name: str, in_body: bool) -> None:
    async def use(client: FhirClient) -> None:
        await client.transaction([patient(f"{name}-{number}", family=name) for number in range(23)])
        parameters = {"family": name, "_count": "5"}
        matches = await client.search("Patient", parameters, in_body=in_body)
        assert len({resource["id"] for resource in matches}) == len(matches) == 23
        with pytest.raises(RejectedError, match="Unknown search parameter"):
            await client.search("Patient", {"nonsense": "x"}, in_body=in_body)

    run(hapi.base_url, use)


def test_a_conditional_update_in_a_transaction_returns_the_id(hapi: HapiServer, name: str) -> None:
    resource = {"resourceType": "Patient", "identifier": [{"system": "urn:x", "value": name}]}
    request = WriteRequest("Patient", "", orjson.dumps(resource), condition=f"identifier=urn%3Ax%7C{name}")

    async def use(client: FhirClient) -> None:
        [created] = await client.transaction([request])
        [updated] = await client.transaction([request])
        assert (created.status, updated.status) == (201, 200)
        assert created.server_id == updated.server_id != ""

    run(hapi.base_url, use)


def test_concurrent_writes_of_a_new_resource_succeed(hapi: HapiServer, name: str) -> None:
    async def use(client: FhirClient) -> Any:
        return await asyncio.gather(*(client.put(patient(name, family=f"N{number}")) for number in range(8)))

    results = run(hapi.base_url, use, max_concurrent_requests=8, sleep=asyncio.sleep)
    assert sorted(int(result.version) for result in results) == list(range(1, 9))
