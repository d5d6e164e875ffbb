"""The table of identities: which patient each study of a dataset belongs to.

Not here: the rules (`identity.matching`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.construction.grouped_rows import GroupedRows
from dicom_etl.construction.header_units import HeaderUnits
from dicom_etl.identity.crosswalk import CrosswalkEntry
from dicom_etl.identity.ids import ResourceIds
from dicom_etl.identity.matching import (
    MATCHING_VERSION,
    MatchingScope,
    PatientEvidence,
    PatientMatch,
    match_patients,
)
from dicom_etl.lake.fingerprints import compute_fingerprint
from dicom_etl.lake.schemas import IDENTITIES, header_table
from dicom_etl.lake.tables import Lake
from dicom_etl.settings import DatasetSettings

MATCH_COLUMNS = tuple(PatientMatch.__dataclass_fields__)
_EVIDENCE_COLUMNS = (  # in the order of PatientEvidence
    "StudyInstanceUID",
    "unit",
    "subject",
    "PatientID",
    "IssuerOfPatientIDUniversalID",
    "IssuerOfPatientIDUniversalIDType",
    "PatientIdentityRemoved",
)


class Identities:
    """The table of identities of a dataset, by unit."""

    def __init__(self, table: pa.Table) -> None:
        """Take all rows of the table, in any order."""
        self._by_unit = GroupedRows(table.sort_by([("unit", "ascending"), ("study_uid", "ascending")]), "unit")

    @property
    def table(self) -> pa.Table:
        """All rows, sorted by unit."""
        return self._by_unit.table

    @cached_property
    def digests(self) -> dict[str, str]:
        """The digest of the rows of each unit."""
        return self._by_unit.digests(MATCH_COLUMNS)

    @property
    def has_patients(self) -> bool:
        """Whether at least one study has a patient."""
        return pc.any(pc.equal(self.table["state"], "ok")).as_py() or False

    def select(self, units: Iterable[str]) -> pa.Table:
        """The rows of these units."""
        return self._by_unit.select(units)

    @cached_property
    def contributing_units(self) -> dict[str, set[str]]:
        """By the unit that builds a study whose instances are in several units: all of these units."""
        table = self.table
        counts = table.group_by("study_uid").aggregate([([], "count_all")])
        divided = pc.unique(counts.filter(pc.greater(counts["count_all"], 1))["study_uid"])
        rows = table.filter(pc.is_in(table["study_uid"], divided)).select(["building_unit", "unit"])
        units: dict[str, set[str]] = defaultdict(set)
        for row in rows.to_pylist():
            if row["building_unit"]:
                units[row["building_unit"]].add(row["unit"])
        return units


def matching_fingerprint(
    ids: ResourceIds, dataset: DatasetSettings, crosswalk: list[CrosswalkEntry], units: HeaderUnits
) -> str:
    """The fingerprint of all inputs of patient matching."""
    entries = [list(entry) for entry in sorted(crosswalk)]
    id_inputs = (ids.namespace, ids.key_fingerprint)
    return compute_fingerprint(MATCHING_VERSION, id_inputs, dataset.assigning_authority, entries, units.fingerprint)


def match_dataset(
    lake: Lake,
    name: str,
    ids: ResourceIds,
    dataset: DatasetSettings,
    crosswalk: list[CrosswalkEntry],
    units: HeaderUnits,
) -> Identities:
    """Match the studies of a dataset to patients, if an input has changed, and return the table.

    Args:
        lake: with the header rows; the table is written to it.
        name: of the dataset.
        ids: makes the ids of Patients.
        dataset: its settings.
        crosswalk: its entries in the crosswalk.
        units: its units with header rows.
    """
    current = matching_fingerprint(ids, dataset, crosswalk, units)
    if lake.read_fingerprint(IDENTITIES, dataset=name) != current:
        identifiers = {entry.subject: (entry.system, entry.value) for entry in crosswalk}
        scope = MatchingScope(name, ids.namespace, dataset.assigning_authority, identifiers)
        matches = match_patients(_read_evidence(lake, name, units), scope)
        lake.write(IDENTITIES, _make_table(ids, name, matches), fingerprint=current, dataset=name)
    return Identities(lake.read(IDENTITIES, dataset=name))


def _make_table(ids: ResourceIds, dataset: str, matches: list[PatientMatch]) -> pa.Table:
    columns: dict[str, Any] = {name: [getattr(match, name) for match in matches] for name in MATCH_COLUMNS}
    columns["dataset"] = [dataset] * len(matches)
    columns["patient"] = [
        ids.resource_id("Patient", match.system, match.value) if match.state == "ok" else None for match in matches
    ]
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in IDENTITIES.schema})


def _read_evidence(lake: Lake, dataset: str, units: HeaderUnits) -> list[PatientEvidence]:
    """The distinct combinations of values that identify the patient of a study, read shard by shard."""
    evidence = []
    for shard in sorted(set(units.shard_of.values())):
        rows = lake.read(header_table(), [*_EVIDENCE_COLUMNS, "duplicate"], dataset=dataset, shard=shard)
        counted = rows.filter(pc.and_(pc.is_null(rows["duplicate"]), pc.is_valid(rows["StudyInstanceUID"])))
        distinct = counted.group_by(list(_EVIDENCE_COLUMNS)).aggregate([])
        for *values, removed in zip(*(distinct[name].to_pylist() for name in _EVIDENCE_COLUMNS), strict=True):
            evidence.append(PatientEvidence._make([*values, (removed or "").upper() == "YES"]))
    return sorted(evidence, key=str)
