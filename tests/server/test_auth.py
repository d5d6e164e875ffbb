"""How we say who we are: which headers arrive, when a token is fetched, whom TLS trusts, what is said of trouble."""

import asyncio
import base64
import os
import ssl
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from dicom_etl.doctor import examine
from dicom_etl.server.auth import ClientCredentials, authorization_of, chosen_method
from dicom_etl.server.client import Client
from dicom_etl.server.errors import FhirError, ServerError, UnreachableError, UnsuitableServerError
from dicom_etl.settings import FhirSettings, Settings, SettingsError
from dicom_etl.stages.upload import upload
from tests.server.authorization import CLIENT, SECRET, AuthorizationServer
from tests.server.certificates import Authority
from tests.server.lakes import Site, Study, new_lake
from tests.server.proxy import Asked, Proxy, Reply, proxy

URL = "http://127.0.0.1:1/fhir"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DICOM_ETL_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def giver() -> Iterator[tuple[AuthorizationServer, str]]:
    """An authorization server and the address of its token endpoint."""
    server = AuthorizationServer(expires_in=300)
    with proxy(rule=server.rule) as endpoint:
        yield server, endpoint.url


def credentials(token_url: str, **more: Any) -> ClientCredentials:
    return ClientCredentials(token_url, CLIENT, SECRET, None, **more)


def ask(client: Client, *paths: str) -> list[Any]:
    """The answers (or errors) of requests that are on their way at once."""

    async def whole() -> list[Any]:
        async with client:
            requests = [client.execute(path, method="get") for path in paths or ("Patient/1",)]
            return await asyncio.gather(*requests, return_exceptions=True)

    return asyncio.run(whole())


def refusal(client: Client) -> FhirError:
    [error] = ask(client)
    assert isinstance(error, FhirError)
    return error


def only(*tokens: str) -> Callable[[Asked], Reply]:
    """A server that takes these tokens alone."""
    return lambda asked: Reply(
        200 if asked.headers.get("Authorization", "").removeprefix("Bearer ") in tokens else 401, b"{}"
    )


# -- what the settings ask for ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fhir", "environment", "header", "value"),
    [
        ({}, {}, "Authorization", None),
        ({}, {"TOKEN": "t"}, "Authorization", "Bearer t"),
        ({"auth": "bearer"}, {"TOKEN": "t"}, "Authorization", "Bearer t"),
        ({"auth": "none"}, {"TOKEN": "t"}, "Authorization", None),
        ({"auth": "basic", "username": "Jörg"}, {"PASSWORD": "p:ä"}, "Authorization", "Basic SsO2cmc6cDrDpA=="),
        ({"auth": "api-key"}, {"API_KEY": "k"}, "X-API-Key", "k"),
        ({"auth": "api-key", "api_key_header": "Ocp-Key"}, {"API_KEY": "k"}, "Ocp-Key", "k"),
        ({"auth": "basic"}, {"LOGIN": "u:p%40ss"}, "Authorization", "Basic dTpwQHNz"),
        ({}, {"LOGIN": "u:p%40ss"}, "Authorization", "Basic dTpwQHNz"),
        ({}, {"LOGIN": "u:p", "TOKEN": "t"}, "Authorization", "Bearer t"),
        ({"auth": "none"}, {"LOGIN": "u:p"}, "Authorization", None),
    ],
)
def test_each_authorization_is_one_header(
    monkeypatch: pytest.MonkeyPatch, fhir: Any, environment: dict[str, str], header: str, value: str | None
) -> None:
    login = environment.get("LOGIN")
    for name, secret in environment.items():
        if name != "LOGIN":
            monkeypatch.setenv(f"DICOM_ETL_FHIR_{name}", secret)
    with proxy(rule=lambda _: Reply(200, b"{}")) as server:
        url = server.url.replace("://", f"://{login}@") if login else server.url
        assert ask(Client.of(FhirSettings(url=url, **fhir))) == [{}]
        [asked] = server.asked
    assert asked.headers.get(header) == value
    assert {"Authorization", "X-API-Key"} & set(asked.headers) <= {header}


