"""The catalogue: the DICOM attributes that are columns of the header table.

`catalogue.csv` has one line for each column: its name, its level (patient, study, series, instance), its path (keywords
of PS3.6; in sequences always the first item), an alternative path where enhanced objects keep the same value, and what
it is used for. Tag, VR and column type follow from pydicom's data dictionary. The Arrow schema, the readers, the inputs
of the FHIR mapping and the table in the docs are made from it.

Not here: the tags whose values findings and reports mask (`identity.masking.IDENTIFYING_KEYWORDS`; a new tag with an
identifying value belongs there, too), and the placeholder values of tags (`quality/tables/placeholders.json`).
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

import pyarrow as pa
from pydicom.datadict import dictionary_VM, dictionary_VR, tag_for_keyword

Level = Literal["patient", "study", "series", "instance"]
Kind = Literal["text", "date", "integer", "number", "numbers"]

# Times (TM), date times (DT) and ages stay text: HHMM is a legal partial time and :60 a legal leap second, which no
# Arrow time can represent.
_INTEGER = frozenset("IS US UL SS SL".split())
_NUMBER = frozenset("DS FL FD".split())
_ARROW: dict[str, pa.DataType] = {
    "text": pa.string(),
    "date": pa.date32(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "numbers": pa.list_(pa.float64()),
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the header table, and the path of its value in a header."""

    name: str
    level: Level
    path: tuple[int, ...]  # tags from the top-level data set inwards
    alternative_path: tuple[int, ...]  # used if there is no value under `path`; () if there is none
    keyword: str  # of the innermost tag
    vr: str
    kind: Kind
    used_for: str

    @property
    def tag(self) -> int:
        """The top-level tag of its path."""
        return self.path[0]

    @property
    def arrow_type(self) -> pa.DataType:
        """The type of the column in the header table."""
        return _ARROW[self.kind]


@cache
def catalogue() -> tuple[Column, ...]:
    """All columns, in the order of `catalogue.csv`."""
    text = resources.files(__package__).joinpath("catalogue.csv").read_text(encoding="utf-8")
    return tuple(_column(line) for line in csv.DictReader(text.splitlines()))


@cache
def columns_by_name() -> dict[str, Column]:
    """All columns by name."""
    return {column.name: column for column in catalogue()}


@cache
def column_index(name: str) -> int:
    """The index of a column in `catalogue()`, and so in the values of a header row."""
    return [column.name for column in catalogue()].index(name)


def _column(line: dict[str, str]) -> Column:
    path = _tags(line["path"])
    vr = dictionary_VR(path[-1])[:2]
    level: Level = line["level"]  # type: ignore[assignment]  # a test checks that the file has these four words only
    return Column(
        name=line["column"],
        level=level,
        path=path,
        alternative_path=_tags(line["alternative_path"]),
        keyword=line["path"].rsplit(".", 1)[-1],
        vr=vr,
        kind=_kind(vr, path[-1]),
        used_for=line["used_for"],
    )


def _tags(path: str) -> tuple[int, ...]:
    tags = tuple(tag_for_keyword(keyword) for keyword in path.split(".") if keyword)
    if None in tags:
        raise ValueError(f"catalogue.csv: {path} has a keyword that is not in PS3.6")
    return tags  # type: ignore[return-value]


def _kind(vr: str, tag: int) -> Kind:
    if vr == "DA":
        return "date"
    single = dictionary_VM(tag) == "1"
    if vr in _INTEGER and single:
        return "integer"
    if vr in _NUMBER | _INTEGER:
        return "number" if single else "numbers"
    return "text"
