"""Uploads of hand-written lakes through a proxy, and readers of the server's content and of findings."""

import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dicom_etl.lake.schemas import DATASET_FINDINGS
from dicom_etl.lake.tables import Lake
from dicom_etl.stages.upload import UploadSummary, upload
from tests.support import server_content
from tests.support.proxy import Proxy
from tests.support.upload_lakes import (
    DatasetFactory,
    Study,
    settings_for,
)

ONE = Study("1", "P1")


class Moved(DatasetFactory):
    """A factory whose archive has another address."""

    def endpoint(self, dataset: str) -> dict[str, Any]:
        return super().endpoint(dataset) | {"address": "https://new.example"}


def behind_proxy(server: Proxy) -> Any:
    """The server behind the proxy, for requests that the proxy's rule must not see."""
    return SimpleNamespace(url=server.target)


def load(lake: Lake, server: Proxy, *datasets: str, **options: Any) -> list[UploadSummary]:
    return upload(datasets, lake, settings_for(server.url), **options)


def get(server: Proxy, path: str) -> dict[str, Any]:
    return server_content.get(server.url, path)


def status_of(server: Proxy, path: str) -> int:
    return server_content.status(server.url, path)


def put(server: Proxy, resource: dict[str, Any]) -> None:
    server_content.put(server.url, resource)


def delete(server: Proxy, path: str) -> None:
    """Delete as another client, without the proxy."""
    assert server.target is not None
    server_content.delete(server.target, path)


def find_resources(server: Proxy, kind: str, factory: DatasetFactory) -> list[dict[str, Any]]:
    """The resources of a factory on a server that assigns ids, requested without the proxy."""
    assert server.target is not None
    resources = server_content.search(server.target, f"{kind}?_count=200")
    return [resource for resource in resources if factory.has_identifier_of(resource)]


def delete_ledger_rows(lake: Lake, *paths: str) -> None:
    """Delete resources (Type/id), and the records of all finished units, from the ledger."""
    with closing(sqlite3.connect(Path(lake.root, "ledger.sqlite"))) as connection, connection:
        for path in paths:
            deleted = connection.execute("DELETE FROM resources WHERE type = ? AND id = ?", path.split("/"))
            assert deleted.rowcount == 1
        connection.execute("DELETE FROM units")


def version(server: Proxy, path: str) -> str:
    return str(get(server, path)["meta"]["versionId"])


def codes(lake: Lake, dataset: str) -> list[str]:
    return [str(row["code"]) for row in findings(lake, dataset)]


def findings(lake: Lake, dataset: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = lake.read(DATASET_FINDINGS, stage="upload", dataset=dataset).to_pylist()
    return rows


def study_path(factory: DatasetFactory, dataset: str, number: str) -> str:
    return f"ImagingStudy/{factory.study_id(dataset, number)}"


def patient_path(factory: DatasetFactory, dataset: str, study: Study) -> str:
    return f"Patient/{factory.patient_id(dataset, study)}"


def shared_person(**patient: Any) -> Study:
    return Study("1", "P1", rule="authority", patient=patient)


def make_external_study(factory: DatasetFactory, **more: Any) -> dict[str, Any]:
    """An external study with the StudyInstanceUID of ONE: it has another series, and an instance of ONE."""
    built = factory.imaging_study("A", ONE)
    series = [
        {**built["series"][0], "description": "external", "numberOfInstances": 1},
        {"uid": "1.2.3.4", "modality": {"code": "SR"}, "numberOfInstances": 7},
    ]
    series[0]["instance"] = built["series"][0]["instance"][:1]
    return {
        "resourceType": "ImagingStudy",
        "id": f"{factory.name}-external",
        "identifier": built["identifier"][:1],
        "status": "available",
        "subject": {"display": "somebody"},
        "numberOfSeries": 2,
        "numberOfInstances": 8,
        "description": "of the hospital",
        "series": series,
        **more,
    }
