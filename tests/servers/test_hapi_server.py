"""The FHIR test server: the properties on which other tests rely."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.servers import hapi_server
from tests.servers.hapi_server import HapiServer, ServerUnavailableError, validate
from tests.servers.plugin import HapiFactory
from tests.servers.server_process import connects

REPOSITORY = Path(__file__).parents[2]


def imaging_study(**changes: Any) -> dict[str, Any]:
    study = {
        "resourceType": "ImagingStudy",
        "status": "available",
        "identifier": [{"system": "urn:dicom:uid", "value": "urn:oid:2.25.1"}],
        "subject": {"reference": "Patient/of-the-server-test"},
        "numberOfSeries": 1,
        "numberOfInstances": 1,
        "series": [
            {
                "uid": "2.25.2",
                "modality": {"system": "http://dicom.nema.org/resources/ontology/DCM", "code": "MR"},
                "instance": [
                    {
                        "uid": "2.25.3",
                        "sopClass": {
                            "system": "urn:ietf:rfc:3986",
                            "code": "urn:oid:1.2.840.10008.5.1.4.1.1.4",
                        },
                    }
                ],
            }
        ],
    }
    return {name: value for name, value in {**study, **changes}.items() if value is not None}


def get(url: str, **headers: str) -> dict[str, Any]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, headers=headers), timeout=60) as response:
        return dict(json.load(response))


def send(method: str, url: str, resource: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Status and content of the answer, whatever the status."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    body = json.dumps(resource).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/fhir+json"}, method=method)
    try:
        with opener.open(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def update_create(base_url: str) -> set[bool | None]:
    """The values of `updateCreate` over all resource types."""
    [rest] = get(f"{base_url}/metadata")["rest"]
    return {offered.get("updateCreate") for offered in rest["resource"]}


def conditional_put(full_url: str, condition: str, resource: dict[str, Any]) -> dict[str, Any]:
    kind = resource["resourceType"]
    return {"fullUrl": full_url, "resource": resource, "request": {"method": "PUT", "url": f"{kind}?{condition}"}}


def test_the_shared_server_has_version_r4(hapi: HapiServer) -> None:
    capabilities = get(f"{hapi.base_url}/metadata")

    assert capabilities["resourceType"] == "CapabilityStatement"
    assert capabilities["fhirVersion"] == "4.0.1"


def test_the_shared_r5_server_is_a_separate_server(hapi: HapiServer, hapi_r5: HapiServer) -> None:
    assert hapi_r5.base_url != hapi.base_url
    assert get(f"{hapi_r5.base_url}/metadata")["fhirVersion"] == "5.0.0"


def test_an_imaging_study_is_validated_in_the_version_of_the_server(hapi: HapiServer, hapi_r5: HapiServer) -> None:
    study = imaging_study()
    study["series"][0]["modality"] = {"coding": [study["series"][0]["modality"]]}

    assert validate(hapi_r5.base_url, study) == []
    assert validate(hapi.base_url, study) != []
    assert validate(hapi_r5.base_url, imaging_study()) != []


def test_the_shared_server_listens_only_on_127_0_0_1(hapi: HapiServer) -> None:
    port = urlsplit(hapi.base_url).port
    assert port is not None

    assert connects("127.0.0.1", port)
    # All of 127/8 is this machine: here, only a server that listens on all addresses would answer.
    assert not connects("127.0.0.2", port)
    assert not connects("::1", port)


def test_a_valid_imaging_study_has_no_errors(hapi: HapiServer) -> None:
    assert validate(hapi.base_url, imaging_study()) == []


def test_an_imaging_study_without_subject_has_an_error(hapi: HapiServer) -> None:
    [error] = validate(hapi.base_url, imaging_study(subject=None))

    assert error["severity"] == "error"
    assert "ImagingStudy.subject" in error["diagnostics"]


def test_a_resource_that_cannot_be_parsed_has_an_error(hapi: HapiServer) -> None:
    [error] = validate(hapi.base_url, imaging_study(subjekt={}))

    assert "subjekt" in error["diagnostics"]


def test_the_flags_of_a_separate_server_do_not_affect_the_shared_one(
    hapi: HapiServer, hapi_factory: HapiFactory
) -> None:
    private = hapi_factory(auth_token="open sesame")

    assert private.base_url != hapi.base_url
    assert get(f"{private.base_url}/metadata")["fhirVersion"] == "4.0.1"
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(f"{private.base_url}/Patient")
    caught.value.close()
    assert caught.value.code == 401
    assert get(f"{private.base_url}/Patient", Authorization="Bearer open sesame")["resourceType"] == "Bundle"


def test_a_server_without_client_ids_assigns_all_ids(hapi: HapiServer, hapi_assigning: HapiServer) -> None:
    url = hapi_assigning.base_url
    patient = {"resourceType": "Patient", "identifier": [{"system": "urn:mrn", "value": "1"}]}
    client_id, person_url = "2fd1d1b4-4f0f-4d5e-9d39-1a1f5f0a6c51", f"urn:uuid:{'0' * 8}-0000-4000-8000-{'0' * 12}"

    assert update_create(hapi.base_url) == {None}
    assert update_create(url) == {False}

    status, outcome = send("PUT", f"{url}/Patient/{client_id}", patient | {"id": client_id})
    assert status == 404
    assert outcome["issue"][0]["diagnostics"].startswith("HAPI-0959: ")
    assert "client-assigned IDs are not enabled" in outcome["issue"][0]["diagnostics"]

    entries = [  # the reference precedes the resource that it refers to
        conditional_put(
            "urn:uuid:11111111-1111-4111-8111-111111111111",
            "identifier=urn:dicom:uid%7Curn:oid:2.25.1",
            imaging_study(subject={"reference": person_url}),
        ),
        conditional_put(person_url, "identifier=urn:mrn%7C1", patient),
    ]
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
    first, again = (send("POST", url, bundle)[1]["entry"] for _ in range(2))
    assert [entry["response"]["status"][:3] for entry in (*first, *again)] == ["201", "201", "200", "200"]
    study, person = (entry["response"]["location"].removesuffix("/_history/1") for entry in first)
    assert re.fullmatch(r"ImagingStudy/\d+", study)
    assert re.fullmatch(r"Patient/\d+", person)
    assert [entry["response"]["location"] for entry in again] == [f"{study}/_history/1", f"{person}/_history/1"]
    assert get(f"{url}/{study}")["subject"] == {"reference": person}


def test_all_workers_of_a_run_share_one_server_of_each_kind(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["tests.servers.plugin"]\n')
    (tmp_path / "test_workers.py").write_text(
        "import os, pathlib, pytest\n"
        "@pytest.mark.parametrize('number', range(2))\n"
        "def test_worker(hapi, medplum, number):\n"
        "    worker = os.environ['PYTEST_XDIST_WORKER']\n"
        "    pathlib.Path(f'urls-of-{worker}').write_text(f'{hapi.base_url} {medplum.base_url}')\n"
    )

    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", "--dist", "each", "-p", "no:cacheprovider", "-q"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert run.returncode == 0, run.stdout + run.stderr
    urls_by_worker = {path.name: path.read_text() for path in tmp_path.glob("urls-of-*")}
    assert sorted(urls_by_worker) == ["urls-of-gw0", "urls-of-gw1"]
    [urls] = set(urls_by_worker.values())
    ports = {urlsplit(url).port for url in urls.split()}
    assert len(ports) == 2
    for port in ports:
        assert port is not None
        assert not connects("127.0.0.1", port)


def test_the_error_names_a_missing_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda tool: None)

    with pytest.raises(ServerUnavailableError, match=re.escape("needs java on the PATH")) as error:
        hapi_server.build()
    assert "`make setup-test` installs them" in str(error.value)


def test_an_old_java_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'openjdk version \"11.0.22\" 2024-01-16' >&2\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    with pytest.raises(ServerUnavailableError, match=re.escape('openjdk version "11.0.22"')):
        hapi_server.build()


def test_the_error_of_a_failed_start_has_the_end_of_the_log(tmp_path: Path) -> None:
    (tmp_path / "no-database").write_text("a file where the database's folder should be")

    with pytest.raises(ServerUnavailableError) as error:
        hapi_server.start(tmp_path / "server", db=tmp_path / "no-database" / "fhir")
    assert "the end of its log" in str(error.value)
    assert "no-database" in str(error.value)
