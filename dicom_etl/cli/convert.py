"""The command that converts a folder and keeps nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console

from dicom_etl.cli.options import SettingsFile, Workers
from dicom_etl.cli.output import to_printable
from dicom_etl.convert import convert as convert_folder
from dicom_etl.settings import load_settings


def convert(
    directory: Annotated[Path, typer.Argument(help="a folder of DICOM files, in folders of any kind")],
    contained: Annotated[bool, typer.Option("--contained", help="put the Patient into each ImagingStudy")] = False,
    time_zone: Annotated[
        str | None, typer.Option("--time-zone", help="IANA zone of dates whose headers name no offset")
    ] = None,
    fhir_version: Annotated[str | None, typer.Option("--fhir-version", help="R4 or R5 [default: R4]")] = None,
    strict: Annotated[
        bool | None, typer.Option("--strict", help="hold a study of which something cannot stand in FHIR")
    ] = None,
    settings: SettingsFile = None,
    workers: Workers = None,
) -> None:
    """Print the FHIR resources of a folder, one per line, without a lake.

    Patients first, then one ImagingStudy for each study. What was left out is said on standard error, and the exit code
    is then 1.
    """
    console = Console(highlight=False, stderr=True, soft_wrap=True)
    fhir = {"version": fhir_version, "strict": strict}
    chosen = load_settings(settings, time_zone=time_zone, workers=workers, fhir=fhir)
    converted = convert_folder(directory, contained=contained, settings=chosen)
    for resource in (*converted.patients, *converted.studies):
        print(orjson.dumps(resource).decode())
    told = [f for f in converted.findings if f.severity != "info"]
    for found in told:
        where = found.path or found.series_uid or found.study_uid or str(directory)
        times = f" ({found.count} times)" if found.count > 1 else ""
        console.print(to_printable(f"{found.severity}: {where}: {found.message} [{found.code}]{times}"), markup=False)
    console.print(f"{len(converted.studies)} studies, {len(told)} findings", markup=False)
    raise typer.Exit(int(any(f.severity == "error" for f in told)))
