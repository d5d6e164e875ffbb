"""The explanation of a subject: everything that the lake has about it, as a list of tables."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import orjson

from dicom_etl.inspection.findings import read_unit_findings
from dicom_etl.inspection.status import list_units
from dicom_etl.inspection.uploads import format_reason
from dicom_etl.lake.schemas import FILES, IDENTITIES, UNIT_RESOURCE_TYPES, header_table
from dicom_etl.lake.shard_reader import read_lines, read_unit
from dicom_etl.lake.tables import Lake
from dicom_etl.settings import SettingsError
from dicom_etl.upload.ledger import read_resources

Rows = list[tuple[Any, ...]]


@dataclass(frozen=True)
class Section:
    """One table of an explanation."""

    title: str
    columns: tuple[str, ...]
    rows: Rows


def explain_subject(lake: Lake, dataset: str, subject: str) -> list[Section]:
    """Collect everything that the lake has about a subject (or unit).

    Raises:
        SettingsError: the lake has no such dataset or subject.
    """
    datasets = lake.datasets()
    if dataset not in datasets:
        raise SettingsError(f"the lake has no dataset {dataset}; it has {', '.join(datasets) or 'none'}")
    if subject not in (units := list_units(lake, dataset)):
        raise SettingsError(f"{dataset} has no subject {subject}; it has {', '.join(units[:20])}")
    return [
        Section("Files", ("kind", "reason", "files"), _count_files(lake, dataset, subject)),
        Section(
            "Series",
            ("study", "series", "sample", "modality", "instances", "duplicates"),
            _count_instances(lake, dataset, subject),
        ),
        Section(
            "Patient matching",
            ("study", "rule", "state", "reason", "system", "patient"),
            [
                (row["study_uid"], row["rule"], row["state"], row["reason"], row["system"], row["patient"])
                for row in lake.read(IDENTITIES, dataset=dataset).to_pylist()
                if row["unit"] == subject
            ],
        ),
        Section(
            "Findings",
            ("severity", "stage", "code", "where", "message", "count"),
            _list_findings(lake, dataset, subject),
        ),
        Section("Resources", ("type", "id", "started", "series", "instances"), _list_resources(lake, dataset, subject)),
        Section(
            "On servers",
            ("server", "type", "id", "state", "version", "reason"),
            [
                (server, row.type, row.server_key[1], str(row.state), row.version, format_reason(row))
                for server, row in read_resources(lake, dataset, unit=subject)
            ],
        ),
    ]


def _count_files(lake: Lake, dataset: str, unit: str) -> Rows:
    files = read_unit(lake, FILES, ["kind", "reason"], dataset=dataset, unit=unit).to_pylist()
    counts = Counter((file["kind"], file["reason"] or "") for file in files)
    return [(*key, number) for key, number in sorted(counts.items())]


def _count_instances(lake: Lake, dataset: str, unit: str) -> Rows:
    columns = ["StudyInstanceUID", "SeriesInstanceUID", "sample", "Modality", "duplicate"]
    instances: Counter[tuple[Any, ...]] = Counter()
    duplicates: Counter[tuple[Any, ...]] = Counter()
    for row in read_unit(lake, header_table(), columns, dataset=dataset, unit=unit).to_pylist():
        key = tuple(row[column] for column in columns[:-1])
        instances[key] += 1
        duplicates[key] += row["duplicate"] is not None
    return [(*key, number, duplicates[key]) for key, number in sorted(instances.items(), key=str)]


def _list_findings(lake: Lake, dataset: str, unit: str) -> Rows:
    rows = []
    for findings in read_unit_findings(lake, dataset, unit):
        for finding in findings.to_pylist():
            where = finding["path"] or finding["series_uid"] or finding["study_uid"] or ""
            kind = finding["severity"], finding["stage"], finding["code"]
            rows.append((*kind, where, finding["message"], finding["count"]))
    return rows


def _list_resources(lake: Lake, dataset: str, unit: str) -> Rows:
    rows = []
    for kind in UNIT_RESOURCE_TYPES:
        for line in read_lines(lake, kind, dataset=dataset, unit=unit).splitlines():
            resource = orjson.loads(line)
            counts = resource.get("numberOfSeries"), resource.get("numberOfInstances")
            rows.append((kind, resource["id"], resource.get("started"), *counts))
    return rows
