"""A real Dask scheduler with two workers on the loopback, for the tests of a module.

Each is a separate process on a free port. Workers may be killed: their nannies restart them, as on a cluster.
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
    """A running cluster: the address of its scheduler, and the folder with the logs of its processes."""

    address: str
    folder: Path


@contextmanager
def run_cluster(folder: Path, workers: int = 2) -> Iterator[DaskCluster]:
    """Run a cluster until the end of the block."""
    scheduler_file = folder / "scheduler.json"
    with ExitStack() as processes:
        # --idle-timeout and --death-timeout end the processes after a killed test run
        scheduler = ["scheduler", "--port", "0", "--idle-timeout", "600s", "--scheduler-file", str(scheduler_file)]
        processes.enter_context(_run_process(folder, "scheduler", scheduler))
        address = _wait_for_address(scheduler_file)
        for number in range(workers):
            worker = ["worker", address, "--nthreads", "1", "--memory-limit", "0", "--death-timeout", "60"]
            worker += ["--local-directory", str(folder), "--name", f"worker-{number}"]
            processes.enter_context(_run_process(folder, f"worker-{number}", worker))
        yield DaskCluster(address, folder)


@contextmanager
def _run_process(folder: Path, name: str, arguments: list[str]) -> Iterator[None]:
    command = [sys.executable, "-m", "dask", *arguments, "--host", "127.0.0.1", "--no-dashboard"]
    # one repetition of a task whose worker died, instead of three: each needs a new worker, which imports everything
    failures = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | failures
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


def _wait_for_address(scheduler_file: Path) -> str:
    """The address that the scheduler writes to a file when it listens."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        try:
            return str(json.loads(scheduler_file.read_text(encoding="utf-8"))["address"])
        except (FileNotFoundError, json.JSONDecodeError):
            time.sleep(0.05)
    pytest.fail(
        f"the Dask scheduler did not start: {(scheduler_file.parent / 'scheduler.log').read_text()}", pytrace=False
    )


@pytest.fixture(scope="module")
def dask_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """The cluster, shared by the tests of a module."""
    with run_cluster(tmp_path_factory.mktemp("dask")) as cluster:
        yield cluster
