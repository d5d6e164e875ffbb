"""The snapshot of a dataset: a fingerprint that changes when its files or settings change."""

from __future__ import annotations

from typing import Any

from dicom_etl.identity.crosswalk import read_crosswalk
from dicom_etl.lake.fingerprints import compute_fingerprint
from dicom_etl.pipeline import Pipeline
from dicom_etl.sources import Scan, SourceError


def take_snapshot(pipeline: Pipeline, dataset: str) -> str:
    """Compute a fingerprint of the files of a dataset and of the settings that shape its resources.

    It opens no DICOM file, so that it can be computed every few minutes. A source that cannot be read has a fingerprint
    as well.
    """
    scan = Scan()
    try:
        source = pipeline.source(dataset)
        entries = sorted(f"{e.path}\0{e.size}\0{e.mtime}\0{e.unit}" for e in source.scan(scan))
    except SourceError as error:
        entries = [str(error)]
    cells = sorted(map(str, scan.cells))
    return compute_fingerprint(entries, cells, _select_settings(pipeline, dataset))[:16]


def _select_settings(pipeline: Pipeline, dataset: str) -> list[Any]:
    """The settings that shape the resources of a dataset, and its lines of the crosswalk."""
    dataset_settings = pipeline.datasets().get(dataset)
    irrelevant = {"workers", "engine", "lock_wait_seconds", "datasets", "watch_folders", "crosswalk"}
    return [
        pipeline.settings.model_dump(mode="json", exclude=irrelevant),
        dataset_settings and dataset_settings.model_dump(mode="json"),
        sorted(line for line in read_crosswalk(pipeline.settings.crosswalk) if line.dataset == dataset),
    ]
