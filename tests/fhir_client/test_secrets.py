"""No secret and no identifying value in an error, its chain or a log: planted values, on servers that repeat them."""

import asyncio
import logging
import os
import traceback
import warnings
from typing import Any

import orjson
import pytest

from dicom_etl.fhir_client import FhirClient, FhirError, WriteRequest
from dicom_etl.fhir_connection import open_client
from dicom_etl.settings import FhirSettings
from tests.support.authorization_server import CLIENT, AuthorizationServer
from tests.support.fhir_answers import outcome, searchset, transaction_response
from tests.support.log_collection import collect_logs
from tests.support.proxy import ReceivedRequest, Reply, run_proxy

TOKEN, PASSWORD = "tok-Zanzibarium-4711", "pw:Quetzalcoatl & 0815"
CLIENT_SECRET, API_KEY = "cs-Xylophonique/1312", "ak-Brobdingnag-2718"
GIVEN_TOKEN = "at-Llanfairpwll-3141"
SECRETS = (TOKEN, PASSWORD, CLIENT_SECRET, API_KEY, GIVEN_TOKEN)
PLANTED = (
    *("zanzibarium", "quetzalcoatl", "xylophonique", "brobdingnag", "llanfairpwll"),
    *("ossianowicz", "thessalonia", "kalypso", "19370519", "1937-05-19", "pythagora"),
)
PATIENT = {
    "resourceType": "Patient",
    "id": "x",
    "name": [{"family": "Ossianowicz", "given": ["Thessalonia"]}],
    "birthDate": "1937-05-19",
    "identifier": [{"system": "urn:x", "value": "MRN-Kalypso-90210"}],
    "note": "Pythagora-55",
}
SENT = {"bearer": TOKEN, "basic": "bWU6cHc6UXVldHphbGNvYXRsICYgMDgxNQ==", "oauth2": GIVEN_TOKEN, "api-key": API_KEY}


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DICOM_ETL_")]:
        monkeypatch.delenv(name)
    for name, secret in zip(("TOKEN", "PASSWORD", "CLIENT_SECRET", "API_KEY"), SECRETS, strict=False):
        monkeypatch.setenv(f"DICOM_ETL_FHIR_{name}", secret)
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")


def words(asked: ReceivedRequest) -> str:
    """All that a request says, in several ways."""
    body = asked.body.decode()
    name = "Patient Thessalonia OSSIANOWICZ (MRN-Kalypso-90210, Ossianowicz^Thessalonia), born 1937-05-19 or 19370519"
    accession = "accession Pythagora-55, 'Pythagora-55'"
    told = [name] * ("Ossianowicz" in body) + [accession] * ("Pythagora" in body)
    return f"HAPI-1821: Invalid code: {'; '.join(told)}; {asked.path} {asked.headers} {body}"


def echo(status: int, content: Any) -> Any:
    """A server that repeats what it is sent: `content` makes the answer out of words."""
    return lambda asked: Reply(status, orjson.dumps(content(words(asked))), {"ETag": words(asked)[:200].strip()})


SERVERS = {
    "refuses us": echo(401, lambda text: outcome("security", text)),
    "refuses resources": echo(422, lambda text: outcome("invalid", text)),
    "fails": echo(500, lambda text: outcome("exception", text)),
    "fails in HTML": lambda asked: Reply(500, f"<html>{words(asked)}</html>".encode()),
    "is a gateway": echo(502, lambda text: {"message": text}),
    "says success and an error": echo(200, lambda text: outcome("exception", text)),
    "says success and a message": echo(200, lambda text: {"error": text}),
    "says success in HTML": lambda asked: Reply(200, words(asked).encode()),
    "cuts its answer off": lambda asked: Reply(200, orjson.dumps({"a": words(asked)})[:-9]),
    "fails in an entry": echo(
        200, lambda text: transaction_response({"status": "400 " + text, "outcome": outcome("invalid", text)})
    ),
    "has an error among its matches": echo(200, lambda text: searchset(outcome("exception", text))),
    "redirects": lambda asked: Reply(302, headers={"Location": f"http://127.0.0.1:1/{words(asked)[:300].encode()!r}"}),
}


def leaks(texts: list[str]) -> list[str]:
    """Planted values with what stands around them."""
    return [
        repr(text[max(0, at - 80) : at + 60])
        for text in texts
        for planted in PLANTED
        if (at := text.casefold().find(planted)) >= 0
    ]


async def ask(url: str, auth: str, token_url: str) -> list[Any]:
    """The results and errors of all calls that send something, each with a client of its own."""
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
            results.append(f"{client!r} {vars(client)} {vars(client._authentication)} {client.stop_reason}")
    return results


@pytest.mark.parametrize("rule", [*SERVERS.values(), None], ids=[*SERVERS, "is not there"])
@pytest.mark.parametrize("auth", SENT)
def test_no_planted_value_is_in_an_error_or_a_log(rule: Any, auth: str) -> None:
    tokens = AuthorizationServer(GIVEN_TOKEN, CLIENT_SECRET)
    with (
        run_proxy(rule=tokens.rule) as endpoint,
        run_proxy(rule=rule or (lambda _: Reply())) as server,
        collect_logs() as told,
    ):
        results = asyncio.run(ask(server.url if rule else "http://127.0.0.1:1/fhir", auth, endpoint.url))
        sent = " ".join(value for asked in server.requests for value in asked.headers.values())
        assert not rule or SENT[auth] in sent
        in_bodies = [asked for asked in server.requests if asked.path.endswith("_search")]
        assert all("Kalypso" not in asked.path for asked in in_bodies)
    errors = [result for result in results if isinstance(result, BaseException)]
    assert len(errors) >= 7
    assert [error for error in errors if not isinstance(error, FhirError)] == []
    told += ["".join(traceback.format_exception(error)) + repr(error) + str(error.args) for error in errors]
    told += [result for result in results if isinstance(result, str)]  # resources that fhirpy returns are data
    assert len(told) > 9
    assert leaks(told) == []


def test_what_is_planted_would_be_found() -> None:
    with collect_logs() as told:
        logging.getLogger("aiohttp.client").debug("sending %s", PATIENT["name"])
        warnings.warn("Kalypso is too long", stacklevel=1)
    assert len(leaks(told)) == 3
    assert [secret for secret in SECRETS if not leaks([secret])] == []


def test_what_explains_is_kept() -> None:
    async def put(client: FhirClient) -> Any:
        return await client.put(WriteRequest("Patient", "x", orjson.dumps(PATIENT)))

    from tests.support.fhir_answers import fail

    with run_proxy(rule=SERVERS["refuses resources"]) as server:
        assert "HAPI-1821: Invalid code: Patient (masked) (masked)" in str(fail(server.url, put))
