"""The pipeline as a Dagster resource. Settings come from the settings file and the environment, never from run
configuration, so that a backfill of many partitions needs none; secrets stay in the environment."""

from pathlib import Path

import dagster as dg

from dicom_etl.engine import Progress
from dicom_etl.pipeline import Pipeline
from dicom_etl.settings import load_settings


class PipelineResource(dg.ConfigurableResource[Pipeline]):
    """Builds a `Pipeline` for each run."""

    settings_file: str | None = None

    def pipeline(self, log: dg.DagsterLogManager | None = None) -> Pipeline:
        """The pipeline of the settings; progress and messages go to `log`, one line per tenth of the work."""
        settings = load_settings(Path(self.settings_file) if self.settings_file else None)
        if log is None:
            return Pipeline(settings, notify=lambda _: None)
        return Pipeline(settings, progress=_log_tenths(log), notify=log.info)


def _log_tenths(log: dg.DagsterLogManager) -> Progress:
    """Progress as log lines: each is a row of Dagster's event log, so that ten per stage are enough."""
    logged: dict[str, int] = {}

    def progress(what: str, done: int, total: int) -> None:
        tenth = 10 * done // max(total, 1)
        if tenth > logged.get(what, -1):
            logged[what] = tenth
            log.info(f"{what}: {done:,} of {total:,}")

    return progress
