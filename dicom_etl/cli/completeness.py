"""`dicom-etl completeness`: how often each tag is filled, as a table in CSV or Parquet."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

import pyarrow as pa
import pyarrow.compute as pc
import typer

from dicom_etl.cli.export import write_rows
from dicom_etl.cli.options import Dataset, LakeRoot, Output, SettingsFile, check_choices
from dicom_etl.cli.session import Session
from dicom_etl.errors import UserError
from dicom_etl.lake.commits import read_commits
from dicom_etl.lake.schemas import COMPLETENESS, INVENTORY
from dicom_etl.lake.shards import assign_shard
from dicom_etl.lake.tables import Lake
from dicom_etl.quality.occurrences import GROUPS
from dicom_etl.quality.subject_completeness import count_completeness_by_subject

_LEVELS = ("series", "study", "instance")
_STORED_GROUPS = ("all", *GROUPS)


def completeness(
    dataset: Dataset,
    by: Annotated[
        str | None,
        typer.Option(
            "--by", help=f"{', '.join(_STORED_GROUPS)} or subject [default: all that are stored, without subject]"
        ),
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
    """Write a table of how often each tag is filled, empty or absent.

    The dataset must have been measured. With --by subject, the table is computed now and has a row for each tag of
    each subject:

      dicom-etl completeness breast --by subject --output tags.csv

    docs/reference/tables.md explains the columns.
    """
    session = Session(output is None, settings, lake)
    levels = check_choices("--level", level or list(_LEVELS), _LEVELS)
    groups = check_choices("--by", [by] if by else list(_STORED_GROUPS), (*_STORED_GROUPS, "subject"))
    if subject and by != "subject":
        raise UserError("--subject limits a table by subject: give --by subject as well")
    measured_lake = session.open_measured_lake(dataset)
    if by == "subject":
        shards, subjects = _find_shards(measured_lake, dataset, subject)
        batches = count_completeness_by_subject(measured_lake, dataset, shards, subjects=subjects, levels=levels)
        write_rows(session, COMPLETENESS, batches, output)
    else:
        batches = measured_lake.read_batches(COMPLETENESS, dataset=dataset)
        write_rows(session, COMPLETENESS, batches, output, {"group_by": groups, "level": levels})


def _find_shards(lake: Lake, dataset: str, subjects: list[str] | None) -> tuple[Collection[int], list[str] | None]:
    """The shards that hold the subjects, which the inventory must have; all shards where no subject is named."""
    commits = read_commits(lake, "extract", dataset)
    if not subjects:
        return commits, None
    units: set[str] = set()
    existing: set[str] = set()
    for batch in lake.read_batches(INVENTORY, ["unit", "subject"], dataset=dataset):
        rows = batch.filter(pc.is_in(batch["subject"], pa.array(subjects, pa.string())))
        units |= set(pc.unique(rows["unit"]).to_pylist())
        existing |= set(pc.unique(rows["subject"]).to_pylist())
    if missing := [name for name in subjects if name not in existing]:
        raise UserError(f"{dataset} has no subject {missing[0]}; `dicom-etl report` lists its subjects")
    total = next(iter(commits.values())).shards if commits else 1
    return {assign_shard(unit, total) for unit in units} & set(commits), subjects
