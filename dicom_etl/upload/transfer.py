"""One batch of upload items: look at the server, decide, send, look at the answers, and note all of it in the ledger.

When something on the server changed since it was looked at, the items concerned go through this once more. Not here:
which items there are and in which order (`run`).
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
from dicom_etl.upload.items import Action, Decision, Resource, UploadItem, UploadOptions, content_hash, encode_canonical
from dicom_etl.upload.ledger import Attempt, Event, Key, Ledger, ResourceRow, State
from dicom_etl.upload.lookup import find_by_search, read_by_id
from dicom_etl.upload.patients import decide_patient, look_up_patients
from dicom_etl.upload.studies import (
    Namespace,
    StudyOnServer,
    decide_study,
    is_still_replaced,
    look_up_studies,
)
from dicom_etl.upload.tasks import gather

_LOOKS, _LOOKS_TOGETHER = 10, 3  # times; then each resource goes by itself
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds between two looks


@dataclass(frozen=True)
class Target:
    """Where a run uploads to, and how.

    `sizes` are those of transactions that the server takes. `shared` has system and value of the Patients whose
    identifiers mean the same everywhere; `sent` the resources that this run has stored: dataset, whether datasets share
    it, and whether it is another client's.
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
    """What is known of the items of a batch at one look."""

    items: list[UploadItem]
    rows: dict[Key, ResourceRow]
    attempts: dict[Key, list[Attempt]]
    replaced: dict[Key, ReplacedVersion]

    def row(self, item: UploadItem) -> ResourceRow:
        """The ledger's row of an item, with what the lake knows of it now."""
        known = self.rows.get(item.key) or ResourceRow(item.type, item.id, item.dataset)
        return replace(
            known, dataset=item.dataset, unit=item.unit, subject=item.subject, business_key=item.business_key
        )

    def numbers(self, item: UploadItem) -> list[int]:
        """The attempts that are open."""
        return [one.number for one in self.attempts.get(item.key, ()) if one.number is not None]


async def upload_items(target: Target, items: Sequence[UploadItem]) -> None:
    """Bring items to the server, as far as may be; the ledger has what became of each."""
    left = list(items)
    replaced: dict[Key, ReplacedVersion] = {}
    conflicts: dict[Key, FhirError] = {}
    for look in range(_LOOKS):
        batches = [left] if look < _LOOKS_TOGETHER else [[one] for one in left]
        stale = await gather(_upload_once(target, some, replaced, conflicts) for some in batches)
        left = [item for some in stale for item in some]
        if not left:
            return
        await asyncio.sleep(random.uniform(0, min(LONGEST_PAUSE, FIRST_PAUSE * 2**look)))
    rows = await asyncio.wrap_future(target.ledger.read_rows([item.key for item in left]))
    failed = []
    for item in left:
        error = conflicts.get(item.key)
        text = f"refused {_LOOKS} times, each time after a new look at the server: another client keeps modifying it"
        text += f" ({error})" if error else ""
        status = error.status if error else None
        failed.append(rows[item.key].after(Event.FAILED, reason="upload-failed", reason_text=text, http_status=status))
    target.ledger.write_rows(failed)


async def _upload_once(
    target: Target, items: Sequence[UploadItem], replaced: dict[Key, ReplacedVersion], conflicts: dict[Key, FhirError]
) -> list[UploadItem]:
    """Look, decide and send once; returns the items that must be looked at again."""
    keys = [item.key for item in items]
    rows, attempts = await asyncio.wrap_future(target.ledger.read_rows_and_attempts(keys))
    batch = _Batch(list(items), rows, attempts, replaced)
    decisions, errors = await _decide(target, batch)
    _note_failed_looks(target, batch, errors)
    decided = [(item, decisions[item.key]) for item in items if item.key in decisions]
    deliveries = [_prepare(target, batch, item, one) for item, one in decided if one.action is Action.SEND]
    await _note_decisions(target, batch, [(item, one) for item, one in decided if one.action is not Action.SEND])
    if target.options.dry_run:
        _note_dry_run(target, deliveries)
        return []
    delivered = await deliver(target.client, target.ledger, deliveries, target.single_request_bytes, target.sizes)
    conflicts |= {one.item.key: one.error for one in delivered if one.error is not None}
    return await _settle(target, batch, delivered)


