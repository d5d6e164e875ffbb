"""When a request is made again: on what a later moment may mend, with growing pauses, within a total time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from dicom_etl.server.errors import FhirError, ServerError, UnreachableError

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]


@dataclass
class Budget:
    """The time that all tries of a request may take together, counted from when this is made."""

    seconds: float
    clock: Callable[[], float] = time.monotonic
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.clock()

    def left(self) -> float:
        """Seconds that remain."""
        return self.seconds - (self.clock() - self.began)


def is_transient(error: BaseException) -> bool:
    """Whether a later try may succeed: 408, 409, 429, 5xx, or the network."""
    if isinstance(error, ServerError):
        return error.status in (408, 409, 429) or error.status >= 500
    return isinstance(error, UnreachableError)


async def persist(
    request: Callable[[], Awaitable[T]],
    budget: Budget,
    *,
    again: Callable[[BaseException], bool] = is_transient,
    sleep: Sleep = asyncio.sleep,
) -> tuple[T, int]:
    """The result of `request` and the number of tries; at least one, and no pause that the budget does not hold.

    Raises:
        FhirError: that of the last try; its `attempts` says how many there were.
    """
    tries = 0
    retrying = AsyncRetrying(
        retry=retry_if_exception(again),
        wait=_pause,
        stop=lambda state: state.upcoming_sleep > budget.left(),
        sleep=sleep,
        reraise=True,
    )
    try:
        async for attempt in retrying:
            with attempt:
                tries += 1
                result = await request()
    except FhirError as error:
        error.attempts = tries
        raise
    return result, tries


def _pause(state: RetryCallState) -> float:
    """Half to whole of a doubling pause, so that those who failed together do not return together."""
    longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (state.attempt_number - 1))
    pause = random.uniform(longest / 2, longest)
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, ServerError) else None
    return pause if asked is None else max(pause, asked + random.uniform(0, 0.5))
