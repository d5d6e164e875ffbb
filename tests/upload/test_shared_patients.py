"""Patients that datasets share, and those that the server has already."""

from collections.abc import Sequence
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
    attempts,
    ledger_rows,
    new_lake,
    settings_for,
    shared_ledger_rows,
    with_changes,
)
from tests.support.uploads import (
    ONE,
    codes,
    findings,
    get,
    load,
    patient_path,
    put,
    shared_person,
    status_of,
    study_path,
    version,
)

# -- Patients that datasets share -------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [("A", "B"), ("B", "A")])
def test_a_shared_patient_does_not_depend_on_the_order(
    lake: Lake, server: Proxy, factory: DatasetFactory, order: Sequence[str]
) -> None:
    patients = {
        "A": shared_person(birthDate="1980-05-01", name=[{"family": "Beta"}]),
        "B": shared_person(gender="female", name=[{"family": "Alpha"}]),
    }
    for dataset in order:
        factory.build(lake, dataset, [patients[dataset]])
        load(lake, server, dataset)
    path = patient_path(factory, "A", patients["A"])
    assert version(server, path) == "2"
    server.requests.clear()

    for dataset in (*order, *reversed(order)):
        load(lake, server, dataset)

    # the first unit was stored before the second dataset had a value of its Patient, which is looked up once
    assert server.request_lines() == [f"GET {path}"]
    patient = get(server, path)
    assert patient["name"] == [{"family": "Alpha"}, {"family": "Beta"}]
    assert (patient["birthDate"], patient["gender"]) == ("1980-05-01", "female")
    assert version(server, path) == "2"
    assert codes(lake, "A") == codes(lake, "B") == []


