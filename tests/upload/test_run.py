"""Runs of the upload with a real server."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from dicom_etl.fhir_client.errors import UnreachableError, UnsuitableServerError
from dicom_etl.fhir_connection import get_server_name
from dicom_etl.lake.schemas import UPLOAD_LEDGER
from dicom_etl.lake.tables import Lake
from dicom_etl.stages.upload import NotBuiltError, UploadSummary, upload
from dicom_etl.upload import datasets
from tests.support.proxy import Proxy, ReceivedRequest, Reply, run_proxy
from tests.support.upload_lakes import (
    DatasetFactory,
    Study,
    attempts,
    ledger_rows,
    new_lake,
    query_ledger,
    settings_for,
    shared_ledger_rows,
    with_changes,
)
from tests.support.uploads import ONE, codes, findings, get, load, patient_path, put, status_of, study_path, version

ROOT = Path(__file__).parents[2]


# -- what is sent -----------------------------------------------------------------------------------------------------


def test_a_second_upload_sends_nothing_and_makes_no_duplicates(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    two = Study("2", "P2", unit="sub-2", rule="authority")
    factory.build(lake, "A", [ONE, two])

    [first] = load(lake, server, "A")
    server.requests.clear()
    [second] = load(lake, server, "A")

    assert first.counts == {"Endpoint": {"stored": 1}, "ImagingStudy": {"stored": 2}, "Patient": {"stored": 2}}
    assert second.counts == {
        "Endpoint": {"unchanged": 1},
        "ImagingStudy": {"unchanged": 2},
        "Patient": {"unchanged": 2},
    }
    assert [one.path for one in server.requests] == ["metadata"]
    for path in (study_path(factory, "A", "1"), study_path(factory, "A", "2"), f"Endpoint/{factory.endpoint_id('A')}"):
        assert version(server, path) == "1"
    for study in (ONE, two):
        assert version(server, patient_path(factory, "A", study)) == "1"
        system, value = factory.identifier("A", study)
        assert get(server, f"Patient?identifier={system}%7C{value}&_summary=count")["total"] == 1


def test_the_ledger_has_what_the_server_has(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    factory.build(lake, "A", [ONE])

    load(lake, server, "A")

    row = ledger_rows(lake, server.url, "A")[study_path(factory, "A", "1")]
    row_time = row.pop("time")
    assert row == {
        "lake_id": lake.lake_id,
        "server": get_server_name(server.url),
        "dataset": "A",
        "unit": "sub-1",
        "subject": "sub-1",
        "type": "ImagingStudy",
        "business_key": factory.uid("1"),
        "id": factory.study_id("A", "1"),
        "server_id": factory.study_id("A", "1"),
        "is_external": False,
        "hash": row["hash"],
        "server_hash": row["server_hash"],
        "version": "1",
        "etag": row["etag"],
        "contribution": None,
        "is_indexed": True,
        "state": "stored",
        "http_status": 201,
        "attempts": 1,
        "reason": None,
        "reason_text": None,
    }
    assert len(row["hash"]) == len(row["server_hash"]) == 64
    assert row_time is not None
    assert attempts(lake) == []
    assert list(shared_ledger_rows(lake, server.url)) == [f"Endpoint/{factory.endpoint_id('A')}"]
    assert codes(lake, "A") == []


def test_the_version_increases_only_if_the_content_changes(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    factory.build(lake, "A", [ONE, Study("2", "P1")])
    load(lake, server, "A")

    factory.build(lake, "A", [with_changes(ONE, series={"1": 3}), Study("2", "P1")])
    [done] = load(lake, server, "A")

    assert done.counts["ImagingStudy"] == {"stored": 1, "unchanged": 1}
    assert version(server, study_path(factory, "A", "1")) == "2"
    assert version(server, study_path(factory, "A", "2")) == "1"
    assert version(server, patient_path(factory, "A", ONE)) == "1"
    assert ledger_rows(lake, server.url, "A")[study_path(factory, "A", "1")]["version"] == "2"


def test_many_studies_are_sent_in_few_requests(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    factory.build(lake, "A", [Study(str(n), f"P{n}", unit=f"sub-{n}") for n in range(60)])

    [done] = load(lake, server, "A")

    assert done.counts["ImagingStudy"] == {"stored": 60}
    assert len(server.post_requests()) == 1 + 3 + 3  # Endpoint; Patients and ImagingStudies by twenty-five
    # the search for existing ones, and the one that confirms the new ones
    assert len(server.request_lines("GET")) == 1 + 3 + 3 + 3


def test_patients_are_sent_shortly_before_their_studies(
    lake: Lake, server: Proxy, factory: DatasetFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Units are uploaded in groups of four; patients have studies in several units, also of two groups."""
    monkeypatch.setattr(datasets, "GROUP_UNITS", 4)
    factory.build(lake, "A", [Study(str(n), f"P{n // 3}", unit=f"sub-{n:02}") for n in range(20)])
    settings = settings_for(server.url, max_concurrent_requests=2, max_bundle_entries=2)

    [done] = upload(["A"], lake, settings)
    kinds = [b'"url":"Patient' in asked.body for asked in server.post_requests()[1:]]  # after the Endpoint's
    [again] = upload(["A"], lake, settings)

    assert done.counts == {"Endpoint": {"stored": 1}, "ImagingStudy": {"stored": 20}, "Patient": {"stored": 7}}
    assert again.counts["ImagingStudy"] == {"unchanged": 20}
    assert kinds[0]
    assert len(kinds) >= 4 + 10  # seven Patients, twenty studies
    assert any(kinds[kinds.index(False) :])  # not all Patients of a large dataset come first
    rows = [row for n in range(20) for row in ledger_rows(lake, server.url, "A", f"sub-{n:02}").values()]
    assert [row["version"] for row in rows] == ["1"] * (20 + 7)


