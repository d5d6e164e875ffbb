"""The client: what it sends, and how its calls are retried, limited and stopped."""

import asyncio
import gzip
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

import orjson
import pytest

from dicom_etl.fhir_client import (
    AccessDeniedError,
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
from tests.support.fhir_answers import (
    conditional,
    fail,
    in_turn,
    json_reply,
    no_pause,
    outcome,
    patient,
    run,
    searchset,
    transaction_response,
    write,
)
from tests.support.proxy import ReceivedRequest, Reply, run_proxy


async def read(client: FhirClient) -> Any:
    return await client.read("Patient", "a")


async def put(client: FhirClient) -> Any:
    return await client.put(write())


# -- what is sent -----------------------------------------------------------------------------------------------------


def test_a_read_is_not_answered_from_a_cache() -> None:
    with run_proxy(rule=lambda _: json_reply(patient(), ETag='W/"1"')) as server:
        assert run(server.url, read) == ServerResource(patient(), 'W/"1"')
        [asked] = server.requests
    assert (asked.method, asked.path) == ("GET", "Patient/a")
    assert (asked.headers["Cache-Control"], asked.headers["Prefer"]) == ("no-cache", "handling=strict")
    assert asked.headers["Accept-Encoding"] == "gzip, deflate"


def test_a_put_sends_the_body_as_it_is() -> None:
    with run_proxy(rule=lambda _: Reply(201)) as server:
        run(server.url, put)
        [asked] = server.requests
    assert (asked.method, asked.path, asked.body) == ("PUT", "Patient/a", write().body)
    assert asked.headers["Content-Type"] == "application/fhir+json"
    assert asked.headers["Prefer"] == "return=minimal"
    assert "If-Match" not in asked.headers


ETAGS = ['W/"3-gzip"', 'W/"a6f1"', '"strong"', 'W/"0-1;2"', "bare", 'W/"é"', 'W/""']


@pytest.mark.parametrize("etag", ETAGS)
def test_an_etag_goes_back_exactly_as_it_came(etag: str) -> None:
    """Bytes, not a version that was read out of them: a proxy that compresses changes the ETag, and wants its own."""

    def rule(asked: ReceivedRequest) -> Reply:
        return json_reply(patient(version="3"), ETag=etag) if asked.method == "GET" else Reply(200)

    async def change(client: FhirClient) -> ServerResource:
        there = await client.read("Patient", "a")
        assert there is not None
        await client.put(write(if_match=there.if_match))
        await client.transaction([write(if_match=there.if_match)])
        return there

    with run_proxy(rule=rule) as server:
        fail(server.url, change)  # an empty answer to the transaction
        put, posted = server.requests[1:3]
    assert put.headers["If-Match"] == etag
    assert orjson.loads(posted.body)["entry"][0]["request"]["ifMatch"] == etag


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
def test_without_an_etag_the_version_is_made_one(resource: Any, etag: str, if_match: str) -> None:
    assert ServerResource(resource, etag).if_match == if_match


@pytest.mark.parametrize(
    "headers",
    [[("ETag", 'W/"1"'), ("ETag", 'W/"2"')], [("ETag", 'W/"\udcff"')]],
    ids=["two that differ", "not text"],
)
def test_an_etag_that_cannot_be_sent_back_is_none(headers: Any) -> None:
    from tests.support.fhir_answers import raw_server

    lines = "".join(f"{name}: {value}\r\n" for name, value in headers).encode(errors="surrogateescape")
    body = orjson.dumps(patient(version="5"))

    def answer(send: Callable[[bytes], object]) -> None:
        send(b"HTTP/1.1 200 OK\r\n" + lines + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    with raw_server(answer) as url:
        there = run(url, read)
    assert (there.etag, there.if_match) == ("", 'W/"5"')


@pytest.mark.parametrize(("if_match", "condition"), [("a\r\nX: y", ""), ("", "identifier=x\n"), ("\udcff", "")])
def test_no_header_and_no_address_holds_a_line_break(if_match: str, condition: str) -> None:
    with pytest.raises(ValueError, match="control character"):
        WriteRequest("Patient", "" if condition else "a", b"{}", if_match, condition)


def test_a_write_has_an_id_or_a_condition() -> None:
    for identity, condition in (("", ""), ("a", "identifier=x")):
        with pytest.raises(ValueError, match="either an id or a condition"):
            WriteRequest("Patient", identity, b"{}", condition=condition)


def test_a_transaction_is_one_post_with_a_put_for_each() -> None:
    answer = transaction_response({"status": "201"}, {"status": "200", "location": "Patient/77/_history/2"})
    with run_proxy(rule=lambda _: json_reply(answer)) as server:
        requests = [write(if_match='W/"3-gzip"'), conditional("urn%3Ax%7C1")]
        assert run(server.url, lambda client: client.transaction(requests)) == [
            WriteResult(201, "a", "", ""),
            WriteResult(200, "77", "2", ""),
        ]
        [asked] = server.requests
    assert (asked.method, asked.path) == ("POST", "")
    bundle = orjson.loads(asked.body)
    assert (bundle["resourceType"], bundle["type"]) == ("Bundle", "transaction")
    assert [entry["request"] for entry in bundle["entry"]] == [
        {"method": "PUT", "url": "Patient/a", "ifMatch": 'W/"3-gzip"'},
        {"method": "PUT", "url": "Patient?identifier=urn%3Ax%7C1"},
    ]
    assert bundle["entry"][0]["resource"] == {"resourceType": "Patient", "id": "a"}


def test_a_transaction_of_nothing_sends_nothing() -> None:
    assert run("http://127.0.0.1:1/fhir", lambda client: client.transaction([])) == []


def test_a_resource_that_occurs_twice_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="twice"):
        run("http://127.0.0.1:1/fhir", lambda client: client.transaction([write(), write()]))


def test_a_search_in_the_body_is_in_no_address_and_no_message() -> None:
    def refuse(asked: ReceivedRequest) -> Reply:
        return json_reply(outcome("invalid", f"HAPI-0539: Invalid value {asked.body.decode()} of Patient"), 400)

    parameters = {"identifier": "urn:oid:1.2.3|Ossian-Ä 東&+%", "_count": "50"}
    with run_proxy(rule=refuse) as server:
        error = fail(server.url, lambda client: client.search("Patient", parameters, in_body=True))
        [asked] = server.requests
    assert (asked.method, asked.path) == ("POST", "Patient/_search")
    assert asked.headers["Content-Type"] == "application/x-www-form-urlencoded; charset=utf-8"
    assert asked.headers["Cache-Control"] == "no-cache"
    assert parse_qsl(asked.body.decode()) == list(parameters.items())
    assert "Ossian" not in str(error)
    assert "HAPI-0539" in str(error)


def test_a_search_in_the_address_is_percent_encoded() -> None:
    with run_proxy(rule=lambda _: json_reply(searchset())) as server:
        run(server.url, lambda client: client.search("Patient", {"identifier": "urn:x|A+B, &#é"}))
        [asked] = server.requests
    assert asked.path == "Patient?identifier=urn%3Ax%7CA%2BB%2C%20%26%23%C3%A9"


def test_ids_are_encoded_so_that_they_stay_one_segment() -> None:
    with run_proxy(rule=lambda _: Reply(404)) as server:
        assert run(server.url, lambda client: client.read("Patient", "../x?y")) is None
        assert server.requests[0].path == "Patient/..%2Fx%3Fy"


# -- compression ------------------------------------------------------------------------------------------------------

LARGE = WriteRequest("Patient", "a", orjson.dumps({"resourceType": "Patient", "id": "a", "x": "y" * 5_000}))


def encodings(rule: Any, requests: int = 2) -> list[str | None]:
    async def write_several(client: FhirClient) -> None:
        for _ in range(requests):
            await client.put(LARGE)

    with run_proxy(rule=rule) as server:
        run(server.url, write_several)
        assert all(asked.body == LARGE.body for asked in server.requests)  # aiohttp's server has inflated it
        return [asked.headers.get("Content-Encoding") for asked in server.requests]


def unless_gzip(status: int, content: Any) -> Callable[[ReceivedRequest], Reply]:
    return lambda asked: json_reply(content, status) if "Content-Encoding" in asked.headers else Reply(200)


def test_large_bodies_are_compressed() -> None:
    assert encodings(lambda _: Reply(200)) == ["gzip", "gzip"]
    assert len(gzip.compress(LARGE.body)) < 500


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (415, "whatever"),
        (400, "Failed to parse request body as JSON: unexpected character 0x1f"),
        (400, "Content-Encoding gzip is not supported"),
    ],
)
def test_a_server_that_does_not_inflate_gets_plain_bodies_from_then_on(status: int, words: str) -> None:
    assert encodings(unless_gzip(status, outcome("structure", words))) == ["gzip", None, None]


