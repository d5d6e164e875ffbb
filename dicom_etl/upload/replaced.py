"""What a write of ours replaced, though the server had nothing when it was looked at: somebody was quicker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dicom_etl.server.errors import ServerError
from dicom_etl.server.transactions import Key
from dicom_etl.upload.parts import Candidate
from dicom_etl.upload.run import Run

Replaced = Mapping[Key, Mapping[str, Any]]


async def overwritten(run: Run, candidates: Sequence[Candidate]) -> dict[Key, Any]:
    """What the candidates wrote over: there was nothing when they were looked for, and then somebody was quicker.

    Raises:
        FhirError: the server could not be asked.
    """
    found: dict[Key, Any] = {}
    for candidate in candidates:
        if candidate.overwrote:
            path = f"{'/'.join(candidate.place)}/_history/{candidate.overwrote}"
            try:
                found[candidate.key] = await run.sender.ask(
                    lambda path=path: run.client.execute(path, method="get")  # type: ignore[misc]
                )
            except ServerError as error:
                if error.status not in (404, 410):  # a server need not keep old versions
                    raise
    return found
