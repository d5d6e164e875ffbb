"""One ledger at work: what is written down before it is sent."""

from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from dicom_etl.upload.ledger import Ledger
from dicom_etl.upload.parts import Part, announce, candidate_of


@pytest.mark.parametrize(("rows", "written_before"), [(1_200, [[]]), (6_000, [])], ids=["just written", "very large"])
def test_a_bundle_of_updates_is_written_down_whole_and_at_once(rows: int, written_before: list[list[str]]) -> None:
    known = {"linked": False, "hash": "h", "tried": None, "version": "1", "state": "stored", "content": None}
    seconds = count()
    written: list[list[str]] = []

    def write(rows: list[dict[str, Any]], mark: str) -> None:
        written.append([row["id"] for row in rows if row["tried"]])

    ledger = Ledger(
        [known | {"type": "ImagingStudy", "id": str(number)} for number in range(rows)],
        write,
        clock=lambda: float(next(seconds)),
    )
    if written_before:
        ledger.drop(("ImagingStudy", "6"))
        ledger.save_soon()
    part = Part("unit", ledger)
    bundle = [
        replace(candidate_of({"resourceType": "ImagingStudy", "id": identity}, part), if_match="1")
        for identity in "012345"
    ]

    announce(bundle)

    assert written == [*written_before, ["0", "1", "2", "3", "4", "5"]]
