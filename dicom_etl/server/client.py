"""The client: fhirpy's, with one persistent session underneath.

fhirpy opens a connection per request and keeps neither status nor headers of a failure; both are mended here, in the
one method through which all its requests go. What is sent, and when again, is no matter of this module.
"""

from __future__ import annotations

import gzip
import json
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

import aiohttp
import orjson
from fhirpy import AsyncFHIRClient
from fhirpy.base.utils import AttrDict
from yarl import URL

from dicom_etl.server.auth import Answer, Authorization, authorization_of, basic, login_of, without_credentials
from dicom_etl.server.echoes import without_values
from dicom_etl.server.errors import FhirError, ServerError, TimedOutError, UnreachableError, reason_of
from dicom_etl.settings import FhirSettings, SettingsError

_CONNECT_SECONDS = 10.0
_WORTH_ZIPPING = 1_000  # bytes
# HAPI answers a repeated search from a cache for 60 s, also with "nothing"; and a server that does not know a
# parameter must say so, not leave it out (FHIR R4, 3.1.1.2 and 3.1.1.4.1)
_READING = {"Cache-Control": "no-cache", "Prefer": "handling=strict"}
_FORM = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}  # else Tomcat reads Latin-1
_ABOUT_ITSELF = "metadata"  # takes HAPI as long as ten studies, unless it may answer what it did a minute ago
_WRITING = {"Content-Type": "application/fhir+json", "Prefer": "return=minimal"}
_NO_KNOWN_AUTHORITY = (18, 19, 20, 21)  # X509_V_ERR_*: self-signed, or signed by somebody who is not known


class Client(AsyncFHIRClient):
    """An asynchronous FHIR client; open it with `async with` inside the loop that uses it.

    Raises (from every request):
        ServerError: any answer but success, with its status.
        UnreachableError: no connection; TimedOutError: no answer in time.
    """

    def __init__(
        self,
        url: str,
        authorization: Authorization | None = None,
        *,
        ca_file: str | None = None,
        timeout: float = 600.0,
        connections: int = 8,
    ) -> None:
        super().__init__(without_credentials(url))
        login = login_of(url)
        # what it knows goes into headers alone: URLs and fhirpy's own headers stand in messages
        self._login = authorization or (basic(*login) if login else Authorization())
        self._tls = trusting(ca_file)
        self._timeout = timeout
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None
        self._zips = True

    @classmethod
    def of(cls, fhir: FhirSettings, *, connections: int = 8) -> Self:
        """The client of these settings.

        Raises:
            SettingsError: something is missing; the text says what to set.
        """
        return cls(
            fhir.url or "",
            authorization_of(fhir),
            ca_file=fhir.ca_file,
            timeout=fhir.timeout_seconds,
            connections=connections,
        )

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._connections, ssl=self._tls),
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
        reads = method.lower() == "get" and path != _ABOUT_ITSELF
        headers = self._build_request_headers() | (_READING if reads else {})
        body = None
        if data is not None:
            body = orjson.dumps(data)
            headers |= _WRITING
        answer = await self._answer(method, url, headers | (extra_headers or {}), body)
        content = _content(method, answer)
        return (content, answer.status) if returning_status else content

    async def put(self, path: str, body: bytes, *, if_match: str = "") -> dict[str, str]:
        """PUT a resource that is JSON already, if need be in place of one version alone.

        Args:
            path: Type/id.
            body: the resource.
            if_match: the version that it may replace; empty: any.

        Returns:
            status, location and etag, as the answer to a transaction has them (Bundle.entry.response).
        """
        headers = self._build_request_headers() | _WRITING
        if if_match:
            headers["If-Match"] = f'W/"{if_match}"'
        answer = await self._answer("put", self._build_request_url(path, None), headers, body)
        content = _content("put", answer)  # what is no JSON comes from somebody else than a FHIR server
        version = content.get("meta", {}).get("versionId") if isinstance(content, dict) else None
        return {
            "status": str(answer.status),
            "location": answer.location or path,
            "etag": answer.etag or str(version or ""),
        }

    async def search_unseen(self, kind: str, **parameters: str) -> Any:
        """The first page of a search whose parameters stand in no URL (FHIR R4, 3.1.0.9).

        Servers and what lies before them log URLs; what a person is known by has no place there.
        """
        form = urlencode(parameters)
        headers = self._build_request_headers() | _READING | _FORM
        answer = await self._ask("post", self._build_request_url(f"{kind}/_search", None), headers, form.encode())
        return _content("get", self._succeeded(answer, f"{kind}?{form}", None))

    async def _answer(self, method: str, url: str, headers: dict[str, str], body: bytes | None) -> Answer:
        """An answer that is a success."""
        return self._succeeded(await self._exchange(method, url, headers, body), url, body)

    def _succeeded(self, answer: Answer, url: str, sent: bytes | None) -> Answer:
        if answer.status != 304 and not 200 <= answer.status < 300:
            raise self._error(answer, url, sent)
        return answer

    async def _exchange(self, method: str, url: str, headers: dict[str, str], body: bytes | None) -> Answer:
        zipped = body is not None and self._zips and len(body) > _WORTH_ZIPPING
        if not zipped or body is None:
            return await self._ask(method, url, headers, body)
        packed = headers | {"Content-Encoding": "gzip"}
        answer = await self._ask(method, url, packed, gzip.compress(body, compresslevel=1, mtime=0))
        if answer.status == 415:  # RFC 9110, 15.5.16: also said of an encoding that the server does not take
            self._zips = False
            answer = await self._ask(method, url, headers, body)
        return answer

    async def _ask(self, method: str, url: str, headers: dict[str, str], body: bytes | None) -> Answer:
        """Ask as who we are; once more, if that was refused and can be renewed."""
        login = await self._login.headers(self._send)
        answer = await self._send(method, url, headers | login, body, self._timeout)
        if answer.status == 401 and await self._login.renew(login):
            login = await self._login.headers(self._send)
            answer = await self._send(method, url, headers | login, body, self._timeout)
        return answer

    async def _send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, seconds: float
    ) -> Answer:
        if self._session is None:
            raise RuntimeError("the client is not open: use `async with`")
        place = self.url if url.startswith(self.url) else without_credentials(url)
        time = aiohttp.ClientTimeout(total=seconds, sock_connect=_CONNECT_SECONDS)
        try:
            # encoded: the URL goes out as it was escaped; a redirect would turn a POST into a GET
            async with self._session.request(
                method, URL(url, encoded=True), data=body, headers=headers, allow_redirects=False, timeout=time
            ) as response:
                pause = _seconds(response.headers.get("Retry-After"))
                etag, location = (response.headers.get(name, "") for name in ("ETag", "Location"))
                return Answer(response.status, pause, await response.read(), etag, location)
        except TimeoutError:
            failure: FhirError = TimedOutError(f"{place} did not answer within {seconds:g} s")
        except (aiohttp.ClientError, OSError) as error:
            failure = UnreachableError(f"{place} cannot be reached: {_why(error)}")
        # raised here, since aiohttp's errors hold the request with its headers and would be its context
        raise failure

    def _error(self, answer: Answer, url: str, sent: bytes | None) -> ServerError:
        if 300 <= answer.status < 400:
            return ServerError(answer.status, "the server redirects elsewhere; set fhir.url to where it leads")

        def harmless(text: str) -> str:
            return without_values(text, self._login.secrets(), url, sent)

        reason = reason_of(answer.status, answer.body, harmless)
        advice = self._login.advice if answer.status == 401 else None
        return ServerError(answer.status, reason, answer.retry_after, advice=advice)


