"""How many requests are on their way at once: fewer when the server asks for patience, more again when it does not.

Not here: when a request is made again (`retry`).
"""

from __future__ import annotations

import asyncio
from types import TracebackType

from dicom_etl.server.errors import ServerError, TimedOutError

_CALM = 8  # successes in a row after which one more is let through
_BUSY = (429, 503)


class Pace:
    """A gate that lets `limit` requests through at once; `async with` it around each.

    Attributes:
        limit: how many are let through now; at least one, at most as many as were allowed at the start.
    """

    def __init__(self, most: int) -> None:
        self.limit = self._most = most
        self._running = self._calm = 0
        self._free = asyncio.Condition()

    async def __aenter__(self) -> None:
        async with self._free:
            await self._free.wait_for(lambda: self._running < self.limit)
            self._running += 1

    async def __aexit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        async with self._free:
            self._running -= 1
            self._adjust(error)
            self._free.notify_all()

    def _adjust(self, error: BaseException | None) -> None:
        if is_busy(error):
            self.limit, self._calm = max(1, self.limit // 2), 0
        elif error is None:
            self._calm += 1
            if self._calm >= _CALM:
                self.limit, self._calm = min(self._most, self.limit + 1), 0


def is_busy(error: BaseException | None) -> bool:
    """Whether an answer, or that none came, says that the server has too much to do."""
    return isinstance(error, TimedOutError) or (isinstance(error, ServerError) and error.status in _BUSY)