# -- looking and deciding ---------------------------------------------------------------------------------------------


async def _decide(target: Target, batch: _Batch) -> tuple[dict[Key, Decision], dict[Key, FhirError]]:
    """A decision for each item, or why the server could not be asked.

    A search that fails says nothing of what can be read by id.
    """
    known: list[UploadItem] = []
    unknown: list[UploadItem] = []
    for item in batch.items:
        (known if _is_known(target, batch, item) else unknown).append(item)

    async def decide(items: list[UploadItem]) -> tuple[dict[Key, Decision], dict[Key, FhirError]]:
        try:
            return await _decide_items(target, batch, items), {}
        except FhirError as error:
            return {}, {item.key: error for item in items}

    (decisions, errors), (more, more_errors) = await gather([decide(known), decide(unknown)])
    return decisions | more, errors | more_errors


def _is_known(target: Target, batch: _Batch, item: UploadItem) -> bool:
    """Whether an item is read by its id: the server has it, or may have it."""
    row, strategy = batch.rows.get(item.key), target.namespace.strategy
    server_id = row.server_id if row else None
    return strategy.find_known_id(item.id, server_id, has_attempts=item.key in batch.attempts) is not None


async def _decide_items(target: Target, batch: _Batch, items: list[UploadItem]) -> dict[Key, Decision]:
    """A decision for each of some items.

    Raises:
        FhirError: the server could not be asked.
    """
    decisions: dict[Key, Decision] = {}
    by_type = {kind: [item for item in items if item.type == kind] for kind in ("Patient", "Endpoint")}
    studies = [item for item in items if item.type == "ImagingStudy"]
    if by_type["Patient"]:
        decisions |= await _decide_patients(target, batch, by_type["Patient"])
    if by_type["Endpoint"]:
        decisions |= await _decide_endpoints(target, batch, by_type["Endpoint"])
    if studies:
        merges = target.options.existing_study == "merge"
        seen = await look_up_studies(
            target.client, studies, batch.rows, batch.attempts, target.namespace, reads_external=merges
        )
        for item in studies:
            decisions[item.key] = await _decide_study(target, batch, item, seen[item.key])
    return decisions


async def _decide_patients(target: Target, batch: _Batch, items: list[UploadItem]) -> dict[Key, Decision]:
    strategy = target.namespace.strategy
    seen = await look_up_patients(target.client, items, batch.rows, batch.attempts, strategy, target.shared)
    decisions = {}
    for item in items:
        attempts = batch.attempts.get(item.key, [])
        found = seen[item.key]
        if found.own is not None and found.survivor is None:
            over = await _replaced_by(target, batch, item, found.own)
            found = replace(found, replaced=over.resource if over else None)
        decisions[item.key] = decide_patient(item, found, batch.rows.get(item.key), attempts, strategy)
    return decisions


async def _decide_endpoints(target: Target, batch: _Batch, items: list[UploadItem]) -> dict[Key, Decision]:
    strategy = target.namespace.strategy
    own = await read_by_id(target.client, items, batch.rows, batch.attempts, strategy)
    unknown = [item for item in items if item.key not in own]
    own |= await find_by_search(target.client, unknown, strategy)
    decisions = {}
    for item in items:
        row, attempts = batch.rows.get(item.key), batch.attempts.get(item.key, [])
        seen = StudyOnServer(own.get(item.key))
        decisions[item.key] = decide_study(item, seen, row, attempts, target.options, strategy)
    return decisions


