"""Pieces of a build: some units whose resources a worker makes at once.

What a chunk gave waits in a hidden folder of the lake until its shard is written: NDJSON, findings, and the elements
that the resources have. A chunk that is there already is not made again: its name is a digest of all that it is made
from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.construction.unit_resources import COLUMNS, UnitInputs, UnitResources, make_resources
from dicom_etl.fhir.context import SUBJECT_FIELDS, Context, samples_of
from dicom_etl.fhir.corrections import Correction
from dicom_etl.findings import describe_error, tabulate_findings
from dicom_etl.identity.matching import PatientMatch
from dicom_etl.identity.name_encoding import encode_name
from dicom_etl.lake.commits import hash_lines
from dicom_etl.lake.fingerprints import compute_fingerprint
from dicom_etl.lake.schemas import FHIR_ELEMENTS, UNIT_RESOURCE_TYPES, header_table
from dicom_etl.lake.tables import Lake

CHUNK_ROWS = 2_500
PERSON_COLUMNS = list(PatientMatch.__dataclass_fields__)


class Source(NamedTuple):
    """Units whose rows a chunk needs, and the shard of header tables in which they are."""

    shard: int
    units: tuple[str, ...]  # sorted


class ChunkInputs(NamedTuple):
    """What the resources of some units are made from beside header rows, as tables: they travel and wait as such."""

    units: tuple[str, ...]  # sorted
    context: Context  # of the dataset
    identities: pa.Table  # of IDENTITIES, the rows of these units
    cells: pa.Table  # of SHEETS, what is mapped of their subjects
    corrections: Mapping[str, tuple[Correction, ...]]  # by unit

    def plans(self) -> list[UnitInputs]:
        """The plan of each unit."""
        persons: dict[str, list[PatientMatch]] = defaultdict(list)
        for row in self.identities.select(PERSON_COLUMNS).to_pylist():
            persons[row["unit"]].append(PatientMatch(**row))
        cells: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for cell in self.cells.to_pylist():
            cells[cell["subject"]].append(cell)
        return [self._plan(unit, tuple(persons[unit]), cells) for unit in self.units]

    def _plan(
        self, unit: str, persons: tuple[PatientMatch, ...], cells: Mapping[str, list[dict[str, Any]]]
    ) -> UnitInputs:
        subjects = sorted({person.subject for person in persons if person.subject}) if cells else []
        rows = [cell for subject in subjects for cell in cells.get(subject, ())]
        context = replace(self.context, **_sheets_of(rows)) if rows else self.context
        return UnitInputs(unit, persons, context, self.corrections.get(unit, ()))


def _sheets_of(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The fields of a context: what the sheets say of the subject of a unit and of its samples."""
    subject = {c["field"]: c["value"] for c in cells if c["sheet"] == "subjects" and c["field"] in SUBJECT_FIELDS}
    samples: dict[str, dict[str, str]] = defaultdict(dict)
    for (_, sample), values in samples_of(cells).items():
        if sample:
            samples[sample] |= values
    return {"subject_sheet": subject, "sample_sheets": dict(samples)}


class Chunk(NamedTuple):
    """Units to be built together; travels to a worker."""

    lake: Lake
    dataset: str
    inputs: ChunkInputs
    sources: tuple[Source, ...]
    rows: int
    key: str

    def path(self, kind: str) -> str:
        """The path of what it gave of a kind."""
        return chunk_path(self.dataset, self.key, kind)


class UnitLines(NamedTuple):
    """Where the lines of a unit are in a file of NDJSON, and how many."""

    offset: int
    length: int
    lines: int
    digest: str


class BuiltChunk(NamedTuple):
    """What became of a chunk: by unit where its lines are in the files of the chunk, and the errors of others."""

    lines: dict[str, dict[str, UnitLines]]
    errors: dict[str, str]


def chunks_folder(dataset: str) -> str:
    """The folder of the chunks of a dataset."""
    return f".chunks/build/{encode_name(dataset)}"


def chunk_path(dataset: str, key: str, kind: str) -> str:
    """The path of what a chunk gave: `Patient`, `ImagingStudy`, `findings`, `elements`, or `done`."""
    return f"{chunks_folder(dataset)}/{key}.{kind}"


