"""verify: lake, ledger and server -> what is missing, changed, external or unsent; a repair uploads what is missing.

First what datasets share, then each dataset, each under its lock. Without `repair` nothing is written. With it, the
ledger records what the server does not have, and the ordinary upload sends that: Patients and Endpoints before studies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from dicom_etl.fhir_client import check_server
from dicom_etl.fhir_connection import get_server_name, open_client
from dicom_etl.lake.tables import Lake
from dicom_etl.settings import Settings, SettingsError
from dicom_etl.stages.upload import UploadSummary, upload
from dicom_etl.upload.items import DatasetResources, NotBuiltError
from dicom_etl.upload.ledger import UNFINISHED_STATES, Ledger
from dicom_etl.upload.scheduling import Progress
from dicom_etl.upload.verification import DIFFERENCES, Comparison, Verifier

__all__ = ["DIFFERENCES", "Comparison", "VerificationResult", "verify"]

_NOT_REPAIRED = ("changed", "external")  # a repair leaves these as they are


@dataclass(frozen=True)
class VerificationResult:
    """The comparison of datasets with a server, and the uploads of a repair.

    `comparisons` has one entry per dataset and, last, one for what datasets share; `not_compared` has the reason by
    dataset.
    """

    server: str
    comparisons: tuple[Comparison, ...]
    not_compared: dict[str, str]
    uploads: tuple[UploadSummary, ...] = ()

    @property
    def exit_code(self) -> int:
        """0: no difference, or repaired; 1: a difference; 2: nothing to compare; 3: the server was unreachable."""
        if not self.comparisons:
            return 2
        if any(summary.unreachable for summary in self.uploads):
            return 3
        kinds = _NOT_REPAIRED if self.uploads else DIFFERENCES
        has_differences = any(comparison.counts[kind] for comparison in self.comparisons for kind in kinds)
        has_failures = any(
            counts.get(state)
            for summary in self.uploads
            for counts in summary.counts.values()
            for state in UNFINISHED_STATES
        )
        has_stopped = any(summary.stopped for summary in self.uploads)
        return int(has_differences or has_failures or has_stopped or bool(self.not_compared))


def verify(
    datasets: Sequence[str],
    lake: Lake,
    settings: Settings,
    *,
    repair: bool = False,
    progress: Progress = lambda *_: None,
) -> VerificationResult:
    """Compare some datasets of the lake with the server of the settings.

    Args:
        datasets: their names.
        lake: holds the resources and the ledger.
        settings: name the server.
        repair: upload again what is missing, and what was not sent. What another client changed stays as it is.
        progress: called with ("verify NAME", resources done, resources in total).

    Raises:
        SettingsError: no server is set.
        FhirError: the server could not be asked.
        LockHeldError: another process is writing one of the datasets.
    """
    if not settings.fhir.url:
        raise SettingsError("no FHIR server is set to compare with: set fhir.url, or give --fhir-url")
    built: dict[str, DatasetResources] = {}
    not_compared: dict[str, str] = {}
    for name in dict.fromkeys(datasets):
        try:
            built[name] = DatasetResources.read(lake, name)
        except NotBuiltError as error:
            not_compared[name] = str(error)
    server = get_server_name(settings.fhir.url)
    if not built:
        return VerificationResult(server, (), not_compared)
    comparisons = asyncio.run(_compare(built, lake, settings, repair=repair, progress=progress))
    incomplete = [
        comparison for comparison in comparisons if comparison.counts["missing"] or comparison.counts["unsent"]
    ]
    if not repair or not incomplete:
        return VerificationResult(server, comparisons, not_compared)
    # a shared resource may be of any dataset; the upload of a dataset that lacks nothing sends nothing
    is_shared = any(comparison.dataset is None for comparison in incomplete)
    names = list(built) if is_shared else [comparison.dataset or "" for comparison in incomplete]
    uploads = upload(names, lake, settings, progress=progress)
    return VerificationResult(server, comparisons, not_compared, tuple(uploads))


async def _compare(
    datasets: dict[str, DatasetResources], lake: Lake, settings: Settings, *, repair: bool, progress: Progress
) -> tuple[Comparison, ...]:
    fhir = settings.fhir
    async with open_client(fhir) as client:
        await check_server(client, fhir.version, fhir.client_assigned)
        with Ledger.from_lake(lake, get_server_name(fhir.url or ""), is_dry_run=not repair) as ledger:
            verifier = Verifier(lake, client, ledger, repair=repair, progress=progress)
            shared = await verifier.compare_shared(list(datasets.values()))
            comparisons = [await verifier.compare_dataset(name, settings.sds_dataset_system) for name in datasets]
            return (*comparisons, shared)
