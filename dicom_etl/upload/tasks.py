"""Concurrent tasks that fail together: when one fails, the others are ended before the failure is raised."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Coroutine, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


async def gather(work: Iterable[Awaitable[T]]) -> list[T]:
    """Await several things concurrently; returns their results in the given order.

    Raises:
        the first failure, not in an exception group, once the others have ended.
    """
    tasks = [asyncio.ensure_future(awaitable) for awaitable in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await cancel(tasks)


async def cancel(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Cancel tasks that are still running, and wait until none is."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class TaskWindow:
    """Runs coroutines, at most `limit` at a time, so that no more work is in memory than is being done.

    A context manager: its end waits for all of them. When one fails, the others are cancelled.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._running: set[asyncio.Task[None]] = set()

    async def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Start a coroutine, as soon as fewer than `limit` are running."""
        while len(self._running) >= self._limit:
            await self._wait()
        self._running.add(asyncio.create_task(work))
        await asyncio.sleep(0)  # lets answers be read, so that the server is not idle

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
        await asyncio.gather(*done)  # raises the error of a task that failed