@pytest.mark.parametrize(
    ("fhir", "said"),
    [
        (
            {"auth": "bearer"},
            'fhir.auth is "bearer": set the token (DICOM_ETL_FHIR_TOKEN, or the file that fhir.token_file names)',
        ),
        (
            {"auth": "basic"},
            'fhir.auth is "basic": set fhir.username and the password (DICOM_ETL_FHIR_PASSWORD, or the file that '
            "fhir.password_file names)",
        ),
        (
            {"auth": "oauth2", "client_id": "etl"},
            'fhir.auth is "oauth2": set fhir.token_url and the client secret (DICOM_ETL_FHIR_CLIENT_SECRET, '
            "or the file that fhir.client_secret_file names)",
        ),
        (
            {"auth": "api-key"},
            'fhir.auth is "api-key": set the api key (DICOM_ETL_FHIR_API_KEY, or the file that '
            "fhir.api_key_file names)",
        ),
        ({"username": "u"}, 'fhir.username is set and would not be used: set fhir.auth = "basic"'),
        ({"client_id": "c"}, 'fhir.client_id is set and would not be used: set fhir.auth = "oauth2"'),
    ],
)
def test_what_is_missing_is_one_sentence(fhir: Any, said: str) -> None:
    with pytest.raises(SettingsError) as refused:
        authorization_of(FhirSettings(url=URL, **fhir))
    assert str(refused.value) == said


def test_a_key_that_would_not_be_sent_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICOM_ETL_FHIR_API_KEY", "k")
    with pytest.raises(SettingsError, match=r'API_KEY is set and would not be used: set fhir.auth = "api-key"'):
        chosen_method(FhirSettings(url=URL))


def test_a_colon_in_the_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICOM_ETL_FHIR_PASSWORD", "p")
    with pytest.raises(SettingsError, match=r"fhir\.username holds a colon"):
        authorization_of(FhirSettings(url=URL, auth="basic", username="a:b"))


@pytest.mark.parametrize(
    ("fhir", "words"),
    [
        ({}, "set fhir.auth, or check the token (DICOM_ETL_FHIR_TOKEN, or"),
        ({"auth": "bearer"}, "check the token (DICOM_ETL_FHIR_TOKEN, or the file that fhir.token_file names)"),
        ({"auth": "basic", "username": "u"}, "check fhir.username and the password (DICOM_ETL_FHIR_PASSWORD"),
        ({"auth": "api-key"}, "check fhir.api_key_header and the API key (DICOM_ETL_FHIR_API_KEY"),
    ],
)
def test_a_401_says_what_to_look_at(monkeypatch: pytest.MonkeyPatch, fhir: Any, words: str) -> None:
    if fhir:
        for name in ("TOKEN", "PASSWORD", "API_KEY"):
            monkeypatch.setenv(f"DICOM_ETL_FHIR_{name}", "x-secret")
    with proxy(rule=lambda _: Reply(401)) as server:
        error = refusal(Client.of(FhirSettings(url=server.url, **fhir)))
        assert len(server.asked) == 1  # what never changes is not tried twice
    assert words in str(error)


# -- OAuth2 client credentials ----------------------------------------------------------------------------------------


def test_a_token_is_fetched_once_and_used(giver: tuple[AuthorizationServer, str]) -> None:
    server, token_url = giver
    with proxy(rule=only("token-1")) as fhir:
        login = ClientCredentials(token_url, CLIENT, SECRET, "system/*.write openid")
        assert ask(Client(fhir.url, login), "a", "b", "c") == [{}] * 3
        assert ask(Client(fhir.url, login), "d") == [{}]
        assert [one.headers["Authorization"] for one in fhir.asked] == ["Bearer token-1"] * 4
    assert server.forms == [{"grant_type": ["client_credentials"], "scope": ["system/*.write openid"]}]


