"""The six assets, one per stage. Each calls its stage and returns the numbers that are useful in the Dagster UI.

Not here: the stages (`dicom_etl.stages`) and the asset checks (`checks.py`).
"""

import dagster as dg
from pydantic import Field

from assets.partitions import datasets, find_dataset
from assets.summary import Result, make_result
from dicom_etl.identity.name_encoding import encode_name
from dicom_etl.pipeline import Pipeline, RunOptions
from resources import PipelineResource


class RunConfig(dg.Config):
    """Options of a run; the defaults are right for nightly runs and backfills."""

    subjects: list[str] = Field(default_factory=list, description="only these subjects; empty: all")
    force: bool = False
    accept_missing: bool = False
    prune: bool = False

    def options(self) -> RunOptions:
        """The options of the pipeline."""
        return RunOptions(tuple(self.subjects) or None, self.force, self.accept_missing, self.prune)


def _start(context: dg.AssetExecutionContext, etl: PipelineResource) -> tuple[Pipeline, str]:
    pipeline = etl.pipeline(context.log)
    return pipeline, find_dataset(pipeline, context.partition_key)


@dg.asset(partitions_def=datasets, group_name="tables", kinds={"parquet"})
def dicom_files(context: dg.AssetExecutionContext, config: RunConfig, etl: PipelineResource) -> Result:
    """The inventory of the files of a dataset, and the content of its SDS sheets. Opens no DICOM file."""
    pipeline, name = _start(context, etl)
    return make_result(pipeline, f"inventory/{encode_name(name)}.parquet", pipeline.crawl(name, config.options()))


@dg.asset(partitions_def=datasets, deps=[dicom_files], group_name="tables", kinds={"parquet", "dicom"})
def header_table(context: dg.AssetExecutionContext, config: RunConfig, etl: PipelineResource) -> Result:
    """One row per DICOM file; unchanged files are not opened again."""
    pipeline, name = _start(context, etl)
    return make_result(pipeline, f"headers/{encode_name(name)}", pipeline.extract(name, config.options()))


@dg.asset(partitions_def=datasets, deps=[header_table], group_name="fhir", kinds={"json"})
def fhir_resources(context: dg.AssetExecutionContext, config: RunConfig, etl: PipelineResource) -> Result:
    """Patient, Endpoint and ImagingStudy resources per subject, as NDJSON."""
    pipeline, name = _start(context, etl)
    return make_result(pipeline, f"fhir/ImagingStudy/{encode_name(name)}", pipeline.build(name, config.options()))


@dg.asset(partitions_def=datasets, deps=[fhir_resources], group_name="fhir", pool="fhir", kinds={"fhir"})
def fhir_upload(context: dg.AssetExecutionContext, config: RunConfig, etl: PipelineResource) -> Result:
    """The resources on the FHIR server; without a server, the NDJSON files are the result."""
    pipeline, name = _start(context, etl)
    [uploaded] = pipeline.upload([name], config.options())
    folder = f"upload_ledger/{encode_name(uploaded.server)}" if uploaded.server else "fhir/ImagingStudy"
    return make_result(pipeline, f"{folder}/{encode_name(name)}", uploaded)


@dg.asset(partitions_def=datasets, deps=[fhir_resources], group_name="quality", kinds={"parquet"})
def tag_completeness(context: dg.AssetExecutionContext, config: RunConfig, etl: PipelineResource) -> Result:
    """How complete and consistent the tags are, and how ready for FHIR."""
    pipeline, name = _start(context, etl)
    return make_result(pipeline, f"quality/{encode_name(name)}", pipeline.measure(name, config.options()))


@dg.asset(partitions_def=datasets, deps=[tag_completeness], group_name="quality", kinds={"html"})
def quality_report(context: dg.AssetExecutionContext, etl: PipelineResource) -> Result:
    """The quality report of a dataset: one HTML file, JSON and CSV."""
    pipeline, name = _start(context, etl)
    return make_result(pipeline, f"quality/{encode_name(name)}", pipeline.report(name))


ASSETS = [dicom_files, header_table, fhir_resources, fhir_upload, tag_completeness, quality_report]
