"""Runs stages over the datasets that were named, or previews them (`--dry-run`), and shows the result."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from dicom_etl.cli.output import ProgressDisplay, print_table
from dicom_etl.cli.results import show_result
from dicom_etl.cli.session import Session
from dicom_etl.inspection.preview import preview_crawl
from dicom_etl.lake.migration import needs_rebuild
from dicom_etl.pipeline import Pipeline, RunOptions, RunResult, run
from dicom_etl.settings import DatasetSettings, SettingsError
from dicom_etl.sources.registry import find_datasets, select_datasets
from dicom_etl.withdrawal.record import exclude_withdrawn

_LAKE_STAGES = {"upload", "measure", "report"}  # need the lake, and not the files of a dataset


def execute(session: Session, named: list[str] | None, stages: Collection[str], options: RunOptions) -> int:
    """Run stages over the named datasets and show the result; returns the exit code."""
    datasets = _exclude_withdrawn(session, _select_datasets(session, named or [], stages))
    if options.rebuild:
        _check_rebuild_is_complete(session, datasets)
    with ProgressDisplay(session.console, quiet=session.as_json) as progress:
        pipeline = Pipeline(session.settings, datasets, progress, session.notify, rebuild=options.rebuild)
        if options.dry_run:
            return _preview(session, pipeline, list(datasets), stages, options)
        result = run(pipeline, list(datasets), stages, options)
    show_result(session, result)
    return result.exit_code


def _select_datasets(session: Session, named: list[str], stages: Collection[str]) -> dict[str, DatasetSettings]:
    """The named datasets; for stages that need only the lake, a name in the lake is enough."""
    lake = session.create_lake()
    in_lake = lake.datasets() if named and set(stages) <= _LAKE_STAGES else ()
    registered = find_datasets(session.settings)
    lake_names = [text for text in named if text in in_lake and text not in registered and not Path(text).exists()]
    source_names = [text for text in named if text not in lake_names]
    datasets = select_datasets(session.settings, lake, source_names) if source_names or not named else {}
    return datasets | {name: DatasetSettings(root=name) for name in lake_names}  # their root is never opened


def _exclude_withdrawn(session: Session, datasets: dict[str, DatasetSettings]) -> dict[str, DatasetSettings]:
    """The datasets that were not withdrawn; a message names the others.

    Raises:
        SettingsError: all of them were withdrawn.
    """
    remaining = exclude_withdrawn(session.create_lake(), datasets)
    messages = [
        f"dataset {name} was withdrawn and is skipped; `dicom-etl withdraw {name} --undo` takes the withdrawal back"
        for name in datasets
        if name not in remaining
    ]
    if datasets and not remaining:
        raise SettingsError("; ".join(messages))
    for message in messages:
        session.notify(message)
    return remaining


def _check_rebuild_is_complete(session: Session, datasets: Collection[str]) -> None:
    """Refuse to rebuild some datasets of a lake where the tables of all of them are removed."""
    lake = session.create_lake()
    if not needs_rebuild(lake, session.settings.resource_ids().key_fingerprint):
        return
    if missing := sorted(set(lake.datasets()) - set(datasets)):
        raise SettingsError(
            f"the lake {lake.root} has an older schema or another id key and also has the datasets "
            f"{', '.join(missing)}: name all of its datasets, since their tables are rebuilt together; nothing was "
            "removed"
        )


def _preview(
    session: Session, pipeline: Pipeline, names: list[str], stages: Collection[str], options: RunOptions
) -> int:
    """Show what a crawl would find, and what an upload of the tables as they are would send."""
    previews = [asdict(preview_crawl(pipeline, name)) for name in names] if "crawl" in stages else []
    if previews and not session.as_json:
        rows = [list(preview.values()) for preview in previews]
        print_table(session.console, "Preview", [name.replace("_", " ") for name in previews[0]], rows)
    has_upload = "upload" in stages and pipeline.settings.fhir.url
    result = run(pipeline, names, ["upload"], options) if has_upload else RunResult()
    show_result(session, result, plans=previews)
    return result.exit_code
