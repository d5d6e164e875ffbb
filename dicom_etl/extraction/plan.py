"""What an extraction has to do: the units of the inventory beside the commits of their shards.

Decided from the inventory and the commits alone, without opening another file, and without a Python object per file.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.extraction.pieces import UnitRows
from dicom_etl.extraction.reading import reader_mark
from dicom_etl.lake.commits import Commit
from dicom_etl.lake.fingerprints import fingerprint, run_digests
from dicom_etl.lake.schemas import EXTRACT_COMMITS
from dicom_etl.lake.shards import former_shards, shard_count, shard_of


class Units:
    """The units of an inventory, which is sorted by unit and path, each with its fingerprint."""

    def __init__(self, inventory: pa.Table) -> None:
        """Take an inventory in which there is at least one file."""
        self.inventory = inventory
        ends = pc.run_end_encode(inventory["unit"].combine_chunks())
        self.names: list[str] = ends.values.to_pylist()
        self._ends: list[int] = ends.run_ends.to_pylist()

    @cached_property
    def counts(self) -> list[int]:
        """The number of files of each unit."""
        return [end - start for start, end in zip([0, *self._ends], self._ends, strict=False)]

    @cached_property
    def fingerprints(self) -> list[str]:
        """The fingerprint of each unit: of the reader and of its part of the inventory."""
        mark = reader_mark()
        return [
            f"{mark}-{digest}" for digest in run_digests(self.inventory.drop_columns(["dataset", "unit"]), self._ends)
        ]

    @cached_property
    def shards(self) -> int:
        """The number of shards that they are stored in."""
        return shard_count(self.counts)

    def start(self, number: int) -> int:
        """The place in the inventory of the first file of a unit."""
        return self._ends[number] - self.counts[number]


class FormerUnit(NamedTuple):
    """A unit as a commit has it."""

    fingerprint: str | None
    rows: int
    files: int
    to_retry: bool
    duplicates: str | None


@dataclass(frozen=True)
class Plan:
    """What is done with each unit and each shard.

    `former` are the rows of the commits by unit, of the commits that are whole.
    """

    units: Units
    former: Mapping[str, FormerUnit]
    former_count: int  # shards until now; 0: none
    changed: Sequence[int]  # numbers of the units that are to be read
    gone: frozenset[str]  # units that are no longer in the inventory
    whole: frozenset[int]  # former shards that can be read
    force: bool = False  # nothing is taken over of what is read

    @property
    def moves(self) -> bool:
        """Whether the number of shards changes, so that all rows move."""
        return bool(self.former_count) and self.former_count != self.units.shards

    @cached_property
    def shard_of_unit(self) -> list[int]:
        """The shard of each unit."""
        shards = self.units.shards
        return [shard_of(unit, shards) for unit in self.units.names]

    def former_shards(self, shard: int) -> tuple[int, ...]:
        """The shards in which the former rows of a shard's units are."""
        if not self.former_count:
            return ()
        shards = former_shards(shard, self.units.shards, self.former_count)
        return tuple(former for former in shards if former in self.whole)

    def to_read(self) -> Iterator[tuple[int, bool, list[UnitRows]]]:
        """By shard the units to be read, sorted; those whose former rows are of this reader apart from the others."""
        mark = reader_mark()
        groups: dict[tuple[int, bool], list[UnitRows]] = {}
        for number in self.changed:
            name = self.units.names[number]
            former = self.former.get(name)
            known = former.fingerprint if former else None
            usable = not self.force and known is not None and known.startswith(mark)
            place = self.units.start(number), self.units.counts[number]
            unit = UnitRows(name, *place, self.units.fingerprints[number], known)
            groups.setdefault((self.shard_of_unit[number], usable), []).append(unit)
        for shard, usable in sorted(groups):
            yield shard, usable, groups[shard, usable]


def plan(units: Units, commits: Mapping[int, Commit], *, subjects: Collection[str] | None, force: bool) -> Plan:
    """Compare the units of the inventory with the commits.

    Args:
        units: of the inventory.
        commits: of the shards whose files are whole.
        subjects: only these units are read; None: all.
        force: read every unit again.
    """
    former_units = pa.concat_tables([EXTRACT_COMMITS.schema.empty_table(), *(c.units for c in commits.values())])
    values = zip(*(former_units[name].to_pylist() for name in FormerUnit._fields), strict=True)
    former = dict(zip(former_units["unit"].to_pylist(), map(FormerUnit._make, values), strict=True))
    wanted = None if subjects is None else set(subjects)
    changed = [
        number
        for number, (name, print_) in enumerate(zip(units.names, units.fingerprints, strict=True))
        if (wanted is None or name in wanted) and (force or _is_changed(former.get(name), print_))
    ]
    gone = frozenset(former.keys() - set(units.names))
    count = next((commit.shards for commit in commits.values()), 0)
    return Plan(units, former, count, changed, gone, frozenset(commits), force)


def _is_changed(former: FormerUnit | None, print_: str) -> bool:
    return former is None or former.to_retry or former.fingerprint != print_


def state_of(units: pa.Table) -> str:
    """The fingerprint of what a dataset's commits say."""
    return fingerprint([units[name].to_pylist() for name in ("unit", "fingerprint", "duplicates")])
