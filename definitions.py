"""The Dagster code location. `build_defs` builds all of it, so that tests and other deployments can replace a part."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from assets.automation import changed_datasets, load_dataset, nightly
from assets.checks import CHECKS
from assets.stages import ASSETS
from resources import PipelineResource


def build_defs(*, resource_overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """Assets, checks, job, sensor, schedule and resources."""
    return dg.Definitions(
        assets=ASSETS,
        asset_checks=CHECKS,
        jobs=[load_dataset],
        sensors=[changed_datasets],
        schedules=[nightly],
        resources={"etl": PipelineResource()} | dict(resource_overrides or {}),
        executor=dg.in_process_executor,  # the parallelism is inside the assets
    )


defs = build_defs()
