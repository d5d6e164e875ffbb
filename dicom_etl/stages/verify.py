"""verify: lake, ledger and server -> what is missing, changed, foreign or unsent; what is not there is sent, if wanted.

First what datasets share, then each dataset, each under its lock. Without `repair` nothing is written. With it, the
ledger forgets what the server does not have, and the ordinary upload sends it: Patients and Endpoints before studies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from dicom_etl.lake.tables import Lake
from dicom_etl.server.capability import first_contact
from dicom_etl.server.client import Client
from dicom_etl.server.naming import server_name
from dicom_etl.server.sending import Sender
from dicom_etl.settings import Settings, SettingsError
from dicom_etl.stages.upload import Uploaded, upload
from dicom_etl.upload.built import Built, NotBuiltError
from dicom_etl.upload.run import Progress
from dicom_etl.upload.verifying import DIFFERENCES, Compared, Verifier

__all__ = ["DIFFERENCES", "Compared", "Verified", "verify"]

_REMAINING = ("changed", "foreign")  # what a repair leaves as it is
_TROUBLE = ("rejected", "gave-up", "retrying", "held")


@dataclass(frozen=True)
class Verified:
    """What was found, and what a repair sent.

    `compared` holds one entry per dataset and, last, one of what datasets share; `nothing` says by dataset why there
    was nothing to compare.
    """

    server: str
    compared: tuple[Compared, ...]
    nothing: dict[str, str]
    uploads: tuple[Uploaded, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 all is well, or was repaired; 1 something differs; 2 nothing to compare; 3 the server went away."""
        if not self.compared:
            return 2
        if any(uploaded.unreachable for uploaded in self.uploads):
            return 3
        left = _REMAINING if self.uploads else DIFFERENCES
        differs = any(one.counts[what] for one in self.compared for what in left)
        failed = any(states.get(word) for up in self.uploads for states in up.counts.values() for word in _TROUBLE)
        stopped = any(uploaded.stopped for uploaded in self.uploads)
        return int(differs or failed or stopped or bool(self.nothing))


def verify(
    datasets: Sequence[str],
    lake: Lake,
    settings: Settings,
    *,
    repair: bool = False,
    progress: Progress = lambda *_: None,
) -> Verified:
    """Compare some datasets of the lake with the server of the settings.

    Args:
        datasets: their names.
        lake: holds the resources and the ledger.
        settings: name the server.
        repair: send again what is missing, and what was not sent. What somebody else changed is left alone.
        progress: called with ("verify NAME", resources asked for, resources to ask for).

    Raises:
        SettingsError: no server is set.
        FhirError: the server could not be asked.
        LockHeldError: something else writes one of the datasets.
    """
    if not settings.fhir.url:
        raise SettingsError("no FHIR server is set to compare with: set fhir.url, or give --fhir-url")
    built: dict[str, Built] = {}
    nothing: dict[str, str] = {}
    for name in dict.fromkeys(datasets):
        try:
            built[name] = Built.of(lake, name)
        except NotBuiltError as error:
            nothing[name] = str(error)
    server = server_name(settings.fhir.url)
    if not built:
        return Verified(server, (), nothing)
    compared = asyncio.run(_compare(built, lake, settings, repair=repair, progress=progress))
    wanting = [one for one in compared if one.counts["missing"] or one.counts["unsent"]]
    if not repair or not wanting:
        return Verified(server, compared, nothing)
    # what datasets share may be any dataset's; an upload of one that lacks nothing sends nothing
    names = list(built) if any(one.dataset is None for one in wanting) else [one.dataset or "" for one in wanting]
    return Verified(server, compared, nothing, tuple(upload(names, lake, settings, progress=progress)))


async def _compare(
    datasets: dict[str, Built], lake: Lake, settings: Settings, *, repair: bool, progress: Progress
) -> tuple[Compared, ...]:
    fhir = settings.fhir
    async with Client.of(fhir) as client:
        await first_contact(client, fhir.version)
        sender = Sender(client, fhir.retry_seconds)
        verifier = Verifier(lake, client, sender, server_name(fhir.url or ""), repair=repair, progress=progress)
        shared = await verifier.shared(list(datasets.values()))
        found = [await verifier.dataset(name, settings.sds_dataset_system) for name in datasets]
        return (*found, shared)
