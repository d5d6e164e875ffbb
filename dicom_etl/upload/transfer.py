"""One batch of upload items: look up, decide, send, check the answers, and record each step in the ledger.

When a resource on the server has changed since it was looked up, its item goes through these steps again. Not here:
which items there are and in which order (`datasets`, `shared`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from dicom_etl.fhir_client import FhirClient, ServerResource, WriteRequest, WriteResult
from dicom_etl.fhir_client.errors import FhirError, InvalidAnswerError, PermanentError
from dicom_etl.upload.batching import Delivery, TransactionSizes, deliver
from dicom_etl.upload.confirmation import (
    FOUND_BY_SEARCH,
    ReplacedVersion,
    confirm_indexed,
    describe_replaced_version,
    find_replaced_version,
    read_back,
)
from dicom_etl.upload.items import (
    Action,
    Decision,
    Resource,
    UploadItem,
    UploadOptions,
    compute_content_hash,
    encode_canonical,
)
from dicom_etl.upload.ledger import Attempt, Event, Key, Ledger, ResourceRow, State
from dicom_etl.upload.lookup import find_by_search, read_by_id
from dicom_etl.upload.patients import decide_patient, look_up_patients
from dicom_etl.upload.studies import Namespace, StudyOnServer, decide_study, is_still_replaced, look_up_studies
from dicom_etl.upload.tasks import gather

_MAX_ROUNDS, _ROUNDS_TOGETHER = 10, 3  # after the rounds together, each resource is sent by itself
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds between two rounds


@dataclass(frozen=True)
class Target:
    """The server of a run, and what is needed to upload to it.

    Attributes:
        client: the client of the server.
        ledger: the ledger of the server.
        namespace: distinguishes the lake's resources from those of other clients.
        options: of the upload.
        single_request_bytes: larger resources are sent by a request of their own.
        sizes: the sizes of transactions that the server accepts.
        shared: system and value of the Patients whose identifiers mean the same everywhere.
        sent: the resources that this run has stored: dataset, whether datasets share it, and whether it is external.
    """

    client: FhirClient
    ledger: Ledger
    namespace: Namespace
    options: UploadOptions
    single_request_bytes: int
    sizes: TransactionSizes = field(default_factory=TransactionSizes)
    shared: dict[Key, tuple[str, str]] = field(default_factory=dict)
    sent: dict[Key, tuple[str, bool, bool]] = field(default_factory=dict)

    def note_sent(self, row: ResourceRow) -> None:
        """Note that this run has stored a resource."""
        self.sent[row.key] = (row.dataset, row.unit is None, row.is_external)


@dataclass
class _Batch:
    """The items of a batch in one round, with their rows and open attempts.

    `replaced` has the versions of other clients that were replaced in this round or an earlier one.
    """

    items: list[UploadItem]
    rows: dict[Key, ResourceRow]
    attempts: dict[Key, list[Attempt]]
    replaced: dict[Key, ReplacedVersion]

    def make_row(self, item: UploadItem) -> ResourceRow:
        """Make the row of an item from that in the ledger and the item's dataset, unit and subject."""
        row = self.rows.get(item.key) or ResourceRow(item.type, item.id, item.dataset)
        return replace(row, dataset=item.dataset, unit=item.unit, subject=item.subject, business_key=item.business_key)

    def list_attempts(self, item: UploadItem) -> list[int]:
        """List the numbers of an item's open attempts."""
        return [attempt.number for attempt in self.attempts.get(item.key, ()) if attempt.number is not None]


