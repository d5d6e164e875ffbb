"""The command `withdraw`: its messages, options and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dicom_etl.fhir_connection import get_server_name
from dicom_etl.lake.locks import LockHeldError
from dicom_etl.lake.schemas import (
    INVENTORY,
)
from dicom_etl.lake.tables import Lake
from dicom_etl.settings import Settings, SettingsError
from dicom_etl.stages.withdraw import withdraw
from dicom_etl.withdrawal.record import undo_withdrawal
from tests.support.command import RunCommand
from tests.support.datasets import Tree, make_tree
from tests.withdrawal.withdrawal_case import (
    WithdrawalCase,
    find_files_containing,
    hash_lake,
    make_two_subjects,
)


@pytest.fixture
def loaded_tree(tmp_path: Path, run_command: RunCommand) -> Tree:
    """A dataset that was loaded_tree by the command, without a server."""
    tree = make_tree(tmp_path)
    for subject in ("sub-ada", "sub-bob"):
        tree.write(f"{subject}/1.dcm", PatientID=subject)
    assert run_command("run", tree.root, "--lake", tree.lake.root)[0] == 0
    return tree


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nobody", "--yes"), "the lake has no dataset nobody"),
        (("ds", "sub-eve", "--yes"), "ds has no subject sub-eve"),
        (("ds", "", "--yes"), "the name of the subject is empty"),
        (("ds", "sub-ada"), "add --yes to withdraw sub-ada of ds"),
        (("ds", "sub-ada", "--undo"), "nothing of ds was withdrawn"),
        (("ds", "sub-ada", "--undo", "--dry-run"), "--undo cannot be combined with --dry-run"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(
    loaded_tree: Tree, run_command: RunCommand, arguments: tuple[str, ...], words: str
) -> None:
    before = hash_lake(loaded_tree.lake)
    code, out, err = run_command("withdraw", *arguments, "--lake", loaded_tree.lake.root)
    text = out + err
    assert code == 2
    assert words in text
    assert len(text.strip().splitlines()) == 1
    assert hash_lake(loaded_tree.lake) == before
    assert not (Path(loaded_tree.lake.root) / "locks/nobody.lock").exists()


def test_a_dry_run_counts_and_changes_nothing(case: WithdrawalCase, run_command: RunCommand) -> None:
    tree = make_two_subjects(case)
    case.run(tree)
    before = hash_lake(case.lake)
    case.server.requests.clear()

    done = case.withdraw(tree, "sub-ada", dry_run=True)
    code, text, _ = run_command("withdraw", tree.name, "sub-ada", "--dry-run", "--lake", case.lake.root)

    assert done.resources == {get_server_name(case.server.url): {"ImagingStudy": 2, "Patient": 1}}
    assert (done.files, done.studies, done.dry_run) == (3, 2, True)
    assert (code, hash_lake(case.lake), case.server.requests) == (0, before, [])
    assert "To be removed" in text
    assert "is not the configured server" in text


def test_it_removes_and_a_run_skips_a_withdrawn_dataset(
    loaded_tree: Tree, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = ("--lake", loaded_tree.lake.root)
    code, text, _ = run_command("withdraw", "ds", "sub-ada", "--yes", *lake)
    assert (code, "files" in text) == (0, True)
    assert find_files_containing(loaded_tree.lake, "sub-ada") == []
    code, _, _ = run_command("run", loaded_tree.root, *lake)
    assert code == 0
    assert loaded_tree.lake.read(INVENTORY, dataset="ds")["unit"].to_pylist() == ["sub-bob"]
    [plan] = json.loads(run_command("run", loaded_tree.root, "--dry-run", "--json", *lake)[1])["plans"]
    assert (plan["files"], plan["new"], plan["units_to_extract"]) == (1, 0, 0)

    assert run_command("withdraw", "ds", "--yes", *lake)[0] == 0
    code, _, text = run_command("run", loaded_tree.root, *lake)
    assert (code, len(text.strip().splitlines())) == (2, 1)
    assert "dataset ds was withdrawn and is skipped" in text
    assert run_command("withdraw", "ds", "--undo", *lake)[0] == 0
    assert run_command("run", loaded_tree.root, *lake)[0] == 0
    assert find_files_containing(loaded_tree.lake, "sub-ada") == []  # her own withdrawal still counts


def test_a_terminal_is_asked_for_confirmation(
    loaded_tree: Tree, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer, code, there in ((False, 2, True), (True, 0, False)):
        monkeypatch.setattr("typer.confirm", lambda _, answer=answer: answer)
        assert run_command("withdraw", "ds", "sub-ada", "--lake", loaded_tree.lake.root)[0] == code
        assert bool(find_files_containing(loaded_tree.lake, "sub-ada")) is there


def test_a_dataset_that_is_being_written_is_locked(loaded_tree: Tree) -> None:
    with loaded_tree.lake.lock("ds", "extract of ds"), pytest.raises(LockHeldError, match="extract of ds"):
        withdraw("ds", "sub-ada", loaded_tree.lake, Settings())


def test_a_locked_dataset_is_reported_as_json(loaded_tree: Tree, run_command: RunCommand) -> None:
    with loaded_tree.lake.lock("ds", "extract of ds"):
        code, out, _ = run_command(
            "withdraw", "ds", "sub-ada", "--yes", "--no-wait", "--json", "--lake", loaded_tree.lake.root
        )
    result = json.loads(out)
    assert code == result["exit_code"] == 1
    assert "extract of ds" in result["stopped"]


def test_only_a_recorded_withdrawal_can_be_undone(loaded_tree: Tree) -> None:
    withdraw("ds", "sub-ada", loaded_tree.lake, Settings())
    with pytest.raises(SettingsError, match="sub-bob of ds was not withdrawn"):
        undo_withdrawal("ds", "sub-bob", loaded_tree.lake)


def test_a_first_id_key_brings_nobody_back(
    loaded_tree: Tree, run_command: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = tmp_path / "keyed"
    run_command("run", loaded_tree.root, "--lake", lake)
    assert run_command("withdraw", "ds", "sub-ada", "--yes", "--lake", lake)[0] == 0
    monkeypatch.setenv("DICOM_ETL_ID_KEY", "first key " * 4)
    assert run_command("run", loaded_tree.root, "--lake", lake, "--rebuild")[0] == 0
    assert read_units(lake) == ["sub-bob"]
    assert run_command("withdraw", "ds", "sub-ada", "--undo", "--lake", lake)[0] == 0
    assert run_command("run", loaded_tree.root, "--lake", lake)[0] == 0
    assert read_units(lake) == ["sub-ada", "sub-bob"]


def test_a_rebuild_under_another_id_key_is_refused(
    loaded_tree: Tree, run_command: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = tmp_path / "keyed"
    monkeypatch.setenv("DICOM_ETL_ID_KEY", "first key " * 4)
    run_command("run", loaded_tree.root, "--lake", lake)
    assert run_command("withdraw", "ds", "sub-ada", "--yes", "--lake", lake)[0] == 0
    assert run_command("run", loaded_tree.root, "--lake", lake)[0] == 0
    assert read_units(lake) == ["sub-bob"]
    before = hash_lake(Lake(str(lake)))
    monkeypatch.setenv("DICOM_ETL_ID_KEY", "other key " * 4)
    code, out, _ = run_command("run", loaded_tree.root, "--lake", lake, "--rebuild")
    assert (code, "the withdrawals from ds are recorded under the id key" in " ".join(out.split())) == (1, True)
    assert hash_lake(Lake(str(lake))) == before


def read_units(lake: Path) -> list[str]:
    """The units of the only dataset of a lake."""
    return sorted(set(Lake(str(lake)).read(INVENTORY, dataset="ds")["unit"].to_pylist()))


def test_another_namespace_brings_nobody_back(loaded_tree: Tree) -> None:
    withdraw("ds", "sub-ada", loaded_tree.lake, Settings(namespace="https://one.example"))
    loaded_tree.settings = Settings(namespace="https://two.example")
    loaded_tree.crawl()
    assert loaded_tree.lake.read(INVENTORY, dataset="ds")["unit"].to_pylist() == ["sub-bob"]
