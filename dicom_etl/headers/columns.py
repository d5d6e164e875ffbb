"""Header rows -> columns.

Rows with the same shared values differ in a few columns: all others are repeated without being touched row by row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import pyarrow as pa

from dicom_etl.headers.catalogue import catalogue
from dicom_etl.headers.row import Row, SharedValues
from dicom_etl.headers.tag_profile import TagProfile
from dicom_etl.headers.values import Value

_REPEATED_ROWS = 32  # with the same shared values; fewer are faster one by one


class ColumnTable(NamedTuple):
    """Header rows by column."""

    numbers: list[int]  # of the rows, in the order of all columns
    tag_profiles: pa.Array  # ids
    columns: dict[str, pa.ChunkedArray]  # those of the catalogue, by name


@dataclass
class _Group:
    """The rows with the same shared values."""

    shared: SharedValues
    numbers: list[int] = field(default_factory=list)
    own: list[tuple[Value, ...]] = field(default_factory=list)
    tag_profiles: list[int] = field(default_factory=list)

    def rows(self) -> Iterable[list[Value]]:
        """All values, row by row."""
        for own in self.own:
            values = list(self.shared.values)
            for index, value in zip(self.shared.varying, own, strict=True):
                values[index] = value
            yield values

    def block(self) -> _Block:
        """The rows column by column."""
        return _Block(self.shared, len(self.numbers), list(zip(*self.own, strict=True)))


class _Block(NamedTuple):
    """The rows of a group column by column: varying columns, and constant ones."""

    shared: SharedValues
    length: int
    varying: list[tuple[Value, ...]]

    def column(self, index: int, arrow_type: pa.DataType) -> pa.Array:
        """The column with this index in the catalogue."""
        position = self.shared.position.get(index)
        if position is not None:
            return pa.array(self.varying[position], arrow_type)
        value = self.shared.values[index]
        if value is None:
            return pa.nulls(self.length, arrow_type)
        return pa.repeat(pa.scalar(value, arrow_type), self.length)

    def is_null(self, index: int) -> bool:
        """Whether a column has no value in any row."""
        return self.shared.values[index] is None and index not in self.shared.position


class HeaderColumns:
    """Collects header rows, each with a number, and turns them into columns."""

    def __init__(self) -> None:
        self._groups: dict[int, _Group] = {}
        self._single_rows: list[tuple[int, Row]] = []  # those that share no values
        self._tag_profiles: dict[int, TagProfile] = {}

    def add(self, number: int, row: Row) -> None:
        """Add a row; the number need not be unique."""
        tag_profile = row.tag_profile.id
        if tag_profile not in self._tag_profiles:
            self._tag_profiles[tag_profile] = row.tag_profile
        if not row.own:
            self._single_rows.append((number, row))
            return
        group = self._groups.get(id(row.shared))
        if group is None:  # the group keeps the shared values alive, so that no other object has their id
            group = self._groups[id(row.shared)] = _Group(row.shared)
        group.numbers.append(number)
        group.own.append(row.own)
        group.tag_profiles.append(tag_profile)

    def to_columns(self) -> ColumnTable:
        """The columns of all rows that were added so far."""
        large = [group for group in self._groups.values() if len(group.numbers) >= _REPEATED_ROWS]
        small = [group for group in self._groups.values() if len(group.numbers) < _REPEATED_ROWS]
        numbers, tag_profiles = list[int](), list[int]()
        for group in (*large, *small):
            numbers += group.numbers
            tag_profiles += group.tag_profiles
        numbers += [number for number, _ in self._single_rows]
        tag_profiles += [row.tag_profile.id for _, row in self._single_rows]
        blocks = [group.block() for group in large]
        rows = [*(row for group in small for row in group.rows()), *(row.shared.values for _, row in self._single_rows)]
        singles = list(zip(*rows, strict=True)) or [()] * len(catalogue())
        # a column of nulls takes longer to create than one of values, and there are many equal ones of each type
        nulls = {arrow_type: pa.chunked_array([pa.nulls(len(numbers), arrow_type)]) for arrow_type in _arrow_types()}
        columns = {
            column.name: nulls[column.arrow_type]
            if _is_null(blocks, singles[index], index)
            else _make_column(blocks, singles[index], index, column.arrow_type, len(numbers))
            for index, column in enumerate(catalogue())
        }
        return ColumnTable(numbers, pa.array(tag_profiles, pa.int64()), columns)

    def tag_profiles(self) -> Iterable[TagProfile]:
        """The tag profiles of the rows, each once."""
        return self._tag_profiles.values()


@cache
def _arrow_types() -> frozenset[pa.DataType]:
    return frozenset(column.arrow_type for column in catalogue())


def _is_null(blocks: list[_Block], singles: Sequence[Value], index: int) -> bool:
    """Whether a column has no value in any row."""
    return singles.count(None) == len(singles) and all(block.is_null(index) for block in blocks)


def _constant(blocks: list[_Block], singles: Sequence[Value], index: int) -> Value:
    """The value that a column has in all rows; None if it has several."""
    value = blocks[0].shared.values[index]
    if any(index in block.shared.position or block.shared.values[index] != value for block in blocks):
        return None
    return value if singles.count(value) == len(singles) else None


def _make_column(
    blocks: list[_Block], singles: Sequence[Value], index: int, arrow_type: pa.DataType, total: int
) -> pa.ChunkedArray:
    # -0.0 equals 0.0 and is another number
    is_exact = not (pa.types.is_floating(arrow_type) or pa.types.is_list(arrow_type))
    if blocks and is_exact and (value := _constant(blocks, singles, index)) is not None:
        return pa.chunked_array([pa.repeat(pa.scalar(value, arrow_type), total)])
    arrays = [block.column(index, arrow_type) for block in blocks]
    return pa.chunked_array([*arrays, pa.array(singles, arrow_type)] if singles else arrays, arrow_type)
