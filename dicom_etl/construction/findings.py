"""Findings of a dataset as a whole: units that failed, and lines of the crosswalk and corrections file without effect.

Not here: findings of single studies and patients, which are collected where resources are made (`fhir`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import pyarrow.compute as pc

from dicom_etl.construction.identities import Identities
from dicom_etl.fhir.corrections import Correction
from dicom_etl.findings import Finding, make_finding
from dicom_etl.identity.crosswalk import CrosswalkEntry


def failure_findings(dataset: str, errors: Mapping[str, str]) -> list[Finding]:
    """One finding for each unit that failed."""
    return [make_finding("build-failed", dataset, unit=unit, message=error) for unit, error in sorted(errors.items())]


def unmatched_crosswalk_entries(
    dataset: str, crosswalk: Sequence[CrosswalkEntry], identities: Identities
) -> Iterator[Finding]:
    """One finding for each crosswalk entry whose subject is not in the dataset."""
    subjects = set(pc.unique(identities.table["subject"]).to_pylist()) if crosswalk else set()
    for entry in crosswalk:
        if entry.subject not in subjects:
            yield make_finding("crosswalk-unmatched", dataset, subject=entry.subject)


def unmatched_corrections(
    dataset: str, corrections: Sequence[Correction], by_unit: Mapping[str, Collection[Correction]]
) -> Iterator[Finding]:
    """One finding for each correction that matches no instance of the dataset."""
    matched = {correction for unit_corrections in by_unit.values() for correction in unit_corrections}
    for correction in corrections:
        if correction not in matched:
            message = f"{correction.line} ({correction.tag}) matches no instance of the dataset"
            yield make_finding("correction-unmatched", dataset, subject=correction.subject, message=message)
