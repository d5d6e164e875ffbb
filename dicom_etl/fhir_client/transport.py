"""HTTP requests over one persistent session, with limits on the size of answers and on the time that they take.

This module depends neither on FHIR nor on credentials or retries: an answer with any status is an `Answer`. Redirects
are not followed, cookies are not kept, and proxies of the environment are not used.
"""

from __future__ import annotations

import asyncio
import io
import math
import ssl
import zlib
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Self

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from dicom_etl.fhir_client.errors import FhirError, InvalidAnswerError, TimedOutError, UnreachableError
from dicom_etl.fhir_client.urls import strip_credentials

MAX_RESOURCE_BYTES = 32_000_000  # a study of 50,000 instances has 8.4 MB, a page of a search several resources
MAX_ANSWER_BYTES = 16_000_000
_MAX_ERROR_BYTES = 1_000_000
_INFLATE_BYTES = 1_000_000  # that are inflated in one step
_LARGE_BYTES = 2_000_000  # larger answers are read one at a time, since each may grow to its limit
# replaces the body of a failure that cannot be read: an empty body would confirm a 404 (`answers`)
UNREADABLE = b"(unreadable)"
_CONNECT_SECONDS = 10.0
_MAX_RETRY_AFTER = 300.0  # seconds
_CHUNK_BYTES = 65_536
_UNKNOWN_AUTHORITY = (18, 19, 20, 21)  # X509_V_ERR_*: self-signed, or signed by an unknown authority


class CertificateFileError(ValueError):
    """A file of certificate authorities cannot be used; the text names the file and the problem."""


@dataclass(frozen=True)
class Answer:
    """An answer with any status.

    Attributes:
        status: HTTP status.
        body: inflated.
        retry_after: seconds, at most 300; None if the header is missing or invalid.
        etag: the header, unchanged; empty if it is missing, contradictory or not printable.
        location: the header, unchanged.
    """

    status: int
    body: bytes = b""
    retry_after: float | None = None
    etag: str = ""
    location: str = ""


class Transport:
    """Sends requests; open it with `async with` inside the event loop that uses it.

    Args:
        base_url: of the server; error messages contain it instead of the URL of a request, which may identify a person.
        ca_file: PEM file of certificate authorities to trust in addition to those of the system.
        timeout_seconds: longest time for a request including its answer.

    Raises:
        CertificateFileError: `ca_file` cannot be used.
    """

    def __init__(self, base_url: str, ca_file: str | None = None, timeout_seconds: float = 600.0) -> None:
        self._base_url = strip_credentials(base_url)
        self._tls = load_certificates(ca_file)
        self._timeout_seconds = timeout_seconds
        self._session: aiohttp.ClientSession | None = None
        self._large_answer = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._tls),  # `concurrency.ConcurrencyLimit` is the only limit
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, _class: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
        *,
        max_bytes: int = MAX_ANSWER_BYTES,
        timeout_seconds: float | None = None,
    ) -> Answer:
        """Send a request once.

        Args:
            method: HTTP method.
            url: percent-encoded; sent as it is.
            headers: of the request.
            body: of the request.
            max_bytes: largest body of an answer, inflated.
            timeout_seconds: another limit than that of the transport.

        Raises:
            UnreachableError: no connection was made, or it was lost.
            TimedOutError: no complete answer in time.
            InvalidAnswerError: the answer is too large, or its encoding is unknown or damaged.
        """
        if self._session is None:
            raise RuntimeError("the client is not open: use `async with`")
        seconds = self._timeout_seconds if timeout_seconds is None else min(timeout_seconds, self._timeout_seconds)
        server = self._base_url if url.startswith(self._base_url) else strip_credentials(url)
        headers = {"Accept-Encoding": "gzip, deflate", **headers}
        try:
            async with (
                asyncio.timeout(seconds),
                self._session.request(
                    method,
                    URL(url, encoded=True),
                    data=body,
                    headers=headers,
                    allow_redirects=False,  # a redirect could turn a POST into a GET
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
                ) as response,
            ):
                return await _read_answer(response, max_bytes, self._large_answer)
        except FhirError as error:
            failure: FhirError = error
        except aiohttp.ConnectionTimeoutError:
            failure = UnreachableError(f"{server} cannot be reached: no connection within {_CONNECT_SECONDS:g} s")
        except TimeoutError:
            failure = TimedOutError(f"{server} did not answer within {seconds:g} s")
        except (aiohttp.ClientConnectorError, aiohttp.InvalidURL) as error:
            failure = UnreachableError(f"{server} cannot be reached: {_describe(error)}")
        except (aiohttp.ClientError, OSError) as error:
            failure = UnreachableError(f"the connection to {server} was lost: {_describe(error)}")
            failure.may_have_arrived = True
        # raised here, outside of `except`: aiohttp's errors contain the request's headers and would become its context
        raise failure


async def _read_answer(response: aiohttp.ClientResponse, max_bytes: int, large_answer: asyncio.Lock) -> Answer:
    status, headers = response.status, response.headers
    is_success = 200 <= status < 300
    try:
        body = await _read_body(response, max_bytes if is_success else min(max_bytes, _MAX_ERROR_BYTES), large_answer)
    except InvalidAnswerError:
        response.close()  # the rest of the body is not needed
        if is_success:
            raise
        body = UNREADABLE  # the status of a failure is sufficient
    etags = set(headers.getall("ETag", []))
    etag = etags.pop() if len(etags) == 1 else ""
    return Answer(
        status,
        body,
        parse_retry_after(headers.get("Retry-After")),
        etag if etag.isprintable() else "",
        headers.get("Location", ""),
    )


