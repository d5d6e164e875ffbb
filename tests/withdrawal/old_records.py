"""Records of withdrawals as older versions wrote them, with the columns of their time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dicom_etl.lake.tables import Lake

NAMESPACE = "https://site.example"
# printf '["https://site.example","ds","sub-ada"]' | sha256sum
DIGEST_OF_SCHEMA_2 = "d367ce64b6acc1867bfe78274476603d79c53f75a98e6539c279d1295244dde0"


def record_path(lake: Lake, dataset: str = "ds") -> Path:
    return Path(lake.root, "withdrawn", f"{dataset}.parquet")


def write_old_record(
    lake: Lake,
    schema: int,
    digests: Sequence[str | None],
    id_key: str | None,
    *,
    dataset: str = "ds",
    pending: str | None = None,
) -> None:
    """Write a record as a lake of schema 2 or 3 has it; schema 2 had no `id_key`."""
    number = len(digests)
    columns = {
        "dataset": pa.array([dataset] * number, pa.string()),
        "site": pa.array([NAMESPACE] * number, pa.string()),
        "digest": pa.array(digests, pa.string()),
        "id_key": pa.array([id_key] * number, pa.string()),
        "files": pa.array([3] * number, pa.int64()),
        "studies": pa.array([2] * number, pa.int64()),
        "patients": pa.array([1] * number, pa.int64()),
        "imaging_studies": pa.array([2] * number, pa.int64()),
        "endpoints": pa.array([0] * number, pa.int64()),
        "servers": pa.array(["server"] * number, pa.string()),
        "left": pa.array([pending] * number, pa.string()),
        "time": pa.array([datetime(2024, 5, 6, tzinfo=UTC)] * number, pa.timestamp("us", tz="UTC")),
    }
    if schema == 2:
        del columns["id_key"]
    path = record_path(lake, dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, compression="zstd", store_schema=False)
