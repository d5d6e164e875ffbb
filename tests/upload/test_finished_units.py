"""A unit is finished when everything of it is stored: its shared Patients, too, and nothing else must be looked at."""

import orjson
import pytest

from dicom_etl.lake.tables import Lake
from dicom_etl.stages.upload import upload
from tests.support import server_content
from tests.support.proxy import Proxy, ReceivedRequest, Reply
from tests.support.upload_lakes import DatasetFactory, Study, ledger_rows, settings_for, with_changes

SHARED = Study("1", "P1", rule="authority")
OWN = Study("1", "P1")


def paths(server: Proxy) -> list[str]:
    return [f"{asked.method} {asked.path}" for asked in server.requests]


def refuse_patients(asked: ReceivedRequest) -> Reply | None:
    """Refuse writes of Patients."""
    refusal = {"resourceType": "OperationOutcome", "issue": [{"severity": "error", "code": "invalid"}]}
    writes = asked.method in ("PUT", "POST") and not asked.path.endswith("_search")
    return Reply(422, orjson.dumps(refusal)) if writes and b'"Patient"' in asked.body else None


def test_a_deferred_shared_patient_is_sent_by_the_next_run(factory: DatasetFactory, lake: Lake, server: Proxy) -> None:
    factory.build(lake, "A", [SHARED])
    upload(["A"], lake, settings_for(server.url))
    factory.build(lake, "A", [with_changes(SHARED, patient={"gender": "female"})])

    [waiting] = upload(["A"], lake, settings_for(server.url), failed_only=True)
    [done] = upload(["A"], lake, settings_for(server.url))

    assert waiting.counts["Patient"] == {"waiting": 1}
    assert done.counts["Patient"] == {"stored": 1}
    assert server_content.get(server.target, f"Patient/{factory.patient_id('A', SHARED)}")["gender"] == "female"


def test_a_rejected_shared_patient_is_sent_by_the_next_run(factory: DatasetFactory, lake: Lake, server: Proxy) -> None:
    factory.build(lake, "A", [SHARED])
    upload(["A"], lake, settings_for(server.url))
    factory.build(lake, "A", [with_changes(SHARED, patient={"gender": "female"})])
    server.rule = refuse_patients

    [rejected] = upload(["A"], lake, settings_for(server.url))
    server.rule = lambda _: None
    [done] = upload(["A"], lake, settings_for(server.url))

    assert rejected.counts["Patient"] == {"rejected": 1}
    assert rejected.counts["ImagingStudy"] == {"unchanged": 1}
    assert done.counts["Patient"] == {"stored": 1}
    assert server_content.get(server.target, f"Patient/{factory.patient_id('A', SHARED)}")["gender"] == "female"


@pytest.mark.parametrize("prune", [False, True])
def test_orphaned_studies_do_not_keep_their_unit_unfinished(
    prune: bool, factory: DatasetFactory, lake: Lake, server: Proxy
) -> None:
    factory.build(lake, "A", [OWN, Study("2", "P1")])
    upload(["A"], lake, settings_for(server.url))
    factory.build(lake, "A", [OWN])
    [done] = upload(["A"], lake, settings_for(server.url), prune=prune)
    server.requests.clear()

    [again] = upload(["A"], lake, settings_for(server.url), prune=prune)

    assert done.counts["ImagingStudy"] == {"unchanged": 1, "deleted" if prune else "orphaned": 1}
    assert paths(server) == ["GET metadata"]
    assert again.counts["ImagingStudy"] == {"unchanged": 1} | ({} if prune else {"orphaned": 1})


def test_an_orphaned_study_on_hold_in_another_unit_is_not_pruned(
    factory: DatasetFactory, lake: Lake, server: Proxy
) -> None:
    moving = Study("2", "P1")
    factory.build(lake, "A", [OWN, moving])
    upload(["A"], lake, settings_for(server.url))
    factory.build(lake, "A", [OWN])
    upload(["A"], lake, settings_for(server.url))
    factory.build(lake, "A", [OWN, with_changes(moving, unit="sub-2", state="held")])

    [done] = upload(["A"], lake, settings_for(server.url), prune=True)

    key = f"ImagingStudy/{factory.study_id('A', '2')}"
    assert done.counts["ImagingStudy"] == {"unchanged": 1, "held": 1}
    assert done.removed == ()
    assert ledger_rows(lake, server.url, "A")[key]["reason"] == "held-study-on-server"
    assert server_content.status(server.target, key) == 200


def test_a_deferred_patient_that_moved_leaves_no_unit_unfinished(
    factory: DatasetFactory, lake: Lake, server: Proxy
) -> None:
    other = Study("2", "P2")
    factory.build(lake, "A", [OWN, other])
    upload(["A"], lake, settings_for(server.url))
    factory.build(lake, "A", [with_changes(OWN, unit="sub-2"), other])
    upload(["A"], lake, settings_for(server.url), failed_only=True)
    upload(["A"], lake, settings_for(server.url))
    server.requests.clear()

    upload(["A"], lake, settings_for(server.url))

    assert paths(server) == ["GET metadata"]
    assert f"Patient/{factory.patient_id('A', OWN)}" in ledger_rows(lake, server.url, "A", "sub-2")
