"""The FHIR client: reads, searches and writes resources, each request limited, authenticated, checked and retried.

It is fhirpy's client with one persistent session underneath; fhirpy's own methods go the same way. Every call passes
`_call`. Not here: what an answer has to look like (`answers`, `bundles`), and which writes are needed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlencode

import orjson
from fhirpy import AsyncFHIRClient
from fhirpy.base.resource_protocol import get_resource_type_id_and_class
from fhirpy.base.utils import AttrDict

from dicom_etl.fhir_client import answers, bundles
from dicom_etl.fhir_client.answers import Received
from dicom_etl.fhir_client.auth import Authentication, Basic
from dicom_etl.fhir_client.capabilities import Capabilities
from dicom_etl.fhir_client.errors import (
    AccessDeniedError,
    ConflictError,
    FhirError,
    InvalidAnswerError,
    NotFoundError,
    RejectedError,
    TransientError,
    UnreachableError,
)
from dicom_etl.fhir_client.limit import ConcurrencyLimit
from dicom_etl.fhir_client.paging import PageRequest, SearchProgress, find_next_request
from dicom_etl.fhir_client.redaction import redact
from dicom_etl.fhir_client.resources import KEPT_IN_QUERY, ServerResource, WriteRequest, WriteResult
from dicom_etl.fhir_client.retry import RetryTime, Sleep, is_transient, retry
from dicom_etl.fhir_client.session import AuthenticatedSession
from dicom_etl.fhir_client.transport import MAX_ANSWER_BYTES, MAX_RESOURCE_BYTES, Transport
from dicom_etl.fhir_client.urls import parse_credentials, strip_credentials

log = logging.getLogger(__name__)

_ACCEPT = {"Accept": "application/json"}
# HAPI answers a repeated search from a cache for 60 s, also with "nothing"; and a server that does not know a
# parameter must say so, not ignore it (FHIR R4, 3.1.1.2 and 3.1.1.4.1)
_READING = _ACCEPT | {"Cache-Control": "no-cache", "Prefer": "handling=strict"}
_JSON = _ACCEPT | {"Content-Type": "application/fhir+json"}
_WRITING = _JSON | {"Prefer": "return=minimal"}
_FORM = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}  # without it, Tomcat reads Latin-1
_FAILED_ROUNDS = 2  # of writes that all failed after all retries: the server accepts nothing, whatever it answers
_CREATED = 201
# without it, HAPI gives as many versions of a history as there were when it was read up to a minute ago
_WHOLE_HISTORY = "_since=1900-01-01T00:00:00Z"
_IDEMPOTENT = ("GET", "HEAD", "PUT", "DELETE")  # RFC 9110, 9.2.2

T = TypeVar("T")


@dataclass(frozen=True)
class _Request:
    """A request below the base address; `query_in_body`: the body is the form of a search."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes | None = None
    max_bytes: int = MAX_ANSWER_BYTES
    timeout_seconds: float | None = None
    query_in_body: bool = False


