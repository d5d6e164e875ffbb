"""Lake, ledger and server compared: every case by a table, without a server."""

from typing import Any

import pytest

from dicom_etl.upload.ledger import ResourceRow, State
from dicom_etl.upload.verification import Difference, compare

KEY = ("ImagingStudy", "s")
STORED_ROW = {"server_id": "s", "version": "1", "state": State.STORED, "hash": "h"}


def row(identity: str = "s", **values: Any) -> ResourceRow:
    return ResourceRow("ImagingStudy", identity, "ds", "u1", **STORED_ROW | values)


CHANGED = "the server has version 2, the ledger 1: another client has changed it"
CASES = [
    # the row, the server's version (None: missing), whether the lake produces it, its kinds, text of a difference
    ("as stored", {}, "1", True, "ok", None),
    ("no version on the server", {}, "", True, "ok", None),
    ("no version in the ledger", {"version": None}, "7", True, "ok", None),
    ("another version", {}, "2", True, "changed", CHANGED),
    ("another form of the same number", {}, "01", True, "changed", CHANGED.replace("2", "01", 1)),
    ("not there", {}, None, True, "missing", "the ledger has it as stored"),
    ("not there, and no longer produced", {}, None, False, "missing", "the ledger has it as stored"),
    ("orphaned and there", {"state": State.ORPHANED}, "1", False, "orphaned", None),
    ("orphaned and gone", {"state": State.ORPHANED}, None, False, None, None),
    ("orphaned and changed", {"state": State.ORPHANED}, "2", False, "changed", CHANGED),
    ("orphaned, produced again", {"state": State.ORPHANED}, "1", True, "ok", None),
    ("no longer produced", {}, "1", False, "orphaned", None),
    ("held, there", {"state": State.HELD}, "1", True, "unsent", "held"),
    ("held, changed", {"state": State.HELD}, "2", True, "changed+unsent", CHANGED),
    ("held, not there", {"state": State.HELD, "server_id": None}, None, True, "unsent", "held"),
    ("failed, never there", {"state": State.FAILED, "server_id": None}, None, True, "unsent", "failed"),
    ("failed, a former one is there", {"state": State.FAILED}, "1", True, "unsent", "failed"),
    ("unconfirmed", {"state": State.UNCONFIRMED, "server_id": None}, None, True, "unsent", "unconfirmed"),
    ("rejected, not produced", {"state": State.REJECTED, "server_id": None}, None, False, None, None),
    ("external, changed by its owner", {"is_external": True}, "9", True, "ok", None),
    (
        "external, not there",
        {"is_external": True},
        None,
        True,
        "missing",
        "it belongs to another client, and is used for ImagingStudy/s",
    ),
]


@pytest.mark.parametrize(
    ("values", "version", "is_produced", "expected", "text"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_the_comparison_of_a_resource(
    values: Any, version: str | None, is_produced: bool, expected: str | None, text: str | None
) -> None:
    versions = {KEY: version} if version is not None else {}
    found = compare("ds", [row(**values)], versions, {KEY: "u1"} if is_produced else {})
    kinds = expected.split("+") if expected else []
    assert found.counts == {
        kind: kinds.count(kind) for kind in ("ok", "missing", "changed", "external", "unsent", "orphaned")
    }
    assert [one.kind for one in found.differences] == [kind for kind in kinds if kind not in ("ok", "orphaned")]
    if text is not None:
        assert found.differences[0] == Difference(kinds[0], "ImagingStudy/s", "u1", text)


def test_a_resource_that_was_never_sent_has_its_unit() -> None:
    found = compare("ds", [], {}, {KEY: "u1", ("Patient", "p"): "u2"})
    assert found.differences == (
        Difference("unsent", "ImagingStudy/s", "u1", "never sent"),
        Difference("unsent", "Patient/p", "u2", "never sent"),
    )


def test_a_resource_is_compared_under_its_server_id() -> None:
    found = compare("ds", [row(server_id="17")], {("ImagingStudy", "17"): "2"}, {KEY: "u1"})
    assert [(one.kind, one.resource) for one in found.differences] == [("changed", "ImagingStudy/17")]
    missing = compare("ds", [row(server_id="17")], {KEY: "1"}, {KEY: "u1"})
    assert [(one.kind, one.resource) for one in missing.differences] == [("missing", "ImagingStudy/17")]


def test_resources_of_an_unbuilt_unit_are_not_orphaned() -> None:
    assert compare("ds", [row()], {KEY: "1"}, {}, unfinished=["u1"]).counts["ok"] == 1
    assert compare("ds", [row()], {KEY: "1"}, {}, unfinished=["u2"]).counts["orphaned"] == 1


def test_unknown_studies_of_the_dataset_are_external() -> None:
    rows = [row(), row("t", server_id="17"), row("forgotten", server_id=None, state=State.FAILED)]
    produced = {KEY: "u1", ("ImagingStudy", "new"): "u1"}
    found = compare("ds", rows, {KEY: "1"}, produced, study_ids=["z", "s", "17", "new", "t", "forgotten", "a", "a"])
    assert [one for one in found.differences if one.kind == "external"] == [
        Difference("external", "ImagingStudy/a", None, "this lake did not send it"),
        Difference("external", "ImagingStudy/z", None, "this lake did not send it"),
    ]
    assert found.counts["external"] == 2


def test_without_resources_there_is_no_difference() -> None:
    found = compare(None, [], {}, {})
    assert (found.dataset, found.differences, set(found.counts.values())) == (None, (), {0})


def test_each_resource_counts_once_unless_changed_and_unsent() -> None:
    rows = [row(str(number), server_id=str(number), version="1") for number in range(6)]
    versions = {("ImagingStudy", str(number)): "1" for number in range(4)} | {("ImagingStudy", "3"): "2"}
    found = compare("ds", rows, versions, {("ImagingStudy", str(number)): "u1" for number in range(5)})
    assert found.counts == {"ok": 3, "missing": 2, "changed": 1, "external": 0, "unsent": 0, "orphaned": 0}
