"""crawl: what lies in a dataset, by names and stat alone -> `inventory`, `sheets`.

Nothing is believed gone because it could not be read, and a dataset that lost a subject or a tenth of its files is
left as it was until someone says that it was meant (an unmounted folder looks just like that).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.findings import Finding, finding, findings_table
from dicom_etl.identity.ids import ResourceIds
from dicom_etl.lake.fingerprints import fingerprint
from dicom_etl.lake.schemas import DATASET_FINDINGS, INVENTORY, SHEETS
from dicom_etl.lake.tables import Lake
from dicom_etl.lake.withdrawn import Withdrawn
from dicom_etl.sources import Entry, Scan, Source, SourceError
from dicom_etl.sources.base import SheetCell
from dicom_etl.stages.left_out import cells_kept, findings_kept

VANISHED_SHARE = 0.1


class DatasetStoppedError(Exception):
    """The vanish guard stopped a dataset; its tables are as they were."""


@dataclass(frozen=True)
class Crawled:
    """What a crawl found."""

    dataset: str
    files: int
    units: int
    new: int
    gone: int
    findings: int


def crawl(source: Source, lake: Lake, ids: ResourceIds | None = None, *, accept_missing: bool = False) -> Crawled:
    """Write the inventory of a dataset and what its sheets say.

    Args:
        source: of the dataset.
        lake: to be written.
        ids: the configured ones, by which withdrawn subjects are recognized; None: no key is configured.
        accept_missing: missing subjects or files were removed on purpose.

    Raises:
        LakeError: who was withdrawn is recorded under another key.
        SourceError: there is no file at all, or the dataset was withdrawn.
        DatasetStoppedError: the vanish guard; the finding is in `findings/crawl`.
    """
    with lake.lock(source.dataset, f"crawl of {source.dataset}"):
        withdrawn = Withdrawn.of(lake, source.dataset, ids)
        _refuse_withdrawn(withdrawn)
        scan = Scan(previous_cells=_previous_cells(lake, source.dataset))
        before = withdrawn.without(lake.read(INVENTORY, dataset=source.dataset))
        now = _with_unread(_left_in(source, scan, withdrawn), before, scan)
        if now.num_rows == 0 and not scan.unread_folders:
            raise SourceError(f"dataset {source.dataset}: {_nothing(source, scan)}")
        gone = _gone(before, now)
        stops = [] if accept_missing else _vanished(source.dataset, before, now, gone)
        findings = findings_table([*scan.findings, *stops])
        lake.write(DATASET_FINDINGS, findings, stage="crawl", dataset=source.dataset)
        if now.num_rows == 0:
            unread = scan.unread_folders[0] or "."
            raise SourceError(f"dataset {source.dataset}: no file could be listed: the folder {unread} cannot be read")
        if stops:
            raise DatasetStoppedError(f"dataset {source.dataset}: {stops[0].message}")
        lake.write(SHEETS, _sheets(source.dataset, scan), dataset=source.dataset)
        lake.write(INVENTORY, now, fingerprint=fingerprint(source.location), dataset=source.dataset)
    units = len(pc.unique(now["unit"]))
    new = now.num_rows - (before.num_rows - gone.num_rows)
    return Crawled(source.dataset, now.num_rows, units, new, gone.num_rows, findings.num_rows)


def _refuse_withdrawn(withdrawn: Withdrawn) -> None:
    if withdrawn.whole:
        name = withdrawn.dataset
        raise SourceError(
            f"dataset {name} was withdrawn and is not loaded; `dicom-etl forget {name} --readmit` ends that"
        )


def _nothing(source: Source, scan: Scan) -> str:
    if any(found.code == "subject-withdrawn" for found in scan.findings):
        return "all its files are of withdrawn subjects"
    return f"no file that could be DICOM under {source.location}"


def _left_in(source: Source, scan: Scan, withdrawn: Withdrawn) -> pa.Table:
    """The inventory without withdrawn subjects, of whom nothing is kept but how many files there are."""
    found = _inventory(source, scan)
    kept = withdrawn.without(found)
    scan.cells = cells_kept(scan.cells, withdrawn)
    scan.findings = findings_kept(scan.findings, withdrawn)
    if gone := found.num_rows - kept.num_rows:
        scan.findings.append(finding("subject-withdrawn", source.dataset, count=gone))
    return kept


def _inventory(source: Source, scan: Scan) -> pa.Table:
    """The entries as a table, in blocks, so that millions of files never stand as Python rows."""
    blocks = [_block(source.dataset, block) for block in _blocks(source.scan(scan))]
    return pa.concat_tables([INVENTORY.schema.empty_table(), *blocks])


def _blocks(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    block: list[Entry] = []
    for entry in entries:
        block.append(entry)
        if len(block) == 50_000:
            yield block
            block = []
    yield block


def _block(dataset: str, entries: list[Entry]) -> pa.Table:
    columns = list(zip(*entries, strict=True)) if entries else [()] * len(Entry._fields)
    named = dict(zip(Entry._fields, columns, strict=True))
    named["mtime"] = tuple(ns // 1000 for ns in named["mtime"])
    named["dataset"] = (dataset,) * len(entries)
    return pa.table({field.name: pa.array(named[field.name], field.type) for field in INVENTORY.schema})


def _with_unread(now: pa.Table, before: pa.Table, scan: Scan) -> pa.Table:
    """What was known of places that could not be read now still counts."""
    unread = pc.is_in(before["path"], pa.array(scan.unread_files, pa.string()))
    for folder in scan.unread_folders:
        below = pc.starts_with(before["path"], f"{folder}/" if folder else "")
        unread = pc.or_(unread, below)
    kept = before.filter(pc.and_(unread, pc.invert(pc.is_in(before["path"], now["path"].combine_chunks()))))
    return pa.concat_tables([now, kept]) if kept.num_rows else now


def _gone(before: pa.Table, now: pa.Table) -> pa.Table:
    return before.filter(pc.invert(pc.is_in(before["path"], now["path"].combine_chunks())))


def _vanished(dataset: str, before: pa.Table, now: pa.Table, gone: pa.Table) -> list[Finding]:
    """The findings of the vanish guard: whole subjects, or more than a tenth of the files."""
    if gone.num_rows == 0:
        return []
    lost = sorted(set(pc.unique(before["unit"]).to_pylist()) - set(pc.unique(now["unit"]).to_pylist()))
    findings = [
        finding(
            "subject-missing",
            dataset,
            unit=unit,
            message=f"subject {unit} was there before and is gone; run with --accept-missing if that was meant",
        )
        for unit in lost
    ]
    if gone.num_rows > VANISHED_SHARE * before.num_rows:
        text = f"{gone.num_rows} of {before.num_rows} files are gone; run with --accept-missing if that was meant"
        findings.append(finding("files-missing", dataset, count=gone.num_rows, message=text))
    return findings


def _previous_cells(lake: Lake, dataset: str) -> list[SheetCell]:
    rows = lake.read(SHEETS, list(SheetCell._fields), dataset=dataset).to_pylist()
    return [SheetCell(**row) for row in rows]


def _sheets(dataset: str, scan: Scan) -> pa.Table:
    rows = [{"dataset": dataset, **cell._asdict()} for cell in scan.cells]
    return pa.Table.from_pylist(rows, schema=SHEETS.schema)
