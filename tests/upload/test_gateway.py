"""A gateway before the server that answers every search itself: with nothing found, or 200 and an error.

Another client has added a note to a study of the lake and a telephone number to its Patients; it also has a study and a
Patient under other ids that duplicate new ones of the lake. However the searches fail, nothing of that is lost,
resources in the ledger are updated, and duplicates that were hidden are reported once searches work again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from dicom_etl.fhir_client import FhirError
from dicom_etl.lake.tables import Lake
from dicom_etl.stages.upload import UploadSummary, upload
from dicom_etl.stages.verify import verify
from tests.servers.hapi_server import HapiServer
from tests.servers.medplum_server import MedplumServer
from tests.support import server_content
from tests.support.proxy import Proxy, ReceivedRequest, Reply, run_proxy
from tests.support.server_content import get, put, status, version, without_meta
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
from tests.support.uploads import codes, find_resources, make_external_study, patient_path, study_path

NOTE, PHONE = [{"text": "seen by the radiologist"}], [{"system": "phone", "value": "1"}]
SEARCH = re.compile(r"(Patient|Endpoint|ImagingStudy)(\?.*|/_search.*)?")


def answer(content: Any) -> Reply:
    return Reply(200, orjson.dumps(content), {"Content-Type": "application/fhir+json"})


ANSWERS = {
    "nothing found": answer({"resourceType": "Bundle", "type": "searchset", "total": 0}),
    "error object": answer({"error": {"code": 502, "message": "upstream request failed"}}),
    "OperationOutcome": answer(
        {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "exception"}]}
    ),
}
both = pytest.mark.parametrize("server", ["hapi", "medplum"], indirect=True)
each_assigning = pytest.mark.parametrize("server", ["hapi_assigning", "medplum_assigning"], indirect=True)
each_answer = pytest.mark.parametrize("kind", ANSWERS)


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Proxy]:
    """A shared server; that of `each_assigning` assigns ids."""
    running: HapiServer | MedplumServer = request.getfixturevalue(request.param)
    with run_proxy(running.base_url) as counted:
        yield counted


def is_search(asked: ReceivedRequest) -> bool:
    return asked.method in ("GET", "POST") and SEARCH.fullmatch(asked.path) is not None


def gateway(reply: Reply, after: int = 0) -> Callable[[ReceivedRequest], Reply | None]:
    """A rule that answers all searches but the first ones."""
    passed = 0

    def rule(asked: ReceivedRequest) -> Reply | None:
        nonlocal passed
        if not is_search(asked):
            return None
        passed += 1
        return reply if passed > after else None

    return rule


def load(
    lake: Lake, server: Proxy, factory: DatasetFactory, *, is_assigning: bool = False, **fhir: Any
) -> UploadSummary:
    fhir = {"retry_seconds": 0.5, "max_bundle_entries": 3} | fhir
    settings = settings_for(server.url, client_assigned_ids="no" if is_assigning else "auto", **fhir)
    [done] = upload(["A"], lake, settings.model_copy(update={"namespace": f"https://{factory.name}"}))
    return done


def behind(server: Proxy) -> str:
    assert server.target is not None
    return server.target


def on_server(server: Proxy, path: str) -> dict[str, Any]:
    return without_meta(get(behind(server), path))


def add_to(server: Proxy, path: str, **elements: Any) -> dict[str, Any]:
    put(behind(server), without_meta(get(behind(server), path)) | elements)
    return on_server(server, path)


# -- the lake before and after ----------------------------------------------------------------------------------------

NOTED = Study("1", "P1")
SHARED = Study("2", "P2", unit="sub-2", rule="authority")
GROWING = Study("3", "P3", unit="sub-3", series={"1": 2, "2": 2})
GROWN = [
    with_changes(NOTED, series={"1": 2, "2": 1}, patient={"gender": "male"}),
    with_changes(SHARED, series={"1": 4}, patient={"gender": "female"}),
    with_changes(GROWING, series={"1": 2, "2": 2, "3": 1}),
]
EXISTING = Study("5", "P5", unit="sub-5")  # another client has a study of this UID
KNOWN = Study("6", "P6", unit="sub-6", rule="authority")  # another client has a Patient of this identifier
NEW = Study("7", "P7", unit="sub-7")


@both
@each_answer
@pytest.mark.parametrize("after", [0, 1, 2, 4])
def test_wrong_search_results_lose_nothing_and_hide_nothing_for_long(
    lake: Lake, server: Proxy, factory: DatasetFactory, kind: str, after: int
) -> None:
    factory.build(lake, "A", [NOTED, SHARED, GROWING])
    load(lake, server, factory)
    noted = add_to(server, study_path(factory, "A", "1"), note=NOTE)
    for study in (NOTED, SHARED):
        add_to(server, patient_path(factory, "A", study), telecom=PHONE)
    external_study = make_external_study(factory) | {
        "identifier": factory.imaging_study("A", EXISTING)["identifier"][:1]
    }
    external_patient = factory.patient("A", KNOWN) | {"id": f"{factory.name}-p", "telecom": PHONE}
    for resource in (external_study, external_patient):
        put(behind(server), resource)
    factory.build(lake, "A", [*GROWN, EXISTING, KNOWN, NEW])

    server.rule = gateway(ANSWERS[kind], after)
    load(lake, server, factory)
    load(lake, server, factory)
    # resources in the ledger need no search
    for study in GROWN[1:]:
        assert on_server(server, study_path(factory, "A", study.number)) == factory.imaging_study("A", study)
    server.rule = lambda _: None
    for _ in range(2):
        load(lake, server, factory)

        assert on_server(server, study_path(factory, "A", "1")) == noted
        for study in GROWN[:2]:
            path = patient_path(factory, "A", study)
            assert on_server(server, path) == factory.patient("A", study) | {"telecom": PHONE}
        for study in (*GROWN[1:], NEW):
            assert on_server(server, study_path(factory, "A", study.number)) == factory.imaging_study("A", study)
        assert on_server(server, f"ImagingStudy/{external_study['id']}") == external_study
        assert on_server(server, f"Patient/{external_patient['id']}") == external_patient
        is_beside = status(behind(server), patient_path(factory, "A", KNOWN)) == 200
        patient = factory.patient_id("A", KNOWN) if is_beside else external_patient["id"]
        study = factory.imaging_study("A", KNOWN) | {"subject": {"reference": f"Patient/{patient}"}}
        assert on_server(server, study_path(factory, "A", "6")) == study
        assert sorted(codes(lake, "A")) == sorted(
            [
                "changed-on-server",
                "study-exists-on-server",
                "duplicate-patient-on-server" if is_beside else "external-patient-used",
            ]
        )
        assert attempts(lake) == []
        rows = {**shared_ledger_rows(lake, server.url)}
        for unit in ("sub-1", "sub-2", "sub-3", "sub-5", "sub-6", "sub-7"):
            rows |= ledger_rows(lake, server.url, "A", unit)
        for row in rows.values():
            if row["state"] == "stored" and not row["is_external"]:
                assert version(get(behind(server), f"{row['type']}/{row['server_id']}")) == row["version"]
        assert {key for key, row in rows.items() if row["state"] != "stored"} <= {
            study_path(factory, "A", "1"),
            study_path(factory, "A", "5"),
        }


# -- what a search hid ------------------------------------------------------------------------------------------------


@pytest.fixture
def hidden(server: Proxy, factory: DatasetFactory) -> dict[str, dict[str, Any]]:
    """A study and a Patient of another client, which the gateway hides."""
    resources = {
        "ImagingStudy": make_external_study(factory)
        | {"identifier": factory.imaging_study("A", KNOWN)["identifier"][:1]},
        "Patient": factory.patient("A", KNOWN) | {"id": f"{factory.name}-p"},
    }
    for resource in resources.values():
        put(behind(server), resource)
    server.rule = gateway(ANSWERS["nothing found"])
    return resources


BOTH_REPORTED = ["duplicate-patient-on-server", "study-exists-on-server"]


@both
@pytest.mark.usefixtures("hidden")
def test_hidden_resources_are_reported_after_a_change_of_the_lakes(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    for study in (KNOWN, with_changes(KNOWN, series={"1": 3}, patient={"gender": "male"})):
        factory.build(lake, "A", [study])
        load(lake, server, factory)
        assert codes(lake, "A") == []
    server.rule = lambda _: None

    load(lake, server, factory)

    assert sorted(codes(lake, "A")) == BOTH_REPORTED


@both
@pytest.mark.usefixtures("hidden")
@pytest.mark.parametrize("single_request_bytes", [0, 1_000_000])
def test_hidden_resources_are_reported_after_a_lost_answer(
    lake: Lake, server: Proxy, factory: DatasetFactory, single_request_bytes: int
) -> None:
    factory.build(lake, "A", [KNOWN])
    search = server.rule
    writes = {"PUT", "POST"}
    server.rule = lambda asked: search(asked) or (Reply(cut=True) if asked.method in writes else None)
    for _ in range(3):  # the Endpoint, the Patient, the study
        load(lake, server, factory, retry_seconds=0, single_request_bytes=single_request_bytes)
    assert status(behind(server), study_path(factory, "A", "6")) == 200
    server.rule = lambda _: None

    load(lake, server, factory)

    assert sorted(codes(lake, "A")) == BOTH_REPORTED
    assert attempts(lake) == []


@both
def test_duplicates_are_reported_as_long_as_they_exist(
    lake: Lake, server: Proxy, factory: DatasetFactory, hidden: dict[str, dict[str, Any]]
) -> None:
    factory.build(lake, "A", [KNOWN])
    load(lake, server, factory)
    server.rule = lambda _: None
    load(lake, server, factory)
    assert sorted(codes(lake, "A")) == BOTH_REPORTED

    # also after a change in the lake, and when the gateway fails again
    for number, kind in enumerate([None, "nothing found", "error object", None]):
        server.rule = gateway(ANSWERS[kind]) if kind else lambda _: None
        factory.build(
            lake, "A", [with_changes(KNOWN, series={"1": 3 + number}, patient={"birthDate": f"198{number}-01-01"})]
        )
        load(lake, server, factory)
        assert on_server(server, study_path(factory, "A", "6"))["numberOfInstances"] == 3 + number
        assert sorted(codes(lake, "A")) == BOTH_REPORTED

    for resource in hidden.values():
        server_content.delete(behind(server), f"{resource['resourceType']}/{resource['id']}")
    load(lake, server, factory)
    assert codes(lake, "A") == []


@both
@each_answer
def test_verify_reports_no_existing_resource_as_missing(
    lake: Lake, server: Proxy, factory: DatasetFactory, kind: str
) -> None:
    factory.build(lake, "A", [NOTED, SHARED])
    load(lake, server, factory)
    before = version(get(behind(server), study_path(factory, "A", "1")))
    server.rule = gateway(ANSWERS[kind])
    settings = settings_for(server.url, retry_seconds=0.5)

    if kind == "nothing found":
        verified = verify(["A"], lake, settings, repair=True)
        assert [one.counts["missing"] + one.counts["changed"] for one in verified.comparisons] == [0, 0]
        assert [one.counts["ok"] for one in verified.comparisons] == [3, 2]
    else:
        with pytest.raises(FhirError, match="answer"):
            verify(["A"], lake, settings, repair=True)

    assert version(get(behind(server), study_path(factory, "A", "1"))) == before
    server.rule = lambda _: None
    load(lake, server, factory)
    assert version(get(behind(server), study_path(factory, "A", "1"))) == before


# -- servers that assign ids ------------------------------------------------------------------------------------------


def all_of(server: Proxy, kind: str, factory: DatasetFactory) -> list[dict[str, Any]]:
    return [without_meta(resource) for resource in find_resources(server, kind, factory)]


@each_assigning
@each_answer
def test_wrong_search_results_make_no_duplicates_with_assigned_ids(
    lake: Lake, server: Proxy, factory: DatasetFactory, kind: str
) -> None:
    factory.build(lake, "A", [NOTED, SHARED, GROWING])
    load(lake, server, factory, is_assigning=True)
    noted = next(one for one in all_of(server, "ImagingStudy", factory) if factory.uid("1") in str(one["identifier"]))
    put(behind(server), noted | {"note": NOTE})
    factory.build(lake, "A", [*GROWN, NEW])
    server.rule = gateway(ANSWERS[kind])
    for _ in range(2):
        load(lake, server, factory, is_assigning=True)
    server.rule = lambda _: None

    load(lake, server, factory, is_assigning=True)

    studies = all_of(server, "ImagingStudy", factory)
    sizes = {one["identifier"][0]["value"]: (one["numberOfInstances"], one.get("note")) for one in studies}
    assert sizes == {
        f"urn:oid:{factory.uid('1')}": (2, NOTE),
        f"urn:oid:{factory.uid('2')}": (4, None),
        f"urn:oid:{factory.uid('3')}": (5, None),
        f"urn:oid:{factory.uid('7')}": (2, None),
    }
    assert (len(studies), len(all_of(server, "Patient", factory)), len(all_of(server, "Endpoint", factory))) == (
        4,
        4,
        1,
    )
    assert codes(lake, "A") == ["changed-on-server"]
    assert attempts(lake) == []


@each_assigning
def test_a_version_replaced_by_a_conditional_update_is_reported(
    lake: Lake, server: Proxy, factory: DatasetFactory, tmp_path: Path
) -> None:
    """The server finds by itself what a gateway hides from a lake without a ledger."""
    factory.build(lake, "A", [NOTED])
    load(lake, server, factory, is_assigning=True)
    [study] = all_of(server, "ImagingStudy", factory)
    put(behind(server), study | {"note": NOTE})
    server.rule = gateway(ANSWERS["nothing found"])
    fresh = new_lake(tmp_path / "fresh")
    factory.build(fresh, "A", [NOTED])

    load(fresh, server, factory, is_assigning=True)

    assert len(all_of(server, "ImagingStudy", factory)) == 1
    assert codes(fresh, "A") == ["concurrent-overwrite"]
