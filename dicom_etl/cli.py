"""The command `dicom-etl`: one subcommand per stage, and those that run, audit, explain and check.

Only reads options, calls the pipeline and shows what came back. Exit codes: 0 done (findings or not), 1 some units
failed, were held or rejected, 2 wrong usage or nothing to do, 3 the server could not be reached, everything else done.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from dicom_etl import __version__, inspect
from dicom_etl.console import ProgressDisplay, plain, table
from dicom_etl.convert import convert
from dicom_etl.doctor import examine, settings_help
from dicom_etl.examples import write_examples
from dicom_etl.lake.locks import LockHeldError
from dicom_etl.lake.tables import Lake, LakeError
from dicom_etl.lake.withdrawn import Withdrawn
from dicom_etl.pipeline import STAGES, Options, Outcome, Pipeline, run
from dicom_etl.server.errors import FhirError
from dicom_etl.settings import DatasetSettings, Settings, SettingsError, load_settings
from dicom_etl.sources import SourceError
from dicom_etl.sources.registry import chosen_datasets
from dicom_etl.stages import forget as stages_forget
from dicom_etl.stages.forget import Forgotten
from dicom_etl.stages.upload import Uploaded
from dicom_etl.stages.verify import DIFFERENCES, Verified

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
Accept = Annotated[bool, typer.Option("--accept-vanished", help="subjects or files that are gone are meant to be")]
Prune = Annotated[bool, typer.Option("--prune", help="let the server lose what the lake no longer has")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="replace studies of ours that somebody else changed on the server")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="say what would be done, and do nothing")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="do not wait for another run of the same dataset")]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on standard output, nothing else")]


class _Session:
    """What every command needs: settings, chosen datasets, a console."""

    def __init__(self, as_json: bool, settings_file: Path | None, **overrides: Any) -> None:
        self.as_json = as_json
        self.console = Console(highlight=False, stderr=as_json, soft_wrap=False)
        self.settings: Settings = load_settings(settings_file, **overrides)

    def lake(self) -> Lake:
        """The lake, opened."""
        return Lake(self.settings.lake, self.settings.lock_wait_seconds, self.tell).open()

    def tell(self, sentence: str) -> None:
        """A sentence for the person."""
        self.console.print(plain(sentence), markup=False)

    def existing(self) -> Lake:
        """The lake, which must be there."""
        lake = Lake(self.settings.lake)
        if not lake.exists("lake.json"):
            raise SettingsError(f"there is no lake at {self.settings.lake}; name it with --lake, or run first")
        return lake.open()

    def in_lake(self, named: list[str] | None) -> list[str]:
        """The datasets of the lake that are named, by name or folder; all of them if none is."""
        lake = self.existing()
        there = inspect.datasets_of(lake)
        if not named:
            return there
        names = [[text] if text in there else chosen_datasets(self.settings, lake, [text]) for text in named]
        return list(dict.fromkeys(name for some in names for name in some))

    def verify(self, names: list[str], *, repair: bool) -> int:
        """Compare datasets with the server, show what was found, return the exit code."""
        try:
            with ProgressDisplay(self.console, quiet=self.as_json) as progress:
                verified = Pipeline(self.settings, progress=progress, tell=self.tell).verify(names, repair=repair)
        except (FhirError, LockHeldError) as error:
            code = 3 if isinstance(error, FhirError) else 1
            if self.as_json:
                print(json.dumps({"exit_code": code, "stopped": str(error)}))
            else:
                self.tell(str(error))
            return code
        if self.as_json:
            print(json.dumps(_machine_verified(verified)))
        else:
            _show_verified(self.console, verified)
            for sentence in (*verified.nothing.values(), *_advice(verified, repaired=repair)):
                self.tell(sentence)
        return verified.exit_code

    def go(self, named: list[str] | None, stages: Collection[str], options: Options) -> int:
        """Run stages over the named datasets, show the outcome, return the exit code."""
        chosen = self._admitted(chosen_datasets(self.settings, self.lake(), named or []))
        with ProgressDisplay(self.console, quiet=self.as_json) as progress:
            pipeline = Pipeline(self.settings, chosen, progress, self.tell)
            if options.dry_run:
                return self._plan(pipeline, list(chosen), stages, options)
            outcome = run(pipeline, list(chosen), stages, options)
        self._show(outcome)
        return outcome.exit_code

    def _admitted(self, chosen: dict[str, DatasetSettings]) -> dict[str, DatasetSettings]:
        """The datasets but those that were withdrawn, of which is told."""
        ending = "was withdrawn and is passed over; `dicom-etl forget {} --readmit` ends that"
        gone = {n: f"dataset {n} {ending.format(n)}" for n in chosen if Withdrawn.of(self.lake(), n).whole}
        if chosen and len(gone) == len(chosen):
            raise SettingsError("; ".join(gone.values()))
        for sentence in gone.values():
            self.tell(sentence)
        return {name: dataset for name, dataset in chosen.items() if name not in gone}

    def _plan(self, pipeline: Pipeline, names: list[str], stages: Collection[str], options: Options) -> int:
        plans = [inspect.plan(pipeline, name) for name in names] if "crawl" in stages else []
        if plans and not self.as_json:
            table(
                self.console,
                "Would be done",
                list(asdict(plans[0])),
                [list(asdict(p).values()) for p in plans],
            )
        if "upload" in stages and pipeline.settings.fhir.url:
            outcome = run(pipeline, names, ["upload"], options)
            self._show(outcome)
            return outcome.exit_code
        if self.as_json:
            print(json.dumps([asdict(p) for p in plans]))
        return 0

    def _show(self, outcome: Outcome) -> None:
        if self.as_json:
            print(json.dumps(_machine(outcome), default=str))
            return
        for stage in STAGES:
            summaries = [by[stage] for by in outcome.summaries.values() if stage in by]
            if stage == "report":
                for reported in summaries:
                    self.tell(f"report of {reported.dataset}: {self.settings.lake.rstrip('/')}/{reported.report}")
            elif summaries:
                _show_stage(self.console, stage, summaries)
        for sentence in [*outcome.stopped.values(), *outcome.nothing.values(), outcome.unreachable]:
            if sentence:
                self.tell(sentence)


def _machine(outcome: Outcome) -> dict[str, Any]:
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
        _show_upload(console, summaries)
        return
    rows = [asdict(summary) for summary in summaries]
    columns = [name for name, value in rows[0].items() if not isinstance(value, dict | list | tuple)]
    table(console, stage, [name.replace("_", " ") for name in columns], [[r[c] for c in columns] for r in rows])


def _show_upload(console: Console, summaries: list[Uploaded]) -> None:
    if all(summary.server is None for summary in summaries):
        console.print("upload: no server is set; the NDJSON files in the lake are the result")
        return
    rows = [
        (s.dataset, kind, state, number)
        for s in summaries
        for kind, states in s.counts.items()
        for state, number in states.items()
    ]
    table(console, "upload", ["dataset", "type", "state", "resources"], rows)
    for removed in [line for s in summaries for line in s.removed]:
        console.print(plain(removed), markup=False)


_SHOWN = 20  # differences on a console


def _machine_verified(verified: Verified) -> dict[str, Any]:
    found = {one.dataset: asdict(one) for one in verified.compared}
    return {
        "exit_code": verified.exit_code,
        "server": verified.server,
        "shared": found.pop(None, None),
        "datasets": found,
        "uploads": {uploaded.dataset: asdict(uploaded) for uploaded in verified.uploads},
        "nothing": verified.nothing,
    }


def _show_verified(console: Console, verified: Verified) -> None:
    names = {one.dataset: one.dataset or "(shared)" for one in verified.compared}
    columns = ["ok", *DIFFERENCES, "left"]
    counted = [[names[one.dataset], *(one.counts[column] for column in columns)] for one in verified.compared]
    table(console, verified.server, ["dataset", *columns], counted)
    found = [
        (d.what, names[one.dataset], d.unit, d.resource, d.said) for one in verified.compared for d in one.differences
    ]
    if found:
        table(console, "Differences", ["what", "dataset", "unit", "resource", "more"], found[:_SHOWN])
    if len(found) > _SHOWN:
        console.print(f"and {len(found) - _SHOWN:,} more: --json lists all")
    if verified.uploads:
        _show_upload(console, list(verified.uploads))


def _advice(verified: Verified, *, repaired: bool) -> list[str]:
    """What each kind of difference means for the person."""
    said = {
        "missing": "missing: `dicom-etl verify --repair` sends them again",
        "changed": "changed: somebody else has changed them on the server; they are left as they are",
        "foreign": "foreign: another lake or program has sent them; they are left as they are",
        "unsent": "unsent: `dicom-etl outcomes` says why; `dicom-etl upload` sends what can be sent",
    }
    if repaired:
        said |= dict.fromkeys(("missing", "unsent"), "what was not there: sent, as far as the server has taken it")
    told = [said[what] for what in DIFFERENCES if any(one.counts[what] for one in verified.compared)]
    return list(dict.fromkeys([*told, *(uploaded.stopped for uploaded in verified.uploads if uploaded.stopped)]))


def _show_sendings(console: Console, sendings: inspect.Sendings) -> None:
    counts = ", ".join(f"{number:,} {state}" for state, number in sendings.counts.items())
    console.print(plain(f"{sendings.dataset}: {counts or 'nothing was sent'}"), markup=False)
    columns = ["state", "HTTP", "tries", "resource", "unit", "subject", "server", "when (UTC)", "reason"]
    if sendings.listed:
        table(console, "", columns, [_sending(sent) for sent in sendings.listed])


def _sending(sent: inspect.Sent) -> tuple[Any, ...]:
    when = f"{sent.time:%Y-%m-%d %H:%M:%S}"
    place = sent.resource, sent.unit, sent.subject, sent.server
    return sent.state, sent.status, sent.attempts, *place, when, sent.reason


def _options(**given: Any) -> Options:
    subjects = given.pop("subject", None)
    return Options(subjects=tuple(subjects) if subjects else None, **given)


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


# -- running ----------------------------------------------------------------------------------------------------------


@app.command("run")
def run_command(
    datasets: Datasets = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    fhir_url: FhirUrl = None,
    subject: Subject = None,
    workers: Workers = None,
    engine: EngineKind = None,
    force: Force = False,
    accept_vanished: Accept = False,
    prune: Prune = False,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Everything: crawl, extract, build, upload, measure, report."""
    session = _session(as_json, settings, lake, fhir_url, workers, no_wait, engine)
    options = _options(
        subject=subject, force=force, accept_vanished=accept_vanished, prune=prune, overwrite=overwrite, dry_run=dry_run
    )
    raise typer.Exit(session.go(datasets, STAGES, options))


