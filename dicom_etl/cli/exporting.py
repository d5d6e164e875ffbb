"""The commands that write quality tables for a person: completeness of tags and findings, as CSV or Parquet."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import IO, Annotated

import pyarrow as pa
import pyarrow.compute as pc
import typer

from dicom_etl import inspect
from dicom_etl.cli.options import LakeRoot, SettingsFile
from dicom_etl.cli.session import Session
from dicom_etl.findings import codes
from dicom_etl.lake.commits import read_commits
from dicom_etl.lake.schemas import ALL_FINDINGS, COMPLETENESS, INVENTORY, Table
from dicom_etl.lake.shards import shard_of
from dicom_etl.lake.tables import Lake
from dicom_etl.quality.by_subject import completeness_by_subject
from dicom_etl.quality.export import write_csv, write_parquet
from dicom_etl.quality.occurrences import GROUPS
from dicom_etl.settings import SettingsError

_LEVELS = ("series", "study", "instance")
_STORED = ("all", *GROUPS)
_FORMATS: dict[str, Callable[[IO[bytes], pa.Schema, Iterable[pa.Table]], int]] = {
    ".csv": write_csv,
    ".parquet": write_parquet,
}

Dataset = Annotated[str, typer.Argument(help="name of the dataset")]
Output = Annotated[
    Path | None, typer.Option("--output", help="file to write, .csv or .parquet [default: CSV on standard output]")
]


def completeness(
    dataset: Dataset,
    by: Annotated[
        str | None,
        typer.Option("--by", help=f"{', '.join(_STORED)} or subject [default: all that are stored, without subject]"),
    ] = None,
    subject: Annotated[
        list[str] | None, typer.Option("--subject", help="with --by subject: only this one (may be repeated)")
    ] = None,
    level: Annotated[
        list[str] | None,
        typer.Option("--level", help=f"what is counted: {', '.join(_LEVELS)} (may be repeated) [default: all three]"),
    ] = None,
    output: Output = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
) -> None:
    """How often each tag is filled, empty or absent, as a table.

    Of a dataset that has been measured. By subject it is counted now, and has a row for each tag of each subject:

      dicom-etl completeness breast --by subject --output tags.csv

    docs/quality.md explains what the columns count.
    """
    session = Session(output is None, settings, lake)
    levels = _known("--level", level or list(_LEVELS), _LEVELS)
    groups = _known("--by", [by] if by else list(_STORED), (*_STORED, "subject"))
    if subject and by != "subject":
        raise SettingsError("--subject chooses among subjects: say --by subject as well")
    existing = _measured(session.existing(), dataset)
    if by == "subject":
        shards, subjects = _shards(existing, dataset, subject)
        pieces = completeness_by_subject(existing, dataset, shards, subjects=subjects, levels=levels)
    else:
        pieces = _chosen(existing, COMPLETENESS, dataset, {"group_by": groups, "level": levels})
    _write(session, COMPLETENESS, pieces, output)


def findings(
    dataset: Dataset,
    code: Annotated[
        list[str] | None, typer.Option("--code", help="only findings of this code (may be repeated)")
    ] = None,
    severity: Annotated[
        list[str] | None, typer.Option("--severity", help="error, warning, info (may be repeated) [default: all]")
    ] = None,
    subject: Annotated[list[str] | None, typer.Option("--subject", help="only this subject (may be repeated)")] = None,
    output: Output = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
) -> None:
    """The findings of all stages, as a table.

    Of a dataset that has been measured. `dicom-etl explain` shows those of one subject with all else about it.
    """
    session = Session(output is None, settings, lake)
    if severity:
        _known("--severity", severity, ("error", "warning", "info"))
    if code:
        _known("--code", code, codes())
    existing = _measured(session.existing(), dataset)
    chosen = {"code": code, "severity": severity, "subject": subject}
    _write(session, ALL_FINDINGS, _chosen(existing, ALL_FINDINGS, dataset, chosen), output)


# -- what is written --------------------------------------------------------------------------------------------------


def _known(option: str, given: list[str], known: Collection[str]) -> list[str]:
    """The given words, all of which must be known."""
    if unknown := [word for word in given if word not in known]:
        raise SettingsError(f"{option} {unknown[0]}: the choices are {', '.join(known)}")
    return given


def _measured(lake: Lake, dataset: str) -> Lake:
    """The lake, in which the dataset must have been measured."""
    if dataset not in (there := inspect.datasets_of(lake)):
        raise SettingsError(f"the lake has no dataset {dataset}; it has {', '.join(there) or 'none'}")
    if lake.fingerprint(ALL_FINDINGS, dataset=dataset) is None:
        raise SettingsError(f"dataset {dataset} has not been measured: run `dicom-etl measure {dataset}` first")
    return lake


def _shards(lake: Lake, dataset: str, subjects: list[str] | None) -> tuple[Collection[int], list[str] | None]:
    """The shards that hold the subjects, which the inventory must have; all shards where none is named."""
    commits = read_commits(lake, "extract", dataset)
    if not subjects:
        return commits, None
    units: set[str] = set()
    found: set[str] = set()
    for piece in lake.read_pieces(INVENTORY, ["unit", "subject"], dataset=dataset):
        rows = piece.filter(pc.is_in(piece["subject"], pa.array(subjects, pa.string())))
        units |= set(pc.unique(rows["unit"]).to_pylist())
        found |= set(pc.unique(rows["subject"]).to_pylist())
    if missing := [name for name in subjects if name not in found]:
        raise SettingsError(f"{dataset} has no subject {missing[0]}; `dicom-etl report` lists its subjects")
    total = next(iter(commits.values())).shards if commits else 1
    return {shard_of(unit, total) for unit in units} & set(commits), subjects


def _chosen(lake: Lake, table: Table, dataset: str, chosen: dict[str, list[str] | None]) -> Iterator[pa.Table]:
    """The rows of a table whose columns have the chosen values, in pieces."""
    for piece in lake.read_pieces(table, dataset=dataset):
        rows = piece
        for column, values in chosen.items():
            if values:
                rows = rows.filter(pc.is_in(rows[column], pa.array(values, pa.string())))
        yield rows


# -- where it goes ----------------------------------------------------------------------------------------------------


def _write(session: Session, table: Table, pieces: Iterable[pa.Table], output: Path | None) -> None:
    if output is None:
        _print(table, pieces)
        return
    write = _FORMATS.get(output.suffix.lower())
    if write is None:
        raise SettingsError(f"{output}: the name of the output ends in {' or '.join(_FORMATS)}")
    unfinished = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as sink:
            rows = write(sink, table.schema, pieces)
        unfinished.replace(output)
    except OSError as error:
        raise SettingsError(f"{output} cannot be written: {error.strerror or error}") from None
    finally:
        unfinished.unlink(missing_ok=True)
    session.tell(f"{output}: {rows:,} row{'' if rows == 1 else 's'}")


def _print(table: Table, pieces: Iterable[pa.Table]) -> None:
    """CSV on standard output; a reader that has seen enough (`| head`) is no error."""
    try:
        write_csv(sys.stdout.buffer, table.schema, pieces)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
