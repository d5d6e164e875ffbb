"""A run that ends in the middle, as one that was killed, within the process of the test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest


class KilledError(BaseException):
    """Ends a run as a kill does: no code catches it."""


@contextlib.contextmanager
def kill_at_rename(number: int) -> Iterator[list[str]]:
    """End the run at a rename of a file, counted from 0; yields the renames before it."""
    done: list[str] = []
    replace, move = Path.replace, Path.rename

    def noting(path: Path, target: Path) -> None:
        if len(done) == number:
            raise KilledError
        done.append(f"{path.name} -> {target.name}")

    def replacing(path: Path, target: Path) -> Path:
        noting(path, target)
        return replace(path, target)

    def renaming(path: Path, target: Path) -> Path:
        noting(path, target)
        return move(path, target)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "replace", replacing)
        patched.setattr(Path, "rename", renaming)
        yield done