@app.command()
def audit(
    datasets: Datasets = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    subject: Subject = None,
    workers: Workers = None,
    engine: EngineKind = None,
    force: Force = False,
    accept_vanished: Accept = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Everything but the upload, ending in the report; needs no server."""
    session = _session(as_json, settings, lake, None, workers, no_wait, engine)
    stages = [stage for stage in STAGES if stage != "upload"]
    options = _options(subject=subject, force=force, accept_vanished=accept_vanished)
    raise typer.Exit(session.go(datasets, stages, options))


@app.command()
def crawl(
    datasets: Datasets = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    accept_vanished: Accept = False,
    dry_run: DryRun = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """List the files of datasets and read their SDS sheets; no DICOM file is opened."""
    session = _session(as_json, settings, lake, None, None, no_wait)
    options = _options(accept_vanished=accept_vanished, dry_run=dry_run)
    raise typer.Exit(session.go(datasets, ["crawl"], options))


@app.command()
def extract(
    datasets: Datasets = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    subject: Subject = None,
    workers: Workers = None,
    engine: EngineKind = None,
    force: Force = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Read the headers of new and changed files into the header tables."""
    session = _session(as_json, settings, lake, None, workers, no_wait, engine)
    raise typer.Exit(session.go(datasets, ["extract"], _options(subject=subject, force=force)))


@app.command()
def build(
    datasets: Datasets = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    subject: Subject = None,
    workers: Workers = None,
    engine: EngineKind = None,
    force: Force = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Decide whose each study is, and make the FHIR resources (NDJSON in the lake)."""
    session = _session(as_json, settings, lake, None, workers, no_wait, engine)
    raise typer.Exit(session.go(datasets, ["build"], _options(subject=subject, force=force)))


@app.command()
def upload(
    datasets: Datasets = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    fhir_url: FhirUrl = None,
    prune: Prune = False,
    overwrite: Overwrite = False,
    failed: Annotated[bool, typer.Option("--failed", help="only what was rejected or given up before")] = False,
    dry_run: DryRun = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Send resources that are new or changed to the FHIR server."""
    session = _session(as_json, settings, lake, fhir_url, None, no_wait)
    options = _options(prune=prune, failed_only=failed, overwrite=overwrite, dry_run=dry_run)
    raise typer.Exit(session.go(datasets, ["upload"], options))


@app.command()
def measure(
    datasets: Datasets = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    force: Force = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Measure tag completeness, consistency and FHIR readiness."""
    session = _session(as_json, settings, lake, None, None, no_wait)
    raise typer.Exit(session.go(datasets, ["measure"], _options(force=force)))


@app.command()
def report(
    datasets: Datasets = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    as_json: Json = False,
) -> None:
    """Write the report (HTML, JSON, CSV) of what was measured."""
    session = _session(as_json, settings, lake, None, None, no_wait=False)
    raise typer.Exit(session.go(datasets, ["report"], Options()))


@app.command("convert")
def convert_command(
    directory: Annotated[Path, typer.Argument(help="a folder of DICOM files, in folders of any kind")],
    contained: Annotated[bool, typer.Option("--contained", help="put the Patient into each ImagingStudy")] = False,
    time_zone: Annotated[
        str | None, typer.Option("--time-zone", help="IANA zone of dates whose headers name no offset")
    ] = None,
    fhir_version: Annotated[str | None, typer.Option("--fhir-version", help="R4 or R5 [default: R4]")] = None,
    strict: Annotated[
        bool | None, typer.Option("--strict", help="hold a study of which something cannot stand in FHIR")
    ] = None,
    settings: SettingsFile = None,
    workers: Workers = None,
) -> None:
    """The FHIR resources of a folder on standard output, one per line; keeps no lake.

    Patients first, then one ImagingStudy for each study. What was left out is said on standard error, and the exit code
    is then 1.
    """
    console = Console(highlight=False, stderr=True, soft_wrap=True)
    fhir = {"version": fhir_version, "strict": strict}
    chosen = load_settings(settings, time_zone=time_zone, workers=workers, fhir=fhir)
    converted = convert(directory, contained=contained, settings=chosen)
    for resource in (*converted.patients, *converted.studies):
        print(orjson.dumps(resource).decode())
    told = [f for f in converted.findings if f.severity != "info"]
    for found in told:
        where = found.path or found.series_uid or found.study_uid or str(directory)
        times = f" ({found.count} times)" if found.count > 1 else ""
        console.print(plain(f"{found.severity}: {where}: {found.message} [{found.code}]{times}"), markup=False)
    console.print(f"{len(converted.studies)} studies, {len(told)} findings", markup=False)
    raise typer.Exit(int(any(f.severity == "error" for f in told)))


# -- looking ----------------------------------------------------------------------------------------------------------


@app.command()
def status(settings: SettingsFile = None, lake: LakeRoot = None, as_json: Json = False) -> None:
    """What is loaded, held and failed, by dataset."""
    session = _session(as_json, settings, lake, None, None, no_wait=False)
    rows = inspect.status(session.existing())
    if as_json:
        print(json.dumps([asdict(row) for row in rows]))
    elif not rows:
        session.tell("the lake is empty")
    else:
        columns = [name for name in asdict(rows[0]) if name != "uploads"]
        table(session.console, session.settings.lake, columns, [[getattr(r, c) for c in columns] for r in rows])
        uploads = [(r.dataset, server, state, n) for r in rows for server, state, n in r.uploads]
        if uploads:
            table(session.console, "Uploads", ["dataset", "server", "state", "resources"], uploads)


@app.command()
def verify(
    datasets: Datasets = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    fhir_url: FhirUrl = None,
    repair: Annotated[bool, typer.Option("--repair", help="send what the server does not have")] = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Compare the FHIR server with lake and ledger: what is missing, changed, foreign or unsent.

    With no dataset named, all of the lake.
    """
    session = _session(as_json, settings, lake, fhir_url, None, no_wait)
    raise typer.Exit(session.verify(session.in_lake(datasets), repair=repair))


@app.command()
def outcomes(
    datasets: Datasets = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    state: Annotated[
        list[str] | None,
        typer.Option(
            "--state",
            help=f"{', '.join(inspect.STATES)} (may be repeated); unchanged: count alone [default: all but stored]",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the resources that are not on the server as they should be, and why; needs no server.

    With no dataset named, all of the lake.
    """
    states = state or []
    if unknown := sorted(set(states) - {*inspect.STATES, "unchanged"}):
        raise SettingsError(f"{', '.join(unknown)} is no state; there are {', '.join(inspect.STATES)}")
    session = _session(as_json, settings, lake, None, None, no_wait=False)
    found = [inspect.sendings(session.existing(), name, states) for name in session.in_lake(datasets)]
    if as_json:
        print(json.dumps({"datasets": {one.dataset: asdict(one) for one in found}}, default=str))
        return
    for one in found:
        _show_sendings(session.console, one)
    listed = {sent.state for one in found for sent in one.listed}
    if listed & {"rejected", "retrying", "gave-up"}:
        session.tell("once the cause is mended, `dicom-etl upload --failed` sends them again")
    if "held" in listed:
        session.tell("what is held waits for a decision: its reason begins with the code of the finding")
    if "gone" in listed:
        session.tell("what is gone stays on the server until `dicom-etl upload --prune`")


@app.command()
def explain(
    dataset: Annotated[str, typer.Argument(help="name of the dataset")],
    subject: Annotated[str, typer.Argument(help="subject (or unit) in it")],
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    as_json: Json = False,
) -> None:
    """Why a subject looks as it does: files, rows, identity, findings, resources, outcomes."""
    session = _session(as_json, settings, lake, None, None, no_wait=False)
    sections = inspect.explain(session.existing(), dataset, subject)
    if as_json:
        print(
            json.dumps(
                {s.title: [dict(zip(s.columns, r, strict=True)) for r in s.rows] for s in sections},
                default=str,
            )
        )
        return
    for section in sections:
        if section.rows:
            table(session.console, section.title, section.columns, section.rows)
        else:
            session.tell(f"{section.title}: none")


@app.command()
def forget(
    dataset: Annotated[str, typer.Argument(help="name of the dataset")],
    subject: Annotated[str | None, typer.Argument(help="subject (or unit) in it; none: the whole dataset")] = None,
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    fhir_url: FhirUrl = None,
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
    readmit: Annotated[bool, typer.Option("--readmit", help="take a withdrawal back")] = False,
    dry_run: DryRun = False,
    no_wait: NoWait = False,
    as_json: Json = False,
) -> None:
    """Remove a withdrawn subject from server, ledger and lake, and keep it out."""
    session = _session(as_json, settings, lake, fhir_url, None, no_wait)
    session.existing()
    try:
        raise typer.Exit(_forget(session, dataset, subject, yes=yes, take_back=readmit, dry_run=dry_run))
    except LockHeldError as error:
        session.tell(str(error))
        raise typer.Exit(1) from None


def _forget(session: _Session, dataset: str, subject: str | None, *, yes: bool, take_back: bool, dry_run: bool) -> int:
    lake, what = session.lake(), f"{subject} of {dataset}" if subject else f"the whole dataset {dataset}"
    if take_back:
        if dry_run:
            raise SettingsError("--readmit takes a record back and has no --dry-run")
        stages_forget.readmit(dataset, subject, lake)
        session.tell(f"{what} is no longer withdrawn; the next run loads what lies in the tree")
        return 0
    plan = stages_forget.forget(dataset, subject, lake, session.settings, dry_run=True)
    if dry_run:
        _show_forgotten(session, plan)
        return 0
    if not yes:
        if session.as_json or not sys.stdin.isatty():
            raise SettingsError(f"forgetting {what} cannot be undone: say --yes where nobody can be asked")
        _show_forgotten(session, plan)
        if not typer.confirm(plain(f"Forget {what}? The files in its folder stay; all else cannot be undone.")):
            return 2
    done = stages_forget.forget(dataset, subject, lake, session.settings)
    _show_forgotten(session, done)
    return done.exit_code


def _show_forgotten(session: _Session, done: Forgotten) -> None:
    if session.as_json:
        print(json.dumps(asdict(done) | {"exit_code": done.exit_code}))
        return
    rows: list[tuple[str, str, int]] = [("the lake", "files", done.files), ("the lake", "studies", done.studies)]
    rows += [(server, kind, n) for server, kinds in done.resources.items() for kind, n in kinds.items()]
    rows = [row for row in rows if row[2]]
    if rows:
        title = "Would be forgotten" if done.dry_run else "Forgotten"
        table(session.console, title, ["where", "what", "how many"], rows)
    elif done.dry_run or not done.exit_code:
        session.tell("there is nothing left to forget")
    for sentence in [*done.told, *done.left, done.unreachable]:
        if sentence:
            session.tell(sentence)


@app.command()
def doctor(
    settings: SettingsFile = None,
    lake: LakeRoot = None,
    fhir_url: FhirUrl = None,
    list_settings: Annotated[bool, typer.Option("--settings-help", help="list all settings and what they do")] = False,
    as_json: Json = False,
) -> None:
    """Check settings, access to datasets and lake, and the FHIR server."""
    session = _session(as_json, settings, lake, fhir_url, None, no_wait=False)
    if list_settings:
        table(session.console, "Settings", ["setting", "default", "meaning"], settings_help())
        return
    checks = examine(session.settings)
    if as_json:
        print(json.dumps([asdict(check) for check in checks]))
    else:
        rows = [("ok" if c.ok else "WRONG", c.what, c.said) for c in checks]
        table(session.console, "doctor", ["", "what", "result"], rows)
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


@app.command()
def example(
    directory: Annotated[Path, typer.Argument(help="where to write")],
    force: Annotated[bool, typer.Option("--force", help="write over an example tree that was changed")] = False,
) -> None:
    """Write two small example datasets and their settings file."""
    try:
        tree = write_examples(directory, force=force)
    except FileExistsError as error:
        raise SettingsError(str(error)) from None
    print(f"wrote {' and '.join(tree.datasets)} and {tree.settings_file}")
    print(f"next:  cd {tree.directory} && dicom-etl run")


def _session(
    as_json: bool,
    settings_file: Path | None,
    lake: str | None,
    fhir_url: str | None,
    workers: int | None,
    no_wait: bool,
    engine: str | None = None,
) -> _Session:
    return _Session(
        as_json,
        settings_file,
        lake=lake,
        workers=workers,
        engine=engine,
        fhir={"url": fhir_url},
        lock_wait_seconds=0.0 if no_wait else None,
    )


def main() -> None:
    """The entry point: errors that we know become one sentence and exit code 2."""
    try:
        app()
    except (SettingsError, SourceError, LakeError) as error:
        print(f"dicom-etl: {plain(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("dicom-etl: stopped; what is done is kept, the next run goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
