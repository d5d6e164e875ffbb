"""Opens files one after the other; ahead of time, in threads, where the storage makes the reader wait.

A file on a local disk is there at once, and threads would only cost. On network storage opening a file and reading its
beginning takes milliseconds, of which the processor needs none: there the next files are opened while one is read.
"""

from __future__ import annotations

import io
import resource
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import BinaryIO

Open = Callable[[str], BinaryIO]
Opening = Callable[[], BinaryIO]  # gives the open file, or raises what opening it has raised

_FEW = 16  # files after which it is clear whether the storage is slow
_SLOW = 0.0006  # seconds of waiting per file
_AT_ONCE = 16  # files that are being opened
_BEGINNING = 16384  # bytes that are read ahead


def opened(open_: Open, paths: Sequence[str]) -> Generator[Opening, None, None]:
    """How to open each of the files, in their order; close the iterator if it is left early.

    Args:
        open_: opens a file; called from several threads.
        paths: of the files.
    """
    for start in range(0, len(paths), _FEW):
        wall, working, waits = time.perf_counter(), time.thread_time(), _waits()
        for path in paths[start : start + _FEW]:
            yield partial(open_, path)
        waited = time.perf_counter() - wall - (time.thread_time() - working)
        # other processes make the reader wait too, but not of its own accord
        if waited > _SLOW * _FEW and _waits() - waits >= _FEW:
            yield from _ahead(open_, paths[start + _FEW :])
            return


def _waits() -> int:
    """How often this thread has waited for something (Linux; elsewhere every wait counts)."""
    if not hasattr(resource, "RUSAGE_THREAD"):
        return time.perf_counter_ns()
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def _ahead(open_: Open, paths: Sequence[str]) -> Generator[Opening, None, None]:
    waiting: deque[Future[BinaryIO]] = deque()
    with ThreadPoolExecutor(_AT_ONCE, "read-ahead") as threads:
        try:
            for path in paths:
                waiting.append(threads.submit(_begun, open_, path))
                if len(waiting) > _AT_ONCE:
                    yield waiting.popleft().result
            while waiting:
                yield waiting.popleft().result
        finally:
            for future in waiting:
                if not future.cancel() and not future.exception():
                    future.result().close()


def _begun(open_: Open, path: str) -> BinaryIO:
    """An open file whose beginning has been read."""
    file = open_(path)
    begun = io.BufferedReader(file, _BEGINNING) if isinstance(file, io.RawIOBase) else file
    try:
        if isinstance(begun, io.BufferedReader):
            begun.peek(1)
    except BaseException:
        begun.close()
        raise
    return begun
