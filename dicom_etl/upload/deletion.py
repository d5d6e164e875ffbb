"""What leaves a server: resources that the lake no longer produces, and those of a withdrawn subject or dataset.

Only resources of ours are deleted, studies before what they refer to; a Patient stays while a study on the server
refers to it. Not here: who is withdrawn, and what the lake loses (`withdrawal`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from dicom_etl.fhir_client import FhirClient
from dicom_etl.fhir_client.errors import ConflictError, FhirError
from dicom_etl.upload.confirmation import describe_replaced_version, find_replaced_version
from dicom_etl.upload.items import IdStrategy, datasets_of, referenced_id
from dicom_etl.upload.ledger import Attempt, Event, Key, Ledger, ResourceRow, State
from dicom_etl.upload.studies import has_stored, is_same_version
from dicom_etl.upload.transfer import Target

_IDS_AT_ONCE = 25  # identifiers of up to 150 characters in the URL of one search
_ORDER = ("ImagingStudy", "Patient", "Endpoint")  # what refers to others goes first


# -- orphaned resources -----------------------------------------------------------------------------------------------


def make_orphaned_row(row: ResourceRow, *, has_attempts: bool) -> ResourceRow | None:
    """The row of a resource that the lake no longer produces; None where the server has nothing of ours."""
    if row.type != "ImagingStudy" and row.is_external:
        return None  # another client's Patient was only referred to
    is_there = row.is_ours or row.is_external or has_attempts
    is_of_other = row.state is State.HELD and row.reason == "changed-on-server" and not row.is_ours
    if not is_there or is_of_other:
        return None
    if row.state is State.ORPHANED:
        return row
    if row.reason == "concurrent-overwrite":
        return row.after(Event.DROPPED, reason=row.reason, reason_text=f"not deleted: {row.reason_text}")
    text = None
    if row.is_external:
        text = f"not deleted: {row.type}/{row.server_id} is another client's; remove our series from it there"
    return row.after(Event.DROPPED, reason="orphaned-on-server", reason_text=text)


async def delete_orphaned(target: Target, rows: Iterable[ResourceRow], deleted: set[Key]) -> list[ResourceRow]:
    """Delete orphaned resources from the server; returns those that were.

    What is not ours to delete stays until somebody has seen to it; then the ledger forgets it.

    Args:
        target: the server and its ledger.
        rows: orphaned ones.
        deleted: the places of what this run has deleted; it grows.
    """
    gone = []
    ordered = sorted(rows, key=lambda row: (_ORDER.index(row.type), row.id))
    attempts = await asyncio.wrap_future(target.ledger.read_attempts([row.key for row in ordered]))
    for known in ordered:
        row = known
        is_ours = _is_ours_to_delete(row)
        try:
            if is_ours and not row.is_ours:
                settled = await _settle_unconfirmed(target, row, attempts.get(row.key, ()))
                if settled is None:
                    target.ledger.delete_rows([row.key])
                    continue
                row, is_ours = settled, _is_ours_to_delete(settled)
            if is_ours:
                await _delete(target, row, deleted)
                gone.append(row)
            elif not await _is_seen_to(target, row):
                continue
        except FhirError as error:
            if is_ours:
                text = f"not deleted: {error}"
                target.ledger.write_rows([row.with_changes(reason_text=text, http_status=error.status)])
            continue
        target.ledger.delete_rows([row.key])
    return gone


def _is_ours_to_delete(row: ResourceRow) -> bool:
    return not row.is_external and row.reason != "concurrent-overwrite"


async def _settle_unconfirmed(target: Target, row: ResourceRow, attempts: Sequence[Attempt]) -> ResourceRow | None:
    """The row of a resource that was sent without an answer, once the server was asked; None: it has nothing of ours.

    What is there under its id may be another client's, or ours that replaced another client's.

    Raises:
        FhirError: the server could not be asked.
    """
    place = await _place(target, row)
    server = await target.client.read(*place) if place else None
    if server is None:
        return None
    strategy, sent = target.namespace.strategy, {one.server_hash for one in attempts}
    if not attempts or not await has_stored(target.client, row.key, server, strategy, sent):
        return None
    last = attempts[-1]
    row = replace(row, server_id=server.id, version=server.version, etag=server.etag)
    row = replace(row, hash=last.hash, server_hash=last.server_hash)
    created = {one.server_hash for one in attempts if not one.if_match}
    over = await find_replaced_version(target.client, row.key, server.id, strategy, sent=created) if created else None
    if over is None:
        return row
    text = f"not deleted: {describe_replaced_version(over, target.client.url, server.id)}"
    row = replace(row, reason="concurrent-overwrite", reason_text=text)
    target.ledger.write_rows([row], closed=[one.number for one in attempts if one.number is not None])
    return row


async def _delete(target: Target, row: ResourceRow, deleted: set[Key]) -> None:
    """Delete one resource.

    Raises:
        FhirError: the server could not be asked, or refused; or studies there refer to it.
    """
    place = await _place(target, row)
    if place is None:
        return
    if place[0] == "Patient" and (left := await _studies_of(target.client, place, deleted)):
        raise ConflictError(
            f"{len(left)} ImagingStudy resources on the server refer to it, {min(left)} for one", status=409
        )
    if row.type == "ImagingStudy" and not target.options.overwrite:
        await _require_unchanged(target, row, place)
    if not target.options.dry_run:
        await target.client.delete(*place)
    deleted.add(place)


async def _require_unchanged(target: Target, row: ResourceRow, place: Key) -> None:
    """Make sure that a study is deleted as we stored it: what another client added to it goes by `--overwrite` alone.

    Raises:
        FhirError: another client has changed it, or the server could not be asked.
    """
    server = await target.client.read(*place)
    if server is None or is_same_version(row, server):
        return
    if target.namespace.strategy.content_hash(server.resource, row.id) != row.server_hash:
        raise ConflictError(f"another client has changed it (version {server.version}); --overwrite deletes it, too")


async def _is_seen_to(target: Target, row: ResourceRow) -> bool:
    """Whether somebody has done what the row of a resource that is not ours to delete says.

    Then the study of another client no longer names our dataset; or a study that replaced another client's version was
    written again since.

    Raises:
        FhirError: the server could not be asked.
    """
    server = await target.client.read(row.type, row.server_id or row.id)
    if server is None:
        return True
    if row.is_external:
        return row.dataset not in datasets_of(server.resource, target.namespace.dataset_system)
    return server.version != row.version


async def _place(target: Target, row: ResourceRow) -> Key | None:
    """Where the server has it. Of what was sent without an answer, a server that assigns ids must be asked."""
    if row.server_id is not None or target.namespace.strategy.is_client_assigned:
        return row.place
    places = await locate(target.client, target.namespace.strategy, [row.key], by_id=True)
    return next(iter(sorted(places)), None)


async def locate(client: FhirClient, strategy: IdStrategy, keys: Collection[Key], *, by_id: bool = False) -> set[Key]:
    """Where the server has those of some resources of ours that it has: type and id there.

    Args:
        client: asks.
        strategy: of ids.
        keys: of resources.
        by_id: read each by its id, where that is ours: a search may not find what arrived a moment ago.

    Raises:
        FhirError: it could not be asked.
    """
    places: set[Key] = set()
    for kind in sorted({kind for kind, _ in keys}):
        ids = sorted(identity for one, identity in keys if one == kind)
        if by_id and strategy.is_client_assigned:
            places |= {(kind, identity) for identity in ids if await client.read(kind, identity) is not None}
            continue
        for start in range(0, len(ids), _IDS_AT_ONCE):
            some = ids[start : start + _IDS_AT_ONCE]
            name, tokens = ("_id", some) if strategy.is_client_assigned else ("identifier", map(strategy.token, some))
            search = {name: ",".join(tokens), "_elements": "identifier", "_count": str(len(some))}
            for found in await client.search(kind, search):
                # servers may ignore case, or a parameter that they do not know
                if any(strategy.is_ours(found, identity) for identity in some):
                    places.add((kind, str(found["id"])))
    return places


async def _studies_of(client: FhirClient, patient: Key, deleted: Collection[Key]) -> set[str]:
    """The studies on the server that refer to a Patient, and were not deleted by this run.

    A server that keeps references whole refuses the deletion itself; not every server does.

    Raises:
        FhirError: the server could not be asked.
    """
    found = await client.search("ImagingStudy", {"subject": "/".join(patient), "_elements": "identifier,subject"})
    ids = {
        str(study["id"])
        for study in found
        # a server that does not know the parameter may give all studies
        if "subject" not in study or referenced_id(study["subject"]) == patient[1]
    }
    return {identity for identity in ids if ("ImagingStudy", identity) not in deleted}


# -- withdrawal -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Withdrawal:
    """What is withdrawn, as the ledger knows it.

    `unit` is None for the whole dataset; `studies` are the UIDs of those that are in it, also partly; `patients` those
    of its studies, `needed` those of all other studies of the lake. `is_all`: nothing of the dataset stays.
    """

    dataset: str
    unit: str | None
    studies: frozenset[str]
    patients: frozenset[str]
    needed: frozenset[str]
    is_all: bool

    def concerns(self, row: ResourceRow) -> bool:
        """Whether a row leaves the ledger."""
        if row.type == "Endpoint":
            return self.is_all and row.dataset == self.dataset
        if row.unit is not None:
            own = row.dataset == self.dataset and self.unit in (None, row.unit)
            partly = row.dataset == self.dataset and row.type == "ImagingStudy" and row.business_key in self.studies
            return own or partly
        mine = row.id in self.patients or (self.unit is None and row.dataset == self.dataset)
        return mine and row.id not in self.needed

    def deletes(self, row: ResourceRow, *, has_attempts: bool) -> bool:
        """Whether the resource of a row that leaves the ledger is to be deleted from the server."""
        is_needed = row.type == "Patient" and row.id in self.needed
        return not row.is_external and not is_needed and (row.is_on_server or has_attempts)


@dataclass
class ServerContent:
    """What a server has of what is withdrawn: by place (type and id there), and what only it can say.

    `unsure` are resources of ours of which it is not known whether it has them, by our id; `replaced` are Patients in
    whose place another client's is used, since the server may have ours as well, merged into that one; `external` are
    studies of other clients that our series are in; `kept` is the number of Patients that other studies need.
    """

    places: set[Key] = field(default_factory=set)
    unsure: set[Key] = field(default_factory=set)
    replaced: set[Key] = field(default_factory=set)
    external: set[str] = field(default_factory=set)
    kept: int = 0
    known: set[Key] = field(default_factory=set)
    knows_dataset: bool = False


class LedgerWithdrawal:
    """The ledger of a server as far as a withdrawal concerns it."""

    def __init__(self, ledger: Ledger, withdrawal: Withdrawal) -> None:
        self._ledger, self._withdrawal = ledger, withdrawal

    def content(self) -> ServerContent:
        """What the server has of what is withdrawn, as far as the ledger says."""
        withdrawal, content = self._withdrawal, ServerContent()
        rows = self._rows()
        attempts = self._ledger.read_attempts([row.key for row in rows]).result()
        for row in rows:
            content.known.add(row.key)
            content.knows_dataset |= row.dataset == withdrawal.dataset
            is_kept = row.unit is None and row.type == "Patient" and row.id in withdrawal.patients & withdrawal.needed
            if is_kept:
                content.kept += not row.is_external
            elif withdrawal.concerns(row):
                self._add(row, content, has_attempts=row.key in attempts)
        return content

    def _add(self, row: ResourceRow, content: ServerContent, *, has_attempts: bool) -> None:
        if row.is_external and row.type == "ImagingStudy":
            content.external.add(f"ImagingStudy/{row.server_id}")
        elif row.is_external and row.type == "Patient" and row.id not in self._withdrawal.needed:
            content.replaced.add(row.key)
        elif self._withdrawal.deletes(row, has_attempts=has_attempts) and row.is_on_server:
            content.places.add(row.place)
        elif self._withdrawal.deletes(row, has_attempts=has_attempts):
            content.unsure.add(row.key)

    def drop(self) -> None:
        """Take out of the ledger what is withdrawn; the next upload looks at its units again."""
        rows = [row for row in self._rows() if self._withdrawal.concerns(row)]
        # a unit whose studies others build has no row, and a fingerprint all the same
        units = {unit for unit in (self._withdrawal.unit, *(row.unit for row in rows)) if unit is not None}
        self._ledger.delete_rows([row.key for row in rows])
        self._ledger.write_fingerprints(self._withdrawal.dataset, dict.fromkeys(units))
        if self._withdrawal.is_all:
            self._ledger.delete_fingerprints(self._withdrawal.dataset)
        self._ledger.erase_deleted()

    def _rows(self) -> list[ResourceRow]:
        of_dataset = self._ledger.read_where(dataset=self._withdrawal.dataset).result()
        shared = self._ledger.read_where(is_shared=True).result()
        return list({row.key: row for row in (*of_dataset, *shared)}.values())


class DeletionResult(NamedTuple):
    """What became of places: deleted, needed there by others, and the first other refusal."""

    done: set[Key]
    needed: set[Key]
    refused: FhirError | None = None
    is_unreachable: bool = False


async def delete_resources(client: FhirClient, places: Iterable[Key]) -> DeletionResult:
    """Delete resources, studies before what they refer to; ends at the first refusal that is not a conflict.

    A Patient that other studies refer to stays, also on a server that would delete it.
    """
    done: set[Key] = set()
    needed: set[Key] = set()
    ordered: Sequence[Key] = sorted(places, key=lambda place: (_ORDER.index(place[0]), place[1]))
    for place in ordered:
        try:
            if place[0] == "Patient" and await _studies_of(client, place, done):
                needed.add(place)
                continue
            await client.delete(*place)
        except ConflictError:
            needed.add(place)
        except FhirError as error:
            return DeletionResult(done, needed, error, client.is_unreachable)
        else:
            done.add(place)
    return DeletionResult(done, needed)
