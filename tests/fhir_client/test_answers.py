"""Answers that are not what they should be: each is an error of the class that follows, and none is believed.

Tables of status and body, then every node of a valid answer replaced by something else.
"""

import asyncio
import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from dicom_etl.fhir_client import (
    AccessDeniedError,
    BusyError,
    ConflictError,
    FhirClient,
    FhirError,
    InvalidAnswerError,
    NotFoundError,
    RejectedError,
    ServerFailureError,
    ServerResource,
    WriteResult,
)
from dicom_etl.fhir_client.answers import ReceivedAnswer, read_capability_statement, read_put_result, read_resource
from dicom_etl.fhir_client.bundles import read_history, read_search_page, read_transaction_results
from dicom_etl.fhir_client.capabilities import Capabilities
from dicom_etl.fhir_client.transport import Answer
from tests.support.fhir_answers import (
    STATEMENT,
    conditional,
    fail,
    following,
    json_reply,
    no_pause,
    outcome,
    patient,
    run,
    searchset,
    transaction_response,
    write,
)
from tests.support.proxy import Reply, run_proxy

HTML = Reply(200, b"<html><h1>Log in</h1></html>")


async def search(client: FhirClient) -> Any:
    return await client.search("Patient", {"family": "Noether"})


async def read(client: FhirClient) -> Any:
    return await client.read("Patient", "a")


async def read_version(client: FhirClient) -> Any:
    return await client.read_version("Patient", "a", "7")


async def history(client: FhirClient) -> Any:
    return await client.read_history("Patient", "a")


async def put(client: FhirClient) -> Any:
    return await client.put(write())


async def put_conditionally(client: FhirClient) -> Any:
    return await client.put(conditional("x"))


async def transaction(client: FhirClient) -> Any:
    return await client.transaction([write("a"), write("b")])


async def delete(client: FhirClient) -> Any:
    return await client.delete("Patient", "a")


async def capabilities(client: FhirClient) -> Any:
    return await client.capabilities()


CALLS = (search, read, read_version, history, put, transaction, delete, capabilities)
NEED_A_BODY = (search, read, read_version, history, transaction, capabilities)

# -- a success status with something else -----------------------------------------------------------------------------

NOT_FHIR: dict[str, Reply] = {
    "an OperationOutcome with an error": json_reply(outcome("exception", "search index is being rebuilt")),
    "a fatal OperationOutcome": json_reply(outcome("exception", "search index is being rebuilt", "fatal")),
    "an OperationOutcome of null": json_reply({"resourceType": "OperationOutcome", "issue": None}),
    "an OperationOutcome of numbers": json_reply({"resourceType": "OperationOutcome", "issue": [1]}),
    "an OperationOutcome without severity": json_reply({"resourceType": "OperationOutcome", "issue": [{}]}),
    "an error of a gateway": json_reply({"error": "search index is being rebuilt"}),
    "a message of a gateway": json_reply({"message": "search index is being rebuilt"}),
    "an error that is an object": json_reply({"error": {"code": 5}}),
    "an empty object": json_reply({}),
    "a list": json_reply([]),
    "null": json_reply(None),
    "a string": json_reply("ok"),
    "a number": json_reply(5),
    "true": json_reply(True),
    "NaN": Reply(200, b"NaN"),
    "NaN inside": Reply(200, b'{"resourceType": "Patient", "id": "a", "x": NaN}'),
    "HTML": HTML,
    "text": Reply(200, b"OK"),
    "JSON that is cut off": Reply(200, b'{"resourceType": "Bundle", "type": "searchset", "ent'),
    "JSON with something behind": Reply(200, orjson.dumps(patient()) + b"]"),
    "deep lists": Reply(200, b"[" * 5_000 + b"]" * 5_000),
    "deep objects": Reply(200, b'{"a":' * 500 + b"1" + b"}" * 500),
    "bytes": Reply(200, bytes(range(256))),
    "a resource of another type": json_reply({"resourceType": "Basic", "id": "a"}),
    "a type that is a list": json_reply({"resourceType": ["Patient"], "id": "a"}),
    "a Bundle of another type": json_reply({"resourceType": "Bundle", "type": "collection", "entry": []}),
    "a Bundle without a type": json_reply({"resourceType": "Bundle", "entry": []}),
}


