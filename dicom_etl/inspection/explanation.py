"""The explanation of a subject: everything that the lake has about it, as a list of tables."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow.compute as pc

from dicom_etl.inspection.status import FINDING_STAGES, list_units
from dicom_etl.inspection.uploads import format_reason
from dicom_etl.lake.schemas import (
    COMMITS,
    DATASET_FINDINGS,
    FILES,
    FINDINGS,
    IDENTITIES,
    UNIT_RESOURCE_TYPES,
    header_table,
)
from dicom_etl.lake.shard_reader import read_lines, read_unit
from dicom_etl.lake.tables import Lake
from dicom_etl.settings import SettingsError
from dicom_etl.upload.ledger import read_resources


@dataclass(frozen=True)
class Section:
    """A part of an explanation: a table."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def explain_subject(lake: Lake, dataset: str, subject: str) -> list[Section]:
    """All that the lake knows of a subject.

    Raises:
        SettingsError: the lake has no such dataset or subject.
    """
    names = lake.datasets()
    if dataset not in names:
        raise SettingsError(f"the lake has no dataset {dataset}; it has {', '.join(names) or 'none'}")
    if subject not in (units := list_units(lake, dataset)):
        raise SettingsError(f"{dataset} has no subject {subject}; it has {', '.join(units[:20])}")
    where = {"dataset": dataset, "unit": subject}
    files = Counter((f["kind"], f["reason"] or "") for f in read_unit(lake, FILES, **where).to_pylist())
    return [
        Section("Files", ("kind", "reason", "files"), [(*key, n) for key, n in sorted(files.items())]),
        Section(
            "Series",
            ("study", "series", "sample", "modality", "instances", "duplicates"),
            _series(lake, where),
        ),
        Section(
            "Patient matching",
            ("study", "rule", "state", "reason", "system", "patient"),
            [
                (r["study_uid"], r["rule"], r["state"], r["reason"], r["system"], r["patient"])
                for r in lake.read(IDENTITIES, dataset=dataset).to_pylist()
                if r["unit"] == subject
            ],
        ),
        Section(
            "Findings",
            ("severity", "stage", "code", "where", "message", "count"),
            _found(lake, dataset, subject),
        ),
        Section("Resources", ("type", "id", "started", "series", "instances"), _resources(lake, where)),
        Section(
            "On servers",
            ("server", "type", "id", "state", "version", "reason"),
            [
                (server, row.type, row.place[1], str(row.state), row.version, format_reason(row))
                for server, row in read_resources(lake, dataset, unit=subject)
            ],
        ),
    ]


def _series(lake: Lake, where: dict[str, str]) -> list[tuple[Any, ...]]:
    columns = ["StudyInstanceUID", "SeriesInstanceUID", "sample", "Modality", "duplicate"]
    counts: Counter[tuple[Any, ...]] = Counter()
    copies: Counter[tuple[Any, ...]] = Counter()
    for row in read_unit(lake, header_table(), columns, **where).to_pylist():
        key = tuple(row[column] for column in columns[:-1])
        counts[key] += 1
        copies[key] += row["duplicate"] is not None
    return [(*key, n, copies[key]) for key, n in sorted(counts.items(), key=str)]


def _found(lake: Lake, dataset: str, unit: str) -> list[tuple[Any, ...]]:
    found = []
    for stage in FINDING_STAGES:
        rows = read_unit(lake, FINDINGS, stage=stage, dataset=dataset, unit=unit) if stage in COMMITS else None
        of_dataset = lake.read(DATASET_FINDINGS, stage=stage, dataset=dataset)
        of_dataset = of_dataset.filter(pc.equal(of_dataset["unit"], unit))
        for f in (*(rows.to_pylist() if rows else ()), *of_dataset.to_pylist()):
            where = f["path"] or f["series_uid"] or f["study_uid"] or ""
            found.append((f["severity"], stage, f["code"], where, f["message"], f["count"]))
    return found


def _resources(lake: Lake, where: dict[str, str]) -> list[tuple[Any, ...]]:
    found = []
    for kind in UNIT_RESOURCE_TYPES:
        for line in read_lines(lake, kind, **where).splitlines():
            r = orjson.loads(line)
            found.append((kind, r["id"], r.get("started"), r.get("numberOfSeries"), r.get("numberOfInstances")))
    return found
