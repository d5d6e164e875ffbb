"""The engine: all kinds give the same results, and the failure of an item concerns only that item."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from dicom_etl.engine import Engine, EngineError, ItemResult, WorkerDiedError
from tests.servers.dask_cluster import DaskCluster, run_cluster
from tests.support import worker_functions as work

ROOT = Path(__file__).parents[1]
SERIAL = Engine("serial")
PROCESSES = Engine("processes", 2)
LOCAL_CLUSTER = Engine("dask", 2)


@pytest.fixture(params=["serial", "processes", "dask"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """An engine of each kind; that of Dask uses a running scheduler."""
    return SERIAL if request.param == "serial" else _make_parallel(request)


@pytest.fixture(params=["processes", "dask"])
def parallel(request: pytest.FixtureRequest) -> Engine:
    """An engine of each kind that uses other processes."""
    return _make_parallel(request)


def _make_parallel(request: pytest.FixtureRequest) -> Engine:
    return PROCESSES if request.param == "processes" else engine_of(request.getfixturevalue("dask_cluster"))


def engine_of(cluster: DaskCluster) -> Engine:
    """An engine whose number of workers is that of the cluster, whatever its setting."""
    return Engine("dask", 1, cluster.address)


def values(results: list[ItemResult[int, int]]) -> dict[int, int]:
    """The value by item, of the items that have one."""
    return {result.item: result.value for result in results if result.value is not None}


def doubled_except_three(items: range) -> dict[int, int]:
    return {item: 2 * item for item in items if item != 3}


class TestResults:
    def test_every_item_has_its_result(self, engine: Engine) -> None:
        results = [(result.item, result.value, result.error) for result in engine.map(work.double, [1, 2, 3])]
        assert sorted(results) == [(1, 2, None), (2, 4, None), (3, 6, None)]

    def test_each_of_many_items_has_one_result(self, engine: Engine) -> None:
        results = list(engine.map(work.double, range(500)))
        assert len(results) == 500
        assert values(results) == {item: 2 * item for item in range(500)}

    @pytest.mark.parametrize("small", [False, True])
    def test_no_items_have_no_results(self, engine: Engine, small: bool) -> None:
        assert list(engine.map(work.double, [], small=small)) == []

    def test_items_run_in_other_processes(self, parallel: Engine) -> None:
        processes = {result.value for result in parallel.map(work.get_process_id, range(8))}
        assert os.getpid() not in processes

    @pytest.mark.parametrize(
        ("engine", "items", "small"),
        [
            (SERIAL, 3, False),
            (PROCESSES, 3, True),
            (PROCESSES, 1, False),
            (Engine("processes", 1), 3, False),
            (Engine("dask", 1), 3, False),
        ],
        ids=["serial", "small", "one item", "one worker", "a cluster of one worker"],
    )
    def test_no_process_is_started_without_a_benefit(self, engine: Engine, items: int, small: bool) -> None:
        processes = {result.value for result in engine.map(work.get_process_id, range(items), small=small)}
        assert processes == {os.getpid()}


class TestFailures:
    """The failure of an item leaves the results of the others as they are."""

    def test_an_item_that_raises(self, engine: Engine) -> None:
        results = list(engine.map(work.double_except_three, [1, 2, 3, 4, 5]))
        assert values(results) == {1: 2, 2: 4, 4: 8, 5: 10}
        [failed] = [result for result in results if result.error]
        assert (failed.item, failed.value, type(failed.error), str(failed.error)) == (3, None, ValueError, "three")

    def test_an_item_that_kills_its_worker(self, parallel: Engine) -> None:
        results = list(parallel.map(work.die_at_three, range(30)))
        assert values(results) == doubled_except_three(range(30))
        [failed] = [result for result in results if result.error]
        assert failed.item == 3
        assert isinstance(failed.error, WorkerDiedError)
        assert str(failed.error) == "its worker died (killed, out of memory, or crashed)"

    def test_an_item_whose_worker_dies_once_is_repeated(self, parallel: Engine, tmp_path: Path) -> None:
        marker = str(tmp_path / "killed")
        results = list(parallel.map(work.die_once_at_three, [(item, marker) for item in range(10)]))
        numbers = sorted((result.item[0], result.value) for result in results)
        assert numbers == [(item, 2 * item) for item in range(10)]
        assert (tmp_path / "killed").exists()

    def test_an_error_that_cannot_be_unpickled(self, parallel: Engine) -> None:
        results = list(parallel.map(work.raise_unpicklable_at_three, range(6)))
        assert values(results) == {0: 0, 1: 2, 2: 4, 4: 8, 5: 10}
        errors = [(result.item, str(result.error)) for result in results if result.error]
        assert errors == [(3, "TwoPartError: three")]

    def test_a_value_that_cannot_be_pickled(self, parallel: Engine) -> None:
        results = list(parallel.map(work.return_unpicklable_at_three, [1, 2, 3]))
        assert sorted(result.item for result in results if result.error is None) == [1, 2]
        assert [result.item for result in results if result.error] == [3]

    def test_an_item_that_cannot_be_pickled(self, parallel: Engine) -> None:
        results = list(parallel.map(work.get_process_id, [1, lambda: 2, 3]))  # type: ignore[list-item]
        assert sorted(result.item for result in results if result.error is None) == [1, 3]
        assert len(results) == 3


_KILLED_RUN = """
import os, signal, sys
from dicom_etl.engine import Engine
from tests.support import worker_functions as work
if __name__ == "__main__":
    for result in Engine("processes", 2).map(work.get_process_id, range(4)):
        print(result.value, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""

_INTERRUPTED_RUN = """
import signal, sys, time
from dicom_etl.engine import Engine
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored in the background
    print("ready", flush=True)
    try:
        list(Engine("processes", 2).map(time.sleep, [0.5] * 4))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


class TestProcesses:
    def test_no_worker_outlives_a_consumer_that_stops_early(self) -> None:
        results = PROCESSES.map(work.get_process_id, range(100))
        worker = next(results).value
        assert worker is not None
        results.close()  # type: ignore[attr-defined]  # a generator
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)

    def test_workers_ignore_interrupts(self) -> None:
        assert {result.value for result in PROCESSES.map(work.is_ignoring_interrupts, range(4))} == {True}

    def test_workers_die_with_a_killed_run(self, tmp_path: Path) -> None:
        script = tmp_path / "killed_run.py"
        script.write_text(_KILLED_RUN)
        # the workers inherit its standard output: `run` reads that to its end, and so returns when they are dead
        run = subprocess.run(
            [sys.executable, str(script)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert run.returncode == -signal.SIGKILL
        assert len(run.stdout.split()) == 1

    @pytest.mark.parametrize("pause", [0.0, 0.05, 0.1, 0.2, 0.4])
    def test_only_the_parent_handles_ctrl_c(self, tmp_path: Path, pause: float) -> None:
        """As from a terminal: all processes of the group get the signal, also workers that are just starting."""
        script = tmp_path / "script.py"
        script.write_text(_INTERRUPTED_RUN)
        process = subprocess.Popen(
            [sys.executable, script],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(pause)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)

        assert (process.returncode, out, err) == (0, "interrupted\n", "")

    def test_lost_items_are_repeated_one_by_one_in_one_pool(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pools: list[int] = []

        class RecordedPool(ProcessPoolExecutor):
            def __init__(self, workers: int, **options: Any) -> None:
                pools.append(workers)
                super().__init__(workers, **options)

        monkeypatch.setattr("dicom_etl.engine.ProcessPoolExecutor", RecordedPool)
        # all eight are submitted when the first one kills its worker
        results = list(PROCESSES.map(work.die_at_three, range(3, 11)))
        assert [result.item for result in results if result.error] == [3]
        assert len(results) == 8
        assert pools in ([2, 1], [2, 1, 1])  # a third one if others are lost after the item that breaks the second


class TestDaskScheduler:
    """A scheduler that runs before the engine uses it."""

    def test_light_items_share_a_task(self, dask_cluster: DaskCluster) -> None:
        results = engine_of(dask_cluster).map(work.get_dask_task, range(450), weight=lambda _: 1)
        assert len({result.value for result in results}) == 5  # tasks of 100 items, the last of 50

    def test_a_heavy_item_has_its_own_task(self, dask_cluster: DaskCluster) -> None:
        results = engine_of(dask_cluster).map(work.get_dask_task, range(6), weight=lambda _: 5000)
        assert len({result.value for result in results}) == 6

    def test_an_item_of_a_batch_that_raises(self, dask_cluster: DaskCluster) -> None:
        results = list(engine_of(dask_cluster).map(work.double_except_three, range(50), weight=lambda _: 1))
        assert values(results) == doubled_except_three(range(50))

    def test_an_item_of_a_batch_that_kills_its_worker(self, dask_cluster: DaskCluster) -> None:
        results = list(engine_of(dask_cluster).map(work.die_at_three, range(50), weight=lambda _: 10))
        assert values(results) == doubled_except_three(range(50))
        errors = [(result.item, type(result.error)) for result in results if result.error]
        assert errors == [(3, WorkerDiedError)]

    def test_the_items_of_a_killed_worker_are_repeated(self, dask_cluster: DaskCluster) -> None:
        results: list[ItemResult[int, int]] = []
        for result in engine_of(dask_cluster).map(work.get_process_id_slowly, range(60)):
            if not results:
                assert result.value is not None
                os.kill(result.value, signal.SIGKILL)
            results.append(result)
        assert [result.error for result in results] == [None] * 60
        assert sorted(result.item for result in results) == list(range(60))

    def test_the_cluster_is_usable_after_a_consumer_stops_early(self, dask_cluster: DaskCluster) -> None:
        results = engine_of(dask_cluster).map(work.get_process_id, range(100))
        next(results)
        results.close()  # type: ignore[attr-defined]  # a generator
        assert len(list(engine_of(dask_cluster).map(work.double, range(10)))) == 10

    @pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nowhere"])
    def test_an_error_names_a_scheduler_that_does_not_answer(self, address: str) -> None:
        with pytest.raises(EngineError, match=f"no Dask scheduler answers at {address}: "):
            list(Engine("dask", 2, address).map(work.double, range(3)))

    def test_an_error_names_a_scheduler_without_workers(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("dicom_etl.engine.WORKER_WAIT_SECONDS", 0.5)
        with (
            run_cluster(tmp_path, workers=0) as cluster,
            pytest.raises(EngineError, match=rf"has no worker: start one with `dask worker {cluster.address}`"),
        ):
            list(engine_of(cluster).map(work.double, range(3)))

    def test_a_scheduler_that_ends_meanwhile_is_one_sentence(self, tmp_path: Path) -> None:
        with ExitStack() as running:
            cluster = running.enter_context(run_cluster(tmp_path))
            results = engine_of(cluster).map(work.get_process_id_slowly, range(1000))
            next(results)
            running.close()
            with pytest.raises(EngineError, match="the connection to the Dask scheduler is lost; run again"):
                list(results)


class TestLocalDaskCluster:
    """A cluster that the engine starts itself."""

    def test_the_cluster_ends_with_the_map(self) -> None:
        results = list(LOCAL_CLUSTER.map(work.get_process_id, range(20)))
        workers = {result.value for result in results if result.value is not None}
        assert os.getpid() not in workers
        for worker in workers:
            with pytest.raises(ProcessLookupError):
                os.kill(worker, 0)

    def test_an_item_that_kills_its_worker_fails_alone(self) -> None:
        results = list(LOCAL_CLUSTER.map(work.die_at_three, range(30)))
        assert values(results) == doubled_except_three(range(30))
        errors = [(result.item, type(result.error)) for result in results if result.error]
        assert errors == [(3, WorkerDiedError)]

    def test_without_the_package_the_error_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "distributed", None)
        with pytest.raises(EngineError, match=r"pip install 'dicom-etl\[dask\]'"):
            list(LOCAL_CLUSTER.map(work.double, range(3)))
