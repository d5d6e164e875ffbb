"""Fingerprints: digests of everything that an output depends on. It is rebuilt only if its fingerprint changes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

_BLOCK = 100_000  # rows
_SEPARATOR, _NULL = "\x1f", "\x1e"


def compute_fingerprint(*parts: Any) -> str:
    """The digest of some parts, 32 hexadecimal digits.

    Args:
        parts: any values that JSON can represent; the order of the keys of a mapping does not matter.
    """
    canonical = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    return hashlib.sha256(canonical).hexdigest()[:32]


@cache
def hash_package_files(*files: str) -> str:
    """The digest of data files of the package (`package:file`), so that changes of a table change fingerprints."""
    digest = hashlib.sha256()
    for name in files:
        package, file = name.split(":")
        digest.update(resources.files(package).joinpath(file).read_bytes())
    return digest.hexdigest()[:16]


def hash_runs(rows: pa.Table, ends: Sequence[int]) -> Iterator[str]:
    """The digest of each run of neighbouring rows, 32 hexadecimal digits.

    The text of rows is concatenated in Arrow buffers, which is much faster than with a Python object for each row.

    Args:
        rows: a table without columns of lists.
        ends: the end of each run; the first begins at row 0.
    """
    digest, start, end_of_block = hashlib.sha256(), 0, 0
    texts = _RowTexts(rows.slice(0, 0))
    for end in ends:
        while start < end:
            if start == end_of_block:
                texts, end_of_block = _RowTexts(rows.slice(start, _BLOCK)), start + _BLOCK
            stop = min(end, end_of_block)
            begin = end_of_block - _BLOCK
            digest.update(texts.between(start - begin, stop - begin))
            start = stop
        yield digest.hexdigest()[:32]
        digest = hashlib.sha256()


class _RowTexts:
    """The rows of a table as text, in one buffer."""

    def __init__(self, rows: pa.Table) -> None:
        columns = [pc.cast(c, pa.int64()) if pa.types.is_timestamp(c.type) else c for c in rows.itercolumns()]
        cells = [pc.fill_null(pc.cast(column, pa.string()), _NULL) for column in columns]
        texts = pc.binary_join_element_wise(*cells, "", _SEPARATOR).combine_chunks().cast(pa.large_string())
        _, offsets, self._data = texts.buffers()
        self._offsets = memoryview(offsets or b"").cast("q")

    def between(self, start: int, stop: int) -> memoryview:
        """The text of the rows from `start` to `stop`, concatenated."""
        return memoryview(self._data or b"")[self._offsets[start] : self._offsets[stop]]
