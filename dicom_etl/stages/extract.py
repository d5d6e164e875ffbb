"""extract: files that are new or changed -> `tag_profiles`, `headers`, `files` and findings, in shards.

Units are read in chunks, duplicates are decided over the dataset, then the shards are written whose rows or duplicate
flags changed. A unit that fails keeps its previous rows and is read again by the next run.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.engine import Engine, Progress
from dicom_etl.extraction.chunks import chunks_folder
from dicom_etl.extraction.duplicates import Duplicates, find_duplicates
from dicom_etl.extraction.plan import Units, concatenate_commits, fingerprint_commits, plan_extraction
from dicom_etl.extraction.reading import UnitsRead, read_units
from dicom_etl.extraction.shards import write_shards
from dicom_etl.findings import describe_error, make_finding, tabulate_findings
from dicom_etl.lake.commits import read_commits
from dicom_etl.lake.schemas import DATASET_FINDINGS, FINDINGS, INVENTORY
from dicom_etl.lake.tables import Lake
from dicom_etl.sources import Source, SourceError


@dataclass(frozen=True)
class ExtractResult:
    """The counts of an extraction. `files_opened` counts every file that was opened, also for checksums."""

    dataset: str
    units: int
    units_processed: int
    units_failed: int
    files_opened: int
    rows: int
    findings: int


def extract(
    source: Source,
    lake: Lake,
    engine: Engine,
    *,
    subjects: Collection[str] | None = None,
    force: bool = False,
    progress: Progress = lambda *_: None,
) -> ExtractResult:
    """Update the header tables of a dataset to match its inventory.

    Args:
        source: opens the files.
        lake: holds the inventory.
        engine: runs the workers that read chunks and write shards.
        subjects: only these units; None: all.
        force: read every file again.
        progress: called with ("extract NAME", files done, files to do).

    Raises:
        SourceError: there is no inventory, or none of its files is a DICOM file.
    """
    dataset = source.dataset
    with lake.lock(dataset, f"extract of {dataset}"):
        units = Units(_read_inventory(lake, dataset))
        plan = plan_extraction(lake, dataset, units, subjects=subjects, force=force)
        if force:
            lake.remove_folder(chunks_folder(dataset))
        units_read = read_units(source, lake, engine, plan, progress)
        files_opened = sum(summary.files_opened for _, summary in units_read.chunks)
        commits = concatenate_commits(plan.commits.values())
        state = lake.read_fingerprint(DATASET_FINDINGS, stage="extract", dataset=dataset)
        # also where nothing changed, if a killed run did not record its result
        if plan.changed or plan.removed or plan.is_resharded or state != fingerprint_commits(commits):
            duplicates = find_duplicates(source, lake, plan, units_read.chunks)
            files_opened += duplicates.files_opened
            commits = write_shards(lake, engine, dataset, plan, units_read, duplicates, progress)
            _write_findings(lake, dataset, units_read, duplicates, fingerprint_commits(commits))
        lake.remove_folder(chunks_folder(dataset))
        findings = _count_findings(lake, dataset)
    rows = pc.sum(commits["rows"]).as_py() or 0
    if rows == 0 and not units_read.failures:
        files = sum(units.file_counts)
        raise SourceError(f"dataset {dataset}: none of the {files} files under {source.location} is a DICOM file")
    failed = len(units_read.failures)
    return ExtractResult(dataset, len(units.names), len(plan.changed) - failed, failed, files_opened, rows, findings)


def _read_inventory(lake: Lake, dataset: str) -> pa.Table:
    inventory = lake.read(INVENTORY, dataset=dataset)
    if inventory.num_rows == 0:
        raise SourceError(f"dataset {dataset}: there is no inventory; crawl it first")
    return inventory


def _write_findings(lake: Lake, dataset: str, units_read: UnitsRead, duplicates: Duplicates, state: str) -> None:
    failed = [
        make_finding("unit-failed", dataset, unit=unit, message=describe_error(error))
        for unit, error in units_read.failures.items()
    ]
    rows = tabulate_findings([*failed, *duplicates.findings])
    # without the fingerprint the next run decides about duplicates again
    state = "" if units_read.failures or not duplicates.is_complete else state
    lake.write(DATASET_FINDINGS, rows, fingerprint=state, stage="extract", dataset=dataset)


def _count_findings(lake: Lake, dataset: str) -> int:
    shards = read_commits(lake, "extract", dataset)
    return lake.count_rows(DATASET_FINDINGS, stage="extract", dataset=dataset) + sum(
        lake.count_rows(FINDINGS, stage="extract", dataset=dataset, shard=shard) for shard in shards
    )
