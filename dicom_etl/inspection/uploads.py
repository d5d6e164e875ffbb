"""The state of each resource of a dataset on the servers that it was uploaded to, from the upload ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from dicom_etl.lake.tables import Lake
from dicom_etl.upload.ledger import ResourceRow, State, read_resources

STATES = tuple(map(str, State))  # of a resource


@dataclass(frozen=True)
class UploadedResource:
    """A resource in the ledger of a server; `reason` is why it is not stored: the server's, or the lake's own."""

    server: str
    dataset: str
    unit: str | None
    subject: str | None
    resource: str  # Type/id
    state: str
    status: int | None  # HTTP status
    attempts: int
    reason: str | None
    time: datetime


@dataclass(frozen=True)
class DatasetUploads:
    """The resources of a dataset in some states, newest first, and the number of resources in each state."""

    dataset: str
    counts: dict[str, int]
    listed: tuple[UploadedResource, ...]


def list_uploads(lake: Lake, dataset: str, states: Collection[str] = ()) -> DatasetUploads:
    """List the resources of a dataset on all servers.

    Also those of units that the dataset no longer has, and those that it shares with other datasets.

    Args:
        lake: the lake.
        dataset: name of the dataset.
        states: those that are listed; none: all except `stored`.
    """
    resources = [_to_resource(server, row) for server, row in read_resources(lake, dataset)]
    counts = Counter(resource.state for resource in resources)
    listed = [r for r in resources if (r.state in states if states else r.state != "stored")]
    listed.sort(key=lambda resource: (resource.server, resource.resource))
    listed.sort(key=lambda resource: resource.time, reverse=True)
    return DatasetUploads(dataset, {state: counts[state] for state in STATES if counts[state]}, tuple(listed))


def _to_resource(server: str, row: ResourceRow) -> UploadedResource:
    return UploadedResource(
        server=server,
        dataset=row.dataset,
        unit=row.unit,
        subject=row.subject,
        resource="/".join(row.server_key),
        state=str(row.state),
        status=row.http_status,
        attempts=row.attempts,
        reason=format_reason(row),
        time=row.time,
    )


def format_reason(row: ResourceRow) -> str | None:
    """Why a resource is not stored: the code of the finding, and the text."""
    return ": ".join(filter(None, (row.reason, row.reason_text))) or None
