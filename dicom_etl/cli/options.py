"""The options and arguments that several commands share."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from dicom_etl.errors import UserError

Dataset = Annotated[str, typer.Argument(help="name of a dataset of the lake")]
Datasets = Annotated[
    list[str] | None,
    typer.Argument(help="folder, NAME=FOLDER, or name in the settings file [default: all of the settings file]"),
]
LakeDatasets = Annotated[
    list[str] | None, typer.Argument(help="name or folder of a dataset [default: all of the lake]")
]
SettingsFile = Annotated[
    Path | None,
    typer.Option(
        "--settings",
        help="settings file [default: the one that DICOM_ETL_SETTINGS names, otherwise dicom-etl.toml in the current "
        "folder, if it exists]",
    ),
]
LakeRoot = Annotated[str | None, typer.Option("--lake", help="folder or URL of the lake")]
FhirUrl = Annotated[
    str | None, typer.Option("--fhir-url", help="base URL of the FHIR server [default: setting fhir.url]")
]
UploadUrl = Annotated[
    str | None,
    typer.Option(
        "--fhir-url",
        help="base URL of the FHIR server [default: setting fhir.url; without one, resources stay in the lake]",
    ),
]
Subject = Annotated[list[str] | None, typer.Option("--subject", help="only this subject (may be repeated)")]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="number of processes [default: one per core]")]
EngineKind = Annotated[str | None, typer.Option("--engine", help="how units are processed: serial, processes or dask")]
Force = Annotated[bool, typer.Option("--force", help="also process units that have not changed")]
Rebuild = Annotated[
    bool,
    typer.Option(
        "--rebuild",
        help="after the crawl, remove all tables of these datasets except ledger and withdrawals, and read every file "
        "again",
    ),
]
Accept = Annotated[
    bool, typer.Option("--accept-missing", help="accept missing subjects or files as intentionally removed")
]
Prune = Annotated[
    bool,
    typer.Option(
        "--prune", help="remove from the server resources, series and instances that the lake no longer contains"
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="replace resources of this lake that another client changed on the server")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="show what would be done, and change nothing")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="do not wait for another run of the same dataset")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON document on standard output, and nothing else")]
Output = Annotated[
    Path | None, typer.Option("--output", help="file to write, .csv or .parquet [default: CSV on standard output]")
]


_MAX_CHOICES = 20  # that a message lists


def check_choices(option: str, values: list[str], choices: Collection[str]) -> list[str]:
    """The values of an option, each of which must be one of the choices.

    Raises:
        UserError: one of them is not.
    """
    if unknown := [value for value in values if value not in choices]:
        similar = difflib.get_close_matches(unknown[0], choices, n=5, cutoff=0.4) if len(choices) > _MAX_CHOICES else []
        hint = f"did you mean {' or '.join(similar)}?" if similar else f"the choices are {', '.join(choices)}"
        raise UserError(f"{option} {unknown[0]}: {hint}")
    return values
