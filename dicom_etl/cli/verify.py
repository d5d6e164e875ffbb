"""The command that compares the FHIR server with the lake."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console

from dicom_etl.cli.options import Datasets, FhirUrl, Json, LakeRoot, NoWait, SettingsFile
from dicom_etl.cli.output import ProgressDisplay, print_table
from dicom_etl.cli.results import show_upload
from dicom_etl.cli.session import Session
from dicom_etl.fhir_client import FhirError
from dicom_etl.lake.locks import LockHeldError
from dicom_etl.pipeline import Pipeline
from dicom_etl.stages.verify import DIFFERENCES, VerificationResult

_SHOWN = 20  # differences on a console


def verify(
    datasets: Datasets = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    fhir_url: FhirUrl = None,
    repair: Annotated[bool, typer.Option("--repair", help="upload what the server does not have")] = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Compare the FHIR server with lake and upload ledger.

    With no dataset named, all of the lake.
    """
    session = Session(as_json, settings, lake, fhir_url=fhir_url, no_wait=no_wait)
    raise typer.Exit(_verify(session, session.in_lake(datasets), repair=repair))


def _verify(session: Session, names: list[str], *, repair: bool) -> int:
    try:
        with ProgressDisplay(session.console, quiet=session.as_json) as progress:
            verified = Pipeline(session.settings, progress=progress, tell=session.tell).verify(names, repair=repair)
    except (FhirError, LockHeldError) as error:
        return session.stopped(error, 3 if isinstance(error, FhirError) else 1)
    if session.as_json:
        print(json.dumps(_machine(verified)))
    else:
        _show(session.console, verified)
        for sentence in (*verified.nothing.values(), *_advice(verified, repaired=repair)):
            session.tell(sentence)
    return verified.exit_code


def _machine(verified: VerificationResult) -> dict[str, Any]:
    found = {one.dataset: asdict(one) for one in verified.compared}
    return {
        "exit_code": verified.exit_code,
        "server": verified.server,
        "shared": found.pop(None, None),
        "datasets": found,
        "uploads": {uploaded.dataset: asdict(uploaded) for uploaded in verified.uploads},
        "nothing": verified.nothing,
    }


def _show(console: Console, verified: VerificationResult) -> None:
    names = {one.dataset: one.dataset or "(shared)" for one in verified.compared}
    columns = ["ok", *DIFFERENCES, "orphaned"]
    counted = [[names[one.dataset], *(one.counts[column] for column in columns)] for one in verified.compared]
    print_table(console, verified.server, ["dataset", *columns], counted)
    found = [
        (d.what, names[one.dataset], d.unit, d.resource, d.text) for one in verified.compared for d in one.differences
    ]
    if found:
        print_table(console, "Differences", ["what", "dataset", "unit", "resource", "more"], found[:_SHOWN])
    if len(found) > _SHOWN:
        console.print(f"and {len(found) - _SHOWN:,} more: --json lists all")
    if verified.uploads:
        show_upload(console, list(verified.uploads))


def _advice(verified: VerificationResult, *, repaired: bool) -> list[str]:
    """What each kind of difference means for the person."""
    said = {
        "missing": "missing: `dicom-etl verify --repair` sends them again",
        "changed": "changed: another client has changed them on the server; they are left as they are",
        "external": "external: another lake or program has sent them; they are left as they are",
        "unsent": "unsent: `dicom-etl uploads` says why; `dicom-etl upload` sends what can be sent",
    }
    if repaired:
        said |= dict.fromkeys(("missing", "unsent"), "what was not there: sent, as far as the server has taken it")
    told = [said[what] for what in DIFFERENCES if any(one.counts[what] for one in verified.compared)]
    return list(dict.fromkeys([*told, *(uploaded.stopped for uploaded in verified.uploads if uploaded.stopped)]))
