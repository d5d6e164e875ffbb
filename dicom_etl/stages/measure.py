"""measure: header rows, tag profiles, files, sheets, findings, FHIR elements -> `quality/D`.

The shards are read one after the other, a few thousand rows at a time, and come down to distinct combinations with
their counts in a working database (`quality.working_database`); measures and findings are queries over these.
`findings` is written last and is the commit. Nothing is measured, and no header table opened, if the commits and the
other inputs are unchanged.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.engine import Progress
from dicom_etl.findings import tabulate_findings
from dicom_etl.lake.commits import Commit, read_commits, require_undamaged
from dicom_etl.lake.fingerprints import compute_fingerprint, hash_package_files
from dicom_etl.lake.schemas import (
    ALL_FINDINGS,
    COMMITS,
    COMPLETENESS,
    DATASET_FINDINGS,
    FHIR_ELEMENTS,
    FILES,
    FINDINGS,
    IDENTITIES,
    INVENTORY,
    MEASURES,
    SHEETS,
)
from dicom_etl.lake.tables import Lake
from dicom_etl.quality.check_table import Measure, measures_table, quality_checks
from dicom_etl.quality.checks.consistency import consistency
from dicom_etl.quality.checks.fhir_readiness import ELEMENT_COLUMNS, IDENTITY_COLUMNS, create_resources, readiness
from dicom_etl.quality.checks.sheets import SHEET_COLUMNS, create_sheets, sample_matches, subject_matches
from dicom_etl.quality.checks.standard import file_measures, inventory, standard_measures
from dicom_etl.quality.checks.subjects import subject_measures
from dicom_etl.quality.completeness import completeness
from dicom_etl.quality.header_rows import header_rows, tag_profiles
from dicom_etl.quality.occurrences import create_occurrences, occurrences
from dicom_etl.quality.tag_states import create_states
from dicom_etl.quality.terms import create_terms
from dicom_etl.quality.working_database import Database, open_database
from dicom_etl.settings import Settings
from dicom_etl.sources import SourceError

# Raised when the code that measures changes what it says of the same tables.
MEASURE_VERSION = 4

_STAGES = ("crawl", "extract", "build", "upload")
_TABLES = (
    "dicom_etl:finding_codes.csv",
    "dicom_etl.headers:catalogue.csv",
    "dicom_etl.fhir.tables:annex_l.json",
    "dicom_etl.fhir.tables:body_part_aliases.csv",
    *(
        f"dicom_etl.quality.tables:{name}.json"
        for name in ("quality_checks", "dummies", "functional_groups", "requirements")
    ),
)


@dataclass(frozen=True)
class MeasureSummary:
    """The counts of a measured dataset. `updated` is False if nothing had changed since it was measured last."""

    dataset: str
    updated: bool
    units: int
    instances: int
    check_results: Mapping[str, int]  # number of checks by result; without checks to which nothing applies
    findings: Mapping[str, int]  # by severity


@dataclass(frozen=True)
class _Shards:
    """The commits of a dataset by shard: what there is to be measured."""

    extract: Mapping[int, Commit]
    build: Mapping[int, Commit]

    @property
    def units(self) -> int:
        """How many units were read."""
        return sum(len(commit.units) - commit.units["fingerprint"].null_count for commit in self.extract.values())

    @property
    def rows(self) -> Mapping[int, int]:
        """How many header rows each shard has."""
        return {shard: pc.sum(commit.units["rows"]).as_py() or 0 for shard, commit in self.extract.items()}

    @property
    def built_units(self) -> pa.Table:
        """The units whose resources were built."""
        empty = COMMITS["build"].schema.empty_table()
        units = pa.concat_tables([empty, *(commit.units for commit in self.build.values())])
        return units.filter(pc.is_valid(units["fingerprint"])).select(["unit"])


def measure(
    dataset: str,
    lake: Lake,
    settings: Settings,
    *,
    force: bool = False,
    progress: Progress = lambda *_: None,
) -> MeasureSummary:
    """Measure the quality of a dataset, unless it was measured as it is.

    Raises:
        SourceError: there are no header tables, or a file of a shard is damaged.
    """
    with lake.lock(dataset, f"measure of {dataset}"):
        shards = _Shards(read_commits(lake, "extract", dataset), read_commits(lake, "build", dataset))
        if not shards.units:
            raise SourceError(f"dataset {dataset}: there are no header tables; extract it first")
        mark = _fingerprint(lake, dataset, shards, settings)
        updated = force or not _is_current(lake, dataset, mark)
        if updated:
            _make(lake, dataset, shards, settings, mark, progress)
        return _summary(lake, dataset, updated=updated, units=shards.units)


def _make(lake: Lake, dataset: str, shards: _Shards, settings: Settings, mark: str, progress: Progress) -> None:
    require_undamaged(lake, "extract", dataset, shards.extract.values(), digests=True)
    require_undamaged(lake, "build", dataset, shards.build.values(), digests=True)
    for table in (ALL_FINDINGS, MEASURES, COMPLETENESS):  # no commit while the tables change
        lake.remove(table.path(dataset=dataset))
    lake.remove_temporary_files(ALL_FINDINGS.path(dataset=dataset).rpartition("/")[0])
    with open_database() as database:
        copies = _read_headers(database, lake, dataset, shards, progress)
        lake.write(COMPLETENESS, completeness(dataset, database), fingerprint=mark, dataset=dataset)
        _read_tables(database, lake, dataset, shards)
        measures = _judge(database, dataset, copies, settings)
        lake.write(MEASURES, measures_table(dataset, measures), fingerprint=mark, dataset=dataset)
        found = database.batches(f"FROM findings ORDER BY {', '.join(ALL_FINDINGS.order)}")
        lake.write_batches(ALL_FINDINGS, found, fingerprint=mark, dataset=dataset)


# -- whether to measure -----------------------------------------------------------------------------------------------


def _fingerprint(lake: Lake, dataset: str, shards: _Shards, settings: Settings) -> str:
    """The fingerprint of all that the measures are made from. A commit has the digest of each file of its shard."""
    return compute_fingerprint(
        MEASURE_VERSION,
        hash_package_files(*_TABLES),
        _zone(settings, dataset),
        settings.reference_date,
        [
            (stage, shard, lake.compute_digest(COMMITS[stage].path(dataset=dataset, shard=shard)))
            for stage, commits in (("extract", shards.extract), ("build", shards.build))
            for shard in sorted(commits)
        ],
        [lake.compute_digest(DATASET_FINDINGS.path(stage=stage, dataset=dataset)) for stage in _STAGES],
        [lake.compute_digest(table.path(dataset=dataset)) for table in (INVENTORY, SHEETS, IDENTITIES)],
    )


def _is_current(lake: Lake, dataset: str, mark: str) -> bool:
    return all(lake.read_fingerprint(t, dataset=dataset) == mark for t in (ALL_FINDINGS, MEASURES, COMPLETENESS))


def _zone(settings: Settings, dataset: str) -> str | None:
    own = settings.datasets.get(dataset)
    return (own.time_zone if own else None) or settings.time_zone


# -- reading the shards -----------------------------------------------------------------------------------------------


def _read_headers(
    database: Database, lake: Lake, dataset: str, shards: _Shards, progress: Progress
) -> Counter[str | None]:
    """Make the tables of occurrences and states; returns how many header rows have which mark of duplicates."""
    copies: Counter[str | None] = Counter()
    total, done = sum(shards.rows.values()), 0

    def pieces() -> Iterator[pa.Table]:
        nonlocal done
        for rows in header_rows(lake, dataset, sorted(shards.extract)):
            for mark in pc.value_counts(rows["duplicate"]).to_pylist():
                copies[mark["values"]] += mark["counts"]
            yield occurrences(rows)
            done += rows.num_rows
            progress(f"measure {dataset}", done, total)

    create_occurrences(database, pieces())
    create_states(database, tag_profiles(lake, dataset, sorted(shards.extract)))
    return copies


def _read_tables(database: Database, lake: Lake, dataset: str, shards: _Shards) -> None:
    """Make the tables of files, sheets, FHIR elements and findings."""
    files_read = FILES.schema.empty_table().select(["subject", "kind", "reason"])
    database.create("files", files_read.append_column("n", pa.array([], pa.int64())))
    database.create("findings", FINDINGS.schema.empty_table())
    for shard in sorted(shards.extract):
        for piece in lake.read_batches(FILES, files_read.column_names, dataset=dataset, shard=shard):
            counted = piece.group_by(files_read.column_names).aggregate([([], "count_all")])
            database.append("files", counted)
        for piece in lake.read_batches(FINDINGS, stage="extract", dataset=dataset, shard=shard):
            database.append("findings", piece)
    for shard in sorted(shards.build):
        for piece in lake.read_batches(FINDINGS, stage="build", dataset=dataset, shard=shard):
            database.append("findings", piece)
    for stage in _STAGES:
        for piece in lake.read_batches(DATASET_FINDINGS, stage=stage, dataset=dataset):
            database.append("findings", piece)
    create_sheets(
        database,
        lake.read_batches(INVENTORY, ["subject", "sample"], dataset=dataset),
        lake.read_batches(SHEETS, SHEET_COLUMNS, dataset=dataset),
    )
    create_resources(
        database,
        shards.built_units,
        (
            piece
            for shard in sorted(shards.build)
            for piece in lake.read_batches(FHIR_ELEMENTS, ELEMENT_COLUMNS, dataset=dataset, shard=shard)
        ),
        lake.read_batches(IDENTITIES, IDENTITY_COLUMNS, dataset=dataset),
    )


# -- judging the dataset ----------------------------------------------------------------------------------------------


def _judge(database: Database, dataset: str, copies: Mapping[str | None, int], settings: Settings) -> list[Measure]:
    """The measures; the findings of this stage go into the table of findings."""
    create_terms(database)
    reference_date = datetime.date.fromisoformat(settings.reference_date) if settings.reference_date else None
    standard, of_tags = standard_measures(dataset, database)
    of_subjects, unmatched_subjects = subject_matches(database, dataset)
    of_samples, unmatched_samples = sample_matches(database, dataset)
    consistent, inconsistencies = consistency(database, dataset, reference_date)
    for found in (tabulate_findings(of_tags), *unmatched_subjects, *unmatched_samples, *inconsistencies):
        database.append("findings", found)
    return [
        *file_measures(database, copies),
        *inventory(database),
        *standard,
        *of_subjects,
        *of_samples,
        *consistent,
        *readiness(database, has_zone=_zone(settings, dataset) is not None),
        *subject_measures(database),
    ]


# -- the summary ------------------------------------------------------------------------------------------------------


def _summary(lake: Lake, dataset: str, *, updated: bool, units: int) -> MeasureSummary:
    measures = lake.read(MEASURES, dataset=dataset).to_pylist()
    results = [row for row in measures if row["tag"] is None and row["reason"] is None and row["group_by"] == "all"]
    by_result = Counter(r["result"] for r in results if r["n_applicable"] and quality_checks()[r["check"]].is_check)
    instances = sum(r["n_applicable"] for r in results if (r["check"], r["level"]) == ("inventory", "instance"))
    severities = lake.read(ALL_FINDINGS, ["severity"], dataset=dataset)["severity"]
    by_severity = {row["values"]: row["counts"] for row in pc.value_counts(severities).to_pylist()}
    return MeasureSummary(
        dataset, updated, units, instances, dict(sorted(by_result.items())), dict(sorted(by_severity.items()))
    )
