"""How fast studies come onto a FHIR server: our upload beside fhirpy's save(), in one run against HAPI.

    python -m benchmarks.upload [--against CHECKOUT] [--studies N] [--repeat N] [--bundle N]

Prints a plain text table. Seconds differ from machine to machine, and from minute to minute; the ratios of one run are
what counts. Client and server share the machine, so both have their processor time told. Contenders take turns in each
repetition, so that a busy minute hits all of them, each with subjects and UIDs that the server has not seen. Asserts of
each turn that the server holds all of it, once: a figure cannot be of nothing. The lakes lie in a temporary folder
(TMPDIR chooses the disk).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest.mock import patch
from urllib.parse import quote, urlsplit

import aiohttp
from fhirpy import AsyncFHIRClient

from dicom_etl.lake.tables import Lake
from dicom_etl.settings import FhirSettings, Settings
from dicom_etl.stages.upload import upload
from dicom_etl.stages.verify import verify
from tests.servers.hapi_server import HapiServer, run_hapi
from tests.support.upload_lakes import DatasetFactory, Resource, Study, new_lake

SERIES, LENGTH = 4, 50  # of each study: series, and instances of a series
SEQUENTIAL = "save() one by one"

_WARM = 300  # studies of each way before anything is measured: the server compiles what it does often
_HOLDS = 8_000  # studies that fit into the server's heap; then there is a new one
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))

_ABOUT = """ours: reads the lake, sends what all share first, then Patients, then studies; searches the server for
studies that it would overwrite; keeps a ledger on disk.
save(): fhirpy as it is, one resource after the other (Patient, then ImagingStudy, as the SPARC tutorial does; it has no
Endpoint; here there is one for all, as ours has), without ids, so that a second run makes everything twice.
The resources are dictionaries already. search, then save(): a search by identifier before each of these.
Nothing looks for Patients that the server has under other ids: here identifiers are those of a dataset alone.
x save(): studies/s in parts of the second row. CPU: milliseconds per study, of the client (this process) and of the
server (HAPI in a JVM with its own defaults that has taken over a thousand studies before, its data in memory). Where
other work keeps the processors busy, ours cannot use two of them at once, and the ratio falls towards that of the
processor time of client and server together: see the load above."""


# -- what is sent -----------------------------------------------------------------------------------------------------


class BenchFactory(DatasetFactory):
    """A factory whose studies are as large as built ones are, and whose resources can be counted on the server."""

    def system(self, kind: str) -> str:
        """The system of the identifiers of Patients or Endpoints."""
        return f"https://{self.name}/{self.name}/{'patient-id' if kind == 'Patient' else 'endpoint'}"

    def endpoint(self, dataset: str, number: str = "all") -> Resource:
        """An Endpoint that can be searched for."""
        return super().endpoint(dataset) | {"identifier": [{"system": self.system("Endpoint"), "value": number}]}

    def imaging_study(self, dataset: str, study: Study) -> Resource:
        """The study, its instances with numbers and titles."""
        made = super().imaging_study(dataset, study)
        for series in made["series"]:
            for number, instance in enumerate(series["instance"], 1):
                instance |= {"number": number, "title": "ORIGINAL\\PRIMARY\\M\\ND"}
        return made


@dataclass(frozen=True)
class Load:
    """Studies that no server has seen: one subject each, in a lake as the build stage leaves it.

    The dataset has the factory's name, since verify takes any study with a dataset's identifier for one of it.
    """

    factory: BenchFactory
    studies: tuple[Study, ...]
    lake: Lake
    settings: Settings

    @classmethod
    def new(cls, folder: Path, studies: int, settings: Settings) -> Load:
        """Write the lake."""
        factory = BenchFactory(f"bench-{secrets.token_hex(6)}")
        series = {str(number): LENGTH for number in range(1, SERIES + 1)}
        made = tuple(Study(str(n), f"MRN-{n}", unit=f"sub-{n:04}", series=series) for n in range(studies))
        lake = new_lake(folder / factory.name)
        factory.build(lake, factory.name, made)
        return cls(factory, made, lake, settings)

    def settings_for(self, url: str) -> Settings:
        """The settings, with a server."""
        return self.settings.model_copy(update={"fhir": self.settings.fhir.model_copy(update={"url": url})})

    def pairs(self) -> list[tuple[Resource, Resource]]:
        """Patient and ImagingStudy of each study, without ids."""
        return [
            (
                _nameless(self.factory.patient(self.factory.name, study)),
                _nameless(self.factory.imaging_study(self.factory.name, study)),
            )
            for study in self.studies
        ]


def _nameless(resource: Resource) -> Resource:
    return {name: value for name, value in resource.items() if name != "id"}


# -- ways to send it --------------------------------------------------------------------------------------------------


def ours(url: str, load: Load, *, sent: bool = True) -> None:
    """Our upload; without `sent`, one that must find everything there."""
    [done] = upload([load.factory.name], load.lake, load.settings_for(url))
    state, number = "stored" if sent else "unchanged", len(load.studies)
    wanted = {"Endpoint": {state: 1}, "ImagingStudy": {state: number}, "Patient": {state: number}}
    if done.stopped or done.counts != wanted:
        raise SystemExit(f"the upload did {done.counts} and not {wanted}; {done.stopped or 'it went to its end'}")


def ours_again(url: str, load: Load) -> None:
    """The second run of our upload, with nothing changed."""
    ours(url, load, sent=False)


def ours_verified(url: str, load: Load) -> None:
    """Our comparison of ledger and server."""
    done = verify([load.factory.name], load.lake, load.settings_for(url))
    counts = sum((Counter(one.counts) for one in done.comparisons), Counter[str]())
    if done.exit_code or +counts != {"ok": 2 * len(load.studies) + 1}:
        raise SystemExit(f"verify found {dict(counts)}")


def saved(url: str, load: Load, *, own_endpoints: bool = False, search: bool = False) -> None:
    """Save each resource by itself: one Endpoint for all or one per study, with or without a search before."""
    asyncio.run(_saved(AsyncFHIRClient(url), load, own_endpoints, search))


async def _saved(client: AsyncFHIRClient, load: Load, own_endpoints: bool, search: bool) -> None:
    put = _found_or_saved if search else _just_saved
    endpoint = None
    for number, (patient, study) in enumerate(load.pairs()):
        if endpoint is None or own_endpoints:
            endpoint = await put(client, _nameless(load.factory.endpoint(load.factory.name, str(number))))
        person = await put(client, patient)
        refers = {"subject": person.to_reference(), "endpoint": [endpoint.to_reference()]}
        await put(client, study | refers)


async def _just_saved(client: AsyncFHIRClient, resource: Resource) -> Any:
    made = client.resource(**_typed(resource))
    await made.save()
    return made


async def _found_or_saved(client: AsyncFHIRClient, resource: Resource) -> Any:
    identifier = resource["identifier"][0]
    search = client.resources(resource["resourceType"]).search(
        identifier=f"{identifier['system']}|{identifier['value']}"
    )
    found = await search.first()
    return found if found is not None else await _just_saved(client, resource)


def _typed(resource: Resource) -> dict[str, Any]:
    """The arguments of fhirpy's constructor."""
    return {"resource_type": resource["resourceType"]} | {n: v for n, v in resource.items() if n != "resourceType"}


