"""`dicom-etl verify`: compares the FHIR server with the lake."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console

from dicom_etl.cli.options import FhirUrl, Json, LakeDatasets, LakeRoot, NoWait, SettingsFile
from dicom_etl.cli.output import ProgressDisplay, print_table
from dicom_etl.cli.results import show_upload
from dicom_etl.cli.session import Session
from dicom_etl.fhir_client import FhirError
from dicom_etl.lake.locks import LockHeldError
from dicom_etl.pipeline import Pipeline
from dicom_etl.stages.verify import DIFFERENCES, VerificationResult

_MAX_DIFFERENCES = 20  # on a console


def verify(
    datasets: LakeDatasets = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    fhir_url: FhirUrl = None,
    repair: Annotated[bool, typer.Option("--repair", help="upload what is missing on the server")] = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Compare the FHIR server with lake and upload ledger.

    Counts what is missing, changed, external or unsent.
    """
    session = Session(as_json, settings, lake, fhir_url=fhir_url, no_wait=no_wait)
    raise typer.Exit(_verify(session, session.find_datasets(datasets), repair=repair))


def _verify(session: Session, names: list[str], *, repair: bool) -> int:
    try:
        with ProgressDisplay(session.console, quiet=session.as_json) as progress:
            verified = Pipeline(session.settings, progress=progress, notify=session.notify).verify(names, repair=repair)
    except (FhirError, LockHeldError) as error:
        return session.stop(error, 3 if isinstance(error, FhirError) else 1)
    if session.as_json:
        print(json.dumps(_to_json(verified)))
    else:
        _show(session.console, verified)
        for sentence in (*verified.not_compared.values(), *_advise(verified, is_repaired=repair)):
            session.notify(sentence)
    return verified.exit_code


def _to_json(verified: VerificationResult) -> dict[str, Any]:
    comparisons = {comparison.dataset: asdict(comparison) for comparison in verified.comparisons}
    return {
        "exit_code": verified.exit_code,
        "server": verified.server,
        "shared": comparisons.pop(None, None),
        "datasets": comparisons,
        "uploads": {uploaded.dataset: asdict(uploaded) for uploaded in verified.uploads},
        "nothing": verified.not_compared,
    }


def _show(console: Console, verified: VerificationResult) -> None:
    columns = ["ok", *DIFFERENCES, "orphaned"]
    counts = []
    differences = []
    for comparison in verified.comparisons:
        name = comparison.dataset or "(shared)"
        counts.append([name, *(comparison.counts[column] for column in columns)])
        differences += [(d.kind, name, d.unit, d.resource, d.text) for d in comparison.differences]
    print_table(console, verified.server, ["dataset", *columns], counts)
    if differences:
        columns = ["difference", "dataset", "unit", "resource", "details"]
        print_table(console, "Differences", columns, differences[:_MAX_DIFFERENCES])
    if len(differences) > _MAX_DIFFERENCES:
        console.print(f"and {len(differences) - _MAX_DIFFERENCES:,} more: --json lists all")
    if verified.uploads:
        show_upload(console, list(verified.uploads))


def _advise(verified: VerificationResult, *, is_repaired: bool) -> list[str]:
    """Explain each kind of difference, and give advice."""
    advice = {
        "missing": "missing: `dicom-etl verify --repair` uploads them again",
        "changed": "changed: another client has changed them on the server; they stay as they are",
        "external": "external: another lake or client has uploaded them; they stay as they are",
        "unsent": "unsent: `dicom-etl uploads` shows why; `dicom-etl upload` uploads them where that is possible",
    }
    if is_repaired:
        advice |= dict.fromkeys(("missing", "unsent"), "missing, unsent: uploaded, unless the server refused them")
    sentences = [advice[what] for what in DIFFERENCES if any(c.counts[what] for c in verified.comparisons)]
    return list(dict.fromkeys([*sentences, *(upload.stopped for upload in verified.uploads if upload.stopped)]))
