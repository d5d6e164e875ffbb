"""Authentication: which headers arrive, when a token is requested, which authorities TLS trusts, what errors say."""

import asyncio
import base64
import ssl
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from dicom_etl.fhir_client import (
    AccessDeniedError,
    Authentication,
    Basic,
    BearerToken,
    BusyError,
    CertificateFileError,
    ClientCredentials,
    FhirClient,
    FhirError,
    FixedHeader,
    TransientError,
    UnreachableError,
    parse_credentials,
    strip_credentials,
)
from dicom_etl.fhir_client.auth import _compute_lifetime
from dicom_etl.fhir_client.transport import load_certificates
from tests.fhir_client.certificates import Authority
from tests.support.authorization_server import CLIENT, SECRET, AuthorizationServer
from tests.support.fhir_answers import no_pause
from tests.support.proxy import ReceivedRequest, Reply, run_proxy

URL = "http://127.0.0.1:1/fhir"
RESOURCE = {"resourceType": "Basic"}
ANSWER = orjson.dumps(RESOURCE)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def giver() -> Iterator[tuple[AuthorizationServer, str]]:
    """An authorization server and the address of its token endpoint."""
    server = AuthorizationServer(expires_in=300)
    with run_proxy(rule=server.rule) as endpoint:
        yield server, endpoint.url


def credentials(token_url: str, **more: Any) -> ClientCredentials:
    return ClientCredentials(token_url, CLIENT, SECRET, None, **more)


def connect(url: str, authentication: Authentication | None = None, **more: Any) -> FhirClient:
    return FhirClient(url, authentication, **({"retry_seconds": 0, "sleep": no_pause} | more))


def ask(client: FhirClient, *paths: str) -> list[Any]:
    """The answers (or errors) of requests that are sent at once."""

    async def whole() -> list[Any]:
        async with client:
            requests = [client.execute(path, method="get") for path in paths or ("Patient/1",)]
            return await asyncio.gather(*requests, return_exceptions=True)

    return asyncio.run(whole())


def refusal(client: FhirClient) -> FhirError:
    [error] = ask(client)
    assert isinstance(error, FhirError)
    return error


def only(*tokens: str) -> Callable[[ReceivedRequest], Reply]:
    """A server that accepts these tokens alone."""
    return lambda asked: Reply(
        200 if asked.headers.get("Authorization", "").removeprefix("Bearer ") in tokens else 401, ANSWER
    )


@pytest.mark.parametrize(
    ("authentication", "header", "value"),
    [
        (None, "Authorization", None),
        (Authentication(), "Authorization", None),
        (BearerToken("t"), "Authorization", "Bearer t"),
        (Basic("Jörg", "p:ä"), "Authorization", "Basic SsO2cmc6cDrDpA=="),
        (FixedHeader("X-API-Key", "k"), "X-API-Key", "k"),
        (FixedHeader("Ocp-Key", "k"), "Ocp-Key", "k"),
    ],
)
def test_each_authentication_is_one_header(authentication: Any, header: str, value: str | None) -> None:
    with run_proxy(rule=lambda _: Reply(200, ANSWER)) as server:
        assert ask(connect(server.url, authentication)) == [RESOURCE]
        [asked] = server.requests
    assert asked.headers.get(header) == value
    assert {"Authorization", "X-API-Key"} & set(asked.headers) <= {header}


def test_credentials_of_the_address_become_a_header() -> None:
    with run_proxy(rule=lambda _: Reply(200, ANSWER)) as server:
        client = connect(server.url.replace("://", "://me:p%40ss@"))
        ask(client)
        ask(connect(server.url.replace("://", "://me:p%40ss@"), BearerToken("t")))
        assert [asked.headers["Authorization"] for asked in server.requests] == ["Basic bWU6cEBzcw==", "Bearer t"]
    assert client.url == server.url
    assert strip_credentials("https://u:p@host/fhir/?a=b") == "https://host/fhir"
    assert parse_credentials("https://u%40x:p%3A@host/") == ("u@x", "p:")
    assert parse_credentials("https://host/") is None


def test_a_colon_in_the_username_is_refused() -> None:
    with pytest.raises(ValueError, match="contains a colon"):
        Basic("a:b", "p")


def test_what_never_changes_is_not_tried_twice() -> None:
    with run_proxy(rule=lambda _: Reply(401)) as server:
        error = refusal(connect(server.url, BearerToken("t", advice="look at the token")))
        assert len(server.requests) == 1
    assert str(error) == "HTTP 401: Unauthorized; look at the token"


# -- OAuth2 client credentials ----------------------------------------------------------------------------------------


def test_a_token_is_fetched_once_and_used(giver: tuple[AuthorizationServer, str]) -> None:
    server, token_url = giver
    with run_proxy(rule=only("token-1")) as fhir:
        authentication = ClientCredentials(token_url, CLIENT, SECRET, "system/*.write openid")
        assert ask(connect(fhir.url, authentication), "a", "b", "c") == [RESOURCE] * 3
        assert ask(connect(fhir.url, authentication), "d") == [RESOURCE]
        assert [one.headers["Authorization"] for one in fhir.requests] == ["Bearer token-1"] * 4
    assert server.forms == [{"grant_type": ["client_credentials"], "scope": ["system/*.write openid"]}]


