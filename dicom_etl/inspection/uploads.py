"""The state of every resource of a dataset on the servers that it was sent to, from the upload ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime

from dicom_etl.lake.tables import Lake
from dicom_etl.upload.ledger import ResourceRow, State, read_resources

STATES = tuple(map(str, State))  # of a resource in a ledger


@dataclass(frozen=True)
class UploadedResource:
    """A resource as the ledger of a server has it; `reason` is the server's, or ours for not sending it."""

    server: str
    dataset: str
    unit: str | None
    subject: str | None
    resource: str  # Type/id
    state: str
    status: int | None
    attempts: int
    reason: str | None
    time: datetime


@dataclass(frozen=True)
class DatasetUploads:
    """The resources of a dataset in some states, newest first, and how many there are in each state."""

    dataset: str
    counts: dict[str, int]
    listed: tuple[UploadedResource, ...]


def list_uploads(lake: Lake, dataset: str, states: Collection[str] = ()) -> DatasetUploads:
    """What became of the resources of a dataset on all servers.

    Args:
        lake: holds the ledgers.
        dataset: its name.
        states: those that are listed; none: all but stored.
    """
    every = list(_read_uploads(lake, dataset))
    counts = Counter(sent.state for sent in every)
    listed = [sent for sent in every if (sent.state in states if states else sent.state != "stored")]
    listed.sort(key=lambda sent: (sent.server, sent.resource))
    listed.sort(key=lambda sent: sent.time, reverse=True)
    return DatasetUploads(dataset, {state: counts[state] for state in STATES if counts[state]}, tuple(listed))


def _read_uploads(lake: Lake, dataset: str) -> Iterator[UploadedResource]:
    """All rows of a dataset, also those of units that it no longer has, and those of what it shares."""
    for server, row in read_resources(lake, dataset):
        yield _sent_of(server, row)


def _sent_of(server: str, row: ResourceRow) -> UploadedResource:
    return UploadedResource(
        server,
        row.dataset,
        row.unit,
        row.subject,
        "/".join(row.place),
        str(row.state),
        row.http_status,
        row.attempts,
        format_reason(row),
        row.time,
    )


def format_reason(row: ResourceRow) -> str | None:
    """Why a resource is not as it should be, beginning with the code of the finding."""
    return ": ".join(filter(None, (row.reason, row.reason_text))) or None
