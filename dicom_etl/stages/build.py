"""build: header rows, sheets and settings -> `identities` of a dataset, and its FHIR resources in shards.

Patients are matched over the whole dataset first. Then the resources of each unit whose inputs have changed are built,
and the shards of these units are written. A unit that fails keeps its previous resources and is built again by the next
run.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from dicom_etl.construction.building import build_units
from dicom_etl.construction.chunks import chunks_folder
from dicom_etl.construction.dataset_state import DatasetState, count_results, merge_dataset_findings
from dicom_etl.construction.findings import failure_findings, unmatched_corrections, unmatched_crosswalk_entries
from dicom_etl.construction.header_units import HeaderUnits
from dicom_etl.construction.identities import match_dataset, matching_fingerprint
from dicom_etl.construction.plan import (
    BuildInputs,
    MappedSheets,
    match_corrections,
    plan_build,
    read_undamaged_commits,
)
from dicom_etl.construction.shards import write_shards
from dicom_etl.engine import Engine, Progress
from dicom_etl.fhir.context import Context
from dicom_etl.fhir.corrections import read_corrections
from dicom_etl.fhir.endpoint import make_endpoint
from dicom_etl.identity.crosswalk import read_crosswalk
from dicom_etl.lake.commits import read_commits, require_undamaged
from dicom_etl.lake.schemas import SHEETS
from dicom_etl.lake.tables import Lake
from dicom_etl.settings import DatasetSettings, Settings
from dicom_etl.sources import Source, SourceError
from dicom_etl.withdrawal.exclusion import exclude_findings
from dicom_etl.withdrawal.record import WithdrawalRecord


@dataclass(frozen=True)
class BuildResult:
    """The counts of a build: the units of this run, and all that the dataset has after it."""

    dataset: str
    units: int
    units_processed: int
    units_failed: int
    patients: int
    studies: int
    held: int
    findings: int


def build(
    source: Source,
    lake: Lake,
    settings: Settings,
    dataset_settings: DatasetSettings,
    engine: Engine,
    *,
    subjects: Collection[str] | None = None,
    force: bool = False,
    progress: Progress = lambda *_: None,
) -> BuildResult:
    """Update the resources of a dataset to match its header tables, sheets, corrections and settings.

    Args:
        source: names the dataset and its location.
        lake: has the header tables and the sheets.
        settings: of the project, with the crosswalk and the corrections file.
        dataset_settings: of the dataset.
        engine: runs the workers that build chunks and write shards.
        subjects: only these units are built; None: all.
        force: build every unit again.
        progress: called with ("build NAME", header rows done, header rows to do).

    Raises:
        SourceError: there are no header tables.
        SettingsError: the crosswalk, the corrections file or the key of resource ids cannot be used.
    """
    dataset, ids = source.dataset, settings.resource_ids()
    with lake.lock(dataset, f"build of {dataset}"):
        extracted = read_commits(lake, "extract", dataset)
        require_undamaged(lake, "extract", dataset, extracted.values(), digests=False)
        units = HeaderUnits(extracted)
        if not units.fingerprints:
            raise SourceError(f"dataset {dataset}: there are no header tables; extract it first")
        crosswalk = [entry for entry in read_crosswalk(settings.crosswalk) if entry.dataset == dataset]
        corrections = [line for line in read_corrections(settings.corrections) if line.dataset == dataset]
        context = Context.from_settings(dataset, settings, dataset_settings)
        withdrawn = WithdrawalRecord.read(lake, dataset, ids)
        commits = read_undamaged_commits(lake, dataset)
        state = DatasetState(
            lake,
            dataset,
            units=units,
            matching=matching_fingerprint(ids, dataset_settings, crosswalk, units),
            context=context,
            corrections=corrections,
            withdrawn=[row.digest or "" for row in withdrawn.rows],
            endpoint=make_endpoint(context, dataset_settings.endpoint, source.location),
        )
        if not force and (counts := state.read_counts(commits)):
            lake.remove_folder(chunks_folder(dataset))
            return BuildResult(dataset, units_processed=0, units_failed=0, **counts._asdict())

        state.clear()
        require_undamaged(lake, "extract", dataset, extracted.values(), digests=True)
        identities = match_dataset(lake, dataset, ids, dataset_settings, crosswalk, units)
        state.write_endpoint(is_used=identities.has_patients)
        corrections_by_unit = match_corrections(lake, dataset, units, corrections)
        sheets = MappedSheets(lake.read(SHEETS, dataset=dataset))
        inputs = BuildInputs(units, identities, sheets, corrections, corrections_by_unit, context)
        plan = plan_build(lake, inputs, commits, subjects=subjects, force=force)
        units_built = build_units(lake, engine, dataset, plan, progress)
        write_shards(lake, engine, dataset, plan, units_built)
        lake.remove_folder(chunks_folder(dataset))

        unmatched = [
            *unmatched_crosswalk_entries(dataset, crosswalk, identities),
            *unmatched_corrections(dataset, corrections, corrections_by_unit),
        ]
        # a line of a withdrawn subject matches nothing, and a finding would name the subject
        findings = [*failure_findings(dataset, units_built.errors), *exclude_findings(unmatched, withdrawn)]
        skipped = frozenset() if subjects is None else frozenset(units.fingerprints.keys() - set(subjects))
        table = merge_dataset_findings(lake, dataset, findings, skipped)
        counts = count_results(lake, dataset, units, identities, table.num_rows)
        # without the counts the next run looks again at units that failed or were skipped
        state.write(table, None if units_built.errors or skipped else counts)
    failed = len(units_built.errors)
    return BuildResult(dataset, units_processed=len(plan.changed) - failed, units_failed=failed, **counts._asdict())
