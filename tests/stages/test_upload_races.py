"""What happens between our look and our write, and what a request that failed then leaves in the ledger."""

import subprocess
import sys
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest

from dicom_etl.construction.assembly import remove_units
from dicom_etl.lake.tables import Lake
from dicom_etl.server.naming import server_name
from dicom_etl.stages.upload import upload
from dicom_etl.stages.verify import verify
from tests.server.lakes import Site, Study, changed, outcomes, settings_for
from tests.server.proxy import Asked, Proxy, Reply
from tests.stages.uploads import (
    ONE,
    codes,
    findings,
    get,
    hapi_of,
    load,
    patient_path,
    put,
    status_of,
    study_path,
    their_study,
    version,
)

MORE = changed(ONE, series={"1": 2, "2": 3})
APART = Study("2", "P2", unit="sub-2")


# -- another lake is quicker ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("single_request_bytes", [0, 1_000_000])
def test_a_study_that_another_lake_made_between_the_look_and_the_write_is_not_lost(
    lake: Lake, server: Proxy, site: Site, single_request_bytes: int
) -> None:
    site.build(lake, "A", [ONE])
    path = study_path(site, "A", "1")
    theirs = site.imaging_study("A", changed(ONE, series={"1": 2, "2": 3}))
    server.rule = quicker(server, path, theirs)
    settings = settings_for(server.url, single_request_bytes=single_request_bytes)

    done = [upload(["A"], lake, settings)[0] for _ in range(2)]

    assert [one.counts["ImagingStudy"] for one in done] == [{"held": 1}] * 2
    assert [row["code"] for row in findings(lake, "A")] == ["upload-shrinks"]
    assert "1 of 2 series and 3 of 5 instances" in findings(lake, "A")[0]["message"]
    assert without_meta(get(server, path)) == theirs
    assert version(server, path) == "3"  # theirs, ours, theirs again
    assert outcomes(lake, server.url, "A")[path]["version"] == "3"

    [meant] = upload(["A"], lake, settings, prune=True)
    assert meant.counts["ImagingStudy"] == {"stored": 1}
    assert get(server, path)["numberOfSeries"] == 1


def test_a_study_with_less_that_another_lake_made_between_the_look_and_the_write_is_replaced(
    lake: Lake, server: Proxy, site: Site
) -> None:
    site.build(lake, "A", [changed(ONE, series={"1": 2, "2": 3})])
    path = study_path(site, "A", "1")
    server.rule = quicker(server, path, site.imaging_study("A", ONE))

    load(lake, server, "A")

    assert get(server, path)["numberOfSeries"] == 2
    assert outcomes(lake, server.url, "A")[path]["version"] == version(server, path) == "2"
    assert outcomes(lake, server.url, "A")[path]["state"] == "stored"
    assert codes(lake, "A") == []


FAILS: dict[str, Callable[[Asked], bool]] = {
    "its version cannot be read": lambda asked: "/_history/" in asked.path,
    "it cannot be put back": lambda asked: asked.method == "PUT" and "If-Match" in asked.headers,
}


@pytest.mark.parametrize("status", [422, 503])
@pytest.mark.parametrize("fails", FAILS)
def test_what_ours_replaced_is_put_back_by_the_next_run_if_that_failed(
    lake: Lake, server: Proxy, site: Site, fails: str, status: int
) -> None:
    site.build(lake, "A", [ONE])
    path = study_path(site, "A", "1")
    theirs = site.imaging_study("A", MORE)
    race = quicker(server, path, theirs)
    server.rule = lambda asked: Reply(status) if FAILS[fails](asked) else race(asked)
    settings = settings_for(server.url, single_request_bytes=0, retry_seconds=0)

    [failed] = upload(["A"], lake, settings)
    assert failed.counts["ImagingStudy"].keys() <= {"gave-up", "rejected"}
    assert get(server, path)["numberOfSeries"] == 1
    server.rule = lambda _: None
    [done] = upload(["A"], lake, settings)

    assert done.counts["ImagingStudy"] == {"held": 1}
    assert codes(lake, "A") == ["upload-shrinks"]
    assert without_meta(get(server, path)) == theirs