def test_the_form_of_a_search_is_never_compressed() -> None:
    """Tomcat, on which HAPI runs, does not inflate it: the search would have no parameters, and find everything."""
    with run_proxy(rule=lambda _: json_reply(searchset())) as server:
        identifiers = ",".join(f"urn:x|{number}" for number in range(500))
        run(server.url, lambda client: client.search("Patient", {"identifier": identifiers}, in_body=True))
        assert "Content-Encoding" not in server.requests[0].headers
        assert dict(parse_qsl(server.requests[0].body.decode())) == {"identifier": identifiers}


def test_a_client_without_an_address_sends_nothing() -> None:
    error = fail("", read, retry_seconds=0)
    assert (type(error), error.may_have_arrived) == (UnreachableError, False)


def test_a_resource_that_is_not_parsed_is_sent_plain_once_and_gzip_stays() -> None:
    answer = json_reply(outcome("structure", "Failed to parse element gender"), 400)
    with run_proxy(rule=in_turn(answer, answer, Reply(200), answer)) as server:

        async def three(client: FhirClient) -> None:
            for succeeds in (False, True, False):
                if succeeds:
                    await client.put(LARGE)
                else:
                    with pytest.raises(RejectedError):
                        await client.put(LARGE)

        run(server.url, three)
        sent = [asked.headers.get("Content-Encoding") for asked in server.requests]
    assert sent == ["gzip", None, "gzip", "gzip"]  # once gzip was accepted, a 400 is about the resource