def test_two_datasets_in_one_run_make_one_version(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    factory.build(lake, "A", [shared_person(birthDate="1980-05-01")])
    factory.build(lake, "B", [shared_person(gender="female")])

    first, second = load(lake, server, "A", "B")

    assert first.counts["Patient"] == second.counts["Patient"] == {"stored": 1}
    patient = get(server, patient_path(factory, "A", shared_person()))
    assert (patient["birthDate"], patient["gender"], patient["meta"]["versionId"]) == ("1980-05-01", "female", "1")


def test_a_conflict_is_a_finding_and_the_value_on_the_server_stays(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    factory.build(lake, "B", [shared_person(birthDate="1980-05-01")])
    load(lake, server, "B")
    factory.build(lake, "A", [shared_person(birthDate="1999-09-09")])

    load(lake, server, "A", "B")

    path = patient_path(factory, "A", shared_person())
    assert get(server, path)["birthDate"] == "1980-05-01"
    assert version(server, path) == "1"
    for dataset in ("A", "B"):
        [found] = findings(lake, dataset)
        assert (found["code"], found["tag"], found["value"], found["subject"]) == (
            "patient-conflict",
            "PatientBirthDate",
            "(masked)",
            "sub-1",
        )
        assert found["message"] == f"{path}: birthDate has different values in A, B"


# -- Patients that the server has already -----------------------------------------------------------------------------


def external(factory: DatasetFactory, name: str, value: str = "P1", **more: Any) -> dict[str, Any]:
    identifier = [{"system": factory.authority, "value": value}]
    return {"resourceType": "Patient", "id": f"{factory.name}-{name}", "identifier": identifier, **more}


def test_an_external_patient_is_referred_to_and_not_changed(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    external_patient = external(factory, "theirs", birthDate="1980-05-01", telecom=[{"system": "phone", "value": "1"}])
    put(server, external_patient)
    factory.build(lake, "A", [shared_person(birthDate="1980-05-01")])

    [done] = load(lake, server, "A")
    server.requests.clear()
    [again] = load(lake, server, "A")

    assert done.counts["Patient"] == again.counts["Patient"] == {"external": 1}
    assert done.counts["ImagingStudy"] == {"stored": 1}
    assert server.request_lines() == []
    assert get(server, study_path(factory, "A", "1"))["subject"]["reference"] == f"Patient/{external_patient['id']}"
    assert version(server, f"Patient/{external_patient['id']}") == "1"
    assert status_of(server, patient_path(factory, "A", shared_person())) == 404
    [row] = [r for r in shared_ledger_rows(lake, server.url).values() if r["type"] == "Patient"]
    assert (row["server_id"], row["state"]) == (external_patient["id"], "stored")
    assert codes(lake, "A") == ["external-patient-used"]


@pytest.mark.parametrize("value", ["A|B", "A,B", "A$B", "A\\B", "A&B+C %7C", "Ä-東?;"])
def test_the_identifier_is_searched_for_exactly(lake: Lake, server: Proxy, factory: DatasetFactory, value: str) -> None:
    put(server, external(factory, "right", value))
    put(server, external(factory, "wrong", "A"))
    factory.build(lake, "A", [Study("1", value, rule="crosswalk")])

    load(lake, server, "A")

    reference = get(server, study_path(factory, "A", "1"))["subject"]["reference"]
    assert reference == f"Patient/{factory.name}-right"


def test_several_patients_with_one_identifier_hold_the_studies(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    for name in ("one", "other"):
        put(server, external(factory, name))
    factory.build(lake, "A", [shared_person(), Study("2", "P2", unit="sub-2", rule="authority")])

    [done] = load(lake, server, "A")

    assert done.counts["ImagingStudy"] == {"held": 1, "stored": 1}
    assert status_of(server, study_path(factory, "A", "1")) == 404
    [found] = findings(lake, "A")
    assert (found["code"], found["study_uid"]) == ("patient-ambiguous", factory.uid("1"))
    assert f"Patient/{factory.name}-one" in found["message"]


def test_a_patient_in_conflict_holds_the_studies_until_that_is_fixed(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    put(server, external(factory, "theirs", gender="male"))
    factory.build(lake, "A", [shared_person(gender="female")])

    [held] = load(lake, server, "A")
    told = codes(lake, "A")
    factory.build(lake, "A", [shared_person(gender="male")])
    [fixed] = load(lake, server, "A")

    assert held.counts["ImagingStudy"] == {"held": 1}
    assert told == ["patient-conflict"]
    assert fixed.counts == {
        "Endpoint": {"unchanged": 1},
        "ImagingStudy": {"stored": 1},
        "Patient": {"external": 1},
    }


def test_a_new_lake_recognises_the_patient_of_its_namespace(
    tmp_path: Path, server: Proxy, factory: DatasetFactory
) -> None:
    for name in ("first", "second"):
        lake = new_lake(tmp_path / name)
        factory.build(lake, "A", [shared_person(gender="male")])
        [done] = load(lake, server, "A")

    assert done.counts["Patient"] == {"unchanged": 1}
    assert version(server, patient_path(factory, "A", shared_person())) == "1"
    assert codes(lake, "A") == []


def test_two_lakes_with_different_values_agree_on_one_patient(
    tmp_path: Path, server: Proxy, factory: DatasetFactory
) -> None:
    patients = {"A": {"birthDate": "1980-05-01"}, "B": {"gender": "female", "name": [{"family": "Alpha"}]}}
    lakes = {name: new_lake(tmp_path / name) for name in patients}
    for name, patient in patients.items():
        factory.build(lakes[name], name, [shared_person(**patient)])
    for name in ("A", "B", "A", "B"):
        load(lakes[name], server, name)

    path = patient_path(factory, "A", shared_person())
    patient = get(server, path)
    assert (patient["birthDate"], patient["gender"], patient["name"]) == ("1980-05-01", "female", [{"family": "Alpha"}])
    assert patient["meta"]["versionId"] == "2"

    # a value that one lake changed is changed, and the values of the other stay
    factory.build(lakes["A"], "A", [shared_person(birthDate="1981-06-02")])
    load(lakes["A"], server, "A")
    patient = get(server, path)
    assert (patient["birthDate"], patient["gender"]) == ("1981-06-02", "female")


def test_values_that_another_client_added_stay(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    factory.build(lake, "A", [with_changes(ONE, patient={"gender": "male"})])
    load(lake, server, "A")
    path = patient_path(factory, "A", ONE)
    put(server, get(server, path) | {"telecom": [{"system": "phone", "value": "1"}]})
    factory.build(lake, "A", [with_changes(ONE, patient={"gender": "male", "birthDate": "1980-05-01"})])

    load(lake, server, "A")

    patient = get(server, path)
    assert (patient["telecom"], patient["birthDate"]) == ([{"system": "phone", "value": "1"}], "1980-05-01")
    assert codes(lake, "A") == []


def test_a_second_patient_with_the_identifier_is_a_finding(
    tmp_path: Path, server: Proxy, factory: DatasetFactory
) -> None:
    lakes = [new_lake(tmp_path / name) for name in ("first", "second")]
    for lake in lakes:
        factory.build(lake, "A", [shared_person()])
    load(lakes[0], server, "A")
    put(server, external(factory, "late"))

    [done] = load(lakes[1], server, "A")

    assert done.counts["ImagingStudy"] == {"unchanged": 1}
    assert codes(lakes[1], "A") == ["duplicate-patient-on-server"]
    assert get(server, study_path(factory, "A", "1"))["subject"]["reference"].endswith(
        factory.patient_id("A", shared_person())
    )


@pytest.mark.parametrize("rule", ["patient-id", "authority"])
def test_values_stored_without_an_answer_are_recognised(
    lake: Lake, server: Proxy, factory: DatasetFactory, rule: str
) -> None:
    """The next value of the lake is then not in conflict with another client."""
    path = patient_path(factory, "A", Study("1", "P1", rule=rule))
    contributions: list[list[str | None]] = []

    def says(gender: str) -> None:
        factory.build(lake, "A", [Study("1", "P1", rule=rule, patient={"gender": gender})])

    def read_contributions() -> list[str | None]:
        rows = shared_ledger_rows(lake, server.url) if rule == "authority" else ledger_rows(lake, server.url, "A")
        opened = [one["contribution"] for one in attempts(lake) if f"{one['type']}/{one['id']}" == path]
        return [rows[path]["contribution"], *opened]

    def lost(asked: ReceivedRequest) -> Reply | None:
        if not asked.is_write_post or b'"url":"Patient' not in asked.body:
            return None
        contributions.append(read_contributions())
        return Reply(cut=True)

    says("male")
    load(lake, server, "A")
    says("other")
    server.rule = lost
    upload(["A"], lake, settings_for(server.url, retry_seconds=0))
    server.rule = lambda _: None
    there = get(server, path)["gender"]
    says("female")
    load(lake, server, "A")

    # a run that is killed while it sends leaves this
    before = [orjson.loads(text or "")["gender"] for text in contributions[0]]
    assert before == ["male", "other"]
    assert there == "other"
    assert get(server, path)["gender"] == "female"
    assert codes(lake, "A") == []
    [stored] = read_contributions()  # no attempt is open
    assert orjson.loads(stored or "")["gender"] == "female"


def test_a_shared_patient_of_a_refused_study_is_not_pruned(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    old, new = shared_person(), Study("1", "P2", rule="authority")
    factory.build(lake, "A", [old])
    load(lake, server, "A")
    factory.build(lake, "A", [new])
    server.rule = lambda asked: Reply(422) if b'"url":"ImagingStudy' in asked.body else None

    [refused] = load(lake, server, "A", prune=True)
    asked = server.request_lines("DELETE")
    server.rule = lambda _: None
    [done] = load(lake, server, "A", prune=True)

    assert refused.counts["ImagingStudy"] == {"rejected": 1}
    assert (asked, refused.removed) == ([], ())
    assert done.removed == (patient_path(factory, "A", old),)
