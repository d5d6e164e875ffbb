"""The command itself: its help, its subcommands in the order of the help, and how it ends.

A subcommand's module is imported when it is called, so that `--help` and `--version` import none of them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, MutableMapping
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from dicom_etl.errors import UserError
from dicom_etl.renames import COMMANDS, OPTIONS, describe_rename
from dicom_etl.version import VERSION


class Subcommand(NamedTuple):
    """A subcommand before its module is imported: a function of its name in a module of `dicom_etl.cli`."""

    module: str
    help: str  # the first line of the function's docstring


SUBCOMMANDS = {
    "run": Subcommand("run", "Run all stages: crawl, extract, build, upload, measure and report."),
    "audit": Subcommand("run", "Run all stages except the upload; needs no server."),
    "crawl": Subcommand("stages", "List the files of datasets and read their SDS sheets; opens no DICOM file."),
    "extract": Subcommand("stages", "Read the headers of new and changed files into the header tables."),
    "build": Subcommand("stages", "Match patients and build the FHIR resources (NDJSON in the lake)."),
    "upload": Subcommand("stages", "Send new and changed resources to the FHIR server."),
    "measure": Subcommand("stages", "Measure tag completeness, consistency and FHIR readiness."),
    "report": Subcommand("stages", "Write the quality report (HTML, JSON, CSV)."),
    "convert": Subcommand("convert", "Print the FHIR resources of a folder, one per line, without a lake."),
    "status": Subcommand("status", "Show what is loaded, held and failed, by dataset."),
    "verify": Subcommand("verify", "Compare the FHIR server with lake and upload ledger."),
    "uploads": Subcommand("uploads", "List resources whose upload failed or is pending, and why; needs no server."),
    "explain": Subcommand("explain", "Show everything about a subject: files, patient matching, findings, uploads."),
    "completeness": Subcommand("completeness", "Write a table of how often each tag is filled, empty or absent."),
    "findings": Subcommand("findings", "Write a table of the findings of all stages."),
    "withdraw": Subcommand("withdraw", "Remove a subject or a dataset from server, ledger and lake, and keep it out."),
    "doctor": Subcommand("doctor", "Check settings, access to datasets and lake, and the FHIR server."),
    "example": Subcommand("example", "Write two small example datasets and their settings file."),
}


class _Command(TyperCommand):
    """A subcommand that refuses options of earlier versions by their new names."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for argument in args:
            if argument == "--":
                break
            if sentence := describe_rename(OPTIONS, argument.partition("=")[0], "option"):
                raise UserError(sentence)
        return super().parse_args(ctx, args)


class _LazyCommands(MutableMapping[str, Any]):
    """The subcommands by name, each imported when it is read."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            if sentence := describe_rename(COMMANDS, name, "command"):
                raise UserError(sentence)
            module = importlib.import_module(f"dicom_etl.cli.{SUBCOMMANDS[name].module}")
            single = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
            single.command(name, cls=_Command)(getattr(module, name))
            self._loaded[name] = typer.main.get_command(single)
        return self._loaded[name]

    def __setitem__(self, name: str, command: Any) -> None:
        self._loaded[name] = command

    def __delitem__(self, name: str) -> None:
        del self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(SUBCOMMANDS)

    def __len__(self) -> int:
        return len(SUBCOMMANDS)


class _LazyGroup(TyperGroup):
    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = _LazyCommands()

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002  (the signature is typer's)
        with formatter.section("Commands"):
            formatter.write_dl([(name, subcommand.help) for name, subcommand in SUBCOMMANDS.items()])


app = typer.Typer(
    name="dicom-etl",
    cls=_LazyGroup,
    help="""DICOM datasets to header tables (Parquet), FHIR resources and a report on tag quality.

    A dataset is a folder, NAME=FOLDER, or a name in the settings file dicom-etl.toml; without one, a command processes
    all datasets of the settings file. Every command can be run again: unchanged data is not processed again.

    Try it:  dicom-etl example demo && cd demo && dicom-etl audit
    """,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(is_given: bool) -> None:
    if is_given:
        print(f"dicom-etl {VERSION}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="show the version")
    ] = False,
) -> None:
    """The command."""


def main() -> None:
    """The entry point: an error that a person can fix becomes one sentence and exit code 2."""
    try:
        app(prog_name="dicom-etl")
    except UserError as error:
        text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(error))
        print(f"dicom-etl: {text}", file=sys.stderr)
        sys.exit(2)
