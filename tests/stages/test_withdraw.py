"""A withdrawal where series were merged into the study of another client: it is reported until they are removed."""

from __future__ import annotations

from dicom_etl.lake.tables import Lake
from dicom_etl.stages.upload import upload
from dicom_etl.stages.withdraw import withdraw
from tests.support.proxy import Proxy
from tests.support.server_content import put, status
from tests.support.upload_lakes import DatasetFactory, Study, settings_for
from tests.support.uploads import ONE, codes, findings, make_external_study


def test_a_dry_run_reports_an_external_study_with_merged_series(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    external = make_external_study(factory)
    put(server.url, external)
    factory.build(lake, "A", [ONE, Study("2", "P2", unit="sub-2")])
    settings = settings_for(server.url, existing_study="merge")
    upload(["A"], lake, settings)

    planned = withdraw("A", "sub-1", lake, settings, dry_run=True)
    done = withdraw("A", "sub-1", lake, settings)

    assert [sentence.partition(" on ")[0] for sentence in planned.remaining] == [f"ImagingStudy/{external['id']}"]
    assert planned.remaining == done.remaining
    assert planned.exit_code == done.exit_code == 1


def test_an_external_study_is_reported_until_series_are_removed(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    external, remaining = make_external_study(factory), Study("2", "P2", unit="sub-2")
    resource = f"ImagingStudy/{external['id']}"
    put(server.url, external)
    factory.build(lake, "A", [ONE, remaining])
    settings = settings_for(server.url, existing_study="merge")
    upload(["A"], lake, settings)
    factory.build(lake, "A", [remaining])

    for prune in (False, True):
        [result] = upload(["A"], lake, settings, prune=prune)
        assert result.counts["ImagingStudy"] == {"orphaned": 1, "unchanged": 1}
        [message] = [row["message"] for row in findings(lake, "A") if "ImagingStudy/" in row["message"]]
        assert f"{resource} belongs to another client; remove the series of this lake there" in message
        planned = withdraw("A", None, lake, settings, dry_run=True)
        assert [text.partition(" on ")[0] for text in planned.remaining] == [resource]
    put(server.url, external)
    [done] = upload(["A"], lake, settings, prune=True)

    assert done.counts["ImagingStudy"] == {"unchanged": 1}
    assert (codes(lake, "A"), status(server.url, resource)) == ([], 200)
    assert withdraw("A", None, lake, settings, dry_run=True).remaining == ()
