"""Header rows and tag profiles written by hand, for the tests of this folder."""

from typing import Any

import pyarrow as pa

from dicom_etl.lake.schemas import TAG_PROFILES, headers
from dicom_etl.quality.states import PLACE_COLUMNS, occurrences

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
NOBODYS_CLASS = "1.2.3.4"


def header_rows(*rows: dict[str, Any]) -> pa.Table:
    """Header rows; what is not given is null."""
    schema = headers().schema
    return pa.Table.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema=schema)


def tag_profile_rows(tag_profiles: dict[int, list[tuple[Any, ...]]]) -> pa.Table:
    """Tag profiles from lists of (tag, status) or (tag, status, creator)."""
    rows = [
        {"tag_profile": tag_profile, "tag": tag, "creator": creator[0] if creator else None, "status": status}
        for tag_profile, elements in tag_profiles.items()
        for tag, status, *creator in elements
    ]
    return pa.Table.from_pylist(rows, schema=TAG_PROFILES.schema)


def occurrences_of(rows: pa.Table) -> pa.Table:
    return occurrences(rows.select(list(PLACE_COLUMNS)), [rows])
