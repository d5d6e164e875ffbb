"""The FHIR server of the settings: authentication, certificates, and the server's name."""

import asyncio
import os
from pathlib import Path
from typing import Any

import orjson
import pytest

from dicom_etl.fhir_client import FhirClient, FhirError
from dicom_etl.fhir_connection import choose_authentication, choose_method, get_server_name, open_client
from dicom_etl.settings import FhirSettings, SettingsError
from tests.support.proxy import Reply, run_proxy

URL = "http://127.0.0.1:1/fhir"
RESOURCE = {"resourceType": "Basic"}
ANSWER = orjson.dumps(RESOURCE)


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("DICOM_ETL_")]:
        monkeypatch.delenv(name)


def ask(client: FhirClient) -> list[Any]:
    async def whole() -> list[Any]:
        async with client:
            return await asyncio.gather(client.execute("Patient/1", method="get"), return_exceptions=True)

    return asyncio.run(whole())


def get_error(client: FhirClient) -> FhirError:
    [error] = ask(client)
    assert isinstance(error, FhirError)
    return error


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
def test_each_authentication_is_one_header(
    monkeypatch: pytest.MonkeyPatch, fhir: Any, environment: dict[str, str], header: str, value: str | None
) -> None:
    login = environment.get("LOGIN")
    for name, secret in environment.items():
        if name != "LOGIN":
            monkeypatch.setenv(f"DICOM_ETL_FHIR_{name}", secret)
    with run_proxy(rule=lambda _: Reply(200, ANSWER)) as server:
        url = server.url.replace("://", f"://{login}@") if login else server.url
        assert ask(open_client(FhirSettings(url=url, **fhir))) == [RESOURCE]
        [request] = server.requests
    assert request.headers.get(header) == value
    assert {"Authorization", "X-API-Key"} & set(request.headers) <= {header}


@pytest.mark.parametrize(
    ("fhir", "text"),
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
        ({"username": "u"}, 'fhir.username is set but would not be used: set fhir.auth = "basic"'),
        ({"client_id": "c"}, 'fhir.client_id is set but would not be used: set fhir.auth = "oauth2"'),
    ],
)
def test_missing_settings_are_named_in_one_sentence(fhir: Any, text: str) -> None:
    with pytest.raises(SettingsError) as refused:
        choose_authentication(FhirSettings(url=URL, **fhir))
    assert str(refused.value) == text


def test_a_key_that_would_not_be_used_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICOM_ETL_FHIR_API_KEY", "k")
    with pytest.raises(SettingsError, match=r'API_KEY is set but would not be used: set fhir.auth = "api-key"'):
        choose_method(FhirSettings(url=URL))


def test_a_colon_in_the_username_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DICOM_ETL_FHIR_PASSWORD", "p")
    with pytest.raises(SettingsError, match=r"fhir\.username contains a colon"):
        choose_authentication(FhirSettings(url=URL, auth="basic", username="a:b"))


@pytest.mark.parametrize(
    ("fhir", "text"),
    [
        ({}, "set fhir.auth, or check the token (DICOM_ETL_FHIR_TOKEN, or"),
        ({"auth": "bearer"}, "check the token (DICOM_ETL_FHIR_TOKEN, or the file that fhir.token_file names)"),
        ({"auth": "basic", "username": "u"}, "check fhir.username and the password (DICOM_ETL_FHIR_PASSWORD"),
        ({"auth": "api-key"}, "check fhir.api_key_header and the API key (DICOM_ETL_FHIR_API_KEY"),
    ],
)
def test_the_error_for_a_401_says_what_to_check(monkeypatch: pytest.MonkeyPatch, fhir: Any, text: str) -> None:
    if fhir:
        for name in ("TOKEN", "PASSWORD", "API_KEY"):
            monkeypatch.setenv(f"DICOM_ETL_FHIR_{name}", "x-secret")
    with run_proxy(rule=lambda _: Reply(401)) as server:
        error = get_error(open_client(FhirSettings(url=server.url, **fhir)))
        assert len(server.requests) == 1  # a fixed header is not sent twice
    assert text in str(error)


@pytest.mark.parametrize(
    ("content", "text"),
    [(None, "cannot be read: No such file"), ("no certificate", "contains no certificate in PEM format")],
)
def test_an_invalid_ca_file_is_one_sentence(tmp_path: Path, content: str | None, text: str) -> None:
    file = tmp_path / "ca.pem"
    if content:
        file.write_text(content)
    with pytest.raises(SettingsError) as refused:
        open_client(FhirSettings(url=URL, ca_file=str(file)))
    assert str(refused.value).startswith(f"fhir.ca_file {file} {text}")
    assert refused.value.__context__ is None


def test_the_time_limit_suffices_for_a_study_of_50_000_instances() -> None:
    assert FhirSettings().timeout_seconds > 10 * 42


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
def test_a_server_name_is_readable_and_has_no_credentials(url: str, name: str) -> None:
    assert get_server_name(url) == name
