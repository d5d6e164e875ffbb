"""The FHIR client: reads, searches and writes resources; limits, authenticates, validates and retries its requests.

It extends fhirpy's client: the methods of fhirpy use the same persistent session. `_call` sends the requests of all
methods. Not here: the validation of answers (`answers`, `bundles`), and the choice of resources (`dicom_etl.upload`).
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
from dicom_etl.fhir_client.answers import ReceivedAnswer
from dicom_etl.fhir_client.auth import Authentication, Basic
from dicom_etl.fhir_client.capabilities import Capabilities
from dicom_etl.fhir_client.concurrency import ConcurrencyLimit
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
from dicom_etl.fhir_client.models import KEPT_IN_QUERY, ServerResource, WriteRequest, WriteResult
from dicom_etl.fhir_client.redaction import redact
from dicom_etl.fhir_client.retry import RetryTime, Sleep, is_transient, retry
from dicom_etl.fhir_client.search import PageRequest, SearchProgress, find_next_request
from dicom_etl.fhir_client.session import AuthenticatedSession
from dicom_etl.fhir_client.transport import MAX_ANSWER_BYTES, MAX_RESOURCE_BYTES, Transport
from dicom_etl.fhir_client.urls import parse_credentials, strip_credentials

log = logging.getLogger(__name__)

_ACCEPT = {"Accept": "application/json"}
# no-cache: HAPI answers a repeated search from a cache for 60 s, also an empty one; strict: a server must reject an
# unknown parameter, and not ignore it (FHIR R4, 3.1.1.2 and 3.1.1.4.1)
_READING = _ACCEPT | {"Cache-Control": "no-cache", "Prefer": "handling=strict"}
_JSON = _ACCEPT | {"Content-Type": "application/fhir+json"}
_WRITING = _JSON | {"Prefer": "return=minimal"}
_FORM = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}  # without it, Tomcat reads Latin-1
_FAILED_ROUNDS = 2  # of concurrent writes that all failed after all retries, until the client stops
_CREATED = 201
# without it, HAPI omits the newest versions of a history that was read less than a minute ago
_WHOLE_HISTORY = "_since=1900-01-01T00:00:00Z"
_IDEMPOTENT = ("GET", "HEAD", "PUT", "DELETE")  # RFC 9110, 9.2.2

T = TypeVar("T")


@dataclass(frozen=True)
class _Request:
    """A request; its path is relative to the base address. `query_in_body`: the body is the form of a search."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes | None = None
    max_bytes: int = MAX_ANSWER_BYTES
    timeout_seconds: float | None = None
    query_in_body: bool = False


