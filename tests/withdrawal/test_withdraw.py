"""A withdrawn subject is removed from the server, the ledger and the lake, and does not come back."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dicom_etl.fhir_connection import get_server_name
from dicom_etl.identity.ids import ResourceIds
from dicom_etl.lake.commits import read_commits
from dicom_etl.lake.fingerprints import compute_fingerprint
from dicom_etl.lake.locks import LockHeldError
from dicom_etl.lake.schemas import (
    COMMITS,
    FHIR_ELEMENTS,
    FILES,
    INVENTORY,
    SHEETS,
    UNIT_RESOURCE_TYPES,
    WITHDRAWN,
    header_table,
)
from dicom_etl.lake.shard_reader import read_lines, read_unit
from dicom_etl.lake.tables import Lake
from dicom_etl.settings import FhirSettings, Settings, SettingsError
from dicom_etl.sources import SourceError
from dicom_etl.stages.crawl import DatasetStoppedError
from dicom_etl.stages.measure import measure
from dicom_etl.stages.report import report
from dicom_etl.stages.upload import upload
from dicom_etl.stages.withdraw import withdraw
from dicom_etl.withdrawal.record import undo_withdrawal
from dicom_etl.withdrawal.run import WithdrawalResult
from tests.servers.hapi_server import HapiServer
from tests.support.command import RunCommand
from tests.support.datasets import Tree, make_lake, make_tree, uid, write_sheet
from tests.support.proxy import Proxy, Reply, run_proxy
from tests.support.server_content import get, put, status
from tests.support.upload_lakes import ledger_rows, query_ledger, shared_ledger_rows

ROOT = Path(__file__).parents[2]
KILLED = Path(__file__).parent / "killed_withdrawal.py"
AUTHORITY = "urn:oid:1.2.3.4"


@dataclass
class House:
    """Datasets of one lake, with ids of the test's own on the shared server."""

    folder: Path
    site: str
    server: Proxy
    lake: Lake
    trees: dict[str, Tree] = field(default_factory=dict)
    crosswalk: Path | None = None

    @property
    def ids(self) -> ResourceIds:
        return self.settings.resource_ids()

    @property
    def settings(self) -> Settings:
        return self.at(self.server.url)

    def at(self, url: str | None, **fhir: Any) -> Settings:
        settings = FhirSettings(url=url, **({"retry_seconds": 5} | fhir))
        return Settings(namespace=self.site, fhir=settings, crosswalk=str(self.crosswalk) if self.crosswalk else None)

    def tree(self, name: str, **settings: Any) -> Tree:
        """A dataset whose name no other test has: UIDs are made from it."""
        tree = make_tree(self.folder, f"{name}-{self.site[-8:]}", lake=self.lake, **settings)
        self.trees[tree.name] = tree
        return tree

    def run(self, *trees: Tree, quality: bool = False) -> None:
        """Everything up to the upload, or to the report."""
        for tree in trees:
            tree.settings = self.settings
            tree.run()
        upload([tree.name for tree in trees], self.lake, self.settings)
        for tree in trees if quality else ():
            measure(tree.name, self.lake, self.settings)
            report(tree.name, self.lake, self.settings)

    def withdraw(self, tree: Tree, subject: str | None = None, **options: Any) -> WithdrawalResult:
        return withdraw(tree.name, subject, self.lake, self.settings, **options)

    def study(self, tree: Tree, name: str) -> str:
        """The place of a study on the server."""
        return f"ImagingStudy/{self.ids.resource_id('ImagingStudy', tree.name, uid(f'{tree.name}/{name}'))}"

    def patient(self, tree: Tree, value: str) -> str:
        """The place of a Patient of the dataset's own."""
        return f"Patient/{self.ids.resource_id('Patient', f'{self.site}/{tree.name}/patient-id', value)}"

    def shared_patient(self, value: str) -> str:
        return f"Patient/{self.ids.resource_id('Patient', AUTHORITY, value)}"

    def endpoint(self, tree: Tree) -> str:
        return f"Endpoint/{self.ids.resource_id('Endpoint', tree.name)}"

    def status(self, *places: str) -> list[int]:
        """What the server says of them."""
        return [status(self.server.url, place) for place in places]

    def text(self, place: str) -> str:
        """What the server has of a resource."""
        return str(get(self.server.url, place))

    def record(self, tree: Tree) -> list[dict[str, Any]]:
        return self.lake.read(WITHDRAWN, dataset=tree.name).to_pylist()


@pytest.fixture
def house(tmp_path: Path, hapi: HapiServer, request: pytest.FixtureRequest) -> Iterator[House]:
    with run_proxy(hapi.base_url) as server:
        site = f"https://site-{compute_fingerprint(request.node.name)[:16]}"
        yield House(tmp_path, site, server, make_lake(tmp_path))


