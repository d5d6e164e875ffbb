"""measure: header rows, tag profiles, files, sheets, findings, FHIR elements -> `quality/D`.

The tables are loaded into a working database (`quality.inputs`), where completeness and quality checks are counted.
`findings` is written last and is the commit. Nothing is measured, and no header table opened, if the commits of the
shards and the other inputs are unchanged.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow.compute as pc

from dicom_etl.engine import Progress
from dicom_etl.lake.commits import require_undamaged
from dicom_etl.lake.fingerprints import compute_fingerprint, hash_package_files
from dicom_etl.lake.schemas import (
    ALL_FINDINGS,
    COMMITS,
    COMPLETENESS,
    DATASET_FINDINGS,
    IDENTITIES,
    INVENTORY,
    MEASURES,
    SHEETS,
)
from dicom_etl.lake.tables import Lake
from dicom_etl.quality.check_table import quality_checks, tabulate_measures
from dicom_etl.quality.checks import MeasuredDataset, count_checks
from dicom_etl.quality.completeness import count_completeness
from dicom_etl.quality.inputs import DATASET_STAGES, DatasetShards, load_dataset
from dicom_etl.quality.working_database import open_database
from dicom_etl.settings import Settings
from dicom_etl.sources import SourceError

# Raise it when a change of the code changes the measures or findings of the same tables.
MEASURE_VERSION = 4

_TABLES = (
    "dicom_etl:finding_codes.csv",
    "dicom_etl.headers:catalogue.csv",
    "dicom_etl.fhir.tables:annex_l.json",
    "dicom_etl.fhir.tables:body_part_aliases.csv",
    "dicom_etl.quality.tables:quality_checks.json",
    "dicom_etl.quality.tables:placeholders.json",
    "dicom_etl.quality.tables:functional_groups.json",
    "dicom_etl.quality.tables:requirements.json",
)


@dataclass(frozen=True)
class MeasureSummary:
    """The counts of a measured dataset. `updated` is False if nothing had changed since it was measured last."""

    dataset: str
    updated: bool
    units: int
    instances: int
    check_results: Mapping[str, int]  # number of checks by result, without those to which nothing applies
    findings: Mapping[str, int]  # number by severity


def measure(
    dataset: str,
    lake: Lake,
    settings: Settings,
    *,
    force: bool = False,
    progress: Progress = lambda *_: None,
) -> MeasureSummary:
    """Measure the quality of a dataset, unless nothing has changed since it was measured last.

    Raises:
        SourceError: there are no header tables, or a file of a shard is damaged.
    """
    with lake.lock(dataset, f"measure of {dataset}"):
        shards = DatasetShards.read(lake, dataset)
        if not shards.n_units:
            raise SourceError(f"dataset {dataset}: there are no header tables; extract it first")
        new_fingerprint = _compute_fingerprint(lake, dataset, shards, settings)
        tables = (ALL_FINDINGS, MEASURES, COMPLETENESS)
        is_current = all(lake.read_fingerprint(table, dataset=dataset) == new_fingerprint for table in tables)
        if force or not is_current:
            _write_tables(lake, dataset, shards, settings, new_fingerprint, progress)
        return _summarize(lake, dataset, updated=force or not is_current, units=shards.n_units)


def _write_tables(
    lake: Lake, dataset: str, shards: DatasetShards, settings: Settings, new_fingerprint: str, progress: Progress
) -> None:
    require_undamaged(lake, "extract", dataset, shards.extract.values(), digests=True)
    require_undamaged(lake, "build", dataset, shards.build.values(), digests=True)
    for table in (ALL_FINDINGS, MEASURES, COMPLETENESS):  # no commit while the tables change
        lake.remove(table.path(dataset=dataset))
    lake.remove_temporary_files(ALL_FINDINGS.path(dataset=dataset).rpartition("/")[0])
    has_time_zone = _find_time_zone(settings, dataset) is not None
    reference_date = datetime.date.fromisoformat(settings.reference_date) if settings.reference_date else None
    with open_database() as database:

        def show_progress(done: int, total: int) -> None:
            progress(f"measure {dataset}", done, total)

        load_dataset(database, lake, dataset, shards, has_time_zone=has_time_zone, progress=show_progress)
        completeness = count_completeness(dataset, database)
        lake.write(COMPLETENESS, completeness, fingerprint=new_fingerprint, dataset=dataset)
        measures = count_checks(MeasuredDataset(dataset, database, reference_date))
        lake.write(MEASURES, tabulate_measures(dataset, measures), fingerprint=new_fingerprint, dataset=dataset)
        findings = database.fetch_batches(f"FROM findings ORDER BY {', '.join(ALL_FINDINGS.order)}")
        lake.write_batches(ALL_FINDINGS, findings, fingerprint=new_fingerprint, dataset=dataset)


def _compute_fingerprint(lake: Lake, dataset: str, shards: DatasetShards, settings: Settings) -> str:
    """The fingerprint of all inputs of the measures. A commit contains the digest of each file of its shard."""
    return compute_fingerprint(
        MEASURE_VERSION,
        hash_package_files(*_TABLES),
        _find_time_zone(settings, dataset),
        settings.reference_date,
        [
            (stage, shard, lake.compute_digest(COMMITS[stage].path(dataset=dataset, shard=shard)))
            for stage, commits in (("extract", shards.extract), ("build", shards.build))
            for shard in sorted(commits)
        ],
        [lake.compute_digest(DATASET_FINDINGS.path(stage=stage, dataset=dataset)) for stage in DATASET_STAGES],
        [lake.compute_digest(table.path(dataset=dataset)) for table in (INVENTORY, SHEETS, IDENTITIES)],
    )


def _find_time_zone(settings: Settings, dataset: str) -> str | None:
    dataset_settings = settings.datasets.get(dataset)
    return (dataset_settings.time_zone if dataset_settings else None) or settings.time_zone


def _summarize(lake: Lake, dataset: str, *, updated: bool, units: int) -> MeasureSummary:
    measures = lake.read(MEASURES, dataset=dataset).to_pylist()
    results = [row for row in measures if row["tag"] is None and row["reason"] is None and row["group_by"] == "all"]
    by_result = Counter(r["result"] for r in results if r["n_applicable"] and quality_checks()[r["check"]].is_check)
    instances = sum(r["n_applicable"] for r in results if (r["check"], r["level"]) == ("inventory", "instance"))
    severities = lake.read(ALL_FINDINGS, ["severity"], dataset=dataset)["severity"]
    by_severity = {row["values"]: row["counts"] for row in pc.value_counts(severities).to_pylist()}
    return MeasureSummary(
        dataset, updated, units, instances, dict(sorted(by_result.items())), dict(sorted(by_severity.items()))
    )
