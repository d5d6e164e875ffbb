"""Validation of answers: which are accepted, and which error each other one is.

There are tables of status and body; at the end, every node of valid answers is replaced by other JSON.
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
    bundles,
)
from dicom_etl.fhir_client.answers import ReceivedAnswer, read_capability_statement, read_put_result, read_resource
from dicom_etl.fhir_client.bundles import read_search_page, read_transaction_results
from dicom_etl.fhir_client.capabilities import Capabilities
from dicom_etl.fhir_client.transport import Answer
from tests.support.fhir_answers import (
    STATEMENT,
    conditional_request,
    get_error,
    json_reply,
    next_link,
    no_pause,
    operation_outcome,
    patient,
    run,
    searchset,
    transaction_response,
    write_request,
)
from tests.support.proxy import Reply, run_proxy

HTML = Reply(200, b"<html><h1>Log in</h1></html>")


async def search(client: FhirClient) -> Any:
    return await client.search("Patient", {"family": "Noether"})


async def read(client: FhirClient) -> Any:
    return await client.read("Patient", "a")


async def read_version(client: FhirClient) -> Any:
    return await client.read_version("Patient", "a", "7")


async def read_history(client: FhirClient) -> Any:
    return await client.read_history("Patient", "a")


async def put(client: FhirClient) -> Any:
    return await client.put(write_request())


async def put_conditionally(client: FhirClient) -> Any:
    return await client.put(conditional_request("x"))


async def transaction(client: FhirClient) -> Any:
    return await client.transaction([write_request("a"), write_request("b")])


async def delete(client: FhirClient) -> Any:
    return await client.delete("Patient", "a")


async def capabilities(client: FhirClient) -> Any:
    return await client.capabilities()


CALLS = (search, read, read_version, read_history, put, transaction, delete, capabilities)
CALLS_THAT_NEED_A_BODY = (search, read, read_version, read_history, transaction, capabilities)


NOT_FHIR: dict[str, Reply] = {
    "an OperationOutcome with an error": json_reply(operation_outcome("exception", "search index is being rebuilt")),
    "a fatal OperationOutcome": json_reply(operation_outcome("exception", "search index is being rebuilt", "fatal")),
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


class TestSuccessStatus:
    @pytest.mark.parametrize("reply", NOT_FHIR.values(), ids=NOT_FHIR)
    @pytest.mark.parametrize("call", CALLS)
    def test_an_invalid_body_is_an_error_after_three_attempts(self, call: Any, reply: Reply) -> None:
        with run_proxy(rule=lambda _: reply) as server:
            error = get_error(server.url, call)
            requests = [request for request in server.requests if request.path != "metadata" or call is capabilities]
        assert type(error) is InvalidAnswerError
        assert (error.status, error.attempts, len(requests), error.may_have_arrived) == (200, 3, 3, True)
        assert str(error).startswith("HTTP 200: the answer ")
        assert len(str(error).splitlines()) == 1
        assert error.__cause__ is error.__context__ is None
        if b"index is being rebuilt" in reply.body:
            # no identifying value, so that the text remains
            assert "search index is being rebuilt" in str(error)

    @pytest.mark.parametrize("status", [200, 201, 202, 204, 206])
    @pytest.mark.parametrize("call", CALLS_THAT_NEED_A_BODY)
    def test_an_empty_body_is_invalid_if_one_is_required(self, call: Any, status: int) -> None:
        with run_proxy(rule=lambda _: Reply(status)) as server:
            assert type(get_error(server.url, call)) is InvalidAnswerError

    @pytest.mark.parametrize(
        "reply", [Reply(202), Reply(204), Reply(206), Reply(299)], ids=lambda reply: str(reply.status)
    )
    def test_only_200_and_201_confirm_a_put(self, reply: Reply) -> None:
        with run_proxy(rule=lambda _: reply) as server:
            assert type(get_error(server.url, put)) is InvalidAnswerError


def bundle(**more: Any) -> Reply:
    return json_reply({"resourceType": "Bundle", "type": "searchset"} | more)


INVALID_SEARCHSETS: dict[str, Reply] = {
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
    "an entry with an error": bundle(entry=[{"resource": operation_outcome("exception", "shard 2 failed")}]),
    "an outcome with an error": bundle(
        entry=[{"resource": operation_outcome("exception", "shard 2 failed"), "search": {"mode": "outcome"}}]
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

VALID_SEARCHSETS: dict[str, tuple[Reply, list[str]]] = {
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
    "a warning": (
        bundle(entry=[{"resource": patient()}, {"resource": operation_outcome("x", "slow", "warning")}]),
        ["a"],
    ),
    "an outcome without issues": (
        bundle(entry=[{"resource": {"resourceType": "OperationOutcome"}, "search": {"mode": "outcome"}}]),
        [],
    ),
    "search is null": (bundle(entry=[{"resource": patient(), "search": None}]), ["a"]),
    "other links": (bundle(link=[{"relation": "self"}, {"relation": None, "url": 5}, {}]), []),
}


class TestSearches:
    @pytest.mark.parametrize("reply", INVALID_SEARCHSETS.values(), ids=INVALID_SEARCHSETS)
    def test_an_invalid_searchset_is_never_an_empty_result(self, reply: Reply) -> None:
        with run_proxy(rule=lambda _: reply) as server:
            error = get_error(server.url, search)
        assert type(error) is InvalidAnswerError

    @pytest.mark.parametrize(("reply", "ids"), VALID_SEARCHSETS.values(), ids=VALID_SEARCHSETS)
    def test_optional_parts_of_a_searchset_are_accepted(self, reply: Reply, ids: list[str]) -> None:
        with run_proxy(rule=lambda _: reply) as server:
            assert [resource["id"] for resource in run(server.url, search)] == ids


class TestReads:
    @pytest.mark.parametrize("status", [404, 410])
    @pytest.mark.parametrize("body", [b"", orjson.dumps(operation_outcome("not-found", "HAPI-2001: not known"))])
    @pytest.mark.parametrize("call", [read, read_version, read_history])
    def test_a_fhir_server_confirms_that_a_resource_does_not_exist(self, call: Any, body: bytes, status: int) -> None:
        with run_proxy(rule=lambda _: Reply(status, body)) as server:
            assert run(server.url, call) is None
            assert len(server.requests) == 1

    @pytest.mark.parametrize("status", [404, 410])
    @pytest.mark.parametrize(
        "body",
        [b"<html>no such route</html>", b'{"error": "no such route"}', b"[]", b"null", b"default backend - 404"],
    )
    @pytest.mark.parametrize("call", [read, read_version, read_history, delete])
    def test_the_404_of_a_gateway_is_an_error(self, call: Any, body: bytes, status: int) -> None:
        with run_proxy(rule=lambda _: Reply(status, body)) as server:
            error = get_error(server.url, call)
        assert isinstance(error, NotFoundError)
        assert (error.is_deleted, error.is_confirmed) == (status == 410, False)

    @pytest.mark.parametrize(
        "resource",
        [
            patient("b"),
            patient(None),  # type: ignore[arg-type]
            {"resourceType": "Patient"},
            {"resourceType": "Patient", "id": ["a"]},
            operation_outcome("informational", "here it is", "information"),
        ],
    )
    @pytest.mark.parametrize("call", [read, read_version])
    def test_a_read_accepts_only_the_requested_resource(self, call: Any, resource: Any) -> None:
        with run_proxy(rule=lambda _: json_reply(resource)) as server:
            assert type(get_error(server.url, call)) is InvalidAnswerError

    def test_a_read_accepts_only_the_requested_version(self) -> None:
        with run_proxy(rule=lambda _: json_reply(patient(version="8"))) as server:
            assert type(get_error(server.url, read_version)) is InvalidAnswerError
            server.rule = lambda _: json_reply(patient(version="7"))
            assert run(server.url, read_version) == ServerResource(patient(version="7"))
            server.rule = lambda _: json_reply(patient(version=None))
            assert run(server.url, read_version) == ServerResource(patient(version=None))


def versions(*entries: Any) -> Reply:
    return json_reply({"resourceType": "Bundle", "type": "history", "entry": list(entries)})


class TestHistories:
    @pytest.mark.parametrize(
        "reply",
        [
            versions(None),
            versions([]),
            versions({"resource": []}),
            versions({"resource": {"id": "a"}}),
            versions({"resource": patient("b")}),
            versions({"resource": {"resourceType": "Basic", "id": "a"}}),
            versions({"resource": operation_outcome("exception", "no index")}),
            json_reply({"resourceType": "Bundle", "type": "history", "entry": None}),
            json_reply({"resourceType": "Bundle", "type": "searchset"}),
        ],
    )
    def test_an_invalid_history_is_an_error(self, reply: Reply) -> None:
        with run_proxy(rule=lambda _: reply) as server:
            assert type(get_error(server.url, read_history)) is InvalidAnswerError

    def test_a_history_has_the_newest_first_and_none_for_deletions(self) -> None:
        entries = (
            {"request": {"method": "DELETE", "url": "Patient/a"}, "response": {"status": "204"}},
            {"resource": patient(version="x-9"), "response": {"etag": 'W/"x-9"'}},
            {"resource": patient(version="x-5"), "request": {"method": "DELETE"}},
            {"resource": patient(version="x-4"), "request": None, "response": {"etag": "bare"}},
        )
        with run_proxy(rule=lambda _: versions(*entries)) as server:
            history = run(server.url, read_history)
            assert [request.path for request in server.requests] == [
                "Patient/a/_history?_count=10&_since=1900-01-01T00:00:00Z"
            ]
        assert [version and (version.version, version.etag) for version in history] == [
            None,
            ("x-9", 'W/"x-9"'),
            None,
            ("x-4", ""),
        ]

    @pytest.mark.parametrize(
        "reply", [Reply(405), Reply(501), json_reply(operation_outcome("not-supported", "no history"), 400)]
    )
    def test_a_server_without_histories_is_not_an_error(self, reply: Reply) -> None:
        with run_proxy(rule=lambda _: reply) as server:
            assert run(server.url, read_history) is None
            assert len(server.requests) == 1


PUTS: dict[str, tuple[Reply, WriteResult]] = {
    "nothing": (Reply(200), WriteResult(200, "a", "", "")),
    "blanks": (Reply(201, b" \r\n"), WriteResult(201, "a", "", "")),
    "the resource": (json_reply(patient(version="u-1"), 201), WriteResult(201, "a", "u-1", "")),
    "a warning": (
        json_reply(operation_outcome("informational", "stored", "information")),
        WriteResult(200, "a", "", ""),
    ),
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


class TestWrites:
    @pytest.mark.parametrize(("reply", "result"), PUTS.values(), ids=PUTS)
    def test_the_version_of_a_put_is_read_from_all_its_sources(self, reply: Reply, result: WriteResult) -> None:
        with run_proxy(rule=lambda _: reply) as server:
            assert run(server.url, put) == result

    @pytest.mark.parametrize(
        "content",
        [patient("b"), {"resourceType": "Patient"}, {"resourceType": "Basic", "id": "a"}, searchset(patient())],
    )
    def test_a_put_answered_with_another_resource_is_not_stored(self, content: Any) -> None:
        with run_proxy(rule=lambda _: json_reply(content)) as server:
            assert type(get_error(server.url, put)) is InvalidAnswerError

    @pytest.mark.parametrize(
        ("reply", "server_id"),
        [
            (Reply(201, headers={"Location": "https://h/fhir/Patient/77/_history/1"}), "77"),
            (json_reply(patient("78"), 201), "78"),
            (Reply(200), ""),
        ],
    )
    def test_a_conditional_put_has_the_id_of_the_server(self, reply: Reply, server_id: str) -> None:
        with run_proxy(rule=lambda _: reply) as server:
            assert run(server.url, put_conditionally).server_id == server_id
            assert server.requests[0].path == "Patient?identifier=x"

    @pytest.mark.parametrize(
        ("reply", "existed"),
        [
            (Reply(200), True),
            (Reply(204), True),
            (Reply(202, b"<html>queued</html>"), True),
            (json_reply(operation_outcome("informational", "deleted", "information")), True),
            (Reply(404), False),
            (json_reply(operation_outcome("not-found", "was never there"), 404), False),
            (json_reply(operation_outcome("deleted", "is deleted"), 410), False),
        ],
    )
    def test_a_deletion_returns_whether_the_resource_existed(self, reply: Reply, existed: bool) -> None:
        with run_proxy(rule=lambda _: reply) as server:
            assert run(server.url, delete) is existed

    def test_a_deletion_of_a_referenced_resource_is_a_conflict(self) -> None:
        with run_proxy(rule=lambda _: Reply(409)) as server:
            assert type(get_error(server.url, delete)) is ConflictError
            assert len(server.requests) == 1


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


class TestFailures:
    @pytest.mark.parametrize(("status", "expected"), STATUSES.items())
    @pytest.mark.parametrize("call", [search, put, transaction])
    def test_the_class_of_an_error_follows_from_the_status(
        self, call: Any, status: int, expected: type[FhirError]
    ) -> None:
        bodies = [b"" if body is None else orjson.dumps(body) for body in ODD_BODIES.values()]
        bodies += [b"<html>", b"NaN", b"[" * 2_000, bytes(range(256))]
        if status == 304:
            bodies = [b""]  # has no body by definition

        async def errors(url: str) -> list[FhirError]:
            caught_errors = []
            for body in bodies:
                server.rule = lambda _, body=body: Reply(status, body)  # type: ignore[misc]
                async with FhirClient(url, retry_seconds=0, sleep=no_pause) as client:
                    with pytest.raises(FhirError) as caught:
                        await call(client)
                    caught_errors.append(caught.value)
            return caught_errors

        with run_proxy() as server:
            for error in asyncio.run(errors(server.url)):
                assert type(error) is expected
                assert error.status == status
                assert str(error).startswith(f"HTTP {status}: ")
                assert len(str(error).splitlines()) == 1


OK: dict[str, Any] = {"status": "200 OK"}
INVALID_TRANSACTIONS: dict[str, Any] = {
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
    "an outcome with an error": transaction_response(
        OK, OK | {"outcome": operation_outcome("exception", "not stored")}
    ),
    "the answer to a batch": {"resourceType": "Bundle", "type": "batch-response", "entry": [{"response": OK}] * 2},
    "the transaction itself": {"resourceType": "Bundle", "type": "transaction", "entry": []},
}


class TestTransactions:
    @pytest.mark.parametrize("answer", INVALID_TRANSACTIONS.values(), ids=INVALID_TRANSACTIONS)
    def test_a_transaction_with_an_invalid_answer_is_not_stored(self, answer: Any) -> None:
        with run_proxy(rule=lambda _: json_reply(answer)) as server:
            assert type(get_error(server.url, transaction)) is InvalidAnswerError

    @pytest.mark.parametrize("status", ["201", "201 Created", 201, "HTTP/1.1 201 Created", "HTTP/2 201", " 201"])
    def test_the_status_of_an_entry_may_have_several_forms(self, status: Any) -> None:
        with run_proxy(rule=lambda _: json_reply(transaction_response(OK, {"status": status}))) as server:
            assert run(server.url, transaction) == [WriteResult(200, "a", "", ""), WriteResult(201, "b", "", "")]

    @pytest.mark.parametrize(
        ("status", "expected"),
        [("400 Bad", RejectedError), (409, ConflictError), ("412", ConflictError), ("401", AccessDeniedError)],
    )
    def test_a_failed_entry_is_the_error_of_the_transaction(self, status: Any, expected: type[FhirError]) -> None:
        answer = transaction_response(
            OK, {"status": status, "outcome": operation_outcome("invalid", "HAPI-1821: no such code")}
        )
        with run_proxy(rule=lambda _: json_reply(answer)) as server:
            error = get_error(server.url, transaction, retry_seconds=0)
        assert type(error) is expected
        assert "HAPI-1821: no such code" in str(error)
        assert error.may_have_arrived


REPLACEMENTS: list[Any] = [None, True, 0, -1.5, "", "x", [], {}, [None], [[]], {"a": 1}, "é\u2028"]


def replace_nodes(node: Any) -> Iterator[Any]:
    """All variants of a JSON value in which a node is other JSON, or is missing."""
    yield from REPLACEMENTS
    if isinstance(node, dict):
        for name in node:
            yield {other: value for other, value in node.items() if other != name}
            for value in replace_nodes(node[name]):
                yield node | {name: value}
    elif isinstance(node, list):
        for index, item in enumerate(node):
            yield node[:index] + node[index + 1 :]
            for value in replace_nodes(item):
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
        "outcome": operation_outcome("x", "y", "warning"),
    },
}


def full_bundle(kind: str) -> dict[str, Any]:
    return {"resourceType": "Bundle", "type": kind, "total": 1, "entry": [FULL_ENTRY], **next_link("http://h/fhir?x=1")}


READERS: dict[str, tuple[Any, Any]] = {
    "search": (full_bundle("searchset"), lambda received: read_search_page(received, "Patient")),
    "history": (full_bundle("history"), lambda received: bundles.read_history(received, "Patient", "a")),
    "transaction": (
        full_bundle("transaction-response"),
        lambda received: read_transaction_results(received, [write_request("a")]),
    ),
    "conditional transaction": (
        full_bundle("transaction-response"),
        lambda received: read_transaction_results(received, [conditional_request("x")]),
    ),
    "read": (patient(), lambda received: read_resource(received, "Patient", "a")),
    "put": (patient(), lambda received: read_put_result(received, write_request("a"))),
    "outcome": (
        {"resourceType": "OperationOutcome", "issue": [ISSUE]},
        lambda received: read_put_result(received, write_request("a")),
    ),
    "metadata": (STATEMENT, lambda received: Capabilities(read_capability_statement(received)).find_problem("R4")),
}


class TestReplacedNodes:
    @pytest.mark.parametrize(("valid", "reader"), READERS.values(), ids=READERS)
    @pytest.mark.parametrize("status", [200, 400])
    def test_any_json_gives_a_result_or_a_fhir_error(self, valid: Any, reader: Any, status: int) -> None:
        before = copy.deepcopy(valid)
        count = 0
        for content in replace_nodes(valid):
            body = orjson.dumps(content)
            count += 1
            with contextlib.suppress(FhirError):
                reader(ReceivedAnswer(Answer(status, body)))
        assert count > 50
        assert valid == before
