"""A run of the upload: what datasets share first, then each dataset's own Patients and its ImagingStudies.

Units of which everything is stored are passed over by their fingerprint. The others go in slabs: the Patients of a slab
are uploaded before its studies, while those of the slab before are on their way. Not here: what happens to one item
(`transfer`).
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import orjson

from dicom_etl.findings import Finding, tabulate_findings
from dicom_etl.lake.fingerprints import fingerprint
from dicom_etl.lake.locks import LockHeldError
from dicom_etl.lake.schemas import DATASET_FINDINGS
from dicom_etl.lake.tables import Lake
from dicom_etl.upload.batching import pack
from dicom_etl.upload.confirmation import FOUND_BY_SEARCH, confirm_indexed
from dicom_etl.upload.deletion import delete_orphaned, drop_from_lake
from dicom_etl.upload.export import export_ledger
from dicom_etl.upload.findings import findings_of
from dicom_etl.upload.items import DatasetResources, NotBuiltError, StudyIdentity, UploadItem, refer_to
from dicom_etl.upload.ledger import FAILED_STATES, Event, Key, ResourceRow, State
from dicom_etl.upload.patients import Contribution, contributions_of, merge_patient
from dicom_etl.upload.tasks import TaskWindow, cancel
from dicom_etl.upload.transfer import Target, upload_items

Progress = Callable[[str, int, int], None]  # what, done, of how many

_SLAB_UNITS, _SLAB_BYTES = 100, 8_000_000  # of resources in NDJSON; a larger unit is a slab of its own
_PATIENTS_AT_ONCE = 500
_DRY_RUN_STATES = {"stored": "would-send", "deleted": "would-delete"}


class Limits(NamedTuple):
    """How much goes together: entries and bytes of a batch, and batches at once."""

    max_entries: int
    max_bytes: int
    max_batches: int


@dataclass(frozen=True)
class Run:
    """One upload to one server. `deleted` are the places of what it has deleted."""

    lake: Lake
    target: Target
    limits: Limits
    progress: Progress
    deleted: set[Key] = field(default_factory=set)


@dataclass(frozen=True)
class Uploaded:
    """What an upload of a dataset did.

    `counts` says by resource type how many are in which state: stored (sent now), unchanged, external, rejected,
    failed, unconfirmed (sent, answer unknown), held, orphaned (on the server and no longer in the lake), waiting (not
    tried, with `failed_only`), deleted; in a dry run would-send and would-delete. What datasets share counts in each.
    `removed` lists what was (or would be) deleted. `stopped` says why the rest was not sent; `unreachable`, that the
    network was the reason. `server` is None where none is set: the NDJSON files of the lake are the result then.
    """

    dataset: str
    server: str | None
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    findings: int = 0
    removed: tuple[str, ...] = ()
    unreachable: bool = False
    stopped: str | None = None
    dry_run: bool = False


async def upload_datasets(run: Run, datasets: Sequence[DatasetResources]) -> list[Uploaded]:
    """Upload datasets, one after the other; one summary for each.

    Raises:
        LockHeldError, NotBuiltError: the only dataset is being written, or was withdrawn meanwhile; of several, the
            others go on.
    """
    shared = SharedUpload(run, datasets)
    await shared.upload()
    uploads = [DatasetUpload(run, one, shared) for one in datasets]
    for one in uploads:
        try:
            await one.upload()
        except (NotBuiltError, LockHeldError) as error:
            if len(uploads) == 1:
                raise
            one.stopped = str(error)
    if run.target.options.prune:
        try:
            await shared.prune()
        except LockHeldError as error:  # what the datasets uploaded is there; the rest goes in the next run
            for one in uploads:
                one.stopped = one.stopped or str(error)
    return [await one.summarize() for one in uploads]


async def _upload_all(run: Run, items: Iterable[UploadItem]) -> None:
    """Upload items in batches, some at once."""
    async with TaskWindow(run.limits.max_batches) as window:
        for batch in pack(items, run.limits.max_entries, run.limits.max_bytes):
            await window.start(upload_items(run.target, batch))


def _settle_known(item: UploadItem, row: ResourceRow | None, *, has_attempts: bool) -> ResourceRow | None:
    """The row of an item that the server has as it would be sent; None where it must be looked at."""
    if row is None or has_attempts or not row.is_on_server or row.hash != item.hash:
        return None
    place = {
        "dataset": item.dataset,
        "unit": item.unit,
        "subject": item.subject,
        "business_key": item.business_key,
    }
    if row.state is State.HELD:
        return row.after(Event.STORED, **place)
    if row.state is State.ORPHANED:
        return row.after(Event.PRODUCED, **place)
    if row.state is not State.STORED:
        return None
    row = row.with_changes(**place)
    if item.type == "Patient" and row.reason in (None, "patient-conflict") and (item.reason or row.reason):
        return row.with_changes(reason=item.reason, reason_text=item.reason_text)
    return row


def _waits(item: UploadItem, row: ResourceRow | None, *, failed_only: bool) -> bool:
    """Whether an item is not tried now, since only what failed is."""
    # a study that failed may need a Patient or an Endpoint that was never sent
    is_new_reference = row is None and item.type != "ImagingStudy"
    is_failed = row is not None and row.state in FAILED_STATES
    return failed_only and not is_failed and not is_new_reference


def _needs_look(run: Run, item: UploadItem, row: ResourceRow | None, waiting: set[Key], *, has_attempts: bool) -> bool:
    """Whether the server must be asked about an item; of the others the ledger, or `waiting`, notes why not."""
    settled = _settle_known(item, row, has_attempts=has_attempts)
    if settled is not None:
        if settled != row:
            run.target.ledger.write_rows([settled])
        return False
    if _waits(item, row, failed_only=run.target.options.failed_only):
        waiting.add(item.key)
        return False
    return True


async def _drop(run: Run, rows: Sequence[ResourceRow]) -> None:
    """Note that the lake no longer produces some resources; what the server never had of ours is forgotten."""
    if not rows:
        return
    attempts = await asyncio.wrap_future(run.target.ledger.read_attempts([row.key for row in rows]))
    dropped = [(row, drop_from_lake(row, has_attempts=row.key in attempts)) for row in rows]
    run.target.ledger.write_rows([after for row, after in dropped if after is not None and after is not row])
    run.target.ledger.delete_rows([row.key for row, after in dropped if after is None])


async def _confirm_earlier(run: Run, datasets: Collection[str], *, is_shared: bool) -> None:
    """Search for what was created in earlier runs and was found by no search then, or beside another client's.

    Args:
        run: the upload.
        datasets: whose resources are meant.
        is_shared: those that datasets share, or those of units; the caller holds the lock of the one or the other.
    """
    target, ledger = run.target, run.target.ledger
    rows: list[ResourceRow] = []
    for name in sorted(datasets):
        unseen = await asyncio.wrap_future(ledger.read_where(dataset=name, is_shared=is_shared, is_indexed=False))
        notable = await asyncio.wrap_future(ledger.read_where(dataset=name, is_shared=is_shared, is_notable=True))
        rows += [*unseen, *(row for row in notable if row.is_indexed and row.reason in FOUND_BY_SEARCH)]
    stored = [row for row in rows if row.state is State.STORED and not row.is_external]
    is_duplicate_wanted = target.options.existing_study == "duplicate"
    for start in range(0, len(stored), run.limits.max_entries):
        batch = stored[start : start + run.limits.max_entries]
        checked = await confirm_indexed(
            target.client, batch, target.shared, target.namespace, is_duplicate_wanted=is_duplicate_wanted
        )
        ledger.write_rows(checked)


# -- Patients ---------------------------------------------------------------------------------------------------------


async def _upload_patients(
    run: Run, contributions: Mapping[str, list[Contribution]], places: Mapping[str, UploadItem]
) -> set[Key]:
    """Upload Patients, each of what all contributors say of it; returns those that wait, with `failed_only`.

    The server is asked for each of them, also where nothing changed: a study must not go to one that another client
    has deleted, or merged into another. `places` has an item for each that says where it is in the lake.
    """
    keys = [("Patient", patient) for patient in sorted(contributions)]
    rows, attempts = await asyncio.wrap_future(run.target.ledger.read_known(keys))
    wanted, waiting = [], set()
    for key in keys:
        row = rows.get(key)
        base = [orjson.loads(text) for text in contributions_of(row, attempts.get(key, []))]
        merged = merge_patient(base, contributions[key[1]], None)
        item = replace(places[key[1]], resource=merged.ours)
        if merged.conflicts:
            texts = [f"{one.element} is not the same in {', '.join(one.by)}" for one in merged.conflicts]
            item = replace(item, reason="patient-conflict", reason_text="; ".join(texts))
        item = item.with_hash()
        if not _waits(item, row, failed_only=run.target.options.failed_only):
            wanted.append(item)
        elif (settled := _settle_known(item, row, has_attempts=key in attempts)) is None:
            waiting.add(key)
        elif row is not None and row.state is State.STORED and settled != row:  # it is in another unit now
            run.target.ledger.write_rows([settled])
    await _upload_all(run, wanted)
    return waiting


# -- what datasets share ----------------------------------------------------------------------------------------------


class SharedUpload:
    """Endpoints, and Patients whose identifiers mean the same in every dataset, under one lock."""

    def __init__(self, run: Run, datasets: Sequence[DatasetResources]) -> None:
        self._run, self._ours = run, datasets
        self._names = {one.dataset for one in datasets}
        self._all: dict[str, DatasetResources] = {}
        self.claims: dict[str, list[tuple[str, StudyIdentity]]] = {}  # by shared Patient: dataset, study
        self.claimed: set[str] = set()  # the Patients that some dataset on this server has
        self.endpoints: dict[str, str] = {}  # id -> dataset
        self.waiting: set[Key] = set()
        self.removed: list[tuple[str, Key]] = []  # dataset, resource
        self._unsettled: set[Key] = set()  # not stored when this run gave the lock back

    async def upload(self) -> None:
        """Upload what the datasets of this run share."""
        with self._lock():
            await self._gather()
            await _confirm_earlier(self._run, self._names, is_shared=True)
            await self._upload_endpoints()
            await self._upload_patients()
            await self._drop()
            await self._note_unsettled()

    async def _note_unsettled(self) -> None:
        states = [state for state in State if state is not State.STORED]
        rows = await asyncio.wrap_future(self._run.target.ledger.read_where(is_shared=True, states=states))
        self._unsettled = {row.key for row in rows}

    async def read_rows(self, dataset: str) -> dict[Key, ResourceRow]:
        """The ledger's rows of the shared resources of a dataset, as this run left them.

        Another run may be sending one of them again by now.
        """
        rows = await asyncio.wrap_future(self._run.target.ledger.read_rows(self.keys(dataset)))
        return {
            key: row.after(Event.STORED)
            if row.state is State.UNCONFIRMED and row.is_on_server and key not in self._unsettled
            else row
            for key, row in rows.items()
        }

    def _lock(self) -> AbstractContextManager[None]:
        server = self._run.target.ledger.server
        return self._run.lake.lock(f"shared of {server}", f"upload to {server}")

    async def _gather(self) -> None:
        """Read which datasets are on this server: they say something of shared Patients, too."""
        run = self._run
        self._all = {one.dataset: one for one in self._ours}
        others = await asyncio.wrap_future(run.target.ledger.read_datasets())
        for name in sorted(others - self._names):
            with suppress(NotBuiltError):
                self._all[name] = DatasetResources.of(run.lake, name)
        claims: dict[str, list[tuple[str, StudyIdentity]]] = defaultdict(list)
        for name in sorted(self._all):
            for identity in self._all[name].decided:
                if identity.is_shared:
                    claims[identity.patient].append((name, identity))
        self.claims = claims
        self.claimed = {identity.patient for one in self._all.values() for identity in one.decided}
        for patient, studies in claims.items():
            _, identity = studies[0]
            run.target.shared["Patient", patient] = (identity.system or "", identity.value or "")

    def is_shared(self, patient: str) -> bool:
        """Whether other datasets may have the Patient."""
        return patient in self.claims

    def fingerprints(self, patient: str) -> list[str]:
        """What changes when something changes that a dataset says of a shared Patient."""
        units = {(name, identity.building_unit or identity.unit) for name, identity in self.claims.get(patient, ())}
        return [self._all[name].fingerprint(unit) for name, unit in sorted(units)]

    async def _upload_endpoints(self) -> None:
        items = []
        for resources in self._ours:
            endpoint = resources.endpoint()
            if endpoint and endpoint["id"] not in self.endpoints:
                self.endpoints[endpoint["id"]] = resources.dataset
                address = endpoint.get("address") or endpoint["id"]
                items.append(UploadItem(endpoint, resources.dataset, business_key=address).with_hash())
        known = self._run.target.ledger.read_known([item.key for item in items])
        rows, attempts = await asyncio.wrap_future(known)
        wanted = [
            item
            for item in items
            if _needs_look(self._run, item, rows.get(item.key), self.waiting, has_attempts=item.key in attempts)
        ]
        await _upload_all(self._run, wanted)

    async def _upload_patients(self) -> None:
        """Upload the shared Patients of units of which not everything is stored."""
        work: set[str] = set()
        for resources in self._ours:
            units = await unfinished_units(self._run, resources, self)
            work |= {
                patient for unit in units for patient in resources.patients.get(unit, ()) if patient in self.claims
            }
        ordered = sorted(work)
        for start in range(0, len(ordered), _PATIENTS_AT_ONCE):
            some = set(ordered[start : start + _PATIENTS_AT_ONCE])
            contributions: dict[str, list[Contribution]] = defaultdict(list)
            units_of = {(name, one.building_unit or one.unit) for patient in some for name, one in self.claims[patient]}
            for name, unit in sorted(units_of):  # also units that are being built: what they said last still counts
                for patient in self._all[name].resources("Patient", unit):
                    if patient["id"] in some:
                        contributions[patient["id"]].append(Contribution(name, patient))
            places = {patient: self._place(patient) for patient in contributions}
            self.waiting |= await _upload_patients(self._run, contributions, places)

    def _place(self, patient: str) -> UploadItem:
        name, identity = self.claims[patient][0]
        return UploadItem({}, name, business_key=f"{identity.system}|{identity.value}")

    async def _drop(self) -> None:
        """Note what no dataset produces any more. Of other datasets' Endpoints nothing is known here."""
        rows = await asyncio.wrap_future(self._run.target.ledger.read_where(is_shared=True))
        gone = [
            row
            for row in rows
            if row.dataset in self._names and row.id not in (self.endpoints if row.type == "Endpoint" else self.claimed)
        ]
        await _drop(self._run, gone)

    async def prune(self) -> None:
        """Delete what is orphaned; the studies that referred to it went before."""
        run = self._run
        with self._lock():
            await self._gather()  # another run may have claimed something meanwhile
            await self._drop()
            orphaned = run.target.ledger.read_where(is_shared=True, states=[State.ORPHANED])
            ours = [row for row in await asyncio.wrap_future(orphaned) if row.dataset in self._names]
            for row in await delete_orphaned(run.target, ours, run.deleted):
                self.removed.append((row.dataset, row.key))
            await self._note_unsettled()

    def keys(self, dataset: str) -> list[Key]:
        """The shared resources of a dataset."""
        endpoints = [("Endpoint", identity) for identity, name in self.endpoints.items() if name == dataset]
        resources = self._all.get(dataset)
        return endpoints + [("Patient", patient) for patient in sorted(resources.shared if resources else ())]

    def unit_of(self, dataset: str, patient: str) -> tuple[str | None, str | None]:
        """Unit and subject of a shared Patient in a dataset, where they are one."""
        places = {(one.unit, one.subject) for name, one in self.claims.get(patient, ()) if name == dataset}
        return next(iter(places)) if len(places) == 1 else (None, None)


