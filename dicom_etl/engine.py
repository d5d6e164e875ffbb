"""One `map` over units of work: in this process, over local processes, or over the workers of a Dask cluster.

The function runs on one item at a time and fails for that item alone: what it raises comes back as the item's
failure, and so does the death of a worker.
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
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from typing import Any, Generic, TypeVar

Progress = Callable[[str, int, int], None]  # what, done, of how many

Item = TypeVar("Item")
Value = TypeVar("Value")

_QUEUED_PER_WORKER = 4  # enough to keep a worker busy, few enough that items stay small in memory
_LEAST_WEIGHT = 100  # of one Dask task: each costs the scheduler 1 to 2 ms
_MOST_WEIGHT = 1000
_TASKS_PER_WORKER = 16  # as long as they are no lighter than that, so that workers end at about the same time
_PATIENCE = 60.0  # seconds in which a scheduler that has lost all its workers may get another


class EngineError(Exception):
    """The engine cannot work; the text says what to do."""


class WorkerDiedError(Exception):
    """The worker of an item died, again when it had the item alone."""

    def __init__(self) -> None:
        super().__init__("its worker died (killed, out of memory, or crashed)")


@dataclass(frozen=True)
class ItemResult(Generic[Item, Value]):
    """What became of one item: a value, or the error that it raised."""

    item: Item
    value: Value | None
    error: BaseException | None = None


@dataclass(frozen=True)
class Engine:
    """`serial`, `processes` with this many workers, or `dask`.

    `dask` works over the cluster of `scheduler` (such as `tcp://host:8786`), or else over a cluster of its own on this
    machine, of this many processes, for the time of each map. Workers of another machine open the files of the
    datasets and write the tables themselves: both must lie where all of them can reach them under the same path or
    URL. They need the same version of this package, and one thread each (`dask worker --nthreads 1 --nworkers N`):
    tasks of one process take turns.
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
        weight: Callable[[Item], int] = lambda _: _LEAST_WEIGHT,
    ) -> Iterator[ItemResult[Item, Value]]:
        """Run `function` over `items`; results come as they are done, in any order.

        Args:
            function: a function of a module (it travels to other processes).
            items: what it is called with, one at a time.
            small: the whole work is not worth starting processes for.
            weight: about how many files an item stands for; light items travel together where travelling is dear.

        Raises:
            EngineError: (while results are taken) there are no workers, or none any more.
        """
        alone = self.workers == 1 and not (self.kind == "dask" and self.scheduler)
        if self.kind == "serial" or alone or small or len(items) < 2:
            return (_attempt(function, item) for item in items)
        if self.kind == "dask":
            return _over_dask(function, items, self, weight)
        return _in_processes(function, items, min(self.workers, len(items)))


def _attempt(function: Callable[[Item], Value], item: Item) -> ItemResult[Item, Value]:
    try:
        return ItemResult(item, function(item))
    except Exception as error:  # noqa: BLE001  (the stage that asked turns it into a finding with its unit)
        return ItemResult(item, None, error)


# -- in a worker ------------------------------------------------------------------------------------------------------

_TURN = threading.Lock()  # a Dask worker may have several threads; reading is not made for them, and slower with them


def _run_batch(function: Callable[[Item], Value], batch: list[Item]) -> list[bytes]:
    """Run a function over a few items; returns value and error of each, pickled by itself."""
    with _TURN:
        return [_packed(_attempt(function, item)) for item in batch]


def _run_packed(packed: bytes) -> list[bytes]:
    """As `_run_batch`, with its arguments as bytes: so no scheduler looks into them."""
    return _run_batch(*pickle.loads(packed))


def _packed(done: ItemResult[Any, Any]) -> bytes:
    """A value and an error as bytes. What cannot travel is told in words, and harms no other item."""
    try:
        packed = pickle.dumps((done.value, done.error))
        if done.error:  # many an error is pickled well and cannot be made again
            pickle.loads(packed)
    except Exception as why:  # noqa: BLE001  (whatever an object's own pickling raises)
        told = done.error or why
        return pickle.dumps((None, RuntimeError(f"{type(told).__name__}: {told}")))
    return packed


