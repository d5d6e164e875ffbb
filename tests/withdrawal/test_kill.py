"""A withdrawal that is killed at any moment is completed by the next call."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers.hapi_server import HapiServer
from tests.support.datasets import Tree, make_lake
from tests.support.proxy import run_proxy
from tests.support.upload_lakes import ledger_rows
from tests.withdrawal.withdrawal_case import (
    WithdrawalCase,
    find_files_containing,
    list_terms_of_ada,
    make_two_subjects,
)

ROOT = Path(__file__).parents[2]
KILLED = Path(__file__).parent / "killed_withdrawal.py"


MOMENTS: dict[str, Callable[[list[str]], int]] = {
    "between record and server": lambda events: find_first(events, "after ", "withdrawn/") + 1,
    "between studies and Patients": lambda events: events.index("delete Patient"),
    "before the ledger": lambda events: events.index("before the ledger"),
    "after the ledger": lambda events: events.index("after the ledger"),
    "between ledger and record": lambda events: find_last(events, "before ", "withdrawn/"),
    "before the lake": lambda events: find_last(events, "after ", "withdrawn/"),
    "before the new resources are named": lambda events: find_first(events, "before commits/build/", ".pending"),
    "between the files of resources": lambda events: find_first(events, "before fhir/ImagingStudy/"),
    "before the commit of resources": lambda events: find_last(events, "before commits/build/", ""),
    "between resources and headers": lambda events: find_first(events, "before commits/extract/", ".pending"),
    "between the header tables": lambda events: find_last(events, "before ", "/files/"),
    "before the commit of headers": lambda events: find_last(events, "before commits/extract/", ""),
    "before the inventory": lambda events: find_first(events, "before ", "inventory/"),
}


def find_first(events: list[str], start: str, path: str = "") -> int:
    return next(n for n, event in enumerate(events) if event.startswith(start) and path in event)


def find_last(events: list[str], start: str, path: str) -> int:
    return max(n for n, event in enumerate(events) if event.startswith(start) and path in event)


def run_in_process(case: WithdrawalCase, tree: Tree, when: int) -> int:
    events = str(case.folder / "events")
    command = [sys.executable, str(KILLED), events, str(when), case.lake.root, case.server.url, case.namespace]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([*command, tree.name, "sub-ada"], env=environment, check=False, timeout=120).returncode


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory, hapi: HapiServer) -> list[str]:
    """The events of a withdrawal."""
    folder = tmp_path_factory.mktemp("events")
    with run_proxy(hapi.base_url) as server:
        case = WithdrawalCase(folder, "https://site-events", server, make_lake(folder))
        tree = make_two_subjects(case)
        case.run(tree)
        assert run_in_process(case, tree, -1) == 0
    event_names = (folder / "events").read_text().splitlines()
    assert len({moment(event_names) for moment in MOMENTS.values()}) == len(MOMENTS)
    return event_names


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_at_any_moment_is_completed_by_the_next_call(
    moment: str, case: WithdrawalCase, events: list[str]
) -> None:
    tree = make_two_subjects(case)
    case.run(tree)
    assert run_in_process(case, tree, MOMENTS[moment](events)) == -signal.SIGKILL
    if moment == "between studies and Patients":  # a nightly run in between
        case.run(tree)
        assert ledger_rows(case.lake, case.server.url, tree.name, "sub-ada")

    done = case.withdraw(tree, "sub-ada")

    assert done.exit_code == 0
    hers = [case.study(tree, "one"), case.study(tree, "two"), case.patient(tree, "ID-ADA")]
    assert case.status(*hers, case.study(tree, "bob")) == [410] * 3 + [200]
    assert find_files_containing(case.lake, *list_terms_of_ada(tree)) == []
    [row] = case.record(tree)
    assert (row["imaging_studies"], row["patients"], row["pending_deletions"]) == (2, 1, None)
    # no temporary file is left
    hidden = (path for path in Path(case.lake.root).rglob("*") if "/." in path.as_posix() and path.is_file())
    assert list(hidden) == []
