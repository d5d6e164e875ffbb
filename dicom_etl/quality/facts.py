"""What consistency and readiness judge: the distinct values that the instances of a series have of a few columns.

A series of a thousand slices says the same thing a thousand times; here it says it once, with a number. Not here:
judging.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["FACT_COLUMNS", "Group", "by_series", "by_study", "facts"]

FACT_COLUMNS = (
    "unit",
    "subject",
    "sample",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "StudyDate",
    "StudyTime",
    "TimezoneOffsetFromUTC",
    "AccessionNumber",
    "StudyDescription",
    "SeriesDescription",
    "BodyPartExamined",
    "AnatomicRegionCodeValue",
    "AnatomicRegionSchemeDesignator",
    "Laterality",
    "ImageLaterality",
    "FrameLaterality",
    "PatientID",
    "PatientSex",
    "PatientBirthDate",
    "NumberOfStudyRelatedSeries",
    "NumberOfStudyRelatedInstances",
    "NumberOfSeriesRelatedInstances",
)


@dataclass(frozen=True)
class Group:
    """The facts of a study or a series."""

    study: str
    series: str | None
    rows: Sequence[Mapping[str, Any]]

    def values(self, column: str) -> list[Any]:
        """The different values of a column, sorted, without nulls."""
        return sorted({row[column] for row in self.rows} - {None})

    @property
    def instances(self) -> int:
        """How many instances it has."""
        return sum(row["n"] for row in self.rows)

    @property
    def place(self) -> dict[str, Any]:
        """Unit, subject, study and series, as a finding names them."""
        first = self.rows[0]
        return {
            "unit": first["unit"],
            "subject": first["subject"],
            "study_uid": self.study,
            "series_uid": self.series,
        }


def facts(rows: pa.Table) -> pa.Table:
    """The distinct combinations of `FACT_COLUMNS` with their number `n`; marked duplicates left out."""
    kept = rows.filter(pc.is_null(rows["duplicate"])).select(list(FACT_COLUMNS))
    counted = kept.append_column("n", pa.array([1] * kept.num_rows, pa.int64()))
    return counted.group_by(list(FACT_COLUMNS)).aggregate([("n", "sum")]).rename_columns({"n_sum": "n"})


def by_study(rows: Iterable[Mapping[str, Any]]) -> list[Group]:
    """The studies, sorted; rows without StudyInstanceUID belong to none."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["StudyInstanceUID"]:
            groups[row["StudyInstanceUID"]].append(row)
    return [Group(study, None, groups[study]) for study in sorted(groups)]


def by_series(studies: Iterable[Group]) -> list[Group]:
    """The series of the studies, sorted; a SeriesInstanceUID in two studies is two series."""
    found = []
    for study in studies:
        groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for row in study.rows:
            if row["SeriesInstanceUID"]:
                groups[row["SeriesInstanceUID"]].append(row)
        found += [Group(study.study, series, groups[series]) for series in sorted(groups)]
    return found
