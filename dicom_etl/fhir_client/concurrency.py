"""Limit on concurrent requests: halved when the server is busy or times out, raised by one after eight successes.

Not here: the repetition of failed requests (`retry`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType

from dicom_etl.fhir_client.errors import BusyError, TimedOutError

_SUCCESSES_TO_GROW = 8


class ConcurrencyLimit:
    """Admits `limit` requests at once, first come first served; enter it with `async with` for each request.

    Attributes:
        limit: number of requests admitted at present, from 1 to `maximum`.
    """

    def __init__(self, maximum: int) -> None:
        self.limit = self._maximum = max(1, maximum)
        self._running = self._successes = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def __aenter__(self) -> None:
        if self._running < self.limit and not self._waiting:
            self._running += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # cancelled just when its turn came
                self._running -= 1
            self._admit()
            raise

    async def __aexit__(
        self, _class: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._running -= 1
        if isinstance(error, BusyError | TimedOutError):
            self.limit, self._successes = max(1, self.limit // 2), 0
        elif error is None:
            self._successes += 1
            if self._successes >= _SUCCESSES_TO_GROW:
                self.limit, self._successes = min(self._maximum, self.limit + 1), 0
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._running < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self._running += 1
                turn.set_result(None)
