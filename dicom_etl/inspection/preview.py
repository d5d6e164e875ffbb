"""The preview of a crawl (`--dry-run`): how many files of a dataset are new, changed or missing."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from dicom_etl.lake.schemas import INVENTORY
from dicom_etl.pipeline import Pipeline
from dicom_etl.sources import Scan
from dicom_etl.withdrawal.record import WithdrawalRecord


@dataclass(frozen=True)
class Preview:
    """The number of files of a dataset that a crawl would list, and what would change in the inventory."""

    dataset: str
    files: int
    new: int
    changed: int
    missing: int  # in the inventory, no longer in the source
    units_to_extract: int


def preview_crawl(pipeline: Pipeline, dataset: str) -> Preview:
    """Compare a dataset with its inventory; nothing is written."""
    inventory = pipeline.lake.read(INVENTORY, ["path", "size", "mtime", "unit"], dataset=dataset)
    columns = [inventory["size"], inventory["mtime"].cast(pa.int64()), inventory["unit"]]
    file_states = zip(*(column.to_pylist() for column in columns), strict=True)
    unseen = dict(zip(inventory["path"].to_pylist(), file_states, strict=True))  # path -> size, mtime, unit
    files = new = changed = 0
    units: set[str] = set()
    withdrawn = WithdrawalRecord.read(pipeline.lake, dataset, pipeline.ids)
    for entry in pipeline.source(dataset).scan(Scan()):
        if withdrawn.is_withdrawn(entry.unit):
            continue
        files += 1
        previous, current = unseen.pop(entry.path, None), (entry.size, entry.mtime // 1000, entry.unit)
        new += previous is None
        changed += previous not in (None, current)
        if previous != current:
            units.add(entry.unit)
    units_with_missing_files = {unit for _, _, unit in unseen.values()}
    return Preview(dataset, files, new, changed, len(unseen), len(units | units_with_missing_files))