async def upload_items(target: Target, items: Sequence[UploadItem]) -> None:
    """Upload items; afterwards the ledger has the state of each."""
    remaining = list(items)
    replaced: dict[Key, ReplacedVersion] = {}
    conflicts: dict[Key, FhirError] = {}
    for number in range(_MAX_ROUNDS):
        batches = [remaining] if number < _ROUNDS_TOGETHER else [[item] for item in remaining]
        stale = await gather(_upload_once(target, batch, replaced, conflicts) for batch in batches)
        remaining = [item for batch in stale for item in batch]
        if not remaining:
            return
        await asyncio.sleep(random.uniform(0, min(LONGEST_PAUSE, FIRST_PAUSE * 2**number)))
    rows = await asyncio.wrap_future(target.ledger.read_rows([item.key for item in remaining]))
    failed = []
    for item in remaining:
        error = conflicts.get(item.key)
        text = f"refused {_MAX_ROUNDS} times, although it was read again each time: another client keeps modifying it"
        text += f" ({error})" if error else ""
        status = error.status if error else None
        failed.append(rows[item.key].after(Event.FAILED, reason="upload-failed", reason_text=text, http_status=status))
    target.ledger.write_rows(failed)


async def _upload_once(
    target: Target, items: Sequence[UploadItem], replaced: dict[Key, ReplacedVersion], conflicts: dict[Key, FhirError]
) -> list[UploadItem]:
    """Look up, decide and send once; returns the items that need another round."""
    keys = [item.key for item in items]
    rows, attempts = await asyncio.wrap_future(target.ledger.read_rows_and_attempts(keys))
    batch = _Batch(list(items), rows, attempts, replaced)
    decisions, errors = await _decide(target, batch)
    _record_failed_lookups(target, batch, errors)
    decided = [(item, decisions[item.key]) for item in items if item.key in decisions]
    deliveries = [
        _prepare(target, batch, item, decision) for item, decision in decided if decision.action is Action.SEND
    ]
    not_sent = [(item, decision) for item, decision in decided if decision.action is not Action.SEND]
    await _record_decisions(target, batch, not_sent)
    if target.options.dry_run:
        _record_dry_run(target, deliveries)
        return []
    delivered = await deliver(target.client, target.ledger, deliveries, target.single_request_bytes, target.sizes)
    conflicts |= {delivery.item.key: delivery.error for delivery in delivered if delivery.error is not None}
    return await _record_answers(target, batch, delivered)


# -- looking up and deciding ------------------------------------------------------------------------------------------


async def _decide(target: Target, batch: _Batch) -> tuple[dict[Key, Decision], dict[Key, FhirError]]:
    """Decide about each item, or return the error of its lookup.

    A search that fails does not affect items that are read by id.
    """
    read: list[UploadItem] = []
    searched: list[UploadItem] = []
    for item in batch.items:
        row = batch.rows.get(item.key)
        known_id = target.namespace.strategy.find_known_id(
            item.id, row.server_id if row else None, has_attempts=item.key in batch.attempts
        )
        # with a known id, the server has it or may have it
        (searched if known_id is None else read).append(item)

    async def decide(items: list[UploadItem]) -> tuple[dict[Key, Decision], dict[Key, FhirError]]:
        try:
            return await _decide_items(target, batch, items), {}
        except FhirError as error:
            return {}, {item.key: error for item in items}

    (decisions, errors), (more_decisions, more_errors) = await gather([decide(read), decide(searched)])
    return decisions | more_decisions, errors | more_errors


async def _decide_items(target: Target, batch: _Batch, items: list[UploadItem]) -> dict[Key, Decision]:
    """Look up items and decide about each.

    Raises:
        FhirError: the server could not be asked.
    """
    decisions: dict[Key, Decision] = {}
    by_type = {name: [item for item in items if item.type == name] for name in ("Patient", "Endpoint", "ImagingStudy")}
    if by_type["Patient"]:
        decisions |= await _decide_patients(target, batch, by_type["Patient"])
    if by_type["Endpoint"]:
        decisions |= await _decide_endpoints(target, batch, by_type["Endpoint"])
    if by_type["ImagingStudy"]:
        decisions |= await _decide_studies(target, batch, by_type["ImagingStudy"])
    return decisions


