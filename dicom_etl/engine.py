"""`Engine.map`: runs a function over items in this process, in local processes, or on the workers of a Dask cluster.

The function gets one item at a time, and a failure concerns only its item: an error that the function raises is part
of the item's result, and so is the death of its worker.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any, Generic, TypeVar

Progress = Callable[[str, int, int], None]  # text, number of finished steps, number of steps

Item = TypeVar("Item")
Value = TypeVar("Value")

_QUEUED_PER_WORKER = 4  # enough to keep a worker busy, and few enough to need little memory
_MIN_TASK_WEIGHT = 100  # of one Dask task: each costs the scheduler 1 to 2 ms
_MAX_TASK_WEIGHT = 1000
_TASKS_PER_WORKER = 16  # if that makes them heavy enough: so that all workers finish at about the same time
WORKER_WAIT_SECONDS = 60.0  # how long a scheduler that has lost all its workers may be without one


class EngineError(Exception):
    """The engine cannot run; the text says what to do."""


class WorkerDiedError(Exception):
    """The worker of an item died, also when it had no other item."""

    def __init__(self) -> None:
        super().__init__("its worker died (killed, out of memory, or crashed)")


@dataclass(frozen=True)
class ItemResult(Generic[Item, Value]):
    """The result of one item: a value, or the error that the function raised."""

    item: Item
    value: Value | None
    error: BaseException | None = None


@dataclass(frozen=True)
class Engine:
    """Where work runs.

    With `dask` and no scheduler, each call of `map` starts a cluster on this machine and ends it. Workers on other
    machines open the files of the datasets and write the tables themselves: both must be accessible to all workers
    under the same path or URL. Workers need the same version of this package, and should have one thread each (`dask
    worker --nthreads 1 --nworkers N`), since the tasks of one process run one after another.

    Attributes:
        kind: `serial`, `processes` or `dask`.
        workers: number of processes; not used if there is a scheduler.
        scheduler: address of a Dask scheduler, such as `tcp://host:8786`.
    """

    kind: str = "serial"
    workers: int = 1
    scheduler: str | None = None

    def map(
        self,
        function: Callable[[Item], Value],
        items: Sequence[Item],
        *,
        small: bool = False,
        weight: Callable[[Item], int] = lambda _: _MIN_TASK_WEIGHT,
    ) -> Iterator[ItemResult[Item, Value]]:
        """Run a function over items; yields each result as soon as it is available, in any order.

        Args:
            function: a function of a module, so that other processes can import it.
            items: the arguments of its calls.
            small: whether all of the work is too little to start processes for it.
            weight: the approximate number of files of an item; light items share a Dask task.

        Raises:
            EngineError: raised while results are consumed: there are no workers, or the connection to them is lost.
        """
        is_single = self.workers == 1 and not (self.kind == "dask" and self.scheduler)
        if self.kind == "serial" or is_single or small or len(items) < 2:
            return (_run_item(function, item) for item in items)
        if self.kind == "dask":
            return _map_on_dask(function, items, self, weight)
        return _map_in_processes(function, items, min(self.workers, len(items)))


def _run_item(function: Callable[[Item], Value], item: Item) -> ItemResult[Item, Value]:
    try:
        return ItemResult(item, function(item))
    except Exception as error:  # noqa: BLE001  (the calling stage turns it into a finding of the unit)
        return ItemResult(item, None, error)


# -- in a worker ------------------------------------------------------------------------------------------------------

_TASK_LOCK = threading.Lock()  # a Dask worker may have several threads; reading is not thread-safe, and slower in them


def _run_batch(function: Callable[[Item], Value], batch: list[Item]) -> list[bytes]:
    """Run a function over a batch of items; returns value and error of each item, pickled separately."""
    with _TASK_LOCK:
        return [_pickle_result(_run_item(function, item)) for item in batch]


def _run_pickled_batch(arguments: bytes) -> list[bytes]:
    """As `_run_batch`; its arguments are pickled, so that the scheduler does not unpickle them."""
    return _run_batch(*pickle.loads(arguments))


def _pickle_result(result: ItemResult[Any, Any]) -> bytes:
    """Value and error of a result. If they cannot be pickled, the text of the error replaces them."""
    try:
        pickled = pickle.dumps((result.value, result.error))
        if result.error:  # some errors can be pickled, but not unpickled
            pickle.loads(pickled)
    except Exception as pickle_error:  # noqa: BLE001  (pickling an object may raise any error)
        error = result.error or pickle_error
        return pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}")))
    return pickled


# -- local processes --------------------------------------------------------------------------------------------------


def _map_in_processes(
    function: Callable[[Item], Value], items: Sequence[Item], workers: int
) -> Iterator[ItemResult[Item, Value]]:
    """Run items in a pool. If a worker dies, a new pool replaces it, and its items are repeated one at a time."""
    queue, lost_items = deque(items), deque[Item]()
    while queue:
        for result in _run_in_pool(function, queue, workers, workers * _QUEUED_PER_WORKER):
            if isinstance(result.error, WorkerDiedError):
                lost_items.append(result.item)
            else:
                yield result
    while lost_items:
        yield from _run_in_pool(function, lost_items, 1, 1)


def _run_in_pool(
    function: Callable[[Item], Value], queue: deque[Item], workers: int, max_running: int
) -> Iterator[ItemResult[Item, Value]]:
    """Run the items of the queue, and remove them from it, until it is empty or the pool is broken."""
    context = multiprocessing.get_context("spawn")  # a forked copy of a process with threads can hang
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent, initargs=(os.getpid(),))
    running: dict[Future[list[bytes]], Item] = {}
    try:
        while _submit_items(pool, function, queue, running, max_running):
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                yield from _get_results([running.pop(future)], future, BrokenProcessPool)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _get_results(batch: Sequence[Item], future: Any, death: type[Exception]) -> Iterator[ItemResult[Item, Any]]:
    """The results of the items of a finished task; `death` is the exception for the death of its worker."""
    error = future.exception()
    if error is None:
        for item, pickled in zip(batch, future.result(), strict=True):
            yield ItemResult(item, *pickle.loads(pickled))
    else:
        yield from (ItemResult(item, None, WorkerDiedError() if isinstance(error, death) else error) for item in batch)


def _submit_items(
    pool: ProcessPoolExecutor,
    function: Callable[[Item], Value],
    queue: deque[Item],
    running: dict[Future[list[bytes]], Item],
    max_running: int,
) -> bool:
    """Submit items of the queue while there are fewer than `max_running`; returns whether any is running."""
    with suppress(BrokenProcessPool):  # items that were not submitted stay in the queue; the running ones will fail
        while queue and len(running) < max_running:
            with _delay_interrupts():
                running[pool.submit(_run_batch, function, [queue[0]])] = queue[0]
            queue.popleft()
    return bool(running)


@contextmanager
def _delay_interrupts() -> Iterator[None]:
    """Delay Ctrl-C while a worker is started, and start the worker with SIGINT blocked.

    Otherwise Ctrl-C would end a worker that is importing modules, or is only half started, with a traceback.
    """
    resource_tracker.ensure_running()  # when the first worker starts, it would unblock SIGINT
    arrived: list[Any] = []
    is_main = threading.current_thread() is threading.main_thread()  # the only thread that Python interrupts
    handler = signal.signal(signal.SIGINT, lambda *details: arrived.append(details)) if is_main else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by the worker
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if is_main:
            signal.signal(signal.SIGINT, handler)
        if arrived and callable(handler):
            handler(*arrived[0])


def _die_with_parent(parent: int) -> None:
    """End this worker when its parent dies: it must not write while a next run does (Linux: PR_SET_PDEATHSIG)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before the call of prctl
            os._exit(1)


