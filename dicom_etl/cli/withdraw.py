"""`dicom-etl withdraw`: removes a subject or a dataset everywhere, and undoes a withdrawal."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from dicom_etl.cli.options import DryRun, FhirUrl, Json, LakeRoot, NoWait, SettingsFile
from dicom_etl.cli.output import print_table, to_printable
from dicom_etl.cli.session import Session
from dicom_etl.lake.locks import LockHeldError
from dicom_etl.settings import SettingsError
from dicom_etl.stages import withdraw as stage
from dicom_etl.withdrawal.record import undo_withdrawal
from dicom_etl.withdrawal.run import WithdrawalResult


def withdraw(
    dataset: Annotated[str, typer.Argument(help="name of the dataset")],
    subject: Annotated[str | None, typer.Argument(help="subject (or unit) in it [default: the whole dataset]")] = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    fhir_url: FhirUrl = None,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask for confirmation")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="end a withdrawal: the next run loads it again")] = False,
    dry_run: DryRun = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Remove a subject or a dataset from server, ledger and lake, and keep it out."""
    session = Session(as_json, settings, lake, fhir_url=fhir_url, no_wait=no_wait)
    session.open_lake()
    try:
        if undo:
            code = _undo(session, dataset, subject, dry_run=dry_run)
        else:
            code = _withdraw(session, dataset, subject, yes=yes, dry_run=dry_run)
    except LockHeldError as error:
        code = session.stop(error, 1)
    raise typer.Exit(code)


def _name(dataset: str, subject: str | None) -> str:
    return f"{subject} of {dataset}" if subject else f"the whole dataset {dataset}"


def _undo(session: Session, dataset: str, subject: str | None, *, dry_run: bool) -> int:
    if dry_run:
        raise SettingsError("--undo cannot be combined with --dry-run")
    undo_withdrawal(dataset, subject, session.create_lake(), session.settings.resource_ids())
    session.notify(f"{_name(dataset, subject)} is no longer withdrawn; the next run loads it from its folder")
    return 0


def _withdraw(session: Session, dataset: str, subject: str | None, *, yes: bool, dry_run: bool) -> int:
    lake, name = session.create_lake(), _name(dataset, subject)
    plan = stage.withdraw(dataset, subject, lake, session.settings, dry_run=True)
    if dry_run:
        _show(session, plan)
        return 0
    if not yes:
        if session.as_json or not sys.stdin.isatty():
            raise SettingsError(f"add --yes to withdraw {name}: there is no terminal to ask for confirmation")
        _show(session, plan)
        if not typer.confirm(
            to_printable(f"Withdraw {name}? The source files stay; everything else is removed for good.")
        ):
            return 2
    result = stage.withdraw(dataset, subject, lake, session.settings)
    _show(session, result)
    return result.exit_code


def _show(session: Session, result: WithdrawalResult) -> None:
    if session.as_json:
        print(json.dumps(asdict(result) | {"exit_code": result.exit_code}))
        return
    rows: list[tuple[str, str, int]] = [("the lake", "files", result.files), ("the lake", "studies", result.studies)]
    rows += [(server, kind, count) for server, counts in result.resources.items() for kind, count in counts.items()]
    rows = [row for row in rows if row[2]]
    if rows:
        title = "To be removed" if result.dry_run else "Removed"
        print_table(session.console, title, ["from", "what", "number"], rows)
    elif result.dry_run or not result.exit_code:
        session.notify("there is nothing left to remove")
    for sentence in [*result.notes, *result.remaining, result.unreachable]:
        if sentence:
            session.notify(sentence)
