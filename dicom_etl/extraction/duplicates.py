"""The same SOPInstanceUID in several files of a dataset.

Every file keeps its row; `duplicate` marks all but the first by path: `same` where the files are equal by SHA-256
(computed for duplicates alone), else `conflict`. This needs the whole dataset, so it is decided when all pieces are
read and before shards are written, from 8 bytes per instance.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from dicom_etl.extraction.reading import uid_hashes
from dicom_etl.findings import Finding, finding
from dicom_etl.sources import Source

# of header rows, and of file rows
COLUMNS = ("unit", "path", "subject", "sample", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
SUM_COLUMNS = ("path", "sha256")


class Instances(NamedTuple):
    """Some instances of a dataset: the hashes of their UIDs, and how to read their rows and check sums."""

    hashes: np.ndarray
    read_rows: Callable[[], pa.Table]  # `COLUMNS`, in the order of the hashes
    read_sums: Callable[[], pa.Table]  # `SUM_COLUMNS`


@dataclass
class Duplicates:
    """What was decided: by unit, the marks and check sums by path."""

    marks: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    sums: dict[str, dict[str, str | None]] = field(default_factory=lambda: defaultdict(dict))
    findings: list[Finding] = field(default_factory=list)
    files_opened: int = 0
    is_complete: bool = True  # every check sum could be made


class _Copy(NamedTuple):
    """A file of a SOPInstanceUID that several files have."""

    path: str
    row: Mapping[str, Any]
    sha256: str | None


def find_duplicates(source: Source, instances: Sequence[Instances]) -> Duplicates:
    """Decide which instances of a dataset are duplicates of which."""
    found = Duplicates()
    for copies in _copies(instances):
        summed = [copy if copy.sha256 else copy._replace(sha256=_sha256(source, copy)) for copy in copies]
        found.files_opened += sum(copy.sha256 is None for copy in copies)
        found.is_complete &= all(copy.sha256 for copy in summed)
        for copy in summed:
            found.sums[copy.row["unit"]][copy.path] = copy.sha256
        for copy in summed[1:]:
            is_same = copy.sha256 is not None and copy.sha256 == summed[0].sha256
            found.marks[copy.row["unit"]][copy.path] = "identical" if is_same else "conflict"
            found.findings.append(_finding(source.dataset, copy, summed[0], is_same=is_same))
    return found


def _copies(instances: Sequence[Instances]) -> Iterable[list[_Copy]]:
    """The files of each UID that several files have, sorted by path."""
    hashes = np.concatenate([np.empty(0, np.uint64), *(some.hashes for some in instances)])
    values, counts = np.unique(hashes, return_counts=True)
    twice = values[counts > 1]
    by_uid: dict[str, list[_Copy]] = defaultdict(list)
    for some in instances:
        if not len(twice) or not np.isin(some.hashes, twice).any():
            continue
        rows = some.read_rows()
        suspects = rows.filter(pa.array(np.isin(uid_hashes(rows["SOPInstanceUID"]), twice)))
        sums = some.read_sums()
        known = dict(zip(sums["path"].to_pylist(), sums["sha256"].to_pylist(), strict=True))
        for row in suspects.to_pylist():
            by_uid[row["SOPInstanceUID"]].append(_Copy(row["path"], row, known.get(row["path"])))
    return [sorted(by_uid[uid]) for uid in sorted(by_uid) if len(by_uid[uid]) > 1]


def _sha256(source: Source, copy: _Copy) -> str | None:
    """The check sum of a file; None where it cannot be read any more, and then nothing equals it."""
    try:
        with source.open(copy.path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # open files have readinto
    except OSError:
        return None


def _finding(dataset: str, copy: _Copy, first: _Copy, *, is_same: bool) -> Finding:
    return finding(
        "duplicate-identical" if is_same else "duplicate-conflict",
        dataset,
        unit=copy.row["unit"],
        subject=copy.row["subject"],
        sample=copy.row["sample"],
        study_uid=copy.row["StudyInstanceUID"],
        series_uid=copy.row["SeriesInstanceUID"],
        sop_uid=copy.row["SOPInstanceUID"],
        path=copy.path,
        message=f"the same SOPInstanceUID as {first.path}, {'and the same' if is_same else 'but other'} content",
    )
