"""The FHIR server of the settings: its client, its authentication, and its name in the lake.

Not in `fhir_client`, since that package does not know the settings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from urllib.parse import urlsplit

from dicom_etl.fhir_client.auth import Authentication, Basic, BearerToken, ClientCredentials, FixedHeader
from dicom_etl.fhir_client.client import FhirClient
from dicom_etl.fhir_client.transport import CertificateFileError
from dicom_etl.fhir_client.urls import parse_credentials, strip_credentials
from dicom_etl.settings import SECRETS, FhirSettings, SettingsError

_PORTS = {"http": 80, "https": 443}


def open_client(fhir: FhirSettings) -> FhirClient:
    """The client for the server of the settings; open it with `async with`.

    Raises:
        SettingsError: a setting is missing or invalid; the text says what to set.
    """
    try:
        return FhirClient(
            fhir.url or "",
            choose_authentication(fhir),
            ca_file=fhir.ca_file,
            timeout_seconds=fhir.timeout_seconds,
            retry_seconds=fhir.retry_seconds,
            max_concurrent_requests=fhir.max_concurrent_requests,
        )
    except CertificateFileError as error:
        problem = str(error)
    raise SettingsError(f"fhir.ca_file {problem}")


def get_server_name(url: str) -> str:
    """The name of a server in the lake: `host_port_path` of its base URL, such as `hapi_8080_fhir`.

    It contains no credentials, and is the same for all spellings of a URL (`http://hapi:8080/fhir/`).
    """
    parts = urlsplit(strip_credentials(url))
    segments = [segment for segment in parts.path.split("/") if segment]
    words = [parts.hostname or "", str(parts.port or _PORTS.get(parts.scheme, 0)), *segments]
    name = "_".join(words)
    if any("_" in word for word in words):  # otherwise a/b and a_b would share a ledger
        name += f"-{hashlib.sha256('/'.join(words).encode()).hexdigest()[:8]}"
    return name


def choose_authentication(fhir: FhirSettings) -> Authentication:
    """The authentication of the settings.

    Raises:
        SettingsError: a setting that the method needs is missing; the text says what to set.
    """
    return _METHODS[choose_method(fhir)](fhir)


def choose_method(fhir: FhirSettings) -> str:
    """The authentication method: `fhir.auth`, or the one that the other settings imply.

    Raises:
        SettingsError: a setting would have no effect, since its method is not chosen.
    """
    if fhir.auth:
        return fhir.auth
    if fhir.secret("token"):
        return "bearer"
    if parse_credentials(fhir.url or ""):
        return "basic"
    for method, (names, secret) in _REQUIREMENTS.items():
        unused = [f"fhir.{name}" for name in names if getattr(fhir, name)]
        unused += [SECRETS[secret].variable] if fhir.secret(secret) else []
        if unused:
            raise SettingsError(f'{unused[0]} is set but would not be used: set fhir.auth = "{method}"')
    return "none"


_REQUIREMENTS: dict[str, tuple[tuple[str, ...], str]] = {  # method -> settings, secret
    "basic": (("username",), "password"),
    "oauth2": (("token_url", "client_id"), "client_secret"),
    "api-key": ((), "api_key"),
    "bearer": ((), "token"),
}


def _require_secret(fhir: FhirSettings, method: str) -> str:
    """The secret of a method; checks that the method has all its settings."""
    names, secret = _REQUIREMENTS[method]
    missing = [f"fhir.{name}" for name in names if not getattr(fhir, name)]
    value = fhir.secret(secret)
    if value is None:
        missing.append(f"the {secret.replace('_', ' ')} ({SECRETS[secret].description})")
    if missing or value is None:
        raise SettingsError(f'fhir.auth is "{method}": set {" and ".join(missing)}')
    return value


def _make_none(_: FhirSettings) -> Authentication:
    return Authentication(
        f"no credentials were sent: set fhir.auth, or check the token ({SECRETS['token'].description})"
    )


def _make_bearer(fhir: FhirSettings) -> Authentication:
    return BearerToken(_require_secret(fhir, "bearer"), advice=f"check the token ({SECRETS['token'].description})")


def _make_basic(fhir: FhirSettings) -> Authentication:
    login = parse_credentials(fhir.url or "")
    if login is None or fhir.username:
        login = (fhir.username or "", _require_secret(fhir, "basic"))
    if ":" in login[0]:
        raise SettingsError("fhir.username contains a colon, which Basic authentication cannot send")
    return Basic(*login, advice=f"check fhir.username and the password ({SECRETS['password'].description})")


def _make_api_key(fhir: FhirSettings) -> Authentication:
    advice = f"check fhir.api_key_header and the API key ({SECRETS['api_key'].description})"
    return FixedHeader(fhir.api_key_header, _require_secret(fhir, "api-key"), advice=advice)


def _make_oauth2(fhir: FhirSettings) -> Authentication:
    secret = _require_secret(fhir, "oauth2")
    return ClientCredentials(fhir.token_url or "", fhir.client_id or "", secret, fhir.scope)


_METHODS: dict[str, Callable[[FhirSettings], Authentication]] = {
    "none": _make_none,
    "bearer": _make_bearer,
    "basic": _make_basic,
    "oauth2": _make_oauth2,
    "api-key": _make_api_key,
}
