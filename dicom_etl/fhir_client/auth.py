"""Authentication of requests: none, a bearer token, username and password, an API key, OAuth2 client credentials.

This module depends neither on FHIR nor on the settings. Secrets leave these objects only as headers; `secrets` lists
them, so that they can be removed from a server's text that repeats them.
"""

from __future__ import annotations

import asyncio
import base64
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol
from urllib.parse import quote_plus, urlencode

import orjson
from pydantic import SecretStr

from dicom_etl.fhir_client.errors import AccessDeniedError, FhirError, make_error
from dicom_etl.fhir_client.transport import Answer
from dicom_etl.fhir_client.urls import strip_credentials

_TOKEN_SECONDS = 60.0  # longest wait for a token
_MAX_TOKEN_BYTES = 1_000_000
_EARLY_SECONDS, _EARLY_SHARE = 30.0, 0.1  # how long before its expiry a token is renewed
# RFC 6749, 5.2; nothing else of a token endpoint's answer is shown, since it may contain what was sent
_REFUSALS = {
    "invalid_client": "check {0}.client_id and the client secret",
    "invalid_grant": "check the client's permissions",
    "invalid_request": "check {0}.token_url",
    "invalid_scope": "check {0}.scope",
    "unauthorized_client": "permit the client to use client credentials",
    "unsupported_grant_type": "configure the server to issue tokens for client credentials",
}


class Send(Protocol):
    """Sends one request, as `Transport.send` does; raises UnreachableError if there is no answer."""

    def __call__(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        *,
        max_bytes: int = ...,
        timeout_seconds: float | None = ...,
    ) -> Awaitable[Answer]: ...


class Authentication:
    """No authentication, and the base class of the others.

    Args:
        advice: what to do about a 401.
    """

    def __init__(self, advice: str = "no credentials were sent: configure the authentication") -> None:
        self.advice = advice

    async def headers(self, send: Send) -> dict[str, str]:  # noqa: ARG002
        """The headers of a request; a token is requested with `send` first if one is needed."""
        return {}

    async def renew(self, refused: Mapping[str, str]) -> bool:  # noqa: ARG002
        """Whether another attempt makes sense after the server refused these headers, because there are newer ones."""
        return False

    def secrets(self) -> tuple[str, ...]:
        """The secrets, in every form in which they are sent."""
        return ()


class FixedHeader(Authentication):
    """A header that never changes, such as an API key.

    Args:
        name: of the header.
        value: of the header.
        advice: what to do about a 401.
        secrets: other secrets that the value contains.
    """

    def __init__(self, name: str, value: str, *, advice: str = "check the API key", secrets: tuple[str, ...] = ()):
        super().__init__(advice)
        self._name, self._value = name, SecretStr(value)
        self._secrets = tuple(SecretStr(secret) for secret in (value, value.rpartition(" ")[2], *secrets))

    async def headers(self, send: Send) -> dict[str, str]:  # noqa: ARG002
        return {self._name: self._value.get_secret_value()}

    def secrets(self) -> tuple[str, ...]:
        return tuple(secret.get_secret_value() for secret in self._secrets)


class BearerToken(FixedHeader):
    """A bearer token (RFC 6750) that was issued in advance."""

    def __init__(self, token: str, *, advice: str = "check the token") -> None:
        super().__init__("Authorization", f"Bearer {token}", advice=advice)


class Basic(FixedHeader):
    """Username and password (RFC 7617).

    Raises:
        ValueError: the username contains a colon.
    """

    def __init__(self, username: str, password: str, *, advice: str = "check the username and the password") -> None:
        if ":" in username:
            raise ValueError("the username contains a colon, which Basic authentication cannot send")
        pair = _encode_pair(username, password)
        super().__init__("Authorization", f"Basic {pair}", advice=advice, secrets=(password,))


