"""The findings of a dataset or a unit, from the tables of all stages that write findings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.lake.schemas import ALL_FINDINGS, COMMITS, DATASET_FINDINGS, FINDINGS
from dicom_etl.lake.shard_reader import read_shards, read_unit
from dicom_etl.lake.tables import Lake

_STAGES = ("crawl", "extract", "build", "upload")  # measure collects their findings and adds its own


def read_findings(lake: Lake, dataset: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The findings of a dataset: those that the measure stage has collected, or those of each stage before."""
    names = None if columns is None else list(columns)
    if lake.exists(ALL_FINDINGS.path(dataset=dataset)):
        yield from lake.read_batches(ALL_FINDINGS, names, dataset=dataset)
        return
    for stage in _STAGES:
        yield lake.read(DATASET_FINDINGS, names, stage=stage, dataset=dataset)
        if stage in COMMITS:
            yield from read_shards(lake, FINDINGS, names, stage=stage, dataset=dataset)


def read_unit_findings(lake: Lake, dataset: str, unit: str) -> Iterator[pa.Table]:
    """The findings of a unit, stage by stage."""
    for stage in _STAGES:
        if stage in COMMITS:
            yield read_unit(lake, FINDINGS, stage=stage, dataset=dataset, unit=unit)
        rows = lake.read(DATASET_FINDINGS, stage=stage, dataset=dataset)
        yield rows.filter(pc.equal(rows["unit"], unit))
