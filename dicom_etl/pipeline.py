"""The stages bound to settings, lake and engine: called by the command and the Dagster assets.

`Pipeline` runs one stage of one dataset. `run` runs several stages over several datasets; a dataset that fails does not
affect the others. A stage is imported when it runs, so that a command imports only what its stages need: an HTTP client
for the upload, a query engine for the measures.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dicom_etl.engine import Engine, EngineError, Progress
from dicom_etl.identity.ids import ResourceIds
from dicom_etl.lake.locks import LockHeldError
from dicom_etl.lake.migration import clear_datasets, needs_rebuild
from dicom_etl.lake.schemas import INVENTORY
from dicom_etl.lake.tables import Lake, LakeError
from dicom_etl.settings import DatasetSettings, Settings, SettingsError
from dicom_etl.sources import Source, SourceError, open_source
from dicom_etl.sources.registry import find_datasets
from dicom_etl.stages.crawl import DatasetStoppedError
from dicom_etl.withdrawal.record import exclude_withdrawn

if TYPE_CHECKING:
    from dicom_etl.stages.build import BuildResult
    from dicom_etl.stages.crawl import CrawlResult
    from dicom_etl.stages.extract import ExtractResult
    from dicom_etl.stages.measure import MeasureSummary
    from dicom_etl.stages.report import ReportSummary
    from dicom_etl.stages.upload import UploadSummary
    from dicom_etl.stages.verify import VerificationResult

STAGES = ("crawl", "extract", "build", "upload", "measure", "report")


@dataclass(frozen=True)
class RunOptions:
    """Options of one run, in addition to the settings."""

    subjects: Collection[str] | None = None
    force: bool = False
    accept_missing: bool = False
    prune: bool = False
    failed_only: bool = False
    overwrite: bool = False
    dry_run: bool = False
    rebuild: bool = False


@dataclass(frozen=True)
class Pipeline:
    """The stages bound to settings; datasets are those of the settings and of the command line."""

    settings: Settings
    command_line_datasets: Mapping[str, DatasetSettings] = field(default_factory=dict)
    progress: Progress = lambda *_: None
    notify: Callable[[str], None] = print
    rebuild: bool = False  # also of a lake of an older schema, or of another key of resource ids

    @cached_property
    def ids(self) -> ResourceIds:
        """The resource ids of the settings: namespace and key."""
        return self.settings.resource_ids()

    @cached_property
    def lake(self) -> Lake:
        """The lake, opened when it is used first; it is created if it does not exist."""
        lake = Lake(self.settings.lake, self.settings.lock_wait_seconds, self.notify, self.settings.database)
        return lake.open(rebuild=self.rebuild, id_key=self.ids.key_fingerprint)

    @property
    def engine(self) -> Engine:
        """The engine that processes units."""
        return Engine(self.settings.engine, self.settings.workers, self.settings.scheduler)

    def datasets(self) -> dict[str, DatasetSettings]:
        """All datasets, by name."""
        return find_datasets(self.settings) | dict(self.command_line_datasets)

    def active_datasets(self) -> dict[str, DatasetSettings]:
        """All datasets except those that were withdrawn as a whole."""
        return exclude_withdrawn(self.lake, self.datasets())

    def source(self, dataset: str) -> Source:
        """The source of a dataset.

        Raises:
            SourceError: no dataset has this name, or its source cannot be opened.
        """
        known = self.datasets()
        if dataset not in known:
            raise SourceError(f"dataset {dataset} is not registered; registered: {', '.join(known) or 'none'}")
        return open_source(dataset, known[dataset])

    def crawl(self, dataset: str, options: RunOptions = RunOptions()) -> CrawlResult:
        """The crawl stage."""
        from dicom_etl.stages.crawl import crawl

        return crawl(self.source(dataset), self.lake, self.ids, accept_missing=options.accept_missing)

    def extract(self, dataset: str, options: RunOptions = RunOptions()) -> ExtractResult:
        """The extract stage."""
        from dicom_etl.stages.extract import extract

        return extract(
            self.source(dataset),
            self.lake,
            self.engine,
            subjects=options.subjects,
            force=options.force,
            progress=self.progress,
        )

    def build(self, dataset: str, options: RunOptions = RunOptions()) -> BuildResult:
        """The build stage."""
        from dicom_etl.stages.build import build

        return build(
            self.source(dataset),
            self.lake,
            self.settings,
            self.datasets()[dataset],
            self.engine,
            subjects=options.subjects,
            force=options.force,
            progress=self.progress,
        )

    def upload(self, datasets: Iterable[str], options: RunOptions = RunOptions()) -> list[UploadSummary]:
        """The upload stage, over several datasets at once since they share Patients."""
        from dicom_etl.stages.upload import upload

        return upload(
            list(datasets),
            self.lake,
            self.settings,
            prune=options.prune,
            failed_only=options.failed_only,
            overwrite=options.overwrite,
            dry_run=options.dry_run,
            progress=self.progress,
        )

    def verify(self, datasets: Iterable[str], *, repair: bool = False) -> VerificationResult:
        """Compare the server with the upload ledger, for several datasets at once."""
        from dicom_etl.stages.verify import verify

        return verify(list(datasets), self.lake, self.settings, repair=repair, progress=self.progress)

    def measure(self, dataset: str, options: RunOptions = RunOptions()) -> MeasureSummary:
        """The measure stage."""
        from dicom_etl.stages.measure import measure

        return measure(dataset, self.lake, self.settings, force=options.force, progress=self.progress)

    def report(self, dataset: str, _options: RunOptions = RunOptions()) -> ReportSummary:
        """The report stage."""
        from dicom_etl.stages.report import report

        return report(dataset, self.lake, self.settings)


@dataclass
class RunResult:
    """The result of a run: summaries by dataset and stage, and the reasons why datasets were stopped."""

    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)  # dataset -> stage -> summary
    stopped: dict[str, str] = field(default_factory=dict)  # dataset -> one sentence
    nothing_to_do: dict[str, str] = field(default_factory=dict)  # dataset -> why there was nothing to do
    unreachable: str | None = None  # why the server could not be reached

    def add(self, stage: str, dataset: str, summary: Any) -> None:
        """Keep the summary of a stage of a dataset."""
        self.summaries.setdefault(dataset, {})[stage] = summary

    @property
    def exit_code(self) -> int:
        """0 done; 1 some units failed, were held or rejected; 2 nothing to do; 3 the server could not be reached."""
        if self.nothing_to_do and not self.summaries:
            return 2
        if self.unreachable:
            return 3
        has_failures = any(self.has_failures(dataset) for dataset in self.summaries)
        return 1 if self.stopped or self.nothing_to_do or has_failures else 0

    def has_failures(self, dataset: str) -> bool:
        """Whether a stage has failed or held some of the dataset."""
        summaries = self.summaries.get(dataset, {})
        if "upload" in summaries and _has_failed_uploads(summaries["upload"]):
            return True
        return any(getattr(summary, name, 0) for summary in summaries.values() for name in ("units_failed", "held"))


def _has_failed_uploads(uploaded: UploadSummary) -> bool:
    from dicom_etl.upload.ledger import UNFINISHED_STATES

    return any(states.get(state) for states in uploaded.counts.values() for state in UNFINISHED_STATES)


def run(
    pipeline: Pipeline,
    datasets: Collection[str],
    stages: Collection[str] = STAGES,
    options: RunOptions = RunOptions(),
) -> RunResult:
    """Run stages over datasets. The upload runs once for all of them, after their resources are built.

    Raises:
        SettingsError: the crosswalk or the corrections file cannot be read, the upload cannot work with these settings,
            or none of the datasets has a subject that is asked for; nothing was done except, in the last case, the
            crawl.
        DatabaseError: the upload ledger cannot be used; nothing was done.
    """
    if "build" in stages:
        _check_csv_files(pipeline.settings)
    if "upload" in stages and pipeline.settings.fhir.url:
        _check_upload(pipeline)
    result = RunResult()
    remaining = list(datasets)
    for stage in STAGES:
        if stage not in stages or not remaining:
            continue
        if stage != "crawl":
            _check_subjects(pipeline.lake, remaining, options.subjects)
        if stage == "upload":
            _upload(pipeline, remaining, options, result)
        else:
            remaining = [name for name in remaining if _run_stage(pipeline, stage, name, options, result)]
        if stage == "crawl" and options.rebuild:
            remaining = _remove_tables_before_rebuild(pipeline, datasets, remaining, result)
    return result


def _check_csv_files(settings: Settings) -> None:
    """Read the files that the build needs before the other stages run, and before a rebuild removes any table."""
    from dicom_etl.fhir.corrections import read_corrections
    from dicom_etl.identity.crosswalk import read_crosswalk

    read_crosswalk(settings.crosswalk)
    read_corrections(settings.corrections)


def _check_upload(pipeline: Pipeline) -> None:
    """Check what the upload needs before the other stages run: an error after hours of work would come too late."""
    from dicom_etl.fhir_connection import open_client
    from dicom_etl.lake.database import check_connection

    open_client(pipeline.settings.fhir)
    check_connection(pipeline.lake)


def _remove_tables_before_rebuild(
    pipeline: Pipeline, datasets: Collection[str], crawled: list[str], result: RunResult
) -> list[str]:
    """Remove the tables of the datasets that were crawled; returns the datasets that are to be rebuilt.

    Where the whole lake must be rebuilt, all of its datasets must have been crawled, or nothing is removed.
    """
    id_key = pipeline.ids.key_fingerprint
    if needs_rebuild(pipeline.lake, id_key) and len(crawled) < len(datasets):
        text = "nothing was removed from the lake, since not all of its datasets could be crawled"
        result.stopped |= dict.fromkeys(crawled, text)
        return []
    try:
        clear_datasets(pipeline.lake, crawled, id_key)
    except LockHeldError as error:
        result.stopped |= dict.fromkeys(crawled, str(error))
        return []
    return crawled


def _check_subjects(lake: Lake, datasets: Collection[str], subjects: Collection[str] | None) -> None:
    if not subjects:
        return
    units = (lake.read(INVENTORY, ["unit"], dataset=name)["unit"].to_pylist() for name in datasets)
    existing = sorted({unit for dataset_units in units for unit in dataset_units})
    if unknown := [subject for subject in subjects if subject not in existing]:
        names = f"{', '.join(existing[:20])}{' and more' if len(existing) > 20 else ''}" or "none; run the crawl first"
        raise SettingsError(f"no subject {unknown[0]} in {' and '.join(datasets)}; existing subjects: {names}")


def _run_stage(pipeline: Pipeline, stage: str, dataset: str, options: RunOptions, result: RunResult) -> bool:
    """Run one stage of one dataset; returns whether the next stages of the dataset can run."""
    try:
        result.add(stage, dataset, getattr(pipeline, stage)(dataset, options))
    except SourceError as error:
        if result.has_failures(dataset):
            result.stopped[dataset] = str(error)
        else:
            result.nothing_to_do[dataset] = str(error)
            result.summaries.pop(dataset, None)
        return False
    except (DatasetStoppedError, LockHeldError, EngineError, LakeError) as error:
        result.stopped[dataset] = str(error)
        return False
    except OSError as error:  # a full disk, a lost mount: the other datasets go on
        result.stopped[dataset] = f"dataset {dataset}: {stage} failed: {error}"
        return False
    return True


def _upload(pipeline: Pipeline, datasets: list[str], options: RunOptions, result: RunResult) -> None:
    from dicom_etl.fhir_client import UnreachableError, UnsuitableServerError
    from dicom_etl.stages.upload import NotBuiltError

    try:
        for uploaded in pipeline.upload(datasets, options):
            result.add("upload", uploaded.dataset, uploaded)
            if uploaded.unreachable:
                result.unreachable = uploaded.stopped
            elif uploaded.stopped:
                result.stopped[uploaded.dataset] = uploaded.stopped
    except (UnreachableError, UnsuitableServerError) as error:
        result.unreachable = str(error)
    except NotBuiltError as error:
        result.nothing_to_do |= dict.fromkeys(datasets, str(error))
    except (LockHeldError, LakeError) as error:
        result.stopped |= dict.fromkeys(datasets, str(error))
