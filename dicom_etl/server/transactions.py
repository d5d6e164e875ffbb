"""Resources into transaction bundles, and bundles onto the server.

Each resource is a PUT under our own id: sent twice it is the same, and no search is needed. A refused bundle is cut
in halves until the one bad resource is alone, and the others go in. What is sent is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import orjson

from dicom_etl.server.client import Client
from dicom_etl.server.errors import FhirError, ServerError, UnreachableError
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
    hash: str

    @property
    def key(self) -> Key:
        """What it is on the server."""
        return self.type, self.id


I = TypeVar("I", bound=Item)  # noqa: E741


@dataclass(frozen=True)
class Outcome:
    """What became of a resource: `state` is stored, rejected or gave-up.

    `version` is the server's, empty where it does not say.
    """

    state: str
    status: int | None = None
    version: str | None = None
    attempts: int = 0
    error: str | None = None


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
        "entry": [
            {
                "resource": orjson.Fragment(item.body),
                "request": {"method": "PUT", "url": f"{item.type}/{item.id}"},
            }
            for item in items
        ],
    }


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

    def __init__(self, client: Client, retry_seconds: float, *, sleep: Sleep = asyncio.sleep) -> None:
        self._client, self._retry_seconds, self._sleep = client, retry_seconds, sleep
        self._failed_in_a_row = 0
        self.stopped: str | None = None
        self.unreachable = False

    async def send(self, items: Sequence[I], record: Callable[[I, Outcome], None]) -> None:
        """Put the items onto the server; `record` gets the outcome of each."""
        taken: list[bool] = []

        def noted(item: I, outcome: Outcome) -> None:
            taken.append(outcome.state != "gave-up")
            record(item, outcome)

        await self._send(items, noted, Budget(self._retry_seconds), 0)
        self._failed_in_a_row = 0 if any(taken) else self._failed_in_a_row + 1
        if self._failed_in_a_row >= _FAILED_BUNDLES:
            self._stop("the server takes nothing, after all retries", unreachable=True)

    async def ask(self, request: Callable[[], Awaitable[T]]) -> T:
        """The answer to another request, with the same patience.

        Raises:
            FhirError: it came to nothing.
        """
        if self.stopped:
            raise UnreachableError(self.stopped)
        try:
            answer, _ = await persist(request, Budget(self._retry_seconds), sleep=self._sleep)
        except FhirError as error:
            await self._consider(error)
            raise
        return answer

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

    async def _send(self, items: Sequence[I], record: Callable[[I, Outcome], None], budget: Budget, tried: int) -> None:
        if self.stopped:
            _give_up(items, record, None, tried, self.stopped)
            return
        try:
            answer, attempts = await persist(lambda: self._put(items), budget, sleep=self._sleep)
            found = outcomes(answer, tried + attempts)
        except FhirError as error:
            await self._refused(items, record, budget, tried, error)
            return
        for item in items:
            # a transaction that succeeded has stored every entry, also one whose place it does not name
            record(item, found.get(item.key) or Outcome("stored", 200, "", tried + attempts))

    async def _put(self, items: Sequence[Item]) -> Any:
        return await self._client.execute("", data=transaction(items))

    async def _refused(
        self,
        items: Sequence[I],
        record: Callable[[I, Outcome], None],
        budget: Budget,
        tried: int,
        error: FhirError,
    ) -> None:
        """Cut the bundle in halves. When its time is over, each part is tried once more and not again."""
        await self._consider(error)
        tried += error.attempts
        status = error.status if isinstance(error, ServerError) else None
        if self.stopped:
            _give_up(items, record, status, tried, self.stopped)
        elif len(items) > 1:
            log.info("a bundle of %d resources was refused and is cut in halves", len(items))
            middle = len(items) // 2
            await self._send(items[:middle], record, budget, tried)
            await self._send(items[middle:], record, budget, tried)
        elif is_transient(error):
            _give_up(items, record, status, tried, str(error))
        else:
            record(items[0], Outcome("rejected", status, None, tried, str(error)))

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

    async def send(self, items: Sequence[I], record: Callable[[I, Outcome], None]) -> None:
        """Nothing is sent."""
        for item in items:
            record(item, Outcome("stored", version=""))

    async def delete(self, kind: str, identity: str) -> FhirError | None:  # noqa: ARG002
        """Nothing is deleted."""
        return None


def _give_up(
    items: Sequence[I], record: Callable[[I, Outcome], None], status: int | None, tried: int, why: str
) -> None:
    for item in items:
        record(item, Outcome("gave-up", status, None, tried, why))