# -- Dask -------------------------------------------------------------------------------------------------------------


def _map_on_dask(
    function: Callable[[Item], Value], items: Sequence[Item], engine: Engine, weight: Callable[[Item], int]
) -> Iterator[ItemResult[Item, Value]]:
    """Run batches of items on the workers of a cluster.

    The scheduler repeats a batch whose worker dies as often as `allowed-failures` permits; then its items are repeated
    one at a time, so that an item that kills its worker does not fail the others.
    """
    with _connect(engine) as client:
        threads = _count_threads(client)
        batches, lost_items = deque(_make_batches(items, weight, threads)), deque[list[Item]]()
        for result in _run_batches(client, function, batches, threads * _QUEUED_PER_WORKER):
            if isinstance(result.error, WorkerDiedError):
                lost_items.append([result.item])
            else:
                yield result
        yield from _run_batches(client, function, lost_items, 1)


def _make_batches(items: Sequence[Item], weight: Callable[[Item], int], workers: int) -> Iterator[list[Item]]:
    """Batches of consecutive items that are heavy enough for one task."""
    average_weight = sum(weight(item) for item in items) // (workers * _TASKS_PER_WORKER)
    task_weight = min(max(average_weight, _MIN_TASK_WEIGHT), _MAX_TASK_WEIGHT)
    batch: list[Item] = []
    batch_weight = 0
    for item in items:
        batch.append(item)
        batch_weight += max(weight(item), 1)
        if batch_weight >= task_weight:
            yield batch
            batch, batch_weight = [], 0
    if batch:
        yield batch