def test_what_ours_replaced_is_put_back_with_its_labels(lake: Lake, server: Proxy, site: Site) -> None:
    """A server keeps labels over an update, so that what stands there is not quite what was sent."""
    site.build(lake, "A", [ONE])
    path = study_path(site, "A", "1")
    labels = {"tag": [{"system": "https://tags.example", "code": "teaching"}]}
    server.rule = quicker(server, path, site.imaging_study("A", MORE) | {"meta": labels})

    [done] = load(lake, server, "A")

    assert done.counts["ImagingStudy"] == {"held": 1}
    assert get(server, path)["numberOfSeries"] == 2
    assert get(server, path)["meta"]["tag"] == labels["tag"]


def test_what_a_server_without_history_has_lost_is_told(lake: Lake, server: Proxy, site: Site) -> None:
    site.build(lake, "A", [ONE])
    race = quicker(server, study_path(site, "A", "1"), site.imaging_study("A", MORE))
    server.rule = lambda asked: Reply(405) if "/_history/" in asked.path else race(asked)

    for state in ("stored", "unchanged"):
        [done] = load(lake, server, "A")
        assert done.counts["ImagingStudy"] == {state: 1}
        assert codes(lake, "A") == ["written-over"]


@pytest.mark.parametrize("rule", ["patient-id", "authority"])
def test_words_that_ours_replaced_are_joined_by_the_next_run_if_they_could_not_be_read(
    lake: Lake, server: Proxy, site: Site, rule: str
) -> None:
    person = changed(ONE, rule=rule, patient={"gender": "male"})
    site.build(lake, "A", [person])
    path = patient_path(site, "A", person)
    theirs = site.patient("A", person) | {"telecom": [{"system": "phone", "value": "1"}], "birthDate": "1980-01-01"}
    theirs.pop("gender")
    race = quicker(server, path, theirs)
    server.rule = lambda asked: Reply(500) if "/_history/" in asked.path else race(asked)
    settings = settings_for(server.url, retry_seconds=0)

    [failed] = upload(["A"], lake, settings)
    server.rule = lambda _: None
    [done] = upload(["A"], lake, settings)

    assert failed.counts["Patient"] == {"gave-up": 1}
    assert done.counts == {"Endpoint": {"unchanged": 1}, "ImagingStudy": {"stored": 1}, "Patient": {"stored": 1}}
    assert without_meta(get(server, path)) == theirs | {"gender": "male"}


def test_a_study_that_another_lake_made_anew_stays_held(lake: Lake, server: Proxy, site: Site) -> None:
    """The server had lost ours: what stands there then is not what the ledger once knew as stored."""
    site.build(lake, "A", [ONE])
    settings = settings_for(server.url)
    upload(["A"], lake, settings)
    path = study_path(site, "A", "1")
    delete(server, path)
    server.rule = quicker(server, path, site.imaging_study("A", MORE))
    verify(["A"], lake, settings, repair=True)

    for _ in range(2):
        assert load(lake, server, "A")[0].counts["ImagingStudy"] == {"held": 1}
        assert codes(lake, "A") == ["upload-shrinks"]


def test_of_a_study_that_was_never_ours_the_right_reason_is_told_and_nothing_is_deleted(
    lake: Lake, server: Proxy, site: Site
) -> None:
    path, other = study_path(site, "A", "1"), Study("2", "P1")
    put(server, foreign_made(site, MORE))
    site.build(lake, "A", [ONE, other])
    load(lake, server, "A")
    put(server, foreign_made(site, changed(ONE, series={"1": 2, "2": 3, "3": 1})))

    [held] = load(lake, server, "A")
    assert codes(lake, "A") == ["upload-shrinks"]
    assert "2 of 3 series" in findings(lake, "A")[0]["message"]
    site.build(lake, "A", [other])
    [pruned] = load(lake, server, "A", prune=True)

    assert held.counts["ImagingStudy"] == {"held": 1, "unchanged": 1}
    assert pruned.removed == ()
    assert status_of(server, path) == 200
    assert codes(lake, "A") == []


