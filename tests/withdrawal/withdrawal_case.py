"""A lake with datasets and a server for tests of withdrawals, and what is left of a subject in them."""

from __future__ import annotations

import hashlib
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dicom_etl.identity.ids import ResourceIds
from dicom_etl.lake.commits import read_commits
from dicom_etl.lake.schemas import (
    COMMITS,
    FHIR_ELEMENTS,
    FILES,
    UNIT_RESOURCE_TYPES,
    WITHDRAWN,
    header_table,
)
from dicom_etl.lake.shard_reader import read_lines, read_unit
from dicom_etl.lake.tables import Lake
from dicom_etl.settings import FhirSettings, Settings
from dicom_etl.stages.measure import measure
from dicom_etl.stages.report import report
from dicom_etl.stages.upload import upload
from dicom_etl.stages.withdraw import withdraw
from dicom_etl.withdrawal.run import WithdrawalResult
from tests.support.datasets import Tree, make_tree, uid
from tests.support.proxy import Proxy
from tests.support.server_content import get, status
from tests.support.upload_lakes import ledger_rows, query_ledger

AUTHORITY = "urn:oid:1.2.3.4"


@dataclass
class WithdrawalCase:
    """Datasets of one lake, with ids that no other test on the shared server has."""

    folder: Path
    namespace: str
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
        return Settings(
            namespace=self.namespace, fhir=settings, crosswalk=str(self.crosswalk) if self.crosswalk else None
        )

    def tree(self, name: str, **settings: Any) -> Tree:
        """A dataset whose name no other test has, since UIDs are made from it."""
        tree = make_tree(self.folder, f"{name}-{self.namespace[-8:]}", lake=self.lake, **settings)
        self.trees[tree.name] = tree
        return tree

    def run(self, *trees: Tree, quality: bool = False) -> None:
        """Run the stages up to the upload, or to the report."""
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
        """The id of a study on the server, as `Type/id`."""
        return f"ImagingStudy/{self.ids.resource_id('ImagingStudy', tree.name, uid(f'{tree.name}/{name}'))}"

    def patient(self, tree: Tree, value: str) -> str:
        """The id of a Patient that belongs to the dataset."""
        return f"Patient/{self.ids.resource_id('Patient', f'{self.namespace}/{tree.name}/patient-id', value)}"

    def shared_patient(self, value: str) -> str:
        return f"Patient/{self.ids.resource_id('Patient', AUTHORITY, value)}"

    def endpoint(self, tree: Tree) -> str:
        return f"Endpoint/{self.ids.resource_id('Endpoint', tree.name)}"

    def status(self, *resources: str) -> list[int]:
        """The HTTP status of some resources."""
        return [status(self.server.url, resource) for resource in resources]

    def text(self, resource: str) -> str:
        """The content of a resource on the server."""
        return str(get(self.server.url, resource))

    def record(self, tree: Tree) -> list[dict[str, Any]]:
        return self.lake.read(WITHDRAWN, dataset=tree.name).to_pylist()


def make_two_subjects(case: WithdrawalCase, name: str = "ds") -> Tree:
    """Ada (sub-ada) has two studies and rows in sheets, Bob has one study; one file of each has the same UID."""
    tree = case.tree(name)
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


def list_terms_of_ada(tree: Tree) -> list[str]:
    """Names and UIDs that only Ada has."""
    uids = [f"{tree.name}/{name}" for name in ("one", "two", "sub-ada/sam-1", "sub-ada/sam-2", "sub-ada/sam-1/2.dcm")]
    return ["sub-ada", "ID-ADA", "Lovelace", *map(uid, uids)]


def read_stored_rows(case: WithdrawalCase, tree: Tree, unit: str) -> dict[str, tuple[str, str, str]]:
    """State, hash and version of each resource of a unit, as the ledger has them."""
    rows = ledger_rows(case.lake, case.server.url, tree.name, unit)
    assert rows
    return {name: (row["state"], row["hash"], row["version"]) for name, row in rows.items()}


def change_ledger(lake: Lake, statement: str) -> None:
    with closing(sqlite3.connect(Path(lake.root, "ledger.sqlite"))) as connection, connection:
        assert connection.execute(statement).rowcount > 0


def find_files_containing(lake: Lake, *terms: str) -> list[str]:
    """The files of the lake that contain a term in their bytes, their name or a column."""
    matches = []
    for file in sorted(path for path in Path(lake.root).rglob("*") if path.is_file()):
        text = f"{file.relative_to(lake.root)}\n" + file.read_bytes().decode("utf-8", "replace")
        if file.suffix == ".parquet":
            text += "\n".join(map(str, pq.read_table(file, use_threads=False).to_pylist()))
        matches += [f"{file.relative_to(lake.root)}: {term}" for term in terms if term in text]
    return matches


def read_unit_rows(tree: Tree, unit: str) -> dict[str, Any]:
    """Everything that tables in shards have of a unit, except for its position in a file."""
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


def hash_lake(lake: Lake) -> dict[str, str]:
    """The SHA-256 of every file of the lake except for locks, and every row of the ledger by its table and dataset."""
    files = (path for path in sorted(Path(lake.root).rglob("*")) if path.is_file())
    names = {path.relative_to(lake.root).as_posix(): path for path in files}
    names = {n: p for n, p in names.items() if not n.startswith(("locks/", "ledger.sqlite"))}
    digests = {n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in names.items()}
    for table in ("resources", "units"):
        for row in query_ledger(lake, f"SELECT * FROM {table}"):
            key = "/".join(str(row.get(name)) for name in ("server", "dataset", "unit", "type", "id"))
            digests[f"ledger {table} {key}"] = repr(row)
    return digests
