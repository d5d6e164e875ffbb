"""Errors of the database: one sentence and an exit code, in every command that needs it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from dicom_etl.fhir_connection import get_server_name
from dicom_etl.lake import database
from dicom_etl.lake.tables import Lake
from dicom_etl.upload.ledger import Ledger, ResourceRow
from tests.support.command import RunCommand
from tests.support.datasets import write_instance
from tests.support.fhir_answers import STATEMENT, json_reply
from tests.support.proxy import Proxy, run_proxy

LEDGER_COMMANDS = (
    ["run"],
    ["upload"],
    ["verify"],
    ["status"],
    ["uploads"],
    ["explain", "ds", "sub-1"],
    ["withdraw", "ds", "sub-1", "--yes"],
)
PASSWORD = "Zanzibarium"


@pytest.fixture
def server() -> Iterator[Proxy]:
    """A server that answers with its capabilities; no other request is expected."""
    with run_proxy(rule=lambda _: json_reply(STATEMENT)) as running:
        yield running


@pytest.fixture
def lake(run_command: RunCommand, server: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """A lake of two built datasets; the server has a resource of one of them."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("ds", "other")):
        write_instance(tmp_path / name / "primary/sub-1/sam-1/1.dcm", study=f"1{number}", series=f"1{number}")
    Path("dicom-etl.toml").write_text(
        f'lake = "lake"\n[fhir]\nurl = "{server.url}"\nretry_seconds = 0\n'
        '[datasets.ds]\nroot = "ds"\n[datasets.other]\nroot = "other"\n'
    )
    for stage in ("crawl", "extract", "build"):
        assert run_command(stage)[0] == 0
    lake = Lake(str(tmp_path / "lake"))
    with Ledger.from_lake(lake, get_server_name(server.url)) as ledger:
        ledger.write_rows([ResourceRow("ImagingStudy", "s1", "ds", "sub-1", server_id="s1", hash="0")])
    return lake


def assert_one_sentence(result: tuple[int, str, str], words: str) -> None:
    code, out, err = result
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("dicom-etl: ")
    assert words in err
    assert PASSWORD not in err


@pytest.mark.parametrize("command", LEDGER_COMMANDS, ids=lambda command: command[0])
def test_an_unusable_ledger_is_one_sentence_and_exit_code_2(
    command: list[str], run_command: RunCommand, lake: Lake, server: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(database, "detect_file_system", lambda _: "nfs4")
        assert_one_sentence(run_command(*command), "is on a shared file system (nfs4)")
    with monkeypatch.context() as patched:
        patched.setenv("DICOM_ETL_LEDGER_URL", f"postgresql://me:{PASSWORD}@127.0.0.1:1/ledger")
        assert_one_sentence(run_command(*command), "check ledger_url, and that PostgreSQL is running")
    for file in Path(lake.root).glob("ledger.sqlite*"):
        file.unlink()
    Path(lake.root, "ledger.sqlite").write_bytes(b"not a database" * 1000)
    assert_one_sentence(run_command(*command), "file is not a database; restore the file from a backup")
    assert [asked for asked in server.requests if asked.path != "metadata"] == []


@pytest.mark.parametrize(
    ("command", "expected"),
    [(["run"], 1), (["upload"], 1), (["verify", "--repair"], 2), (["withdraw", "ds", "sub-1", "--yes"], 2)],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_locked_ledger_is_one_sentence(
    command: list[str],
    expected: int,
    run_command: RunCommand,
    lake: Lake,
    server: Proxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
    with lock_ledger(lake):
        code, out, err = run_command(*command)
        as_json = run_command(*command, "--json")

    sentence = "database is locked; another process writes it: run again when that has ended"
    assert code == expected
    assert (out + err).count(sentence) == 1
    assert "Traceback" not in out + err
    assert sentence in as_json[1] + as_json[2]
    if expected == 1:
        assert [sentence in text for text in json.loads(as_json[1])["stopped"].values()] == [True, True]
    assert [asked for asked in server.requests if asked.path != "metadata"] == []


@pytest.mark.parametrize(
    "command", [["status"], ["uploads"], ["explain", "ds", "sub-1"]], ids=lambda command: command[0]
)
def test_a_locked_ledger_can_be_read(
    command: list[str], run_command: RunCommand, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
    with lock_ledger(lake):
        code, out, err = run_command(*command)

    assert (code, err) == (0, "")
    assert "failed" in out


@contextmanager
def lock_ledger(lake: Lake) -> Iterator[None]:
    """Hold a write transaction on the SQLite ledger, as another process would."""
    with closing(sqlite3.connect(Path(lake.root, "ledger.sqlite"), isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