@contextmanager
def _connect(engine: Engine) -> Iterator[Any]:
    """A client of the scheduler, or of a local cluster that ends with the client."""
    try:
        import dask  # noqa: PLC0415  (an optional extra)
        from distributed import Client, LocalCluster  # noqa: PLC0415
    except ImportError:
        raise EngineError(
            "the engine dask needs the package distributed: pip install 'dicom-etl[dask]', or choose another engine"
        ) from None
    if engine.scheduler:
        _check_scheduler(engine.scheduler)
        with Client(engine.scheduler, set_as_default=False) as client:
            yield client
        return
    # no failures allowed: `_map_on_dask` repeats items of a dead worker; no memory limit: Dask pauses or kills workers
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(
            n_workers=engine.workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # None would take the default port, which another cluster may use
            scheduler_kwargs={"dashboard": False},
            memory_limit=0,
            silence_logs="CRITICAL",
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _check_scheduler(scheduler: str) -> None:
    """Check that the address accepts connections; a Dask client would need half a minute, and print tracebacks."""
    from distributed.comm import get_address_host_port  # noqa: PLC0415

    try:
        socket.create_connection(get_address_host_port(scheduler), timeout=10).close()
    except (OSError, ValueError) as error:
        raise EngineError(f"no Dask scheduler answers at {scheduler}: {error}") from None


def _count_threads(client: Any) -> int:
    """The number of tasks that the workers can run at once; waits until there is a worker."""
    try:
        client.wait_for_workers(1, timeout=WORKER_WAIT_SECONDS)
    except TimeoutError:
        address = client.scheduler.address
        raise EngineError(
            f"the Dask scheduler {address} has no worker: start one with `dask worker {address}`"
        ) from None
    return sum(client.nthreads().values())


def _run_batches(
    client: Any, function: Callable[[Item], Value], queue: deque[list[Item]], max_running: int
) -> Iterator[ItemResult[Item, Value]]:
    """Run batches, `max_running` at a time, until the queue is empty."""
    from distributed import KilledWorker  # noqa: PLC0415

    running: dict[Any, list[Item]] = {}
    try:
        while queue or running:
            while queue and len(running) < max_running:
                yield from _submit_batch(client, function, queue.popleft(), running)
            for future in _wait_for_tasks(client, list(running)) if running else ():
                yield from _get_results(running.pop(future), future, KilledWorker)
    except CancelledError:
        raise EngineError("the connection to the Dask scheduler is lost; run again to continue") from None
    finally:
        client.cancel(list(running))


def _submit_batch(
    client: Any, function: Callable[[Item], Value], batch: list[Item], running: dict[Any, list[Item]]
) -> Iterator[ItemResult[Item, Value]]:
    """Submit a batch; if it cannot be pickled, yields its items as failed."""
    try:
        arguments = pickle.dumps((function, batch))
    except Exception as error:  # noqa: BLE001  (pickling an object may raise any error)
        yield from (ItemResult(item, None, error) for item in batch)
    else:
        running[client.submit(_run_pickled_batch, arguments, pure=False)] = batch


def _wait_for_tasks(client: Any, running: list[Any]) -> list[Any]:
    """Wait until a task is finished; returns the finished ones, or none if that takes long and there are workers."""
    from distributed import wait as wait_for_futures  # noqa: PLC0415

    try:
        with client.as_current():
            return list(wait_for_futures(running, timeout=WORKER_WAIT_SECONDS, return_when="FIRST_COMPLETED").done)
    except TimeoutError:
        _count_threads(client)  # raises if there is no worker
        return []
