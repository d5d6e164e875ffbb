"""The values of a few columns, each looked up once in the tables of the mapping.

Not here: what follows for the studies and series that have a value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from dicom_etl.fhir import terminology
from dicom_etl.fhir.datetimes import parse_offset
from dicom_etl.identity.masking import mask_value
from dicom_etl.quality.working_database import Database

__all__ = ["create_terms"]

_Judged = dict[str, Any]


def create_terms(database: Database) -> None:
    """Tables `modalities`, `body_parts` and `offsets`, from `occurrences`: a row for each different value.

    `shown` is the value as findings may show it.
    """
    _create(database, "modalities", "Modality", _modality, [("known", pa.bool_()), ("shown", pa.string())])
    _create(
        database,
        "body_parts",
        "BodyPartExamined",
        _body_part,
        [("known", pa.bool_()), ("paired", pa.bool_()), ("shown", pa.string())],
    )
    _create(database, "offsets", "TimezoneOffsetFromUTC", _offset, [("known", pa.bool_())])


def _create(
    database: Database,
    name: str,
    column: str,
    judge: Callable[[str], _Judged],
    fields: list[tuple[str, pa.DataType]],
) -> None:
    found = database.query(f'SELECT DISTINCT "{column}" AS value FROM occurrences WHERE value IS NOT NULL')
    rows = [{"value": value, **judge(value)} for value in found["value"].to_pylist()]
    database.create(name, pa.Table.from_pylist(rows, schema=pa.schema([("value", pa.string()), *fields])))


def _modality(code: str) -> _Judged:
    return {"known": terminology.look_up_modality(code) is not None, "shown": mask_value("Modality", code)}


def _body_part(text: str) -> _Judged:
    return {
        "known": terminology.look_up_body_site(text) is not None,
        "paired": terminology.is_paired(text),
        "shown": mask_value("BodyPartExamined", text),
    }


def _offset(text: str) -> _Judged:
    return {"known": parse_offset(text) is not None}