def unit_fingerprint(
    resources: DatasetResources, shared: SharedUpload, unit: str, server_ids: Mapping[Key, str]
) -> str:
    """What the upload of a unit depends on: its resources, what is said of its Patients, and their ids on the server.

    `server_ids` has those that are not ours.
    """
    patients = sorted(resources.patients.get(unit, ()))
    units = {unit}.union(*(resources.homes[patient] for patient in patients if not shared.is_shared(patient)))
    return fingerprint(
        [resources.fingerprint(one) for one in sorted(units)],
        [shared.fingerprints(patient) for patient in patients],
        [server_ids.get(("Patient", patient)) for patient in patients],
    )


async def unfinished_units(run: Run, resources: DatasetResources, shared: SharedUpload) -> list[str]:
    """The built units of which not everything is stored."""
    server_ids = await asyncio.wrap_future(run.target.ledger.read_other_ids())
    stored = await asyncio.wrap_future(run.target.ledger.read_fingerprints(resources.dataset))
    return [
        unit
        for unit in resources.built_units
        if stored.get(unit) != unit_fingerprint(resources, shared, unit, server_ids)
    ]


# -- a dataset --------------------------------------------------------------------------------------------------------


@dataclass
class _Slab:
    """Units that are uploaded together. `produced` are the resources of each, `batches` those on their way."""

    units: list[str]
    produced: dict[str, set[Key]]
    references: dict[Key, ResourceRow] = field(default_factory=dict)
    waiting: set[Key] = field(default_factory=set)
    batches: int = 0
    is_planned: bool = False


