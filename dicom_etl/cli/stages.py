"""`dicom-etl crawl`, `extract`, `build`, `upload`, `measure` and `report`: one stage each."""

from __future__ import annotations

from typing import Annotated

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
    SettingsFile,
    Subject,
    UploadUrl,
    Workers,
)
from dicom_etl.cli.session import Session
from dicom_etl.pipeline import RunOptions


def crawl(
    datasets: Datasets = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    accept_missing: Accept = False,
    dry_run: DryRun = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """List the files of datasets and read their SDS sheets; opens no DICOM file."""
    session = Session(as_json, settings, lake, no_wait=no_wait)
    options = RunOptions(accept_missing=accept_missing, dry_run=dry_run)
    raise typer.Exit(execute(session, datasets, ["crawl"], options))


def extract(
    datasets: Datasets = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    subject: Subject = None,
    workers: Workers = None,
    engine: EngineKind = None,
    force: Force = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Read the headers of new and changed files into the header tables."""
    session = Session(as_json, settings, lake, workers=workers, engine=engine, no_wait=no_wait)
    raise typer.Exit(execute(session, datasets, ["extract"], RunOptions(subjects=subject or None, force=force)))


def build(
    datasets: Datasets = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    subject: Subject = None,
    workers: Workers = None,
    engine: EngineKind = None,
    force: Force = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Match patients and build the FHIR resources (NDJSON in the lake)."""
    session = Session(as_json, settings, lake, workers=workers, engine=engine, no_wait=no_wait)
    raise typer.Exit(execute(session, datasets, ["build"], RunOptions(subjects=subject or None, force=force)))


def upload(
    datasets: Datasets = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    fhir_url: UploadUrl = None,
    prune: Prune = False,
    overwrite: Overwrite = False,
    failed: Annotated[
        bool, typer.Option("--failed", help="only resources whose last upload was rejected or failed, and new Patients")
    ] = False,
    dry_run: DryRun = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Send new and changed resources to the FHIR server."""
    session = Session(as_json, settings, lake, fhir_url=fhir_url, no_wait=no_wait)
    options = RunOptions(prune=prune, failed_only=failed, overwrite=overwrite, dry_run=dry_run)
    raise typer.Exit(execute(session, datasets, ["upload"], options))


def measure(
    datasets: Datasets = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    force: Annotated[bool, typer.Option("--force", help="measure again, even if nothing has changed")] = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Measure tag completeness, consistency and FHIR readiness."""
    session = Session(as_json, settings, lake, no_wait=no_wait)
    raise typer.Exit(execute(session, datasets, ["measure"], RunOptions(force=force)))


def report(
    datasets: Datasets = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    as_json: Json = False,
) -> None:
    """Write the quality report (HTML, JSON, CSV)."""
    session = Session(as_json, settings, lake)
    raise typer.Exit(execute(session, datasets, ["report"], RunOptions()))
