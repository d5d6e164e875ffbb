"""The commands of the first day: is everything in place, and something to try."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dicom_etl.cli.options import FhirUrl, Json, LakeRoot, SettingsFile
from dicom_etl.cli.session import Session
from dicom_etl.console import table
from dicom_etl.doctor import examine, settings_help
from dicom_etl.examples import write_examples
from dicom_etl.settings import SettingsError


def doctor(
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    fhir_url: FhirUrl = None,
    list_settings: Annotated[bool, typer.Option("--settings-help", help="list all settings and what they do")] = False,
    as_json: Json = False,
) -> None:
    """Check settings, access to datasets and lake, and the FHIR server."""
    session = Session(as_json, settings, lake, fhir_url=fhir_url)
    if list_settings:
        _list_settings(session)
        return
    checks = examine(session.settings)
    if as_json:
        print(json.dumps([asdict(check) for check in checks]))
    else:
        rows = [("ok" if c.ok else "WRONG", c.what, c.said) for c in checks]
        table(session.console, "doctor", ["", "what", "result"], rows)
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


def _list_settings(session: Session) -> None:
    columns = ["setting", "default", "meaning"]
    if session.as_json:
        print(json.dumps([dict(zip(columns, row, strict=True)) for row in settings_help()]))
    else:
        table(session.console, "Settings", columns, settings_help())


def example(
    directory: Annotated[Path, typer.Argument(help="where to write")],
    force: Annotated[bool, typer.Option("--force", help="write over an example tree that was changed")] = False,
) -> None:
    """Write two small example datasets and their settings file."""
    try:
        tree = write_examples(directory, force=force)
    except FileExistsError as error:
        raise SettingsError(str(error)) from None
    print(f"wrote {' and '.join(tree.datasets)} and {tree.settings_file}")
    print(f"next:  cd {tree.directory} && dicom-etl run")
