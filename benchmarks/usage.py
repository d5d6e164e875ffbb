"""The resources that processes use: processor time, wall-clock time, and memory."""

from __future__ import annotations

import contextlib
import resource
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self

_INTERVAL = 0.1  # seconds between two measurements of the child processes


class Usage(NamedTuple):
    """Seconds of processor time (user and system) and of wall-clock time."""

    cpu: float
    wall: float

    @classmethod
    def now(cls) -> Self:
        """The time so far, of this process and of its child processes that have ended."""
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return cls(sum(one.ru_utime + one.ru_stime for one in used), time.perf_counter())

    def since(self, before: Usage) -> Usage:
        """The time between two measurements."""
        return Usage(self.cpu - before.cpu, self.wall - before.wall)


def peak_memory(process: int | str = "self") -> float:
    """Peak resident memory of a process in MB. ru_maxrss begins with that of the parent process: VmHWM does not.

    Raises:
        OSError: there is no such process, or this is not Linux (for another process than this one).
    """
    try:
        for line in Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1e3
    except OSError:
        if process != "self":
            raise
    if process != "self":
        raise ProcessLookupError(f"process {process} has ended")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


@dataclass
class ChildMemory:
    """The peak memory in MB of the largest child process, measured ten times a second (Linux; None elsewhere)."""

    largest: float | None = None
    _end: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def watched(self) -> Iterator[Self]:
        """Measure the child processes that run during the block."""
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._end.set()
            thread.join()

    def _watch(self) -> None:
        while not self._end.wait(_INTERVAL):
            for process in _children():
                with contextlib.suppress(OSError):  # it has ended in the meantime
                    self.largest = max(self.largest or 0, peak_memory(process))


def _children() -> list[str]:
    found: list[str] = []
    for file in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has ended
            found += file.read_text(encoding="ascii").split()
    return found
