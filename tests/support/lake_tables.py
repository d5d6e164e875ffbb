"""Hand-written header rows, tag profiles, FHIR elements and shards, for the tests of the quality measures."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from dicom_etl.lake.schemas import (
    BUILD_COMMITS,
    EXTRACT_COMMITS,
    FHIR_ELEMENTS,
    FILES,
    FINDINGS,
    IDENTITIES,
    INVENTORY,
    SHEETS,
    TAG_PROFILES,
    UNIT_RESOURCE_TYPES,
    Table,
    header_table,
)
from dicom_etl.lake.shard_writer import ShardWriter
from dicom_etl.lake.shards import assign_shard, choose_row_groups
from dicom_etl.lake.tables import Lake
from dicom_etl.quality.occurrences import GROUPS, create_occurrences, find_occurrences
from dicom_etl.quality.tag_states import create_states
from dicom_etl.quality.working_database import Database, open_database

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
UNKNOWN_CLASS = "1.2.3.4"

Row = dict[str, Any]
TagProfiles = Mapping[int, list[tuple[Any, ...]]]


def table_of(table: Table, rows: Iterable[Row]) -> pa.Table:
    """Rows of a table, sorted in its order; missing columns are null."""
    schema = table.schema
    filled = pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema)
    return filled.sort_by([(name, "ascending") for name in table.order])


def header_rows(*rows: Row) -> pa.Table:
    """Header rows; missing columns are null."""
    return table_of(header_table(), rows)


def tag_profile_rows(tag_profiles: TagProfiles) -> pa.Table:
    """Tag profiles from lists of (tag, status) or (tag, status, creator)."""
    return table_of(
        TAG_PROFILES,
        (
            {"tag_profile": tag_profile, "tag": tag, "creator": creator[0] if creator else None, "status": status}
            for tag_profile, elements in tag_profiles.items()
            for tag, status, *creator in elements
        ),
    )


@contextmanager
def database_of(
    rows: pa.Table, tag_profiles: TagProfiles | None = None, groups: Mapping[str, str] = GROUPS
) -> Iterator[Database]:
    """A database with the occurrences and states of header rows, in two batches, and without findings."""
    with open_database() as database:
        half = rows.num_rows // 2
        create_occurrences(database, (find_occurrences(batch) for batch in (rows.slice(0, half), rows.slice(half))))
        create_states(database, tag_profile_rows(tag_profiles or {}), groups)
        database.create("findings", FINDINGS.schema.empty_table())
        yield database


def write_shards(
    lake: Lake,
    dataset: str,
    rows: Iterable[Row],
    tag_profiles: TagProfiles,
    *,
    shards: int = 1,
    files: Iterable[Row] | None = None,
    findings: Mapping[str, Iterable[Row]] | None = None,
    elements: Iterable[Row] = (),
    built: Iterable[str] | None = None,
    identities: Iterable[Row] = (),
    sheets: Iterable[Row] = (),
) -> None:
    """Write the tables of a dataset as the stages extract and build do, with their commits.

    Args:
        lake: the lake.
        dataset: name of the dataset.
        rows: header rows with their `unit` and `path`; `tag_profiles` are those of all of them.
        tag_profiles: as in `tag_profile_rows`.
        shards: number of shards.
        files: rows of FILES; None: a readable file for each header row.
        findings: of `extract` and `build`, rows with their `unit`.
        elements: rows of FHIR_ELEMENTS.
        built: the units that were built; None: all.
        identities: rows of IDENTITIES.
        sheets: rows of SHEETS.
    """
    rows = [{"dataset": dataset, **row} for row in rows]
    files = [{"kind": "dicom", **row} for row in rows] if files is None else [{"dataset": dataset, **f} for f in files]
    units = sorted({row["unit"] for row in (*rows, *files)})
    findings_by_stage = {stage: list((findings or {}).get(stage, ())) for stage in ("extract", "build")}
    built_units = set(units if built is None else built)
    for shard in range(shards):
        shard_units = [unit for unit in units if assign_shard(unit, shards) == shard]

        def of_shard(table: Table, all_rows: Iterable[Row], shard_units: list[str] = shard_units) -> list[pa.Table]:
            return [table_of(table, [row for row in all_rows if row["unit"] in shard_units])]

        sizes = {unit: sum(row["unit"] == unit for row in rows) for unit in shard_units}
        writer = ShardWriter(lake, "extract", dataset, shard, shards)
        writer.write_table(header_table(), of_shard(header_table(), rows), choose_row_groups(list(sizes.values())))
        writer.write_table(TAG_PROFILES, [tag_profile_rows(tag_profiles)])
        writer.write_table(FILES, of_shard(FILES, files))
        writer.write_table(FINDINGS, of_shard(FINDINGS, findings_by_stage["extract"]))
        writer.commit(
            table_of(EXTRACT_COMMITS, [{"unit": u, "fingerprint": f"read {u}", "rows": n} for u, n in sizes.items()])
        )
        writer = ShardWriter(lake, "build", dataset, shard, shards)
        writer.write_table(FHIR_ELEMENTS, of_shard(FHIR_ELEMENTS, elements))
        writer.write_table(FINDINGS, of_shard(FINDINGS, findings_by_stage["build"]))
        lines = {f"{kind}_{name}": 0 for kind in UNIT_RESOURCE_TYPES for name in ("offset", "length", "count")}
        writer.commit(
            table_of(
                BUILD_COMMITS,
                [{"unit": u, "fingerprint": f"built {u}" if u in built_units else None, **lines} for u in shard_units],
            )
        )
    lake.write(IDENTITIES, table_of(IDENTITIES, [{"dataset": dataset, **row} for row in identities]), dataset=dataset)
    lake.write(SHEETS, table_of(SHEETS, [{"dataset": dataset, **row} for row in sheets]), dataset=dataset)
    lake.write(INVENTORY, table_of(INVENTORY, files), dataset=dataset)
