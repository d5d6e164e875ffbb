"""Conversion of any folder of DICOM files to ImagingStudy resources, without a lake that is kept.

The stages process the folder as one unit, with tables in a temporary folder, so that the result is the same as for a
dataset: one ImagingStudy for each StudyInstanceUID, whatever the names of folders are.
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

_PATIENT = "patient"  # id of a contained Patient


class Converted(NamedTuple):
    """The result of a conversion: resources as dictionaries, sorted by id, and findings."""

    studies: list[dict[str, Any]]
    patients: list[dict[str, Any]]
    findings: list[Finding]


def to_imaging_studies(
    directory: str | Path, *, contained: bool = False, settings: Settings | None = None
) -> list[dict[str, Any]]:
    """Convert the DICOM files in a folder to ImagingStudy resources, one for each study; see `convert`."""
    return convert(directory, contained=contained, settings=settings).studies


def convert(directory: str | Path, *, contained: bool = False, settings: Settings | None = None) -> Converted:
    """Convert the DICOM files in a folder to FHIR resources.

    Args:
        directory: with the files, in any folders; files in zip archives are included.
        contained: each ImagingStudy contains its Patient, for servers that do not have the Patients.
        settings: `namespace`, `time_zone`, `fhir`, those about the content of resources and those of the engine are
            used; None: the defaults (R4).

    Raises:
        SourceError: the folder does not exist, or has no DICOM file.
    """
    root = Path(directory).resolve()
    settings = settings or Settings(engine="serial")
    dataset_settings = DatasetSettings(root=str(root), time_zone=settings.time_zone)
    source = replace(TreeSource.from_settings(root.name or "root", dataset_settings), is_flat=True)
    engine = Engine(settings.engine, settings.workers, settings.scheduler)
    with tempfile.TemporaryDirectory(prefix="dicom-etl-") as folder:
        lake = Lake(folder).open()
        crawl(source, lake)
        extract(source, lake, engine)
        build(source, lake, settings, dataset_settings, engine)
        studies, patients = (
            [orjson.loads(line) for line in read_lines(lake, kind, dataset=source.dataset, unit=ROOT_UNIT).splitlines()]
            for kind in ("ImagingStudy", "Patient")
        )
        findings = list(_findings(lake, source.dataset))
    by_reference = {f"Patient/{patient['id']}": patient for patient in patients}
    for study in studies:
        del study["endpoint"]  # it would refer to a folder of this machine
        # there is no dataset and no subject: no SDS identifiers
        study["identifier"] = [identifier for identifier in study["identifier"] if identifier["use"] != "temp"]
        if contained:
            _contain(study, by_reference[study["subject"]["reference"]])
    return Converted(studies, [] if contained else patients, findings)


def _findings(lake: Lake, dataset: str) -> Iterator[Finding]:
    for stage in ("crawl", "extract", "build"):
        of_dataset = lake.read(DATASET_FINDINGS, stage=stage, dataset=dataset)
        of_units = read_shards(lake, FINDINGS, stage=stage, dataset=dataset) if stage != "crawl" else ()
        for table in (of_dataset, *of_units):
            yield from (Finding(**row) for row in table.to_pylist())


def _contain(study: dict[str, Any], patient: dict[str, Any]) -> None:
    """Contain a Patient in an ImagingStudy, without meta and with an id that is unique there (R4 2.3.0.8)."""
    contained = {key: value for key, value in patient.items() if key != "meta"} | {"id": _PATIENT}
    study["subject"] = {"reference": f"#{_PATIENT}"}
    rest = {key: study.pop(key) for key in list(study) if key not in ("resourceType", "id")}
    study |= {"contained": [contained], **rest}
