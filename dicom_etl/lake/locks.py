"""One writer: the lock of a dataset, and who holds it.

The lock is the operating system's (flock): a killed process gives it back. Beside it lies a small file that says who
holds it, for the message to the one who waits. A lake on an object store has no file locks; there the lock lies in
the temporary folder of this machine and keeps apart the runs of this machine alone.
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


def choose_lock_folder(root: str, *, local: bool) -> Path:
    """Where the locks of the lake at `root` lie."""
    if local:
        return Path(root) / "locks"

    return Path(tempfile.gettempdir()) / f"dicom-etl-locks-{hashlib.sha256(root.encode()).hexdigest()[:16]}"


@contextmanager
def hold_lock(
    folder: Path, name: str, doing: str, *, wait: float, notify: Callable[[str], None] = lambda _: None
) -> Iterator[None]:
    """Hold the lock `name` while the body runs.

    Args:
        folder: where locks lie; made if need be.
        name: an encoded name.
        doing: what the holder does, for others to read ("extract of breast").
        wait: seconds to wait; 0 does not wait.
        notify: called once with a sentence when it has to wait.

    Raises:
        LockHeldError: when another process holds it for longer than `wait`; the text says which.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock, holder = FileLock(folder / f"{name}.lock"), folder / f"{name}.json"
    name = unquote(name)  # as people know it
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = _who(holder)
        if wait > 0:
            notify(f"{name} is being written by {who}; waiting up to {wait:.0f} s")
        try:
            lock.acquire(timeout=wait)
        except Timeout:
            raise LockHeldError(f"{name} is being written by {who}; try again when that has ended") from None
    try:
        # read by people only, and never by a stage: a torn write does no harm
        holder.write_bytes(orjson.dumps({"pid": os.getpid(), "host": socket.gethostname(), "doing": doing}))
        yield
    finally:
        with suppress(FileNotFoundError):
            holder.unlink()
        lock.release()


def _who(holder: Path) -> str:
    try:
        said = orjson.loads(holder.read_bytes())
        return f"process {said['pid']} on {said['host']} ({said['doing']})"
    except (OSError, ValueError, KeyError):
        return "another process"
