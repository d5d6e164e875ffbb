"""Studies and Endpoints that another client changed or created, on a real server."""

import threading
from pathlib import Path
from typing import Any

import orjson
import pytest

from dicom_etl.lake.tables import Lake
from dicom_etl.stages.upload import upload
from tests.support.proxy import Proxy, ReceivedRequest, Reply
from tests.support.upload_lakes import (
    DatasetFactory,
    Study,
    ledger_rows,
    settings_for,
    shared_ledger_rows,
    with_changes,
)
from tests.support.uploads import (
    ONE,
    Moved,
    behind_proxy,
    codes,
    get,
    load,
    make_external_study,
    patient_path,
    put,
    shared_person,
    status_of,
    study_path,
    version,
)

# -- studies that another client changed or created --------------------------------------------------------------------


def test_a_study_changed_by_another_client_is_held_until_overwrite(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    factory.build(lake, "A", [ONE, Study("2", "P1")])
    load(lake, server, "A")
    path = study_path(factory, "A", "1")
    put(server, get(server, path) | {"description": "read by Dr. Roe"})
    factory.build(lake, "A", [with_changes(ONE, series={"1": 3}), Study("2", "P1", series={"1": 3})])

    [done] = load(lake, server, "A")
    assert done.counts["ImagingStudy"] == {"held": 1, "stored": 1}
    assert codes(lake, "A") == ["changed-on-server"]
    assert get(server, path)["description"] == "read by Dr. Roe"

    [done] = load(lake, server, "A", overwrite=True)
    assert done.counts["ImagingStudy"] == {"stored": 1, "unchanged": 1}
    assert "description" not in get(server, path)
    assert get(server, path)["numberOfInstances"] == 3
    assert codes(lake, "A") == []


def test_an_endpoint_changed_by_another_client_stays_until_overwrite(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    factory.build(lake, "A", [ONE])
    load(lake, server, "A")
    path = f"Endpoint/{factory.endpoint_id('A')}"
    put(server, get(server, path) | {"name": "of the radiology"})
    moved = Moved(factory.name)
    moved.build(lake, "A", [with_changes(ONE, series={"1": 3})])

    for _ in range(2):
        [done] = load(lake, server, "A")
        assert done.counts["Endpoint"] == {"held": 1}
        assert get(server, path)["name"] == "of the radiology"
        assert codes(lake, "A") == ["changed-on-server"]
    assert get(server, study_path(factory, "A", "1"))["numberOfInstances"] == 3

    [done] = load(lake, server, "A", overwrite=True)
    assert done.counts["Endpoint"] == {"stored": 1}
    assert get(server, path)["address"] == "https://new.example"
    assert "name" not in get(server, path)
    assert codes(lake, "A") == []


def test_a_new_version_with_the_same_content_is_not_a_conflict(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    factory.build(lake, "A", [ONE])
    load(lake, server, "A")
    path = study_path(factory, "A", "1")
    before = get(server, path)
    put(server, before | {"description": "a note"})
    put(server, before)  # and back: version 3, with the content that was sent
    factory.build(lake, "A", [with_changes(ONE, series={"1": 3})])

    [done] = load(lake, server, "A")

    assert done.counts["ImagingStudy"] == {"stored": 1}
    assert version(server, path) == "4"


def test_a_change_between_lookup_and_write_is_not_overwritten(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    factory.build(lake, "A", [ONE])
    load(lake, server, "A")
    path = study_path(factory, "A", "1")
    factory.build(lake, "A", [with_changes(ONE, series={"1": 3})])
    late: list[int] = []

    def changes(asked: ReceivedRequest) -> Reply | None:
        if asked.is_write_post and b"ImagingStudy" in asked.body and not late:
            late.append(1)
            put(behind_proxy(server), get(behind_proxy(server), path) | {"description": "just now"})
        return None

    server.rule = changes
    [done] = load(lake, server, "A")

    assert late
    assert done.counts["ImagingStudy"] == {"held": 1}
    assert get(server, path)["description"] == "just now"


def test_a_resource_whose_answer_names_no_version_is_read_back(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    def silent(asked: ReceivedRequest) -> Reply | None:
        if asked.method != "PUT" or not asked.path.startswith("ImagingStudy"):
            return None
        put(behind_proxy(server), orjson.loads(asked.body))
        return Reply(200)

    factory.build(lake, "A", [ONE, Study("2", "P2", unit="sub-2")])
    settings = settings_for(server.url, single_request_bytes=0)
    server.rule = silent
    upload(["A"], lake, settings)
    path = study_path(factory, "A", "1")
    read_back = ledger_rows(lake, server.url, "A")[path]["version"]
    server.rule = lambda _: None
    put(server, get(server, path) | {"description": "read by Dr. Roe"})
    factory.build(lake, "A", [with_changes(ONE, series={"1": 3}), Study("2", "P2", unit="sub-2", series={"1": 3})])

    [done] = upload(["A"], lake, settings)

    assert read_back == "1"
    assert done.counts["ImagingStudy"] == {"held": 1, "stored": 1}
    assert codes(lake, "A") == ["changed-on-server"]
    assert get(server, path)["description"] == "read by Dr. Roe"


def test_a_held_study_stays_held_after_a_failure_of_the_server(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    factory.build(lake, "A", [with_changes(ONE, series={"1": 2, "2": 3})])
    load(lake, server, "A")
    factory.build(lake, "A", [with_changes(ONE, series={"1": 2})])
    path = study_path(factory, "A", "1")
    server.rule = lambda asked: Reply(500) if asked.method == "GET" and asked.path == path else None
    [failed] = upload(["A"], lake, settings_for(server.url, retry_seconds=0))
    server.rule = lambda _: None

    held = [load(lake, server, "A")[0].counts["ImagingStudy"] for _ in range(3)]

    assert failed.counts["ImagingStudy"] == {"failed": 1}
    assert held == [{"held": 1}] * 3
    assert codes(lake, "A") == ["update-removes-content"]
    assert get(server, path)["numberOfInstances"] == 5


def test_a_changed_study_is_held_although_its_folder_is_renamed(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    factory.build(lake, "A", [with_changes(ONE, patient={"gender": "male"})])
    load(lake, server, "A")
    path = study_path(factory, "A", "1")
    put(server, get(server, path) | {"description": "read by Dr. Roe"})
    moved = with_changes(ONE, unit="sub-2", series={"1": 3}, patient={"gender": "female"})
    factory.build(lake, "A", [moved])
    server.requests.clear()

    [done] = load(lake, server, "A")

    assert done.counts == {"Endpoint": {"unchanged": 1}, "ImagingStudy": {"held": 1}, "Patient": {"stored": 1}}
    assert codes(lake, "A") == ["changed-on-server"]
    assert get(server, path)["description"] == "read by Dr. Roe"
    # the values of the lake are recognised, and corrected
    assert get(server, patient_path(factory, "A", ONE))["gender"] == "female"
    assert ledger_rows(lake, server.url, "A", "sub-2").keys() == {path, patient_path(factory, "A", ONE)}
    assert ledger_rows(lake, server.url, "A", "sub-1") == {}


@pytest.mark.parametrize("how", ["the answer is lost", "the folder is renamed", "the ledger is lost"])
def test_an_existing_study_with_merged_content_is_recognised(
    lake: Lake, server: Proxy, factory: DatasetFactory, how: str
) -> None:
    external_study = make_external_study(factory)
    put(server, external_study)
    factory.build(lake, "A", [ONE])
    settings = settings_for(server.url, existing_study="merge", single_request_bytes=0)
    lost = iter([Reply(cut=True)] if how == "the answer is lost" else [])
    server.rule = lambda asked: next(lost, None) if asked.path.endswith("-external") else None
    upload(["A"], lake, settings)
    if how == "the folder is renamed":
        factory.build(lake, "A", [with_changes(ONE, unit="sub-2")])
    if how == "the ledger is lost":
        Path(lake.root, "ledger.sqlite").unlink()

    [done] = upload(["A"], lake, settings)

    assert done.counts["ImagingStudy"] in ({"external": 1}, {"unchanged": 1})
    assert status_of(server, study_path(factory, "A", "1")) == 404
    made = get(server, f"ImagingStudy/{external_study['id']}")
    assert (made["meta"]["versionId"], made["description"], made["subject"]) == (
        "2",
        "of the hospital",
        {"display": "somebody"},
    )
    unit = "sub-2" if how == "the folder is renamed" else "sub-1"
    assert ledger_rows(lake, server.url, "A", unit)[study_path(factory, "A", "1")]["is_external"]


def test_a_patient_that_another_run_needs_meanwhile_is_not_pruned(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    person, other = shared_person(), Study("2", "P2", unit="sub-2", rule="authority")
    factory.build(lake, "A", [person, other])
    load(lake, server, "A")
    factory.build(lake, "A", [other])
    factory.build(lake, "B", [person])
    meanwhile = threading.Thread(target=load, args=(Lake(lake.root).open(), server, "B"))

    def progress(*_: Any) -> None:
        if meanwhile.ident is None:
            meanwhile.start()
            meanwhile.join(60)

    [done] = load(lake, server, "A", prune=True, progress=progress)

    patient = patient_path(factory, "A", person)
    assert done.removed == (study_path(factory, "A", person.number),)
    assert version(server, patient) == "1"
    assert {patient, f"Endpoint/{factory.endpoint_id('B')}"} <= shared_ledger_rows(lake, server.url).keys()


@pytest.mark.parametrize("setting", ["hold", "merge"])
def test_a_study_of_another_namespace_with_the_same_dataset_is_external(
    lake: Lake, server: Proxy, factory: DatasetFactory, setting: str
) -> None:
    external_study = make_external_study(factory, identifier=factory.imaging_study("A", ONE)["identifier"])
    put(server, external_study)
    factory.build(lake, "A", [ONE])

    [done] = upload(["A"], lake, settings_for(server.url, existing_study=setting))

    assert done.counts["ImagingStudy"] == ({"held": 1} if setting == "hold" else {"external": 1})
    assert codes(lake, "A") == ["study-exists-on-server" if setting == "hold" else "study-merged"]
    assert status_of(server, study_path(factory, "A", "1")) == 404
    made = get(server, f"ImagingStudy/{external_study['id']}")
    assert (made["meta"]["versionId"], made["subject"]) == ("1" if setting == "hold" else "2", {"display": "somebody"})


def test_the_same_study_in_two_datasets_is_two_resources(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    for dataset in "AB":
        factory.build(lake, dataset, [ONE])

    done = load(lake, server, "A", "B")

    assert [one.counts["ImagingStudy"] for one in done] == [{"stored": 1}] * 2


@pytest.mark.parametrize("order", ["AB", "BA"])
def test_a_study_merged_with_one_dataset_is_external_to_another(
    lake: Lake, server: Proxy, factory: DatasetFactory, order: str
) -> None:
    external_study = make_external_study(factory)
    put(server, external_study)
    for dataset in order:
        factory.build(lake, dataset, [ONE])
        upload([dataset], lake, settings_for(server.url, existing_study="merge"))

    assert [status_of(server, study_path(factory, dataset, "1")) for dataset in order] == [404, 404]
    named = [i["value"] for i in get(server, f"ImagingStudy/{external_study['id']}")["identifier"][1:]]
    assert sorted(named) == ["urn:uid:A", "urn:uid:B"]


def test_a_merged_study_is_a_finding_of_every_run(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    put(server, make_external_study(factory))
    factory.build(lake, "A", [ONE])
    settings = settings_for(server.url, existing_study="merge")

    told = [(upload(["A"], lake, settings)[0].counts["ImagingStudy"], codes(lake, "A")) for _ in range(3)]

    assert told == [({"external": 1}, ["study-merged"])] * 3


def test_a_locked_dataset_does_not_stop_the_others(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    for dataset in "ABC":
        factory.build(lake, dataset, [ONE])
    impatient = Lake(lake.root, 0.0, lambda _: None).open()

    with lake.lock("B", "build of B"):
        done = load(impatient, server, "A", "B", "C")

    assert [one.counts.get("ImagingStudy") for one in done] == [{"stored": 1}, None, {"stored": 1}]
    assert [one.stopped is None for one in done] == [True, False, True]
    assert "build of B" in str(done[1].stopped)


def test_an_existing_study_is_not_changed_and_the_lakes_is_held(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    external_study = make_external_study(factory)
    put(server, external_study)
    factory.build(lake, "A", [ONE])

    [done] = load(lake, server, "A")

    assert done.counts["ImagingStudy"] == {"held": 1}
    assert codes(lake, "A") == ["study-exists-on-server"]
    assert status_of(server, study_path(factory, "A", "1")) == 404
    assert version(server, f"ImagingStudy/{external_study['id']}") == "1"


def test_an_existing_study_is_duplicated_if_set(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    put(server, make_external_study(factory))
    factory.build(lake, "A", [ONE])

    [done] = upload(["A"], lake, settings_for(server.url, existing_study="duplicate"))

    assert done.counts["ImagingStudy"] == {"stored": 1}
    assert status_of(server, study_path(factory, "A", "1")) == 200


def test_instances_are_merged_into_an_existing_study_that_keeps_its_own(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    external_study = make_external_study(factory)
    put(server, external_study)
    factory.build(lake, "A", [with_changes(ONE, series={"1": 2, "2": 3})])
    settings = settings_for(server.url, existing_study="merge")

    [done] = upload(["A"], lake, settings)

    assert done.counts["ImagingStudy"] == {"external": 1}
    assert codes(lake, "A") == ["study-merged"]
    path = f"ImagingStudy/{external_study['id']}"
    made = get(server, path)
    assert (made["description"], made["subject"]) == ("of the hospital", {"display": "somebody"})
    assert {one["uid"]: one["numberOfInstances"] for one in made["series"]} == {
        factory.uid("1", "1"): 2,
        "1.2.3.4": 7,
        factory.uid("1", "2"): 3,
    }
    assert made["series"][0]["description"] == "external"
    assert (made["numberOfSeries"], made["numberOfInstances"]) == (3, 8)
    assert status_of(server, study_path(factory, "A", "1")) == 404

    server.requests.clear()
    upload(["A"], lake, settings)
    assert server.request_lines() == []
    factory.build(lake, "A", [with_changes(ONE, series={"1": 4, "2": 3})])
    upload(["A"], lake, settings)
    assert {one["uid"]: one["numberOfInstances"] for one in get(server, path)["series"]}[factory.uid("1", "1")] == 4
    assert version(server, path) == "3"

    # the external study is not deleted
    factory.build(lake, "A", [])
    upload(["A"], lake, settings, prune=True)
    assert status_of(server, path) == 200
