"""The client: the requests that it sends, retries and limits, and when it stops."""

import asyncio
import gzip
import time
from collections.abc import Callable
from typing import Any, ClassVar
from urllib.parse import parse_qsl

import orjson
import pytest

from dicom_etl.fhir_client import (
    AccessDeniedError,
    Authentication,
    BusyError,
    ConflictError,
    FhirClient,
    FhirError,
    InvalidAnswerError,
    RejectedError,
    ServerFailureError,
    ServerResource,
    TimedOutError,
    UnreachableError,
    WriteRequest,
    WriteResult,
)
from dicom_etl.fhir_client.auth import Send
from tests.support.fhir_answers import (
    conditional_request,
    get_error,
    json_reply,
    no_pause,
    operation_outcome,
    patient,
    reply_in_turn,
    run,
    run_raw_server,
    searchset,
    transaction_response,
    write_request,
)
from tests.support.proxy import ReceivedRequest, Reply, run_proxy


async def read(client: FhirClient) -> Any:
    return await client.read("Patient", "a")


async def put(client: FhirClient) -> Any:
    return await client.put(write_request())


ETAGS = ['W/"3-gzip"', 'W/"a6f1"', '"strong"', 'W/"0-1;2"', "bare", 'W/"é"', 'W/""']


class TestRequests:
    def test_a_read_is_not_answered_from_a_cache(self) -> None:
        with run_proxy(rule=lambda _: json_reply(patient(), ETag='W/"1"')) as server:
            assert run(server.url, read) == ServerResource(patient(), 'W/"1"')
            [request] = server.requests
        assert (request.method, request.path) == ("GET", "Patient/a")
        assert (request.headers["Cache-Control"], request.headers["Prefer"]) == ("no-cache", "handling=strict")
        assert request.headers["Accept-Encoding"] == "gzip, deflate"

    def test_a_put_does_not_change_the_body(self) -> None:
        with run_proxy(rule=lambda _: Reply(201)) as server:
            run(server.url, put)
            [request] = server.requests
        assert (request.method, request.path, request.body) == ("PUT", "Patient/a", write_request().body)
        assert request.headers["Content-Type"] == "application/fhir+json"
        assert request.headers["Prefer"] == "return=minimal"
        assert "If-Match" not in request.headers

    @pytest.mark.parametrize("etag", ETAGS)
    def test_an_etag_is_sent_back_unchanged(self, etag: str) -> None:
        """Its bytes, not the version in it: a proxy that compresses changes the ETag and expects the changed one."""

        def rule(request: ReceivedRequest) -> Reply:
            return json_reply(patient(version="3"), ETag=etag) if request.method == "GET" else Reply(200)

        async def change(client: FhirClient) -> ServerResource:
            resource = await client.read("Patient", "a")
            assert resource is not None
            await client.put(write_request(if_match=resource.if_match))
            await client.transaction([write_request(if_match=resource.if_match)])
            return resource

        with run_proxy(rule=rule) as server:
            get_error(server.url, change)  # an empty answer to the transaction
            put_request, post_request = server.requests[1:3]
        assert put_request.headers["If-Match"] == etag
        assert orjson.loads(post_request.body)["entry"][0]["request"]["ifMatch"] == etag

    @pytest.mark.parametrize(
        ("resource", "etag", "if_match"),
        [
            (patient(version="7"), "", 'W/"7"'),
            (patient(version="0c1d-e"), "", 'W/"0c1d-e"'),
            (patient(version="7"), '"8"', '"8"'),
            (patient(version=None), "", ""),
            (patient(version='7"'), "", ""),
            ({"resourceType": "Patient", "meta": None}, "", ""),
        ],
    )
    def test_without_an_etag_if_match_is_made_of_the_version(self, resource: Any, etag: str, if_match: str) -> None:
        assert ServerResource(resource, etag).if_match == if_match

    @pytest.mark.parametrize(
        "headers",
        [[("ETag", 'W/"1"'), ("ETag", 'W/"2"')], [("ETag", 'W/"\udcff"')]],
        ids=["two that differ", "not text"],
    )
    def test_an_etag_that_cannot_be_sent_back_is_ignored(self, headers: Any) -> None:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers).encode(errors="surrogateescape")
        body = orjson.dumps(patient(version="5"))

        def answer(send: Callable[[bytes], object]) -> None:
            send(b"HTTP/1.1 200 OK\r\n" + lines + b"Content-Length: %d\r\n\r\n" % len(body) + body)

        with run_raw_server(answer) as url:
            resource = run(url, read)
        assert (resource.etag, resource.if_match) == ("", 'W/"5"')

    @pytest.mark.parametrize(("if_match", "condition"), [("a\r\nX: y", ""), ("", "identifier=x\n"), ("\udcff", "")])
    def test_control_characters_in_headers_and_paths_are_refused(self, if_match: str, condition: str) -> None:
        with pytest.raises(ValueError, match="control character"):
            WriteRequest("Patient", "" if condition else "a", b"{}", if_match, condition)

    def test_a_write_has_an_id_or_a_condition(self) -> None:
        for identity, condition in (("", ""), ("a", "identifier=x")):
            with pytest.raises(ValueError, match="either an id or a condition"):
                WriteRequest("Patient", identity, b"{}", condition=condition)

    def test_a_transaction_is_one_post_with_a_put_per_resource(self) -> None:
        answer = transaction_response({"status": "201"}, {"status": "200", "location": "Patient/77/_history/2"})
        with run_proxy(rule=lambda _: json_reply(answer)) as server:
            requests = [write_request(if_match='W/"3-gzip"'), conditional_request("urn%3Ax%7C1")]
            assert run(server.url, lambda client: client.transaction(requests)) == [
                WriteResult(201, "a", "", ""),
                WriteResult(200, "77", "2", ""),
            ]
            [request] = server.requests
        assert (request.method, request.path) == ("POST", "")
        bundle = orjson.loads(request.body)
        assert (bundle["resourceType"], bundle["type"]) == ("Bundle", "transaction")
        assert [entry["request"] for entry in bundle["entry"]] == [
            {"method": "PUT", "url": "Patient/a", "ifMatch": 'W/"3-gzip"'},
            {"method": "PUT", "url": "Patient?identifier=urn%3Ax%7C1"},
        ]
        assert bundle["entry"][0]["resource"] == {"resourceType": "Patient", "id": "a"}

    def test_an_empty_transaction_is_not_sent(self) -> None:
        assert run("http://127.0.0.1:1/fhir", lambda client: client.transaction([])) == []

    def test_a_resource_may_not_occur_twice_in_a_transaction(self) -> None:
        with pytest.raises(ValueError, match="twice"):
            run("http://127.0.0.1:1/fhir", lambda client: client.transaction([write_request(), write_request()]))

    def test_parameters_in_the_body_are_not_in_url_or_message(self) -> None:
        def refuse(request: ReceivedRequest) -> Reply:
            return json_reply(
                operation_outcome("invalid", f"HAPI-0539: Invalid value {request.body.decode()} of Patient"), 400
            )

        parameters = {"identifier": "urn:oid:1.2.3|Ossian-Ä 東&+%", "_count": "50"}
        with run_proxy(rule=refuse) as server:
            error = get_error(server.url, lambda client: client.search("Patient", parameters, in_body=True))
            [request] = server.requests
        assert (request.method, request.path) == ("POST", "Patient/_search")
        assert request.headers["Content-Type"] == "application/x-www-form-urlencoded; charset=utf-8"
        assert request.headers["Cache-Control"] == "no-cache"
        assert parse_qsl(request.body.decode()) == list(parameters.items())
        assert "Ossian" not in str(error)
        assert "HAPI-0539" in str(error)

    def test_parameters_in_the_url_are_percent_encoded(self) -> None:
        with run_proxy(rule=lambda _: json_reply(searchset())) as server:
            run(server.url, lambda client: client.search("Patient", {"identifier": "urn:x|A+B, &#é"}))
            [request] = server.requests
        assert request.path == "Patient?identifier=urn%3Ax%7CA%2BB%2C%20%26%23%C3%A9"

    def test_an_id_is_encoded_as_one_segment(self) -> None:
        with run_proxy(rule=lambda _: Reply(404)) as server:
            assert run(server.url, lambda client: client.read("Patient", "../x?y")) is None
            assert server.requests[0].path == "Patient/..%2Fx%3Fy"


