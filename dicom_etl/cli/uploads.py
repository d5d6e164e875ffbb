"""`dicom-etl uploads`: the resources whose upload failed or is pending, and why."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from dicom_etl.cli.options import Json, LakeDatasets, LakeRoot, SettingsFile
from dicom_etl.cli.output import print_table, to_printable
from dicom_etl.cli.session import Session
from dicom_etl.errors import UserError
from dicom_etl.inspection.uploads import STATES, DatasetUploads, list_uploads
from dicom_etl.renames import UPLOAD_STATES, describe_rename

if TYPE_CHECKING:
    from rich.console import Console


def uploads(
    datasets: LakeDatasets = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    state: Annotated[
        list[str] | None,
        typer.Option(
            "--state",
            help=f"{', '.join(STATES)}, or unchanged to show only the counts (may be repeated) "
            "[default: all except stored]",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List resources whose upload failed or is pending, and why; needs no server."""
    states = state or []
    for name in states:
        if name not in (*STATES, "unchanged"):
            choices = f"--state {name}: the choices are {', '.join(STATES)} and unchanged"
            raise UserError(describe_rename(UPLOAD_STATES, name, "state") or choices)
    session = Session(as_json, settings, lake)
    opened_lake = session.open_lake()
    listings = [list_uploads(opened_lake, name, states) for name in session.find_datasets(datasets)]
    if as_json:
        print(json.dumps({"datasets": {listing.dataset: asdict(listing) for listing in listings}}, default=str))
        return
    for listing in listings:
        _show_listing(session.console, listing)
    for sentence in _advise({resource.state for listing in listings for resource in listing.listed}):
        session.notify(sentence)


def _show_listing(console: Console, listing: DatasetUploads) -> None:
    counts = ", ".join(f"{number:,} {state}" for state, number in listing.counts.items())
    console.print(to_printable(f"{listing.dataset}: {counts or 'nothing was uploaded'}"), markup=False)
    columns = ["state", "HTTP", "tries", "resource", "unit", "subject", "server", "when (UTC)", "reason"]
    if listing.listed:
        rows = [
            (
                resource.state,
                resource.status,
                resource.attempts,
                resource.resource,
                resource.unit,
                resource.subject,
                resource.server,
                f"{resource.time:%Y-%m-%d %H:%M:%S}",
                resource.reason,
            )
            for resource in listing.listed
        ]
        print_table(console, "", columns, rows)


def _advise(states: set[str]) -> list[str]:
    """Advice on resources in these states."""
    advice = []
    if states & {"rejected", "failed", "unconfirmed"}:
        advice.append("rejected, failed, unconfirmed: fix the cause, then run `dicom-etl upload --failed`")
    if "held" in states:
        advice.append(
            "held: on hold until you decide; the reason begins with a finding code, see docs/reference/findings.md"
        )
    if "orphaned" in states:
        advice.append("orphaned: stays on the server until `dicom-etl upload --prune` removes it")
    return advice
