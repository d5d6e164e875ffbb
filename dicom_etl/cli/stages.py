"""The commands that run stages: each of them, all of them, and all but the upload."""

from __future__ import annotations

from typing import Annotated

import typer

from dicom_etl.cli.options import (
    Accept,
    Datasets,
    DryRun,
    EngineKind,
    FhirUrl,
    Force,
    Json,
    LakeRoot,
    NoWait,
    Overwrite,
    Prune,
    Rebuild,
    SettingsFile,
    Subject,
    Workers,
)
from dicom_etl.cli.running import go
from dicom_etl.cli.session import Session
from dicom_etl.pipeline import STAGES, Options
from dicom_etl.settings import SettingsError


def run(
    datasets: Datasets = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    fhir_url: FhirUrl = None,
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
    """Everything: crawl, extract, build, upload, measure, report."""
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
    options = Options(
        subjects=_these(subject),
        rebuild=rebuild,
        force=force,
        accept_missing=accept_missing,
        prune=prune,
        overwrite=overwrite,
        dry_run=dry_run,
    )
    raise typer.Exit(go(session, datasets, STAGES, options))


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
    """Everything but the upload, ending in the report; needs no server."""
    _check_rebuild(rebuild=rebuild, dry_run=False, subject=subject)
    session = Session(as_json, settings, lake, workers=workers, engine=engine, no_wait=no_wait, rebuild=rebuild)
    stages = [stage for stage in STAGES if stage != "upload"]
    options = Options(subjects=_these(subject), force=force, accept_missing=accept_missing, rebuild=rebuild)
    raise typer.Exit(go(session, datasets, stages, options))


def crawl(
    datasets: Datasets = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    accept_missing: Accept = False,
    dry_run: DryRun = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """List the files of datasets and read their SDS sheets; no DICOM file is opened."""
    session = Session(as_json, settings, lake, no_wait=no_wait)
    options = Options(accept_missing=accept_missing, dry_run=dry_run)
    raise typer.Exit(go(session, datasets, ["crawl"], options))


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
    raise typer.Exit(go(session, datasets, ["extract"], Options(subjects=_these(subject), force=force)))


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
    """Decide whose each study is, and make the FHIR resources (NDJSON in the lake)."""
    session = Session(as_json, settings, lake, workers=workers, engine=engine, no_wait=no_wait)
    raise typer.Exit(go(session, datasets, ["build"], Options(subjects=_these(subject), force=force)))


def upload(
    datasets: Datasets = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    fhir_url: FhirUrl = None,
    prune: Prune = False,
    overwrite: Overwrite = False,
    failed: Annotated[
        bool, typer.Option("--failed", help="only what was rejected or given up before, and new Patients")
    ] = False,
    dry_run: DryRun = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Send resources that are new or changed to the FHIR server."""
    session = Session(as_json, settings, lake, fhir_url=fhir_url, no_wait=no_wait)
    options = Options(prune=prune, failed_only=failed, overwrite=overwrite, dry_run=dry_run)
    raise typer.Exit(go(session, datasets, ["upload"], options))


def measure(
    datasets: Datasets = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    force: Force = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Measure tag completeness, consistency and FHIR readiness."""
    session = Session(as_json, settings, lake, no_wait=no_wait)
    raise typer.Exit(go(session, datasets, ["measure"], Options(force=force)))


def report(
    datasets: Datasets = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    as_json: Json = False,
) -> None:
    """Write the report (HTML, JSON, CSV) of what was measured."""
    session = Session(as_json, settings, lake)
    raise typer.Exit(go(session, datasets, ["report"], Options()))


def _check_rebuild(*, rebuild: bool, dry_run: bool, subject: list[str] | None) -> None:
    """Refuse options that contradict each other."""
    if rebuild and dry_run:
        raise SettingsError("--rebuild removes tables and --dry-run changes nothing: choose one of them")
    if rebuild and subject:
        raise SettingsError(
            "--rebuild rebuilds whole datasets and --subject limits the run to some: choose one of them"
        )


def _these(subjects: list[str] | None) -> tuple[str, ...] | None:
    return tuple(subjects) if subjects else None
