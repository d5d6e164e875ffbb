"""The client: what it sends, what it keeps of a failure, and what it never tells."""

import asyncio
import gzip
import traceback
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from dicom_etl.server.client import Client, without_credentials
from dicom_etl.server.errors import FhirError, ServerError, TimedOutError, UnreachableError, reason_of
from dicom_etl.server.naming import server_name
from tests.server.proxy import Asked, Proxy, Reply, proxy

TOKEN = "a-very-secret-token"


def outcome(code: str, diagnostics: str) -> bytes:
    issue = {"severity": "error", "code": code, "diagnostics": diagnostics}
    return orjson.dumps({"resourceType": "OperationOutcome", "issue": [issue], "text": {"div": "John Doe"}})


def ask(server: Proxy, method: str = "get", path: str = "Patient/1", data: Any = None, **client: Any) -> Any:
    async def request() -> Any:
        async with Client(server.url, **client) as opened:
            return await opened.execute(path, method=method, data=data)

    return asyncio.run(request())


def failure(rule: Callable[[Asked], Reply], **client: Any) -> FhirError:
    with proxy(rule=rule) as server, pytest.raises(FhirError) as caught:
        ask(server, **client)
    return caught.value


def test_an_error_keeps_status_reason_and_the_pause_that_the_server_asks_for():
    error = failure(lambda _: Reply(429, outcome("throttled", "slow down"), {"Retry-After": "7"}))

    assert isinstance(error, ServerError)
    assert (error.status, error.reason, error.retry_after) == (429, "throttled: slow down", 7.0)
    assert str(error) == "HTTP 429: throttled: slow down; the server is busy: run again later"


def test_a_date_as_retry_after_is_a_number_of_seconds():
    past = failure(lambda _: Reply(503, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}))
    nonsense = failure(lambda _: Reply(503, headers={"Retry-After": "soon"}))

    assert isinstance(past, ServerError)
    assert isinstance(nonsense, ServerError)
    assert (past.retry_after, nonsense.retry_after) == (0.0, None)


@pytest.mark.parametrize("body", [b"<html>Jane Doe</html>", b"", b'["x"]', b'{"a": 1}', b'{"resourceType":"Patient"}'])
def test_of_a_body_that_is_no_operation_outcome_nothing_is_told(body):
    assert reason_of(502, body) == "Bad Gateway"


def test_of_an_operation_outcome_codes_and_diagnostics_alone_are_told():
    assert reason_of(400, outcome("invariant", "no\nsubject")) == "invariant: no subject"


def test_a_long_reason_is_cut():
    assert len(reason_of(400, outcome("invariant", "x" * 5000))) == 400


def test_the_token_goes_to_the_server_and_nowhere_else():
    with proxy(rule=lambda a: Reply(500, outcome("exception", f"{a.headers['Authorization']} is odd"))) as server:
        client = Client(server.url, token=TOKEN)
        with pytest.raises(ServerError) as caught:
            ask(server, token=TOKEN)
        assert [one.headers["Authorization"] for one in server.asked] == [f"Bearer {TOKEN}"]

    told = [repr(client), str(client), repr(caught.value), str(caught.value), repr(vars(client)["_login"])]
    told += traceback.format_exception(caught.value)
    assert not any(TOKEN in text for text in told)
    assert "(secret) is odd" in str(caught.value)


def test_a_network_error_has_no_request_in_its_context():
    with pytest.raises(UnreachableError) as caught:
        ask(Proxy("http://127.0.0.1:1/fhir"), token=TOKEN)

    assert caught.value.__context__ is None
    assert "http://127.0.0.1:1/fhir cannot be reached" in str(caught.value)


def test_credentials_of_the_address_become_a_header():
    with proxy(rule=lambda _: Reply(200, b"{}")) as server:
        address = server.url.replace("://", "://me:p%40ss@")
        client = Client(address)
        ask(Proxy(address))
        assert server.asked[0].headers["Authorization"] == "Basic bWU6cEBzcw=="

    assert "me" not in client.url.split("//")[1]
    assert without_credentials("https://u:p@host/fhir/") == ("https://host/fhir", "Basic dTpw")


def test_a_server_that_does_not_answer_in_time_is_told_from_one_that_is_not_there():
    loops = []

    def slow(_: Asked) -> Reply:
        import time

        loops.append(1)
        time.sleep(0.5)
        return Reply()

    assert isinstance(failure(slow, timeout=0.1), TimedOutError)
    assert loops


def test_bodies_are_packed_unless_the_server_does_not_take_that():
    resource = {"resourceType": "Patient", "text": "x" * 5000}

    def plain_only(asked: Asked) -> Reply:
        return Reply(415 if asked.headers.get("Content-Encoding") == "gzip" else 200, b"{}")

    with proxy(rule=plain_only) as server:
        ask(server, "put", data=resource)
        packings = [one.headers.get("Content-Encoding") for one in server.asked]
    assert packings == ["gzip", None]
    assert orjson.loads(server.asked[1].body) == resource
    assert len(gzip.compress(server.asked[1].body)) < 5000


def test_a_redirect_is_an_error_and_not_followed():
    error = failure(lambda _: Reply(302, headers={"Location": "http://127.0.0.1:1/"}))

    assert "redirects elsewhere; set fhir.url" in str(error)


def test_an_answer_that_is_no_json_is_an_error():
    assert "is fhir.url the address of a FHIR server?" in str(failure(lambda _: Reply(200, b"<html>login</html>")))


def test_searches_are_not_answered_from_a_cache():
    with proxy(rule=lambda _: Reply(200, b"{}")) as server:
        ask(server)
    assert server.asked[0].headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://127.0.0.1:8080/fhir", "127.0.0.1_8080_fhir"),
        ("http://127.0.0.1:8080/fhir/", "127.0.0.1_8080_fhir"),
        ("https://me:secret@FHIR.example.org/r4/base", "fhir.example.org_443_r4_base"),
        ("http://h", "h_80"),
        ("http://h/a_b", "h_80_a_b-921d7fa8"),
        ("http://h:80/a_b/", "h_80_a_b-921d7fa8"),
    ],
)
def test_the_name_of_a_server_is_readable_and_holds_no_credentials(url, name):
    assert server_name(url) == name
