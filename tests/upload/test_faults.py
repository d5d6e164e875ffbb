"""Whatever network and server do, in the end the server has the content of the lake once."""

from pathlib import Path

import pytest

from dicom_etl.stages.upload import upload
from tests.servers.hapi_server import HapiServer
from tests.support import server_content
from tests.support.proxy import ReceivedRequest, Reply, run_proxy
from tests.support.upload_lakes import DatasetFactory, Study, new_lake, settings_for, with_changes
from tests.upload.soak.faults_soak import scenario, shorten_pauses
from tests.upload.support.faults import KINDS, run_faulty_proxy


@pytest.mark.parametrize("first", range(0, 20, 5))
def test_an_upload_through_faults_ends_with_the_lakes_content(first: int, hapi: HapiServer, tmp_path: Path) -> None:
    made: set[str] = set()
    for seed in range(first, first + 5):
        made |= scenario(seed, hapi.base_url, tmp_path / str(seed)).keys()

    assert made == set(KINDS)


def test_an_empty_answer_does_not_let_a_study_shrink(hapi: HapiServer, tmp_path: Path) -> None:
    """An answer that a gateway has emptied does not mean that there is no study."""
    factory, lake = DatasetFactory("faults-empty"), new_lake(tmp_path / "lake")
    study = Study("1", "P1", series={"1": 5})
    path = f"ImagingStudy/{factory.study_id('A', '1')}"

    def emptied(asked: ReceivedRequest) -> Reply | None:
        return Reply(200) if asked.method == "GET" and asked.path.startswith("ImagingStudy") else None

    with run_proxy(hapi.base_url) as server, shorten_pauses():
        factory.build(lake, "A", [study])
        upload(["A"], lake, settings_for(server.url))
        factory.build(lake, "A", [with_changes(study, series={"1": 1})])
        server.rule = emptied
        [done] = upload(["A"], lake, settings_for(server.url, retry_seconds=0.2))

    assert done.counts["ImagingStudy"] == {"failed": 1}
    assert server_content.get(hapi.base_url, path)["numberOfInstances"] == 5


def test_bundles_without_answers_do_not_stop_the_others(hapi: HapiServer, tmp_path: Path) -> None:
    factory, lake = DatasetFactory("faults-held"), new_lake(tmp_path / "lake")
    studies = [Study(str(number), "P1", unit=f"sub-{number}", series={"1": 3}) for number in range(5)]

    with run_faulty_proxy(hapi.base_url, rate=0.0) as server:
        factory.build(lake, "A", studies)
        upload(["A"], lake, settings_for(server.url))
        shrunk = [with_changes(study, series={"1": 1}) for study in studies]
        factory.build(lake, "A", [*shrunk, Study("new", "P2", unit="sub-9")])
        [done] = upload(["A"], lake, settings_for(server.url, max_bundle_entries=1, max_concurrent_requests=1))

    assert done.counts["ImagingStudy"] == {"held": 5, "stored": 1}
    assert done.stopped is None
