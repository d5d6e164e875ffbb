"""Header rows as the mapping sees them: columns, groups of rows, and values that a group agrees on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pyarrow as pa

from dicom_etl.findings import Finding, make_finding
from dicom_etl.headers.catalogue import columns_by_name
from dicom_etl.headers.tag_profile import tag_text
from dicom_etl.identity.masking import mask_value

Columns = dict[str, list[Any]]
_FEW = 4  # rows per different value, at least, for a column that says little


@dataclass(frozen=True)
class FindingCollector:
    """Where the findings of a mapping are: passed down and narrowed on the way."""

    dataset: str
    unit: str
    subject: str | None = None
    study_uid: str | None = None
    series_uid: str | None = None
    collected: list[Finding] = field(default_factory=list)

    def within(
        self, *, subject: str | None = None, study_uid: str | None = None, series_uid: str | None = None
    ) -> FindingCollector:
        """The same place, narrower; its findings go to the same list."""
        return FindingCollector(
            self.dataset,
            self.unit,
            self.subject if subject is None else subject,
            self.study_uid if study_uid is None else study_uid,
            self.series_uid if series_uid is None else series_uid,
            self.collected,
        )

    def add(self, code: str, column: str | None = None, value: Any = None, **more: Any) -> None:
        """Note a finding here; the value of a column is masked where it identifies."""
        tag, keyword = _tag_and_keyword(column)
        self.collected.append(
            make_finding(
                code,
                self.dataset,
                unit=self.unit,
                subject=self.subject,
                study_uid=self.study_uid,
                series_uid=self.series_uid,
                tag=tag,
                value=None if value is None else mask_value(keyword, str(value)),
                **more,
            )
        )


@cache
def _tag_and_keyword(column: str | None) -> tuple[str | None, str]:
    known = columns_by_name().get(column or "")
    return (tag_text(known.tag), known.keyword) if known else (None, "")


@dataclass(frozen=True, slots=True)
class HeaderRows:
    """Some rows of a header table: a study, a series.

    `empty` names columns that have no value in any row of the table.
    """

    columns: Columns
    rows: tuple[int, ...]
    empty: frozenset[str] = frozenset()

    @classmethod
    def from_table(cls, table: pa.Table, names: Iterable[str]) -> HeaderRows:
        """All rows of a table with the columns that the mapping needs."""
        columns = {name: table[name] for name in names}
        empty = frozenset(name for name, column in columns.items() if column.null_count == len(column))
        values = {name: _values(column) for name, column in columns.items()}
        return cls(values, tuple(range(table.num_rows)), empty)

    @classmethod
    def union(cls, groups: Sequence[HeaderRows]) -> HeaderRows:
        """The rows of several groups of one table, in the order of the table."""
        if len(groups) == 1:
            return groups[0]
        rows = sorted({row for group in groups for row in group.rows})
        return cls(groups[0].columns, tuple(rows), groups[0].empty)

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, rows: Iterable[int]) -> HeaderRows:
        """Some rows of the same table."""
        return HeaderRows(self.columns, tuple(rows), self.empty)

    def copy(self) -> HeaderRows:
        """The rows as a table of their own, so that a change of its columns costs no more than its rows."""
        if self.columns and len(self.rows) == len(next(iter(self.columns.values()))):
            return self
        return HeaderRows({name: self.values(name) for name in self.columns}, tuple(range(len(self.rows))), self.empty)

    def values(self, column: str) -> list[Any]:
        """The values of a column, row by row."""
        values = self.columns[column]
        return [values[row] for row in self.rows]

    def distinct(self, column: str) -> list[Any]:
        """The different values of a column, sorted, without nulls."""
        if len(self.rows) == 1:
            value = self.columns[column][self.rows[0]]
            return [] if value is None else [value]
        if column in self.empty:
            return []
        return sorted(set(self.values(column)) - {None})

    def indices_by(self, column: str) -> dict[Any, list[int]]:
        """The numbers of the rows by the value of a column."""
        indices: dict[Any, list[int]] = defaultdict(list)
        values = self.columns[column]
        for row in self.rows:
            indices[values[row]].append(row)
        return dict(indices)

    def group_by(self, column: str) -> dict[Any, HeaderRows]:
        """The rows by the value of a column, sorted by it; null last."""
        if len(self.rows) == 1:
            return {self.columns[column][self.rows[0]]: self}
        indices = self.indices_by(column)
        ordered = sorted(indices, key=lambda value: (value is None, value or ""))
        return {value: self.select(indices[value]) for value in ordered}

    def filter(self, keep: Callable[[int], bool]) -> HeaderRows:
        """The rows for which `keep` says so."""
        return self.select(row for row in self.rows if keep(row))

    def common_value(self, column: str, findings: FindingCollector) -> Any:
        """The one value that the rows have; None and a finding where they disagree."""
        if len(self.rows) == 1:
            return self.columns[column][self.rows[0]]
        found = self.distinct(column)
        if len(found) > 1:
            findings.add("values-conflict", column, message=f"{column} has {len(found)} different values")
            return None
        return found[0] if found else None

    def combinations(self, *columns: str) -> list[tuple[Any, ...]]:
        """The different combinations of values of columns that are not contained in a fuller one, sorted.

        (20240101, 1030, None) is contained in (20240101, 1030, +0100).
        """
        if len(self.rows) == 1:
            row = self.rows[0]
            return [tuple([self.columns[column][row] for column in columns])]
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
