"""How a request says who asks: nothing, a bearer token, user and password, an API key, or OAuth2 client credentials.

`authorization_of` makes what the settings ask for. Secrets stay in the objects made here and go nowhere but into
headers; `secrets` names them, so that a server that repeats them is not repeated.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote_plus, unquote, urlencode, urlsplit, urlunsplit

import orjson
from pydantic import SecretStr

from dicom_etl.server.errors import ServerError
from dicom_etl.settings import SECRETS, FhirSettings, SettingsError

_TOKEN_SECONDS = 60.0  # a token is a small thing: who does not give it by then is down
_EARLY_SECONDS, _EARLY_SHARE = 30.0, 0.1  # a token is renewed so long before its end
# RFC 6749, 5.2; what else a token endpoint says is not repeated, since it may repeat what it was sent
_REFUSALS = {
    "invalid_client": "check fhir.client_id and the client secret",
    "invalid_grant": "check the client's rights",
    "invalid_request": "check fhir.token_url",
    "invalid_scope": "check fhir.scope",
    "unauthorized_client": "let the client use client credentials",
    "unsupported_grant_type": "let the server give tokens for client credentials",
}


class Answer(NamedTuple):
    """What a server answered, whatever it was; `retry_after` in seconds, other headers as they are."""

    status: int
    retry_after: float | None
    body: bytes
    etag: str = ""
    location: str = ""


class Send(Protocol):
    """One request; raises UnreachableError where nobody answers."""

    def __call__(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, seconds: float
    ) -> Awaitable[Answer]: ...


class Authorization:
    """No authorization; the others are kinds of it. `advice` is what to do about a 401."""

    advice = f"no authorization was sent: set fhir.auth, or check the token ({SECRETS['token'].places})"

    async def headers(self, send: Send) -> dict[str, str]:  # noqa: ARG002
        """The headers of a request. What is needed first is asked for by `send`."""
        return {}

    async def renew(self, refused: Mapping[str, str]) -> bool:  # noqa: ARG002
        """Whether these headers, which were refused, are no longer the newest, so that another try makes sense."""
        return False

    def secrets(self) -> tuple[str, ...]:
        """What must not be told, in every form in which it is sent."""
        return ()


class FixedHeader(Authorization):
    """A header that never changes; `also` are other secrets that its value is made of."""

    def __init__(self, name: str, value: str, advice: str, *also: str) -> None:
        self.advice = advice
        self._name, self._value = name, SecretStr(value)
        self._secrets = tuple(SecretStr(secret) for secret in (value.rpartition(" ")[2], *also))

    async def headers(self, send: Send) -> dict[str, str]:  # noqa: ARG002
        return {self._name: self._value.get_secret_value()}

    def secrets(self) -> tuple[str, ...]:
        return tuple(secret.get_secret_value() for secret in self._secrets)


class ClientCredentials(Authorization):
    """OAuth2 client credentials (RFC 6749, 4.4), the client being authenticated by Basic (2.3.1)."""

    advice = "the server does not take the token that fhir.token_url gave: check the client's rights and fhir.scope"

    def __init__(
        self,
        token_url: str,
        client_id: str,
        client_secret: str,
        scope: str | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url, self._client_id, self._scope, self._clock = token_url, client_id, scope, clock
        self._place = without_credentials(token_url)
        self._client_secret = SecretStr(client_secret)
        self._token: SecretStr | None = None
        self._until = 0.0
        self._lock = asyncio.Lock()  # many requests want a token at once; one of them fetches it

    async def headers(self, send: Send) -> dict[str, str]:
        async with self._lock:
            token = self._token
            if token is None or self._clock() >= self._until:
                token = self._token = await self._fetched(send)
            return _bearer(token)

    async def renew(self, refused: Mapping[str, str]) -> bool:
        async with self._lock:
            if self._token is not None and _bearer(self._token) == refused:
                self._token = None
        return True

    def secrets(self) -> tuple[str, ...]:
        secret = self._client_secret.get_secret_value()
        token = (self._token.get_secret_value(),) if self._token else ()
        return (secret, quote_plus(secret), self._basic(), *token)

    def _basic(self) -> str:
        return _pair(quote_plus(self._client_id), quote_plus(self._client_secret.get_secret_value()))

    async def _fetched(self, send: Send) -> SecretStr:
        form = {"grant_type": "client_credentials"} | ({"scope": self._scope} if self._scope else {})
        headers = {
            "Authorization": f"Basic {self._basic()}",
            "Accept": "application/json",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        answer = await send("POST", self._url, headers, urlencode(form).encode(), _TOKEN_SECONDS)
        if answer.status != 200:
            raise _refusal(self._place, answer)
        said = _json(answer.body)
        token, kind = said.get("access_token"), str(said.get("token_type", "bearer"))
        if not isinstance(token, str) or not token.isprintable() or not token or kind.lower() != "bearer":
            raise ServerError(401, f"{self._place} gave no bearer token", advice="check fhir.token_url")
        self._until = self._clock() + _seconds_of(said.get("expires_in"))
        return SecretStr(token)


def _bearer(token: SecretStr) -> dict[str, str]:
    return {"Authorization": f"Bearer {token.get_secret_value()}"}


def _json(body: bytes) -> dict[str, Any]:
    try:
        said = orjson.loads(body)
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _seconds_of(expires_in: Any) -> float:
    """For how long a token is used; one that does not say how long it lives is used until it is refused."""
    try:
        lives = float(expires_in)
    except (TypeError, ValueError):
        return float("inf")
    return lives - min(_EARLY_SECONDS, lives * _EARLY_SHARE)


def _refusal(place: str, answer: Answer) -> ServerError:
    status = answer.status
    if status in (408, 429) or status >= 500:
        return ServerError(status, f"{place} gives no token now", answer.retry_after, advice="run again later")
    code = str(_json(answer.body).get("error"))
    words = f"{code} (HTTP {status})" if code in _REFUSALS else f"HTTP {status}"
    # 401, whatever it was: said of us, so that no resource is blamed for it
    advice = _REFUSALS.get(code, "check fhir.token_url, fhir.client_id and the client secret")
    return ServerError(401, f"{place} gives no token: {words}", advice=advice)


# -- from the settings


def authorization_of(fhir: FhirSettings) -> Authorization:
    """What the settings ask for.

    Raises:
        SettingsError: something that it needs is missing; the text says what to set.
    """
    return _MAKERS[chosen_method(fhir)](fhir)


def chosen_method(fhir: FhirSettings) -> str:
    """`fhir.auth`, or what follows from what there is.

    Raises:
        SettingsError: there is something for an authorization that is not asked for.
    """
    if fhir.auth:
        return fhir.auth
    if fhir.secret("token"):
        return "bearer"
    if login_of(fhir.url or ""):
        return "basic"
    for method, (names, secret) in _NEEDS.items():
        given = [f"fhir.{name}" for name in names if getattr(fhir, name)]
        given += [SECRETS[secret].variable] if fhir.secret(secret) else []
        if given:
            raise SettingsError(f'{given[0]} is set and would not be used: set fhir.auth = "{method}"')
    return "none"


_NEEDS: dict[str, tuple[tuple[str, ...], str]] = {
    "basic": (("username",), "password"),
    "oauth2": (("token_url", "client_id"), "client_secret"),
    "api-key": ((), "api_key"),
    "bearer": ((), "token"),
}


def _needed(fhir: FhirSettings, method: str) -> str:
    """The secret of a method whose settings are complete."""
    names, secret = _NEEDS[method]
    missing = [f"fhir.{name}" for name in names if not getattr(fhir, name)]
    value = fhir.secret(secret)
    if value is None:
        missing.append(f"the {secret.replace('_', ' ')} ({SECRETS[secret].places})")
    if missing or value is None:
        raise SettingsError(f'fhir.auth is "{method}": set {" and ".join(missing)}')
    return value


def _of_bearer(fhir: FhirSettings) -> Authorization:
    return FixedHeader(
        "Authorization", f"Bearer {_needed(fhir, 'bearer')}", f"check the token ({SECRETS['token'].places})"
    )


def _of_basic(fhir: FhirSettings) -> Authorization:
    login = login_of(fhir.url or "")
    return basic(*login) if login and not fhir.username else basic(fhir.username or "", _needed(fhir, "basic"))


def basic(user: str, password: str) -> Authorization:
    """User and password (RFC 7617).

    Raises:
        SettingsError: the user holds a colon.
    """
    if ":" in user:
        raise SettingsError("fhir.username holds a colon, which Basic authorization cannot send")
    pair, places = _pair(user, password), SECRETS["password"].places
    return FixedHeader("Authorization", f"Basic {pair}", f"check fhir.username and the password ({places})", password)


def _of_key(fhir: FhirSettings) -> Authorization:
    key = _needed(fhir, "api-key")
    advice = f"check fhir.api_key_header and the API key ({SECRETS['api_key'].places})"
    return FixedHeader(fhir.api_key_header, key, advice, key)


def _of_oauth2(fhir: FhirSettings) -> Authorization:
    secret = _needed(fhir, "oauth2")
    return ClientCredentials(fhir.token_url or "", fhir.client_id or "", secret, fhir.scope)


_MAKERS: dict[str, Callable[[FhirSettings], Authorization]] = {
    "none": lambda _: Authorization(),
    "bearer": _of_bearer,
    "basic": _of_basic,
    "oauth2": _of_oauth2,
    "api-key": _of_key,
}


def _pair(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def login_of(url: str) -> tuple[str, str] | None:
    """User and password of an address."""
    parts = urlsplit(url)
    return None if parts.username is None else (unquote(parts.username), unquote(parts.password or ""))


def without_credentials(url: str) -> str:
    """An address without user and password, query, and slash at its end."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