def two_subjects(house: House, name: str = "ds") -> Tree:
    """Ada (sub-ada) has two studies and a sheet's row; Bob has one; a file of his has the UID of one of hers."""
    tree = house.tree(name)
    ada = {"PatientID": "ID-ADA", "PatientName": "Lovelace^Ada"}
    tree.write("sub-ada/sam-1/1.dcm", study=f"{tree.name}/one", instance=f"{tree.name}/twice", **ada)
    tree.write("sub-ada/sam-1/2.dcm", study=f"{tree.name}/one", PatientBirthTime="noon", **ada)
    tree.write("sub-ada/sam-2/3.dcm", study=f"{tree.name}/two", **ada)
    bob = {"PatientID": "ID-BOB", "PatientName": "Byron^Bob", "study": f"{tree.name}/bob"}
    tree.write("sub-bob/sam-1/1.dcm", **bob)
    tree.write("sub-bob/sam-1/2.dcm", instance=f"{tree.name}/twice", **bob)
    tree.sheet("subjects", {"subject id": "sub-ada", "sex": "F"}, {"subject id": "sub-bob", "sex": "M"})
    sample = {"was derived from": "", "sample type": "scan"}
    tree.sheet(
        "samples",
        {"sample id": "sam-1", "subject id": "sub-ada", **sample},
        {"sample id": "sam-1", "subject id": "sub-bob", **sample, "sample type": "scan after sub-ada"},
        {"sample id": "sam-2", "subject id": "", **sample, "was derived from": "sub-ada"},
    )
    tree.sheet("manifest", {"filename": "primary/sub-ada/sam-1/1.dcm", "description": "hers"})
    return tree


def of_ada(tree: Tree) -> list[str]:
    """What names her, or is hers."""
    uids = [f"{tree.name}/{name}" for name in ("one", "two", "sub-ada/sam-1", "sub-ada/sam-2", "sub-ada/sam-1/2.dcm")]
    return ["sub-ada", "ID-ADA", "Lovelace", *map(uid, uids)]


def stored_of(house: House, tree: Tree, unit: str) -> dict[str, tuple[str, str, str]]:
    """State, hash and version of each resource of a unit, as the ledger has them."""
    rows = ledger_rows(house.lake, house.server.url, tree.name, unit)
    assert rows
    return {name: (row["state"], row["hash"], row["version"]) for name, row in rows.items()}


def change_ledger(lake: Lake, statement: str) -> None:
    with closing(sqlite3.connect(Path(lake.root, "ledger.sqlite"))) as connection, connection:
        assert connection.execute(statement).rowcount > 0


def naming(lake: Lake, *terms: str) -> list[str]:
    """The files of the lake that hold one of some terms: in their bytes, in their names, or in a column."""
    found = []
    for file in sorted(path for path in Path(lake.root).rglob("*") if path.is_file()):
        text = f"{file.relative_to(lake.root)}\n" + file.read_bytes().decode("utf-8", "replace")
        if file.suffix == ".parquet":
            text += "\n".join(map(str, pq.read_table(file, use_threads=False).to_pylist()))
        found += [f"{file.relative_to(lake.root)}: {term}" for term in terms if term in text]
    return found


def rows_of_unit(tree: Tree, unit: str) -> dict[str, Any]:
    """All that the tables in shards have of a unit, without where it is in a file."""
    where = {"dataset": tree.name, "unit": unit}
    rows: dict[str, Any] = {
        table.name: read_unit(tree.lake, table, **where).to_pylist() for table in (header_table(), FILES, FHIR_ELEMENTS)
    }
    rows |= {stage: tree.findings(stage, unit) for stage in COMMITS}
    rows |= {kind: read_lines(tree.lake, kind, **where) for kind in UNIT_RESOURCE_TYPES}
    assert all(rows[name] for name in ("headers", "files", "fhir_elements", "extract", *UNIT_RESOURCE_TYPES))
    commits = [commit.rows[unit] for stage in COMMITS for commit in read_commits(tree.lake, stage, tree.name).values()]
    assert len(commits) == len(COMMITS)
    offsets = {f"{kind}_offset" for kind in UNIT_RESOURCE_TYPES}
    return rows | {"commits": [{name: row[name] for name in row.keys() - offsets} for row in commits]}


def content(lake: Lake) -> dict[str, str]:
    """The SHA-256 of every file of the lake but locks, and of every row of the ledger by its table and dataset."""
    files = (path for path in sorted(Path(lake.root).rglob("*")) if path.is_file())
    names = {path.relative_to(lake.root).as_posix(): path for path in files}
    names = {n: p for n, p in names.items() if not n.startswith(("locks/", "ledger.sqlite"))}
    digests = {n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in names.items()}
    for table in ("resources", "units"):
        for row in query_ledger(lake, f"SELECT * FROM {table}"):
            key = "/".join(str(row.get(name)) for name in ("server", "dataset", "unit", "type", "id"))
            digests[f"ledger {table} {key}"] = repr(row)
    return digests