@pytest.mark.parametrize("held_before", [False, True])
def test_a_study_of_another_lake_that_grew_before_our_write_does_not_go_when_ours_leaves(
    lake: Lake, server: Proxy, site: Site, held_before: bool
) -> None:
    path, settings = study_path(site, "A", "1"), settings_for(server.url, single_request_bytes=0)
    put(server, foreign_made(site, ONE))
    if held_before:
        site.build(lake, "A", [changed(ONE, series={"1": 1}), APART])
        upload(["A"], lake, settings)
    site.build(lake, "A", [changed(ONE, series={"1": 3}), APART])
    server.rule = quicker(server, path, foreign_made(site, MORE))

    upload(["A"], lake, settings)
    told = codes(lake, "A")
    site.build(lake, "A", [APART])
    [pruned] = upload(["A"], lake, settings, prune=True)

    assert told == ["upload-shrinks"]
    assert pruned.removed == (patient_path(site, "A", ONE),)
    assert get(server, path)["numberOfSeries"] == 2


def test_a_study_that_another_lake_made_where_ours_never_arrived_does_not_go_when_ours_leaves(
    lake: Lake, server: Proxy, site: Site
) -> None:
    path, settings = study_path(site, "A", "1"), settings_for(server.url, single_request_bytes=0, retry_seconds=0)
    site.build(lake, "A", [ONE, APART])
    server.rule = lambda asked: Reply(503) if asked.method == "PUT" and asked.path == path else None
    upload(["A"], lake, settings)
    server.rule = lambda _: None
    put(server, foreign_made(site, MORE))

    upload(["A"], lake, settings)
    told = codes(lake, "A")
    site.build(lake, "A", [APART])
    [pruned] = upload(["A"], lake, settings, prune=True)

    assert told == ["upload-shrinks"]
    assert pruned.removed == (patient_path(site, "A", ONE),)
    assert status_of(server, path) == 200


# -- requests that fail -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["a look fails", "the person is held"])
def test_a_study_that_was_adopted_stays_adopted_when_nothing_could_be_sent(
    lake: Lake, server: Proxy, site: Site, how: str
) -> None:
    theirs = their_study(site)
    put(server, theirs)
    person = changed(ONE, rule="authority")
    site.build(lake, "A", [person])
    settings = settings_for(server.url, existing_study="merge", retry_seconds=0)
    upload(["A"], lake, settings)
    twins = [
        {"resourceType": "Patient", "id": f"{site.name}-{n}", "identifier": [{"system": site.authority, "value": "P9"}]}
        for n in "ab"
    ]
    if how == "a look fails":
        site.build(lake, "A", [changed(person, series={"1": 3})])
        server.rule = lambda asked: Reply(500) if asked.path.startswith("ImagingStudy?") else None
    else:
        for one in twins:
            put(server, one)
        site.build(lake, "A", [changed(person, person="P9")])

    [left] = upload(["A"], lake, settings)
    server.rule = lambda _: None
    if how != "a look fails":
        delete(server, f"Patient/{twins[0]['id']}")
    [done] = upload(["A"], lake, settings)

    assert left.counts["ImagingStudy"] in ({"gave-up": 1}, {"held": 1})
    assert done.counts["ImagingStudy"] == {"linked": 1}
    assert status_of(server, study_path(site, "A", "1")) == 404
    assert outcomes(lake, server.url, "A")[study_path(site, "A", "1")]["id_on_server"] == theirs["id"]


SECOND: dict[str, Callable[[Asked], Reply | None]] = {
    "cannot be looked at": lambda asked: Reply(500) if asked.path.startswith(("ImagingStudy?", "Patient?")) else None,
    "is not taken": lambda asked: Reply(503) if asked.is_posted or asked.method == "PUT" else None,
    "is refused": lambda asked: Reply(422) if asked.is_posted or asked.method == "PUT" else None,
}


