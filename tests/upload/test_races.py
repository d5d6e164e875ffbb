"""Writes of others between lookup and write, and the ledger after a request that failed then."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest

from dicom_etl.construction.assembly import remove_units
from dicom_etl.fhir_connection import get_server_name
from dicom_etl.lake.tables import Lake
from dicom_etl.stages.upload import upload
from dicom_etl.stages.verify import verify
from tests.support.proxy import Proxy, ReceivedRequest, Reply
from tests.support.upload_lakes import DatasetFactory, Study, attempts, ledger_rows, settings_for, with_changes
from tests.support.uploads import (
    ONE,
    behind_proxy,
    codes,
    delete,
    delete_ledger_rows,
    findings,
    get,
    load,
    make_external_study,
    patient_path,
    put,
    status_of,
    study_path,
    version,
)

MORE = with_changes(ONE, series={"1": 2, "2": 3})
APART = Study("2", "P2", unit="sub-2")


# -- concurrent overwrites --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("single_request_bytes", [0, 1_000_000])
@pytest.mark.parametrize("series", [{"1": 2, "2": 3}, {"1": 1}], ids=["with more", "with less"])
def test_a_replaced_version_stays_in_the_history_and_is_reported(
    lake: Lake, server: Proxy, factory: DatasetFactory, single_request_bytes: int, series: dict[str, int]
) -> None:
    factory.build(lake, "A", [ONE])
    path = study_path(factory, "A", "1")
    external = factory.imaging_study("A", with_changes(ONE, series=series))
    server.rule = quicker(server, path, external)
    settings = settings_for(server.url, single_request_bytes=single_request_bytes)

    for state in ("stored", "unchanged"):
        [done] = upload(["A"], lake, settings)

        assert done.counts["ImagingStudy"] == {state: 1}
        [found] = findings(lake, "A")
        assert found["code"] == "concurrent-overwrite"
        assert "version 2 of this lake replaced version 1 of another client" in found["message"]
        assert f"{server.url}/{path}/_history" in found["message"]
    assert without_meta(get(server, f"{path}/_history/1")) == external
    assert without_meta(get(server, path)) == factory.imaging_study("A", ONE)
    assert version(server, path) == ledger_rows(lake, server.url, "A")[path]["version"] == "2"
    assert attempts(lake) == []


@pytest.mark.parametrize("status", [422, 503])
def test_a_replaced_version_is_reported_once_the_history_is_readable(
    lake: Lake, server: Proxy, factory: DatasetFactory, status: int
) -> None:
    factory.build(lake, "A", [ONE])
    path = study_path(factory, "A", "1")
    race = quicker(server, path, factory.imaging_study("A", MORE))
    server.rule = lambda asked: Reply(status) if is_history(asked) else race(asked)
    settings = settings_for(server.url, single_request_bytes=0, retry_seconds=0)

    [failed] = upload(["A"], lake, settings)
    told = codes(lake, "A")
    server.rule = lambda _: None
    [done] = upload(["A"], lake, settings)

    assert (failed.counts["ImagingStudy"], told) == ({"unconfirmed": 1}, ["upload-unconfirmed"])
    assert done.counts["ImagingStudy"] == {"unchanged": 1}
    assert codes(lake, "A") == ["concurrent-overwrite"]
    assert "version 2 of this lake replaced version 1 of another client" in findings(lake, "A")[0]["message"]
    assert version(server, path) == "2"
    assert attempts(lake) == []


def test_a_replaced_version_is_reported_while_the_next_update_is_held(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    path, settings = study_path(factory, "A", "1"), settings_for(server.url, single_request_bytes=0, retry_seconds=0)
    factory.build(lake, "A", [ONE, APART])
    race, lost = quicker(server, path, foreign_made(factory, MORE)), lost_answer(path)
    server.rule = lambda asked: race(asked) or lost(asked)
    upload(["A"], lake, settings)
    server.rule = lambda _: None
    factory.build(lake, "A", [with_changes(ONE, series={"1": 1}), APART])

    for _ in range(2):
        [held] = upload(["A"], lake, settings)
        [found] = findings(lake, "A")
        assert held.counts["ImagingStudy"] == {"held": 1, "unchanged": 1}
        assert found["code"] == "update-removes-content"
        assert "version 2 of this lake replaced version 1 of another client" in found["message"]
    factory.build(lake, "A", [APART])
    [pruned] = upload(["A"], lake, settings, prune=True)

    assert (pruned.removed, status_of(server, path)) == ((), 200)
    assert "concurrent-overwrite" in codes(lake, "A")


def test_a_replaced_version_is_found_if_the_server_keeps_its_labels(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    """A server keeps labels over an update, so that its resource differs from what was sent."""
    factory.build(lake, "A", [ONE])
    path = study_path(factory, "A", "1")
    labels = {"tag": [{"system": "https://tags.example", "code": "teaching"}]}
    server.rule = quicker(server, path, factory.imaging_study("A", MORE) | {"meta": labels})

    [done] = load(lake, server, "A")
    [again] = load(lake, server, "A")

    assert (done.counts["ImagingStudy"], again.counts["ImagingStudy"]) == ({"stored": 1}, {"unchanged": 1})
    assert codes(lake, "A") == ["concurrent-overwrite"]
    assert get(server, path)["numberOfSeries"] == 1
    assert get(server, path)["meta"]["tag"] == labels["tag"]


def test_a_replaced_version_is_reported_without_a_history(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    factory.build(lake, "A", [ONE])
    race = quicker(server, study_path(factory, "A", "1"), factory.imaging_study("A", MORE))
    server.rule = lambda asked: Reply(405) if is_history(asked) else race(asked)

    for state in ("stored", "unchanged"):
        [done] = load(lake, server, "A")
        assert done.counts["ImagingStudy"] == {state: 1}
        assert codes(lake, "A") == ["concurrent-overwrite"]
    assert any(is_history(asked) for asked in server.requests)


@pytest.mark.parametrize("rule", ["patient-id", "authority"])
def test_a_replaced_patient_is_merged_once_it_is_readable(
    lake: Lake, server: Proxy, factory: DatasetFactory, rule: str
) -> None:
    person = with_changes(ONE, rule=rule, patient={"gender": "male"})
    factory.build(lake, "A", [person])
    path = patient_path(factory, "A", person)
    external_resource = factory.patient("A", person) | {
        "telecom": [{"system": "phone", "value": "1"}],
        "birthDate": "1980-01-01",
    }
    external_resource.pop("gender")
    race = quicker(server, path, external_resource)
    server.rule = lambda asked: Reply(500) if is_history(asked) else race(asked)
    settings = settings_for(server.url, retry_seconds=0)

    [failed] = upload(["A"], lake, settings)
    server.rule = lambda _: None
    [done] = upload(["A"], lake, settings)

    assert failed.counts["Patient"] == {"unconfirmed": 1}
    assert done.counts == {"Endpoint": {"unchanged": 1}, "ImagingStudy": {"stored": 1}, "Patient": {"stored": 1}}
    assert without_meta(get(server, path)) == external_resource | {"gender": "male"}


def test_a_study_recreated_by_another_lake_is_a_concurrent_overwrite(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    """The server had lost the study: the one that it has then is not the one that the ledger has as stored."""
    factory.build(lake, "A", [ONE])
    settings = settings_for(server.url)
    upload(["A"], lake, settings)
    path = study_path(factory, "A", "1")
    delete(server, path)
    server.rule = quicker(server, path, factory.imaging_study("A", MORE))
    verify(["A"], lake, settings, repair=True)

    for _ in range(2):
        assert load(lake, server, "A")[0].counts["ImagingStudy"] == {"unchanged": 1}
        [found] = findings(lake, "A")
        assert found["code"] == "concurrent-overwrite"
        assert "version 5 of this lake replaced version 4" in found["message"]  # HAPI gives a deletion two numbers


def test_a_study_of_another_lake_is_held_and_never_deleted(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    path, other = study_path(factory, "A", "1"), Study("2", "P1")
    put(server, foreign_made(factory, MORE))
    factory.build(lake, "A", [ONE, other])
    load(lake, server, "A")
    put(server, foreign_made(factory, with_changes(ONE, series={"1": 2, "2": 3, "3": 1})))

    [held] = load(lake, server, "A")
    assert codes(lake, "A") == ["update-removes-content"]
    assert "2 of 3 series" in findings(lake, "A")[0]["message"]
    factory.build(lake, "A", [other])
    [pruned] = load(lake, server, "A", prune=True)

    assert held.counts["ImagingStudy"] == {"held": 1, "unchanged": 1}
    assert pruned.removed == ()
    assert status_of(server, path) == 200
    assert codes(lake, "A") == []


@pytest.mark.parametrize("held_before", [False, True])
def test_a_study_that_grew_before_the_write_is_not_deleted(
    lake: Lake, server: Proxy, factory: DatasetFactory, held_before: bool
) -> None:
    path, settings = study_path(factory, "A", "1"), settings_for(server.url, single_request_bytes=0)
    put(server, foreign_made(factory, ONE))
    if held_before:
        factory.build(lake, "A", [with_changes(ONE, series={"1": 1}), APART])
        upload(["A"], lake, settings)
    factory.build(lake, "A", [with_changes(ONE, series={"1": 3}), APART])
    server.rule = quicker(server, path, foreign_made(factory, MORE))

    upload(["A"], lake, settings)
    told = codes(lake, "A")
    factory.build(lake, "A", [APART])
    [pruned] = upload(["A"], lake, settings, prune=True)

    assert told == ["update-removes-content"]
    assert pruned.removed == (patient_path(factory, "A", ONE),)
    assert get(server, path)["numberOfSeries"] == 2


@pytest.mark.parametrize("looked_at", [False, True])
def test_a_study_created_instead_of_a_lost_one_is_held_and_not_deleted(
    lake: Lake, server: Proxy, factory: DatasetFactory, looked_at: bool
) -> None:
    path, settings = study_path(factory, "A", "1"), settings_for(server.url, single_request_bytes=0, retry_seconds=0)
    factory.build(lake, "A", [ONE, APART])
    server.rule = lambda asked: Reply(503) if asked.method == "PUT" and asked.path == path else None
    upload(["A"], lake, settings)
    server.rule = lambda _: None
    put(server, foreign_made(factory, MORE))

    if looked_at:
        [held] = upload(["A"], lake, settings)
        [found] = findings(lake, "A")
        assert held.counts["ImagingStudy"] == {"held": 1, "unchanged": 1}
        assert found["code"] == "changed-on-server"
        assert "is not what this lake sent, which did not arrive" in found["message"]
    factory.build(lake, "A", [APART])
    [pruned] = upload(["A"], lake, settings, prune=True)

    assert pruned.removed == (patient_path(factory, "A", ONE),)
    assert get(server, path)["numberOfSeries"] == 2
    assert codes(lake, "A") == []


# -- requests that fail -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["a look fails", "the patient is held"])
def test_a_merged_study_stays_merged_when_nothing_could_be_sent(
    lake: Lake, server: Proxy, factory: DatasetFactory, how: str
) -> None:
    external_resource = make_external_study(factory)
    put(server, external_resource)
    person = with_changes(ONE, rule="authority")
    factory.build(lake, "A", [person])
    settings = settings_for(server.url, existing_study="merge", retry_seconds=0)
    upload(["A"], lake, settings)
    twins = [
        {
            "resourceType": "Patient",
            "id": f"{factory.name}-{n}",
            "identifier": [{"system": factory.authority, "value": "P9"}],
        }
        for n in "ab"
    ]
    if how == "a look fails":
        factory.build(lake, "A", [with_changes(person, series={"1": 3})])
        server.rule = lambda asked: Reply(500) if asked.method == "GET" and "ImagingStudy" in asked.path else None
    else:
        for one in twins:
            put(server, one)
        factory.build(lake, "A", [with_changes(person, person="P9")])

    [left] = upload(["A"], lake, settings)
    server.rule = lambda _: None
    if how != "a look fails":
        delete(server, f"Patient/{twins[0]['id']}")
    [done] = upload(["A"], lake, settings)

    assert left.counts["ImagingStudy"] == ({"failed": 1} if how == "a look fails" else {"held": 1})
    assert done.counts["ImagingStudy"] == {"external": 1}
    assert status_of(server, study_path(factory, "A", "1")) == 404
    assert ledger_rows(lake, server.url, "A")[study_path(factory, "A", "1")]["server_id"] == external_resource["id"]


SECOND: dict[str, Callable[[ReceivedRequest], Reply | None]] = {
    "cannot be looked at": lambda asked: (
        Reply(500) if asked.method == "GET" and asked.path.startswith(("ImagingStudy", "Patient")) else None
    ),
    "is not stored": lambda asked: Reply(503) if asked.is_write_post or asked.method == "PUT" else None,
    "is refused": lambda asked: Reply(422) if asked.is_write_post or asked.method == "PUT" else None,
}


@pytest.mark.parametrize("second", SECOND)
def test_an_unanswered_write_is_recognised_after_another_failure(
    lake: Lake, server: Proxy, factory: DatasetFactory, second: str
) -> None:
    def make(number: int) -> None:
        person = {"gender": ("female", "male")[number % 2], "birthDate": f"19{number}0-01-01"}
        factory.build(lake, "A", [with_changes(ONE, series={"1": number}, patient=person)])

    settings = settings_for(server.url, single_request_bytes=0, retry_seconds=0)
    rules: list[Callable[[ReceivedRequest], Reply | None]] = [
        lambda _: None,
        lambda asked: Reply(cut=True) if asked.is_write_post or asked.method == "PUT" else None,
        SECOND[second],
        lambda _: None,
    ]
    for number, server.rule in enumerate(rules, 2):
        make(number)
        [done] = upload(["A"], lake, settings)

    assert done.counts["ImagingStudy"] == done.counts["Patient"] == {"stored": 1}
    assert codes(lake, "A") == []
    assert get(server, study_path(factory, "A", "1"))["numberOfInstances"] == 5
    assert get(server, patient_path(factory, "A", ONE))["birthDate"] == "1950-01-01"


@pytest.mark.parametrize("status", [409, 412])
def test_a_study_in_constant_conflict_does_not_stop_others(
    lake: Lake, server: Proxy, factory: DatasetFactory, status: int
) -> None:
    studies = [Study(str(number), "P1") for number in range(4)]
    factory.build(lake, "A", studies)
    load(lake, server, "A")
    bad = f'"url":"{study_path(factory, "A", "2")}"'.encode()
    server.rule = lambda asked: Reply(status) if asked.is_write_post and bad in asked.body else None
    factory.build(lake, "A", [with_changes(study, series={"1": 3}) for study in studies])

    [done] = upload(["A"], lake, settings_for(server.url, retry_seconds=0))

    assert done.counts["ImagingStudy"] == {"failed": 1, "stored": 3}
    assert f"HTTP {status}" in findings(lake, "A")[0]["message"]


def test_a_study_that_leaves_an_unbuilt_unit_is_still_guarded(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    stays = Study("2", "P2")
    factory.build(lake, "A", [ONE, stays])
    load(lake, server, "A")
    path = study_path(factory, "A", "1")
    put(server, get(server, path) | {"description": "read by Dr. Roe"})
    factory.build(lake, "A", [with_changes(ONE, unit="sub-2", series={"1": 3}), stays])
    remove_units(lake, "A", {"sub-1"})

    load(lake, server, "A")

    assert codes(lake, "A") == ["changed-on-server"]
    assert get(server, path)["description"] == "read by Dr. Roe"


def test_a_study_that_moves_to_an_unbuilt_unit_is_guarded_and_counted(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    stays = Study("2", "P2")
    factory.build(lake, "A", [ONE, stays])
    load(lake, server, "A")
    path = study_path(factory, "A", "1")
    put(server, get(server, path) | {"description": "read by Dr. Roe"})
    moved = [with_changes(ONE, unit="sub-9", series={"1": 3}), stays]
    factory.build(lake, "A", moved)
    remove_units(lake, "A", {"sub-9"})

    [between] = load(lake, server, "A")
    factory.build(lake, "A", moved)
    [after] = load(lake, server, "A")

    assert between.counts["ImagingStudy"] == between.counts["Patient"] == {"unchanged": 2}
    assert after.counts["ImagingStudy"] == {"held": 1, "unchanged": 1}
    assert codes(lake, "A") == ["changed-on-server"]
    assert get(server, path)["description"] == "read by Dr. Roe"


@pytest.mark.parametrize("meanwhile", ["held", "orphaned"])
def test_a_study_that_reverts_an_unanswered_write_is_sent_again(
    lake: Lake, server: Proxy, factory: DatasetFactory, meanwhile: str
) -> None:
    path, settings = study_path(factory, "A", "1"), settings_for(server.url, single_request_bytes=0, retry_seconds=0)
    factory.build(lake, "A", [ONE, APART])
    upload(["A"], lake, settings)
    factory.build(lake, "A", [with_changes(ONE, status="registered"), APART])
    server.rule = lost_answer(path)
    upload(["A"], lake, settings)
    server.rule = lambda _: None
    factory.build(lake, "A", [APART, *([with_changes(ONE, state="held")] if meanwhile == "held" else [])])
    [left] = upload(["A"], lake, settings)
    arrived = get(server, path)["status"]
    factory.build(lake, "A", [ONE, APART])

    [done] = upload(["A"], lake, settings)

    assert (left.counts["ImagingStudy"], arrived) == ({meanwhile: 1, "unchanged": 1}, "registered")
    assert done.counts["ImagingStudy"] == {"stored": 1, "unchanged": 1}
    assert get(server, path)["status"] == "available"


def test_a_deleted_study_that_another_client_has_is_not_recreated(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    factory.build(lake, "A", [ONE])
    load(lake, server, "A")
    delete(server, study_path(factory, "A", "1"))
    put(server, make_external_study(factory))
    factory.build(lake, "A", [with_changes(ONE, series={"1": 3})])

    [done] = load(lake, server, "A")

    assert done.counts["ImagingStudy"] == {"held": 1}
    assert codes(lake, "A") == ["study-exists-on-server"]
    assert status_of(server, study_path(factory, "A", "1")) == 410


def test_a_failed_search_for_patients_does_not_affect_the_endpoint(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    factory.build(lake, "A", [with_changes(ONE, rule="authority")])
    settings = settings_for(server.url, retry_seconds=0)
    upload(["A"], lake, settings)
    delete_ledger_rows(
        lake, f"Endpoint/{factory.endpoint_id('A')}", patient_path(factory, "A", with_changes(ONE, rule="authority"))
    )
    server.rule = lambda asked: Reply(500) if asked.path.startswith("Patient") else None

    [done] = upload(["A"], lake, settings)

    assert done.counts["Endpoint"] == {"unchanged": 1}
    assert done.counts["Patient"] == {"failed": 1}
    assert done.counts["ImagingStudy"] == {"unchanged": 1}  # the ledger has it as stored and unchanged


def test_without_versions_the_content_shows_external_changes(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    path = study_path(factory, "A", "1")

    def silent(asked: ReceivedRequest) -> Reply | None:
        if asked.method == "PUT" and asked.path == path:
            put(behind_proxy(server), orjson.loads(asked.body))
            return Reply(200)
        if asked.method == "GET" and asked.path == path and status_of(behind_proxy(server), path) == 200:
            study = get(behind_proxy(server), path)
            study["meta"].pop("versionId")
            return Reply(200, orjson.dumps(study), {"Content-Type": "application/fhir+json"})
        return None

    server.rule = silent
    settings = settings_for(server.url, single_request_bytes=0)
    factory.build(lake, "A", [ONE])
    upload(["A"], lake, settings)
    factory.build(lake, "A", [with_changes(ONE, series={"1": 3})])
    [summary] = upload(["A"], lake, settings)
    put(behind_proxy(server), get(behind_proxy(server), path) | {"description": "read by Dr. Roe"})
    factory.build(lake, "A", [with_changes(ONE, series={"1": 4})])
    [done] = upload(["A"], lake, settings)

    assert summary.counts["ImagingStudy"] == {"stored": 1}
    assert done.counts["ImagingStudy"] == {"held": 1}
    assert codes(lake, "A") == ["changed-on-server"]


_KILLED = """
import sys
from dicom_etl.lake.tables import Lake
from dicom_etl.stages.upload import upload
from tests.support.upload_lakes import settings_for
upload(["A"], Lake(sys.argv[1]), settings_for(sys.argv[2]))
"""


def test_an_attempt_of_a_killed_run_is_a_finding_and_stops_no_other_run(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    factory.build(lake, "A", [ONE])
    started: list[subprocess.Popen[bytes]] = []
    tries: list[ReceivedRequest] = []

    def kills(asked: ReceivedRequest) -> Reply | None:
        if not asked.is_write_post or b'"url":"Patient' not in asked.body:
            return None
        tries.append(asked)
        if len(tries) == 2:
            started[0].kill()
        return Reply(503)

    server.rule = kills
    command = [sys.executable, "-c", _KILLED, str(lake.root), server.url]
    started.append(subprocess.Popen(command, cwd=Path(__file__).parents[2]))
    started[0].wait(60)
    left = ledger_rows(lake, server.url, "A")[patient_path(factory, "A", ONE)]
    server.rule = lambda _: None
    factory.build(lake, "A", [with_changes(ONE, state="unmade")])
    factory.build(lake, "B", [ONE])
    done = load(lake, server, "A", "B")

    assert (left["state"], left["server_id"]) == ("unconfirmed", None)
    assert done[1].counts["ImagingStudy"] == {"stored": 1}
    assert "upload-unconfirmed" in codes(lake, "A")


# -- removal ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["patient-id", "authority"])
def test_a_patient_with_a_study_on_the_server_is_not_deleted(
    lake: Lake, server: Proxy, factory: DatasetFactory, rule: str
) -> None:
    """Not every server would refuse that."""
    studies = [Study("1", "P1", rule=rule), Study("2", "P1", unit="sub-2", rule=rule)]
    factory.build(lake, "A", studies)
    load(lake, server, "A")
    bad = f'"url":"{study_path(factory, "A", "2")}"'.encode()
    server.rule = lambda asked: Reply(422) if bad in asked.body else None
    factory.build(lake, "A", [with_changes(study, person="P2") for study in studies])

    [refused] = load(lake, server, "A", prune=True)
    asked = server.request_lines("DELETE")
    [told] = [row for row in findings(lake, "A") if row["code"] == "orphaned-on-server"]
    server.rule = lambda _: None
    [done] = load(lake, server, "A", prune=True)

    assert refused.counts["ImagingStudy"] == {"rejected": 1, "stored": 1}
    assert (asked, refused.removed) == ([], ())
    assert "1 ImagingStudy" in told["message"]
    assert done.removed == (patient_path(factory, "A", studies[0]),)


@pytest.mark.parametrize("how", ["the history could not be read", "the answer was lost"])
def test_an_orphaned_concurrent_overwrite_is_not_deleted(
    lake: Lake, server: Proxy, factory: DatasetFactory, how: str
) -> None:
    path, settings = study_path(factory, "A", "1"), settings_for(server.url, single_request_bytes=0, retry_seconds=0)
    factory.build(lake, "A", [ONE, APART])
    race, lost = quicker(server, path, foreign_made(factory, MORE)), lost_answer(path)
    if how == "the answer was lost":
        server.rule = lambda asked: race(asked) or lost(asked)
    else:
        server.rule = lambda asked: Reply(500) if is_history(asked) else race(asked)
    upload(["A"], lake, settings)
    server.rule = lambda _: None
    factory.build(lake, "A", [APART])

    for _ in range(2):
        [pruned] = upload(["A"], lake, settings, prune=True)

        assert (pruned.removed, status_of(server, path)) == ((), 200)
        assert pruned.counts["ImagingStudy"] == {"orphaned": 1, "unchanged": 1}
        [found] = [row for row in findings(lake, "A") if path in row["message"]]
        assert found["code"] == "concurrent-overwrite"
        assert "version 2 of this lake replaced version 1 of another client" in found["message"]


def test_an_unanswered_study_stays_if_its_patient_becomes_undecided(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    path, settings = study_path(factory, "A", "1"), settings_for(server.url, single_request_bytes=0, retry_seconds=0)
    factory.build(lake, "A", [ONE, APART])
    server.rule = lost_answer(path)
    upload(["A"], lake, settings)
    server.rule = lambda _: None
    factory.build(lake, "A", [with_changes(ONE, state="held"), APART])

    [pruned] = upload(["A"], lake, settings, prune=True)

    assert pruned.counts["ImagingStudy"] == {"held": 1, "unchanged": 1}
    assert (pruned.removed, status_of(server, path)) == ((), 200)


def test_a_held_study_that_arrived_is_deleted_when_it_leaves_the_lake(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    path, settings = study_path(factory, "A", "1"), settings_for(server.url, single_request_bytes=0, retry_seconds=0)
    factory.build(lake, "A", [ONE, APART])
    server.rule = lost_answer(path)
    upload(["A"], lake, settings)
    server.rule = lambda _: None
    factory.build(lake, "A", [with_changes(ONE, series={"1": 1}), APART])
    upload(["A"], lake, settings)
    told = codes(lake, "A")
    factory.build(lake, "A", [APART])

    [pruned] = upload(["A"], lake, settings, prune=True)

    assert told == ["update-removes-content"]
    assert pruned.removed == (path, patient_path(factory, "A", ONE))
    assert status_of(server, path) == 410


def test_an_orphaned_study_that_returns_in_an_unbuilt_unit_stays(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    stays = Study("2", "P2")
    factory.build(lake, "A", [ONE, stays])
    load(lake, server, "A")
    factory.build(lake, "A", [stays])
    load(lake, server, "A")
    factory.build(lake, "A", [with_changes(ONE, unit="sub-9"), stays])
    remove_units(lake, "A", {"sub-9"})

    [done] = load(lake, server, "A", prune=True)

    assert done.removed == ()
    assert status_of(server, study_path(factory, "A", "1")) == 200


@pytest.mark.parametrize("then", ["restored", "deleted"])
def test_an_orphaned_overwrite_is_dropped_once_its_version_changed(
    lake: Lake, server: Proxy, factory: DatasetFactory, then: str
) -> None:
    path, settings = study_path(factory, "A", "1"), settings_for(server.url, single_request_bytes=0, retry_seconds=0)
    other, external = Study("2", "P2", unit="sub-2"), foreign_made(factory, MORE)
    factory.build(lake, "A", [ONE, other])
    server.rule = quicker(server, path, external)
    upload(["A"], lake, settings)
    server.rule = lambda _: None
    factory.build(lake, "A", [other])
    [left] = upload(["A"], lake, settings, prune=True)
    told = [row["message"] for row in findings(lake, "A") if row["message"].startswith("ImagingStudy")]
    if then == "restored":
        put(server, external)
    else:
        delete(server, path)

    [done] = upload(["A"], lake, settings, prune=True)

    assert left.counts["ImagingStudy"] == {"orphaned": 1, "unchanged": 1}
    assert ["not deleted: version 2 of this lake replaced version 1" in message for message in told] == [True]
    assert done.counts["ImagingStudy"] == {"unchanged": 1}
    assert status_of(server, path) == (200 if then == "restored" else 410)
    assert ledger_rows(lake, server.url, "A") == {}


def test_a_lock_at_the_end_of_a_prune_is_reported(
    lake: Lake, server: Proxy, factory: DatasetFactory, tmp_path: Path
) -> None:
    gone = Study("2", "P2", rule="authority")
    factory.build(lake, "A", [ONE, gone])
    load(lake, server, "A")
    factory.build(lake, "A", [with_changes(ONE, series={"1": 3})])
    other = Lake(lake.root).open()
    impatient = Lake(lake.root, 0.0, lambda _: None).open()
    name = f"shared of {get_server_name(server.url)}"
    locks = [other.lock(name, "another upload")]

    def progress(*_: Any) -> None:
        if locks:
            held.enter_context(locks.pop())

    with ExitStack() as held:
        [done] = load(impatient, server, "A", prune=True, progress=progress)

    assert done.counts["ImagingStudy"] == {"deleted": 1, "stored": 1}
    assert done.stopped is not None
    assert done.stopped.startswith(f"{name} is being written by process")


def quicker(server: Proxy, path: str, external_resource: dict[str, Any]) -> Callable[[ReceivedRequest], None]:
    """A rule by which another lake creates a resource just before the lake's arrives."""
    late: list[ReceivedRequest] = []

    def rule(asked: ReceivedRequest) -> None:
        alone = asked.method == "PUT" and asked.path == path
        if not late and (alone or (asked.is_write_post and f'"url":"{path}"'.encode() in asked.body)):
            late.append(asked)
            put(behind_proxy(server), external_resource)

    return rule


def is_history(asked: ReceivedRequest) -> bool:
    return asked.path.partition("?")[0].endswith("/_history")


def lost_answer(path: str) -> Callable[[ReceivedRequest], Reply | None]:
    """A rule by which the answers to writes of a resource do not arrive."""
    return lambda asked: Reply(cut=True) if asked.method == "PUT" and asked.path == path else None


def without_meta(resource: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in resource.items() if name != "meta"}


def foreign_made(factory: DatasetFactory, study: Study) -> dict[str, Any]:
    """A study as another lake builds it, whose Patient and Endpoint this server does not have."""
    made = factory.imaging_study("A", study) | {"subject": {"display": "somebody"}}
    made.pop("endpoint")
    return made
