"""The ledger: when it is written."""

from typing import Any

import pytest

from dicom_etl.upload.ledger import Ledger, failed, may_be_there, on_server, up_to_date


def row(identity: str, **more: Any) -> dict[str, Any]:
    plain = {
        "type": "Patient",
        "id": identity,
        "linked": False,
        "hash": "h",
        "tried": None,
        "tried_content": None,
        "replaced": None,
        "version": "1",
        "state": "stored",
        "time": 1,
    }
    return plain | more


def ledger(*rows: dict[str, Any], **more: Any) -> tuple[Ledger, list[tuple[list[str], str]]]:
    written: list[tuple[list[str], str]] = []
    return Ledger(rows, lambda rs, mark: written.append(([r["id"] for r in rs], mark)), **more), written


def test_a_ledger_that_did_not_change_is_not_written():
    kept, written = ledger(row("a"), mark="m")

    kept.note(row("a", time=2))
    kept.save("m")

    assert written == []
    assert kept.rows["Patient", "a"]["time"] == 1


def test_changes_and_a_new_mark_are_written():
    kept, written = ledger(row("a"))

    kept.note(row("b"))
    kept.save()
    kept.save("done")
    kept.drop(("Patient", "a"))
    kept.save("done")

    assert written == [(["a", "b"], ""), (["a", "b"], "done"), (["b"], "done")]


def test_a_ledger_that_takes_long_to_write_is_written_less_often():
    times = iter([0.0, 1.0, 5.0, 11.0, 12.0])  # began, ended, too soon, began, ended
    kept, written = ledger(clock=lambda: next(times))

    for identity in "abc":
        kept.note(row(identity))
        kept.save_soon()

    assert written == [(["a"], ""), (["a", "b", "c"], "")]


def test_what_a_row_says():
    assert on_server(row("a", version="", state="gone"))
    assert not on_server(row("a", version=None, state="rejected"))
    assert up_to_date(row("a", state="held"), "h")
    assert not up_to_date(row("a", state="rejected"), "h")
    assert not up_to_date(row("a"), "other")
    assert failed(row("a", state="gave-up"))
    assert not failed(None)


def test_a_ledger_of_before_knew_links_by_their_ids_alone():
    kept, _ = ledger(row("a", linked=None, id_on_server="a"), row("b", linked=None, id_on_server="theirs"))
    assert [kept.rows["Patient", one]["linked"] for one in "ab"] == [False, True]


@pytest.mark.parametrize("state", ["gave-up", "retrying", "held", "gone"])
def test_what_was_sent_without_an_answer_may_be_there(state: str):
    assert may_be_there(row("a", version=None, tried="h", state=state))
    assert not may_be_there(row("a", version=None, tried=None, state=state))
    assert not may_be_there(row("a", version="1", tried="h", state=state))