@pytest.mark.parametrize("second", SECOND)
def test_what_arrived_without_an_answer_is_known_as_ours_also_after_another_failure(
    lake: Lake, server: Proxy, site: Site, second: str
) -> None:
    def make(number: int) -> None:
        person = {"gender": ("female", "male")[number % 2], "birthDate": f"19{number}0-01-01"}
        site.build(lake, "A", [changed(ONE, series={"1": number}, patient=person)])

    settings = settings_for(server.url, single_request_bytes=0, retry_seconds=0)
    rules: list[Callable[[Asked], Reply | None]] = [
        lambda _: None,
        lambda asked: Reply(cut=True) if asked.is_posted or asked.method == "PUT" else None,
        SECOND[second],
        lambda _: None,
    ]
    for number, server.rule in enumerate(rules, 2):
        make(number)
        [done] = upload(["A"], lake, settings)

    assert done.counts["ImagingStudy"] == done.counts["Patient"] == {"stored": 1}
    assert codes(lake, "A") == []
    assert get(server, study_path(site, "A", "1"))["numberOfInstances"] == 5
    assert get(server, patient_path(site, "A", ONE))["birthDate"] == "1950-01-01"


@pytest.mark.parametrize("status", [409, 412])
def test_a_study_that_the_server_always_calls_stale_keeps_no_other_back(
    lake: Lake, server: Proxy, site: Site, status: int
) -> None:
    studies = [Study(str(number), "P1") for number in range(4)]
    site.build(lake, "A", studies)
    load(lake, server, "A")
    bad = f'"url":"{study_path(site, "A", "2")}"'.encode()
    server.rule = lambda asked: Reply(status) if asked.is_posted and bad in asked.body else None
    site.build(lake, "A", [changed(study, series={"1": 3}) for study in studies])

    [done] = upload(["A"], lake, settings_for(server.url, retry_seconds=0))

    assert done.counts["ImagingStudy"] == {"gave-up": 1, "stored": 3}
    assert f"HTTP {status}" in findings(lake, "A")[0]["message"]


def test_a_study_that_leaves_a_unit_that_is_being_built_is_still_guarded(lake: Lake, server: Proxy, site: Site) -> None:
    stays = Study("2", "P2")
    site.build(lake, "A", [ONE, stays])
    load(lake, server, "A")
    path = study_path(site, "A", "1")
    put(server, get(server, path) | {"description": "read by Dr. Roe"})
    site.build(lake, "A", [changed(ONE, unit="sub-2", series={"1": 3}), stays])
    remove_units(lake, "A", {"sub-1"})

    load(lake, server, "A")

    assert codes(lake, "A") == ["changed-on-server"]
    assert get(server, path)["description"] == "read by Dr. Roe"


def test_a_study_that_moves_to_a_unit_that_is_being_built_is_guarded_and_counted(
    lake: Lake, server: Proxy, site: Site
) -> None:
    stays = Study("2", "P2")
    site.build(lake, "A", [ONE, stays])
    load(lake, server, "A")
    path = study_path(site, "A", "1")
    put(server, get(server, path) | {"description": "read by Dr. Roe"})
    moved = [changed(ONE, unit="sub-9", series={"1": 3}), stays]
    site.build(lake, "A", moved)
    remove_units(lake, "A", {"sub-9"})

    [between] = load(lake, server, "A")
    site.build(lake, "A", moved)
    [after] = load(lake, server, "A")

    assert between.counts["ImagingStudy"] == between.counts["Patient"] == {"unchanged": 2}
    assert after.counts["ImagingStudy"] == {"held": 1, "unchanged": 1}
    assert codes(lake, "A") == ["changed-on-server"]
    assert get(server, path)["description"] == "read by Dr. Roe"


@pytest.mark.parametrize("meanwhile", ["held", "gone"])
def test_a_study_that_is_as_before_what_arrived_without_an_answer_is_sent_again(
    lake: Lake, server: Proxy, site: Site, meanwhile: str
) -> None:
    path, settings = study_path(site, "A", "1"), settings_for(server.url, single_request_bytes=0, retry_seconds=0)
    site.build(lake, "A", [ONE, APART])
    upload(["A"], lake, settings)
    site.build(lake, "A", [changed(ONE, status="registered"), APART])
    server.rule = lost_answer(path)
    upload(["A"], lake, settings)
    server.rule = lambda _: None
    site.build(lake, "A", [APART, *([changed(ONE, state="held")] if meanwhile == "held" else [])])
    [left] = upload(["A"], lake, settings)
    arrived = get(server, path)["status"]
    site.build(lake, "A", [ONE, APART])

    [done] = upload(["A"], lake, settings)

    assert (left.counts["ImagingStudy"], arrived) == ({meanwhile: 1, "unchanged": 1}, "registered")
    assert done.counts["ImagingStudy"] == {"stored": 1, "unchanged": 1}
    assert get(server, path)["status"] == "available"


