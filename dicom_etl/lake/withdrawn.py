"""The record of what was withdrawn: it keeps a subject, or a whole dataset, out of the lake, and names nobody.

A subject stands there as the SHA-256 of site, dataset and subject. Whoever has a list of names can try them: that is
what the crawl does, and why the record is no anonymous one. The site of a row is the one that was set when it was
written, so that another site brings nobody back.

Not here: what is removed, and from where (`stages.forget`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.lake.schemas import WITHDRAWN
from dicom_etl.lake.tables import Lake

Row = dict[str, Any]
T = TypeVar("T")
_ARCHIVE = re.compile(r"(\.zip)?!?$", re.IGNORECASE)


def digest_of(site: str, dataset: str, subject: str) -> str:
    """What stands for a subject."""
    return hashlib.sha256(orjson.dumps([site, dataset, subject])).hexdigest()


class Withdrawn:
    """The record of one dataset."""

    def __init__(self, dataset: str, rows: Sequence[Row]) -> None:
        self.dataset, self.rows = dataset, list(rows)
        self._sites = {row["site"] for row in rows}
        self._digests = {row["digest"] for row in rows} - {None}
        self._known: dict[str, bool] = {}

    @classmethod
    def of(cls, lake: Lake, dataset: str) -> Withdrawn:
        """Read the record; empty where there is none."""
        return cls(dataset, lake.read(WITHDRAWN, dataset=dataset).to_pylist())

    @staticmethod
    def path_of(dataset: str) -> str:
        """The path of the record."""
        return WITHDRAWN.path(dataset=dataset)

    def __bool__(self) -> bool:
        return bool(self.rows)

    @property
    def whole(self) -> Row | None:
        """The row of the whole dataset, if that was withdrawn."""
        return self.row(None)

    def row(self, subject: str | None) -> Row | None:
        """The row of a subject, or (None) of the whole dataset."""
        return next((row for row in self.rows if self._is_of(row, subject)), None)

    def has(self, subject: str | None) -> bool:
        """Whether a subject was withdrawn."""
        if subject is None or not self._digests:
            return False
        if subject not in self._known:
            digests = {digest_of(site, self.dataset, subject) for site in self._sites}
            self._known[subject] = not self._digests.isdisjoint(digests)
        return self._known[subject]

    def lies_in(self, path: str | None) -> bool:
        """Whether a folder or an archive of a path has the name of a withdrawn subject."""
        return any(self.has(name) or self.has(_ARCHIVE.sub("", name)) for name in (path or "").split("/"))

    def without(self, entries: pa.Table) -> pa.Table:
        """A table of the column `unit` without the rows of withdrawn subjects."""
        out = [unit for unit in pc.unique(entries["unit"]).to_pylist() if self.has(unit)] if self._digests else []
        return entries.filter(pc.invert(pc.is_in(entries["unit"], pa.array(out, pa.string())))) if out else entries

    def with_row(self, row: Row, subject: str | None) -> Withdrawn:
        """The record with a row in the place of the subject's."""
        return Withdrawn(self.dataset, [*self.without_row(subject).rows, row])

    def without_row(self, subject: str | None) -> Withdrawn:
        """The record without a subject's row."""
        return Withdrawn(self.dataset, [row for row in self.rows if not self._is_of(row, subject)])

    def write(self, lake: Lake) -> None:
        """Write the record (the caller holds the dataset's lock)."""
        if self.rows:
            lake.write_rows(WITHDRAWN, self.rows, dataset=self.dataset)
        else:
            lake.remove(WITHDRAWN.path(dataset=self.dataset))

    def _is_of(self, row: Row, subject: str | None) -> bool:
        if subject is None or row["digest"] is None:
            return subject is None and row["digest"] is None
        return bool(row["digest"] == digest_of(row["site"], self.dataset, subject))


def admitted(lake: Lake, datasets: Mapping[str, T]) -> dict[str, T]:
    """Of some datasets, by name, those that were not withdrawn as a whole."""
    return {name: one for name, one in datasets.items() if not Withdrawn.of(lake, name).whole}


def left_of(row: Mapping[str, Any] | None) -> dict[str, set[str]]:
    """By server, the resources (`Type/id`) that are still to be deleted there."""
    said = orjson.loads(row["left"]) if row and row["left"] else {}
    return {server: set(resources) for server, resources in said.items()}


def left_text(left: Mapping[str, set[str]]) -> str | None:
    """The same as the record's column."""
    kept = {server: sorted(resources) for server, resources in left.items() if resources}
    return orjson.dumps(kept, option=orjson.OPT_SORT_KEYS).decode() if kept else None
