"""What an extraction has to do: the units of the inventory compared with the commits of their shards.

Decided from the inventory and the commits without opening another file, and without a Python object per file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.extraction.chunk_reader import reader_fingerprint
from dicom_etl.extraction.chunks import UnitFiles
from dicom_etl.lake.commits import Commit, read_commits, warn_of_damage
from dicom_etl.lake.fingerprints import compute_fingerprint, hash_runs
from dicom_etl.lake.schemas import EXTRACT_COMMITS
from dicom_etl.lake.shards import assign_shard, choose_shard_count, list_previous_shards
from dicom_etl.lake.tables import Lake


class Units:
    """The units of an inventory, which is sorted by unit and path, each with its fingerprint."""

    def __init__(self, inventory: pa.Table) -> None:
        """Take an inventory in which there is at least one file."""
        self.inventory = inventory
        runs = pc.run_end_encode(inventory["unit"].combine_chunks())
        self.names: list[str] = runs.values.to_pylist()
        self._ends: list[int] = runs.run_ends.to_pylist()

    @cached_property
    def file_counts(self) -> list[int]:
        """The number of files of each unit."""
        return [end - start for start, end in zip([0, *self._ends], self._ends, strict=False)]

    @cached_property
    def fingerprints(self) -> list[str]:
        """The fingerprint of each unit: that of the reader, and a digest of its part of the inventory."""
        reader = reader_fingerprint()
        digests = hash_runs(self.inventory.drop_columns(["dataset", "unit"]), self._ends)
        return [f"{reader}-{digest}" for digest in digests]

    @cached_property
    def shards(self) -> int:
        """The number of shards in which they are stored."""
        return choose_shard_count(self.file_counts)

    def start(self, number: int) -> int:
        """The row of the inventory with the first file of a unit."""
        return self._ends[number] - self.file_counts[number]


class PreviousUnit(NamedTuple):
    """A unit as the last extraction left it: columns of its commit."""

    fingerprint: str | None
    rows: int
    files: int
    to_retry: bool
    duplicates: str | None


@dataclass(frozen=True)
class Plan:
    """What is done with each unit and each shard."""

    units: Units
    commits: Mapping[int, Commit]  # by shard, those whose files are undamaged
    previous: Mapping[str, PreviousUnit]  # by unit, from these commits
    changed: Sequence[int]  # numbers of the units that are to be read
    removed: frozenset[str]  # units that are no longer in the inventory
    force: bool = False  # no rows are reused

    @cached_property
    def previous_count(self) -> int:
        """The number of shards until now; 0: there are none."""
        return next((commit.shards for commit in self.commits.values()), 0)

    @property
    def is_resharded(self) -> bool:
        """Whether the number of shards changes, so that all rows move."""
        return bool(self.previous_count) and self.previous_count != self.units.shards

    @cached_property
    def shard_of_unit(self) -> list[int]:
        """The shard of each unit."""
        shards = self.units.shards
        return [assign_shard(unit, shards) for unit in self.units.names]

    def previous_shards(self, shard: int) -> tuple[int, ...]:
        """The shards with the previous rows of a shard's units."""
        if not self.previous_count:
            return ()
        shards = list_previous_shards(shard, self.units.shards, self.previous_count)
        return tuple(previous for previous in shards if previous in self.commits)

    def units_to_read(self) -> Iterator[tuple[int, bool, list[UnitFiles]]]:
        """Group the units to be read: shard, whether their previous rows can be reused, and the units, sorted.

        Rows can be reused if the same version of the readers wrote them.
        """
        reader = reader_fingerprint()
        groups: dict[tuple[int, bool], list[UnitFiles]] = {}
        for number in self.changed:
            name = self.units.names[number]
            unit = self.previous.get(name)
            previous = unit.fingerprint if unit else None
            is_reusable = not self.force and previous is not None and previous.startswith(reader)
            start, files = self.units.start(number), self.units.file_counts[number]
            unit_files = UnitFiles(name, start, files, self.units.fingerprints[number], previous)
            groups.setdefault((self.shard_of_unit[number], is_reusable), []).append(unit_files)
        for shard, is_reusable in sorted(groups):
            yield shard, is_reusable, groups[shard, is_reusable]


def plan_extraction(
    lake: Lake, dataset: str, units: Units, *, subjects: Collection[str] | None = None, force: bool = False
) -> Plan:
    """Compare the units of the inventory with the commits; damaged shards count as not written.

    Args:
        lake: with the commits.
        dataset: its name.
        units: of the inventory.
        subjects: only these units are read; None: all.
        force: read every unit again.
    """
    commits = read_commits(lake, "extract", dataset)
    commits = {shard: commit for shard, commit in commits.items() if not warn_of_damage(lake, commit)}
    plan = _compare(units, commits, subjects, force=force)
    # the bytes of shards that will be rewritten are checked before any of their rows are reused
    changed = {plan.shard_of_unit[number] for number in plan.changed}
    rewritten = set(commits) if plan.is_resharded else changed & commits.keys()
    damaged = {shard for shard in sorted(rewritten) if warn_of_damage(lake, commits[shard], digests=True)}
    if not damaged:
        return plan
    undamaged = {shard: commit for shard, commit in commits.items() if shard not in damaged}
    return _compare(units, undamaged, subjects, force=force)


def _compare(units: Units, commits: Mapping[int, Commit], subjects: Collection[str] | None, *, force: bool) -> Plan:
    rows = concatenate_commits(commits.values())
    values = zip(*(rows[name].to_pylist() for name in PreviousUnit._fields), strict=True)
    previous = dict(zip(rows["unit"].to_pylist(), map(PreviousUnit._make, values), strict=True))
    selected = None if subjects is None else set(subjects)
    changed = [
        number
        for number, (name, current) in enumerate(zip(units.names, units.fingerprints, strict=True))
        if (selected is None or name in selected) and (force or _has_changed(previous.get(name), current))
    ]
    removed = frozenset(previous.keys() - set(units.names))
    return Plan(units, commits, previous, changed, removed, force)


def _has_changed(previous: PreviousUnit | None, current_fingerprint: str) -> bool:
    return previous is None or previous.to_retry or previous.fingerprint != current_fingerprint


def concatenate_commits(commits: Collection[Commit]) -> pa.Table:
    """The rows of commits, one for each unit."""
    return pa.concat_tables([EXTRACT_COMMITS.schema.empty_table(), *(commit.units for commit in commits)])


def fingerprint_commits(units: pa.Table) -> str:
    """The fingerprint of the rows of a dataset's commits."""
    return compute_fingerprint([units[name].to_pylist() for name in ("unit", "fingerprint", "duplicates")])
