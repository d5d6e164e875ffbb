"""File locks: only first process at a time holds the lock of a dataset."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dicom_etl.lake.locks import LockHeldError, choose_lock_folder, hold_lock
from dicom_etl.lake.tables import Lake

ROOT = Path(__file__).parents[2]
_HOLDER = """
import sys
from pathlib import Path
from dicom_etl.lake.locks import hold_lock
with hold_lock(Path(sys.argv[1]), "ds", "extract of ds", wait=0):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock `ds` until its input ends or it is killed."""
    command = [sys.executable, "-c", _HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_the_error_names_the_holder(tmp_path: Path) -> None:
    with holder(tmp_path) as other, pytest.raises(LockHeldError) as refused, hold_lock(tmp_path, "ds", "build", wait=0):
        pass
    assert str(refused.value) == (
        f"ds is being written by process {other.pid} on {socket.gethostname()} (extract of ds); "
        "run again when that has ended"
    )


def test_a_second_holder_waits_and_notifies_once(tmp_path: Path) -> None:
    sentences: list[str] = []
    with holder(tmp_path) as other:

        def notify(sentence: str) -> None:
            sentences.append(sentence)
            assert other.stdin is not None
            other.stdin.close()  # the other first ends

        with hold_lock(tmp_path, "ds", "build of ds", wait=30, notify=notify):
            assert other.wait(10) == 0
    assert sentences == [
        f"ds is being written by process {other.pid} on {socket.gethostname()} (extract of ds); waiting up to 30 s"
    ]


def test_a_killed_holder_releases_it(tmp_path: Path) -> None:
    entered = False
    with holder(tmp_path) as other:
        os.kill(other.pid, signal.SIGKILL)
        other.wait(10)
        with hold_lock(tmp_path, "ds", "build of ds", wait=0):
            entered = True
    assert entered


def test_a_second_holder_in_this_process_is_refused(tmp_path: Path) -> None:
    with (
        hold_lock(tmp_path, "ds", "crawl of ds", wait=0),
        pytest.raises(LockHeldError, match=rf"process {os.getpid()} .*crawl of ds"),
        hold_lock(tmp_path, "ds", "build", wait=0),
    ):
        pass


def test_another_dataset_is_not_locked(tmp_path: Path) -> None:
    entered = False
    with holder(tmp_path), hold_lock(tmp_path, "other", "build", wait=0):
        entered = True
    assert entered


def test_it_is_released_when_the_body_raises(tmp_path: Path) -> None:
    entered = False
    with pytest.raises(RuntimeError, match="broken"), hold_lock(tmp_path, "ds", "build", wait=0):
        raise RuntimeError("broken")
    with hold_lock(tmp_path, "ds", "build", wait=0):
        entered = True
    assert entered


def test_the_name_of_the_holder_is_removed_with_the_lock(tmp_path: Path) -> None:
    with hold_lock(tmp_path, "ds", "build", wait=0):
        assert (tmp_path / "ds.json").exists()
    assert not (tmp_path / "ds.json").exists()


def test_without_a_readable_name_it_is_another_process(tmp_path: Path) -> None:
    with holder(tmp_path):
        (tmp_path / "ds.json").write_bytes(b'{"pid": 1')
        with (
            pytest.raises(LockHeldError, match="ds is being written by another process"),
            hold_lock(tmp_path, "ds", "build", wait=0),
        ):
            pass


def test_the_locks_of_a_lake_are_in_its_folder(tmp_path: Path) -> None:
    assert choose_lock_folder(str(tmp_path), is_local=True) == tmp_path / "locks"


def test_the_locks_of_each_object_store_are_in_a_temporary_folder() -> None:
    first, other = (choose_lock_folder(f"s3://bucket/{name}", is_local=False) for name in ("a", "b"))
    assert first != other
    assert first.name.startswith("dicom-etl-locks-")


def test_a_lake_locks_a_dataset_of_any_name(tmp_path: Path) -> None:
    lake = Lake(str(tmp_path / "lake"), lock_wait=0).open()
    with lake.lock("a/b c", "crawl of it"):
        assert sorted(path.name for path in (tmp_path / "lake" / "locks").iterdir()) == [
            "a%2Fb%20c.json",
            "a%2Fb%20c.lock",
        ]
