"""Completeness by subject, counted when it is asked for.

It has a row for each tag of each subject: 30 million for 100,000 subjects. It is counted shard by shard, since a
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
from dicom_etl.quality.completeness import completeness
from dicom_etl.quality.header_rows import header_rows, tag_profiles
from dicom_etl.quality.occurrences import create_occurrences, occurrences
from dicom_etl.quality.tag_states import create_states
from dicom_etl.quality.working_database import Database, open_database

__all__ = ["completeness_by_subject"]

_SUBJECTS_AT_ONCE = 250  # some 75,000 rows for each level


def completeness_by_subject(
    lake: Lake,
    dataset: str,
    shards: Collection[int],
    *,
    subjects: Collection[str] | None = None,
    levels: Collection[str] = ("instance", "series", "study"),
) -> Iterator[pa.Table]:
    """Rows of COMPLETENESS whose `group_by` is `subject`, in pieces; the rows of a subject are together.

    Args:
        lake: holds the dataset, which has been measured: its tags are those of the stored table.
        dataset: its name.
        shards: those that are read.
        subjects: the subjects that are counted; None: all.
        levels: instance, series, study.

    Raises:
        LakeError: a file of a shard is not as its commit says, or the number of shards changed meanwhile.
    """
    tags = _tags(lake, dataset)
    for shard in sorted(shards):
        read = partial(_read, lake, dataset, shard, subjects)
        if (found := read_consistently(lake, "extract", dataset, shard, read)) is None:
            raise LakeError(f"the number of shards of {dataset} changed while it was read: run the command again")
        pieces, profiles = found
        with open_database() as database:
            create_occurrences(database, pieces)
            create_states(database, profiles, {"subject": "subject"}, tags=tags)
            yield from _pieces(dataset, database, levels)


def _read(
    lake: Lake, dataset: str, shard: int, subjects: Collection[str] | None, _commit: Commit
) -> tuple[list[pa.Table], pa.Table]:
    """The occurrences of a shard, and its tag profiles."""
    pieces = [occurrences(_of(rows, subjects)) for rows in header_rows(lake, dataset, [shard])]
    return pieces, tag_profiles(lake, dataset, [shard])


def _of(rows: pa.Table, subjects: Collection[str] | None) -> pa.Table:
    return rows if subjects is None else rows.filter(pc.is_in(rows["subject"], pa.array(list(subjects), pa.string())))


def _tags(lake: Lake, dataset: str) -> pa.Table:
    """The tags of the dataset: the same for each subject, whatever the others of its shard have."""
    stored = lake.read(COMPLETENESS, ["level", "group_by", "tag", "creator"], dataset=dataset)
    is_whole = pc.and_(pc.equal(stored["group_by"], "all"), pc.equal(stored["level"], "instance"))
    return stored.filter(is_whole).select(["tag", "creator"])


def _pieces(dataset: str, database: Database, levels: Collection[str]) -> Iterator[pa.Table]:
    database.run(f"""
        CREATE TABLE numbered_subjects AS
        SELECT subject, (row_number() OVER (ORDER BY subject) - 1) // {_SUBJECTS_AT_ONCE} AS piece
        FROM (SELECT DISTINCT subject FROM occurrences)
    """)
    listed = ", ".join(f"'{level}'" for level in levels)
    for row in database.rows("SELECT DISTINCT piece FROM numbered_subjects ORDER BY piece"):
        where = f"""
            group_by = 'subject' AND level IN ({listed}) AND coalesce("group", '') IN (
                SELECT coalesce(subject, '') FROM numbered_subjects WHERE piece = {row["piece"]})
        """
        counted = completeness(dataset, database, where)
        yield counted.sort_by([(name, "ascending") for name in ("group", "level", "tag", "creator")])
