"""Whether the values of the header table are usable: no value, a usable one, or a placeholder, by column.

Placeholders are data (`tables/placeholders.json`) and belong to a tag: ANONYMOUS is not a usable PatientName, but NONE
is a valid FilterType. The states of all columns of a row are packed into a few integers, two bits each, so that rows
with equal states are found by comparing integers.

Not here: whether the element is present at all (tag profiles), and whether it is required (`requirements`).
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

from dicom_etl.headers.catalogue import catalogue, columns_by_name
from dicom_etl.headers.tag_profile import tag_text

__all__ = [
    "NO_VALUE",
    "PLACEHOLDER",
    "USABLE",
    "ValueColumn",
    "find_value_states",
    "pack_states",
    "packed_columns",
    "value_columns",
]

NO_VALUE, USABLE, PLACEHOLDER = 0, 1, 2

_BITS, _STATES_PER_WORD = 2, 31  # 62 bits, so that the integers are never negative
_FILE_META_GROUP = 0x0002
_FUNCTIONAL_GROUPS = 0x52009229  # SharedFunctionalGroupsSequence


@dataclass(frozen=True, slots=True)
class ValueColumn:
    """A column whose values decide the state of a top-level tag, and the bits in which its state is packed."""

    name: str
    tag: str  # GGGGEEEE
    is_whole_value: bool  # the column is the value of the tag itself, not of an element inside its sequence
    word: int
    shift: int


@cache
def value_columns() -> tuple[ValueColumn, ...]:
    """The columns with the value of a top-level tag, and those whose value may be in functional groups instead.

    File meta elements are not part of the data set and not in tag profiles: they are omitted.
    """
    columns = [
        column
        for column in catalogue()
        if column.tag >> 16 != _FILE_META_GROUP
        and (len(column.path) == 1 or column.alternative_path[:1] == (_FUNCTIONAL_GROUPS,))
    ]
    return tuple(
        ValueColumn(c.name, tag_text(c.tag), len(c.path) == 1, n // _STATES_PER_WORD, n % _STATES_PER_WORD * _BITS)
        for n, c in enumerate(columns)
    )


def packed_columns() -> tuple[str, ...]:
    """The names of the columns of packed states."""
    return tuple(f"values{n}" for n in range(value_columns()[-1].word + 1))


def pack_states(rows: pa.Table) -> dict[str, pa.Array]:
    """The packed states of header rows, which have the columns of `value_columns`."""
    words = np.zeros((len(packed_columns()), rows.num_rows), np.int64)
    for column in value_columns():
        values = rows[column.name]
        if values.null_count < len(values):
            words[column.word] |= find_value_states(values, column.name).astype(np.int64) << column.shift
    return {name: pa.array(word) for name, word in zip(packed_columns(), words, strict=True)}


def find_value_states(values: pa.ChunkedArray, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """NO_VALUE, USABLE or PLACEHOLDER for each value of the catalogue column `name`.

    Each different value is compared with the placeholders once, however many rows have it.
    """
    states = np.asarray(pc.is_valid(values).combine_chunks().to_numpy(zero_copy_only=False)).astype(np.uint8)
    placeholders = _load_placeholders().get(name)
    if placeholders is not None and columns_by_name()[name].kind in {"text", "date"} and len(values):
        encoded = values.combine_chunks().dictionary_encode()
        is_placeholder = pc.is_in(_normalize(encoded.dictionary), placeholders)
        if pc.any(is_placeholder).as_py():
            states[pc.fill_null(is_placeholder.take(encoded.indices), False).to_numpy(zero_copy_only=False)] = (
                PLACEHOLDER
            )
    return states


def _normalize(values: pa.Array) -> pa.Array:
    """Dates as YYYY-MM-DD, texts in capitals with only their letters and digits."""
    if pa.types.is_date(values.type):
        return values.cast(pa.string())
    return pc.replace_substring_regex(pc.utf8_upper(values), r"[^\p{L}\p{N}]+", "")


@cache
def _load_placeholders() -> Mapping[str, pa.Array]:
    text = files("dicom_etl.quality.tables").joinpath("placeholders.json").read_text(encoding="utf-8")
    document = json.loads(text)
    return {tag: pa.array(document["sets"][name], pa.string()) for tag, name in document["tags"].items()}
