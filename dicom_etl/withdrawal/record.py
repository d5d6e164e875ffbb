"""The record of withdrawals of a dataset: it keeps subjects, or the whole dataset, out of the lake without naming them.

A subject is represented by a digest of namespace, dataset and subject under a key (`ResourceIds.withdrawal_digest`).
Anyone who has the key and a list of names can compute their digests: the crawl does that, and it is why the record is
not anonymous. Each row contains the namespace and the fingerprint of the key that were configured when it was written.
Therefore a new namespace brings nobody back; under a new key it is unknown who was withdrawn, and the crawl refuses to
run.

Not here: what is removed, and from where (`withdrawal.run`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TypeVar

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.identity.ids import ResourceIds
from dicom_etl.lake.migration import read_withdrawals
from dicom_etl.lake.schemas import WITHDRAWN
from dicom_etl.lake.tables import Lake, LakeError
from dicom_etl.settings import SettingsError

T = TypeVar("T")
_ARCHIVE_SUFFIX = re.compile(r"(\.zip)?!?$", re.IGNORECASE)


@dataclass(frozen=True)
class WithdrawalRow:
    """One withdrawal; the fields are the columns of the table `withdrawn`.

    `digest` is None where the whole dataset was withdrawn. `servers` are the names of servers from which resources were
    deleted, separated by spaces; `pending_deletions` is JSON, see `parse_pending_deletions`.
    """

    dataset: str
    namespace: str
    digest: str | None
    id_key: str | None
    files: int = 0
    studies: int = 0
    patients: int = 0
    imaging_studies: int = 0
    endpoints: int = 0
    servers: str | None = None
    pending_deletions: str | None = None
    time: datetime | None = None


class WithdrawalRecord:
    """The record of one dataset.

    Args:
        dataset: its name.
        rows: of the record.
        ids: the configured ones; without them only rows can be interpreted whose key is derived from their namespace.
    """

    def __init__(self, dataset: str, rows: Sequence[WithdrawalRow], ids: ResourceIds | None = None) -> None:
        self.dataset, self.rows, self._ids = dataset, list(rows), ids
        self._digests = {row.digest for row in rows} - {None}
        self._namespaces_and_keys = {(row.namespace, row.id_key) for row in rows if row.digest is not None}
        self._is_withdrawn: dict[str, bool] = {}  # answers by subject

    @classmethod
    def read(cls, lake: Lake, dataset: str, ids: ResourceIds | None = None) -> WithdrawalRecord:
        """Read the record of a dataset; it is empty where nothing was withdrawn.

        Raises:
            LakeError: it is damaged.
        """
        rows = [WithdrawalRow(**row) for row in read_withdrawals(lake, dataset).to_pylist()]
        return cls(dataset, rows, ids)

    def __bool__(self) -> bool:
        return bool(self.rows)

    @property
    def is_dataset_withdrawn(self) -> bool:
        """Whether the whole dataset was withdrawn."""
        return self.find_row(None) is not None

    def find_row(self, subject: str | None) -> WithdrawalRow | None:
        """The row of a subject, or (None) of the whole dataset; None where there is no such row."""
        return next((row for row in self.rows if self._represents(row, subject)), None)

    def is_withdrawn(self, subject: str | None) -> bool:
        """Whether a subject was withdrawn.

        Raises:
            LakeError: a row was written under a key that is not the configured one.
        """
        if subject is None or not self._digests:
            return False
        if subject not in self._is_withdrawn:
            digests = {self._digest(namespace, id_key, subject) for namespace, id_key in self._namespaces_and_keys}
            self._is_withdrawn[subject] = not self._digests.isdisjoint(digests)
        return self._is_withdrawn[subject]

    def is_in_path(self, path: str | None) -> bool:
        """Whether a folder or an archive of a path has the name of a withdrawn subject."""
        segments = (path or "").split("/")
        return any(self.is_withdrawn(name) or self.is_withdrawn(_ARCHIVE_SUFFIX.sub("", name)) for name in segments)

    def exclude_rows(self, table: pa.Table) -> pa.Table:
        """A table that has a column `unit`, without the rows of withdrawn subjects."""
        if not self._digests:
            return table
        withdrawn = [unit for unit in pc.unique(table["unit"]).to_pylist() if self.is_withdrawn(unit)]
        if not withdrawn:
            return table
        return table.filter(pc.invert(pc.is_in(table["unit"], pa.array(withdrawn, pa.string()))))

    def with_row(self, row: WithdrawalRow, subject: str | None) -> WithdrawalRecord:
        """A record in which `row` replaces the row of a subject, or is added."""
        return WithdrawalRecord(self.dataset, [*self.without_row(subject).rows, row], self._ids)

    def without_row(self, subject: str | None) -> WithdrawalRecord:
        """A record without the row of a subject."""
        rows = [row for row in self.rows if not self._represents(row, subject)]
        return WithdrawalRecord(self.dataset, rows, self._ids)

    def write(self, lake: Lake) -> None:
        """Write the record; the caller holds the lock of the dataset."""
        if self.rows:
            lake.write_rows(WITHDRAWN, [asdict(row) for row in self.rows], dataset=self.dataset)
        else:
            lake.remove(WITHDRAWN.path(dataset=self.dataset))

    def _represents(self, row: WithdrawalRow, subject: str | None) -> bool:
        if subject is None or row.digest is None:
            return subject is None and row.digest is None
        return row.digest == self._digest(row.namespace, row.id_key, subject)

    def _digest(self, namespace: str, id_key: str | None, subject: str) -> str:
        """The digest that represents a subject in rows of this namespace and key."""
        if id_key is None:  # lakes of schema 2 had no key
            return hashlib.sha256(orjson.dumps([namespace, self.dataset, subject])).hexdigest()
        candidates = [
            ResourceIds.from_key(namespace, None),
            *([self._ids.in_namespace(namespace)] if self._ids else []),
        ]
        for ids in candidates:
            if ids.key_fingerprint == id_key:
                return ids.withdrawal_digest(self.dataset, subject)
        raise LakeError(
            f"the withdrawals from {self.dataset} are recorded under the id key {id_key} (fingerprint), which is not "
            "the configured one: set DICOM_ETL_ID_KEY or id_key_file to that key; or remove the files of its withdrawn "
            f"subjects from its folder, then {WITHDRAWN.path(dataset=self.dataset)} from the lake"
        )


def undo_withdrawal(dataset: str, subject: str | None, lake: Lake, ids: ResourceIds | None = None) -> None:
    """Remove a withdrawal from the record: the next run loads again what is in the source.

    Raises:
        SettingsError: it was not withdrawn.
    """
    if not lake.exists(WITHDRAWN.path(dataset=dataset)):
        raise SettingsError(f"nothing of {dataset} was withdrawn")
    with lake.lock(dataset, f"undo of a withdrawal from {dataset}"):
        record = WithdrawalRecord.read(lake, dataset, ids)
        if record.find_row(subject) is None:
            raise SettingsError(f"{f'{subject} of {dataset}' if subject else dataset} was not withdrawn")
        record.without_row(subject).write(lake)


def exclude_withdrawn(lake: Lake, datasets: Mapping[str, T]) -> dict[str, T]:
    """Of datasets by name, those that were not withdrawn as a whole."""
    return {
        name: dataset
        for name, dataset in datasets.items()
        if not WithdrawalRecord.read(lake, name).is_dataset_withdrawn
    }


def parse_pending_deletions(row: WithdrawalRow | None) -> dict[str, set[str]]:
    """By server, the resources (`Type/id`) that are still to be deleted there."""
    by_server = orjson.loads(row.pending_deletions) if row and row.pending_deletions else {}
    return {server: set(resources) for server, resources in by_server.items()}


def format_pending_deletions(by_server: Mapping[str, set[str]]) -> str | None:
    """The same as a value of the record's column."""
    kept = {server: sorted(resources) for server, resources in by_server.items() if resources}
    return orjson.dumps(kept, option=orjson.OPT_SORT_KEYS).decode() if kept else None
