"""What a build has to do: which units of the header tables have other inputs than their resources were made from.

Decided from commits, identities, sheets, corrections and settings. Of units that are not built there is no Python
object but a name and a digest.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc
import pydicom

from dicom_etl.construction.chunks import ChunkInputs
from dicom_etl.construction.header_units import HeaderUnits
from dicom_etl.construction.identities import Identities
from dicom_etl.construction.runs import rows_of_runs
from dicom_etl.fhir import imaging_study
from dicom_etl.fhir.context import SAMPLE_FIELDS, SUBJECT_FIELDS, Context
from dicom_etl.fhir.corrections import CORRECTED_FROM, Correction
from dicom_etl.fhir.mapping import MAPPING_TABLES
from dicom_etl.lake.commits import Commit
from dicom_etl.lake.fingerprints import compute_fingerprint, hash_package_files, hash_runs
from dicom_etl.lake.schemas import header_table
from dicom_etl.lake.tables import Lake


def mapping_fingerprint() -> str:
    """What resources are made by: rules and tables."""
    return compute_fingerprint(
        imaging_study.MAPPING_VERSION,
        pydicom.__version__,  # its tables name modalities, SOP classes and SNOMED codes
        hash_package_files(*(f"dicom_etl.fhir.tables:{table}" for table in MAPPING_TABLES)),
    )


class MappedSheets:
    """What the sheets say that is mapped, by subject."""

    def __init__(self, cells: pa.Table) -> None:
        mapped = pc.is_in(cells["field"], pa.array([*SUBJECT_FIELDS, *SAMPLE_FIELDS]))
        rows = cells.filter(pc.and_(mapped, pc.is_valid(cells["subject"])))
        self._rows = rows.sort_by([(name, "ascending") for name in ("subject", "sheet", "path", "row", "field")])
        ends = pc.run_end_encode(self._rows["subject"].combine_chunks()) if rows.num_rows else None
        subjects = ends.values.to_pylist() if ends else []
        self._ends: list[int] = ends.run_ends.to_pylist() if ends else []
        self._place = {subject: number for number, subject in enumerate(subjects)}
        self._digests = list(hash_runs(self._rows.drop_columns(["path", "row", "dataset"]), self._ends))

    def digest(self, subject: str) -> str:
        """The digest of what they say of a subject."""
        number = self._place.get(subject)
        return "" if number is None else self._digests[number]

    def cells(self, subjects: Iterable[str]) -> pa.Table:
        """The cells of some subjects."""
        return rows_of_runs(
            self._rows, self._ends, (self._place[subject] for subject in subjects if subject in self._place)
        )


def match_corrections(
    lake: Lake, dataset: str, shards: Iterable[int], lines: Sequence[Correction]
) -> dict[str, list[Correction]]:
    """The corrections that concern some instance of each unit, in the order of the file."""
    if not lines:
        return {}
    subjects = {line.subject for line in lines}
    numbers: dict[str, set[int]] = defaultdict(set)
    for shard in shards:
        columns = ["unit", *CORRECTED_FROM]
        rows = lake.read(header_table(), columns, dataset=dataset, shard=shard)
        if None not in subjects:
            rows = rows.filter(pc.is_in(rows["subject"], pa.array(list(subjects), pa.string())))
        for unit, *places in zip(
            *(c.to_pylist() for c in rows.group_by(columns).aggregate([]).itercolumns()), strict=True
        ):
            numbers[unit].update(number for number, line in enumerate(lines) if line.touches(places))
    return {unit: [lines[number] for number in sorted(touching)] for unit, touching in numbers.items() if touching}


@dataclass(frozen=True)
class BuildInputs:
    """All that the resources of a dataset are made from."""

    units: HeaderUnits
    identities: Identities
    sheets: MappedSheets
    lines: Sequence[Correction]  # of the corrections file, in its order
    corrections: Mapping[str, Sequence[Correction]]  # by unit
    context: Context

    @cached_property
    def _constant(self) -> str:
        return compute_fingerprint(mapping_fingerprint(), self.context.values())

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """By unit, the fingerprint of all that its resources are made from."""
        subjects = dict(zip(*(self.identities.table[name].to_pylist() for name in ("unit", "subject")), strict=True))
        return {unit: self._fingerprint(unit, subjects.get(unit)) for unit in self.units.marks}

    def _fingerprint(self, unit: str, subject: str | None) -> str:
        parts = [self._constant, self.units.marks[unit], self.identities.digests.get(unit, "")]
        if others := self.identities.other_units.get(unit):
            parts += [self.units.marks.get(other, "") for other in sorted(others)]
        if subject:
            parts.append(self.sheets.digest(subject))
        parts += [str(list(line)) for line in self._lines(unit)]
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]

    def _lines(self, unit: str) -> list[Correction]:
        if not self.corrections:
            return []
        concerned = {line for source in self.sources(unit) for line in self.corrections.get(source, ())}
        return sorted(concerned, key=self._order_of_lines.__getitem__)

    @cached_property
    def _order_of_lines(self) -> dict[Correction, int]:
        return {line: number for number, line in enumerate(self.lines)}

    def sources(self, unit: str) -> tuple[str, ...]:
        """The units in which the studies are that a unit builds."""
        return tuple(sorted({unit} | self.identities.other_units.get(unit, set())))

    def of_units(self, units: Sequence[str]) -> ChunkInputs:
        """What the making of some units' resources needs beside header rows; `units` are sorted."""
        identities = self.identities.rows_of(units)
        subjects = sorted(filter(None, pc.unique(identities["subject"]).to_pylist()))
        lines = {unit: tuple(self._lines(unit)) for unit in units} if self.corrections else {}
        return ChunkInputs(tuple(units), self.context, identities, self.sheets.cells(subjects), lines)


def find_changed_units(
    inputs: BuildInputs, commits: Mapping[int, Commit], *, subjects: Collection[str] | None, force: bool
) -> Iterator[str]:
    """The units whose resources are to be made: those asked for that have another fingerprint than their commit."""
    former: dict[str, str | None] = {}
    for commit in commits.values():
        columns = (commit.units[name].to_pylist() for name in ("unit", "fingerprint", "to_retry"))
        former |= {unit: None if retry else print_ for unit, print_, retry in zip(*columns, strict=True)}
    wanted = None if subjects is None else set(subjects)
    for unit, print_ in inputs.fingerprints.items():
        if (wanted is None or unit in wanted) and (force or former.get(unit) != print_):
            yield unit
