"""Checks of coded values: SOP classes, modalities and body parts are those of the standard.

Not here: required attributes (`attribute_types`).
"""

from __future__ import annotations

from dicom_etl.fhir import terminology
from dicom_etl.headers.catalogue import columns_by_name
from dicom_etl.headers.tag_profile import tag_text
from dicom_etl.identity.masking import clean_text
from dicom_etl.quality.check_table import Measure
from dicom_etl.quality.checks.counting import CheckCount, MeasuredDataset, count_failures

__all__ = ["count_body_parts", "count_modalities", "count_sop_classes", "name_sop_class"]


def count_sop_classes(dataset: MeasuredDataset) -> list[Measure]:
    """Check `sop-class-known`: the requirements on the instances of other SOP classes are not known."""
    count = CheckCount("sop-class-known", "instance")
    for row in dataset.database.fetch_rows("""
        SELECT sop_class, attribute_set IS NOT NULL AS is_known, sum(n)::BIGINT AS n
        FROM profile_counts JOIN state_profiles USING (state_profile)
        LEFT JOIN attribute_sets USING (tag_profile, sop_class)
        GROUP BY ALL ORDER BY ALL
    """):
        count.add(None if row["is_known"] else name_sop_class(row["sop_class"]), row["n"])
    return count.to_measures()


def name_sop_class(uid: str | None) -> str:
    """The name of a SOP class, with its UID."""
    name = terminology.convert_sop_class(uid or "").display
    return f"{name} ({clean_text(uid or '')})" if name else clean_text(uid or "(none)")


def count_modalities(dataset: MeasuredDataset) -> list[Measure]:
    """Check `modality-known`: Modality is a term of CID 33 (PS3.16)."""
    failing = f"""
        SELECT DISTINCT series, masked AS value, '{tag_text(columns_by_name()["Modality"].tag)}' AS tag
        FROM occurrences JOIN modalities ON value = "Modality" WHERE NOT is_known AND series IS NOT NULL
    """
    dataset.add_entity_findings("modality-unknown", "series", failing)
    return count_failures(dataset, "modality-known", "series", _count_terms("modalities", "Modality"))


def count_body_parts(dataset: MeasuredDataset) -> list[Measure]:
    """Check `body-part-known`: BodyPartExamined is a term of PS3.16 Annex L. `build` has added the findings."""
    return count_failures(dataset, "body-part-known", "series", _count_terms("body_parts", "BodyPartExamined"))


def _count_terms(terms: str, column: str) -> str:
    """A query for the series with a value; those with a value that is not a term fail, for the first of these."""
    return f"""
        SELECT masked AS failure, count(*) AS n FROM (
            SELECT min(value) FILTER (NOT is_known) AS value
            FROM occurrences JOIN {terms} ON value = "{column}" WHERE series IS NOT NULL GROUP BY series
        ) LEFT JOIN {terms} USING (value) GROUP BY masked
    """
