"""Retries: which errors, with which pauses, within which time."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from dicom_etl.fhir_client.errors import FhirError, InvalidAnswerError, TransientError

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0  # seconds
_INVALID_ANSWERS = 3  # in one call: waiting rarely helps

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]


@dataclass
class RetryTime:
    """The seconds that all attempts of a call may take together, counted from the first `start`."""

    seconds: float
    clock: Callable[[], float] = time.monotonic
    _started: float | None = None

    def start(self) -> None:
        """Count from now, unless this was called before."""
        if self._started is None:
            self._started = self.clock()

    def remaining(self) -> float:
        """Seconds that remain."""
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

    There is at least one attempt, and no pause that is longer than the time that remains.

    Args:
        attempt: the request.
        retry_time: limits all attempts together; it starts with the first attempt unless `attempt` starts it later.
        should_retry: whether another attempt makes sense after an error.
        sleep: waits for some seconds.

    Raises:
        FhirError: that of the last attempt, with the number of attempts; `may_have_arrived` regards all of them.
    """
    try:  # most calls succeed at once, and need no machinery
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
    """As `retry`, of a call whose first attempt has failed."""
    attempts = invalid_answers = 0
    may_have_arrived = False

    def retries(error: BaseException) -> bool:
        nonlocal invalid_answers
        if not isinstance(error, FhirError):
            return False
        if isinstance(error, InvalidAnswerError):
            invalid_answers += 1
            if invalid_answers >= _INVALID_ANSWERS:
                return False
        return should_retry(error)

    retrying = AsyncRetrying(
        retry=retry_if_exception(retries),
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
    """Half to whole of a doubling pause, so that requests that failed together are not repeated together."""
    longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(state.attempt_number - 1, 10))
    pause = random.uniform(longest / 2, longest)
    error = state.outcome.exception() if state.outcome else None
    requested = error.retry_after if isinstance(error, TransientError) else None
    return pause if requested is None else max(pause, requested + random.uniform(0, 0.5))