async def _decide_study(target: Target, batch: _Batch, item: UploadItem, seen: StudyOnServer) -> Decision:
    row, attempts = batch.rows.get(item.key), batch.attempts.get(item.key, [])
    decision = decide_study(item, seen, row, attempts, target.options, target.namespace.strategy)
    if is_still_replaced(seen.own, row, attempts) and decision.reason is None and row is not None:
        return replace(decision, reason=row.reason, text=row.reason_text)
    over = await _replaced_by(target, batch, item, seen.own) if seen.own is not None and seen.has_arrived else None
    if over is None or seen.own is None:
        return decision
    overwrite = _overwrite_reason(target, over, seen.own.id)
    if decision.reason is None:
        return replace(decision, reason=overwrite["reason"], text=overwrite["reason_text"])
    batch.replaced[item.key] = over  # the attempt stays open, so that the next run knows it, too
    return replace(decision, text=f"{decision.text}; {overwrite['reason_text']}")


async def _replaced_by(target: Target, batch: _Batch, item: UploadItem, own: ServerResource) -> ReplacedVersion | None:
    """What a write of ours replaced though the server was seen to have nothing: in this run, or in one that was killed.

    Of a run that was killed, an attempt without a version is open, and the history of the server knows the rest.
    """
    if item.key in batch.replaced:
        return batch.replaced[item.key]
    created = {one.server_hash for one in batch.attempts.get(item.key, ()) if not one.if_match}
    row = batch.rows.get(item.key)
    if not created or (row is not None and row.is_ours):
        return None
    return await find_replaced_version(target.client, item.key, own.id, target.namespace.strategy, sent=created)


def _overwrite_reason(target: Target, over: ReplacedVersion, server_id: str) -> dict[str, Any]:
    """The reason of a study, or an Endpoint, that replaced another client's version."""
    text = describe_replaced_version(over, target.client.url, server_id)
    return {"reason": "concurrent-overwrite", "reason_text": text}


# -- noting what was decided ------------------------------------------------------------------------------------------


async def _note_decisions(target: Target, batch: _Batch, decided: Sequence[tuple[UploadItem, Decision]]) -> None:
    """Write the rows of items that are not sent."""
    rows, closed = [], []
    for item, decision in decided:
        if decision.action is Action.HOLD:
            held, numbers = _held(target, batch, item, decision)
            rows.append(held)
            closed += numbers
        else:
            rows.append(_unchanged(target, batch, item, decision))
            closed += batch.numbers(item)
    rows = await _search_for(target, rows)
    target.ledger.write_rows(rows, closed=closed)
    for row in rows:
        if row.key in batch.replaced and row.state is State.STORED:
            target.note_sent(row)


def _unchanged(target: Target, batch: _Batch, item: UploadItem, decision: Decision) -> ResourceRow:
    """The row of an item that the server has as it should be."""
    row, server = batch.row(item), decision.server
    known = _known_of(server) if server else {}
    ours = not decision.is_external
    contribution = item.body.decode() if item.type == "Patient" and ours else None
    return row.after(
        Event.STORED,
        **known,
        is_external=decision.is_external,
        hash=item.hash,
        server_hash=_content_hash(target, item, server) if server else None,
        contribution=contribution,
        is_indexed=decision.is_external or (row.is_indexed and not _has_duplicates(row)),
        **_reason(row, item, decision),
    )


def _content_hash(target: Target, item: UploadItem, server: ServerResource) -> str:
    """The digest of what the server has of an item, as we produce it."""
    return target.namespace.strategy.content_hash(server.resource, item.id)


def _reason(row: ResourceRow, item: UploadItem, decision: Decision) -> dict[str, str | None]:
    """Why an item that the server has needs attention. What a search found before stays until one finds it no more."""
    for reason, text in ((decision.reason, decision.text), (item.reason, item.reason_text)):
        if reason:
            return {"reason": reason, "reason_text": text}
    if _has_duplicates(row) and not decision.is_external:
        return {"reason": row.reason, "reason_text": row.reason_text}
    return {"reason": None, "reason_text": None}


def _has_duplicates(row: ResourceRow) -> bool:
    """Whether a search has found a resource of another client that is the same as ours."""
    return row.is_ours and row.reason in FOUND_BY_SEARCH


