"""Speed of building FHIR resources, from header tables and from files, compared with dicom2fhir in the same run.

    python -m benchmarks.fhir_resources [--studies N] [--repeat N] [--no-peer]

Prints tables as plain text. Seconds differ between machines and from minute to minute; compare the ratios of one run.
Contenders take turns in each repetition, so that other load affects all of them. Each run is checked: it must have
built all studies with all instances. Files and tables are in a temporary folder (set TMPDIR to choose the disk).
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
_STUDIES_AS_FILES = 5
_ZONE = "Europe/Berlin"
_BUILT_FOLDERS = ("identities", "fhir", "fhir_elements", "findings", "commits/build")

_TABLES_NOTE = """build: from Parquet header tables to NDJSON files: patient matching, Patient, ImagingStudy with all
instances, Endpoint, validation of all resources, findings. Results of the previous build are removed before; worker
processes are already started.
dicom2fhir: from DICOM JSON of the headers in memory to a Bundle (a Python object) with all instances, and to its JSON
text; one process. It reads no tables and writes no files. x: compared with its mapping without JSON text."""
_FILES_NOTE = """to_imaging_studies: from files to dictionaries: crawl, extract, build, validation; one process.
dicom2fhir: from_directory, from files to the JSON text of a Bundle with all instances; one process. The files are in
the page cache; they have very few pixels and no large private headers."""


class Sample(NamedTuple):
    """One measurement; `cpu` is the CPU time, None if it is unknown."""

    seconds: float
    cpu: float | None


Run = Callable[[], Sample]


@dataclass
class Row:
    """A line of a table: a contender, its number of instances and its measurements."""

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
        """Microseconds of CPU time per instance (median)."""
        cpu_times = [sample.cpu for sample in self.samples if sample.cpu is not None]
        return f"{statistics.median(cpu_times) / self.instances * 1e6:,.1f}" if cpu_times else "-"

    @property
    def spread(self) -> float:
        """The range of the repetitions as a share of the median."""
        seconds = [sample.seconds for sample in self.samples]
        return (max(seconds) - min(seconds)) / statistics.median(seconds)


@dataclass(frozen=True)
class Corpus:
    """Some studies as files, and a lake with the header tables of many."""

    files: Path
    lake: Lake
    studies: int

    @property
    def instances(self) -> int:
        """The number of instances of all studies of the lake."""
        return self.studies * INSTANCES


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    options = _parse_options(arguments)
    print(_describe_machine())
    with tempfile.TemporaryDirectory(prefix="bench-fhir-") as folder:
        corpus = _write_corpus(Path(folder), options.studies)
        peer = None if options.no_peer else contenders.dicom2fhir_python(PEERS / "dicom2fhir")
        if peer is None and not options.no_peer:
            print("dicom2fhir could not be installed")
        _measure(corpus, peer, options.repeat)


def _parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fhir_resources", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--studies", type=int, default=1000, help="studies in the lake (default 1000)")
    parser.add_argument("--repeat", type=int, default=5, help="repetitions; the median is shown (default 5)")
    parser.add_argument("--no-peer", action="store_true", help="without dicom2fhir (nothing is installed)")
    return parser.parse_args(arguments)


def _describe_machine() -> str:
    return (
        f"Python {platform.python_version()}, pydicom {pydicom.__version__}, pyarrow {pa.__version__}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )


def _write_corpus(folder: Path, studies: int) -> Corpus:
    files = folder / "files"
    write_studies(files, _STUDIES_AS_FILES)
    rows = read_rows(files, folder / "read")
    corpus = Corpus(files, write_lake(folder / "lake", rows, studies), studies)
    print(
        f"{studies:,} studies of {INSTANCES} instances ({SERIES} series of {LENGTH}), {PER_UNIT} studies per subject, "
        f"in header tables; {_STUDIES_AS_FILES} of them as files"
    )
    return corpus


def _measure(corpus: Corpus, peer: Path | None, repeat: int) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, mp_context=context) as pool:
        contenders.start_workers(pool, WORKERS)
        started = StartedEngine("processes", WORKERS, pool=pool)
        tables = [
            Row("build, one process", corpus.instances, _build_run(corpus, Engine())),
            Row(f"build, {WORKERS} processes", corpus.instances, _build_run(corpus, started)),
            *_peer_rows(corpus, peer, {"dicom2fhir, mapping": "objects", "dicom2fhir, mapping and JSON": "memory"}),
        ]
        files = [
            Row("to_imaging_studies", _STUDIES_AS_FILES * INSTANCES, _convert_run(corpus)),
            *_peer_rows(corpus, peer, {"dicom2fhir, from_directory": "files"}),
        ]
        for row in (*tables[:2], *files[:1]):
            row.run()  # warm-up: classes are imported, patterns compiled; dicom2fhir has one of its own
        for _ in range(repeat):
            for row in (*tables, *files):
                row.samples.append(row.run())
    _print("from header tables", tables, repeat, _TABLES_NOTE)
    _print("from files", files, repeat, _FILES_NOTE)


def _print(title: str, rows: list[Row], repeat: int, note: str) -> None:
    base = next((row.each for row in rows if row.label.startswith("dicom2fhir")), None)
    print(f"\n{title}; median of {repeat}")
    print(f"{'':32}{'instances/s':>12}{'us/instance':>13}{'us of CPU':>11}{'x dicom2fhir':>14}{'spread':>9}")
    for row in rows:
        ratio = f"{base / row.each:.1f}" if base else "-"
        print(f"{row.label:32}{1e6 / row.each:>12,.0f}{row.each:>13,.1f}{row.cpu:>11}{ratio:>14}{row.spread:>9.0%}")
    print(note)


# -- this project -----------------------------------------------------------------------------------------------------


def _build_run(corpus: Corpus, engine: Engine) -> Run:
    source = TreeSource(DATASET, corpus.files)
    settings, dataset = Settings(engine="serial"), DatasetSettings(root=str(corpus.files), time_zone=_ZONE)

    def run() -> Sample:
        for folder in _BUILT_FOLDERS:
            corpus.lake.remove_folder(folder)
        is_cpu_known = not isinstance(engine, StartedEngine)  # the CPU time of worker processes is unknown
        sample = _timed(
            lambda: build(source, corpus.lake, settings, dataset, engine, force=True), is_cpu_known=is_cpu_known
        )
        check_built(corpus.lake, corpus.studies)
        return sample

    return run


def check_built(lake: Lake, studies: int) -> None:
    """Fail unless the NDJSON of the lake has so many studies with all their instances."""
    studies_built, instances = 0, 0
    for name in lake.list_names(f"fhir/ImagingStudy/{DATASET}", ".ndjson"):
        for line in (lake.read_bytes(f"fhir/ImagingStudy/{DATASET}/{name}.ndjson") or b"").splitlines():
            studies_built += 1
            instances += sum(len(series["instance"]) for series in orjson.loads(line)["series"])
    _check(studies_built, instances, studies)


def _check(studies_built: int, instances: int, studies: int) -> None:
    if (studies_built, instances) != (studies, studies * INSTANCES):
        expected = f"{studies} with {studies * INSTANCES}"
        raise SystemExit(f"{studies_built} studies with {instances} instances were built, and not {expected}")


def _convert_run(corpus: Corpus) -> Run:
    def run() -> Sample:
        resources: list[dict[str, Any]] = []
        settings = Settings(engine="serial", time_zone=_ZONE)
        sample = _timed(
            lambda: resources.extend(to_imaging_studies(corpus.files, settings=settings)), is_cpu_known=True
        )
        all_series = [series for study in resources for series in study["series"]]
        _check(len(resources), sum(len(series["instance"]) for series in all_series), _STUDIES_AS_FILES)
        return sample

    return run


def _timed(work: Callable[[], object], *, is_cpu_known: bool) -> Sample:
    start, cpu = time.perf_counter(), time.process_time()
    work()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    return Sample(seconds, cpu_seconds if is_cpu_known else None)


# -- dicom2fhir -------------------------------------------------------------------------------------------------------


def _peer_rows(corpus: Corpus, python: Path | None, steps: dict[str, str]) -> list[Row]:
    if python is None:
        return []
    return [
        Row(label, _STUDIES_AS_FILES * INSTANCES, _peer_run(corpus, python, steps_measured))
        for label, steps_measured in steps.items()
    ]


def _peer_run(corpus: Corpus, python: Path, steps: str) -> Run:
    command = [str(python), str(_PEER), steps, str(corpus.files)]

    def run() -> Sample:
        result = subprocess.run(command, check=False, capture_output=True, text=True)
        if result.returncode:
            raise SystemExit(f"dicom2fhir failed:\n{result.stderr[-2000:]}")
        answer = json.loads(result.stdout.splitlines()[-1])
        _check(_STUDIES_AS_FILES, answer["instances"], _STUDIES_AS_FILES)
        return Sample(answer["seconds"], answer["cpu"])

    return run


if __name__ == "__main__":
    main()
