"""The path grammar: the example of every entry, and the subject and sample of whole paths."""

from __future__ import annotations

import pytest

from dicom_etl.sources.grammar import (
    PathEntities,
    RoleFolder,
    find_entities,
    find_role_folder,
    load_grammar,
    load_role_folders,
    match_entity,
    match_sheet,
    match_system_file,
)


@pytest.mark.parametrize("entry", load_grammar()["entities"], ids=lambda entry: entry["example"])
def test_examples_of_entities(entry: dict[str, str]) -> None:
    assert match_entity(entry["example"]) == entry["entity"]


@pytest.mark.parametrize("entry", load_grammar()["system_files"], ids=lambda entry: entry["example"])
def test_examples_of_system_files(entry: dict[str, str]) -> None:
    assert match_system_file(entry["example"]) == entry["class"]


@pytest.mark.parametrize("entry", load_grammar()["roles"], ids=lambda entry: entry["folder"])
def test_examples_of_roles(entry: dict[str, str]) -> None:
    assert load_role_folders()[entry["example"].split("/")[0]] == entry["role"]


@pytest.mark.parametrize("kind", load_grammar()["sheets"])
@pytest.mark.parametrize("suffix", load_grammar()["sheet_suffixes"])
def test_sheets_have_four_types_and_any_case(kind: str, suffix: str) -> None:
    assert match_sheet(f"{kind}{suffix}") == kind
    assert match_sheet(f"{kind}{suffix}".upper()) == kind


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sub-1", "subject"),
        ("subj-01", "subject"),
        ("pop-3", "pool"),
        ("pool-a", "pool"),
        ("samp-2", "sample"),
        ("spec-2", "sample"),
        ("sub-1_sam-2", "sample"),
        ("pop-sam-1", "sample"),
        ("pop-sub-1", "pool"),
        ("pop-perf-1", "performance"),
        ("pop-site-1", "site"),
        ("Breast_MRI_001", None),
        ("sub-", None),
        ("sub1", None),
        ("mysub-1", None),
        ("Sub-1", None),
    ],
)
def test_a_folder_name_denotes_an_entity_or_none(name: str, expected: str | None) -> None:
    assert match_entity(name) == expected


@pytest.mark.parametrize("name", [".dss", "bids.dss"])
def test_files_that_name_the_standard_are_system_files(name: str) -> None:
    assert match_system_file(name) == "SDS standard"


@pytest.mark.parametrize("name", ["1.dcm", "IM0001", "image.IMA", "1.2.840.113619", "readme-of-1.dcm", ".hidden.dcm"])
def test_a_file_that_may_be_dicom_is_not_a_system_file(name: str) -> None:
    assert match_system_file(name) is None


@pytest.mark.parametrize("name", ["subjects.dcm", "subjects", "my_subjects.xlsx", "notes.csv"])
def test_a_file_of_another_name_or_type_is_not_a_sheet(name: str) -> None:
    assert match_sheet(name) is None


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ("sub-1", PathEntities("sub-1", None)),
        ("sub-1/sam-2", PathEntities("sub-1", "sam-2")),
        ("sub-1/perf-1/sam-2", PathEntities("sub-1", "sam-2")),
        ("sub-1/sam-3/sam-4", PathEntities("sub-1", "sam-4")),
        ("sub-2/perf-1/sam-2", PathEntities("sub-2", "sam-2")),
        ("sub-1/perf-1", PathEntities("sub-1", None)),
        ("sub-1/sam-1/perf-2/site-b", PathEntities("sub-1", "sam-1")),
        ("subj-1/samp-2", PathEntities("subj-1", "samp-2")),
        ("subj-1/spec-2", PathEntities("subj-1", "spec-2")),
        ("sub-1/pop-sam-2", PathEntities("sub-1", "pop-sam-2")),
        ("pool-1", PathEntities("pool-1", None)),
        ("pool-1/sub-2", PathEntities("sub-2", None)),
        ("pop-1", PathEntities("pop-1", None)),
        ("sam-1/perf-1", PathEntities(None, "sam-1")),
        ("sub-ä 1/sam-名", PathEntities("sub-ä 1", "sam-名")),
        ("sub-1/sub-1_sam-2", PathEntities("sub-1", "sub-1_sam-2")),
        ("sub-1/sam-1/DICOM/series one", PathEntities("sub-1", "sam-1")),
        ("pool-1/sub-2/sam-1", PathEntities("sub-2", "sam-1")),
        ("pool-1/perf-1", PathEntities("pool-1", None)),
        ("pop-7/sam-1", PathEntities("pop-7", "sam-1")),
        ("site-a/sub-1", PathEntities("sub-1", None)),
        ("Breast_MRI_001/sequence1", PathEntities("Breast_MRI_001", None)),
        ("hospital/sub-4", PathEntities("sub-4", None)),
        ("sam-1", PathEntities(None, "sam-1")),
        ("", PathEntities(None, None)),
    ],
)
def test_folders_name_subject_and_sample(folders: str, expected: PathEntities) -> None:
    assert find_entities(folders.split("/") if folders else [], {}) == expected


def test_a_flat_sample_belongs_to_the_subject_of_the_samples_sheet() -> None:
    assert find_entities(["sam-9", "perf-1"], {"sam-9": "sub-4"}) == PathEntities("sub-4", "sam-9")


def test_folders_take_precedence_over_the_samples_sheet() -> None:
    assert find_entities(["sub-1", "sam-9"], {"sam-9": "sub-4"}) == PathEntities("sub-1", "sam-9")


def test_samples_sheet_before_manifest_before_first_folder() -> None:
    assert find_entities(["sam-9"], {"sam-9": "sub-4"}, "sub-5") == PathEntities("sub-4", "sam-9")
    assert find_entities(["scans", "sam-9"], {}, "sub-5") == PathEntities("sub-5", "sam-9")
    assert find_entities(["sub-1"], {}, "sub-5") == PathEntities("sub-1", None)


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ("primary/sub-1", RoleFolder("primary", 1)),
        ("dataset/derivatives/sub-1", RoleFolder("derivative", 2)),
        ("sub-1/primary", None),
        ("dataset/sub-1", None),
    ],
)
def test_a_role_folder_comes_before_the_first_entity(folders: str, expected: RoleFolder | None) -> None:
    assert find_role_folder(folders.split("/")) == expected
