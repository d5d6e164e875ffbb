"""Authentication: headers of requests, requests for tokens, trusted certificate authorities, and error messages."""

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
from dicom_etl.fhir_client.transport import Answer, load_certificates
from tests.fhir_client.certificates import Authority
from tests.support.authorization_server import CLIENT, SECRET, AuthorizationServer
from tests.support.fhir_answers import no_pause, operation_outcome
from tests.support.proxy import ReceivedRequest, Reply, run_proxy

URL = "http://127.0.0.1:1/fhir"
RESOURCE = {"resourceType": "Basic"}
ANSWER = orjson.dumps(RESOURCE)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def token_server() -> Iterator[tuple[AuthorizationServer, str]]:
    """An authorization server and the address of its token endpoint."""
    server = AuthorizationServer(expires_in=300)
    with run_proxy(rule=server.rule) as endpoint:
        yield server, endpoint.url


def client_credentials(token_url: str, **more: Any) -> ClientCredentials:
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


def get_error(client: FhirClient) -> FhirError:
    [error] = ask(client)
    assert isinstance(error, FhirError)
    return error


def accept(*tokens: str) -> Callable[[ReceivedRequest], Reply]:
    """A server that accepts only these tokens."""
    return lambda request: Reply(
        200 if request.headers.get("Authorization", "").removeprefix("Bearer ") in tokens else 401, ANSWER
    )


class TestHeaders:
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
    def test_each_authentication_is_one_header(self, authentication: Any, header: str, value: str | None) -> None:
        with run_proxy(rule=lambda _: Reply(200, ANSWER)) as server:
            assert ask(connect(server.url, authentication)) == [RESOURCE]
            [request] = server.requests
        assert request.headers.get(header) == value
        assert {"Authorization", "X-API-Key"} & set(request.headers) <= {header}

    def test_credentials_in_the_url_become_a_header(self) -> None:
        with run_proxy(rule=lambda _: Reply(200, ANSWER)) as server:
            client = connect(server.url.replace("://", "://me:p%40ss@"))
            ask(client)
            ask(connect(server.url.replace("://", "://me:p%40ss@"), BearerToken("t")))
            assert [request.headers["Authorization"] for request in server.requests] == [
                "Basic bWU6cEBzcw==",
                "Bearer t",
            ]
        assert client.url == server.url
        assert strip_credentials("https://u:p@host/fhir/?a=b") == "https://host/fhir"
        assert parse_credentials("https://u%40x:p%3A@host/") == ("u@x", "p:")
        assert parse_credentials("https://host/") is None

    def test_a_colon_in_the_username_is_refused(self) -> None:
        with pytest.raises(ValueError, match="contains a colon"):
            Basic("a:b", "p")

    def test_a_refused_fixed_header_is_sent_once(self) -> None:
        with run_proxy(rule=lambda _: Reply(401)) as server:
            error = get_error(connect(server.url, BearerToken("t", advice="look at the token")))
            assert len(server.requests) == 1
        assert str(error) == "HTTP 401: Unauthorized; look at the token"


