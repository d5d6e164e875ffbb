"""The preview of a run (`--dry-run`): how many files of a dataset are new, changed or missing."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from dicom_etl.lake.schemas import INVENTORY
from dicom_etl.pipeline import Pipeline
from dicom_etl.sources import Scan
from dicom_etl.withdrawal.record import WithdrawalRecord


@dataclass(frozen=True)
class Preview:
    """What a crawl of a dataset would find new."""

    dataset: str
    files: int
    new: int
    changed: int
    missing: int
    units_to_extract: int


def preview_crawl(pipeline: Pipeline, dataset: str) -> Preview:
    """Compare a dataset with its inventory; nothing is written."""
    inventory = pipeline.lake.read(INVENTORY, ["path", "size", "mtime", "unit"], dataset=dataset)
    columns = [inventory["size"], inventory["mtime"].cast(pa.int64()), inventory["unit"]]
    known = zip(*(column.to_pylist() for column in columns), strict=True)
    before = dict(zip(inventory["path"].to_pylist(), known, strict=True))
    files = new = changed = 0
    units: set[str] = set()
    withdrawn = WithdrawalRecord.read(pipeline.lake, dataset, pipeline.ids)
    for entry in pipeline.source(dataset).scan(Scan()):
        if withdrawn.is_withdrawn(entry.unit):
            continue
        files += 1
        was, now = before.pop(entry.path, None), (entry.size, entry.mtime // 1000, entry.unit)
        new += was is None
        changed += was not in (None, now)
        if was != now:
            units.add(entry.unit)
    gone = {unit for _, _, unit in before.values()}
    return Preview(dataset, files, new, changed, len(before), len(units | gone))