# -- what is measured -------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """A row of the table, and the function behind it."""

    label: str
    run: Callable[[str, Load], None]
    own_endpoints: bool = False


# the steps of one contender share a load, one after the other
CONTENDERS: tuple[tuple[Step, ...], ...] = (
    (
        Step("ours", ours),
        Step("ours again, nothing changed", ours_again),
        Step("ours, verify", ours_verified),
    ),
    (Step(SEQUENTIAL, saved),),
    (
        Step(
            "save(), an Endpoint for each study",
            lambda url, load: saved(url, load, own_endpoints=True),
            own_endpoints=True,
        ),
    ),
    (Step("search, then save()", lambda url, load: saved(url, load, search=True)),),
)


class Sample(NamedTuple):
    """One measurement: seconds, those of the processor, and the requests by method and type."""

    seconds: float
    client: float
    server: float
    requests: Counter[str]


@dataclass
class Row:
    """What came of a step."""

    label: str
    studies: int
    samples: list[Sample] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        """Studies per second of each repetition, the slowest first."""
        return sorted(self.studies / sample.seconds for sample in self.samples)

    @property
    def rate(self) -> float:
        """Studies per second (median)."""
        return statistics.median(self.rates)

    @property
    def requests(self) -> Counter[str]:
        """The requests of the last repetition."""
        return self.samples[-1].requests

    def cpu(self, side: Literal["client", "server"]) -> float:
        """Milliseconds of a processor per study (median), of the client or of the server."""
        seconds = [sample.client if side == "client" else sample.server for sample in self.samples]
        return statistics.median(seconds) / self.studies * 1e3