@pytest.mark.parametrize("reply", NOT_FHIR.values(), ids=NOT_FHIR)
@pytest.mark.parametrize("call", CALLS)
def test_a_success_that_is_none_is_invalid_and_tried_three_times(call: Any, reply: Reply) -> None:
    with run_proxy(rule=lambda _: reply) as server:
        error = fail(server.url, call)
        requests = [asked for asked in server.requests if asked.path != "metadata" or call is capabilities]
    assert type(error) is InvalidAnswerError
    assert (error.status, error.attempts, len(requests), error.may_have_arrived) == (200, 3, 3, True)
    assert str(error).startswith("HTTP 200: the answer ")
    assert len(str(error).splitlines()) == 1
    assert error.__cause__ is error.__context__ is None
    if b"index is being rebuilt" in reply.body:
        # what was searched for is not in it, and what explains is kept
        assert "search index is being rebuilt" in str(error)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 206])
@pytest.mark.parametrize("call", NEED_A_BODY)
def test_an_empty_answer_is_invalid_where_a_body_is_needed(call: Any, status: int) -> None:
    with run_proxy(rule=lambda _: Reply(status)) as server:
        assert type(fail(server.url, call)) is InvalidAnswerError


@pytest.mark.parametrize("reply", [Reply(202), Reply(204), Reply(206), Reply(299)], ids=lambda reply: str(reply.status))
def test_a_put_is_stored_only_by_200_and_201(reply: Reply) -> None:
    with run_proxy(rule=lambda _: reply) as server:
        assert type(fail(server.url, put)) is InvalidAnswerError


# -- searches ---------------------------------------------------------------------------------------------------------


def bundle(**more: Any) -> Reply:
    return json_reply({"resourceType": "Bundle", "type": "searchset"} | more)


ODD_SEARCHSETS: dict[str, Reply] = {
    "entry is null": bundle(entry=None),
    "entry is an object": bundle(entry={}),
    "entry is a list of numbers": bundle(entry=[1]),
    "entry is a list of null": bundle(entry=[None]),
    "an entry without a resource": bundle(entry=[{"search": {"mode": "match"}}]),
    "an entry whose resource is null": bundle(entry=[{"resource": None}]),
    "an entry whose resource is a list": bundle(entry=[{"resource": []}]),
    "a resource without a type": bundle(entry=[{"resource": {"id": "a"}}]),
    "a resource whose type is a number": bundle(entry=[{"resource": {"resourceType": 1, "id": "a"}}]),
    "a resource without an id": bundle(entry=[{"resource": {"resourceType": "Patient"}}]),
    "a resource whose id is a number": bundle(entry=[{"resource": {"resourceType": "Patient", "id": 1}}]),
    "an entry with an error": bundle(entry=[{"resource": outcome("exception", "shard 2 failed")}]),
    "an outcome with an error": bundle(
        entry=[{"resource": outcome("exception", "shard 2 failed"), "search": {"mode": "outcome"}}]
    ),
    "link is null": bundle(link=None),
    "link is an object": bundle(link={"relation": "next", "url": "x"}),
    "link is a list of strings": bundle(link=["next"]),
    "a next link without an address": bundle(link=[{"relation": "next"}]),
    "a next link whose address is null": bundle(link=[{"relation": "next", "url": None}]),
    "a next link whose address is empty": bundle(link=[{"relation": "next", "url": ""}]),
    "a next link whose address is a list": bundle(link=[{"relation": "next", "url": ["x"]}]),
    "two next links": bundle(link=[{"relation": "next", "url": "x"}, {"relation": "next", "url": "y"}]),
    "a next link that is not an address": bundle(link=[{"relation": "next", "url": "http://[1/fhir?x"}]),
    "a next link above the base address": bundle(link=[{"relation": "next", "url": "/fhir/../../admin?x"}]),
    "a next link with an encoded step up": bundle(link=[{"relation": "next", "url": "/fhir/%2e%2E/%2e%2e/admin"}]),
    "total is null": bundle(total=None),
    "total is a string": bundle(total="0"),
    "total is true": bundle(total=True),
    "total is larger than what there is": json_reply(searchset(patient(), total=2)),
    "total is larger and there is nothing": bundle(total=1),
}