# -- a subject --------------------------------------------------------------------------------------------------------


def test_a_subject_leaves_server_ledger_and_lake_and_no_other_does(house: House) -> None:
    tree = two_subjects(house)
    house.run(tree, quality=True)
    hers = [house.study(tree, "one"), house.study(tree, "two"), house.patient(tree, "ID-ADA")]
    his = [house.study(tree, "bob"), house.patient(tree, "ID-BOB"), house.endpoint(tree)]
    assert house.status(*hers, *his) == [200] * 6
    assert len({line.partition(":")[0] for line in naming(house.lake, *of_ada(tree))}) > 15
    before, his_rows = content(house.lake), rows_of_unit(tree, "sub-bob")

    done = house.withdraw(tree, "sub-ada")

    assert (done.files, done.studies, done.remaining, done.notes, done.exit_code) == (3, 2, (), (), 0)
    name = get_server_name(house.server.url)
    assert done.resources == {name: {"ImagingStudy": 2, "Patient": 1}}
    assert house.status(*hers, *his) == [410] * 3 + [200] * 3
    assert naming(house.lake, *of_ada(tree)) == []
    after = content(house.lake)
    assert rows_of_unit(tree, "sub-bob") == his_rows
    changed = {n for n, digest in after.items() if before.get(n) != digest}
    per_dataset = {f"{table}/{tree.name}.parquet" for table in ("inventory", "sheets", "identities", "withdrawn")}
    shard = {f"{table}/{tree.name}/0000.parquet" for table in ("headers", "files", "tag_profiles", "fhir_elements")}
    shard |= {f"{table}/{stage}/{tree.name}/0000.parquet" for table in ("findings", "commits") for stage in COMMITS}
    shard |= {f"fhir/{kind}/{tree.name}/0000.ndjson" for kind in UNIT_RESOURCE_TYPES}
    # of the UID that both had, and what says that all is of one state
    of_dataset = {f"findings/{stage}/{tree.name}/dataset.parquet" for stage in COMMITS}
    exported = {f"upload_ledger/{name}/{tree.name}.parquet"}
    assert changed == per_dataset | shard | of_dataset | exported
    ledger = ledger_rows(house.lake, house.server.url, tree.name, "sub-bob")
    assert ledger.keys() == {house.study(tree, "bob"), house.patient(tree, "ID-BOB")}


def test_the_record_names_nobody_and_says_what_was_done(house: House) -> None:
    tree = two_subjects(house)
    house.run(tree)

    house.withdraw(tree, "sub-ada")

    [row] = house.record(tree)
    assert row.pop("time") is not None
    assert row == {
        "dataset": tree.name,
        "namespace": house.site,
        "digest": row["digest"],
        "id_key": ResourceIds.from_key(house.site, None).key_fingerprint,
        "files": 3,
        "studies": 2,
        "patients": 1,
        "imaging_studies": 2,
        "endpoints": 0,
        "servers": get_server_name(house.server.url),
        "pending_deletions": None,
    }
    assert len(row["digest"]) == 64


def test_the_next_run_does_not_bring_it_back_and_readmission_does(house: House) -> None:
    tree = two_subjects(house)
    house.run(tree)
    his = stored_of(house, tree, "sub-bob")
    house.withdraw(tree, "sub-ada")
    hers = [house.study(tree, "one"), house.study(tree, "two"), house.patient(tree, "ID-ADA")]

    house.run(tree, quality=True)

    assert naming(house.lake, *of_ada(tree)) == []
    assert house.status(*hers) == [410] * 3
    [left_out] = [row for row in tree.findings("crawl") if row["code"] == "subject-withdrawn"]
    assert (left_out["count"], left_out["severity"]) == (3, "info")
    assert house.status(house.study(tree, "bob")) == [200]
    now = stored_of(house, tree, "sub-bob")
    assert now.keys() == his.keys()
    assert now[house.patient(tree, "ID-BOB")] == his[house.patient(tree, "ID-BOB")]

    undo_withdrawal(tree.name, "sub-ada", house.lake)
    house.run(tree)

    assert house.status(*hers) == [200] * 3
    assert not house.lake.exists(WITHDRAWN.path(dataset=tree.name))
    assert "subject-withdrawn" not in tree.codes("crawl")


def test_what_the_sheets_say_of_others_stays(house: House) -> None:
    tree = two_subjects(house)
    tree.run()
    withdraw(tree.name, "sub-ada", house.lake, house.at(None))
    by_withdrawal = house.lake.read(SHEETS, dataset=tree.name).to_pylist()

    tree.crawl()

    assert house.lake.read(SHEETS, dataset=tree.name).to_pylist() == by_withdrawal
    assert {(r["sheet"], r["subject"], r["field"], r["value"]) for r in by_withdrawal} == {
        ("subjects", "sub-bob", "subject id", "sub-bob"),
        ("subjects", "sub-bob", "sex", "M"),
        ("samples", "sub-bob", "sample id", "sam-1"),
        ("samples", "sub-bob", "subject id", "sub-bob"),
    }


