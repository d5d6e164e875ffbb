"""A few bundles at once; none goes on when one has failed."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from dicom_etl.server.addressing import Addressing
from dicom_etl.settings import FhirSettings
from dicom_etl.upload.flowing import Flow
from dicom_etl.upload.ledger import Ledger
from dicom_etl.upload.parts import Candidate, Part, candidate_of

RUN: Any = SimpleNamespace(
    fhir=FhirSettings(max_bundle_entries=1, max_concurrent_requests=2), addressing=Addressing("https://s")
)


def candidate(identity: str) -> Candidate:
    return candidate_of({"resourceType": "Patient", "id": identity}, Part("unit", Ledger((), lambda *_: None)))


def test_all_are_done_at_the_end_and_never_more_at_once_than_allowed() -> None:
    done: list[str] = []
    at_once, most = 0, 0

    async def job(bundle: list[Candidate]) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.001)
        at_once -= 1
        done.extend(one.id for one in bundle)

    async def whole() -> None:
        async with Flow(RUN, job) as flow:
            for identity in "abcde":
                await flow.add(candidate(identity))

    asyncio.run(whole())

    assert sorted(done) == list("abcde")
    assert most == 2


@pytest.mark.parametrize("fails", ["a job", "the caller"])
def test_a_failure_ends_what_is_on_its_way(fails: str) -> None:
    began: list[str] = []
    ended: list[str] = []

    async def job(bundle: list[Candidate]) -> None:
        began.append(bundle[0].id)
        if bundle[0].id == "a" and fails == "a job":
            raise OSError(28, "No space left on device")
        await asyncio.sleep(0.1)
        ended.append(bundle[0].id)

    async def flowing() -> None:
        async with Flow(RUN, job) as flow:
            for identity in "abcd":
                await flow.add(candidate(identity))
                await asyncio.sleep(0)
                if identity == "c" and fails == "the caller":
                    raise OSError(28, "No space left on device")

    async def whole() -> None:
        with pytest.raises(OSError, match="No space"):
            await flowing()
        await asyncio.sleep(0.3)

    asyncio.run(whole())

    assert began == ["a", "b"]
    assert ended == []
