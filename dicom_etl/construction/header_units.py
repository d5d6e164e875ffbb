"""The units that have header rows, from the commits of the extraction."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from dicom_etl.lake.commits import Commit
from dicom_etl.lake.fingerprints import compute_fingerprint


class HeaderUnits:
    """The units that have header rows: their shards, numbers of rows and fingerprints.

    A unit whose extraction has to be repeated is included, with its previous rows: without them, the PatientIDs of
    other units could be matched to other patients.
    """

    def __init__(self, commits: Mapping[int, Commit]) -> None:
        """Take the commits of all shards of the extraction, by shard."""
        self.shard_of: dict[str, int] = {}
        self.fingerprints: dict[str, str] = {}  # of the header rows, duplicate flags included
        self.rows: dict[str, int] = {}
        self.shards = next((commit.shards for commit in commits.values()), 0)
        for shard, commit in commits.items():
            columns = (commit.units[name].to_pylist() for name in ("unit", "fingerprint", "duplicates", "rows"))
            for unit, fingerprint, duplicates, rows in zip(*columns, strict=True):
                if fingerprint is not None:
                    self.shard_of[unit], self.rows[unit] = shard, rows
                    self.fingerprints[unit] = f"{fingerprint}+{duplicates}" if duplicates else fingerprint

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of all units."""
        return compute_fingerprint(sorted(self.fingerprints.items()))
