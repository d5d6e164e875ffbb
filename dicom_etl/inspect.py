"""Looking without touching: what a run would do, what is loaded, why a subject looks as it does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.lake.row_groups import read_parquet
from dicom_etl.lake.schemas import (
    ALL_FINDINGS,
    COMMITS,
    DATASET_FINDINGS,
    FILES,
    FINDINGS,
    IDENTITIES,
    INVENTORY,
    STORED_BY_UNIT,
    headers,
)
from dicom_etl.lake.shard_reader import read_lines, read_shards, read_unit
from dicom_etl.lake.tables import Lake
from dicom_etl.lake.withdrawn import Withdrawn
from dicom_etl.pipeline import Pipeline
from dicom_etl.settings import SettingsError
from dicom_etl.sources import Scan
from dicom_etl.upload.ledger import ResourceRow, State, count_resources, read_resources

_STAGES = ("crawl", "extract", "build", "upload")
STATES = tuple(map(str, State))  # of a resource in a ledger


@dataclass(frozen=True)
class Plan:
    """What a crawl of a dataset would find new."""

    dataset: str
    files: int
    new: int
    changed: int
    gone: int
    units_to_extract: int


def plan(pipeline: Pipeline, dataset: str) -> Plan:
    """Compare a dataset with its inventory; nothing is written."""
    inventory = pipeline.lake.read(INVENTORY, ["path", "size", "mtime", "unit"], dataset=dataset)
    columns = [inventory["size"], inventory["mtime"].cast(pa.int64()), inventory["unit"]]
    known = zip(*(column.to_pylist() for column in columns), strict=True)
    before = dict(zip(inventory["path"].to_pylist(), known, strict=True))
    files = new = changed = 0
    units: set[str] = set()
    withdrawn = Withdrawn.of(pipeline.lake, dataset, pipeline.ids)
    for entry in pipeline.source(dataset).scan(Scan()):
        if withdrawn.has(entry.unit):
            continue
        files += 1
        was, now = before.pop(entry.path, None), (entry.size, entry.mtime // 1000, entry.unit)
        new += was is None
        changed += was not in (None, now)
        if was != now:
            units.add(entry.unit)
    gone = {unit for _, _, unit in before.values()}
    return Plan(dataset, files, new, changed, len(before), len(units | gone))


@dataclass(frozen=True)
class Status:
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


def status(lake: Lake) -> list[Status]:
    """One row per dataset of the lake."""
    return [status_of(lake, name) for name in datasets_of(lake)]


def datasets_of(lake: Lake) -> list[str]:
    """The true names of the datasets in the lake."""
    names = []
    for encoded in lake.names("inventory", ".parquet"):
        path = lake.at(f"inventory/{encoded}.parquet")
        with path.open("rb") as file:
            rows = read_parquet(file, ["dataset"])
        names += pc.unique(rows["dataset"]).to_pylist()
    return sorted(names)


def _units(lake: Lake, dataset: str) -> list[str]:
    return sorted(pc.unique(lake.read(INVENTORY, ["unit"], dataset=dataset)["unit"]).to_pylist())


def status_of(lake: Lake, dataset: str) -> Status:
    """What the lake has of one dataset."""
    units = _units(lake, dataset)
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
    return Status(
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
    for rows in read_shards(lake, headers(), ["SeriesInstanceUID", "duplicate"], dataset=dataset):
        found = pc.unique(rows["SeriesInstanceUID"].drop_null())
        series = pc.unique(pa.concat_arrays([series, found]))
        instances += rows["duplicate"].null_count
    return len(series), instances


def _severities(lake: Lake, dataset: str) -> Iterator[pa.Table]:
    """The severities of all findings: those that were collected, else those of each stage."""
    if lake.exists(ALL_FINDINGS.path(dataset=dataset)):
        yield lake.read(ALL_FINDINGS, ["severity"], dataset=dataset)
        return
    for stage in _STAGES:
        yield lake.read(DATASET_FINDINGS, ["severity"], stage=stage, dataset=dataset)
        if stage in COMMITS:
            yield from read_shards(lake, FINDINGS, ["severity"], stage=stage, dataset=dataset)


@dataclass(frozen=True)
class Sent:
    """A resource as the ledger of a server has it; `reason` is the server's, or ours for not sending it."""

    server: str
    dataset: str
    unit: str | None
    subject: str | None
    resource: str  # Type/id
    state: str
    status: int | None
    attempts: int
    reason: str | None
    time: datetime


