"""Tasks of which none goes on alone: when one fails, the others end before the failure goes further."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


async def together(work: Iterable[Awaitable[T]]) -> list[T]:
    """The results of all, in their order.

    Raises:
        the first failure, as it is and in no group, once the others have ended.
    """
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await ended(tasks)


async def ended(tasks: Collection[asyncio.Future[Any]]) -> None:
    """Cancel what still goes on, and wait until nothing does."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