@pytest.mark.parametrize(("lives", "fetched_at"), [(300, 270), (60, 54), (10, 9)])
def test_a_token_is_renewed_a_little_before_its_end(lives: int, fetched_at: int) -> None:
    server, now = AuthorizationServer(expires_in=lives), [1000.0]
    with proxy(rule=server.rule) as endpoint, proxy(rule=lambda _: Reply(200, b"{}")) as fhir:
        login = credentials(endpoint.url, clock=lambda: now[0])
        for passed in (0, fetched_at - 0.5, fetched_at):
            now[0] = 1000.0 + passed
            ask(Client(fhir.url, login))
        used = [one.headers["Authorization"] for one in fhir.asked]
    assert used == ["Bearer token-1", "Bearer token-1", "Bearer token-2"]


def test_a_token_without_an_end_is_used_until_it_is_refused() -> None:
    server, now = AuthorizationServer(), [0.0]
    with proxy(rule=server.rule) as endpoint, proxy(rule=only("token-1")) as fhir:
        login = credentials(endpoint.url, clock=lambda: now[0])
        ask(Client(fhir.url, login))
        now[0] = 1e9
        assert ask(Client(fhir.url, login)) == [{}]
        fhir.rule = only("token-2")
        assert ask(Client(fhir.url, login)) == [{}]
    assert server.given == ["token-1", "token-2"]


def test_a_refused_token_is_fetched_once_more_for_all_that_are_on_their_way(
    giver: tuple[AuthorizationServer, str],
) -> None:
    server, token_url = giver
    with proxy(rule=only("token-2")) as fhir:
        answers = ask(Client(fhir.url, credentials(token_url)), *"abcdef")
        used = [one.headers["Authorization"] for one in fhir.asked]
    assert answers == [{}] * 6
    assert server.given == ["token-1", "token-2"]
    assert (used.count("Bearer token-1"), used.count("Bearer token-2")) == (6, 6)


def test_a_request_is_repeated_once_and_no_more(giver: tuple[AuthorizationServer, str]) -> None:
    server, token_url = giver
    with proxy(rule=only("another")) as fhir:
        error = refusal(Client(fhir.url, credentials(token_url)))
        assert len(fhir.asked) == 2
    assert str(error) == (
        "HTTP 401: Unauthorized; the server does not take the token that fhir.token_url gave: "
        "check the client's rights and fhir.scope"
    )
    assert len(server.given) == 2


@pytest.mark.parametrize(
    ("reply", "status", "said"),
    [
        (
            Reply(400, b'{"error": "invalid_scope", "error_description": "no wombat & quokka"}'),
            401,
            "gives no token: invalid_scope (HTTP 400); check fhir.scope",
        ),
        (
            Reply(401, b'{"error": "invalid_client"}'),
            401,
            "gives no token: invalid_client (HTTP 401); check fhir.client_id and the client secret",
        ),
        (
            Reply(403, b'{"error": "wombat & quokka"}'),
            401,
            "gives no token: HTTP 403; check fhir.token_url, fhir.client_id and the client secret",
        ),
        (Reply(404, b"<html>wombat"), 401, "gives no token: HTTP 404; check fhir.token_url, fhir.client_id"),
        (Reply(302, headers={"Location": "http://127.0.0.1:1/"}), 401, "gives no token: HTTP 302; check"),
        (Reply(503, b"wombat & quokka", {"Retry-After": "7"}), 503, "gives no token now; run again later"),
        (Reply(429), 429, "gives no token now; run again later"),
        (Reply(200, b"<html>login</html>"), 401, "gave no bearer token; check fhir.token_url"),
        (Reply(200, b"[]"), 401, "gave no bearer token"),
        (Reply(200, b'{"access_token": "wombat\\nX: 1"}'), 401, "gave no bearer token"),
        (Reply(200, b'{"access_token": "wombat", "token_type": "mac"}'), 401, "gave no bearer token"),
    ],
)
def test_a_token_endpoint_that_gives_none_is_told_in_a_sentence(reply: Reply, status: int, said: str) -> None:
    with proxy(rule=lambda _: reply) as endpoint, proxy(rule=lambda _: Reply(200, b"{}")) as fhir:
        error = refusal(Client(fhir.url, credentials(f"{endpoint.url}/token?realm=wombat")))
        assert fhir.asked == []
    assert isinstance(error, ServerError)
    assert error.status == status
    assert f"HTTP {status}: {endpoint.url}/token {said}" in str(error)
    assert error.retry_after == (7.0 if "Retry-After" in reply.headers else None)
    assert not {"wombat", "quokka"} & set(" ".join(traceback.format_exception(error)).replace("+", " ").split())