@pytest.mark.parametrize("reply", ODD_SEARCHSETS.values(), ids=ODD_SEARCHSETS)
def test_a_searchset_that_cannot_be_read_is_never_nothing_found(reply: Reply) -> None:
    with run_proxy(rule=lambda _: reply) as server:
        error = fail(server.url, search)
    assert type(error) is InvalidAnswerError


FINE_SEARCHSETS: dict[str, tuple[Reply, list[str]]] = {
    "no entry at all": (bundle(), []),
    "no entry, and a total of none": (bundle(total=0), []),
    "an empty list": (bundle(entry=[], link=[]), []),
    "a match": (json_reply(searchset(patient(), total=1)), ["a"]),
    "more than the total": (json_reply(searchset(patient("a"), patient("b"), total=1)), ["a", "b"]),
    "the same twice": (json_reply(searchset(patient(), patient(), total=1)), ["a"]),
    "resources of other types": (
        json_reply(searchset(patient(), {"resourceType": "Basic", "id": "x"}, total=2)),
        ["a"],
    ),
    "included resources": (
        bundle(
            total=1,
            entry=[{"resource": patient()}, {"resource": patient("z"), "search": {"mode": "include"}}],
        ),
        ["a"],
    ),
    "a remark": (bundle(entry=[{"resource": patient()}, {"resource": outcome("x", "slow", "warning")}]), ["a"]),
    "an outcome without issues": (
        bundle(entry=[{"resource": {"resourceType": "OperationOutcome"}, "search": {"mode": "outcome"}}]),
        [],
    ),
    "search is null": (bundle(entry=[{"resource": patient(), "search": None}]), ["a"]),
    "other links": (bundle(link=[{"relation": "self"}, {"relation": None, "url": 5}, {}]), []),
}


@pytest.mark.parametrize(("reply", "ids"), FINE_SEARCHSETS.values(), ids=FINE_SEARCHSETS)
def test_what_a_searchset_may_leave_out_or_add_is_fine(reply: Reply, ids: list[str]) -> None:
    with run_proxy(rule=lambda _: reply) as server:
        assert [resource["id"] for resource in run(server.url, search)] == ids


# -- reads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [404, 410])
@pytest.mark.parametrize("body", [b"", orjson.dumps(outcome("not-found", "HAPI-2001: not known"))])
@pytest.mark.parametrize("call", [read, read_version, history])
def test_only_a_fhir_server_says_that_there_is_nothing(call: Any, body: bytes, status: int) -> None:
    with run_proxy(rule=lambda _: Reply(status, body)) as server:
        assert run(server.url, call) is None
        assert len(server.requests) == 1


@pytest.mark.parametrize("status", [404, 410])
@pytest.mark.parametrize(
    "body",
    [b"<html>no such route</html>", b'{"error": "no such route"}', b"[]", b"null", b"default backend - 404"],
)
@pytest.mark.parametrize("call", [read, read_version, history, delete])
def test_the_404_of_a_gateway_is_an_error(call: Any, body: bytes, status: int) -> None:
    with run_proxy(rule=lambda _: Reply(status, body)) as server:
        error = fail(server.url, call)
    assert isinstance(error, NotFoundError)
    assert (error.is_deleted, error.is_confirmed) == (status == 410, False)


@pytest.mark.parametrize(
    "resource",
    [
        patient("b"),
        patient(None),  # type: ignore[arg-type]
        {"resourceType": "Patient"},
        {"resourceType": "Patient", "id": ["a"]},
        outcome("informational", "here it is", "information"),
    ],
)
@pytest.mark.parametrize("call", [read, read_version])
def test_a_read_gives_that_resource_and_no_other(call: Any, resource: Any) -> None:
    with run_proxy(rule=lambda _: json_reply(resource)) as server:
        assert type(fail(server.url, call)) is InvalidAnswerError


