"""The whole upload against two servers of different make: HAPI, and Medplum's router.

They differ in nearly everything that FHIR leaves open (see `tests/servers/medplum/README.md`): versions, status and
body of a write, If-Match, the size of transactions, references to missing resources. The result of an upload does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import orjson
import pytest

from dicom_etl.lake.tables import Lake
from dicom_etl.settings import FhirSettings, Settings
from dicom_etl.stages.upload import UploadSummary, upload
from dicom_etl.stages.verify import VerificationResult, verify
from dicom_etl.stages.withdraw import withdraw
from tests.servers.hapi_server import HapiServer
from tests.servers.medplum_server import MedplumServer
from tests.support import server_content
from tests.support.datasets import make_lake, make_tree, uid
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
from tests.support.uploads import codes, find_resources, findings, make_external_study, patient_path, study_path

ONE, TWO = Study("1", "P1"), Study("2", "P2", unit="sub-2", rule="authority")
MORE = with_changes(ONE, series={"1": 2, "2": 3})
NOTE = [{"text": "seen by the radiologist"}]
PHONE = [{"system": "phone", "value": "1"}]

both = pytest.mark.parametrize("server", ["hapi", "medplum"], indirect=True)
each_assigning = pytest.mark.parametrize("assigning", ["hapi_assigning", "medplum_assigning"], indirect=True)


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Proxy]:
    """The server of a kind, with every request counted."""
    running: HapiServer | MedplumServer = request.getfixturevalue(request.param)
    with run_proxy(running.base_url) as counted:
        yield counted


@pytest.fixture
def assigning(request: pytest.FixtureRequest) -> Iterator[Proxy]:
    """A shared server that assigns ids itself."""
    running: HapiServer | MedplumServer = request.getfixturevalue(request.param)
    with run_proxy(running.base_url) as counted:
        yield counted


def load(
    lake: Lake, server: Proxy, dataset: str = "A", *, settings: Settings | None = None, **options: Any
) -> UploadSummary:
    """Upload a dataset; every request of the run is counted anew."""
    server.requests.clear()
    [done] = upload([dataset], lake, settings or settings_for(server.url), **options)
    return done


def behind(server: Proxy) -> str:
    """The server's own address, for requests that are not counted."""
    assert server.target is not None
    return server.target


def build(lake: Lake, factory: DatasetFactory, *studies: Study) -> None:
    factory.build(lake, "A", studies)


def on_server(server: Proxy, path: str) -> dict[str, Any]:
    return without_meta(get(behind(server), path))


def add_to(server: Proxy, path: str, **elements: Any) -> dict[str, Any]:
    """Add elements to a resource as another client does; returns the new resource."""
    put(behind(server), without_meta(get(behind(server), path)) | elements)
    return on_server(server, path)


def delete(server: Proxy, path: str) -> None:
    server_content.delete(behind(server), path)


def versions(server: Proxy, paths: list[str]) -> dict[str, str]:
    return {path: version(get(behind(server), path)) for path in paths}


def once(reply: Reply, matches: Callable[[ReceivedRequest], bool]) -> Callable[[ReceivedRequest], Reply | None]:
    """A rule that gives one reply to the first request that matches."""
    left = [reply]
    return lambda asked: left.pop() if left and matches(asked) else None


# -- once, twice, and with changes ------------------------------------------------------------------------------------


