"""The upload of one dataset: its own Patients, then its ImagingStudies, under the lock of the dataset.

Units of which everything is stored are skipped by their fingerprint. The others are uploaded in groups: the Patients of
a group go before its studies, and while these are being sent, the Patients of the next group go. Not here: what
datasets share (`shared`), and what happens to one item (`transfer`).
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from dicom_etl.findings import Finding, tabulate_findings
from dicom_etl.lake.locks import LockHeldError
from dicom_etl.lake.schemas import DATASET_FINDINGS
from dicom_etl.upload.batching import pack
from dicom_etl.upload.deletion import delete_orphaned
from dicom_etl.upload.items import DatasetResources, UploadItem, resolve_references
from dicom_etl.upload.ledger import Event, Key, ResourceRow, State
from dicom_etl.upload.patients import Contribution
from dicom_etl.upload.results import UploadSummary, export_ledger, make_findings
from dicom_etl.upload.scheduling import (
    UploadRun,
    confirm_earlier_creations,
    mark_orphaned,
    needs_server_check,
    upload_patients,
)
from dicom_etl.upload.shared import SharedUpload, find_unfinished_units, fingerprint_unit
from dicom_etl.upload.tasks import TaskWindow, cancel
from dicom_etl.upload.transfer import upload_items

GROUP_UNITS, GROUP_BYTES = 100, 8_000_000  # of studies in NDJSON; a larger unit is a group by itself
_DRY_RUN_STATES = {"stored": "would-send", "deleted": "would-delete"}


@dataclass
class UnitGroup:
    """Units that are uploaded together.

    `produced` has the resources of each unit, `references` the rows of the Patients and Endpoints that its studies
    refer to, `deferred` what waits for another run; `batches` is the number of batches that are being sent, and
    `is_planned` says that no further one follows.
    """

    units: list[str]
    produced: dict[str, set[Key]]
    references: dict[Key, ResourceRow] = field(default_factory=dict)
    deferred: set[Key] = field(default_factory=set)
    batches: int = 0
    is_planned: bool = False


class DatasetUpload:
    """The upload of a dataset. `stopped` is the reason why it ended early while other datasets went on."""

    def __init__(self, run: UploadRun, resources: DatasetResources, shared: SharedUpload) -> None:
        self._run, self._resources, self._shared = run, resources, shared
        self._dataset = resources.dataset
        self._deferred: dict[Key, ResourceRow | None] = {}
        self._deleted: list[Key] = []
        self._done = 0
        self.stopped: str | None = None

    async def upload(self) -> None:
        """Upload the dataset, and write its findings."""
        run, name = self._run, self._dataset
        with run.lake.lock(name, f"upload of {name}"):
            self._resources = DatasetResources.read(run.lake, name)  # a build may have ended while this run waited
            await confirm_earlier_creations(run, [name], is_shared=False)
            await self._reopen_units()
            unfinished = await find_unfinished_units(run, self._resources, self._shared)
            self._report_progress(len(self._resources.built_units) - len(unfinished))
            await self._upload_units(unfinished)
            await self._close_removed_units()
            if run.target.options.prune:
                await self._delete_orphaned()
            await self._write_results()

    # -- units

    async def _upload_units(self, units: Sequence[str]) -> None:
        """Upload Patients before the studies that refer to them; the next group's while studies are being sent."""
        groups = deque(self._group_units(units))
        async with TaskWindow(self._run.limits.max_concurrent_batches) as window:
            next_patients: asyncio.Task[None] | None = None
            try:
                while groups:
                    group = groups.popleft()
                    await (next_patients or self._upload_patients(group))
                    next_patients = asyncio.create_task(self._upload_patients(groups[0])) if groups else None
                    await self._upload_studies(group, window)
            finally:
                await cancel([next_patients] if next_patients else [])

    def _group_units(self, units: Sequence[str]) -> Iterator[UnitGroup]:
        names: list[str] = []
        size = 0
        for unit in units:
            length = self._resources.study_bytes(unit)
            if names and (len(names) >= GROUP_UNITS or size + length > GROUP_BYTES):
                yield UnitGroup(names, {name: set() for name in names})
                names, size = [], 0
            names.append(unit)
            size += length
        if names:
            yield UnitGroup(names, {name: set() for name in names})

    async def _upload_patients(self, group: UnitGroup) -> None:
        """Upload the Patients that no other dataset has, and whose first unit is in the group."""
        resources = self._resources
        first_units = {
            patient: unit
            for unit in group.units
            for patient in resources.patients_by_unit.get(unit, ())
            if not self._shared.is_shared(patient) and resources.units_by_patient[patient][0] == unit
        }
        contributions: dict[str, list[Contribution]] = defaultdict(list)
        for unit in sorted({unit for patient in first_units for unit in resources.units_by_patient[patient]}):
            for resource in resources.read_resources("Patient", unit):
                if resource["id"] in first_units:
                    contributions[resource["id"]].append(Contribution(unit, resource))
        item_templates = {
            patient: UploadItem(
                {}, self._dataset, unit, resources.subject_by_unit.get(unit), resources.identifier_by_patient[patient]
            )
            for patient, unit in first_units.items()
            if patient in contributions
        }
        for patient, item in item_templates.items():
            group.produced[item.unit or ""].add(("Patient", patient))
        group.deferred |= await upload_patients(self._run, contributions, item_templates)

    async def _upload_studies(self, group: UnitGroup, window: TaskWindow) -> None:
        resources, target = self._resources, self._run.target
        ids = target.namespace.ids
        uids = {uid for unit in group.units for uid in resources.study_uids_by_unit.get(unit, ())}
        keys = [("ImagingStudy", ids.resource_id("ImagingStudy", self._dataset, uid)) for uid in uids]
        rows, attempts = await asyncio.wrap_future(target.ledger.read_rows_and_attempts(keys))
        patients = {
            ("Patient", patient) for unit in group.units for patient in resources.patients_by_unit.get(unit, ())
        }
        endpoints = {("Endpoint", identity) for identity in self._shared.endpoints}
        group.references = await asyncio.wrap_future(target.ledger.read_rows(patients | endpoints))
        limits = self._run.limits
        for batch in pack(self._select_studies(group, rows, attempts), limits.max_entries, limits.max_bytes):
            group.batches += 1
            await window.start(self._upload_batch(group, batch))
        group.is_planned = True
        if not group.batches:
            await self._finish_group(group)

    async def _upload_batch(self, group: UnitGroup, batch: Sequence[UploadItem]) -> None:
        await upload_items(self._run.target, batch)
        group.batches -= 1
        if group.is_planned and not group.batches:
            await self._finish_group(group)

    def _select_studies(
        self, group: UnitGroup, rows: Mapping[Key, ResourceRow], attempts: Collection[Key]
    ) -> Iterator[UploadItem]:
        """Yield the studies of a group that the server must be asked about; the rows of the others are updated."""
        target = self._run.target
        server_ids = {key: row.server_id for key, row in group.references.items() if row.server_id}
        for unit in group.units:
            for built in self._resources.read_study_items(unit):
                item = resolve_references(built, server_ids)
                group.produced[unit].add(item.key)
                row = rows.get(item.key)
                if not needs_server_check(self._run, item, row, group.deferred, has_attempts=item.key in attempts):
                    continue
                if (blocked := self._make_blocked_row(item, row, group.references)) is not None:
                    target.ledger.write_rows([blocked])
                else:
                    yield item

    def _make_blocked_row(
        self, item: UploadItem, row: ResourceRow | None, references: Mapping[Key, ResourceRow]
    ) -> ResourceRow | None:
        """Make the row of a study that refers to something the server does not have; None where it has all."""
        for key in item.references:
            reference = references.get(key)
            # an Endpoint that another client changed is on the server all the same
            is_held = reference is not None and reference.state is State.HELD and key[0] != "Endpoint"
            if reference is not None and reference.is_on_server and not is_held:
                continue
            row = row or ResourceRow(item.type, item.id, item.dataset)
            row = replace(row, unit=item.unit, subject=item.subject, business_key=item.business_key)
            name = "/".join(key)
            if reference is not None and is_held:
                return row.after(Event.HELD, reason=reference.reason, reason_text=reference.reason_text)
            if reference is not None and reference.state is State.REJECTED:
                text = f"not sent, because the server rejected {name}"
                status = reference.http_status
                return row.after(Event.REFUSED, reason="upload-rejected", reason_text=text, http_status=status)
            stopped = self._run.target.client.stop_reason
            text = stopped or f"not sent, because {name} is not on the server yet; run again"
            return row.after(Event.FAILED, reason="upload-failed", reason_text=text)
        return None

    async def _finish_group(self, group: UnitGroup) -> None:
        """Record what the units of a group no longer produce, and the units of which everything is stored."""
        ledger = self._run.target.ledger
        rows = await asyncio.wrap_future(ledger.read_units(self._dataset, group.units))
        produced = {key for keys in group.produced.values() for key in keys}
        removed = await self._record_not_produced([row for key, row in rows.items() if key not in produced])
        states: dict[str, set[State | None]] = defaultdict(set)
        for unit, keys in group.produced.items():
            states[unit] |= {rows[key].state if key in rows else None for key in keys}
        for key, row in rows.items():
            if key not in produced | removed and row.unit is not None:
                states[row.unit].add(None)  # the next run checks it again
        for unit in group.units:
            states[unit] |= self._read_shared_states(group, unit)
        deferred_units = {unit for unit, keys in group.produced.items() if keys & group.deferred}
        other_ids = {key: row.server_id for key, row in group.references.items() if row.server_id not in (None, row.id)}
        fingerprints: dict[str, str | None] = {}
        for unit in group.units:
            is_finished = states[unit] <= {State.STORED} and unit not in deferred_units
            fingerprints[unit] = (
                fingerprint_unit(self._resources, self._shared, unit, other_ids) if is_finished else None
            )
        ledger.write_fingerprints(self._dataset, fingerprints)
        self._deferred |= {key: rows.get(key) for key in group.deferred}
        self._report_progress(len(group.units))

    def _read_shared_states(self, group: UnitGroup, unit: str) -> set[State | None]:
        """Return the states of a unit's shared Patients; None for one that is deferred or in no ledger."""
        keys = {
            ("Patient", patient)
            for patient in self._resources.patients_by_unit.get(unit, ())
            if self._shared.is_shared(patient)
        }
        present = keys & group.references.keys() - self._shared.deferred
        return {group.references[key].state if key in present else None for key in keys}

    # -- what units no longer produce

    async def _record_not_produced(self, rows: Sequence[ResourceRow]) -> set[Key]:
        """Update rows that their units do not produce; returns the keys of those that nothing produces."""
        removed = []
        for row in rows:
            cause = self._find_cause(row)
            if cause == "held":
                text = "the study is on hold now; the server has its former state"
                held = row.after(Event.HELD, reason="held-study-on-server", reason_text=text)
                self._run.target.ledger.write_rows([held])
            elif cause == "removed":
                removed.append(row)
            elif row.state is State.ORPHANED:
                self._run.target.ledger.write_rows([row.after(Event.PRODUCED)])
        await mark_orphaned(self._run, removed)
        return {row.key for row in removed}

    def _find_cause(self, row: ResourceRow) -> Literal["removed", "held", "moved"]:
        """Find out why a unit does not produce a resource.

        `removed`: nothing in the lake produces it. `held`: its study is on hold. `moved`: another unit produces it, or
        will once it is built.
        """
        if row.type != "ImagingStudy":
            is_produced = row.id in self._shared.produced_patients or row.id in self._resources.units_by_patient
            return "moved" if is_produced else "removed"
        identities = self._resources.identities_by_study.get(row.business_key or "", ())
        if any(identity.state != "held" and identity.building_unit != row.unit for identity in identities):
            return "moved"
        # its files exist, so it was not removed: its Patient is undecided, or it could not be built
        may_be_on_server = row.is_on_server or row.state is State.UNCONFIRMED
        return "held" if identities and may_be_on_server else "removed"

    async def _reopen_units(self) -> None:
        """Reopen units with orphaned resources that the lake has again, in another unit or on hold."""
        ledger = self._run.target.ledger
        orphaned = ledger.read_where(dataset=self._dataset, states=[State.ORPHANED], is_shared=False)
        units = {
            row.unit for row in await asyncio.wrap_future(orphaned) if row.unit and self._find_cause(row) != "removed"
        }
        if units:
            ledger.write_fingerprints(self._dataset, dict.fromkeys(units))

    async def _close_removed_units(self) -> None:
        """Record that units which the dataset no longer has produce nothing."""
        ledger = self._run.target.ledger
        units = await asyncio.wrap_future(ledger.read_unit_names(self._dataset))
        removed = sorted(units - set(self._resources.units))
        if removed:
            rows = await asyncio.wrap_future(ledger.read_units(self._dataset, removed))
            await self._record_not_produced(list(rows.values()))
            ledger.write_fingerprints(self._dataset, dict.fromkeys(removed))

    async def _delete_orphaned(self) -> None:
        ledger = self._run.target.ledger
        rows = await asyncio.wrap_future(
            ledger.read_where(dataset=self._dataset, states=[State.ORPHANED], is_shared=False)
        )
        deleted = await delete_orphaned(self._run.target, rows, self._run.deleted)
        self._deleted += [row.key for row in deleted]

    # -- results

    async def summarize(self) -> UploadSummary:
        """Summarize the upload, after all datasets and what they share are done."""
        run, name = self._run, self._dataset
        deleted = [*self._deleted, *(key for dataset, key in self._shared.deleted if dataset == name)]
        if run.target.options.prune and not self.stopped:  # shared resources were deleted after the findings
            try:
                with run.lake.lock(name, f"upload of {name}"):
                    await self._write_results()
            except LockHeldError as error:  # everything is done, and the next run writes these results
                self.stopped = str(error)
        counts = await self._count()
        for resource_type, _ in deleted:
            counts[resource_type, self._name_result("deleted")] += 1
        by_type: dict[str, dict[str, int]] = defaultdict(dict)
        for (resource_type, state), number in sorted(counts.items()):
            if number:
                by_type[resource_type][state] = number
        client = run.target.client
        return UploadSummary(
            name,
            run.target.ledger.server,
            dict(by_type),
            len(await self._collect_findings()),
            tuple(sorted("/".join(key) for key in deleted)),
            client.is_unreachable,
            self.stopped or client.stop_reason,
            run.target.options.dry_run,
        )

    def _report_progress(self, units: int) -> None:
        self._done += units
        self._run.progress(f"upload {self._dataset}", self._done, len(self._resources.built_units))

    async def _write_results(self) -> None:
        if self._run.target.options.dry_run:
            return
        table = tabulate_findings(await self._collect_findings())
        self._run.lake.write(DATASET_FINDINGS, table, stage="upload", dataset=self._dataset)
        await export_ledger(self._run.lake, self._run.target.ledger, self._dataset)

    async def _collect_findings(self) -> list[Finding]:
        ledger, name = self._run.target.ledger, self._dataset
        rows = await asyncio.wrap_future(ledger.read_where(dataset=name, is_notable=True))
        shared = await self._shared.read_rows(name)
        notable = [row for row in rows if row.unit is not None]
        # orphaned ones are no longer among the dataset's keys
        shared = {row.key: row for row in rows if row.unit is None} | shared
        for key in sorted(shared):
            row = shared[key]
            if row.state is State.HELD and row.type == "Patient":  # each of its studies has the finding
                continue
            unit, subject = self._shared.find_unit(name, row.id)
            notable.append(replace(row, unit=unit, subject=subject))
        return list(make_findings(notable, name))

    async def _count(self) -> Counter[tuple[str, str]]:
        """Count the dataset's resources by type and state."""
        ledger, name, sent = self._run.target.ledger, self._dataset, self._run.target.sent
        counts: Counter[tuple[str, str]] = Counter()
        by_state = await asyncio.wrap_future(ledger.read_counts(name))
        for (resource_type, state, is_external), number in by_state.items():
            counts[resource_type, self._name_state(state, is_external=is_external, is_sent=False)] += number
        for (resource_type, _), (dataset, is_shared, is_external) in sent.items():
            if dataset == name and not is_shared and not is_external:
                counts[resource_type, "unchanged"] -= 1
                counts[resource_type, self._name_result("stored")] += 1
        shared = await self._shared.read_rows(name)
        orphaned = await asyncio.wrap_future(ledger.read_where(dataset=name, is_shared=True, states=[State.ORPHANED]))
        for row in (shared | {row.key: row for row in orphaned}).values():
            counts[row.type, self._name_state(row.state, is_external=row.is_external, is_sent=row.key in sent)] += 1
        deferred = self._deferred | {
            key: shared.get(key) for key in self._shared.list_keys(name) if key in self._shared.deferred
        }
        for (resource_type, _), deferred_row in deferred.items():
            if deferred_row is not None:
                is_external = deferred_row.is_external
                counts[resource_type, self._name_state(deferred_row.state, is_external=is_external, is_sent=False)] -= 1
            counts[resource_type, "waiting"] += 1
        return counts

    def _name_state(self, state: State, *, is_external: bool, is_sent: bool) -> str:
        """Return the name under which a summary counts a state."""
        if state is not State.STORED:
            return str(state)
        return "external" if is_external else self._name_result("stored") if is_sent else "unchanged"

    def _name_result(self, result: str) -> str:
        return _DRY_RUN_STATES.get(result, result) if self._run.target.options.dry_run else result
