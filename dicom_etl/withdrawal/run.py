"""The steps of a withdrawal: record it, delete it from the server, remove it from the ledger, then from the lake.

The record is written first: from then on the crawl excludes the subject, and the record lists what is still to be
deleted on which server. If a run is killed at any moment, the same call completes it. Resources that a server does not
delete, or that are on another server than the configured one, stay in the record until they are deleted there, too.

Not here: which resources are deleted from the server (`upload.deletion`), and what is removed from the lake
(`withdrawal.removal`).
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from dicom_etl.fhir.corrections import read_corrections
from dicom_etl.fhir_client import FhirError, UnreachableError, UnsuitableServerError, check_server
from dicom_etl.fhir_connection import get_server_name, open_client
from dicom_etl.identity.crosswalk import read_crosswalk
from dicom_etl.identity.ids import ResourceIds
from dicom_etl.lake.tables import Lake
from dicom_etl.settings import Settings, SettingsError
from dicom_etl.upload.deletion import (
    DeletionResult,
    LedgerWithdrawal,
    ServerContent,
    Withdrawal,
    delete_resources,
    locate_resources,
)
from dicom_etl.upload.items import IdStrategy
from dicom_etl.upload.ledger import Key, Ledger, read_servers
from dicom_etl.upload.results import export_ledger
from dicom_etl.withdrawal.contents import find_sharing_datasets, has_contents, read_contents
from dicom_etl.withdrawal.record import (
    WithdrawalRecord,
    WithdrawalRow,
    format_pending_deletions,
    parse_pending_deletions,
)
from dicom_etl.withdrawal.removal import remove_dataset, remove_unit

ResourcesByServer = dict[str, set[str]]  # server -> Type/id there


@dataclass(frozen=True)
class WithdrawalResult:
    """What was removed, or in a dry run would be.

    Attributes:
        dataset: its name.
        files: number of files whose rows were removed from the lake.
        studies: number of studies that were removed from the lake.
        resources: number of resources that were deleted, by server and type.
        notes: sentences that are good to know.
        remaining: sentences about what was not removed, and what to do about it.
        unreachable: why nothing, or not everything, was removed: the server could not be reached.
        dry_run: nothing was removed.
    """

    dataset: str
    files: int
    studies: int
    resources: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    remaining: tuple[str, ...] = ()
    unreachable: str | None = None
    dry_run: bool = False

    @property
    def exit_code(self) -> int:
        """0: everything was removed; 1: something remains; 3: the server could not be reached."""
        return 3 if self.unreachable else int(bool(self.remaining))


def require_contents(lake: Lake, dataset: str, subject: str | None, ids: ResourceIds) -> None:
    """Check that the lake has anything of a subject or dataset, or has a record of its withdrawal.

    Raises:
        SettingsError: it has not.
    """
    record = WithdrawalRecord.read(lake, dataset, ids)
    if record.find_row(subject) or has_contents(lake, dataset, subject):
        return
    if subject is None or not (record or has_contents(lake, dataset, None)):
        raise SettingsError(f"the lake has no dataset {dataset}; `dicom-etl status` lists its datasets")
    raise SettingsError(
        f"{dataset} has no subject {subject}: the table inventory/{dataset}.parquet and the folders show which it has"
    )


class WithdrawalRun:
    """One withdrawal, of a subject (or unit) or of a whole dataset."""

    def __init__(self, lake: Lake, settings: Settings, dataset: str, subject: str | None) -> None:
        self._lake, self._settings, self._dataset, self._subject = lake, settings, dataset, subject
        self._ids = settings.resource_ids()
        require_contents(lake, dataset, subject, self._ids)
        self._contents = contents = read_contents(lake, dataset, subject)
        self._record = WithdrawalRecord.read(lake, dataset, self._ids)
        self._server = get_server_name(settings.fhir.url) if settings.fhir.url else ""
        self._withdrawal = Withdrawal(
            dataset, subject, contents.studies, contents.patients, contents.needed_patients, contents.is_all
        )
        self._server_contents: dict[str, ServerContent] = {}
        for name in read_servers(lake):
            with Ledger.from_lake(lake, name) as ledger:
                self._server_contents[name] = LedgerWithdrawal(ledger, self._withdrawal).read_content()
        self._pending = self._find_pending()
        self._notes = [*self._shared_patient_notes(), *self._list_file_notes()]

    def _find_pending(self) -> ResourcesByServer:
        """What is to be deleted: what the ledgers have, and what an earlier call could not delete."""
        earlier = parse_pending_deletions(self._record.find_row(self._subject))
        needed = {f"Patient/{patient}" for patient in self._contents.needed_patients}
        pending: ResourcesByServer = defaultdict(set)
        for name in sorted({*earlier, *self._server_contents}):
            pending[name] = (earlier.get(name, set()) - needed) | _format_keys(self._content_of(name).resources)
        return pending

    def _content_of(self, server: str) -> ServerContent:
        return self._server_contents.get(server) or ServerContent()

    def plan(self) -> WithdrawalResult:
        """What would be removed; nothing is."""
        remaining = (*self._external_studies(), *self._other_servers())
        self._pending[self._server] |= _format_keys(self._content_of(self._server).uncertain)
        return self._result(self._pending, remaining, dry_run=True)

    def execute(self) -> WithdrawalResult:
        """Remove it; the caller holds the lock of the dataset."""
        asks_server = bool(self._pending[self._server]) or self._content_of(self._server).has_dataset
        if asks_server:
            try:
                unknown = asyncio.run(self._locate())
            except (UnreachableError, UnsuitableServerError) as error:
                return self._result({}, unreachable=f"nothing was removed: {error}")
            if unknown:
                return self._result({}, (self._unknown_resources(unknown),))
        self._write_record(set())
        deleted = asyncio.run(self._delete()) if asks_server else DeletionResult(set(), set())
        if deleted.error:
            return self._stop(deleted)
        self._pending[self._server] = _format_keys(deleted.needed)
        self._write_record(_format_keys(deleted.deleted))
        self._clear_lake()
        remaining = (*self._needed_resources(), *self._external_studies(), *self._other_servers())
        return self._result({self._server: _format_keys(deleted.deleted)}, remaining, is_cleared=True)

    def _clear_lake(self) -> None:
        if self._subject is None:
            remove_dataset(self._lake, self._dataset)
            return
        remove_unit(
            self._lake,
            self._dataset,
            self._subject,
            self._record,
            sharing_units=self._contents.sharing_units,
            identifiers=self._contents.studies | self._contents.patients,
        )

    # -- the configured server

    async def _locate(self) -> int:
        """Search for resources whose state the ledger does not know; returns how many it has no row of.

        Raises:
            UnreachableError: the server does not answer, or answers with errors.
            UnsuitableServerError: it is not a FHIR server that can be used.
        """
        fhir, server = self._settings.fhir, self._server
        content = self._content_of(server)
        async with open_client(fhir) as client:
            id_strategy = IdStrategy(
                self._settings.namespace, await check_server(client, fhir.version, fhir.client_assigned)
            )
            try:
                unknown = await locate_resources(client, id_strategy, self._contents.resources - content.known)
                self._pending[server] |= _format_keys(
                    await locate_resources(client, id_strategy, content.uncertain | content.replaced, by_id=True)
                )
            except FhirError as error:
                raise UnreachableError(f"{client.url}: {error}") from None
        return len(_format_keys(unknown) - self._pending[server])

    async def _delete(self) -> DeletionResult:
        """Delete from the server, then from the ledger; one lock over both, so that no upload relies on a Patient
        that is being deleted.
        """
        pending = (resource.partition("/") for resource in self._pending[self._server])
        keys: set[Key] = {(kind, identity) for kind, _, identity in pending}
        async with open_client(self._settings.fhir) as client:
            with self._lake.lock(f"shared of {self._server}", f"withdrawal from {self._dataset}"):
                deleted = await delete_resources(client, keys)
                if not deleted.error and self._server in self._server_contents:
                    with Ledger.from_lake(self._lake, self._server) as ledger:
                        LedgerWithdrawal(ledger, self._withdrawal).delete_rows()
                        await export_ledger(self._lake, ledger, self._dataset)
        return deleted

    def _stop(self, deleted: DeletionResult) -> WithdrawalResult:
        """The server failed in between: the lake keeps everything, so that the next call knows what to delete."""
        text = (
            f"{self._server}: not everything was deleted, and the lake still has it; run this command again: "
            f"{deleted.error}"
        )
        resources = {self._server: _format_keys(deleted.deleted)}
        if deleted.is_unreachable:
            return self._result(resources, unreachable=text)
        return self._result(resources, (text,))

    # -- the record

    def _write_record(self, deleted: Collection[str]) -> None:
        """Record what is withdrawn, what was deleted, and what is still to be deleted."""
        row = self._record.find_row(self._subject) or self._new_row()
        kinds = Counter(resource.partition("/")[0] for resource in deleted)
        servers = {*(row.servers or "").split(), *([self._server] if deleted else [])}
        row = replace(
            row,
            files=max(row.files, self._contents.files),
            studies=max(row.studies, len(self._contents.studies)),
            patients=row.patients + kinds["Patient"],
            imaging_studies=row.imaging_studies + kinds["ImagingStudy"],
            endpoints=row.endpoints + kinds["Endpoint"],
            servers=" ".join(sorted(servers)) or None,
            pending_deletions=format_pending_deletions(self._pending),
        )
        self._record = self._record.with_row(row, self._subject)
        self._record.write(self._lake)

    def _new_row(self) -> WithdrawalRow:
        digest = self._ids.withdrawal_digest(self._dataset, self._subject) if self._subject else None
        id_key = self._ids.key_fingerprint if self._subject else None
        return WithdrawalRow(self._dataset, self._ids.namespace, digest, id_key, time=datetime.now(UTC))

    # -- sentences of the result

    def _unknown_resources(self, count: int) -> str:
        return (
            f"nothing was removed: {self._server} has {count} resources of it that are not in the ledger, as after an "
            f"upload that was killed; run `dicom-etl upload {self._dataset}`, then this command again"
        )

    def _needed_resources(self) -> Iterator[str]:
        for resource in sorted(self._pending[self._server]):
            yield (
                f"{resource} stays on {self._server}, since resources of other clients refer to it; run this command "
                "again after they have been deleted"
            )

    def _external_studies(self) -> Iterator[str]:
        for resource in sorted(self._content_of(self._server).external):
            yield (
                f"{resource} on {self._server} belongs to another client and contains series of it: remove these "
                "series there"
            )

    def _other_servers(self) -> Iterator[str]:
        for name, resources in sorted(self._pending.items()):
            count = len(resources) + len(self._content_of(name).uncertain)
            if count and name != self._server:
                yield (
                    f"{name} has {count} resources of it and is not the configured server: run this command again with "
                    "--fhir-url and its address"
                )

    def _shared_patient_notes(self) -> Iterator[str]:
        count = max((content.kept_patients for content in self._server_contents.values()), default=0)
        if count:
            names = ", ".join(find_sharing_datasets(self._lake, self._contents))
            yield (
                f"{count} Patients stay, since studies of {names} refer to them; upload {names} to remove the values "
                "that came only from what was withdrawn"
            )

    def _list_file_notes(self) -> Iterator[str]:
        files: dict[str, list[tuple[str, str | None]]] = {
            "crosswalk": [(line.dataset, line.subject) for line in read_crosswalk(self._settings.crosswalk)],
            "corrections": [(line.dataset, line.subject) for line in read_corrections(self._settings.corrections)],
        }
        for name, lines in files.items():
            if any(dataset == self._dataset and self._subject in (None, subject) for dataset, subject in lines):
                yield f"the {name} file still has lines about it: remove them"

    def _result(
        self,
        resources: Mapping[str, Collection[str]],
        remaining: tuple[str, ...] = (),
        *,
        is_cleared: bool = False,
        unreachable: str | None = None,
        dry_run: bool = False,
    ) -> WithdrawalResult:
        counts = (self._contents.files, len(self._contents.studies)) if is_cleared or dry_run else (0, 0)
        notes = tuple(self._notes) if resources or not (remaining or unreachable) else ()
        return WithdrawalResult(
            self._dataset, *counts, _count_by_type(resources), notes, remaining, unreachable, dry_run
        )


def _format_keys(keys: Collection[Key]) -> set[str]:
    """(type, id) as `Type/id`, as the record has them."""
    return {"/".join(key) for key in keys}


def _count_by_type(resources: Mapping[str, Collection[str]]) -> dict[str, dict[str, int]]:
    counts = {name: Counter(text.partition("/")[0] for text in texts) for name, texts in resources.items() if texts}
    return {name: dict(sorted(by_type.items())) for name, by_type in sorted(counts.items())}