def _unpacked(batch: Sequence[Item], packed: Sequence[bytes]) -> Iterator[ItemResult[Item, Any]]:
    for item, content in zip(batch, packed, strict=True):
        value, error = pickle.loads(content)
        yield ItemResult(item, value, error)


# -- local processes --------------------------------------------------------------------------------------------------


def _in_processes(
    function: Callable[[Item], Value], items: Sequence[Item], workers: int
) -> Iterator[ItemResult[Item, Value]]:
    """Items over a pool. When a worker dies the pool is replaced; the items it had go once more, one at a time."""
    queue, lost = deque(items), deque[Item]()
    while queue:
        for done in _one_pool(function, queue, workers, workers * _QUEUED_PER_WORKER):
            if isinstance(done.error, WorkerDiedError):
                lost.append(done.item)
            else:
                yield done
    while lost:
        yield from _one_pool(function, lost, 1, 1)


def _one_pool(
    function: Callable[[Item], Value], queue: deque[Item], workers: int, most: int
) -> Iterator[ItemResult[Item, Value]]:
    """Take items from the queue, `most` at a time, until it is empty or the pool is broken."""
    context = multiprocessing.get_context("spawn")  # a forked copy of a process with threads can hang
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent, initargs=(os.getpid(),))
    running: dict[Future[list[bytes]], Item] = {}
    try:
        while _refill(pool, function, queue, running, most):
            ready, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ready:
                item = running.pop(future)
                yield from _outcomes([item], future, BrokenProcessPool)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _outcomes(batch: Sequence[Item], future: Any, death: type[Exception]) -> Iterator[ItemResult[Item, Any]]:
    """What became of the items of a finished task; `death` is what its kind of workers calls their death."""
    error = future.exception()
    if error is None:
        yield from _unpacked(batch, future.result())
    else:
        yield from (ItemResult(item, None, WorkerDiedError() if isinstance(error, death) else error) for item in batch)


def _refill(
    pool: ProcessPoolExecutor,
    function: Callable[[Item], Value],
    queue: deque[Item],
    running: dict[Future[list[bytes]], Item],
    most: int,
) -> bool:
    """Keep the workers busy; False when nothing is running any more."""
    try:
        while queue and len(running) < most:
            with _uninterrupted():
                running[pool.submit(_run_batch, function, [queue[0]])] = queue[0]
            queue.popleft()
    except BrokenProcessPool:
        # what was not taken stays in the queue; what runs is failing
        return bool(running)
    return bool(running)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold Ctrl-C back while a worker is started, and start it so that it does not hear of it.

    A worker that still imports, or whose start is broken off, would die of it with a traceback.
    """
    resource_tracker.ensure_running()  # it would let SIGINT through again when the first worker is started
    arrived: list[Any] = []
    is_main = threading.current_thread() is threading.main_thread()  # the only one that Python interrupts
    handler = signal.signal(signal.SIGINT, lambda *details: arrived.append(details)) if is_main else None
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by what is started
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if is_main:
            signal.signal(signal.SIGINT, handler)
        if arrived and callable(handler):
            handler(*arrived[0])


def _die_with_parent(parent: int) -> None:
    """A worker of a killed run must not go on writing beside the run that follows (Linux: PR_SET_PDEATHSIG)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:  # it died before this worker could ask
            os._exit(1)


# -- Dask -------------------------------------------------------------------------------------------------------------


def _over_dask(
    function: Callable[[Item], Value], items: Sequence[Item], engine: Engine, weight: Callable[[Item], int]
) -> Iterator[ItemResult[Item, Value]]:
    """Batches of items over the workers of a cluster.

    A batch whose worker dies is tried again by the scheduler, as often as it allows (`allowed-failures`); then its
    items go once more, one at a time, so that the one that kills its worker is told from its neighbours.
    """
    with _client(engine) as client:
        threads = _threads(client)
        batches, lost = deque(_batches(items, weight, threads)), deque[list[Item]]()
        for done in _through(client, function, batches, threads * _QUEUED_PER_WORKER):
            if isinstance(done.error, WorkerDiedError):
                lost.append([done.item])
            else:
                yield done
        yield from _through(client, function, lost, 1)