def test_a_study_that_was_deleted_and_that_a_hospital_has_is_not_made_a_second_time(
    lake: Lake, server: Proxy, site: Site
) -> None:
    site.build(lake, "A", [ONE])
    load(lake, server, "A")
    delete(server, study_path(site, "A", "1"))
    put(server, their_study(site))
    site.build(lake, "A", [changed(ONE, series={"1": 3})])

    [done] = load(lake, server, "A")

    assert done.counts["ImagingStudy"] == {"held": 1}
    assert codes(lake, "A") == ["study-on-server"]
    assert status_of(server, study_path(site, "A", "1")) == 410


def test_a_look_for_patients_that_fails_leaves_the_endpoint_alone(lake: Lake, server: Proxy, site: Site) -> None:
    site.build(lake, "A", [changed(ONE, rule="authority")])
    settings = settings_for(server.url, retry_seconds=0)
    upload(["A"], lake, settings)
    lake.remove(f"outcomes/{server_name(server.url)}/shared.parquet")
    server.rule = lambda asked: Reply(500) if asked.path.startswith("Patient") else None

    [done] = upload(["A"], lake, settings)

    assert done.counts == {"Endpoint": {"unchanged": 1}, "ImagingStudy": {"unchanged": 1}, "Patient": {"gave-up": 1}}


def test_a_server_that_knows_no_versions_is_guarded_by_the_content(lake: Lake, server: Proxy, site: Site) -> None:
    path = study_path(site, "A", "1")

    def silent(asked: Asked) -> Reply | None:
        if asked.method == "PUT" and asked.path == path:
            put(hapi_of(server), orjson.loads(asked.body))
            return Reply(200)
        if asked.path.startswith("ImagingStudy?_id="):
            study = get(hapi_of(server), path)
            study["meta"].pop("versionId")
            return Reply(200, orjson.dumps({"resourceType": "Bundle", "entry": [{"resource": study}]}))
        return None

    server.rule = silent
    settings = settings_for(server.url, single_request_bytes=0)
    site.build(lake, "A", [ONE])
    upload(["A"], lake, settings)
    site.build(lake, "A", [changed(ONE, series={"1": 3})])
    [ours] = upload(["A"], lake, settings)
    put(hapi_of(server), get(hapi_of(server), path) | {"description": "read by Dr. Roe"})
    site.build(lake, "A", [changed(ONE, series={"1": 4})])
    [done] = upload(["A"], lake, settings)

    assert ours.counts["ImagingStudy"] == {"stored": 1}
    assert done.counts["ImagingStudy"] == {"held": 1}
    assert codes(lake, "A") == ["changed-on-server"]


_KILLED = """
import sys
from dicom_etl.lake.tables import Lake
from dicom_etl.stages.upload import upload
from tests.server.lakes import settings_for
upload(["A"], Lake(sys.argv[1]), settings_for(sys.argv[2]))
"""


def test_what_was_being_tried_when_a_run_was_killed_is_told_and_ends_no_other_run(
    lake: Lake, server: Proxy, site: Site
) -> None:
    site.build(lake, "A", [ONE])
    started: list[subprocess.Popen[bytes]] = []
    tries: list[Asked] = []

    def kills(asked: Asked) -> Reply | None:
        if not asked.is_posted or b'"url":"Patient' not in asked.body:
            return None
        tries.append(asked)
        if len(tries) == 2:
            started[0].kill()
        return Reply(503)

    server.rule = kills
    command = [sys.executable, "-c", _KILLED, str(lake.root), server.url]
    started.append(subprocess.Popen(command, cwd=Path(__file__).parents[2]))
    started[0].wait(60)
    left = outcomes(lake, server.url, "A")[patient_path(site, "A", ONE)]
    server.rule = lambda _: None
    site.build(lake, "A", [changed(ONE, state="unmade")])
    site.build(lake, "B", [ONE])
    done = load(lake, server, "A", "B")

    assert (left["state"], left["error"][:8]) == ("retrying", "HTTP 503")
    assert done[1].counts["ImagingStudy"] == {"stored": 1}
    assert "upload-gave-up" in codes(lake, "A")


