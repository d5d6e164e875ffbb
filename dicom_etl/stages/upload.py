"""upload: resources of the lake -> the FHIR server, recorded in the ledger; the table `upload_ledger` is its export.

First, under one lock, what datasets share: Endpoints, and Patients whose identifiers mean the same everywhere, merged
over the datasets. Then each dataset under its own lock: its own Patients, then its ImagingStudies. What the server has
according to the ledger is not sent again. No content is removed from the server without `prune`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from dicom_etl.fhir_client import check_server
from dicom_etl.fhir_connection import get_server_name, open_client
from dicom_etl.lake.tables import Lake
from dicom_etl.settings import Settings
from dicom_etl.upload.items import DatasetResources, IdStrategy, NotBuiltError, UploadOptions
from dicom_etl.upload.ledger import Ledger
from dicom_etl.upload.results import UploadSummary
from dicom_etl.upload.run import upload_datasets
from dicom_etl.upload.scheduling import Limits, Progress, UploadRun
from dicom_etl.upload.studies import Namespace
from dicom_etl.upload.transfer import Target

__all__ = ["NotBuiltError", "UploadSummary", "upload"]


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
) -> list[UploadSummary]:
    """Upload the resources of some datasets to the server of the settings; returns one summary per dataset.

    Args:
        datasets: their names; what they share is merged over all of them.
        lake: holds the resources and the ledger.
        settings: with the URL of the server.
        prune: let updates remove content, and delete what the lake no longer produces.
        failed_only: only what failed the last time.
        dry_run: read from the server, change nothing there and in the lake.
        overwrite: replace studies and Endpoints of this lake that another client changed on the server.
        progress: called with ("upload NAME", units done, units in total).

    Raises:
        NotBuiltError: a dataset has no resources yet.
        UnreachableError: the first request got no answer; if the server fails later, the summary says so.
        UnsuitableServerError: it lacks a feature that is needed; nothing was sent.
        DatabaseError: the ledger cannot be used.
    """
    names = list(dict.fromkeys(datasets))
    if not settings.fhir.url:
        return [UploadSummary(name, None) for name in names]
    options = UploadOptions(prune, failed_only, dry_run, overwrite, settings.fhir.existing_study)
    return asyncio.run(_upload(names, lake, settings, options, progress))


async def _upload(
    names: Sequence[str], lake: Lake, settings: Settings, options: UploadOptions, progress: Progress
) -> list[UploadSummary]:
    fhir = settings.fhir
    resources = [DatasetResources.read(lake, name) for name in names]
    async with open_client(fhir) as client:
        with Ledger.from_lake(lake, get_server_name(fhir.url or ""), is_dry_run=options.dry_run) as ledger:
            is_client_assigned = await check_server(client, fhir.version, fhir.client_assigned)
            strategy = IdStrategy(settings.namespace, is_client_assigned)
            namespace = Namespace(settings.resource_ids(), strategy, settings.sds_dataset_system)
            target = Target(client, ledger, namespace, options, fhir.single_request_bytes)
            # two concurrent conditional updates could create two resources
            batches = fhir.max_concurrent_requests + 1 if is_client_assigned else 1
            limits = Limits(fhir.max_bundle_entries, fhir.max_bundle_bytes, batches)
            return await upload_datasets(UploadRun(lake, target, limits, progress), resources)
