"""What the lake has of a subject or dataset that is withdrawn, and what the rest of the lake shares with it.

Not here: the server and its ledger (`upload.deletion`), and removal (`withdrawal.removal`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow.compute as pc

from dicom_etl.identity.name_encoding import encode_name
from dicom_etl.lake.commits import Commit, read_commits
from dicom_etl.lake.row_groups import read_parquet
from dicom_etl.lake.schemas import COMMITS, IDENTITIES, INVENTORY, UNIT_RESOURCE_TYPES, header_table
from dicom_etl.lake.shard_reader import read_consistently, read_unit, read_unit_lines
from dicom_etl.lake.tables import Lake
from dicom_etl.upload.items import SHARED_RULES
from dicom_etl.upload.ledger import read_resources
from dicom_etl.withdrawal.removal import dataset_folders


@dataclass(frozen=True)
class Contents:
    """What the lake has of a unit, or (unit None) of a whole dataset.

    Attributes:
        dataset: its name.
        unit: None for the whole dataset.
        is_all: nothing of the dataset remains.
        files: the number of its files in the inventory.
        studies: StudyInstanceUIDs of its studies, including those that other units have a part of.
        patients: ids of the Patients of its studies.
        needed_patients: ids of the Patients of all other studies of the lake.
        sharing_units: units that build studies of which it has a part.
        resources: (type, id) of the resources that are built from it and that no other dataset can have.
    """

    dataset: str
    unit: str | None
    is_all: bool
    files: int
    studies: frozenset[str]
    patients: frozenset[str]
    needed_patients: frozenset[str]
    sharing_units: frozenset[str]
    resources: frozenset[tuple[str, str]]


def read_contents(lake: Lake, dataset: str, unit: str | None) -> Contents:
    """Look for a unit, or a whole dataset, in all tables that may have it."""
    inventory_units = lake.read(INVENTORY, ["unit"], dataset=dataset)["unit"].to_pylist()
    identities = lake.read(IDENTITIES, dataset=dataset).to_pylist()
    rows = [row for row in identities if unit in (None, row["unit"])]
    studies = {row["study_uid"] for row in rows}
    if unit is not None:  # it may have header rows, and not have been built yet
        header_rows = read_unit(lake, header_table(), ["StudyInstanceUID"], dataset=dataset, unit=unit)
        studies.update(uid for uid in pc.unique(header_rows["StudyInstanceUID"]).to_pylist() if uid)
    built_rows = [row for row in identities if unit in (None, row["unit"], row["building_unit"])]
    shared_patients = {row["patient"] for row in built_rows if row["rule"] in SHARED_RULES}
    other_units = {*inventory_units, *(row["unit"] for row in identities)} - {unit}
    return Contents(
        dataset,
        unit,
        is_all=unit is None or not other_units,
        files=len(inventory_units) if unit is None else inventory_units.count(unit),
        studies=frozenset(studies),
        patients=frozenset(row["patient"] for row in rows if row["patient"]),
        needed_patients=frozenset(
            row["patient"] for row in _all_identities(lake) if row["patient"] and not _is_in(row, dataset, unit)
        ),
        sharing_units=frozenset(
            row["building_unit"] for row in rows if unit is not None and row["building_unit"] not in (None, unit)
        ),
        resources=frozenset(_resources(lake, dataset, unit, shared_patients)),
    )


def has_contents(lake: Lake, dataset: str, unit: str | None) -> bool:
    """Whether the lake has anything of a unit or dataset; no shard is read, since a killed run may have left one."""
    units = {
        name
        for table in (INVENTORY, IDENTITIES)
        for name in pc.unique(lake.read(table, ["unit"], dataset=dataset)["unit"]).to_pylist()
    }
    if units if unit is None else unit in units:
        return True
    if read_resources(lake, dataset, unit=unit):
        return True
    if unit is None:
        return any(lake.list_names(f"{folder}/{encode_name(dataset)}") for folder in dataset_folders(lake))
    return any(unit in commit.rows for stage in COMMITS for commit in read_commits(lake, stage, dataset).values())


def find_sharing_datasets(lake: Lake, contents: Contents) -> list[str]:
    """The datasets that have other studies of its Patients, sorted."""
    shared = contents.patients & contents.needed_patients
    rows = (row for row in _all_identities(lake) if row["patient"] in shared)
    return sorted({row["dataset"] for row in rows if not _is_in(row, contents.dataset, contents.unit)})


def _all_identities(lake: Lake) -> Iterator[dict[str, Any]]:
    for name in lake.list_names("identities", ".parquet"):
        with lake.resolve(f"identities/{name}.parquet").open("rb") as file:
            yield from read_parquet(file).to_pylist()


def _is_in(row: dict[str, Any], dataset: str, unit: str | None) -> bool:
    return row["dataset"] == dataset and unit in (None, row["unit"])


def _resources(lake: Lake, dataset: str, unit: str | None, shared_patients: set[str]) -> Iterator[tuple[str, str]]:
    def read_keys(commit: Commit) -> list[tuple[str, str]]:
        units = commit.rows if unit is None else {unit} & commit.rows.keys()
        lines = (
            (kind, line) for name in units for kind in UNIT_RESOURCE_TYPES for line in read_lines(commit, kind, name)
        )
        return [(kind, orjson.loads(line)["id"]) for kind, line in lines]

    def read_lines(commit: Commit, kind: str, name: str) -> list[bytes]:
        return read_unit_lines(lake, commit, kind, name).splitlines()

    for shard in read_commits(lake, "build", dataset):
        for kind, identity in read_consistently(lake, "build", dataset, shard, read_keys) or ():
            if identity not in shared_patients:
                yield kind, identity
