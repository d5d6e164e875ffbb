"""Completeness of tags: the COMPLETENESS table (`lake.schemas`) from the states of a dataset's tags.

How an instance, a series or a study counts is defined in `states`; this module sums over the groups and names the
tags. Not here: values, and whether a figure is good or bad.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
from pydicom.datadict import keyword_for_tag

from dicom_etl.lake.schemas import COMPLETENESS
from dicom_etl.quality.tag_states import REQUIREMENTS
from dicom_etl.quality.working_database import Database

__all__ = ["completeness"]

_COUNTS = """
    WITH counted AS (
        SELECT level, group_by, "group", tag_class, min(rank) AS rank,
               sum(n)::BIGINT AS n_applicable,
               coalesce(sum(n) FILTER (WHERE outcome = 'unknown'), 0)::BIGINT AS n_unknown,
               coalesce(sum(n) FILTER (WHERE outcome = 'absent'), 0)::BIGINT AS n_absent,
               coalesce(sum(n) FILTER (WHERE outcome = 'empty'), 0)::BIGINT AS n_empty,
               coalesce(sum(n) FILTER (WHERE outcome = 'unusable'), 0)::BIGINT AS n_unusable,
               coalesce(sum(n) FILTER (WHERE outcome = 'filled'), 0)::BIGINT AS n_filled,
               coalesce(sum(n) FILTER (WHERE outcome = 'partial'), 0)::BIGINT AS n_partial
        FROM weights JOIN outcomes USING (profile_set) WHERE {where}
        GROUP BY level, group_by, "group", tag_class
    )
    SELECT * EXCLUDE (tag_class) FROM counted JOIN tag_classes USING (tag_class)
"""


def completeness(dataset: str, database: Database, where: str = "true") -> pa.Table:
    """One row per level, group and tag, in the schema of COMPLETENESS; `where` chooses among the weights, in SQL.

    `group` is null for instances that lack the value that they are grouped by. `requirement` is the strictest type
    that the IODs of the group ask (PS3.5 7.4), null where none lists the tag. `n_unusable` is null outside the
    catalogue, `n_partial` for instances.
    """
    counts = database.query(_COUNTS.format(where=where))
    tags = pc.unique(counts["tag"])
    keywords = pa.array([_keyword(tag) for tag in tags.to_pylist()], pa.string())
    nothing = pa.scalar(None, pa.int64())
    columns = {
        "dataset": pa.array([dataset] * counts.num_rows, pa.string()),
        "keyword": keywords.take(pc.index_in(counts["tag"], tags)),
        "requirement": pa.array(REQUIREMENTS).take(counts["rank"]),
        "n_unusable": pc.if_else(counts["own"], counts["n_unusable"], nothing),
        "n_partial": pc.if_else(pc.equal(counts["level"], "instance"), nothing, counts["n_partial"]),
    }
    schema = COMPLETENESS.schema
    return pa.table(
        [columns.get(name, counts[name] if name in counts.column_names else None) for name in schema.names],
        schema=schema,
    )


def _keyword(tag: str) -> str | None:
    """The keyword of PS3.6; None for private and unknown tags."""
    return None if "x" in tag else keyword_for_tag(int(tag, 16)) or None
