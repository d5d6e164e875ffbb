"""What all parts of one upload have in common: the lake, the server, and what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from dicom_etl.identity.ids import ResourceIds
from dicom_etl.lake.schemas import Table
from dicom_etl.lake.tables import Lake
from dicom_etl.server.addressing import Addressing
from dicom_etl.server.client import Client
from dicom_etl.server.sending import Sender
from dicom_etl.server.transactions import Key
from dicom_etl.settings import FhirSettings
from dicom_etl.upload.ledger import Ledger, Row

Progress = Callable[[str, int, int], None]  # what, done, of how many


class Options(NamedTuple):
    """What an upload is asked for; see `stages.upload`."""

    prune: bool
    failed_only: bool
    dry_run: bool
    overwrite: bool = False


@dataclass(frozen=True)
class Run:
    """One upload. `server` is the server's name in the lake."""

    lake: Lake
    fhir: FhirSettings
    options: Options
    progress: Progress
    client: Client
    sender: Sender
    server: str
    addressing: Addressing
    ids: ResourceIds
    dataset_system: str  # of the identifier by which what we make names its dataset
    removed: set[Key] = field(default_factory=set)  # places of what this run deleted, or would

    def ledger(self, table: Table, **names: str) -> Ledger:
        """A ledger of the lake."""
        names["server"] = self.server
        rows = self.lake.read(table, None, **names).to_pylist()

        def write(rows: list[Row], mark: str) -> None:
            if self.options.dry_run:
                return
            if rows:
                self.lake.write_rows(table, rows, fingerprint=mark, **names)
            else:
                self.lake.remove(table.path(**names))

        return Ledger(rows, write, self.lake.fingerprint(table, **names) or "")


@dataclass(frozen=True)
class Uploaded:
    """What an upload of a dataset did.

    `counts` says by resource type how many are in which state: stored (sent now), unchanged, linked, rejected,
    gave-up, held, gone (on the server and no longer in the lake), waiting (not tried, with `failed_only`), deleted;
    in a dry run would-send and would-delete. What datasets share counts in each. `removed` lists what was (or would
    be) deleted. `stopped` says why the rest was not sent; `unreachable`, that the network was the reason. `server` is
    None where none is set: the NDJSON files of the lake are the result then.
    """

    dataset: str
    server: str | None
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    findings: int = 0
    removed: tuple[str, ...] = ()
    unreachable: bool = False
    stopped: str | None = None
    dry_run: bool = False
