"""Asset checks: one per family of rules. Blocking only for what cannot be loaded; completeness only warns."""

import warnings
from collections.abc import Callable

import dagster as dg

from assets.partitions import dataset_of, datasets
from assets.stages import fhir_resources, fhir_upload, header_table
from dicom_etl.inspection.status import DatasetStatus, read_dataset_status
from resources import PipelineResource

Verdict = Callable[[DatasetStatus], tuple[bool, dict[str, int]]]


def _check(
    asset: dg.AssetsDefinition, name: str, description: str, verdict: Verdict, *, blocking: bool
) -> dg.AssetChecksDefinition:
    def check(context: dg.AssetCheckExecutionContext, etl: PipelineResource) -> dg.AssetCheckResult:
        pipeline = etl.pipeline()
        passed, metadata = verdict(read_dataset_status(pipeline.lake, dataset_of(pipeline, context.partition_key)))
        severity = dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN
        return dg.AssetCheckResult(passed=passed, severity=severity, metadata=metadata)

    with warnings.catch_warnings():
        # partitioned checks work and are what we need; that they may still change is known
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return dg.asset_check(
            asset=asset, name=name, description=description, blocking=blocking, partitions_def=datasets
        )(check)


def _has_instances(status: DatasetStatus) -> tuple[bool, dict[str, int]]:
    return status.instances > 0, {"instances": status.instances}


def _all_readable(status: DatasetStatus) -> tuple[bool, dict[str, int]]:
    return status.unreadable == 0, {"unreadable": status.unreadable}


def _none_held(status: DatasetStatus) -> tuple[bool, dict[str, int]]:
    return status.held == 0, {"held": status.held}


def _server_has_all(status: DatasetStatus) -> tuple[bool, dict[str, int]]:
    states: dict[str, int] = {}
    for _server, state, count in status.uploads:
        states[state] = states.get(state, 0) + count
    return not any(states.get(state) for state in ("rejected", "failed", "unconfirmed", "held")), states


CHECKS = [
    _check(header_table, "has_instances", "The dataset has DICOM instances.", _has_instances, blocking=True),
    _check(header_table, "files_readable", "No file is damaged or unreadable.", _all_readable, blocking=False),
    _check(fhir_resources, "studies_not_held", "Every study has its person.", _none_held, blocking=False),
    _check(fhir_upload, "server_has_all", "The server took every resource.", _server_has_all, blocking=False),
]
