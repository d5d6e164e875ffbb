"""Stages over the datasets that a person has named: run them, or say what they would do, and show what came of it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from dicom_etl.cli.output import ProgressDisplay, print_table
from dicom_etl.cli.results import show_result
from dicom_etl.cli.session import Session
from dicom_etl.inspection.preview import preview_run
from dicom_etl.inspection.status import list_datasets
from dicom_etl.lake.migration import must_be_rebuilt
from dicom_etl.pipeline import Pipeline, RunOptions, RunResult, run
from dicom_etl.settings import DatasetSettings, SettingsError
from dicom_etl.sources.registry import find_datasets, select_datasets
from dicom_etl.withdrawal.record import exclude_withdrawn

_OF_THE_LAKE = {"upload", "measure", "report"}


def execute(session: Session, named: list[str] | None, stages: Collection[str], options: RunOptions) -> int:
    """Run stages over the named datasets, show the outcome, return the exit code."""
    chosen = _admitted(session, _chosen(session, named or [], stages))
    if options.rebuild:
        _require_all(session, chosen)
    with ProgressDisplay(session.console, quiet=session.as_json) as progress:
        pipeline = Pipeline(session.settings, chosen, progress, session.tell, rebuild=options.rebuild)
        if options.dry_run:
            return _plan(session, pipeline, list(chosen), stages, options)
        outcome = run(pipeline, list(chosen), stages, options)
    show_result(session, outcome)
    return outcome.exit_code


def _require_all(session: Session, chosen: Collection[str]) -> None:
    """Refuse to rebuild some datasets of a lake where the tables of all of them are removed."""
    lake = session.lake()
    is_whole = must_be_rebuilt(lake, session.settings.resource_ids().key_fingerprint)
    missing = sorted(set(list_datasets(lake)) - set(chosen)) if is_whole else []
    if missing:
        raise SettingsError(
            f"the lake {lake.root} has an older schema or another id key and also holds {', '.join(missing)}: name all "
            "of its datasets, since their tables are rebuilt together; nothing was removed"
        )


def _chosen(session: Session, named: list[str], stages: Collection[str]) -> dict[str, DatasetSettings]:
    """The datasets that are named: for stages that read the lake alone, also by the names that it has."""
    lake = session.lake()
    of_lake = list_datasets(lake) if named and set(stages) <= _OF_THE_LAKE else ()
    known = find_datasets(session.settings)
    by_name = [text for text in named if text in of_lake and text not in known and not Path(text).exists()]
    others = [text for text in named if text not in by_name]
    chosen = select_datasets(session.settings, lake, others) if others or not named else {}
    return chosen | {name: DatasetSettings(root=name) for name in by_name}  # a folder that nobody will open


def _admitted(session: Session, chosen: dict[str, DatasetSettings]) -> dict[str, DatasetSettings]:
    """The datasets but those that were withdrawn, of which is told."""
    ending = "was withdrawn and is passed over; `dicom-etl withdraw {} --undo` ends that"
    left = exclude_withdrawn(session.lake(), chosen)
    gone = {name: f"dataset {name} {ending.format(name)}" for name in chosen if name not in left}
    if chosen and len(gone) == len(chosen):
        raise SettingsError("; ".join(gone.values()))
    for sentence in gone.values():
        session.tell(sentence)
    return left


def _plan(session: Session, pipeline: Pipeline, names: list[str], stages: Collection[str], options: RunOptions) -> int:
    plans = [asdict(preview_run(pipeline, name)) for name in names] if "crawl" in stages else []
    if plans and not session.as_json:
        print_table(session.console, "Would be done", list(plans[0]), [list(plan.values()) for plan in plans])
    sends = "upload" in stages and pipeline.settings.fhir.url
    outcome = run(pipeline, names, ["upload"], options) if sends else RunResult()
    show_result(session, outcome, plans=plans)
    return outcome.exit_code
