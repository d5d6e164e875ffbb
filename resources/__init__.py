"""Dagster resources: they only build `dicom_etl` objects from settings. No logic, and no Dagster below this."""

from resources.pipeline import PipelineResource

__all__ = ["PipelineResource"]
