"""Which values of the header table can be used: per catalogue column nothing, a value, or a dummy.

What counts as a dummy is data (`tables/dummies.json`), and belongs to a tag: ANONYMOUS is nobody's name, while NONE is
a fine FilterType. The states of all columns of a row are packed into a few integers, two bits each, so that rows of
equal states are found by comparing integers.

Not here: whether the element is there at all (tag profiles), and what it should be (requirements).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.headers.catalogue import Column, by_name, catalogue
from dicom_etl.headers.tag_profile import tag_text

__all__ = ["NO_VALUE", "USABLE", "DUMMY", "Watched", "packed_names", "packed_states", "value_state", "watched"]  # noqa: RUF022

NO_VALUE, USABLE, DUMMY = 0, 1, 2

_BITS, _PER_WORD = 2, 31  # 62 bits, so that the integers stay positive
_FILE_META = 0x0002
_FUNCTIONAL_GROUPS = 0x52009229  # SharedFunctionalGroupsSequence


@dataclass(frozen=True, slots=True)
class Watched:
    """A column whose state counts for a top-level tag, and where it is packed."""

    name: str
    tag: str  # GGGGEEEE
    own: bool  # the column is the value of the tag itself, not of an element inside it
    word: int
    shift: int


@cache
def watched() -> tuple[Watched, ...]:
    """The columns that count: values of top-level tags, and those that functional groups may hold instead.

    File meta elements are no part of the data set; tag profiles do not list them, and they are left out.
    """
    columns = [column for column in catalogue() if _counts(column)]
    return tuple(
        Watched(c.name, tag_text(c.tag), len(c.path) == 1, n // _PER_WORD, n % _PER_WORD * _BITS)
        for n, c in enumerate(columns)
    )


def _counts(column: Column) -> bool:
    resolved = column.also[:1] == (_FUNCTIONAL_GROUPS,)
    return column.tag >> 16 != _FILE_META and (len(column.path) == 1 or resolved)


def packed_names() -> tuple[str, ...]:
    """The names of the packed columns."""
    return tuple(f"values{n}" for n in range(watched()[-1].word + 1))


def packed_states(rows: pa.Table) -> dict[str, pa.Array]:
    """The states of all watched columns, packed; `rows` have these columns."""
    words = np.zeros((len(packed_names()), rows.num_rows), np.int64)
    for column in watched():
        values = rows[column.name]
        if values.null_count < len(values):
            words[column.word] |= value_state(values, column.name).astype(np.int64) << column.shift
    return {name: pa.array(word) for name, word in zip(packed_names(), words, strict=True)}


def value_state(values: pa.ChunkedArray, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """NO_VALUE, USABLE or DUMMY for each value of the catalogue column `name`.

    Whether a value is a dummy is decided once for all rows that have it.
    """
    states = np.asarray(pc.is_valid(values).combine_chunks().to_numpy(zero_copy_only=False)).astype(np.uint8)
    dummies = _dummies().get(name)
    if dummies is not None and by_name()[name].kind in {"text", "date"} and len(values):
        encoded = values.combine_chunks().dictionary_encode()
        dummy = pc.is_in(_compared(encoded.dictionary), dummies)
        if pc.any(dummy).as_py():
            hit = pc.fill_null(dummy.take(encoded.indices), False).to_numpy(zero_copy_only=False)
            states[hit] = DUMMY
    return states


def _compared(values: pa.Array) -> pa.Array:
    """Dates as YYYY-MM-DD, texts in capitals with letters and digits alone."""
    if pa.types.is_date(values.type):
        return values.cast(pa.string())
    return pc.replace_substring_regex(pc.utf8_upper(values), r"[^\p{L}\p{N}]+", "")


@cache
def _dummies() -> Mapping[str, pa.Array]:
    text = files("dicom_etl.quality.tables").joinpath("dummies.json").read_text(encoding="utf-8")
    table = json.loads(text)
    return {tag: pa.array(table["sets"][name], pa.string()) for tag, name in table["tags"].items()}
