"""Small DICOM files and small datasets for the tests.

`write_instance` writes a valid file with default values; `Tree` is a dataset of such files with a lake, and can be
crawled, extracted and built. Everything is deterministic.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pydicom
from pydicom.dataset import Dataset as Header
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_etl.engine import Engine
from dicom_etl.lake.schemas import DATASET_FINDINGS, ENDPOINT_PATH, FINDINGS, make_path
from dicom_etl.lake.shard_reader import read_lines, read_unit
from dicom_etl.lake.tables import Lake
from dicom_etl.settings import DatasetSettings, Settings
from dicom_etl.sources import Source, open_source
from dicom_etl.stages.build import BuildResult, build
from dicom_etl.stages.crawl import CrawlResult, crawl
from dicom_etl.stages.extract import ExtractResult, extract

MR_IMAGE = "1.2.840.10008.5.1.4.1.1.4"
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
WRITTEN = 1_700_000_000  # the modification time of every file: 2023-11-14T22:13:20Z

DEFAULTS: Mapping[str, Any] = {
    "SOPClassUID": MR_IMAGE,
    "ImageType": ["ORIGINAL", "PRIMARY"],
    "StudyDate": "20240105",
    "StudyTime": "101500",
    "Modality": "MR",
    "Manufacturer": "ACME",
    "PatientName": "Fictional^Ada",
    "PatientID": "P-1",
    "PatientSex": "F",
    "PatientBirthDate": "19660312",
    "SeriesNumber": 1,
    "InstanceNumber": 1,
}


def uid(name: str) -> str:
    """A valid UID that is always the same for a name."""
    return f"2.25.{int.from_bytes(hashlib.sha256(name.encode()).digest()[:12])}"


def header(*, study: str = "study-1", series: str = "series-1", instance: str = "instance-1", **tags: Any) -> Header:
    """A header with the defaults and `tags` (by keyword).

    Args:
        study: name that determines StudyInstanceUID.
        series: name that determines SeriesInstanceUID.
        instance: name that determines SOPInstanceUID.
        tags: values by keyword. None: no element; "": an empty element; a sequence is a list of such dictionaries.
    """
    uids = {"StudyInstanceUID": uid(study), "SeriesInstanceUID": uid(series), "SOPInstanceUID": uid(instance)}
    return _dataset({**DEFAULTS, **uids, **tags})


def write_instance(path: Path, **tags: Any) -> Path:
    """Write a small valid DICOM file (explicit VR little endian, no pixel data); returns its path.

    The arguments are those of `header`; the default of `instance` is the end of the path. The modification time is
    always `WRITTEN`: without `touch`, a file with changed content and the same size looks unchanged.
    """
    tags.setdefault("instance", "/".join(path.parts[-3:]))
    content = header(**tags)
    content.file_meta = FileMetaDataset()
    content.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, content, enforce_file_format="SOPInstanceUID" in content and "SOPClassUID" in content)
    os.utime(path, (WRITTEN, WRITTEN))
    return path


def touch(path: Path, seconds: int = 1) -> Path:
    """Advance the modification time of a file."""
    later = path.stat().st_mtime + seconds
    os.utime(path, (later, later))
    return path


def write_sheet(path: Path, rows: Iterable[Mapping[str, str]]) -> Path:
    """Write a CSV file (a metadata sheet, a crosswalk) whose columns are the keys of the first row."""
    lines = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    return path


def _dataset(values: Mapping[str, Any]) -> Header:
    content = Header()
    for keyword, value in values.items():
        if value is None:
            continue
        sequence = isinstance(value, list) and value and isinstance(value[0], Mapping)
        setattr(content, keyword, [_dataset(item) for item in value] if sequence else value)
    return content


@dataclass
class Tree:
    """The dataset `name` in the folder `root`, and a lake that datasets may share; stages run in this process.

    Tests may replace `settings` and `dataset_settings` between runs.
    """

    root: Path
    lake: Lake
    name: str = "ds"
    settings: Settings = field(default_factory=Settings)
    dataset_settings: dict[str, Any] = field(default_factory=dict)

    def write(self, path: str, **tags: Any) -> Path:
        """Write an instance at `path` below `primary/`; the default of `series` is the folder."""
        tags.setdefault("series", f"{self.name}/{path.rpartition('/')[0]}")
        tags.setdefault("instance", f"{self.name}/{path}")
        tags.setdefault("study", f"{self.name}/{path.partition('/')[0]}")
        return write_instance(self.root / "primary" / path, **tags)

    def sheet(self, kind: str, *rows: Mapping[str, str]) -> Path:
        """Write the metadata sheet `kind` (subjects, samples, ...) as CSV."""
        return write_sheet(self.root / f"{kind}.csv", rows)

    @property
    def configured(self) -> DatasetSettings:
        """The settings of the dataset."""
        return DatasetSettings(**{"root": str(self.root), **self.dataset_settings})

    @property
    def source(self) -> Source:
        """The source of the dataset."""
        return open_source(self.name, self.configured)

    def crawl(self, *, accept_missing: bool = False) -> CrawlResult:
        """Crawl the dataset."""
        return crawl(self.source, self.lake, accept_missing=accept_missing)

    def extract(self, **options: Any) -> ExtractResult:
        """Extract the inventory."""
        return extract(self.source, self.lake, Engine(), **options)

    def build(self, **options: Any) -> BuildResult:
        """Build the extracted units."""
        return build(self.source, self.lake, self.settings, self.configured, Engine(), **options)

    def run(self, *, accept_missing: bool = False) -> BuildResult:
        """Crawl, extract and build."""
        self.crawl(accept_missing=accept_missing)
        self.extract()
        return self.build()

    def resources(self, kind: str, unit: str) -> list[dict[str, Any]]:
        """The resources of a type of a unit in the lake."""
        if kind == "Endpoint":  # one per dataset
            content = self.lake.read_bytes(make_path(ENDPOINT_PATH, dataset=self.name)) or b""
            return [json.loads(line) for line in content.splitlines()]
        return [json.loads(line) for line in read_lines(self.lake, kind, dataset=self.name, unit=unit).splitlines()]

    def findings(self, stage: str, unit: str | None = None) -> list[dict[str, Any]]:
        """The findings of a stage, of a unit or (None) of the dataset as a whole."""
        where = {"stage": stage, "dataset": self.name}
        if unit is None:
            return self.lake.read(DATASET_FINDINGS, **where).to_pylist()
        return read_unit(self.lake, FINDINGS, **where, unit=unit).to_pylist()

    def codes(self, stage: str, unit: str | None = None) -> list[str]:
        """The codes of these findings."""
        return [finding["code"] for finding in self.findings(stage, unit)]


def make_lake(tmp_path: Path) -> Lake:
    """An open, empty lake that does not wait for locks."""
    return Lake(str(tmp_path / "lake"), lock_wait=0, notify=lambda _: None).open()


def make_tree(tmp_path: Path, name: str = "ds", *, lake: Lake | None = None, **dataset_settings: Any) -> Tree:
    """An empty dataset `name` in `tmp_path`, with a new lake or with `lake`.

    Args:
        tmp_path: the folder of the dataset and of the lake.
        name: name of the dataset and of its folder.
        lake: a lake to share between datasets.
        dataset_settings: fields of `DatasetSettings` except `root`.
    """
    (tmp_path / name).mkdir(parents=True, exist_ok=True)
    return Tree(tmp_path / name, lake or make_lake(tmp_path), name, Settings(), dataset_settings)


def rows_by(table: pa.Table, column: str) -> dict[Any, dict[str, Any]]:
    """The rows of a table by a column without repeated values."""
    rows = table.to_pylist()
    rows_by_value = {row[column]: row for row in rows}
    assert len(rows_by_value) == len(rows), f"{column} has repeated values"
    return rows_by_value
