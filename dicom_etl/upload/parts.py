"""One ledger at work: which resources are to be sent, what became of them, and the bundles in which they travel."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from dicom_etl.server.errors import FhirError, ServerError
from dicom_etl.server.sending import Sender
from dicom_etl.server.tasks import ended
from dicom_etl.server.transactions import Item, Key, Outcome, Packer, canonical, digest
from dicom_etl.upload.ledger import Ledger, Row, failed, may_be_there, on_server, up_to_date
from dicom_etl.upload.linking import Link
from dicom_etl.upload.run import Options, Run

Resource = dict[str, Any]
_LOOKS, _LOOK_PAUSE = 10, 0.1  # times, seconds
_LONGEST_LOOK_PAUSE = 5.0
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
        if options.failed_only and not failed(row):
            self.waiting.add(candidate.key)
            return False
        self.pending += 1
        return True

    def record(self, candidate: Candidate, outcome: Outcome) -> None:
        """Note what became of a resource."""
        before = self._ours(candidate.key)
        stored = outcome.state == "stored"
        if stored and candidate.restores:
            self.hold(candidate, *candidate.restores)
            self.ledger.note(self.ledger.rows[candidate.key] | {"version": outcome.version})
            return
        news = {
            "id_on_server": outcome.place or candidate.at or candidate.id,
            "linked": candidate.adopts,
            "version": outcome.version if stored else before["version"],
            "state": outcome.state,
            "status": outcome.status,
            "attempts": outcome.attempts,
            "error": _said(candidate, outcome),
        }
        self._note(candidate, news | _contents(candidate, outcome, before))
        if outcome.state == "retrying":
            self.ledger.save_soon()
        else:
            self.pending -= 1
        if stored:
            self.sent.add(candidate.key)

    def settle(self, candidate: Candidate, version: str) -> None:
        """Note that the server has a resource as it should be, though the ledger did not know."""
        self.record(candidate, Outcome("stored", None, version))
        self.sent.discard(candidate.key)

    def hold(self, candidate: Candidate, code: str, text: str, version: str | None = None) -> None:
        """Note that a resource is not sent until somebody decides."""
        before = self._ours(candidate.key)
        kept = {name: before[name] for name in _NOTHING}
        if kept["version"] is None:
            kept["version"] = version
        at = {"id_on_server": candidate.at or candidate.id, "linked": candidate.adopts}
        news = kept | at | {"state": "held", "status": None, "attempts": 0, "error": f"{code}: {text}"}
        self._note(candidate, news)
        self.pending -= 1

    def link(self, candidate: Candidate, link: Link) -> None:
        """Note that the server's own Patient is used."""
        there = {"id_on_server": link.id, "linked": True, "hash": candidate.hash, "version": link.version}
        news = {"state": "stored", "status": None, "attempts": 0, "error": None}
        self._note(candidate, _NOTHING | there | news)
        self.pending -= 1

    def _ours(self, key: Key) -> Row:
        """What is known of a resource of our own; a link to another's Patient tells nothing of ours."""
        row = self.ledger.get(key)
        return row if row is not None and (not row["linked"] or row["type"] == "ImagingStudy") else _NOTHING

    def _note(self, candidate: Candidate, news: Row) -> None:
        self.ledger.note(candidate.row | {"type": candidate.type, "id": candidate.id, "time": datetime.now(UTC)} | news)


_NOTHING: Row = {"hash": None, "tried": None, "version": None, "content": None, "tried_content": None}
_NOTHING_TRIED: Row = {"tried": None, "tried_content": None}


def _contents(candidate: Candidate, outcome: Outcome, before: Row) -> Row:
    """What was stored, and what may have arrived: not what the server is known to have, nor what it refused."""
    # a Patient as we make it: the next time, it tells what of the server's was ours
    content = canonical(candidate.resource).decode() if candidate.type == "Patient" else None
    if outcome.state == "stored":
        return {"hash": candidate.hash, "content": content} | _NOTHING_TRIED
    known = {name: before[name] for name in ("hash", "content")}
    if outcome.state != "rejected":
        return known | {"tried": candidate.hash, "tried_content": content}
    kept = _NOTHING_TRIED if before["tried"] == candidate.hash else {name: before[name] for name in _NOTHING_TRIED}
    return known | kept