def _held(target: Target, batch: _Batch, item: UploadItem, decision: Decision) -> tuple[ResourceRow, list[int]]:
    """The row of an item that is held, and the attempts that need not be looked at again."""
    row, attempts, server = batch.row(item), batch.attempts.get(item.key, []), decision.server
    known: dict[str, Any] = {}
    closed: list[int] = []
    if server is not None and not row.is_ours:
        content = _content_hash(target, item, server)
        arrived = next((one for one in attempts if one.server_hash == content), None)
        known = _known_of(server) | {"is_external": False, "hash": None, "server_hash": None}
        if arrived and item.key not in batch.replaced:
            known |= {"hash": arrived.hash, "server_hash": content}
            closed = batch.numbers(item)
    return row.after(Event.HELD, reason=decision.reason, reason_text=decision.text, attempts=0, **known), closed


def _known_of(server: ServerResource) -> dict[str, Any]:
    return {"server_id": server.id, "version": server.version, "etag": server.etag}


def _note_failed_looks(target: Target, batch: _Batch, errors: dict[Key, FhirError]) -> None:
    """Note what was not sent, since the server could not be asked. What is known stays known."""
    rows = []
    for item in batch.items:
        if (error := errors.get(item.key)) is not None:
            is_open = bool(batch.attempts.get(item.key))
            rows.append(_failed(batch.row(item), error, may_have_arrived=is_open))
    target.ledger.write_rows(rows)


def _failed(row: ResourceRow, error: FhirError, *, may_have_arrived: bool) -> ResourceRow:
    event, reason = (Event.UNANSWERED, "upload-unconfirmed") if may_have_arrived else (Event.FAILED, "upload-failed")
    return row.after(event, reason=reason, reason_text=str(error), http_status=error.status, attempts=error.attempts)


def _note_dry_run(target: Target, deliveries: Sequence[Delivery]) -> None:
    rows = [_stored(one, WriteResult(200, one.request.id or one.item.id, "", "", 0)) for one in deliveries]
    for row in rows:
        target.note_sent(row)
    target.ledger.write_rows(rows)


# -- sending ----------------------------------------------------------------------------------------------------------


def _prepare(target: Target, batch: _Batch, item: UploadItem, decision: Decision) -> Delivery:
    """What is sent of an item."""
    row, server = batch.row(item), decision.server
    if _must_be_found(target, item, decision, row):
        row = replace(row, is_indexed=False)
    resource: Resource = decision.resource or item.resource
    if decision.is_external and server is not None:
        body, condition = resource | {"id": server.id}, ""
    else:
        body, condition = target.namespace.strategy.address(resource, server.id if server else None)
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
        content_hash(target.namespace.strategy.as_produced(body, item.id)),
        request.if_match,
        contribution,
        server.id if server else None,
    )
    return Delivery(item, decision, row, request, attempt)


async def _settle(target: Target, batch: _Batch, delivered: Sequence[Delivery]) -> list[UploadItem]:
    """Note what became of what was sent; returns the items that must be looked at again."""
    stale = [one.item for one in delivered if one.is_stale]
    rows, closed = [], []
    for one in delivered:
        if one.error is None:
            continue
        if not one.error.may_have_arrived:
            closed += [one.attempt.number]
        if not one.is_stale:
            rows.append(_refused(one))
    target.ledger.write_rows(rows, closed=[number for number in closed if number is not None])
    stored = [one for one in delivered if one.result is not None]
    confirmed = await gather(_confirm(target, batch, one) for one in stored)
    await _write_stored(target, batch, [one for one in confirmed if isinstance(one, _Stored)])
    return stale + [one for one in confirmed if isinstance(one, UploadItem)]


def _refused(delivery: Delivery) -> ResourceRow:
    error = delivery.error
    assert error is not None
    if isinstance(error, PermanentError) and not error.may_have_arrived:
        return delivery.row.after(
            Event.REFUSED,
            reason="upload-rejected",
            reason_text=str(error),
            http_status=error.status,
            attempts=error.attempts,
        )
    return _failed(delivery.row, error, may_have_arrived=error.may_have_arrived)


@dataclass(frozen=True)
class _Stored:
    """A resource that the server took: the row, and the attempt."""

    row: ResourceRow
    attempt: Attempt