LARGE = WriteRequest("Patient", "a", orjson.dumps({"resourceType": "Patient", "id": "a", "x": "y" * 5_000}))


def get_encodings(rule: Any, requests: int = 2) -> list[str | None]:
    async def write_several(client: FhirClient) -> None:
        for _ in range(requests):
            await client.put(LARGE)

    with run_proxy(rule=rule) as server:
        run(server.url, write_several)
        assert all(request.body == LARGE.body for request in server.requests)  # aiohttp's server has inflated it
        return [request.headers.get("Content-Encoding") for request in server.requests]


def unless_gzip(status: int, content: Any) -> Callable[[ReceivedRequest], Reply]:
    return lambda request: json_reply(content, status) if "Content-Encoding" in request.headers else Reply(200)


class TestCompression:
    def test_large_bodies_are_compressed(self) -> None:
        assert get_encodings(lambda _: Reply(200)) == ["gzip", "gzip"]
        assert len(gzip.compress(LARGE.body)) < 500

    @pytest.mark.parametrize(
        ("status", "text"),
        [
            (415, "whatever"),
            (400, "Failed to parse request body as JSON: unexpected character 0x1f"),
            (400, "Content-Encoding gzip is not supported"),
        ],
    )
    def test_a_server_that_does_not_inflate_gets_plain_bodies(self, status: int, text: str) -> None:
        assert get_encodings(unless_gzip(status, operation_outcome("structure", text))) == ["gzip", None, None]

    def test_the_form_of_a_search_is_never_compressed(self) -> None:
        """Tomcat, on which HAPI runs, does not inflate it: the search would have no parameters and find everything."""
        with run_proxy(rule=lambda _: json_reply(searchset())) as server:
            identifiers = ",".join(f"urn:x|{number}" for number in range(500))
            run(server.url, lambda client: client.search("Patient", {"identifier": identifiers}, in_body=True))
            assert "Content-Encoding" not in server.requests[0].headers
            assert dict(parse_qsl(server.requests[0].body.decode())) == {"identifier": identifiers}

    def test_a_client_without_a_url_sends_nothing(self) -> None:
        error = get_error("", read, retry_seconds=0)
        assert (type(error), error.may_have_arrived) == (UnreachableError, False)

    def test_an_invalid_resource_does_not_end_the_compression(self) -> None:
        answer = json_reply(operation_outcome("structure", "Failed to parse element gender"), 400)
        with run_proxy(rule=reply_in_turn(answer, answer, Reply(200), answer)) as server:

            async def three(client: FhirClient) -> None:
                for succeeds in (False, True, False):
                    if succeeds:
                        await client.put(LARGE)
                    else:
                        with pytest.raises(RejectedError):
                            await client.put(LARGE)

            run(server.url, three)
            sent = [request.headers.get("Content-Encoding") for request in server.requests]
        assert sent == ["gzip", None, "gzip", "gzip"]  # once gzip was accepted, a 400 is about the resource

    def test_other_refusals_are_not_repeated_uncompressed(self) -> None:
        with run_proxy(rule=unless_gzip(422, operation_outcome("invalid", "cannot parse"))) as server:
            assert type(get_error(server.url, lambda client: client.put(LARGE))) is RejectedError
            assert len(server.requests) == 1


