"""Uploads through a proxy that loses, refuses, delays and cuts: afterwards server and lake have the same content.

`scenario` runs one seed. As a script this module starts a server and runs many seeds: `make soak`, with
ARGS='--seeds 1000 --first 200' for others; it stops at the first failure and names its seed.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import orjson

from dicom_etl.fhir_client import retry
from dicom_etl.fhir_client.errors import UnreachableError
from dicom_etl.lake.tables import Lake
from dicom_etl.settings import Settings
from dicom_etl.stages.upload import UploadSummary, upload
from tests.servers.hapi_server import run_hapi
from tests.support import server_content
from tests.support.server_content import Resource
from tests.support.upload_lakes import (
    DatasetFactory,
    Study,
    attempts,
    ledger_rows,
    new_lake,
    settings_for,
    shared_ledger_rows,
    with_changes,
)
from tests.upload.support.faults import KINDS, Faults, run_faulty_proxy

DATASETS = ("A", "B", "C")
EXTERNAL = "theirs"  # ends the id of a Patient that another client stored
_RUNS_UNDER_FAULTS = 3
_SAID: dict[str, Resource] = {  # the values of each dataset for a person that they share
    "A": {"birthDate": "1980-05-01"},
    "B": {"gender": "female"},
    "C": {"name": [{"family": "Roe"}]},
}


@dataclass
class World:
    """The data of a seed: the studies of some datasets, and a history of what the server must have of them."""

    seed: int
    factory: DatasetFactory
    chance: random.Random
    studies: dict[str, list[Study]]
    external: str | None  # the shared person whom the server has already, under another id
    history: dict[str, list[Resource]] = field(default_factory=dict)  # by Type/id, each content that it had

    @classmethod
    def of(cls, seed: int) -> World:
        """The beginning."""
        chance = random.Random(seed)
        studies: dict[str, list[Study]] = {dataset: [] for dataset in DATASETS}
        for number in range(chance.randint(12, 20)):
            dataset = DATASETS[number] if number < len(DATASETS) else chance.choice(DATASETS)
            studies[dataset].append(_study(chance, dataset, str(number)))
        external = "P0" if chance.random() < 1 / 3 else None
        return cls(seed, DatasetFactory(f"soak-{seed}"), chance, studies, external)

    def settings(self, url: str) -> Settings:
        """Those of an upload under faults."""
        chance = self.chance
        return settings_for(
            url,
            max_concurrent_requests=chance.randint(2, 4),
            max_bundle_entries=chance.randint(1, 4),
            retry_seconds=chance.choice([0.2, 1.0, 3.0]),
            single_request_bytes=chance.choice([0, 700, 16_000]),
        )

    def change(self) -> None:
        """Add an instance to some studies, and a value to the shared persons of one dataset."""
        talker = self.chance.choice(DATASETS)
        for dataset, studies in self.studies.items():
            for place, study in enumerate(studies):
                news: dict[str, Any] = {}
                if self.chance.random() < 1 / 3:
                    news["series"] = dict(study.series) | {"1": study.series["1"] + 1}
                if dataset == talker and study.rule == "authority":
                    news["patient"] = dict(study.patient) | {"maritalStatus": {"text": "unknown"}}
                studies[place] = with_changes(study, **news)

    def leave(self) -> None:
        """Remove some studies; each dataset keeps at least one, and so its Endpoint."""
        for studies in self.studies.values():
            studies[1:] = [study for study in studies[1:] if self.chance.random() < 2 / 3]

    def build(self, lake: Lake) -> None:
        """Write the lake, and record what the server must have."""
        for dataset, studies in self.studies.items():
            self.factory.build(lake, dataset, studies)
        for key, resource in self.wanted().items():
            contents = self.history.setdefault(key, [])
            if not contents or contents[-1] != resource:
                contents.append(resource)

    def wanted(self) -> dict[str, Resource]:
        """Return what the server must have, by Type/id."""
        resources: dict[str, Resource] = {}
        for dataset, studies in self.studies.items():
            resources |= keyed(self.factory.endpoint(dataset))
            for study in studies:
                resources |= keyed(self.factory.imaging_study(dataset, self._linked(dataset, study)))
        return resources | {key: patient for key, patient in self.patients().items() if not self._is_external(key)}

    def patients(self) -> dict[str, Resource]:
        """Return the Patients of the lake, including one that is not sent because the server has an external one."""
        resources: dict[str, Resource] = {}
        for dataset, studies in self.studies.items():
            for study in studies:
                [(key, said)] = keyed(self.factory.patient(dataset, study)).items()
                resources[key] = resources.get(key, {}) | said
        return resources

    def _linked(self, dataset: str, study: Study) -> Study:
        patient_key = f"Patient/{self.factory.patient_id(dataset, study)}"
        return replace(study, subject=f"Patient/{self.external_id}") if self._is_external(patient_key) else study

    def _is_external(self, key: str) -> bool:
        if self.external is None:
            return False
        return key == f"Patient/{self.factory.patient_id('', Study('', self.external, rule='authority'))}"

    @property
    def external_id(self) -> str:
        """The id of the Patient that the server has already."""
        return f"{self.factory.name}-{EXTERNAL}"

    def store_external(self, url: str) -> None:
        """Store the Patient that the server has already."""
        if self.external is not None:
            identifier = [{"system": self.factory.authority, "value": self.external}]
            server_content.put(url, {"resourceType": "Patient", "id": self.external_id, "identifier": identifier})


def _study(chance: random.Random, dataset: str, number: str) -> Study:
    shared = chance.random() < 0.6
    return Study(
        number,
        f"P{chance.randrange(4)}",
        unit=f"sub-{chance.randrange(4)}",
        rule="authority" if shared else "patient-id",
        series={str(series): chance.randint(1, 3) for series in range(1, chance.randint(2, 3))},
        patient=_SAID[dataset] if shared else {},
    )


def keyed(resource: Resource) -> dict[str, Resource]:
    """A resource by its Type/id."""
    return {f"{resource['resourceType']}/{resource['id']}": resource}


# -- one seed ---------------------------------------------------------------------------------------------------------


def scenario(seed: int, url: str, folder: Path) -> Counter[str]:
    """Upload under the faults of a seed, change, upload again, lose studies and prune; returns the faults made.

    Raises:
        AssertionError: the server, or the ledger, is not as it must be.
    """
    world, lake = World.of(seed), new_lake(folder)
    world.store_external(url)
    with run_faulty_proxy(url, seed) as faults, shorten_pauses():
        _phase(world, lake, faults, url, "first upload")
        if seed % 2:
            world.change()
            _phase(world, lake, faults, url, "upload of changes")
        if seed % 4 == 1:
            world.leave()
            _phase(world, lake, faults, url, "prune", prune=True)
    return faults.made


def _phase(world: World, lake: Lake, faults: Faults, url: str, name: str, *, prune: bool = False) -> None:
    world.build(lake)
    wrong = list(_brought(world, lake, faults, prune=prune))
    wrong = wrong or [*held_wrong(world, url), *noted_wrong(world, lake, faults.url, url)]
    if wrong:
        raise AssertionError("\n".join([f"seed {world.seed}, {name}:", *wrong]))


def _brought(world: World, lake: Lake, faults: Faults, *, prune: bool) -> Iterator[str]:
    """Upload under faults a few times, then without, then once more; yields what is wrong with the runs."""
    rate = faults.rate
    for _ in range(_RUNS_UNDER_FAULTS):
        failed_only = world.chance.random() < 0.2
        yield from _refused(_run(world, lake, faults, prune=prune, failed_only=failed_only))
    faults.settle()
    faults.rate = 0.0
    last = _run(world, lake, faults, prune=prune)
    yield from _refused(last)
    yield from (f"{one.dataset}: stopped without faults: {one.stopped}" for one in last if one.stopped)
    faults.asked.clear()
    _run(world, lake, faults, prune=prune)
    if faults.asked != ["GET metadata"]:
        yield f"a run with nothing to do asked {faults.asked}"
    faults.rate = rate


def _run(world: World, lake: Lake, faults: Faults, *, prune: bool, failed_only: bool = False) -> list[UploadSummary]:
    names = world.chance.sample(DATASETS, len(DATASETS))
    try:
        return upload(names, lake, world.settings(faults.url), prune=prune, failed_only=failed_only)
    except UnreachableError:
        if not faults.rate:
            raise
        return []  # its first request failed for as long as it is tried


def _refused(done: Sequence[UploadSummary]) -> Iterator[str]:
    """No resource is invalid, so none may be rejected."""
    for one in done:
        for kind, counts in one.counts.items():
            if counts.get("rejected"):
                yield f"{one.dataset}: {counts['rejected']} {kind} rejected"


# -- what is looked at ------------------------------------------------------------------------------------------------


def held_wrong(world: World, url: str) -> Iterator[str]:
    """Yield where the server differs from the lake, or has more versions of a resource than there were contents."""
    wanted, there = world.wanted(), server_side(world, url)
    external = {f"Patient/{world.external_id}"} if world.external else set()
    for key in sorted(there.keys() - wanted.keys() - external):
        yield f"{key} is on the server, and should not be"
    for key in sorted(wanted.keys() - there.keys()):
        yield f"{key} is not on the server"
    for key in sorted(wanted.keys() & there.keys()):
        if server_content.without_meta(there[key]) != wanted[key]:
            yield f"{key} is not as it was sent: {server_content.without_meta(there[key])}, and not {wanted[key]}"
        if server_content.version(there[key]) != str(len(world.history[key])):
            yield f"{key} has version {server_content.version(there[key])} after {len(world.history[key])} contents"
    for key in sorted(external & there.keys()):
        if server_content.version(there[key]) != "1":
            yield f"{key} is another client's, and was changed"


def server_side(world: World, url: str) -> dict[str, Resource]:
    """Return all that the server has of this world, by Type/id, found by its identifiers."""
    factory = world.factory
    own = [f"https://{factory.name}/{dataset}/patient-id" for dataset in DATASETS]
    ever = [content[0] for key, content in world.history.items() if key.startswith("ImagingStudy/")]
    uids = [(one["identifier"][0]["system"], one["identifier"][0]["value"]) for one in ever]
    endpoints = ",".join(factory.endpoint_id(dataset) for dataset in DATASETS)
    resources = [
        *server_content.find_by_identifiers(url, "Patient", [(system, "") for system in (factory.authority, *own)]),
        *server_content.find_by_identifiers(url, "ImagingStudy", uids),
        *server_content.search(url, f"Endpoint?_id={endpoints}"),
    ]
    by_key: dict[str, Resource] = {}
    for resource in resources:
        by_key |= keyed(resource)
    return by_key


def noted_wrong(world: World, lake: Lake, ledger_url: str, url: str) -> Iterator[str]:
    """Where the ledger and the server disagree, and attempts that are still open."""
    rows = ledger(world, lake, ledger_url)
    produced = world.wanted() | world.patients()
    there = server_side(world, url)
    for key in sorted(rows.keys() ^ produced.keys()):
        yield f"{key} is in the ledger or in the lake, and not in both"
    for key in sorted(rows.keys() & produced.keys()):
        row = rows[key]
        other = there.get(f"{row['type']}/{row['server_id']}")
        expected = ("stored", other and server_content.version(other), _sha256(produced[key]), None, True)
        noted = tuple(row[name] for name in ("state", "version", "hash", "reason", "is_indexed"))
        if noted != expected:
            yield f"{key}: the ledger says {noted}, and should say {expected}"
        if (row["server_id"] != row["id"], row["is_external"]) != (
            key not in world.wanted(),
            key not in world.wanted(),
        ):
            yield f"{key}: the ledger says that it is {row['server_id']} on the server, external: {row['is_external']}"
    for attempt in attempts(lake):
        yield f"{attempt['type']}/{attempt['id']}: an attempt is open"


def _sha256(resource: Resource) -> str:
    return hashlib.sha256(orjson.dumps(resource, option=orjson.OPT_SORT_KEYS)).hexdigest()


def ledger(world: World, lake: Lake, url: str) -> dict[str, dict[str, Any]]:
    """All rows of the server's ledger, by Type/id."""
    rows = shared_ledger_rows(lake, url)
    for dataset, studies in world.studies.items():
        for unit in {study.unit for study in studies}:
            rows |= ledger_rows(lake, url, dataset, unit)
    return rows


