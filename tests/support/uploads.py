"""What the tests of the upload ask the server and the lake."""

import json
import sqlite3
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson

from dicom_etl.lake.schemas import DATASET_FINDINGS
from dicom_etl.lake.tables import Lake
from dicom_etl.stages.upload import UploadSummary, upload
from tests.support.proxy import Proxy
from tests.support.upload_lakes import (
    DatasetFactory,
    Study,
    settings_for,
)

_PLAIN = urllib.request.build_opener(urllib.request.ProxyHandler({}))

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
    request = urllib.request.Request(f"{server.url}/{path}", headers={"Cache-Control": "no-cache"})
    with _PLAIN.open(request, timeout=60) as answer:
        return dict(json.load(answer))


def status_of(server: Proxy, path: str) -> int:
    try:
        get(server, path)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    return 200


def put(server: Proxy, resource: dict[str, Any]) -> None:
    request = urllib.request.Request(
        f"{server.url}/{resource['resourceType']}/{resource['id']}",
        data=orjson.dumps(resource),
        method="PUT",
        headers={"Content-Type": "application/fhir+json"},
    )
    with _PLAIN.open(request, timeout=60) as answer:
        answer.read()


def delete(server: Proxy, path: str) -> None:
    """Delete as another client would; the proxy does not see it."""
    request = urllib.request.Request(f"{server.target}/{path}", method="DELETE")
    with _PLAIN.open(request, timeout=60) as answer:
        answer.read()


def delete_ledger_rows(lake: Lake, *paths: str) -> None:
    """Take resources (Type/id), and what is known of finished units, out of the ledger, as if they were never in it."""
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
    """A study of another client with the StudyInstanceUID of ONE: another series, and one instance of ours."""
    made = factory.imaging_study("A", ONE)
    series = [
        {**made["series"][0], "description": "theirs", "numberOfInstances": 1},
        {"uid": "1.2.3.4", "modality": {"code": "SR"}, "numberOfInstances": 7},
    ]
    series[0]["instance"] = made["series"][0]["instance"][:1]
    return {
        "resourceType": "ImagingStudy",
        "id": f"{factory.name}-theirs",
        "identifier": made["identifier"][:1],
        "status": "available",
        "subject": {"display": "somebody"},
        "numberOfSeries": 2,
        "numberOfInstances": 8,
        "description": "of the hospital",
        "series": series,
        **more,
    }
