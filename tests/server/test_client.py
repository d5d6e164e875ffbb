"""The client: what it sends, what it keeps of a failure, and what it never tells."""

import asyncio
import gzip
import time
import traceback
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl

import orjson
import pytest

from dicom_etl.server.auth import basic, login_of, without_credentials
from dicom_etl.server.client import Client
from dicom_etl.server.echoes import without_values
from dicom_etl.server.errors import FhirError, ServerError, TimedOutError, UnreachableError, reason_of
from dicom_etl.server.naming import server_name
from dicom_etl.settings import FhirSettings
from tests.server.proxy import Asked, Proxy, Reply, proxy

PASSWORD = "a-very-secret-password"
LOGIN = basic("me", PASSWORD)
SENT = LOGIN.secrets()[0]
PATIENT = {
    "resourceType": "Patient",
    "id": "6f1c0c3e-1111-5222-8333-123456789abc",
    "identifier": [{"system": "urn:oid:1.2.3", "value": "MRN-77"}],
    "name": [{"family": "Müller-Lüdenscheidt", "given": ["Eva"]}],
    "birthDate": "1961-02-03",
    "gender": "nonsense",
}
STUDY = {
    "resourceType": "ImagingStudy",
    "status": "also-nonsense",
    "description": "failed knee of the left",
    "identifier": [{"type": {"text": "accession"}, "value": "ACC9"}],
    "series": [{"uid": "2.25.1234567890", "modality": {"code": "MR"}}],
}


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


def test_a_secret_goes_to_the_server_and_nowhere_else():
    with proxy(rule=lambda a: Reply(500, outcome("exception", f"{a.headers['Authorization']} is odd"))) as server:
        client = Client(server.url, LOGIN)
        with pytest.raises(ServerError) as caught:
            ask(server, authorization=LOGIN)
        assert [one.headers["Authorization"] for one in server.asked] == [f"Basic {SENT}"]

    told = [repr(client), str(vars(client)), str(vars(LOGIN)), repr(caught.value), str(caught.value)]
    told += traceback.format_exception(caught.value)
    assert not any(SENT in text or PASSWORD in text for text in told)
    assert "Basic (secret) is odd" in str(caught.value)


def test_a_network_error_has_no_request_in_its_context():
    with pytest.raises(UnreachableError) as caught:
        ask(Proxy("http://127.0.0.1:1/fhir"), authorization=LOGIN)

    assert caught.value.__context__ is None
    assert "http://127.0.0.1:1/fhir cannot be reached" in str(caught.value)


def test_credentials_of_the_address_become_a_header():
    with proxy(rule=lambda _: Reply(200, b"{}")) as server:
        address = server.url.replace("://", "://me:p%40ss@")
        client = Client(address)
        ask(Proxy(address))
        assert server.asked[0].headers["Authorization"] == "Basic bWU6cEBzcw=="

    assert "me" not in client.url.split("//")[1]
    assert without_credentials("https://u:p@host/fhir/") == "https://host/fhir"
    assert login_of("https://u%40x:p%3A@host/") == ("u@x", "p:")


def slow(seconds: float) -> Callable[[Asked], Reply]:
    def answer(_: Asked) -> Reply:
        time.sleep(seconds)
        return Reply(200, b"{}")

    return answer


def test_a_server_that_does_not_answer_in_time_is_told_from_one_that_is_not_there():
    assert isinstance(failure(slow(0.5), timeout=0.1), TimedOutError)


def test_the_time_allowed_is_that_of_each_request():
    async def three(url: str) -> list[Any]:
        async with Client(url, timeout=0.9) as client:
            return [await client.execute("Patient/1", method="get") for _ in range(3)]

    with proxy(rule=slow(0.4)) as server:
        assert asyncio.run(three(server.url)) == [{}] * 3


def test_the_time_allowed_fits_a_change_of_50_000_instances_on_a_slow_server():
    assert FhirSettings().timeout_seconds > 10 * 42


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


@pytest.mark.parametrize(("body", "said"), [(b"", "is empty"), (b'{"resourceType": "Bund', "is not whole")])
def test_an_answer_that_was_cut_is_none_and_worth_another_try(body: bytes, said: str):
    error = failure(lambda _: Reply(200, body))

    assert isinstance(error, UnreachableError)
    assert str(error) == f"the answer (HTTP 200) {said}"
    assert error.__context__ is None


def test_what_was_written_needs_no_answer():
    with proxy(rule=lambda _: Reply(204)) as server:
        assert ask(server, "delete") is None


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


# -- what a server repeats of a request -------------------------------------------------------------------------------

BUNDLE = orjson.dumps({"resourceType": "Bundle", "entry": [{"resource": PATIENT}, {"resource": STUDY}]})


