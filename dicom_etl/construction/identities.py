"""Identities: which patient each study of a dataset belongs to, as a table.

Not here: the rules (`identity.matching`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.construction.chunks import PERSON_COLUMNS
from dicom_etl.construction.header_units import HeaderUnits
from dicom_etl.construction.runs import rows_of_runs
from dicom_etl.identity.crosswalk import CrosswalkEntry
from dicom_etl.identity.ids import ResourceIds
from dicom_etl.identity.matching import (
    MATCHING_VERSION,
    MatchingScope,
    PatientEvidence,
    PatientMatch,
    match_patients,
)
from dicom_etl.lake.fingerprints import compute_fingerprint, hash_runs
from dicom_etl.lake.schemas import IDENTITIES, header_table
from dicom_etl.lake.tables import Lake
from dicom_etl.settings import DatasetSettings

_CLAIM = (
    "StudyInstanceUID",
    "unit",
    "subject",
    "PatientID",
    "IssuerOfPatientIDUniversalID",
    "IssuerOfPatientIDUniversalIDType",
    "PatientIdentityRemoved",
)


class Identities:
    """The table of identities, by unit."""

    def __init__(self, table: pa.Table) -> None:
        self._rows = table.sort_by([("unit", "ascending"), ("study_uid", "ascending")])
        ends = pc.run_end_encode(self._rows["unit"].combine_chunks()) if table.num_rows else None
        self.units: list[str] = ends.values.to_pylist() if ends else []
        self._ends: list[int] = ends.run_ends.to_pylist() if ends else []
        self._place = {unit: number for number, unit in enumerate(self.units)}

    @property
    def table(self) -> pa.Table:
        """All rows, sorted by unit."""
        return self._rows

    @cached_property
    def digests(self) -> dict[str, str]:
        """The digest of the rows of each unit."""
        return dict(zip(self.units, hash_runs(self._rows.select(PERSON_COLUMNS), self._ends), strict=True))

    def rows_of(self, units: Iterable[str]) -> pa.Table:
        """The rows of some units."""
        return rows_of_runs(self._rows, self._ends, (self._place[unit] for unit in units if unit in self._place))

    @cached_property
    def other_units(self) -> dict[str, set[str]]:
        """By the unit that builds a study that is in several units: all of these."""
        several: dict[str, set[str]] = defaultdict(set)
        for row in self._of_several().to_pylist():
            if row["building_unit"]:
                several[row["building_unit"]].add(row["unit"])
        return several

    def _of_several(self) -> pa.Table:
        counts = self._rows.group_by("study_uid").aggregate([([], "count_all")])
        studies = counts.filter(pc.greater(counts["count_all"], 1))["study_uid"]
        return self._rows.filter(pc.is_in(self._rows["study_uid"], pc.unique(studies))).select(
            ["building_unit", "unit"]
        )


def matching_fingerprint(
    ids: ResourceIds, dataset: DatasetSettings, crosswalk: list[CrosswalkEntry], units: HeaderUnits
) -> str:
    """What patient matching depends on."""
    lines = [list(line) for line in sorted(crosswalk)]
    made_with = (ids.namespace, ids.key_fingerprint)
    return compute_fingerprint(MATCHING_VERSION, made_with, dataset.assigning_authority, lines, units.mark)


def match_dataset(
    lake: Lake,
    name: str,
    ids: ResourceIds,
    dataset: DatasetSettings,
    crosswalk: list[CrosswalkEntry],
    units: HeaderUnits,
    mark: str,
) -> Identities:
    """The patients of the studies of a dataset; decided again when something that they depend on has changed."""
    if lake.read_fingerprint(IDENTITIES, dataset=name) != mark:
        decided = {line.subject: (line.system, line.value) for line in crosswalk}
        scope = MatchingScope(name, ids.namespace, dataset.assigning_authority, decided)
        rows = _identity_rows(ids, name, match_patients(_claims(lake, name, units), scope))
        lake.write(IDENTITIES, rows, fingerprint=mark, dataset=name)
    return Identities(lake.read(IDENTITIES, dataset=name))


def _identity_rows(ids: ResourceIds, dataset: str, people: list[PatientMatch]) -> pa.Table:
    columns: dict[str, Any] = {name: [getattr(p, name) for p in people] for name in PatientMatch.__dataclass_fields__}
    columns["dataset"] = [dataset] * len(people)
    columns["patient"] = [
        ids.resource_id("Patient", person.system, person.value) if person.state == "ok" else None for person in people
    ]
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in IDENTITIES.schema})


def _claims(lake: Lake, dataset: str, units: HeaderUnits) -> list[PatientEvidence]:
    """What each study's instances say of their patient: distinct combinations, read shard by shard."""
    claims = []
    for shard in sorted(set(units.shard_of.values())):
        rows = lake.read(header_table(), [*_CLAIM, "duplicate"], dataset=dataset, shard=shard)
        kept = rows.filter(pc.and_(pc.is_null(rows["duplicate"]), pc.is_valid(rows["StudyInstanceUID"])))
        distinct = kept.group_by(list(_CLAIM)).aggregate([])
        for *said, removed in zip(*(distinct[name].to_pylist() for name in _CLAIM), strict=True):
            claims.append(PatientEvidence._make([*said, (removed or "").upper() == "YES"]))
    return sorted(claims, key=str)
