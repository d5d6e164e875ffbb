"""The row of a header: the values that it shares with others, and its own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from dicom_etl.headers.reader import ColumnProblem
from dicom_etl.headers.tag_profile import TagProfile
from dicom_etl.headers.values import Value


@dataclass(eq=False)  # frozen ones take three times as long to make
class Base:
    """What the rows of a template share: the values of its own file, and which columns vary."""

    values: tuple[Value, ...]
    varied: tuple[int, ...]  # places in the catalogue
    tag_profile: TagProfile

    @cached_property
    def slots(self) -> dict[int, int]:
        """Where among the varying columns each of them stands."""
        return {place: slot for slot, place in enumerate(self.varied)}


class Row(NamedTuple):
    """A header as a base and the values of its varying columns."""

    base: Base
    changed: tuple[Value, ...]
    tag_profile: TagProfile
    problems: tuple[ColumnProblem, ...]
    pixel_data_cut: bool
    pixel_data_absent: bool

    def values(self) -> tuple[Value, ...]:
        """All values, in the order of the catalogue."""
        values = list(self.base.values)
        for place, value in zip(self.base.varied, self.changed, strict=True):
            values[place] = value
        return tuple(values)

    def value(self, place: int) -> Value:
        """The value of one column."""
        base = self.base
        slot = base.slots.get(place) if base.varied else None
        return base.values[place] if slot is None else self.changed[slot]
