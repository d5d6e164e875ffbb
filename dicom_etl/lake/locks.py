"""File locks, so that only one run writes a dataset at a time.

The lock is one of the operating system (flock), which is released when its process is killed. A small file beside it
names the process that holds it, for the message to a process that waits. A lake on an object store has no file locks:
there the lock is in the temporary folder of this machine, and excludes only runs on this machine.
"""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote

import orjson
from filelock import FileLock, Timeout


class LockHeldError(Exception):
    """Another run writes this dataset."""


def choose_lock_folder(root: str, *, is_local: bool) -> Path:
    """The folder that contains the locks of the lake at `root`."""
    if is_local:
        return Path(root) / "locks"

    return Path(tempfile.gettempdir()) / f"dicom-etl-locks-{hashlib.sha256(root.encode()).hexdigest()[:16]}"


@contextmanager
def hold_lock(
    folder: Path, name: str, doing: str, *, wait: float, notify: Callable[[str], None] = lambda _: None
) -> Iterator[None]:
    """Hold the lock `name` while the body runs.

    Args:
        folder: contains the locks; it is created if necessary.
        name: an encoded name.
        doing: what the holder does, for others to read ("extract of breast").
        wait: seconds to wait; 0 does not wait.
        notify: called once with a sentence when it has to wait.

    Raises:
        LockHeldError: another process holds it for longer than `wait`; the text names it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock, holder = FileLock(folder / f"{name}.lock"), folder / f"{name}.json"
    name = unquote(name)  # for messages
    try:
        lock.acquire(timeout=0)
    except Timeout:
        description = _describe(holder)
        if wait > 0:
            notify(f"{name} is being written by {description}; waiting up to {wait:.0f} s")
        try:
            lock.acquire(timeout=wait)
        except Timeout:
            raise LockHeldError(f"{name} is being written by {description}; run again when that has ended") from None
    try:
        # only shown in messages, so an incomplete write does no harm
        holder.write_bytes(orjson.dumps({"pid": os.getpid(), "host": socket.gethostname(), "doing": doing}))
        yield
    finally:
        with suppress(FileNotFoundError):
            holder.unlink()
        lock.release()


def _describe(holder: Path) -> str:
    try:
        process = orjson.loads(holder.read_bytes())
        return f"process {process['pid']} on {process['host']} ({process['doing']})"
    except (OSError, ValueError, KeyError):
        return "another process"
