"""`make demo`: writes the example datasets, runs the Dagster job over them and shows the results.

It uses the job of `definitions.py` and the settings file of the examples, as any installation does, and no server.
"""

import logging
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import dagster as dg  # noqa: E402
from rich.console import Console  # noqa: E402

from definitions import build_defs  # noqa: E402
from dicom_etl.cli.output import count_noun, print_table  # noqa: E402
from dicom_etl.examples import write_examples  # noqa: E402
from dicom_etl.inspection.status import read_status  # noqa: E402
from dicom_etl.pipeline import Pipeline  # noqa: E402
from dicom_etl.settings import load_settings  # noqa: E402
from scripts.home import DEMO, create_dagster_home  # noqa: E402

JOB = "load_dataset"
QUIET = {"loggers": {"console": {"config": {"log_level": "ERROR"}}}}


def main() -> int:
    """Run the demo; returns 1 if a run has failed."""
    console = Console(highlight=False)
    tree = write_examples(DEMO)
    console.print(f"examples: {', '.join(tree.datasets)} in {_short(tree.directory)}")
    os.environ["DAGSTER_HOME"] = str(create_dagster_home())
    os.environ["DICOM_ETL_SETTINGS"] = str(tree.settings_file)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    pipeline = Pipeline(load_settings(tree.settings_file))
    with dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions("dataset", sorted(pipeline.datasets()))
        results = [_run(console, instance, name) for name in sorted(pipeline.datasets())]
    _show(console, pipeline)
    return 0 if all(results) else 1


def _run(console: Console, instance: dg.DagsterInstance, dataset: str) -> bool:
    """Run the job for one dataset and print one line per asset."""
    job = build_defs().resolve_job_def(JOB)
    console.print(f"[bold]{dataset}[/bold]: running the job {JOB}")
    result = job.execute_in_process(partition_key=dataset, instance=instance, run_config=QUIET, raise_on_error=False)
    for event in result.get_asset_materialization_events():
        materialization = event.materialization
        facts = {key: value.value for key, value in materialization.metadata.items() if isinstance(value.value, int)}
        numbers = ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in facts.items() if "/" not in key)
        console.print(f"  {materialization.asset_key.to_user_string():<17} {numbers}", soft_wrap=True)
    if not result.success:
        console.print(f"  [bold red]the run failed[/bold red]: open it with make dev: run {result.run_id}")
    return result.success


def _show(console: Console, pipeline: Pipeline) -> None:
    rows = read_status(pipeline.lake)
    columns = ("dataset", "subjects", "studies", "series", "instances", "findings")
    findings = [f"{count_noun(row.errors, 'error')}, {count_noun(row.warnings, 'warning')}" for row in rows]
    counts = [(r.dataset, r.subjects, r.studies, r.series, r.instances) for r in rows]
    print_table(console, "Results", columns, [(*c, f) for c, f in zip(counts, findings, strict=True)])
    for row in rows:
        console.print(f"report of {row.dataset}: {_report(pipeline, row.dataset)}", soft_wrap=True)
    console.print(f"tables and FHIR resources: {_short(Path(pipeline.settings.lake))}")
    console.print("next: open a report in a browser, or [bold]make dev[/bold] for the Dagster UI with these runs")


def _report(pipeline: Pipeline, dataset: str) -> str:
    return _short(Path(pipeline.settings.lake) / "quality" / dataset / "report.html")


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


if __name__ == "__main__":
    sys.exit(main())