def test_findings_of_the_crawl_name_nobody_either(house: House) -> None:
    tree = two_subjects(house)
    tree.run()
    withdraw(tree.name, "sub-ada", house.lake, house.at(None))
    (tree.root / "primary/sub-ada/link").symlink_to("nowhere")
    (tree.root / "primary/sub-bob/link").symlink_to("nowhere")
    (tree.root / "primary/sub-ada.zip").write_bytes(b"PK\3\4 damaged")

    tree.crawl()

    assert naming(house.lake, "sub-ada") == []
    assert [row["path"] for row in tree.findings("crawl") if row["code"] == "link-broken"] == ["primary/sub-bob/link"]


def test_the_vanish_guard_knows_who_was_withdrawn_and_nobody_else(house: House) -> None:
    tree = two_subjects(house)
    tree.run()
    withdraw(tree.name, "sub-ada", house.lake, house.at(None))
    for file in (tree.root / "primary/sub-ada").rglob("*.dcm"):
        file.unlink()
    tree.crawl()
    (tree.root / "primary/sub-bob").rename(tree.root / "primary/sub-eve")
    with pytest.raises(DatasetStoppedError, match="sub-bob"):
        tree.crawl()


def test_a_dataset_all_of_whose_subjects_are_withdrawn_loses_its_endpoint(house: House) -> None:
    tree = two_subjects(house)
    house.run(tree)
    house.withdraw(tree, "sub-bob")
    assert house.status(house.endpoint(tree)) == [200]

    house.withdraw(tree, "sub-ada")

    assert house.status(house.endpoint(tree), house.study(tree, "one")) == [410, 410]
    with pytest.raises(SourceError, match="all its files are of withdrawn subjects"):
        tree.crawl()


# -- what others need -------------------------------------------------------------------------------------------------


def test_a_patient_that_another_dataset_shares_stays(house: House) -> None:
    a, b = (house.tree(name, assigning_authority=AUTHORITY) for name in "ab")
    person = f"P-{house.site[-8:]}"
    a.write("sub-1/1.dcm", PatientID=person, PatientName="Married^Ada")
    a.write("sub-2/1.dcm", PatientID=f"{person}-2")
    b.write("sub-x/1.dcm", PatientID=person, PatientName="Maiden^Ada")
    house.run(a, b)
    shared = house.shared_patient(person)

    done = house.withdraw(a, "sub-1")

    assert house.status(house.study(a, "sub-1"), shared, house.study(b, "sub-x")) == [410, 200, 200]
    assert done.exit_code == 0
    [told] = done.notes
    assert f"studies of {b.name} refer to them" in told
    house.run(a, b)
    assert naming(house.lake, "Married", "sub-1") == []
    assert house.status(shared) == [200]
    names = house.text(shared)
    assert "Maiden" in names
    assert "Married" not in names

    house.withdraw(b, "sub-x")
    assert house.status(shared) == [410]


def test_a_study_of_two_subjects_is_rebuilt_of_what_stays(house: House) -> None:
    tree = house.tree("ds")
    house.crosswalk = house.folder / "crosswalk.csv"
    lines = [
        {"dataset": tree.name, "subject": subject, "system": AUTHORITY, "value": f"X-{house.site[-8:]}"}
        for subject in ("sub-a", "sub-b")
    ]
    write_sheet(house.crosswalk, lines)
    for subject in ("sub-a", "sub-b"):
        tree.write(f"{subject}/1.dcm", study=f"{tree.name}/both", PatientID="X")
    house.run(tree)
    assert uid(f"{tree.name}/sub-b/1.dcm") in house.text(house.study(tree, "both"))

    done = house.withdraw(tree, "sub-b")

    assert house.status(house.study(tree, "both")) == [410]
    assert any("the crosswalk file still has lines about it" in sentence for sentence in done.notes)
    house.run(tree)
    assert naming(house.lake, "sub-b", uid(f"{tree.name}/sub-b/1.dcm")) == []
    assert house.status(house.study(tree, "both")) == [200]
    assert uid(f"{tree.name}/sub-b/1.dcm") not in house.text(house.study(tree, "both"))


def test_a_patient_that_others_refer_to_is_reported_and_deleted_later(house: House) -> None:
    tree = two_subjects(house)
    house.run(tree)
    patient = house.patient(tree, "ID-ADA")
    observation = {"resourceType": "Observation", "id": f"o-{house.site[-8:]}", "status": "final"}
    put(house.server.url, observation | {"code": {"text": "weight"}, "subject": {"reference": patient}})

    done = house.withdraw(tree, "sub-ada")

    assert house.status(patient, house.study(tree, "one")) == [200, 410]
    assert done.exit_code == 1
    assert [sentence.split()[:3] for sentence in done.remaining] == [[patient, "stays", "on"]]
    assert naming(house.lake, *of_ada(tree)) == []
    put(house.server.url, observation | {"code": {"text": "weight"}})
    assert house.withdraw(tree, "sub-ada").exit_code == 0
    assert house.status(patient) == [410]
    assert (house.record(tree)[0]["patients"], house.record(tree)[0]["pending_deletions"]) == (1, None)


