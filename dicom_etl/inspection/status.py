"""The status of the datasets of a lake: how much is loaded, held and failed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.inspection.findings import read_findings
from dicom_etl.lake.schemas import FILES, IDENTITIES, INVENTORY, header_table
from dicom_etl.lake.shard_reader import read_shards
from dicom_etl.lake.tables import Lake
from dicom_etl.upload.ledger import count_resources


@dataclass(frozen=True)
class DatasetStatus:
    """How much the lake has of a dataset."""

    dataset: str
    subjects: int
    studies: int
    held: int  # studies on hold
    series: int
    instances: int  # without duplicates
    unreadable: int  # files
    errors: int  # findings of this severity
    warnings: int
    uploads: tuple[tuple[str, str, int], ...]  # server, state, resources


def read_status(lake: Lake) -> list[DatasetStatus]:
    """The status of every dataset of the lake."""
    return [read_dataset_status(lake, name) for name in lake.datasets()]


def list_units(lake: Lake, dataset: str) -> list[str]:
    """The units of a dataset, sorted."""
    return sorted(pc.unique(lake.read(INVENTORY, ["unit"], dataset=dataset)["unit"]).to_pylist())


def read_dataset_status(lake: Lake, dataset: str) -> DatasetStatus:
    """The status of one dataset."""
    identities = lake.read(IDENTITIES, ["study_uid", "state"], dataset=dataset).to_pylist()
    states = {row["study_uid"]: row["state"] for row in identities}
    series, instances = _count_series_and_instances(lake, dataset)
    severities: Counter[str] = Counter()
    for rows in read_findings(lake, dataset, ["severity"]):
        severities.update({count["values"]: count["counts"] for count in pc.value_counts(rows["severity"]).to_pylist()})
    return DatasetStatus(
        dataset=dataset,
        subjects=len(list_units(lake, dataset)),
        studies=len(states),
        held=sum(state == "held" for state in states.values()),
        series=series,
        instances=instances,
        unreadable=sum(
            pc.sum(pc.equal(rows["kind"], "unreadable")).as_py() or 0
            for rows in read_shards(lake, FILES, ["kind"], dataset=dataset)
        ),
        errors=severities["error"],
        warnings=severities["warning"],
        uploads=tuple(
            (server, str(state), count)
            for (name, server, state), count in sorted(count_resources(lake).items())
            if name == dataset
        ),
    )


def _count_series_and_instances(lake: Lake, dataset: str) -> tuple[int, int]:
    series = pa.array([], pa.string())
    instances = 0
    for rows in read_shards(lake, header_table(), ["SeriesInstanceUID", "duplicate"], dataset=dataset):
        shard_series = pc.unique(rows["SeriesInstanceUID"].drop_null())
        series = pc.unique(pa.concat_arrays([series, shard_series]))
        instances += rows["duplicate"].null_count
    return len(series), instances
