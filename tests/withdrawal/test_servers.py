"""A withdrawal from servers that fail, refuse, assign ids, or are not configured."""

from __future__ import annotations

from typing import Any

from dicom_etl.fhir_connection import get_server_name
from dicom_etl.lake.schemas import (
    header_table,
)
from dicom_etl.lake.shard_reader import read_unit
from dicom_etl.stages.upload import upload
from dicom_etl.stages.withdraw import withdraw
from tests.servers.hapi_server import HapiServer
from tests.support.proxy import Reply, run_proxy
from tests.support.upload_lakes import ledger_rows
from tests.withdrawal.withdrawal_case import (
    WithdrawalCase,
    change_ledger,
    find_files_containing,
    hash_lake,
    list_terms_of_ada,
    make_two_subjects,
)


def test_nothing_changes_if_the_server_cannot_be_reached(case: WithdrawalCase) -> None:
    tree = make_two_subjects(case)
    case.run(tree)
    before = hash_lake(case.lake)

    for reply in (Reply(503), Reply(401)):
        case.server.rule = lambda asked, reply=reply: reply  # type: ignore[misc]
        done = case.withdraw(tree, "sub-ada")
        assert done.exit_code == 3
        assert "nothing was removed" in (done.unreachable or "")
        assert (done.files, done.resources, done.notes) == (0, {}, ())

    assert hash_lake(case.lake) == before


def test_the_next_call_completes_an_interrupted_one(case: WithdrawalCase) -> None:
    tree = make_two_subjects(case)
    case.run(tree)
    deletions: list[str] = []

    def stop_after_one_deletion(asked: Any) -> Reply | None:
        deletions.extend([asked.path] if asked.method == "DELETE" else [])
        return Reply(503) if len(deletions) > 1 else None

    case.server.rule = stop_after_one_deletion
    interrupted = withdraw(tree.name, "sub-ada", case.lake, case.at(case.server.url, retry_seconds=0))
    assert interrupted.exit_code == 3
    assert read_unit(case.lake, header_table(), dataset=tree.name, unit="sub-ada").num_rows == 3
    case.server.rule = lambda _: None

    assert case.withdraw(tree, "sub-ada").exit_code == 0

    hers = [case.study(tree, "one"), case.study(tree, "two"), case.patient(tree, "ID-ADA")]
    assert case.status(*hers) == [410] * 3
    assert (case.record(tree)[0]["imaging_studies"], case.record(tree)[0]["patients"]) == (2, 1)
    assert find_files_containing(case.lake, *list_terms_of_ada(tree)) == []


def test_the_lake_stays_if_the_server_refuses_deletions(case: WithdrawalCase) -> None:
    tree = make_two_subjects(case)
    case.run(tree)
    case.server.rule = lambda asked: Reply(405) if asked.method == "DELETE" else None

    done = case.withdraw(tree, "sub-ada")

    assert done.exit_code == 1
    assert "HTTP 405" in done.remaining[0]
    assert read_unit(case.lake, header_table(), dataset=tree.name, unit="sub-ada").num_rows == 3


def test_another_server_is_reported_until_it_is_configured(case: WithdrawalCase, hapi: HapiServer) -> None:
    tree = make_two_subjects(case)
    case.run(tree)
    with run_proxy(hapi.base_url) as other:
        upload([tree.name], case.lake, case.at(other.url))
        name = get_server_name(other.url)

        done = case.withdraw(tree, "sub-ada")

        assert done.exit_code == 1
        [sentence] = done.remaining
        assert sentence.startswith(f"{name} has 3 resources of it and is not the configured server")
        assert len(ledger_rows(case.lake, other.url, tree.name, "sub-ada")) == 3
        assert ledger_rows(case.lake, case.server.url, tree.name, "sub-ada") == {}
        files = {line.partition(":")[0] for line in find_files_containing(case.lake, *list_terms_of_ada(tree))}
        assert {file for file in files if not file.startswith("ledger.sqlite")} == {
            f"upload_ledger/{name}/{tree.name}.parquet"
        }
        case.run(tree)

        later = withdraw(tree.name, "sub-ada", case.lake, case.at(other.url))

        assert later.exit_code == 0
        assert later.resources == {name: {"ImagingStudy": 2, "Patient": 1}}
        assert find_files_containing(case.lake, *list_terms_of_ada(tree)) == []


def test_resources_missing_in_the_ledger_stop_the_withdrawal(case: WithdrawalCase) -> None:
    tree = make_two_subjects(case)
    case.run(tree)
    name = get_server_name(case.server.url)
    change_ledger(case.lake, "DELETE FROM resources WHERE unit = 'sub-ada'")
    change_ledger(case.lake, "DELETE FROM units WHERE unit = 'sub-ada'")
    before = hash_lake(case.lake)

    done = case.withdraw(tree, "sub-ada")

    assert done.exit_code == 1
    assert f"{name} has 3 resources of it that are not in the ledger" in done.remaining[0]
    assert hash_lake(case.lake) == before
    upload([tree.name], case.lake, case.settings)
    assert case.withdraw(tree, "sub-ada").exit_code == 0
    assert case.status(case.study(tree, "one"), case.patient(tree, "ID-ADA")) == [410, 410]


def test_server_assigned_ids_are_used_for_deletions(case: WithdrawalCase) -> None:
    tree = make_two_subjects(case)
    tree.settings = case.settings
    tree.run()
    settings = case.at(case.server.url, client_assigned_ids="no")
    upload([tree.name], case.lake, settings)
    rows = ledger_rows(case.lake, case.server.url, tree.name, "sub-ada").values()
    places = [f"{row['type']}/{row['server_id']}" for row in rows]
    assert all(row["id"] != row["server_id"] for row in rows)
    # as if the find_last answer had been lost
    change_ledger(
        case.lake,
        "INSERT INTO attempts (lake_id, server, type, id, hash, server_hash, if_match, time) "
        "SELECT lake_id, server, type, id, hash, server_hash, '', time FROM resources WHERE unit = 'sub-ada'",
    )
    change_ledger(
        case.lake,
        "UPDATE resources SET server_id = NULL, version = NULL, hash = NULL, server_hash = NULL, "
        "state = 'unconfirmed' WHERE unit = 'sub-ada'",
    )

    done = withdraw(tree.name, "sub-ada", case.lake, settings)

    assert done.exit_code == 0
    assert case.status(*places) == [410] * 3