class ClientCredentials(Authentication):
    """OAuth2 client credentials (RFC 6749, 4.4); the client authenticates with Basic (2.3.1).

    Args:
        token_url: token endpoint.
        client_id: the client.
        client_secret: its secret.
        scope: scopes to request, separated by blanks.
        section: section of the settings that error messages name.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        token_url: str,
        client_id: str,
        client_secret: str,
        scope: str | None = None,
        *,
        section: str = "fhir",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            f"the server does not accept the token that {section}.token_url issued: "
            f"check the client's permissions and {section}.scope"
        )
        self._url, self._client_id, self._scope, self._clock = token_url, client_id, scope, clock
        self._section, self._endpoint = section, strip_credentials(token_url)
        self._client_secret = SecretStr(client_secret)
        self._token: SecretStr | None = None
        self._expires = 0.0
        self._lock = asyncio.Lock()  # many requests need a token at once; one of them requests it

    async def headers(self, send: Send) -> dict[str, str]:
        async with self._lock:
            token = self._token
            if token is None or self._clock() >= self._expires:
                token = self._token = await self._request_token(send)
            return _make_bearer_header(token)

    async def renew(self, refused: Mapping[str, str]) -> bool:
        async with self._lock:
            if self._token is not None and _make_bearer_header(self._token) == refused:
                self._token = None
        return True

    def secrets(self) -> tuple[str, ...]:
        secret = self._client_secret.get_secret_value()
        token = (self._token.get_secret_value(),) if self._token else ()
        return (secret, quote_plus(secret), self._encode_basic(), *token)

    def _encode_basic(self) -> str:
        return _encode_pair(quote_plus(self._client_id), quote_plus(self._client_secret.get_secret_value()))

    async def _request_token(self, send: Send) -> SecretStr:
        form = {"grant_type": "client_credentials"} | ({"scope": self._scope} if self._scope else {})
        headers = {
            "Authorization": f"Basic {self._encode_basic()}",
            "Accept": "application/json",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        body = urlencode(form).encode()
        answer = await self._send_form(send, headers, body)
        if answer.status != 200:
            raise self._make_refusal_error(answer)
        content = _parse_object(answer.body)
        token, token_type = content.get("access_token"), str(content.get("token_type", "bearer"))
        if not isinstance(token, str) or not token.isprintable() or not token or token_type.lower() != "bearer":
            raise AccessDeniedError(
                f"{self._endpoint} issued no bearer token", status=401, advice=f"check {self._section}.token_url"
            )
        self._expires = self._clock() + _compute_lifetime(content.get("expires_in"))
        return SecretStr(token)

    async def _send_form(self, send: Send, headers: Mapping[str, str], body: bytes) -> Answer:
        try:
            return await send(
                "POST", self._url, headers, body, max_bytes=_MAX_TOKEN_BYTES, timeout_seconds=_TOKEN_SECONDS
            )
        except FhirError as error:
            error.may_have_arrived = False  # the request that needs the token was not sent
            raise

    def _make_refusal_error(self, answer: Answer) -> FhirError:
        status = answer.status
        if status in (408, 429) or status >= 500:
            reason = f"{self._endpoint} issues no token at present"
            error = make_error(status, reason, advice="run again later", retry_after=answer.retry_after)
            error.may_have_arrived = False
            return error
        code = str(_parse_object(answer.body).get("error"))
        refusal = f"{code} (HTTP {status})" if code in _REFUSALS else f"HTTP {status}"
        advice = _REFUSALS.get(code, "check {0}.token_url, {0}.client_id and the client secret")
        # always 401: the credentials are the problem, not the resource that is being sent
        return AccessDeniedError(
            f"{self._endpoint} issues no token: {refusal}", status=401, advice=advice.format(self._section)
        )


def _make_bearer_header(token: SecretStr) -> dict[str, str]:
    return {"Authorization": f"Bearer {token.get_secret_value()}"}


def _parse_object(body: bytes) -> dict[str, Any]:
    try:
        content = orjson.loads(body)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _compute_lifetime(expires_in: object) -> float:
    """Seconds for which a token is used; without an expiry it is used until the server refuses it."""
    try:
        seconds = float(expires_in)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.inf
    return math.inf if math.isnan(seconds) else seconds - min(_EARLY_SECONDS, seconds * _EARLY_SHARE)


def _encode_pair(username: str, password: str) -> str:
    return base64.b64encode(f"{username}:{password}".encode()).decode()