def test_other_refusals_are_not_sent_again() -> None:
    with run_proxy(rule=unless_gzip(422, outcome("invalid", "cannot parse"))) as server:
        assert type(fail(server.url, lambda client: client.put(LARGE))) is RejectedError
        assert len(server.requests) == 1


# -- retries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_transient_errors_are_retried_and_attempts_counted(status: int) -> None:
    with run_proxy(rule=in_turn(Reply(status), Reply(status), json_reply(patient(), ETag='W/"1"'))) as server:
        assert run(server.url, put) == WriteResult(200, "a", "1", 'W/"1"', attempts=3)
        assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 404, 405, 412, 413, 422, 501])
def test_permanent_errors_are_not(status: int) -> None:
    with run_proxy(rule=lambda _: Reply(status)) as server:
        assert fail(server.url, put).attempts == 1
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("request_", "options", "attempts"),
    [
        (write(), {}, 2),
        (write(if_match='W/"1"'), {}, 1),
        (write(if_match='W/"1"'), {"retry_conflicts": True}, 2),
        (write(), {"retry_conflicts": False}, 1),
    ],
)
@pytest.mark.parametrize("in_transaction", [False, True])
def test_a_conflict_is_retried_unless_it_means_to_look_again(
    request_: WriteRequest, options: Any, attempts: int, in_transaction: bool
) -> None:
    stored = json_reply(transaction_response({"status": "200"})) if in_transaction else Reply(200)

    async def call(client: FhirClient) -> Any:
        if in_transaction:
            return await client.transaction([request_], **options)
        return await client.put(request_, **options)

    with run_proxy(rule=in_turn(Reply(409), stored)) as server:
        if attempts == 2:
            run(server.url, call)
        else:
            assert type(fail(server.url, call)) is ConflictError
        assert len(server.requests) == attempts


