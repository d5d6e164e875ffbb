"""Concurrent runs, killed runs, and two servers: each resource is stored once, and stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from dicom_etl.lake.tables import Lake
from dicom_etl.stages.upload import upload
from tests.servers.hapi_server import HapiServer
from tests.support import server_content
from tests.support.server_content import Resource
from tests.support.upload_lakes import DatasetFactory, Study, attempts, ledger_rows, new_lake, settings_for
from tests.upload.soak.faults_soak import DATASETS, World, held_wrong, noted_wrong
from tests.upload.support.faults import Faults, run_faulty_proxy

ROOT = Path(__file__).parents[2]

# reports that it is ready, and begins on a signal: starting Python takes longer than an upload
_RUN = """
import sys
import uuid
from dicom_etl.lake.tables import Lake
from dicom_etl.stages.upload import upload
from tests.support.upload_lakes import settings_for
print("ready", flush=True)
sys.stdin.readline()
# each study is sent by its own request, the Patients in transactions
settings = settings_for(sys.argv[2], max_bundle_entries=4, single_request_bytes=700, retry_seconds=60)
done = upload(sys.argv[3:], Lake(sys.argv[1]), settings)
states = {state for one in done for counts in one.counts.values() for state in counts}
sys.exit(f"{done}" if states - {"stored", "unchanged", "external"} else 0)
"""


def started(lake: Lake, url: str, *datasets: str) -> subprocess.Popen[str]:
    """Start an upload in a process of its own, which waits for a signal."""
    return subprocess.Popen(
        [sys.executable, "-c", _RUN, lake.root, url, *datasets],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def begin(run: subprocess.Popen[str]) -> None:
    assert run.stdin is not None
    run.stdin.write("\n")
    run.stdin.flush()


def all_at_once(runs: Sequence[subprocess.Popen[str]]) -> None:
    """Let the runs go when all are ready; none may fail."""
    try:
        for run in runs:
            assert run.stdout is not None
            assert run.stdout.readline() == "ready\n"
        for run in runs:
            begin(run)
        contribution = [run.communicate(timeout=120)[1] for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert [(run.returncode, text) for run, text in zip(runs, contribution, strict=True) if run.returncode] == []


# -- eight runs, which share patients ---------------------------------------------------------------------------------

_PERSONS = ("P0", "P1", "P2")
_VALUES: dict[str, Resource] = {  # the value that only one dataset has of each of them
    "D0": {"birthDate": "1980-05-01"},
    "D1": {"gender": "female"},
    "D2": {"name": [{"family": "Roe"}]},
    "D3": {"maritalStatus": {"text": "unknown"}},
    "D4": {"active": True},
    "D5": {"telecom": [{"system": "phone", "value": "1"}]},
    "D6": {"address": [{"city": "Nowhere"}]},
    "D7": {"birthDate": "1980-05"},
}


def _studies(dataset: str, more: Resource | None = None) -> list[Study]:
    contribution = _VALUES[dataset] | (more or {})
    shared = [Study(person, person, rule="authority", patient=contribution) for person in _PERSONS]
    return [*shared, Study("own", "P0", unit="sub-2")]


def _united(contributions: Iterable[Resource]) -> Resource:
    """Unite the values of all datasets; the first date is the most precise."""
    whole: Resource = {}
    for contribution in contributions:
        whole = contribution | whole
    return whole


def _patients(url: str, factory: DatasetFactory) -> dict[str, list[Resource]]:
    """The Patients of each identifier that the datasets share."""
    held: dict[str, list[Resource]] = {person: [] for person in _PERSONS}
    for patient in server_content.find_by_identifiers(url, "Patient", [(factory.authority, "")]):
        held[patient["identifier"][0]["value"]].append(patient)
    return held


def _everything(url: str, factory: DatasetFactory) -> dict[str, str]:
    """The versions of all resources, by Type/id."""
    systems = [(f"https://{factory.name}/{dataset}/patient-id", "") for dataset in _VALUES]
    uids = [("urn:dicom:uid", f"urn:oid:{factory.uid(number)}") for number in (*_PERSONS, "own")]
    endpoints = ",".join(factory.endpoint_id(dataset) for dataset in _VALUES)
    resources = [
        *server_content.find_by_identifiers(url, "Patient", [(factory.authority, ""), *systems]),
        *server_content.find_by_identifiers(url, "ImagingStudy", uids),
        *server_content.search(url, f"Endpoint?_id={endpoints}"),
    ]
    return {f"{one['resourceType']}/{one['id']}": server_content.version(one) for one in resources}


def _known(url: str, factory: DatasetFactory) -> dict[str, Resource]:
    """Return the values of each person on the server: those of the one Patient with the identifier."""
    values_by_person = {}
    for person, [patient] in _patients(url, factory).items():
        assert patient["identifier"] == [{"system": factory.authority, "value": person}]
        elements = patient.keys() - {"resourceType", "id", "meta", "identifier"}
        values_by_person[person] = {name: patient[name] for name in elements}
    return values_by_person


@pytest.fixture(params=["eight lakes", "one lake"])
def homes(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Lake]:
    """The lakes of eight datasets."""
    return {
        dataset: new_lake(tmp_path / (dataset if request.param == "eight lakes" else "lake")) for dataset in _VALUES
    }


def _built(homes: Mapping[str, Lake]) -> DatasetFactory:
    factory = DatasetFactory("eight-lakes" if len({lake.root for lake in homes.values()}) > 1 else "one-lake")
    for dataset, lake in homes.items():
        factory.build(lake, dataset, _studies(dataset))
    return factory


def test_eight_concurrent_runs_share_patients_without_duplicates(homes: dict[str, Lake], hapi: HapiServer) -> None:
    factory, whole = _built(homes), _united(_VALUES.values())
    with run_faulty_proxy(hapi.base_url, rate=0.0) as server:
        all_at_once([started(lake, server.url, dataset) for dataset, lake in homes.items()])
        patients, versions = _patients(hapi.base_url, factory), _everything(hapi.base_url, factory)
        first = _known(hapi.base_url, factory)
        for dataset in reversed(homes):
            upload([dataset], homes[dataset], settings_for(server.url))

        assert first == dict.fromkeys(_PERSONS, whole)
        assert (
            len(versions) == 8 * (1 + 1 + 4) + 3
        )  # of each dataset an Endpoint, an own Patient and four ImagingStudies
        shared = {f"Patient/{patient['id']}" for [patient] in patients.values()}
        assert {version for key, version in versions.items() if key not in shared} == {"1"}
        assert _everything(hapi.base_url, factory) == versions

        more = {"multipleBirthBoolean": False}
        factory.build(homes["D0"], "D0", _studies("D0", more))
        upload(["D0"], homes["D0"], settings_for(server.url))

    assert _known(hapi.base_url, factory) == dict.fromkeys(_PERSONS, whole | more)
    after = _everything(hapi.base_url, factory)
    assert after == versions | {key: str(int(versions[key]) + 1) for key in shared}


# -- two servers ------------------------------------------------------------------------------------------------------


def test_two_servers_get_everything_from_one_lake(hapi: HapiServer, empty_hapi: HapiServer, tmp_path: Path) -> None:
    world, lake = World.of(7000), new_lake(tmp_path / "lake")
    urls = [hapi.base_url, empty_hapi.base_url]
    for url in urls:
        world.store_external(url)
    world.build(lake)

    all_at_once([started(lake, url, *DATASETS) for url in urls])

    wrong = [found for url in urls for found in (*held_wrong(world, url), *noted_wrong(world, lake, url, url))]
    assert wrong == []


# -- runs that are killed ---------------------------------------------------------------------------------------------


def _killed_at(number: int, run: Sequence[subprocess.Popen[str]], *, answered: bool) -> Callable[[int, bool], bool]:
    """Kills the run at a request: before the server hears of it (it never does), or when it has answered."""

    def watch(asked: int, done: bool) -> bool:
        if asked == number and done == answered:
            run[0].send_signal(signal.SIGKILL)
            return answered
        return True

    return watch


def _upload(world: World, lake: Lake, server: Faults) -> None:
    upload(DATASETS, lake, settings_for(server.url, max_bundle_entries=4))


def _wrong_after_kill(number: int, hapi: HapiServer, folder: Path, *, answered: bool) -> list[str]:
    """List the problems after a run that was killed at a request, and one that was not."""
    world, lake = World.of(8000 + 2 * number + answered), new_lake(folder)
    world.store_external(hapi.base_url)
    world.build(lake)
    runs: list[subprocess.Popen[str]] = []
    with run_faulty_proxy(hapi.base_url, rate=0.0) as server:
        server.watch = _killed_at(number, runs, answered=answered)
        runs.append(started(lake, server.url, *DATASETS))
        begin(runs[0])
        try:
            runs[0].communicate(timeout=120)
        finally:
            runs[0].kill()
        if runs[0].returncode != -signal.SIGKILL:
            return [f"the run was not killed at request {number}"]
        server.watch = lambda _number, _answered: True
        server.settle()
        _upload(world, lake, server)
        wrong = [*held_wrong(world, hapi.base_url), *noted_wrong(world, lake, server.url, hapi.base_url)]
        server.asked.clear()
        _upload(world, lake, server)
        wrong += [f"asked again: {asked}" for asked in server.asked if asked != "GET metadata"]
    when = "after" if answered else "before"
    return [f"killed {when} request {number}: {one}" for one in wrong]


def test_a_run_killed_at_any_request_is_completed_by_the_next(hapi: HapiServer, tmp_path: Path) -> None:
    moments = [(number, answered) for number in (3, 5, 7, 9, 12) for answered in (False, True)]

    def wrong_after(moment: tuple[int, bool]) -> list[str]:
        number, answered = moment
        return _wrong_after_kill(number, hapi, tmp_path / f"{number}-{answered}", answered=answered)

    with ThreadPoolExecutor(2) as pool:
        assert [one for wrong in pool.map(wrong_after, moments) for one in wrong] == []


def test_a_change_of_a_killed_run_is_recognised_as_the_lakes(hapi: HapiServer, tmp_path: Path) -> None:
    factory, lake = DatasetFactory(f"killed-{uuid.uuid4().hex[:8]}"), new_lake(tmp_path / "lake")
    one = Study("1", "P1")
    runs: list[subprocess.Popen[str]] = []
    with run_faulty_proxy(hapi.base_url, rate=0.0) as server:
        factory.build(lake, "A", [one])
        upload(["A"], lake, settings_for(server.url))
        factory.build(lake, "A", [replace(one, series={"1": 3})])
        server.asked.clear()
        server.watch = _killed_at(4, runs, answered=True)  # once the server has the change, before the ledger knows
        runs.append(started(lake, server.url, "A"))
        begin(runs[0])
        runs[0].communicate(timeout=120)
        asked = list(server.asked)
        server.watch = lambda _number, _answered: True
        server.settle()
        factory.build(lake, "A", [replace(one, series={"1": 4})])

        [done] = upload(["A"], lake, settings_for(server.url))

    place = f"ImagingStudy/{factory.study_id('A', '1')}"
    assert runs[0].returncode == -signal.SIGKILL
    assert asked[3] == f"PUT {place}"
    assert done.counts["ImagingStudy"] == {"stored": 1}
    held = server_content.get(hapi.base_url, place)
    assert (held["meta"]["versionId"], held["numberOfInstances"]) == ("3", 4)
    row = ledger_rows(lake, server.url, "A")[place]
    assert (row["state"], row["version"]) == ("stored", "3")
    assert attempts(lake) == []
