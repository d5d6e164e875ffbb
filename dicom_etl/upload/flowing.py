"""How the candidates of a dataset flow to the server: in bundles, a few at once, looked at again when it changed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from dicom_etl.server.errors import FhirError, ServerError
from dicom_etl.server.tasks import ended, together
from dicom_etl.server.transactions import Outcome, Packer
from dicom_etl.upload.ledger import on_server
from dicom_etl.upload.parts import Candidate, note_replaced
from dicom_etl.upload.run import Run

_LOOKS, _LOOKS_TOGETHER = 10, 3  # times
_LOOK_PAUSE, _LONGEST_LOOK_PAUSE = 0.1, 5.0  # seconds


class Flow:
    """Packs candidates into bundles and runs a job on each, a few at once.

    Within `async with`, whose end waits for all jobs. When one fails the others are ended: nothing is sent or noted of
    a dataset once its upload was left.
    """

    def __init__(self, run: Run, job: Callable[[list[Candidate]], Awaitable[None]]) -> None:
        fhir = run.fhir
        self._packer: Packer[Candidate] = Packer(fhir.max_bundle_entries, fhir.max_bundle_bytes)
        self._limit, self._job = run.addressing.in_flight(fhir.max_concurrent_requests), job
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
    """Send what `prepare` makes of a bundle; look at the server again where it changed in between.

    After a few looks each resource goes by itself: one that the server always calls stale keeps no other back.
    """
    whole = {candidate.key: candidate for candidate in bundle}
    left = list(bundle)
    for look in range(_LOOKS):
        try:
            sendable = await prepare([_fresh(whole[one.key]) for one in left])
        except FhirError as error:
            gave_up(left, error)
            return
        addressed = [run.addressing.addressed(one) for one in sendable]
        bundles = [addressed] if look < _LOOKS_TOGETHER else [[one] for one in addressed]
        left = [one for some in await together(run.sender.send(b, record) for b in bundles) for one in some]
        if not left:
            return
        note_replaced(left)
        await asyncio.sleep(random.uniform(0, min(_LONGEST_LOOK_PAUSE, _LOOK_PAUSE * 2**look)))
    for candidate in left:
        row = candidate.part.ledger.get(candidate.key)
        said = row["error"] if row and row["error"] else "somebody else writes to it all the time"
        candidate.part.leave(candidate, "gave-up", f"looked at {_LOOKS} times, and refused each time: {said}", 409)


def _fresh(candidate: Candidate) -> Candidate:
    """A candidate before it is prepared, as the ledger knows it."""
    row = candidate.part.ledger.get(candidate.key)
    if row is None:
        return candidate
    at = row["id_on_server"] if on_server(row) and not row["linked"] else ""
    return replace(candidate, at="" if at == candidate.id else at, overwrote=row["replaced"] or "")


def gave_up(candidates: Sequence[Candidate], error: FhirError) -> None:
    """Note that nothing was sent, since nothing could be learned of the candidates from the server."""
    status = error.status if isinstance(error, ServerError) else None
    for candidate in candidates:
        candidate.part.leave(candidate, "gave-up", str(error), status, error.attempts)


def record(candidate: Candidate, outcome: Outcome) -> None:
    """Note what became of a candidate in its own ledger."""
    candidate.part.record(candidate, outcome)
    if outcome.state == "retrying":
        candidate.part.ledger.save_soon()
