"""The record of what was withdrawn: it keeps a subject, or a whole dataset, out of the lake, and names nobody.

A subject is represented by a digest of namespace, dataset and subject under a key (`ResourceIds.withdrawal_digest`).
Who has the key and a list of names can try them: that is what the crawl does, and why the record is not anonymous. A
row has the namespace and the fingerprint of the key that were configured when it was written. So another namespace
brings nobody back; under another key it is not known who was withdrawn, and the crawl is refused.

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

from dicom_etl.identity.ids import ResourceIds
from dicom_etl.lake.schemas import WITHDRAWN
from dicom_etl.lake.tables import Lake, LakeError

Row = dict[str, Any]
T = TypeVar("T")
_ARCHIVE = re.compile(r"(\.zip)?!?$", re.IGNORECASE)


def _unkeyed_digest(namespace: str, dataset: str, subject: str) -> str:
    """The digest of a subject in rows that name no key: lakes of schema 2 had none."""
    return hashlib.sha256(orjson.dumps([namespace, dataset, subject])).hexdigest()


class Withdrawn:
    """The record of one dataset.

    Args:
        dataset: its name.
        rows: of the record.
        ids: the configured ones; without them rows are understood whose key is derived from their namespace.
    """

    def __init__(self, dataset: str, rows: Sequence[Row], ids: ResourceIds | None = None) -> None:
        self.dataset, self.rows, self._ids = dataset, list(rows), ids
        self._digests = {row["digest"] for row in rows} - {None}
        self._makers = {(row["namespace"], row.get("id_key")) for row in rows if row["digest"] is not None}
        self._known: dict[str, bool] = {}

    @classmethod
    def of(cls, lake: Lake, dataset: str, ids: ResourceIds | None = None) -> Withdrawn:
        """Read the record; empty where there is none."""
        return cls(dataset, lake.read(WITHDRAWN, dataset=dataset).to_pylist(), ids)

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
        """Whether a subject was withdrawn.

        Raises:
            LakeError: the key of a row is not the configured one.
        """
        if subject is None or not self._digests:
            return False
        if subject not in self._known:
            digests = {self._digest(namespace, id_key, subject) for namespace, id_key in self._makers}
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
        return Withdrawn(self.dataset, [*self.without_row(subject).rows, row], self._ids)

    def without_row(self, subject: str | None) -> Withdrawn:
        """The record without a subject's row."""
        return Withdrawn(self.dataset, [row for row in self.rows if not self._is_of(row, subject)], self._ids)

    def write(self, lake: Lake) -> None:
        """Write the record (the caller holds the dataset's lock)."""
        if self.rows:
            lake.write_rows(WITHDRAWN, self.rows, dataset=self.dataset)
        else:
            lake.remove(WITHDRAWN.path(dataset=self.dataset))

    def _is_of(self, row: Row, subject: str | None) -> bool:
        if subject is None or row["digest"] is None:
            return subject is None and row["digest"] is None
        return bool(row["digest"] == self._digest(row["namespace"], row.get("id_key"), subject))

    def _digest(self, namespace: str, id_key: str | None, subject: str) -> str:
        """The digest of a subject as rows of this namespace and key have it."""
        if id_key is None:
            return _unkeyed_digest(namespace, self.dataset, subject)
        return self._ids_of(namespace, id_key).withdrawal_digest(self.dataset, subject)

    def _ids_of(self, namespace: str, id_key: str) -> ResourceIds:
        candidates = [
            ResourceIds.from_key(namespace, None),
            *([self._ids.in_namespace(namespace)] if self._ids else []),
        ]
        for ids in candidates:
            if ids.key_fingerprint == id_key:
                return ids
        raise LakeError(
            f"who was withdrawn from {self.dataset} is recorded under the id key {id_key} (fingerprint), which is not "
            "the configured one: set DICOM_ETL_ID_KEY or id_key_file to that key; or remove the files of its withdrawn "
            f"subjects from its folder, then {self.path_of(self.dataset)} from the lake"
        )


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
