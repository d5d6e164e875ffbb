"""The upload to a server that assigns ids: conditional PUTs, one at a time."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dicom_etl.lake.tables import Lake
from dicom_etl.stages.upload import UploadSummary, upload
from tests.servers.hapi_server import HapiServer
from tests.support import server_content
from tests.support.proxy import Proxy, ReceivedRequest, Reply, run_proxy
from tests.support.upload_lakes import (
    DatasetFactory,
    Study,
    ledger_rows,
    new_lake,
    settings_for,
    shared_ledger_rows,
    with_changes,
)
from tests.support.uploads import Moved, codes, find_resources

ONE = Study("1", "P1", rule="authority")
TWO = Study("2", "P2", unit="sub-2")


@pytest.fixture
def server(hapi_assigning: HapiServer) -> Iterator[Proxy]:
    with run_proxy(hapi_assigning.base_url) as counted:
        yield counted


def load(
    lake: Lake, server: Proxy, factory: DatasetFactory, *names: str, retry_seconds: float = 20, **options: Any
) -> list[UploadSummary]:
    settings = settings_for(server.url, max_concurrent_requests=4, retry_seconds=retry_seconds).model_copy(
        update={"namespace": f"https://{factory.name}"}
    )
    return upload(names, lake, settings, **options)


def versions(server: Proxy, factory: DatasetFactory) -> dict[str, str]:
    return {
        f"{kind}/{resource['id']}": resource["meta"]["versionId"]
        for kind in ("Patient", "Endpoint", "ImagingStudy")
        for resource in find_resources(server, kind, factory)
    }


def test_everything_is_stored_once_and_refers_to_server_ids(
    lake: Lake, server: Proxy, factory: DatasetFactory, tmp_path: Path
) -> None:
    factory.build(lake, "A", [ONE, TWO, Study("3", "P2", unit="sub-2")])
    lost = iter([Reply(cut=True)])  # after the server has stored the first bundle
    server.rule = lambda asked: next(lost, None) if asked.is_write_post else None

    [done] = load(lake, server, factory, "A")

    assert done.counts == {"Endpoint": {"stored": 1}, "ImagingStudy": {"stored": 3}, "Patient": {"stored": 2}}
    studies, patients = find_resources(server, "ImagingStudy", factory), find_resources(server, "Patient", factory)
    assert (len(studies), len(patients), len(find_resources(server, "Endpoint", factory))) == (3, 2, 1)
    assert {one["id"] for one in studies + patients}.isdisjoint({factory.study_id("A", n) for n in "123"})
    by_value = {one["identifier"][0]["value"]: f"Patient/{one['id']}" for one in patients}
    by_uid = {one["identifier"][0]["value"]: one["subject"]["reference"] for one in studies}
    assert by_uid == {f"urn:oid:{factory.uid(n)}": by_value[p] for n, p in (("1", "P1"), ("2", "P2"), ("3", "P2"))}
    assert set(versions(server, factory).values()) == {"1"}

    # again, with the ledger and with none
    before = versions(server, factory)
    server.requests.clear()
    load(lake, server, factory, "A")
    assert server.request_lines() == []
    fresh = new_lake(tmp_path / "fresh")
    factory.build(fresh, "A", [ONE, TWO, Study("3", "P2", unit="sub-2")])
    load(fresh, server, factory, "A")
    assert versions(server, factory) == before

    # a change is a plain PUT to the server's own id
    factory.build(lake, "A", [with_changes(ONE, series={"1": 5}), TWO, Study("3", "P2", unit="sub-2")])
    load(lake, server, factory, "A")
    after = versions(server, factory)
    row = ledger_rows(lake, server.url, "A")[f"ImagingStudy/{factory.study_id('A', '1')}"]
    key = f"ImagingStudy/{row['server_id']}"
    assert {one for one in after if after[one] != before[one]} == {key}
    assert after[key] == "2"

    # orphaned resources are deleted under the server's id
    factory.build(lake, "A", [ONE])
    [done] = load(lake, server, factory, "A", prune=True)
    assert len(find_resources(server, "ImagingStudy", factory)) == 1
    assert shared_ledger_rows(lake, server.url)


def test_only_one_bundle_is_sent_at_a_time(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    factory.build(lake, "A", [Study(str(n), f"P{n}", unit=f"sub-{n}") for n in range(25)])

    load(lake, server, factory, "A")

    assert len(find_resources(server, "ImagingStudy", factory)) == len(find_resources(server, "Patient", factory)) == 25
    assert {one.path.partition("?")[0] for one in server.requests if one.is_write_post} == {""}


def test_an_undeclared_id_strategy_is_recognised(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    factory.build(lake, "A", [ONE])
    settings = settings_for(server.url, client_assigned_ids="yes")

    [done] = upload(["A"], lake, settings)

    assert done.counts["Endpoint"] == {"rejected": 1}
    row = shared_ledger_rows(lake, server.url)[f"Endpoint/{factory.endpoint_id('A')}"]
    assert 'set fhir.client_assigned_ids = "no"' in row["reason_text"]


def test_a_patient_without_a_ledger_row_is_merged(
    lake: Lake, server: Proxy, factory: DatasetFactory, tmp_path: Path
) -> None:
    factory.build(lake, "A", [Study("1", "P1")])
    load(lake, server, factory, "A")
    [patient] = find_resources(server, "Patient", factory)
    phone = {"system": "phone", "value": "1"}
    server_content.put(str(server.target), json.loads(json.dumps(patient | {"telecom": [phone]})))
    other = new_lake(tmp_path / "other")
    factory.build(other, "A", [Study("1", "P1"), Study("2", "P1")])

    [done] = load(other, server, factory, "A")

    assert {state for states in done.counts.values() for state in states} <= {"stored", "unchanged"}
    assert len(find_resources(server, "ImagingStudy", factory)) == 2
    [kept] = [one for one in find_resources(server, "Patient", factory) if one["id"] == patient["id"]]
    assert kept["telecom"] == [phone]


def test_an_unanswered_resource_is_pruned_under_its_server_id(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    sent, stays = Study("1", "P1"), Study("2", "P2", unit="sub-2")
    factory.build(lake, "A", [sent, stays])
    uid = factory.uid("1").encode()
    server.rule = lambda asked: Reply(cut=True) if asked.is_write_post and uid in asked.body else None
    load(lake, server, factory, "A", retry_seconds=0)
    server.rule = lambda _: None
    there = [one["identifier"][0]["value"] for one in find_resources(server, "ImagingStudy", factory)]
    factory.build(lake, "A", [stays])

    load(lake, server, factory, "A", prune=True)

    assert sorted(there) == sorted(f"urn:oid:{factory.uid(number)}" for number in "12")
    assert [one["identifier"][0]["value"] for one in find_resources(server, "ImagingStudy", factory)] == [
        f"urn:oid:{factory.uid('2')}"
    ]
    assert ledger_rows(lake, server.url, "A") == {}


def test_an_endpoint_with_a_lost_answer_is_recognised(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    def of_an_endpoint(asked: ReceivedRequest) -> bool:
        return (asked.is_write_post or asked.method == "PUT") and b'"resourceType":"Endpoint"' in asked.body

    factory.build(lake, "A", [TWO])
    load(lake, server, factory, "A")
    Moved(factory.name).build(lake, "A", [TWO])
    server.rule = lambda asked: Reply(cut=True) if of_an_endpoint(asked) else None
    load(lake, server, factory, "A", retry_seconds=0)
    server.rule = lambda _: None

    [done] = load(lake, server, factory, "A")

    [endpoint] = find_resources(server, "Endpoint", factory)
    assert (endpoint["address"], endpoint["meta"]["versionId"]) == ("https://new.example", "2")
    assert done.counts["Endpoint"] == {"unchanged": 1}
    assert codes(lake, "A") == []


def test_a_changed_study_with_a_lost_answer_is_recognised(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    factory.build(lake, "A", [TWO])
    load(lake, server, factory, "A")
    factory.build(lake, "A", [with_changes(TWO, series={"1": 3})])
    server.rule = lambda asked: Reply(cut=True) if asked.is_write_post and b"ImagingStudy" in asked.body else None
    load(lake, server, factory, "A", retry_seconds=0)
    server.rule = lambda _: None
    [arrived] = find_resources(server, "ImagingStudy", factory)
    factory.build(lake, "A", [with_changes(TWO, series={"1": 4})])

    [done] = load(lake, server, factory, "A")

    [study] = find_resources(server, "ImagingStudy", factory)
    assert (arrived["numberOfInstances"], study["numberOfInstances"]) == (3, 4)
    assert done.counts["ImagingStudy"] == {"stored": 1}
    assert codes(lake, "A") == []


def test_a_study_without_a_ledger_row_is_updated(
    lake: Lake, server: Proxy, factory: DatasetFactory, tmp_path: Path
) -> None:
    factory.build(lake, "A", [TWO])
    load(lake, server, factory, "A")
    other = new_lake(tmp_path / "other")
    factory.build(other, "A", [TWO])
    load(other, server, factory, "A")  # it is on the server as it should be
    [study] = find_resources(server, "ImagingStudy", factory)
    plain = json.loads(json.dumps(study))
    server_content.put(str(server.target), plain | {"description": "a note"})
    server_content.put(str(server.target), plain)
    factory.build(other, "A", [with_changes(TWO, series={"1": 3})])

    [done] = load(other, server, factory, "A")

    assert done.counts["ImagingStudy"] == {"stored": 1}
    assert codes(other, "A") == []