class TestRetries:
    @pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
    def test_transient_errors_are_retried_and_attempts_counted(self, status: int) -> None:
        with run_proxy(rule=reply_in_turn(Reply(status), Reply(status), json_reply(patient(), ETag='W/"1"'))) as server:
            assert run(server.url, put) == WriteResult(200, "a", "1", 'W/"1"', attempts=3)
            assert len(server.requests) == 3

    @pytest.mark.parametrize("status", [400, 404, 405, 412, 413, 422, 501])
    def test_permanent_errors_are_not_retried(self, status: int) -> None:
        with run_proxy(rule=lambda _: Reply(status)) as server:
            assert get_error(server.url, put).attempts == 1
            assert len(server.requests) == 1

    @pytest.mark.parametrize(
        ("request_", "options", "attempts"),
        [
            (write_request(), {}, 2),
            (write_request(if_match='W/"1"'), {}, 1),
            (write_request(if_match='W/"1"'), {"retry_conflicts": True}, 2),
            (write_request(), {"retry_conflicts": False}, 1),
        ],
    )
    @pytest.mark.parametrize("in_transaction", [False, True])
    def test_a_conflict_is_retried_only_without_if_match(
        self, request_: WriteRequest, options: Any, attempts: int, in_transaction: bool
    ) -> None:
        stored = json_reply(transaction_response({"status": "200"})) if in_transaction else Reply(200)

        async def call(client: FhirClient) -> Any:
            if in_transaction:
                return await client.transaction([request_], **options)
            return await client.put(request_, **options)

        with run_proxy(rule=reply_in_turn(Reply(409), stored)) as server:
            if attempts == 2:
                run(server.url, call)
            else:
                assert type(get_error(server.url, call)) is ConflictError
            assert len(server.requests) == attempts

    def test_a_condition_with_several_matches_is_not_retried(self) -> None:
        with run_proxy(rule=lambda _: Reply(412)) as server:
            error = get_error(server.url, lambda client: client.put(conditional_request("x")))
            assert (type(error), len(server.requests)) == (ConflictError, 1)

    def test_an_invalid_answer_is_retried(self) -> None:
        with run_proxy(
            rule=reply_in_turn(Reply(200, b'{"resourceTy'), json_reply({"message": "timeout"}), json_reply(patient()))
        ) as server:
            assert run(server.url, read).id == "a"

    def test_an_error_covers_all_attempts(self) -> None:
        """The first attempt may have been executed, although the last one was refused."""
        with run_proxy(rule=reply_in_turn(Reply(504), Reply(422))) as server:
            error = get_error(server.url, put)
        assert type(error) is RejectedError
        assert (error.attempts, error.may_have_arrived) == (2, True)

    def test_an_error_tells_whether_the_request_may_have_arrived(self) -> None:
        error = get_error("http://127.0.0.1:1/fhir", put, retry_seconds=0)
        assert type(error) is UnreachableError
        assert (error.status, error.attempts, error.may_have_arrived) == (None, 1, False)
        for status, expected in ((429, False), (503, True), (500, True), (400, False), (409, False)):
            with run_proxy(rule=lambda _, status=status: Reply(status)) as server:  # type: ignore[misc]
                assert get_error(server.url, put, retry_seconds=0).may_have_arrived is expected

    def test_a_request_may_have_arrived_if_the_connection_is_lost(self) -> None:
        def cut(request: ReceivedRequest) -> Reply:
            return Reply(cut=True)

        with run_proxy(rule=lambda _: Reply(200)) as behind, run_proxy(behind.url, cut) as server:
            error = get_error(server.url, put, retry_seconds=0)
        assert type(error) is UnreachableError
        assert error.may_have_arrived
        assert "was lost" in str(error)

    def test_an_error_has_the_retry_after_of_a_busy_server(self) -> None:
        with run_proxy(
            rule=lambda _: Reply(429, orjson.dumps(operation_outcome("throttled", "slow down")), {"Retry-After": "7"})
        ) as server:
            error = get_error(server.url, read, retry_seconds=0)
        assert isinstance(error, BusyError)
        assert (error.status, error.reason, error.retry_after) == (429, "throttled: slow down", 7.0)
        assert str(error) == "HTTP 429: throttled: slow down; the server is busy: run again later"

    def test_a_redirect_is_not_followed(self) -> None:
        with run_proxy(rule=lambda _: Reply(302, headers={"Location": "http://127.0.0.1:1/"})) as server:
            error = get_error(server.url, read)
        assert type(error) is RejectedError
        assert str(error) == "HTTP 302: Found; set fhir.url to the address that the server redirects to"

    def test_the_error_of_a_server_that_assigns_ids_says_what_to_set(self) -> None:
        text = (
            "HAPI-0959: No resource exists on this server resource with ID[a], and client-assigned IDs are not enabled."
        )
        with run_proxy(rule=lambda _: json_reply(operation_outcome("processing", text), 400)) as server:
            assert 'set fhir.client_assigned_ids = "no"' in str(get_error(server.url, put))

    def test_the_time_limit_is_that_of_one_attempt(self) -> None:
        def slow(_: ReceivedRequest) -> Reply:
            time.sleep(0.4)
            return json_reply(patient())

        async def three(client: FhirClient) -> list[Any]:
            return [await read(client) for _ in range(3)]

        with run_proxy(rule=slow) as server:
            assert len(run(server.url, three, timeout_seconds=0.9)) == 3
            error = get_error(server.url, read, timeout_seconds=0.1, retry_seconds=0)
        assert type(error) is TimedOutError
        assert error.may_have_arrived


