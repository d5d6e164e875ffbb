"""The ledger compared with the server: what is missing there, was changed, is another client's, or was never sent.

The server is only asked: lists of `_id` with `_elements=meta`, then by id for what a search did not find, and a search
for the studies that carry a dataset's identifier. To repair is to note, in the ledger, what the server does not have;
the upload then sends it.
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
PAGE_SIZE = 500  # studies on one page of a search; a server may give fewer

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Difference:
    """A resource of which lake, ledger and server differ; `what` is one of `DIFFERENCES`."""

    what: str
    resource: str  # Type/id
    unit: str | None
    text: str


@dataclass(frozen=True)
class Comparison:
    """A dataset (None: what datasets share): how many resources are `ok`, `orphaned` or different, and which differ.

    `orphaned` are on the server as the ledger says, and the lake no longer produces them.
    """

    dataset: str | None
    counts: Mapping[str, int]
    differences: tuple[Difference, ...] = ()


class Verifier:
    """Compares the ledger of one server with it, each dataset under its lock; with `repair`, missing ones are noted."""

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
            for one in datasets:
                produced |= {key: unit for key, unit in list_produced(one).items() if _is_shared(key, one, keys)}
            names = {one.dataset for one in datasets}
            # of what only other datasets produce, nothing is known here
            rows = [
                row
                for row in ledger_rows
                if row.key in produced or (row.state is State.ORPHANED and row.dataset in names)
            ]
            versions = await self._find_versions(rows, "verify what datasets share")
            self._note_missing(rows, versions, produced)
            return compare(None, rows, versions, produced)

    async def compare_dataset(self, name: str, dataset_system: str) -> Comparison:
        """Compare what a dataset has for itself; its studies name it by an identifier of `dataset_system`.

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
            versions = await self._find_versions(rows, f"verify {name}")
            token = f"{escape_token(dataset_system)}|{escape_token(f'urn:uid:{name}')}"
            search = {"identifier": token, "_elements": "meta", "_count": str(PAGE_SIZE)}
            carrying = [str(one["id"]) for one in await self._client.search("ImagingStudy", search)]
            self._note_missing(rows, versions, produced)
            unfinished = set(resources.units) - set(resources.built_units)
            return compare(name, rows, versions, produced, unfinished=unfinished, carrying=carrying)

    async def _find_versions(self, rows: Sequence[ResourceRow], doing: str) -> dict[Key, str]:
        """The server's versions of those resources that it should have, by place; what it lacks is left out."""
        places = {row.place for row in rows if row.is_on_server}
        versions: dict[Key, str] = {}
        done = 0
        for kind in RESOURCE_TYPES:
            ids = sorted(identity for one, identity in places if one == kind)
            for start in range(0, len(ids), _IDS_AT_ONCE):
                some = ids[start : start + _IDS_AT_ONCE]
                search = {"_id": ",".join(some), "_elements": "meta", "_count": str(len(some))}
                for found in await self._client.search(kind, search):
                    if found["id"] in some:
                        versions[kind, str(found["id"])] = _version_of(found)
                done += len(some)
                self._progress(doing, done, len(places))
        # an index that lags is no proof that something is missing
        unseen = sorted(places - versions.keys())
        for start in range(0, len(unseen), _READS_AT_ONCE):
            some_places = unseen[start : start + _READS_AT_ONCE]
            reads = await gather(self._client.read(*place) for place in some_places)
            for place, server in zip(some_places, reads, strict=True):
                if server is not None:
                    versions[place] = server.version
        return versions

    def _note_missing(self, rows: Iterable[ResourceRow], versions: Collection[Key], produced: Collection[Key]) -> None:
        """Note what the server does not have; the units concerned are looked at again by the next upload."""
        if not self._repair:
            return
        missing = [row for row in rows if row.is_on_server and row.place not in versions]
        noted, units = [], set()
        for row in missing:
            nothing: dict[str, str | None] = {
                "server_id": None,
                "version": None,
                "etag": None,
                "hash": None,
                "server_hash": None,
            }
            if row.key in produced and row.state is State.STORED:
                text = "the server no longer has it; run again"
                nothing |= {"reason": "upload-failed", "reason_text": text}
            noted.append(row.after(Event.MISSING, **nothing, is_external=False))
            if row.unit is not None:
                units.add((row.dataset, row.unit))
        self._ledger.write_rows(noted)
        for dataset in {name for name, _ in units}:
            self._ledger.write_fingerprints(dataset, {unit: None for name, unit in units if name == dataset})
        if any(row.unit is None for row in missing):  # the units of shared ones are not known here
            for dataset in {row.dataset for row in missing}:
                self._ledger.delete_fingerprints(dataset)
        self._ledger.flush()