def test_an_external_patient_stays_and_an_external_study_is_reported(house: House) -> None:
    tree = house.tree("ds", assigning_authority=AUTHORITY)
    person, theirs, study = (f"{kind}-{house.site[-8:]}" for kind in ("P", "theirs", "study"))
    identifier = [{"system": AUTHORITY, "value": person}]
    put(house.server.url, {"resourceType": "Patient", "id": theirs, "identifier": identifier})
    known = {"system": "urn:dicom:uid", "value": f"urn:oid:{uid(f'{tree.name}/sub-1')}"}
    foreign = {"resourceType": "ImagingStudy", "id": study, "identifier": [known], "status": "available"}
    put(house.server.url, foreign | {"subject": {"reference": f"Patient/{theirs}"}})
    tree.write("sub-1/1.dcm", PatientID=person)
    tree.write("sub-1/2.dcm", PatientID=person, study=f"{tree.name}/ours")
    tree.settings = house.settings
    tree.run()
    settings = house.at(house.server.url, existing_study="merge")
    upload([tree.name], house.lake, settings)
    assert uid(f"{tree.name}/sub-1/1.dcm") in house.text(f"ImagingStudy/{study}")

    done = withdraw(tree.name, "sub-1", house.lake, settings)

    assert house.status(house.study(tree, "ours"), f"Patient/{theirs}", f"ImagingStudy/{study}") == [410, 200, 200]
    assert done.exit_code == 1
    # their study refers to our Endpoint
    assert [told.partition(" on ")[0] for told in done.remaining] == [
        f"{house.endpoint(tree)} stays",
        f"ImagingStudy/{study}",
    ]
    assert naming(house.lake, "sub-1", person, theirs, uid(f"{tree.name}/sub-1")) == []


# -- servers ----------------------------------------------------------------------------------------------------------


def test_a_server_out_of_reach_changes_nothing(house: House) -> None:
    tree = two_subjects(house)
    house.run(tree)
    before = content(house.lake)

    for reply in (Reply(503), Reply(401)):
        house.server.rule = lambda asked, reply=reply: reply  # type: ignore[misc]
        done = house.withdraw(tree, "sub-ada")
        assert done.exit_code == 3
        assert "nothing was removed" in (done.unreachable or "")
        assert (done.files, done.resources, done.notes) == (0, {}, ())

    assert content(house.lake) == before


def test_a_server_that_goes_away_in_the_middle_leaves_the_lake_for_the_next_call(house: House) -> None:
    tree = two_subjects(house)
    house.run(tree)
    deletions: list[str] = []

    def goes_away(asked: Any) -> Reply | None:
        deletions.extend([asked.path] if asked.method == "DELETE" else [])
        return Reply(503) if len(deletions) > 1 else None

    house.server.rule = goes_away
    cut = withdraw(tree.name, "sub-ada", house.lake, house.at(house.server.url, retry_seconds=0))
    assert cut.exit_code == 3
    assert read_unit(house.lake, header_table(), dataset=tree.name, unit="sub-ada").num_rows == 3
    house.server.rule = lambda _: None

    assert house.withdraw(tree, "sub-ada").exit_code == 0

    hers = [house.study(tree, "one"), house.study(tree, "two"), house.patient(tree, "ID-ADA")]
    assert house.status(*hers) == [410] * 3
    assert (house.record(tree)[0]["imaging_studies"], house.record(tree)[0]["patients"]) == (2, 1)
    assert naming(house.lake, *of_ada(tree)) == []


def test_a_server_that_forbids_deletions_is_told_and_the_lake_stays(house: House) -> None:
    tree = two_subjects(house)
    house.run(tree)
    house.server.rule = lambda asked: Reply(405) if asked.method == "DELETE" else None

    done = house.withdraw(tree, "sub-ada")

    assert done.exit_code == 1
    assert "HTTP 405" in done.remaining[0]
    assert read_unit(house.lake, header_table(), dataset=tree.name, unit="sub-ada").num_rows == 3


