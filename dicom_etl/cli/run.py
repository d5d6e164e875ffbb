"""`dicom-etl run` and `dicom-etl audit`: all stages, and all stages except the upload."""

from __future__ import annotations

import typer

from dicom_etl.cli.execution import execute
from dicom_etl.cli.options import (
    Accept,
    Datasets,
    DryRun,
    EngineKind,
    Force,
    Json,
    LakeRoot,
    NoWait,
    Overwrite,
    Prune,
    Rebuild,
    SettingsFile,
    Subject,
    UploadUrl,
    Workers,
)
from dicom_etl.cli.session import Session
from dicom_etl.errors import UserError
from dicom_etl.pipeline import STAGES, RunOptions


def run(
    datasets: Datasets = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    fhir_url: UploadUrl = None,
    subject: Subject = None,
    workers: Workers = None,
    engine: EngineKind = None,
    force: Force = False,
    accept_missing: Accept = False,
    prune: Prune = False,
    overwrite: Overwrite = False,
    rebuild: Rebuild = False,
    dry_run: DryRun = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Run all stages: crawl, extract, build, upload, measure and report."""
    _check_rebuild(rebuild=rebuild, dry_run=dry_run, subject=subject)
    session = Session(
        as_json,
        settings,
        lake,
        fhir_url=fhir_url,
        workers=workers,
        engine=engine,
        no_wait=no_wait,
        rebuild=rebuild,
    )
    options = RunOptions(
        subjects=subject or None,
        rebuild=rebuild,
        force=force,
        accept_missing=accept_missing,
        prune=prune,
        overwrite=overwrite,
        dry_run=dry_run,
    )
    raise typer.Exit(execute(session, datasets, STAGES, options))


def audit(
    datasets: Datasets = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    subject: Subject = None,
    workers: Workers = None,
    engine: EngineKind = None,
    force: Force = False,
    accept_missing: Accept = False,
    rebuild: Rebuild = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Run all stages except the upload; needs no server."""
    _check_rebuild(rebuild=rebuild, dry_run=False, subject=subject)
    session = Session(as_json, settings, lake, workers=workers, engine=engine, no_wait=no_wait, rebuild=rebuild)
    stages = [stage for stage in STAGES if stage != "upload"]
    options = RunOptions(subjects=subject or None, force=force, accept_missing=accept_missing, rebuild=rebuild)
    raise typer.Exit(execute(session, datasets, stages, options))


def _check_rebuild(*, rebuild: bool, dry_run: bool, subject: list[str] | None) -> None:
    """Refuse options that contradict each other."""
    if rebuild and dry_run:
        raise UserError("--rebuild removes tables, --dry-run changes nothing: choose one of them")
    if rebuild and subject:
        raise UserError(
            "--rebuild rebuilds whole datasets, --subject limits a run to some subjects: choose one of them"
        )