class DatasetUpload:
    """The Patients that a dataset has for itself, and its ImagingStudies, under the lock of the dataset."""

    def __init__(self, run: Run, resources: DatasetResources, shared: SharedUpload) -> None:
        self._run, self._resources, self._shared = run, resources, shared
        self._dataset = resources.dataset
        self._waiting: dict[Key, ResourceRow | None] = {}
        self._removed: list[Key] = []
        self._done = 0
        self.stopped: str | None = None  # why it was left in the middle, the others going on

    async def upload(self) -> None:
        """Upload the dataset, and write its findings."""
        run, name = self._run, self._dataset
        with run.lake.lock(name, f"upload of {name}"):
            self._resources = DatasetResources.of(run.lake, name)  # a build may have ended while this one waited
            await _confirm_earlier(run, [name], is_shared=False)
            await self._reopen_units()
            work = await unfinished_units(run, self._resources, self._shared)
            self._report_progress(len(self._resources.built_units) - len(work))
            await self._upload_units(work)
            await self._drop_vanished_units()
            if run.target.options.prune:
                await self._prune()
            await self._write_results()

    # -- units

    def _slabs(self, units: Sequence[str]) -> Iterator[_Slab]:
        slab: list[str] = []
        size = 0
        for unit in units:
            length = self._resources.size(unit)
            if slab and (len(slab) >= _SLAB_UNITS or size + length > _SLAB_BYTES):
                yield _Slab(slab, {one: set() for one in slab})
                slab, size = [], 0
            slab.append(unit)
            size += length
        if slab:
            yield _Slab(slab, {one: set() for one in slab})

    async def _upload_units(self, units: Sequence[str]) -> None:
        """Patients before the studies that refer to them; those of the next slab go while studies are on their way."""
        slabs = deque(self._slabs(units))
        async with TaskWindow(self._run.limits.max_batches) as window:
            following: asyncio.Task[None] | None = None
            try:
                while slabs:
                    slab = slabs.popleft()
                    await (following or self._upload_own_patients(slab))
                    following = asyncio.create_task(self._upload_own_patients(slabs[0])) if slabs else None
                    await self._upload_studies(slab, window)
            finally:
                await cancel([following] if following else [])

    async def _upload_own_patients(self, slab: _Slab) -> None:
        """Upload the Patients that this dataset has for itself and whose first unit is in the slab."""
        resources = self._resources
        homes = {
            patient: unit
            for unit in slab.units
            for patient in resources.patients.get(unit, ())
            if not self._shared.is_shared(patient) and resources.homes[patient][0] == unit
        }
        contributions: dict[str, list[Contribution]] = defaultdict(list)
        for unit in sorted({unit for patient in homes for unit in resources.homes[patient]}):
            for resource in resources.resources("Patient", unit):
                if resource["id"] in homes:
                    contributions[resource["id"]].append(Contribution(unit, resource))
        places = {
            patient: UploadItem({}, self._dataset, unit, resources.subjects.get(unit), resources.business_keys[patient])
            for patient, unit in homes.items()
            if patient in contributions
        }
        for patient, item in places.items():
            slab.produced[item.unit or ""].add(("Patient", patient))
        slab.waiting |= await _upload_patients(self._run, contributions, places)

    async def _upload_studies(self, slab: _Slab, window: TaskWindow) -> None:
        resources, target = self._resources, self._run.target
        ids = target.namespace.ids
        uids = {uid for unit in slab.units for uid in resources.study_uids.get(unit, ())}
        keys = [("ImagingStudy", ids.resource_id("ImagingStudy", self._dataset, uid)) for uid in uids]
        rows, attempts = await asyncio.wrap_future(target.ledger.read_known(keys))
        patients = {("Patient", patient) for unit in slab.units for patient in resources.patients.get(unit, ())}
        endpoints = {("Endpoint", identity) for identity in self._shared.endpoints}
        slab.references = await asyncio.wrap_future(target.ledger.read_rows(patients | endpoints))
        limits = self._run.limits
        for batch in pack(self._studies_to_send(slab, rows, attempts), limits.max_entries, limits.max_bytes):
            slab.batches += 1
            await window.start(self._upload_batch(slab, batch))
        slab.is_planned = True
        if not slab.batches:
            await self._close(slab)

    async def _upload_batch(self, slab: _Slab, batch: Sequence[UploadItem]) -> None:
        await upload_items(self._run.target, batch)
        slab.batches -= 1
        if slab.is_planned and not slab.batches:
            await self._close(slab)

    def _studies_to_send(
        self, slab: _Slab, rows: Mapping[Key, ResourceRow], attempts: Collection[Key]
    ) -> Iterator[UploadItem]:
        """The studies of a slab that must be looked at; of the others the ledger notes why not."""
        target = self._run.target
        server_ids = {key: row.server_id for key, row in slab.references.items() if row.server_id}
        for unit in slab.units:
            for built in self._resources.study_items(unit):
                item = refer_to(built, server_ids)
                slab.produced[unit].add(item.key)
                row = rows.get(item.key)
                if not _needs_look(self._run, item, row, slab.waiting, has_attempts=item.key in attempts):
                    continue
                if (obstructed := self._obstruct(item, row, slab.references)) is not None:
                    target.ledger.write_rows([obstructed])
                else:
                    yield item

    def _obstruct(
        self, item: UploadItem, row: ResourceRow | None, references: Mapping[Key, ResourceRow]
    ) -> ResourceRow | None:
        """The row of a study that cannot be sent, since something that it refers to is not on the server."""
        for key in item.references:
            needed = references.get(key)
            # an Endpoint that another client changed is there all the same
            is_held = needed is not None and needed.state is State.HELD and key[0] != "Endpoint"
            if needed is not None and needed.is_on_server and not is_held:
                continue
            row = row or ResourceRow(item.type, item.id, item.dataset)
            row = replace(row, unit=item.unit, subject=item.subject, business_key=item.business_key)
            name = "/".join(key)
            if needed is not None and is_held:
                return row.after(Event.HELD, reason=needed.reason, reason_text=needed.reason_text)
            if needed is not None and needed.state is State.REJECTED:
                text = f"not sent, since {name} was rejected"
                status = needed.http_status
                return row.after(Event.REFUSED, reason="upload-rejected", reason_text=text, http_status=status)
            text = self._run.target.client.stopped or f"not sent, since {name} is not on the server yet; run again"
            return row.after(Event.FAILED, reason="upload-failed", reason_text=text)
        return None

    async def _close(self, slab: _Slab) -> None:
        """Note what the units of a slab no longer produce, and those of which everything is stored."""
        ledger = self._run.target.ledger
        rows = await asyncio.wrap_future(ledger.read_units(self._dataset, slab.units))
        produced = {key for keys in slab.produced.values() for key in keys}
        gone = await self._note_not_produced([row for key, row in rows.items() if key not in produced])
        states: dict[str, set[State | None]] = defaultdict(set)
        for unit, keys in slab.produced.items():
            states[unit] |= {rows[key].state if key in rows else None for key in keys}
        for key, row in rows.items():
            if key not in produced | gone and row.unit is not None:
                states[row.unit].add(None)  # looked at again by the next run
        for unit in slab.units:
            states[unit] |= self._shared_states(slab, unit)
        waiting = {unit for unit, keys in slab.produced.items() if keys & slab.waiting}
        other_ids = {key: row.server_id for key, row in slab.references.items() if row.server_id not in (None, row.id)}
        marks: dict[str, str | None] = {}
        for unit in slab.units:
            is_finished = states[unit] <= {State.STORED} and unit not in waiting
            marks[unit] = unit_fingerprint(self._resources, self._shared, unit, other_ids) if is_finished else None
        ledger.write_fingerprints(self._dataset, marks)
        self._waiting |= {key: rows.get(key) for key in slab.waiting}
        self._report_progress(len(slab.units))

    def _shared_states(self, slab: _Slab, unit: str) -> set[State | None]:
        """The states of the shared Patients of a unit; None of one that waits, or that no ledger knows."""
        keys = {("Patient", one) for one in self._resources.patients.get(unit, ()) if self._shared.is_shared(one)}
        known = keys & slab.references.keys() - self._shared.waiting
        return {slab.references[key].state if key in known else None for key in keys}

    async def _note_not_produced(self, rows: Sequence[ResourceRow]) -> set[Key]:
        """Note what becomes of rows of units that do not produce them; returns those that nothing produces."""
        gone = []
        for row in rows:
            fate = self._fate(row)
            if fate == "held":
                text = "the study is on hold now; the server has its former state"
                held = row.after(Event.HELD, reason="held-study-on-server", reason_text=text)
                self._run.target.ledger.write_rows([held])
            elif fate == "gone":
                gone.append(row)
            elif row.state is State.ORPHANED:
                self._run.target.ledger.write_rows([row.after(Event.PRODUCED)])
        await _drop(self._run, gone)
        return {row.key for row in gone}

    async def _reopen_units(self) -> None:
        """Let units be looked at whose orphaned resources the lake has again, in another unit or on hold."""
        ledger = self._run.target.ledger
        orphaned = ledger.read_where(dataset=self._dataset, states=[State.ORPHANED], is_shared=False)
        units = {row.unit for row in await asyncio.wrap_future(orphaned) if row.unit and self._fate(row) != "gone"}
        if units:
            ledger.write_fingerprints(self._dataset, dict.fromkeys(units))

    def _fate(self, row: ResourceRow) -> str:
        return self._fate_of_study(row) if row.type == "ImagingStudy" else self._fate_of_patient(row)

    def _fate_of_study(self, row: ResourceRow) -> str:
        """`gone`; `held`; `elsewhere`: another unit builds it, or will."""
        identities = self._resources.studies.get(row.business_key or "", ())
        if any(one.state != "held" and one.building_unit != row.unit for one in identities):
            return "elsewhere"
        # its files are there, so it is not gone: its Patient is undecided, or it could not be built
        may_be_there = row.is_on_server or row.state is State.UNCONFIRMED
        return "held" if identities and may_be_there else "gone"

    def _fate_of_patient(self, row: ResourceRow) -> str:
        """`gone`, or `elsewhere`: claimed, though this unit does not produce it."""
        is_claimed = row.id in self._shared.claimed or row.id in self._resources.homes
        return "elsewhere" if is_claimed else "gone"

    async def _drop_vanished_units(self) -> None:
        """Note what units produced that the dataset no longer has."""
        ledger = self._run.target.ledger
        units = await asyncio.wrap_future(ledger.read_unit_names(self._dataset))
        vanished = sorted(units - set(self._resources.units))
        if vanished:
            rows = await asyncio.wrap_future(ledger.read_units(self._dataset, vanished))
            await self._note_not_produced(list(rows.values()))
            ledger.write_fingerprints(self._dataset, dict.fromkeys(vanished))

    async def _prune(self) -> None:
        """Delete what is orphaned."""
        ledger = self._run.target.ledger
        rows = await asyncio.wrap_future(
            ledger.read_where(dataset=self._dataset, states=[State.ORPHANED], is_shared=False)
        )
        deleted = await delete_orphaned(self._run.target, rows, self._run.deleted)
        self._removed += [row.key for row in deleted]

    # -- results

    def _report_progress(self, units: int) -> None:
        self._done += units
        self._run.progress(f"upload {self._dataset}", self._done, len(self._resources.built_units))

    async def _findings(self) -> list[Finding]:
        ledger, name = self._run.target.ledger, self._dataset
        rows = await asyncio.wrap_future(ledger.read_where(dataset=name, is_notable=True))
        shared = await self._shared.read_rows(name)
        own = [row for row in rows if row.unit is not None]
        # orphaned ones are no longer among the dataset's keys
        common = {row.key: row for row in rows if row.unit is None} | shared
        for key in sorted(common):
            row = common[key]
            if row.state is State.HELD and row.type == "Patient":  # its studies tell
                continue
            unit, subject = self._shared.unit_of(name, row.id)
            own.append(replace(row, unit=unit, subject=subject))
        return list(findings_of(own, name))

    async def _write_results(self) -> None:
        if self._run.target.options.dry_run:
            return
        table = tabulate_findings(await self._findings())
        self._run.lake.write(DATASET_FINDINGS, table, stage="upload", dataset=self._dataset)
        await export_ledger(self._run.lake, self._run.target.ledger, self._dataset)

    async def summarize(self) -> Uploaded:
        """What was done, once everything is."""
        run, name = self._run, self._dataset
        removed = [*self._removed, *(key for dataset, key in self._shared.removed if dataset == name)]
        if run.target.options.prune and not self.stopped:  # what is shared went after the findings were written
            try:
                with run.lake.lock(name, f"upload of {name}"):
                    await self._write_results()
            except LockHeldError as error:  # all is done, and what is left to note the next run notes
                self.stopped = str(error)
        counts = await self._count()
        for kind, _ in removed:
            counts[kind, self._word("deleted")] += 1
        by_type: dict[str, dict[str, int]] = defaultdict(dict)
        for (kind, state), number in sorted(counts.items()):
            if number:
                by_type[kind][state] = number
        client = run.target.client
        return Uploaded(
            name,
            run.target.ledger.server,
            dict(by_type),
            len(await self._findings()),
            tuple(sorted("/".join(key) for key in removed)),
            client.unreachable,
            self.stopped or client.stopped,
            run.target.options.dry_run,
        )

    async def _count(self) -> Counter[tuple[str, str]]:
        """How many resources are in which state, by type."""
        ledger, name, sent = self._run.target.ledger, self._dataset, self._run.target.sent
        counts: Counter[tuple[str, str]] = Counter()
        by_state = await asyncio.wrap_future(ledger.read_counts(name))
        for (kind, state, is_external), number in by_state.items():
            counts[kind, self._state_name(state, is_external=is_external, is_sent=False)] += number
        for (kind, _), (dataset, is_shared, is_external) in sent.items():
            if dataset == name and not is_shared and not is_external:
                counts[kind, "unchanged"] -= 1
                counts[kind, self._word("stored")] += 1
        shared = await self._shared.read_rows(name)
        orphaned = await asyncio.wrap_future(ledger.read_where(dataset=name, is_shared=True, states=[State.ORPHANED]))
        for row in (shared | {one.key: one for one in orphaned}).values():
            counts[row.type, self._state_name(row.state, is_external=row.is_external, is_sent=row.key in sent)] += 1
        waiting = self._waiting | {
            key: shared.get(key) for key in self._shared.keys(name) if key in self._shared.waiting
        }
        for key, known in waiting.items():
            if known is not None:
                counts[key[0], self._state_name(known.state, is_external=known.is_external, is_sent=False)] -= 1
            counts[key[0], "waiting"] += 1
        return counts

    def _state_name(self, state: State, *, is_external: bool, is_sent: bool) -> str:
        if state is not State.STORED:
            return str(state)
        return "external" if is_external else self._word("stored") if is_sent else "unchanged"

    def _word(self, state: str) -> str:
        return _DRY_RUN_STATES.get(state, state) if self._run.target.options.dry_run else state
