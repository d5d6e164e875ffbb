"""`dicom-etl findings`: the findings of all stages, as a table in CSV or Parquet."""

from __future__ import annotations

from typing import Annotated

import typer

from dicom_etl.cli.export import write_rows
from dicom_etl.cli.options import Dataset, LakeRoot, Output, SettingsFile, check_choices
from dicom_etl.cli.session import Session
from dicom_etl.errors import UserError
from dicom_etl.findings import finding_codes
from dicom_etl.lake.schemas import ALL_FINDINGS
from dicom_etl.renames import FINDING_CODES, describe_rename


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
    """Write a table of the findings of all stages.

    The dataset must have been measured. `dicom-etl explain` shows everything about one subject, findings included.
    """
    session = Session(output is None, settings, lake)
    check_choices("--severity", severity or [], ("error", "warning", "info"))
    for name in code or []:
        if sentence := describe_rename(FINDING_CODES, name, "finding code"):
            raise UserError(sentence)
    check_choices("--code", code or [], finding_codes())
    batches = session.open_measured_lake(dataset).read_batches(ALL_FINDINGS, dataset=dataset)
    write_rows(session, ALL_FINDINGS, batches, output, {"code": code, "severity": severity, "subject": subject})
