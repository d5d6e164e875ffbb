"""The command itself: its help, its subcommands in the order of the help, and how it ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from dicom_etl import __version__
from dicom_etl.cli import converting, exporting, forgetting, looking, setting_up, stages, verifying
from dicom_etl.console import plain
from dicom_etl.lake.tables import LakeError
from dicom_etl.settings import SettingsError
from dicom_etl.sources import SourceError

app = typer.Typer(
    name="dicom-etl",
    help="""DICOM datasets to header tables (Parquet), FHIR resources and a report on tag quality.

    A DATASET is a folder, NAME=FOLDER, or a name registered in dicom-etl.toml; with none, all registered ones.
    Everything can be run again at any time: what has not changed is not made again.

    Try it:  dicom-etl example demo && cd demo && dicom-etl run
    """,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"dicom-etl {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show the version")
    ] = False,
) -> None:
    """The command."""


_COMMANDS: tuple[Callable[..., None], ...] = (
    stages.run,
    stages.audit,
    stages.crawl,
    stages.extract,
    stages.build,
    stages.upload,
    stages.measure,
    stages.report,
    converting.convert,
    looking.status,
    verifying.verify,
    looking.uploads,
    looking.explain,
    exporting.completeness,
    exporting.findings,
    forgetting.forget,
    setting_up.doctor,
    setting_up.example,
)

for _command in _COMMANDS:
    app.command()(_command)


def main() -> None:
    """The entry point: errors that we know become one sentence and exit code 2."""
    try:
        app()
    except (SettingsError, SourceError, LakeError) as error:
        print(f"dicom-etl: {plain(error)}", file=sys.stderr)
        sys.exit(2)
