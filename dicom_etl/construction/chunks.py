"""Chunks: the units whose resources a worker builds at once.

The result of a chunk is stored in a hidden folder of the lake until its shard is written: resources as NDJSON,
findings, and the rows of `fhir_elements`. The name of a chunk is a digest of all of its inputs, so a run that follows a
killed one does not build the same chunk again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import pyarrow as pa

from dicom_etl.construction.identities import MATCH_COLUMNS
from dicom_etl.construction.unit_resources import UnitInputs
from dicom_etl.fhir.context import SUBJECT_FIELDS, Context, group_sample_cells
from dicom_etl.fhir.corrections import Correction
from dicom_etl.identity.matching import PatientMatch
from dicom_etl.identity.name_encoding import encode_name
from dicom_etl.lake.tables import Lake

CHUNK_ROWS = 2_500  # header rows of several units, at most
COMPLETE_MARKER = "done"  # suffix of the file that is written when all others of a result are complete


class ShardUnits(NamedTuple):
    """Units whose header rows a chunk reads, and the shard with these rows."""

    shard: int
    units: tuple[str, ...]  # sorted


class ChunkInputs(NamedTuple):
    """The inputs of some units without header rows, as tables: this is how they are sent to a worker."""

    units: tuple[str, ...]  # sorted
    context: Context  # of the dataset
    identities: pa.Table  # of IDENTITIES, the rows of these units
    cells: pa.Table  # of SHEETS, the mapped cells of their subjects
    corrections: Mapping[str, tuple[Correction, ...]]  # by unit

    def split_by_unit(self) -> list[UnitInputs]:
        """The inputs of each unit."""
        matches: dict[str, list[PatientMatch]] = defaultdict(list)
        for row in self.identities.select(MATCH_COLUMNS).to_pylist():
            matches[row["unit"]].append(PatientMatch(**row))
        cells: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for cell in self.cells.to_pylist():
            cells[cell["subject"]].append(cell)
        return [self._of_unit(unit, tuple(matches[unit]), cells) for unit in self.units]

    def _of_unit(
        self, unit: str, matches: tuple[PatientMatch, ...], cells: Mapping[str, list[dict[str, Any]]]
    ) -> UnitInputs:
        subjects = sorted({match.subject for match in matches if match.subject}) if cells else []
        unit_cells = [cell for subject in subjects for cell in cells.get(subject, ())]
        context = replace(self.context, **_sheets_of_unit(unit_cells)) if unit_cells else self.context
        return UnitInputs(unit, matches, context, self.corrections.get(unit, ()))


def _sheets_of_unit(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The sheets of a unit's subject and samples, as fields of `Context`."""
    subject = {c["field"]: c["value"] for c in cells if c["sheet"] == "subjects" and c["field"] in SUBJECT_FIELDS}
    samples: dict[str, dict[str, str]] = defaultdict(dict)
    for (_, sample), values in group_sample_cells(cells).items():
        if sample:
            samples[sample] |= values
    return {"subject_sheet": subject, "sample_sheets": dict(samples)}


class Chunk(NamedTuple):
    """Units to be built together; sent to a worker."""

    lake: Lake
    dataset: str
    inputs: ChunkInputs
    sources: tuple[ShardUnits, ...]  # of the header rows
    row_count: int  # of header rows
    key: str

    def path(self, suffix: str) -> str:
        """The path of a file of its result; see `chunk_path`."""
        return chunk_path(self.dataset, self.key, suffix)


class UnitLines(NamedTuple):
    """Where the resources of a unit are in an NDJSON file, in bytes, and how many there are."""

    offset: int
    length: int
    lines: int
    digest: str


class BuiltChunk(NamedTuple):
    """The result of a chunk, as it is returned to the main process."""

    lines: dict[str, dict[str, UnitLines]]  # by unit and resource type: where they are in the files of the chunk
    errors: dict[str, str]  # of the units that failed


def chunks_folder(dataset: str) -> str:
    """The hidden folder of the chunks of a dataset."""
    return f".chunks/build/{encode_name(dataset)}"


def chunk_path(dataset: str, key: str, suffix: str) -> str:
    """The path of a file of a chunk's result.

    `suffix` is a resource type, `findings`, `elements`, or `COMPLETE_MARKER`.
    """
    return f"{chunks_folder(dataset)}/{key}.{suffix}"


def group_units(units: Iterable[tuple[str, int]]) -> Iterator[list[str]]:
    """Group units, given with their numbers of header rows: at most `CHUNK_ROWS` rows in a group, or one unit."""
    group: list[str] = []
    group_rows = 0
    for unit, rows in units:
        if group and group_rows + rows > CHUNK_ROWS:
            yield group
            group, group_rows = [], 0
        group.append(unit)
        group_rows += rows
    if group:
        yield group