def test_without_a_server_the_files_are_the_result(lake: Lake, factory: DatasetFactory) -> None:
    factory.build(lake, "A", [ONE])

    assert upload(["A"], lake, settings_for(None)) == [UploadSummary("A", None)]
    assert not lake.exists("upload_ledger")


def test_a_dataset_that_was_not_built_is_an_error(lake: Lake, server: Proxy) -> None:
    with pytest.raises(NotBuiltError, match="dataset A has no resources yet; build it first"):
        load(lake, server, "A")
    assert server.requests == []


def test_names_with_blanks_and_slashes_can_be_uploaded(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    study = Study("1", "P1", unit="sub 1/ä")
    factory.build(lake, "Brust / 2024", [study])

    [done] = load(lake, server, "Brust / 2024")
    [again] = load(lake, server, "Brust / 2024")
    factory.build(lake, "Brust / 2024", [Study("2", "P2")])
    load(lake, server, "Brust / 2024")

    assert done.counts["ImagingStudy"] == {"stored": 1}
    assert again.counts["ImagingStudy"] == {"unchanged": 1}
    assert [row["unit"] for row in findings(lake, "Brust / 2024")] == ["sub 1/ä", "sub 1/ä"]


# -- a server that is busy --------------------------------------------------------------------------------------------


def test_concurrency_falls_on_a_busy_server_and_rises_again(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    factory.build(lake, "A", [Study(str(n), f"P{n}", unit=f"sub-{n}") for n in range(40)])
    busy = iter([Reply(429, headers={"Retry-After": "0"})] * 4)
    server.rule = lambda asked: next(busy, None) if asked.is_write_post else None

    [done] = upload(["A"], lake, settings_for(server.url, max_concurrent_requests=4, max_bundle_entries=2))

    assert done.counts["ImagingStudy"] == {"stored": 40}
    assert ledger_rows(lake, server.url, "A", "sub-39")[study_path(factory, "A", "39")]["version"] == "1"


# -- no content is lost -----------------------------------------------------------------------------------------------


def test_an_update_that_removes_content_is_held_until_prune(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    path = study_path(factory, "A", "1")
    factory.build(lake, "A", [with_changes(ONE, series={"1": 2, "2": 3})])
    load(lake, server, "A")
    factory.build(lake, "A", [with_changes(ONE, series={"1": 1})])

    [held] = load(lake, server, "A")
    [found] = findings(lake, "A")
    kept = get(server, path)["numberOfInstances"]
    [pruned] = load(lake, server, "A", prune=True)

    assert held.counts["ImagingStudy"] == {"held": 1}
    assert found["code"] == "update-removes-content"
    assert "the update would remove 1 of 2 series and 4 of 5 instances" in found["message"]
    assert kept == 5
    assert pruned.counts["ImagingStudy"] == {"stored": 1}
    assert get(server, path)["numberOfInstances"] == 1
    assert codes(lake, "A") == []


def test_a_study_that_is_complete_again_is_no_longer_held(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    factory.build(lake, "A", [ONE])
    load(lake, server, "A")
    factory.build(lake, "A", [with_changes(ONE, series={"1": 1})])
    load(lake, server, "A")
    factory.build(lake, "A", [ONE])

    [done] = load(lake, server, "A")

    assert done.counts["ImagingStudy"] == {"unchanged": 1}
    assert codes(lake, "A") == []
    assert version(server, study_path(factory, "A", "1")) == "1"


def test_a_new_lake_with_fewer_instances_removes_nothing(
    tmp_path: Path, server: Proxy, factory: DatasetFactory
) -> None:
    full, part = new_lake(tmp_path / "full"), new_lake(tmp_path / "part")
    factory.build(full, "A", [with_changes(ONE, series={"1": 5})])
    load(full, server, "A")
    factory.build(part, "A", [with_changes(ONE, series={"1": 1})])

    [held] = load(part, server, "A")

    assert held.counts["ImagingStudy"] == {"held": 1}
    assert get(server, study_path(factory, "A", "1"))["numberOfInstances"] == 5


def test_orphaned_resources_stay_on_the_server_until_prune(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    gone = Study("2", "P2", unit="sub-2", rule="authority")
    own = Study("3", "P3", unit="sub-3")
    factory.build(lake, "A", [ONE, gone, own])
    load(lake, server, "A")
    factory.build(lake, "A", [ONE])
    paths = [
        f"ImagingStudy/{factory.study_id('A', '2')}",
        f"ImagingStudy/{factory.study_id('A', '3')}",
        patient_path(factory, "A", gone),
        patient_path(factory, "A", own),
    ]

    for _ in range(2):
        [left] = load(lake, server, "A")
        assert codes(lake, "A") == ["orphaned-on-server"] * 4
        assert left.counts["ImagingStudy"] == {"orphaned": 2, "unchanged": 1}
    server.requests.clear()
    [listed] = load(lake, server, "A", prune=True, dry_run=True)
    assert server.request_lines("PUT", "POST", "DELETE") == []
    there = [status_of(server, path) for path in paths]
    [pruned] = load(lake, server, "A", prune=True)

    assert there == [200] * 4
    assert listed.removed == pruned.removed == tuple(sorted(paths))
    assert listed.counts["ImagingStudy"] == {"unchanged": 1, "would-delete": 2}
    assert pruned.counts["ImagingStudy"] == {"unchanged": 1, "deleted": 2}
    assert [status_of(server, path) for path in paths] == [410] * 4
    assert status_of(server, study_path(factory, "A", "1")) == 200
    assert codes(lake, "A") == []
    exported = lake.read(UPLOAD_LEDGER, ["unit"], server=get_server_name(server.url), dataset="A")["unit"].to_pylist()
    assert sorted(map(str, exported)) == ["None", "sub-1", "sub-1"]  # the Endpoint; the study and its Patient


def test_a_study_that_changes_patient_orphans_the_old_one(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    factory.build(lake, "A", [ONE])
    load(lake, server, "A")
    right = with_changes(ONE, person="P9")
    factory.build(lake, "A", [right])

    [done] = load(lake, server, "A")

    assert done.counts == {
        "Endpoint": {"unchanged": 1},
        "ImagingStudy": {"stored": 1},
        "Patient": {"orphaned": 1, "stored": 1},
    }
    assert get(server, study_path(factory, "A", "1"))["subject"]["reference"] == patient_path(factory, "A", right)
    assert status_of(server, patient_path(factory, "A", ONE)) == 200
    [found] = findings(lake, "A")
    assert (found["code"], found["message"]) == ("orphaned-on-server", patient_path(factory, "A", ONE))


def test_a_patient_with_other_references_is_not_deleted(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    factory.build(lake, "A", [ONE])
    load(lake, server, "A")
    patient = patient_path(factory, "A", ONE)
    put(
        server,
        {
            "resourceType": "Observation",
            "id": f"{factory.name}-o",
            "status": "final",
            "code": {"text": "weight"},
            "subject": {"reference": patient},
        },
    )
    factory.build(lake, "A", [with_changes(ONE, person="P9")])

    [done] = load(lake, server, "A", prune=True)

    assert done.counts["Patient"] == {"orphaned": 1, "stored": 1}
    assert done.removed == ()
    assert status_of(server, patient) == 200
    [found] = findings(lake, "A")
    assert found["code"] == "orphaned-on-server"
    assert "not deleted: HTTP 409" in found["message"]


def test_a_study_that_becomes_held_stays_with_its_patient(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    factory.build(lake, "A", [ONE])
    load(lake, server, "A")
    factory.build(lake, "A", [with_changes(ONE, state="held")])

    [done] = load(lake, server, "A", prune=True)

    assert done.counts["ImagingStudy"] == {"held": 1}
    messages = sorted((row["code"], row["message"].partition("/")[0]) for row in findings(lake, "A"))
    assert messages == [
        ("held-study-on-server", "ImagingStudy"),
        ("orphaned-on-server", "Endpoint"),
        ("orphaned-on-server", "Patient"),
    ]
    assert status_of(server, study_path(factory, "A", "1")) == status_of(server, patient_path(factory, "A", ONE)) == 200


def test_a_study_that_can_no_longer_be_built_is_held_not_orphaned(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    factory.build(lake, "A", [ONE])
    load(lake, server, "A")
    factory.build(lake, "A", [with_changes(ONE, state="unmade")])

    [done] = load(lake, server, "A", prune=True)

    assert done.counts["ImagingStudy"] == {"held": 1}
    assert done.removed == ()
    assert "held-study-on-server" in codes(lake, "A")
    assert status_of(server, study_path(factory, "A", "1")) == status_of(server, patient_path(factory, "A", ONE)) == 200


def test_a_study_that_moved_to_another_unit_is_neither_orphaned_nor_new(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    factory.build(lake, "A", [ONE])
    load(lake, server, "A")
    factory.build(lake, "A", [with_changes(ONE, unit="sub-9")])

    [done] = load(lake, server, "A", prune=True)

    assert done.removed == ()
    assert codes(lake, "A") == []
    assert version(server, study_path(factory, "A", "1")) == "1"
    assert version(server, patient_path(factory, "A", ONE)) == "1"
    assert ledger_rows(lake, server.url, "A", "sub-1") == {}
    assert ledger_rows(lake, server.url, "A", "sub-9").keys() == {
        study_path(factory, "A", "1"),
        patient_path(factory, "A", ONE),
    }


def test_a_dry_run_changes_nothing(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    factory.build(lake, "A", [ONE, Study("2", "P2", unit="sub-2", rule="authority")])

    [dry] = load(lake, server, "A", dry_run=True)

    assert dry.counts == {
        "Endpoint": {"would-send": 1},
        "ImagingStudy": {"would-send": 2},
        "Patient": {"would-send": 2},
    }
    assert server.request_lines("PUT", "DELETE") == []
    assert server.post_requests() == []
    assert not lake.exists("upload_ledger")
    assert query_ledger(lake, "SELECT * FROM resources") == query_ledger(lake, "SELECT * FROM units") == []
    assert attempts(lake) == []
    assert not lake.exists("findings/upload")


def test_a_dry_run_counts_studies_of_all_units_of_a_patient(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    factory.build(lake, "A", [Study(str(n), "P1", unit=f"sub-{n}") for n in range(6)])
    settings = settings_for(server.url, max_concurrent_requests=1, max_bundle_entries=1)

    [dry] = upload(["A"], lake, settings, dry_run=True)

    assert dry.counts == {
        "Endpoint": {"would-send": 1},
        "ImagingStudy": {"would-send": 6},
        "Patient": {"would-send": 1},
    }


# -- refusals and failures --------------------------------------------------------------------------------------------


def test_one_bad_resource_among_many_is_the_only_rejected_one(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    studies = [Study(str(n), "P1") for n in range(10)]
    studies[3] = with_changes(studies[3], status="nonsense")
    studies[7] = with_changes(studies[7], unit="sub-7", person="P7", patient={"gender": "nonsense"})
    factory.build(lake, "A", studies)

    [done] = load(lake, server, "A")

    assert done.counts["ImagingStudy"] == {"rejected": 2, "stored": 8}
    assert done.counts["Patient"] == {"rejected": 1, "stored": 1}
    row = ledger_rows(lake, server.url, "A")[study_path(factory, "A", "3")]
    assert (row["state"], row["http_status"], row["version"]) == ("rejected", 400, None)
    assert "Unknown ImagingStudyStatus code 'nonsense'" in row["reason_text"]
    blocked = ledger_rows(lake, server.url, "A", "sub-7")[study_path(factory, "A", "7")]
    assert blocked["reason_text"] == f"not sent, because the server rejected {patient_path(factory, 'A', studies[7])}"
    assert codes(lake, "A") == ["upload-rejected"] * 3


def test_one_invalid_study_in_a_thousand_is_the_only_rejected_one(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    studies = [Study(str(n), f"P{n // 100}", unit=f"sub-{n // 100}", series={"1": 1}) for n in range(1000)]
    studies[617] = with_changes(studies[617], status="nonsense")
    factory.build(lake, "A", studies)

    [done] = upload(["A"], lake, settings_for(server.url, max_bundle_entries=50))

    assert done.counts["ImagingStudy"] == {"rejected": 1, "stored": 999}
    row = ledger_rows(lake, server.url, "A", "sub-6")[study_path(factory, "A", "617")]
    assert (row["state"], row["http_status"]) == ("rejected", 400)
    assert "Unknown ImagingStudyStatus code 'nonsense'" in row["reason_text"]
    assert codes(lake, "A") == ["upload-rejected"]


def test_failed_only_sends_only_what_failed(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    bad = Study("2", "P2", unit="sub-2", status="nonsense")
    factory.build(lake, "A", [ONE, bad])
    load(lake, server, "A")
    factory.build(lake, "A", [with_changes(ONE, series={"1": 5}), with_changes(bad, status="available")])

    [done] = load(lake, server, "A", failed_only=True)
    [rest] = load(lake, server, "A")

    assert done.counts["ImagingStudy"] == {"stored": 1, "waiting": 1}
    assert rest.counts["ImagingStudy"] == {"stored": 1, "unchanged": 1}
    assert version(server, study_path(factory, "A", "1")) == "2"


@pytest.mark.parametrize("rule", ["patient-id", "authority"])
def test_failed_only_sends_a_new_patient_of_a_failed_study(
    lake: Lake, server: Proxy, factory: DatasetFactory, rule: str
) -> None:
    bad = with_changes(ONE, rule=rule, status="nonsense")
    factory.build(lake, "A", [bad])
    load(lake, server, "A")
    fixed = with_changes(bad, status="available", person="P9")
    factory.build(lake, "A", [fixed])

    [done] = load(lake, server, "A", failed_only=True)

    assert done.counts["ImagingStudy"] == {"stored": 1}
    assert done.counts["Patient"] == {"orphaned": 1, "stored": 1}
    assert get(server, study_path(factory, "A", "1"))["subject"]["reference"] == patient_path(factory, "A", fixed)


def test_an_unreachable_server_loses_nothing(lake: Lake, factory: DatasetFactory) -> None:
    factory.build(lake, "A", [ONE])

    with pytest.raises(UnreachableError, match="cannot be reached"):
        load(lake, Proxy("http://127.0.0.1:1/fhir"), "A")
    assert not lake.exists("upload_ledger")


def test_nothing_is_sent_to_a_server_of_another_fhir_version(lake: Lake, factory: DatasetFactory) -> None:
    statement = {"resourceType": "CapabilityStatement", "fhirVersion": "5.0.0"}
    factory.build(lake, "A", [ONE])

    with run_proxy(rule=lambda _: Reply(200, orjson.dumps(statement))) as other:
        with pytest.raises(UnsuitableServerError, match=r"has FHIR version 5\.0\.0"):
            load(lake, other, "A")
        assert [one.path for one in other.requests] == ["metadata"]


def test_after_an_outage_the_next_run_sends_the_rest(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    factory.build(lake, "A", [Study(str(n), f"P{n}", unit=f"sub-{n}") for n in range(30)])
    bundles: list[ReceivedRequest] = []

    def goes_away(asked: ReceivedRequest) -> Reply | None:
        if asked.is_write_post:
            bundles.append(asked)
        return Reply(503) if len(bundles) > 5 else None

    server.rule = goes_away
    [cut] = upload(
        ["A"], lake, settings_for(server.url, max_concurrent_requests=2, max_bundle_entries=10, retry_seconds=0)
    )
    messages = set(codes(lake, "A"))
    server.rule = lambda _: None
    [rest] = load(lake, server, "A")

    assert cut.unreachable
    assert cut.stopped is not None
    states = dict(cut.counts["ImagingStudy"])
    assert (states.pop("stored"), sum(states.values())) == (10, 20)
    # the answer 503 does not say whether anything was stored; what was not even sent has failed
    assert states.keys() <= {"failed", "unconfirmed"}
    assert "unconfirmed" in states
    assert messages <= {"upload-failed", "upload-unconfirmed"}
    assert rest.counts["ImagingStudy"] == {"stored": 20, "unchanged": 10}
    assert not rest.unreachable
    assert codes(lake, "A") == []
    assert attempts(lake) == []
    assert {version(server, study_path(factory, "A", str(n))) for n in range(30)} == {"1"}


def test_requests_to_a_busy_server_are_retried(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    factory.build(lake, "A", [ONE])
    refusals = iter([Reply(429, headers={"Retry-After": "0"}), Reply(503)])

    server.rule = lambda asked: next(refusals, None) if asked.is_write_post else None
    [done] = load(lake, server, "A")

    assert done.counts["ImagingStudy"] == {"stored": 1}
    assert shared_ledger_rows(lake, server.url)[f"Endpoint/{factory.endpoint_id('A')}"]["attempts"] == 3


def test_a_lost_answer_makes_no_second_version(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    factory.build(lake, "A", [ONE])
    lost = iter([Reply(cut=True)] * 3)

    server.rule = lambda asked: next(lost, None) if asked.is_write_post else None
    [done] = load(lake, server, "A")

    assert done.counts["ImagingStudy"] == {"stored": 1}
    assert version(server, study_path(factory, "A", "1")) == "1"
    assert version(server, patient_path(factory, "A", ONE)) == "1"


def test_a_lost_ledger_makes_no_second_version(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    two = Study("2", "P2", unit="sub-2", rule="authority")
    factory.build(lake, "A", [ONE, two])
    load(lake, server, "A")
    Path(lake.root, "ledger.sqlite").unlink()

    [done] = load(lake, server, "A")

    assert done.counts["ImagingStudy"] == {"unchanged": 2}
    for path in (study_path(factory, "A", "1"), patient_path(factory, "A", ONE), patient_path(factory, "A", two)):
        assert version(server, path) == "1"
    assert ledger_rows(lake, server.url, "A")[study_path(factory, "A", "1")]["version"] == "1"


_KILLED = """
import sys
from dicom_etl.lake.tables import Lake
from dicom_etl.stages.upload import upload
from tests.support.upload_lakes import settings_for
upload(["A"], Lake(sys.argv[1]), settings_for(sys.argv[2], max_concurrent_requests=1, max_bundle_entries=10))
"""


def test_a_killed_run_is_completed_by_the_next(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    factory.build(lake, "A", [Study(str(n), f"P{n}", unit=f"sub-{n}") for n in range(30)])
    started: list[subprocess.Popen[bytes]] = []
    bundles: list[ReceivedRequest] = []

    def kills(asked: ReceivedRequest) -> Reply | None:
        bundles.extend([asked] if asked.is_write_post else [])
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
    assert {version(server, study_path(factory, "A", str(n))) for n in range(30)} == {"1"}
    assert lake.list_names(f"upload_ledger/{get_server_name(server.url)}") == ["A.parquet"]
    assert attempts(lake) == []


def test_a_wrong_token_stops_the_upload_and_is_not_in_the_findings(
    lake: Lake, server: Proxy, factory: DatasetFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def guarded(asked: ReceivedRequest) -> Reply | None:
        open_to_all = asked.path == "metadata" or asked.headers.get("Authorization") == "Bearer open-sesame"
        return None if open_to_all else Reply(401)

    server.rule = guarded
    factory.build(lake, "A", [ONE])

    monkeypatch.setenv("DICOM_ETL_FHIR_TOKEN", "close-sesame")
    [refused] = load(lake, server, "A")
    messages = orjson.dumps(findings(lake, "A")).decode()
    monkeypatch.setenv("DICOM_ETL_FHIR_TOKEN", "open-sesame")
    [done] = load(lake, server, "A")

    assert refused.counts == {k: {"failed": 1} for k in ("Endpoint", "ImagingStudy", "Patient")}
    assert refused.stopped is not None
    assert "HTTP 401" in refused.stopped
    assert not refused.unreachable
    assert "close-sesame" not in messages + refused.stopped
    assert done.counts == {k: {"stored": 1} for k in ("Endpoint", "ImagingStudy", "Patient")}


def test_two_servers_have_two_ledgers(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    factory.build(lake, "A", [ONE])
    load(lake, server, "A")

    with run_proxy(server.url) as other:
        [done] = load(lake, other, "A")
        assert done.counts["ImagingStudy"] == {"unchanged": 1}  # the other address is the same server
        assert lake.list_names("upload_ledger") == sorted(get_server_name(one.url) for one in (server, other))


def test_progress_counts_units(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    factory.build(lake, "A", [Study(str(n), f"P{n}", unit=f"sub-{n}") for n in range(3)])
    steps: list[tuple[str, int, int]] = []

    load(lake, server, "A", progress=lambda *step: steps.append(step))

    assert steps == [("upload A", 0, 3), ("upload A", 3, 3)]  # three small units are one group