async def _decide_patients(target: Target, batch: _Batch, items: list[UploadItem]) -> dict[Key, Decision]:
    strategy = target.namespace.strategy
    patients = await look_up_patients(target.client, items, batch.rows, batch.attempts, strategy, target.shared)
    decisions = {}
    for item in items:
        attempts = batch.attempts.get(item.key, [])
        on_server = patients[item.key]
        if on_server.current is not None and on_server.survivor is None:
            replaced = await _find_replaced(target, batch, item, on_server.current)
            on_server = replace(on_server, replaced=replaced.resource if replaced else None)
        decisions[item.key] = decide_patient(item, on_server, batch.rows.get(item.key), attempts, strategy)
    return decisions


async def _decide_endpoints(target: Target, batch: _Batch, items: list[UploadItem]) -> dict[Key, Decision]:
    strategy = target.namespace.strategy
    current = await read_by_id(target.client, items, batch.rows, batch.attempts, strategy)
    to_search = [item for item in items if item.key not in current]
    current |= await find_by_search(target.client, to_search, strategy)
    decisions = {}
    for item in items:
        row, attempts = batch.rows.get(item.key), batch.attempts.get(item.key, [])
        on_server = StudyOnServer(current.get(item.key))
        decisions[item.key] = decide_study(item, on_server, row, attempts, target.options, strategy)
    return decisions


async def _decide_studies(target: Target, batch: _Batch, items: list[UploadItem]) -> dict[Key, Decision]:
    merges = target.options.existing_study == "merge"
    studies = await look_up_studies(
        target.client, items, batch.rows, batch.attempts, target.namespace, reads_external=merges
    )
    return {item.key: await _decide_study(target, batch, item, studies[item.key]) for item in items}


async def _decide_study(target: Target, batch: _Batch, item: UploadItem, on_server: StudyOnServer) -> Decision:
    row, attempts, current = batch.rows.get(item.key), batch.attempts.get(item.key, []), on_server.current
    decision = decide_study(item, on_server, row, attempts, target.options, target.namespace.strategy)
    if is_still_replaced(current, row, attempts) and decision.reason is None and row is not None:
        return replace(decision, reason=row.reason, text=row.reason_text)
    if current is None or not on_server.has_arrived:
        return decision
    replaced = await _find_replaced(target, batch, item, current)
    if replaced is None:
        return decision
    overwrite = _make_overwrite_reason(target, replaced, current.id)
    if decision.reason is None:
        return replace(decision, reason=overwrite["reason"], text=overwrite["reason_text"])
    batch.replaced[item.key] = replaced  # the attempt stays open, so that the next run finds it, too
    return replace(decision, text=f"{decision.text}; {overwrite['reason_text']}")


async def _find_replaced(
    target: Target, batch: _Batch, item: UploadItem, current: ServerResource
) -> ReplacedVersion | None:
    """Find the version that a write replaced although a lookup had found none, in this run or in one that was killed.

    After a run that was killed, an attempt without a version is open, and the server's history shows the rest.
    """
    if item.key in batch.replaced:
        return batch.replaced[item.key]
    created = {attempt.server_hash for attempt in batch.attempts.get(item.key, ()) if not attempt.if_match}
    row = batch.rows.get(item.key)
    if not created or (row is not None and row.is_owned):
        return None
    return await find_replaced_version(target.client, item.key, current.id, target.namespace.strategy, sent=created)


def _make_overwrite_reason(target: Target, replaced: ReplacedVersion, server_id: str) -> dict[str, Any]:
    """Make the reason of a study, or an Endpoint, that replaced another client's version."""
    text = describe_replaced_version(replaced, target.client.url, server_id)
    return {"reason": "concurrent-overwrite", "reason_text": text}


# -- recording what is not sent ---------------------------------------------------------------------------------------