def test_another_server_is_told_and_done_when_it_is_the_configured_one(house: House, hapi: HapiServer) -> None:
    tree = two_subjects(house)
    house.run(tree)
    with run_proxy(hapi.base_url) as other:
        upload([tree.name], house.lake, house.at(other.url))
        name = get_server_name(other.url)

        done = house.withdraw(tree, "sub-ada")

        assert done.exit_code == 1
        [told] = done.remaining
        assert told.startswith(f"{name} has 3 resources of it and is not the configured server")
        assert len(ledger_rows(house.lake, other.url, tree.name, "sub-ada")) == 3
        assert ledger_rows(house.lake, house.server.url, tree.name, "sub-ada") == {}
        files = {line.partition(":")[0] for line in naming(house.lake, *of_ada(tree))}
        assert {file for file in files if not file.startswith("ledger.sqlite")} == {
            f"upload_ledger/{name}/{tree.name}.parquet"
        }
        house.run(tree)

        later = withdraw(tree.name, "sub-ada", house.lake, house.at(other.url))

        assert later.exit_code == 0
        assert later.resources == {name: {"ImagingStudy": 2, "Patient": 1}}
        assert naming(house.lake, *of_ada(tree)) == []


def test_what_an_upload_that_was_killed_left_is_not_forgotten_unseen(house: House) -> None:
    tree = two_subjects(house)
    house.run(tree)
    name = get_server_name(house.server.url)
    change_ledger(house.lake, "DELETE FROM resources WHERE unit = 'sub-ada'")
    change_ledger(house.lake, "DELETE FROM units WHERE unit = 'sub-ada'")
    before = content(house.lake)

    done = house.withdraw(tree, "sub-ada")

    assert done.exit_code == 1
    assert f"{name} has 3 resources of it that are not in the ledger" in done.remaining[0]
    assert content(house.lake) == before
    upload([tree.name], house.lake, house.settings)
    assert house.withdraw(tree, "sub-ada").exit_code == 0
    assert house.status(house.study(tree, "one"), house.patient(tree, "ID-ADA")) == [410, 410]


def test_on_a_server_that_assigns_ids_resources_are_deleted_under_these(house: House) -> None:
    tree = two_subjects(house)
    tree.settings = house.settings
    tree.run()
    settings = house.at(house.server.url, client_assigned_ids="no")
    upload([tree.name], house.lake, settings)
    rows = ledger_rows(house.lake, house.server.url, tree.name, "sub-ada").values()
    places = [f"{row['type']}/{row['server_id']}" for row in rows]
    assert all(row["id"] != row["server_id"] for row in rows)
    # as if the last answer had been lost
    change_ledger(
        house.lake,
        "INSERT INTO attempts (lake_id, server, type, id, hash, server_hash, if_match, time) "
        "SELECT lake_id, server, type, id, hash, server_hash, '', time FROM resources WHERE unit = 'sub-ada'",
    )
    change_ledger(
        house.lake,
        "UPDATE resources SET server_id = NULL, version = NULL, hash = NULL, server_hash = NULL, "
        "state = 'unconfirmed' WHERE unit = 'sub-ada'",
    )

    done = withdraw(tree.name, "sub-ada", house.lake, settings)

    assert done.exit_code == 0
    assert house.status(*places) == [410] * 3


# -- a dataset --------------------------------------------------------------------------------------------------------


def test_a_whole_dataset_goes_and_is_passed_over_until_it_is_readmitted(house: House) -> None:
    tree, other = two_subjects(house), two_subjects(house, "other")
    house.run(tree, other, quality=True)
    before = {n: digest for n, digest in content(house.lake).items() if other.name in n}

    done = house.withdraw(tree)

    hers = [house.study(tree, n) for n in ("one", "two", "bob")] + [house.endpoint(tree)]
    assert house.status(*hers, house.study(other, "one"), house.endpoint(other)) == [410] * 4 + [200] * 2
    assert done.resources == {get_server_name(house.server.url): {"Endpoint": 1, "ImagingStudy": 3, "Patient": 2}}
    assert [line.partition(":")[0] for line in naming(house.lake, tree.name)] == [
        f"locks/{tree.name}.lock",
        f"withdrawn/{tree.name}.parquet",
    ]
    assert {n: digest for n, digest in content(house.lake).items() if other.name in n} == before
    shared = shared_ledger_rows(house.lake, house.server.url).values()
    assert {row["dataset"] for row in shared} == {other.name}
    [row] = house.record(tree)
    assert (row["digest"], row["files"], row["studies"]) == (None, 5, 3)
    with pytest.raises(SourceError, match="was withdrawn and is not loaded"):
        tree.crawl()
    undo_withdrawal(tree.name, None, house.lake)
    house.run(tree)
    assert house.status(*hers) == [200] * 4


# -- a kill -----------------------------------------------------------------------------------------------------------

MOMENTS: dict[str, Callable[[list[str]], int]] = {
    "between record and server": lambda events: first(events, "after ", "withdrawn/") + 1,
    "between studies and Patients": lambda events: events.index("delete Patient"),
    "before the ledger": lambda events: events.index("before the ledger"),
    "after the ledger": lambda events: events.index("after the ledger"),
    "between ledger and record": lambda events: last(events, "before ", "withdrawn/"),
    "before the lake": lambda events: last(events, "after ", "withdrawn/"),
    "before the new resources are named": lambda events: first(events, "before commits/build/", ".pending"),
    "between the files of resources": lambda events: first(events, "before fhir/ImagingStudy/"),
    "before the commit of resources": lambda events: last(events, "before commits/build/", ""),
    "between resources and headers": lambda events: first(events, "before commits/extract/", ".pending"),
    "between the header tables": lambda events: last(events, "before ", "/files/"),
    "before the commit of headers": lambda events: last(events, "before commits/extract/", ""),
    "before the inventory": lambda events: first(events, "before ", "inventory/"),
}


