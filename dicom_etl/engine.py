"""One `map` over units of work: in this process, or over local processes.

The function runs on one item at a time and fails for that item alone: what it raises comes back as the item's
failure, and so does the death of a worker.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Generic, TypeVar

Progress = Callable[[str, int, int], None]  # what, done, of how many

Item = TypeVar("Item")
Value = TypeVar("Value")

_QUEUED_PER_WORKER = 4  # enough to keep a worker busy, few enough that items stay small in memory


@dataclass(frozen=True)
class Done(Generic[Item, Value]):
    """What became of one item: a value, or the error that it raised."""

    item: Item
    value: Value | None
    error: BaseException | None = None


@dataclass(frozen=True)
class Engine:
    """`serial`, or `processes` with this many workers."""

    kind: str = "serial"
    workers: int = 1

    def map(
        self, function: Callable[[Item], Value], items: Sequence[Item], *, small: bool = False
    ) -> Iterator[Done[Item, Value]]:
        """Run `function` over `items`; results come as they are done, in any order.

        Args:
            function: a function of a module (it travels to other processes).
            items: what it is called with, one at a time.
            small: the whole work is not worth starting processes for.
        """
        if self.kind == "serial" or self.workers == 1 or small or len(items) < 2:
            return (_attempt(function, item) for item in items)
        return _in_processes(function, items, min(self.workers, len(items)))


def _attempt(function: Callable[[Item], Value], item: Item) -> Done[Item, Value]:
    try:
        return Done(item, function(item))
    except Exception as error:  # noqa: BLE001  (the stage that asked turns it into a finding with its unit)
        return Done(item, None, error)


def _in_processes(
    function: Callable[[Item], Value], items: Sequence[Item], workers: int
) -> Iterator[Done[Item, Value]]:
    """Items over a pool. When a worker dies the pool is replaced; the items it had go once more, each alone."""
    queue, lost = deque(items), []
    while queue:
        for done in _one_pool(function, queue, workers):
            if isinstance(done.error, BrokenProcessPool):
                lost.append(done.item)
            else:
                yield done
    for item in lost:
        yield from _one_pool(function, deque([item]), 1)


def _one_pool(function: Callable[[Item], Value], queue: deque[Item], workers: int) -> Iterator[Done[Item, Value]]:
    """Take items from the queue until it is empty or the pool is broken."""
    context = multiprocessing.get_context("spawn")  # a forked copy of a process with threads can hang
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_die_with_parent, initargs=(os.getpid(),))
    running: dict[Future[Value], Item] = {}
    try:
        while _refill(pool, function, queue, running, workers):
            ready, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in ready:
                item, error = running.pop(future), future.exception()
                yield Done(item, None, error) if error else Done(item, future.result())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _refill(
    pool: ProcessPoolExecutor,
    function: Callable[[Item], Value],
    queue: deque[Item],
    running: dict[Future[Value], Item],
    workers: int,
) -> bool:
    """Keep the workers busy; False when nothing is running any more."""
    try:
        while queue and len(running) < workers * _QUEUED_PER_WORKER:
            running[pool.submit(function, queue[0])] = queue[0]
            queue.popleft()
    except BrokenProcessPool:
        # what was not taken stays in the queue; what runs is failing
        return bool(running)
    return bool(running)


def _die_with_parent(parent: int) -> None:
    """A worker of a killed run must not go on writing beside the run that follows (Linux: PR_SET_PDEATHSIG)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:  # it died before this worker could ask
            os._exit(1)
