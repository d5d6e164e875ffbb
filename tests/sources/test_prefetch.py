"""Files are opened in advance only if the storage is slow."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import pytest

from dicom_etl.sources.prefetch import open_files

PATHS = [f"{number}.dcm" for number in range(100)]


@dataclass
class Storage:
    """A stand-in for a network share: opening a file takes `delay` seconds."""

    delay: float
    missing: frozenset[str] = frozenset()
    started: list[str] = field(default_factory=list)
    files: list[io.BytesIO] = field(default_factory=list)
    max_at_once: int = 0
    now: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def open(self, path: str) -> BinaryIO:
        """Open a file whose content is its path."""
        with self.lock:
            self.started.append(path)
            self.now += 1
            self.max_at_once = max(self.max_at_once, self.now)
        time.sleep(self.delay)
        with self.lock:
            self.now -= 1
            if path in self.missing:
                raise FileNotFoundError(path)
            self.files.append(io.BytesIO(path.encode()))
            return self.files[-1]


def contents(storage: Storage) -> Iterator[str]:
    for opening in open_files(storage.open, PATHS):
        try:
            with opening() as file:
                yield file.read().decode()
        except FileNotFoundError as error:
            yield f"no {error}"


@pytest.mark.parametrize("delay", [0, 0.003])
def test_every_file_is_opened_once_and_in_order(delay: float) -> None:
    storage = Storage(delay)
    assert list(contents(storage)) == PATHS
    assert sorted(storage.started) == sorted(PATHS)


@pytest.mark.parametrize("delay", [0, 0.003])
def test_errors_of_opening_are_raised_in_order(delay: float) -> None:
    storage = Storage(delay, missing=frozenset({"3.dcm", "70.dcm"}))
    assert list(contents(storage)) == [f"no {path}" if path in storage.missing else path for path in PATHS]


def test_fast_storage_opens_one_file_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # a stopped clock: on a busy machine even fast storage may make the reader wait
    monkeypatch.setattr(
        "dicom_etl.sources.prefetch.time", SimpleNamespace(perf_counter=lambda: 0, thread_time=lambda: 0)
    )
    storage = Storage(0)
    for number, opening in enumerate(open_files(storage.open, PATHS)):
        assert storage.started == PATHS[:number]
        opening().close()
    assert storage.max_at_once == 1


def test_slow_storage_opens_several_files_at_once() -> None:
    storage = Storage(0.003)
    list(contents(storage))
    assert 2 <= storage.max_at_once <= 16


def test_prefetched_files_are_closed_when_the_reader_stops() -> None:
    storage = Storage(0.003)
    openings = open_files(storage.open, PATHS)
    for _, opening in zip(range(50), openings, strict=False):
        opening().close()
    openings.close()
    assert len(storage.files) > 50
    assert all(file.closed for file in storage.files)


def test_the_first_bytes_of_a_file_are_prefetched(tmp_path: Path) -> None:
    (tmp_path / "1").write_bytes(b"x" * 20_000)
    read: list[int] = []

    class Raw(io.FileIO):
        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            read.append(len(buffer))
            return super().readinto(buffer)

    def open_(_: str) -> BinaryIO:
        time.sleep(0.003)
        return Raw(tmp_path / "1")  # type: ignore[return-value]

    for number, opening in enumerate(open_files(open_, PATHS)):
        with opening() as file:
            if number > 50:
                before = len(read)
                assert file.read(8192) == b"x" * 8192
                assert len(read) - before <= 16  # nothing of this file; the first bytes of the next ones
    assert read == [16384] * (len(PATHS) - 16)