def test_a_condition_that_matches_several_is_not_waited_for() -> None:
    with run_proxy(rule=lambda _: Reply(412)) as server:
        error = fail(server.url, lambda client: client.put(conditional("x")))
        assert (type(error), len(server.requests)) == (ConflictError, 1)


def test_an_invalid_answer_may_be_followed_by_a_valid_one() -> None:
    with run_proxy(
        rule=in_turn(Reply(200, b'{"resourceTy'), json_reply({"message": "timeout"}), json_reply(patient()))
    ) as server:
        assert run(server.url, read).id == "a"


def test_an_error_tells_of_all_attempts() -> None:
    """The first attempt may have been carried out, though the last was refused."""
    with run_proxy(rule=in_turn(Reply(504), Reply(422))) as server:
        error = fail(server.url, put)
    assert type(error) is RejectedError
    assert (error.attempts, error.may_have_arrived) == (2, True)


def test_what_cannot_have_arrived_is_known() -> None:
    error = fail("http://127.0.0.1:1/fhir", put, retry_seconds=0)
    assert type(error) is UnreachableError
    assert (error.status, error.attempts, error.may_have_arrived) == (None, 1, False)
    for status, expected in ((429, False), (503, True), (500, True), (400, False), (409, False)):
        with run_proxy(rule=lambda _, status=status: Reply(status)) as server:  # type: ignore[misc]
            assert fail(server.url, put, retry_seconds=0).may_have_arrived is expected


def test_a_connection_that_is_lost_may_have_arrived() -> None:
    def cut(asked: ReceivedRequest) -> Reply:
        return Reply(cut=True)

    with run_proxy(rule=lambda _: Reply(200)) as behind, run_proxy(behind.url, cut) as server:
        error = fail(server.url, put, retry_seconds=0)
    assert type(error) is UnreachableError
    assert error.may_have_arrived
    assert "was lost" in str(error)


def test_a_busy_server_says_how_long_to_wait() -> None:
    with run_proxy(
        rule=lambda _: Reply(429, orjson.dumps(outcome("throttled", "slow down")), {"Retry-After": "7"})
    ) as server:
        error = fail(server.url, read, retry_seconds=0)
    assert isinstance(error, BusyError)
    assert (error.status, error.reason, error.retry_after) == (429, "throttled: slow down", 7.0)
    assert str(error) == "HTTP 429: throttled: slow down; the server is busy: run again later"


def test_a_redirect_is_an_error_and_not_followed() -> None:
    with run_proxy(rule=lambda _: Reply(302, headers={"Location": "http://127.0.0.1:1/"})) as server:
        error = fail(server.url, read)
    assert type(error) is RejectedError
    assert str(error) == "HTTP 302: Found; set fhir.url to the address that the server redirects to"


def test_a_server_that_assigns_ids_itself_says_what_to_set() -> None:
    words = "HAPI-0959: No resource exists on this server resource with ID[a], and client-assigned IDs are not enabled."
    with run_proxy(rule=lambda _: json_reply(outcome("processing", words), 400)) as server:
        assert 'set fhir.client_assigned_ids = "no"' in str(fail(server.url, put))


def test_each_attempt_has_the_time_allowed() -> None:
    def slow(_: ReceivedRequest) -> Reply:
        time.sleep(0.4)
        return json_reply(patient())

    async def three(client: FhirClient) -> list[Any]:
        return [await read(client) for _ in range(3)]

    with run_proxy(rule=slow) as server:
        assert len(run(server.url, three, timeout_seconds=0.9)) == 3
        error = fail(server.url, read, timeout_seconds=0.1, retry_seconds=0)
    assert type(error) is TimedOutError
    assert error.may_have_arrived


# -- at once ----------------------------------------------------------------------------------------------------------


def test_no_more_requests_are_on_their_way_than_the_limit_admits() -> None:
    running: list[int] = [0]
    seen: list[int] = []

    def count(_: ReceivedRequest) -> Reply:
        return json_reply(patient())

    async def many(client: FhirClient) -> None:
        receive = client._receive

        async def counted(request: Any) -> Any:
            running[0] += 1
            seen.append(running[0])
            try:
                return await receive(request)
            finally:
                running[0] -= 1

        client._receive = counted  # type: ignore[method-assign]
        await asyncio.gather(*(read(client) for _ in range(20)))

    with run_proxy(rule=count) as server:
        run(server.url, many, max_concurrent_requests=3)
    assert (max(seen), len(seen)) == (3, 20)