def measured(step: Step, server: HapiServer, load: Load) -> Sample:
    """Run a step, and fail unless the server holds the whole load, once."""
    with counted() as requests:
        start, client, before = time.perf_counter(), time.process_time(), _cpu_of(server.pid)
        step.run(server.base_url, load)
        seconds, client = time.perf_counter() - start, time.process_time() - client
        sample = Sample(seconds, client, _cpu_of(server.pid) - before, requests)
    _check(step, server.base_url, load)
    return sample


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count requests. All of our client's and all of fhirpy's pass one method of aiohttp; a proxy would cost time."""
    requests: Counter[str] = Counter()
    real = aiohttp.ClientSession._request

    async def request(self: aiohttp.ClientSession, method: str, url: Any, **more: Any) -> Any:
        kind = urlsplit(str(url)).path.partition("/fhir")[2].strip("/").partition("/")[0]
        method = method.upper()
        # without a type: a transaction, or a further page of a search
        requests[f"{method} {kind or ('page' if method == 'GET' else 'transaction')}"] += 1
        return await real(self, method, url, **more)

    with patch.object(aiohttp.ClientSession, "_request", request):
        yield requests


def _cpu_of(pid: int) -> float:
    """Seconds of the processor that a process has used (Linux)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except OSError:
        return float("nan")
    user, system = text.rpartition(")")[2].split()[11:13]  # the name before may hold blanks
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _check(step: Step, url: str, load: Load) -> None:
    number = len(load.studies)
    patients = quote(f"{load.factory.system('Patient')}|", safe="")
    endpoints = quote(f"{load.factory.system('Endpoint')}|", safe="")
    wanted = {
        f"Patient?identifier={patients}": number,
        f"ImagingStudy?patient.identifier={patients}": number,
        f"Endpoint?identifier={endpoints}": number if step.own_endpoints else 1,
    }
    found = {search: _total(f"{url}/{search}") for search in wanted}
    if found != wanted:
        raise SystemExit(f"{step.label}: the server has {found} and not {wanted}")


def _total(search: str) -> int:
    request = urllib.request.Request(f"{search}&_summary=count", headers={"Cache-Control": "no-cache"})
    with _OPENER.open(request, timeout=60) as response:
        return int(json.load(response)["total"])