def _version_of(resource: Mapping[str, object]) -> str:
    meta = resource.get("meta")
    version = meta.get("versionId") if isinstance(meta, dict) else None
    return str(version) if version else ""


# -- comparing --------------------------------------------------------------------------------------------------------


def list_produced(resources: DatasetResources) -> dict[Key, str]:
    """The resources of a dataset's units whose build is complete, and a unit of each."""
    produced: dict[Key, str] = {}
    endpoint = resources.read_endpoint()
    if endpoint and resources.built_units:
        produced["Endpoint", endpoint["id"]] = resources.built_units[0]
    for unit in resources.built_units:
        for kind in UNIT_RESOURCE_TYPES:
            for resource in resources.read_resources(kind, unit):
                if kind != "Patient" or resource["id"] in resources.units_by_patient:
                    produced.setdefault((kind, resource["id"]), unit)
    return produced


def _is_shared(key: Key, resources: DatasetResources, shared: Collection[Key]) -> bool:
    """Whether datasets share a resource; another dataset may be the reason."""
    return key[0] == "Endpoint" or key[1] in resources.shared_patients or key in shared


def compare(
    dataset: str | None,
    rows: Sequence[ResourceRow],
    versions: Mapping[Key, str],
    produced: Mapping[Key, str],
    *,
    unfinished: Collection[str] = (),
    carrying: Collection[str] = (),
) -> Comparison:
    """Compare ledger, server and lake.

    Args:
        dataset: its name; None for what datasets share.
        rows: of the ledger.
        versions: the server's, of those resources that it has, by place.
        produced: the resources that the lake produces, and a unit of each.
        unfinished: units that are being built: what they produce is not known.
        carrying: ids of the server's studies that carry the dataset's identifier.
    """
    results = [(row, _result(row, versions, is_produced=_is_produced(row, produced, unfinished))) for row in rows]
    found = [_describe(row, what, versions) for row, what in results if what in ("missing", "changed")]
    missing = {row.key for row, what in results if what == "missing"}
    found += _unsent(produced, {row.key: row for row in rows}, missing)
    found += _external(carrying, rows, produced)
    counts = Counter([what for _, what in results if what in ("ok", "orphaned")] + [one.what for one in found])
    return Comparison(dataset, {what: counts[what] for what in ("ok", *DIFFERENCES, "orphaned")}, tuple(found))


def _is_produced(row: ResourceRow, produced: Collection[Key], unfinished: Collection[str]) -> bool:
    return row.key in produced or row.unit in unfinished


def _result(row: ResourceRow, versions: Mapping[Key, str], *, is_produced: bool) -> str | None:
    """ok, orphaned, missing or changed; None where that is not a question, or is one of sending."""
    if not row.is_on_server:
        return None
    version = versions.get(row.place)
    if version is None:
        return "missing" if is_produced or row.state is not State.ORPHANED else None  # nobody misses an orphaned one
    if not row.is_external and row.version and version and version != row.version:
        return "changed"
    if not is_produced:
        return "orphaned"
    return "ok" if _is_stored(row) else None


def _unsent(
    produced: Mapping[Key, str], rows: Mapping[Key, ResourceRow], missing: Collection[Key]
) -> Iterator[Difference]:
    for key, unit in produced.items():
        row = rows.get(key)
        if key not in missing and not _is_stored(row):
            yield Difference("unsent", "/".join(key), unit, str(row.state) if row else "never sent")


def _external(carrying: Collection[str], rows: Iterable[ResourceRow], produced: Iterable[Key]) -> Iterator[Difference]:
    """The studies of the dataset that neither the ledger knows nor the lake produces."""
    ours = {identity for _, identity in produced} | {name for row in rows for name in (row.id, row.server_id)}
    for identity in sorted(set(carrying) - ours):
        yield Difference("external", f"ImagingStudy/{identity}", None, "this lake did not send it")


def _describe(row: ResourceRow, what: str, versions: Mapping[Key, str]) -> Difference:
    if what == "changed":
        text = f"version {versions[row.place]}, and the ledger has {row.version}: another client has changed it"
    elif row.is_external:
        text = f"another client's, which is used for {'/'.join(row.key)}"
    else:
        text = "the ledger has it as stored"
    return Difference(what, "/".join(row.place), row.unit, text)


def _is_stored(row: ResourceRow | None) -> bool:
    """Whether the server has a resource that the lake produces; one that was orphaned and is produced again, too."""
    return row is not None and row.is_on_server and row.state in (State.STORED, State.ORPHANED)
