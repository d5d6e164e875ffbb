"""The simulation of a killed run within the process of the test."""

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
    renames: list[str] = []
    replace, move = Path.replace, Path.rename

    def record(path: Path, target: Path) -> None:
        if len(renames) == number:
            raise KilledError
        renames.append(f"{path.name} -> {target.name}")

    def replace_recorded(path: Path, target: Path) -> Path:
        record(path, target)
        return replace(path, target)

    def rename_recorded(path: Path, target: Path) -> Path:
        record(path, target)
        return move(path, target)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Path, "replace", replace_recorded)
        monkeypatch.setattr(Path, "rename", rename_recorded)
        yield renames