async def _confirm(target: Target, batch: _Batch, delivery: Delivery) -> _Stored | UploadItem | None:
    """The row of a resource that the server took; the item where it must be looked at again, None where it failed.

    Until what it replaced is known its attempt stays open, so that a kill leaves nothing unseen.
    """
    item, result, strategy = delivery.item, delivery.result, target.namespace.strategy
    assert result is not None
    server, over = None, None
    try:
        if delivery.request.condition and not result.server_id:
            found = await find_by_search(target.client, [item], strategy)
            if item.key not in found:
                text = "the server took it, and no search finds it yet; run again"
                raise InvalidAnswerError(text, status=result.status)
            result = replace(result, server_id=found[item.key].id)
        if not (result.version or result.etag) or _names_former_version(delivery, result):
            server = await read_back(target.client, item.type, result.server_id)
            _check_replaced(delivery, server)
        if delivery.is_new and result.status != 201:
            sent = {delivery.attempt.server_hash}
            version = result.version
            over = await find_replaced_version(
                target.client, item.key, result.server_id, strategy, sent=sent, version=version
            )
    except FhirError as error:
        target.ledger.write_rows([_failed(delivery.row, error, may_have_arrived=True)])
        return None
    if over is not None and item.type == "Patient" and over.resource is not None:
        batch.replaced[item.key] = over  # it is merged with ours at the next look
        return item
    row = _stored(delivery, result, _content_hash(target, item, server) if server else None)
    row = replace(row, version=server.version, etag=server.etag) if server else row
    if over is not None:
        row = replace(row, **_overwrite_reason(target, over, result.server_id))
    return _Stored(row, delivery.attempt)


def _names_former_version(delivery: Delivery, result: WriteResult) -> bool:
    """Whether the answer to a write names the version that it should have replaced."""
    former = delivery.decision.server
    return former is not None and bool(result.version) and result.version == former.version


def _check_replaced(delivery: Delivery, server: ServerResource) -> None:
    """Check that what was read back is not what the write should have replaced.

    Raises:
        InvalidAnswerError: it is: something answered for the server.
    """
    former = delivery.decision.server
    if former is None or server.id != former.id:
        return
    is_former = server.version == former.version and content_hash(server.resource) == content_hash(former.resource)
    if is_former and content_hash(orjson.loads(delivery.request.body)) != content_hash(server.resource):
        raise InvalidAnswerError("the server took it, and has the former version still; run again")


async def _write_stored(target: Target, batch: _Batch, stored: Sequence[_Stored]) -> None:
    """Note resources that the server took, and search once for those that a search had decided to be new."""
    rows = await _search_for(target, [one.row for one in stored])
    closed = [one.attempt.number for one in stored if one.attempt.number is not None]
    closed += [one.number for row in rows for one in batch.attempts.get(row.key, ()) if one.number is not None]
    target.ledger.write_rows(rows, closed=closed)
    for row in rows:
        target.note_sent(row)


async def _search_for(target: Target, rows: Sequence[ResourceRow]) -> list[ResourceRow]:
    """Rows with what a search finds of those stored resources that none has found yet."""
    to_find = [row for row in rows if row.state is State.STORED and not row.is_indexed]
    if not to_find:
        return list(rows)
    found = await confirm_indexed(
        target.client,
        to_find,
        target.shared,
        target.namespace,
        is_duplicate_wanted=target.options.existing_study == "duplicate",
    )
    by_key = {row.key: row for row in found}
    return [by_key.get(row.key, row) for row in rows]


def _must_be_found(target: Target, item: UploadItem, decision: Decision, row: ResourceRow) -> bool:
    """Whether a search must find a resource: one decided that it is new, or found another client's beside it."""
    is_by_search = item.type == "ImagingStudy" or item.key in target.shared
    return is_by_search and not decision.is_external and (decision.server is None or _has_duplicates(row))


def _stored(delivery: Delivery, result: WriteResult, server_hash: str | None = None) -> ResourceRow:
    """The row of a resource that the server took; `server_hash` is of what was read back, where that was needed."""
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
        **_reason(delivery.row, item, decision),
    )