# -- removal ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["patient-id", "authority"])
def test_a_patient_to_whom_a_study_on_the_server_refers_is_not_asked_to_go(
    lake: Lake, server: Proxy, site: Site, rule: str
) -> None:
    """Not every server would refuse that."""
    studies = [Study("1", "P1", rule=rule), Study("2", "P1", unit="sub-2", rule=rule)]
    site.build(lake, "A", studies)
    load(lake, server, "A")
    bad = f'"url":"{study_path(site, "A", "2")}"'.encode()
    server.rule = lambda asked: Reply(422) if bad in asked.body else None
    site.build(lake, "A", [changed(study, person="P2") for study in studies])

    [refused] = load(lake, server, "A", prune=True)
    asked = server.sent("DELETE")
    [told] = [row for row in findings(lake, "A") if row["code"] == "left-on-server"]
    server.rule = lambda _: None
    [done] = load(lake, server, "A", prune=True)

    assert refused.counts["ImagingStudy"] == {"rejected": 1, "stored": 1}
    assert (asked, refused.removed) == ([], ())
    assert "1 ImagingStudy" in told["message"]
    assert done.removed == (patient_path(site, "A", studies[0]),)


def test_what_ours_replaced_unseen_does_not_go_with_ours_and_its_version_is_told(
    lake: Lake, server: Proxy, site: Site
) -> None:
    path, settings = study_path(site, "A", "1"), settings_for(server.url, single_request_bytes=0, retry_seconds=0)
    site.build(lake, "A", [ONE, APART])
    race = quicker(server, path, foreign_made(site, MORE))
    server.rule = lambda asked: Reply(500) if "/_history/" in asked.path else race(asked)
    upload(["A"], lake, settings)
    server.rule = lambda _: None
    site.build(lake, "A", [APART])

    [pruned] = upload(["A"], lake, settings, prune=True)

    assert (pruned.removed, status_of(server, path)) == ((), 200)
    [told] = [row["message"] for row in findings(lake, "A") if path in row["message"]]
    assert "it replaced version 1 of another lake" in told


def test_a_study_whose_answer_was_lost_stays_when_its_person_becomes_undecided(
    lake: Lake, server: Proxy, site: Site
) -> None:
    path, settings = study_path(site, "A", "1"), settings_for(server.url, single_request_bytes=0, retry_seconds=0)
    site.build(lake, "A", [ONE, APART])
    server.rule = lost_answer(path)
    upload(["A"], lake, settings)
    server.rule = lambda _: None
    site.build(lake, "A", [changed(ONE, state="held"), APART])

    [pruned] = upload(["A"], lake, settings, prune=True)

    assert pruned.counts["ImagingStudy"] == {"held": 1, "unchanged": 1}
    assert (pruned.removed, status_of(server, path)) == ((), 200)


def test_what_arrived_without_an_answer_and_may_not_shrink_goes_when_it_leaves_the_lake(
    lake: Lake, server: Proxy, site: Site
) -> None:
    path, settings = study_path(site, "A", "1"), settings_for(server.url, single_request_bytes=0, retry_seconds=0)
    site.build(lake, "A", [ONE, APART])
    server.rule = lost_answer(path)
    upload(["A"], lake, settings)
    server.rule = lambda _: None
    site.build(lake, "A", [changed(ONE, series={"1": 1}), APART])
    upload(["A"], lake, settings)
    told = codes(lake, "A")
    site.build(lake, "A", [APART])

    [pruned] = upload(["A"], lake, settings, prune=True)

    assert told == ["upload-shrinks"]
    assert pruned.removed == (path, patient_path(site, "A", ONE))
    assert status_of(server, path) == 410


