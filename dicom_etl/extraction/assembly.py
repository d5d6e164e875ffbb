"""Assembling a shard of header tables: former rows of units that did not change, and what pieces gave of the others.

Its bytes depend on its rows alone, not on how they were cut into pieces or where they come from. Memory is that of a
shard; a unit that is larger than a shard passes through piece by piece.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.extraction.pieces import piece_path
from dicom_etl.extraction.reading import most_frequent
from dicom_etl.findings import Finding, findings_table
from dicom_etl.lake.commits import damaged_file, read_commits, remove_other_shards, remove_shard
from dicom_etl.lake.schemas import FILES, FINDINGS, TAG_PROFILES, Table, headers
from dicom_etl.lake.shard_writer import ShardWriter
from dicom_etl.lake.shards import SHARD_ROWS, row_groups
from dicom_etl.lake.tables import Lake


class Part(NamedTuple):
    """What a piece gave: its name, its units, and whether it is a part of one large unit."""

    key: str
    units: tuple[str, ...]
    is_chunk: bool


class ShardTask(NamedTuple):
    """A shard to be written; travels to a worker."""

    lake: Lake
    dataset: str
    shard: int
    shards: int
    new_folders: bool  # the number of shards changes
    former_shards: tuple[int, ...]  # where the former rows of its units are
    units: pa.Table  # rows of the commit
    kept: tuple[str, ...]  # the units whose former rows are taken over, sorted
    parts: tuple[Part, ...]  # of the other units, in their order
    marks: Mapping[str, str]  # of duplicates, by path
    sums: Mapping[str, str | None]  # check sums, by path

    @property
    def rows(self) -> int:
        """How many header rows it will have."""
        return int(pc.sum(self.units["rows"]).as_py() or 0)


class _Block(NamedTuple):
    """Neighbouring units that are assembled together: some small ones, or a single large one."""

    units: tuple[str, ...]
    is_large: bool


def assemble_shard(task: ShardTask) -> None:
    """Write all tables of a shard, and its commit."""
    writer = ShardWriter(task.lake, "extract", task.dataset, task.shard, task.shards, new_folders=task.new_folders)
    writer.write_table(FINDINGS, [_findings(task)])
    used: set[int] = set()
    blocks = _blocks(task.units)
    writer.write_table(headers(), _header_rows(task, blocks, used), row_groups(task.units["rows"].to_pylist()))
    writer.write_table(FILES, _file_rows(task, blocks), row_groups(task.units["files"].to_pylist()))
    writer.write_table(TAG_PROFILES, [_tag_profiles(task, used)])
    writer.commit(task.units)
    pa.default_memory_pool().release_unused()


def _blocks(units: pa.Table) -> list[_Block]:
    blocks: list[_Block] = []
    waiting: list[str] = []
    weight = 0
    for unit, rows, files in zip(*(units[name].to_pylist() for name in ("unit", "rows", "files")), strict=True):
        size = max(rows, files)
        if waiting and weight + size > SHARD_ROWS:
            blocks.append(_Block(tuple(waiting), is_large=False))
            waiting, weight = [], 0
        if size > SHARD_ROWS:
            blocks.append(_Block((unit,), is_large=True))
        else:
            waiting.append(unit)
            weight += size
    return [*blocks, _Block(tuple(waiting), is_large=False)] if waiting else blocks


def _header_rows(task: ShardTask, blocks: Sequence[_Block], used: set[int]) -> Iterator[pa.Table]:
    for rows in _rows(task, headers(), "headers", blocks):
        used.update(pc.unique(rows["tag_profile"]).to_pylist())
        yield _set_column(rows, "duplicate", task.marks)


def _file_rows(task: ShardTask, blocks: Sequence[_Block]) -> Iterator[pa.Table]:
    for rows in _rows(task, FILES, "files", blocks):
        yield _set_column(rows, "sha256", task.sums)


def _set_column(rows: pa.Table, column: str, values: Mapping[str, str | None]) -> pa.Table:
    """A column by path; null where no value is given."""
    if values:
        given = pa.array([values.get(path) for path in rows["path"].to_pylist()], pa.string())
    elif rows[column].null_count == rows.num_rows:
        return rows
    else:
        given = pa.nulls(rows.num_rows, pa.string())
    return rows.set_column(rows.column_names.index(column), column, given)


def _rows(task: ShardTask, table: Table, kind: str, blocks: Sequence[_Block]) -> Iterator[pa.Table]:
    """The rows of a table in its order, block by block."""
    kept = set(task.kept)
    for block in blocks:
        parts = [part for part in task.parts if not kept.issuperset(block.units) and _is_of(part, block)]
        own = [unit for unit in block.units if unit in kept]
        if block.is_large:
            pieces = _former_pieces(task, table, own) if own else _read_parts(task, parts, kind)
            yield from (piece for piece in pieces if piece.num_rows)
            continue
        wanted = pa.array(block.units)
        read = [rows.filter(pc.is_in(rows["unit"], wanted)) for rows in _read_parts(task, parts, kind)]
        rows = pa.concat_tables([table.schema.empty_table(), *_former_pieces(task, table, own), *read])
        yield rows.combine_chunks()


def _is_of(part: Part, block: _Block) -> bool:
    """Whether a part may have rows of a block."""
    if part.is_chunk or block.is_large:
        return part.is_chunk and part.units[0] in block.units
    return part.units[0] <= block.units[-1] and block.units[0] <= part.units[-1]


def _former_pieces(task: ShardTask, table: Table, units: Sequence[str]) -> Iterator[pa.Table]:
    if not units:
        return
    ranges, wanted = {"unit": (units[0], units[-1])}, pa.array(units)
    where = {"dataset": task.dataset, "stage": "extract"}
    for shard in task.former_shards:
        for rows in task.lake.pieces_between(table, ranges, shard=shard, **where):
            yield rows.filter(pc.is_in(rows["unit"], wanted))


def _read_parts(task: ShardTask, parts: Iterable[Part], kind: str) -> Iterator[pa.Table]:
    return (task.lake.read_part(piece_path(task.dataset, part.key, kind)) for part in parts)


def _tag_profiles(task: ShardTask, used: set[int]) -> pa.Table:
    """The tag profiles that the rows of the shard have, each once."""
    former = (
        task.lake.read(TAG_PROFILES, dataset=task.dataset, shard=shard) for shard in task.former_shards if task.kept
    )
    profiles = TAG_PROFILES.schema.empty_table()
    missing = pa.array(used, pa.int64())
    for some in (*former, *_read_parts(task, task.parts, "tag_profiles")):
        added = some.filter(pc.is_in(some["tag_profile"], missing))
        if added.num_rows:
            profiles = pa.concat_tables([profiles, added])
            missing = missing.filter(pc.invert(pc.is_in(missing, pc.unique(added["tag_profile"]))))
    return profiles


# -- findings ---------------------------------------------------------------------------------------------------------


def _findings(task: ShardTask) -> pa.Table:
    former = _former_pieces(task, FINDINGS, task.kept)
    whole = [part for part in task.parts if not part.is_chunk]
    chunks: dict[str, list[Part]] = {}
    for part in task.parts:
        if part.is_chunk:
            chunks.setdefault(part.units[0], []).append(part)
    joined = (_joined_findings(task, parts) for parts in chunks.values())
    return pa.concat_tables([FINDINGS.schema.empty_table(), *former, *_read_parts(task, whole, "findings"), *joined])


def _joined_findings(task: ShardTask, parts: Sequence[Part]) -> pa.Table:
    """The findings of files with their counts summed, and those of values, of which the most frequent are shown."""
    last_chunk = {
        series: number
        for number, rows in enumerate(_read_parts(task, parts, "findings"))
        for series in pc.unique(rows["series_uid"]).to_pylist()
    }
    of_files, of_values, waiting = [], list[Finding](), list[Finding]()
    for number, rows in enumerate(_read_parts(task, parts, "findings")):
        of_files.append(rows.filter(pc.is_null(rows["tag"])))
        waiting += [Finding(**row) for row in rows.filter(pc.is_valid(rows["tag"])).to_pylist()]
        # a series is counted once all its chunks are there: most lie in one, so that few findings wait
        of_values += most_frequent(found for found in waiting if last_chunk[found.series_uid] == number)
        waiting = [found for found in waiting if last_chunk[found.series_uid] > number]
    return pa.concat_tables([_summed(pa.concat_tables(of_files)), findings_table(of_values)])


def _summed(findings: pa.Table) -> pa.Table:
    """Equal findings as one with the sum of their counts."""
    keys = [name for name in FINDINGS.schema.names if name != "count"]
    summed = findings.group_by(keys, use_threads=False).aggregate([("count", "sum")])
    return summed.rename_columns([*keys, "count"]).select(FINDINGS.schema.names)


# -- removal ----------------------------------------------------------------------------------------------------------


def remove_units(lake: Lake, dataset: str, units: Collection[str]) -> None:
    """Take units out of the shards of a dataset (the caller holds its lock). Marks of duplicates stay as they are.

    A shard that is damaged is removed as a whole: the next run reads its other units again.
    """
    commits = read_commits(lake, "extract", dataset)
    remove_other_shards(lake, "extract", dataset, commits.keys())  # files without a commit may hold any unit
    for shard, commit in commits.items():
        rows = commit.units.filter(pc.invert(pc.is_in(commit.units["unit"], pa.array(units, pa.string()))))
        if rows.num_rows == commit.units.num_rows:
            continue
        if not rows.num_rows or damaged_file(lake, commit, digests=True):
            remove_shard(lake, commit)  # of a damaged one the other units are read again
            continue
        kept = tuple(rows["unit"].to_pylist())
        marks = _by_path(lake.read(headers(), ["path", "duplicate"], dataset=dataset, shard=shard), "duplicate")
        sums = _by_path(lake.read(FILES, ["path", "sha256"], dataset=dataset, shard=shard), "sha256")
        task = ShardTask(lake, dataset, shard, commit.shards, False, (shard,), rows, kept, (), marks, sums)
        assemble_shard(task)


def _by_path(rows: pa.Table, column: str) -> dict[str, str]:
    rows = rows.filter(pc.is_valid(rows[column]))
    return dict(zip(rows["path"].to_pylist(), rows[column].to_pylist(), strict=True))