def test_a_version_that_was_not_asked_for_is_not_taken() -> None:
    with run_proxy(rule=lambda _: json_reply(patient(version="8"))) as server:
        assert type(fail(server.url, read_version)) is InvalidAnswerError
        server.rule = lambda _: json_reply(patient(version="7"))
        assert run(server.url, read_version) == ServerResource(patient(version="7"))
        server.rule = lambda _: json_reply(patient(version=None))
        assert run(server.url, read_version) == ServerResource(patient(version=None))


# -- histories --------------------------------------------------------------------------------------------------------


def versions(*entries: Any) -> Reply:
    return json_reply({"resourceType": "Bundle", "type": "history", "entry": list(entries)})


@pytest.mark.parametrize(
    "reply",
    [
        versions(None),
        versions([]),
        versions({"resource": []}),
        versions({"resource": {"id": "a"}}),
        versions({"resource": patient("b")}),
        versions({"resource": {"resourceType": "Basic", "id": "a"}}),
        versions({"resource": outcome("exception", "no index")}),
        json_reply({"resourceType": "Bundle", "type": "history", "entry": None}),
        json_reply({"resourceType": "Bundle", "type": "searchset"}),
    ],
)
def test_a_history_that_cannot_be_read_is_invalid(reply: Reply) -> None:
    with run_proxy(rule=lambda _: reply) as server:
        assert type(fail(server.url, history)) is InvalidAnswerError


def test_a_history_is_the_newest_first_with_none_for_deletions() -> None:
    entries = (
        {"request": {"method": "DELETE", "url": "Patient/a"}, "response": {"status": "204"}},
        {"resource": patient(version="x-9"), "response": {"etag": 'W/"x-9"'}},
        {"resource": patient(version="x-5"), "request": {"method": "DELETE"}},
        {"resource": patient(version="x-4"), "request": None, "response": {"etag": "bare"}},
    )
    with run_proxy(rule=lambda _: versions(*entries)) as server:
        found = run(server.url, history)
        assert [asked.path for asked in server.requests] == ["Patient/a/_history?_count=10&_since=1900-01-01T00:00:00Z"]
    assert [version and (version.version, version.etag) for version in found] == [
        None,
        ("x-9", 'W/"x-9"'),
        None,
        ("x-4", ""),
    ]


@pytest.mark.parametrize("reply", [Reply(405), Reply(501), json_reply(outcome("not-supported", "no history"), 400)])
def test_a_server_without_histories_is_told_apart_from_one_that_fails(reply: Reply) -> None:
    with run_proxy(rule=lambda _: reply) as server:
        assert run(server.url, history) is None
        assert len(server.requests) == 1


# -- writes -----------------------------------------------------------------------------------------------------------