async def _record_decisions(target: Target, batch: _Batch, decided: Sequence[tuple[UploadItem, Decision]]) -> None:
    """Write the rows of items that are not sent."""
    rows, closed = [], []
    for item, decision in decided:
        if decision.action is Action.HOLD:
            held, numbers = _make_held_row(target, batch, item, decision)
            rows.append(held)
            closed += numbers
        else:
            rows.append(_make_unchanged_row(target, batch, item, decision))
            closed += batch.list_attempts(item)
    rows = await _confirm_indexed(target, rows)
    target.ledger.write_rows(rows, closed=closed)
    for row in rows:
        if row.key in batch.replaced and row.state is State.STORED:
            target.note_sent(row)


def _make_unchanged_row(target: Target, batch: _Batch, item: UploadItem, decision: Decision) -> ResourceRow:
    """Make the row of an item that the server has as it should be."""
    row, server = batch.make_row(item), decision.server
    contribution = item.body.decode() if item.type == "Patient" and not decision.is_external else None
    return row.after(
        Event.STORED,
        **(_make_server_values(server) if server else {}),
        is_external=decision.is_external,
        hash=item.hash,
        server_hash=_compute_server_hash(target, item, server) if server else None,
        contribution=contribution,
        is_indexed=decision.is_external or (row.is_indexed and not _has_duplicates(row)),
        **_choose_reason(row, item, decision),
    )


def _make_held_row(
    target: Target, batch: _Batch, item: UploadItem, decision: Decision
) -> tuple[ResourceRow, list[int]]:
    """Make the row of an item that is held; also returns the attempts that need no further lookup."""
    row, attempts, server = batch.make_row(item), batch.attempts.get(item.key, []), decision.server
    server_values: dict[str, Any] = {}
    closed: list[int] = []
    if server is not None and not row.is_owned:
        content = _compute_server_hash(target, item, server)
        arrived = next((attempt for attempt in attempts if attempt.server_hash == content), None)
        server_values = _make_server_values(server) | {"is_external": False, "hash": None, "server_hash": None}
        if arrived and item.key not in batch.replaced:
            server_values |= {"hash": arrived.hash, "server_hash": content}
            closed = batch.list_attempts(item)
    held = row.after(Event.HELD, reason=decision.reason, reason_text=decision.text, attempts=0, **server_values)
    return held, closed


def _make_server_values(server: ServerResource) -> dict[str, Any]:
    return {"server_id": server.id, "version": server.version, "etag": server.etag}


def _compute_server_hash(target: Target, item: UploadItem, server: ServerResource) -> str:
    """Compute the content hash of what the server has of an item."""
    return target.namespace.strategy.compute_content_hash(server.resource, item.id)


def _choose_reason(row: ResourceRow, item: UploadItem, decision: Decision) -> dict[str, str | None]:
    """Choose the reason of an item that the server has; one from a search stays until a search no longer gives it."""
    for reason, text in ((decision.reason, decision.text), (item.reason, item.reason_text)):
        if reason:
            return {"reason": reason, "reason_text": text}
    if _has_duplicates(row) and not decision.is_external:
        return {"reason": row.reason, "reason_text": row.reason_text}
    return {"reason": None, "reason_text": None}


def _has_duplicates(row: ResourceRow) -> bool:
    """Whether a search has found a resource of another client that duplicates the lake's."""
    return row.is_owned and row.reason in FOUND_BY_SEARCH


def _record_failed_lookups(target: Target, batch: _Batch, errors: dict[Key, FhirError]) -> None:
    """Write the rows of items that were not sent because the server could not be asked."""
    rows = []
    for item in batch.items:
        if (error := errors.get(item.key)) is not None:
            is_open = bool(batch.attempts.get(item.key))
            rows.append(_make_failed_row(batch.make_row(item), error, may_have_arrived=is_open))
    target.ledger.write_rows(rows)


