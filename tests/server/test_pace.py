"""How many requests are let through at once."""

import asyncio
import contextlib

import pytest

from dicom_etl.server.errors import FhirError, ServerError, TimedOutError, UnreachableError
from dicom_etl.server.pace import Pace


async def asked(pace: Pace, error: Exception | None = None) -> None:
    with contextlib.suppress(FhirError):
        async with pace:
            if error:
                raise error


def run(pace: Pace, *errors: Exception | None) -> int:
    async def all_of_them() -> int:
        for error in errors:
            await asked(pace, error)
        return pace.limit

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("error", [ServerError(429, "busy"), ServerError(503, "busy"), TimedOutError("slow")])
def test_it_halves_when_the_server_asks_for_patience(error: Exception) -> None:
    assert run(Pace(8), error) == 4
    assert run(Pace(8), error, error, error, error) == 1


@pytest.mark.parametrize("error", [ServerError(422, "no"), ServerError(500, "oops"), UnreachableError("gone")])
def test_other_errors_say_nothing_of_too_much_work(error: Exception) -> None:
    assert run(Pace(8), error) == 8


def test_it_grows_again_one_by_one_and_not_beyond_what_was_allowed() -> None:
    busy = ServerError(429, "busy")
    assert run(Pace(4), busy, *[None] * 7) == 2
    assert run(Pace(4), busy, *[None] * 8) == 3
    assert run(Pace(4), busy, *[None] * 100) == 4


def test_no_more_than_the_limit_are_on_their_way() -> None:
    async def most_at_once() -> list[int]:
        pace, running, seen = Pace(4), 0, []

        async def one(number: int) -> None:
            nonlocal running
            async with pace:
                running += 1
                seen.append(running)
                await asyncio.sleep(0)
                running -= 1
                if number == 0:
                    raise ServerError(503, "busy")

        await asyncio.gather(one(0), return_exceptions=True)
        await asyncio.gather(*(one(n) for n in range(1, 9)))
        return seen

    assert max(asyncio.run(most_at_once())[1:]) == 2