PUTS: dict[str, tuple[Reply, WriteResult]] = {
    "nothing": (Reply(200), WriteResult(200, "a", "", "")),
    "blanks": (Reply(201, b" \r\n"), WriteResult(201, "a", "", "")),
    "the resource": (json_reply(patient(version="u-1"), 201), WriteResult(201, "a", "u-1", "")),
    "a remark": (json_reply(outcome("informational", "stored", "information")), WriteResult(200, "a", "", "")),
    "an ETag": (Reply(200, headers={"ETag": 'W/"7"'}), WriteResult(200, "a", "7", 'W/"7"')),
    "an ETag of a proxy": (Reply(200, headers={"ETag": 'W/"3-gzip"'}), WriteResult(200, "a", "3-gzip", 'W/"3-gzip"')),
    "a strong ETag": (Reply(200, headers={"ETag": '"x y"'}), WriteResult(200, "a", "x y", '"x y"')),
    "a bare ETag": (Reply(200, headers={"ETag": "7"}), WriteResult(200, "a", "7", "7")),
    "a location": (
        Reply(201, headers={"Location": "https://h/r/Patient/a/_history/0c1d-e"}),
        WriteResult(201, "a", "0c1d-e", ""),
    ),
    "location and ETag": (
        Reply(201, headers={"Location": "Patient/a/_history/3", "ETag": 'W/"3-gzip"'}),
        WriteResult(201, "a", "3", 'W/"3-gzip"'),
    ),
    "a location of something else": (
        Reply(201, headers={"Location": "/Basic/z/_history/3"}),
        WriteResult(201, "a", "", ""),
    ),
    "a location that is none": (Reply(201, headers={"Location": "?" * 8_000}), WriteResult(201, "a", "", "")),
    "a version that is a number": (json_reply(patient(version=4)), WriteResult(200, "a", "4", "")),  # type: ignore[arg-type]
    "a version that is a list": (json_reply(patient(version=["4"])), WriteResult(200, "a", "", "")),  # type: ignore[arg-type]
    "a version with a line break": (json_reply(patient(version="1\r\nX: y")), WriteResult(200, "a", "", "")),
    "meta that is a list": (
        json_reply({"resourceType": "Patient", "id": "a", "meta": []}),
        WriteResult(200, "a", "", ""),
    ),
}


@pytest.mark.parametrize(("reply", "result"), PUTS.values(), ids=PUTS)
def test_a_put_that_stored_names_its_version_or_does_not(reply: Reply, result: WriteResult) -> None:
    with run_proxy(rule=lambda _: reply) as server:
        assert run(server.url, put) == result


@pytest.mark.parametrize(
    "content", [patient("b"), {"resourceType": "Patient"}, {"resourceType": "Basic", "id": "a"}, searchset(patient())]
)
def test_a_put_that_is_answered_with_another_resource_is_not_stored(content: Any) -> None:
    with run_proxy(rule=lambda _: json_reply(content)) as server:
        assert type(fail(server.url, put)) is InvalidAnswerError


@pytest.mark.parametrize(
    ("reply", "server_id"),
    [
        (Reply(201, headers={"Location": "https://h/fhir/Patient/77/_history/1"}), "77"),
        (json_reply(patient("78"), 201), "78"),
        (Reply(200), ""),
    ],
)
def test_a_conditional_put_has_the_id_that_the_server_names(reply: Reply, server_id: str) -> None:
    with run_proxy(rule=lambda _: reply) as server:
        assert run(server.url, put_conditionally).server_id == server_id
        assert server.requests[0].path == "Patient?identifier=x"


@pytest.mark.parametrize(
    ("reply", "gone"),
    [
        (Reply(200), True),
        (Reply(204), True),
        (Reply(202, b"<html>queued</html>"), True),
        (json_reply(outcome("informational", "deleted", "information")), True),
        (Reply(404), False),
        (json_reply(outcome("not-found", "was never there"), 404), False),
        (json_reply(outcome("deleted", "is deleted"), 410), False),
    ],
)
def test_a_deletion_says_whether_something_was_there(reply: Reply, gone: bool) -> None:
    with run_proxy(rule=lambda _: reply) as server:
        assert run(server.url, delete) is gone


def test_a_deletion_that_others_refer_to_is_a_conflict_and_not_repeated() -> None:
    with run_proxy(rule=lambda _: Reply(409)) as server:
        assert type(fail(server.url, delete)) is ConflictError
        assert len(server.requests) == 1


# -- failures, with whatever body -------------------------------------------------------------------------------------

