"""When a request is made again, without waiting for it."""

import asyncio
from dataclasses import dataclass, field

import pytest

from dicom_etl.server.errors import FhirError, ServerError, TimedOutError, UnreachableError
from dicom_etl.server.retry import Budget, is_transient, persist


@dataclass
class Clock:
    """A clock that only sleeping moves."""

    now: float = 0.0
    pauses: list[float] = field(default_factory=list)

    async def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def run(failures: list[FhirError], seconds: float = 600) -> tuple[object, list[float]]:
    """What comes of a request that fails so often, and the pauses."""
    clock, left = Clock(), list(failures)

    async def request() -> str:
        if left:
            raise left.pop(0)
        return "done"

    async def whole() -> object:
        try:
            return await persist(request, Budget(seconds, clock=lambda: clock.now), sleep=clock.sleep)
        except FhirError as error:
            return error

    return asyncio.run(whole()), clock.pauses


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504])
def test_what_a_later_moment_may_mend_is_tried_again(status):
    assert run([ServerError(status, "")])[0] == ("done", 2)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 412, 413, 422])
def test_what_stays_as_it_is_is_tried_once(status):
    error, pauses = run([ServerError(status, "")])

    assert isinstance(error, ServerError)
    assert (error.status, error.attempts, pauses) == (status, 1, [])


def test_network_errors_are_tried_again_and_others_are_not_ours():
    assert run([UnreachableError("gone"), TimedOutError("slow")])[0] == ("done", 3)
    assert not is_transient(ValueError("a mistake of ours"))


def test_pauses_grow_and_scatter_and_have_a_longest():
    _, pauses = run([ServerError(503, "")] * 12, seconds=10_000)

    longest = [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60]
    assert len(pauses) == len(longest)
    assert all(limit / 2 <= pause <= limit for pause, limit in zip(pauses, longest, strict=True))
    assert len(set(pauses)) == len(pauses)


def test_the_server_may_ask_for_a_longer_pause():
    result, pauses = run([ServerError(429, "", retry_after=30)])

    assert result == ("done", 2)
    assert 30 <= pauses[0] <= 30.5


def test_a_pause_beyond_the_time_left_ends_it_at_once():
    error, pauses = run([ServerError(429, "", retry_after=700)])

    assert isinstance(error, ServerError)
    assert (error.attempts, pauses) == (1, [])


def test_all_pauses_together_stay_within_the_time():
    error, pauses = run([ServerError(503, "")] * 100, seconds=60)

    assert isinstance(error, ServerError)
    assert error.attempts == len(pauses) + 1
    assert sum(pauses) <= 60


def test_with_no_time_at_all_there_is_one_try():
    error, _ = run([UnreachableError("gone")], seconds=0)

    assert isinstance(error, UnreachableError)
    assert error.attempts == 1
