"""When runs start: a sensor that finds new and changed datasets, and a nightly schedule that asks the same question.

The decision is `changes`, a pure function of what was seen before and what is seen now.
"""

from collections.abc import Iterator, Mapping

import dagster as dg
import orjson

from assets.partitions import datasets
from assets.stages import ASSETS
from dicom_etl.identity.name_encoding import encode_name
from dicom_etl.inspection.snapshot import take_snapshot
from dicom_etl.pipeline import Pipeline
from resources import PipelineResource

load_dataset = dg.define_asset_job("load_dataset", selection=dg.AssetSelection.assets(*ASSETS))


def changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The datasets (partition keys) that are new or look different."""
    return sorted(key for key, look in now.items() if before.get(key) != look)


def _looks(pipeline: Pipeline) -> dict[str, str]:
    return {encode_name(name): take_snapshot(pipeline, name) for name in pipeline.active_datasets()}


@dg.sensor(job=load_dataset, minimum_interval_seconds=300, default_status=dg.DefaultSensorStatus.STOPPED)
def changed_datasets(context: dg.SensorEvaluationContext, etl: PipelineResource) -> dg.SensorResult:
    """Adds a partition for each new dataset, and requests runs for the datasets that changed."""
    before = orjson.loads(context.cursor) if context.cursor else {}
    now = _looks(etl.pipeline())
    changed = changes(before, now)
    return dg.SensorResult(
        run_requests=[dg.RunRequest(run_key=f"{key}:{now[key]}", partition_key=key) for key in changed],
        dynamic_partitions_requests=[datasets.build_add_request(sorted(now))],
        cursor=orjson.dumps(now).decode(),
    )


@dg.schedule(job=load_dataset, cron_schedule="0 2 * * *", default_status=dg.DefaultScheduleStatus.STOPPED)
def nightly(context: dg.ScheduleEvaluationContext, etl: PipelineResource) -> Iterator[dg.RunRequest]:
    """Every registered dataset, every night: a run over an unchanged one takes seconds and changes nothing.

    Not those that were withdrawn; their partitions stay, and a run of one says what would admit it again.
    """
    keys = sorted(encode_name(name) for name in etl.pipeline().active_datasets())
    context.instance.add_dynamic_partitions("dataset", keys)
    for key in keys:
        yield dg.RunRequest(run_key=f"{context.scheduled_execution_time:%Y-%m-%d}:{key}", partition_key=key)