class TestClientCredentials:
    def test_a_token_is_requested_once_for_several_requests(
        self, token_server: tuple[AuthorizationServer, str]
    ) -> None:
        server, token_url = token_server
        with run_proxy(rule=accept("token-1")) as fhir:
            authentication = ClientCredentials(token_url, CLIENT, SECRET, "system/*.write openid")
            assert ask(connect(fhir.url, authentication), "a", "b", "c") == [RESOURCE] * 3
            assert ask(connect(fhir.url, authentication), "d") == [RESOURCE]
            assert [request.headers["Authorization"] for request in fhir.requests] == ["Bearer token-1"] * 4
        assert server.forms == [{"grant_type": ["client_credentials"], "scope": ["system/*.write openid"]}]

    @pytest.mark.parametrize(("expires_in", "renewed_after"), [(300, 270), (60, 54), (10, 9)])
    def test_a_token_is_renewed_shortly_before_it_expires(self, expires_in: int, renewed_after: int) -> None:
        server, now = AuthorizationServer(expires_in=expires_in), [1000.0]
        with run_proxy(rule=server.rule) as endpoint, run_proxy(rule=lambda _: Reply(200, ANSWER)) as fhir:
            authentication = client_credentials(endpoint.url, clock=lambda: now[0])
            for seconds in (0, renewed_after - 0.5, renewed_after):
                now[0] = 1000.0 + seconds
                ask(connect(fhir.url, authentication))
            headers = [request.headers["Authorization"] for request in fhir.requests]
        assert headers == ["Bearer token-1", "Bearer token-1", "Bearer token-2"]

    def test_a_token_without_expiry_is_used_until_it_is_refused(self) -> None:
        server, now = AuthorizationServer(), [0.0]
        with run_proxy(rule=server.rule) as endpoint, run_proxy(rule=accept("token-1")) as fhir:
            authentication = client_credentials(endpoint.url, clock=lambda: now[0])
            ask(connect(fhir.url, authentication))
            now[0] = 1e9
            assert ask(connect(fhir.url, authentication)) == [RESOURCE]
            fhir.rule = accept("token-2")
            assert ask(connect(fhir.url, authentication)) == [RESOURCE]
        assert server.issued == ["token-1", "token-2"]

    def test_a_refused_token_is_renewed_once_for_all_requests(
        self,
        token_server: tuple[AuthorizationServer, str],
    ) -> None:
        server, token_url = token_server
        with run_proxy(rule=accept("token-2")) as fhir:
            answers = ask(connect(fhir.url, client_credentials(token_url), max_concurrent_requests=6), *"abcdef")
            headers = [request.headers["Authorization"] for request in fhir.requests]
        assert answers == [RESOURCE] * 6
        assert server.issued == ["token-1", "token-2"]
        assert (headers.count("Bearer token-1"), headers.count("Bearer token-2")) == (6, 6)

    def test_a_request_is_repeated_once_with_a_new_token(self, token_server: tuple[AuthorizationServer, str]) -> None:
        server, token_url = token_server
        with run_proxy(rule=accept("another")) as fhir:
            error = get_error(connect(fhir.url, client_credentials(token_url)))
            assert len(fhir.requests) == 2
        assert str(error) == (
            "HTTP 401: Unauthorized; the server does not accept the token that fhir.token_url issued: "
            "check the client's permissions and fhir.scope"
        )
        assert len(server.issued) == 2

    @pytest.mark.parametrize(
        ("reply", "status", "text"),
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
    def test_a_refused_token_request_is_one_sentence(self, reply: Reply, status: int, text: str) -> None:
        with run_proxy(rule=lambda _: reply) as endpoint, run_proxy(rule=lambda _: Reply(200, ANSWER)) as fhir:
            error = get_error(connect(fhir.url, client_credentials(f"{endpoint.url}/token?realm=wombat")))
            assert fhir.requests == []
        assert error.status == status
        assert isinstance(error, AccessDeniedError if status == 401 else BusyError)
        assert f"HTTP {status}: {endpoint.url}/token {text}" in str(error)
        assert getattr(error, "retry_after", None) == (7.0 if "Retry-After" in reply.headers else None)
        assert not {"wombat", "quokka"} & set(" ".join(traceback.format_exception(error)).replace("+", " ").split())

    def test_a_missing_token_endpoint_is_unreachable(self) -> None:
        error = get_error(connect(URL, client_credentials("http://127.0.0.1:1/token")))
        assert isinstance(error, UnreachableError)
        assert str(error).startswith("http://127.0.0.1:1/token cannot be reached: ")

    def test_secrets_in_text_from_a_server_are_redacted(self, token_server: tuple[AuthorizationServer, str]) -> None:
        _, token_url = token_server
        basic = base64.b64encode(b"etl:wombat+%26+quokka").decode()
        outcome = operation_outcome("x", f"token-1 {SECRET} wombat+%26+quokka {basic} wombat &amp; quokka")
        with run_proxy(rule=lambda _: Reply(500, orjson.dumps(outcome))) as fhir:
            error = get_error(connect(fhir.url, client_credentials(token_url)))
        assert str(error) == "HTTP 500: x: " + " ".join(["(secret)"] * 5) + "; see the server's log"

    def test_no_representation_of_a_client_contains_secrets(
        self, token_server: tuple[AuthorizationServer, str]
    ) -> None:
        _, token_url = token_server
        authentication = client_credentials(token_url)
        with run_proxy(rule=accept("token-1")) as fhir:
            client = connect(fhir.url, authentication)
            ask(client)
        representations = "".join(repr(value) + str(vars(value)) for value in (client, authentication))
        assert authentication.secrets()[-1] == "token-1"
        assert not any(secret in representations for secret in authentication.secrets())

    @pytest.mark.parametrize(
        ("expires_in", "seconds"),
        [(300, 270), ("60", 54), (10, 9), (0, 0), (None, float("inf")), ("soon", float("inf")), ("nan", float("inf"))],
    )
    def test_the_lifetime_of_a_token(self, expires_in: Any, seconds: float) -> None:
        now, tokens = [0.0], iter("abc")

        async def send(*_: Any, **__: Any) -> Answer:
            return Answer(200, orjson.dumps({"access_token": next(tokens), "expires_in": expires_in}))

        async def request_headers(*times: float) -> list[str]:
            headers = []
            for now[0] in times:
                headers.append((await authentication.headers(send))["Authorization"])
            return headers

        authentication = client_credentials("http://token.example", clock=lambda: now[0])
        if seconds == float("inf"):
            assert asyncio.run(request_headers(0, 1e12)) == ["Bearer a"] * 2
        elif seconds == 0:
            assert asyncio.run(request_headers(0, 0)) == ["Bearer a", "Bearer b"]
        else:
            assert asyncio.run(request_headers(0, seconds - 0.01, seconds)) == ["Bearer a", "Bearer a", "Bearer b"]

    def test_a_failed_token_request_has_not_arrived(self) -> None:
        with run_proxy(rule=lambda _: Reply(500)) as endpoint:
            for token_url in (endpoint.url, "http://127.0.0.1:1/token"):
                error = get_error(connect(URL, client_credentials(token_url)))
                assert isinstance(error, TransientError)
                assert not error.may_have_arrived


class TestCertificates:
    def test_an_authority_of_ca_file_is_trusted(self, authority: Authority) -> None:
        server = AuthorizationServer()
        tls = authority.server()
        with (
            run_proxy(rule=server.rule, tls=tls) as endpoint,
            run_proxy(rule=accept("token-1"), tls=tls) as fhir,
        ):
            assert ask(connect(fhir.url, client_credentials(endpoint.url), ca_file=authority.ca_file)) == [RESOURCE]
            error = get_error(connect(fhir.url, client_credentials(endpoint.url)))
        assert server.issued == ["token-1"]
        assert str(error).startswith(f"{endpoint.url} cannot be reached: its certificate is not trusted (")

    def test_the_error_for_an_unknown_authority_says_what_to_set(self, authority: Authority) -> None:
        with run_proxy(rule=lambda _: Reply(200, ANSWER), tls=authority.server()) as fhir:
            error = get_error(connect(fhir.url))
            assert fhir.requests == []
        assert isinstance(error, UnreachableError)
        assert str(error) == (
            f"{fhir.url} cannot be reached: its certificate is not trusted (unable to get local issuer certificate); "
            "set fhir.ca_file to a PEM file with the certificate of the authority that signed it"
        )

    def test_the_error_for_another_host_does_not_advise_ca_file(self, authority: Authority) -> None:
        with run_proxy(rule=lambda _: Reply(200, ANSWER), tls=authority.server("DNS:other.example")) as fhir:
            error = get_error(connect(fhir.url, ca_file=authority.ca_file))
            assert fhir.requests == []
        assert "its certificate is not trusted (IP address mismatch" in str(error)
        assert "ca_file" not in str(error)

    def test_authorities_of_the_system_are_trusted_too(self, authority: Authority) -> None:
        context = load_certificates(authority.ca_file)
        assert isinstance(context, ssl.SSLContext)
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert context.check_hostname
        assert len(context.get_ca_certs()) == len(ssl.create_default_context().get_ca_certs()) + 1

    @pytest.mark.parametrize(
        ("content", "text"),
        [(None, "cannot be read: No such file"), ("no certificate", "contains no certificate in PEM form")],
    )
    def test_an_invalid_ca_file_is_one_sentence(self, tmp_path: Path, content: str | None, text: str) -> None:
        file = tmp_path / "ca.pem"
        if content:
            file.write_text(content)
        with pytest.raises(CertificateFileError) as refused:
            connect(URL, ca_file=str(file))
        assert str(refused.value).startswith(f"{file} {text}")
        assert refused.value.__context__ is None
