"""What the build stage left of a dataset in the lake: whose each study is, and the resources of each unit."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import orjson
import pyarrow.parquet as pq

from dicom_etl.identity.names import encode_name
from dicom_etl.lake.commits import Commit, DamagedShardError, read_commits
from dicom_etl.lake.schemas import ENDPOINT, IDENTITIES, place
from dicom_etl.lake.shard_reader import read_lines, unit_lines
from dicom_etl.lake.shards import shard_of
from dicom_etl.lake.tables import Lake
from dicom_etl.upload.ledger import Row
from dicom_etl.upload.parts import Resource
from dicom_etl.upload.run import Run

SHARED_RULES = ("crosswalk", "authority")


class NotBuiltError(Exception):
    """A dataset has no resources yet; the text says what to do."""


@dataclass(frozen=True)
class Built:
    """The resources of a dataset: its identities, and the units whose build is committed."""

    lake: Lake
    dataset: str
    persons: tuple[Row, ...]

    @classmethod
    def of(cls, lake: Lake, dataset: str) -> Built:
        """Read the identities.

        Raises:
            NotBuiltError: there are none.
        """
        if not lake.exists(IDENTITIES.path(dataset=dataset)):
            raise NotBuiltError(f"dataset {dataset} has no resources yet; build it first")
        return cls(lake, dataset, tuple(lake.read(IDENTITIES, dataset=dataset).to_pylist()))

    @cached_property
    def decided(self) -> list[Row]:
        """The rows of studies that are built."""
        return [row for row in self.persons if row["state"] == "ok"]

    @cached_property
    def units(self) -> list[str]:
        """All units that the identities know."""
        return sorted({row[column] for row in self.persons for column in ("unit", "owner") if row[column]})

    @cached_property
    def _commits(self) -> dict[int, Commit]:
        return read_commits(self.lake, "build", self.dataset)

    @cached_property
    def _marks(self) -> dict[str, str]:
        """By unit, the fingerprint of its resources."""
        marks: dict[str, str] = {}
        for commit in self._commits.values():
            columns = (commit.units[name].to_pylist() for name in ("unit", "fingerprint"))
            marks |= {unit: mark for unit, mark in zip(*columns, strict=True) if mark is not None}
        return marks

    @cached_property
    def committed(self) -> list[str]:
        """The units that were built."""
        return [unit for unit in self.units if unit in self._marks]

    @cached_property
    def homes(self) -> dict[str, list[str]]:
        """By Patient id, the units that build its studies."""
        return {
            patient: sorted({row["owner"] for row in rows})
            for patient, rows in by_column(self.decided, "patient").items()
        }

    @cached_property
    def patients(self) -> dict[str, set[str]]:
        """By unit, the Patients of the studies that it builds."""
        return {unit: {row["patient"] for row in rows} for unit, rows in by_column(self.decided, "owner").items()}

    @cached_property
    def shared(self) -> set[str]:
        """The Patients whose identifiers mean the same in every dataset."""
        return {row["patient"] for row in self.decided if row["rule"] in SHARED_RULES}

    @cached_property
    def keys(self) -> dict[str, str]:
        """By Patient id, its identifier."""
        return {row["patient"]: f"{row['system']}|{row['value']}" for row in self.decided}

    @cached_property
    def subjects(self) -> dict[str, str | None]:
        """By unit, its subject."""
        return {row["unit"]: row["subject"] for row in self.persons}

    @cached_property
    def studies(self) -> dict[str, list[Row]]:
        """The identities by StudyInstanceUID."""
        return by_column(self.persons, "study_uid")

    def mark(self, unit: str) -> str:
        """What changes when the resources of a unit do."""
        return self._marks.get(unit, "")

    def resources(self, kind: str, unit: str) -> Iterator[Resource]:
        """The Patients or ImagingStudies of a unit.

        Raises:
            DamagedShardError: they are not what the commit of their shard says.
        """
        for line in self._lines(kind, unit).splitlines():
            yield orjson.loads(line)

    def _lines(self, kind: str, unit: str) -> bytes:
        if not self._commits:
            return b""
        commit = self._commits.get(shard_of(unit, next(iter(self._commits.values())).shards))
        try:
            return unit_lines(self.lake, commit, kind, unit) if commit else b""
        except (DamagedShardError, OSError):  # a build may have ended since the commits were read
            return read_lines(self.lake, kind, dataset=self.dataset, unit=unit)

    def endpoint(self) -> Resource | None:
        """The Endpoint of the dataset; None where no study is built."""
        content = self.lake.read_bytes(place(ENDPOINT, dataset=self.dataset))
        return orjson.loads(content) if content else None


def by_column(rows: Sequence[Row], column: str) -> dict[str, list[Row]]:
    """The rows by the value of a column; an empty list where there is none."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row[column]].append(row)
    return groups


def announcement(server: str, dataset: str) -> str:
    """The place of the file that says that a dataset is on a server, or about to be: it has a say in what is shared."""
    return f"outcomes/{encode_name(server)}/{encode_name(dataset)}/.here"


def others(run: Run, names: Sequence[str]) -> list[Built]:
    """The other datasets that are on this server: they have a say in what is shared."""
    ours = {encode_name(name) for name in names}
    found = []
    for folder in run.lake.names(f"outcomes/{encode_name(run.server)}"):
        content = None if folder in ours else run.lake.read_bytes(f"identities/{folder}.parquet")
        rows = rows_at(content) if content else []
        if rows:
            found.append(Built(run.lake, rows[0]["dataset"], tuple(rows)))
    return found


def rows_at(content: bytes) -> list[Row]:
    """The rows of a table whose true name is not known yet (it stands in its columns)."""
    # not read_table: with pyarrow 26, its threads may still hold a Python file when the interpreter ends, and abort
    rows: list[Row] = pq.ParquetFile(io.BytesIO(content)).read().to_pylist()
    return rows
