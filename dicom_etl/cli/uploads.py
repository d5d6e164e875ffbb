"""`dicom-etl uploads`: the resources that are not on the server as they should be, and why."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console

from dicom_etl.cli.options import Datasets, Json, LakeRoot, SettingsFile
from dicom_etl.cli.output import print_table, to_printable
from dicom_etl.cli.session import Session
from dicom_etl.inspection.uploads import STATES, DatasetUploads, UploadedResource, list_uploads
from dicom_etl.settings import SettingsError


def uploads(
    datasets: Datasets = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    state: Annotated[
        list[str] | None,
        typer.Option(
            "--state",
            help=f"{', '.join(STATES)} (may be repeated); unchanged: count alone [default: all but stored]",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List resources whose upload failed or is pending, and why; needs no server.

    With no dataset named, all of the lake.
    """
    states = state or []
    if unknown := sorted(set(states) - {*STATES, "unchanged"}):
        raise SettingsError(f"{', '.join(unknown)} is no state; there are {', '.join(STATES)}")
    session = Session(as_json, settings, lake)
    found = [list_uploads(session.existing(), name, states) for name in session.in_lake(datasets)]
    if as_json:
        print(json.dumps({"datasets": {one.dataset: asdict(one) for one in found}}, default=str))
        return
    for one in found:
        _show_sendings(session.console, one)
    for sentence in _advice({sent.state for one in found for sent in one.listed}):
        session.tell(sentence)


def _show_sendings(console: Console, sendings: DatasetUploads) -> None:
    counts = ", ".join(f"{number:,} {state}" for state, number in sendings.counts.items())
    console.print(to_printable(f"{sendings.dataset}: {counts or 'nothing was sent'}"), markup=False)
    columns = ["state", "HTTP", "tries", "resource", "unit", "subject", "server", "when (UTC)", "reason"]
    if sendings.listed:
        print_table(console, "", columns, [_sending(sent) for sent in sendings.listed])


def _sending(sent: UploadedResource) -> tuple[Any, ...]:
    when = f"{sent.time:%Y-%m-%d %H:%M:%S}"
    place = sent.resource, sent.unit, sent.subject, sent.server
    return sent.state, sent.status, sent.attempts, *place, when, sent.reason


def _advice(listed: set[str]) -> list[str]:
    """What a person can do about the states that were listed."""
    told = []
    if listed & {"rejected", "failed", "unconfirmed"}:
        told.append("once the cause is fixed, `dicom-etl upload --failed` sends them again")
    if "held" in listed:
        told.append("what is held waits for a decision: its reason begins with the code of the finding")
    if "orphaned" in listed:
        told.append("what is orphaned stays on the server until `dicom-etl upload --prune`")
    return told
