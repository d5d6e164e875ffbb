"""The values of a few columns, each looked up once in the terminology of the FHIR mapping.

Not here: the checks of the studies and series that have a value (`checks`).
"""

from __future__ import annotations

import pyarrow as pa

from dicom_etl.fhir import terminology
from dicom_etl.fhir.datetimes import parse_offset
from dicom_etl.identity.masking import mask_value
from dicom_etl.quality.working_database import Database

__all__ = ["create_terms"]


def create_terms(database: Database) -> None:
    """Create `modalities`, `body_parts` and `offsets`: a row for each different value in `occurrences`.

    `is_known` is whether it is a term of the standard, `masked` the value as findings may show it.
    """
    modalities = [
        {
            "value": code,
            "is_known": terminology.look_up_modality(code) is not None,
            "masked": mask_value("Modality", code),
        }
        for code in _distinct_values(database, "Modality")
    ]
    body_parts = [
        {
            "value": text,
            "is_known": terminology.look_up_body_site(text) is not None,
            "is_paired": terminology.is_paired(text),
            "masked": mask_value("BodyPartExamined", text),
        }
        for text in _distinct_values(database, "BodyPartExamined")
    ]
    offsets = [
        {"value": text, "is_known": parse_offset(text) is not None}
        for text in _distinct_values(database, "TimezoneOffsetFromUTC")
    ]
    value, is_known, masked = ("value", pa.string()), ("is_known", pa.bool_()), ("masked", pa.string())
    schema = pa.schema([value, is_known, masked])
    database.create("modalities", pa.Table.from_pylist(modalities, schema=schema))
    schema = pa.schema([value, is_known, ("is_paired", pa.bool_()), masked])
    database.create("body_parts", pa.Table.from_pylist(body_parts, schema=schema))
    database.create("offsets", pa.Table.from_pylist(offsets, schema=pa.schema([value, is_known])))


def _distinct_values(database: Database, column: str) -> list[str]:
    rows = database.fetch_rows(f'SELECT DISTINCT "{column}" AS value FROM occurrences WHERE value IS NOT NULL')
    return [row["value"] for row in rows]
