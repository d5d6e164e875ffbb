"""The inputs and outputs of a mapping rule: header rows with access to their common values, and a finding collector."""

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
_ROWS_PER_VALUE = 4  # at least, for a column whose distinct values are converted to Python once and shared


@dataclass(frozen=True)
class FindingCollector:
    """Collects findings of a unit, a study or a series; what it is for is part of each finding."""

    dataset: str
    unit: str
    subject: str | None = None
    study_uid: str | None = None
    series_uid: str | None = None
    collected: list[Finding] = field(default_factory=list)

    def within(
        self, *, subject: str | None = None, study_uid: str | None = None, series_uid: str | None = None
    ) -> FindingCollector:
        """A collector for a part of this one, with the same list of findings."""
        return FindingCollector(
            self.dataset,
            self.unit,
            self.subject if subject is None else subject,
            self.study_uid if study_uid is None else study_uid,
            self.series_uid if series_uid is None else series_uid,
            self.collected,
        )

    def add(self, code: str, column: str | None = None, value: Any = None, **fields: Any) -> None:
        """Add a finding; the value of a column that identifies a person is masked."""
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
                **fields,
            )
        )


@cache
def _tag_and_keyword(name: str | None) -> tuple[str | None, str]:
    column = columns_by_name().get(name or "")
    return (tag_text(column.tag), column.keyword) if column else (None, "")


@dataclass(frozen=True, slots=True)
class HeaderRows:
    """Rows of a header table: those of a unit, a study or a series.

    `columns` are those of the whole table; `rows` are the numbers of these rows in it. `empty` are the names of columns
    that have no value in any row of the table.
    """

    columns: Columns
    rows: tuple[int, ...]
    empty: frozenset[str] = frozenset()

    @classmethod
    def from_table(cls, table: pa.Table, names: Iterable[str]) -> HeaderRows:
        """All rows of a table, with the columns of these names."""
        columns = {name: table[name] for name in names}
        empty = frozenset(name for name, column in columns.items() if column.null_count == len(column))
        values = {name: _to_list(column) for name, column in columns.items()}
        return cls(values, tuple(range(table.num_rows)), empty)

    @classmethod
    def union(cls, parts: Sequence[HeaderRows]) -> HeaderRows:
        """The rows of several parts of one table, in the order of the table."""
        if len(parts) == 1:
            return parts[0]
        rows = sorted({row for part in parts for row in part.rows})
        return cls(parts[0].columns, tuple(rows), parts[0].empty)

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.rows)

    def select(self, rows: Iterable[int]) -> HeaderRows:
        """These rows of the same table."""
        return HeaderRows(self.columns, tuple(rows), self.empty)

    def copy(self) -> HeaderRows:
        """A table with only these rows, so that a change of its columns costs no more than its rows."""
        if self.columns and len(self.rows) == len(next(iter(self.columns.values()))):
            return self
        return HeaderRows({name: self.values(name) for name in self.columns}, tuple(range(len(self.rows))), self.empty)

    def values(self, column: str) -> list[Any]:
        """The values of a column, row by row."""
        values = self.columns[column]
        return [values[row] for row in self.rows]

    def distinct(self, column: str) -> list[Any]:
        """The distinct values of a column, sorted, without nulls."""
        if len(self.rows) == 1:
            value = self.columns[column][self.rows[0]]
            return [] if value is None else [value]
        if column in self.empty:
            return []
        return sorted(set(self.values(column)) - {None})

    def row_numbers_by(self, column: str) -> dict[Any, list[int]]:
        """The numbers of the rows by the value of a column."""
        numbers: dict[Any, list[int]] = defaultdict(list)
        values = self.columns[column]
        for row in self.rows:
            numbers[values[row]].append(row)
        return dict(numbers)

    def group_by(self, column: str) -> dict[Any, HeaderRows]:
        """The rows by the value of a column, sorted by it; null last."""
        if len(self.rows) == 1:
            return {self.columns[column][self.rows[0]]: self}
        numbers = self.row_numbers_by(column)
        ordered = sorted(numbers, key=lambda value: (value is None, value or ""))
        return {value: self.select(numbers[value]) for value in ordered}

    def filter(self, predicate: Callable[[int], bool]) -> HeaderRows:
        """The rows for whose number the predicate is true."""
        return self.select(row for row in self.rows if predicate(row))

    def common_value(self, column: str, findings: FindingCollector) -> Any:
        """The value of a column that the rows have in common, nulls ignored; None and a finding if they disagree."""
        if len(self.rows) == 1:
            return self.columns[column][self.rows[0]]
        values = self.distinct(column)
        if len(values) > 1:
            findings.add("values-conflict", column, message=f"{column} has {len(values)} different values")
            return None
        return values[0] if values else None

    def combinations(self, *columns: str) -> list[tuple[Any, ...]]:
        """The distinct combinations of values of these columns, sorted, without those that a fuller one contains.

        (20240101, 1030, None) is contained in (20240101, 1030, +0100).
        """
        if len(self.rows) == 1:
            row = self.rows[0]
            return [tuple([self.columns[column][row] for column in columns])]
        combinations = set(zip(*(self.values(column) for column in columns), strict=True))
        partial = {values for values in combinations if None in values}
        contained = {values for values in partial if _is_contained(values, combinations)}
        return sorted(combinations - contained, key=lambda values: [(value is None, str(value)) for value in values])


def _to_list(column: pa.ChunkedArray) -> list[Any]:
    """The values of a column as Python objects; if there are few distinct ones, each is created once and shared."""
    if column.null_count == len(column):
        return [None] * len(column)
    # lists cannot be hashed
    if pa.types.is_list(column.type):
        return list(column.to_pylist())
    encoded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    if len(encoded.dictionary) * _ROWS_PER_VALUE > len(column):
        return list(column.to_pylist())
    values = encoded.dictionary.to_pylist()
    return [values[index] for index in encoded.indices.to_pylist()]


def _is_contained(values: tuple[Any, ...], combinations: set[tuple[Any, ...]]) -> bool:
    return any(
        values != other and all(value in (None, full) for value, full in zip(values, other, strict=True))
        for other in combinations
    )
