"""Functions for the worker processes of `tests/test_engine.py`, in a module that they can import."""

import os
import signal
import time


class TwoPartError(Exception):
    """An error that cannot be unpickled: it is created from two arguments and pickled with one."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def double(item: int) -> int:
    return 2 * item


def double_except_three(item: int) -> int:
    if item == 3:
        raise ValueError("three")
    return 2 * item


def die_at_three(item: int) -> int:
    """Kills its process at item 3."""
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * item


def die_once_at_three(item: tuple[int, str]) -> int:
    """Kills its process at item 3, unless a file shows that it did so before."""
    number, marker = item
    if number == 3 and not os.path.exists(marker):  # noqa: PTH110
        os.close(os.open(marker, os.O_CREAT))
        os.kill(os.getpid(), signal.SIGKILL)
    return 2 * number


def raise_unpicklable_at_three(item: int) -> int:
    if item == 3:
        raise TwoPartError("odd", "three")
    return 2 * item


def return_unpicklable_at_three(item: int) -> object:
    return (lambda: item) if item == 3 else item


def get_process_id(_item: int) -> int:
    return os.getpid()


def get_process_id_slowly(_item: int) -> int:
    time.sleep(0.02)
    return os.getpid()


def is_ignoring_interrupts(_item: int) -> bool:
    return signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def get_dask_task(_item: int) -> str:
    """The key of the Dask task that runs this function."""
    from distributed import get_worker

    return str(get_worker().get_current_task())
