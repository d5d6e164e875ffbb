"""The options and arguments that several commands share."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

from dicom_etl.errors import UserError

Dataset = Annotated[str, typer.Argument(help="name of the dataset")]
Datasets = Annotated[list[str] | None, typer.Argument(help="folders, NAME=FOLDER or registered names")]
SettingsFile = Annotated[
    Path | None, typer.Option("--settings", help="settings file [default: ./dicom-etl.toml if it exists]")
]
LakeRoot = Annotated[str | None, typer.Option("--lake", help="folder or URL of the lake")]
FhirUrl = Annotated[
    str | None, typer.Option("--fhir-url", help="base URL of the FHIR server [default: the setting fhir.url]")
]
Subject = Annotated[list[str] | None, typer.Option("--subject", help="only this subject (may be repeated)")]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="processes [default: one per core]")]
EngineKind = Annotated[
    str | None, typer.Option("--engine", help="where units are processed: serial, processes or dask")
]
Force = Annotated[bool, typer.Option("--force", help="process unchanged units, too")]
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
    bool, typer.Option("--prune", help="let uploads remove from the server what the lake no longer contains")
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


def check_choices(option: str, values: list[str], choices: Collection[str]) -> list[str]:
    """The values of an option, each of which must be one of the choices.

    Raises:
        UserError: one of them is not.
    """
    if unknown := [value for value in values if value not in choices]:
        raise UserError(f"{option} {unknown[0]}: the choices are {', '.join(choices)}")
    return values
