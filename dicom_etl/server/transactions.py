"""Resources into transaction bundles, and bundles onto the server.

Each resource is a PUT under our own id: sent twice it is the same, and no search is needed. On a server that gives ids
itself it is a conditional PUT until the id is known. A refused bundle is cut in halves until the one bad resource is
alone, and the others go in. What is sent is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import orjson

from dicom_etl.server.client import Client
from dicom_etl.server.errors import FhirError, ServerError, UnreachableError
from dicom_etl.server.pace import Pace
from dicom_etl.server.retry import Budget, Sleep, is_transient, persist

log = logging.getLogger(__name__)

_LOCATION = re.compile(r"(?:^|/)([A-Z][A-Za-z]+)/([A-Za-z0-9.-]{1,64})(?:/_history/([^/?]+))?/?$")
_NOBODY_IN = (401, 403)  # said of us, not of a resource: cutting the bundle would not help
_FAILED_BUNDLES = 3  # in a row, each after all its retries: the server takes nothing, whatever it says

Key = tuple[str, str]  # type, id
T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """A resource as it is sent: canonical JSON and its digest."""

    type: str
    id: str
    body: bytes
    hash: str  # of the resource as we make it, which `body` may have more than
    at: str = ""  # its id on the server where that is another
    if_match: str = ""  # the version that it may replace; empty: any
    condition: str = ""  # the search that finds it on a server that gives ids itself
    is_new: bool = False  # the server was seen not to have it
    overwrote: str = ""  # the version that was written over, since it was not new after all

    @property
    def key(self) -> Key:
        """What it is in the ledger."""
        return self.type, self.id

    @property
    def place(self) -> Key:
        """What it is on the server."""
        return self.type, self.at or self.id


I = TypeVar("I", bound=Item)  # noqa: E741


@dataclass(frozen=True)
class Outcome:
    """What became of a resource: `state` is stored, rejected or gave-up; retrying while it is tried again.

    `version` is the server's, empty where it does not say. `place` is its id there where the server gave it.
    """

    state: str
    status: int | None = None
    version: str | None = None
    attempts: int = 0
    error: str | None = None
    place: str | None = None


def canonical(resource: dict[str, Any]) -> bytes:
    """The one way to write a resource, whatever the order of its keys."""
    return orjson.dumps(resource, option=orjson.OPT_SORT_KEYS)


def digest(body: bytes) -> str:
    """SHA-256 of a canonical resource."""
    return hashlib.sha256(body).hexdigest()


class Packer(Generic[I]):
    """Fills bundles up to a number of resources and of bytes; a resource that is too large travels alone."""

    def __init__(self, resources: int, size: int) -> None:
        self._resources, self._size = resources, size
        self._items: list[I] = []
        self._keys: set[Key] = set()
        self._bytes = 0

    def add(self, item: I) -> list[I]:
        """Take an item; returns the bundle that it no longer fitted into, or an empty list."""
        full = (
            len(self._items) >= self._resources
            or self._bytes + len(item.body) > self._size
            or item.key in self._keys  # HAPI-0535: a resource stands in a transaction once
        )
        done = self.rest() if full else []
        self._items.append(item)
        self._keys.add(item.key)
        self._bytes += len(item.body)
        return done

    def rest(self) -> list[I]:
        """The bundle that was begun."""
        items, self._items, self._keys, self._bytes = self._items, [], set(), 0
        return items


def transaction(items: Sequence[Item]) -> dict[str, Any]:
    """The transaction bundle of some items, their JSON taken as it is."""
    return {
        "resourceType": "Bundle",
        "type": "transaction",
        "entry": [{"resource": orjson.Fragment(item.body), "request": _request(item)} for item in items],
    }


def _request(item: Item) -> dict[str, str]:
    if item.condition:
        return {"method": "PUT", "url": f"{item.type}?{item.condition}"}
    request = {"method": "PUT", "url": "/".join(item.place)}
    return request | {"ifMatch": f'W/"{item.if_match}"'} if item.if_match else request


def outcomes(answer: Any, attempts: int) -> dict[Key, Outcome]:
    """What a transaction's answer says of each resource, by the location that it names and never by position.

    Raises:
        ServerError: the answer is no transaction's, or says that something in it failed.
    """
    entries = answer.get("entry", []) if isinstance(answer, dict) else None
    if entries is None or answer.get("resourceType") != "Bundle":
        raise ServerError(502, "the answer to a transaction is no Bundle")
    found: dict[Key, Outcome] = {}
    for entry in entries:
        response = entry.get("response", {})
        status = int(str(response.get("status", "0"))[:3] or 0)
        if not 200 <= status < 300:
            raise ServerError(status, "the transaction holds a response that is no success")
        if match := _LOCATION.search(response.get("location", "")):
            version = match[3] or _etag(response.get("etag"))
            found[match[1], match[2]] = Outcome("stored", status, version, attempts)
    return found


def _etag(etag: str | None) -> str:
    return (etag or "").removeprefix("W/").strip('"')


class Sender:
    """Sends bundles, and knows when it is no use to go on.

    Attributes:
        stopped: why nothing more is sent, or None.
        unreachable: whether that is because the server does not answer.
    """

    def __init__(
        self, client: Client, retry_seconds: float, *, in_flight: int = 1, sleep: Sleep = asyncio.sleep
    ) -> None:
        self._client, self._retry_seconds, self._sleep = client, retry_seconds, sleep
        self._pace = Pace(in_flight)
        self._failed_in_a_row = 0
        self.stopped: str | None = None
        self.unreachable = False

    async def send(self, items: Sequence[I], record: Callable[[I, Outcome], None]) -> list[I]:
        """Put the items onto the server; `record` gets the outcome of each.

        Returns those of which nothing is recorded yet: something on the server changed since it was looked at, and
        they must be looked at again. `overwrote` says what they wrote over.
        """
        if not items:  # all of a bundle was settled or held: that says nothing of the server
            return []
        taken: list[bool] = []

        def noted(item: I, outcome: Outcome) -> None:
            if outcome.state != "retrying":
                taken.append(outcome.state != "gave-up")
            record(item, outcome)

        stale = await self._send(items, noted, Budget(self._retry_seconds), 0)
        self._failed_in_a_row = 0 if stale or any(taken) else self._failed_in_a_row + 1
        if self._failed_in_a_row >= _FAILED_BUNDLES:
            self._stop("the server takes nothing, after all retries", unreachable=True)
        return stale

    async def ask(self, request: Callable[[], Awaitable[T]]) -> T:
        """The answer to another request, with the same patience.

        Raises:
            FhirError: it came to nothing.
        """
        if self.stopped:
            raise UnreachableError(self.stopped)
        try:
            answer, _ = await persist(lambda: self._paced(request), Budget(self._retry_seconds), sleep=self._sleep)
        except FhirError as error:
            await self._consider(error)
            raise
        return answer

    async def _paced(self, request: Callable[[], Awaitable[T]]) -> T:
        async with self._pace:
            return await request()

    async def delete(self, kind: str, identity: str) -> FhirError | None:
        """Delete a resource of ours; None when it is gone, else why it is not. A 409 says that others refer to it."""

        def again(error: BaseException) -> bool:
            return is_transient(error) and getattr(error, "status", 0) != 409

        if self.stopped:
            return UnreachableError(self.stopped)
        try:
            budget = Budget(self._retry_seconds)
            await persist(lambda: self._client.delete(kind, identity), budget, again=again, sleep=self._sleep)
        except ServerError as error:
            if error.status in (404, 410):
                return None
            if error.status != 409:
                await self._consider(error)
            return error
        except FhirError as error:
            await self._consider(error)
            return error
        return None

    async def _send(
        self, items: Sequence[I], record: Callable[[I, Outcome], None], budget: Budget, tried: int
    ) -> list[I]:
        if self.stopped:
            _give_up(items, record, None, tried, self.stopped)
            return []
        tries = tried

        def again(error: BaseException) -> bool:
            nonlocal tries
            tries += 1
            if not is_transient(error) or _is_stale(error, items):
                return False
            status = getattr(error, "status", None)
            for item in items:
                record(item, Outcome("retrying", status, None, tries, str(error)))
            return True

        try:
            answer, attempts = await persist(
                lambda: self._paced(lambda: self._put(items)), budget, again=again, sleep=self._sleep
            )
            found = outcomes(answer, tried + attempts)
            places = await self._places([item for item in items if item.condition])
        except FhirError as error:
            if _is_stale(error, items):
                return list(items)
            return await self._refused(items, record, budget, tried, error)
        again_to_see = []
        for item in items:
            outcome = found.get(places.get(item.key, item.place))
            # a transaction that succeeded has stored every entry, also one whose place it does not name
            outcome = outcome or Outcome("stored", 200, "", tried + attempts)
            if over := _written_over(item, outcome):
                again_to_see.append(replace(item, overwrote=over))
            else:
                record(item, replace(outcome, place=places[item.key][1]) if item.key in places else outcome)
        return again_to_see

    async def _put(self, items: Sequence[Item]) -> Any:
        return await self._client.execute("", data=transaction(items))

    async def _places(self, items: Sequence[Item]) -> dict[Key, Key]:
        """Where a server that gives ids itself has put the items: an answer names its ids and not ours."""
        places: dict[Key, Key] = {}
        for kind in sorted({item.type for item in items}):
            ours = {item.id for item in items if item.type == kind}
            tokens = sorted(item.condition.removeprefix("identifier=") for item in items if item.type == kind)
            path = f"{kind}?identifier={','.join(tokens)}&_elements=identifier&_count={len(tokens)}"
            bundle, _ = await persist(
                lambda path=path: self._client.execute(path, method="get"),  # type: ignore[misc]
                Budget(self._retry_seconds),
                sleep=self._sleep,
            )
            for entry in bundle.get("entry", []):
                found = entry["resource"]
                for identifier in found.get("identifier", []):
                    if identifier.get("value") in ours:
                        places[kind, identifier["value"]] = (kind, found["id"])
        return places

    async def _refused(
        self,
        items: Sequence[I],
        record: Callable[[I, Outcome], None],
        budget: Budget,
        tried: int,
        error: FhirError,
    ) -> list[I]:
        """Cut the bundle in halves. When its time is over, each part is tried once more and not again."""
        await self._consider(error)
        tried += error.attempts
        status = error.status if isinstance(error, ServerError) else None
        if self.stopped:
            _give_up(items, record, status, tried, self.stopped)
        elif len(items) > 1:
            log.info("a bundle of %d resources was refused and is cut in halves", len(items))
            middle = len(items) // 2
            stale = await self._send(items[:middle], record, budget, tried)
            return stale + await self._send(items[middle:], record, budget, tried)
        elif is_transient(error):
            _give_up(items, record, status, tried, str(error))
        else:
            record(items[0], Outcome("rejected", status, None, tried, str(error)))
        return []

    async def _consider(self, error: FhirError) -> None:
        """Stop, if an error means that the next request will fail as well."""
        if self.stopped:
            return
        if isinstance(error, ServerError) and error.status in _NOBODY_IN:
            self._stop(str(error), unreachable=False)
        elif is_transient(error) and not await self._answers():
            self._stop(str(error), unreachable=True)

    async def _answers(self) -> bool:
        try:
            await self._client.execute("metadata", method="get")
        except FhirError:
            return False
        return True

    def _stop(self, why: str, *, unreachable: bool) -> None:
        log.warning("nothing more is sent: %s", why)
        self.stopped, self.unreachable = why, unreachable


class DrySender(Sender):
    """Asks as a sender does, and neither sends nor deletes: every resource has the outcome that is hoped for."""

    async def send(self, items: Sequence[I], record: Callable[[I, Outcome], None]) -> list[I]:
        """Nothing is sent."""
        for item in items:
            record(item, Outcome("stored", version=""))
        return []

    async def delete(self, kind: str, identity: str) -> FhirError | None:  # noqa: ARG002
        """Nothing is deleted."""
        return None


def _written_over(item: Item, outcome: Outcome) -> str:
    """The version that an item replaced though the server was seen not to have it: somebody was quicker."""
    version = outcome.version or ""
    if not item.is_new or outcome.status != 200 or not version.isdecimal() or int(version) < 2:
        return ""
    return str(int(version) - 1)


def _is_stale(error: BaseException, items: Sequence[Item]) -> bool:
    """Whether an answer may say that the server has another version by now (RFC 9110, 15.5.13; HAPI says 409)."""
    return getattr(error, "status", 0) in (409, 412) and any(item.if_match for item in items)


def _give_up(
    items: Sequence[I], record: Callable[[I, Outcome], None], status: int | None, tried: int, why: str
) -> None:
    for item in items:
        record(item, Outcome("gave-up", status, None, tried, why))
