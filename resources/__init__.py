"""Dagster resources: they build `dicom_etl` objects from settings. No logic; `dicom_etl` does not import Dagster."""

from resources.pipeline import PipelineResource

__all__ = ["PipelineResource"]
