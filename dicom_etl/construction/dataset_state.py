"""What a build stores once per dataset: its Endpoint, and the findings table, whose footer has the state of the build.

The state is a fingerprint of all inputs of the dataset, and the counts of the build that was made from them. The next
run compares the fingerprint with that of today's inputs; if nothing changed, it reads no header row. The state is
cleared before a build changes anything, so that a killed run leaves none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.construction.header_units import HeaderUnits
from dicom_etl.construction.identities import Identities
from dicom_etl.construction.plan import mapping_fingerprint
from dicom_etl.fhir.context import Context
from dicom_etl.fhir.corrections import Correction
from dicom_etl.findings import Finding, tabulate_findings
from dicom_etl.lake.commits import Commit, read_commits
from dicom_etl.lake.fingerprints import compute_fingerprint
from dicom_etl.lake.schemas import DATASET_FINDINGS, ENDPOINT_PATH, FINDINGS, IDENTITIES, SHEETS, make_path
from dicom_etl.lake.tables import Lake


class DatasetCounts(NamedTuple):
    """The numbers of a dataset after a build."""

    units: int
    patients: int
    studies: int
    held: int  # studies that wait for a decision
    findings: int


class DatasetState:
    """The state of a dataset's build in a lake, for the inputs of today."""

    def __init__(
        self,
        lake: Lake,
        dataset: str,
        *,
        units: HeaderUnits,
        matching: str,
        context: Context,
        corrections: Sequence[Correction],
        withdrawn: Collection[str],
        endpoint: dict[str, Any],
    ) -> None:
        """Take the inputs of the dataset.

        Args:
            lake: with its sheets and its results.
            dataset: its name.
            units: that have header rows.
            matching: the fingerprint of all inputs of patient matching.
            context: its settings.
            corrections: its lines of the corrections file.
            withdrawn: the digests of its withdrawn subjects.
            endpoint: its Endpoint.
        """
        self._lake, self._dataset = lake, dataset
        self._units, self._matching, self._endpoint = units, matching, endpoint
        self._fingerprint = compute_fingerprint(
            matching,
            mapping_fingerprint(),
            context.fingerprint_values(),
            [list(correction) for correction in corrections],
            lake.compute_digest(SHEETS.path(dataset=dataset)),
            sorted(withdrawn),
            endpoint,
            units.shards,
        )

    def read_counts(self, commits: Mapping[int, Commit]) -> DatasetCounts | None:
        """The counts of the last build, if it had the same inputs and its results are complete; else None.

        `commits` are those of shards whose files are undamaged.
        """
        lake, dataset = self._lake, self._dataset
        stored = lake.read_fingerprint(DATASET_FINDINGS, stage="build", dataset=dataset) or ""
        previous, _, counts_text = stored.partition(" ")
        if previous != self._fingerprint or commits.keys() != set(self._units.shard_of.values()):
            return None
        if lake.read_fingerprint(IDENTITIES, dataset=dataset) != self._matching:
            return None
        counts = DatasetCounts(**orjson.loads(counts_text))
        stored_endpoint = lake.read_bytes(make_path(ENDPOINT_PATH, dataset=dataset))
        is_complete = not counts.patients or stored_endpoint == _endpoint_line(self._endpoint)
        return counts if is_complete else None

    def clear(self) -> None:
        """Remove the state before anything changes, so that a killed run leaves none."""
        lake, dataset = self._lake, self._dataset
        if lake.read_fingerprint(DATASET_FINDINGS, stage="build", dataset=dataset):
            rows = lake.read(DATASET_FINDINGS, stage="build", dataset=dataset)
            lake.write(DATASET_FINDINGS, rows, stage="build", dataset=dataset)

    def write(self, findings: pa.Table, counts: DatasetCounts | None) -> None:
        """Write the findings of the dataset, and the state; without counts the next run builds again what changed."""
        state = "" if counts is None else f"{self._fingerprint} {orjson.dumps(counts._asdict()).decode()}"
        self._lake.write(DATASET_FINDINGS, findings, fingerprint=state, stage="build", dataset=self._dataset)

    def write_endpoint(self, *, is_used: bool) -> None:
        """Write the Endpoint, if it has changed; remove it, if no resource refers to it."""
        path = make_path(ENDPOINT_PATH, dataset=self._dataset)
        line = _endpoint_line(self._endpoint)
        if not is_used:
            self._lake.remove(path)
        elif self._lake.read_bytes(path) != line:
            self._lake.write_bytes(path, line)


def _endpoint_line(endpoint: dict[str, Any]) -> bytes:
    return orjson.dumps(endpoint) + b"\n"


def merge_dataset_findings(
    lake: Lake, dataset: str, findings: Collection[Finding], skipped_units: Collection[str]
) -> pa.Table:
    """The findings of a dataset after a build, with the previous ones of units that this run had to skip."""
    previous = lake.read(DATASET_FINDINGS, stage="build", dataset=dataset).to_pylist() if skipped_units else []
    return tabulate_findings([*(Finding(**row) for row in previous if row["unit"] in skipped_units), *findings])


def count_results(lake: Lake, dataset: str, units: HeaderUnits, identities: Identities, findings: int) -> DatasetCounts:
    """The counts of a dataset from its shards; `findings` is the number of those of the dataset as a whole."""
    table = identities.table
    matched = table.filter(pc.equal(table["state"], "ok"))
    patients = matched.group_by(["system", "value"]).aggregate([]).num_rows
    studies = len(pc.unique(table["study_uid"]))
    held = set(pc.unique(table.filter(pc.equal(table["state"], "held"))["study_uid"]).to_pylist())
    for shard in read_commits(lake, "build", dataset):
        rows = lake.read(FINDINGS, ["code", "study_uid"], stage="build", dataset=dataset, shard=shard)
        findings += rows.num_rows
        held |= set(rows.filter(pc.equal(rows["code"], "study-held"))["study_uid"].to_pylist())
    return DatasetCounts(len(units.fingerprints), patients, studies - len(held), len(held), findings)