def escaped(token: str) -> str:
    """A part of a token in a search (FHIR R4, 3.1.1.4.1.1); percent-encoding is another matter."""
    for character in "\\$,|":
        token = token.replace(character, f"\\{character}")
    return token


def trusting(ca_file: str | None) -> ssl.SSLContext | bool:
    """Whom to trust: the system's authorities, and those of a PEM file.

    Raises:
        SettingsError: the file cannot be read, or holds no certificate.
    """
    if ca_file is None:
        return True
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(cafile=ca_file)
    except ssl.SSLError:  # also an OSError
        problem = "holds no certificate in PEM form"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    else:
        return context
    raise SettingsError(f"fhir.ca_file {ca_file} {problem}")


def _content(method: str, answer: Answer) -> Any:
    body, reading = answer.body.strip(), method.lower() == "get"
    if answer.status == 304 or not (body or reading):
        return None
    try:
        # fhirpy's search sets want attributes; the rest is large and wants speed
        return json.loads(body, object_hook=AttrDict) if reading else orjson.loads(body)
    except ValueError:
        cut = not body or body.startswith(b"{")
    if cut:  # by a gateway, say; another try may bring the whole
        raise UnreachableError(f"the answer (HTTP {answer.status}) is {'not whole' if body else 'empty'}")
    raise ServerError(answer.status, "the answer is not JSON: is fhir.url the address of a FHIR server?")


def _why(error: BaseException) -> str:
    """The system's words for a network error, which name neither header nor URL."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return _why_not_trusted(error.certificate_error)
    system = getattr(error, "os_error", error)
    return getattr(system, "strerror", None) or type(error).__name__


def _why_not_trusted(error: Exception) -> str:
    said = f"its certificate is not trusted ({getattr(error, 'verify_message', type(error).__name__)})"
    if getattr(error, "verify_code", None) in _NO_KNOWN_AUTHORITY:
        said += "; set fhir.ca_file to a PEM file with the certificate of the authority that signed it"
    return said


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
    if until.tzinfo is None:  # -0000, or no zone at all
        until = until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())
