"""What is sent of a Patient that the server may have already: ours, joined with what others said of the person."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson

from dicom_etl.server.parts import Candidate
from dicom_etl.server.reconciling import is_alike, reconciled, version_of
from dicom_etl.server.transactions import canonical


def joined(candidate: Candidate, theirs: Mapping[str, Any] | None) -> list[Candidate]:
    """The candidate as it is to be sent; an empty list where the server has it as it should be."""
    if theirs is None:
        return [candidate]
    row = candidate.part.ledger.get(candidate.key)
    before = orjson.loads(row["content"]) if row and row["content"] else None
    made = reconciled(candidate.resource, before, theirs)
    if made.contradictions:
        what = " and ".join(made.contradictions)
        candidate = replace(
            candidate, remark=f"patient-contradicts: {what}: the server says something else, and that stays"
        )
    if is_alike(made.patient, theirs):
        candidate.part.settle(candidate, version_of(theirs))
        return []
    return [replace(candidate, body=canonical(made.patient), if_match=version_of(theirs))]