def test_while_a_retry_pauses_others_are_sent() -> None:
    order: list[str] = []

    def rule(asked: ReceivedRequest) -> Reply:
        order.append(asked.path)
        return Reply(500) if order == ["Patient/slow"] else json_reply(patient(asked.path.removeprefix("Patient/")))

    async def both(client: FhirClient) -> None:
        paused, other_is_done = asyncio.Event(), asyncio.Event()

        async def wait(_: float) -> None:
            paused.set()
            await other_is_done.wait()

        client._sleep = wait
        slow = asyncio.create_task(client.read("Patient", "slow"))
        await paused.wait()
        await client.read("Patient", "other")
        other_is_done.set()
        await slow

    with run_proxy(rule=rule) as server:
        run(server.url, both, max_concurrent_requests=1)
    assert order == ["Patient/slow", "Patient/other", "Patient/slow"]


# -- when no more is sent ---------------------------------------------------------------------------------------------


def stop(rule: Any, *calls: Any, **client: Any) -> tuple[FhirClient, list[FhirError | None], list[str]]:
    """The client after some calls, their errors, and the paths that were requested."""
    found: list[FhirError | None] = []

    async def whole(opened: FhirClient) -> FhirClient:
        for call in calls:
            try:
                await call(opened)
                found.append(None)
            except FhirError as error:
                found.append(error)
        return opened

    with run_proxy(rule=rule) as server:
        opened = run(server.url, whole, **({"retry_seconds": 0} | client))
        return opened, found, [asked.path for asked in server.requests]


@pytest.mark.parametrize("status", [401, 403])
def test_credentials_that_are_not_accepted_stop_everything(status: int) -> None:
    client, errors, paths = stop(lambda _: Reply(status), put, read, put)
    assert paths == ["Patient/a"]
    assert [type(error) for error in errors] == [AccessDeniedError, UnreachableError, UnreachableError]
    assert client.stop_reason == str(errors[0]) == str(errors[1])
    assert not client.is_unreachable
    assert errors[1] is not None
    assert (errors[1].attempts, errors[1].may_have_arrived) == (0, False)


def test_a_server_that_goes_away_is_asked_for_metadata_once_and_then_left_alone() -> None:
    client, errors, paths = stop(lambda _: Reply(503), put, put, read)
    assert paths == ["Patient/a", "metadata"]
    assert [type(error) for error in errors] == [BusyError, UnreachableError, UnreachableError]
    assert client.is_unreachable


@pytest.mark.parametrize("answer", [Reply(200, b"{}"), Reply(200, b"<html>"), Reply(404), Reply(400)])
def test_a_server_that_answers_anything_is_asked_again(answer: Reply) -> None:
    client, _, paths = stop(lambda asked: answer if asked.path == "metadata" else Reply(500), read, read)
    assert paths == ["Patient/a", "metadata"] * 2
    assert client.stop_reason is None


def test_a_server_that_accepts_nothing_is_left_alone_after_two_rounds() -> None:
    def read_only(asked: ReceivedRequest) -> Reply:
        return Reply(200) if asked.path == "metadata" else Reply(504)

    client, errors, paths = stop(read_only, *[put] * 6, max_concurrent_requests=2)
    assert paths.count("Patient/a") == 4
    assert [type(error) for error in errors] == [*[ServerFailureError] * 4, *[UnreachableError] * 2]
    assert client.stop_reason is not None
    assert client.stop_reason.startswith("the server accepts no requests; retries exhausted (HTTP 504: Gateway Timeout")


@pytest.mark.parametrize("between", [Reply(200), Reply(422), Reply(409)])
def test_a_write_that_is_accepted_or_refused_begins_the_count_anew(between: Reply) -> None:
    left = [Reply(504)] * 3 + [between] + [Reply(504)] * 3

    def rule(asked: ReceivedRequest) -> Reply:
        return Reply(200) if asked.path == "metadata" else left.pop(0)

    client, _, _ = stop(rule, *[put] * 7, max_concurrent_requests=2)
    assert client.stop_reason is None