@pytest.mark.parametrize(("lives", "fetched_at"), [(300, 270), (60, 54), (10, 9)])
def test_a_token_is_renewed_a_little_before_its_end(lives: int, fetched_at: int) -> None:
    server, now = AuthorizationServer(expires_in=lives), [1000.0]
    with run_proxy(rule=server.rule) as endpoint, run_proxy(rule=lambda _: Reply(200, ANSWER)) as fhir:
        authentication = credentials(endpoint.url, clock=lambda: now[0])
        for passed in (0, fetched_at - 0.5, fetched_at):
            now[0] = 1000.0 + passed
            ask(connect(fhir.url, authentication))
        used = [one.headers["Authorization"] for one in fhir.requests]
    assert used == ["Bearer token-1", "Bearer token-1", "Bearer token-2"]


def test_a_token_without_an_end_is_used_until_it_is_refused() -> None:
    server, now = AuthorizationServer(), [0.0]
    with run_proxy(rule=server.rule) as endpoint, run_proxy(rule=only("token-1")) as fhir:
        authentication = credentials(endpoint.url, clock=lambda: now[0])
        ask(connect(fhir.url, authentication))
        now[0] = 1e9
        assert ask(connect(fhir.url, authentication)) == [RESOURCE]
        fhir.rule = only("token-2")
        assert ask(connect(fhir.url, authentication)) == [RESOURCE]
    assert server.given == ["token-1", "token-2"]


def test_a_refused_token_is_fetched_once_more_for_all_that_are_on_their_way(
    giver: tuple[AuthorizationServer, str],
) -> None:
    server, token_url = giver
    with run_proxy(rule=only("token-2")) as fhir:
        answers = ask(connect(fhir.url, credentials(token_url), max_concurrent_requests=6), *"abcdef")
        used = [one.headers["Authorization"] for one in fhir.requests]
    assert answers == [RESOURCE] * 6
    assert server.given == ["token-1", "token-2"]
    assert (used.count("Bearer token-1"), used.count("Bearer token-2")) == (6, 6)


def test_a_request_is_repeated_once_and_no_more(giver: tuple[AuthorizationServer, str]) -> None:
    server, token_url = giver
    with run_proxy(rule=only("another")) as fhir:
        error = refusal(connect(fhir.url, credentials(token_url)))
        assert len(fhir.requests) == 2
    assert str(error) == (
        "HTTP 401: Unauthorized; the server does not accept the token that fhir.token_url issued: "
        "check the client's permissions and fhir.scope"
    )
    assert len(server.given) == 2


@pytest.mark.parametrize(
    ("reply", "status", "said"),
    [
        (
            Reply(400, b'{"error": "invalid_scope", "error_description": "no wombat & quokka"}'),
            401,
            "issues no token: invalid_scope (HTTP 400); check fhir.scope",
        ),
        (
            Reply(401, b'{"error": "invalid_client"}'),
            401,
            "issues no token: invalid_client (HTTP 401); check fhir.client_id and the client secret",
        ),
        (
            Reply(403, b'{"error": "wombat & quokka"}'),
            401,
            "issues no token: HTTP 403; check fhir.token_url, fhir.client_id and the client secret",
        ),
        (Reply(404, b"<html>wombat"), 401, "issues no token: HTTP 404; check fhir.token_url, fhir.client_id"),
        (Reply(302, headers={"Location": "http://127.0.0.1:1/"}), 401, "issues no token: HTTP 302; check"),
        (Reply(503, b"wombat & quokka", {"Retry-After": "7"}), 503, "issues no token at present; run again later"),
        (Reply(429), 429, "issues no token at present; run again later"),
        (Reply(200, b"<html>login</html>"), 401, "issued no bearer token; check fhir.token_url"),
        (Reply(200, b"[]"), 401, "issued no bearer token"),
        (Reply(200, b'{"access_token": "wombat\\nX: 1"}'), 401, "issued no bearer token"),
        (Reply(200, b'{"access_token": "wombat", "token_type": "mac"}'), 401, "issued no bearer token"),
    ],
)
def test_a_token_endpoint_that_gives_none_is_told_in_a_sentence(reply: Reply, status: int, said: str) -> None:
    with run_proxy(rule=lambda _: reply) as endpoint, run_proxy(rule=lambda _: Reply(200, ANSWER)) as fhir:
        error = refusal(connect(fhir.url, credentials(f"{endpoint.url}/token?realm=wombat")))
        assert fhir.requests == []
    assert error.status == status
    assert isinstance(error, AccessDeniedError if status == 401 else BusyError)
    assert f"HTTP {status}: {endpoint.url}/token {said}" in str(error)
    assert getattr(error, "retry_after", None) == (7.0 if "Retry-After" in reply.headers else None)
    assert not {"wombat", "quokka"} & set(" ".join(traceback.format_exception(error)).replace("+", " ").split())


