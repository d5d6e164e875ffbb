"""What the rows of a ledger give occasion to say: findings of the stage upload. No value of a person is in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from dicom_etl.findings import Finding, finding
from dicom_etl.identity.masking import MASKED
from dicom_etl.upload.ledger import Row
from dicom_etl.upload.merging import Contradiction

_TAG_OF = {"birthDate": "PatientBirthDate", "gender": "PatientSex"}
_CODES = {  # retrying: a run was killed then
    "rejected": "upload-rejected",
    "gave-up": "upload-gave-up",
    "retrying": "upload-gave-up",
    "gone": "left-on-server",
}


def findings_of(rows: Iterable[Row], dataset: str) -> Iterator[Finding]:
    """What the rows of a ledger give occasion to say."""
    for row in rows:
        if found := _finding(row, dataset):
            yield found


def _finding(row: Row, dataset: str) -> Finding | None:
    name, text = f"{row['type']}/{row['id']}", row["error"] or ""
    code = _CODES.get(row["state"])
    if code is None and row["linked"] and row["state"] == "stored" and not text:
        code = "patient-linked" if row["type"] == "Patient" else "study-adopted"
        text = f"{row['type']}/{row['id_on_server']} of the server is used"
    elif code is None and text:
        code, _, text = text.partition(": ")
    if code is None:
        return None
    uid = row["key"] if row["type"] == "ImagingStudy" else None
    message = f"{name}: {text}" if text else name
    return finding(code, dataset, unit=row["unit"], subject=row["subject"], study_uid=uid, message=message)


def contradicting(
    dataset: str, patient: str, contradictions: Sequence[Contradiction], **where: str | None
) -> list[Finding]:
    return [
        finding(
            "patient-contradicts",
            dataset,
            tag=_TAG_OF.get(one.element),
            value=MASKED,
            message=f"Patient/{patient}: {one.element} is not the same in {', '.join(one.by)}",
            **where,
        )
        for one in contradictions
    ]