@both
def test_everything_is_stored_and_a_second_run_sends_nothing(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    build(lake, factory, ONE, TWO)

    done = load(lake, server)

    assert done.counts == {"Endpoint": {"stored": 1}, "ImagingStudy": {"stored": 2}, "Patient": {"stored": 2}}
    for study in (ONE, TWO):
        assert on_server(server, study_path(factory, "A", study.number)) == factory.imaging_study("A", study)
        assert on_server(server, patient_path(factory, "A", study)) == factory.patient("A", study)
    paths = [study_path(factory, "A", "1"), study_path(factory, "A", "2"), patient_path(factory, "A", ONE)]
    before = versions(server, paths)
    assert ledger_rows(lake, server.url, "A")[paths[0]]["version"] == before[paths[0]]
    assert codes(lake, "A") == []
    assert attempts(lake) == []

    again = load(lake, server)

    assert again.counts == {"Endpoint": {"unchanged": 1}, "ImagingStudy": {"unchanged": 2}, "Patient": {"unchanged": 2}}
    assert server.request_lines() == []
    assert versions(server, paths) == before


@both
def test_only_changes_are_sent_with_the_version_that_was_read(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    build(lake, factory, ONE, TWO)
    load(lake, server)
    paths = [study_path(factory, "A", "1"), study_path(factory, "A", "2")]
    before = versions(server, paths)

    for studies in (MORE, with_changes(MORE, series={"1": 2, "2": 4})):
        build(lake, factory, studies, TWO)
        done = load(lake, server)
        assert done.counts["ImagingStudy"] == {"stored": 1, "unchanged": 1}
        assert on_server(server, paths[0]) == factory.imaging_study("A", studies)

    after = versions(server, paths)
    assert after[paths[0]] != before[paths[0]]
    assert after[paths[1]] == before[paths[1]]
    assert ledger_rows(lake, server.url, "A")[paths[0]]["version"] == after[paths[0]]
    assert codes(lake, "A") == []


@both
@pytest.mark.parametrize("single_request_bytes", [0, 1_000_000])
def test_content_that_another_client_added_is_kept(
    lake: Lake, server: Proxy, factory: DatasetFactory, single_request_bytes: int
) -> None:
    settings = settings_for(server.url, single_request_bytes=single_request_bytes)
    build(lake, factory, ONE)
    load(lake, server, settings=settings)
    study, patient = study_path(factory, "A", "1"), patient_path(factory, "A", ONE)
    noted = add_to(server, study, note=NOTE)
    add_to(server, patient, telecom=PHONE)

    build(lake, factory, with_changes(MORE, patient={"gender": "female"}))
    done = load(lake, server, settings=settings)

    assert done.counts["ImagingStudy"] == {"held": 1}
    assert codes(lake, "A") == ["changed-on-server"]
    assert on_server(server, study) == noted
    assert on_server(server, patient) == factory.patient("A", ONE) | {"gender": "female", "telecom": PHONE}

    meant = load(lake, server, settings=settings, overwrite=True)
    assert meant.counts["ImagingStudy"] == {"stored": 1}
    assert on_server(server, study) == factory.imaging_study("A", MORE)


@both
def test_a_lost_answer_is_resolved_by_the_next_run(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    build(lake, factory, ONE)
    server.rule = lambda asked: Reply(cut=True) if asked.is_write_post and b"ImagingStudy" in asked.body else None
    failed = load(lake, server, settings=settings_for(server.url, retry_seconds=0))
    assert failed.counts["ImagingStudy"] == {"unconfirmed": 1}
    server.rule = lambda _: None

    done = load(lake, server)

    assert done.counts["ImagingStudy"] == {"unchanged": 1}
    assert server.request_lines("PUT") == []
    assert server.post_requests() == []
    path = study_path(factory, "A", "1")
    assert ledger_rows(lake, server.url, "A")[path]["version"] == version(get(behind(server), path))
    assert attempts(lake) == []
    assert codes(lake, "A") == []


# -- transactions that the server refuses -----------------------------------------------------------------------------


@both
@pytest.mark.parametrize("entries", [50, 51, 120, 500])
def test_transactions_of_any_size_are_stored(lake: Lake, server: Proxy, factory: DatasetFactory, entries: int) -> None:
    """Medplum accepts 50 updates in a transaction; all are sent, and refused sizes are not tried again."""
    studies = [Study(str(number), f"P{number}", unit=f"sub-{number}") for number in range(130)]
    build(lake, factory, *studies)
    settings = settings_for(server.url, max_bundle_entries=entries, single_request_bytes=1_000_000)

    done = load(lake, server, settings=settings)

    assert done.counts == {"Endpoint": {"stored": 1}, "ImagingStudy": {"stored": 130}, "Patient": {"stored": 130}}
    assert done.findings == 0
    sizes = [len(orjson.loads(asked.body)["entry"]) for asked in server.post_requests()]
    assert max(sizes) <= entries
    if "R4" in behind(server):
        # a few batches are on their way before the first refusal is known
        assert len([size for size in sizes if size > 50]) <= 6
    else:
        assert sum(sizes) == 261

    build(lake, factory, *[with_changes(study, series={"1": 3}) for study in studies])
    server.requests.clear()
    assert load(lake, server, settings=settings).counts["ImagingStudy"] == {"stored": 130}


@both
def test_one_bad_resource_does_not_shrink_transactions(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    studies = [Study(str(number), f"P{number}", unit=f"sub-{number}") for number in range(80)]
    build(lake, factory, *studies)
    bad = factory.study_id("A", "3").encode()
    refusal = Reply(400, b'{"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "invalid"}]}')
    server.rule = lambda asked: refusal if asked.method in ("POST", "PUT") and bad in asked.body else None
    settings = settings_for(
        server.url, max_bundle_entries=20, single_request_bytes=1_000_000, max_concurrent_requests=1
    )

    done = load(lake, server, settings=settings)

    assert done.counts["ImagingStudy"] == {"rejected": 1, "stored": 79}
    sizes = [
        len(orjson.loads(asked.body)["entry"]) for asked in server.post_requests() if b'"ImagingStudy"' in asked.body
    ]
    assert sizes.count(20) >= 4


@both
def test_a_resource_deleted_between_lookup_and_write_is_looked_up_again(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    """To an If-Match for a missing resource Medplum answers 404, HAPI 201."""
    build(lake, factory, ONE)
    load(lake, server)
    path = study_path(factory, "A", "1")
    build(lake, factory, MORE)
    gone: list[str] = []

    def rule(asked: ReceivedRequest) -> None:
        if asked.is_write_post and b"ImagingStudy" in asked.body and not gone:
            gone.append(path)
            delete(server, path)

    server.rule = rule
    done = load(lake, server)

    assert gone == [path]
    assert done.counts["ImagingStudy"] == {"stored": 1}
    assert on_server(server, path) == factory.imaging_study("A", MORE)
    assert attempts(lake) == []


# -- orphaned resources, withdrawal -----------------------------------------------------------------------------------


@both
def test_orphaned_resources_stay_until_prune(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    build(lake, factory, ONE, TWO)
    load(lake, server)
    study, patient = study_path(factory, "A", "2"), patient_path(factory, "A", TWO)
    build(lake, factory, ONE)

    kept = load(lake, server)
    assert kept.counts["ImagingStudy"] == {"orphaned": 1, "unchanged": 1}
    assert codes(lake, "A") == ["orphaned-on-server", "orphaned-on-server"]
    assert on_server(server, study) == factory.imaging_study("A", TWO)

    pruned = load(lake, server, prune=True)
    assert pruned.removed == (study, patient)
    assert {status(behind(server), path) for path in (study, patient)} <= {404, 410}
    assert status(behind(server), study_path(factory, "A", "1")) == 200
    assert load(lake, server).counts["ImagingStudy"] == {"unchanged": 1}


@both
def test_a_patient_of_an_external_study_is_not_pruned(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    build(lake, factory, ONE, TWO)
    load(lake, server)
    patient = patient_path(factory, "A", TWO)
    put(
        behind(server),
        make_external_study(factory, id=f"{factory.name}-x", identifier=[], subject={"reference": patient}),
    )
    build(lake, factory, ONE)

    pruned = load(lake, server, prune=True)

    assert pruned.removed == (study_path(factory, "A", "2"),)
    assert status(behind(server), patient) == 200
    assert shared_ledger_rows(lake, server.url)[patient]["state"] == "orphaned"


@both
@pytest.mark.parametrize("is_needed", [False, True])
def test_a_withdrawn_subject_is_deleted_from_the_server(
    tmp_path: Path, server: Proxy, factory: DatasetFactory, is_needed: bool
) -> None:
    """Medplum deletes resources with references to them; so these are searched for first."""
    settings = Settings(namespace=f"https://{factory.name}", fhir=FhirSettings(url=server.url, retry_seconds=5))
    tree = make_tree(tmp_path, factory.name, lake=make_lake(tmp_path))
    tree.settings = settings
    for subject in ("ada", "bob"):
        tree.write(f"sub-{subject}/1.dcm", PatientID=f"ID-{subject}")
    tree.run()
    ids = settings.resource_ids()

    def paths(subject: str) -> tuple[str, str]:
        study = ids.resource_id("ImagingStudy", tree.name, uid(f"{tree.name}/sub-{subject}"))
        patient = ids.resource_id("Patient", f"https://{factory.name}/{tree.name}/patient-id", f"ID-{subject}")
        return f"ImagingStudy/{study}", f"Patient/{patient}"

    upload([tree.name], tree.lake, settings)
    assert [status(behind(server), path) for path in (*paths("ada"), *paths("bob"))] == [200] * 4
    study, patient = paths("ada")
    if is_needed:
        put(behind(server), make_external_study(factory, subject={"reference": patient}))

    forgotten = withdraw(tree.name, "sub-ada", tree.lake, settings)

    assert status(behind(server), study) in (404, 410)
    assert [status(behind(server), path) for path in paths("bob")] == [200, 200]
    if is_needed:
        assert status(behind(server), patient) == 200
        assert forgotten.exit_code == 1
        assert any(patient in sentence for sentence in forgotten.remaining)
    else:
        assert status(behind(server), patient) in (404, 410)
        assert forgotten.exit_code == 0


# -- other clients ----------------------------------------------------------------------------------------------------


@both
def test_an_external_study_holds_the_lakes(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    external = make_external_study(factory)
    put(behind(server), external)
    build(lake, factory, ONE)

    done = load(lake, server)

    assert done.counts["ImagingStudy"] == {"held": 1}
    assert codes(lake, "A") == ["study-exists-on-server"]
    assert status(behind(server), study_path(factory, "A", "1")) in (404, 410)
    assert on_server(server, f"ImagingStudy/{external['id']}") == external


@both
def test_series_are_merged_into_an_external_study(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    external = make_external_study(factory)
    path = f"ImagingStudy/{external['id']}"
    put(behind(server), external)
    settings = settings_for(server.url, existing_study="merge")
    for study, instances in ((ONE, 2), (with_changes(ONE, series={"1": 3}), 3)):
        build(lake, factory, study)
        done = load(lake, server, settings=settings)
        assert done.counts["ImagingStudy"] == {"external": 1}
        merged = on_server(server, path)
        assert [len(series.get("instance", [])) for series in merged["series"]] == [instances, 0]
        assert {name: merged[name] for name in ("description", "subject", "status")} == {
            name: external[name] for name in ("description", "subject", "status")
        }
    assert codes(lake, "A") == ["study-merged"]
    before = version(get(behind(server), path))
    load(lake, server, settings=settings)
    assert version(get(behind(server), path)) == before
    assert status(behind(server), study_path(factory, "A", "1")) in (404, 410)


@both
def test_a_study_is_stored_beside_an_external_one(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    external = make_external_study(factory)
    put(behind(server), external)
    build(lake, factory, ONE)

    done = load(lake, server, settings=settings_for(server.url, existing_study="duplicate"))

    assert done.counts["ImagingStudy"] == {"stored": 1}
    assert codes(lake, "A") == []
    assert on_server(server, study_path(factory, "A", "1")) == factory.imaging_study("A", ONE)
    assert on_server(server, f"ImagingStudy/{external['id']}") == external


@both
def test_an_external_patient_is_used(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    shared = with_changes(ONE, rule="authority")
    external = factory.patient("A", shared) | {"id": f"{factory.name}-p", "telecom": PHONE}
    put(behind(server), external)
    build(lake, factory, shared)

    done = load(lake, server)

    assert done.counts["Patient"] == {"external": 1}
    assert codes(lake, "A") == ["external-patient-used"]
    study = on_server(server, study_path(factory, "A", "1"))
    assert study["subject"] == {"reference": f"Patient/{external['id']}"}
    assert on_server(server, f"Patient/{external['id']}") == external
    assert status(behind(server), patient_path(factory, "A", shared)) in (404, 410)


# -- verify -----------------------------------------------------------------------------------------------------------


@both
def test_verify_finds_differences_and_repairs_missing_resources(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    dataset = f"set-{factory.name}"  # its identifier is on the shared server, too
    settings = settings_for(server.url)
    factory.build(lake, dataset, [ONE, TWO, Study("3", "P3", unit="sub-3")])
    load(lake, server, dataset)
    assert verify([dataset], lake, settings).exit_code == 0
    paths = [study_path(factory, dataset, number) for number in "123"]
    delete(server, paths[0])
    noted = add_to(server, paths[1], note=NOTE)

    checked = verify([dataset], lake, settings)
    repaired = verify([dataset], lake, settings, repair=True)

    assert differences(checked) == differences(repaired) == [("changed", paths[1]), ("missing", paths[0])]
    assert checked.exit_code == 1
    assert on_server(server, paths[0]) == factory.imaging_study(dataset, ONE)
    assert on_server(server, paths[1]) == noted
    assert differences(verify([dataset], lake, settings)) == [("changed", paths[1])]


def differences(verified: VerificationResult) -> list[tuple[str, str]]:
    return sorted((found.kind, found.resource) for one in verified.comparisons for found in one.differences)


@both
def test_verify_finds_a_study_of_another_lake(
    lake: Lake, server: Proxy, factory: DatasetFactory, tmp_path: Path
) -> None:
    dataset = f"set-{factory.name}"
    factory.build(lake, dataset, [ONE])
    load(lake, server, dataset)
    other = new_lake(tmp_path / "other")
    factory.build(other, dataset, [ONE, Study("9", "P9", unit="sub-9")])
    load(other, server, dataset)

    [own, _] = verify([dataset], lake, settings_for(server.url)).comparisons

    assert [(found.kind, found.resource) for found in own.differences] == [
        ("external", study_path(factory, dataset, "9"))
    ]


# -- two lakes of one namespace ---------------------------------------------------------------------------------------


@both
def test_two_lakes_with_the_same_studies_agree(
    lake: Lake, server: Proxy, factory: DatasetFactory, tmp_path: Path
) -> None:
    other = new_lake(tmp_path / "other")
    for one in (lake, other):
        build(one, factory, ONE, TWO)
    load(lake, server)
    paths = [study_path(factory, "A", "1"), study_path(factory, "A", "2"), patient_path(factory, "A", ONE)]
    before = versions(server, paths)

    done = load(other, server)

    assert done.counts["ImagingStudy"] == {"unchanged": 2}
    assert versions(server, paths) == before
    assert ledger_rows(other, server.url, "A")[paths[0]]["version"] == before[paths[0]]
    for one in (lake, other):
        assert load(one, server).counts["ImagingStudy"] == {"unchanged": 2}
        assert codes(one, "A") == []


@both
def test_two_concurrent_lakes_with_the_same_studies_agree(
    lake: Lake, server: Proxy, factory: DatasetFactory, tmp_path: Path
) -> None:
    studies = [Study(str(number), f"P{number}", unit=f"sub-{number}") for number in range(30)]
    lakes = [lake, new_lake(tmp_path / "other")]
    for one in lakes:
        build(one, factory, *studies)
    settings = settings_for(server.url, max_bundle_entries=4)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda one: upload(["A"], one, settings), lakes))
    for one in lakes:
        [done] = upload(["A"], one, settings)
        assert done.counts["ImagingStudy"] == {"unchanged": 30}
        assert codes(one, "A") == []
        assert attempts(one) == []
    for study in studies:
        assert on_server(server, study_path(factory, "A", study.number)) == factory.imaging_study("A", study)


@both
@pytest.mark.parametrize("single_request_bytes", [0, 1_000_000])
def test_a_write_that_replaces_a_newer_one_is_reported(
    lake: Lake, server: Proxy, factory: DatasetFactory, single_request_bytes: int
) -> None:
    """There is no If-None-Match in a PUT of FHIR R4: the history shows what was replaced."""
    build(lake, factory, ONE)
    path, other = study_path(factory, "A", "1"), factory.imaging_study("A", MORE)
    written: list[str] = []

    def rule(asked: ReceivedRequest) -> None:
        if asked.method in ("PUT", "POST") and b'"series"' in asked.body and not written:
            put(behind(server), other | {"subject": {"display": "somebody"}, "endpoint": []})
            written.append(version(get(behind(server), path)))

    server.rule = rule
    settings = settings_for(server.url, single_request_bytes=single_request_bytes)
    done = load(lake, server, settings=settings)

    assert done.counts["ImagingStudy"] == {"stored": 1}
    [found] = findings(lake, "A")
    assert found["code"] == "concurrent-overwrite"
    assert written[0] in found["message"]
    assert f"{path}/_history" in found["message"]
    assert on_server(server, path) == factory.imaging_study("A", ONE)
    load(lake, server, settings=settings)
    assert codes(lake, "A") == ["concurrent-overwrite"]


@both
def test_a_patient_that_replaces_a_newer_one_is_merged_with_it(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    person = with_changes(ONE, patient={"gender": "female"})
    build(lake, factory, person)
    path = patient_path(factory, "A", person)
    written: list[str] = []

    def rule(asked: ReceivedRequest) -> None:
        if asked.method in ("PUT", "POST") and b'"gender"' in asked.body and not written:
            put(behind(server), factory.patient("A", ONE) | {"telecom": PHONE})
            written.append(path)

    server.rule = rule
    load(lake, server)

    assert written
    assert on_server(server, path) == factory.patient("A", person) | {"telecom": PHONE}


# -- servers that assign ids ------------------------------------------------------------------------------------------


class Loading(Protocol):
    def __call__(self, lake: Lake, *studies: Study, **options: Any) -> UploadSummary: ...


@pytest.fixture
def load_assigning(assigning: Proxy, factory: DatasetFactory) -> Loading:
    def run(lake: Lake, *studies: Study, **options: Any) -> UploadSummary:
        build(lake, factory, *studies)
        fhir = {name: options.pop(name) for name in ("max_bundle_entries", "retry_seconds") if name in options}
        settings = settings_for(assigning.url, client_assigned_ids="no", **fhir)
        return load(
            lake, assigning, settings=settings.model_copy(update={"namespace": f"https://{factory.name}"}), **options
        )

    return run


@each_assigning
def test_with_server_assigned_ids_everything_is_stored_once(
    lake: Lake, assigning: Proxy, load_assigning: Loading, factory: DatasetFactory, tmp_path: Path
) -> None:
    studies = [Study(str(number), f"P{number}", unit=f"sub-{number}", rule="authority") for number in range(30)]

    done = load_assigning(lake, *studies, max_bundle_entries=25)

    expected = {"Endpoint": {"stored": 1}, "ImagingStudy": {"stored": 30}, "Patient": {"stored": 30}}
    assert done.counts == expected
    assert done.findings == 0
    patients = {one["id"]: one for one in find_resources(assigning, "Patient", factory)}
    found = find_resources(assigning, "ImagingStudy", factory)
    assert (len(found), len(patients), len(find_resources(assigning, "Endpoint", factory))) == (30, 30, 1)
    uids = {f"urn:oid:{factory.uid(study.number)}": study.person for study in studies}
    for study in found:
        patient = patients[study["subject"]["reference"].removeprefix("Patient/")]
        person = uids[study["identifier"][0]["value"]]
        assert (factory.authority, person) in {(one["system"], one["value"]) for one in patient["identifier"]}

    before = {one["id"]: version(one) for one in found}
    assert load_assigning(lake, *studies).counts["ImagingStudy"] == {"unchanged": 30}
    fresh = new_lake(tmp_path / "fresh")
    assert load_assigning(fresh, *studies).counts["ImagingStudy"] == {"unchanged": 30}
    assert {one["id"]: version(one) for one in find_resources(assigning, "ImagingStudy", factory)} == before
    assert codes(fresh, "A") == []

    grown = [with_changes(studies[0], series={"1": 4}), *studies[1:]]
    assert load_assigning(lake, *grown).counts["ImagingStudy"] == {"stored": 1, "unchanged": 29}
    assert load_assigning(lake, *grown[:20], prune=True).counts["ImagingStudy"] == {"deleted": 10, "unchanged": 20}
    assert (
        len(find_resources(assigning, "ImagingStudy", factory)),
        len(find_resources(assigning, "Patient", factory)),
    ) == (20, 20)


@each_assigning
def test_with_server_assigned_ids_notes_stay_and_nothing_is_doubled(
    lake: Lake, assigning: Proxy, load_assigning: Loading, factory: DatasetFactory
) -> None:
    load_assigning(lake, ONE)
    [study], [patient] = (
        find_resources(assigning, "ImagingStudy", factory),
        find_resources(assigning, "Patient", factory),
    )
    put(behind(assigning), without_meta(study) | {"note": NOTE})
    put(behind(assigning), without_meta(patient) | {"telecom": PHONE})

    done = load_assigning(lake, with_changes(MORE, patient={"gender": "female"}))

    assert done.counts["ImagingStudy"] == {"held": 1}
    assert codes(lake, "A") == ["changed-on-server"]
    [study], [patient] = (
        find_resources(assigning, "ImagingStudy", factory),
        find_resources(assigning, "Patient", factory),
    )
    assert (study["note"], study["numberOfSeries"]) == (NOTE, 1)
    assert (patient["telecom"], patient["gender"]) == (PHONE, "female")


@each_assigning
def test_with_server_assigned_ids_a_lost_answer_makes_no_duplicate(
    lake: Lake, assigning: Proxy, load_assigning: Loading, factory: DatasetFactory
) -> None:
    assigning.rule = once(Reply(cut=True), lambda asked: asked.is_write_post and b"ImagingStudy" in asked.body)
    failed = load_assigning(lake, ONE, retry_seconds=0)
    assert failed.counts["ImagingStudy"] == {"unconfirmed": 1}

    for study, state in ((ONE, "unchanged"), (MORE, "stored")):
        assert load_assigning(lake, study).counts["ImagingStudy"] == {state: 1}
        assert codes(lake, "A") == []
    [only] = find_resources(assigning, "ImagingStudy", factory)
    assert only["numberOfSeries"] == 2
    assert attempts(lake) == []


@each_assigning
def test_with_server_assigned_ids_a_deleted_study_is_recreated(
    lake: Lake, assigning: Proxy, load_assigning: Loading, factory: DatasetFactory
) -> None:
    load_assigning(lake, ONE)
    [study] = find_resources(assigning, "ImagingStudy", factory)
    delete(assigning, f"ImagingStudy/{study['id']}")

    assert load_assigning(lake, MORE).counts["ImagingStudy"] == {"stored": 1}

    [other] = find_resources(assigning, "ImagingStudy", factory)
    assert (other["id"] == study["id"], other["numberOfSeries"]) == (False, 2)
