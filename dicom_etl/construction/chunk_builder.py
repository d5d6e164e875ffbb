"""Building a chunk, in a worker: header rows are read, resources are built from them and stored with their findings.

The result is stored as files (`chunks`); a marker that is written last states that all of them are complete.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.construction.chunks import COMPLETE_MARKER, BuiltChunk, Chunk, UnitLines
from dicom_etl.construction.unit_resources import COLUMNS, UnitInputs, UnitResources, build_resources
from dicom_etl.findings import describe_error, tabulate_findings
from dicom_etl.lake.commits import hash_lines
from dicom_etl.lake.schemas import FHIR_ELEMENTS, UNIT_RESOURCE_TYPES, header_table


def build_chunk(chunk: Chunk) -> BuiltChunk:
    """Build the resources of a chunk's units and store them, unless an earlier, interrupted run has done so."""
    lake = chunk.lake
    if (marker := lake.read_bytes(chunk.path(COMPLETE_MARKER))) is not None:
        sizes, lines = orjson.loads(marker)
        if sizes == {suffix: lake.get_size(chunk.path(suffix)) for suffix in sizes}:
            stored = {unit: {kind: UnitLines(*v) for kind, v in kinds.items()} for unit, kinds in lines.items()}
            return BuiltChunk(stored, {})
    units = chunk.inputs.split_by_unit()
    results = list(build_resources(units, _read_rows(chunk, units)))
    built = [result for result in results if result.error is None]
    locations = _locate_lines(built)
    contents = {kind: b"".join(result.lines.get(kind, b"") for result in built) for kind in UNIT_RESOURCE_TYPES}
    for kind, content in contents.items():
        lake.write_unsynced(chunk.path(kind), content)
    tables = {
        "findings": tabulate_findings(finding for result in built for finding in result.findings),
        "elements": _element_table(chunk.dataset, built),
    }
    sizes = {kind: len(content) for kind, content in contents.items()}
    sizes |= {suffix: lake.write_arrow(chunk.path(suffix), table) for suffix, table in tables.items()}
    errors = {result.unit: describe_error(result.error) for result in results if result.error is not None}
    if not errors:
        plain = {unit: {kind: list(lines) for kind, lines in kinds.items()} for unit, kinds in locations.items()}
        lake.write_unsynced(chunk.path(COMPLETE_MARKER), orjson.dumps([sizes, plain]))
    return BuiltChunk(locations, errors)


def _read_rows(chunk: Chunk, units: Iterable[UnitInputs]) -> pa.Table:
    """The header rows of all studies that the units of a chunk build, without duplicates."""
    studies = pa.array(
        [match.study_uid for unit in units for match in unit.matches if match.building_unit == unit.unit], pa.string()
    )
    columns = list(dict.fromkeys(["unit", *COLUMNS, "duplicate"]))
    tables = [header_table().schema.empty_table().select(columns)]
    for shard, names in chunk.sources:
        ranges = {"unit": (names[0], names[-1])}
        rows = chunk.lake.read_between(header_table(), ranges, columns, dataset=chunk.dataset, shard=shard)
        is_wanted = pc.and_(pc.is_in(rows["unit"], pa.array(names)), pc.is_null(rows["duplicate"]))
        tables.append(rows.filter(pc.and_(is_wanted, pc.is_in(rows["StudyInstanceUID"], studies))))
    return pa.concat_tables(tables).combine_chunks()


def _locate_lines(units: Sequence[UnitResources]) -> dict[str, dict[str, UnitLines]]:
    """Where the lines of each unit are, if the lines of all units are stored one after the other."""
    locations: dict[str, dict[str, UnitLines]] = {}
    offsets = dict.fromkeys(UNIT_RESOURCE_TYPES, 0)
    for unit in units:
        locations[unit.unit] = {}
        for kind in UNIT_RESOURCE_TYPES:
            content = unit.lines.get(kind, b"")
            count = unit.counts.get(kind, 0)
            locations[unit.unit][kind] = UnitLines(offsets[kind], len(content), count, hash_lines(content))
            offsets[kind] += len(content)
    return locations


def _element_table(dataset: str, units: Sequence[UnitResources]) -> pa.Table:
    rows: list[dict[str, Any]] = [
        {**row, "dataset": dataset, "unit": unit.unit} for unit in units for row in unit.elements
    ]
    columns = [pa.array([row.get(field.name) for row in rows], field.type) for field in FHIR_ELEMENTS.schema]
    return pa.table(columns, schema=FHIR_ELEMENTS.schema)
