"""Completeness of tags: the COMPLETENESS table (`lake.schemas`) from the states of a dataset's tags.

`tag_states` defines the state of a tag in an instance, a series or a study; this module adds them up by group and gives
the tags their keywords.

Not here: whether a number is good or bad (`checks`).
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
from pydicom.datadict import keyword_for_tag

from dicom_etl.lake.schemas import COMPLETENESS
from dicom_etl.quality.requirements import TYPES
from dicom_etl.quality.working_database import Database

__all__ = ["count_completeness", "find_keyword"]

_COUNTS = """
    WITH counts AS (
        SELECT level, group_by, "group", tag_class, min(rank) AS rank,
               sum(n)::BIGINT AS n_applicable,
               coalesce(sum(n) FILTER (WHERE state = 'unknown'), 0)::BIGINT AS n_unknown,
               coalesce(sum(n) FILTER (WHERE state = 'absent'), 0)::BIGINT AS n_absent,
               coalesce(sum(n) FILTER (WHERE state = 'empty'), 0)::BIGINT AS n_empty,
               coalesce(sum(n) FILTER (WHERE state = 'unusable'), 0)::BIGINT AS n_unusable,
               coalesce(sum(n) FILTER (WHERE state = 'filled'), 0)::BIGINT AS n_filled,
               coalesce(sum(n) FILTER (WHERE state = 'partial'), 0)::BIGINT AS n_partial
        FROM weights JOIN set_states USING (profile_set) WHERE {where}
        GROUP BY level, group_by, "group", tag_class
    )
    SELECT * EXCLUDE (tag_class) FROM counts JOIN tag_classes USING (tag_class)
"""


def count_completeness(dataset: str, database: Database, where: str = "true") -> pa.Table:
    """One row per level, group and tag, in the schema of COMPLETENESS; `where` (SQL) selects among the weights.

    `group` is null for instances without the value that they are grouped by. `requirement` is the strictest type that
    the IODs of the group give the tag (PS3.5 section 7.4), null if no IOD contains it. `n_unusable` is null for tags
    that are not in the catalogue, `n_partial` for instances.
    """
    counts = database.query(_COUNTS.format(where=where))
    tags = pc.unique(counts["tag"])
    keywords = pa.array([find_keyword(tag) for tag in tags.to_pylist()], pa.string())
    no_count = pa.scalar(None, pa.int64())
    columns = {
        "dataset": pa.array([dataset] * counts.num_rows, pa.string()),
        "keyword": keywords.take(pc.index_in(counts["tag"], tags)),
        "requirement": pa.array(list(TYPES)).take(counts["rank"]),
        "n_unusable": pc.if_else(counts["is_whole_value"], counts["n_unusable"], no_count),
        "n_partial": pc.if_else(pc.equal(counts["level"], "instance"), no_count, counts["n_partial"]),
    }
    schema = COMPLETENESS.schema
    return pa.table(
        [columns.get(name, counts[name] if name in counts.column_names else None) for name in schema.names],
        schema=schema,
    )


def find_keyword(tag: str) -> str | None:
    """The keyword of PS3.6; None for private and unknown tags."""
    return None if "x" in tag else keyword_for_tag(int(tag, 16)) or None
