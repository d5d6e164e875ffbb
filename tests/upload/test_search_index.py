"""Searches that miss existing resources, as with an index that lags or was emptied, on a real server."""

from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from dicom_etl.lake.tables import Lake
from tests.support.proxy import Proxy, ReceivedRequest, Reply
from tests.support.upload_lakes import DatasetFactory, Study, ledger_rows, new_lake, shared_ledger_rows, with_changes
from tests.support.uploads import (
    ONE,
    codes,
    findings,
    get,
    load,
    make_external_study,
    patient_path,
    put,
    shared_person,
    status_of,
    study_path,
    version,
)
from tests.upload.test_shared_patients import external

_NOTHING = Reply(
    200,
    orjson.dumps({"resourceType": "Bundle", "type": "searchset", "total": 0}),
    {"Content-Type": "application/fhir+json"},
)


def is_search(asked: ReceivedRequest) -> bool:
    path, _, query = asked.path.partition("?")
    return path.endswith("/_search") or (asked.method == "GET" and bool(query) and "_history" not in path)


def empty_index(asked: ReceivedRequest) -> Reply | None:
    """A rule by which no search finds anything."""
    return _NOTHING if is_search(asked) else None


def first_search_of(resource_type: str) -> Callable[[ReceivedRequest], Reply | None]:
    """A rule by which the first search for a type finds nothing."""
    searches: list[ReceivedRequest] = []

    def rule(asked: ReceivedRequest) -> Reply | None:
        if not is_search(asked) or not asked.path.startswith(resource_type):
            return None
        searches.append(asked)
        return _NOTHING if len(searches) == 1 else None

    return rule


# -- what the ledger knows --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["patient-id", "authority"])
def test_updates_do_not_depend_on_the_search_index(
    lake: Lake, server: Proxy, factory: DatasetFactory, rule: str
) -> None:
    study = with_changes(ONE, rule=rule)
    paths = [study_path(factory, "A", "1"), patient_path(factory, "A", study), f"Endpoint/{factory.endpoint_id('A')}"]
    server.rule = empty_index
    factory.build(lake, "A", [study])
    load(lake, server, "A")
    assert [version(server, path) for path in paths] == ["1"] * 3
    put(server, get(server, paths[1]) | {"telecom": [{"system": "phone", "value": "1"}]})

    factory.build(lake, "A", [with_changes(study, series={"1": 2, "2": 3}, patient={"gender": "female"})])
    [updated] = load(lake, server, "A")
    [again] = load(lake, server, "A")

    assert updated.counts["ImagingStudy"] == updated.counts["Patient"] == {"stored": 1}
    assert {state for states in again.counts.values() for state in states} == {"unchanged"}
    assert [version(server, path) for path in paths] == ["2", "3", "1"]
    assert get(server, paths[0])["numberOfInstances"] == 5
    patient = get(server, paths[1])
    assert (patient["gender"], patient["telecom"]) == ("female", [{"system": "phone", "value": "1"}])
    assert codes(lake, "A") == []


def test_an_external_change_is_held_with_an_empty_index(lake: Lake, server: Proxy, factory: DatasetFactory) -> None:
    factory.build(lake, "A", [ONE])
    load(lake, server, "A")
    path = study_path(factory, "A", "1")
    put(server, get(server, path) | {"description": "read by Dr. Roe"})
    server.rule = empty_index
    factory.build(lake, "A", [with_changes(ONE, series={"1": 3})])

    [done] = load(lake, server, "A")

    assert done.counts["ImagingStudy"] == {"held": 1}
    assert codes(lake, "A") == ["changed-on-server"]
    assert get(server, path)["description"] == "read by Dr. Roe"


def test_replacing_a_study_that_no_search_found_is_reported(
    tmp_path: Path, server: Proxy, factory: DatasetFactory
) -> None:
    full, part = new_lake(tmp_path / "full"), new_lake(tmp_path / "part")
    factory.build(full, "A", [with_changes(ONE, series={"1": 5})])
    load(full, server, "A")
    factory.build(part, "A", [with_changes(ONE, series={"1": 1})])
    server.rule = empty_index

    load(part, server, "A")

    path = study_path(factory, "A", "1")
    [found] = findings(part, "A")
    assert found["code"] == "concurrent-overwrite"
    assert "version 2 of this lake replaced version 1" in found["message"]
    assert get(server, f"{path}/_history/1")["numberOfInstances"] == 5


