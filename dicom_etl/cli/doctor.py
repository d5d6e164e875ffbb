"""`dicom-etl doctor`: checks settings, datasets, lake and server before a run, and lists the settings."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from dicom_etl.cli.options import FhirUrl, Json, LakeRoot, SettingsFile
from dicom_etl.cli.output import print_table
from dicom_etl.cli.session import Session
from dicom_etl.settings import describe_settings


def doctor(
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    fhir_url: FhirUrl = None,
    list_settings: Annotated[bool, typer.Option("--settings-help", help="list all settings and their meaning")] = False,
    as_json: Json = False,
) -> None:
    """Check settings, access to datasets and lake, and the FHIR server."""
    session = Session(as_json, settings, lake, fhir_url=fhir_url)
    if list_settings:
        _list_settings(session)
        return
    from dicom_etl.inspection.doctor import run_checks

    checks = run_checks(session.settings)
    if as_json:
        print(json.dumps([asdict(check) | {"ok": check.ok} for check in checks]))
    else:
        rows = [(check.status if check.ok else "WRONG", check.check, check.result) for check in checks]
        print_table(session.console, "doctor", ["", "checked", "result"], rows)
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


def _list_settings(session: Session) -> None:
    columns = ["setting", "default", "meaning"]
    if session.as_json:
        print(json.dumps([dict(zip(columns, row, strict=True)) for row in describe_settings()]))
    else:
        print_table(session.console, "Settings", columns, describe_settings())
