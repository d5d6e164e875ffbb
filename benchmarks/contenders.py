"""The readers that `headers.py` compares: the extraction, pydicom, plain reading, and two converters.

Each reads files and returns nothing: its cost is measured by the caller. The other readers run under the best
conditions: no other work is done between their calls, and their results are not kept.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import pydicom
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from dicom_etl.engine import Engine, ItemResult
from dicom_etl.headers.catalogue import catalogue
from dicom_etl.lake.tables import Lake
from dicom_etl.sources import Source, TreeSource
from dicom_etl.stages.crawl import crawl
from dicom_etl.stages.extract import extract

Item = TypeVar("Item")
Value = TypeVar("Value")
Paths = Sequence[str]

DELAY = 0.002  # seconds that each opening takes longer on simulated network storage


# -- the extraction ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StartedEngine(Engine):
    """An engine whose worker processes run already: the cost of their start is measured elsewhere."""

    pool: ProcessPoolExecutor | None = None

    def map(
        self,
        function: Callable[[Item], Value],
        items: Sequence[Item],
        *,
        small: bool = False,  # noqa: ARG002
        weight: Callable[[Item], int] = lambda _: 1,  # noqa: ARG002
    ) -> Iterator[ItemResult[Item, Value]]:
        """The same as `Engine.map`, with the running workers."""
        assert self.pool is not None
        running = {self.pool.submit(function, item): item for item in items}
        for future in as_completed(running):
            yield ItemResult(running[future], future.result())


class SlowSource(TreeSource):
    """A simulated network share: each opening takes `DELAY` longer."""

    def open(self, path: str) -> BinaryIO:
        """Open a file after the delay."""
        time.sleep(DELAY)
        return super().open(path)


def ignore(_: str) -> None:
    """Ignore the messages of a lake."""


def crawl_into_lake(source: Source, folder: str) -> Lake:
    """Crawl a dataset into a new lake."""
    lake = Lake(folder, lock_wait=0, notify=ignore).open()
    crawl(source, lake)
    return lake


def run_extraction(source: Source, lake: Lake, engine: Engine) -> None:
    """Run the stage: from files to Parquet tables."""
    result = extract(source, lake, engine)
    assert not result.units_failed, "a unit could not be extracted"


# -- pydicom -----------------------------------------------------------------------------------------------------------

TagPath = tuple[BaseTag, ...]


@cache
def _paths() -> tuple[tuple[TagPath, TagPath], ...]:
    """The path of each column of the catalogue, and the alternative one or ()."""
    paths = [(column.path, column.alternative_path) for column in catalogue()]
    return tuple((tuple(map(BaseTag, first)), tuple(map(BaseTag, second))) for first, second in paths)


def pydicom_values(paths: Paths) -> None:
    """Headers up to the pixel data; the values of all columns, as pydicom converts them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in paths:
            dataset = pydicom.dcmread(path, stop_before_pixels=True)
            for first, second in _paths():
                if _value(dataset, first) is None and second:
                    _value(dataset, second)


def _value(dataset: Dataset, path: TagPath) -> Any:
    if path[0] >> 16 == 2:
        dataset = dataset.file_meta
    for tag in path[:-1]:
        if tag not in dataset or not dataset[tag].value:
            return None
        dataset = dataset[tag].value[0]
    try:
        return dataset[path[-1]].value if path[-1] in dataset else None
    except (ValueError, TypeError, pydicom.errors.BytesLengthException):  # not a number: a finding in the extraction
        return None


# -- the floor ---------------------------------------------------------------------------------------------------------


def first_8k(paths: Paths) -> None:
    """Open each file and read its first 8 KB."""
    _first(paths, 8 << 10)


def first_64k(paths: Paths) -> None:
    """Open each file and read its first 64 KB."""
    _first(paths, 64 << 10)


def slow_64k(paths: Paths) -> None:
    """The same as `first_64k`, with the delay of a `SlowSource`."""
    for path in paths:
        time.sleep(DELAY)
        _first([path], 64 << 10)


def _first(paths: Paths, size: int) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.read(descriptor, size)
        os.close(descriptor)


# -- the loop of a published tutorial ----------------------------------------------------------------------------------


def tutorial_loop(paths: Paths) -> None:
    """Read each file as a whole, and make the text of all of its elements."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in paths:
            dataset = pydicom.dcmread(path)
            for tag in list(dataset.keys()):
                try:
                    str(dataset[tag])
                except (ValueError, TypeError, AttributeError, pydicom.errors.BytesLengthException):
                    continue


# -- dicom2fhir --------------------------------------------------------------------------------------------------------

# It fails with later versions of its dependencies.
_PINS = (
    "dicom2fhir==0.1.25",
    "fhir.resources==8.0.0",
    "fhir-core==1.0.1",
    "pydantic==2.11.*",
    "annotated-types==0.7.0",
)
_PEER = Path(__file__).with_name("peer_dicom2fhir.py")


def dicom2fhir_python(folder: Path) -> Path | None:
    """The Python of an environment with dicom2fhir, created in `folder` if needed; None if that fails."""
    python = folder / "bin" / "python"
    marker = folder / "complete"
    if not marker.exists():
        shutil.rmtree(folder, ignore_errors=True)
        print("installing dicom2fhir and its pins, once ...", file=sys.stderr)
        commands = ([sys.executable, "-m", "venv", str(folder)], [str(python), "-m", "pip", "install", "-q", *_PINS])
        for command in commands:
            if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
                return None
        marker.touch()
    return python


def dicom2fhir_seconds(python: Path, paths: Paths) -> tuple[int, float]:
    """(files converted, seconds): for each folder of the sample a folder, which the converter expects."""
    with tempfile.TemporaryDirectory() as folder:
        for number, path in enumerate(paths):
            group = Path(folder, "_".join(Path(path).parts[-3:-1]))
            group.mkdir(exist_ok=True)
            (group / f"{number}.dcm").symlink_to(path)
        command = [str(python), str(_PEER), folder]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
    answer = json.loads(result.stdout.splitlines()[-1])
    return int(answer["files"]), float(answer["seconds"])


# -- worker processes --------------------------------------------------------------------------------------------------


def start_workers(pool: ProcessPoolExecutor, workers: int) -> None:
    """Wait until all workers run and have imported their modules."""
    for future in [pool.submit(_wake, 0.5) for _ in range(workers)]:
        future.result()


def _wake(seconds: float) -> None:
    time.sleep(seconds)  # a worker that is asleep leaves the next task to another


def read_in_pool(pool: ProcessPoolExecutor, function: Callable[[Paths], None], paths: Paths, chunk: int = 100) -> None:
    """Run a reader on all files, in the workers of a pool."""
    running = [pool.submit(function, paths[start : start + chunk]) for start in range(0, len(paths), chunk)]
    for future in running:
        future.result()
