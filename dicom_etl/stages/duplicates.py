"""Part of extract: the same SOPInstanceUID in several files of a dataset.

Every file keeps its row; `duplicate` marks all but the first by path: `same` where the files are equal by SHA-256
(computed for duplicates alone), else `conflict`. This needs the whole dataset, so it runs after the units, and only
when one of them changed.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from dicom_etl.findings import Finding, finding, findings_table
from dicom_etl.lake.fingerprints import fingerprint
from dicom_etl.lake.schemas import DATASET_FINDINGS, FILES, Table, headers
from dicom_etl.lake.tables import Lake
from dicom_etl.sources import Source

_COLUMNS = [
    "path",
    "subject",
    "sample",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "duplicate",
]


class _Copy(NamedTuple):
    """A file of a SOPInstanceUID that several files have."""

    path: str
    unit: str
    row: Mapping[str, Any]
    sha256: str | None


def mark_duplicates(
    source: Source,
    lake: Lake,
    units: Collection[str],
    failures: Mapping[str, BaseException],
    *,
    changed: bool,
) -> int:
    """Set `duplicate` and `sha256` in the tables of a dataset, write its findings; returns files opened."""
    name = source.dataset
    state = fingerprint(sorted((unit, lake.fingerprint(FILES, dataset=name, unit=unit)) for unit in units))
    if not changed and lake.fingerprint(DATASET_FINDINGS, stage="extract", dataset=name) == state:
        return 0
    shared, marked = _suspects(lake, name, units)
    groups, opened = _groups(source, lake, shared)
    marks: dict[str, dict[str, str]] = defaultdict(dict)
    sums: dict[str, dict[str, str | None]] = defaultdict(dict)
    findings = [
        finding("unit-failed", name, unit=unit, message=f"{type(error).__name__}: {error}"[:300])
        for unit, error in failures.items()
    ]
    for copies in groups:
        for copy in copies:
            sums[copy.unit][copy.path] = copy.sha256
        for copy in copies[1:]:
            same = copy.sha256 is not None and copy.sha256 == copies[0].sha256
            marks[copy.unit][copy.path] = "same" if same else "conflict"
            findings.append(_finding(name, copy, copies[0], same=same))
    for unit in sorted(marked | set(sums)):
        _apply(lake, name, unit, marks[unit], sums[unit])
    lake.write(
        DATASET_FINDINGS,
        findings_table(findings),
        fingerprint="" if failures else state,
        stage="extract",
        dataset=name,
    )
    return opened


def _suspects(lake: Lake, dataset: str, units: Collection[str]) -> tuple[dict[str, pa.Table], set[str]]:
    """The rows whose UID has a hash that occurs twice, by unit; and the units that have marks or check sums now.

    A hash of 8 bytes stands for each UID, so that ten million instances take 80 MB.
    """
    hashes: dict[str, np.ndarray[Any, Any]] = {}
    marked = set()
    for unit in units:
        rows = lake.read(headers(), ["SOPInstanceUID", "duplicate"], dataset=dataset, unit=unit)
        sums = lake.read(FILES, ["sha256"], dataset=dataset, unit=unit)["sha256"]
        uids = rows["SOPInstanceUID"].to_numpy(zero_copy_only=False)
        hashes[unit] = pd.util.hash_array(uids.astype(object), categorize=False)
        if rows["duplicate"].null_count < rows.num_rows or sums.null_count < len(sums):
            marked.add(unit)
    values, counts = np.unique(np.concatenate([*hashes.values(), np.empty(0, np.uint64)]), return_counts=True)
    twice = values[counts > 1]
    shared = {}
    for unit, own in hashes.items():
        hit = np.isin(own, twice)
        if hit.any():
            rows = lake.read(headers(), _COLUMNS, dataset=dataset, unit=unit)
            shared[unit] = rows.filter(pa.array(hit))
    return shared, marked


def _groups(source: Source, lake: Lake, shared: Mapping[str, pa.Table]) -> tuple[list[list[_Copy]], int]:
    """The files of each UID that several files have, sorted by path, with their check sums."""
    found: dict[str, list[_Copy]] = defaultdict(list)
    opened = 0
    for unit, rows in shared.items():
        files = lake.read(FILES, ["path", "sha256"], dataset=source.dataset, unit=unit).to_pylist()
        known = {file["path"]: file["sha256"] for file in files if file["sha256"]}
        for row in rows.to_pylist():
            found[row["SOPInstanceUID"]].append(_Copy(row["path"], unit, row, known.get(row["path"])))
    groups = []
    for uid in sorted(found):
        copies = sorted(found[uid])
        if len(copies) > 1:
            opened += sum(copy.sha256 is None for copy in copies)
            groups.append([copy if copy.sha256 else copy._replace(sha256=_sha256(source, copy)) for copy in copies])
    return groups, opened


def _sha256(source: Source, copy: _Copy) -> str | None:
    """The check sum of a file; None where it cannot be read any more, and then nothing equals it."""
    try:
        with source.open(copy.path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # open files have readinto
    except OSError:
        return None


def _finding(dataset: str, copy: _Copy, first: _Copy, *, same: bool) -> Finding:
    return finding(
        "duplicate-same" if same else "duplicate-conflict",
        dataset,
        unit=copy.unit,
        subject=copy.row["subject"],
        sample=copy.row["sample"],
        study_uid=copy.row["StudyInstanceUID"],
        series_uid=copy.row["SeriesInstanceUID"],
        sop_uid=copy.row["SOPInstanceUID"],
        path=copy.path,
        message=f"the same SOPInstanceUID as {first.path}, {'and the same' if same else 'but other'} content",
    )


def _apply(lake: Lake, dataset: str, unit: str, marks: Mapping[str, str], sums: Mapping[str, str | None]) -> None:
    """Rewrite the tables of a unit whose marks or check sums differ from what they should be."""
    where = {"dataset": dataset, "unit": unit}
    mark = lake.fingerprint(FILES, **where) or ""
    _set(
        lake,
        headers(),
        "duplicate",
        marks,
        where,
        f"{mark}+{fingerprint(sorted(marks.items()))[:8]}" if marks else mark,
    )
    _set(lake, FILES, "sha256", sums, where, mark)


def _set(
    lake: Lake, table: Table, column: str, values: Mapping[str, str | None], where: dict[str, str], mark: str
) -> None:
    """Set a column of a unit's table by path, a row group at a time; nothing is written where it stands so."""
    now = lake.read(table, ["path", column], **where)
    if now[column].equals(_values_of(now, values)) and lake.fingerprint(table, **where) == mark:
        return
    pieces = lake.read_pieces(table, **where)
    place = table.schema.names.index(column)
    changed = (piece.set_column(place, column, _values_of(piece, values)) for piece in pieces)
    lake.write_pieces(table, changed, fingerprint=mark, **where)


def _values_of(rows: pa.Table, values: Mapping[str, str | None]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array([values.get(path) for path in rows["path"].to_pylist()], pa.string())])
