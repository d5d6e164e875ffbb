"""Subjects of samples and files according to the sheets."""

from __future__ import annotations

import pytest

from dicom_etl.sources.base import SheetCell
from dicom_etl.sources.sheet_subjects import map_paths_to_subjects, map_samples_to_subjects


def samples(*rows: dict[str, str]) -> list[SheetCell]:
    return [
        SheetCell("samples", "samples.csv", number, row.get("subject id"), row.get("sample id"), field, value)
        for number, row in enumerate(rows, start=2)
        for field, value in row.items()
    ]


def manifest(*rows: dict[str, str]) -> list[SheetCell]:
    return [
        SheetCell("manifest", "manifest.csv", number, None, None, field, value)
        for number, row in enumerate(rows, start=2)
        for field, value in row.items()
    ]


def test_a_sample_belongs_to_the_subject_of_its_row() -> None:
    assert map_samples_to_subjects(samples({"sample id": "sam-1", "subject id": "sub-1"})) == {"sam-1": "sub-1"}


def test_a_sample_of_several_subjects_belongs_to_none() -> None:
    rows = samples(
        {"sample id": "sam-1", "subject id": "sub-1"},
        {"sample id": "sam-1", "subject id": "sub-2"},
        {"sample id": "sam-2", "subject id": "sub-2"},
    )
    assert map_samples_to_subjects(rows) == {"sam-2": "sub-2"}


def test_a_sample_without_a_subject_has_that_of_its_origin() -> None:
    rows = samples(
        {"sample id": "sam-1", "was derived from": "sub-1"},
        {"sample id": "sam-2", "was derived from": "sam-1"},
        {"sample id": "sam-3", "was derived from": "sam-4"},
        {"sample id": "sam-4", "subject id": "sub-4"},
    )
    assert map_samples_to_subjects(rows) == {"sam-1": "sub-1", "sam-2": "sub-1", "sam-3": "sub-4", "sam-4": "sub-4"}


def test_samples_with_circular_or_unknown_origins_have_no_subject() -> None:
    rows = samples(
        {"sample id": "sam-1", "was derived from": "sam-2"},
        {"sample id": "sam-2", "was derived from": "sam-1"},
        {"sample id": "sam-3", "was derived from": "sam-9"},
        {"sample id": "sam-5"},
    )
    assert map_samples_to_subjects(rows) == {}


@pytest.mark.parametrize(
    ("entities", "subject"),
    [
        ("sub-1", "sub-1"),
        ("pool-1", "pool-1"),
        ("sam-1", "sub-7"),
        ("sub-1 sam-2 perf-1", "sub-1"),
        ("sub-1 sub-2", None),
        ("sam-3", None),
        ("site-1", None),
    ],
)
def test_the_manifest_names_one_subject_or_none(entities: str, subject: str | None) -> None:
    cells = manifest({"filename": "./primary/x/", "entity": entities})
    subject_of_path = map_paths_to_subjects(cells, {"sam-1": "sub-7"})
    assert subject_of_path == ({"primary/x": subject} if subject else {})


def test_an_incomplete_row_of_the_manifest_is_ignored() -> None:
    assert map_paths_to_subjects(manifest({"filename": "a.dcm"}, {"entity": "sub-1"}), {}) == {}