def harmless(text: str, *secrets: str, path: str = "", body: bytes | None = BUNDLE) -> str:
    return without_values(text, secrets, f"http://host/fhir/{path}", body)


@pytest.mark.parametrize(
    "text",
    [
        'HAPI-1821: [element="gender"] Invalid value "nonsense": Unknown AdministrativeGender code \'nonsense\'',
        "HAPI-1094: Resource Endpoint/e1 not found, specified in path: ImagingStudy.endpoint",
        "HAPI-0989: can't update Patient/6f1c0c3e-1111-5222-8333-123456789abc: version 2 is not 3",
        "series 2.25.1234567890 has no instance; 1.2.840.10008.5.1.4.1.1.4 is unknown at `ImagingStudy.series[0].uid`",
        "the update of the left hand failed",  # words of a description are words of any sentence
    ],
)
def test_what_explains_a_refusal_is_kept(text: str):
    assert harmless(text) == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Patient Eva Müller-Lüdenscheidt is there", "Patient (masked) (masked) is there"),
        ("index holds (MULLER, EVA) twice", "index holds ((masked), (masked)) twice"),
        ("name=LÜDENSCHEIDTEVA", "name=(masked)"),
        ("born 1961-02-03, 19610203, 03.02.1961 or 3/2/1961", "born (masked), (masked), (masked) or (masked)"),
        ("MRN-77, mrn-77 and urn%3Aoid%3A1.2.3%7CMRN-77", "(masked), (masked) and urn:oid:1.2.3|(masked)"),
        ("of 'M&#252;ller-L&#252;denscheidt' or “Eva”", "of '…' or “…”"),
        ("somebody else: 'Jane Doe', 4711085, 1970-01-01", "somebody else: '…', (masked), (masked)"),
        ("about ACC9: failed knee of the left", "about (masked): (masked)"),
        ("it's 'Eva' who isn't 'female'", "it's '…' who isn't '…'"),
    ],
)
def test_what_identifies_is_masked(text: str, told: str):
    assert harmless(text) == told


def test_a_request_that_comes_back_as_a_whole_is_empty():
    told = harmless(f"cannot parse {orjson.dumps(PATIENT).decode()}")
    assert told.startswith('cannot parse {"resourceType":"Patient","id":"6f1c0c3e')
    for value in ("Eva", "ller", "denscheidt", "1961", "77"):
        assert value not in told


def test_what_was_searched_for_is_masked():
    path = "Patient?identifier=urn%3Aoid%3A1.2.3%7COssian%5C%2C12&_count=2"
    told = harmless('HAPI-0539: Invalid value Ossian of "identifier" in "Patient"', path=path, body=None)
    assert told == 'HAPI-0539: Invalid value (masked) of "identifier" in "Patient"'


def test_other_scripts_are_found_inside_a_word():
    body = orjson.dumps({"resourceType": "Patient", "name": [{"family": "山田", "given": ["太郎"]}]})
    assert harmless("患者山田太郎 は", body=body) == "(masked) は"


def test_a_word_that_explains_and_identifies_is_masked():
    body = orjson.dumps({"resourceType": "Patient", "gender": "male", "name": [{"family": "Male"}]})
    assert harmless("code 'male' of male", body=body) == "code '…' of (masked)"


def test_words_of_a_refusal_are_freed_from_values_of_the_request():
    def echo(asked: Asked) -> Reply:
        return Reply(400, outcome("invalid", f"HAPI-1821: Invalid code in {asked.body.decode()}"))

    with proxy(rule=echo) as server, pytest.raises(ServerError) as caught:
        ask(server, "put", "Patient/1", PATIENT)
    assert str(caught.value).startswith('HTTP 400: invalid: HAPI-1821: Invalid code in {"resourceType":"Patient"')
    assert "Eva" not in str(caught.value)


def test_what_is_searched_unseen_is_in_no_url_and_no_message():
    def refuses(asked: Asked) -> Reply:
        return Reply(400, outcome("invalid", f"HAPI-0539: Invalid value {asked.body.decode()} of Patient"))

    async def search(url: str) -> Any:
        async with Client(url) as client:
            return await client.search_unseen("Patient", identifier="urn:oid:1.2.3|Ossian-Ä 東&+%", _count="50")

    with proxy(rule=refuses) as server:
        with pytest.raises(ServerError) as caught:
            asyncio.run(search(server.url))
        [asked] = server.asked
    assert (asked.method, asked.path) == ("POST", "Patient/_search")
    assert asked.headers["Content-Type"] == "application/x-www-form-urlencoded; charset=utf-8"
    assert asked.headers["Cache-Control"] == "no-cache"
    assert parse_qsl(asked.body.decode()) == [("identifier", "urn:oid:1.2.3|Ossian-Ä 東&+%"), ("_count", "50")]
    assert "Ossian" not in str(caught.value)
    assert "HAPI-0539" in str(caught.value)
