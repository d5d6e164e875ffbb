"""How events change the state of a resource: every pair of a state and an event, written out."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product

import pytest

from dicom_etl.upload.ledger import FAILED_STATES, TRANSITIONS, UNFINISHED_STATES, Event, ResourceRow, State

NEVER = "-"  # it cannot happen
TABLE = """
before        sent         stored  refused   failed  unanswered   held  dropped   produced  missing
new           unconfirmed  stored  rejected  failed  unconfirmed  held  -         -         -
stored        unconfirmed  stored  rejected  failed  unconfirmed  held  orphaned  -         failed
unconfirmed   unconfirmed  stored  rejected  failed  unconfirmed  held  orphaned  -         unconfirmed
rejected      unconfirmed  stored  rejected  failed  unconfirmed  held  orphaned  -         rejected
failed        unconfirmed  stored  rejected  failed  unconfirmed  held  orphaned  -         failed
held          unconfirmed  stored  rejected  failed  unconfirmed  held  orphaned  -         held
orphaned      unconfirmed  stored  rejected  failed  unconfirmed  held  orphaned  stored    orphaned
"""
_HEADER, *_ROWS = (line.split() for line in TABLE.strip().splitlines())
CASES = [
    (None if before == "new" else before, event, after)
    for before, *states in _ROWS
    for event, after in zip(_HEADER[1:], states, strict=True)
]
BEFORE = datetime(2020, 1, 1, tzinfo=UTC)
ROW = ResourceRow(
    "Patient",
    "p",
    "ds",
    unit="u",
    server_id="17",
    hash="h",
    server_hash="s",
    version="3",
    etag='W/"3"',
    contribution="{}",
    reason="patient-conflict",
    reason_text="birthDate differs",
    http_status=412,
    attempts=4,
    time=BEFORE,
)


def test_the_table_of_this_test_has_every_state_and_event() -> None:
    assert {(before, event) for before, event, _ in CASES} == {
        (None if state is None else str(state), str(event)) for state, event in product((None, *State), Event)
    }


@pytest.mark.parametrize(("before", "event", "after"), CASES)
def test_transitions(before: str | None, event: str, after: str) -> None:
    key = (None if before is None else State(before), Event(event))
    if after == NEVER:
        assert key not in TRANSITIONS
    else:
        assert TRANSITIONS[key] is State(after)


@pytest.mark.parametrize(("before", "event", "after"), [case for case in CASES if case[0] is not None])
def test_a_row_follows_the_table_and_keeps_its_other_values(before: str, event: str, after: str) -> None:
    row = replace(ROW, state=State(before))
    if after == NEVER:
        with pytest.raises(KeyError):
            row.after(Event(event))
        return
    changed = row.after(Event(event))
    assert changed.state is State(after)
    assert timedelta(0) <= datetime.now(UTC) - changed.time < timedelta(minutes=1)
    kept = ("type", "id", "dataset", "unit", "server_id", "hash", "server_hash", "version", "etag", "contribution")
    assert [getattr(changed, name) for name in kept] == [getattr(ROW, name) for name in kept]
    keeps_reason = event in ("sent", "missing")
    assert changed.reason == ("patient-conflict" if keeps_reason else None)
    assert changed.reason_text == ("birthDate differs" if keeps_reason else None)
    assert changed.http_status == (412 if keeps_reason else None)


def test_a_row_has_the_reason_of_the_event() -> None:
    changed = ROW.after(Event.FAILED, reason="upload-failed", reason_text="HTTP 429", http_status=429, attempts=9)
    assert (changed.reason, changed.reason_text, changed.http_status, changed.attempts) == (
        "upload-failed",
        "HTTP 429",
        429,
        9,
    )


def test_a_changed_value_without_an_event_has_a_new_time() -> None:
    moved = ROW.with_changes(unit="other")
    assert replace(moved, time=BEFORE) == replace(ROW, unit="other")
    assert timedelta(0) <= datetime.now(UTC) - moved.time < timedelta(minutes=1)
    assert ROW.with_changes(unit="u") is ROW


def test_failed_and_unfinished_states() -> None:
    assert set(FAILED_STATES) == {"rejected", "failed", "unconfirmed"}
    assert set(UNFINISHED_STATES) == {"rejected", "failed", "unconfirmed", "held"}


@pytest.mark.parametrize(
    ("server_id", "content", "is_external", "is_on_server", "is_owned"),
    [
        (None, None, False, False, False),
        (None, "h", False, False, False),
        ("17", None, False, True, False),  # on the server, and not stored by the lake
        ("17", "h", False, True, True),
        ("17", "h", True, True, False),
        ("", "h", False, True, True),
    ],
)
def test_whether_a_row_is_on_the_server_and_owned(
    server_id: str | None, content: str | None, is_external: bool, is_on_server: bool, is_owned: bool
) -> None:
    row = replace(ROW, server_id=server_id, hash=content, is_external=is_external)
    assert (row.is_on_server, row.is_owned) == (is_on_server, is_owned)
    assert row.server_key == ("Patient", server_id or "p")