class FhirClient(AsyncFHIRClient):
    """An asynchronous FHIR client; open it with `async with` inside the event loop that uses it.

    Every method raises a `FhirError` if it fails; see `errors`.

    Args:
        url: base address; credentials in it are used for Basic authentication unless `authentication` is given.
        authentication: authentication method.
        ca_file: PEM file of certificate authorities to trust in addition to those of the system.
        timeout_seconds: longest time for one attempt including its answer.
        retry_seconds: longest time for all attempts of one call, counted from when the limit first admits it.
        max_concurrent_requests: limit on concurrent requests; a busy server lowers it.
        sleep: waits between attempts.

    Raises:
        CertificateFileError: `ca_file` cannot be used.

    Attributes:
        url: base address, without credentials.
        stop_reason: why no more requests are sent; None while requests are sent.
        is_unreachable: whether the reason is that the server does not answer, or accepts no writes.
        has_answered_created: whether the server has answered 201 to a write, and thus distinguishes create from update.
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
        # credentials are sent only as headers of a request, since URLs and fhirpy's own headers occur in messages
        self._authentication = authentication or (Basic(*login) if login else Authentication())
        self._session = AuthenticatedSession(Transport(self.url, ca_file, timeout_seconds), self._authentication)
        self._limit = ConcurrencyLimit(max_concurrent_requests)
        self._retry_seconds, self._sleep = retry_seconds, sleep
        self._failed_writes, self._most_failed_writes = 0, _FAILED_ROUNDS * max_concurrent_requests
        self._probe_lock = asyncio.Lock()
        self.stop_reason: str | None = None
        self.is_unreachable = False
        self.has_answered_created = False

    async def __aenter__(self) -> Self:
        await self._session.__aenter__()
        return self

    async def __aexit__(
        self, class_: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.__aexit__(class_, error, trace)

    # -- reading ------------------------------------------------------------------------------------------------------

    async def read(self, resource_type: str, resource_id: str) -> ServerResource | None:
        """A resource (FHIR R4, 3.1.0.1); None if a FHIR server confirms that it does not exist."""
        request = _make_read(_join_path(resource_type, resource_id))
        check = partial(answers.read_resource, resource_type=resource_type, resource_id=resource_id)
        return await self._read_if_exists(request, check)

    async def read_version(self, resource_type: str, resource_id: str, version: str) -> ServerResource | None:
        """A version of a resource (FHIR R4, 3.1.0.2); None if a FHIR server confirms that it does not exist."""
        request = _make_read(_join_path(resource_type, resource_id, "_history", version))
        check = partial(answers.read_resource, resource_type=resource_type, resource_id=resource_id, version=version)
        return await self._read_if_exists(request, check)

    async def read_history(
        self, resource_type: str, resource_id: str, *, count: int = 10
    ) -> list[ServerResource | None] | None:
        """The newest versions of a resource (FHIR R4, 3.1.0.10), the newest first.

        Args:
            resource_type: its type.
            resource_id: its id.
            count: number of versions to request; the server may return more or fewer.

        Returns:
            The versions, with None for a deletion; None instead of the list if the server keeps no history.
        """
        request = _make_read(_join_path(resource_type, resource_id, "_history") + f"?_count={count}&{_WHOLE_HISTORY}")
        check = partial(bundles.read_history, resource_type=resource_type, resource_id=resource_id)
        try:
            return await self._read_if_exists(request, check)
        except RejectedError as error:
            if error.is_unsupported:
                return None
            raise

    async def search(
        self, resource_type: str, parameters: Mapping[str, str], *, in_body: bool = False, max_pages: int = 10_000
    ) -> list[dict[str, Any]]:
        """The resources that match a search, from all pages (FHIR R4, 3.1.1), each once.

        Args:
            resource_type: type to search for.
            parameters: name and value, neither of them percent-encoded.
            in_body: send the parameters in the body of a POST, since servers and proxies log addresses.
            max_pages: largest number of pages.
        """
        pages = self.iterate_search(resource_type, parameters, in_body=in_body, max_pages=max_pages)
        return [resource async for page in pages for resource in page]

    async def iterate_search(
        self, resource_type: str, parameters: Mapping[str, str], *, in_body: bool = False, max_pages: int = 10_000
    ) -> AsyncGenerator[list[dict[str, Any]], None]:
        """As `search`, page by page; the search is known to be complete only after the last page.

        A search whose pages expire on the server is restarted once, without yielding any resource twice.
        """
        query = urlencode(parameters, quote_via=quote)
        path = f"{resource_type}/_search" if in_body else resource_type
        first = PageRequest(path, query, in_body)
        yielded: set[str] = set()
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
                    log.info("a page of a search has expired; the search is restarted")
                    break
                new = [resource for resource in progress.add_page(page) if resource["id"] not in yielded]
                yielded.update(resource["id"] for resource in new)
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
        """The capabilities of the server (FHIR R4, 3.1.0.9).

        Args:
            retry_seconds: another limit than that of the client.
            timeout_seconds: another limit than that of the client.
        """
        request = replace(_METADATA, timeout_seconds=timeout_seconds or _METADATA.timeout_seconds)
        statement, _ = await self._call(
            request,
            answers.read_capability_statement,
            retry_conflicts=True,  # a 409 is from a gateway: this request has no version
            probe=False,
            retry_seconds=retry_seconds,
        )
        return Capabilities(statement)

    # -- writing ------------------------------------------------------------------------------------------------------

    async def put(self, request: WriteRequest, *, retry_conflicts: bool | None = None) -> WriteResult:
        """Create or update a resource (FHIR R4, 3.1.0.3 and 3.1.0.4).

        Args:
            request: the resource.
            retry_conflicts: whether to retry a conflict (409); None: only without `if_match`. Then a conflict means two
                simultaneous writes; with `if_match` it means that the resource has another version.
        """
        headers = _WRITING | ({"If-Match": request.if_match} if request.if_match else {})
        result, attempts = await self._call(
            _Request("PUT", request.path, headers, request.body),
            partial(answers.read_put_result, request=request),
            is_write=True,
            retry_conflicts=not request.if_match if retry_conflicts is None else retry_conflicts,
        )
        self.has_answered_created |= result.status == _CREATED
        return replace(result, attempts=attempts)

    async def transaction(
        self, requests: Sequence[WriteRequest], *, retry_conflicts: bool | None = None, retry: bool = True
    ) -> list[WriteResult]:
        """Create or update resources, all or none (FHIR R4, 3.1.0.11.2).

        Args:
            requests: the resources; each may occur once.
            retry_conflicts: as for `put`; None: only if no request has an `if_match`.
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
        self.has_answered_created |= any(result.status == _CREATED for result in results)
        return [replace(result, attempts=attempts) for result in results]

    async def delete(self, resource_type: Any, resource_id: str | None = None) -> bool:
        """Delete a resource (FHIR R4, 3.1.0.7).

        Args:
            resource_type: its type; or, as in fhirpy, a resource or a reference.
            resource_id: its id.

        Returns:
            True if it was deleted; False if a FHIR server confirms that it did not exist.

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
        """Send a request of fhirpy; all its requests use this method (private, and the same in all versions 2.x).

        A request that is not idempotent (RFC 9110, 9.2.2) is retried only if the server did not receive it. The answer
        to a write contains the resource, since fhirpy needs its id and version.
        """
        method = method.upper()
        url = self._build_request_url(path, params)
        if not (url == self.url or url.startswith((f"{self.url}/", f"{self.url}?"))):
            raise ValueError("the address is not below that of the server")
        is_read = method == "GET"
        body = None if data is None else orjson.dumps(data)
        headers = {**(_READING if is_read else _ACCEPT if body is None else _JSON), **(extra_headers or {})}
        relative_url = quote(url[len(self.url) :].strip("/").rstrip("?").rstrip("/"), safe=KEPT_IN_QUERY)
        request = _Request(method, relative_url, headers, body, MAX_RESOURCE_BYTES if is_read else MAX_ANSWER_BYTES)

        def read(received: ReceivedAnswer) -> tuple[Any, int]:
            content = answers.read_content(received, needs_body=is_read)
            if is_read and content and content.get("type") == "searchset":
                bundles.read_search_page(
                    received, ""
                )  # raises if the page has not the structure on which fhirpy relies
            return content, received.answer.status

        (content, status), _ = await self._call(
            request, read, is_write=not is_read, is_idempotent=method in _IDEMPOTENT, probe=request.path != "metadata"
        )
        content = _add_attributes(content) if is_read else content
        return (content, status) if returning_status else content

    # -- requests of all methods --------------------------------------------------------------------------------------

    async def _call(
        self,
        request: _Request,
        check: Callable[[ReceivedAnswer], T],
        *,
        is_write: bool = False,
        is_idempotent: bool = True,
        retry_conflicts: bool = False,
        probe: bool = True,
        retry_seconds: float | None = None,
    ) -> tuple[T, int]:
        """Send a request and validate its answer; retry it after a transient error.

        The concurrency limit is held while the request is sent, but not during the pause before a retry.

        Args:
            request: the request.
            check: turns an answer into the result, or raises an error.
            is_write: whether its failure counts as one of the failed writes after which the client stops.
            is_idempotent: whether it may be sent again if the server may have executed it.
            retry_conflicts: whether to retry a conflict that may pass.
            probe: whether to check, after the last attempt, that the server answers at all.
            retry_seconds: limit on all attempts; None: that of the client.

        Returns:
            The result, and the number of attempts.
        """
        retry_time = RetryTime(self._retry_seconds if retry_seconds is None else retry_seconds)
        sent = 0

        async def attempt() -> T:
            nonlocal sent
            async with self._limit:
                if self.stop_reason:
                    raise UnreachableError(self.stop_reason)
                retry_time.start()
                sent += 1
                try:
                    return check(await self._receive(request))
                except FhirError as error:
                    failure = error
                # the traceback would keep the body of the answer in memory during the pause
                raise failure.with_traceback(None)

        def should_retry(error: FhirError) -> bool:
            if self.stop_reason or (error.may_have_arrived and not is_idempotent):
                return False
            return is_transient(error) or (retry_conflicts and isinstance(error, ConflictError) and error.may_pass)

        try:
            result, _ = await retry(attempt, retry_time, should_retry=should_retry, sleep=self._sleep)
        except FhirError as error:
            error.attempts = sent
            if not self.stop_reason:
                await self._stop_if_needed(error, is_write=is_write, probe=probe)
            raise
        if is_write:
            self._failed_writes = 0
        return result, sent

    async def _receive(self, request: _Request) -> ReceivedAnswer:
        """Send a request once."""
        slash = "" if not request.path or request.path.startswith("?") else "/"
        url = f"{self.url}{slash}{request.path}"
        answer = await self._session.send(
            request.method,
            url,
            request.headers,
            request.body,
            max_bytes=request.max_bytes,
            timeout_seconds=request.timeout_seconds,
            compress=not request.query_in_body,  # Tomcat does not inflate forms, and would search without parameters
        )

        def redact_text(text: str) -> str:
            if request.query_in_body:  # parameters in the body are redacted as those in the address
                url_with_query = f"{url}?{(request.body or b'').decode()}"
                return redact(text, self._authentication.secrets(), url_with_query, None)
            return redact(text, self._authentication.secrets(), url, request.body)

        return ReceivedAnswer(answer, redact_text, self._authentication.advice)

    async def _read_if_exists(self, request: _Request, check: Callable[[ReceivedAnswer], T]) -> T | None:
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

    # -- stopping -----------------------------------------------------------------------------------------------------

    async def _stop_if_needed(self, error: FhirError, *, is_write: bool, probe: bool) -> None:
        """Stop the client if an error means that the next request will fail as well."""
        if isinstance(error, AccessDeniedError):
            self._stop(str(error), unreachable=False)
        if not isinstance(error, TransientError):
            self._failed_writes = 0 if is_write else self._failed_writes
            return
        if is_write:
            self._failed_writes += 1
        async with self._probe_lock:  # if several requests failed together, one of them probes
            if probe and not self.stop_reason and not await self._is_answering():
                self._stop(str(error), unreachable=True)
        if self._failed_writes >= self._most_failed_writes:
            self._stop(f"the server accepts no requests; retries exhausted ({error})", unreachable=True)

    async def _is_answering(self) -> bool:
        """Whether the server answers any request."""
        try:
            async with self._limit:
                answers.check_status(await self._receive(_METADATA), *range(200, 300))
        except AccessDeniedError as error:
            self._stop(str(error), unreachable=False)
        except TransientError as error:
            return isinstance(error, InvalidAnswerError)
        except FhirError:  # any error that has an answer
            pass
        return True

    def _stop(self, reason: str, *, unreachable: bool) -> None:
        if not self.stop_reason:  # the first reason is the cause of later ones
            log.warning("no more requests are sent: %s", reason)
            self.stop_reason, self.is_unreachable = reason, unreachable


# without `no-cache`: HAPI needs as much time for metadata as for ten studies, unless it may answer from its cache
_METADATA = _Request("GET", "metadata", _ACCEPT, timeout_seconds=60.0)


def _make_read(path: str) -> _Request:
    return _Request("GET", path, _READING, max_bytes=MAX_RESOURCE_BYTES)


def _join_path(*segments: str) -> str:
    return "/".join(quote(segment, safe="") for segment in segments)


def _make_expired_error(error: NotFoundError) -> InvalidAnswerError:
    """The error of a search whose pages expired again after it was restarted."""
    return InvalidAnswerError(
        "a page of the search had expired, also after the search was restarted",
        status=error.status,
        advice="run again; if that does not help, several servers may share one address, but not their searches",
    )


def _add_attributes(content: Any) -> Any:
    """JSON as required by fhirpy's search sets: the members of objects are attributes, too."""
    if isinstance(content, dict):
        members = {name: _add_attributes(value) for name, value in content.items()}
        return AttrDict(members)  # type: ignore[no-untyped-call]
    return [_add_attributes(item) for item in content] if isinstance(content, list) else content
