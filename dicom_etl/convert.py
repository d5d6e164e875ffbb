"""Any folder of DICOM files -> ImagingStudy resources, with no lake to keep.

The stages run over the folder as one unit, with tables in a temporary folder, so that what comes out is what a dataset
would give: one ImagingStudy for each study, whatever the folders say.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from dicom_etl.engine import Engine
from dicom_etl.findings import Finding
from dicom_etl.lake.schemas import DATASET_FINDINGS, FINDINGS
from dicom_etl.lake.shard_reader import read_lines, read_shards
from dicom_etl.lake.tables import Lake
from dicom_etl.settings import DatasetSettings, Settings
from dicom_etl.sources import TreeSource
from dicom_etl.sources.base import ROOT_UNIT
from dicom_etl.stages.build import build
from dicom_etl.stages.crawl import crawl
from dicom_etl.stages.extract import extract

_PATIENT = "patient"  # the id of a contained Patient


class Converted(NamedTuple):
    """What a folder gave: resources as dictionaries, sorted by id, and what was wrong."""

    studies: list[dict[str, Any]]
    patients: list[dict[str, Any]]
    findings: list[Finding]


def to_imaging_studies(
    directory: str | Path, *, contained: bool = False, settings: Settings | None = None
) -> list[dict[str, Any]]:
    """The ImagingStudy resources of the DICOM files below a folder, one for each study; see `convert`."""
    return convert(directory, contained=contained, settings=settings).studies


def convert(directory: str | Path, *, contained: bool = False, settings: Settings | None = None) -> Converted:
    """The resources of the DICOM files below a folder.

    Args:
        directory: holds the files, in folders of any kind; zip archives are looked into.
        contained: each ImagingStudy holds its Patient, for servers that have none.
        settings: of which `namespace`, `time_zone`, `fhir`, what may go into resources, and the engine count;
            None: the defaults (R4).

    Raises:
        SourceError: there is no such folder, or no DICOM file in it.
    """
    root = Path(directory).resolve()
    settings = settings or Settings(engine="serial")
    described = DatasetSettings(root=str(root), time_zone=settings.time_zone)
    source = replace(TreeSource.from_settings(root.name or "root", described), is_flat=True)
    engine = Engine(settings.engine, settings.workers, settings.scheduler)
    with tempfile.TemporaryDirectory(prefix="dicom-etl-") as folder:
        lake = Lake(folder).open()
        crawl(source, lake)
        extract(source, lake, engine)
        build(source, lake, settings, described, engine)
        studies, patients = (_resources(lake, kind, source.dataset) for kind in ("ImagingStudy", "Patient"))
        findings = list(_findings(lake, source.dataset))
    by_reference = {f"Patient/{patient['id']}": patient for patient in patients}
    for study in studies:
        del study["endpoint"]  # it would point at a folder of this machine
        study["identifier"] = [one for one in study["identifier"] if one["use"] != "temp"]  # of no dataset, no subject
        if contained:
            _contain(study, by_reference[study["subject"]["reference"]])
    return Converted(studies, [] if contained else patients, findings)


def _resources(lake: Lake, kind: str, dataset: str) -> list[dict[str, Any]]:
    lines = read_lines(lake, kind, dataset=dataset, unit=ROOT_UNIT)
    return [orjson.loads(line) for line in lines.splitlines()]


def _findings(lake: Lake, dataset: str) -> Iterator[Finding]:
    for stage in ("crawl", "extract", "build"):
        of_dataset = lake.read(DATASET_FINDINGS, stage=stage, dataset=dataset)
        of_units = read_shards(lake, FINDINGS, stage=stage, dataset=dataset) if stage != "crawl" else ()
        for found in (of_dataset, *of_units):
            yield from (Finding(**row) for row in found.to_pylist())


def _contain(study: dict[str, Any], patient: dict[str, Any]) -> None:
    """Put a Patient into an ImagingStudy (R4 2.3.0.8: it has no meta there, and an id of its own)."""
    inside = {key: value for key, value in patient.items() if key != "meta"} | {"id": _PATIENT}
    study["subject"] = {"reference": f"#{_PATIENT}"}
    rest = {key: study.pop(key) for key in list(study) if key not in ("resourceType", "id")}
    study |= {"contained": [inside], **rest}
