"""What a build has to do: the units whose resources were built from other inputs than those of today.

Decided from commits, identities, sheets, corrections and settings. For a unit that is not built, the process holds
nothing but its name and digests.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc
import pydicom

from dicom_etl.construction.chunks import ChunkInputs
from dicom_etl.construction.grouped_rows import GroupedRows
from dicom_etl.construction.header_units import HeaderUnits
from dicom_etl.construction.identities import Identities
from dicom_etl.fhir import imaging_study
from dicom_etl.fhir.context import SAMPLE_FIELDS, SUBJECT_FIELDS, Context
from dicom_etl.fhir.corrections import LOCATION_COLUMNS, Correction
from dicom_etl.fhir.mapping import MAPPING_TABLES
from dicom_etl.lake.commits import Commit, read_commits, warn_of_damage
from dicom_etl.lake.fingerprints import compute_fingerprint, hash_package_files
from dicom_etl.lake.schemas import header_table
from dicom_etl.lake.shards import assign_shard
from dicom_etl.lake.tables import Lake


def mapping_fingerprint() -> str:
    """The fingerprint of the mapping itself: its rules and its tables."""
    return compute_fingerprint(
        imaging_study.MAPPING_VERSION,
        pydicom.__version__,  # its tables have the names of modalities, SOP classes and SNOMED codes
        hash_package_files(*(f"dicom_etl.fhir.tables:{table}" for table in MAPPING_TABLES)),
    )


class MappedSheets:
    """The cells of the sheets that the mapping reads, by subject."""

    def __init__(self, cells: pa.Table) -> None:
        """Take all rows of the table of sheets."""
        is_mapped = pc.is_in(cells["field"], pa.array([*SUBJECT_FIELDS, *SAMPLE_FIELDS]))
        rows = cells.filter(pc.and_(is_mapped, pc.is_valid(cells["subject"])))
        order = [(name, "ascending") for name in ("subject", "sheet", "path", "row", "field")]
        self._by_subject = GroupedRows(rows.sort_by(order), "subject")
        content = [name for name in cells.column_names if name not in ("path", "row", "dataset")]
        self._digests = self._by_subject.digests(content)

    def digest(self, subject: str) -> str:
        """The digest of the cells of a subject; empty if it has none."""
        return self._digests.get(subject, "")

    def select(self, subjects: Iterable[str]) -> pa.Table:
        """The cells of these subjects."""
        return self._by_subject.select(subjects)


def match_corrections(
    lake: Lake, dataset: str, units: HeaderUnits, corrections: Sequence[Correction]
) -> dict[str, list[Correction]]:
    """By unit, the corrections that match at least one of its instances, in the order of the file."""
    if not corrections:
        return {}
    subjects = {correction.subject for correction in corrections}
    numbers: dict[str, set[int]] = defaultdict(set)
    for shard in sorted(set(units.shard_of.values())):
        columns = ["unit", *LOCATION_COLUMNS]
        rows = lake.read(header_table(), columns, dataset=dataset, shard=shard)
        if None not in subjects:
            rows = rows.filter(pc.is_in(rows["subject"], pa.array(list(subjects), pa.string())))
        distinct = rows.group_by(columns).aggregate([])
        for unit, *location in zip(*(column.to_pylist() for column in distinct.itercolumns()), strict=True):
            numbers[unit].update(number for number, line in enumerate(corrections) if line.matches(location))
    return {
        unit: [corrections[number] for number in sorted(matching)] for unit, matching in numbers.items() if matching
    }


@dataclass(frozen=True)
class BuildInputs:
    """All inputs of the resources of a dataset."""

    units: HeaderUnits
    identities: Identities
    sheets: MappedSheets
    corrections: Sequence[Correction]  # of the dataset, in the order of the file
    corrections_by_unit: Mapping[str, Sequence[Correction]]
    context: Context

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """By unit, the fingerprint of all inputs of its resources."""
        subjects = dict(zip(*(self.identities.table[name].to_pylist() for name in ("unit", "subject")), strict=True))
        return {unit: self._fingerprint(unit, subjects.get(unit)) for unit in self.units.fingerprints}

    @cached_property
    def _common_fingerprint(self) -> str:
        return compute_fingerprint(mapping_fingerprint(), self.context.fingerprint_values())

    def _fingerprint(self, unit: str, subject: str | None) -> str:
        parts = [self._common_fingerprint, self.units.fingerprints[unit], self.identities.digests.get(unit, "")]
        if contributing := self.identities.contributing_units.get(unit):
            parts += [self.units.fingerprints.get(name, "") for name in sorted(contributing)]
        if subject:
            parts.append(self.sheets.digest(subject))
        parts += [str(list(correction)) for correction in self._corrections_of(unit)]
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]

    def _corrections_of(self, unit: str) -> list[Correction]:
        """The corrections of all studies that a unit builds, in the order of the file."""
        if not self.corrections_by_unit:
            return []
        matching = {line for source in self.source_units(unit) for line in self.corrections_by_unit.get(source, ())}
        return sorted(matching, key=self._correction_numbers.__getitem__)

    @cached_property
    def _correction_numbers(self) -> dict[Correction, int]:
        return {correction: number for number, correction in enumerate(self.corrections)}

    def source_units(self, unit: str) -> tuple[str, ...]:
        """The units whose header rows the resources of a unit are built from: itself, and those that share a study."""
        return tuple(sorted({unit} | self.identities.contributing_units.get(unit, set())))

    def row_count(self, unit: str) -> int:
        """The number of header rows of these units."""
        return sum(self.units.rows.get(source, 0) for source in self.source_units(unit))

    def for_chunk(self, units: Sequence[str]) -> ChunkInputs:
        """The inputs of some units without header rows; `units` are sorted."""
        identities = self.identities.select(units)
        subjects = sorted(filter(None, pc.unique(identities["subject"]).to_pylist()))
        corrections = {unit: tuple(self._corrections_of(unit)) for unit in units} if self.corrections_by_unit else {}
        return ChunkInputs(tuple(units), self.context, identities, self.sheets.select(subjects), corrections)


@dataclass(frozen=True)
class Plan:
    """The units that are built."""

    inputs: BuildInputs
    commits: Mapping[int, Commit]  # by shard, those whose files are undamaged
    changed: Sequence[str]  # units that are to be built

    @cached_property
    def is_resharded(self) -> bool:
        """Whether the number of shards changes, so that all resources move."""
        previous = next((commit.shards for commit in self.commits.values()), self.inputs.units.shards)
        return previous != self.inputs.units.shards


def read_undamaged_commits(lake: Lake, dataset: str) -> dict[int, Commit]:
    """The commits whose files have the recorded sizes, by shard; damaged shards are reported and rebuilt."""
    commits = read_commits(lake, "build", dataset)
    return {shard: commit for shard, commit in commits.items() if not warn_of_damage(lake, commit)}


def plan_build(
    lake: Lake,
    inputs: BuildInputs,
    commits: Mapping[int, Commit],
    *,
    subjects: Collection[str] | None = None,
    force: bool = False,
) -> Plan:
    """Compare the fingerprints of units with those in the commits of their shards.

    Args:
        lake: with the files of the commits.
        inputs: of the dataset.
        commits: whose files have the recorded sizes, by shard.
        subjects: only these units are built; None: all.
        force: build every unit again.
    """
    plan = Plan(inputs, commits, _find_changed_units(inputs, commits, subjects, force=force))
    # the bytes of shards that will be rewritten are checked before any of their resources are reused
    changed = {assign_shard(unit, inputs.units.shards) for unit in plan.changed}
    rewritten = set(commits) if plan.is_resharded else changed
    damaged = {
        shard for shard in sorted(rewritten & commits.keys()) if warn_of_damage(lake, commits[shard], digests=True)
    }
    if not damaged:
        return plan
    undamaged = {shard: commit for shard, commit in commits.items() if shard not in damaged}
    return Plan(inputs, undamaged, _find_changed_units(inputs, undamaged, subjects, force=force))


def _find_changed_units(
    inputs: BuildInputs, commits: Mapping[int, Commit], subjects: Collection[str] | None, *, force: bool
) -> list[str]:
    previous: dict[str, str | None] = {}
    for commit in commits.values():
        columns = (commit.units[name].to_pylist() for name in ("unit", "fingerprint", "to_retry"))
        previous |= {unit: None if to_retry else stored for unit, stored, to_retry in zip(*columns, strict=True)}
    selected = None if subjects is None else set(subjects)
    return [
        unit
        for unit, current in inputs.fingerprints.items()
        if (selected is None or unit in selected) and (force or previous.get(unit) != current)
    ]
