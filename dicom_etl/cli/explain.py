"""`dicom-etl explain`: everything that the lake has about a subject."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from dicom_etl.cli.options import Dataset, Json, LakeRoot, SettingsFile
from dicom_etl.cli.output import print_table
from dicom_etl.cli.session import Session
from dicom_etl.inspection.explanation import explain_subject


def explain(
    dataset: Dataset,
    subject: Annotated[str, typer.Argument(help="subject (or unit) of the dataset")],
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    as_json: Json = False,
) -> None:
    """Show everything about a subject: files, patient matching, findings, uploads."""
    session = Session(as_json, settings, lake)
    sections = explain_subject(session.open_lake(), dataset, subject)
    if as_json:
        rows = {s.title: [dict(zip(s.columns, row, strict=True)) for row in s.rows] for s in sections}
        print(json.dumps(rows, default=str))
        return
    for section in sections:
        if section.rows:
            print_table(session.console, section.title, section.columns, section.rows)
        else:
            session.notify(f"{section.title}: none")
