"""What is sent of a Patient that the server may have already: ours, joined with what others said of the person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from dicom_etl.server.transactions import canonical
from dicom_etl.upload.ledger import lines
from dicom_etl.upload.parts import Candidate
from dicom_etl.upload.reconciling import is_alike, plain, reconciled, version_of
from dicom_etl.upload.run import Run


async def placed(run: Run, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates at the ids that a server has given them, also where no ledger knows those.

    Raises:
        FhirError: the server could not be asked.
    """
    if run.addressing.takes_ids:
        return list(candidates)
    unknown = [replace(one, condition=run.addressing.condition(one.id)) for one in candidates if not one.at]
    places = await run.sender.places(unknown)
    return [replace(one, at=places[one.key][1]) if one.key in places else one for one in candidates]


def joined(candidate: Candidate, theirs: Mapping[str, Any] | None) -> list[Candidate]:
    """The candidate as it is to be sent; an empty list where the server has it as it should be.

    Args:
        candidate: a Patient of ours.
        theirs: what the server has of it now.
    """
    if theirs is None:
        return [replace(candidate, is_new=True)]
    row = candidate.part.ledger.get(candidate.key)
    before = [orjson.loads(one) for name in ("content", "tried_content") for one in lines(row[name] if row else None)]
    made = reconciled(candidate.resource, before, theirs)
    if candidate.lost:
        with_lost = reconciled(plain(candidate.lost), (), made.patient)
        made = with_lost._replace(contradictions=made.contradictions + with_lost.contradictions)
    if made.contradictions:
        what = " and ".join(made.contradictions)
        candidate = replace(
            candidate, remark=f"patient-contradicts: {what}: the server says something else, and that stays"
        )
    if is_alike(made.patient, theirs):
        candidate.part.settle(candidate, version_of(theirs))
        return []
    return [replace(candidate, body=canonical(made.patient), if_match=version_of(theirs))]