def cut_units(units: Iterable[tuple[str, int]]) -> Iterator[list[str]]:
    """Batches of units, given with their rows, of at most `CHUNK_ROWS` rows, or one unit."""
    batch: list[str] = []
    weight = 0
    for unit, rows in units:
        if batch and weight + rows > CHUNK_ROWS:
            yield batch
            batch, weight = [], 0
        batch.append(unit)
        weight += rows
    if batch:
        yield batch


def build_chunk(chunk: Chunk) -> BuiltChunk:
    """Make the resources of the units of a chunk, and put them aside."""
    lake = chunk.lake
    if (marker := lake.read_bytes(chunk.path("done"))) is not None:
        sizes, lines = orjson.loads(marker)
        if sizes == {kind: lake.get_size(chunk.path(kind)) for kind in sizes}:
            return BuiltChunk({unit: {k: UnitLines(*v) for k, v in kinds.items()} for unit, kinds in lines.items()}, {})
    plans = chunk.inputs.plans()
    made = [*make_resources(plans, _rows(chunk, plans))]
    whole = [unit for unit in made if unit.error is None]
    lines = _lines(whole)
    contents = {kind: b"".join(unit.lines.get(kind, b"") for unit in whole) for kind in UNIT_RESOURCE_TYPES}
    for kind, content in contents.items():
        lake.write_unsynced(chunk.path(kind), content)
    tables = {
        "findings": tabulate_findings(found for unit in whole for found in unit.findings),
        "elements": _elements(chunk.dataset, whole),
    }
    sizes = {kind: len(content) for kind, content in contents.items()}
    sizes |= {kind: lake.write_arrow(chunk.path(kind), table) for kind, table in tables.items()}
    errors = {unit.unit: describe_error(unit.error) for unit in made if unit.error is not None}
    if not errors:
        plain = {unit: {kind: list(where) for kind, where in kinds.items()} for unit, kinds in lines.items()}
        lake.write_unsynced(chunk.path("done"), orjson.dumps([sizes, plain]))
    return BuiltChunk(lines, errors)


def _rows(chunk: Chunk, plans: Iterable[UnitInputs]) -> pa.Table:
    """The header rows of the studies that the units of a chunk build."""
    studies = pa.array(
        [p.study_uid for plan in plans for p in plan.persons if p.building_unit == plan.unit], pa.string()
    )
    wanted = list(dict.fromkeys(["unit", *COLUMNS, "duplicate"]))
    tables = [header_table().schema.empty_table().select(wanted)]
    for shard, units in chunk.sources:
        ranges = {"unit": (units[0], units[-1])}
        rows = chunk.lake.read_between(header_table(), ranges, wanted, dataset=chunk.dataset, shard=shard)
        own = pc.and_(pc.is_in(rows["unit"], pa.array(units)), pc.is_null(rows["duplicate"]))
        tables.append(rows.filter(pc.and_(own, pc.is_in(rows["StudyInstanceUID"], studies))))
    return pa.concat_tables(tables).combine_chunks()


def _lines(units: Sequence[UnitResources]) -> dict[str, dict[str, UnitLines]]:
    found: dict[str, dict[str, UnitLines]] = {}
    offsets = dict.fromkeys(UNIT_RESOURCE_TYPES, 0)
    for unit in units:
        found[unit.unit] = {}
        for kind in UNIT_RESOURCE_TYPES:
            content = unit.lines.get(kind, b"")
            count = unit.counts.get(kind, 0)
            found[unit.unit][kind] = UnitLines(offsets[kind], len(content), count, hash_lines(content))
            offsets[kind] += len(content)
    return found


def _elements(dataset: str, units: Sequence[UnitResources]) -> pa.Table:
    rows: list[dict[str, Any]] = [
        {**row, "dataset": dataset, "unit": unit.unit} for unit in units for row in unit.elements
    ]
    columns = [pa.array([row.get(field.name) for row in rows], field.type) for field in FHIR_ELEMENTS.schema]
    return pa.table(columns, schema=FHIR_ELEMENTS.schema)


def chunk_key(fingerprints: Iterable[str]) -> str:
    """The name of a chunk."""
    return compute_fingerprint(list(fingerprints))
