"""Requests: upload items in batches, small resources together in a transaction, a large one by itself.

What is about to be sent is in the ledger's journal before it is sent. A refused transaction is cut in halves until the
one bad resource is alone, and the others go in. Not here: what is sent (`patients`, `studies`), and what follows from
the answers (`run`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from dicom_etl.fhir_client import FhirClient, WriteRequest, WriteResult
from dicom_etl.fhir_client.errors import (
    AccessDeniedError,
    ConflictError,
    FhirError,
    NotFoundError,
    RejectedError,
    TransientError,
)
from dicom_etl.upload.items import Decision, UploadItem
from dicom_etl.upload.ledger import Attempt, Event, Key, Ledger, ResourceRow
from dicom_etl.upload.tasks import gather

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A resource on its way, and what became of it: a result, or an error.

    `row` is the ledger's, `request` what is sent, `attempt` the entry of the journal.
    """

    item: UploadItem
    decision: Decision
    row: ResourceRow
    request: WriteRequest
    attempt: Attempt
    result: WriteResult | None = None
    error: FhirError | None = None

    @property
    def is_new(self) -> bool:
        """Whether the server was seen not to have it."""
        return self.decision.server is None

    @property
    def is_stale(self) -> bool:
        """Whether the server no longer has the version that was looked at; some answer 404 where it was deleted."""
        if isinstance(self.error, NotFoundError):
            return self.error.is_confirmed and bool(self.request.if_match)
        return isinstance(self.error, ConflictError)


@dataclass
class TransactionSizes:
    """How many entries a server takes in a transaction, as far as its refusals have shown.

    Medplum takes 50 updates, and 8 entries where one is conditional; no CapabilityStatement says so.
    """

    _most: dict[bool, int] = field(default_factory=dict)  # by whether an entry is conditional

    def split(self, deliveries: Sequence[Delivery]) -> Iterator[Sequence[Delivery]]:
        """Deliveries in parts that the server takes."""
        most = self._most.get(_has_condition(deliveries), len(deliveries)) or 1
        for start in range(0, len(deliveries), most):
            yield deliveries[start : start + most]

    def lower(self, deliveries: Sequence[Delivery], most: int) -> None:
        """Note that the server refused these together, and took all of them in transactions of up to `most` entries."""
        has_condition = _has_condition(deliveries)
        self._most[has_condition] = min(most, self._most.get(has_condition, most))


def _has_condition(deliveries: Iterable[Delivery]) -> bool:
    return any(one.request.condition for one in deliveries)


def pack(items: Iterable[UploadItem], most_entries: int, most_bytes: int) -> Iterator[list[UploadItem]]:
    """Batches of items, up to a number and to so many bytes; a larger item is alone. No resource is in one twice."""
    batch: list[UploadItem] = []
    keys: set[Key] = set()
    size = 0
    for item in items:
        is_full = len(batch) >= most_entries or size + len(item.body) > most_bytes
        if batch and (is_full or item.key in keys):  # HAPI-0535: a resource is in a transaction once
            yield batch
            batch, keys, size = [], set(), 0
        batch.append(item)
        keys.add(item.key)
        size += len(item.body)
    if batch:
        yield batch


async def deliver(
    client: FhirClient,
    ledger: Ledger,
    deliveries: Sequence[Delivery],
    single_request_bytes: int,
    sizes: TransactionSizes,
) -> list[Delivery]:
    """Send resources; returns each with its result or its error, in any order.

    Args:
        client: sends.
        ledger: has each attempt before its request.
        deliveries: of different resources.
        single_request_bytes: a resource of more bytes goes by a request of its own. A conditional update never does:
            outside of a transaction HAPI creates two resources of two requests at once.
        sizes: of the transactions that the server takes.
    """
    if not deliveries:
        return []
    deliveries = await _open_attempts(ledger, deliveries)
    is_large = [len(one.request.body) > single_request_bytes and not one.request.condition for one in deliveries]
    large = [one for one, alone in zip(deliveries, is_large, strict=True) if alone]
    small = [one for one, alone in zip(deliveries, is_large, strict=True) if not alone]
    work = [_deliver_alone(client, one) for one in large]
    done = await gather([*work, *([_deliver_in_parts(client, ledger, small, sizes)] if small else [])])
    return [one for some in done for one in some]


async def _open_attempts(ledger: Ledger, deliveries: Sequence[Delivery], *, again: bool = False) -> list[Delivery]:
    """Write the attempts into the journal; `again`: in place of those that a refusal has closed."""
    rows = [one.row.after(Event.SENT) for one in deliveries]
    closed = [one.attempt.number for one in deliveries if again and one.attempt.number is not None]
    written = ledger.write_attempts([one.attempt for one in deliveries], rows, closed=closed)
    numbers = await asyncio.wrap_future(written)
    return [
        replace(one, row=row, attempt=replace(one.attempt, number=number))
        for one, row, number in zip(deliveries, rows, numbers, strict=True)
    ]


async def _deliver_alone(client: FhirClient, delivery: Delivery) -> list[Delivery]:
    try:
        return [replace(delivery, result=await client.put(delivery.request))]
    except FhirError as error:
        return [replace(delivery, error=error)]


async def _deliver_in_parts(
    client: FhirClient, ledger: Ledger, deliveries: Sequence[Delivery], sizes: TransactionSizes
) -> list[Delivery]:
    return [one for part in sizes.split(deliveries) for one in await _deliver_together(client, ledger, part, sizes)]


async def _deliver_together(
    client: FhirClient,
    ledger: Ledger,
    deliveries: Sequence[Delivery],
    sizes: TransactionSizes,
    *,
    retry: bool = True,
    may_have_arrived: bool = False,
) -> list[Delivery]:
    """Send a transaction; cut it in halves where the server refuses it.

    A resource that makes the server fail is found in the same way; then the halves are tried once, and not again.
    `may_have_arrived`: the whole may have, of which these are a half; what is rejected alone has not.
    """
    try:
        results = await client.transaction([one.request for one in deliveries], retry=retry)
    except FhirError as error:
        error.may_have_arrived |= may_have_arrived and not isinstance(error, RejectedError)
        if isinstance(error, ConflictError | AccessDeniedError) or len(deliveries) == 1 or client.stop_reason:
            return [replace(one, error=error) for one in deliveries]
        log.info("a transaction of %d resources was refused and is cut in halves: %s", len(deliveries), error)
        retry = retry and not isinstance(error, TransientError)
        is_refused = isinstance(error, RejectedError)
        may_have_arrived = error.may_have_arrived
    else:
        return [replace(one, result=result) for one, result in zip(deliveries, results, strict=True)]
    middle = len(deliveries) // 2
    done = []
    for half in (deliveries[:middle], deliveries[middle:]):
        for part in sizes.split(half):
            reopened = await _open_attempts(ledger, part, again=True)
            done += await _deliver_together(
                client, ledger, reopened, sizes, retry=retry, may_have_arrived=may_have_arrived
            )
    if is_refused and all(one.result is not None for one in done):  # so their number was the reason
        sizes.lower(deliveries, len(deliveries) - middle)
    return done
