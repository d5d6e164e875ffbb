"""When runs start: a sensor that finds new and changed datasets, and a nightly schedule of all datasets.

The decision of the sensor is `find_changes`, a pure function of the snapshots before and now.
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


def find_changes(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The datasets (partition keys) that are new or have another snapshot than before."""
    return sorted(key for key, snapshot in now.items() if before.get(key) != snapshot)


def _take_snapshots(pipeline: Pipeline) -> dict[str, str]:
    return {encode_name(name): take_snapshot(pipeline, name) for name in pipeline.active_datasets()}


@dg.sensor(job=load_dataset, minimum_interval_seconds=300, default_status=dg.DefaultSensorStatus.STOPPED)
def changed_datasets(context: dg.SensorEvaluationContext, etl: PipelineResource) -> dg.SensorResult:
    """Adds a partition for each new dataset, and requests runs for the datasets that changed."""
    before = orjson.loads(context.cursor) if context.cursor else {}
    now = _take_snapshots(etl.pipeline())
    changed = find_changes(before, now)
    return dg.SensorResult(
        run_requests=[dg.RunRequest(run_key=f"{key}:{now[key]}", partition_key=key) for key in changed],
        dynamic_partitions_requests=[datasets.build_add_request(sorted(now))],
        cursor=orjson.dumps(now).decode(),
    )


@dg.schedule(job=load_dataset, cron_schedule="0 2 * * *", default_status=dg.DefaultScheduleStatus.STOPPED)
def nightly(context: dg.ScheduleEvaluationContext, etl: PipelineResource) -> Iterator[dg.RunRequest]:
    """Requests a run of every dataset, every night: for an unchanged one it takes seconds and changes nothing.

    Withdrawn datasets are left out. Their partitions stay; a run of one fails and says how to undo the withdrawal.
    """
    keys = sorted(encode_name(name) for name in etl.pipeline().active_datasets())
    context.instance.add_dynamic_partitions("dataset", keys)
    for key in keys:
        yield dg.RunRequest(run_key=f"{context.scheduled_execution_time:%Y-%m-%d}:{key}", partition_key=key)
