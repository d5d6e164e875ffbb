"""How fast FHIR resources are made: our build from header tables, and our whole way, beside dicom2fhir, in one run.

    python -m benchmarks.fhir_resources [--studies N] [--repeat N] [--no-peer]

Prints plain text tables. Seconds differ from machine to machine, and from minute to minute; the ratios of one run are
what counts. Contenders take turns in each repetition, so that a busy minute hits all of them. Asserts of each run that
it made all studies with all instances: a figure cannot be of nothing. The files and tables lie in a temporary folder
(TMPDIR chooses the disk).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
import pydicom

from benchmarks import contenders
from benchmarks.contenders import StartedEngine
from benchmarks.studies import DATASET, INSTANCES, LENGTH, PER_UNIT, SERIES, read_rows, write_lake, write_studies
from dicom_etl.convert import to_imaging_studies
from dicom_etl.engine import Engine
from dicom_etl.lake.tables import Lake
from dicom_etl.settings import DatasetSettings, Settings
from dicom_etl.sources import TreeSource
from dicom_etl.stages.build import build

WORKERS = 2
PEERS = Path(__file__).parent.parent / "build" / "peers"
_PEER = Path(__file__).with_name("peer_studies.py")
_FILED = 5  # studies that are written as files
_ZONE = "Europe/Berlin"
_MADE = ("identities", "fhir", "fhir_elements", "findings", "commits/build")  # what a build writes

_TABLES = """build: Parquet header tables to NDJSON files, all of it: whose a study is, Patient, ImagingStudy with every
instance, Endpoint, checks of every resource, findings. Nothing is left of the build before; workers run already.
dicom2fhir: DICOM JSON of the headers, in memory already, to a Bundle (a Python object) with every instance, and to the
JSON text of it; one process. It reads no tables and writes no files. x: against its mapping alone."""
_FILES = """to_imaging_studies: from files to dictionaries: crawl, extract, build, checks; one process.
dicom2fhir: from_directory, from files to the JSON text of a Bundle with every instance; one process. The files lie in
the page cache; they have next to no pixels, and no big private headers."""


class Sample(NamedTuple):
    """One measurement; `cpu` is what the processor spent, None where it is not known."""

    seconds: float
    cpu: float | None


Run = Callable[[], Sample]


@dataclass
class Row:
    """A contender in a table: how it is run, over how many instances, what came of it."""

    label: str
    instances: int
    run: Run
    samples: list[Sample] = field(default_factory=list)

    @property
    def each(self) -> float:
        """Microseconds per instance (median)."""
        return statistics.median(sample.seconds for sample in self.samples) / self.instances * 1e6

    @property
    def cpu(self) -> str:
        """Microseconds of the processor per instance (median)."""
        known = [sample.cpu for sample in self.samples if sample.cpu is not None]
        return f"{statistics.median(known) / self.instances * 1e6:,.1f}" if known else "-"

    @property
    def spread(self) -> float:
        """From the fastest to the slowest repetition, in parts of the median."""
        seconds = [sample.seconds for sample in self.samples]
        return (max(seconds) - min(seconds)) / statistics.median(seconds)


@dataclass(frozen=True)
class Place:
    """Studies as files, and a lake with the header tables of many."""

    files: Path
    lake: Lake
    studies: int

    @property
    def instances(self) -> int:
        """Of all studies of the lake."""
        return self.studies * INSTANCES


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    given = _options(arguments)
    print(_machine())
    with tempfile.TemporaryDirectory(prefix="bench-fhir-") as folder:
        place = _written(Path(folder), given.studies)
        peer = None if given.no_peer else contenders.dicom2fhir_python(PEERS / "dicom2fhir")
        if peer is None and not given.no_peer:
            print("dicom2fhir could not be installed")
        _measure(place, peer, given.repeat)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fhir_resources", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--studies", type=int, default=1000, help="studies in the lake (default 1000)")
    parser.add_argument("--repeat", type=int, default=5, help="repetitions; the median is shown (default 5)")
    parser.add_argument("--no-peer", action="store_true", help="without dicom2fhir (nothing is installed)")
    return parser.parse_args(arguments)


def _machine() -> str:
    return (
        f"Python {platform.python_version()}, pydicom {pydicom.__version__}, pyarrow {pa.__version__}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )


def _written(folder: Path, studies: int) -> Place:
    files = folder / "files"
    write_studies(files, _FILED)
    rows = read_rows(files, folder / "read")
    place = Place(files, write_lake(folder / "lake", rows, studies), studies)
    print(
        f"{studies:,} studies of {INSTANCES} instances ({SERIES} series of {LENGTH}), {PER_UNIT} studies to a subject, "
        f"in header tables; {_FILED} of them as files"
    )
    return place


def _measure(place: Place, peer: Path | None, repeat: int) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, mp_context=context) as pool:
        contenders.start_workers(pool, WORKERS)
        started = StartedEngine("processes", WORKERS, pool=pool)
        tables = [
            Row("build, one process", place.instances, _building(place, Engine())),
            Row(f"build, {WORKERS} processes", place.instances, _building(place, started)),
            *_peer_rows(place, peer, {"dicom2fhir, mapping": "objects", "dicom2fhir, mapping and JSON": "memory"}),
        ]
        files = [
            Row("to_imaging_studies", _FILED * INSTANCES, _converting(place)),
            *_peer_rows(place, peer, {"dicom2fhir, from_directory": "files"}),
        ]
        for row in (*tables[:2], *files[:1]):
            row.run()  # classes are loaded, patterns compiled; dicom2fhir does the same by itself
        for _ in range(repeat):
            for row in (*tables, *files):
                row.samples.append(row.run())
    _print("from header tables", tables, repeat, _TABLES)
    _print("from files", files, repeat, _FILES)


def _print(title: str, rows: list[Row], repeat: int, about: str) -> None:
    base = next((row.each for row in rows if row.label.startswith("dicom2fhir")), None)
    print(f"\n{title}; median of {repeat}")
    print(f"{'':32}{'instances/s':>12}{'us/instance':>13}{'us of CPU':>11}{'x dicom2fhir':>14}{'spread':>9}")
    for row in rows:
        ratio = f"{base / row.each:.1f}" if base else "-"
        print(f"{row.label:32}{1e6 / row.each:>12,.0f}{row.each:>13,.1f}{row.cpu:>11}{ratio:>14}{row.spread:>9.0%}")
    print(about)


# -- ours -------------------------------------------------------------------------------------------------------------


def _building(place: Place, engine: Engine) -> Run:
    source = TreeSource(DATASET, place.files)
    settings, dataset = Settings(engine="serial"), DatasetSettings(root=str(place.files), time_zone=_ZONE)

    def run() -> Sample:
        for folder in _MADE:
            place.lake.remove_folder(folder)
        counted = not isinstance(engine, StartedEngine)  # what workers spend is not ours to see
        sample = _timed(lambda: build(source, place.lake, settings, dataset, engine, force=True), counted=counted)
        check_built(place.lake, place.studies)
        return sample

    return run


def check_built(lake: Lake, studies: int) -> None:
    """Fail where the NDJSON of the lake has not these studies with all their instances."""
    found, instances = 0, 0
    for name in lake.list_names(f"fhir/ImagingStudy/{DATASET}", ".ndjson"):
        for line in (lake.read_bytes(f"fhir/ImagingStudy/{DATASET}/{name}.ndjson") or b"").splitlines():
            found += 1
            instances += sum(len(series["instance"]) for series in orjson.loads(line)["series"])
    _check(found, instances, studies)


def _check(found: int, instances: int, studies: int) -> None:
    if (found, instances) != (studies, studies * INSTANCES):
        raise SystemExit(
            f"{found} studies with {instances} instances were made, and not {studies} with {studies * INSTANCES}"
        )


def _converting(place: Place) -> Run:
    def run() -> Sample:
        made: list[dict[str, Any]] = []
        settings = Settings(engine="serial", time_zone=_ZONE)
        sample = _timed(lambda: made.extend(to_imaging_studies(place.files, settings=settings)), counted=True)
        series = [one for study in made for one in study["series"]]
        _check(len(made), sum(len(one["instance"]) for one in series), _FILED)
        return sample

    return run


def _timed(work: Callable[[], object], *, counted: bool) -> Sample:
    start, cpu = time.perf_counter(), time.process_time()
    work()
    seconds, spent = time.perf_counter() - start, time.process_time() - cpu
    return Sample(seconds, spent if counted else None)


# -- dicom2fhir -------------------------------------------------------------------------------------------------------


def _peer_rows(place: Place, python: Path | None, ways: dict[str, str]) -> list[Row]:
    if python is None:
        return []
    return [Row(label, _FILED * INSTANCES, _peering(place, python, way)) for label, way in ways.items()]


def _peering(place: Place, python: Path, way: str) -> Run:
    command = [str(python), str(_PEER), way, str(place.files)]

    def run() -> Sample:
        result = subprocess.run(command, check=False, capture_output=True, text=True)
        if result.returncode:
            raise SystemExit(f"dicom2fhir failed:\n{result.stderr[-2000:]}")
        answer = json.loads(result.stdout.splitlines()[-1])
        _check(_FILED, answer["instances"], _FILED)
        return Sample(answer["seconds"], answer["cpu"])

    return run


if __name__ == "__main__":
    main()
