"""One dynamic partition per dataset; its key is the encoded name of the dataset (`identity.name_encoding.encode_name`).

Subjects are not partitions: a run of a dataset processes only the units that changed.
"""

import dagster as dg

from dicom_etl.identity.name_encoding import encode_name
from dicom_etl.pipeline import Pipeline

datasets = dg.DynamicPartitionsDefinition(name="dataset")


def find_dataset(pipeline: Pipeline, key: str) -> str:
    """Find the dataset of a partition key.

    Raises:
        dg.Failure: no registered dataset has this key.
    """
    for name in pipeline.datasets():
        if encode_name(name) == key:
            return name
    raise dg.Failure(f"partition {key} is not a registered dataset: add it to dicom-etl.toml, or delete the partition")
