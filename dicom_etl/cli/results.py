"""The results of stages: tables for a person, JSON for a machine."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from dicom_etl.cli.output import count_noun, print_table, to_printable
from dicom_etl.cli.session import Session
from dicom_etl.pipeline import STAGES, RunResult

if TYPE_CHECKING:
    from rich.console import Console

    from dicom_etl.stages.report import ReportSummary
    from dicom_etl.stages.upload import UploadSummary

_COLUMN_TITLES = {"files_opened": "file reads"}  # a duplicate is opened twice


def show_result(session: Session, result: RunResult, **more: Any) -> None:
    """Show the result of a run: a table for each stage, then what stopped it. JSON has the fields of `more` as well."""
    if session.as_json:
        print(json.dumps(_to_json(result) | more, default=str))
        return
    for stage in STAGES:
        summaries = [by_stage[stage] for by_stage in result.summaries.values() if stage in by_stage]
        if stage == "report":
            for reported in summaries:
                path = f"{session.settings.lake.rstrip('/')}/{reported.report}"
                session.notify(f"report of {reported.dataset} ({_count_problems(reported)}): {path}")
        elif stage == "upload":
            show_upload(session.console, summaries)
        elif summaries:
            _show_stage(session.console, stage, summaries)
    for sentence in dict.fromkeys([*result.stopped.values(), *result.nothing_to_do.values()]):
        session.notify(sentence)
    if result.unreachable:
        session.notify(f"{result.unreachable}; everything else is done, and the next run uploads")


def _count_problems(reported: ReportSummary) -> str:
    """Count what a person should check: a run ends with exit code 0 although some files could not be read."""
    counts = {
        "error": reported.findings.get("error", 0),
        "warning": reported.findings.get("warning", 0),
        "failed check": reported.check_results.get("fail", 0),
    }
    return ", ".join(count_noun(number, noun) for noun, number in counts.items())


def _to_json(result: RunResult) -> dict[str, Any]:
    return {
        "exit_code": result.exit_code,
        "datasets": {
            name: {stage: asdict(s) if is_dataclass(s) and not isinstance(s, type) else s for stage, s in by.items()}
            for name, by in result.summaries.items()
        },
        "stopped": result.stopped,
        "nothing_to_do": result.nothing_to_do,
        "unreachable": result.unreachable,
    }


def _show_stage(console: Console, stage: str, summaries: list[Any]) -> None:
    rows = [asdict(summary) for summary in summaries]
    columns = [name for name, value in rows[0].items() if not isinstance(value, dict | list | tuple)]
    cells = [[row[column] for column in columns] for row in rows]
    print_table(console, stage, [_COLUMN_TITLES.get(name, name.replace("_", " ")) for name in columns], cells)


def show_upload(console: Console, summaries: list[UploadSummary]) -> None:
    """Show the results of uploads: resources by dataset, type and state, then removed resources."""
    if not summaries:
        return
    if all(summary.server is None for summary in summaries):
        console.print("upload: no server is set (fhir.url); the NDJSON files in the lake are the result")
        return
    rows = [
        (summary.dataset, kind, state, number)
        for summary in summaries
        for kind, states in summary.counts.items()
        for state, number in states.items()
    ]
    print_table(console, "upload", ["dataset", "type", "state", "resources"], rows)
    for line in [line for summary in summaries for line in summary.removed]:
        console.print(to_printable(line), markup=False)
