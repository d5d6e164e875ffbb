"""One ledger at work: which resources are to be sent, what became of them, and the bundles in which they travel."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from dicom_etl.server.errors import FhirError, ServerError
from dicom_etl.server.ledger import Ledger, Row, failed, on_server, up_to_date
from dicom_etl.server.linking import Link
from dicom_etl.server.run import Options, Run
from dicom_etl.server.transactions import Item, Key, Outcome, Packer, Sender, canonical, digest

Resource = dict[str, Any]
_DRY_WORDS = {"stored": "would-send", "deleted": "would-delete"}


@dataclass(frozen=True)
class Candidate(Item):
    """A resource that may be sent: its place, and the columns of its row that do not depend on what becomes of it."""

    resource: Resource
    row: Row
    part: Part
    refers: tuple[Key, ...] = ()
    remark: str | None = None


def candidate_of(resource: Resource, part: Part, **row: str | None) -> Candidate:
    """A candidate; `row` are the columns dataset, unit, subject and key."""
    body = canonical(resource)
    columns = {"dataset": None, "unit": None, "subject": None, "key": None} | row
    return Candidate(resource["resourceType"], resource["id"], body, digest(body), resource, columns, part)


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
        if options.failed_only and not failed(row):
            self.waiting.add(candidate.key)
            return False
        self.pending += 1
        return True

    def record(self, candidate: Candidate, outcome: Outcome) -> None:
        """Note what became of a resource."""
        before = self._ours(candidate.key)
        stored = outcome.state == "stored"
        content = candidate.body.decode() if self.shared and candidate.type == "Patient" else None
        news = {
            "id_on_server": candidate.id,
            "hash": candidate.hash,
            "version": outcome.version if stored else before["version"],
            "state": outcome.state,
            "status": outcome.status,
            "attempts": outcome.attempts,
            "error": outcome.error or candidate.remark,
            "content": content if stored else before["content"],
        }
        self._note(candidate, news)
        if stored:
            self.sent.add(candidate.key)

    def hold(self, candidate: Candidate, code: str, text: str, version: str | None = None) -> None:
        """Note that a resource is not sent until somebody decides."""
        before = self._ours(candidate.key)
        kept = {name: before[name] for name in ("hash", "version", "content")}
        if kept["version"] is None:
            kept["version"] = version
        self._note(
            candidate,
            kept
            | {"id_on_server": candidate.id, "state": "held", "status": None, "attempts": 0}
            | {"error": f"{code}: {text}"},
        )

    def link(self, candidate: Candidate, link: Link) -> None:
        """Note that the server's own Patient is used."""
        news = {"id_on_server": link.id, "hash": candidate.hash, "version": link.version, "state": "stored"}
        self._note(candidate, news | {"status": None, "attempts": 0, "error": None, "content": None})

    def _ours(self, key: Key) -> Row:
        """What is known of a resource under our own id; a link to another's tells nothing of ours."""
        row = self.ledger.get(key)
        return row if row is not None and row["id_on_server"] == row["id"] else _NOTHING

    def _note(self, candidate: Candidate, news: Row) -> None:
        self.ledger.note(candidate.row | {"type": candidate.type, "id": candidate.id, "time": datetime.now(UTC)} | news)
        self.pending -= 1


_NOTHING: Row = {"hash": None, "version": None, "content": None}


def _settled(row: Row) -> Row:
    """The columns of a row whose resource is on the server as it should be."""
    return {} if row["state"] == "stored" else {"state": "stored", "error": None}


class Flow:
    """Packs candidates into bundles and runs a job on each, a few at once."""

    def __init__(self, run: Run, job: Callable[[list[Candidate]], Awaitable[None]]) -> None:
        fhir = run.fhir
        self._packer: Packer[Candidate] = Packer(fhir.bundle_resources, fhir.bundle_bytes)
        self._limit, self._job = fhir.in_flight, job
        self._running: set[asyncio.Task[None]] = set()

    async def add(self, candidate: Candidate) -> None:
        """Take a candidate; waits while enough is on its way."""
        if bundle := self._packer.add(candidate):
            await self._start(bundle)

    async def end(self) -> None:
        """Send the rest and wait for everything."""
        if bundle := self._packer.rest():
            await self._start(bundle)
        while self._running:
            await self._wait()

    async def _start(self, bundle: list[Candidate]) -> None:
        while len(self._running) >= self._limit:
            await self._wait()

        async def run() -> None:
            await self._job(bundle)

        self._running.add(asyncio.create_task(run()))

    async def _wait(self) -> None:
        done, self._running = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()


def gave_up(candidates: Sequence[Candidate], error: FhirError) -> None:
    """Note that nothing could be learned of the candidates from the server."""
    status = error.status if isinstance(error, ServerError) else None
    for candidate in candidates:
        candidate.part.record(candidate, Outcome("gave-up", status, None, error.attempts, str(error)))


def record(candidate: Candidate, outcome: Outcome) -> None:
    """Note what became of a candidate in its own ledger."""
    candidate.part.record(candidate, outcome)


def parts_of(bundle: Sequence[Candidate]) -> list[Part]:
    """The ledgers that a bundle touches."""
    return list({id(candidate.part): candidate.part for candidate in bundle}.values())


def mark_gone(ledger: Ledger, key: Key) -> None:
    """Mark a resource that the lake no longer makes; one that never was on the server is forgotten."""
    row = ledger.rows[key]
    linked = row["id_on_server"] != row["id"]
    if linked or (not on_server(row) and row["state"] != "gave-up"):
        ledger.drop(key)
    elif row["state"] != "gone":
        ledger.note(row | {"state": "gone", "error": None})


async def deleted(sender: Sender, ledger: Ledger, key: Key) -> bool:
    """Delete a resource of the ledger from the server, and say whether that was done."""
    error = await sender.delete(*key)
    if error is None:
        ledger.drop(key)
        return True
    status = error.status if isinstance(error, ServerError) else None
    ledger.note(ledger.rows[key] | {"status": status, "error": f"not deleted: {error}"})
    return False


def state_of(part: Part, key: Key, options: Options) -> str:
    """The state of a resource as the summary names it."""
    if key in part.waiting:
        return "waiting"
    row = part.ledger.rows[key]
    if row["state"] != "stored":
        return str(row["state"])
    if row["id_on_server"] != row["id"]:
        return "linked"
    if key in part.sent:
        return word("stored", options)
    return "unchanged"


def word(state: str, options: Options) -> str:
    """The name of a state in the summary of this run."""
    return _DRY_WORDS.get(state, state) if options.dry_run else state
