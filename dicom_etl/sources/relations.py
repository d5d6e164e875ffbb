"""Whose samples and files are, where no folder says it: what the sheets `samples` and `manifest` know.

An answer is given only where the sheets agree; two people are never made one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from dicom_etl.sources.base import SheetCell
from dicom_etl.sources.grammar import entity


def subjects_of_samples(cells: Iterable[SheetCell]) -> dict[str, str]:
    """Sample -> subject: as the samples sheet says it, or of what the sample was derived from."""
    told: dict[str, set[str]] = defaultdict(set)
    origins: dict[str, set[str]] = defaultdict(set)
    for cell in cells:
        if cell.sheet == "samples" and cell.sample:
            if cell.subject:
                told[cell.sample].add(cell.subject)
            if cell.field == "was derived from":
                origins[cell.sample].add(cell.value)
    found = {sample: _subject_of(sample, told, origins) for sample in {*told, *origins}}
    return {sample: subject for sample, subject in found.items() if subject}


def _subject_of(sample: str, told: Mapping[str, set[str]], origins: Mapping[str, set[str]]) -> str | None:
    seen: set[str] = set()
    while sample not in seen:
        seen.add(sample)
        if subjects := told.get(sample):
            return _only(subjects)
        origin = _only(origins.get(sample, set()))
        if origin is None or entity(origin) == "subject":
            return origin
        sample = origin
    return None


def subjects_of_paths(cells: Iterable[SheetCell], subject_of_sample: Mapping[str, str]) -> dict[str, str]:
    """Path of a file or folder -> subject, by the manifest's column `entity` (SDS 3)."""
    rows: dict[tuple[str, int], dict[str, str]] = defaultdict(dict)
    for cell in cells:
        if cell.sheet == "manifest" and cell.field in {"filename", "entity"}:
            rows[cell.path, cell.row][cell.field] = cell.value
    found: dict[str, str] = {}
    for row in rows.values():
        if len(row) == 2 and (subject := _subject_among(row["entity"].split(), subject_of_sample)):
            found[row["filename"].removeprefix("./").rstrip("/")] = subject
    return found


def _subject_among(entities: list[str], subject_of_sample: Mapping[str, str]) -> str | None:
    subjects = {name for name in entities if entity(name) in {"subject", "pool"}}
    return _only(subjects or {subject_of_sample[name] for name in entities if name in subject_of_sample})


def _only(names: set[str]) -> str | None:
    return next(iter(names)) if len(names) == 1 else None