def test_a_token_endpoint_that_is_not_there_is_unreachable() -> None:
    error = refusal(connect(URL, credentials("http://127.0.0.1:1/token")))
    assert isinstance(error, UnreachableError)
    assert str(error).startswith("http://127.0.0.1:1/token cannot be reached: ")


def test_a_server_that_repeats_the_secrets_is_not_repeated(giver: tuple[AuthorizationServer, str]) -> None:
    _, token_url = giver
    words = (
        f"token-1 {SECRET} wombat+%26+quokka {base64.b64encode(b'etl:wombat+%26+quokka').decode()} wombat &amp; quokka"
    )
    outcome = {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "x", "diagnostics": words}]}
    with run_proxy(rule=lambda _: Reply(500, orjson.dumps(outcome))) as fhir:
        error = refusal(connect(fhir.url, credentials(token_url)))
    assert str(error) == "HTTP 500: x: " + " ".join(["(secret)"] * 5) + "; see the server's log"


def test_nothing_that_is_shown_of_a_client_holds_its_secrets(giver: tuple[AuthorizationServer, str]) -> None:
    _, token_url = giver
    authentication = credentials(token_url)
    with run_proxy(rule=only("token-1")) as fhir:
        client = connect(fhir.url, authentication)
        ask(client)
    shown = "".join(repr(thing) + str(vars(thing)) for thing in (client, authentication))
    assert authentication.secrets()[-1] == "token-1"
    assert not any(secret in shown for secret in authentication.secrets())


@pytest.mark.parametrize(
    ("expires_in", "seconds"),
    [(300, 270), ("60", 54), (10, 9), (0, 0), (None, float("inf")), ("soon", float("inf")), ("nan", float("inf"))],
)
def test_how_long_a_token_is_used(expires_in: Any, seconds: float) -> None:
    assert _compute_lifetime(expires_in) == seconds


def test_a_token_that_cannot_be_had_says_that_nothing_has_arrived() -> None:
    with run_proxy(rule=lambda _: Reply(500)) as endpoint:
        for token_url in (endpoint.url, "http://127.0.0.1:1/token"):
            error = refusal(connect(URL, credentials(token_url)))
            assert isinstance(error, TransientError)
            assert not error.may_have_arrived


# -- TLS --------------------------------------------------------------------------------------------------------------


def test_an_own_authority_is_trusted_where_its_file_is_named(authority: Authority) -> None:
    server = AuthorizationServer()
    tls = authority.server()
    with (
        run_proxy(rule=server.rule, tls=tls) as endpoint,
        run_proxy(rule=only("token-1"), tls=tls) as fhir,
    ):
        assert ask(connect(fhir.url, credentials(endpoint.url), ca_file=authority.ca_file)) == [RESOURCE]
        error = refusal(connect(fhir.url, credentials(endpoint.url)))
    assert server.given == ["token-1"]
    assert str(error).startswith(f"{endpoint.url} cannot be reached: its certificate is not trusted (")


def test_a_certificate_that_nobody_vouches_for_says_what_to_set(authority: Authority) -> None:
    with run_proxy(rule=lambda _: Reply(200, ANSWER), tls=authority.server()) as fhir:
        error = refusal(connect(fhir.url))
        assert fhir.requests == []
    assert isinstance(error, UnreachableError)
    assert str(error) == (
        f"{fhir.url} cannot be reached: its certificate is not trusted (unable to get local issuer certificate); "
        "set fhir.ca_file to a PEM file with the certificate of the authority that signed it"
    )


def test_a_certificate_of_another_host_is_not_mended_by_a_file(authority: Authority) -> None:
    with run_proxy(rule=lambda _: Reply(200, ANSWER), tls=authority.server("DNS:other.example")) as fhir:
        error = refusal(connect(fhir.url, ca_file=authority.ca_file))
        assert fhir.requests == []
    assert "its certificate is not trusted (IP address mismatch" in str(error)
    assert "ca_file" not in str(error)


def test_the_system_s_authorities_are_trusted_beside_the_own_ones(authority: Authority) -> None:
    context = load_certificates(authority.ca_file)
    assert isinstance(context, ssl.SSLContext)
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert len(context.get_ca_certs()) == len(ssl.create_default_context().get_ca_certs()) + 1


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot be read: No such file"), ("no certificate", "contains no certificate in PEM form")],
)
def test_a_file_of_authorities_that_is_none_is_one_sentence(tmp_path: Path, content: str | None, said: str) -> None:
    file = tmp_path / "ca.pem"
    if content:
        file.write_text(content)
    with pytest.raises(CertificateFileError) as refused:
        connect(URL, ca_file=str(file))
    assert str(refused.value).startswith(f"{file} {said}")
    assert refused.value.__context__ is None
