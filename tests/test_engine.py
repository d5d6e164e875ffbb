"""The engine: the same results in this process and over others, and one item's failure is its own."""

import os
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from dicom_etl.engine import Done, Engine
from tests import engine_work as work

SERIAL = Engine("serial")
PROCESSES = Engine("processes", 2)
ENGINES = pytest.mark.parametrize("engine", [SERIAL, PROCESSES], ids=["serial", "processes"])


def values(done: list[Done[int, int]]) -> dict[int, int]:
    """The value by item, of the items that have one."""
    return {one.item: one.value for one in done if one.value is not None}


@ENGINES
def test_every_item_has_its_result(engine: Engine) -> None:
    done = list(engine.map(work.double, [1, 2, 3]))
    assert sorted((one.item, one.value, one.error) for one in done) == [(1, 2, None), (2, 4, None), (3, 6, None)]


@ENGINES
def test_many_items_are_all_done_once(engine: Engine) -> None:
    done = list(engine.map(work.double, range(500)))
    assert len(done) == 500
    assert values(done) == {item: 2 * item for item in range(500)}


@ENGINES
@pytest.mark.parametrize("small", [False, True])
def test_no_items_have_no_results(engine: Engine, small: bool) -> None:
    assert list(engine.map(work.double, [], small=small)) == []


@ENGINES
def test_an_item_that_raises_fails_alone(engine: Engine) -> None:
    done = list(engine.map(work.double_but_three, [1, 2, 3, 4, 5]))
    assert values(done) == {1: 2, 2: 4, 4: 8, 5: 10}
    (failed,) = [one for one in done if one.error]
    assert (failed.item, failed.value, type(failed.error), str(failed.error)) == (3, None, ValueError, "three")


def test_an_item_that_kills_its_worker_fails_alone() -> None:
    done = list(PROCESSES.map(work.killed_by_three, range(30)))
    assert values(done) == {item: 2 * item for item in range(30) if item != 3}
    (failed,) = [one for one in done if one.error]
    assert failed.item == 3
    assert isinstance(failed.error, BrokenProcessPool)


def test_an_item_whose_worker_was_killed_for_another_reason_is_done_when_it_goes_again(tmp_path: Path) -> None:
    marker = str(tmp_path / "killed")
    done = list(PROCESSES.map(work.killed_once, [(item, marker) for item in range(10)]))
    assert sorted((one.item[0], one.value) for one in done) == [(item, 2 * item) for item in range(10)]
    assert (tmp_path / "killed").exists()


def test_an_error_that_cannot_travel_fails_its_item_alone() -> None:
    done = list(PROCESSES.map(work.fails_untold, range(6)))
    assert values(done) == {0: 0, 1: 2, 2: 4, 4: 8, 5: 10}
    assert [one.item for one in done if one.error] == [3]


def test_a_result_that_cannot_travel_fails_its_item_alone() -> None:
    done = list(PROCESSES.map(work.unpicklable, [1, 2, 3]))
    assert sorted(one.item for one in done if one.error is None) == [1, 2]
    assert [one.item for one in done if one.error] == [3]


def test_items_run_in_other_processes() -> None:
    done = list(PROCESSES.map(work.process_id, range(8)))
    assert os.getpid() not in {one.value for one in done}


@pytest.mark.parametrize(
    ("engine", "items", "small"),
    [(SERIAL, 3, False), (PROCESSES, 3, True), (PROCESSES, 1, False), (Engine("processes", 1), 3, False)],
    ids=["serial", "small", "one item", "one worker"],
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
from tests import engine_work as work
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