def test_a_token_endpoint_that_is_not_there_is_unreachable() -> None:
    error = refusal(Client(URL, credentials("http://127.0.0.1:1/token")))
    assert isinstance(error, UnreachableError)
    assert str(error).startswith("http://127.0.0.1:1/token cannot be reached: ")


def test_a_server_that_repeats_the_secrets_is_not_repeated(giver: tuple[AuthorizationServer, str]) -> None:
    _, token_url = giver
    words = (
        f"token-1 {SECRET} wombat+%26+quokka {base64.b64encode(b'etl:wombat+%26+quokka').decode()} wombat &amp; quokka"
    )
    outcome = {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "x", "diagnostics": words}]}
    with proxy(rule=lambda _: Reply(500, orjson.dumps(outcome))) as fhir:
        error = refusal(Client(fhir.url, credentials(token_url)))
    assert str(error) == "HTTP 500: x: " + " ".join(["(secret)"] * 5) + "; see the server's log"


def test_nothing_that_is_shown_of_a_client_holds_its_secrets(giver: tuple[AuthorizationServer, str]) -> None:
    _, token_url = giver
    login = credentials(token_url)
    with proxy(rule=only("token-1")) as fhir:
        client = Client(fhir.url, login)
        ask(client)
    shown = "".join(repr(thing) + str(vars(thing)) for thing in (client, login))
    assert login.secrets()[-1] == "token-1"
    assert not any(secret in shown for secret in login.secrets())


# -- TLS --------------------------------------------------------------------------------------------------------------


def test_an_own_authority_is_trusted_where_its_file_is_named(authority: Authority) -> None:
    server = AuthorizationServer()
    tls = authority.server()
    with (
        proxy(rule=server.rule, tls=tls) as endpoint,
        proxy(rule=only("token-1"), tls=tls) as fhir,
    ):
        assert ask(Client(fhir.url, credentials(endpoint.url), ca_file=authority.ca_file)) == [{}]
        error = refusal(Client(fhir.url, credentials(endpoint.url)))
    assert server.given == ["token-1"]
    assert str(error).startswith(f"{endpoint.url} cannot be reached: its certificate is not trusted (")


def test_a_certificate_that_nobody_vouches_for_says_what_to_set(authority: Authority) -> None:
    with proxy(rule=lambda _: Reply(200, b"{}"), tls=authority.server()) as fhir:
        error = refusal(Client(fhir.url))
        assert fhir.asked == []
    assert isinstance(error, UnreachableError)
    assert str(error) == (
        f"{fhir.url} cannot be reached: its certificate is not trusted (unable to get local issuer certificate); "
        "set fhir.ca_file to a PEM file with the certificate of the authority that signed it"
    )


def test_a_certificate_of_another_host_is_not_mended_by_a_file(authority: Authority) -> None:
    with proxy(rule=lambda _: Reply(200, b"{}"), tls=authority.server("DNS:other.example")) as fhir:
        error = refusal(Client(fhir.url, ca_file=authority.ca_file))
        assert fhir.asked == []
    assert "its certificate is not trusted (IP address mismatch" in str(error)
    assert "ca_file" not in str(error)


def test_the_system_s_authorities_are_trusted_beside_the_own_ones(authority: Authority) -> None:
    client = Client(URL, ca_file=authority.ca_file)
    assert isinstance(client._tls, ssl.SSLContext)
    assert client._tls.verify_mode == ssl.CERT_REQUIRED
    assert client._tls.check_hostname
    assert len(client._tls.get_ca_certs()) == len(ssl.create_default_context().get_ca_certs()) + 1


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot be read: No such file"), ("no certificate", "holds no certificate in PEM form")],
)
def test_a_file_of_authorities_that_is_none_is_one_sentence(tmp_path: Path, content: str | None, said: str) -> None:
    file = tmp_path / "ca.pem"
    if content:
        file.write_text(content)
    with pytest.raises(SettingsError) as refused:
        Client.of(FhirSettings(url=URL, ca_file=str(file)))
    assert str(refused.value).startswith(f"fhir.ca_file {file} {said}")
    assert refused.value.__context__ is None


