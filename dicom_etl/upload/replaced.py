"""What a write of ours replaced, though the server had nothing when it was looked at: somebody was quicker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dicom_etl.server.errors import ServerError
from dicom_etl.upload.parts import Candidate
from dicom_etl.upload.run import Run

_DELETED = 410
_NOT_KEPT = (404, 405, 501)  # FHIR R4, 3.1.0.3 and 3.1.0.12: a server need not keep old versions
_UNKNOWN = "written-over: the server keeps no version {}, which another wrote a moment before ours"


async def with_lost(run: Run, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates, each with what it wrote over: its resource, or a remark where the server no longer has that.

    Raises:
        FhirError: the server could not be asked.
    """
    return [await _with_lost(run, one) if one.overwrote else one for one in candidates]


async def _with_lost(run: Run, candidate: Candidate) -> Candidate:
    path = f"{'/'.join(candidate.place)}/_history/{candidate.overwrote}"
    try:
        return replace(candidate, lost=await run.sender.ask(lambda: run.client.execute(path, method="get")))
    except ServerError as error:
        if error.status in _NOT_KEPT:
            return replace(candidate, remark=_UNKNOWN.format(candidate.overwrote))
        if error.status == _DELETED:
            return candidate
        raise
