"""Rows of headers -> columns.

Rows of one template share all but a few values: what they share becomes a repeat and is never touched row by row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import pyarrow as pa

from dicom_etl.headers.catalogue import catalogue
from dicom_etl.headers.row import Base, Row
from dicom_etl.headers.tag_profile import TagProfile
from dicom_etl.headers.values import Value

_WORTH_REPEATING = 32  # rows; fewer are cheaper one by one


@dataclass
class _Piece:
    """The rows of one base."""

    base: Base
    numbers: list[int] = field(default_factory=list)
    changed: list[tuple[Value, ...]] = field(default_factory=list)
    tag_profiles: list[int] = field(default_factory=list)

    def rows(self) -> list[list[Value]]:
        """All values, row by row."""
        found = []
        for changed in self.changed:
            values = list(self.base.values)
            for place, value in zip(self.base.varied, changed, strict=True):
                values[place] = value
            found.append(values)
        return found

    def block(self) -> _Block:
        """The rows column by column."""
        return _Block(self.base, len(self.numbers), list(zip(*self.changed, strict=True)))


class _Block(NamedTuple):
    """The rows of one base, column by column: those that vary, all others are constant."""

    base: Base
    length: int
    varied: list[tuple[Value, ...]]

    def column(self, place: int, kind: pa.DataType) -> pa.Array:
        """One column."""
        slot = self.base.slots.get(place)
        if slot is not None:
            return pa.array(self.varied[slot], kind)
        value = self.base.values[place]
        if value is None:
            return pa.nulls(self.length, kind)
        return pa.repeat(pa.scalar(value, kind), self.length)

    def is_null(self, place: int) -> bool:
        """Whether a column has no value in any row."""
        return self.base.values[place] is None and place not in self.base.slots


class Batch:
    """Rows as they come, each with a number of the caller's."""

    def __init__(self) -> None:
        self._pieces: dict[int, _Piece] = {}
        self._alone: list[tuple[int, Row]] = []  # rows that share nothing
        self._tag_profiles: dict[int, TagProfile] = {}

    def add(self, number: int, row: Row) -> None:
        """Take a row."""
        tag_profile = row.tag_profile.id
        if tag_profile not in self._tag_profiles:
            self._tag_profiles[tag_profile] = row.tag_profile
        if not row.changed:
            self._alone.append((number, row))
            return
        piece = self._pieces.get(id(row.base))
        if piece is None:  # the piece keeps its base alive, and so its id its own
            piece = self._pieces[id(row.base)] = _Piece(row.base)
        piece.numbers.append(number)
        piece.changed.append(row.changed)
        piece.tag_profiles.append(tag_profile)

    def columns(self) -> tuple[list[int], pa.Array, dict[str, pa.ChunkedArray]]:
        """The numbers of the rows in the order of the columns, their tag profiles, and the columns of the catalogue."""
        large = [piece for piece in self._pieces.values() if len(piece.numbers) >= _WORTH_REPEATING]
        small = [piece for piece in self._pieces.values() if len(piece.numbers) < _WORTH_REPEATING]
        ordered = [*large, *small]
        numbers = [number for piece in ordered for number in piece.numbers] + [number for number, _ in self._alone]
        tag_profiles = [tag_profile for piece in ordered for tag_profile in piece.tag_profiles] + [
            r.tag_profile.id for _, r in self._alone
        ]
        blocks = [piece.block() for piece in large]
        rows = [*(row for piece in small for row in piece.rows()), *(row.base.values for _, row in self._alone)]
        singles = list(zip(*rows, strict=True)) or [()] * len(catalogue())
        # a column of nulls takes longer to make than one of values, and of each type there are many alike
        nulls = {kind: pa.chunked_array([pa.nulls(len(numbers), kind)]) for kind in _kinds()}
        columns = {
            column.name: nulls[column.arrow_type]
            if _is_null(blocks, singles[place], place)
            else _column(blocks, singles[place], place, column.arrow_type, len(numbers))
            for place, column in enumerate(catalogue())
        }
        return numbers, pa.array(tag_profiles, pa.int64()), columns

    def tag_profiles(self) -> Iterable[TagProfile]:
        """The tag profiles of the rows."""
        return self._tag_profiles.values()


@cache
def _kinds() -> frozenset[pa.DataType]:
    """The types of the columns."""
    return frozenset(column.arrow_type for column in catalogue())


def _is_null(blocks: list[_Block], singles: Sequence[Value], place: int) -> bool:
    """Whether a column has no value at all."""
    return singles.count(None) == len(singles) and all(block.is_null(place) for block in blocks)


def _constant(blocks: list[_Block], singles: Sequence[Value], place: int) -> Value:
    """The value that a column has in all rows; None where it has several, or none at all."""
    value = blocks[0].base.values[place]
    if any(place in block.base.slots or block.base.values[place] != value for block in blocks):
        return None
    return value if singles.count(value) == len(singles) else None


def _column(
    blocks: list[_Block], singles: Sequence[Value], place: int, kind: pa.DataType, total: int
) -> pa.ChunkedArray:
    # -0.0 equals 0.0 and is another number
    exact = not (pa.types.is_floating(kind) or pa.types.is_list(kind))
    if blocks and exact and (value := _constant(blocks, singles, place)) is not None:
        return pa.chunked_array([pa.repeat(pa.scalar(value, kind), total)])
    chunks = [block.column(place, kind) for block in blocks]
    return pa.chunked_array([*chunks, pa.array(singles, kind)] if singles else chunks, kind)
