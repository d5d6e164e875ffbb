"""Results of an upload for people: the summary, the findings, and the ledger as a table of the lake.

The table is written after each run and never read back. No value of a person is in a finding.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from dicom_etl.findings import Finding, make_finding
from dicom_etl.identity.masking import MASKED
from dicom_etl.lake.schemas import UPLOAD_LEDGER
from dicom_etl.lake.tables import Lake
from dicom_etl.upload.ledger import Ledger, ResourceRow, State

_TAGS = {"birthDate": "PatientBirthDate", "gender": "PatientSex"}  # element that a conflict is about -> tag
_PAGE = 20_000  # rows


@dataclass(frozen=True)
class UploadSummary:
    """The result of an upload of a dataset.

    `counts` has, by resource type, the number of resources in each state: stored (sent by this run), unchanged,
    external, rejected, failed, unconfirmed (sent, answer unknown), held, orphaned (on the server and no longer in the
    lake), waiting (not tried, with `failed_only`), deleted; in a dry run would-send and would-delete. What datasets
    share counts in each of them. `removed` lists what was (or would be) deleted. `stopped` is the reason why the rest
    was not sent, and `unreachable` whether that was the network. `server` is None where no server is set: then the
    NDJSON files of the lake are the result.
    """

    dataset: str
    server: str | None
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    findings: int = 0
    removed: tuple[str, ...] = ()
    unreachable: bool = False
    stopped: str | None = None
    dry_run: bool = False


# -- findings ---------------------------------------------------------------------------------------------------------


def make_findings(rows: Iterable[ResourceRow], dataset: str) -> Iterator[Finding]:
    """Make the findings of a dataset from rows of the ledger: one for each that has a reason, or is external."""
    for row in rows:
        reason, text = _find_reason(row)
        if reason is None:
            continue
        name = f"{row.type}/{row.id}"
        tag = _TAGS.get((text or "").partition(" ")[0]) if reason == "patient-conflict" else None
        yield make_finding(
            reason,
            dataset,
            unit=row.unit,
            subject=row.subject,
            study_uid=row.business_key if row.type == "ImagingStudy" else None,
            tag=tag,
            value=MASKED if tag else None,
            message=f"{name}: {text}" if text else name,
        )


def _find_reason(row: ResourceRow) -> tuple[str | None, str | None]:
    """Return the code of a row's finding and its text; None for both where there is nothing to report."""
    if row.reason is not None:
        return row.reason, row.reason_text
    if row.state is State.UNCONFIRMED:  # a run was killed then
        return "upload-unconfirmed", "it was being sent when the run was killed"
    if row.state is State.ORPHANED:
        return "orphaned-on-server", row.reason_text
    if row.is_external and row.state is State.STORED:
        return "external-patient-used", f"{row.type}/{row.server_id} of another client is used"
    return None, None


# -- the ledger as a table --------------------------------------------------------------------------------------------


async def export_ledger(lake: Lake, ledger: Ledger, dataset: str) -> None:
    """Write the ledger's rows of a dataset into the lake, unless its table has them already."""
    generation = await asyncio.wrap_future(ledger.read_generation(dataset))
    location = {"server": ledger.server, "dataset": dataset}
    if lake.read_fingerprint(UPLOAD_LEDGER, **location) == generation:
        return
    if generation.startswith("0 "):
        lake.remove(UPLOAD_LEDGER.path(**location))
        return
    lake.write_batches(UPLOAD_LEDGER, _read_pages(ledger, dataset), fingerprint=generation, **location)


def _read_pages(ledger: Ledger, dataset: str) -> Iterator[pa.Table]:
    after = ("", "")
    while rows := ledger.read_page(dataset, after, _PAGE).result():
        columns = {
            name: [getattr(row, name) for row in rows] for name in UPLOAD_LEDGER.schema.names if name != "server"
        }
        yield pa.Table.from_pydict({"server": [ledger.server] * len(rows)} | columns, schema=UPLOAD_LEDGER.schema)
        after = rows[-1].key
