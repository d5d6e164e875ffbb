"""Scheduling: the choice of the items that the server must be asked about, and their upload in batches.

It is used for what datasets share (`shared`) and for each dataset (`datasets`). Not here: what happens to the
items of one batch (`transfer`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import orjson

from dicom_etl.lake.tables import Lake
from dicom_etl.upload.batching import pack
from dicom_etl.upload.confirmation import FOUND_BY_SEARCH, confirm_indexed
from dicom_etl.upload.deletion import make_orphaned_row
from dicom_etl.upload.items import UploadItem
from dicom_etl.upload.ledger import FAILED_STATES, Event, Key, ResourceRow, State
from dicom_etl.upload.patients import Contribution, list_contributions, merge_patient
from dicom_etl.upload.tasks import TaskWindow
from dicom_etl.upload.transfer import Target, upload_items

Progress = Callable[[str, int, int], None]  # label, done, total


class Limits(NamedTuple):
    """Limits of a run: entries and bytes of a batch, and concurrent batches."""

    max_entries: int
    max_bytes: int
    max_concurrent_batches: int


@dataclass(frozen=True)
class UploadRun:
    """One upload to one server. `deleted` has type and id, on the server, of each resource that this run deleted."""

    lake: Lake
    target: Target
    limits: Limits
    progress: Progress
    deleted: set[Key] = field(default_factory=set)


# -- which items the server is asked about ----------------------------------------------------------------------------


def resolve_from_ledger(item: UploadItem, row: ResourceRow | None, *, has_attempts: bool) -> ResourceRow | None:
    """The updated row of an item whose current content is on the server; None if the server must be asked."""
    if row is None or has_attempts or not row.is_on_server or row.hash != item.hash:
        return None
    origin = {
        "dataset": item.dataset,
        "unit": item.unit,
        "subject": item.subject,
        "business_key": item.business_key,
    }
    if row.state is State.HELD:
        return row.after(Event.STORED, **origin)
    if row.state is State.ORPHANED:
        return row.after(Event.PRODUCED, **origin)
    if row.state is not State.STORED:
        return None
    row = row.with_changes(**origin)
    if item.type == "Patient" and row.reason in (None, "patient-conflict") and (item.reason or row.reason):
        return row.with_changes(reason=item.reason, reason_text=item.reason_text)
    return row


def is_deferred(item: UploadItem, row: ResourceRow | None, *, failed_only: bool) -> bool:
    """Whether an item waits for another run, because this one retries only what failed."""
    # a study that failed may need a Patient or an Endpoint that was never sent
    is_new_reference = row is None and item.type != "ImagingStudy"
    is_failed = row is not None and row.state in FAILED_STATES
    return failed_only and not is_failed and not is_new_reference


def needs_server_check(
    run: UploadRun, item: UploadItem, row: ResourceRow | None, deferred: set[Key], *, has_attempts: bool
) -> bool:
    """Whether the server must be asked about an item; if not, the ledger or `deferred` is updated."""
    resolved = resolve_from_ledger(item, row, has_attempts=has_attempts)
    if resolved is not None:
        if resolved != row:
            run.target.ledger.write_rows([resolved])
        return False
    if is_deferred(item, row, failed_only=run.target.options.failed_only):
        deferred.add(item.key)
        return False
    return True


async def mark_orphaned(run: UploadRun, rows: Sequence[ResourceRow]) -> None:
    """Record that the lake no longer produces resources; rows of those that never reached the server are deleted."""
    if not rows:
        return
    attempts = await asyncio.wrap_future(run.target.ledger.read_attempts([row.key for row in rows]))
    changes = [(row, make_orphaned_row(row, has_attempts=row.key in attempts)) for row in rows]
    run.target.ledger.write_rows([after for row, after in changes if after is not None and after is not row])
    run.target.ledger.delete_rows([row.key for row, after in changes if after is None])


# -- uploading --------------------------------------------------------------------------------------------------------


async def upload_in_batches(run: UploadRun, items: Iterable[UploadItem]) -> None:
    """Upload items in batches, several at a time."""
    async with TaskWindow(run.limits.max_concurrent_batches) as window:
        for batch in pack(items, run.limits.max_entries, run.limits.max_bytes):
            await window.start(upload_items(run.target, batch))


async def upload_patients(
    run: UploadRun, contributions: Mapping[str, list[Contribution]], item_templates: Mapping[str, UploadItem]
) -> set[Key]:
    """Upload Patients, each merged from the values of all its contributors.

    The server is asked for each of them, even where nothing changed: a study must not refer to a Patient that another
    client has deleted, or merged into another one.

    Args:
        run: the upload.
        contributions: by Patient id, the Patient as each dataset or unit has it.
        item_templates: by Patient id, an item with its dataset, unit and identifier, but without a resource.

    Returns:
        the Patients that are deferred.
    """
    keys = [("Patient", patient) for patient in sorted(contributions)]
    rows, attempts = await asyncio.wrap_future(run.target.ledger.read_rows_and_attempts(keys))
    items, deferred = [], set()
    for key in keys:
        row = rows.get(key)
        base = [orjson.loads(text) for text in list_contributions(row, attempts.get(key, []))]
        merged = merge_patient(base, contributions[key[1]], None)
        item = replace(item_templates[key[1]], resource=merged.contribution)
        if merged.conflicts:
            texts = [
                f"{conflict.element} has different values in {', '.join(conflict.sources)}"
                for conflict in merged.conflicts
            ]
            item = replace(item, reason="patient-conflict", reason_text="; ".join(texts))
        item = item.with_hash()
        if not is_deferred(item, row, failed_only=run.target.options.failed_only):
            items.append(item)
        elif (resolved := resolve_from_ledger(item, row, has_attempts=key in attempts)) is None:
            deferred.add(key)
        elif row is not None and row.state is State.STORED and resolved != row:  # it is in another unit now
            run.target.ledger.write_rows([resolved])
    await upload_in_batches(run, items)
    return deferred


async def confirm_earlier_creations(run: UploadRun, datasets: Collection[str], *, is_shared: bool) -> None:
    """Search again for what earlier runs created, if no search has found it or another client has a duplicate of it.

    Args:
        run: the upload.
        datasets: the names of the datasets whose resources are searched for.
        is_shared: those that datasets share, or those of units; the caller holds the lock of the one or the other.
    """
    target, ledger = run.target, run.target.ledger
    rows: list[ResourceRow] = []
    for name in sorted(datasets):
        unindexed = await asyncio.wrap_future(ledger.read_where(dataset=name, is_shared=is_shared, is_indexed=False))
        notable = await asyncio.wrap_future(ledger.read_where(dataset=name, is_shared=is_shared, is_notable=True))
        rows += [*unindexed, *(row for row in notable if row.is_indexed and row.reason in FOUND_BY_SEARCH)]
    stored = [row for row in rows if row.state is State.STORED and not row.is_external]
    is_duplicate_wanted = target.options.existing_study == "duplicate"
    for start in range(0, len(stored), run.limits.max_entries):
        batch = stored[start : start + run.limits.max_entries]
        confirmed = await confirm_indexed(
            target.client, batch, target.shared, target.namespace, is_duplicate_wanted=is_duplicate_wanted
        )
        ledger.write_rows(confirmed)