class TestConcurrency:
    def test_concurrent_requests_are_limited(self) -> None:
        class Counter(Authentication):
            """Counts the requests that have been admitted and not sent."""

            running = 0
            counts: ClassVar[list[int]] = []

            async def headers(self, send: Send) -> dict[str, str]:
                self.running += 1
                self.counts.append(self.running)
                await asyncio.sleep(0.001)
                self.running -= 1
                return {}

        async def many(client: FhirClient) -> None:
            await asyncio.gather(*(read(client) for _ in range(20)))

        with run_proxy(rule=lambda _: json_reply(patient())) as server:
            run(server.url, many, authentication=Counter(), max_concurrent_requests=3)
        assert (max(Counter.counts), len(Counter.counts)) == (3, 20)

    def test_other_requests_are_sent_while_a_retry_pauses(self) -> None:
        order: list[str] = []

        def rule(request: ReceivedRequest) -> Reply:
            order.append(request.path)
            return (
                Reply(500) if order == ["Patient/slow"] else json_reply(patient(request.path.removeprefix("Patient/")))
            )

        paused, other_is_done = asyncio.Event(), asyncio.Event()

        async def wait(_: float) -> None:
            paused.set()
            await other_is_done.wait()

        async def both(client: FhirClient) -> None:
            slow = asyncio.create_task(client.read("Patient", "slow"))
            await paused.wait()
            await client.read("Patient", "other")
            other_is_done.set()
            await slow

        with run_proxy(rule=rule) as server:
            run(server.url, both, sleep=wait, max_concurrent_requests=1)
        assert order == ["Patient/slow", "Patient/other", "Patient/slow"]


