"""The commands that look into the lake: what is there, what became of it, and why."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console

from dicom_etl import inspect
from dicom_etl.cli.options import Datasets, Json, LakeRoot, SettingsFile
from dicom_etl.cli.session import Session
from dicom_etl.console import plain, table
from dicom_etl.settings import SettingsError


def status(settings: SettingsFile = None, lake: LakeRoot = None, as_json: Json = False) -> None:
    """What is loaded, held and failed, by dataset."""
    session = Session(as_json, settings, lake)
    rows = inspect.status(session.existing())
    if as_json:
        print(json.dumps([asdict(row) for row in rows]))
    elif not rows:
        session.tell("the lake is empty")
    else:
        columns = [name for name in asdict(rows[0]) if name != "uploads"]
        table(session.console, session.settings.lake, columns, [[getattr(r, c) for c in columns] for r in rows])
        uploads = [(r.dataset, server, state, n) for r in rows for server, state, n in r.uploads]
        if uploads:
            table(session.console, "Uploads", ["dataset", "server", "state", "resources"], uploads)


def uploads(
    datasets: Datasets = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    state: Annotated[
        list[str] | None,
        typer.Option(
            "--state",
            help=f"{', '.join(inspect.STATES)} (may be repeated); unchanged: count alone [default: all but stored]",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the resources that are not on the server as they should be, and why; needs no server.

    With no dataset named, all of the lake.
    """
    states = state or []
    if unknown := sorted(set(states) - {*inspect.STATES, "unchanged"}):
        raise SettingsError(f"{', '.join(unknown)} is no state; there are {', '.join(inspect.STATES)}")
    session = Session(as_json, settings, lake)
    found = [inspect.sendings(session.existing(), name, states) for name in session.in_lake(datasets)]
    if as_json:
        print(json.dumps({"datasets": {one.dataset: asdict(one) for one in found}}, default=str))
        return
    for one in found:
        _show_sendings(session.console, one)
    for sentence in _advice({sent.state for one in found for sent in one.listed}):
        session.tell(sentence)


def _show_sendings(console: Console, sendings: inspect.Sendings) -> None:
    counts = ", ".join(f"{number:,} {state}" for state, number in sendings.counts.items())
    console.print(plain(f"{sendings.dataset}: {counts or 'nothing was sent'}"), markup=False)
    columns = ["state", "HTTP", "tries", "resource", "unit", "subject", "server", "when (UTC)", "reason"]
    if sendings.listed:
        table(console, "", columns, [_sending(sent) for sent in sendings.listed])


def _sending(sent: inspect.Sent) -> tuple[Any, ...]:
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


def explain(
    dataset: Annotated[str, typer.Argument(help="name of the dataset")],
    subject: Annotated[str, typer.Argument(help="subject (or unit) in it")],
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    as_json: Json = False,
) -> None:
    """Why a subject looks as it does: files, rows, identity, findings, resources, uploads."""
    session = Session(as_json, settings, lake)
    sections = inspect.explain(session.existing(), dataset, subject)
    if as_json:
        found = {s.title: [dict(zip(s.columns, row, strict=True)) for row in s.rows] for s in sections}
        print(json.dumps(found, default=str))
        return
    for section in sections:
        if section.rows:
            table(session.console, section.title, section.columns, section.rows)
        else:
            session.tell(f"{section.title}: none")
