"""Upload of shared resources: Endpoints, and Patients whose identifiers mean the same in every dataset.

They are uploaded first, under one lock of the server; a shared Patient is merged from all datasets that have it. Also
here: which units still have something to upload, since that depends on shared Patients. Not here: the Patients and
studies of one dataset (`datasets`).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress

from dicom_etl.lake.fingerprints import compute_fingerprint
from dicom_etl.upload.deletion import delete_orphaned
from dicom_etl.upload.items import DatasetResources, NotBuiltError, StudyIdentity, UploadItem
from dicom_etl.upload.ledger import Event, Key, ResourceRow, State
from dicom_etl.upload.patients import Contribution
from dicom_etl.upload.scheduling import (
    UploadRun,
    confirm_earlier_creations,
    mark_orphaned,
    needs_server_check,
    upload_in_batches,
    upload_patients,
)

_PATIENTS_AT_ONCE = 500


class SharedUpload:
    """The upload of what datasets share, under one lock.

    Attributes:
        identities: by id of a shared Patient, its studies, each with the name of the dataset.
        produced_patients: the ids of the Patients that any dataset on this server has.
        endpoints: id of an Endpoint -> dataset.
        deferred: what waits for a run that does not only retry what failed.
        deleted: dataset and key of each resource that was deleted.
    """

    def __init__(self, run: UploadRun, datasets: Sequence[DatasetResources]) -> None:
        self._run, self._datasets = run, datasets
        self._names = {resources.dataset for resources in datasets}
        self._on_server: dict[str, DatasetResources] = {}  # these and other datasets that are on this server
        self.identities: dict[str, list[tuple[str, StudyIdentity]]] = {}
        self.produced_patients: set[str] = set()
        self.endpoints: dict[str, str] = {}
        self.deferred: set[Key] = set()
        self.deleted: list[tuple[str, Key]] = []
        self._not_stored: set[Key] = set()  # when this run released the lock

    # -- the order

    async def upload(self) -> None:
        """Upload what the datasets of this run share."""
        with self._lock():
            await self._read_datasets()
            await confirm_earlier_creations(self._run, self._names, is_shared=True)
            await self._upload_endpoints()
            await self._upload_patients()
            await self._mark_orphaned()
            await self._note_not_stored()

    async def prune(self) -> None:
        """Delete what is orphaned; the studies that referred to it were deleted before."""
        run = self._run
        with self._lock():
            await self._read_datasets()  # another run may have uploaded a dataset meanwhile
            await self._mark_orphaned()
            orphaned = run.target.ledger.read_where(is_shared=True, states=[State.ORPHANED])
            rows = [row for row in await asyncio.wrap_future(orphaned) if row.dataset in self._names]
            for row in await delete_orphaned(run.target, rows, run.deleted):
                self.deleted.append((row.dataset, row.key))
            await self._note_not_stored()

    def _lock(self) -> AbstractContextManager[None]:
        server = self._run.target.ledger.server
        return self._run.lake.lock(f"shared of {server}", f"upload to {server}")

    async def _read_datasets(self) -> None:
        """Read all datasets that are on this server: others contribute to shared Patients, too."""
        run = self._run
        self._on_server = {resources.dataset: resources for resources in self._datasets}
        names = await asyncio.wrap_future(run.target.ledger.read_datasets())
        for name in sorted(names - self._names):
            with suppress(NotBuiltError):
                self._on_server[name] = DatasetResources.read(run.lake, name)
        identities: dict[str, list[tuple[str, StudyIdentity]]] = defaultdict(list)
        for name in sorted(self._on_server):
            for identity in self._on_server[name].resolved:
                if identity.is_shared:
                    identities[identity.patient].append((name, identity))
        self.identities = identities
        self.produced_patients = {
            identity.patient for resources in self._on_server.values() for identity in resources.resolved
        }
        for patient, studies in identities.items():
            _, identity = studies[0]
            run.target.shared["Patient", patient] = (identity.system or "", identity.value or "")

    async def _upload_endpoints(self) -> None:
        items = []
        for resources in self._datasets:
            endpoint = resources.read_endpoint()
            if endpoint and endpoint["id"] not in self.endpoints:
                self.endpoints[endpoint["id"]] = resources.dataset
                address = endpoint.get("address") or endpoint["id"]
                items.append(UploadItem(endpoint, resources.dataset, business_key=address).with_hash())
        reading = self._run.target.ledger.read_rows_and_attempts([item.key for item in items])
        rows, attempts = await asyncio.wrap_future(reading)
        unresolved = [
            item
            for item in items
            if needs_server_check(self._run, item, rows.get(item.key), self.deferred, has_attempts=item.key in attempts)
        ]
        await upload_in_batches(self._run, unresolved)

    async def _upload_patients(self) -> None:
        """Upload the shared Patients of units that still have something to upload."""
        patients: set[str] = set()
        for resources in self._datasets:
            units = await find_unfinished_units(self._run, resources, self)
            patients |= {
                patient
                for unit in units
                for patient in resources.patients_by_unit.get(unit, ())
                if patient in self.identities
            }
        ordered = sorted(patients)
        for start in range(0, len(ordered), _PATIENTS_AT_ONCE):
            chosen = set(ordered[start : start + _PATIENTS_AT_ONCE])
            contributions: dict[str, list[Contribution]] = defaultdict(list)
            units_to_read = {
                (name, identity.unit_of_study) for patient in chosen for name, identity in self.identities[patient]
            }
            for name, unit in sorted(units_to_read):  # a unit that is being built still counts with its former values
                for patient in self._on_server[name].read_resources("Patient", unit):
                    if patient["id"] in chosen:
                        contributions[patient["id"]].append(Contribution(name, patient))
            item_templates = {patient: self._make_item_template(patient) for patient in contributions}
            self.deferred |= await upload_patients(self._run, contributions, item_templates)

    def _make_item_template(self, patient: str) -> UploadItem:
        name, identity = self.identities[patient][0]
        return UploadItem({}, name, business_key=f"{identity.system}|{identity.value}")

    async def _mark_orphaned(self) -> None:
        """Mark what no dataset produces any more; Endpoints of other datasets are not known here."""
        rows = await asyncio.wrap_future(self._run.target.ledger.read_where(is_shared=True))
        orphaned = [
            row
            for row in rows
            if row.dataset in self._names
            and row.id not in (self.endpoints if row.type == "Endpoint" else self.produced_patients)
        ]
        await mark_orphaned(self._run, orphaned)

    async def _note_not_stored(self) -> None:
        states = [state for state in State if state is not State.STORED]
        rows = await asyncio.wrap_future(self._run.target.ledger.read_where(is_shared=True, states=states))
        self._not_stored = {row.key for row in rows}

    # -- what a dataset needs to know

    async def read_rows(self, dataset: str) -> dict[Key, ResourceRow]:
        """Read the ledger's rows of the shared resources of a dataset, as this run left them.

        Another run may be sending one of them again by now.
        """
        rows = await asyncio.wrap_future(self._run.target.ledger.read_rows(self.list_keys(dataset)))
        return {
            key: row.after(Event.STORED)
            if row.state is State.UNCONFIRMED and row.is_on_server and key not in self._not_stored
            else row
            for key, row in rows.items()
        }

    def is_shared(self, patient: str) -> bool:
        """Whether other datasets may have the Patient."""
        return patient in self.identities

    def list_keys(self, dataset: str) -> list[Key]:
        """List the shared resources of a dataset."""
        endpoints = [("Endpoint", identity) for identity, name in self.endpoints.items() if name == dataset]
        resources = self._on_server.get(dataset)
        return endpoints + [("Patient", patient) for patient in sorted(resources.shared_patients if resources else ())]

    def list_fingerprints(self, patient: str) -> list[str]:
        """List the fingerprints of all units that contribute to a shared Patient."""
        units = {(name, identity.unit_of_study) for name, identity in self.identities.get(patient, ())}
        return [self._on_server[name].fingerprint(unit) for name, unit in sorted(units)]

    def find_unit(self, dataset: str, patient: str) -> tuple[str | None, str | None]:
        """Find unit and subject of a shared Patient in a dataset; None for both where there are several."""
        units = {
            (identity.unit, identity.subject) for name, identity in self.identities.get(patient, ()) if name == dataset
        }
        return next(iter(units)) if len(units) == 1 else (None, None)


# -- units that still have something to upload ------------------------------------------------------------------------


def fingerprint_unit(
    resources: DatasetResources, shared: SharedUpload, unit: str, server_ids: Mapping[Key, str]
) -> str:
    """Compute the fingerprint of a unit's upload: its resources, and the values and server ids of its Patients.

    `server_ids` has the ids of those Patients that have another id on the server.
    """
    patients = sorted(resources.patients_by_unit.get(unit, ()))
    units = {unit}.union(
        *(resources.units_by_patient[patient] for patient in patients if not shared.is_shared(patient))
    )
    return compute_fingerprint(
        [resources.fingerprint(name) for name in sorted(units)],
        [shared.list_fingerprints(patient) for patient in patients],
        [server_ids.get(("Patient", patient)) for patient in patients],
    )


async def find_unfinished_units(run: UploadRun, resources: DatasetResources, shared: SharedUpload) -> list[str]:
    """List the built units of which not everything is stored.

    The answer changes when shared Patients are uploaded, since these may get other ids on the server: so it is computed
    before them, and again by each dataset under its lock.
    """
    server_ids = await asyncio.wrap_future(run.target.ledger.read_other_ids())
    stored = await asyncio.wrap_future(run.target.ledger.read_fingerprints(resources.dataset))
    return [
        unit
        for unit in resources.built_units
        if stored.get(unit) != fingerprint_unit(resources, shared, unit, server_ids)
    ]
