"""The upload on a real server: what is sent, what is kept, and what never happens."""

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from dicom_etl.lake.fingerprints import fingerprint
from dicom_etl.lake.schemas import DATASET_FINDINGS, OUTCOMES
from dicom_etl.lake.tables import Lake
from dicom_etl.server.errors import UnreachableError, UnsuitableServerError
from dicom_etl.server.naming import server_name
from dicom_etl.stages.upload import NotBuiltError, Uploaded, upload
from tests.server.lakes import (
    Site,
    Study,
    changed,
    new_lake,
    outcomes,
    settings_for,
    shared_outcomes,
)
from tests.server.proxy import Asked, Proxy, Reply, proxy
from tests.servers.hapi_server import HapiServer

ROOT = Path(__file__).parents[2]
_PLAIN = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture
def site(request: pytest.FixtureRequest) -> Site:
    """A site of this test alone: no id of another test on the shared server."""
    return Site(f"site-{fingerprint(request.node.name)[:16]}")


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return new_lake(tmp_path / "lake")


@pytest.fixture
def server(hapi: HapiServer) -> Iterator[Proxy]:
    """The shared server, with every request counted."""
    with proxy(hapi.base_url) as counted:
        yield counted


def hapi_of(server: Proxy) -> Any:
    """The server behind the proxy, for requests that the proxy's rule must not see."""
    return SimpleNamespace(url=server.target)


def load(lake: Lake, server: Proxy, *datasets: str, **options: Any) -> list[Uploaded]:
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


def version(server: Proxy, path: str) -> str:
    return str(get(server, path)["meta"]["versionId"])


def codes(lake: Lake, dataset: str) -> list[str]:
    return [str(row["code"]) for row in findings(lake, dataset)]


