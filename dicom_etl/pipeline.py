"""The stages bound to settings, lake and engine: what the command and the Dagster assets call.

`Pipeline` runs one stage of one dataset; `run` drives all of them over several datasets, and a dataset that fails
leaves the others alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dicom_etl.engine import Engine, EngineError, Progress
from dicom_etl.fhir_client import UnreachableError, UnsuitableServerError
from dicom_etl.fhir_connection import open_client
from dicom_etl.identity.ids import ResourceIds
from dicom_etl.lake.database import check_connection
from dicom_etl.lake.locks import LockHeldError
from dicom_etl.lake.migration import clear, must_be_rebuilt
from dicom_etl.lake.schemas import INVENTORY
from dicom_etl.lake.tables import Lake, LakeError
from dicom_etl.settings import DatasetSettings, Settings, SettingsError
from dicom_etl.sources import Source, SourceError, open_source
from dicom_etl.sources.registry import find_datasets
from dicom_etl.stages.build import Built, build
from dicom_etl.stages.crawl import CrawlResult, DatasetStoppedError, crawl
from dicom_etl.stages.extract import Extracted, extract
from dicom_etl.stages.measure import MeasureSummary, measure
from dicom_etl.stages.report import ReportSummary, report
from dicom_etl.stages.upload import NotBuiltError, UploadSummary, upload
from dicom_etl.stages.verify import VerificationResult, verify
from dicom_etl.upload.ledger import UNFINISHED_STATES
from dicom_etl.withdrawal.record import exclude_withdrawn

STAGES = ("crawl", "extract", "build", "upload", "measure", "report")


@dataclass(frozen=True)
class RunOptions:
    """What a run is asked for beyond its settings."""

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
    """The stages of the datasets that these settings know (and of `extra` ones)."""

    settings: Settings
    extra: Mapping[str, DatasetSettings] = field(default_factory=dict)
    progress: Progress = lambda *_: None
    tell: Callable[[str], None] = print
    rebuild: bool = False  # also of a lake of an older schema, or of another key of resource ids

    @cached_property
    def ids(self) -> ResourceIds:
        """What makes resource ids."""
        return self.settings.resource_ids()

    @cached_property
    def lake(self) -> Lake:
        """The lake, made if it is not there."""
        lake = Lake(self.settings.lake, self.settings.lock_wait_seconds, self.tell, self.settings.database)
        return lake.open(rebuild=self.rebuild, id_key=self.ids.key_fingerprint)

    @property
    def engine(self) -> Engine:
        """Where units are worked on."""
        return Engine(self.settings.engine, self.settings.workers, self.settings.scheduler)

    def datasets(self) -> dict[str, DatasetSettings]:
        """All datasets, by name."""
        return find_datasets(self.settings) | dict(self.extra)

    def active_datasets(self) -> dict[str, DatasetSettings]:
        """All datasets but those that were withdrawn as a whole."""
        return exclude_withdrawn(self.lake, self.datasets())

    def source(self, dataset: str) -> Source:
        """The source of a dataset; SourceError where there is none of this name."""
        known = self.datasets()
        if dataset not in known:
            raise SourceError(f"dataset {dataset} is not registered; there are {', '.join(known) or 'none'}")
        return open_source(dataset, known[dataset])

    def crawl(self, dataset: str, options: RunOptions = RunOptions()) -> CrawlResult:
        """The crawl stage."""
        return crawl(self.source(dataset), self.lake, self.ids, accept_missing=options.accept_missing)

    def extract(self, dataset: str, options: RunOptions = RunOptions()) -> Extracted:
        """The extract stage."""
        return extract(
            self.source(dataset),
            self.lake,
            self.engine,
            subjects=options.subjects,
            force=options.force,
            progress=self.progress,
        )

    def build(self, dataset: str, options: RunOptions = RunOptions()) -> Built:
        """The build stage."""
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
        """The upload stage, over several datasets at once since they share persons."""
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
        """What the server has beside what the ledger says, over several datasets at once."""
        return verify(list(datasets), self.lake, self.settings, repair=repair, progress=self.progress)

    def measure(self, dataset: str, options: RunOptions = RunOptions()) -> MeasureSummary:
        """The measure stage."""
        return measure(dataset, self.lake, self.settings, force=options.force, progress=self.progress)

    def report(self, dataset: str, _options: RunOptions = RunOptions()) -> ReportSummary:
        """The report stage."""
        return report(dataset, self.lake, self.settings)


@dataclass
class RunResult:
    """What a run did: summaries by stage and dataset, and what went wrong."""

    summaries: dict[str, dict[str, Any]] = field(default_factory=dict)
    stopped: dict[str, str] = field(default_factory=dict)  # dataset -> one sentence
    nothing: dict[str, str] = field(default_factory=dict)  # dataset -> why there was nothing to do
    unreachable: str | None = None

    def add(self, stage: str, dataset: str, summary: Any) -> None:
        """Keep the summary of a stage of a dataset."""
        self.summaries.setdefault(dataset, {})[stage] = summary

    @property
    def exit_code(self) -> int:
        """0 done; 1 some units failed, were held or rejected; 2 nothing to do; 3 the server was out of reach."""
        if self.nothing and not self.summaries:
            return 2
        if self.unreachable:
            return 3
        troubled = any(_has_failures(s) for by_stage in self.summaries.values() for s in by_stage.values())
        return 1 if self.stopped or self.nothing or troubled else 0


def _has_failures(summary: Any) -> bool:
    if isinstance(summary, UploadSummary):
        return any(states.get(state) for states in summary.counts.values() for state in UNFINISHED_STATES)
    return any(getattr(summary, name, 0) for name in ("units_failed", "held"))


def run(
    pipeline: Pipeline,
    datasets: Collection[str],
    stages: Collection[str] = STAGES,
    options: RunOptions = RunOptions(),
) -> RunResult:
    """Run stages over datasets. The upload comes once for all of them, after their resources are built.

    Raises:
        SettingsError: the upload cannot work with these settings, or none of the datasets has a subject that is
            asked for; nothing was done but, in the second case, the crawl.
        DatabaseError: the upload ledger cannot be used; nothing was done.
    """
    if "upload" in stages and pipeline.settings.fhir.url:
        # what its settings lack is said now, not after hours of work
        open_client(pipeline.settings.fhir)
        check_connection(pipeline.lake)
    outcome = RunResult()
    left = list(datasets)
    for stage in STAGES:
        if stage not in stages or not left:
            continue
        if stage != "crawl":
            _check_subjects(pipeline.lake, left, options.subjects)
        if stage == "upload":
            _upload(pipeline, left, options, outcome)
        else:
            left = [name for name in left if _run_stage(pipeline, stage, name, options, outcome)]
        if stage == "crawl" and options.rebuild:
            left = _clear(pipeline, datasets, left, outcome)
    return outcome


def _clear(pipeline: Pipeline, datasets: Collection[str], left: list[str], outcome: RunResult) -> list[str]:
    """Remove the tables of the datasets that were crawled, or none where all have to be; returns those left."""
    id_key = pipeline.ids.key_fingerprint
    if must_be_rebuilt(pipeline.lake, id_key) and len(left) < len(datasets):
        text = "nothing was removed of the lake, since not all of its datasets could be crawled"
        outcome.stopped |= dict.fromkeys(left, text)
        return []
    try:
        clear(pipeline.lake, left, id_key)
    except LockHeldError as error:
        outcome.stopped |= dict.fromkeys(left, str(error))
        return []
    return left


def _check_subjects(lake: Lake, datasets: Collection[str], subjects: Collection[str] | None) -> None:
    if not subjects:
        return
    units = (lake.read(INVENTORY, ["unit"], dataset=name)["unit"].to_pylist() for name in datasets)
    there = sorted({unit for some in units for unit in some})
    if unknown := [subject for subject in subjects if subject not in there]:
        has = f"{', '.join(there[:20])}{' and more' if len(there) > 20 else ''}" if there else "none yet: crawl first"
        raise SettingsError(f"{' and '.join(datasets)} has no subject {unknown[0]}; there are {has}")


def _run_stage(pipeline: Pipeline, stage: str, dataset: str, options: RunOptions, outcome: RunResult) -> bool:
    """One stage of one dataset; False where the dataset goes no further."""
    try:
        outcome.add(stage, dataset, getattr(pipeline, stage)(dataset, options))
    except SourceError as error:
        failed = any(_has_failures(summary) for summary in outcome.summaries.get(dataset, {}).values())
        (outcome.stopped if failed else outcome.nothing)[dataset] = str(error)
        if not failed:
            outcome.summaries.pop(dataset, None)
        return False
    except (DatasetStoppedError, LockHeldError, EngineError, LakeError) as error:
        outcome.stopped[dataset] = str(error)
        return False
    except OSError as error:  # a full disk, a lost mount: the other datasets go on
        outcome.stopped[dataset] = f"dataset {dataset}: {stage} failed: {error}"
        return False
    return True


def _upload(pipeline: Pipeline, datasets: list[str], options: RunOptions, outcome: RunResult) -> None:
    try:
        for uploaded in pipeline.upload(datasets, options):
            outcome.add("upload", uploaded.dataset, uploaded)
            if uploaded.unreachable:
                outcome.unreachable = uploaded.stopped
            elif uploaded.stopped:
                outcome.stopped[uploaded.dataset] = uploaded.stopped
    except (UnreachableError, UnsuitableServerError) as error:
        outcome.unreachable = str(error)
    except NotBuiltError as error:
        outcome.nothing |= dict.fromkeys(datasets, str(error))
    except (LockHeldError, LakeError) as error:
        outcome.stopped |= dict.fromkeys(datasets, str(error))
