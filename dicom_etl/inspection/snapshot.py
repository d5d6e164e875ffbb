"""What a dataset looks like from outside: cheap enough to ask every few minutes, by names and stat alone."""

from __future__ import annotations

from typing import Any

from dicom_etl.identity.crosswalk import read_crosswalk
from dicom_etl.lake.fingerprints import compute_fingerprint
from dicom_etl.pipeline import Pipeline
from dicom_etl.sources import Scan, SourceError


def take_snapshot(pipeline: Pipeline, dataset: str) -> str:
    """A fingerprint of all that the source lists, and of the settings and crosswalk that shape its resources."""
    scan = Scan()
    try:
        source = pipeline.source(dataset)
        entries = sorted(f"{e.path}\0{e.size}\0{e.mtime}\0{e.unit}" for e in source.scan(scan))
    except SourceError as error:
        entries = [str(error)]
    cells = sorted(map(str, scan.cells))
    return compute_fingerprint(entries, cells, _settings(pipeline, dataset))[:16]


def _settings(pipeline: Pipeline, dataset: str) -> list[Any]:
    """What in the settings shapes this dataset, its lines of the crosswalk among it."""
    own = pipeline.datasets().get(dataset)
    others = {"workers", "engine", "lock_wait_seconds", "datasets", "watch_folders", "crosswalk"}
    lines = sorted(line for line in read_crosswalk(pipeline.settings.crosswalk) if line.dataset == dataset)
    return [pipeline.settings.model_dump(mode="json", exclude=others), own and own.model_dump(mode="json"), lines]