def findings(lake: Lake, dataset: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = lake.read(DATASET_FINDINGS, stage="upload", dataset=dataset).to_pylist()
    return rows


def study_path(site: Site, dataset: str, number: str) -> str:
    return f"ImagingStudy/{site.study_id(dataset, number)}"


def patient_path(site: Site, dataset: str, study: Study) -> str:
    return f"Patient/{site.patient_id(dataset, study)}"


ONE = Study("1", "P1")


# -- what is sent -----------------------------------------------------------------------------------------------------


def test_two_uploads_leave_one_of_each_and_the_second_sends_nothing(lake: Lake, server: Proxy, site: Site) -> None:
    two = Study("2", "P2", unit="sub-2", rule="authority")
    site.build(lake, "A", [ONE, two])

    [first] = load(lake, server, "A")
    server.asked.clear()
    [second] = load(lake, server, "A")

    assert first.counts == {"Endpoint": {"stored": 1}, "ImagingStudy": {"stored": 2}, "Patient": {"stored": 2}}
    assert second.counts == {
        "Endpoint": {"unchanged": 1},
        "ImagingStudy": {"unchanged": 2},
        "Patient": {"unchanged": 2},
    }
    assert [one.path for one in server.asked] == ["metadata"]
    for path in (study_path(site, "A", "1"), study_path(site, "A", "2"), f"Endpoint/{site.endpoint_id('A')}"):
        assert version(server, path) == "1"
    for study in (ONE, two):
        assert version(server, patient_path(site, "A", study)) == "1"
        system, value = site.identifier("A", study)
        assert get(server, f"Patient?identifier={system}%7C{value}&_summary=count")["total"] == 1


def test_the_ledger_says_what_the_server_has(lake: Lake, server: Proxy, site: Site) -> None:
    site.build(lake, "A", [ONE])

    load(lake, server, "A")

    row = outcomes(lake, server.url, "A")[study_path(site, "A", "1")]
    row_time = row.pop("time")
    assert row == {
        "dataset": "A",
        "unit": "sub-1",
        "subject": "sub-1",
        "type": "ImagingStudy",
        "key": site.uid("1"),
        "id": site.study_id("A", "1"),
        "id_on_server": site.study_id("A", "1"),
        "linked": False,
        "hash": row["hash"],
        "tried": None,
        "version": "1",
        "state": "stored",
        "status": 201,
        "attempts": 1,
        "error": None,
        "content": None,
    }
    assert len(row["hash"]) == 64
    assert row_time is not None
    assert list(shared_outcomes(lake, server.url)) == [f"Endpoint/{site.endpoint_id('A')}"]
    assert codes(lake, "A") == []


def test_the_version_rises_only_when_the_content_changes(lake: Lake, server: Proxy, site: Site) -> None:
    site.build(lake, "A", [ONE, Study("2", "P1")])
    load(lake, server, "A")

    site.build(lake, "A", [changed(ONE, series={"1": 3}), Study("2", "P1")])
    [done] = load(lake, server, "A")

    assert done.counts["ImagingStudy"] == {"stored": 1, "unchanged": 1}
    assert version(server, study_path(site, "A", "1")) == "2"
    assert version(server, study_path(site, "A", "2")) == "1"
    assert version(server, patient_path(site, "A", ONE)) == "1"
    assert outcomes(lake, server.url, "A")[study_path(site, "A", "1")]["version"] == "2"


def test_many_studies_travel_in_few_requests(lake: Lake, server: Proxy, site: Site) -> None:
    site.build(lake, "A", [Study(str(n), f"P{n}", unit=f"sub-{n}") for n in range(60)])

    [done] = load(lake, server, "A")

    assert done.counts["ImagingStudy"] == {"stored": 60}
    assert len(server.posted()) == 1 + 3 + 3  # Endpoint; Patients and ImagingStudies by twenty-five
    assert len(server.sent("GET")) == 3 + 3  # is one of these Patients, of these studies there already?


def test_without_a_server_the_files_are_the_result(lake: Lake, site: Site) -> None:
    site.build(lake, "A", [ONE])

    assert upload(["A"], lake, settings_for(None)) == [Uploaded("A", None)]
    assert not lake.exists("outcomes")


def test_what_was_not_built_is_said(lake: Lake, server: Proxy) -> None:
    with pytest.raises(NotBuiltError, match="dataset A has no resources yet; build it first"):
        load(lake, server, "A")
    assert server.asked == []


def test_names_with_blanks_and_slashes_are_no_trouble(lake: Lake, server: Proxy, site: Site) -> None:
    study = Study("1", "P1", unit="sub 1/ä")
    site.build(lake, "Brust / 2024", [study])

    [done] = load(lake, server, "Brust / 2024")
    [again] = load(lake, server, "Brust / 2024")
    site.build(lake, "Brust / 2024", [Study("2", "P2")])
    load(lake, server, "Brust / 2024")

    assert done.counts["ImagingStudy"] == {"stored": 1}
    assert again.counts["ImagingStudy"] == {"unchanged": 1}
    assert [row["unit"] for row in findings(lake, "Brust / 2024")] == ["sub 1/ä", "sub 1/ä"]


# -- persons that datasets share --------------------------------------------------------------------------------------


def shared_person(**patient: Any) -> Study:
    return Study("1", "P1", rule="authority", patient=patient)


@pytest.mark.parametrize("order", [("A", "B"), ("B", "A")])
def test_a_shared_patient_is_the_same_in_both_orders(
    lake: Lake, server: Proxy, site: Site, order: Sequence[str]
) -> None:
    said = {
        "A": shared_person(birthDate="1980-05-01", name=[{"family": "Beta"}]),
        "B": shared_person(gender="female", name=[{"family": "Alpha"}]),
    }
    for dataset in order:
        site.build(lake, dataset, [said[dataset]])
        load(lake, server, dataset)
    path = patient_path(site, "A", said["A"])
    assert version(server, path) == "2"
    server.asked.clear()

    for dataset in (*order, *reversed(order)):
        load(lake, server, dataset)

    assert server.sent() == []
    patient = get(server, path)
    assert patient["name"] == [{"family": "Alpha"}, {"family": "Beta"}]
    assert (patient["birthDate"], patient["gender"]) == ("1980-05-01", "female")
    assert version(server, path) == "2"
    assert codes(lake, "A") == codes(lake, "B") == []


def test_two_datasets_in_one_run_make_one_version(lake: Lake, server: Proxy, site: Site) -> None:
    site.build(lake, "A", [shared_person(birthDate="1980-05-01")])
    site.build(lake, "B", [shared_person(gender="female")])

    first, second = load(lake, server, "A", "B")

    assert first.counts["Patient"] == second.counts["Patient"] == {"stored": 1}
    patient = get(server, patient_path(site, "A", shared_person()))
    assert (patient["birthDate"], patient["gender"], patient["meta"]["versionId"]) == ("1980-05-01", "female", "1")


def test_a_contradiction_is_told_and_what_the_server_has_stays(lake: Lake, server: Proxy, site: Site) -> None:
    site.build(lake, "B", [shared_person(birthDate="1980-05-01")])
    load(lake, server, "B")
    site.build(lake, "A", [shared_person(birthDate="1999-09-09")])

    load(lake, server, "A", "B")

    path = patient_path(site, "A", shared_person())
    assert get(server, path)["birthDate"] == "1980-05-01"
    assert version(server, path) == "1"
    for dataset in ("A", "B"):
        [found] = findings(lake, dataset)
        assert (found["code"], found["tag"], found["value"], found["subject"]) == (
            "patient-contradicts",
            "PatientBirthDate",
            "(masked)",
            "sub-1",
        )
        assert found["message"] == f"{path}: birthDate is not the same in A, B"


# -- Patients that the server has already -----------------------------------------------------------------------------


def foreign(site: Site, name: str, value: str = "P1", **more: Any) -> dict[str, Any]:
    identifier = [{"system": site.authority, "value": value}]
    return {"resourceType": "Patient", "id": f"{site.name}-{name}", "identifier": identifier, **more}


def test_the_servers_own_patient_is_linked_and_not_touched(lake: Lake, server: Proxy, site: Site) -> None:
    theirs = foreign(site, "theirs", birthDate="1980-05-01", telecom=[{"system": "phone", "value": "1"}])
    put(server, theirs)
    site.build(lake, "A", [shared_person(birthDate="1980-05-01")])

    [done] = load(lake, server, "A")
    server.asked.clear()
    [again] = load(lake, server, "A")

    assert done.counts["Patient"] == again.counts["Patient"] == {"linked": 1}
    assert done.counts["ImagingStudy"] == {"stored": 1}
    assert server.sent() == []
    assert get(server, study_path(site, "A", "1"))["subject"]["reference"] == f"Patient/{theirs['id']}"
    assert version(server, f"Patient/{theirs['id']}") == "1"
    assert status_of(server, patient_path(site, "A", shared_person())) == 404
    [row] = [r for r in shared_outcomes(lake, server.url).values() if r["type"] == "Patient"]
    assert (row["id_on_server"], row["state"]) == (theirs["id"], "stored")
    assert codes(lake, "A") == ["patient-linked"]


@pytest.mark.parametrize("value", ["A|B", "A,B", "A$B", "A\\B", "A&B+C %7C", "Ä-東?;"])
def test_the_identifier_that_is_searched_is_exactly_that(lake: Lake, server: Proxy, site: Site, value: str) -> None:
    put(server, foreign(site, "right", value))
    put(server, foreign(site, "wrong", "A"))
    site.build(lake, "A", [Study("1", value, rule="crosswalk")])

    load(lake, server, "A")

    reference = get(server, study_path(site, "A", "1"))["subject"]["reference"]
    assert reference == f"Patient/{site.name}-right"


def test_several_patients_of_one_identifier_hold_the_studies(lake: Lake, server: Proxy, site: Site) -> None:
    for name in ("one", "other"):
        put(server, foreign(site, name))
    site.build(lake, "A", [shared_person(), Study("2", "P2", unit="sub-2", rule="authority")])

    [done] = load(lake, server, "A")

    assert done.counts["ImagingStudy"] == {"held": 1, "stored": 1}
    assert status_of(server, study_path(site, "A", "1")) == 404
    [found] = findings(lake, "A")
    assert (found["code"], found["study_uid"]) == ("patient-ambiguous", site.uid("1"))
    assert f"Patient/{site.name}-one" in found["message"]


def test_a_patient_who_contradicts_holds_the_studies_until_that_is_mended(
    lake: Lake, server: Proxy, site: Site
) -> None:
    put(server, foreign(site, "theirs", gender="male"))
    site.build(lake, "A", [shared_person(gender="female")])

    [held] = load(lake, server, "A")
    told = codes(lake, "A")
    site.build(lake, "A", [shared_person(gender="male")])
    [mended] = load(lake, server, "A")

    assert held.counts["ImagingStudy"] == {"held": 1}
    assert told == ["patient-on-server"]
    assert mended.counts == {
        "Endpoint": {"unchanged": 1},
        "ImagingStudy": {"stored": 1},
        "Patient": {"linked": 1},
    }


def test_our_own_patient_is_known_again_by_a_new_lake(tmp_path: Path, server: Proxy, site: Site) -> None:
    for name in ("first", "second"):
        lake = new_lake(tmp_path / name)
        site.build(lake, "A", [shared_person(gender="male")])
        [done] = load(lake, server, "A")

    assert done.counts["Patient"] == {"unchanged": 1}
    assert version(server, patient_path(site, "A", shared_person())) == "1"
    assert codes(lake, "A") == []


def test_two_lakes_that_know_different_things_of_a_person_make_one_patient_that_rests(
    tmp_path: Path, server: Proxy, site: Site
) -> None:
    said = {"A": {"birthDate": "1980-05-01"}, "B": {"gender": "female", "name": [{"family": "Alpha"}]}}
    lakes = {name: new_lake(tmp_path / name) for name in said}
    for name, patient in said.items():
        site.build(lakes[name], name, [shared_person(**patient)])
    for name in ("A", "B", "A", "B"):
        load(lakes[name], server, name)

    path = patient_path(site, "A", shared_person())
    patient = get(server, path)
    assert (patient["birthDate"], patient["gender"], patient["name"]) == ("1980-05-01", "female", [{"family": "Alpha"}])
    assert patient["meta"]["versionId"] == "2"

    # what one lake says differently now is changed, and what the other said stays
    site.build(lakes["A"], "A", [shared_person(birthDate="1981-06-02")])
    load(lakes["A"], server, "A")
    patient = get(server, path)
    assert (patient["birthDate"], patient["gender"]) == ("1981-06-02", "female")


def test_what_somebody_added_to_a_patient_of_ours_stays(lake: Lake, server: Proxy, site: Site) -> None:
    site.build(lake, "A", [changed(ONE, patient={"gender": "male"})])
    load(lake, server, "A")
    path = patient_path(site, "A", ONE)
    put(server, get(server, path) | {"telecom": [{"system": "phone", "value": "1"}]})
    site.build(lake, "A", [changed(ONE, patient={"gender": "male", "birthDate": "1980-05-01"})])

    load(lake, server, "A")

    patient = get(server, path)
    assert (patient["telecom"], patient["birthDate"]) == ([{"system": "phone", "value": "1"}], "1980-05-01")
    assert codes(lake, "A") == []


def test_another_patient_that_came_beside_ours_is_told(tmp_path: Path, server: Proxy, site: Site) -> None:
    lakes = [new_lake(tmp_path / name) for name in ("first", "second")]
    for lake in lakes:
        site.build(lake, "A", [shared_person()])
    load(lakes[0], server, "A")
    put(server, foreign(site, "late"))

    [done] = load(lakes[1], server, "A")

    assert done.counts["ImagingStudy"] == {"unchanged": 1}
    assert codes(lakes[1], "A") == ["patient-appeared"]
    assert get(server, study_path(site, "A", "1"))["subject"]["reference"].endswith(
        site.patient_id("A", shared_person())
    )


# -- studies that somebody else changed or made -----------------------------------------------------------------------


def test_a_study_that_somebody_changed_is_held_until_that_may_be_replaced(
    lake: Lake, server: Proxy, site: Site
) -> None:
    site.build(lake, "A", [ONE, Study("2", "P1")])
    load(lake, server, "A")
    path = study_path(site, "A", "1")
    put(server, get(server, path) | {"description": "read by Dr. Roe"})
    site.build(lake, "A", [changed(ONE, series={"1": 3}), Study("2", "P1", series={"1": 3})])

    [done] = load(lake, server, "A")
    assert done.counts["ImagingStudy"] == {"held": 1, "stored": 1}
    assert codes(lake, "A") == ["changed-on-server"]
    assert get(server, path)["description"] == "read by Dr. Roe"

    [done] = load(lake, server, "A", overwrite=True)
    assert done.counts["ImagingStudy"] == {"stored": 1, "unchanged": 1}
    assert "description" not in get(server, path)
    assert get(server, path)["numberOfInstances"] == 3
    assert codes(lake, "A") == []


def test_a_version_that_moved_without_a_change_is_no_conflict(lake: Lake, server: Proxy, site: Site) -> None:
    site.build(lake, "A", [ONE])
    load(lake, server, "A")
    path = study_path(site, "A", "1")
    before = get(server, path)
    put(server, before | {"description": "a note"})
    put(server, before)  # and back: version 3, with what we sent
    site.build(lake, "A", [changed(ONE, series={"1": 3})])

    [done] = load(lake, server, "A")

    assert done.counts["ImagingStudy"] == {"stored": 1}
    assert version(server, path) == "4"


def test_a_change_between_the_look_and_the_write_is_not_written_over(lake: Lake, server: Proxy, site: Site) -> None:
    site.build(lake, "A", [ONE])
    load(lake, server, "A")
    path = study_path(site, "A", "1")
    site.build(lake, "A", [changed(ONE, series={"1": 3})])
    late: list[int] = []

    def changes(asked: Asked) -> Reply | None:
        if asked.is_posted and b"ImagingStudy" in asked.body and not late:
            late.append(1)
            put(hapi_of(server), get(hapi_of(server), path) | {"description": "just now"})
        return None

    server.rule = changes
    [done] = load(lake, server, "A")

    assert late
    assert done.counts["ImagingStudy"] == {"held": 1}
    assert get(server, path)["description"] == "just now"


def their_study(site: Site, **more: Any) -> dict[str, Any]:
    """A study of somebody else with the StudyInstanceUID of ONE: another series, and one instance of ours."""
    made = site.imaging_study("A", ONE)
    series = [
        {**made["series"][0], "description": "theirs", "numberOfInstances": 1},
        {"uid": "1.2.3.4", "modality": {"code": "SR"}, "numberOfInstances": 7},
    ]
    series[0]["instance"] = made["series"][0]["instance"][:1]
    return {
        "resourceType": "ImagingStudy",
        "id": f"{site.name}-theirs",
        "identifier": made["identifier"][:1],
        "status": "available",
        "subject": {"display": "somebody"},
        "numberOfSeries": 2,
        "numberOfInstances": 8,
        "description": "of the hospital",
        "series": series,
        **more,
    }


def test_a_study_that_is_held_stays_held_after_a_run_in_which_the_server_failed(
    lake: Lake, server: Proxy, site: Site
) -> None:
    site.build(lake, "A", [changed(ONE, series={"1": 2, "2": 3})])
    load(lake, server, "A")
    site.build(lake, "A", [changed(ONE, series={"1": 2})])
    server.rule = lambda asked: Reply(500) if asked.path.startswith("ImagingStudy?") else None
    [failed] = upload(["A"], lake, settings_for(server.url, retry_seconds=0))
    server.rule = lambda _: None

    held = [load(lake, server, "A")[0].counts["ImagingStudy"] for _ in range(3)]

    assert failed.counts["ImagingStudy"] == {"gave-up": 1}
    assert held == [{"held": 1}] * 3
    assert codes(lake, "A") == ["upload-shrinks"]
    assert get(server, study_path(site, "A", "1"))["numberOfInstances"] == 5


def test_a_study_that_somebody_changed_is_held_also_when_its_folder_is_renamed(
    lake: Lake, server: Proxy, site: Site
) -> None:
    site.build(lake, "A", [changed(ONE, patient={"gender": "male"})])
    load(lake, server, "A")
    path = study_path(site, "A", "1")
    put(server, get(server, path) | {"description": "read by Dr. Roe"})
    moved = changed(ONE, unit="sub-2", series={"1": 3}, patient={"gender": "female"})
    site.build(lake, "A", [moved])
    server.asked.clear()

    [done] = load(lake, server, "A")

    assert done.counts == {"Endpoint": {"unchanged": 1}, "ImagingStudy": {"held": 1}, "Patient": {"stored": 1}}
    assert codes(lake, "A") == ["changed-on-server"]
    assert get(server, path)["description"] == "read by Dr. Roe"
    # what we said of the person is known as ours, and corrected
    assert get(server, patient_path(site, "A", ONE))["gender"] == "female"
    assert outcomes(lake, server.url, "A", "sub-2").keys() == {path, patient_path(site, "A", ONE)}
    assert outcomes(lake, server.url, "A", "sub-1") == {}


@pytest.mark.parametrize("how", ["the answer is lost", "the folder is renamed", "the ledger is lost"])
def test_a_study_that_was_adopted_is_known_again(lake: Lake, server: Proxy, site: Site, how: str) -> None:
    theirs = their_study(site)
    put(server, theirs)
    site.build(lake, "A", [ONE])
    settings = settings_for(server.url, foreign_studies="adopt", alone_bytes=0)
    lost = iter([Reply(cut=True)] if how == "the answer is lost" else [])
    server.rule = lambda asked: next(lost, None) if asked.path.endswith("-theirs") else None
    upload(["A"], lake, settings)
    if how == "the folder is renamed":
        site.build(lake, "A", [changed(ONE, unit="sub-2")])
    if how == "the ledger is lost":
        lake.remove_folder("outcomes")

    [done] = upload(["A"], lake, settings)

    assert done.counts["ImagingStudy"] in ({"linked": 1}, {"unchanged": 1})
    assert status_of(server, study_path(site, "A", "1")) == 404
    made = get(server, f"ImagingStudy/{theirs['id']}")
    assert (made["meta"]["versionId"], made["description"], made["subject"]) == (
        "2",
        "of the hospital",
        {"display": "somebody"},
    )
    unit = "sub-2" if how == "the folder is renamed" else "sub-1"
    assert outcomes(lake, server.url, "A", unit)[study_path(site, "A", "1")]["linked"]


def test_a_patient_that_another_run_claims_meanwhile_is_not_pruned(lake: Lake, server: Proxy, site: Site) -> None:
    person, other = shared_person(), Study("2", "P2", unit="sub-2", rule="authority")
    site.build(lake, "A", [person, other])
    load(lake, server, "A")
    site.build(lake, "A", [other])
    site.build(lake, "B", [person])
    meanwhile = threading.Thread(target=load, args=(Lake(lake.root).open(), server, "B"))

    def progress(*_: Any) -> None:
        if meanwhile.ident is None:
            meanwhile.start()
            meanwhile.join(60)

    [done] = load(lake, server, "A", prune=True, progress=progress)

    patient = patient_path(site, "A", person)
    assert done.removed == (study_path(site, "A", person.number),)
    assert version(server, patient) == "1"
    assert {patient, f"Endpoint/{site.endpoint_id('B')}"} <= shared_outcomes(lake, server.url).keys()


def test_what_is_told_of_an_adopted_study_is_told_in_every_run(lake: Lake, server: Proxy, site: Site) -> None:
    put(server, their_study(site))
    site.build(lake, "A", [ONE])
    settings = settings_for(server.url, foreign_studies="adopt")

    told = [(upload(["A"], lake, settings)[0].counts["ImagingStudy"], codes(lake, "A")) for _ in range(3)]

    assert told == [({"linked": 1}, ["study-adopted"])] * 3


def test_a_dataset_that_is_being_written_does_not_keep_the_others_from_the_server(
    lake: Lake, server: Proxy, site: Site
) -> None:
    for dataset in "ABC":
        site.build(lake, dataset, [ONE])
    impatient = Lake(lake.root, 0.0, lambda _: None).open()

    with lake.lock("B", "build of B"):
        done = load(impatient, server, "A", "B", "C")

    assert [one.counts.get("ImagingStudy") for one in done] == [{"stored": 1}, None, {"stored": 1}]
    assert [one.stopped is None for one in done] == [True, False, True]
    assert "build of B" in str(done[1].stopped)


def test_somebody_elses_study_is_left_alone_and_ours_is_held(lake: Lake, server: Proxy, site: Site) -> None:
    theirs = their_study(site)
    put(server, theirs)
    site.build(lake, "A", [ONE])

    [done] = load(lake, server, "A")

    assert done.counts["ImagingStudy"] == {"held": 1}
    assert codes(lake, "A") == ["study-on-server"]
    assert status_of(server, study_path(site, "A", "1")) == 404
    assert version(server, f"ImagingStudy/{theirs['id']}") == "1"


def test_ours_beside_theirs_if_that_is_wanted(lake: Lake, server: Proxy, site: Site) -> None:
    put(server, their_study(site))
    site.build(lake, "A", [ONE])

    [done] = upload(["A"], lake, settings_for(server.url, foreign_studies="beside"))

    assert done.counts["ImagingStudy"] == {"stored": 1}
    assert status_of(server, study_path(site, "A", "1")) == 200


def test_our_instances_go_into_their_study_and_what_we_do_not_know_stays(lake: Lake, server: Proxy, site: Site) -> None:
    theirs = their_study(site)
    put(server, theirs)
    site.build(lake, "A", [changed(ONE, series={"1": 2, "2": 3})])
    settings = settings_for(server.url, foreign_studies="adopt")

    [done] = upload(["A"], lake, settings)

    assert done.counts["ImagingStudy"] == {"linked": 1}
    assert codes(lake, "A") == ["study-adopted"]
    path = f"ImagingStudy/{theirs['id']}"
    made = get(server, path)
    assert (made["description"], made["subject"]) == ("of the hospital", {"display": "somebody"})
    assert {one["uid"]: one["numberOfInstances"] for one in made["series"]} == {
        site.uid("1", "1"): 2,
        "1.2.3.4": 7,
        site.uid("1", "2"): 3,
    }
    assert made["series"][0]["description"] == "theirs"
    assert (made["numberOfSeries"], made["numberOfInstances"]) == (3, 8)
    assert status_of(server, study_path(site, "A", "1")) == 404

    server.asked.clear()
    upload(["A"], lake, settings)
    assert server.sent() == []
    site.build(lake, "A", [changed(ONE, series={"1": 4, "2": 3})])
    upload(["A"], lake, settings)
    assert {one["uid"]: one["numberOfInstances"] for one in get(server, path)["series"]}[site.uid("1", "1")] == 4
    assert version(server, path) == "3"

    # it is not ours to delete
    site.build(lake, "A", [])
    upload(["A"], lake, settings, prune=True)
    assert status_of(server, path) == 200


# -- a server that is busy --------------------------------------------------------------------------------------------


def test_a_busy_server_gets_fewer_requests_at_once_and_more_again_when_it_is_calm(
    lake: Lake, server: Proxy, site: Site
) -> None:
    site.build(lake, "A", [Study(str(n), f"P{n}", unit=f"sub-{n}") for n in range(40)])
    busy = iter([Reply(429, headers={"Retry-After": "0"})] * 4)
    server.rule = lambda asked: next(busy, None) if asked.is_posted else None

    [done] = upload(["A"], lake, settings_for(server.url, in_flight=4, bundle_resources=2))

    assert done.counts["ImagingStudy"] == {"stored": 40}
    assert outcomes(lake, server.url, "A", "sub-39")[study_path(site, "A", "39")]["version"] == "1"


# -- nothing shrinks or disappears ------------------------------------------------------------------------------------


def test_a_study_does_not_shrink_until_that_is_meant(lake: Lake, server: Proxy, site: Site) -> None:
    path = study_path(site, "A", "1")
    site.build(lake, "A", [changed(ONE, series={"1": 2, "2": 3})])
    load(lake, server, "A")
    site.build(lake, "A", [changed(ONE, series={"1": 1})])

    [held] = load(lake, server, "A")
    [found] = findings(lake, "A")
    kept = get(server, path)["numberOfInstances"]
    [pruned] = load(lake, server, "A", prune=True)

    assert held.counts["ImagingStudy"] == {"held": 1}
    assert found["code"] == "upload-shrinks"
    assert "would take 1 of 2 series and 4 of 5 instances away" in found["message"]
    assert kept == 5
    assert pruned.counts["ImagingStudy"] == {"stored": 1}
    assert get(server, path)["numberOfInstances"] == 1
    assert codes(lake, "A") == []


def test_a_study_that_is_whole_again_is_no_longer_held(lake: Lake, server: Proxy, site: Site) -> None:
    site.build(lake, "A", [ONE])
    load(lake, server, "A")
    site.build(lake, "A", [changed(ONE, series={"1": 1})])
    load(lake, server, "A")
    site.build(lake, "A", [ONE])

    [done] = load(lake, server, "A")

    assert done.counts["ImagingStudy"] == {"unchanged": 1}
    assert codes(lake, "A") == []
    assert version(server, study_path(site, "A", "1")) == "1"


def test_a_new_lake_with_less_in_it_shrinks_nothing(tmp_path: Path, server: Proxy, site: Site) -> None:
    full, part = new_lake(tmp_path / "full"), new_lake(tmp_path / "part")
    site.build(full, "A", [changed(ONE, series={"1": 5})])
    load(full, server, "A")
    site.build(part, "A", [changed(ONE, series={"1": 1})])

    [held] = load(part, server, "A")

    assert held.counts["ImagingStudy"] == {"held": 1}
    assert get(server, study_path(site, "A", "1"))["numberOfInstances"] == 5


def test_what_is_gone_stays_on_the_server_until_that_is_meant(lake: Lake, server: Proxy, site: Site) -> None:
    gone = Study("2", "P2", unit="sub-2", rule="authority")
    own = Study("3", "P3", unit="sub-3")
    site.build(lake, "A", [ONE, gone, own])
    load(lake, server, "A")
    site.build(lake, "A", [ONE])
    paths = [
        f"ImagingStudy/{site.study_id('A', '2')}",
        f"ImagingStudy/{site.study_id('A', '3')}",
        patient_path(site, "A", gone),
        patient_path(site, "A", own),
    ]

    for _ in range(2):
        [left] = load(lake, server, "A")
        assert codes(lake, "A") == ["left-on-server"] * 4
        assert left.counts["ImagingStudy"] == {"gone": 2, "unchanged": 1}
    server.asked.clear()
    [listed] = load(lake, server, "A", prune=True, dry_run=True)
    assert server.sent() == []
    there = [status_of(server, path) for path in paths]
    [pruned] = load(lake, server, "A", prune=True)

    assert there == [200] * 4
    assert listed.removed == pruned.removed == tuple(sorted(paths))
    assert listed.counts["ImagingStudy"] == {"unchanged": 1, "would-delete": 2}
    assert pruned.counts["ImagingStudy"] == {"unchanged": 1, "deleted": 2}
    assert [status_of(server, path) for path in paths] == [410] * 4
    assert status_of(server, study_path(site, "A", "1")) == 200
    assert codes(lake, "A") == []
    assert lake.names(f"outcomes/{server_name(server.url)}/A") == ["sub-1.parquet"]


def test_a_change_of_person_leaves_the_old_patient_and_tells(lake: Lake, server: Proxy, site: Site) -> None:
    site.build(lake, "A", [ONE])
    load(lake, server, "A")
    right = changed(ONE, person="P9")
    site.build(lake, "A", [right])

    [done] = load(lake, server, "A")

    assert done.counts == {
        "Endpoint": {"unchanged": 1},
        "ImagingStudy": {"stored": 1},
        "Patient": {"gone": 1, "stored": 1},
    }
    assert get(server, study_path(site, "A", "1"))["subject"]["reference"] == patient_path(site, "A", right)
    assert status_of(server, patient_path(site, "A", ONE)) == 200
    [found] = findings(lake, "A")
    assert (found["code"], found["message"]) == ("left-on-server", patient_path(site, "A", ONE))


def test_a_patient_to_whom_others_refer_is_not_deleted(lake: Lake, server: Proxy, site: Site) -> None:
    site.build(lake, "A", [ONE])
    load(lake, server, "A")
    patient = patient_path(site, "A", ONE)
    put(
        server,
        {
            "resourceType": "Observation",
            "id": f"{site.name}-o",
            "status": "final",
            "code": {"text": "weight"},
            "subject": {"reference": patient},
        },
    )
    site.build(lake, "A", [changed(ONE, person="P9")])

    [done] = load(lake, server, "A", prune=True)

    assert done.counts["Patient"] == {"gone": 1, "stored": 1}
    assert done.removed == ()
    assert status_of(server, patient) == 200
    [found] = findings(lake, "A")
    assert found["code"] == "left-on-server"
    assert "not deleted: HTTP 409" in found["message"]


def test_a_study_that_is_held_now_stays_with_its_patient_even_when_pruned(
    lake: Lake, server: Proxy, site: Site
) -> None:
    site.build(lake, "A", [ONE])
    load(lake, server, "A")
    site.build(lake, "A", [changed(ONE, state="held")])

    [done] = load(lake, server, "A", prune=True)

    assert done.counts["ImagingStudy"] == {"held": 1}
    told = sorted((row["code"], row["message"].partition("/")[0]) for row in findings(lake, "A"))
    assert told == [("held-on-server", "ImagingStudy"), ("left-on-server", "Endpoint"), ("left-on-server", "Patient")]
    assert status_of(server, study_path(site, "A", "1")) == status_of(server, patient_path(site, "A", ONE)) == 200


def test_a_study_that_can_no_longer_be_made_is_held_and_not_gone_even_when_pruned(
    lake: Lake, server: Proxy, site: Site
) -> None:
    site.build(lake, "A", [ONE])
    load(lake, server, "A")
    site.build(lake, "A", [changed(ONE, state="unmade")])

    [done] = load(lake, server, "A", prune=True)

    assert done.counts["ImagingStudy"] == {"held": 1}
    assert done.removed == ()
    assert "held-on-server" in codes(lake, "A")
    assert status_of(server, study_path(site, "A", "1")) == status_of(server, patient_path(site, "A", ONE)) == 200


def test_a_study_that_moved_to_another_unit_is_neither_gone_nor_new(lake: Lake, server: Proxy, site: Site) -> None:
    site.build(lake, "A", [ONE])
    load(lake, server, "A")
    site.build(lake, "A", [changed(ONE, unit="sub-9")])

    [done] = load(lake, server, "A", prune=True)

    assert done.removed == ()
    assert codes(lake, "A") == []
    assert version(server, study_path(site, "A", "1")) == "1"
    assert version(server, patient_path(site, "A", ONE)) == "1"
    assert lake.names(f"outcomes/{server_name(server.url)}/A") == ["sub-9.parquet"]


def test_a_dry_run_changes_nothing(lake: Lake, server: Proxy, site: Site) -> None:
    site.build(lake, "A", [ONE, Study("2", "P2", unit="sub-2", rule="authority")])

    [dry] = load(lake, server, "A", dry_run=True)

    assert dry.counts == {
        "Endpoint": {"would-send": 1},
        "ImagingStudy": {"would-send": 2},
        "Patient": {"would-send": 2},
    }
    assert server.sent("PUT", "DELETE") == []
    assert server.posted() == []
    assert not lake.exists("outcomes")
    assert not lake.exists("findings/upload")


# -- refusals and failures --------------------------------------------------------------------------------------------


def test_one_bad_resource_among_many_is_rejected_alone(lake: Lake, server: Proxy, site: Site) -> None:
    studies = [Study(str(n), "P1") for n in range(10)]
    studies[3] = changed(studies[3], status="nonsense")
    studies[7] = changed(studies[7], unit="sub-7", person="P7", patient={"gender": "nonsense"})
    site.build(lake, "A", studies)

    [done] = load(lake, server, "A")

    assert done.counts["ImagingStudy"] == {"rejected": 2, "stored": 8}
    assert done.counts["Patient"] == {"rejected": 1, "stored": 1}
    row = outcomes(lake, server.url, "A")[study_path(site, "A", "3")]
    assert (row["state"], row["status"], row["version"]) == ("rejected", 400, None)
    assert "Unknown ImagingStudyStatus code 'nonsense'" in row["error"]
    blocked = outcomes(lake, server.url, "A", "sub-7")[study_path(site, "A", "7")]
    assert blocked["error"] == f"not sent, since {patient_path(site, 'A', studies[7])} was rejected"
    assert codes(lake, "A") == ["upload-rejected"] * 3


def test_one_invalid_study_among_a_thousand_is_rejected_and_the_others_are_stored(
    lake: Lake, server: Proxy, site: Site
) -> None:
    studies = [Study(str(n), f"P{n // 100}", unit=f"sub-{n // 100}", series={"1": 1}) for n in range(1000)]
    studies[617] = changed(studies[617], status="nonsense")
    site.build(lake, "A", studies)

    [done] = upload(["A"], lake, settings_for(server.url, bundle_resources=50))

    assert done.counts["ImagingStudy"] == {"rejected": 1, "stored": 999}
    row = outcomes(lake, server.url, "A", "sub-6")[study_path(site, "A", "617")]
    assert (row["state"], row["status"]) == ("rejected", 400)
    assert "Unknown ImagingStudyStatus code 'nonsense'" in row["error"]
    assert codes(lake, "A") == ["upload-rejected"]


def test_only_what_failed_is_sent_again_when_that_is_asked_for(lake: Lake, server: Proxy, site: Site) -> None:
    bad = Study("2", "P2", unit="sub-2", status="nonsense")
    site.build(lake, "A", [ONE, bad])
    load(lake, server, "A")
    site.build(lake, "A", [changed(ONE, series={"1": 5}), changed(bad, status="available")])

    [done] = load(lake, server, "A", failed_only=True)
    [rest] = load(lake, server, "A")

    assert done.counts["ImagingStudy"] == {"stored": 1, "waiting": 1}
    assert rest.counts["ImagingStudy"] == {"stored": 1, "unchanged": 1}
    assert version(server, study_path(site, "A", "1")) == "2"


def test_a_server_that_is_not_there_loses_nothing(lake: Lake, site: Site) -> None:
    site.build(lake, "A", [ONE])

    with pytest.raises(UnreachableError, match="cannot be reached"):
        load(lake, Proxy("http://127.0.0.1:1/fhir"), "A")
    assert not lake.exists("outcomes")


def test_a_server_of_another_version_gets_nothing(lake: Lake, site: Site) -> None:
    statement = {"resourceType": "CapabilityStatement", "fhirVersion": "5.0.0"}
    site.build(lake, "A", [ONE])

    with proxy(rule=lambda _: Reply(200, orjson.dumps(statement))) as other:
        with pytest.raises(UnsuitableServerError, match=r"speaks FHIR 5\.0\.0"):
            load(lake, other, "A")
        assert [one.path for one in other.asked] == ["metadata"]


def test_a_server_that_goes_away_in_the_middle_gets_the_rest_in_the_next_run(
    lake: Lake, server: Proxy, site: Site
) -> None:
    site.build(lake, "A", [Study(str(n), f"P{n}", unit=f"sub-{n}") for n in range(30)])
    bundles: list[Asked] = []

    def goes_away(asked: Asked) -> Reply | None:
        if asked.is_posted:
            bundles.append(asked)
        return Reply(503) if len(bundles) > 5 else None

    server.rule = goes_away
    [cut] = upload(["A"], lake, settings_for(server.url, in_flight=2, bundle_resources=10, retry_seconds=0))
    told = set(codes(lake, "A"))
    server.rule = lambda _: None
    [rest] = load(lake, server, "A")

    assert cut.unreachable
    assert cut.stopped is not None
    assert cut.counts["ImagingStudy"] == {"gave-up": 20, "stored": 10}
    assert told == {"upload-gave-up"}
    assert rest.counts["ImagingStudy"] == {"stored": 20, "unchanged": 10}
    assert not rest.unreachable
    assert codes(lake, "A") == []
    assert {version(server, study_path(site, "A", str(n))) for n in range(30)} == {"1"}


def test_a_busy_server_is_asked_again(lake: Lake, server: Proxy, site: Site) -> None:
    site.build(lake, "A", [ONE])
    refusals = iter([Reply(429, headers={"Retry-After": "0"}), Reply(503)])

    server.rule = lambda asked: next(refusals, None) if asked.is_posted else None
    [done] = load(lake, server, "A")

    assert done.counts["ImagingStudy"] == {"stored": 1}
    assert shared_outcomes(lake, server.url)[f"Endpoint/{site.endpoint_id('A')}"]["attempts"] == 3


def test_an_answer_that_gets_lost_makes_no_second_version(lake: Lake, server: Proxy, site: Site) -> None:
    site.build(lake, "A", [ONE])
    lost = iter([Reply(cut=True)] * 3)

    server.rule = lambda asked: next(lost, None) if asked.is_posted else None
    [done] = load(lake, server, "A")

    assert done.counts["ImagingStudy"] == {"stored": 1}
    assert version(server, study_path(site, "A", "1")) == "1"
    assert version(server, patient_path(site, "A", ONE)) == "1"


def test_a_ledger_that_was_lost_after_the_server_stored_makes_no_second_version(
    lake: Lake, server: Proxy, site: Site
) -> None:
    two = Study("2", "P2", unit="sub-2", rule="authority")
    site.build(lake, "A", [ONE, two])
    load(lake, server, "A")
    name = server_name(server.url)
    lake.remove(OUTCOMES.path(server=name, dataset="A", unit="sub-1"))
    lake.remove(f"outcomes/{name}/shared.parquet")

    [done] = load(lake, server, "A")

    assert done.counts["ImagingStudy"] == {"unchanged": 2}
    for path in (study_path(site, "A", "1"), patient_path(site, "A", ONE), patient_path(site, "A", two)):
        assert version(server, path) == "1"
    assert outcomes(lake, server.url, "A")[study_path(site, "A", "1")]["version"] == "1"


_KILLED = """
import sys
from dicom_etl.lake.tables import Lake
from dicom_etl.stages.upload import upload
from tests.server.lakes import settings_for
upload(["A"], Lake(sys.argv[1]), settings_for(sys.argv[2], in_flight=1, bundle_resources=10))
"""


def test_a_killed_run_is_completed_by_the_next(lake: Lake, server: Proxy, site: Site) -> None:
    site.build(lake, "A", [Study(str(n), f"P{n}", unit=f"sub-{n}") for n in range(30)])
    started: list[subprocess.Popen[bytes]] = []
    bundles: list[Asked] = []

    def kills(asked: Asked) -> Reply | None:
        bundles.extend([asked] if asked.is_posted else [])
        if len(bundles) == 6 and started[0].poll() is None:  # the second bundle of ImagingStudies
            os.kill(started[0].pid, signal.SIGKILL)
        return None

    server.rule = kills
    started.append(
        subprocess.Popen(
            [sys.executable, "-c", _KILLED, lake.root, server.url],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    )
    assert started[0].wait(120) == -signal.SIGKILL
    server.rule = lambda _: None

    [done] = load(lake, server, "A")

    # ten of the ledger, ten that the server was found to have
    assert done.counts["ImagingStudy"] == {"stored": 10, "unchanged": 20}
    assert {version(server, study_path(site, "A", str(n))) for n in range(30)} == {"1"}
    assert [name for name in lake.names(f"outcomes/{server_name(server.url)}/A") if "tmp" in name] == []


def test_a_wrong_token_stops_and_is_told_without_the_token(
    lake: Lake, server: Proxy, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def guarded(asked: Asked) -> Reply | None:
        open_to_all = asked.path == "metadata" or asked.headers.get("Authorization") == "Bearer open-sesame"
        return None if open_to_all else Reply(401)

    server.rule = guarded
    site.build(lake, "A", [ONE])

    monkeypatch.setenv("DICOM_ETL_FHIR_TOKEN", "close-sesame")
    [refused] = load(lake, server, "A")
    told = orjson.dumps(findings(lake, "A")).decode()
    monkeypatch.setenv("DICOM_ETL_FHIR_TOKEN", "open-sesame")
    [done] = load(lake, server, "A")

    assert refused.counts == {k: {"gave-up": 1} for k in ("Endpoint", "ImagingStudy", "Patient")}
    assert refused.stopped is not None
    assert "HTTP 401" in refused.stopped
    assert not refused.unreachable
    assert "close-sesame" not in told + refused.stopped
    assert done.counts == {k: {"stored": 1} for k in ("Endpoint", "ImagingStudy", "Patient")}


def test_two_servers_have_two_ledgers(lake: Lake, server: Proxy, site: Site) -> None:
    site.build(lake, "A", [ONE])
    load(lake, server, "A")

    with proxy(server.url) as other:
        [done] = load(lake, other, "A")
        assert done.counts["ImagingStudy"] == {"unchanged": 1}  # the other address is the same server
        assert lake.names("outcomes") == sorted(server_name(one.url) for one in (server, other))


def test_progress_counts_units(lake: Lake, server: Proxy, site: Site) -> None:
    site.build(lake, "A", [Study(str(n), f"P{n}", unit=f"sub-{n}") for n in range(3)])
    steps: list[tuple[str, int, int]] = []

    load(lake, server, "A", progress=lambda *step: steps.append(step))

    assert steps == [("upload A", 1, 3), ("upload A", 2, 3), ("upload A", 3, 3)]
