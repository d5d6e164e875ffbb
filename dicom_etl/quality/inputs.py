"""The tables of the lake that a dataset is measured from, loaded into a working database.

The shards are read one after the other, some thousand rows at a time; in the database there are only distinct
combinations with their number, so that memory does not grow with the number of instances.

Not here: the counts that are made from them (`completeness`, `checks`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.lake.commits import Commit, read_commits
from dicom_etl.lake.schemas import (
    COMMITS,
    DATASET_FINDINGS,
    FHIR_ELEMENTS,
    FILES,
    FINDINGS,
    IDENTITIES,
    INVENTORY,
    SHEETS,
    TAG_PROFILES,
    header_table,
)
from dicom_etl.lake.tables import Lake
from dicom_etl.quality.checks.fhir_readiness import ELEMENT_COLUMNS, IDENTITY_COLUMNS, create_cases, create_resources
from dicom_etl.quality.checks.sheets import FOLDER_COLUMNS, SHEET_COLUMNS, create_sheets
from dicom_etl.quality.occurrences import HEADER_COLUMNS, create_occurrences, find_occurrences
from dicom_etl.quality.tag_states import create_states
from dicom_etl.quality.terms import create_terms
from dicom_etl.quality.working_database import Database

__all__ = ["DATASET_STAGES", "DatasetShards", "load_dataset", "read_header_rows", "read_tag_profiles"]

DATASET_STAGES = ("crawl", "extract", "build", "upload")  # they may have findings of the whole dataset

READ_ROWS = 40_000  # header rows in memory, some 40 MB


@dataclass(frozen=True)
class DatasetShards:
    """The shards of a dataset: their commits of the stages `extract` and `build`."""

    extract: Mapping[int, Commit]
    build: Mapping[int, Commit]

    @classmethod
    def read(cls, lake: Lake, dataset: str) -> DatasetShards:
        """Read the commits of a dataset."""
        return cls(read_commits(lake, "extract", dataset), read_commits(lake, "build", dataset))

    @property
    def n_units(self) -> int:
        """The number of units that were extracted."""
        return sum(len(commit.units) - commit.units["fingerprint"].null_count for commit in self.extract.values())

    @property
    def n_rows(self) -> int:
        """The number of header rows."""
        return sum(pc.sum(commit.units["rows"]).as_py() or 0 for commit in self.extract.values())

    @property
    def built_units(self) -> pa.Table:
        """The units whose resources were built, as a column `unit`."""
        no_units = COMMITS["build"].schema.empty_table()
        units = pa.concat_tables([no_units, *(commit.units for commit in self.build.values())])
        return units.filter(pc.is_valid(units["fingerprint"])).select(["unit"])


Progress = Callable[[int, int], None]  # header rows that were read, and in all


def load_dataset(
    database: Database, lake: Lake, dataset: str, shards: DatasetShards, *, has_time_zone: bool, progress: Progress
) -> None:
    """Load all tables of a dataset that the checks query.

    Args:
        database: takes the tables.
        lake: has the dataset.
        dataset: its name.
        shards: its shards.
        has_time_zone: whether a time zone is set for the dataset.
        progress: is called after each batch of header rows.
    """
    _load_headers(database, lake, dataset, shards, progress)
    _load_files_and_findings(database, lake, dataset, shards)
    create_terms(database)
    create_sheets(
        database,
        lake.read_batches(INVENTORY, FOLDER_COLUMNS, dataset=dataset),
        lake.read_batches(SHEETS, SHEET_COLUMNS, dataset=dataset),
    )
    elements = (
        batch
        for shard in sorted(shards.build)
        for batch in lake.read_batches(FHIR_ELEMENTS, ELEMENT_COLUMNS, dataset=dataset, shard=shard)
    )
    identities = lake.read_batches(IDENTITIES, IDENTITY_COLUMNS, dataset=dataset)
    create_resources(database, shards.built_units, elements, identities)
    create_cases(database, has_time_zone=has_time_zone)


def _load_headers(database: Database, lake: Lake, dataset: str, shards: DatasetShards, progress: Progress) -> None:
    """Create the tables of occurrences and states, and `duplicate_flags`: the number of header rows with each flag."""
    flags: Counter[str | None] = Counter()
    total, done = shards.n_rows, 0

    def find_all_occurrences() -> Iterator[pa.Table]:
        nonlocal done
        for rows in read_header_rows(lake, dataset, sorted(shards.extract)):
            for flag in pc.value_counts(rows["duplicate"]).to_pylist():
                flags[flag["values"]] += flag["counts"]
            yield find_occurrences(rows)
            done += rows.num_rows
            progress(done, total)

    create_occurrences(database, find_all_occurrences())
    create_states(database, read_tag_profiles(lake, dataset, sorted(shards.extract)))
    duplicates, numbers = pa.array(list(flags), pa.string()), pa.array(list(flags.values()), pa.int64())
    database.create("duplicate_flags", pa.table({"duplicate": duplicates, "n": numbers}))


def _load_files_and_findings(database: Database, lake: Lake, dataset: str, shards: DatasetShards) -> None:
    """Create `files`, the number `n` of files by subject, kind and reason, and `findings`, those of all stages."""
    columns = ["subject", "kind", "reason"]
    file_counts = (
        batch.group_by(columns).aggregate([([], "count_all")]).rename_columns([*columns, "n"])
        for shard in sorted(shards.extract)
        for batch in lake.read_batches(FILES, columns, dataset=dataset, shard=shard)
    )
    schema = pa.schema([*(FILES.schema.field(name) for name in columns), pa.field("n", pa.int64())])
    database.create_from_batches("files", schema, file_counts)
    database.create_from_batches("findings", FINDINGS.schema, _read_findings(lake, dataset, shards))


def _read_findings(lake: Lake, dataset: str, shards: DatasetShards) -> Iterator[pa.Table]:
    for stage, commits in (("extract", shards.extract), ("build", shards.build)):
        for shard in sorted(commits):
            yield from lake.read_batches(FINDINGS, stage=stage, dataset=dataset, shard=shard)
    for stage in DATASET_STAGES:
        yield from lake.read_batches(DATASET_FINDINGS, stage=stage, dataset=dataset)


def read_header_rows(lake: Lake, dataset: str, shards: Iterable[int]) -> Iterator[pa.Table]:
    """The header rows of some shards with `HEADER_COLUMNS`, in batches of about `READ_ROWS`."""
    batch: list[pa.Table] = []
    for shard in shards:
        for rows in lake.read_batches(header_table(), list(HEADER_COLUMNS), dataset=dataset, shard=shard):
            batch.append(rows)
            if sum(rows.num_rows for rows in batch) >= READ_ROWS:
                yield pa.concat_tables(batch)
                batch = []
    if batch:
        yield pa.concat_tables(batch)


def read_tag_profiles(lake: Lake, dataset: str, shards: Iterable[int]) -> pa.Table:
    """The different tag profiles of some shards, which have most of them in common."""
    tag_profiles = TAG_PROFILES.schema.empty_table()
    for shard in shards:
        rows = lake.read(TAG_PROFILES, dataset=dataset, shard=shard)
        is_new = pc.invert(pc.is_in(rows["tag_profile"], pc.unique(tag_profiles["tag_profile"])))
        tag_profiles = pa.concat_tables([tag_profiles, rows.filter(is_new)])
    return tag_profiles