def test_failed_reads_do_not_count() -> None:
    def rule(asked: ReceivedRequest) -> Reply:
        return Reply(200) if asked.path == "metadata" else Reply(504)

    client, _, paths = stop(rule, *[read] * 10, max_concurrent_requests=1)
    assert client.stop_reason is None
    assert paths.count("Patient/a") == 10


def test_a_call_that_waits_for_its_turn_is_not_sent_any_more() -> None:
    async def many(client: FhirClient) -> list[Any]:
        return await asyncio.gather(*(put(client) for _ in range(5)), return_exceptions=True)

    with run_proxy(rule=lambda _: Reply(401)) as server:
        errors = run(server.url, many, max_concurrent_requests=1)
        assert len(server.requests) == 1
    assert [type(error) for error in errors] == [AccessDeniedError] + [UnreachableError] * 4


def test_a_pause_that_ends_after_the_stop_sends_nothing() -> None:
    def rule(asked: ReceivedRequest) -> Reply:
        return Reply(401) if asked.path == "Patient/b" else Reply(504)

    async def both(client: FhirClient) -> FhirError:
        async def stop_meanwhile(_: float) -> None:
            with pytest.raises(AccessDeniedError):
                await client.read("Patient", "b")

        client._sleep = stop_meanwhile
        with pytest.raises(UnreachableError) as caught:
            await put(client)
        return caught.value

    with run_proxy(rule=rule) as server:
        error = run(server.url, both)
        assert len(server.requests) == 2
    assert (error.attempts, error.may_have_arrived) == (1, True)


# -- fhirpy's own methods ---------------------------------------------------------------------------------------------


def test_the_methods_of_fhirpy_go_the_same_way() -> None:
    replies = in_turn(
        Reply(503),
        json_reply(searchset(patient(name=[{"family": "Noether"}]))),
        json_reply(patient("n"), 201),
        Reply(204),
    )

    async def use(client: FhirClient) -> Any:
        found = await client.resources("Patient").search(family="Noether").fetch()
        new = client.resource("Patient", gender="female")
        await new.save()
        await new.delete()
        return found[0].name[0].family, new.id

    with run_proxy(rule=replies) as server:
        assert run(server.url, use) == ("Noether", "n")
        asked = [(one.method, one.path) for one in server.requests]
    assert asked == [
        ("GET", "Patient?family=Noether"),
        ("GET", "Patient?family=Noether"),
        ("POST", "Patient"),
        ("DELETE", "Patient/n"),
    ]


@pytest.mark.parametrize(("status", "requests"), [(429, 2), (500, 1), (504, 1)])
def test_a_create_is_repeated_only_if_the_server_did_not_do_it(status: int, requests: int) -> None:
    async def create(client: FhirClient) -> Any:
        return await client.execute("Patient", data={"resourceType": "Patient"})

    with run_proxy(rule=in_turn(Reply(status), json_reply(patient(), 201))) as server:
        if requests == 2:
            run(server.url, create)
        else:
            fail(server.url, create)
        assert len([asked for asked in server.requests if asked.path == "Patient"]) == requests


@pytest.mark.parametrize(
    "content",
    [
        outcome("exception", "no index"),
        {"message": "timeout"},
        {},
        searchset(outcome("exception", "no index")),
        searchset() | {"entry": None},
        searchset() | {"entry": [{}]},
    ],
)
def test_an_error_inside_a_success_is_an_error_for_fhirpy_too(content: Any) -> None:
    with run_proxy(rule=lambda _: json_reply(content)) as server:
        error = fail(server.url, lambda client: client.resources("Patient").search(family="x").fetch_raw())
    assert type(error) is InvalidAnswerError


def test_a_client_that_is_not_open_says_so() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        asyncio.run(FhirClient("http://127.0.0.1:1/fhir", sleep=no_pause).read("Patient", "a"))
