"""Verification: the ledger compared with the server, for what is missing, changed, external or unsent.

The server is only read: by searches for `_id` with `_elements=meta`, then by id for what a search did not find, and
by a search for the studies that have a dataset's identifier. A repair records in the ledger what the server does not
have; the next upload sends that.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dicom_etl.fhir_client import FhirClient, escape_token
from dicom_etl.lake.schemas import RESOURCE_TYPES, UNIT_RESOURCE_TYPES
from dicom_etl.lake.tables import Lake
from dicom_etl.upload.items import DatasetResources
from dicom_etl.upload.ledger import Event, Key, Ledger, ResourceRow, State
from dicom_etl.upload.tasks import gather

DIFFERENCES = ("missing", "changed", "external", "unsent")
_IDS_AT_ONCE = 50  # in one search: its URL stays below 2,000 characters
_READS_AT_ONCE = 100
PAGE_SIZE = 500  # studies on one page of a search; a server may return fewer

Progress = Callable[[str, int, int], None]  # label, done, total


@dataclass(frozen=True)
class Difference:
    """A resource in which lake, ledger and server differ; `kind` is one of `DIFFERENCES`."""

    kind: str
    resource: str  # Type/id
    unit: str | None
    text: str


@dataclass(frozen=True)
class Comparison:
    """The comparison of a dataset, or of what datasets share (None): counts, and the resources that differ.

    `counts` has `ok`, each of `DIFFERENCES`, and `orphaned`: on the server, and no longer produced by the lake.
    """

    dataset: str | None
    counts: Mapping[str, int]
    differences: tuple[Difference, ...] = ()


class Verifier:
    """Compares the ledger of one server with it, each dataset under its lock; `repair` records what is missing."""

    def __init__(self, lake: Lake, client: FhirClient, ledger: Ledger, *, repair: bool, progress: Progress) -> None:
        self._lake, self._client, self._ledger = lake, client, ledger
        self._repair, self._progress = repair, progress

    async def compare_shared(self, datasets: Sequence[DatasetResources]) -> Comparison:
        """Compare what these datasets share with others.

        Raises:
            FhirError: the server could not be asked.
            LockHeldError: an upload is running.
        """
        server = self._ledger.server
        with self._lake.lock(f"shared of {server}", f"verify of {server}"):
            ledger_rows = await asyncio.wrap_future(self._ledger.read_where(is_shared=True))
            keys = {row.key for row in ledger_rows}
            produced: dict[Key, str] = {}
            for resources in datasets:
                produced |= {
                    key: unit for key, unit in list_produced(resources).items() if _is_shared(key, resources, keys)
                }
            names = {resources.dataset for resources in datasets}
            # it is not known here what other datasets produce
            rows = [
                row
                for row in ledger_rows
                if row.key in produced or (row.state is State.ORPHANED and row.dataset in names)
            ]
            versions = await self._read_versions(rows, "verify what datasets share")
            self._record_missing(rows, versions, produced)
            return compare(None, rows, versions, produced)

    async def compare_dataset(self, name: str, dataset_system: str) -> Comparison:
        """Compare the resources of a dataset's units; its studies have an identifier of `dataset_system`.

        Raises:
            FhirError: the server could not be asked.
            LockHeldError: a stage of the dataset is running.
            NotBuiltError: it has no resources.
        """
        with self._lake.lock(name, f"verify of {name}"):
            resources = DatasetResources.read(self._lake, name)
            shared = {row.key for row in await asyncio.wrap_future(self._ledger.read_where(is_shared=True))}
            produced = {
                key: unit for key, unit in list_produced(resources).items() if not _is_shared(key, resources, shared)
            }
            rows = await asyncio.wrap_future(self._ledger.read_where(dataset=name, is_shared=False))
            versions = await self._read_versions(rows, f"verify {name}")
            token = f"{escape_token(dataset_system)}|{escape_token(f'urn:uid:{name}')}"
            search = {"identifier": token, "_elements": "meta", "_count": str(PAGE_SIZE)}
            study_ids = [str(study["id"]) for study in await self._client.search("ImagingStudy", search)]
            self._record_missing(rows, versions, produced)
            unfinished = set(resources.units) - set(resources.built_units)
            return compare(name, rows, versions, produced, unfinished=unfinished, study_ids=study_ids)

    async def _read_versions(self, rows: Sequence[ResourceRow], label: str) -> dict[Key, str]:
        """Read the server's versions of the resources that it should have, by type and id there, as far as it has them.

        `label` is that of the progress.
        """
        server_keys = {row.server_key for row in rows if row.is_on_server}
        versions: dict[Key, str] = {}
        done = 0
        for resource_type in RESOURCE_TYPES:
            ids = sorted(server_id for name, server_id in server_keys if name == resource_type)
            for start in range(0, len(ids), _IDS_AT_ONCE):
                chosen = ids[start : start + _IDS_AT_ONCE]
                search = {"_id": ",".join(chosen), "_elements": "meta", "_count": str(len(chosen))}
                for resource in await self._client.search(resource_type, search):
                    if resource["id"] in chosen:
                        versions[resource_type, str(resource["id"])] = _get_version(resource)
                done += len(chosen)
                self._progress(label, done, len(server_keys))
        # a search is no proof that something is missing: its index may lag
        unseen = sorted(server_keys - versions.keys())
        for start in range(0, len(unseen), _READS_AT_ONCE):
            keys = unseen[start : start + _READS_AT_ONCE]
            reads = await gather(self._client.read(*key) for key in keys)
            for key, server in zip(keys, reads, strict=True):
                if server is not None:
                    versions[key] = server.version
        return versions

    def _record_missing(
        self, rows: Iterable[ResourceRow], versions: Collection[Key], produced: Collection[Key]
    ) -> None:
        """Record what the server does not have; the next upload checks the units concerned again."""
        if not self._repair:
            return
        missing = [row for row in rows if row.is_on_server and row.server_key not in versions]
        changed_rows, units = [], set()
        for row in missing:
            changes: dict[str, str | None] = dict.fromkeys(("server_id", "version", "etag", "hash", "server_hash"))
            if row.key in produced and row.state is State.STORED:
                changes |= {"reason": "upload-failed", "reason_text": "the server no longer has it; run again"}
            changed_rows.append(row.after(Event.MISSING, **changes, is_external=False))
            if row.unit is not None:
                units.add((row.dataset, row.unit))
        self._ledger.write_rows(changed_rows)
        for dataset in {name for name, _ in units}:
            self._ledger.write_fingerprints(dataset, {unit: None for name, unit in units if name == dataset})
        if any(row.unit is None for row in missing):  # the units of shared resources are not known here
            for dataset in {row.dataset for row in missing}:
                self._ledger.delete_fingerprints(dataset)
        self._ledger.flush()


def _get_version(resource: Mapping[str, object]) -> str:
    meta = resource.get("meta")
    version = meta.get("versionId") if isinstance(meta, dict) else None
    return str(version) if version else ""


# -- comparing --------------------------------------------------------------------------------------------------------


def list_produced(resources: DatasetResources) -> dict[Key, str]:
    """List the resources of a dataset's built units, each with one of its units."""
    produced: dict[Key, str] = {}
    endpoint = resources.read_endpoint()
    if endpoint and resources.built_units:
        produced["Endpoint", endpoint["id"]] = resources.built_units[0]
    for unit in resources.built_units:
        for resource_type in UNIT_RESOURCE_TYPES:
            for resource in resources.read_resources(resource_type, unit):
                if resource_type != "Patient" or resource["id"] in resources.units_by_patient:
                    produced.setdefault((resource_type, resource["id"]), unit)
    return produced


