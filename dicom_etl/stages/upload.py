"""upload: resources of the lake -> the FHIR server -> `outcomes`, which is also the ledger.

First, under one lock, what datasets share: Endpoints, and Patients whose identifiers mean the same everywhere, merged
over the datasets. Then each dataset under its own lock: its own Patients, then its ImagingStudies. What the ledger
says to be there is not sent again. Nothing shrinks or disappears on the server unless `prune` says that it is meant.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from dicom_etl.lake.locks import LockHeldError
from dicom_etl.lake.tables import Lake
from dicom_etl.server.addressing import Addressing
from dicom_etl.server.capability import first_contact
from dicom_etl.server.client import Client
from dicom_etl.server.naming import server_name
from dicom_etl.server.sending import DrySender, Sender
from dicom_etl.settings import Settings
from dicom_etl.upload.built import Built, NotBuiltError
from dicom_etl.upload.dataset import DatasetUpload
from dicom_etl.upload.run import Options, Progress, Run, Uploaded
from dicom_etl.upload.shared import Shared

__all__ = ["NotBuiltError", "Uploaded", "upload"]


def upload(
    datasets: Sequence[str],
    lake: Lake,
    settings: Settings,
    *,
    prune: bool = False,
    failed_only: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
    progress: Progress = lambda *_: None,
) -> list[Uploaded]:
    """Bring the resources of some datasets onto the server of the settings; one summary per dataset.

    Args:
        datasets: their names; what they share is merged over all of them.
        lake: holds the resources and the ledger.
        settings: name the server.
        prune: let studies shrink, and delete what the lake no longer makes.
        failed_only: only what failed the last time.
        dry_run: ask the server, change nothing there and in the lake.
        overwrite: replace studies and Endpoints of ours that somebody else changed on the server.
        progress: called with ("upload NAME", units done, units to do).

    Raises:
        NotBuiltError: a dataset has no resources yet.
        UnreachableError: the server did not answer at all (later on, that is in the summary).
        UnsuitableServerError: it cannot do what is needed; nothing was sent.
    """
    names = list(dict.fromkeys(datasets))
    if not settings.fhir.url:
        return [Uploaded(name, None) for name in names]
    options = Options(prune, failed_only, dry_run, overwrite)
    return asyncio.run(_upload(names, lake, settings, options, progress))


async def _upload(
    names: Sequence[str], lake: Lake, settings: Settings, options: Options, progress: Progress
) -> list[Uploaded]:
    fhir, url, ids = settings.fhir, settings.fhir.url or "", settings.resource_ids()
    built = [Built.of(lake, name) for name in names]
    async with Client.of(fhir, connections=fhir.max_concurrent_requests + 2) as client:
        client_ids = None if fhir.client_assigned_ids == "auto" else fhir.client_assigned_ids == "yes"
        takes_ids = await first_contact(client, fhir.version, client_ids=client_ids)
        addressing = Addressing(settings.site, takes_ids)
        in_flight = addressing.in_flight(fhir.max_concurrent_requests)
        sender = (DrySender if options.dry_run else Sender)(
            client, fhir.retry_seconds, in_flight=in_flight, alone_bytes=fhir.single_request_bytes
        )
        system = settings.sds_dataset_system
        run = Run(lake, fhir, options, progress, client, sender, server_name(url), addressing, ids, system)
        shared = Shared(run, built)
        await shared.bring()
        uploads = [DatasetUpload(run, one, shared) for one in built]
        for one in uploads:
            try:
                await one.bring()
            except (NotBuiltError, LockHeldError) as error:  # forgotten meanwhile, or being written: the others go on
                if len(uploads) == 1:
                    raise
                one.stopped = str(error)
        if options.prune:
            await _prune(shared, uploads)
        return [one.summary() for one in uploads]


async def _prune(shared: Shared, uploads: Sequence[DatasetUpload]) -> None:
    try:
        await shared.prune()
    except LockHeldError as error:  # what the datasets brought is there, and is told; the rest goes in the next run
        for one in uploads:
            one.stopped = one.stopped or str(error)