ODD_BODIES: dict[str, Any] = {
    "nothing": None,
    "issue is null": {"resourceType": "OperationOutcome", "issue": None},
    "issue is a list of numbers": {"resourceType": "OperationOutcome", "issue": [1]},
    "issue is an object": {"resourceType": "OperationOutcome", "issue": {"severity": "error"}},
    "details is a string": {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "details": "x"}]},
    "details.text is a list": {"resourceType": "OperationOutcome", "issue": [{"code": [], "details": {"text": [1]}}]},
    "diagnostics is an object": {"resourceType": "OperationOutcome", "issue": [{"diagnostics": {}}]},
    "severity is a list": {"resourceType": "OperationOutcome", "issue": [{"severity": []}]},
    "message is a list": {"message": [1]},
    "a list": [],
    "a string": "x",
}
STATUSES: dict[int, type[FhirError]] = {
    300: RejectedError, 301: RejectedError, 304: RejectedError, 400: RejectedError, 401: AccessDeniedError,
    402: RejectedError, 403: AccessDeniedError, 405: RejectedError, 408: ServerFailureError, 409: ConflictError,
    412: ConflictError, 413: RejectedError, 415: RejectedError, 422: RejectedError, 429: BusyError, 451: RejectedError,
    499: RejectedError, 500: ServerFailureError, 501: RejectedError, 502: ServerFailureError, 503: BusyError,
    504: ServerFailureError, 505: RejectedError, 507: ServerFailureError, 599: ServerFailureError,
    999: InvalidAnswerError,
}  # fmt: skip


@pytest.mark.parametrize(("status", "expected"), STATUSES.items())
@pytest.mark.parametrize("call", [search, put, transaction])
def test_a_status_has_its_class_whatever_the_body(call: Any, status: int, expected: type[FhirError]) -> None:
    bodies = [b"" if body is None else orjson.dumps(body) for body in ODD_BODIES.values()]
    bodies += [b"<html>", b"NaN", b"[" * 2_000, bytes(range(256))]
    if status == 304:
        bodies = [b""]  # has no body by definition

    async def errors(url: str) -> list[FhirError]:
        found = []
        for body in bodies:
            server.rule = lambda _, body=body: Reply(status, body)  # type: ignore[misc]
            async with FhirClient(url, retry_seconds=0, sleep=no_pause) as client:
                with pytest.raises(FhirError) as caught:
                    await call(client)
                found.append(caught.value)
        return found

    with run_proxy() as server:
        for error in asyncio.run(errors(server.url)):
            assert type(error) is expected
            assert error.status == status
            assert str(error).startswith(f"HTTP {status}: ")
            assert len(str(error).splitlines()) == 1


# -- transactions -----------------------------------------------------------------------------------------------------

OK: dict[str, Any] = {"status": "200 OK"}
ODD_TRANSACTIONS: dict[str, Any] = {
    "no entries": {"resourceType": "Bundle", "type": "transaction-response"},
    "too few": transaction_response(OK),
    "too many": transaction_response(OK, OK, OK),
    "no status": transaction_response(OK, {}),
    "status OK": transaction_response(OK, {"status": "OK"}),
    "status null": transaction_response(OK, {"status": None}),
    "status true": transaction_response(OK, {"status": True}),
    "status a list": transaction_response(OK, {"status": ["200"]}),
    "status of four figures": transaction_response(OK, {"status": "2000"}),
    "status 100": transaction_response(OK, {"status": "100"}),
    "response is null": {"resourceType": "Bundle", "type": "transaction-response", "entry": [{"response": None}] * 2},
    "an entry that is a list": {"resourceType": "Bundle", "type": "transaction-response", "entry": [[], []]},
    "one resource twice": transaction_response(OK | {"location": "Patient/a"}, OK | {"location": "Patient/a"}),
    "an outcome with an error": transaction_response(OK, OK | {"outcome": outcome("exception", "not stored")}),
    "the answer to a batch": {"resourceType": "Bundle", "type": "batch-response", "entry": [{"response": OK}] * 2},
    "the transaction itself": {"resourceType": "Bundle", "type": "transaction", "entry": []},
}


@pytest.mark.parametrize("answer", ODD_TRANSACTIONS.values(), ids=ODD_TRANSACTIONS)
def test_a_transaction_whose_answer_cannot_be_read_is_not_stored(answer: Any) -> None:
    with run_proxy(rule=lambda _: json_reply(answer)) as server:
        assert type(fail(server.url, transaction)) is InvalidAnswerError


