"""What reading a header gives: a row, or the reason why there is none.

A row consists of values that it shares with other rows and of values of its own, so that the values of a series are
stored once, and become columns without being touched row by row (`columns`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from dicom_etl.headers.catalogue import Column
from dicom_etl.headers.tag_profile import TagProfile
from dicom_etl.headers.values import Problem, Value


class NoRowError(Exception):
    """A file that gives no row: its kind (dicomdir, other, unreadable), the code of a finding, details."""

    def __init__(self, kind: str, code: str, message: str | None = None) -> None:
        super().__init__(message or code)
        self.kind, self.code, self.message = kind, code, message


class ColumnProblem(NamedTuple):
    """A value that its column cannot hold as it is in the file."""

    column: Column
    problem: Problem


@dataclass(eq=False)  # frozen ones take three times as long to create
class SharedValues:
    """Values that several rows share, and which columns have values of their own in each of the rows."""

    values: tuple[Value, ...]  # in the order of the catalogue; those of the varying columns belong to one of the rows
    varying: tuple[int, ...]  # indices of columns in the catalogue
    tag_profile: TagProfile

    @cached_property
    def position(self) -> dict[int, int]:
        """The position of each column among the varying ones, by index in the catalogue."""
        return {index: position for position, index in enumerate(self.varying)}


class Row(NamedTuple):
    """A header row."""

    shared: SharedValues
    own: tuple[Value, ...]  # of the varying columns
    tag_profile: TagProfile
    problems: tuple[ColumnProblem, ...]
    pixel_data_truncated: bool
    pixel_data_absent: bool  # of an image: the file has a header only, or ends between two elements

    def values(self) -> tuple[Value, ...]:
        """All values, in the order of the catalogue."""
        values = list(self.shared.values)
        for index, value in zip(self.shared.varying, self.own, strict=True):
            values[index] = value
        return tuple(values)

    def value(self, index: int) -> Value:
        """The value of the column with this index in the catalogue."""
        shared = self.shared
        position = shared.position.get(index) if shared.varying else None
        return shared.values[index] if position is None else self.own[position]
