"""What is gone from the lake leaves the server. A Patient stays while a study there refers to it.

A server that keeps references whole refuses such a deletion itself (409), for whatever refers; not every server does.
"""

from __future__ import annotations

from functools import partial

from dicom_etl.server.errors import FhirError, ServerError
from dicom_etl.server.searching import searched
from dicom_etl.server.transactions import Key
from dicom_etl.upload.adopting import datasets_of
from dicom_etl.upload.ledger import Ledger, Row, on_server
from dicom_etl.upload.locating import located
from dicom_etl.upload.reconciling import fetched, version_of
from dicom_etl.upload.run import Run


async def deleted(run: Run, ledger: Ledger, key: Key) -> bool:
    """Delete a resource of the ledger from the server, and say whether that was done."""
    row = ledger.rows[key]
    try:
        if row["linked"] or row["replaced"]:
            await _left(run, ledger, key)
            return False
        place = await _place(run, row)
        error = await _why_not(run, place) or await run.sender.delete(*place)
    except FhirError as failed:
        if row["linked"] or row["replaced"]:
            return False  # the row says why it stays
        error = failed
    if error is None:
        ledger.drop(key)
        run.removed.add(place)
        return True
    status = error.status if isinstance(error, ServerError) else None
    ledger.note(row | {"status": status, "error": f"not deleted: {error}"})
    return False


async def _left(run: Run, ledger: Ledger, key: Key) -> None:
    """Forget what is not ours to delete, once somebody has done what the row says.

    That is somebody else's study that no longer names our dataset, or a study that another version has followed since
    ours replaced what another lake had there.
    """
    row = ledger.rows[key]
    identity = row["id_on_server"]
    there = await run.sender.ask(lambda: fetched(run.client, key[0], [identity], "identifier"))
    study = there.get(identity, {})
    if row["linked"]:
        is_done = row["dataset"] not in datasets_of(study, run.dataset_system)
    else:
        is_done = version_of(study) != str(int(row["replaced"]) + 1)
    if is_done:
        ledger.drop(key)


async def _place(run: Run, row: Row) -> Key:
    """Where the server has it. Of what was sent without an answer, a server that gives ids itself must be asked."""
    kind, identity = row["type"], row["id_on_server"] or row["id"]
    if on_server(row) or run.addressing.takes_ids:
        return kind, identity
    for place in await located(run.client, run.sender, run.addressing, [(kind, row["id"])]):
        return kind, place.partition("/")[2]
    return kind, identity


async def _why_not(run: Run, place: Key) -> FhirError | None:
    """Why a resource must stay: studies refer to it that this run has not deleted.

    Raises:
        FhirError: the server could not be asked.
    """
    if place[0] != "Patient" or run.sender.stopped:
        return None
    search = {"subject": "/".join(place), "_elements": "identifier"}
    first = partial(run.client.execute, "ImagingStudy", method="get", params=search)
    studies = await searched(run.client, "ImagingStudy", first, run.sender.ask)
    left = {study["id"] for study in studies if ("ImagingStudy", study["id"]) not in run.removed}
    if not left:
        return None
    return ServerError(409, f"{len(left)} ImagingStudy resources on the server refer to it, {min(left)} for one")
