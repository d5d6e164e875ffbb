"""verify: lake, ledger and server -> what is missing, changed, external or unsent; what is missing is sent, if wanted.

First what datasets share, then each dataset, each under its lock. Without `repair` nothing is written. With it, the
ledger notes what the server does not have, and the ordinary upload sends it: Patients and Endpoints before studies.
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

_REMAINING = ("changed", "external")  # what a repair leaves as it is


@dataclass(frozen=True)
class VerificationResult:
    """What was found, and what a repair sent.

    `compared` holds one entry per dataset and, last, one of what datasets share; `nothing` says by dataset why there
    was nothing to compare.
    """

    server: str
    compared: tuple[Comparison, ...]
    nothing: dict[str, str]
    uploads: tuple[UploadSummary, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 all is well, or was repaired; 1 something differs; 2 nothing to compare; 3 the server went away."""
        if not self.compared:
            return 2
        if any(uploaded.unreachable for uploaded in self.uploads):
            return 3
        left = _REMAINING if self.uploads else DIFFERENCES
        differs = any(one.counts[what] for one in self.compared for what in left)
        failed = any(
            states.get(word) for up in self.uploads for states in up.counts.values() for word in UNFINISHED_STATES
        )
        stopped = any(uploaded.stopped for uploaded in self.uploads)
        return int(differs or failed or stopped or bool(self.nothing))


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
        repair: send again what is missing, and what was not sent. What another client changed is left alone.
        progress: called with ("verify NAME", resources asked for, resources to ask for).

    Raises:
        SettingsError: no server is set.
        FhirError: the server could not be asked.
        LockHeldError: something else writes one of the datasets.
    """
    if not settings.fhir.url:
        raise SettingsError("no FHIR server is set to compare with: set fhir.url, or give --fhir-url")
    built: dict[str, DatasetResources] = {}
    nothing: dict[str, str] = {}
    for name in dict.fromkeys(datasets):
        try:
            built[name] = DatasetResources.read(lake, name)
        except NotBuiltError as error:
            nothing[name] = str(error)
    server = get_server_name(settings.fhir.url)
    if not built:
        return VerificationResult(server, (), nothing)
    compared = asyncio.run(_compare(built, lake, settings, repair=repair, progress=progress))
    wanting = [one for one in compared if one.counts["missing"] or one.counts["unsent"]]
    if not repair or not wanting:
        return VerificationResult(server, compared, nothing)
    # what datasets share may be any dataset's; an upload of one that lacks nothing sends nothing
    names = list(built) if any(one.dataset is None for one in wanting) else [one.dataset or "" for one in wanting]
    return VerificationResult(server, compared, nothing, tuple(upload(names, lake, settings, progress=progress)))


async def _compare(
    datasets: dict[str, DatasetResources], lake: Lake, settings: Settings, *, repair: bool, progress: Progress
) -> tuple[Comparison, ...]:
    fhir = settings.fhir
    async with open_client(fhir) as client:
        await check_server(client, fhir.version, fhir.client_assigned)
        with Ledger.from_lake(lake, get_server_name(fhir.url or ""), is_dry_run=not repair) as ledger:
            verifier = Verifier(lake, client, ledger, repair=repair, progress=progress)
            shared = await verifier.compare_shared(list(datasets.values()))
            found = [await verifier.compare_dataset(name, settings.sds_dataset_system) for name in datasets]
            return (*found, shared)