@pytest.mark.parametrize("status", ["201", "201 Created", 201, "HTTP/1.1 201 Created", "HTTP/2 201", " 201"])
def test_the_status_of_an_entry_is_understood_in_several_forms(status: Any) -> None:
    with run_proxy(rule=lambda _: json_reply(transaction_response(OK, {"status": status}))) as server:
        assert run(server.url, transaction) == [WriteResult(200, "a", "", ""), WriteResult(201, "b", "", "")]


@pytest.mark.parametrize(
    ("status", "expected"),
    [("400 Bad", RejectedError), (409, ConflictError), ("412", ConflictError), ("401", AccessDeniedError)],
)
def test_a_failure_inside_a_success_is_that_of_the_whole(status: Any, expected: type[FhirError]) -> None:
    answer = transaction_response(OK, {"status": status, "outcome": outcome("invalid", "HAPI-1821: no such code")})
    with run_proxy(rule=lambda _: json_reply(answer)) as server:
        error = fail(server.url, transaction, retry_seconds=0)
    assert type(error) is expected
    assert "HAPI-1821: no such code" in str(error)
    assert error.may_have_arrived


# -- every node of a valid answer, replaced ---------------------------------------------------------------------------

ODD: list[Any] = [None, True, 0, -1.5, "", "x", [], {}, [None], [[]], {"a": 1}, "é\u2028"]


def replaced(node: Any) -> Iterator[Any]:
    """Every version of a JSON value in which one node is something else, or missing."""
    yield from ODD
    if isinstance(node, dict):
        for name in node:
            yield {other: value for other, value in node.items() if other != name}
            for value in replaced(node[name]):
                yield node | {name: value}
    elif isinstance(node, list):
        for index, item in enumerate(node):
            yield node[:index] + node[index + 1 :]
            for value in replaced(item):
                yield [*node[:index], value, *node[index + 1 :]]


ISSUE = {"severity": "error", "code": "invalid", "details": {"text": "t"}, "diagnostics": "d"}
FULL_ENTRY = {
    "fullUrl": "http://h/Patient/a",
    "resource": patient(),
    "search": {"mode": "match"},
    "request": {"method": "PUT", "url": "Patient/a"},
    "response": {
        "status": "200 OK",
        "location": "Patient/a/_history/1",
        "etag": 'W/"1"',
        "outcome": outcome("x", "y", "warning"),
    },
}


def full_bundle(kind: str) -> dict[str, Any]:
    return {"resourceType": "Bundle", "type": kind, "total": 1, "entry": [FULL_ENTRY], **following("http://h/fhir?x=1")}


READERS: dict[str, tuple[Any, Any]] = {
    "search": (full_bundle("searchset"), lambda received: read_search_page(received, "Patient")),
    "history": (full_bundle("history"), lambda received: read_history(received, "Patient", "a")),
    "transaction": (
        full_bundle("transaction-response"),
        lambda received: read_transaction_results(received, [write("a")]),
    ),
    "conditional transaction": (
        full_bundle("transaction-response"),
        lambda received: read_transaction_results(received, [conditional("x")]),
    ),
    "read": (patient(), lambda received: read_resource(received, "Patient", "a")),
    "put": (patient(), lambda received: read_put_result(received, write("a"))),
    "outcome": (
        {"resourceType": "OperationOutcome", "issue": [ISSUE]},
        lambda received: read_put_result(received, write("a")),
    ),
    "metadata": (STATEMENT, lambda received: Capabilities(read_capability_statement(received)).find_problem("R4")),
}


@pytest.mark.parametrize(("valid", "reader"), READERS.values(), ids=READERS)
@pytest.mark.parametrize("status", [200, 400])
def test_no_shape_of_json_at_any_place_is_anything_but_a_result_or_an_error(
    valid: Any, reader: Any, status: int
) -> None:
    before = copy.deepcopy(valid)
    tried = 0
    for content in replaced(valid):
        body = orjson.dumps(content)
        tried += 1
        with contextlib.suppress(FhirError):
            reader(ReceivedAnswer(Answer(status, body)))
    assert tried > 50
    assert valid == before
