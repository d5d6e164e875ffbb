"""Patients that another client merged, deactivated or deleted on a real server, between runs with new studies."""

from typing import Any

import pytest

from dicom_etl.lake.tables import Lake
from dicom_etl.stages.verify import verify
from tests.support.proxy import Proxy
from tests.support.upload_lakes import DatasetFactory, Study, ledger_rows, settings_for, shared_ledger_rows
from tests.support.uploads import codes, delete, get, load, patient_path, put, status_of, study_path, version

ONE = Study("1", "P1", rule="authority")
TWO = Study("2", "P1", unit="sub-2", rule="authority")
THREE = Study("3", "P1", unit="sub-2", rule="authority")
OWN = Study("1", "P1"), Study("2", "P1", unit="sub-2"), Study("3", "P1", unit="sub-2")
SHARED = ONE, TWO, THREE

ORDERS = ["merged before the new studies", "merged between the new studies"]


def external_patient(factory: DatasetFactory, name: str, *values: str, **more: Any) -> dict[str, Any]:
    identifiers = [{"system": factory.authority, "value": value} for value in values]
    return {"resourceType": "Patient", "id": f"{factory.name}-{name}", "identifier": identifiers, **more}


def merge(server: Proxy, path: str, survivor: dict[str, Any]) -> None:
    """Merge a Patient into another, as a server's $merge does: only a link shows it."""
    link = {"other": {"reference": f"Patient/{survivor['id']}"}, "type": "replaced-by"}
    put(server, survivor)
    put(server, get(server, path) | {"active": False, "link": [link]})


def subjects(server: Proxy, factory: DatasetFactory, *studies: Study) -> list[str]:
    return [str(get(server, study_path(factory, "A", one.number))["subject"]["reference"]) for one in studies]


def patients_of(server: Proxy, factory: DatasetFactory) -> list[str]:
    """The ids of all Patients of the shared identifier."""
    found = get(server, f"Patient?identifier={factory.authority}%7CP1")
    return sorted(str(entry["resource"]["id"]) for entry in found.get("entry", []))


# -- merged into another ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("values", [("P1", "X1"), ("X1",)], ids=["with the identifier", "without the identifier"])
def test_studies_of_a_merged_external_patient_refer_to_the_survivor(
    lake: Lake, server: Proxy, factory: DatasetFactory, values: tuple[str, ...], order: str
) -> None:
    old, survivor = external_patient(factory, "old", "P1"), external_patient(factory, "new", *values)
    put(server, old)
    before = [ONE] if order == ORDERS[0] else [ONE, TWO]
    for number in range(1, len(before) + 1):
        factory.build(lake, "A", before[:number])
        load(lake, server, "A")
    assert subjects(server, factory, *before) == [f"Patient/{old['id']}"] * len(before)

    merge(server, f"Patient/{old['id']}", survivor)
    factory.build(lake, "A", SHARED)
    [done] = load(lake, server, "A")

    assert done.counts["Patient"] == {"external": 1}
    assert done.counts["ImagingStudy"] == {"stored": 3}
    assert subjects(server, factory, *SHARED) == [f"Patient/{survivor['id']}"] * 3
    assert codes(lake, "A") == ["patient-merged-on-server"]
    row = shared_ledger_rows(lake, server.url)[patient_path(factory, "A", ONE)]
    assert (row["server_id"], row["is_external"]) == (survivor["id"], True)
    # no duplicate was created, and the external ones were not changed
    assert status_of(server, patient_path(factory, "A", ONE)) == 404
    assert version(server, f"Patient/{survivor['id']}") == "1"
    assert version(server, f"Patient/{old['id']}") == "2"
    server.requests.clear()
    [again] = load(lake, server, "A")
    assert again.counts["ImagingStudy"] == {"unchanged": 3}
    assert server.request_lines() == []


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("studies", [OWN, SHARED], ids=["own", "shared"])
@pytest.mark.parametrize("values", [("P1", "X1"), ("X1",)], ids=["with the identifier", "without the identifier"])
def test_studies_of_a_merged_patient_refer_to_the_survivor(
    lake: Lake, server: Proxy, factory: DatasetFactory, values: tuple[str, ...], studies: tuple[Study, ...], order: str
) -> None:
    path, survivor = patient_path(factory, "A", studies[0]), external_patient(factory, "new", *values)
    for number in range(1, 2 if order == ORDERS[0] else 3):
        factory.build(lake, "A", studies[:number])
        load(lake, server, "A")

    merge(server, path, survivor)
    factory.build(lake, "A", studies)
    [done] = load(lake, server, "A")

    assert done.counts["Patient"] == {"external": 1}
    assert done.counts["ImagingStudy"] == {"stored": 3}
    assert subjects(server, factory, *studies) == [f"Patient/{survivor['id']}"] * 3
    assert codes(lake, "A") == ["patient-merged-on-server"]
    assert (get(server, path)["active"], version(server, path)) == (False, "2")
    assert version(server, f"Patient/{survivor['id']}") == "1"
    server.requests.clear()
    [again] = load(lake, server, "A")
    assert again.counts["ImagingStudy"] == {"unchanged": 3}
    assert server.request_lines() == []


