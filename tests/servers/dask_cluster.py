"""A real Dask scheduler with two workers on loopback, for the tests of a module.

Each is a process of its own, on a port that the system chooses. The workers can be killed: their nannies start them
again, as on a cluster.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_START_SECONDS = 60


@dataclass(frozen=True)
class DaskCluster:
    """A running cluster: its scheduler's address, and the folder with the logs of its processes."""

    address: str
    folder: Path


@contextmanager
def running_cluster(folder: Path, workers: int = 2) -> Iterator[DaskCluster]:
    """Start a cluster that ends with the block."""
    known = folder / "scheduler.json"
    with ExitStack() as processes:
        # --idle-timeout and --death-timeout: nothing is left behind where even the tests were killed
        scheduler = ["scheduler", "--port", "0", "--idle-timeout", "600s", "--scheduler-file", str(known)]
        processes.enter_context(_process(folder, "scheduler", scheduler))
        address = _address(known)
        for number in range(workers):
            worker = ["worker", address, "--nthreads", "1", "--memory-limit", "0", "--death-timeout", "60"]
            worker += ["--local-directory", str(folder), "--name", f"worker-{number}"]
            processes.enter_context(_process(folder, f"worker-{number}", worker))
        yield DaskCluster(address, folder)


@contextmanager
def _process(folder: Path, name: str, arguments: list[str]) -> Iterator[None]:
    command = [sys.executable, "-m", "dask", *arguments, "--host", "127.0.0.1", "--no-dashboard"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _address(known: Path) -> str:
    """What the scheduler wrote down once it listens."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        try:
            return str(json.loads(known.read_text(encoding="utf-8"))["address"])
        except (FileNotFoundError, json.JSONDecodeError):
            time.sleep(0.05)
    pytest.fail(f"the Dask scheduler did not start: {(known.parent / 'scheduler.log').read_text()}", pytrace=False)


@pytest.fixture(scope="module")
def dask_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """The cluster that the tests of this module share."""
    with running_cluster(tmp_path_factory.mktemp("dask")) as cluster:
        yield cluster
