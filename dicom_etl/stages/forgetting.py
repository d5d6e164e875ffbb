"""What the lake knows of what is withdrawn, and how it loses that.

Not here: the server and its ledger, and the record.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.construction import assembly as construction
from dicom_etl.extraction import assembly as extraction
from dicom_etl.identity.name_encoding import encode_name
from dicom_etl.lake.commits import Commit, read_commits
from dicom_etl.lake.row_groups import read_parquet
from dicom_etl.lake.schemas import (
    COMMITS,
    DATASET_FINDINGS,
    IDENTITIES,
    INVENTORY,
    RESOURCE_TYPES,
    SHEETS,
    STORED_BY_UNIT,
    headers,
)
from dicom_etl.lake.shard_reader import read_consistently, read_unit, unit_lines
from dicom_etl.lake.tables import Lake
from dicom_etl.lake.withdrawn import Withdrawn
from dicom_etl.sources.base import SheetCell
from dicom_etl.stages.left_out import cells_kept
from dicom_etl.upload.items import SHARED_RULES
from dicom_etl.upload.ledger import read_resources

Row = dict[str, Any]
_OURS = ("code", "severity", "stage", "dataset")  # columns of findings that no file has a say in


@dataclass(frozen=True)
class Known:
    """What the lake knows of a unit, or (unit None) of a whole dataset.

    `made` are the resources that it builds and that no other dataset can have, `patients` those of its studies,
    `needed` those of all other studies of the lake; `beside` are units that build studies which lie partly in it.
    """

    dataset: str
    unit: str | None
    is_all: bool
    files: int
    studies: frozenset[str]
    patients: frozenset[str]
    needed: frozenset[str]
    beside: frozenset[str]
    made: frozenset[tuple[str, str]]


def known_of(lake: Lake, dataset: str, unit: str | None) -> Known:
    """Look for a unit, or a dataset, in all tables that may have it."""
    inventory = lake.read(INVENTORY, ["unit"], dataset=dataset)["unit"].to_pylist()
    persons = lake.read(IDENTITIES, dataset=dataset).to_pylist()
    mine = [row for row in persons if unit in (None, row["unit"])]
    studies = {row["study_uid"] for row in mine} | set(_studies_of(lake, dataset, unit))
    own = [row for row in persons if unit in (None, row["unit"], row["building_unit"])]
    rest = {*inventory, *(row["unit"] for row in persons)} - {unit}
    files = len(inventory) if unit is None else inventory.count(unit)
    return Known(
        dataset,
        unit,
        unit is None or not rest,
        files,
        frozenset(studies),
        frozenset(row["patient"] for row in mine if row["patient"]),
        frozenset(_patients_beside(lake, dataset, unit)),
        frozenset(
            row["building_unit"] for row in mine if unit is not None and row["building_unit"] not in (None, unit)
        ),
        frozenset(_made(lake, dataset, unit, {row["patient"] for row in own if row["rule"] in SHARED_RULES})),
    )


def is_known(lake: Lake, dataset: str, unit: str | None) -> bool:
    """Whether the lake has anything of a unit, or a dataset; reads no shard, since a killed run may have left one."""
    units = {
        unit
        for table in (INVENTORY, IDENTITIES)
        for unit in pc.unique(lake.read(table, ["unit"], dataset=dataset)["unit"]).to_pylist()
    }
    return bool(units if unit is None else {unit} & units) or _has_files(lake, dataset, unit)


def _studies_of(lake: Lake, dataset: str, unit: str | None) -> Iterator[str]:
    """The studies in the header rows of a unit: a build may not have seen them yet."""
    if unit is not None:
        rows = read_unit(lake, headers(), ["StudyInstanceUID"], dataset=dataset, unit=unit)
        yield from (uid for uid in pc.unique(rows["StudyInstanceUID"]).to_pylist() if uid)


def _has_files(lake: Lake, dataset: str, unit: str | None) -> bool:
    """Whether there is a row of it in a ledger, or a file anywhere in the lake."""
    name = encode_name(dataset)
    if read_resources(lake, dataset, unit=unit):
        return True
    if unit is None:
        return any(lake.names(f"{folder}/{name}") for folder in _folders(lake))
    return any(unit in commit.rows for stage in COMMITS for commit in read_commits(lake, stage, dataset).values())


def _patients_beside(lake: Lake, dataset: str, unit: str | None) -> Iterator[str]:
    """The Patients of all studies of the lake that are not withdrawn."""
    for row in _all_persons(lake):
        if row["patient"] and not (row["dataset"] == dataset and unit in (None, row["unit"])):
            yield row["patient"]


def _all_persons(lake: Lake) -> Iterator[Row]:
    for name in lake.names("identities", ".parquet"):
        with lake.at(f"identities/{name}.parquet").open("rb") as file:
            yield from read_parquet(file).to_pylist()


def _made(lake: Lake, dataset: str, unit: str | None, shared: set[str]) -> Iterator[tuple[str, str]]:
    def made_in(commit: Commit) -> list[tuple[str, str]]:
        units = commit.rows if unit is None else {unit} & commit.rows.keys()
        lines = ((kind, unit_lines(lake, commit, kind, one).splitlines()) for one in units for kind in STORED_BY_UNIT)
        return [(kind, orjson.loads(line)["id"]) for kind, texts in lines for line in texts]

    for shard in read_commits(lake, "build", dataset):
        for kind, identity in read_consistently(lake, "build", dataset, shard, made_in) or ():
            if identity not in shared:
                yield kind, identity


def sharing(lake: Lake, known: Known) -> list[str]:
    """The datasets whose studies are of the same persons."""
    shared = known.patients & known.needed
    rows = (row for row in _all_persons(lake) if row["patient"] in shared)
    return sorted(
        {r["dataset"] for r in rows if not (r["dataset"] == known.dataset and known.unit in (None, r["unit"]))}
    )


# -- removal ----------------------------------------------------------------------------------------------------------


def clear(lake: Lake, known: Known, record: Withdrawn) -> None:
    """Remove it from the lake (the caller holds the dataset's lock). `record` has it already."""
    if known.unit is None:
        _clear_dataset(lake, known.dataset)
    else:
        _clear_unit(lake, known, known.unit, record)


def _clear_dataset(lake: Lake, dataset: str) -> None:
    name = encode_name(dataset)
    for folder in reversed(_folders(lake)):  # the commits first
        lake.remove_folder(f"{folder}/{name}")
    for table in (IDENTITIES, SHEETS, INVENTORY):
        lake.remove(table.path(dataset=dataset))


def _folders(lake: Lake) -> list[str]:
    """The folders of the lake in which a dataset has a folder of its own; ledgers are left to the server's part."""
    pieces = [f".chunks/{stage}" for stage in COMMITS]
    findings = [f"findings/{stage}" for stage in lake.names("findings")]
    resources = [f"fhir/{kind}" for kind in RESOURCE_TYPES]
    tables = ["files", "headers", "tag_profiles", "fhir_elements", *findings, *resources, "quality"]
    return [*pieces, *tables, *(f"commits/{stage}" for stage in COMMITS)]


def _clear_unit(lake: Lake, known: Known, unit: str, record: Withdrawn) -> None:
    dataset, name = known.dataset, encode_name(known.dataset)
    for stage in COMMITS:
        lake.remove_folder(f".chunks/{stage}/{name}")
    for stage in COMMITS:  # no state of the dataset while its shards change
        if lake.fingerprint(DATASET_FINDINGS, stage=stage, dataset=dataset):
            found = lake.read(DATASET_FINDINGS, stage=stage, dataset=dataset)
            lake.write(DATASET_FINDINGS, found, stage=stage, dataset=dataset)
    # those with a study in common with what is removed are built again by the next run
    construction.remove_units(lake, dataset, {unit, *known.beside})
    for stage in lake.names("findings"):
        _clear_findings(lake, known, unit, stage)
    lake.remove_folder(f"quality/{name}")
    extraction.remove_units(lake, dataset, {unit})
    _clear_identities(lake, dataset, unit)
    _clear_sheets(lake, dataset, record)
    inventory = lake.read(INVENTORY, dataset=dataset)
    kept = inventory.filter(pc.not_equal(inventory["unit"], unit))
    if kept.num_rows < inventory.num_rows:
        # with its fingerprint: it says from which folder the dataset is
        mark = lake.fingerprint(INVENTORY, dataset=dataset) or ""
        lake.write(INVENTORY, kept, fingerprint=mark, dataset=dataset)


def _clear_findings(lake: Lake, known: Known, unit: str, stage: str) -> None:
    """Take out of the findings of the whole dataset what speaks of the unit, also in those of other units."""
    found = lake.read(DATASET_FINDINGS, stage=stage, dataset=known.dataset)
    terms = "|".join(map(re.escape, sorted({unit, *known.studies, *known.patients}, key=len, reverse=True)))
    speaks = re.compile(rf"(?<![\w.-])(?:{terms})(?![\w-]|\.\d)")
    texts = [field.name for field in found.schema if field.type == pa.string() and field.name not in _OURS]
    kept = [not any(row[text] and speaks.search(row[text]) for text in texts) for row in found.to_pylist()]
    if not all(kept):
        # without a fingerprint, so that the stage makes them again
        lake.write(DATASET_FINDINGS, found.filter(pa.array(kept)), stage=stage, dataset=known.dataset)


def _clear_identities(lake: Lake, dataset: str, unit: str) -> None:
    """Take the unit's studies out; what lies in other units as well is theirs. The next build decides anew."""
    before = lake.read(IDENTITIES, dataset=dataset).to_pylist()
    kept = [row for row in before if row["unit"] != unit]
    owners = {row["study_uid"]: row["unit"] for row in reversed(kept)}  # sorted by unit: the first
    rows = [row | {"building_unit": owners[row["study_uid"]]} if row["building_unit"] == unit else row for row in kept]
    if rows != before:
        lake.write_rows(IDENTITIES, rows, dataset=dataset)


def _clear_sheets(lake: Lake, dataset: str, record: Withdrawn) -> None:
    before = lake.read(SHEETS, dataset=dataset).to_pylist()
    cells = [SheetCell(**{name: row[name] for name in SheetCell._fields}) for row in before]
    kept = cells_kept(cells, record)
    if len(kept) < len(cells):
        lake.write_rows(SHEETS, [{"dataset": dataset, **cell._asdict()} for cell in kept], dataset=dataset)
