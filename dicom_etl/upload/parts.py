"""One ledger at work: which resources are to be sent, and what became of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime
from typing import Any

from dicom_etl.server.transactions import Item, Key, Outcome, canonical, digest
from dicom_etl.upload.ledger import (
    UNKNOWN,
    Ledger,
    Row,
    failed,
    is_never_ours,
    may_be_there,
    on_server,
    refused,
    stored,
    tried,
    up_to_date,
)
from dicom_etl.upload.linking import Link
from dicom_etl.upload.run import Options

Resource = dict[str, Any]
_DRY_WORDS = {"stored": "would-send", "deleted": "would-delete"}


@dataclass(frozen=True)
class Candidate(Item):
    """A resource that may be sent: its place, and the columns of its row that do not depend on what becomes of it."""

    _: KW_ONLY
    resource: Resource
    row: Row
    part: Part
    refers: tuple[Key, ...] = ()
    remark: str | None = None
    lost: Resource | None = None  # what it wrote over
    restores: tuple[str, str] | None = None  # it puts back what ours replaced; then ours is held: code and text


def candidate_of(resource: Resource, part: Part, **row: str | None) -> Candidate:
    """A candidate; `row` are the columns dataset, unit, subject and key."""
    body = canonical(resource)
    columns = {"dataset": None, "unit": None, "subject": None, "key": None} | row
    return Candidate(
        resource["resourceType"], resource["id"], body, digest(body), resource=resource, row=columns, part=part
    )


@dataclass
class Part:
    """A ledger at work: what was sent, what is left aside, and how many outcomes are still to come."""

    name: str
    ledger: Ledger
    shared: bool = False
    sent: set[Key] = field(default_factory=set)
    waiting: set[Key] = field(default_factory=set)
    made: set[Key] = field(default_factory=set)
    pending: int = 0
    planned: bool = False
    contradicted: bool = False

    def wants(self, candidate: Candidate, options: Options) -> bool:
        """Whether a resource is to be sent; if not, the ledger has what is to be said of it."""
        self.made.add(candidate.key)
        row = self.ledger.get(candidate.key)
        if row is not None and up_to_date(row, candidate.hash):
            self.ledger.note(row | candidate.row | _settled(row))
            return False
        is_new_to_refer_to = row is None and candidate.type != "ImagingStudy"  # a study that failed may need it
        if options.failed_only and not failed(row) and not is_new_to_refer_to:
            self.waiting.add(candidate.key)
            return False
        self.pending += 1
        return True

    def record(self, candidate: Candidate, outcome: Outcome) -> None:
        """Note what became of a resource that was sent."""
        if outcome.state == "stored" and candidate.restores:
            self._restored(candidate, outcome)
            return
        news = {
            "id_on_server": outcome.place or candidate.at or candidate.id,
            "linked": candidate.adopts,
            "state": outcome.state,
            "status": outcome.status,
            "attempts": outcome.attempts,
            "error": _said(candidate, outcome),
        }
        self._note(candidate, _known(candidate, outcome, self._ours(candidate.key)) | news)
        if outcome.state != "retrying":
            self.pending -= 1
        if outcome.state == "stored":
            self.sent.add(candidate.key)

    def settle(self, candidate: Candidate, version: str) -> None:
        """Note that the server has a resource as it should be, though the ledger did not know."""
        was_sent = self._ours(candidate.key)["replaced"]
        self.record(candidate, Outcome("stored", None, version))
        if not was_sent:
            self.sent.discard(candidate.key)

    def leave(self, candidate: Candidate, state: str, error: str, status: int | None = None, attempts: int = 0) -> None:
        """Note why a resource was not sent. What is known of it stays known."""
        row = self.ledger.get(candidate.key) or UNKNOWN | {"id_on_server": candidate.id, "linked": False}
        known = {name: row[name] for name in (*UNKNOWN, "id_on_server", "linked")}
        self._note(candidate, known | {"state": state, "status": status, "attempts": attempts, "error": error})
        self.pending -= 1

    def hold(
        self, candidate: Candidate, code: str, text: str, version: str | None = None, sent: str | None = None
    ) -> None:
        """Note that a resource is not sent until somebody decides.

        Args:
            candidate: the resource.
            code: of the finding.
            text: says why.
            version: that of the server's.
            sent: the hash of the server's, where that is what we sent without an answer.
        """
        before = self._ours(candidate.key)
        known = {name: before[name] for name in UNKNOWN}
        at = {"id_on_server": candidate.at or candidate.id, "linked": candidate.adopts}
        if version is not None and (before["hash"] is None or not on_server(before)):
            # what we tried is there, or nothing of ours is
            known |= {"version": version, "hash": sent, "tried": None, "tried_content": None}
        elif on_server(before) and not (candidate.at or candidate.adopts):
            at = {name: before[name] for name in at}
        news = {"state": "held", "status": None, "attempts": 0, "error": f"{code}: {text}"}
        self._note(candidate, known | at | news)
        self.pending -= 1

    def link(self, candidate: Candidate, link: Link) -> None:
        """Note that the server's own Patient is used."""
        there = {"id_on_server": link.id, "linked": True, "hash": candidate.hash, "version": link.version}
        news = {"state": "stored", "status": None, "attempts": 0, "error": None}
        self._note(candidate, UNKNOWN | there | news)
        self.pending -= 1

    def _restored(self, candidate: Candidate, outcome: Outcome) -> None:
        """Note that what ours replaced stands again, and that ours is held."""
        self.ledger.note(self.ledger.rows[candidate.key] | UNKNOWN)
        self.hold(candidate, *(candidate.restores or ("", "")), outcome.version)

    def _ours(self, key: Key) -> Row:
        """What is known of a resource of our own; a link to another's Patient tells nothing of ours."""
        row = self.ledger.get(key)
        return row if row is not None and (not row["linked"] or row["type"] == "ImagingStudy") else UNKNOWN

    def _note(self, candidate: Candidate, news: Row) -> None:
        self.ledger.note(candidate.row | {"type": candidate.type, "id": candidate.id, "time": datetime.now(UTC)} | news)


