"""Runs: neighbouring rows of a sorted table that have the same key."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa


def rows_of_runs(rows: pa.Table, ends: Sequence[int], numbers: Iterable[int]) -> pa.Table:
    """Some of the runs of a table, each from the end of the one before it to its own."""
    ranges = [np.arange(ends[number - 1] if number else 0, ends[number]) for number in numbers]
    return rows.take(pa.array(np.concatenate([np.empty(0, np.int64), *ranges])))
