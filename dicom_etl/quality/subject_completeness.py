"""Completeness by subject, counted on request.

It would have a row for each tag of each subject: 30 million for 100,000 subjects. It is counted shard by shard, since a
subject is in one shard, and for some subjects at a time.

Not here: the groups that are stored (`completeness`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.lake.commits import Commit
from dicom_etl.lake.schemas import COMPLETENESS
from dicom_etl.lake.shard_reader import read_consistently
from dicom_etl.lake.tables import Lake, LakeError
from dicom_etl.quality.completeness import count_completeness
from dicom_etl.quality.inputs import read_header_rows, read_tag_profiles
from dicom_etl.quality.occurrences import create_occurrences, find_occurrences
from dicom_etl.quality.tag_states import create_states
from dicom_etl.quality.working_database import Database, open_database

__all__ = ["COUNTED_SUBJECTS", "count_completeness_by_subject"]

COUNTED_SUBJECTS = 250  # at a time: some 75,000 rows for each level


def count_completeness_by_subject(
    lake: Lake,
    dataset: str,
    shards: Collection[int],
    *,
    subjects: Collection[str] | None = None,
    levels: Collection[str] = ("instance", "series", "study"),
) -> Iterator[pa.Table]:
    """Rows of COMPLETENESS with `group_by` `subject`, in batches; the rows of a subject are together.

    Args:
        lake: has the dataset, which has been measured: the tags are those of the stored table.
        dataset: its name.
        shards: the shards to read.
        subjects: the subjects to count; None: all.
        levels: instance, series, study.

    Raises:
        LakeError: a file of a shard does not match its commit, or the number of shards changed meanwhile.
    """
    # the tags of the dataset: the same for each subject, independent of the other subjects of its shard
    stored = lake.read(COMPLETENESS, ["level", "group_by", "tag", "creator"], dataset=dataset)
    is_total = pc.and_(pc.equal(stored["group_by"], "all"), pc.equal(stored["level"], "instance"))
    tags = stored.filter(is_total).select(["tag", "creator"])
    for shard in sorted(shards):
        read = partial(_read_shard, lake, dataset, shard, subjects)
        shard_tables = read_consistently(lake, "extract", dataset, shard, read)
        if shard_tables is None:
            raise LakeError(f"the number of shards of {dataset} changed while it was read: run the command again")
        occurrences, tag_profiles = shard_tables
        with open_database() as database:
            create_occurrences(database, occurrences)
            create_states(database, tag_profiles, {"subject": "subject"}, tags=tags)
            yield from _count_shard(dataset, database, levels)


def _read_shard(
    lake: Lake, dataset: str, shard: int, subjects: Collection[str] | None, _commit: Commit
) -> tuple[list[pa.Table], pa.Table]:
    """The occurrences of some subjects of a shard, in batches, and the tag profiles of the shard."""
    batches = read_header_rows(lake, dataset, [shard])
    if subjects is not None:
        names = pa.array(list(subjects), pa.string())
        batches = (rows.filter(pc.is_in(rows["subject"], names)) for rows in batches)
    return [find_occurrences(rows) for rows in batches], read_tag_profiles(lake, dataset, [shard])


def _count_shard(dataset: str, database: Database, levels: Collection[str]) -> Iterator[pa.Table]:
    database.run(f"""
        CREATE TABLE numbered_subjects AS
        SELECT subject, (row_number() OVER (ORDER BY subject) - 1) // {COUNTED_SUBJECTS} AS batch
        FROM (SELECT DISTINCT subject FROM occurrences)
    """)
    quoted_levels = ", ".join(f"'{level}'" for level in levels)
    for row in database.fetch_rows("SELECT DISTINCT batch FROM numbered_subjects ORDER BY batch"):
        where = f"""
            group_by = 'subject' AND level IN ({quoted_levels}) AND coalesce("group", '') IN (
                SELECT coalesce(subject, '') FROM numbered_subjects WHERE batch = {row["batch"]})
        """
        counts = count_completeness(dataset, database, where)
        yield counts.sort_by([(name, "ascending") for name in ("group", "level", "tag", "creator")])
