"""The status of the datasets of a lake: how much is loaded, held and failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.lake.schemas import (
    ALL_FINDINGS,
    COMMITS,
    DATASET_FINDINGS,
    FILES,
    FINDINGS,
    IDENTITIES,
    INVENTORY,
    header_table,
)
from dicom_etl.lake.shard_reader import read_shards
from dicom_etl.lake.tables import Lake
from dicom_etl.upload.ledger import count_resources

FINDING_STAGES = ("crawl", "extract", "build", "upload")  # that write findings of their own


@dataclass(frozen=True)
class DatasetStatus:
    """What the lake has of a dataset."""

    dataset: str
    subjects: int
    studies: int
    held: int
    series: int
    instances: int
    unreadable: int
    errors: int
    warnings: int
    uploads: tuple[tuple[str, str, int], ...]  # server, state, resources


def read_status(lake: Lake) -> list[DatasetStatus]:
    """One row per dataset of the lake."""
    return [read_dataset_status(lake, name) for name in lake.datasets()]


def list_units(lake: Lake, dataset: str) -> list[str]:
    return sorted(pc.unique(lake.read(INVENTORY, ["unit"], dataset=dataset)["unit"]).to_pylist())


def read_dataset_status(lake: Lake, dataset: str) -> DatasetStatus:
    """What the lake has of one dataset."""
    units = list_units(lake, dataset)
    identities = lake.read(IDENTITIES, ["study_uid", "state"], dataset=dataset).to_pylist()
    states = {row["study_uid"]: row["state"] for row in identities}
    unreadable = sum(
        pc.sum(pc.equal(rows["kind"], "unreadable")).as_py() or 0
        for rows in read_shards(lake, FILES, ["kind"], dataset=dataset)
    )
    series, instances = _series_and_instances(lake, dataset)
    severities: Counter[str] = Counter()
    for rows in _severities(lake, dataset):
        severities.update({count["values"]: count["counts"] for count in pc.value_counts(rows["severity"]).to_pylist()})
    return DatasetStatus(
        dataset,
        len(units),
        len(states),
        sum(state == "held" for state in states.values()),
        series,
        instances,
        unreadable,
        severities["error"],
        severities["warning"],
        tuple(
            (server, str(state), count)
            for (name, server, state), count in sorted(count_resources(lake).items())
            if name == dataset
        ),
    )


def _series_and_instances(lake: Lake, dataset: str) -> tuple[int, int]:
    """How many series and instances there are, copies left out."""
    series = pa.array([], pa.string())
    instances = 0
    for rows in read_shards(lake, header_table(), ["SeriesInstanceUID", "duplicate"], dataset=dataset):
        found = pc.unique(rows["SeriesInstanceUID"].drop_null())
        series = pc.unique(pa.concat_arrays([series, found]))
        instances += rows["duplicate"].null_count
    return len(series), instances


def _severities(lake: Lake, dataset: str) -> Iterator[pa.Table]:
    """The severities of all findings: those that were collected, else those of each stage."""
    if lake.exists(ALL_FINDINGS.path(dataset=dataset)):
        yield lake.read(ALL_FINDINGS, ["severity"], dataset=dataset)
        return
    for stage in FINDING_STAGES:
        yield lake.read(DATASET_FINDINGS, ["severity"], stage=stage, dataset=dataset)
        if stage in COMMITS:
            yield from read_shards(lake, FINDINGS, ["severity"], stage=stage, dataset=dataset)
