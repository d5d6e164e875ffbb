"""One dynamic partition per dataset; its key is the encoded name of the dataset (`identity.name_encoding.encode_name`).

Subjects are not partitions: they are units inside a dataset, of which a run makes only the changed ones.
"""

import dagster as dg

from dicom_etl.identity.name_encoding import encode_name
from dicom_etl.pipeline import Pipeline

datasets = dg.DynamicPartitionsDefinition(name="dataset")


def dataset_of(pipeline: Pipeline, key: str) -> str:
    """The dataset of a partition key.

    Raises:
        dg.Failure: no registered dataset has this key.
    """
    for name in pipeline.datasets():
        if encode_name(name) == key:
            return name
    raise dg.Failure(f"partition {key} is no registered dataset: add it to dicom-etl.toml, or delete the partition")
