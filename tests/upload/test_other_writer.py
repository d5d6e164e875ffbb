"""Another client that writes a study under the lake's id: what it wrote is reported, and not deleted."""

from __future__ import annotations

import uuid
from pathlib import Path

from dicom_etl.lake.tables import Lake
from dicom_etl.stages.upload import upload
from tests.servers.hapi_server import HapiServer
from tests.support import server_content
from tests.support.proxy import ReceivedRequest, Reply, run_proxy
from tests.support.upload_lakes import (
    DatasetFactory,
    Study,
    attempts,
    ledger_rows,
    new_lake,
    settings_for,
    with_changes,
)

OTHERS = Study("1", "P1", series={"7": 1})  # the study of the other client under the same UID
KEPT = Study("kept", "P1")


def _is_study_write(asked: ReceivedRequest) -> bool:
    return asked.is_write_post and b'"resourceType":"ImagingStudy"' in asked.body


def _reason(lake: Lake, url: str, key: str) -> tuple[str, str | None]:
    row = ledger_rows(lake, url, "A")[key]
    return row["state"], row["reason"]


def test_a_concurrent_overwrite_stays_a_finding_after_later_updates(hapi: HapiServer, tmp_path: Path) -> None:
    factory, lake = DatasetFactory(f"other-{uuid.uuid4().hex[:8]}"), new_lake(tmp_path / "lake")
    study = Study("1", "P1")
    key = f"ImagingStudy/{factory.study_id('A', '1')}"
    others = factory.imaging_study("A", OTHERS)

    written: list[ReceivedRequest] = []

    def write_others_before_first(asked: ReceivedRequest) -> Reply | None:
        if _is_study_write(asked) and not written:
            written.append(asked)
            server_content.put(hapi.base_url, others)
        return None

    with run_proxy(hapi.base_url, write_others_before_first) as server:
        factory.build(lake, "A", [study])
        [first] = upload(["A"], lake, settings_for(server.url))
        reason = _reason(lake, server.url, key)
        factory.build(lake, "A", [with_changes(study, series={"1": 3})])
        [second] = upload(["A"], lake, settings_for(server.url))
        told_later = _reason(lake, server.url, key)
        server_content.put(hapi.base_url, others)
        factory.build(lake, "A", [with_changes(study, series={"1": 4})])
        upload(["A"], lake, settings_for(server.url))

        assert reason == told_later == ("stored", "concurrent-overwrite")
        assert first.findings == second.findings == 1
        assert second.counts["ImagingStudy"] == {"stored": 1}
        assert _reason(lake, server.url, key) == ("held", "changed-on-server")


def test_a_study_that_another_client_created_instead_is_not_pruned(hapi: HapiServer, tmp_path: Path) -> None:
    factory, lake = DatasetFactory(f"other-{uuid.uuid4().hex[:8]}"), new_lake(tmp_path / "lake")
    key = f"ImagingStudy/{factory.study_id('A', '1')}"
    others = factory.imaging_study("A", OTHERS)
    with run_proxy(hapi.base_url, lambda asked: Reply(503) if _is_study_write(asked) else None) as server:
        factory.build(lake, "A", [Study("1", "P1"), KEPT])
        upload(["A"], lake, settings_for(server.url, retry_seconds=0))
        sent = ledger_rows(lake, server.url, "A")[key]["state"]
        server.rule = lambda _: None
        server_content.put(hapi.base_url, others)
        upload(["A"], lake, settings_for(server.url))
        held = _reason(lake, server.url, key)
        factory.build(lake, "A", [KEPT])
        [done] = upload(["A"], lake, settings_for(server.url), prune=True)

        assert sent == "unconfirmed"
        assert held == ("held", "changed-on-server")
        assert done.removed == ()
        assert server_content.without_meta(server_content.get(hapi.base_url, key)) == others
        assert key not in ledger_rows(lake, server.url, "A")
        assert attempts(lake) == []