def _said(candidate: Candidate, outcome: Outcome) -> str | None:
    if candidate.restores and outcome.state != "retrying":
        return f"{outcome.error}; what ours replaced was not put back: {candidate.restores[1]}"
    return outcome.error or candidate.remark


def _settled(row: Row) -> Row:
    """The columns of a row whose resource is on the server as it should be."""
    return {} if row["state"] == "stored" else {"state": "stored", "error": None} | _NOTHING_TRIED


def announce(candidates: Sequence[Candidate]) -> None:
    """Save which of our resources are about to be replaced by what.

    A run that is killed after the server has taken it leaves a version that no ledger knows. The next run then knows
    its content, and does not take it for somebody else's.
    """
    updates = [candidate for candidate in candidates if candidate.if_match and not candidate.adopts]
    for candidate in updates:
        candidate.part.record(candidate, Outcome("retrying"))
    for part in parts_of(updates):
        part.ledger.save()


class Flow:
    """Packs candidates into bundles and runs a job on each, a few at once.

    Within `async with`, whose end waits for all jobs. When one fails the others are ended: nothing is sent or noted of
    a dataset once its upload was left.
    """

    def __init__(self, run: Run, job: Callable[[list[Candidate]], Awaitable[None]]) -> None:
        fhir = run.fhir
        self._packer: Packer[Candidate] = Packer(fhir.bundle_resources, fhir.bundle_bytes)
        self._limit, self._job = run.addressing.in_flight(fhir.in_flight), job
        self._running: set[asyncio.Task[None]] = set()

    async def add(self, candidate: Candidate) -> None:
        """Take a candidate; waits while enough is on its way."""
        await asyncio.sleep(0)  # answers are read meanwhile, else the server has nothing to do until a bundle is full
        if bundle := self._packer.add(candidate):
            await self._start(bundle)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                await self._rest()
        finally:
            await ended(self._running)

    async def _rest(self) -> None:
        """Send what is left and wait for everything."""
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
        await asyncio.gather(*done)  # raises what one of them did


Prepare = Callable[[list[Candidate]], Awaitable[list[Candidate]]]


async def send_prepared(run: Run, bundle: Sequence[Candidate], prepare: Prepare) -> None:
    """Send what `prepare` makes of a bundle; look at the server again where it changed in between."""
    whole = {candidate.key: candidate for candidate in bundle}
    left = list(bundle)
    for look in range(_LOOKS):
        try:
            sendable = await prepare([_fresh(whole[one.key], one.overwrote) for one in left])
        except FhirError as error:
            gave_up(left, error)
            return
        left = await run.sender.send([run.addressing.addressed(one) for one in sendable], record)
        if not left:
            return
        await asyncio.sleep(random.uniform(0, min(_LONGEST_LOOK_PAUSE, _LOOK_PAUSE * 2**look)))
    gave_up(left, ServerError(409, "somebody else writes to it all the time"))


def _fresh(candidate: Candidate, overwrote: str) -> Candidate:
    """A candidate before it is prepared, at the place that the ledger knows."""
    row = candidate.part.ledger.get(candidate.key)
    at = row["id_on_server"] if row is not None and on_server(row) and not row["linked"] else ""
    at = "" if at == candidate.id else at
    return replace(candidate, at=at, overwrote=overwrote)


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
    if row["linked"] or not (on_server(row) or may_be_there(row)):
        ledger.drop(key)
    elif row["state"] != "gone":
        ledger.note(row | {"state": "gone", "error": None})


async def deleted(sender: Sender, ledger: Ledger, key: Key) -> bool:
    """Delete a resource of the ledger from the server, and say whether that was done."""
    error = await sender.delete(key[0], ledger.rows[key]["id_on_server"] or key[1])
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
    if row["linked"]:
        return "linked"
    if key in part.sent:
        return word("stored", options)
    return "unchanged"


def word(state: str, options: Options) -> str:
    """The name of a state in the summary of this run."""
    return _DRY_WORDS.get(state, state) if options.dry_run else state