def test_a_study_that_was_gone_and_comes_back_in_a_unit_that_is_being_built_is_not_deleted(
    lake: Lake, server: Proxy, site: Site
) -> None:
    stays = Study("2", "P2")
    site.build(lake, "A", [ONE, stays])
    load(lake, server, "A")
    site.build(lake, "A", [stays])
    load(lake, server, "A")
    site.build(lake, "A", [changed(ONE, unit="sub-9"), stays])
    remove_units(lake, "A", {"sub-9"})

    [done] = load(lake, server, "A", prune=True)

    assert done.removed == ()
    assert status_of(server, study_path(site, "A", "1")) == 200


@pytest.mark.parametrize("then", ["put back", "deleted there"])
def test_what_ours_replaced_is_forgotten_once_somebody_has_seen_to_it(
    lake: Lake, server: Proxy, site: Site, then: str
) -> None:
    path, settings = study_path(site, "A", "1"), settings_for(server.url, single_request_bytes=0, retry_seconds=0)
    other, theirs = Study("2", "P2", unit="sub-2"), foreign_made(site, MORE)
    site.build(lake, "A", [ONE, other])
    race = quicker(server, path, theirs)
    server.rule = lambda asked: Reply(500) if "/_history/" in asked.path else race(asked)
    upload(["A"], lake, settings)
    server.rule = lambda _: None
    site.build(lake, "A", [other])
    [left] = upload(["A"], lake, settings, prune=True)
    told = [row["message"] for row in findings(lake, "A") if row["message"].startswith("ImagingStudy")]
    if then == "put back":
        put(server, theirs)
    else:
        delete(server, path)

    [done] = upload(["A"], lake, settings, prune=True)

    assert left.counts["ImagingStudy"] == {"gone": 1, "unchanged": 1}
    assert ["replaced version 1" in message for message in told] == [True]
    assert done.counts["ImagingStudy"] == {"unchanged": 1}
    assert status_of(server, path) == (200 if then == "put back" else 410)


def test_a_lock_that_is_held_at_the_end_of_a_prune_is_told_with_what_was_done(
    lake: Lake, server: Proxy, site: Site, tmp_path: Path
) -> None:
    gone = Study("2", "P2", rule="authority")
    site.build(lake, "A", [ONE, gone])
    load(lake, server, "A")
    site.build(lake, "A", [changed(ONE, series={"1": 3})])
    other = Lake(lake.root).open()
    impatient = Lake(lake.root, 0.0, lambda _: None).open()
    name = f"shared of {server_name(server.url)}"
    locks = [other.lock(name, "another upload")]

    def progress(*_: Any) -> None:
        if locks:
            held.enter_context(locks.pop())

    with ExitStack() as held:
        [done] = load(impatient, server, "A", prune=True, progress=progress)

    assert done.counts["ImagingStudy"] == {"deleted": 1, "stored": 1}
    assert done.stopped is not None
    assert done.stopped.startswith(f"{name} is being written by process")


def quicker(server: Proxy, path: str, theirs: dict[str, Any]) -> Callable[[Asked], None]:
    """A rule by which another lake makes a resource just before ours arrives."""
    late: list[Asked] = []

    def rule(asked: Asked) -> None:
        alone = asked.method == "PUT" and asked.path == path
        if not late and (alone or (asked.is_posted and f'"url":"{path}"'.encode() in asked.body)):
            late.append(asked)
            put(hapi_of(server), theirs)

    return rule


def lost_answer(path: str) -> Callable[[Asked], Reply | None]:
    """A rule by which the answers to writes of a resource do not arrive."""
    return lambda asked: Reply(cut=True) if asked.method == "PUT" and asked.path == path else None


def without_meta(resource: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in resource.items() if name != "meta"}


def foreign_made(site: Site, study: Study) -> dict[str, Any]:
    """A study of ours as another lake makes it, whose Patient and Endpoint this server does not have."""
    made = site.imaging_study("A", study) | {"subject": {"display": "somebody"}}
    made.pop("endpoint")
    return made


def delete(server: Proxy, path: str) -> None:
    request = urllib.request.Request(f"{server.target}/{path}", method="DELETE")
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        answer.read()
