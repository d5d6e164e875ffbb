"""Asset checks of Dagster: one per family of rules, over the status of a dataset.

A check blocks the following assets only if there is nothing to load. Not here: the quality checks of the data
(`dicom_etl.quality`), of which an asset shows the counts.
"""

import warnings
from collections import Counter
from collections.abc import Callable

import dagster as dg

from assets.partitions import datasets, find_dataset
from assets.stages import fhir_resources, fhir_upload, header_table
from dicom_etl.inspection.status import DatasetStatus, read_dataset_status
from resources import PipelineResource

CheckResult = tuple[bool, dict[str, int]]  # whether the check passed, and the numbers to show


def _define_check(
    asset: dg.AssetsDefinition,
    name: str,
    description: str,
    evaluate: Callable[[DatasetStatus], CheckResult],
    *,
    blocking: bool,
) -> dg.AssetChecksDefinition:
    def check(context: dg.AssetCheckExecutionContext, etl: PipelineResource) -> dg.AssetCheckResult:
        pipeline = etl.pipeline()
        status = read_dataset_status(pipeline.lake, find_dataset(pipeline, context.partition_key))
        passed, metadata = evaluate(status)
        severity = dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN
        return dg.AssetCheckResult(passed=passed, severity=severity, metadata=metadata)

    with warnings.catch_warnings():
        # Dagster warns that partitioned checks are a preview feature; they do what this project needs
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return dg.asset_check(
            asset=asset, name=name, description=description, blocking=blocking, partitions_def=datasets
        )(check)


def _has_instances(status: DatasetStatus) -> CheckResult:
    return status.instances > 0, {"instances": status.instances}


def _has_only_readable_files(status: DatasetStatus) -> CheckResult:
    return status.unreadable == 0, {"unreadable": status.unreadable}


def _has_no_held_studies(status: DatasetStatus) -> CheckResult:
    return status.held == 0, {"held": status.held}


def _has_all_on_server(status: DatasetStatus) -> CheckResult:
    states: Counter[str] = Counter()
    for _server, state, count in status.uploads:
        states[state] += count
    return not any(states[state] for state in ("rejected", "failed", "unconfirmed", "held")), dict(states)


CHECKS = [
    _define_check(header_table, "has_instances", "The dataset has DICOM instances.", _has_instances, blocking=True),
    _define_check(header_table, "files_readable", "All files can be read.", _has_only_readable_files, blocking=False),
    _define_check(fhir_resources, "studies_not_held", "No study is on hold.", _has_no_held_studies, blocking=False),
    _define_check(
        fhir_upload, "server_has_all", "The server has stored every resource.", _has_all_on_server, blocking=False
    ),
]
