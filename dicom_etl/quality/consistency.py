"""Whether folders, sheets and headers say the same, and whether their values are of the standard's terms.

From facts and sets to tallies and findings of stage `measure`. Not here: completeness, FHIR.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dicom_etl.fhir import terminology
from dicom_etl.findings import Finding, finding
from dicom_etl.headers.catalogue import by_name
from dicom_etl.headers.tag_profile import tag_text
from dicom_etl.identity.masking import shown
from dicom_etl.quality.checks import Measure, Tally
from dicom_etl.quality.facts import Group

__all__ = ["Judged", "Sheets", "consistency", "sheets_of"]

_EARLIEST_STUDY = datetime.date(1975, 1, 1)  # the first clinical CT; ACR-NEMA is of 1985
_TRUE = frozenset({"true", "yes", "1"})


@dataclass(frozen=True)
class Sheets:
    """The entities that the metadata sheets name; `metadata_only` ones need no folder."""

    subjects: frozenset[str] = frozenset()
    pools: frozenset[str] = frozenset()
    samples: frozenset[tuple[str | None, str]] = frozenset()  # subject, sample
    metadata_only: frozenset[tuple[str | None, str | None]] = frozenset()
    has_subjects: bool = False
    has_samples: bool = False


@dataclass
class Judged:
    """Measures and findings as they are made."""

    measures: list[Measure] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def sheets_of(cells: Iterable[Mapping[str, Any]]) -> Sheets:
    """The entities of the SHEETS rows of a dataset."""
    subjects, pools, samples, only, kinds = set(), set(), set(), set(), set()
    for cell in cells:
        kinds.add(cell["sheet"])
        if cell["field"] == "pool id":
            pools.add(cell["value"])
        if cell["field"] == "metadata only" and cell["value"].lower() in _TRUE:
            only.add((cell["subject"], cell["sample"] if cell["sheet"] == "samples" else None))
        if cell["sheet"] == "subjects" and cell["subject"]:
            subjects.add(cell["subject"])
        if cell["sheet"] == "samples" and cell["sample"]:
            samples.add((cell["subject"], cell["sample"]))
    return Sheets(
        frozenset(subjects),
        frozenset(pools),
        frozenset(samples),
        frozenset(only),
        "subjects" in kinds,
        "samples" in kinds,
    )


def consistency(
    dataset: str,
    studies: Sequence[Group],
    series: Sequence[Group],
    folders: Iterable[tuple[str | None, str | None]],
    sheets: Sheets,
    as_of: datetime.date | None,
) -> Judged:
    """All measures of this module over a dataset; `folders` are the (subject, sample) that the tree has."""
    judged = Judged()
    folders = list(folders)
    _subjects(judged, dataset, {subject for subject, _ in folders if subject}, sheets)
    _samples(judged, dataset, {(subject, sample) for subject, sample in folders if sample}, sheets)
    _counts(judged, dataset, studies, series)
    _modalities(judged, dataset, series)
    judged.measures += _tallied("body-part-known", "series", map(_body_part, series))
    judged.measures += _tallied("series-one-sample", "series", map(_one_sample, series))
    judged.measures += _tallied("birth-before-study", "study", map(_birth, studies))
    judged.measures += _tallied("study-date-range", "study", (_study_date(study, as_of) for study in studies))
    return judged


_NOT_APPLICABLE = "(not applicable)"


def _tallied(check: str, level: str, failures: Iterable[str | None]) -> Iterator[Measure]:
    tally = Tally(check, level)
    for failure in failures:
        if failure != _NOT_APPLICABLE:
            tally.add(failure)
    return tally.measures()


# -- folders and sheets -----------------------------------------------------------------------------------------------


def _subjects(judged: Judged, dataset: str, folders: set[str], sheets: Sheets) -> None:
    tally = Tally("subjects-match", "subject")
    failing: dict[str, str] = {}
    if sheets.has_subjects:
        for subject in sorted(folders | sheets.subjects):
            failing |= _subject(judged, dataset, subject, folders, sheets, tally)
    judged.measures += tally.measures()
    for subject, reason in failing.items():
        own = Tally("subjects-match", "subject", group_by="subject", group=subject)
        own.add(reason)
        judged.measures += own.measures()


def _subject(
    judged: Judged, dataset: str, subject: str, folders: set[str], sheets: Sheets, tally: Tally
) -> dict[str, str]:
    if subject not in sheets.subjects | sheets.pools:
        judged.findings.append(finding("subject-not-in-sheet", dataset, unit=subject, subject=subject))
        reason = "folder without a row in the sheet"
    elif subject not in folders and (subject, None) not in sheets.metadata_only:
        judged.findings.append(finding("subject-not-in-tree", dataset, subject=subject))
        reason = "row without a folder"
    else:
        tally.add(None)
        return {}
    tally.add(reason)
    return {subject: reason}


def _samples(judged: Judged, dataset: str, folders: set[tuple[str | None, str]], sheets: Sheets) -> None:
    tally = Tally("samples-match", "sample")
    if sheets.has_samples:
        # a sheet without subjects names samples that are unique in the dataset
        free = {sample for subject, sample in sheets.samples if subject is None}
        rows = {place for place in sheets.samples if place[0] is not None}
        placed = {sample for _, sample in folders}
        for subject, sample in sorted(folders, key=str):
            listed = (subject, sample) in rows or sample in free
            tally.add(None if listed else "folder without a row in the sheet")
            if not listed:
                judged.findings.append(
                    finding("sample-not-in-sheet", dataset, unit=subject, subject=subject, sample=sample)
                )
        missing = (rows - folders) | {(None, sample) for sample in free - placed}
        for subject, sample in sorted(missing, key=str):
            exempt = {(subject, sample), (subject, None)} & sheets.metadata_only
            tally.add(None if exempt else "row without a folder")
            if not exempt:
                judged.findings.append(finding("sample-not-in-tree", dataset, subject=subject, sample=sample))
    judged.measures += tally.measures()


def _one_sample(series: Group) -> str | None:
    samples = {(row["subject"], row["sample"]) for row in series.rows if row["sample"]}
    if not samples:
        return _NOT_APPLICABLE
    return f"in the folders of {len(samples)} samples" if len(samples) > 1 else None


# -- numbers ----------------------------------------------------------------------------------------------------------


def _counts(judged: Judged, dataset: str, studies: Sequence[Group], series: Sequence[Group]) -> None:
    in_study: dict[str, int] = {}
    for group in series:
        in_study[group.study] = in_study.get(group.study, 0) + 1
    of_studies, of_series = Tally("counts-agree", "study"), Tally("counts-agree", "series")
    for study in studies:
        _count(judged, dataset, study, "NumberOfStudyRelatedSeries", in_study.get(study.study, 0), of_studies)
        _count(judged, dataset, study, "NumberOfStudyRelatedInstances", study.instances, of_studies)
    for group in series:
        _count(judged, dataset, group, "NumberOfSeriesRelatedInstances", group.instances, of_series)
    judged.measures += [*of_studies.measures(), *of_series.measures()]


def _count(judged: Judged, dataset: str, group: Group, column: str, counted: int, tally: Tally) -> None:
    """Compare what the instances of a group say with what was counted."""
    numbers = group.values(column)
    if numbers == [counted]:
        tally.add(None)
    elif numbers:
        tally.add(f"{column}: another number was counted")
        judged.findings.append(_count_finding(dataset, group, column, numbers, counted))


def _count_finding(dataset: str, group: Group, column: str, numbers: list[int], counted: int) -> Finding:
    says = " and ".join(str(number) for number in numbers)
    return finding(
        "count-disagrees",
        dataset,
        **group.place,
        tag=_tag(column),
        value=says,
        message=f"{column} says {says}; {counted} counted",
    )


def _tag(column: str) -> str:
    return tag_text(by_name()[column].tag)


# -- terms and dates --------------------------------------------------------------------------------------------------


def _modalities(judged: Judged, dataset: str, series: Sequence[Group]) -> None:
    tally = Tally("modality-known", "series")
    for group in series:
        unknown = [code for code in group.values("Modality") if terminology.modality(code) is None]
        if group.values("Modality"):
            tally.add(shown("Modality", unknown[0]) if unknown else None)
        for code in unknown:
            found = finding(
                "modality-unknown", dataset, **group.place, tag=_tag("Modality"), value=shown("Modality", code)
            )
            judged.findings.append(found)
    judged.measures += tally.measures()


def _body_part(series: Group) -> str | None:
    parts = series.values("BodyPartExamined")
    if not parts:
        return _NOT_APPLICABLE
    unknown = [part for part in parts if terminology.body_site(part) is None]
    return shown("BodyPartExamined", unknown[0]) if unknown else None


def _birth(study: Group) -> str | None:
    births, dates = study.values("PatientBirthDate"), study.values("StudyDate")
    if not births or not dates:
        return _NOT_APPLICABLE
    return "born after the study" if max(births) > min(dates) else None


def _study_date(study: Group, as_of: datetime.date | None) -> str | None:
    dates = study.values("StudyDate")
    if not dates:
        return _NOT_APPLICABLE
    if min(dates) < _EARLIEST_STUDY:
        return "before 1975"
    return "in the future" if as_of is not None and max(dates) > as_of else None