class FhirClient(AsyncFHIRClient):
    """An asynchronous FHIR client; open it with `async with` inside the event loop that uses it.

    Every method raises a `FhirError` where it does not succeed; see `errors`.

    Args:
        url: base address; credentials in it are used for Basic authentication unless there is another.
        authentication: how to authenticate.
        ca_file: PEM file of certificate authorities to trust in addition to those of the system.
        timeout_seconds: longest time for one attempt, its answer included.
        retry_seconds: longest time for all attempts of one call, counted from its first turn.
        max_concurrent_requests: limit on concurrent requests; a busy server lowers it.
        sleep: waits between attempts.

    Raises:
        CertificateFileError: `ca_file` cannot be used.

    Attributes:
        url: base address, without credentials.
        stopped: why no more requests are sent; None while they are.
        unreachable: whether that is because the server does not answer, or accepts nothing.
        answers_created: whether the server has answered 201 to a write, and so tells what was there before.
    """

    def __init__(
        self,
        url: str,
        authentication: Authentication | None = None,
        *,
        ca_file: str | None = None,
        timeout_seconds: float = 600.0,
        retry_seconds: float = 600.0,
        max_concurrent_requests: int = 4,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        super().__init__(strip_credentials(url))
        login = parse_credentials(url)
        # credentials become headers of requests only: URLs and fhirpy's own headers occur in messages
        self._authentication = authentication or (Basic(*login) if login else Authentication())
        self._session = AuthenticatedSession(Transport(self.url, ca_file, timeout_seconds), self._authentication)
        self._limit = ConcurrencyLimit(max_concurrent_requests)
        self._retry_seconds, self._sleep = retry_seconds, sleep
        self._failed_writes, self._most_failed_writes = 0, _FAILED_ROUNDS * max_concurrent_requests
        self._probe_lock = asyncio.Lock()
        self.stopped: str | None = None
        self.unreachable = False
        self.answers_created = False

    async def __aenter__(self) -> Self:
        await self._session.__aenter__()
        return self

    async def __aexit__(
        self, class_: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.__aexit__(class_, error, trace)

    # -- reading ------------------------------------------------------------------------------------------------------

    async def read(self, resource_type: str, resource_id: str) -> ServerResource | None:
        """A resource (FHIR R4, 3.1.0.1); None where a FHIR server says that there is none."""
        request = _make_read(_join_path(resource_type, resource_id))
        check = partial(answers.read_resource, resource_type=resource_type, resource_id=resource_id)
        return await self._read_if_there(request, check)

    async def read_version(self, resource_type: str, resource_id: str, version: str) -> ServerResource | None:
        """A version of a resource (FHIR R4, 3.1.0.2); None where a FHIR server says that there is none."""
        request = _make_read(_join_path(resource_type, resource_id, "_history", version))
        check = partial(answers.read_resource, resource_type=resource_type, resource_id=resource_id, version=version)
        return await self._read_if_there(request, check)

    async def read_history(
        self, resource_type: str, resource_id: str, *, count: int = 10
    ) -> list[ServerResource | None] | None:
        """The newest versions of a resource (FHIR R4, 3.1.0.10), the newest first.

        Args:
            resource_type: its type.
            resource_id: its id.
            count: how many to ask for; the server may give more or fewer.

        Returns:
            The versions, with None for a deletion; None where the server keeps no history.
        """
        request = _make_read(_join_path(resource_type, resource_id, "_history") + f"?_count={count}&{_WHOLE_HISTORY}")
        check = partial(bundles.read_history, resource_type=resource_type, resource_id=resource_id)
        try:
            return await self._read_if_there(request, check)
        except RejectedError as error:
            if error.is_unsupported:
                return None
            raise

    async def search(
        self, resource_type: str, parameters: Mapping[str, str], *, in_body: bool = False, max_pages: int = 10_000
    ) -> list[dict[str, Any]]:
        """The resources that a search finds, on all its pages (FHIR R4, 3.1.1); each once.

        Args:
            resource_type: type to search for.
            parameters: name and value, neither of them percent-encoded.
            in_body: send them in the body of a POST, so that no address contains them: servers, and whatever is in
                front of them, log addresses.
            max_pages: largest number of pages.
        """
        pages = self.iterate_search(resource_type, parameters, in_body=in_body, max_pages=max_pages)
        return [resource async for page in pages for resource in page]

    async def iterate_search(
        self, resource_type: str, parameters: Mapping[str, str], *, in_body: bool = False, max_pages: int = 10_000
    ) -> AsyncGenerator[list[dict[str, Any]], None]:
        """As `search`, page by page. Only after the last page it is known that the search was complete.

        A search whose pages expire on the server is begun anew once; what was given before is not given again.
        """
        query = urlencode(parameters, quote_via=quote)
        path = f"{resource_type}/_search" if in_body else resource_type
        first = PageRequest(path, query, in_body)
        given: set[str] = set()
        for is_last_round in (False, True):
            progress = SearchProgress(max_pages)
            request: PageRequest | None = first
            while request is not None:
                progress.add_request(request)
                try:
                    page = await self._read_page(resource_type, request)
                except NotFoundError as error:
                    if request == first:
                        raise
                    if is_last_round:
                        raise _make_expired_error(error) from None
                    log.info("a page of a search has expired; the search is begun anew")
                    break
                new = [resource for resource in progress.add_page(page) if resource["id"] not in given]
                given.update(resource["id"] for resource in new)
                if new:
                    yield new
                request = None
                if page.next_link:
                    request = find_next_request(self.url, resource_type, first, page.next_link)
            else:
                progress.finish()
                return

    async def capabilities(
        self, *, retry_seconds: float | None = None, timeout_seconds: float | None = None
    ) -> Capabilities:
        """What the server can do (FHIR R4, 3.1.0.9).

        Args:
            retry_seconds: another limit than that of the client.
            timeout_seconds: another limit than that of the client.
        """
        request = replace(_METADATA, timeout_seconds=timeout_seconds or _METADATA.timeout_seconds)
        statement, _ = await self._call(
            request,
            answers.read_capability_statement,
            retry_conflicts=True,  # of gateways: no version is asked for here
            probes=False,
            retry_seconds=retry_seconds,
        )
        return Capabilities(statement)

    # -- writing ------------------------------------------------------------------------------------------------------

    async def put(self, request: WriteRequest, *, retry_conflicts: bool | None = None) -> WriteResult:
        """Create or update a resource (FHIR R4, 3.1.0.3 and 3.1.0.4).

        Args:
            request: the resource.
            retry_conflicts: whether a conflict (409) is retried; None: where the request has no `if_match`, since it
                then means two writes at once, and otherwise a version that has to be looked at again.
        """
        headers = _WRITING | ({"If-Match": request.if_match} if request.if_match else {})
        result, attempts = await self._call(
            _Request("PUT", request.path, headers, request.body),
            partial(answers.read_put_result, request=request),
            is_write=True,
            retry_conflicts=not request.if_match if retry_conflicts is None else retry_conflicts,
        )
        self.answers_created |= result.status == _CREATED
        return replace(result, attempts=attempts)

    async def transaction(
        self, requests: Sequence[WriteRequest], *, retry_conflicts: bool | None = None, retry: bool = True
    ) -> list[WriteResult]:
        """Create or update resources, all or none (FHIR R4, 3.1.0.11.2).

        Args:
            requests: the resources; each may occur once.
            retry_conflicts: as of `put`; None: where no request has an `if_match`.
            retry: whether to retry transient errors.

        Returns:
            The results, in the order of the requests.

        Raises:
            ValueError: a resource occurs twice.
        """
        if not requests:
            return []
        if retry_conflicts is None:
            retry_conflicts = not any(request.if_match for request in requests)
        results, attempts = await self._call(
            _Request("POST", "", _WRITING, bundles.make_transaction(requests)),
            partial(bundles.read_transaction_results, requests=requests),
            is_write=True,
            retry_conflicts=retry_conflicts,
            retry_seconds=None if retry else 0.0,
        )
        self.answers_created |= any(result.status == _CREATED for result in results)
        return [replace(result, attempts=attempts) for result in results]

    async def delete(self, resource_type: Any, resource_id: str | None = None) -> bool:
        """Delete a resource (FHIR R4, 3.1.0.7).

        Args:
            resource_type: its type; or, as for fhirpy, a resource or a reference.
            resource_id: its id.

        Returns:
            True if it is gone now; False if a FHIR server says that it was not there.

        Raises:
            ConflictError: other resources refer to it.
        """
        name, identity, _ = get_resource_type_id_and_class(resource_type, resource_id)
        if identity is None:
            raise TypeError("a resource without an id cannot be deleted")
        request = _Request("DELETE", _join_path(name, identity), _ACCEPT)
        try:
            await self._call(request, answers.check_deletion, is_write=True)
        except NotFoundError as error:
            if error.is_confirmed:
                return False
            raise
        return True

    # -- fhirpy -------------------------------------------------------------------------------------------------------

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
        """The one method through which all requests of fhirpy pass (private, the same in all its versions 2.x).

        What may not be repeated (RFC 9110, 9.2.2) is retried only where the server did not receive it. The answer to a
        write has the resource, since fhirpy takes over its id and version.
        """
        method = method.upper()
        url = self._build_request_url(path, params)
        if not (url == self.url or url.startswith((f"{self.url}/", f"{self.url}?"))):
            raise ValueError("the address is not below that of the server")
        reads = method == "GET"
        body = None if data is None else orjson.dumps(data)
        headers = {**(_READING if reads else _ACCEPT if body is None else _JSON), **(extra_headers or {})}
        below = quote(url[len(self.url) :].strip("/").rstrip("?").rstrip("/"), safe=KEPT_IN_QUERY)
        request = _Request(method, below, headers, body, MAX_RESOURCE_BYTES if reads else MAX_ANSWER_BYTES)

        def read(received: Received) -> tuple[Any, int]:
            content = answers.read_content(received, needs_body=reads)
            if reads and content and content.get("type") == "searchset":
                bundles.read_search_page(received, "")  # fhirpy relies on the shape of a page
            return content, received.answer.status

        (content, status), _ = await self._call(
            request, read, is_write=not reads, is_idempotent=method in _IDEMPOTENT, probes=request.path != "metadata"
        )
        content = _add_attributes(content) if reads else content
        return (content, status) if returning_status else content

    # -- one place for all calls --------------------------------------------------------------------------------------

    async def _call(
        self,
        request: _Request,
        check: Callable[[Received], T],
        *,
        is_write: bool = False,
        is_idempotent: bool = True,
        retry_conflicts: bool = False,
        probes: bool = True,
        retry_seconds: float | None = None,
    ) -> tuple[T, int]:
        """Wait for the limit, authenticate, send, check the answer; again after a transient error.

        The limit is free for others while a retry pauses.

        Args:
            request: the request.
            check: makes the result of an answer, or raises an error.
            is_write: whether it counts for the failed writes that stop the client.
            is_idempotent: whether it may be sent again although the server may have done it.
            retry_conflicts: whether to retry a conflict that may pass.
            probes: whether to find out, after the last attempt, if the server answers at all.
            retry_seconds: limit on all attempts; None: that of the client.

        Returns:
            The result, and the number of attempts.
        """
        retry_time = RetryTime(self._retry_seconds if retry_seconds is None else retry_seconds)
        sent = 0

        async def attempt() -> T:
            nonlocal sent
            async with self._limit:
                if self.stopped:
                    raise UnreachableError(self.stopped)
                retry_time.start()
                sent += 1
                try:
                    return check(await self._receive(request))
                except FhirError as error:
                    failure = error
                # its traceback would keep the body of the answer in memory while a retry waits
                raise failure.with_traceback(None)

        def should_retry(error: FhirError) -> bool:
            if self.stopped or (error.may_have_arrived and not is_idempotent):
                return False
            return is_transient(error) or (retry_conflicts and isinstance(error, ConflictError) and error.may_pass)

        try:
            result, _ = await retry(attempt, retry_time, should_retry=should_retry, sleep=self._sleep)
        except FhirError as error:
            error.attempts = sent
            if not self.stopped:
                await self._consider_stopping(error, is_write=is_write, probes=probes)
            raise
        if is_write:
            self._failed_writes = 0
        return result, sent

    async def _receive(self, request: _Request) -> Received:
        """The answer to a request that is sent once."""
        slash = "" if not request.path or request.path.startswith("?") else "/"
        url = f"{self.url}{slash}{request.path}"
        answer = await self._session.send(
            request.method,
            url,
            request.headers,
            request.body,
            max_bytes=request.max_bytes,
            timeout_seconds=request.timeout_seconds,
            compresses=not request.query_in_body,  # Tomcat does not inflate forms, and would search for everything
        )

        def redact_words(words: str) -> str:
            if request.query_in_body:  # what is in the body of a search is redacted as if it were in the address
                told_url = f"{url}?{(request.body or b'').decode()}"
                return redact(words, self._authentication.secrets(), told_url, None)
            return redact(words, self._authentication.secrets(), url, request.body)

        return Received(answer, redact_words, self._authentication.advice)

    async def _read_if_there(self, request: _Request, check: Callable[[Received], T]) -> T | None:
        try:
            result, _ = await self._call(request, check)
        except NotFoundError as error:
            if error.is_confirmed:
                return None
            raise
        return result

    async def _read_page(self, resource_type: str, page: PageRequest) -> bundles.SearchPage:
        if page.in_body:
            request = replace(
                _make_read(page.path),
                method="POST",
                headers=_READING | _FORM,
                body=page.query.encode(),
                query_in_body=True,
            )
        else:
            request = _make_read(f"{page.path}?{page.query}" if page.query else page.path)
        result, _ = await self._call(request, partial(bundles.read_search_page, resource_type=resource_type))
        return result

    # -- when no more requests are sent -------------------------------------------------------------------------------

    async def _consider_stopping(self, error: FhirError, *, is_write: bool, probes: bool) -> None:
        """Stop, if an error means that the next request will fail as well."""
        if isinstance(error, AccessDeniedError):
            self._stop(str(error), unreachable=False)
        if not isinstance(error, TransientError):
            self._failed_writes = 0 if is_write else self._failed_writes
            return
        if is_write:
            self._failed_writes += 1
        async with self._probe_lock:  # one of several requests that failed together asks
            if probes and not self.stopped and not await self._is_answering():
                self._stop(str(error), unreachable=True)
        if self._failed_writes >= self._most_failed_writes:
            self._stop(f"the server accepts no requests; retries exhausted ({error})", unreachable=True)

    async def _is_answering(self) -> bool:
        """Whether the server answers anything at all."""
        try:
            async with self._limit:
                answers.check_status(await self._receive(_METADATA), *range(200, 300))
        except AccessDeniedError as error:
            self._stop(str(error), unreachable=False)
        except TransientError as error:
            return isinstance(error, InvalidAnswerError)
        except FhirError:  # whatever it says, it answers
            pass
        return True

    def _stop(self, reason: str, *, unreachable: bool) -> None:
        if not self.stopped:  # the first reason is the one to fix
            log.warning("no more requests are sent: %s", reason)
            self.stopped, self.unreachable = reason, unreachable


# metadata takes HAPI as long as ten studies, unless it may answer what it answered a minute ago: no `no-cache`
_METADATA = _Request("GET", "metadata", _ACCEPT, timeout_seconds=60.0)


def _make_read(path: str) -> _Request:
    return _Request("GET", path, _READING, max_bytes=MAX_RESOURCE_BYTES)


def _join_path(*segments: str) -> str:
    return "/".join(quote(segment, safe="") for segment in segments)


def _make_expired_error(error: NotFoundError) -> InvalidAnswerError:
    """The error of a search whose pages expired twice."""
    return InvalidAnswerError(
        "a page of the search had expired, also when the search was begun anew",
        status=error.status,
        advice="run again; if that does not help, several servers may share an address without sharing their searches",
    )


def _add_attributes(content: Any) -> Any:
    """JSON as fhirpy's search sets want it: the members of objects are attributes, too."""
    if isinstance(content, dict):
        members = {name: _add_attributes(value) for name, value in content.items()}
        return AttrDict(members)  # type: ignore[no-untyped-call]
    return [_add_attributes(item) for item in content] if isinstance(content, list) else content
