"""`dicom-etl convert`: prints the FHIR resources of a folder, and keeps nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import orjson
import typer

from dicom_etl.cli.options import SettingsFile, Workers
from dicom_etl.cli.output import count_noun, to_printable
from dicom_etl.convert import convert as convert_folder
from dicom_etl.settings import load_settings


def convert(
    directory: Annotated[Path, typer.Argument(help="folder that contains DICOM files, at any depth")],
    contained: Annotated[bool, typer.Option("--contained", help="put the Patient into each ImagingStudy")] = False,
    time_zone: Annotated[
        str | None, typer.Option("--time-zone", help="IANA time zone of dates whose headers have no UTC offset")
    ] = None,
    fhir_version: Annotated[str | None, typer.Option("--fhir-version", help="R4 or R5 [default: R4]")] = None,
    strict: Annotated[
        bool | None, typer.Option("--strict", help="leave out a study that has a value which FHIR cannot represent")
    ] = None,
    settings: SettingsFile = None,
    workers: Workers = None,
) -> None:
    """Print the FHIR resources of a folder, one per line, without a lake.

    Patients first, then one ImagingStudy for each study. Errors and warnings are on standard error; with an error, the
    exit code is 1.
    """
    fhir = {"version": fhir_version, "strict": strict}
    loaded = load_settings(settings, time_zone=time_zone, workers=workers, fhir=fhir)
    result = convert_folder(directory, contained=contained, settings=loaded)
    for resource in (*result.patients, *result.studies):
        print(orjson.dumps(resource).decode())
    problems = [finding for finding in result.findings if finding.severity != "info"]
    for finding in problems:
        location = finding.path or finding.series_uid or finding.study_uid or str(directory)
        times = f" ({finding.count:,} times)" if finding.count > 1 else ""
        line = f"{finding.severity}: {location}: {finding.message} [{finding.code}]{times}"
        print(to_printable(line), file=sys.stderr)
    counts = count_noun(len(result.studies), "ImagingStudy resource"), count_noun(len(problems), "problem")
    print(", ".join(counts), file=sys.stderr)
    raise typer.Exit(int(any(finding.severity == "error" for finding in problems)))
