"""Studies for the benchmark of FHIR resources: some as files, many as header tables in a lake.

A few studies are written as small DICOM files and read by the extraction, so that their rows are realistic. A lake of
any size is filled with copies of these rows, each with its own UIDs, patient and dates.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from benchmarks.contenders import crawl_into_lake, run_extraction
from benchmarks.realistic import SeriesFiles, all_series
from dicom_etl.engine import Engine
from dicom_etl.lake.schemas import EXTRACT_COMMITS, INVENTORY, SHEETS, header_table
from dicom_etl.lake.shard_reader import read_unit
from dicom_etl.lake.shard_writer import ShardWriter
from dicom_etl.lake.shards import assign_shard, choose_row_groups, choose_shard_count
from dicom_etl.lake.tables import Lake
from dicom_etl.sources import TreeSource
from dicom_etl.sources.base import ROOT_UNIT

DATASET = "bench"
SERIES, LENGTH = 4, 50  # of each study: series, and instances of a series
INSTANCES = SERIES * LENGTH
PER_UNIT = 10  # studies of a subject

_ROOT = "1.2.840.99999.7"
_DAY = datetime.date(2020, 1, 1)
_DATES = ("InstanceCreationDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")
_PATIENT = ("PatientName", "PatientSex", "PatientBirthDate")
_WRITTEN = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
# values of the first half of the rows of every twentieth study: each gives a finding or needs another rule of the
# mapping; none excludes an instance, so that all can be counted
_UNUSUAL_VALUES: dict[int, tuple[str, Any]] = {
    1: ("StudyTime", None),
    4: ("SeriesDate", None),
    7: ("BodyPartExamined", "REGION 7"),
    10: ("StudyDescription", "Another"),
    13: ("InstanceNumber", None),
    16: ("SeriesNumber", -1),
}


# -- files ------------------------------------------------------------------------------------------------------------


def write_studies(folder: Path, studies: int) -> list[Path]:
    """Write small files of some studies, in one folder for each; returns the folders."""
    rng = random.Random(1)
    noise = rng.randbytes(1 << 17)
    folders = []
    for number, series in enumerate(islice(_studies(rng, noise), studies), 1):
        study_folder = folder / f"study-{number}"
        for position, series_files in enumerate(series, 1):
            _write(study_folder / f"series-{position}", series_files)
        folders.append(study_folder)
    return folders


def _studies(rng: random.Random, noise: bytes) -> Iterator[list[SeriesFiles]]:
    """The first series of each study that has enough series."""
    for _, members in groupby(all_series(rng, noise, 1), lambda series_files: series_files.study.uid):
        series = list(members)
        if len(series) >= SERIES:
            yield series[:SERIES]


def _write(folder: Path, series: SeriesFiles) -> None:
    # no converter uses pixels or the large private headers
    series.kind = replace(series.kind, rows=4, columns=4)
    series.protocol = b""
    folder.mkdir(parents=True)
    for number, (_, content) in enumerate(series.files(LENGTH), 1):
        (folder / f"{number:04}.dcm").write_bytes(content)


# -- a lake -----------------------------------------------------------------------------------------------------------


class _Subject(NamedTuple):
    number: int
    patient: dict[str, Any]

    @property
    def name(self) -> str:
        return f"sub-{self.number:04}"

    def studies(self, total: int) -> range:
        """The numbers of its studies, if all subjects have `total` studies."""
        first = self.number * PER_UNIT
        return range(first, min(first + PER_UNIT, total))

    def rows(self, total: int) -> int:
        """The number of its header rows."""
        return len(self.studies(total)) * INSTANCES


def read_rows(folder: Path, scratch: Path) -> list[pa.Table]:
    """The header rows of the studies in a folder, one table for each."""
    source = replace(TreeSource(DATASET, folder), is_flat=True)
    lake = crawl_into_lake(source, str(scratch))
    run_extraction(source, lake, Engine())
    rows = read_unit(lake, header_table(), dataset=DATASET, unit=ROOT_UNIT)
    if rows.num_rows % INSTANCES:
        raise AssertionError(f"{rows.num_rows} rows are not a number of complete studies")
    # rows are sorted by path, hence study by study and series by series
    return [rows.slice(start, INSTANCES) for start in range(0, rows.num_rows, INSTANCES)]


def write_lake(root: Path, patterns: list[pa.Table], studies: int) -> Lake:
    """Create a lake with inventory, sheets and header tables of so many studies, which are copies of the patterns."""
    lake = Lake(str(root), lock_wait=0, notify=lambda _: None).open()
    subjects = [_subject(number, patterns) for number in range(-(-studies // PER_UNIT))]
    inventory: list[pa.Table] = []

    def rows_of(subject: _Subject) -> pa.Table:
        rows = pa.concat_tables(_study(patterns[n % len(patterns)], n, subject) for n in subject.studies(studies))
        inventory.append(_files(rows))
        return rows

    shards = choose_shard_count(subject.rows(studies) for subject in subjects)
    for shard in range(shards):
        shard_subjects = [subject for subject in subjects if assign_shard(subject.name, shards) == shard]
        if shard_subjects:
            _write_shard(
                lake,
                shard,
                shards,
                {subject.name: subject.rows(studies) for subject in shard_subjects},
                map(rows_of, shard_subjects),
            )
    lake.write(INVENTORY, pa.concat_tables(inventory), dataset=DATASET)
    lake.write_rows(SHEETS, [_sheet_cell(subject) for subject in subjects], dataset=DATASET)
    return lake


def _write_shard(lake: Lake, shard: int, shards: int, counts: Mapping[str, int], rows: Iterable[pa.Table]) -> None:
    """Write the header rows of some units, sorted, as an extraction does; a build reads no other table of a shard."""
    writer = ShardWriter(lake, "extract", DATASET, shard, shards)
    writer.write_table(header_table(), rows, choose_row_groups(list(counts.values())))
    units = [
        {"unit": unit, "fingerprint": unit, "rows": count, "files": count, "to_retry": False, "duplicates": None}
        for unit, count in counts.items()
    ]
    writer.commit(pa.Table.from_pylist(units, schema=EXTRACT_COMMITS.schema))


def _subject(number: int, patterns: list[pa.Table]) -> _Subject:
    pattern = patterns[number % len(patterns)]
    # one in ten has no PatientID: its subject is the patient
    patient = {"PatientID": f"MRN-{100_000 + number}" if number % 10 != 9 else None}
    return _Subject(number, patient | {name: pattern[name][0].as_py() for name in _PATIENT})


def _study(pattern: pa.Table, number: int, subject: _Subject) -> pa.Table:
    """The rows of a pattern, changed to another study of another subject."""
    constant = _constant(pattern, number, subject)
    varying = _varying(f"{_ROOT}.{20_230_917_000_000 + number}", subject.name, number)
    if unusual := _UNUSUAL_VALUES.get(number % 20):
        name, value = unusual
        values = [constant[name]] * INSTANCES if name in constant else pattern[name].to_pylist()
        varying[name] = [value] * (INSTANCES // 2) + values[INSTANCES // 2 :]
    columns = {name: pattern[name] for name in pattern.column_names}
    schema = header_table().schema
    columns |= {
        name: pa.repeat(pa.scalar(value, schema.field(name).type), INSTANCES) for name, value in constant.items()
    }
    columns |= {name: pa.array(values, schema.field(name).type) for name, values in varying.items()}
    return pa.table(columns, schema=schema)


def _constant(pattern: pa.Table, number: int, subject: _Subject) -> dict[str, Any]:
    day = _DAY + datetime.timedelta(number % 1000)
    return {
        **subject.patient,
        **dict.fromkeys(_DATES, day),
        "unit": subject.name,
        "subject": subject.name,
        "role": "primary",
        "StudyInstanceUID": f"{_ROOT}.{20_230_917_000_000 + number}",
        "AccessionNumber": f"A{day:%Y%m%d}{number:05}",
        "StudyDescription": pattern["StudyDescription"][0].as_py(),  # the series of the files have one each
    }


def _varying(study: str, subject: str, number: int) -> dict[str, list[Any]]:
    positions = [(series, index) for series in range(1, SERIES + 1) for index in range(LENGTH)]
    instances = [f"{study}.{series}.{20_230_917_100_000 + index * 37}" for series, index in positions]
    return {
        "SOPInstanceUID": instances,
        "MediaStorageSOPInstanceUID": instances,
        "SeriesInstanceUID": [f"{study}.{series}" for series, _ in positions],
        "FrameOfReferenceUID": [f"{study}.9.{series}" for series, _ in positions],
        "sample": [f"sam-{number}-{series}" for series, _ in positions],
        "path": [f"primary/{subject}/sam-{number}-{series}/IM_{index:04}.dcm" for series, index in positions],
    }


def _files(rows: pa.Table) -> pa.Table:
    """The inventory rows of header rows."""
    count = rows.num_rows
    file_columns = {
        "size": pa.repeat(pa.scalar(10_000, INVENTORY.schema.field("size").type), count),
        "mtime": pa.repeat(pa.scalar(_WRITTEN, INVENTORY.schema.field("mtime").type), count),
    }
    columns = {name: file_columns[name] if name in file_columns else rows[name] for name in INVENTORY.schema.names}
    return pa.table(columns, schema=INVENTORY.schema)


def _sheet_cell(subject: _Subject) -> dict[str, Any]:
    """A cell of the subjects sheet."""
    position = {"dataset": DATASET, "sheet": "subjects", "path": "subjects.xlsx", "row": subject.number + 2}
    return position | {"subject": subject.name, "sample": None, "field": "species", "value": "Homo sapiens"}