# -- a real server ----------------------------------------------------------------------------------------------------


def test_a_guarded_server_behind_tls_takes_an_upload(
    hapi_factory: Any, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, site, lake = "opens-hapi-0815", Site("behind-tls"), new_lake(tmp_path / "lake")
    hapi = hapi_factory(auth_token=token)
    site.build(lake, "A", [Study("1", "P1")])
    tokens = AuthorizationServer(token, expires_in=60)
    tls = authority.server()

    with proxy(hapi.base_url, tls=tls) as server, proxy(rule=tokens.rule, tls=tls) as endpoint:
        common: dict[str, Any] = {"url": server.url, "ca_file": authority.ca_file, "retry_seconds": 0}
        by_oauth2 = {"auth": "oauth2", "token_url": endpoint.url, "client_id": CLIENT}

        def load(**fhir: Any) -> Any:
            [done] = upload(["A"], lake, Settings(fhir=FhirSettings(**common, **fhir)))
            return done

        refused = load()
        monkeypatch.setenv("DICOM_ETL_FHIR_CLIENT_SECRET", SECRET)
        stored = load(**by_oauth2)
        site.build(lake, "A", [Study("1", "P1", series={"1": 3})])
        monkeypatch.setenv("DICOM_ETL_FHIR_TOKEN", token)
        changed = load(auth="bearer")

    assert refused.counts["ImagingStudy"] == {"gave-up": 1}
    assert "HTTP 401" in refused.stopped
    assert stored.counts == {kind: {"stored": 1} for kind in ("Endpoint", "ImagingStudy", "Patient")}
    assert tokens.given == [token]
    assert changed.counts["ImagingStudy"] == {"stored": 1}


def test_a_server_that_is_not_trusted_is_told_before_anything_is_sent(authority: Authority, tmp_path: Path) -> None:
    lake = new_lake(tmp_path / "lake")
    Site("not-trusted").build(lake, "A", [Study("1", "P1")])
    with (
        proxy(rule=lambda _: Reply(200, b"{}"), tls=authority.server()) as server,
        pytest.raises((UnreachableError, UnsuitableServerError), match=r"set fhir\.ca_file to a PEM file"),
    ):
        upload(["A"], lake, Settings(fhir=FhirSettings(url=server.url)))


# -- doctor -----------------------------------------------------------------------------------------------------------


def said_by_doctor(server: Proxy, tmp_path: Path, **fhir: Any) -> dict[str, tuple[bool, str]]:
    settings = Settings(lake=str(tmp_path / "lake"), fhir=FhirSettings(url=server.url, **fhir))
    return {check.what: (check.ok, check.said) for check in examine(settings)}


def test_doctor_warns_of_a_secret_that_everybody_can_read(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("k")
    with proxy(rule=lambda _: Reply(404)) as server:
        told = []
        for mode in (0o644, 0o640):
            file.chmod(mode)
            told.append(said_by_doctor(server, tmp_path, auth="api-key", api_key_file=str(file)))
    assert told[0]["secrets"] == (True, f"warning: fhir.api_key_file {file} can be read by everybody: chmod o-r")
    assert "secrets" not in told[1]
    assert told[0]["authorization"] == (True, "api-key: all that it needs is there")


def test_doctor_says_what_is_missing_and_shows_no_password(tmp_path: Path) -> None:
    with proxy(rule=lambda _: Reply(404)) as server:
        lacking = said_by_doctor(server, tmp_path, auth="basic", username="u")
        server.url = server.url.replace("://", "://u:wombat@")
        told = said_by_doctor(server, tmp_path)
    assert lacking["authorization"][0] is False
    assert "set the password (DICOM_ETL_FHIR_PASSWORD" in lacking["authorization"][1]
    assert told["authorization"] == (True, "basic: all that it needs is there")
    assert told["secrets"][1].startswith("warning: fhir.url holds a password: set fhir.username")
    assert "wombat" not in str(told)
