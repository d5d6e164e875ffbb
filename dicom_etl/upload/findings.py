"""Findings of the stage upload, made from rows of the ledger. No value of a person is in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dicom_etl.findings import Finding, make_finding
from dicom_etl.identity.masking import MASKED
from dicom_etl.upload.ledger import ResourceRow, State

_TAGS = {"birthDate": "PatientBirthDate", "gender": "PatientSex"}  # what a conflict is about


def findings_of(rows: Iterable[ResourceRow], dataset: str) -> Iterator[Finding]:
    """The findings of a dataset that follow from rows: one for each that has a reason, or is another client's."""
    for row in rows:
        reason, text = _reason(row)
        if reason is None:
            continue
        name = f"{row.type}/{row.id}"
        tag = _TAGS.get((text or "").partition(" ")[0]) if reason == "patient-conflict" else None
        yield make_finding(
            reason,
            dataset,
            unit=row.unit,
            subject=row.subject,
            study_uid=row.business_key if row.type == "ImagingStudy" else None,
            tag=tag,
            value=MASKED if tag else None,
            message=f"{name}: {text}" if text else name,
        )


def _reason(row: ResourceRow) -> tuple[str | None, str | None]:
    """The code of the finding, and its words."""
    if row.reason is not None:
        return row.reason, row.reason_text
    if row.state is State.UNCONFIRMED:  # a run was killed then
        return "upload-unconfirmed", "it was being sent when the run was killed"
    if row.state is State.ORPHANED:
        return "orphaned-on-server", row.reason_text
    if row.is_external and row.state is State.STORED:
        return "external-patient-used", f"{row.type}/{row.server_id} of another client is used"
    return None, None
