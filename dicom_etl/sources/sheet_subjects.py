"""Subjects of samples and files according to the sheets `samples` and `manifest`, where no folder names them.

A subject is assigned only if the sheets agree on it, so that two people are never merged into one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from dicom_etl.sources.base import SheetCell
from dicom_etl.sources.grammar import match_entity


def map_samples_to_subjects(cells: Iterable[SheetCell]) -> dict[str, str]:
    """Sample -> subject: as the samples sheet states it, else the subject of what the sample was derived from."""
    stated: dict[str, set[str]] = defaultdict(set)
    origins: dict[str, set[str]] = defaultdict(set)
    for cell in cells:
        if cell.sheet == "samples" and cell.sample:
            if cell.subject:
                stated[cell.sample].add(cell.subject)
            if cell.field == "was derived from":
                origins[cell.sample].add(cell.value)
    subjects = {sample: _find_subject(sample, stated, origins) for sample in {*stated, *origins}}
    return {sample: subject for sample, subject in subjects.items() if subject}


def _find_subject(sample: str, stated: Mapping[str, set[str]], origins: Mapping[str, set[str]]) -> str | None:
    """The subject of a sample, by its chain of origins; None if they are ambiguous or in a circle."""
    visited: set[str] = set()
    while sample not in visited:
        visited.add(sample)
        if subjects := stated.get(sample):
            return _single(subjects)
        origin = _single(origins.get(sample, set()))
        if origin is None or match_entity(origin) == "subject":
            return origin
        sample = origin
    return None


def map_paths_to_subjects(cells: Iterable[SheetCell], subject_of_sample: Mapping[str, str]) -> dict[str, str]:
    """Path of a file or folder -> subject, by the manifest's column `entity` (SDS 3)."""
    rows: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    for cell in cells:
        if cell.sheet == "manifest" and cell.field in {"filename", "entity"}:
            rows[cell.path, cell.row][cell.field] = cell.value
    subject_of_path: dict[str, str] = {}
    for row in rows.values():
        if len(row) == 2:
            entities = row["entity"].split()
            subjects = {name for name in entities if match_entity(name) in {"subject", "pool"}}
            subjects = subjects or {subject_of_sample[name] for name in entities if name in subject_of_sample}
            if subject := _single(subjects):
                subject_of_path[row["filename"].removeprefix("./").rstrip("/")] = subject
    return subject_of_path


def _single(names: set[str]) -> str | None:
    return next(iter(names)) if len(names) == 1 else None
