"""What is gone from the lake leaves the server. A Patient stays while a study there refers to it.

A server that keeps references whole refuses such a deletion itself (409), for whatever refers; not every server does.
"""

from __future__ import annotations

from functools import partial

from dicom_etl.server.errors import FhirError, ServerError
from dicom_etl.server.searching import searched
from dicom_etl.server.transactions import Key
from dicom_etl.upload.ledger import Ledger
from dicom_etl.upload.run import Run


async def deleted(run: Run, ledger: Ledger, key: Key) -> bool:
    """Delete a resource of the ledger from the server, and say whether that was done."""
    row = ledger.rows[key]
    place = key[0], row["id_on_server"] or key[1]
    error = await _why_not(run, place) or await run.sender.delete(*place)
    if error is None:
        ledger.drop(key)
        run.removed.add(place)
        return True
    status = error.status if isinstance(error, ServerError) else None
    ledger.note(row | {"status": status, "error": f"not deleted: {error}"})
    return False


async def _why_not(run: Run, place: Key) -> FhirError | None:
    """Why a resource must stay: studies refer to it that this run has not deleted, or that cannot be known."""
    if place[0] != "Patient" or run.sender.stopped:
        return None
    search = {"subject": "/".join(place), "_elements": "identifier"}
    first = partial(run.client.execute, "ImagingStudy", method="get", params=search)
    try:
        studies = await searched(run.client, "ImagingStudy", first, run.sender.ask)
    except FhirError as error:
        return error
    left = {study["id"] for study in studies if ("ImagingStudy", study["id"]) not in run.removed}
    if not left:
        return None
    return ServerError(409, f"{len(left)} ImagingStudy resources on the server refer to it, {min(left)} for one")
