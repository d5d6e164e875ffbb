"""Header rows and tag profiles of shards, as measures read them: some columns, some thousand rows at a time.

Not here: what they come down to (`occurrences`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.lake.schemas import TAG_PROFILES, header_table
from dicom_etl.lake.tables import Lake
from dicom_etl.quality.occurrences import HEADER_COLUMNS

__all__ = ["header_rows", "tag_profiles"]

_ROWS_AT_ONCE = 40_000  # header rows in memory, some 40 MB


def header_rows(lake: Lake, dataset: str, shards: Iterable[int]) -> Iterator[pa.Table]:
    """The header rows of some shards with `HEADER_COLUMNS`, many row groups at a time."""
    waiting: list[pa.Table] = []
    for shard in shards:
        for rows in lake.read_batches(header_table(), list(HEADER_COLUMNS), dataset=dataset, shard=shard):
            waiting.append(rows)
            if sum(piece.num_rows for piece in waiting) >= _ROWS_AT_ONCE:
                yield pa.concat_tables(waiting)
                waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def tag_profiles(lake: Lake, dataset: str, shards: Iterable[int]) -> pa.Table:
    """The different tag profiles of some shards, which have most of them in common."""
    known = TAG_PROFILES.schema.empty_table()
    for shard in shards:
        rows = lake.read(TAG_PROFILES, dataset=dataset, shard=shard)
        is_new = pc.invert(pc.is_in(rows["tag_profile"], pc.unique(known["tag_profile"])))
        known = pa.concat_tables([known, rows.filter(is_new)])
    return known
