"""The client: fhirpy's, with one persistent session underneath.

fhirpy opens a connection per request and keeps neither status nor headers of a failure; both are mended here, in the
one method through which all its requests go. What is sent, and when again, is no matter of this module.
"""

from __future__ import annotations

import base64
import gzip
import json
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import unquote, urlsplit, urlunsplit

import aiohttp
import orjson
from fhirpy import AsyncFHIRClient
from fhirpy.base.utils import AttrDict
from pydantic import SecretStr
from yarl import URL

from dicom_etl.server.errors import FhirError, ServerError, TimedOutError, UnreachableError, reason_of

_CONNECT_SECONDS = 10.0
_WORTH_ZIPPING = 1_000  # bytes
# HAPI answers a repeated search from a cache for 60 s, also with "nothing"; and a server that does not know a
# parameter must say so, not leave it out (FHIR R4, 3.1.1.2 and 3.1.1.4.1)
_READING = {"Cache-Control": "no-cache", "Prefer": "handling=strict"}
_WRITING = {"Content-Type": "application/fhir+json", "Prefer": "return=minimal"}


class _Answer(NamedTuple):
    status: int
    retry_after: str | None
    body: bytes


class Client(AsyncFHIRClient):
    """An asynchronous FHIR client; open it with `async with` inside the loop that uses it.

    Raises (from every request):
        ServerError: any answer but success, with its status.
        UnreachableError: no connection; TimedOutError: no answer in time.
    """

    def __init__(self, url: str, *, token: str | None = None, timeout: float = 300.0, connections: int = 8) -> None:
        clean, login = without_credentials(url)
        super().__init__(clean)
        # the session holds it, and nothing else: headers and URLs of requests stand in messages and tracebacks
        self._login = SecretStr(f"Bearer {token}" if token else login)
        self._secrets = tuple(filter(None, (token, login.removeprefix("Basic "))))
        self._timeout = timeout
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None
        self._zips = True

    async def __aenter__(self) -> Self:
        login = self._login.get_secret_value()
        self._session = aiohttp.ClientSession(
            headers={"Authorization": login} if login else {},
            connector=aiohttp.TCPConnector(limit=self._connections),
            timeout=aiohttp.ClientTimeout(total=self._timeout, sock_connect=_CONNECT_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _do_request(
        self,
        method: str,
        path: str,
        data: dict[str, Any] | None = None,
        params: dict[str, Any] | None = None,
        extra_headers: dict[str, str] | None = None,
        *,
        returning_status: bool = False,
    ) -> Any:
        url = self._build_request_url(path, params).rstrip("?").rstrip("/")
        headers = self._build_request_headers() | (_READING if method.lower() == "get" else {})
        body = None
        if data is not None:
            body = orjson.dumps(data)
            headers |= _WRITING
        answer = await self._exchange(method, url, headers | (extra_headers or {}), body)
        content = self._content(method, answer)
        return (content, answer.status) if returning_status else content

    async def _exchange(self, method: str, url: str, headers: dict[str, str], body: bytes | None) -> _Answer:
        zipped = body is not None and self._zips and len(body) > _WORTH_ZIPPING
        if not zipped or body is None:
            return await self._ask(method, url, headers, body)
        packed = headers | {"Content-Encoding": "gzip"}
        answer = await self._ask(method, url, packed, gzip.compress(body, compresslevel=1, mtime=0))
        if answer.status == 415:  # RFC 9110, 15.5.16: also said of an encoding that the server does not take
            self._zips = False
            answer = await self._ask(method, url, headers, body)
        return answer

    async def _ask(self, method: str, url: str, headers: dict[str, str], body: bytes | None) -> _Answer:
        if self._session is None:
            raise RuntimeError("the client is not open: use `async with`")
        try:
            # encoded: the URL goes out as it was escaped; a redirect would turn a POST into a GET
            async with self._session.request(
                method, URL(url, encoded=True), data=body, headers=headers, allow_redirects=False
            ) as response:
                return _Answer(response.status, response.headers.get("Retry-After"), await response.read())
        except TimeoutError:
            failure: FhirError = TimedOutError(f"{self.url} did not answer within {self._timeout:g} s")
        except (aiohttp.ClientError, OSError) as error:
            failure = UnreachableError(f"{self.url} cannot be reached: {_why(error)}")
        # raised here, since aiohttp's errors hold the request with its headers and would be its context
        raise failure

    def _content(self, method: str, answer: _Answer) -> Any:
        if answer.status == 304 or (200 <= answer.status < 300 and not answer.body.strip()):
            return None
        if 300 <= answer.status < 400:
            raise ServerError(answer.status, "the server redirects elsewhere; set fhir.url to where it leads")
        if not 200 <= answer.status < 300:
            reason = self._without_secrets(reason_of(answer.status, answer.body))
            raise ServerError(answer.status, reason, _seconds(answer.retry_after))
        try:
            # fhirpy's search sets want attributes; the rest is large and wants speed
            return (
                json.loads(answer.body, object_hook=AttrDict) if method.lower() == "get" else orjson.loads(answer.body)
            )
        except ValueError:
            unread = ServerError(answer.status, "the answer is not JSON: is fhir.url the address of a FHIR server?")
        raise unread

    def _without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "(secret)")
        return text


def without_credentials(url: str) -> tuple[str, str]:
    """`url` without user and password and without a slash at its end, and what they are as an Authorization."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    clean = urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", ""))
    if parts.username is None:
        return clean, ""
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return clean, "Basic " + base64.b64encode(pair.encode()).decode()


def _why(error: BaseException) -> str:
    """The system's words for a network error, which name neither header nor URL."""
    system = getattr(error, "os_error", error)
    return getattr(system, "strerror", None) or type(error).__name__


def _seconds(retry_after: str | None) -> float | None:
    """A Retry-After header (RFC 9110, 10.2.3: seconds or a date) in seconds."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        until = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, (until - datetime.now(UTC)).total_seconds())