def first(events: list[str], start: str, place: str = "") -> int:
    return next(n for n, event in enumerate(events) if event.startswith(start) and place in event)


def last(events: list[str], start: str, place: str) -> int:
    return max(n for n, event in enumerate(events) if event.startswith(start) and place in event)


def in_a_process(house: House, tree: Tree, when: int) -> int:
    events = str(house.folder / "events")
    command = [sys.executable, str(KILLED), events, str(when), house.lake.root, house.server.url, house.site]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([*command, tree.name, "sub-ada"], env=environment, check=False, timeout=120).returncode


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory, hapi: HapiServer) -> list[str]:
    """What happens while a subject is forgotten."""
    folder = tmp_path_factory.mktemp("events")
    with run_proxy(hapi.base_url) as server:
        house = House(folder, "https://site-events", server, make_lake(folder))
        tree = two_subjects(house)
        house.run(tree)
        assert in_a_process(house, tree, -1) == 0
    happened = (folder / "events").read_text().splitlines()
    assert len({moment(happened) for moment in MOMENTS.values()}) == len(MOMENTS)
    return happened


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_at_any_moment_is_completed_by_the_next_call(moment: str, house: House, events: list[str]) -> None:
    tree = two_subjects(house)
    house.run(tree)
    assert in_a_process(house, tree, MOMENTS[moment](events)) == -signal.SIGKILL
    if moment == "between studies and Patients":  # a nightly run comes in between
        house.run(tree)
        assert ledger_rows(house.lake, house.server.url, tree.name, "sub-ada")

    done = house.withdraw(tree, "sub-ada")

    assert done.exit_code == 0
    hers = [house.study(tree, "one"), house.study(tree, "two"), house.patient(tree, "ID-ADA")]
    assert house.status(*hers, house.study(tree, "bob")) == [410] * 3 + [200]
    assert naming(house.lake, *of_ada(tree)) == []
    [row] = house.record(tree)
    assert (row["imaging_studies"], row["patients"], row["pending_deletions"]) == (2, 1, None)
    # no temporary file is left
    hidden = (path for path in Path(house.lake.root).rglob("*") if "/." in path.as_posix() and path.is_file())
    assert list(hidden) == []


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def loaded(tmp_path: Path, run_command: RunCommand) -> Tree:
    """A dataset that was loaded by the command, without a server."""
    tree = make_tree(tmp_path)
    for subject in ("sub-ada", "sub-bob"):
        tree.write(f"{subject}/1.dcm", PatientID=subject)
    assert run_command("run", tree.root, "--lake", tree.lake.root)[0] == 0
    return tree


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nobody", "--yes"), "the lake has no dataset nobody"),
        (("ds", "sub-eve", "--yes"), "ds has no subject sub-eve"),
        (("ds", "", "--yes"), "the name of the subject is empty"),
        (("ds", "sub-ada"), "add --yes to withdraw sub-ada of ds"),
        (("ds", "sub-ada", "--undo"), "nothing of ds was withdrawn"),
        (("ds", "sub-ada", "--undo", "--dry-run"), "--undo cannot be combined with --dry-run"),
    ],
)
def test_wrong_usage_is_one_sentence_and_2(
    loaded: Tree, run_command: RunCommand, arguments: tuple[str, ...], words: str
) -> None:
    before = content(loaded.lake)
    code, out, err = run_command("withdraw", *arguments, "--lake", loaded.lake.root)
    text = out + err
    assert code == 2
    assert words in text
    assert len(text.strip().splitlines()) == 1
    assert content(loaded.lake) == before
    assert not (Path(loaded.lake.root) / "locks/nobody.lock").exists()


def test_a_dry_run_counts_and_does_nothing(house: House, run_command: RunCommand) -> None:
    tree = two_subjects(house)
    house.run(tree)
    before = content(house.lake)
    house.server.requests.clear()

    done = house.withdraw(tree, "sub-ada", dry_run=True)
    code, text, _ = run_command("withdraw", tree.name, "sub-ada", "--dry-run", "--lake", house.lake.root)

    assert done.resources == {get_server_name(house.server.url): {"ImagingStudy": 2, "Patient": 1}}
    assert (done.files, done.studies, done.dry_run) == (3, 2, True)
    assert (code, content(house.lake), house.server.requests) == (0, before, [])
    assert "To be removed" in text
    assert "is not the configured server" in text


