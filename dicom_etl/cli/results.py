"""The results of stages: tables for a person, JSON for a machine."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from typing import Any

from rich.console import Console

from dicom_etl.cli.output import print_table, to_printable
from dicom_etl.cli.session import Session
from dicom_etl.pipeline import STAGES, RunResult
from dicom_etl.stages.report import ReportSummary
from dicom_etl.stages.upload import UploadSummary


def show_result(session: Session, outcome: RunResult, **more: Any) -> None:
    """Show what a run of stages has come to: a table for each stage, then what stopped. JSON has `more` as well."""
    if session.as_json:
        print(json.dumps(_machine(outcome) | more, default=str))
        return
    for stage in STAGES:
        summaries = [by[stage] for by in outcome.summaries.values() if stage in by]
        if stage == "report":
            for reported in summaries:
                place = f"{session.settings.lake.rstrip('/')}/{reported.report}"
                session.tell(f"report of {reported.dataset} ({_said(reported)}): {place}")
        elif summaries:
            _show_stage(session.console, stage, summaries)
    for sentence in dict.fromkeys([*outcome.stopped.values(), *outcome.nothing.values()]):
        session.tell(sentence)
    if outcome.unreachable:
        session.tell(f"{outcome.unreachable}; everything else is done, and the next run sends it")


def _said(reported: ReportSummary) -> str:
    """What of a report somebody should look at: a run is done also where files could not be read."""
    counts = {
        "error": reported.findings.get("error", 0),
        "warning": reported.findings.get("warning", 0),
        "failed check": reported.check_results.get("fail", 0),
    }
    return ", ".join(f"{n} {what}{'' if n == 1 else 's'}" for what, n in counts.items())


def _machine(outcome: RunResult) -> dict[str, Any]:
    return {
        "exit_code": outcome.exit_code,
        "datasets": {
            name: {stage: asdict(s) if is_dataclass(s) and not isinstance(s, type) else s for stage, s in by.items()}
            for name, by in outcome.summaries.items()
        },
        "stopped": outcome.stopped,
        "nothing": outcome.nothing,
        "unreachable": outcome.unreachable,
    }


def _show_stage(console: Console, stage: str, summaries: list[Any]) -> None:
    if stage == "upload":
        show_upload(console, summaries)
        return
    rows = [asdict(summary) for summary in summaries]
    columns = [name for name, value in rows[0].items() if not isinstance(value, dict | list | tuple)]
    print_table(console, stage, [name.replace("_", " ") for name in columns], [[r[c] for c in columns] for r in rows])


def show_upload(console: Console, summaries: list[UploadSummary]) -> None:
    """Show what uploads have done, counted by dataset, type and state, and what they have removed."""
    if all(summary.server is None for summary in summaries):
        console.print("upload: no server is set; the NDJSON files in the lake are the result")
        return
    rows = [
        (s.dataset, kind, state, number)
        for s in summaries
        for kind, states in s.counts.items()
        for state, number in states.items()
    ]
    print_table(console, "upload", ["dataset", "type", "state", "resources"], rows)
    for removed in [line for s in summaries for line in s.removed]:
        console.print(to_printable(removed), markup=False)
