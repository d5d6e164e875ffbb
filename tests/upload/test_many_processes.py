"""Eight processes that upload at once: into the SQLite ledger of one lake, and of two lakes into one PostgreSQL."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dicom_etl.lake.tables import Lake
from tests.servers.hapi_server import HapiServer
from tests.support import server_content
from tests.support.upload_lakes import DatasetFactory, Study, new_lake
from tests.upload.soak.kill_checks import LedgerContent, read_ledger
from tests.upload.soak.killed_uploads import Job, Running

DATASETS = tuple(f"D{number}" for number in range(8))
UNITS = 5
SETTINGS = {"max_bundle_entries": 4, "max_concurrent_requests": 2}


def _factory() -> DatasetFactory:
    return DatasetFactory(f"many-{uuid.uuid4().hex[:8]}")


def _build(factory: DatasetFactory, lake: Lake, datasets: tuple[str, ...]) -> None:
    """Per dataset ten studies of five units; each has a Patient of its own and one that all datasets share."""
    for dataset in datasets:
        studies = [
            Study(f"{dataset}-{rule}-{number}", f"P{number}", unit=f"sub-{number}", rule=rule)
            for number in range(UNITS)
            for rule in ("authority", "patient-id")
        ]
        factory.build(lake, dataset, studies)


def _upload_all(lakes: Mapping[str, Lake], url: str, ledger_url: str | None, folder: Path) -> list[str]:
    """Upload each dataset of each lake in a process of its own, all at once; returns what became of them."""
    runs = [
        Running(Job(lake.root, ledger_url, url, (dataset,), str(folder / f"{name}-{dataset}.log"), SETTINGS))
        for name, lake in lakes.items()
        for dataset in DATASETS
    ]
    return [run.wait() for run in runs]


def _states(ledger: LedgerContent) -> Counter[tuple[Any, ...]]:
    """How many rows there are by type, dataset (none: shared by all), state and reason."""
    return Counter(
        (row["type"], row["dataset"] if row["unit"] else None, row["state"], row["reason"])
        for row in ledger.rows.values()
    )


def _expected() -> Counter[tuple[Any, ...]]:
    per_dataset = {("Patient", dataset, "stored", None): UNITS for dataset in DATASETS}
    studies = {("ImagingStudy", dataset, "stored", None): 2 * UNITS for dataset in DATASETS}
    shared = {("Patient", None, "stored", None): UNITS, ("Endpoint", None, "stored", None): len(DATASETS)}
    return Counter(per_dataset | studies | shared)


def _versions(url: str, factory: DatasetFactory) -> Counter[str]:
    """The versions of the studies on the server."""
    uids = [
        ("urn:dicom:uid", f"urn:oid:{factory.uid(f'{dataset}-{rule}-{number}')}")
        for dataset in DATASETS
        for number in range(UNITS)
        for rule in ("authority", "patient-id")
    ]
    found = [
        study
        for start in range(0, len(uids), 20)
        for study in server_content.find_by_identifiers(url, "ImagingStudy", uids[start : start + 20])
    ]
    return Counter(server_content.version(study) for study in found)


def test_eight_processes_upload_with_one_sqlite_ledger(hapi: HapiServer, tmp_path: Path) -> None:
    factory, lake = _factory(), new_lake(tmp_path / "lake")
    _build(factory, lake, DATASETS)

    ended = _upload_all({"lake": lake}, hapi.base_url, None, tmp_path)

    assert ended == ["ended"] * 8
    ledger = read_ledger(lake.root, None, lake.lake_id)
    assert _states(ledger) == _expected()
    assert list(ledger.attempts) == []
    assert _versions(hapi.base_url, factory) == {"1": 8 * 2 * UNITS}


def test_two_lakes_upload_with_one_postgresql_ledger(hapi: HapiServer, tmp_path: Path, postgres_url: str) -> None:
    factories, lakes = {}, {}
    for name in ("A", "B"):
        factories[name], lakes[name] = _factory(), new_lake(tmp_path / name)
        _build(factories[name], lakes[name], DATASETS)

    ended = _upload_all(lakes, hapi.base_url, postgres_url, tmp_path)

    assert ended == ["ended"] * 16
    for name, lake in lakes.items():
        ledger = read_ledger(lake.root, postgres_url, lake.lake_id)
        assert _states(ledger) == _expected()
        assert list(ledger.attempts) == []
        assert _versions(hapi.base_url, factories[name]) == {"1": 8 * 2 * UNITS}