# -- the run ----------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    given = _options(arguments)
    if given.against:
        _compare_versions(given)
        return
    fhir = FhirSettings(max_concurrent_requests=given.max_concurrent_requests, max_bundle_entries=given.bundle)
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    rows = {step.label: Row(step.label, given.studies) for steps in CONTENDERS for step in steps}
    per_server = max(1, (_HOLDS - len(CONTENDERS) * _WARM) // (len(CONTENDERS) * given.studies))
    for first in range(0, given.repeat, per_server):
        with run_hapi(long_lived=True) as server:
            _turn(server, _WARM, Settings(fhir=fhir), CONTENDERS)
            for number in range(first, min(first + per_server, given.repeat)):
                begins = number % len(CONTENDERS)  # a server becomes faster for some minutes: everybody is first once
                order = CONTENDERS[begins:] + CONTENDERS[:begins]
                for label, sample in _turn(server, given.studies, Settings(fhir=fhir), order).items():
                    rows[label].samples.append(sample)
    print(f"load at the end {os.getloadavg()[0]:.1f}")
    _print(list(rows.values()), given, fhir)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    fields = FhirSettings.model_fields
    parser = argparse.ArgumentParser(prog="python -m benchmarks.upload", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--studies", type=int, default=300, help="studies of each turn (default 300)")
    parser.add_argument("--repeat", type=int, default=5, help="repetitions; the median is shown (default 5)")
    parser.add_argument(
        "--max-concurrent-requests",
        type=int,
        default=fields["max_concurrent_requests"].default,
        help="as fhir.max_concurrent_requests",
    )
    parser.add_argument(
        "--bundle", type=int, default=fields["max_bundle_entries"].default, help="fhir.max_bundle_entries"
    )
    parser.add_argument("--against", metavar="CHECKOUT", help="measure another version of the project in the same run")
    given = parser.parse_args(arguments)
    most = _HOLDS // len(CONTENDERS) - _WARM
    if not 0 < given.studies <= most:
        parser.error(f"--studies: from 1 to {most}, which the server's memory holds")
    return given


def _compare_versions(given: argparse.Namespace) -> None:
    """Measure this version and another one in turn, each in processes of its own, against the same server."""
    here = Path(__file__).resolve().parent.parent
    versions = {"this version": here, "the other version": Path(given.against).resolve()}
    turns: dict[str, list[dict[str, list[float]]]] = {name: [] for name in versions}
    with run_hapi(long_lived=True) as server:
        for number in range(given.repeat + 1):  # the first turn warms the server up
            order = list(versions.items())[:: 1 if number % 2 else -1]
            for name, checkout in order:
                command = [sys.executable, str(here / "benchmarks/upload_version.py")]
                command += [server.base_url, str(given.studies), str(server.pid)]
                environment = os.environ | {"PYTHONPATH": str(checkout)}
                done = subprocess.run(
                    command, cwd=checkout, env=environment, capture_output=True, text=True, check=True
                )
                turns[name] += [json.loads(done.stdout.splitlines()[-1])] if number else []
    print(f"{given.studies} studies, median of {given.repeat}; CPU in ms per study")
    print(f"{'':20}{'studies/s':>10}{'client CPU':>12}{'server CPU':>12}{'unchanged: client CPU':>24}")
    for name, figures in turns.items():
        seconds, client, jvm = (statistics.median(one["upload"][column] for one in figures) for column in range(3))
        again = statistics.median(one["again"][1] for one in figures)
        values = [1e3 * value / given.studies for value in (client, jvm, again)]
        print(f"{name:20}{given.studies / seconds:>10.1f}{values[0]:>12.2f}{values[1]:>12.1f}{values[2]:>24.2f}")


def _turn(
    server: HapiServer, studies: int, settings: Settings, contenders: Sequence[Sequence[Step]]
) -> dict[str, Sample]:
    """Let each contender bring studies of its own, one contender after the other."""
    samples: dict[str, Sample] = {}
    for steps in contenders:
        with tempfile.TemporaryDirectory(prefix="bench-upload-") as folder:
            load = Load.new(Path(folder), studies, settings)
            samples |= {step.label: measured(step, server, load) for step in steps}
    return samples


def _print(rows: Sequence[Row], given: argparse.Namespace, fhir: FhirSettings) -> None:
    base = next(row.rate for row in rows if row.label == SEQUENTIAL)
    print(
        f"\n{given.studies} studies of {SERIES} series of {LENGTH} instances, a Patient each; "
        f"median of {given.repeat}; "
        f"ours: {fhir.max_concurrent_requests} requests at once, small resources by {fhir.max_bundle_entries}"
    )
    print(
        f"{'':36}{'studies/s':>10}{'from - to':>16}{'x save()':>10}{'requests':>10}{'client CPU':>12}{'server CPU':>12}"
    )
    for row in rows:
        span = f"{row.rates[0]:,.1f} - {row.rates[-1]:,.1f}"
        print(
            f"{row.label:36}{row.rate:>10,.1f}{span:>16}{row.rate / base:>10.1f}{row.requests.total():>10}"
            f"{row.cpu('client'):>12.1f}{row.cpu('server'):>12.1f}"
        )
    for row in rows:
        print(f"requests of {row.label}: {', '.join(f'{kind} {n}' for kind, n in sorted(row.requests.items()))}")
    print(_ABOUT)


if __name__ == "__main__":
    main()