def test_studies_that_the_server_moved_to_the_survivor_do_not_conflict(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    old, survivor = external_patient(factory, "old", "P1"), external_patient(factory, "new", "X1")
    put(server, old)
    factory.build(lake, "A", [ONE])
    load(lake, server, "A")
    merge(server, f"Patient/{old['id']}", survivor)
    path = study_path(factory, "A", "1")
    put(server, get(server, path) | {"subject": {"reference": f"Patient/{survivor['id']}"}})

    factory.build(lake, "A", [Study("1", "P1", rule="authority", series={"1": 3}), TWO])
    [done] = load(lake, server, "A")

    assert done.counts["ImagingStudy"] == {"stored": 2}
    assert get(server, path)["numberOfInstances"] == 3
    assert subjects(server, factory, ONE, TWO) == [f"Patient/{survivor['id']}"] * 2


def test_a_chain_of_merges_is_followed_to_its_end(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    old, middle, last = (
        external_patient(factory, name, value) for name, value in (("a", "P1"), ("b", "X1"), ("c", "X2"))
    )
    put(server, old)
    factory.build(lake, "A", [ONE])
    load(lake, server, "A")
    merge(server, f"Patient/{old['id']}", middle)
    merge(server, f"Patient/{middle['id']}", last)

    factory.build(lake, "A", [ONE, TWO])
    load(lake, server, "A")

    assert subjects(server, factory, ONE, TWO) == [f"Patient/{last['id']}"] * 2


# -- inactive ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whose", ["external", "ours"])
@pytest.mark.parametrize("first", [True, False], ids=["after a first study", "before any study"])
def test_new_studies_of_an_inactive_patient_are_held_until_it_is_active(
    lake: Lake, server: Proxy, factory: DatasetFactory, whose: str, first: bool
) -> None:
    external = external_patient(factory, "old", "P1")
    path = f"Patient/{external['id']}" if whose == "external" else patient_path(factory, "A", ONE)
    put(server, external if whose == "external" else factory.patient("A", ONE))
    if first:
        factory.build(lake, "A", [ONE])
        load(lake, server, "A")
    put(server, get(server, path) | {"active": False})
    factory.build(lake, "A", [ONE, TWO])

    for _ in range(2):
        [held] = load(lake, server, "A")
        assert held.counts["ImagingStudy"] == ({"held": 1, "unchanged": 1} if first else {"held": 2})
        assert set(codes(lake, "A")) == {"patient-inactive-on-server"}
        assert status_of(server, study_path(factory, "A", "2")) == 404
        assert patients_of(server, factory) == [path.removeprefix("Patient/")]
    put(server, get(server, path) | {"active": True})
    [done] = load(lake, server, "A")

    assert done.counts["ImagingStudy"] == ({"stored": 1, "unchanged": 1} if first else {"stored": 2})
    assert subjects(server, factory, ONE, TWO) == [path] * 2


# -- deleted ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whose", ["external", "ours"])
@pytest.mark.parametrize("new", [True, False], ids=["a new study", "a changed study"])
def test_studies_of_a_deleted_patient_are_held_until_a_repair(
    lake: Lake, server: Proxy, factory: DatasetFactory, whose: str, new: bool
) -> None:
    external = external_patient(factory, "old", "P1")
    if whose == "external":
        put(server, external)
    factory.build(lake, "A", [ONE])
    load(lake, server, "A")
    path = subjects(server, factory, ONE)[0]
    delete(server, study_path(factory, "A", "1"))
    delete(server, path)
    factory.build(lake, "A", [ONE, TWO] if new else [Study("1", "P1", rule="authority", series={"1": 3})])
    number = "2" if new else "1"

    for _ in range(2):
        [held] = load(lake, server, "A")
        assert held.counts["ImagingStudy"] == ({"held": 1, "unchanged": 1} if new else {"held": 1})
        assert codes(lake, "A") == ["patient-deleted-on-server"]
        assert status_of(server, study_path(factory, "A", number)) == (404 if new else 410)
        assert patients_of(server, factory) == []
    repaired = verify(["A"], lake, settings_for(server.url), repair=True)

    [sent] = repaired.uploads
    assert sent.counts["Patient"] == {"stored": 1}
    assert sent.counts["ImagingStudy"] == {"stored": 2 if new else 1}
    patient_of_lake = patient_path(factory, "A", ONE)
    assert get(server, study_path(factory, "A", number))["subject"]["reference"] == patient_of_lake
    assert get(server, study_path(factory, "A", "1"))["subject"]["reference"] == patient_of_lake
    assert patients_of(server, factory) == [factory.patient_id("A", ONE)]
    assert codes(lake, "A") == []


def test_a_deleted_external_patient_is_replaced_by_its_only_duplicate(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    put(server, external_patient(factory, "old", "P1"))
    factory.build(lake, "A", [ONE])
    load(lake, server, "A")
    delete(server, study_path(factory, "A", "1"))
    delete(server, f"Patient/{factory.name}-old")
    put(server, external_patient(factory, "new", "P1"))

    factory.build(lake, "A", [ONE, TWO])
    [done] = load(lake, server, "A")

    assert done.counts["Patient"] == {"external": 1}
    assert subjects(server, factory, TWO) == [f"Patient/{factory.name}-new"]
    assert patients_of(server, factory) == [f"{factory.name}-new"]
    assert ledger_rows(lake, server.url, "A", "sub-2")[study_path(factory, "A", "2")]["state"] == "stored"
