"""Retries of failed requests: which errors are retried, with which pauses, and for how long."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from dicom_etl.fhir_client.errors import FhirError, InvalidAnswerError, TransientError

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds
_INVALID_ANSWERS = 3  # of one call that are sent: waiting rarely helps

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]


@dataclass
class RetryTime:
    """Time limit for all attempts of a call together, in seconds from the first call of `start`."""

    seconds: float
    clock: Callable[[], float] = time.monotonic
    _started: float | None = None

    def start(self) -> None:
        """Start the clock, unless it is running."""
        if self._started is None:
            self._started = self.clock()

    def remaining(self) -> float:
        """Seconds until the limit."""
        return self.seconds if self._started is None else self.seconds - (self.clock() - self._started)


def is_transient(error: FhirError) -> bool:
    """Whether a later attempt may succeed."""
    return isinstance(error, TransientError)


async def retry(
    attempt: Callable[[], Awaitable[T]],
    retry_time: RetryTime,
    *,
    should_retry: Callable[[FhirError], bool] = is_transient,
    sleep: Sleep = asyncio.sleep,
) -> tuple[T, int]:
    """The result of the first attempt that succeeds, and the number of attempts.

    There is at least one attempt, and no further one if the pause before it would exceed the remaining time.

    Args:
        attempt: the request.
        retry_time: limit for all attempts together; `attempt` starts its clock.
        should_retry: whether another attempt makes sense after an error.
        sleep: waits for some seconds.

    Raises:
        FhirError: the error of the last attempt, with the number of attempts; `may_have_arrived` covers all of them.
    """
    try:  # most calls succeed at once and do not need tenacity
        return await attempt(), 1
    except FhirError as error:
        failure = error
    return await _retry_after(failure, attempt, retry_time, should_retry, sleep)


async def _retry_after(
    failure: FhirError,
    attempt: Callable[[], Awaitable[T]],
    retry_time: RetryTime,
    should_retry: Callable[[FhirError], bool],
    sleep: Sleep,
) -> tuple[T, int]:
    """As `retry`, after a first attempt that failed."""
    attempts = invalid_answers = 0
    may_have_arrived = False

    def needs_retry(error: BaseException) -> bool:
        nonlocal invalid_answers
        if not isinstance(error, FhirError):
            return False
        if isinstance(error, InvalidAnswerError):
            invalid_answers += 1
            if invalid_answers >= _INVALID_ANSWERS:
                return False
        return should_retry(error)

    retrying = AsyncRetrying(
        retry=retry_if_exception(needs_retry),
        wait=_choose_pause,
        stop=lambda state: state.upcoming_sleep > retry_time.remaining(),
        sleep=sleep,
        reraise=True,
    )
    try:
        async for attempt_context in retrying:
            with attempt_context:
                attempts += 1
                try:
                    if attempts == 1:
                        raise failure
                    result = await attempt()
                except FhirError as error:
                    may_have_arrived = error.may_have_arrived = may_have_arrived or error.may_have_arrived
                    raise
    except FhirError as error:
        error.attempts = attempts
        raise
    return result, attempts


def _choose_pause(state: RetryCallState) -> float:
    """A random pause whose upper bound doubles, so that requests that failed together are not repeated together."""
    longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(state.attempt_number - 1, 10))
    pause = random.uniform(longest / 2, longest)
    error = state.outcome.exception() if state.outcome else None
    requested = error.retry_after if isinstance(error, TransientError) else None
    return pause if requested is None else max(pause, requested + random.uniform(0, 0.5))
