"""Tables that are sorted by a key column: access to the rows of single keys, and a digest of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.lake.fingerprints import hash_runs


class GroupedRows:
    """A table sorted by a key column, with the range of rows of each key."""

    def __init__(self, table: pa.Table, key: str) -> None:
        """Take a table that is sorted by `key`, which is never null."""
        self.table = table
        runs = pc.run_end_encode(table[key].combine_chunks()) if table.num_rows else None
        self.keys: list[str] = runs.values.to_pylist() if runs else []
        self._ends: list[int] = runs.run_ends.to_pylist() if runs else []
        self._numbers = {name: number for number, name in enumerate(self.keys)}

    def select(self, keys: Iterable[str]) -> pa.Table:
        """The rows of these keys, in the order of `keys`; a key without rows is skipped."""
        numbers = [self._numbers[key] for key in keys if key in self._numbers]
        ranges = [np.arange(self._ends[number - 1] if number else 0, self._ends[number]) for number in numbers]
        return self.table.take(pa.array(np.concatenate([np.empty(0, np.int64), *ranges])))

    def digests(self, columns: Sequence[str]) -> dict[str, str]:
        """The digest of these columns in the rows of each key."""
        return dict(zip(self.keys, hash_runs(self.table.select(list(columns)), self._ends), strict=True))
