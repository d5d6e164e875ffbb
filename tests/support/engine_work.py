"""What test_engine.py gives to worker processes: functions of a module that they can import."""

import os
import signal
import sys
import time


class TwoPartError(Exception):
    """An error that cannot travel between processes: it is made from two arguments and pickled with one."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def double(item: int) -> int:
    return 2 * item


def double_but_three(item: int) -> int:
    if item == 3:
        raise ValueError("three")
    return 2 * item


def killed_by_three(item: int) -> int:
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * item


def killed_once(item: tuple[int, str]) -> int:
    """Kills its worker the first time that it sees 3: the file says whether it did."""
    number, marker = item
    if number == 3 and not os.path.exists(marker):  # noqa: PTH110
        os.close(os.open(marker, os.O_CREAT))
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


def fails_untold(item: int) -> int:
    if item == 3:
        raise TwoPartError("odd", "three")
    return 2 * item


def process_id(_item: int) -> int:
    return os.getpid()


def unpicklable(item: int) -> object:
    return (lambda: item) if item == 3 else item


def ignores_interrupts(_item: int) -> bool:
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def slow_process_id(_item: int) -> int:
    time.sleep(0.02)
    return os.getpid()


def batch_of(_item: int) -> tuple[int, int]:
    """Which call of `_run_batch` this item belongs to: the process, and the identity of its list of items."""
    frame = sys._getframe()
    while frame.f_code.co_name != "_run_packed":
        assert frame.f_back is not None
        frame = frame.f_back
    return os.getpid(), hash(frame.f_locals["packed"])