def _is_shared(key: Key, resources: DatasetResources, shared: Collection[Key]) -> bool:
    """Whether datasets share a resource, also because of another dataset that has it in `shared`."""
    return key[0] == "Endpoint" or key[1] in resources.shared_patients or key in shared


def compare(
    dataset: str | None,
    rows: Sequence[ResourceRow],
    versions: Mapping[Key, str],
    produced: Mapping[Key, str],
    *,
    unfinished: Collection[str] = (),
    study_ids: Collection[str] = (),
) -> Comparison:
    """Compare ledger, server and lake.

    Args:
        dataset: its name; None for what datasets share.
        rows: of the ledger.
        versions: the server's versions of the resources that it has, by type and id there.
        produced: the resources that the lake produces, each with one of its units.
        unfinished: units that are being built, whose resources are not known.
        study_ids: ids of the server's studies that have the dataset's identifier.
    """
    results = [
        (row, _compare_row(row, versions, is_produced=row.key in produced or row.unit in unfinished)) for row in rows
    ]
    differences = [_describe(row, kind, versions) for row, kind in results if kind in ("missing", "changed")]
    missing = {row.key for row, kind in results if kind == "missing"}
    differences += _find_unsent(produced, {row.key: row for row in rows}, missing)
    of_lake = {resource_id for _, resource_id in produced} | {name for row in rows for name in (row.id, row.server_id)}
    differences += [
        Difference("external", f"ImagingStudy/{server_id}", None, "this lake did not send it")
        for server_id in sorted(set(study_ids) - of_lake)
    ]
    kinds = [kind for _, kind in results if kind in ("ok", "orphaned")]
    counts = Counter([*kinds, *(difference.kind for difference in differences)])
    return Comparison(dataset, {kind: counts[kind] for kind in ("ok", *DIFFERENCES, "orphaned")}, tuple(differences))


def _compare_row(row: ResourceRow, versions: Mapping[Key, str], *, is_produced: bool) -> str | None:
    """Return ok, orphaned, missing or changed; None where the server need not have it, or it is unsent."""
    if not row.is_on_server:
        return None
    version = versions.get(row.server_key)
    if version is None:
        return "missing" if is_produced or row.state is not State.ORPHANED else None
    if not row.is_external and row.version and version and version != row.version:
        return "changed"
    if not is_produced:
        return "orphaned"
    return "ok" if _is_stored(row) else None


def _find_unsent(
    produced: Mapping[Key, str], rows: Mapping[Key, ResourceRow], missing: Collection[Key]
) -> Iterator[Difference]:
    for key, unit in produced.items():
        row = rows.get(key)
        if key not in missing and not _is_stored(row):
            yield Difference("unsent", "/".join(key), unit, str(row.state) if row else "never sent")


def _describe(row: ResourceRow, kind: str, versions: Mapping[Key, str]) -> Difference:
    if kind == "changed":
        version = versions[row.server_key]
        text = f"the server has version {version}, the ledger {row.version}: another client has changed it"
    elif row.is_external:
        text = f"it belongs to another client, and is used for {'/'.join(row.key)}"
    else:
        text = "the ledger has it as stored"
    return Difference(kind, "/".join(row.server_key), row.unit, text)


def _is_stored(row: ResourceRow | None) -> bool:
    """Whether the server has a resource that the lake produces; also if it was orphaned and is produced again."""
    return row is not None and row.is_on_server and row.state in (State.STORED, State.ORPHANED)
