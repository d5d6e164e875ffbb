"""The limit on concurrent requests."""

import asyncio
import contextlib

import pytest

from dicom_etl.fhir_client import FhirError, RejectedError, ServerFailureError, TimedOutError, UnreachableError
from dicom_etl.fhir_client.concurrency import ConcurrencyLimit
from dicom_etl.fhir_client.errors import make_error

BUSY = make_error(429, "busy")


def run(limit: ConcurrencyLimit, *errors: FhirError | None) -> int:
    """The limit after requests with these results, one after the other."""

    async def whole() -> int:
        for error in errors:
            with contextlib.suppress(FhirError):
                async with limit:
                    if error:
                        raise error
        return limit.limit

    return asyncio.run(whole())


@pytest.mark.parametrize("error", [BUSY, make_error(503, "busy"), TimedOutError("slow")])
def test_the_limit_is_halved_when_the_server_is_busy(error: FhirError) -> None:
    assert run(ConcurrencyLimit(8), error) == 4
    assert run(ConcurrencyLimit(8), error, error, error, error) == 1


@pytest.mark.parametrize("error", [RejectedError("no"), ServerFailureError("oops"), UnreachableError("gone")])
def test_other_errors_do_not_change_the_limit(error: FhirError) -> None:
    assert run(ConcurrencyLimit(8), error) == 8


def test_the_limit_grows_again_by_one_up_to_the_maximum() -> None:
    assert run(ConcurrencyLimit(4), BUSY, *[None] * 7) == 2
    assert run(ConcurrencyLimit(4), BUSY, *[None] * 8) == 3
    assert run(ConcurrencyLimit(4), BUSY, *[None] * 100) == 4


def test_requests_are_admitted_in_order_up_to_the_limit() -> None:
    async def whole() -> tuple[int, list[int]]:
        limit, running, most, order = ConcurrencyLimit(4), 0, 0, []

        async def request(number: int) -> None:
            nonlocal running, most
            async with limit:
                running += 1
                most = max(most, running)
                order.append(number)
                await asyncio.sleep(0)
                running -= 1

        with contextlib.suppress(FhirError):
            async with limit:
                raise BUSY
        await asyncio.gather(*map(request, range(9)))
        return most, order

    assert asyncio.run(whole()) == (2, list(range(9)))


@pytest.mark.parametrize("is_admitted", [False, True])
def test_a_cancelled_request_does_not_block_others(is_admitted: bool) -> None:
    async def whole() -> list[str]:
        limit, order = ConcurrencyLimit(1), []

        async def request(name: str) -> None:
            async with limit:
                order.append(name)

        async with limit:
            waiting = asyncio.create_task(request("cancelled"))
            after = asyncio.create_task(request("after"))
            await asyncio.sleep(0)
            if not is_admitted:
                waiting.cancel()
        if is_admitted:
            waiting.cancel()  # it was admitted, but has not run yet
        await asyncio.gather(waiting, after, return_exceptions=True)
        await request("last")
        return order

    assert asyncio.run(asyncio.wait_for(whole(), 5)) == ["after", "last"]