def _batches(items: Sequence[Item], weight: Callable[[Item], int], workers: int) -> Iterator[list[Item]]:
    """Neighbours together until they weigh enough for one task."""
    share = sum(weight(item) for item in items) // (workers * _TASKS_PER_WORKER)
    enough = min(max(share, _LEAST_WEIGHT), _MOST_WEIGHT)
    batch: list[Item] = []
    heavy = 0
    for item in items:
        batch.append(item)
        heavy += max(weight(item), 1)
        if heavy >= enough:
            yield batch
            batch, heavy = [], 0
    if batch:
        yield batch


@contextmanager
def _client(engine: Engine) -> Iterator[Any]:
    """A client of the scheduler, or of a cluster that ends with it."""
    try:
        import dask  # noqa: PLC0415  (an optional extra)
        from distributed import Client, LocalCluster  # noqa: PLC0415
    except ImportError:
        raise EngineError(
            "the engine dask needs the package distributed: pip install 'dicom-etl[dask]', or choose another engine"
        ) from None
    if engine.scheduler:
        _knock(engine.scheduler)
        with Client(engine.scheduler, set_as_default=False) as client:
            yield client
        return
    # an item whose worker died goes again alone anyway; no memory limit: Dask's would pause and kill workers
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(
            n_workers=engine.workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",  # None would take the usual port of another cluster
            scheduler_kwargs={"dashboard": False},
            memory_limit=0,
            silence_logs="CRITICAL",
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def _knock(scheduler: str) -> None:
    """Whether something listens there. A client that finds nothing takes half a minute, and tracebacks, to say so."""
    from distributed.comm import get_address_host_port  # noqa: PLC0415

    try:
        socket.create_connection(get_address_host_port(scheduler), timeout=10).close()
    except (OSError, ValueError) as error:
        raise EngineError(f"no Dask scheduler answers at {scheduler}: {error}") from None


def _threads(client: Any) -> int:
    """How many tasks the workers can run at once; waits until there is a worker."""
    try:
        client.wait_for_workers(1, timeout=_PATIENCE)
    except TimeoutError:
        where = client.scheduler.address
        raise EngineError(f"the Dask scheduler {where} has no worker: start one with `dask worker {where}`") from None
    return sum(client.nthreads().values())


def _through(
    client: Any, function: Callable[[Item], Value], queue: deque[list[Item]], most: int
) -> Iterator[ItemResult[Item, Value]]:
    """Run batches, `most` at a time, until the queue is empty."""
    from distributed import KilledWorker  # noqa: PLC0415

    running: dict[Any, list[Item]] = {}
    try:
        while queue or running:
            while queue and len(running) < most:
                yield from _submit(client, function, queue.popleft(), running)
            for future in _ready(client, list(running)) if running else ():
                yield from _outcomes(running.pop(future), future, KilledWorker)
    except CancelledError:
        raise EngineError("the connection to the Dask scheduler is lost; the next run goes on from here") from None
    finally:
        client.cancel(list(running))


def _submit(
    client: Any, function: Callable[[Item], Value], batch: list[Item], running: dict[Any, list[Item]]
) -> Iterator[ItemResult[Item, Value]]:
    """Send a batch; one that cannot travel comes back at once."""
    try:
        packed = pickle.dumps((function, batch))
    except Exception as error:  # noqa: BLE001  (whatever an object's own pickling raises)
        yield from (ItemResult(item, None, error) for item in batch)
    else:
        running[client.submit(_run_packed, packed, pure=False)] = batch


def _ready(client: Any, running: list[Any]) -> list[Any]:
    """The tasks that are done, at least one of them; none where it took long but there still are workers."""
    from distributed import wait as first_of  # noqa: PLC0415

    try:
        with client.as_current():
            return list(first_of(running, timeout=_PATIENCE, return_when="FIRST_COMPLETED").done)
    except TimeoutError:
        _threads(client)
        return []
