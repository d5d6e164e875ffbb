"""The units that have header rows, from the commits of the extraction."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from dicom_etl.lake.commits import Commit
from dicom_etl.lake.fingerprints import compute_fingerprint


class HeaderUnits:
    """The units that have header tables, with what changes when their rows do.

    Also a unit whose extraction has to be done again: what its rows say is older, but a unit left out would change what
    the PatientIDs of the others mean.
    """

    def __init__(self, commits: Mapping[int, Commit]) -> None:
        self.shard_of: dict[str, int] = {}
        self.marks: dict[str, str] = {}
        self.rows: dict[str, int] = {}
        self.shards = next((commit.shards for commit in commits.values()), 0)
        for shard, commit in commits.items():
            columns = (commit.units[name].to_pylist() for name in ("unit", "fingerprint", "duplicates", "rows"))
            for unit, print_, duplicates, rows in zip(*columns, strict=True):
                if print_ is not None:
                    self.shard_of[unit], self.rows[unit] = shard, rows
                    self.marks[unit] = f"{print_}+{duplicates}" if duplicates else print_

    @cached_property
    def mark(self) -> str:
        """The fingerprint of all of them."""
        return compute_fingerprint(sorted(self.marks.items()))
