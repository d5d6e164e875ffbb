"""Deletion from a server: of resources that the lake no longer produces, and of a withdrawn subject or dataset.

Only resources of this lake are deleted, studies before what they refer to; a Patient stays as long as a study on the
server refers to it. Not here: what is withdrawn, and what is removed from the lake (`withdrawal`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from dicom_etl.fhir_client import FhirClient
from dicom_etl.fhir_client.errors import ConflictError, FhirError
from dicom_etl.upload.confirmation import describe_replaced_version, find_replaced_version
from dicom_etl.upload.items import IdStrategy, get_dataset_names, get_referenced_id
from dicom_etl.upload.ledger import Attempt, Event, Key, Ledger, ResourceRow, State
from dicom_etl.upload.studies import has_stored, is_same_version
from dicom_etl.upload.transfer import Target

_IDS_AT_ONCE = 25  # identifiers of up to 150 characters in the URL of one search
_ORDER = ("ImagingStudy", "Patient", "Endpoint")  # resources that refer to others are deleted first


# -- orphaned resources -----------------------------------------------------------------------------------------------


def make_orphaned_row(row: ResourceRow, *, has_attempts: bool) -> ResourceRow | None:
    """Make the row of a resource that the lake no longer produces; None where the server has nothing of this lake."""
    if row.type != "ImagingStudy" and row.is_external:
        return None  # studies only referred to it
    may_be_on_server = row.is_owned or row.is_external or has_attempts
    is_of_other_client = row.state is State.HELD and row.reason == "changed-on-server" and not row.is_owned
    if not may_be_on_server or is_of_other_client:
        return None
    if row.state is State.ORPHANED:
        return row
    if row.reason == "concurrent-overwrite":
        return row.after(Event.DROPPED, reason=row.reason, reason_text=f"not deleted: {row.reason_text}")
    text = None
    if row.is_external:
        text = (
            f"not deleted: {row.type}/{row.server_id} belongs to another client; remove the series of this lake there"
        )
    return row.after(Event.DROPPED, reason="orphaned-on-server", reason_text=text)


async def delete_orphaned(target: Target, rows: Iterable[ResourceRow], deleted: set[Key]) -> list[ResourceRow]:
    """Delete orphaned resources from the server; returns the rows of those that were deleted.

    A resource that also has content of another client is not deleted; its row stays until a person has handled it.

    Args:
        target: the server and its ledger.
        rows: orphaned ones.
        deleted: type and id, on the server, of what this run has deleted; it is added to.
    """
    deleted_rows = []
    ordered = sorted(rows, key=lambda row: (_ORDER.index(row.type), row.id))
    attempts = await asyncio.wrap_future(target.ledger.read_attempts([row.key for row in ordered]))
    for orphaned in ordered:
        row = orphaned
        may_delete = _may_delete(row)
        try:
            if may_delete and not row.is_owned:
                resolved = await _resolve_unconfirmed(target, row, attempts.get(row.key, ()))
                if resolved is None:
                    target.ledger.delete_rows([row.key])
                    continue
                row, may_delete = resolved, _may_delete(resolved)
            if may_delete:
                await _delete(target, row, deleted)
                deleted_rows.append(row)
            elif not await _is_handled(target, row):
                continue
        except FhirError as error:
            if may_delete:
                text = f"not deleted: {error}"
                target.ledger.write_rows([row.with_changes(reason_text=text, http_status=error.status)])
            continue
        target.ledger.delete_rows([row.key])
    return deleted_rows


def _may_delete(row: ResourceRow) -> bool:
    return not row.is_external and row.reason != "concurrent-overwrite"


async def _resolve_unconfirmed(target: Target, row: ResourceRow, attempts: Sequence[Attempt]) -> ResourceRow | None:
    """Ask the server about a resource that was sent without an answer; None where it has nothing of this lake.

    The resource under its id may be another client's, or the lake's that replaced another client's.

    Raises:
        FhirError: the server could not be asked.
    """
    server_key = await _find_server_key(target, row)
    server = await target.client.read(*server_key) if server_key else None
    if server is None:
        return None
    strategy, sent = target.namespace.strategy, {attempt.server_hash for attempt in attempts}
    if not attempts or not await has_stored(target.client, row.key, server, strategy, sent):
        return None
    last = attempts[-1]
    row = replace(row, server_id=server.id, version=server.version, etag=server.etag)
    row = replace(row, hash=last.hash, server_hash=last.server_hash)
    created = {attempt.server_hash for attempt in attempts if not attempt.if_match}
    if not created:
        return row
    replaced = await find_replaced_version(target.client, row.key, server.id, strategy, sent=created)
    if replaced is None:
        return row
    text = f"not deleted: {describe_replaced_version(replaced, target.client.url, server.id)}"
    row = replace(row, reason="concurrent-overwrite", reason_text=text)
    closed = [attempt.number for attempt in attempts if attempt.number is not None]
    target.ledger.write_rows([row], closed=closed)
    return row


async def _delete(target: Target, row: ResourceRow, deleted: set[Key]) -> None:
    """Delete one resource.

    Raises:
        FhirError: the server could not be asked, or refused; or studies on it refer to the resource.
    """
    server_key = await _find_server_key(target, row)
    if server_key is None:
        return
    if server_key[0] == "Patient":
        studies = await _find_studies_of_patient(target.client, server_key, deleted)
        if studies:
            count = "1 ImagingStudy resource" if len(studies) == 1 else f"{len(studies)} ImagingStudy resources"
            verb = "refers" if len(studies) == 1 else "refer"
            raise ConflictError(f"{count} on the server {verb} to it, for example {min(studies)}", status=409)
    if row.type == "ImagingStudy" and not target.options.overwrite:
        await _require_unchanged(target, row, server_key)
    if not target.options.dry_run:
        await target.client.delete(*server_key)
    deleted.add(server_key)


async def _require_unchanged(target: Target, row: ResourceRow, server_key: Key) -> None:
    """Require that the server has a study as this lake stored it; changes are deleted only with `--overwrite`.

    Raises:
        FhirError: another client has changed it, or the server could not be asked.
    """
    server = await target.client.read(*server_key)
    if server is None or is_same_version(row, server):
        return
    if target.namespace.strategy.compute_content_hash(server.resource, row.id) != row.server_hash:
        raise ConflictError(f"another client has changed it (version {server.version}); --overwrite deletes it anyway")


async def _is_handled(target: Target, row: ResourceRow) -> bool:
    """Whether a person has done what the row of a resource that is not deleted asks for.

    Then the study of another client no longer names this dataset; or a study that replaced another client's version was
    written again since.

    Raises:
        FhirError: the server could not be asked.
    """
    server = await target.client.read(row.type, row.server_id or row.id)
    if server is None:
        return True
    if row.is_external:
        return row.dataset not in get_dataset_names(server.resource, target.namespace.dataset_system)
    return server.version != row.version


async def _find_server_key(target: Target, row: ResourceRow) -> Key | None:
    """Find type and id of a resource on the server, which must be asked if it assigns ids and has not answered."""
    if row.server_id is not None or target.namespace.strategy.is_client_assigned:
        return row.server_key
    server_keys = await locate_resources(target.client, target.namespace.strategy, [row.key], by_id=True)
    return next(iter(sorted(server_keys)), None)


async def locate_resources(
    client: FhirClient, strategy: IdStrategy, keys: Collection[Key], *, by_id: bool = False
) -> set[Key]:
    """Find out which resources of this lake the server has; returns their type and id on the server.

    Args:
        client: the client of the server.
        strategy: client-assigned or server-assigned ids.
        keys: type and id in the lake.
        by_id: read each by its id, if that is the lake's: a search may not find what arrived a moment ago.

    Raises:
        FhirError: the server could not be asked.
    """
    server_keys: set[Key] = set()
    for resource_type in sorted({name for name, _ in keys}):
        ids = sorted(resource_id for name, resource_id in keys if name == resource_type)
        if by_id and strategy.is_client_assigned:
            server_keys |= {
                (resource_type, resource_id)
                for resource_id in ids
                if await client.read(resource_type, resource_id) is not None
            }
            continue
        for start in range(0, len(ids), _IDS_AT_ONCE):
            chosen = ids[start : start + _IDS_AT_ONCE]
            parameter, tokens = "_id", chosen
            if not strategy.is_client_assigned:
                parameter, tokens = "identifier", [strategy.make_token(resource_id) for resource_id in chosen]
            search = {parameter: ",".join(tokens), "_elements": "identifier", "_count": str(len(chosen))}
            for resource in await client.search(resource_type, search):
                # servers may ignore case, or a parameter that they do not know
                if any(strategy.is_lake_resource(resource, resource_id) for resource_id in chosen):
                    server_keys.add((resource_type, str(resource["id"])))
    return server_keys


async def _find_studies_of_patient(client: FhirClient, patient: Key, deleted: Collection[Key]) -> set[str]:
    """Find the studies on the server that refer to a Patient and were not deleted by this run.

    A server with referential integrity refuses the deletion itself; not every server does.

    Raises:
        FhirError: the server could not be asked.
    """
    matches = await client.search("ImagingStudy", {"subject": "/".join(patient), "_elements": "identifier,subject"})
    ids = {
        str(study["id"])
        for study in matches
        # a server that does not know the parameter may return all studies
        if "subject" not in study or get_referenced_id(study["subject"]) == patient[1]
    }
    return {server_id for server_id in ids if ("ImagingStudy", server_id) not in deleted}


# -- withdrawal -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Withdrawal:
    """A subject or dataset that is withdrawn, in the terms of the ledger.

    Attributes:
        dataset: the dataset.
        unit: the unit; None for the whole dataset.
        studies: the UIDs of the studies that are in it, also in part.
        patients: the Patients of these studies.
        needed: the Patients of all other studies of the lake.
        is_all: nothing of the dataset stays.
    """

    dataset: str
    unit: str | None
    studies: frozenset[str]
    patients: frozenset[str]
    needed: frozenset[str]
    is_all: bool

    def includes(self, row: ResourceRow) -> bool:
        """Whether a row is deleted from the ledger."""
        if row.type == "Endpoint":
            return self.is_all and row.dataset == self.dataset
        if row.unit is not None:
            is_whole = row.dataset == self.dataset and self.unit in (None, row.unit)
            is_part = row.dataset == self.dataset and row.type == "ImagingStudy" and row.business_key in self.studies
            return is_whole or is_part
        is_patient = row.id in self.patients or (self.unit is None and row.dataset == self.dataset)
        return is_patient and row.id not in self.needed

    def deletes(self, row: ResourceRow, *, has_attempts: bool) -> bool:
        """Whether the resource of an included row is deleted from the server."""
        is_needed = row.type == "Patient" and row.id in self.needed
        return not row.is_external and not is_needed and (row.is_on_server or has_attempts)


@dataclass
class ServerContent:
    """The resources of a withdrawn subject or dataset on a server, according to the ledger.

    Attributes:
        resources: type and id, on the server, of what is deleted.
        uncertain: resources of this lake that the server may have, by their id in the lake.
        replaced: Patients instead of which another client's is used; the server may have the lake's, merged into it.
        external: studies of other clients that series of this lake are in.
        kept_patients: the number of Patients that other studies need.
        known: all resources that have a row.
        has_dataset: whether the ledger has a row of the dataset.
    """

    resources: set[Key] = field(default_factory=set)
    uncertain: set[Key] = field(default_factory=set)
    replaced: set[Key] = field(default_factory=set)
    external: set[str] = field(default_factory=set)
    kept_patients: int = 0
    known: set[Key] = field(default_factory=set)
    has_dataset: bool = False


class LedgerWithdrawal:
    """A withdrawal in the ledger of one server."""

    def __init__(self, ledger: Ledger, withdrawal: Withdrawal) -> None:
        self._ledger, self._withdrawal = ledger, withdrawal

    def read_content(self) -> ServerContent:
        """Read what the server has of the withdrawn subject or dataset."""
        withdrawal, content = self._withdrawal, ServerContent()
        rows = self._read_rows()
        attempts = self._ledger.read_attempts([row.key for row in rows]).result()
        for row in rows:
            content.known.add(row.key)
            content.has_dataset |= row.dataset == withdrawal.dataset
            is_kept = row.unit is None and row.type == "Patient" and row.id in withdrawal.patients & withdrawal.needed
            if is_kept:
                content.kept_patients += not row.is_external
            elif withdrawal.includes(row):
                self._add(row, content, has_attempts=row.key in attempts)
        return content

    def _add(self, row: ResourceRow, content: ServerContent, *, has_attempts: bool) -> None:
        if row.is_external and row.type == "ImagingStudy":
            content.external.add(f"ImagingStudy/{row.server_id}")
        elif row.is_external and row.type == "Patient" and row.id not in self._withdrawal.needed:
            content.replaced.add(row.key)
        elif self._withdrawal.deletes(row, has_attempts=has_attempts) and row.is_on_server:
            content.resources.add(row.server_key)
        elif self._withdrawal.deletes(row, has_attempts=has_attempts):
            content.uncertain.add(row.key)

    def delete_rows(self) -> None:
        """Delete the rows of the withdrawn subject or dataset; the next upload checks its units again."""
        rows = [row for row in self._read_rows() if self._withdrawal.includes(row)]
        # a unit whose studies other units build has no row, but a fingerprint
        units = {unit for unit in (self._withdrawal.unit, *(row.unit for row in rows)) if unit is not None}
        self._ledger.delete_rows([row.key for row in rows])
        self._ledger.write_fingerprints(self._withdrawal.dataset, dict.fromkeys(units))
        if self._withdrawal.is_all:
            self._ledger.delete_fingerprints(self._withdrawal.dataset)
        self._ledger.erase_deleted()

    def _read_rows(self) -> list[ResourceRow]:
        of_dataset = self._ledger.read_where(dataset=self._withdrawal.dataset).result()
        shared = self._ledger.read_where(is_shared=True).result()
        return list({row.key: row for row in (*of_dataset, *shared)}.values())


class DeletionResult(NamedTuple):
    """The resources that were deleted, those that others on the server need, and the error that ended the deletion."""

    deleted: set[Key]
    needed: set[Key]
    error: FhirError | None = None
    is_unreachable: bool = False


async def delete_resources(client: FhirClient, server_keys: Iterable[Key]) -> DeletionResult:
    """Delete resources, studies before what they refer to; ends at the first error that is not a conflict.

    A Patient that other studies refer to stays, also on a server that would delete it.
    """
    deleted: set[Key] = set()
    needed: set[Key] = set()
    ordered: Sequence[Key] = sorted(server_keys, key=lambda key: (_ORDER.index(key[0]), key[1]))
    for key in ordered:
        try:
            if key[0] == "Patient" and await _find_studies_of_patient(client, key, deleted):
                needed.add(key)
                continue
            await client.delete(*key)
        except ConflictError:
            needed.add(key)
        except FhirError as error:
            return DeletionResult(deleted, needed, error, client.is_unreachable)
        else:
            deleted.add(key)
    return DeletionResult(deleted, needed)
