"""No secret and no identifying value is in an error, its chain or a log, even if a server repeats all that it gets."""

import asyncio
import logging
import os
import traceback
import warnings
from typing import Any

import orjson
import pytest

from dicom_etl.fhir_client import Authentication, FhirClient, FhirError, WriteRequest
from dicom_etl.fhir_connection import open_client
from dicom_etl.settings import FhirSettings
from tests.support.authorization_server import CLIENT, AuthorizationServer
from tests.support.fhir_answers import get_error, operation_outcome, searchset, transaction_response
from tests.support.log_collection import collect_logs
from tests.support.planted_values import (
    CLIENT_SECRET,
    GIVEN_TOKEN,
    PLANTED,
    SECRETS,
    SENT,
    repeat_request,
)
from tests.support.proxy import Reply, run_proxy

PATIENT = {
    "resourceType": "Patient",
    "id": "x",
    "name": [{"family": "Ossianowicz", "given": ["Thessalonia"]}],
    "birthDate": "1937-05-19",
    "identifier": [{"system": "urn:x", "value": "MRN-Kalypso-90210"}],
    "note": "Pythagora-55",
}


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DICOM_ETL_")]:
        monkeypatch.delenv(name)
    for name, secret in zip(("TOKEN", "PASSWORD", "CLIENT_SECRET", "API_KEY"), SECRETS, strict=False):
        monkeypatch.setenv(f"DICOM_ETL_FHIR_{name}", secret)
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")


def echo(status: int, content: Any) -> Any:
    """A server that repeats requests; `content` makes its answer from a text."""
    return lambda request: Reply(
        status, orjson.dumps(content(repeat_request(request))), {"ETag": repeat_request(request)[:200].strip()}
    )


SERVERS = {
    "refuses the credentials": echo(401, lambda text: operation_outcome("security", text)),
    "refuses resources": echo(422, lambda text: operation_outcome("invalid", text)),
    "fails": echo(500, lambda text: operation_outcome("exception", text)),
    "fails in HTML": lambda request: Reply(500, f"<html>{repeat_request(request)}</html>".encode()),
    "is a gateway": echo(502, lambda text: {"message": text}),
    "answers 200 with an error": echo(200, lambda text: operation_outcome("exception", text)),
    "answers 200 with a message": echo(200, lambda text: {"error": text}),
    "answers 200 with HTML": lambda request: Reply(200, repeat_request(request).encode()),
    "truncates its answer": lambda request: Reply(200, orjson.dumps({"a": repeat_request(request)})[:-9]),
    "fails in an entry": echo(
        200, lambda text: transaction_response({"status": "400 " + text, "outcome": operation_outcome("invalid", text)})
    ),
    "has an error among its matches": echo(200, lambda text: searchset(operation_outcome("exception", text))),
    "redirects": lambda request: Reply(
        302, headers={"Location": f"http://127.0.0.1:1/{repeat_request(request)[:300].encode()!r}"}
    ),
}


def leaks(texts: list[str]) -> list[str]:
    """Planted values in texts, with the text around them."""
    return [
        repr(text[max(0, at - 80) : at + 60])
        for text in texts
        for planted in PLANTED
        if (at := text.casefold().find(planted)) >= 0
    ]


async def ask(url: str, auth: str, token_url: str) -> list[Any]:
    """The results and errors of all calls that send values, each with a new client."""
    write = WriteRequest("Patient", "x", orjson.dumps(PATIENT))
    conditional = WriteRequest("Patient", "", orjson.dumps(PATIENT), condition="identifier=urn:x%7CMRN-Kalypso-90210")
    identifier = {"identifier": "urn:x|MRN-Kalypso-90210"}
    calls = [
        lambda client: client.put(write),
        lambda client: client.put(conditional),
        lambda client: client.transaction([write]),
        lambda client: client.transaction([conditional]),
        lambda client: client.search("Patient", identifier),
        lambda client: client.search("Patient", identifier, in_body=True),
        lambda client: client.execute("Patient", "get", params=identifier),
        lambda client: client.execute("Patient", data=PATIENT),
        lambda client: client.read_history("Patient", "x"),
    ]
    settings = FhirSettings(url=url, auth=auth, username="me", client_id=CLIENT, token_url=token_url, retry_seconds=0)
    results: list[Any] = []
    for call in calls:
        async with open_client(settings) as client:
            results += await asyncio.gather(call(client), return_exceptions=True)
            state = vars(client)
            authentications = [vars(value) for value in state.values() if isinstance(value, Authentication)]
            assert authentications
            results.append(f"{client!r} {state} {authentications} {client.stop_reason}")
    return results


@pytest.mark.parametrize("rule", [*SERVERS.values(), None], ids=[*SERVERS, "is missing"])
@pytest.mark.parametrize("auth", SENT)
def test_no_secret_is_in_an_error_or_a_log(rule: Any, auth: str) -> None:
    tokens = AuthorizationServer(GIVEN_TOKEN, CLIENT_SECRET)
    with (
        run_proxy(rule=tokens.rule) as endpoint,
        run_proxy(rule=rule or (lambda _: Reply())) as server,
        collect_logs() as texts,
    ):
        results = asyncio.run(ask(server.url if rule else "http://127.0.0.1:1/fhir", auth, endpoint.url))
        sent = " ".join(value for request in server.requests for value in request.headers.values())
        assert not rule or SENT[auth] in sent
        in_bodies = [request for request in server.requests if request.path.endswith("_search")]
        assert all("Kalypso" not in request.path for request in in_bodies)
    errors = [result for result in results if isinstance(result, BaseException)]
    assert len(errors) >= 7
    assert [error for error in errors if not isinstance(error, FhirError)] == []
    texts += ["".join(traceback.format_exception(error)) + repr(error) + str(error.args) for error in errors]
    texts += [result for result in results if isinstance(result, str)]  # resources that fhirpy returns are data
    assert len(texts) > 9
    assert leaks(texts) == []


def test_leaked_values_would_be_found() -> None:
    with collect_logs() as texts:
        logging.getLogger("aiohttp.client").debug("sending %s", PATIENT["name"])
        warnings.warn("Kalypso is too long", stacklevel=1)
    assert len(leaks(texts)) == 3
    assert [secret for secret in SECRETS if not leaks([secret])] == []


def test_explanatory_text_is_kept() -> None:
    async def put(client: FhirClient) -> Any:
        return await client.put(WriteRequest("Patient", "x", orjson.dumps(PATIENT)))

    with run_proxy(rule=SERVERS["refuses resources"]) as server:
        assert "HAPI-1821: Invalid code: Patient (masked) (masked)" in str(get_error(server.url, put))
