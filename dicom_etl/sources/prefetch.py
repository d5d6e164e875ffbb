"""Opening of files one after the other; in advance, in threads, where the storage makes the reader wait.

A file on a local disk is available at once, and threads would only cost time. On network storage, opening a file and
reading its first bytes takes milliseconds of waiting: the next files are opened while one is read.
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
Opener = Callable[[], BinaryIO]  # returns the open file, or raises the error of opening it

_SAMPLE_SIZE = 16  # files after which it is clear whether the storage is slow
_SLOW = 0.0006  # seconds of waiting per file
_MAX_PENDING = 16  # files that are being opened at once
_FIRST_BYTES = 16384  # bytes that are read in advance


def open_files(open_: Open, paths: Sequence[str]) -> Generator[Opener, None, None]:
    """Yield a function for each path, in order, that returns the open file.

    Close the generator if it is not consumed to its end, so that files that were opened in advance are closed.

    Args:
        open_: opens a file; called from several threads.
        paths: of the files.
    """
    for start in range(0, len(paths), _SAMPLE_SIZE):
        wall, working, waits = time.perf_counter(), time.thread_time(), _count_waits()
        for path in paths[start : start + _SAMPLE_SIZE]:
            yield partial(open_, path)
        waited = time.perf_counter() - wall - (time.thread_time() - working)
        # other processes make the reader wait too, but then the thread is interrupted and does not wait by itself
        if waited > _SLOW * _SAMPLE_SIZE and _count_waits() - waits >= _SAMPLE_SIZE:
            yield from _open_in_advance(open_, paths[start + _SAMPLE_SIZE :])
            return


def _count_waits() -> int:
    """How often this thread has waited for something (on Linux; on other systems the time, so that any wait counts)."""
    if not hasattr(resource, "RUSAGE_THREAD"):
        return time.perf_counter_ns()
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def _open_in_advance(open_: Open, paths: Sequence[str]) -> Generator[Opener, None, None]:
    pending: deque[Future[BinaryIO]] = deque()
    with ThreadPoolExecutor(_MAX_PENDING, "prefetch") as threads:
        try:
            for path in paths:
                pending.append(threads.submit(_open_and_read, open_, path))
                if len(pending) > _MAX_PENDING:
                    yield pending.popleft().result
            while pending:
                yield pending.popleft().result
        finally:
            for future in pending:
                if not future.cancel() and not future.exception():
                    future.result().close()


def _open_and_read(open_: Open, path: str) -> BinaryIO:
    """Open a file and read its first bytes into a buffer; its position stays 0."""
    file = open_(path)
    buffered = io.BufferedReader(file, _FIRST_BYTES) if isinstance(file, io.RawIOBase) else file
    try:
        if isinstance(buffered, io.BufferedReader):
            buffered.peek(1)
    except BaseException:
        buffered.close()
        raise
    return buffered
