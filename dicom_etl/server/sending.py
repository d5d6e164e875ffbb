"""Resources onto the server: small ones together in a transaction, a large one by itself.

A refused transaction is cut in halves until the one bad resource is alone, and the others go in. What is sent is
decided elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from dicom_etl.server.client import Client
from dicom_etl.server.errors import FhirError, ServerError, UnreachableError
from dicom_etl.server.pace import Pace
from dicom_etl.server.retry import Budget, Sleep, is_transient, persist
from dicom_etl.server.searching import searched
from dicom_etl.server.tasks import together
from dicom_etl.server.transactions import Item, Key, Outcome, outcomes, shipments, transaction, travels_alone

log = logging.getLogger(__name__)

_NOBODY_IN = (401, 403)  # said of us, not of a resource: cutting the bundle would not help
_PLACES_AT_ONCE = 25  # identifiers of up to 150 characters in the URL of one search
_ROUNDS = 2  # of requests that all failed, each after all its retries: the server takes nothing, whatever it says

I = TypeVar("I", bound=Item)  # noqa: E741
T = TypeVar("T")


class Sender:
    """Sends resources, and knows when it is no use to go on.

    Attributes:
        stopped: why nothing more is sent, or None.
        unreachable: whether that is because the server does not answer.
    """

    def __init__(
        self,
        client: Client,
        retry_seconds: float,
        *,
        in_flight: int = 1,
        alone_bytes: float = math.inf,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._client, self._retry_seconds, self._sleep = client, retry_seconds, sleep
        self._alone_bytes = alone_bytes
        self._pace, self._room = Pace(in_flight), asyncio.Semaphore(in_flight)
        self._failed_in_a_row, self._most_failed = 0, _ROUNDS * in_flight
        self.stopped: str | None = None
        self.unreachable = False

    async def send(self, items: Sequence[I], record: Callable[[I, Outcome], None]) -> list[I]:
        """Put the items onto the server: large ones each by itself, the others in one transaction, all at once as far
        as there is room. `record` gets the outcome of each.

        Returns those of which nothing is recorded yet: something on the server changed since it was looked at, and
        they must be looked at again. `overwrote` says what they wrote over.
        """
        if not items:  # all of a bundle was settled or held: that says nothing of the server
            return []
        sent = await together(self._ship(some, record) for some in shipments(items, self._alone_bytes))
        return [item for some in sent for item in some]

    async def _ship(self, items: Sequence[I], record: Callable[[I, Outcome], None]) -> list[I]:
        """Send what goes in one request, and count those in a row of which the server took nothing."""
        taken: list[bool] = []

        def noted(item: I, outcome: Outcome) -> None:
            if outcome.state != "retrying":
                taken.append(outcome.state != "gave-up")
            record(item, outcome)

        async with self._room:  # the time for retries is counted from when there is room
            stale = await self._send(items, noted, Budget(self._retry_seconds), 0)
        self._failed_in_a_row = 0 if stale or any(taken) else self._failed_in_a_row + 1
        if self._failed_in_a_row > self._most_failed:
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
            if self.stopped or not is_transient(error) or _is_stale(error, items):
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
        except FhirError as error:
            if _is_stale(error, items):
                for item in items:
                    record(item, Outcome("retrying", getattr(error, "status", None), None, tries, str(error)))
                return list(items)
            return await self._refused(items, record, budget, tried, error)
        return await self._taken(items, record, found, tried + attempts)

    async def _taken(
        self, items: Sequence[I], record: Callable[[I, Outcome], None], found: Mapping[Key, Outcome], tries: int
    ) -> list[I]:
        """Record what the server took; returns what wrote over something that was not there before."""
        try:
            places = await self.places([item for item in items if item.condition])
        except FhirError as error:
            status = error.status if isinstance(error, ServerError) else None
            _give_up(items, record, status, tries, f"the server took it, and cannot be asked for its id there: {error}")
            return []
        again_to_see = []
        for item in items:
            if item.condition and item.key not in places:
                why = "the server took it, and does not find it yet; run again"
                record(item, Outcome("gave-up", None, None, tries, why))
                continue
            outcome = found.get(places.get(item.key, item.place))
            # a transaction that succeeded has stored every entry, also one whose place it does not name
            outcome = outcome or Outcome("stored", 200, "", tries)
            if over := _written_over(item, outcome):
                again_to_see.append(replace(item, overwrote=over))
            else:
                record(item, replace(outcome, place=places[item.key][1]) if item.key in places else outcome)
        return again_to_see

    async def _put(self, items: Sequence[Item]) -> Any:
        """The answer to a transaction, or to a PUT in the same form."""
        if self.stopped:  # while this one waited for its turn, or for another try
            raise UnreachableError(self.stopped)
        if travels_alone(items[0], self._alone_bytes):
            [item] = items
            response = await self._client.put("/".join(item.place), item.body, if_match=item.if_match)
            return {"resourceType": "Bundle", "entry": [{"response": response}]}
        return await self._client.execute("", data=transaction(items))

    async def places(self, items: Sequence[Item]) -> dict[Key, Key]:
        """Where a server that gives ids itself has what the items' conditions find: an answer names its ids, not ours.

        Raises:
            FhirError: it could not be asked.
        """
        places: dict[Key, Key] = {}
        for kind in sorted({item.type for item in items}):
            ours = {item.id: item.condition.removeprefix("identifier=") for item in items if item.type == kind}
            for start in range(0, len(ours), _PLACES_AT_ONCE):
                some = sorted(ours)[start : start + _PLACES_AT_ONCE]
                tokens = ",".join(ours[identity] for identity in some)
                path = f"{kind}?identifier={tokens}&_elements=identifier&_count={len(some)}"
                first = partial(self._client.execute, path, method="get")
                for found in await searched(self._client, kind, first, self.ask):
                    for identifier in found.get("identifier", []):
                        if identifier.get("value") in some:
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
        if not self.stopped:  # the first reason is the one to mend
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
