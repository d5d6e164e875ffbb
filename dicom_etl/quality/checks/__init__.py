"""The quality checks: one function counts each of them; `COUNTING_FUNCTIONS` lists them all.

To add a check: a row in `tables/quality_checks.json`, a function in the module of its kind, and a line below. If the
check needs a column of the header table that no other check uses, add it to `occurrences.CHECKED_COLUMNS`; if it has
findings, add their code to `finding_codes.csv`. Increase `stages.measure.MEASURE_VERSION`, so that datasets that have
not changed are measured again.

Not here: titles and thresholds (`check_table`), the tables that the functions query (`inputs`).
"""

from __future__ import annotations

from collections.abc import Mapping

from dicom_etl.quality.check_table import Measure
from dicom_etl.quality.checks import (
    attribute_types,
    conformance,
    consistency,
    fhir_readiness,
    files,
    privacy,
    sheets,
    subjects,
)
from dicom_etl.quality.checks.counting import CountingFunction, MeasuredDataset

__all__ = ["COUNTED_BY_SUBJECT", "COUNTING_FUNCTIONS", "MeasuredDataset", "count_checks"]

# check -> the function that counts it
COUNTING_FUNCTIONS: Mapping[str, CountingFunction] = {
    "files-readable": files.count_readable_files,
    "instances-once": files.count_single_files,
    "copies-agree": files.count_equal_copies,
    "type-1": attribute_types.count_type_1,
    "type-2": attribute_types.count_type_2,
    "sop-class-known": conformance.count_sop_classes,
    "modality-known": conformance.count_modalities,
    "body-part-known": conformance.count_body_parts,
    "subjects-match": sheets.count_matching_subjects,
    "samples-match": sheets.count_matching_samples,
    "counts-agree": consistency.count_related_counts,
    "series-one-sample": consistency.count_samples_of_series,
    "birth-before-study": consistency.count_birth_dates,
    "study-date-range": consistency.count_study_dates,
    "identifying-tags": privacy.count_identifying_tags,
    "inventory": files.count_inventory,
    "files-by-kind": files.count_files_by_kind,
    **fhir_readiness.COUNTING_FUNCTIONS,
}

# counted together by `subjects.count_by_subject`, which also counts some of the others by subject
COUNTED_BY_SUBJECT = ("subjects-listed", "tags-with-gaps", "series-by-modality")


def count_checks(dataset: MeasuredDataset) -> list[Measure]:
    """Count all checks of a dataset; their findings are added to it."""
    measures = [measure for count in COUNTING_FUNCTIONS.values() for measure in count(dataset)]
    return [*measures, *subjects.count_by_subject(dataset)]  # last, since it counts the findings of the others