def _make_failed_row(row: ResourceRow, error: FhirError, *, may_have_arrived: bool) -> ResourceRow:
    event, reason = (Event.UNANSWERED, "upload-unconfirmed") if may_have_arrived else (Event.FAILED, "upload-failed")
    return row.after(event, reason=reason, reason_text=str(error), http_status=error.status, attempts=error.attempts)


def _record_dry_run(target: Target, deliveries: Sequence[Delivery]) -> None:
    rows = [
        _make_stored_row(delivery, WriteResult(200, delivery.request.id or delivery.item.id, "", "", 0))
        for delivery in deliveries
    ]
    for row in rows:
        target.note_sent(row)
    target.ledger.write_rows(rows)


# -- sending ----------------------------------------------------------------------------------------------------------


def _prepare(target: Target, batch: _Batch, item: UploadItem, decision: Decision) -> Delivery:
    """Prepare the request and the attempt of an item."""
    row, server = batch.make_row(item), decision.server
    is_searchable = item.type == "ImagingStudy" or item.key in target.shared
    if is_searchable and not decision.is_external and (server is None or _has_duplicates(row)):
        row = replace(row, is_indexed=False)  # it is searched for once it is stored
    resource: Resource = decision.resource or item.resource
    if decision.is_external and server is not None:
        body, condition = resource | {"id": server.id}, ""
    else:
        body, condition = target.namespace.strategy.prepare_update(resource, server.id if server else None)
    request = WriteRequest(
        item.type,
        "" if condition else str(body["id"]),
        item.body if body is item.resource else encode_canonical(body),
        if_match=server.if_match if server else "",
        condition=condition,
    )
    contribution = item.body.decode() if item.type == "Patient" else None
    attempt = Attempt(
        item.type,
        item.id,
        item.hash,
        compute_content_hash(target.namespace.strategy.normalize(body, item.id)),
        request.if_match,
        contribution,
        server.id if server else None,
    )
    return Delivery(item, decision, row, request, attempt)


# -- recording the answers --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _StoredResource:
    """The row of a resource that the server accepted, and its attempt."""

    row: ResourceRow
    attempt: Attempt


async def _record_answers(target: Target, batch: _Batch, delivered: Sequence[Delivery]) -> list[UploadItem]:
    """Write the rows of what was sent; returns the items that need another round."""
    stale = [delivery.item for delivery in delivered if delivery.is_stale]
    rows, closed = [], []
    for delivery in delivered:
        if delivery.error is None:
            continue
        if not delivery.error.may_have_arrived:
            closed += [delivery.attempt.number]
        if not delivery.is_stale:
            rows.append(_make_error_row(delivery, delivery.error))
    target.ledger.write_rows(rows, closed=[number for number in closed if number is not None])
    accepted = [delivery for delivery in delivered if delivery.result is not None]
    checked = await gather(_check_answer(target, batch, delivery) for delivery in accepted)
    await _record_stored(target, batch, [result for result in checked if isinstance(result, _StoredResource)])
    return stale + [result for result in checked if isinstance(result, UploadItem)]


def _make_error_row(delivery: Delivery, error: FhirError) -> ResourceRow:
    if isinstance(error, PermanentError) and not error.may_have_arrived:
        return delivery.row.after(
            Event.REFUSED,
            reason="upload-rejected",
            reason_text=str(error),
            http_status=error.status,
            attempts=error.attempts,
        )
    return _make_failed_row(delivery.row, error, may_have_arrived=error.may_have_arrived)


