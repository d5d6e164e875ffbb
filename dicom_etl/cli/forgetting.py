"""The command that forgets what was withdrawn."""

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
from dicom_etl.stages import forget as stage
from dicom_etl.stages.forget import Forgotten


def forget(
    dataset: Annotated[str, typer.Argument(help="name of the dataset")],
    subject: Annotated[str | None, typer.Argument(help="subject (or unit) in it; none: the whole dataset")] = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    fhir_url: FhirUrl = None,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    readmit: Annotated[bool, typer.Option("--readmit", help="take a withdrawal back")] = False,
    dry_run: DryRun = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Remove a withdrawn subject from server, ledger and lake, and keep it out."""
    session = Session(as_json, settings, lake, fhir_url=fhir_url, no_wait=no_wait)
    session.existing()
    try:
        if readmit:
            code = _readmit(session, dataset, subject, dry_run=dry_run)
        else:
            code = _forget(session, dataset, subject, yes=yes, dry_run=dry_run)
    except LockHeldError as error:
        code = session.stopped(error, 1)
    raise typer.Exit(code)


def _what(dataset: str, subject: str | None) -> str:
    return f"{subject} of {dataset}" if subject else f"the whole dataset {dataset}"


def _readmit(session: Session, dataset: str, subject: str | None, *, dry_run: bool) -> int:
    lake = session.lake()
    if dry_run:
        raise SettingsError("--readmit takes a record back and has no --dry-run")
    stage.readmit(dataset, subject, lake, session.settings.resource_ids())
    session.tell(f"{_what(dataset, subject)} is no longer withdrawn; the next run loads what lies in the tree")
    return 0


def _forget(session: Session, dataset: str, subject: str | None, *, yes: bool, dry_run: bool) -> int:
    lake, what = session.lake(), _what(dataset, subject)
    plan = stage.forget(dataset, subject, lake, session.settings, dry_run=True)
    if dry_run:
        _show(session, plan)
        return 0
    if not yes:
        if session.as_json or not sys.stdin.isatty():
            raise SettingsError(f"forgetting {what} cannot be undone: say --yes where nobody can be asked")
        _show(session, plan)
        if not typer.confirm(to_printable(f"Forget {what}? The files in its folder stay; all else cannot be undone.")):
            return 2
    done = stage.forget(dataset, subject, lake, session.settings)
    _show(session, done)
    return done.exit_code


def _show(session: Session, done: Forgotten) -> None:
    if session.as_json:
        print(json.dumps(asdict(done) | {"exit_code": done.exit_code}))
        return
    rows: list[tuple[str, str, int]] = [("the lake", "files", done.files), ("the lake", "studies", done.studies)]
    rows += [(server, kind, n) for server, kinds in done.resources.items() for kind, n in kinds.items()]
    rows = [row for row in rows if row[2]]
    if rows:
        title = "Would be forgotten" if done.dry_run else "Forgotten"
        print_table(session.console, title, ["where", "what", "how many"], rows)
    elif done.dry_run or not done.exit_code:
        session.tell("there is nothing left to forget")
    for sentence in [*done.told, *done.left, done.unreachable]:
        if sentence:
            session.tell(sentence)