def test_the_command_forgets_and_a_run_over_all_passes_over_a_dataset(
    loaded: Tree, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = ("--lake", loaded.lake.root)
    code, text, _ = run_command("withdraw", "ds", "sub-ada", "--yes", *lake)
    assert (code, "files" in text) == (0, True)
    assert naming(loaded.lake, "sub-ada") == []
    code, _, _ = run_command("run", loaded.root, *lake)
    assert code == 0
    assert loaded.lake.read(INVENTORY, dataset="ds")["unit"].to_pylist() == ["sub-bob"]
    [plan] = json.loads(run_command("run", loaded.root, "--dry-run", "--json", *lake)[1])["plans"]
    assert (plan["files"], plan["new"], plan["units_to_extract"]) == (1, 0, 0)

    assert run_command("withdraw", "ds", "--yes", *lake)[0] == 0
    code, _, text = run_command("run", loaded.root, *lake)
    assert (code, len(text.strip().splitlines())) == (2, 1)
    assert "dataset ds was withdrawn and is skipped" in text
    assert run_command("withdraw", "ds", "--undo", *lake)[0] == 0
    assert run_command("run", loaded.root, *lake)[0] == 0
    assert naming(loaded.lake, "sub-ada") == []  # that she was withdrawn still counts


def test_a_person_at_a_terminal_is_asked(
    loaded: Tree, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer, code, there in ((False, 2, True), (True, 0, False)):
        monkeypatch.setattr("typer.confirm", lambda _, answer=answer: answer)
        assert run_command("withdraw", "ds", "sub-ada", "--lake", loaded.lake.root)[0] == code
        assert bool(naming(loaded.lake, "sub-ada")) is there


def test_a_dataset_that_is_being_written_is_waited_for(loaded: Tree) -> None:
    with loaded.lake.lock("ds", "extract of ds"), pytest.raises(LockHeldError, match="extract of ds"):
        withdraw("ds", "sub-ada", loaded.lake, Settings())


def test_a_dataset_that_is_being_written_is_told_to_a_machine_too(loaded: Tree, run_command: RunCommand) -> None:
    with loaded.lake.lock("ds", "extract of ds"):
        code, out, _ = run_command(
            "forget", "ds", "sub-ada", "--yes", "--no-wait", "--json", "--lake", loaded.lake.root
        )
    told = json.loads(out)
    assert code == told["exit_code"] == 1
    assert "extract of ds" in told["stopped"]


def test_a_record_that_is_not_there_cannot_be_taken_back(loaded: Tree) -> None:
    withdraw("ds", "sub-ada", loaded.lake, Settings())
    with pytest.raises(SettingsError, match="sub-bob of ds was not withdrawn"):
        undo_withdrawal("ds", "sub-bob", loaded.lake)


def test_a_key_of_resource_ids_brings_nobody_back(
    loaded: Tree, run_command: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = tmp_path / "keyed"
    run_command("run", loaded.root, "--lake", lake)
    assert run_command("withdraw", "ds", "sub-ada", "--yes", "--lake", lake)[0] == 0
    monkeypatch.setenv("DICOM_ETL_ID_KEY", "first key " * 4)
    assert run_command("run", loaded.root, "--lake", lake, "--rebuild")[0] == 0
    assert units_of(lake) == ["sub-bob"]
    assert run_command("withdraw", "ds", "sub-ada", "--undo", "--lake", lake)[0] == 0
    assert run_command("run", loaded.root, "--lake", lake)[0] == 0
    assert units_of(lake) == ["sub-ada", "sub-bob"]


def test_a_lake_is_not_rebuilt_where_withdrawn_subjects_would_come_back(
    loaded: Tree, run_command: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = tmp_path / "keyed"
    monkeypatch.setenv("DICOM_ETL_ID_KEY", "first key " * 4)
    run_command("run", loaded.root, "--lake", lake)
    assert run_command("withdraw", "ds", "sub-ada", "--yes", "--lake", lake)[0] == 0
    assert run_command("run", loaded.root, "--lake", lake)[0] == 0
    assert units_of(lake) == ["sub-bob"]
    before = content(Lake(str(lake)))
    monkeypatch.setenv("DICOM_ETL_ID_KEY", "other key " * 4)
    code, out, _ = run_command("run", loaded.root, "--lake", lake, "--rebuild")
    assert (code, "the withdrawals from ds are recorded under the id key" in " ".join(out.split())) == (1, True)
    assert content(Lake(str(lake))) == before


def units_of(lake: Path) -> list[str]:
    """The units of the only dataset of a lake."""
    return sorted(set(Lake(str(lake)).read(INVENTORY, dataset="ds")["unit"].to_pylist()))


def test_another_site_brings_nobody_back(loaded: Tree) -> None:
    withdraw("ds", "sub-ada", loaded.lake, Settings(namespace="https://one.example"))
    loaded.settings = Settings(namespace="https://two.example")
    loaded.crawl()
    assert loaded.lake.read(INVENTORY, dataset="ds")["unit"].to_pylist() == ["sub-bob"]