async def _read_body(response: aiohttp.ClientResponse, max_bytes: int, large_answer: asyncio.Lock) -> bytes:
    body = Body(response.status, _get_encoding(response.headers), max_bytes)
    if (response.content_length or 0) > max_bytes:
        raise body.make_size_error()
    async with AsyncExitStack() as stack:
        is_large = False
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            body.add(chunk)
            if not is_large and body.size > _LARGE_BYTES:
                is_large = True
                await stack.enter_async_context(large_answer)
        return body.finish()


def _get_encoding(headers: CIMultiDictProxy[str]) -> str:
    codings = ",".join(headers.getall("Content-Encoding", [])).lower().split(",")
    return ",".join(coding.strip() for coding in codings if coding.strip() not in ("", "identity"))


class Body:
    """The body of an answer: collects chunks and inflates them, up to a maximal size.

    Args:
        status: HTTP status of the answer, for error messages.
        encoding: `Content-Encoding` (RFC 9110, 8.4.1): empty, gzip, x-gzip or deflate.
        max_bytes: limit on the received bytes, and on the inflated bytes.

    Raises:
        InvalidAnswerError: the encoding is unknown. `add` and `finish` raise it too: the compressed content is damaged
            or incomplete, or the body is too large.
    """

    def __init__(self, status: int, encoding: str, max_bytes: int) -> None:
        self._status, self._max_bytes = status, max_bytes
        self._received = 0
        self._content = io.BytesIO()
        self._is_deflate = encoding == "deflate"
        self._inflate: zlib._Decompress | None = None
        if encoding in ("gzip", "x-gzip", "deflate"):
            self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)  # detects gzip and zlib
        elif encoding:
            raise self._make_error("its content encoding is unknown")

    @property
    def size(self) -> int:
        """The number of bytes so far, inflated."""
        return self._content.tell()

    def add(self, chunk: bytes) -> None:
        """Add the next bytes that were received."""
        self._received += len(chunk)
        if self._received > self._max_bytes:
            raise self.make_size_error()
        if self._inflate is None:
            self._content.write(chunk)
            return
        problem = False
        try:
            self._add_inflated(chunk)
        except zlib.error:
            problem = True
        if problem:
            raise self._make_error("its compressed content is damaged")

    def finish(self) -> bytes:
        """The whole body."""
        if self._inflate is not None and self._received and not self._inflate.eof:
            raise self._make_error("its compressed content is not complete")
        return self._content.getvalue()

    def _add_inflated(self, chunk: bytes) -> None:
        """Inflate in steps: zlib allocates the output of a whole step in addition to the content so far."""
        has_more = bool(chunk)
        while has_more:
            assert self._inflate is not None
            if self._inflate.eof:  # RFC 1952, 2.2: a gzip file may have several members
                self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)
            step_bytes = min(self._max_bytes - self._content.tell() + 1, _INFLATE_BYTES)
            inflated = self._decompress(chunk, step_bytes)
            self._content.write(inflated)
            if self._content.tell() > self._max_bytes:
                raise self.make_size_error()
            # after a full step, zlib may hold further output even if it has consumed all input
            is_full_step = len(inflated) == step_bytes and not self._inflate.eof
            chunk = self._inflate.unconsumed_tail if is_full_step else self._inflate.unused_data
            has_more = is_full_step or bool(chunk)

    def _decompress(self, chunk: bytes, max_length: int) -> bytes:
        assert self._inflate is not None
        try:
            return self._inflate.decompress(chunk, max_length)
        except zlib.error:
            if not self._is_deflate or self._received != len(chunk):
                raise
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)  # RFC 9110, 8.4.1.2: some servers omit the zlib header
        return self._inflate.decompress(chunk, max_length)

    def make_size_error(self) -> InvalidAnswerError:
        """The error of a body that exceeds the limit; releases the content that was read."""
        self._content = io.BytesIO()
        return self._make_error(f"it has more than {self._max_bytes:,} bytes")

    def _make_error(self, problem: str) -> InvalidAnswerError:
        return InvalidAnswerError(f"the answer cannot be read: {problem}", status=self._status)


def load_certificates(ca_file: str | None) -> ssl.SSLContext | bool:
    """The certificate authorities to trust: those of the system, and those of a PEM file.

    Raises:
        CertificateFileError: the file cannot be read, or contains no certificate.
    """
    if ca_file is None:
        return True
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(cafile=ca_file)
    except ssl.SSLError:  # also an OSError
        problem = "contains no certificate in PEM format"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    else:
        return context
    raise CertificateFileError(f"{ca_file} {problem}")


def parse_retry_after(header: str | None) -> float | None:
    """A Retry-After header (RFC 9110, 10.2.3: seconds or a date) in seconds from 0 to 300; None if not understood."""
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        seconds = _count_seconds_until(header)
    return None if math.isnan(seconds) else min(max(0.0, seconds), _MAX_RETRY_AFTER)


def _count_seconds_until(date: str) -> float:
    try:
        until = parsedate_to_datetime(date)
        if until.tzinfo is None:  # -0000, or no zone at all
            until = until.replace(tzinfo=UTC)
        return (until - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, IndexError, OverflowError):
        return math.nan


def _describe(error: BaseException) -> str:
    """The operating system's text for a network error; it contains neither headers nor addresses."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return _describe_certificate_error(error.certificate_error)
    system_error = getattr(error, "os_error", error)
    return getattr(system_error, "strerror", None) or type(error).__name__


def _describe_certificate_error(error: Exception) -> str:
    text = f"its certificate is not trusted ({getattr(error, 'verify_message', type(error).__name__)})"
    if getattr(error, "verify_code", None) in _UNKNOWN_AUTHORITY:
        text += "; set fhir.ca_file to a PEM file with the certificate of the authority that signed it"
    return text