@dataclass(frozen=True)
class Sendings:
    """The resources of a dataset in some states, newest first, and how many there are in each state."""

    dataset: str
    counts: dict[str, int]
    listed: tuple[Sent, ...]


def sendings(lake: Lake, dataset: str, states: Collection[str] = ()) -> Sendings:
    """What became of the resources of a dataset on all servers.

    Args:
        lake: holds the ledgers.
        dataset: its name.
        states: those that are listed; none: all but stored.
    """
    every = list(_sent(lake, dataset))
    counts = Counter(sent.state for sent in every)
    listed = [sent for sent in every if (sent.state in states if states else sent.state != "stored")]
    listed.sort(key=lambda sent: (sent.server, sent.resource))
    listed.sort(key=lambda sent: sent.time, reverse=True)
    return Sendings(dataset, {state: counts[state] for state in STATES if counts[state]}, tuple(listed))


def _sent(lake: Lake, dataset: str) -> Iterator[Sent]:
    """All rows of a dataset, also those of units that it no longer has, and those of what it shares."""
    for server, row in read_resources(lake, dataset):
        yield _sent_of(server, row)


def _sent_of(server: str, row: ResourceRow) -> Sent:
    return Sent(
        server,
        row.dataset,
        row.unit,
        row.subject,
        "/".join(row.place),
        str(row.state),
        row.http_status,
        row.attempts,
        reason_of(row),
        row.time,
    )


def reason_of(row: ResourceRow) -> str | None:
    """Why a resource is not as it should be, beginning with the code of the finding."""
    return ": ".join(filter(None, (row.reason, row.reason_text))) or None


@dataclass(frozen=True)
class Section:
    """A part of an explanation: a table."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def explain(lake: Lake, dataset: str, subject: str) -> list[Section]:
    """All that the lake knows of a subject.

    Raises:
        SettingsError: the lake has no such dataset or subject.
    """
    if dataset not in datasets_of(lake):
        raise SettingsError(f"the lake has no dataset {dataset}; it has {', '.join(datasets_of(lake)) or 'none'}")
    if subject not in (units := _units(lake, dataset)):
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
                (server, row.type, row.place[1], str(row.state), row.version, reason_of(row))
                for server, row in read_resources(lake, dataset, unit=subject)
            ],
        ),
    ]


def _series(lake: Lake, where: dict[str, str]) -> list[tuple[Any, ...]]:
    columns = ["StudyInstanceUID", "SeriesInstanceUID", "sample", "Modality", "duplicate"]
    counts: Counter[tuple[Any, ...]] = Counter()
    copies: Counter[tuple[Any, ...]] = Counter()
    for row in read_unit(lake, headers(), columns, **where).to_pylist():
        key = tuple(row[column] for column in columns[:-1])
        counts[key] += 1
        copies[key] += row["duplicate"] is not None
    return [(*key, n, copies[key]) for key, n in sorted(counts.items(), key=str)]


def _found(lake: Lake, dataset: str, unit: str) -> list[tuple[Any, ...]]:
    found = []
    for stage in _STAGES:
        rows = read_unit(lake, FINDINGS, stage=stage, dataset=dataset, unit=unit) if stage in COMMITS else None
        of_dataset = lake.read(DATASET_FINDINGS, stage=stage, dataset=dataset)
        of_dataset = of_dataset.filter(pc.equal(of_dataset["unit"], unit))
        for f in (*(rows.to_pylist() if rows else ()), *of_dataset.to_pylist()):
            where = f["path"] or f["series_uid"] or f["study_uid"] or ""
            found.append((f["severity"], stage, f["code"], where, f["message"], f["count"]))
    return found


def _resources(lake: Lake, where: dict[str, str]) -> list[tuple[Any, ...]]:
    found = []
    for kind in STORED_BY_UNIT:
        for line in read_lines(lake, kind, **where).splitlines():
            r = orjson.loads(line)
            found.append((kind, r["id"], r.get("started"), r.get("numberOfSeries"), r.get("numberOfInstances")))
    return found
