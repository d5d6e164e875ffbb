"""Verification of lake, ledger and a real server, and repairs."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import orjson
import pytest

from dicom_etl.fhir_client import capabilities
from dicom_etl.lake.locks import LockHeldError
from dicom_etl.lake.shard_reader import read_lines
from dicom_etl.lake.tables import Lake
from dicom_etl.settings import SettingsError
from dicom_etl.stages.upload import upload
from dicom_etl.stages.verify import VerificationResult, verify
from dicom_etl.upload import verification
from dicom_etl.upload.verification import Comparison, Difference
from tests.support import server_content
from tests.support.command import RunCommand
from tests.support.datasets import write_instance
from tests.support.proxy import Proxy, Reply
from tests.support.upload_lakes import (
    DatasetFactory,
    Study,
    ledger_rows,
    new_lake,
    query_ledger,
    settings_for,
    shared_ledger_rows,
    with_changes,
)

_PLAIN = urllib.request.build_opener(urllib.request.ProxyHandler({}))
ONE, TWO = Study("1", "P1"), Study("2", "P2", unit="sub-2", rule="authority")


def build_and_upload(lake: Lake, server: Proxy, factory: DatasetFactory, *studies: Study) -> None:
    factory.build(lake, factory.name, studies)
    upload([factory.name], lake, settings_for(server.url))
    server.requests.clear()


def check(lake: Lake, server: Proxy, *names: str, **options: Any) -> VerificationResult:
    return verify(names, lake, settings_for(server.url), **options)


def list_differences(verified: VerificationResult) -> list[tuple[str, str]]:
    return sorted((found.kind, found.resource) for one in verified.comparisons for found in one.differences)


def counts(verified: VerificationResult) -> list[dict[str, int]]:
    """The counts that are not zero, by dataset; shared resources come last."""
    return [
        {kind: number for kind, number in comparison.counts.items() if number} for comparison in verified.comparisons
    ]


def files(lake: Lake) -> dict[str, bytes]:
    root = Path(lake.root)
    found = (path for path in root.rglob("*") if path.is_file() and path.parent.name != "locks")
    # even reading may change SQLite's files, so their content is compared
    content = {str(path): path.read_bytes() for path in found if not path.name.startswith("ledger.sqlite")}
    tables = ("resources", "attempts", "units")
    return content | {name: orjson.dumps(query_ledger(lake, f"SELECT * FROM {name}")) for name in tables}


def delete(server: Proxy, *paths: str) -> None:
    """Delete as another client would, without a trace: the server then answers 404."""
    parameters = {"resourceType": "Parameters", "parameter": []}
    for name in ("expungeDeletedResources", "expungePreviousVersions"):
        parameters["parameter"].append({"name": name, "valueBoolean": True})
    for path in paths:
        _send(f"{server.target}/{path}", "DELETE")
    for path in paths:
        _send(f"{server.target}/{path}/$expunge", "POST", parameters)


def _send(url: str, method: str, body: dict[str, Any] | None = None) -> None:
    data = None if body is None else orjson.dumps(body)
    request = urllib.request.Request(url, data=data, method=method, headers={"Content-Type": "application/fhir+json"})
    with _PLAIN.open(request, timeout=60) as answer:
        answer.read()


def study_path(factory: DatasetFactory, number: str) -> str:
    return f"ImagingStudy/{factory.study_id(factory.name, number)}"


def patient_path(factory: DatasetFactory, study: Study) -> str:
    return f"Patient/{factory.patient_id(factory.name, study)}"


def endpoint_path(factory: DatasetFactory) -> str:
    return f"Endpoint/{factory.endpoint_id(factory.name)}"


def versions(server: Proxy, *paths: str) -> list[str]:
    return [server_content.version(server_content.get(str(server.target), path)) for path in paths]


# -- looking ----------------------------------------------------------------------------------------------------------


def test_an_intact_server_needs_few_requests_and_no_write(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    build_and_upload(lake, server, factory, *(Study(str(n), "P1") for n in range(51)))
    before = files(lake)

    found = check(lake, server, factory.name)

    assert counts(found) == [{"ok": 52}, {"ok": 1}]
    assert found.exit_code == 0
    # the Endpoint, the Patient, 51 studies by 50, and the studies that name the dataset: this server gives 50 on a page
    assert len(server.request_lines("GET")) == 1 + 1 + 2 + 2
    assert {asked.method for asked in server.requests} == {"GET"}
    for asked in server.requests[1:]:
        assert "_elements=meta" in asked.path or "_getpages=" in asked.path
        assert asked.headers["Cache-Control"] == "no-cache"
    assert files(lake) == before


def test_a_repair_sends_only_what_was_deleted(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    build_and_upload(lake, server, factory, ONE, with_changes(ONE, number="3"), TWO)
    _send(f"{server.target}/{study_path(factory, '1')}", "DELETE")
    before = files(lake)

    found = check(lake, server, factory.name)
    unchanged = files(lake) == before
    server.requests.clear()
    repaired = check(lake, server, factory.name, repair=True)

    assert list_differences(found) == list_differences(repaired) == [("missing", study_path(factory, "1"))]
    assert (found.exit_code, repaired.exit_code) == (1, 0)
    assert unchanged
    assert len(server.post_requests()) == 1
    assert versions(server, study_path(factory, "1"), study_path(factory, "3"), patient_path(factory, ONE)) == [
        "3",
        "1",
        "1",
    ]
    again = check(lake, server, factory.name)
    assert (list_differences(again), again.exit_code) == ([], 0)


def test_a_repair_sends_everything_once_to_a_wiped_server(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    studies = [ONE, TWO, *(Study(str(n), f"P{n}", unit=f"sub-{n}") for n in range(3, 15))]
    build_and_upload(lake, server, factory, *studies)
    paths = [*(study_path(factory, study.number) for study in studies), endpoint_path(factory)]
    paths += [patient_path(factory, study) for study in studies]
    delete(server, *paths)
    assert {server_content.status(str(server.target), path) for path in paths} == {404}

    repaired = check(lake, server, factory.name, repair=True)

    assert list_differences(repaired) == sorted(("missing", path) for path in paths)
    assert repaired.exit_code == 0
    assert versions(server, *paths) == ["1"] * len(paths)
    assert (
        len(server.post_requests()) == 2 + 1 + 1
    )  # what is shared: the Endpoint, then the Patient; 13 Patients; 14 studies
    again = check(lake, server, factory.name)
    assert counts(again) == [{"ok": 2 * len(studies) - 1}, {"ok": 2}]


def test_an_interrupted_repair_is_completed_by_the_next_upload(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    build_and_upload(lake, server, factory, ONE)
    delete(server, study_path(factory, "1"))
    server.rule = lambda asked: Reply(503) if asked.is_write_post else None

    cut = verify([factory.name], lake, settings_for(server.url, retry_seconds=0), repair=True)
    row = ledger_rows(lake, server.url, factory.name)[study_path(factory, "1")]
    server.rule = lambda _: None
    upload([factory.name], lake, settings_for(server.url), failed_only=True)

    assert cut.exit_code in (1, 3)
    # whether a request that was answered with 503 arrived is not known
    assert (row["state"], row["server_id"], row["version"]) == ("unconfirmed", None, None)
    assert versions(server, study_path(factory, "1")) == ["1"]
    assert list_differences(check(lake, server, factory.name)) == []


def test_an_external_change_is_reported_and_not_overwritten(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    build_and_upload(lake, server, factory, ONE, TWO)
    url = str(server.target)
    paths = [study_path(factory, "1"), patient_path(factory, TWO)]
    server_content.put(url, server_content.get(url, paths[0]) | {"description": "theirs"})
    server_content.put(url, server_content.get(url, paths[1]) | {"gender": "other"})

    for repair in (False, True):
        found = check(lake, server, factory.name, repair=repair)
        assert list_differences(found) == sorted(("changed", path) for path in paths)
        assert found.exit_code == 1
    assert server_content.get(url, paths[0])["description"] == "theirs"
    assert server_content.get(url, paths[1])["gender"] == "other"
    assert versions(server, *paths) == ["2", "2"]
    [text] = [one.text for part in found.comparisons for one in part.differences if one.resource == paths[0]]
    assert text == "the server has version 2, the ledger 1: another client has changed it"


def test_a_study_of_another_lake_is_external_on_any_page(
    tmp_path: Path, lake: Lake, server: Proxy, factory: DatasetFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_and_upload(lake, server, factory, ONE, with_changes(ONE, number="4"))
    other = new_lake(tmp_path / "other")
    build_and_upload(other, server, factory, *(with_changes(ONE, number=str(number)) for number in (1, 2, 3)))
    monkeypatch.setattr(verification, "PAGE_SIZE", 2)

    found = check(lake, server, factory.name)

    assert list_differences(found) == sorted(("external", study_path(factory, number)) for number in ("2", "3"))
    assert found.exit_code == 1
    # HAPI has its own address in its links; requests go to that of the settings all the same
    assert len([path for path in server.request_lines("GET") if "_getpages" in path]) == 1


def test_rejected_and_never_sent_resources_are_unsent(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    build_and_upload(lake, server, factory, ONE, with_changes(ONE, number="2", status="nonsense"))
    factory.build(
        lake, factory.name, [ONE, with_changes(ONE, number="2", status="nonsense"), with_changes(ONE, number="3")]
    )

    found = check(lake, server, factory.name)

    assert list_differences(found) == sorted(("unsent", study_path(factory, number)) for number in ("2", "3"))
    texts = {one.resource: one.text for one in found.comparisons[0].differences}
    assert [texts[study_path(factory, number)] for number in ("2", "3")] == ["rejected", "never sent"]
    assert found.exit_code == 1

    repaired = check(lake, server, factory.name, repair=True)
    assert repaired.exit_code == 1  # the invalid one is still refused
    assert list_differences(check(lake, server, factory.name)) == [("unsent", study_path(factory, "2"))]


def test_an_external_patient_may_change_but_not_be_missing(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    url, theirs = str(server.target), f"{factory.name}-theirs"
    patient = {"resourceType": "Patient", "id": theirs, "identifier": [{"system": factory.authority, "value": "P2"}]}
    server_content.put(url, patient)
    build_and_upload(lake, server, factory, TWO)
    server_content.put(url, patient | {"gender": "other"})
    changed_there = check(lake, server, factory.name)
    delete(server, study_path(factory, "2"), f"Patient/{theirs}")

    found = check(lake, server, factory.name, repair=True)

    assert (list_differences(changed_there), changed_there.exit_code) == ([], 0)
    assert list_differences(found) == [("missing", study_path(factory, "2")), ("missing", f"Patient/{theirs}")]
    assert found.exit_code == 0
    assert server_content.get(url, study_path(factory, "2"))["subject"]["reference"] == patient_path(factory, TWO)
    assert (
        shared_ledger_rows(lake, server.url)[patient_path(factory, TWO)]["server_id"] == patient_path(factory, TWO)[8:]
    )


def test_shared_resources_are_sent_for_the_named_dataset(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    names = [factory.name, f"{factory.name}-b"]
    for name in names:
        factory.build(lake, name, [TWO])
    upload(names, lake, settings_for(server.url))
    studies = [f"ImagingStudy/{factory.study_id(name, '2')}" for name in names]
    endpoints = [f"Endpoint/{factory.endpoint_id(name)}" for name in names]
    delete(server, *studies, *endpoints, patient_path(factory, TWO))

    first = check(lake, server, names[0], repair=True)
    second = check(lake, server, names[1], repair=True)

    assert list_differences(first) == sorted(
        ("missing", path) for path in (studies[0], endpoints[0], patient_path(factory, TWO))
    )
    assert list_differences(second) == sorted(("missing", path) for path in (studies[1], endpoints[1]))
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert versions(server, *studies, *endpoints, patient_path(factory, TWO)) == ["1"] * 5
    assert list_differences(check(lake, server, *names)) == []


def test_a_resource_the_lake_no_longer_produces_is_orphaned(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    build_and_upload(lake, server, factory, ONE, with_changes(ONE, number="2"), with_changes(ONE, number="3"))
    build_and_upload(lake, server, factory, ONE)
    delete(server, study_path(factory, "2"))

    found = check(lake, server, factory.name, repair=True)

    assert counts(found) == [{"ok": 2, "orphaned": 1}, {"ok": 1}]
    assert found.exit_code == 0


def test_a_locked_dataset_is_not_compared(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    build_and_upload(lake, server, factory, ONE)

    with lake.lock(factory.name, "upload"), pytest.raises(LockHeldError, match="is being written by"):
        check(lake, server, factory.name)


def test_without_a_server_there_is_nothing_to_compare_with(lake: Lake, factory: DatasetFactory) -> None:
    with pytest.raises(SettingsError, match="no FHIR server is set"):
        verify([factory.name], lake, settings_for(None))


def test_a_dataset_without_resources_does_not_affect_the_others(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    build_and_upload(lake, server, factory, ONE)

    found = check(lake, server, "unbuilt", factory.name)

    assert counts(found) == [{"ok": 2}, {"ok": 1}]
    assert found.not_compared == {"unbuilt": "dataset unbuilt has no resources yet; build it first"}
    assert found.exit_code == 1
    assert check(lake, server, "unbuilt").exit_code == 2


# -- the command ------------------------------------------------------------------------------------------------------


def test_a_dry_run_as_json_has_the_planned_stages_and_uploads(
    run_command: RunCommand, tmp_path: Path, server: Proxy, factory: DatasetFactory
) -> None:
    write_instance(
        tmp_path / factory.name / "primary/sub-1/sam-1/1.dcm", study=factory.name, series="1", PatientID="P-1"
    )
    where = (tmp_path / factory.name, "--lake", tmp_path / "lake", "--fhir-url", server.url)
    for stage in ("crawl", "extract", "build"):
        assert run_command(stage, *where[:3])[0] == 0

    code, out, _ = run_command("run", *where, "--dry-run", "--json")

    assert code == 0
    list_differences = json.loads(out)
    assert [(plan["files"], plan["new"]) for plan in list_differences["plans"]] == [(1, 0)]
    sent = list_differences["datasets"][factory.name]["upload"]["counts"]
    assert sent == {kind: {"would-send": 1} for kind in ("Endpoint", "ImagingStudy", "Patient")}


def test_the_command_shows_missing_resources_and_repairs_them(
    run_command: RunCommand, tmp_path: Path, server: Proxy, factory: DatasetFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "DICOM_ETL_FHIR__EXISTING_STUDY", "duplicate"
    )  # another test's factory has the same studies there
    for subject in (1, 2):
        write_instance(
            tmp_path / factory.name / f"primary/sub-{subject}/sam-1/1.dcm",
            study=str(subject),
            series="1",
            PatientID=f"SECRET-{subject}",
        )
    where = ("--lake", tmp_path / "lake", "--fhir-url", server.url)
    assert run_command("run", tmp_path / factory.name, *where)[0] == 0
    assert run_command("verify", *where)[0] == 0
    lines = read_lines(Lake(str(tmp_path / "lake")), "ImagingStudy", dataset=factory.name, unit="sub-1")
    path = f"ImagingStudy/{json.loads(lines)['id']}"
    _send(f"{server.target}/{path}", "DELETE")

    code, out, _ = run_command("verify", factory.name, *where)
    assert code == 1
    assert path in out
    assert "--repair" in out
    assert "SECRET" not in out

    code, out, _ = run_command("verify", tmp_path / factory.name, *where, "--repair", "--json")
    machine = json.loads(out)
    assert (code, machine["exit_code"]) == (0, 0)
    [found] = machine["datasets"][factory.name]["differences"]
    assert (found["kind"], found["resource"], found["unit"]) == ("missing", path, "sub-1")
    assert machine["uploads"][factory.name]["counts"]["ImagingStudy"] == {"stored": 1, "unchanged": 1}
    assert "SECRET" not in out
    assert run_command("verify", factory.name, *where)[0] == 0

    monkeypatch.setattr(capabilities, "RETRY_SECONDS", 0.0)
    closed = ("--lake", tmp_path / "lake", "--fhir-url", "http://127.0.0.1:9/fhir")
    code, out, err = run_command("verify", factory.name, *closed, "--json")
    assert code == 3
    assert "127.0.0.1:9" in json.loads(out)["stopped"]
    assert "Traceback" not in out + err


def test_of_many_differences_the_console_shows_the_first(
    run_command: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_lake(tmp_path / "lake")
    many = tuple(Difference("missing", f"Patient/{n}", "u", "") for n in range(30))
    found = VerificationResult(
        "s",
        (Comparison("A", {"ok": 0, "missing": 30, "changed": 0, "external": 0, "unsent": 0, "orphaned": 0}, many),),
        {},
    )
    monkeypatch.setattr("dicom_etl.stages.verify.verify", lambda *_, **__: found)
    monkeypatch.setattr(Lake, "datasets", lambda _: ["A"])

    code, out, _ = run_command("verify", "--lake", tmp_path / "lake")

    assert code == 1
    assert out.count("Patient/") == 20
    assert "and 10 more: --json lists all" in out