async def _check_answer(target: Target, batch: _Batch, delivery: Delivery) -> _StoredResource | UploadItem | None:
    """Check what the answer leaves open; returns the item where it needs another round, None where the check failed.

    Its attempt stays open until it is known what the write replaced, so that nothing is missed after a kill.
    """
    item, result, strategy = delivery.item, delivery.result, target.namespace.strategy
    assert result is not None
    server, replaced = None, None
    try:
        if delivery.request.condition and not result.server_id:
            matches = await find_by_search(target.client, [item], strategy)
            if item.key not in matches:
                text = "the server accepted it, and no search finds it yet; run again"
                raise InvalidAnswerError(text, status=result.status)
            result = replace(result, server_id=matches[item.key].id)
        if not (result.version or result.etag) or _names_former_version(delivery, result):
            server = await read_back(target.client, item.type, result.server_id)
            _require_new_version(delivery, server)
        if delivery.is_new and result.status != 201:
            sent, version = {delivery.attempt.server_hash}, result.version
            replaced = await find_replaced_version(
                target.client, item.key, result.server_id, strategy, sent=sent, version=version
            )
    except FhirError as error:
        target.ledger.write_rows([_make_failed_row(delivery.row, error, may_have_arrived=True)])
        return None
    if replaced is not None and item.type == "Patient" and replaced.resource is not None:
        batch.replaced[item.key] = replaced  # the next round merges it
        return item
    row = _make_stored_row(delivery, result, _compute_server_hash(target, item, server) if server else None)
    row = replace(row, version=server.version, etag=server.etag) if server else row
    if replaced is not None:
        row = replace(row, **_make_overwrite_reason(target, replaced, result.server_id))
    return _StoredResource(row, delivery.attempt)


def _names_former_version(delivery: Delivery, result: WriteResult) -> bool:
    """Whether the answer to a write names the version that it should have replaced."""
    former = delivery.decision.server
    return former is not None and bool(result.version) and result.version == former.version


def _require_new_version(delivery: Delivery, server: ServerResource) -> None:
    """Require that what was read back is not the version that the write should have replaced.

    Raises:
        InvalidAnswerError: it is: something other than the server gave the answer.
    """
    former = delivery.decision.server
    if former is None or (server.id, server.version) != (former.id, former.version):
        return
    content = compute_content_hash(server.resource)
    is_former = content == compute_content_hash(former.resource)
    if is_former and compute_content_hash(orjson.loads(delivery.request.body)) != content:
        raise InvalidAnswerError("the server accepted it, and still has the former version; run again")


async def _record_stored(target: Target, batch: _Batch, stored: Sequence[_StoredResource]) -> None:
    """Write the rows of resources that the server accepted, after a search for those that are new."""
    rows = await _confirm_indexed(target, [resource.row for resource in stored])
    closed = [resource.attempt.number for resource in stored if resource.attempt.number is not None]
    closed += [
        attempt.number for row in rows for attempt in batch.attempts.get(row.key, ()) if attempt.number is not None
    ]
    target.ledger.write_rows(rows, closed=closed)
    for row in rows:
        target.note_sent(row)


async def _confirm_indexed(target: Target, rows: Sequence[ResourceRow]) -> list[ResourceRow]:
    """Update the rows of stored resources that no search has found yet, by another search."""
    to_find = [row for row in rows if row.state is State.STORED and not row.is_indexed]
    if not to_find:
        return list(rows)
    confirmed = await confirm_indexed(
        target.client,
        to_find,
        target.shared,
        target.namespace,
        is_duplicate_wanted=target.options.existing_study == "duplicate",
    )
    by_key = {row.key: row for row in confirmed}
    return [by_key.get(row.key, row) for row in rows]


def _make_stored_row(delivery: Delivery, result: WriteResult, server_hash: str | None = None) -> ResourceRow:
    """Make the row of a resource that the server accepted; `server_hash` is of what was read back, if it was."""
    item, decision = delivery.item, delivery.decision
    return delivery.row.after(
        Event.STORED,
        server_id=result.server_id or delivery.request.id or item.id,
        is_external=decision.is_external,
        hash=item.hash,
        server_hash=server_hash or delivery.attempt.server_hash,
        version=result.version,
        etag=result.etag,
        contribution=delivery.attempt.contribution,
        is_indexed=decision.is_external or delivery.row.is_indexed,
        attempts=result.attempts,
        http_status=result.status or None,
        **_choose_reason(delivery.row, item, decision),
    )
