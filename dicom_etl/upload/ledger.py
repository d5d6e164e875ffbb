"""The ledger: what is known of each of our resources on one server.

A row's `version` says that the server has the resource (empty where it names no version). `hash` is that of what was
stored last; none of a study that is held and was never ours to store. `tried` are the hashes of what was sent since and
may have arrived or not; of Patients, `content` and `tried_content` are that itself. `replaced` is the version that a
write of ours replaced though the server had been seen to have nothing: it is still to be judged. `state`:

- stored: the server has it as sent;
- rejected, gave-up: the last try failed; it is sent again;
- retrying: it is being tried again just now, or the run was killed then; it is sent again;
- held: not sent, until somebody decides; `error` begins with the code of the finding;
- gone: the server has it, and the lake no longer makes it.

`linked` says that the server's resource, under `id_on_server`, is somebody else's and is only referred to or added to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from dicom_etl.server.transactions import Key

Row = dict[str, Any]
Write = Callable[[list[Row], str], None]

# what is known of a resource of which nothing is known
UNKNOWN: Row = dict.fromkeys(("hash", "tried", "version", "content", "tried_content", "replaced"))

_SMALL = 5_000  # rows: some 50 ms
_MOST_TRIED = 10  # of the newest; each run whose answer is lost adds one where the content changed
_WRITING_SHARE = 10  # between two writes passes this many times what a write takes


class Ledger:
    """The rows of one ledger by (type, id); `write` saves them, with the mark that says that nothing is to do."""

    def __init__(
        self, rows: Iterable[Row], write: Write, mark: str = "", *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rows: dict[Key, Row] = {(row["type"], row["id"]): _whole(row) for row in rows}
        self._write, self._mark, self._clock = write, mark, clock
        self._changed = False
        self._next_write = float("-inf")

    def get(self, key: Key) -> Row | None:
        """The row of a resource, or None."""
        return self.rows.get(key)

    def note(self, row: Row) -> None:
        """Take a row; one that says nothing new leaves the old with its time."""
        key = row["type"], row["id"]
        before = self.rows.get(key)
        if before is None or _timeless(before) != _timeless(row):
            self.rows[key] = row
            self._changed = True

    def drop(self, key: Key) -> None:
        """Forget a resource."""
        self._changed |= self.rows.pop(key, None) is not None

    def save(self, mark: str = "") -> None:
        """Write, if anything changed."""
        if self._changed or mark != self._mark:
            self._write(list(self.rows.values()), mark)
            self._changed, self._mark = False, mark

    def save_soon(self) -> None:
        """Write, unless that was done just now: a large ledger is not written after each small bundle.

        What a kill takes with it is sent again, and changes nothing on the server.
        """
        began = self._clock()
        if self._changed and began >= self._next_write:
            self.save()
            ended = self._clock()
            self._next_write = ended + _WRITING_SHARE * (ended - began)

    def save_before_sending(self) -> None:
        """Write at once, if that is quick; of a large ledger a kill may take what was not written yet."""
        if len(self.rows) <= _SMALL:
            self.save()
        else:
            self.save_soon()


def stored(digest: str, content: str | None, version: str | None) -> Row:
    """What is known of a resource once the server is known to have it."""
    return UNKNOWN | {"hash": digest, "content": content, "version": version}


def tried(row: Row, digest: str, content: str | None) -> Row:
    """What is known of a resource once something was sent that may have arrived."""
    return {
        "tried": _with(row["tried"], digest),
        "tried_content": _with(row["tried_content"], content) if content else row["tried_content"],
    }


def refused(row: Row, digest: str, content: str | None) -> Row:
    """What is known of a resource once something was refused: that one has not arrived."""
    return {"tried": _without(row["tried"], digest), "tried_content": _without(row["tried_content"], content)}


def lines(text: str | None) -> list[str]:
    """The lines of a column that holds several; JSON may hold what str.splitlines takes for an end."""
    return text.split("\n") if text else []


def _with(text: str | None, line: str) -> str:
    kept = [one for one in lines(text) if one != line]
    return "\n".join([*kept[-_MOST_TRIED + 1 :], line])


def _without(text: str | None, line: str | None) -> str | None:
    return "\n".join(one for one in lines(text) if one != line) or None


def on_server(row: Row | None) -> bool:
    """Whether the server has the resource, as far as we know."""
    return row is not None and row["version"] is not None


def may_be_there(row: Row) -> bool:
    """Whether something was sent of which we do not know whether the server has it."""
    return not on_server(row) and row["tried"] is not None


def is_never_ours(row: Row) -> bool:
    """Whether all that is known to be there is of another lake: it was seen, and ours was held."""
    return on_server(row) and row["hash"] is None and row["tried"] is None


def up_to_date(row: Row | None, digest: str) -> bool:
    """Whether the server has the resource as it would be sent."""
    if row is None or not on_server(row) or row["tried"] is not None:
        return False
    return row["hash"] == digest and row["state"] in ("stored", "held", "gone")


def failed(row: Row | None) -> bool:
    """Whether the last try failed."""
    return row is not None and row["state"] in ("rejected", "gave-up", "retrying")


def _whole(row: Row) -> Row:
    """A row with what ledgers of before did not have: there, another id meant another's resource."""
    row = {"tried_content": None, "replaced": None} | row
    if "tried" not in row:
        row = row | {"tried": row["hash"] if row["state"] in ("gave-up", "retrying") else None}
    if row.get("linked") is None:
        row = row | {"linked": row.get("id_on_server") not in (None, row["id"])}
    return row


def _timeless(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != "time"}
