"""Retries: which errors are retried, with which pauses, and for how long; the clock is simulated."""

import asyncio
from dataclasses import dataclass, field

import pytest

from dicom_etl.fhir_client import (
    BusyError,
    ConflictError,
    FhirError,
    InvalidAnswerError,
    ServerFailureError,
    TimedOutError,
    UnreachableError,
)
from dicom_etl.fhir_client.errors import make_error
from dicom_etl.fhir_client.retry import RetryTime, is_transient, retry


@dataclass
class Clock:
    """A clock that advances only when `sleep` is called."""

    now: float = 0.0
    pauses: list[float] = field(default_factory=list)

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def run(failures: list[FhirError], seconds: float = 600) -> tuple[object, list[float]]:
    """The result of a request that has these failures first, or its error; and the pauses."""
    clock, remaining = Clock(), list(failures)
    retry_time = RetryTime(seconds, clock=lambda: clock.now)

    async def request() -> str:
        retry_time.start()
        if remaining:
            raise remaining.pop(0)
        return "done"

    async def whole() -> object:
        try:
            return await retry(request, retry_time, sleep=clock.sleep)
        except FhirError as error:
            return error

    return asyncio.run(whole()), clock.pauses


def busy(retry_after: float | None = None) -> FhirError:
    return make_error(429, "busy", retry_after=retry_after)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_transient_errors_are_retried(status: int) -> None:
    assert run([make_error(status, "")])[0] == ("done", 2)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 412, 413, 422, 501])
def test_permanent_errors_are_not_retried(status: int) -> None:
    error, pauses = run([make_error(status, "")])

    assert isinstance(error, FhirError)
    assert (error.status, error.attempts, pauses) == (status, 1, [])


def test_network_errors_are_retried() -> None:
    assert run([UnreachableError("gone"), TimedOutError("slow")])[0] == ("done", 3)


def test_other_exceptions_are_not_changed() -> None:
    async def request() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        asyncio.run(retry(request, RetryTime(600)))


def test_only_invalid_answers_are_limited_to_two_retries() -> None:
    invalid = InvalidAnswerError("the answer is empty")
    assert run([invalid, busy(), invalid, busy()])[0] == ("done", 5)
    error, pauses = run([invalid, busy(), invalid, busy(), invalid])
    assert error is invalid
    assert (invalid.attempts, len(pauses)) == (5, 4)


def test_pauses_are_random_and_grow_up_to_a_maximum() -> None:
    _, pauses = run([busy()] * 12, seconds=10_000)

    longest = [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60]
    assert len(pauses) == len(longest)
    assert all(limit / 2 <= pause <= limit for pause, limit in zip(pauses, longest, strict=True))
    assert len(set(pauses)) == len(pauses)


def test_retry_after_prolongs_a_pause() -> None:
    result, pauses = run([busy(retry_after=30)])

    assert result == ("done", 2)
    assert 30 <= pauses[0] <= 30.5


def test_there_is_no_pause_beyond_the_remaining_time() -> None:
    error, pauses = run([busy(retry_after=300)], seconds=299)

    assert isinstance(error, BusyError)
    assert (error.attempts, pauses) == (1, [])


def test_all_pauses_together_stay_within_the_limit() -> None:
    error, pauses = run([busy() for _ in range(100)], seconds=60)

    assert isinstance(error, BusyError)
    assert error.attempts == len(pauses) + 1
    assert sum(pauses) <= 60


def test_without_time_there_is_one_attempt() -> None:
    error, _ = run([UnreachableError("gone")], seconds=0)

    assert isinstance(error, UnreachableError)
    assert error.attempts == 1


def test_the_time_is_counted_from_the_first_start() -> None:
    clock = Clock()
    retry_time = RetryTime(10, clock=lambda: clock.now)
    clock.now = 100.0
    assert retry_time.remaining() == 10
    retry_time.start()
    clock.now = 104.0
    retry_time.start()
    assert retry_time.remaining() == 6


def test_an_error_covers_all_attempts() -> None:
    error, _ = run([make_error(504, ""), make_error(409, "")])
    assert isinstance(error, ConflictError)
    assert (error.attempts, error.may_have_arrived) == (2, True)
    error, _ = run([busy(), make_error(422, "")])
    assert isinstance(error, FhirError)
    assert not error.may_have_arrived


def test_the_class_of_an_error_tells_whether_it_is_transient() -> None:
    assert [is_transient(error) for error in (busy(), ServerFailureError(""), ConflictError(""), FhirError(""))] == [
        True,
        True,
        False,
        False,
    ]