# -- studies of other clients -----------------------------------------------------------------------------------------


def test_a_hidden_duplicate_study_is_reported_by_the_next_run(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    existing = make_external_study(factory)
    put(server, existing)
    factory.build(lake, "A", [ONE])
    server.rule = empty_index
    [first] = load(lake, server, "A")
    told = codes(lake, "A")
    is_indexed = ledger_rows(lake, server.url, "A")[study_path(factory, "A", "1")]["is_indexed"]
    server.rule = lambda _: None

    for _ in range(2):  # the lake has not changed
        [done] = load(lake, server, "A")
        assert done.counts["ImagingStudy"] == {"unchanged": 1}
        [found] = findings(lake, "A")
        assert found["code"] == "study-exists-on-server"
        assert f"ImagingStudy/{existing['id']} of another client" in found["message"]
    assert (first.counts["ImagingStudy"], told, is_indexed) == ({"stored": 1}, [], False)
    assert ledger_rows(lake, server.url, "A")[study_path(factory, "A", "1")]["is_indexed"]
    assert version(server, study_path(factory, "A", "1")) == version(server, f"ImagingStudy/{existing['id']}") == "1"
    server.requests.clear()
    load(lake, server, "A")
    [search] = server.request_lines()  # only the check whether the other study still exists
    assert search.startswith("GET ImagingStudy?identifier=")


def test_a_duplicate_study_missed_by_one_search_is_reported_at_once(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    put(server, make_external_study(factory))
    factory.build(lake, "A", [ONE])
    server.rule = first_search_of("ImagingStudy")

    [done] = load(lake, server, "A")

    assert done.counts["ImagingStudy"] == {"stored": 1}
    assert codes(lake, "A") == ["study-exists-on-server"]


def test_a_study_that_is_indexed_late_is_confirmed_by_the_next_run(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    factory.build(lake, "A", [ONE])
    server.rule = empty_index
    load(lake, server, "A")
    load(lake, server, "A")
    still_hidden = ledger_rows(lake, server.url, "A")[study_path(factory, "A", "1")]["is_indexed"]
    server.rule = lambda _: None
    load(lake, server, "A")

    assert not still_hidden
    assert ledger_rows(lake, server.url, "A")[study_path(factory, "A", "1")]["is_indexed"]
    assert codes(lake, "A") == []


# -- Patients of other clients ----------------------------------------------------------------------------------------


def test_a_hidden_duplicate_patient_is_reported_by_the_next_run(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    put(server, external(factory, "hidden"))
    study = shared_person()
    path = patient_path(factory, "A", study)
    factory.build(lake, "A", [study])
    server.rule = empty_index
    [first] = load(lake, server, "A")
    told = codes(lake, "A")
    server.rule = lambda _: None

    for _ in range(2):
        [done] = load(lake, server, "A")
        assert done.counts["Patient"] == {"unchanged": 1}
        [found] = findings(lake, "A")
        assert found["code"] == "duplicate-patient-on-server"
        assert f"Patient/{factory.name}-hidden" in found["message"]
    assert (first.counts["Patient"], told) == ({"stored": 1}, [])
    assert shared_ledger_rows(lake, server.url)[path]["is_indexed"]
    assert get(server, study_path(factory, "A", "1"))["subject"]["reference"] == path


def test_a_duplicate_patient_missed_by_one_search_is_reported_at_once(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    put(server, external(factory, "hidden"))
    factory.build(lake, "A", [shared_person()])
    server.rule = first_search_of("Patient")

    [done] = load(lake, server, "A")

    assert done.counts["Patient"] == {"stored": 1}
    assert codes(lake, "A") == ["duplicate-patient-on-server"]


def test_a_duplicate_patient_stays_a_finding_after_an_update(
    lake: Lake, server: Proxy, factory: DatasetFactory
) -> None:
    put(server, external(factory, "hidden"))
    factory.build(lake, "A", [shared_person()])
    server.rule = empty_index
    load(lake, server, "A")
    server.rule = lambda _: None
    factory.build(lake, "A", [shared_person(gender="female"), Study("2", "P1", rule="authority")])

    [done] = load(lake, server, "A")

    assert done.counts["ImagingStudy"] == {"stored": 1, "unchanged": 1}
    assert codes(lake, "A") == ["duplicate-patient-on-server"]
    assert status_of(server, f"Patient/{factory.name}-hidden") == 200