def stop(rule: Any, *calls: Any, **client: Any) -> tuple[FhirClient, list[FhirError | None], list[str]]:
    """The client after these calls, the error of each call, and the requested paths."""
    errors: list[FhirError | None] = []

    async def whole(opened: FhirClient) -> FhirClient:
        for call in calls:
            try:
                await call(opened)
                errors.append(None)
            except FhirError as error:
                errors.append(error)
        return opened

    with run_proxy(rule=rule) as server:
        opened = run(server.url, whole, **({"retry_seconds": 0} | client))
        return opened, errors, [request.path for request in server.requests]


class TestStopping:
    @pytest.mark.parametrize("status", [401, 403])
    def test_refused_credentials_stop_the_client(self, status: int) -> None:
        client, errors, paths = stop(lambda _: Reply(status), put, read, put)
        assert paths == ["Patient/a"]
        assert [type(error) for error in errors] == [AccessDeniedError, UnreachableError, UnreachableError]
        assert client.stop_reason == str(errors[0]) == str(errors[1])
        assert not client.is_unreachable
        assert errors[1] is not None
        assert (errors[1].attempts, errors[1].may_have_arrived) == (0, False)

    def test_a_server_that_stops_answering_is_probed_once(self) -> None:
        client, errors, paths = stop(lambda _: Reply(503), put, put, read)
        assert paths == ["Patient/a", "metadata"]
        assert [type(error) for error in errors] == [BusyError, UnreachableError, UnreachableError]
        assert client.is_unreachable

    @pytest.mark.parametrize("answer", [Reply(200, b"{}"), Reply(200, b"<html>"), Reply(404), Reply(400)])
    def test_any_answer_to_the_probe_keeps_the_client_running(self, answer: Reply) -> None:
        client, _, paths = stop(lambda request: answer if request.path == "metadata" else Reply(500), read, read)
        assert paths == ["Patient/a", "metadata"] * 2
        assert client.stop_reason is None

    def test_two_rounds_of_failed_writes_stop_the_client(self) -> None:
        def read_only(request: ReceivedRequest) -> Reply:
            return Reply(200) if request.path == "metadata" else Reply(504)

        client, errors, paths = stop(read_only, *[put] * 6, max_concurrent_requests=2)
        assert paths.count("Patient/a") == 4
        assert [type(error) for error in errors] == [*[ServerFailureError] * 4, *[UnreachableError] * 2]
        assert client.stop_reason is not None
        assert client.stop_reason.startswith(
            "the server accepts no requests; retries exhausted (HTTP 504: Gateway Timeout"
        )

    @pytest.mark.parametrize("between", [Reply(200), Reply(422), Reply(409)])
    def test_an_accepted_or_refused_write_resets_the_count(self, between: Reply) -> None:
        replies = [Reply(504)] * 3 + [between] + [Reply(504)] * 3

        def rule(request: ReceivedRequest) -> Reply:
            return Reply(200) if request.path == "metadata" else replies.pop(0)

        client, _, _ = stop(rule, *[put] * 7, max_concurrent_requests=2)
        assert client.stop_reason is None

    def test_failed_reads_are_not_counted(self) -> None:
        def rule(request: ReceivedRequest) -> Reply:
            return Reply(200) if request.path == "metadata" else Reply(504)

        client, _, paths = stop(rule, *[read] * 10, max_concurrent_requests=1)
        assert client.stop_reason is None
        assert paths.count("Patient/a") == 10

    def test_a_waiting_request_is_not_sent_after_the_stop(self) -> None:
        async def many(client: FhirClient) -> list[Any]:
            return await asyncio.gather(*(put(client) for _ in range(5)), return_exceptions=True)

        with run_proxy(rule=lambda _: Reply(401)) as server:
            errors = run(server.url, many, max_concurrent_requests=1)
            assert len(server.requests) == 1
        assert [type(error) for error in errors] == [AccessDeniedError] + [UnreachableError] * 4

    def test_a_retry_is_not_sent_after_the_stop(self) -> None:
        def rule(request: ReceivedRequest) -> Reply:
            return Reply(401) if request.path == "Patient/b" else Reply(504)

        clients: list[FhirClient] = []

        async def stop_meanwhile(_: float) -> None:
            with pytest.raises(AccessDeniedError):
                await clients[0].read("Patient", "b")

        async def both(client: FhirClient) -> FhirError:
            clients.append(client)
            with pytest.raises(UnreachableError) as caught:
                await put(client)
            return caught.value

        with run_proxy(rule=rule) as server:
            error = run(server.url, both, sleep=stop_meanwhile)
            assert len(server.requests) == 2
        assert (error.attempts, error.may_have_arrived) == (1, True)


