"""Advisory locks in PostgreSQL: one holder at a time, also over processes and lost connections."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pyarrow as pa
import pytest

from dicom_etl.findings import tabulate_findings
from dicom_etl.lake.advisory_locks import LockLostError, hold_advisory_lock, lock_key
from dicom_etl.lake.database import DatabaseError
from dicom_etl.lake.locks import LockHeldError
from dicom_etl.lake.schemas import DATASET_FINDINGS
from dicom_etl.lake.shard_writer import ShardWriter
from dicom_etl.lake.tables import Lake, LakeError
from dicom_etl.upload.ledger import Attempt, Ledger, LedgerError, ResourceRow

ROOT = Path(__file__).parents[2]
LOST = "the lock of ds in PostgreSQL was lost"
_HOLDER = """
import sys
from dicom_etl.lake.tables import Lake
with Lake(sys.argv[1], lock_wait=0, ledger_url=sys.argv[2]).lock("ds", "extract of ds"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def lake(tmp_path: Path, postgres_url: str) -> Lake:
    return Lake(str(tmp_path / "lake"), lock_wait=0, ledger_url=postgres_url).open()


@contextmanager
def holder(lake: Lake) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock `ds` until its input ends or it is killed."""
    command = [sys.executable, "-c", _HOLDER, lake.root, str(lake.ledger_url)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def execute(lake: Lake, statement: str) -> list[tuple[object, ...]]:
    """The rows of a statement on a connection of its own."""
    with psycopg.connect(str(lake.ledger_url).replace("+psycopg", ""), autocommit=True) as connection:
        return connection.execute(statement).fetchall()


def end_locks(lake: Lake) -> None:
    """End the connections that hold locks; returns when they have ended."""
    execute(
        lake,
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_locks WHERE locktype = 'advisory' AND database = "
        "(SELECT oid FROM pg_database WHERE datname = current_database())",
    )


def find_locks(lake: Lake) -> list[tuple[object, ...]]:
    return execute(
        lake,
        "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND database = "
        "(SELECT oid FROM pg_database WHERE datname = current_database())",
    )


class TestHolder:
    def test_the_error_names_the_holder(self, lake: Lake) -> None:
        with holder(lake) as other, pytest.raises(LockHeldError) as refused, lake.lock("ds", "build of ds"):
            pass
        named = f"dicom-etl: extract of ds on {socket.gethostname()} ({other.pid})"[:63]
        assert str(refused.value) == f"ds is being written by {named}; run again when that has ended"

    def test_a_second_holder_in_this_process_is_refused(self, lake: Lake) -> None:
        with (
            lake.lock("ds", "crawl of ds"),
            pytest.raises(LockHeldError, match=rf"dicom-etl: crawl of ds on .* \({os.getpid()}\)"),
            lake.lock("ds", "build of ds"),
        ):
            pass

    def test_a_second_holder_waits_and_notifies_once(self, lake: Lake) -> None:
        sentences: list[str] = []
        with holder(lake) as other:

            def notify(sentence: str) -> None:
                sentences.append(sentence)
                assert other.stdin is not None
                threading.Timer(0.7, other.stdin.close).start()  # the other process ends after a few attempts

            with hold_advisory_lock(lake, "ds", "build of ds", wait=60, notify=notify):
                assert other.wait(10) == 0
        named = f"dicom-etl: extract of ds on {socket.gethostname()} ({other.pid})"[:63]
        assert sentences == [f"ds is being written by {named}; waiting up to 60 s"]

    def test_waiting_ends_with_an_error(self, lake: Lake) -> None:
        sentences: list[str] = []
        begin = time.monotonic()
        with (
            holder(lake),
            pytest.raises(LockHeldError),
            hold_advisory_lock(lake, "ds", "build of ds", wait=0.5, notify=sentences.append),
        ):
            pass
        assert time.monotonic() - begin >= 0.5
        assert len(sentences) == 1

    def test_a_killed_holder_releases_it(self, lake: Lake) -> None:
        entered = False
        with holder(lake) as other:
            os.kill(other.pid, signal.SIGKILL)
            other.wait(10)
            with hold_advisory_lock(lake, "ds", "build of ds", wait=10, notify=lambda _: None):
                entered = True
        assert entered

    def test_it_is_released_at_the_end_and_when_the_body_raises(self, lake: Lake) -> None:
        with pytest.raises(RuntimeError, match="broken"), lake.lock("ds", "build of ds"):
            raise RuntimeError("broken")
        assert find_locks(lake) == []
        with lake.lock("ds", "build of ds"):
            assert len(find_locks(lake)) == 1
        assert find_locks(lake) == []

    def test_another_dataset_is_not_locked(self, lake: Lake) -> None:
        with holder(lake), lake.lock("other", "build of other"):
            assert len(find_locks(lake)) == 2

    def test_another_lake_in_the_same_database_is_not_locked(self, lake: Lake, tmp_path: Path) -> None:
        second = Lake(str(tmp_path / "second"), lock_wait=0, ledger_url=lake.ledger_url).open()
        with holder(lake), second.lock("ds", "build of ds"):
            assert len(find_locks(lake)) == 2

    def test_the_same_lake_under_another_path_is_locked(self, lake: Lake, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(lake.root)
        same = Lake(str(tmp_path / "link"), lock_wait=0, ledger_url=lake.ledger_url)
        with holder(lake), pytest.raises(LockHeldError), same.lock("ds", "build of ds"):
            pass

    def test_it_has_no_file_in_the_lake(self, lake: Lake) -> None:
        with lake.lock("ds", "build of ds"):
            assert [file.name for file in Path(lake.root).rglob("*")] == ["lake.json"]

    def test_the_error_of_an_unreachable_database_is_a_sentence(self, tmp_path: Path) -> None:
        lake = Lake(str(tmp_path / "lake"), ledger_url="postgresql://user:geheim@127.0.0.1:1/name").open()
        with pytest.raises(DatabaseError) as failure, lake.lock("ds", "build of ds"):
            pass
        assert str(failure.value).startswith("the database of ledger_url cannot be reached: connection failed: ")
        assert "geheim" not in str(failure.value)


def find_name(lake: Lake, condition: object) -> str:
    """A name of a dataset whose key has a property, which one in some ten thousand has."""
    assert callable(condition)
    return next(name for number in range(10**7) if condition(lock_key(lake.lake_id, name := f"ds{number}")))


class TestKeys:
    def test_keys_differ_by_lake_and_name(self) -> None:
        assert lock_key("lake-a", "ds") == lock_key("lake-a", "ds")
        keys = {
            lock_key(lake_id, name) for lake_id in ("lake-a", "lake-b", "") for name in ("ds", "DS", "ds2", "ä", "")
        }
        assert len(keys) == 15
        assert lock_key("a", "b\0c") == lock_key("a\0b", "c")  # ids of lakes are UUIDs: none has a NUL
        assert all(-(2**63) <= key < 2**63 for key in keys)

    @pytest.mark.parametrize(
        "condition",
        [
            lambda key: key < 0,
            lambda key: key > 0,
            lambda key: key & 0xFFFFFFFF < 2**15,  # a small integer for the driver
            lambda key: key & 0xFFFFFFFF >= 2**31,
            lambda key: 0 <= key < 2**48,
            lambda key: -(2**48) <= key < 0,
        ],
        ids=["negative", "positive", "small low half", "large low half", "small high half", "large high half"],
    )
    def test_a_lock_with_any_key_is_found(self, lake: Lake, condition: object) -> None:
        name = find_name(lake, condition)
        with lake.lock(name, "build"):
            lake.require_locks()
            with (
                pytest.raises(LockHeldError, match="is being written by dicom-etl: build on "),
                lake.lock(name, "crawl"),
            ):
                pass
            end_locks(lake)
            with pytest.raises(LockLostError):
                lake.require_locks()


class TestLostConnection:
    def test_the_error_of_a_lost_lock_has_advice(self, lake: Lake) -> None:
        with lake.lock("ds", "build of ds"):
            lake.require_locks()
            end_locks(lake)
            with pytest.raises(LockLostError) as lost:
                lake.require_locks()
        assert str(lost.value).startswith(f"{LOST} (")
        assert str(lost.value).endswith("), so the run was stopped: run it again")
        assert isinstance(lost.value, LakeError)
        assert "\n" not in str(lost.value)

    def test_a_lock_that_another_run_holds_by_now_is_lost(self, lake: Lake) -> None:
        with lake.lock("ds", "build of ds"):
            end_locks(lake)
            with holder(lake), pytest.raises(LockLostError):
                lake.require_locks()

    def test_no_table_is_written_without_the_lock(self, lake: Lake) -> None:
        location = {"stage": "build", "dataset": "ds"}
        with lake.lock("ds", "build of ds"):
            lake.write(DATASET_FINDINGS, tabulate_findings([]), fingerprint="before", **location)
            end_locks(lake)
            with pytest.raises(LockLostError, match=LOST):
                lake.write(DATASET_FINDINGS, tabulate_findings([]), fingerprint="after", **location)
            with pytest.raises(LockLostError, match=LOST):
                lake.write_bytes("quality/ds/x.json", b"{}")
        assert lake.read_fingerprint(DATASET_FINDINGS, **location) == "before"
        assert lake.read_bytes("quality/ds/x.json") is None

    def test_no_shard_is_committed_without_the_lock(self, lake: Lake) -> None:
        with lake.lock("ds", "build of ds"):
            writer = ShardWriter(lake, "build", "ds", 0, 1)
            writer.write_lines("Patient", [b"{}\n"])
            end_locks(lake)
            with pytest.raises(LockLostError, match=LOST):
                writer.commit(pa.table({}))
        written = [file for file in Path(lake.root).rglob("*") if file.is_file()]
        assert [file.name for file in written if not file.name.startswith(".")] == ["lake.json"]

    def test_nothing_is_written_to_the_ledger_without_the_lock(self, lake: Lake) -> None:
        first, second = ResourceRow("Patient", "p", "ds"), ResourceRow("Patient", "q", "ds")
        with lake.lock("ds", "upload"):
            ledger = Ledger.from_lake(lake, "server").__enter__()
            ledger.write_rows([first]).result(30)
            end_locks(lake)
            with pytest.raises(LedgerError, match=rf"{LOST} \(its connection has ended\)"):
                ledger.write_attempts([Attempt("Patient", "q", "h", "s", "")], [second]).result(30)
            with pytest.raises(LedgerError, match=LOST):
                ledger.write_rows([second]).result(30)
            with pytest.raises(LedgerError, match=LOST):
                ledger.__exit__(None, None, None)
        assert execute(lake, "SELECT id FROM resources") == [("p",)]
        assert execute(lake, "SELECT id FROM attempts") == []

    def test_one_lost_lock_of_two_stops_the_run(self, lake: Lake) -> None:
        with lake.lock("ds", "upload of ds"), lake.lock("other", "upload of other"):
            lake.require_locks()
            execute(
                lake, "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name ~ 'of ds'"
            )
            with pytest.raises(LockLostError, match=LOST):
                lake.require_locks()

    def test_a_released_lock_is_no_longer_required(self, lake: Lake) -> None:
        with lake.lock("ds", "build of ds"):
            end_locks(lake)
        lake.require_locks()
        lake.write_bytes("quality/ds/x.json", b"{}")
        assert lake.read_bytes("quality/ds/x.json") == b"{}"
