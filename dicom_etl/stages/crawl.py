"""crawl: list the files of a dataset and read its metadata sheets -> tables `inventory` and `sheets`.

Files are listed by names and stat only. A dataset that lost a subject or a tenth of its files stops, and its tables
stay as they were, until `accept_missing` confirms the removal.

Not here: listing (`sources`), the inventory as a table (`sources.inventory`).
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.findings import make_finding, tabulate_findings
from dicom_etl.identity.ids import ResourceIds
from dicom_etl.lake.fingerprints import compute_fingerprint
from dicom_etl.lake.schemas import DATASET_FINDINGS, INVENTORY, SHEETS
from dicom_etl.lake.tables import Lake
from dicom_etl.sources import Scan, Source, SourceError
from dicom_etl.sources.base import SheetCell
from dicom_etl.sources.inventory import add_unread_files, find_missing_files, list_files, report_missing
from dicom_etl.withdrawal.exclusion import exclude_cells, exclude_findings
from dicom_etl.withdrawal.record import WithdrawalRecord


class DatasetStoppedError(Exception):
    """A dataset lost a subject or too many files; its tables are as they were."""


@dataclass(frozen=True)
class CrawlResult:
    """The result of a crawl: numbers of files, of units, of files that are new or were removed, and of findings."""

    dataset: str
    files: int
    units: int
    new: int
    removed: int
    findings: int


def crawl(source: Source, lake: Lake, ids: ResourceIds | None = None, *, accept_missing: bool = False) -> CrawlResult:
    """Write the inventory of a dataset and the content of its sheets.

    Args:
        source: of the dataset.
        lake: to be written.
        ids: the configured ones, by which withdrawn subjects are recognized; None: no key is configured.
        accept_missing: missing subjects or files were removed on purpose.

    Raises:
        LakeError: the withdrawals are recorded under another key.
        SourceError: there is no file at all, or the dataset was withdrawn.
        DatasetStoppedError: a subject or too many files are missing; the finding is in `findings/crawl`.
    """
    with lake.lock(source.dataset, f"crawl of {source.dataset}"):
        withdrawn = WithdrawalRecord.read(lake, source.dataset, ids)
        _refuse_withdrawn_dataset(withdrawn)
        cells = lake.read(SHEETS, list(SheetCell._fields), dataset=source.dataset).to_pylist()
        scan = Scan(previous_cells=[SheetCell(**cell) for cell in cells])
        previous = withdrawn.exclude_rows(lake.read(INVENTORY, dataset=source.dataset))
        current = add_unread_files(_list_remaining_files(source, scan, withdrawn), previous, scan)
        if current.num_rows == 0 and not scan.unread_folders:
            raise SourceError(f"dataset {source.dataset}: {_explain_no_files(source, scan)}")
        missing = [] if accept_missing else report_missing(source.dataset, current, previous)
        findings = tabulate_findings([*scan.findings, *missing])
        lake.write(DATASET_FINDINGS, findings, stage="crawl", dataset=source.dataset)
        if current.num_rows == 0:
            folder = scan.unread_folders[0] or "."
            raise SourceError(f"dataset {source.dataset}: no file could be listed: cannot read the folder {folder}")
        if missing:
            raise DatasetStoppedError(f"dataset {source.dataset}: {missing[0].message}")
        rows = [{"dataset": source.dataset, **cell._asdict()} for cell in scan.cells]
        lake.write(SHEETS, pa.Table.from_pylist(rows, schema=SHEETS.schema), dataset=source.dataset)
        lake.write(INVENTORY, current, fingerprint=compute_fingerprint(source.location), dataset=source.dataset)
    return CrawlResult(
        source.dataset,
        files=current.num_rows,
        units=len(pc.unique(current["unit"])),
        new=find_missing_files(previous, current).num_rows,
        removed=find_missing_files(current, previous).num_rows,
        findings=findings.num_rows,
    )


def _refuse_withdrawn_dataset(withdrawn: WithdrawalRecord) -> None:
    if withdrawn.is_dataset_withdrawn:
        name = withdrawn.dataset
        raise SourceError(
            f"dataset {name} was withdrawn and is not loaded; `dicom-etl withdraw {name} --undo` ends that"
        )


def _explain_no_files(source: Source, scan: Scan) -> str:
    if any(finding.code == "subject-withdrawn" for finding in scan.findings):
        return "all its files belong to withdrawn subjects"
    return f"no file that could be DICOM under {source.location}"


def _list_remaining_files(source: Source, scan: Scan, withdrawn: WithdrawalRecord) -> pa.Table:
    """The inventory without withdrawn subjects, of whom only the number of files is reported."""
    files = list_files(source, scan)
    remaining = withdrawn.exclude_rows(files)
    scan.cells = exclude_cells(scan.cells, withdrawn)
    scan.findings = exclude_findings(scan.findings, withdrawn)
    if withdrawn_files := files.num_rows - remaining.num_rows:
        scan.findings.append(make_finding("subject-withdrawn", source.dataset, count=withdrawn_files))
    return remaining
