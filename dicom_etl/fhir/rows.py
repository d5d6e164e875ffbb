"""Header rows as the mapping sees them: columns, groups of rows, and values that a group agrees on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from dicom_etl.findings import Finding, finding
from dicom_etl.headers.catalogue import by_name
from dicom_etl.headers.tag_profile import tag_text
from dicom_etl.identity.masking import shown

Columns = dict[str, list[Any]]
_FEW = 4  # rows per different value, at least, for a column that says little


@dataclass(frozen=True)
class Place:
    """Where the findings of a mapping are: passed down and narrowed on the way."""

    dataset: str
    unit: str
    subject: str | None = None
    study_uid: str | None = None
    series_uid: str | None = None
    found: list[Finding] = field(default_factory=list)

    def within(self, **narrower: str) -> Place:
        """The same place, narrower; its findings go to the same list."""
        return replace(self, **narrower)  # type: ignore[arg-type]  # findings are no str

    def add(self, code: str, column: str | None = None, value: Any = None, **more: Any) -> None:
        """Note a finding here; the value of a column is masked where it identifies."""
        known = by_name().get(column or "")
        self.found.append(
            finding(
                code,
                self.dataset,
                unit=self.unit,
                subject=self.subject,
                study_uid=self.study_uid,
                series_uid=self.series_uid,
                tag=tag_text(known.tag) if known else None,
                value=None if value is None else shown(known.keyword if known else "", str(value)),
                **more,
            )
        )


@dataclass(frozen=True)
class Group:
    """Some rows of a header table: a study, a series."""

    columns: Columns
    rows: tuple[int, ...]

    @classmethod
    def of(cls, table: pa.Table, names: Iterable[str]) -> Group:
        """All rows of a table with the columns that the mapping needs."""
        return cls({name: _values(table[name]) for name in names}, tuple(range(table.num_rows)))

    def __len__(self) -> int:
        return len(self.rows)

    def values(self, column: str) -> list[Any]:
        """The values of a column, row by row."""
        values = self.columns[column]
        return [values[row] for row in self.rows]

    def distinct(self, column: str) -> list[Any]:
        """The different values of a column, sorted, without nulls."""
        return sorted(set(self.values(column)) - {None})

    def by(self, column: str) -> dict[Any, Group]:
        """The rows by the value of a column, sorted by it; null last."""
        groups: dict[Any, list[int]] = defaultdict(list)
        values = self.columns[column]
        for row in self.rows:
            groups[values[row]].append(row)
        ordered = sorted(groups, key=lambda value: (value is None, value or ""))
        return {value: Group(self.columns, tuple(groups[value])) for value in ordered}

    def where(self, keep: Callable[[int], bool]) -> Group:
        """The rows for which `keep` says so."""
        return Group(self.columns, tuple(row for row in self.rows if keep(row)))

    def agreed(self, column: str, place: Place) -> Any:
        """The one value that the rows have; None and a finding where they disagree."""
        found = self.distinct(column)
        if len(found) > 1:
            place.add("values-disagree", column, message=f"{column} has {len(found)} different values")
            return None
        return found[0] if found else None

    def combination(self, *columns: str) -> list[tuple[Any, ...]]:
        """The different combinations of values of columns that are not contained in a fuller one, sorted.

        (20240101, 1030, None) is contained in (20240101, 1030, +0100).
        """
        found = set(zip(*(self.values(column) for column in columns), strict=True))
        partial = {parts for parts in found if None in parts}
        fullest = (found - partial) | {parts for parts in partial if not _contained(parts, found)}
        return sorted(fullest, key=lambda parts: [(part is None, str(part)) for part in parts])


def _values(column: pa.ChunkedArray) -> list[Any]:
    """The values of a column as Python objects; of one that says little, each made once and not once per row."""
    if column.null_count == len(column):
        return [None] * len(column)
    # not for lists: they cannot be told apart by hashing
    if pa.types.is_list(column.type):
        return list(column.to_pylist())
    coded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    if isinstance(coded, pa.ChunkedArray):
        coded = coded.combine_chunks()
    if len(coded.dictionary) * _FEW > len(column):
        return list(column.to_pylist())
    values = coded.dictionary.to_pylist()
    return [values[index] for index in coded.indices.to_pylist()]


def _contained(parts: tuple[Any, ...], found: set[tuple[Any, ...]]) -> bool:
    return any(parts != other and all(a in (None, b) for a, b in zip(parts, other, strict=True)) for other in found)
