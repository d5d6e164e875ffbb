"""Pieces of a build: some units whose resources a worker makes at once.

What a piece gave waits in a hidden folder of the lake until its shard is written: NDJSON, findings, and the elements
that the resources have. A piece that is there already is not made again: its name is a digest of all that it is made
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

from dicom_etl.construction.resources import COLUMNS, UnitPlan, UnitResources, make_resources
from dicom_etl.fhir.context import SUBJECT_FIELDS, Context, samples_of
from dicom_etl.fhir.corrections import Correction
from dicom_etl.findings import describe_error, findings_table
from dicom_etl.identity.matching import PatientMatch
from dicom_etl.identity.name_encoding import encode_name
from dicom_etl.lake.commits import digest_of
from dicom_etl.lake.fingerprints import fingerprint
from dicom_etl.lake.schemas import FHIR_ELEMENTS, STORED_BY_UNIT, headers
from dicom_etl.lake.tables import Lake

PIECE_ROWS = 2_500
PERSON_COLUMNS = list(PatientMatch.__dataclass_fields__)


class Source(NamedTuple):
    """Units whose rows a piece needs, and the shard of header tables in which they are."""

    shard: int
    units: tuple[str, ...]  # sorted


class UnitInputs(NamedTuple):
    """What the resources of some units are made from beside header rows, as tables: they travel and wait as such."""

    units: tuple[str, ...]  # sorted
    context: Context  # of the dataset
    identities: pa.Table  # of IDENTITIES, the rows of these units
    cells: pa.Table  # of SHEETS, what is mapped of their subjects
    corrections: Mapping[str, tuple[Correction, ...]]  # by unit

    def plans(self) -> list[UnitPlan]:
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
    ) -> UnitPlan:
        subjects = sorted({person.subject for person in persons if person.subject}) if cells else []
        rows = [cell for subject in subjects for cell in cells.get(subject, ())]
        context = replace(self.context, **_sheets_of(rows)) if rows else self.context
        return UnitPlan(unit, persons, context, self.corrections.get(unit, ()))


def _sheets_of(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """The fields of a context: what the sheets say of the subject of a unit and of its samples."""
    subject = {c["field"]: c["value"] for c in cells if c["sheet"] == "subjects" and c["field"] in SUBJECT_FIELDS}
    samples: dict[str, dict[str, str]] = defaultdict(dict)
    for (_, sample), values in samples_of(cells).items():
        if sample:
            samples[sample] |= values
    return {"subject_sheet": subject, "sample_sheets": dict(samples)}


class Piece(NamedTuple):
    """Units to be built together; travels to a worker."""

    lake: Lake
    dataset: str
    inputs: UnitInputs
    sources: tuple[Source, ...]
    rows: int
    key: str

    def path(self, kind: str) -> str:
        """The path of what it gave of a kind."""
        return piece_path(self.dataset, self.key, kind)


class UnitLines(NamedTuple):
    """Where the lines of a unit are in a file of NDJSON, and how many."""

    offset: int
    length: int
    lines: int
    digest: str


class PieceBuilt(NamedTuple):
    """What became of a piece: by unit where its lines are in the files of the piece, and the errors of others."""

    lines: dict[str, dict[str, UnitLines]]
    errors: dict[str, str]


def pieces_folder(dataset: str) -> str:
    """The folder of the pieces of a dataset."""
    return f".chunks/build/{encode_name(dataset)}"


def piece_path(dataset: str, key: str, kind: str) -> str:
    """The path of what a piece gave: `Patient`, `ImagingStudy`, `findings`, `elements`, or `done`."""
    return f"{pieces_folder(dataset)}/{key}.{kind}"


def cut_units(units: Iterable[tuple[str, int]]) -> Iterator[list[str]]:
    """Batches of units, given with their rows, of at most `PIECE_ROWS` rows, or one unit."""
    batch: list[str] = []
    weight = 0
    for unit, rows in units:
        if batch and weight + rows > PIECE_ROWS:
            yield batch
            batch, weight = [], 0
        batch.append(unit)
        weight += rows
    if batch:
        yield batch


def build_piece(piece: Piece) -> PieceBuilt:
    """Make the resources of the units of a piece, and put them aside."""
    lake = piece.lake
    if (marker := lake.read_bytes(piece.path("done"))) is not None:
        sizes, lines = orjson.loads(marker)
        if sizes == {kind: lake.size(piece.path(kind)) for kind in sizes}:
            return PieceBuilt({unit: {k: UnitLines(*v) for k, v in kinds.items()} for unit, kinds in lines.items()}, {})
    plans = piece.inputs.plans()
    made = [*make_resources(plans, _rows(piece, plans))]
    whole = [unit for unit in made if unit.error is None]
    lines = _lines(whole)
    contents = {kind: b"".join(unit.lines.get(kind, b"") for unit in whole) for kind in STORED_BY_UNIT}
    for kind, content in contents.items():
        lake.write_part_marker(piece.path(kind), content)
    tables = {
        "findings": findings_table(found for unit in whole for found in unit.findings),
        "elements": _elements(piece.dataset, whole),
    }
    sizes = {kind: len(content) for kind, content in contents.items()}
    sizes |= {kind: lake.write_part(piece.path(kind), table) for kind, table in tables.items()}
    errors = {unit.unit: describe_error(unit.error) for unit in made if unit.error is not None}
    if not errors:
        plain = {unit: {kind: list(where) for kind, where in kinds.items()} for unit, kinds in lines.items()}
        lake.write_part_marker(piece.path("done"), orjson.dumps([sizes, plain]))
    return PieceBuilt(lines, errors)


def _rows(piece: Piece, plans: Iterable[UnitPlan]) -> pa.Table:
    """The header rows of the studies that the units of a piece build."""
    studies = pa.array(
        [p.study_uid for plan in plans for p in plan.persons if p.building_unit == plan.unit], pa.string()
    )
    wanted = list(dict.fromkeys(["unit", *COLUMNS, "duplicate"]))
    tables = [headers().schema.empty_table().select(wanted)]
    for shard, units in piece.sources:
        ranges = {"unit": (units[0], units[-1])}
        rows = piece.lake.read_between(headers(), ranges, wanted, dataset=piece.dataset, shard=shard)
        own = pc.and_(pc.is_in(rows["unit"], pa.array(units)), pc.is_null(rows["duplicate"]))
        tables.append(rows.filter(pc.and_(own, pc.is_in(rows["StudyInstanceUID"], studies))))
    return pa.concat_tables(tables).combine_chunks()


def _lines(units: Sequence[UnitResources]) -> dict[str, dict[str, UnitLines]]:
    found: dict[str, dict[str, UnitLines]] = {}
    offsets = dict.fromkeys(STORED_BY_UNIT, 0)
    for unit in units:
        found[unit.unit] = {}
        for kind in STORED_BY_UNIT:
            content = unit.lines.get(kind, b"")
            count = unit.counts.get(kind, 0)
            found[unit.unit][kind] = UnitLines(offsets[kind], len(content), count, digest_of(content))
            offsets[kind] += len(content)
    return found


def _elements(dataset: str, units: Sequence[UnitResources]) -> pa.Table:
    rows: list[dict[str, Any]] = [
        {**row, "dataset": dataset, "unit": unit.unit} for unit in units for row in unit.elements
    ]
    columns = [pa.array([row.get(field.name) for row in rows], field.type) for field in FHIR_ELEMENTS.schema]
    return pa.table(columns, schema=FHIR_ELEMENTS.schema)


def piece_key(fingerprints: Iterable[str]) -> str:
    """The name of a piece."""
    return fingerprint(list(fingerprints))