class TestFhirpyMethods:
    def test_the_methods_of_fhirpy_are_retried_too(self) -> None:
        replies = reply_in_turn(
            Reply(503),
            json_reply(searchset(patient(name=[{"family": "Noether"}]))),
            json_reply(patient("n"), 201),
            Reply(204),
        )

        async def use(client: FhirClient) -> Any:
            matches = await client.resources("Patient").search(family="Noether").fetch()
            new = client.resource("Patient", gender="female")
            await new.save()
            await new.delete()
            return matches[0].name[0].family, new.id

        with run_proxy(rule=replies) as server:
            assert run(server.url, use) == ("Noether", "n")
            requests = [(request.method, request.path) for request in server.requests]
        assert requests == [
            ("GET", "Patient?family=Noether"),
            ("GET", "Patient?family=Noether"),
            ("POST", "Patient"),
            ("DELETE", "Patient/n"),
        ]

    @pytest.mark.parametrize(("status", "requests"), [(429, 2), (500, 1), (504, 1)])
    def test_a_create_is_retried_only_if_it_was_not_executed(self, status: int, requests: int) -> None:
        async def create(client: FhirClient) -> Any:
            return await client.execute("Patient", data={"resourceType": "Patient"})

        with run_proxy(rule=reply_in_turn(Reply(status), json_reply(patient(), 201))) as server:
            if requests == 2:
                run(server.url, create)
            else:
                get_error(server.url, create)
            assert len([request for request in server.requests if request.path == "Patient"]) == requests

    @pytest.mark.parametrize(
        "content",
        [
            operation_outcome("exception", "no index"),
            {"message": "timeout"},
            {},
            searchset(operation_outcome("exception", "no index")),
            searchset() | {"entry": None},
            searchset() | {"entry": [{}]},
        ],
    )
    def test_an_invalid_answer_is_an_error_for_fhirpy_too(self, content: Any) -> None:
        with run_proxy(rule=lambda _: json_reply(content)) as server:
            error = get_error(server.url, lambda client: client.resources("Patient").search(family="x").fetch_raw())
        assert type(error) is InvalidAnswerError

    def test_a_client_that_is_not_open_is_an_error(self) -> None:
        with pytest.raises(RuntimeError, match="async with"):
            asyncio.run(FhirClient("http://127.0.0.1:1/fhir", sleep=no_pause).read("Patient", "a"))
