"""Removal of a withdrawn subject or dataset from the lake.

Not here: its removal from the server and the ledger (`upload.deletion`).
"""

from __future__ import annotations

import re
from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.construction import assembly as construction
from dicom_etl.extraction import assembly as extraction
from dicom_etl.identity.name_encoding import encode_name
from dicom_etl.lake.schemas import COMMITS, DATASET_FINDINGS, IDENTITIES, INVENTORY, RESOURCE_TYPES, SHEETS
from dicom_etl.lake.tables import Lake
from dicom_etl.sources.base import SheetCell
from dicom_etl.withdrawal.exclusion import exclude_cells
from dicom_etl.withdrawal.record import WithdrawalRecord

_CATALOGUED_COLUMNS = ("code", "severity", "stage", "dataset")  # of findings: they never contain text from a file


def remove_dataset(lake: Lake, dataset: str) -> None:
    """Remove a dataset from the lake; the caller holds its lock."""
    name = encode_name(dataset)
    for folder in reversed(dataset_folders(lake)):  # the commits first
        lake.remove_folder(f"{folder}/{name}")
    for table in (IDENTITIES, SHEETS, INVENTORY):
        lake.remove(table.path(dataset=dataset))


def dataset_folders(lake: Lake) -> list[str]:
    """The folders of the lake in which each dataset has a folder, except for `upload_ledger`; those of commits last."""
    chunks = [f".chunks/{stage}" for stage in COMMITS]
    findings = [f"findings/{stage}" for stage in lake.list_names("findings")]
    resources = [f"fhir/{kind}" for kind in RESOURCE_TYPES]
    tables = ["files", "headers", "tag_profiles", "fhir_elements", *findings, *resources, "quality"]
    return [*chunks, *tables, *(f"commits/{stage}" for stage in COMMITS)]


def remove_unit(
    lake: Lake,
    dataset: str,
    unit: str,
    record: WithdrawalRecord,
    *,
    sharing_units: Collection[str],
    identifiers: Collection[str],
) -> None:
    """Remove a unit from the lake; the caller holds the lock of its dataset.

    Args:
        lake: holds it.
        dataset: its dataset.
        unit: its name.
        record: it contains the withdrawal of the unit already.
        sharing_units: units that build studies of which it has a part: the next run builds them again.
        identifiers: StudyInstanceUIDs and ids of Patients by which findings may mention it.
    """
    name = encode_name(dataset)
    for stage in COMMITS:
        lake.remove_folder(f".chunks/{stage}/{name}")
    for stage in COMMITS:  # without a fingerprint: the dataset has no finished state while its shards change
        if lake.read_fingerprint(DATASET_FINDINGS, stage=stage, dataset=dataset):
            findings = lake.read(DATASET_FINDINGS, stage=stage, dataset=dataset)
            lake.write(DATASET_FINDINGS, findings, stage=stage, dataset=dataset)
    construction.remove_units(lake, dataset, {unit, *sharing_units})
    for stage in lake.list_names("findings"):
        _remove_findings(lake, dataset, stage, {unit, *identifiers})
    lake.remove_folder(f"quality/{name}")
    extraction.remove_units(lake, dataset, {unit})
    _remove_identities(lake, dataset, unit)
    _remove_cells(lake, dataset, record)
    inventory = lake.read(INVENTORY, dataset=dataset)
    kept = inventory.filter(pc.not_equal(inventory["unit"], unit))
    if kept.num_rows < inventory.num_rows:
        # with its fingerprint, which identifies the folder that the dataset comes from
        fingerprint = lake.read_fingerprint(INVENTORY, dataset=dataset) or ""
        lake.write(INVENTORY, kept, fingerprint=fingerprint, dataset=dataset)


def _remove_findings(lake: Lake, dataset: str, stage: str, terms: Collection[str]) -> None:
    """Remove the findings of the whole dataset that mention one of some terms, even if they are about another unit."""
    findings = lake.read(DATASET_FINDINGS, stage=stage, dataset=dataset)
    pattern = "|".join(map(re.escape, sorted(terms, key=len, reverse=True)))
    mention = re.compile(rf"(?<![\w.-])(?:{pattern})(?![\w-]|\.\d)")
    texts = [f.name for f in findings.schema if f.type == pa.string() and f.name not in _CATALOGUED_COLUMNS]
    is_kept = [not any(row[text] and mention.search(row[text]) for text in texts) for row in findings.to_pylist()]
    if not all(is_kept):
        # without a fingerprint, so that the stage writes them anew
        lake.write(DATASET_FINDINGS, findings.filter(pa.array(is_kept)), stage=stage, dataset=dataset)


def _remove_identities(lake: Lake, dataset: str, unit: str) -> None:
    """Remove the rows of the unit; studies that other units have a part of get one of these as owner.

    The next build matches their patients anew.
    """
    before = lake.read(IDENTITIES, dataset=dataset).to_pylist()
    kept = [row for row in before if row["unit"] != unit]
    owners = {row["study_uid"]: row["unit"] for row in reversed(kept)}  # sorted by unit: the first
    rows = [row | {"building_unit": owners[row["study_uid"]]} if row["building_unit"] == unit else row for row in kept]
    if rows != before:
        lake.write_rows(IDENTITIES, rows, dataset=dataset)


def _remove_cells(lake: Lake, dataset: str, record: WithdrawalRecord) -> None:
    rows = lake.read(SHEETS, dataset=dataset).to_pylist()
    cells = [SheetCell(**{name: row[name] for name in SheetCell._fields}) for row in rows]
    kept = exclude_cells(cells, record)
    if len(kept) < len(cells):
        lake.write_rows(SHEETS, [{"dataset": dataset, **cell._asdict()} for cell in kept], dataset=dataset)
