"""Batches and requests: small resources are sent together in a transaction, a large one by a request of its own.

Each attempt is in the ledger's journal before its request is sent. A transaction that the server refuses is split in
halves until the resource that caused it is alone, and the others are stored. Not here: what is sent (`patients`,
`studies`), and what follows from the answers (`transfer`).
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
    """A resource that is sent, and afterwards its result or its error.

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
        """Whether the lookup showed that the server does not have it."""
        return self.decision.server is None

    @property
    def is_stale(self) -> bool:
        """Whether the server no longer has the version that was looked up; if deleted, some servers answer 404."""
        if isinstance(self.error, NotFoundError):
            return self.error.is_confirmed and bool(self.request.if_match)
        return isinstance(self.error, ConflictError)


@dataclass
class TransactionSizes:
    """The numbers of entries that a server accepts in a transaction, as far as its refusals have shown.

    Medplum accepts 50 updates, and 8 entries if one is conditional; no CapabilityStatement has such limits.
    """

    _limits: dict[bool, int] = field(default_factory=dict)  # by whether an entry is conditional

    def split(self, deliveries: Sequence[Delivery]) -> Iterator[Sequence[Delivery]]:
        """Split deliveries into transactions that the server accepts."""
        limit = self._limits.get(_has_condition(deliveries), len(deliveries)) or 1
        for start in range(0, len(deliveries), limit):
            yield deliveries[start : start + limit]

    def lower(self, deliveries: Sequence[Delivery], limit: int) -> None:
        """Note that the server refused these together, and accepted all in transactions of up to `limit` entries."""
        has_condition = _has_condition(deliveries)
        self._limits[has_condition] = min(limit, self._limits.get(has_condition, limit))


def _has_condition(deliveries: Iterable[Delivery]) -> bool:
    return any(delivery.request.condition for delivery in deliveries)


def pack(items: Iterable[UploadItem], max_entries: int, max_bytes: int) -> Iterator[list[UploadItem]]:
    """Pack items into batches, limited in number and size; a larger item is alone, and no resource is in one twice."""
    batch: list[UploadItem] = []
    keys: set[Key] = set()
    size = 0
    for item in items:
        is_full = len(batch) >= max_entries or size + len(item.body) > max_bytes
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
        client: the client of the server.
        ledger: has each attempt before its request is sent.
        deliveries: of different resources.
        single_request_bytes: a resource of more bytes is sent by a request of its own. A conditional update never is:
            outside of a transaction HAPI creates two resources from two concurrent requests.
        sizes: of the transactions that the server accepts.
    """
    if not deliveries:
        return []
    deliveries = await _open_attempts(ledger, deliveries)
    single: list[Delivery] = []
    together: list[Delivery] = []
    for delivery in deliveries:
        is_single = len(delivery.request.body) > single_request_bytes and not delivery.request.condition
        (single if is_single else together).append(delivery)
    work = [_deliver_single(client, delivery) for delivery in single]
    done = await gather([*work, *([_deliver_together(client, ledger, together, sizes)] if together else [])])
    return [delivery for delivered in done for delivery in delivered]


async def _open_attempts(ledger: Ledger, deliveries: Sequence[Delivery], *, again: bool = False) -> list[Delivery]:
    """Write the attempts into the journal; `again`: in place of those that a refusal has closed."""
    rows = [delivery.row.after(Event.SENT) for delivery in deliveries]
    numbers = [delivery.attempt.number for delivery in deliveries]
    closed = [number for number in numbers if number is not None] if again else []
    written = ledger.write_attempts([delivery.attempt for delivery in deliveries], rows, closed=closed)
    opened = await asyncio.wrap_future(written)
    return [
        replace(delivery, row=row, attempt=replace(delivery.attempt, number=number))
        for delivery, row, number in zip(deliveries, rows, opened, strict=True)
    ]


async def _deliver_single(client: FhirClient, delivery: Delivery) -> list[Delivery]:
    try:
        return [replace(delivery, result=await client.put(delivery.request))]
    except FhirError as error:
        return [replace(delivery, error=error)]


async def _deliver_together(
    client: FhirClient, ledger: Ledger, deliveries: Sequence[Delivery], sizes: TransactionSizes
) -> list[Delivery]:
    return [
        delivery
        for part in sizes.split(deliveries)
        for delivery in await _deliver_transaction(client, ledger, part, sizes)
    ]


async def _deliver_transaction(
    client: FhirClient,
    ledger: Ledger,
    deliveries: Sequence[Delivery],
    sizes: TransactionSizes,
    *,
    retry: bool = True,
    may_have_arrived: bool = False,
) -> list[Delivery]:
    """Send a transaction, and its halves where the server refuses it.

    A resource that makes the server fail is found in the same way; then the halves are sent once, and not retried.
    `may_have_arrived`: these are half of a transaction that may have arrived; what is rejected by itself has not.
    """
    try:
        results = await client.transaction([delivery.request for delivery in deliveries], retry=retry)
    except FhirError as error:
        error.may_have_arrived |= may_have_arrived and not isinstance(error, RejectedError)
        if isinstance(error, ConflictError | AccessDeniedError) or len(deliveries) == 1 or client.stop_reason:
            return [replace(delivery, error=error) for delivery in deliveries]
        log.info("a transaction of %d resources was refused and is split in halves: %s", len(deliveries), error)
        retry = retry and not isinstance(error, TransientError)
        is_refused = isinstance(error, RejectedError)
        may_have_arrived = error.may_have_arrived
    else:
        return [replace(delivery, result=result) for delivery, result in zip(deliveries, results, strict=True)]
    middle = len(deliveries) // 2
    done = []
    for half in (deliveries[:middle], deliveries[middle:]):
        for part in sizes.split(half):
            reopened = await _open_attempts(ledger, part, again=True)
            done += await _deliver_transaction(
                client, ledger, reopened, sizes, retry=retry, may_have_arrived=may_have_arrived
            )
    if is_refused and all(delivery.result is not None for delivery in done):  # so their number was the reason
        sizes.lower(deliveries, len(deliveries) - middle)
    return done
