"""The options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Datasets = Annotated[list[str] | None, typer.Argument(help="folders, NAME=FOLDER or registered names")]
SettingsFile = Annotated[
    Path | None, typer.Option("--settings", help="settings file [default: ./dicom-etl.toml if it is there]")
]
LakeRoot = Annotated[str | None, typer.Option("--lake", help="folder or URL of the tables")]
FhirUrl = Annotated[str | None, typer.Option("--fhir-url", help="FHIR server; none: resources stay in the lake")]
Subject = Annotated[list[str] | None, typer.Option("--subject", help="only this subject (may be repeated)")]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="processes [default: one per core]")]
EngineKind = Annotated[
    str | None, typer.Option("--engine", help="where units are worked on: serial, processes or dask")
]
Force = Annotated[bool, typer.Option("--force", help="make everything again")]
Rebuild = Annotated[
    bool,
    typer.Option(
        "--rebuild",
        help="once crawled, remove all tables of these datasets but ledger and withdrawals, and read every file again",
    ),
]
Accept = Annotated[bool, typer.Option("--accept-missing", help="subjects or files that are gone are meant to be")]
Prune = Annotated[bool, typer.Option("--prune", help="let the server lose what the lake no longer has")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="replace resources of ours that another client changed on the server")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="say what would be done, and do nothing")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="do not wait for another run of the same dataset")]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on standard output, nothing else")]