def _known(candidate: Candidate, outcome: Outcome, before: Row) -> Row:
    """What is known of a resource after an outcome."""
    # a Patient as we make it: the next time, it tells what of the server's was ours
    content = canonical(candidate.resource).decode() if candidate.type == "Patient" else None
    if outcome.state == "stored":
        return stored(candidate.hash, content, outcome.version)
    known = {name: before[name] for name in UNKNOWN}
    if candidate.overwrote:
        known["replaced"] = candidate.overwrote
    if candidate.restores:  # what was sent is not ours
        return known
    return known | (refused if outcome.state == "rejected" else tried)(before, candidate.hash, content)


def _said(candidate: Candidate, outcome: Outcome) -> str | None:
    if candidate.restores and outcome.state != "retrying":
        return f"{outcome.error}; what ours replaced was not put back: {candidate.restores[1]}"
    return outcome.error or candidate.remark


def _settled(row: Row) -> Row:
    """The columns of a row whose resource is on the server as it should be."""
    if row["state"] == "stored":
        return {}
    return {"state": "stored", "error": None, "tried": None, "tried_content": None, "replaced": None}


def announce(candidates: Sequence[Candidate]) -> None:
    """Save which of our resources are about to be replaced by what.

    A run that is killed after the server has taken it leaves a version that no ledger knows. The next run then knows
    its content, and does not take it for somebody else's.
    """
    _save_as_tried([one for one in candidates if one.if_match and not one.adopts and not one.restores])


def note_replaced(candidates: Sequence[Candidate]) -> None:
    """Save what ours replaced though the server had nothing before: whatever happens now, it is judged."""
    _save_as_tried([one for one in candidates if one.overwrote])


def _save_as_tried(candidates: Sequence[Candidate]) -> None:
    for candidate in candidates:
        candidate.part.record(candidate, Outcome("retrying"))
    for part in parts_of(candidates):
        part.ledger.save_before_sending()


def parts_of(bundle: Sequence[Candidate]) -> list[Part]:
    """The ledgers that a bundle touches."""
    return list({id(candidate.part): candidate.part for candidate in bundle}.values())


def mark_gone(ledger: Ledger, key: Key) -> None:
    """Mark a resource that the lake no longer makes; one that we never brought onto the server is forgotten."""
    row = ledger.rows[key]
    is_link = row["linked"] and row["type"] == "Patient"
    if is_link or not (on_server(row) or may_be_there(row)) or is_never_ours(row):
        ledger.drop(key)
    elif row["state"] != "gone":
        ledger.note(row | {"state": "gone", "error": _why_it_stays(row)})


def _why_it_stays(row: Row) -> str | None:
    """What somebody must know of a resource that is gone from the lake and cannot just be deleted."""
    if row["linked"]:
        return f"not deleted: {row['type']}/{row['id_on_server']} is somebody else's; take our series out of it there"
    if row["replaced"]:
        return f"not deleted: it replaced version {row['replaced']} of another lake, which must be put back there"
    return None


def state_of(part: Part, key: Key, options: Options) -> str:
    """The state of a resource as the summary names it."""
    if key in part.waiting:
        return "waiting"
    row = part.ledger.rows[key]
    if row["state"] != "stored":
        return str(row["state"])
    if row["linked"]:
        return "linked"
    if key in part.sent:
        return word("stored", options)
    return "unchanged"


def word(state: str, options: Options) -> str:
    """The name of a state in the summary of this run."""
    return _DRY_WORDS.get(state, state) if options.dry_run else state
