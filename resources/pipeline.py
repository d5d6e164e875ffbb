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
        """The pipeline that the settings describe; progress goes into `log`, a line per tenth of the work."""
        settings = load_settings(Path(self.settings_file) if self.settings_file else None)
        if log is None:
            return Pipeline(settings, tell=lambda _: None)
        return Pipeline(settings, progress=_tenths(log), tell=log.info)


def _tenths(log: dg.DagsterLogManager) -> Progress:
    """Each log line is a row of the event log: ten per stage are enough."""
    said: dict[str, int] = {}

    def progress(what: str, done: int, total: int) -> None:
        tenth = 10 * done // max(total, 1)
        if tenth > said.get(what, -1):
            said[what] = tenth
            log.info(f"{what}: {done:,} of {total:,}")

    return progress