@contextmanager
def shorten_pauses() -> Iterator[None]:
    """Pauses between tries as short as a test wants them."""
    with patch.object(retry, "FIRST_PAUSE", 0.01):
        yield


# -- the script -------------------------------------------------------------------------------------------------------


def main() -> int:
    """Run seeds; returns 1 at the first that fails."""
    parser = argparse.ArgumentParser(description="upload under faults, seed by seed")
    parser.add_argument("--seeds", type=int, default=200, help="how many (default: 200)")
    parser.add_argument("--first", type=int, default=1000, help="the first of them (default: 1000)")
    chosen = parser.parse_args()
    made: Counter[str] = Counter()
    with run_hapi() as server, tempfile.TemporaryDirectory(prefix="soak-") as folder:
        for done, seed in enumerate(range(chosen.first, chosen.first + chosen.seeds), 1):
            try:
                made += scenario(seed, server.base_url, Path(folder, str(seed)))
            except Exception as error:  # noqa: BLE001 - whatever it is, the seed has to be named
                print(f"seed {seed} failed: {type(error).__name__}: {error}", flush=True)
                return 1
            if done % 20 == 0:
                print(f"{done} of {chosen.seeds} seeds, {made.total()} faults", flush=True)
    for kind in KINDS:
        print(f"  {kind:<12} {made[kind]:>6}")
    print(f"{chosen.seeds} seeds from {chosen.first}, {made.total()} faults: the server held what the lake held")
    return 0


if __name__ == "__main__":
    sys.exit(main())
