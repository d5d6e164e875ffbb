"""Tasks of which none goes on alone: when one fails, the others end before the failure goes further."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Coroutine, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


async def gather(work: Iterable[Awaitable[T]]) -> list[T]:
    """The results of all, in their order.

    Raises:
        the first failure, as it is and in no group, once the others have ended.
    """
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await cancel(tasks)


async def cancel(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Cancel what still goes on, and wait until nothing does."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class TaskWindow:
    """Runs coroutines, at most `most` at once, so that no more work is in memory than is on its way.

    Within `async with`, whose end waits for all of them. When one fails the others are ended.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._running: set[asyncio.Task[None]] = set()

    async def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a coroutine; waits while enough of them run."""
        while len(self._running) >= self._most:
            await self._wait()
        self._running.add(asyncio.create_task(work))
        await asyncio.sleep(0)  # answers are read meanwhile, else the server has nothing to do

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while error is None and self._running:
                await self._wait()
        finally:
            await cancel(self._running)

    async def _wait(self) -> None:
        done, self._running = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.gather(*done)  # raises what one of them did
