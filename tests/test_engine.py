"""The engine: the same results in this process and over others, and one item's failure is its own."""

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
from tests.servers.dask_cluster import DaskCluster, running_cluster
from tests.support import engine_work as work

ROOT = Path(__file__).parents[1]
SERIAL = Engine("serial")
PROCESSES = Engine("processes", 2)
LOCAL_CLUSTER = Engine("dask", 2)


@pytest.fixture(params=["serial", "processes", "dask"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Each kind of engine; that of Dask over a running scheduler."""
    return SERIAL if request.param == "serial" else engine_of(request)


@pytest.fixture(params=["processes", "dask"])
def spread(request: pytest.FixtureRequest) -> Engine:
    """The engines that work in other processes."""
    return engine_of(request)


def engine_of(request: pytest.FixtureRequest) -> Engine:
    return PROCESSES if request.param == "processes" else over(request.getfixturevalue("dask_cluster"))


def over(cluster: DaskCluster) -> Engine:
    return Engine("dask", 1, cluster.address)  # the scheduler knows better how many workers there are


def values(done: list[ItemResult[int, int]]) -> dict[int, int]:
    """The value by item, of the items that have one."""
    return {one.item: one.value for one in done if one.value is not None}


def test_every_item_has_its_result(engine: Engine) -> None:
    done = list(engine.map(work.double, [1, 2, 3]))
    assert sorted((one.item, one.value, one.error) for one in done) == [(1, 2, None), (2, 4, None), (3, 6, None)]


def test_many_items_are_all_done_once(engine: Engine) -> None:
    done = list(engine.map(work.double, range(500)))
    assert len(done) == 500
    assert values(done) == {item: 2 * item for item in range(500)}


@pytest.mark.parametrize("small", [False, True])
def test_no_items_have_no_results(engine: Engine, small: bool) -> None:
    assert list(engine.map(work.double, [], small=small)) == []


def test_an_item_that_raises_fails_alone(engine: Engine) -> None:
    done = list(engine.map(work.double_but_three, [1, 2, 3, 4, 5]))
    assert values(done) == {1: 2, 2: 4, 4: 8, 5: 10}
    (failed,) = [one for one in done if one.error]
    assert (failed.item, failed.value, type(failed.error), str(failed.error)) == (3, None, ValueError, "three")


def test_an_item_that_kills_its_worker_fails_alone(spread: Engine) -> None:
    done = list(spread.map(work.killed_by_three, range(30)))
    assert values(done) == {item: 2 * item for item in range(30) if item != 3}
    (failed,) = [one for one in done if one.error]
    assert failed.item == 3
    assert isinstance(failed.error, WorkerDiedError)
    assert str(failed.error) == "its worker died (killed, out of memory, or crashed)"


def test_an_item_whose_worker_was_killed_for_another_reason_is_done_when_it_goes_again(
    spread: Engine, tmp_path: Path
) -> None:
    marker = str(tmp_path / "killed")
    done = list(spread.map(work.killed_once, [(item, marker) for item in range(10)]))
    assert sorted((one.item[0], one.value) for one in done) == [(item, 2 * item) for item in range(10)]
    assert (tmp_path / "killed").exists()


def test_an_error_that_cannot_travel_fails_its_item_alone(spread: Engine) -> None:
    done = list(spread.map(work.fails_untold, range(6)))
    assert values(done) == {0: 0, 1: 2, 2: 4, 4: 8, 5: 10}
    assert [(one.item, str(one.error)) for one in done if one.error] == [(3, "TwoPartError: three")]


def test_a_result_that_cannot_travel_fails_its_item_alone(spread: Engine) -> None:
    done = list(spread.map(work.unpicklable, [1, 2, 3]))
    assert sorted(one.item for one in done if one.error is None) == [1, 2]
    assert [one.item for one in done if one.error] == [3]


def test_an_item_that_cannot_travel_fails_alone(spread: Engine) -> None:
    done = list(spread.map(work.process_id, [1, lambda: 2, 3]))  # type: ignore[list-item]
    assert sorted(one.item for one in done if one.error is None) == [1, 3]
    assert len(done) == 3


def test_items_run_in_other_processes(spread: Engine) -> None:
    done = list(spread.map(work.process_id, range(8)))
    assert os.getpid() not in {one.value for one in done}


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
def test_no_process_is_started_where_it_would_gain_nothing(engine: Engine, items: int, small: bool) -> None:
    done = list(engine.map(work.process_id, range(items), small=small))
    assert {one.value for one in done} == {os.getpid()}


def test_a_consumer_that_stops_early_leaves_no_worker_behind() -> None:
    results = PROCESSES.map(work.process_id, range(100))
    worker = next(results).value
    assert worker is not None
    results.close()  # type: ignore[attr-defined]  # a generator
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_an_interrupt_is_the_parents_to_decide() -> None:
    assert {one.value for one in PROCESSES.map(work.ignores_interrupts, range(4))} == {True}


_KILLED_RUN = """
import os, signal, sys
from dicom_etl.engine import Engine
from tests.support import engine_work as work
if __name__ == "__main__":
    for done in Engine("processes", 2).map(work.process_id, range(4)):
        print(done.value, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_die_with_a_killed_run(tmp_path: Path) -> None:
    script = tmp_path / "killed_run.py"
    script.write_text(_KILLED_RUN)
    root = Path(__file__).parents[1]
    # the workers hold its standard output: that it can be read to the end means that they are gone
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert len(done.stdout.split()) == 1


def test_lost_items_go_one_by_one_in_a_pool_that_lasts_until_it_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    pools: list[int] = []

    class Noted(ProcessPoolExecutor):
        def __init__(self, workers: int, **options: Any) -> None:
            pools.append(workers)
            super().__init__(workers, **options)

    monkeypatch.setattr("dicom_etl.engine.ProcessPoolExecutor", Noted)
    done = list(
        PROCESSES.map(work.killed_by_three, range(3, 11))
    )  # all eight are on their way when the first one kills
    assert [one.item for one in done if one.error] == [3]
    assert len(done) == 8
    assert pools in ([2, 1], [2, 1, 1])  # the third where others are lost after the one that breaks the second


# -- Dask -------------------------------------------------------------------------------------------------------------


def test_light_items_travel_together(dask_cluster: DaskCluster) -> None:
    done = list(over(dask_cluster).map(work.batch_of, range(450), weight=lambda _: 1))
    assert len({one.value for one in done}) == 5  # tasks of 100 items, the last of 50


def test_a_heavy_item_travels_alone(dask_cluster: DaskCluster) -> None:
    done = list(over(dask_cluster).map(work.batch_of, range(6), weight=lambda _: 5000))
    assert len({one.value for one in done}) == 6


def test_an_item_of_a_batch_that_raises_fails_alone(dask_cluster: DaskCluster) -> None:
    done = list(over(dask_cluster).map(work.double_but_three, range(50), weight=lambda _: 1))
    assert values(done) == {item: 2 * item for item in range(50) if item != 3}


def test_an_item_of_a_batch_that_kills_its_worker_fails_alone(dask_cluster: DaskCluster) -> None:
    done = list(over(dask_cluster).map(work.killed_by_three, range(50), weight=lambda _: 10))
    assert values(done) == {item: 2 * item for item in range(50) if item != 3}
    assert [(one.item, type(one.error)) for one in done if one.error] == [(3, WorkerDiedError)]


def test_a_worker_killed_in_the_middle_costs_only_work_done_again(dask_cluster: DaskCluster) -> None:
    done = []
    for one in over(dask_cluster).map(work.slow_process_id, range(60)):
        if not done:
            os.kill(one.value, signal.SIGKILL)
        done.append(one)
    assert [one.error for one in done] == [None] * 60
    assert sorted(one.item for one in done) == list(range(60))


def test_a_consumer_that_stops_early_leaves_the_cluster_at_peace(dask_cluster: DaskCluster) -> None:
    results = over(dask_cluster).map(work.process_id, range(100))
    next(results)
    results.close()  # type: ignore[attr-defined]  # a generator
    assert len(list(over(dask_cluster).map(work.double, range(10)))) == 10


def test_a_cluster_of_its_own_is_started_for_the_time_of_a_map() -> None:
    done = list(LOCAL_CLUSTER.map(work.process_id, range(20)))
    workers = {one.value for one in done if one.value is not None}
    assert os.getpid() not in workers
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


def test_in_a_cluster_of_its_own_an_item_that_kills_its_worker_fails_alone() -> None:
    done = list(LOCAL_CLUSTER.map(work.killed_by_three, range(30)))
    assert values(done) == {item: 2 * item for item in range(30) if item != 3}
    assert [(one.item, type(one.error)) for one in done if one.error] == [(3, WorkerDiedError)]


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nowhere"])
def test_a_scheduler_that_does_not_answer_is_named(address: str) -> None:
    with pytest.raises(EngineError, match=f"no Dask scheduler answers at {address}: "):
        list(Engine("dask", 2, address).map(work.double, range(3)))


def test_a_scheduler_without_workers_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicom_etl.engine._PATIENCE", 0.5)
    with (
        running_cluster(tmp_path, workers=0) as cluster,
        pytest.raises(EngineError, match=rf"has no worker: start one with `dask worker {cluster.address}`"),
    ):
        list(over(cluster).map(work.double, range(3)))


def test_a_scheduler_that_ends_in_the_middle_ends_the_map_with_a_sentence(tmp_path: Path) -> None:
    with ExitStack() as running:
        cluster = running.enter_context(running_cluster(tmp_path))
        results = over(cluster).map(work.slow_process_id, range(1000))
        next(results)
        running.close()
        with pytest.raises(EngineError, match="the connection to the Dask scheduler is lost"):
            list(results)


def test_without_the_extra_the_engine_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(EngineError, match=r"pip install 'dicom-etl\[dask\]'"):
        list(LOCAL_CLUSTER.map(work.double, range(3)))


_INTERRUPTED = """
import signal, sys, time
from dicom_etl.engine import Engine
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored in the background
    print("ready", flush=True)
    try:
        list(Engine("processes", 2).map(time.sleep, [0.5] * 4))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.mark.parametrize("pause", [0.0, 0.05, 0.1, 0.2, 0.4])
def test_ctrl_c_is_the_parents_alone_whenever_it_comes(tmp_path, pause):
    """As from a terminal: all processes of the group get it, also workers that are only just starting."""
    script = tmp_path / "script.py"
    script.write_text(_INTERRUPTED)
    started = subprocess.Popen(
        [sys.executable, script],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    time.sleep(pause)
    os.killpg(started.pid, signal.SIGINT)
    out, err = started.communicate(timeout=60)

    assert (started.returncode, out, err) == (0, "interrupted\n", "")
