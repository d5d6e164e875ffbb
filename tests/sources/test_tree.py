"""A dataset as a folder tree: which files it has, whose they are, and what is said of the rest.

The files hold no DICOM: the tree never looks into one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dicom_etl.findings import Finding
from dicom_etl.settings import DatasetSettings
from dicom_etl.sources import Entry, Scan, SourceError, TreeSource
from dicom_etl.sources.base import SheetCell

ROLES = ("primary", "derivative", "source")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "ds").mkdir()
    return tmp_path / "ds"


def fill(root: Path, *paths: str, content: str = "x") -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)


def scanned(root: Path, roles: tuple[str, ...] = ("primary",), **given: Any) -> tuple[dict[str, Entry], Scan]:
    scan = Scan(**given)
    entries = list(TreeSource("ds", root, roles).scan(scan))
    assert len({entry.path for entry in entries}) == len(entries)
    return {entry.path: entry for entry in entries}, scan


def places(root: Path, roles: tuple[str, ...] = ("primary",)) -> dict[str, tuple[str, str | None, str | None]]:
    """Unit, subject and sample of each path."""
    return {path: (e.unit, e.subject, e.sample) for path, e in scanned(root, roles)[0].items()}


def found(scan: Scan, code: str) -> list[Finding]:
    return [finding for finding in scan.findings if finding.code == code]


# -- layouts ----------------------------------------------------------------------------------------------------------


def test_subjects_and_samples_below_primary(root: Path) -> None:
    fill(root, "primary/sub-1/sam-1/1.dcm", "primary/sub-2/2.dcm")
    assert places(root) == {
        "primary/sub-1/sam-1/1.dcm": ("sub-1", "sub-1", "sam-1"),
        "primary/sub-2/2.dcm": ("sub-2", "sub-2", None),
    }


def test_primary_alone_needs_no_remark(root: Path) -> None:
    fill(root, "primary/sub-1/sam-1/1.dcm")
    assert scanned(root)[1].findings == []


def test_performances_stand_between_or_below(root: Path) -> None:
    fill(root, "primary/sub-1/perf-1/sam-1/1.dcm", "primary/sub-1/sam-2/perf-2/2.dcm", "primary/sub-2/perf-1/3.dcm")
    assert places(root) == {
        "primary/sub-1/perf-1/sam-1/1.dcm": ("sub-1", "sub-1", "sam-1"),
        "primary/sub-1/sam-2/perf-2/2.dcm": ("sub-1", "sub-1", "sam-2"),
        "primary/sub-2/perf-1/3.dcm": ("sub-2", "sub-2", None),
    }


def test_of_nested_samples_the_deepest_counts(root: Path) -> None:
    fill(root, "primary/sub-1/sam-3/sam-4/1.dcm")
    assert places(root) == {"primary/sub-1/sam-3/sam-4/1.dcm": ("sub-1", "sub-1", "sam-4")}


def test_a_pool_is_the_subject_where_there_is_no_other(root: Path) -> None:
    fill(root, "primary/pool-1/1.dcm", "primary/pool-1/sub-2/2.dcm")
    assert places(root) == {
        "primary/pool-1/1.dcm": ("pool-1", "pool-1", None),
        "primary/pool-1/sub-2/2.dcm": ("sub-2", "sub-2", None),
    }


def test_flat_samples_belong_to_the_subjects_of_the_samples_sheet(root: Path) -> None:
    fill(root, "primary/sam-1/1.dcm", "primary/sam-2/perf-1/2.dcm", "primary/sam-3/3.dcm")
    (root / "samples.csv").write_text("sample id,subject id\nsam-1,sub-1\nsam-2,sub-2\n")
    assert places(root) == {
        "primary/sam-1/1.dcm": ("sub-1", "sub-1", "sam-1"),
        "primary/sam-2/perf-1/2.dcm": ("sub-2", "sub-2", "sam-2"),
        "primary/sam-3/3.dcm": (".", None, "sam-3"),
    }


def test_the_manifest_names_the_subjects_of_files_and_folders(root: Path) -> None:
    fill(root, "primary/scans/a/1.dcm", "primary/scans/b/2.dcm", "primary/sub-1/3.dcm", "primary/scans/c/4.dcm")
    (root / "manifest.csv").write_text(
        "filename,entity\nprimary/scans/a/1.dcm,sub-5\nprimary/scans/b,sub-6\nprimary/sub-1/3.dcm,sub-7\n"
    )
    assert places(root) == {
        "primary/scans/a/1.dcm": ("sub-5", "sub-5", None),
        "primary/scans/b/2.dcm": ("sub-6", "sub-6", None),
        "primary/scans/c/4.dcm": ("scans", "scans", None),
        "primary/sub-1/3.dcm": ("sub-1", "sub-1", None),
    }


def test_a_flat_sample_of_several_subjects_belongs_to_none(root: Path) -> None:
    fill(root, "primary/sam-1/1.dcm")
    (root / "samples.csv").write_text("sample id,subject id\nsam-1,sub-1\nsam-1,sub-2\n")
    assert places(root) == {"primary/sam-1/1.dcm": (".", None, "sam-1")}


def test_every_path_of_the_standard_is_placed(root: Path) -> None:
    fill(
        root,
        "primary/pop-1/1.dcm",
        "primary/pool-2/perf-1/1.dcm",
        "primary/sub-1/perf-1/1.dcm",
        "primary/sub-2/perf-1/sam-2/1.dcm",
        "primary/sub-3/sub-3_sam-2/1.dcm",
        "primary/sub-4/sam-1/perf-1/site-1/1.dcm",
    )
    assert {path.removeprefix("primary/"): place[1:] for path, place in places(root).items()} == {
        "pop-1/1.dcm": ("pop-1", None),
        "pool-2/perf-1/1.dcm": ("pool-2", None),
        "sub-1/perf-1/1.dcm": ("sub-1", None),
        "sub-2/perf-1/sam-2/1.dcm": ("sub-2", "sam-2"),
        "sub-3/sub-3_sam-2/1.dcm": ("sub-3", "sub-3_sam-2"),
        "sub-4/sam-1/perf-1/site-1/1.dcm": ("sub-4", "sam-1"),
    }


def test_one_sample_id_may_stand_below_each_subject(root: Path) -> None:
    fill(root, "primary/sub-1/sam-1/1.dcm", "primary/sub-2/sam-1/1.dcm")
    assert places(root) == {
        "primary/sub-1/sam-1/1.dcm": ("sub-1", "sub-1", "sam-1"),
        "primary/sub-2/sam-1/1.dcm": ("sub-2", "sub-2", "sam-1"),
    }


def test_names_with_blanks_and_other_scripts_are_names(root: Path) -> None:
    fill(root, "primary/sub-Ä 1/sam-名 前/scan 1/Bild (ü).dcm", "Ordner/1.dcm")
    assert places(root) == {"primary/sub-Ä 1/sam-名 前/scan 1/Bild (ü).dcm": ("sub-Ä 1", "sub-Ä 1", "sam-名 前")}


def test_a_root_without_folders_is_read(root: Path) -> None:
    fill(root, "1.dcm", "IM0002")
    assert places(root) == {"1.dcm": (".", None, None), "IM0002": (".", None, None)}


def test_subjects_without_primary_are_read_with_a_remark(root: Path) -> None:
    fill(root, "sub-1/sam-1/1.dcm")
    entries, scan = scanned(root)
    assert (entries["sub-1/sam-1/1.dcm"].subject, entries["sub-1/sam-1/1.dcm"].role) == ("sub-1", "primary")
    assert [finding.code for finding in scan.findings] == ["sds-layout-deviation"]


def test_an_sds_root_without_primary_leaves_out_code_and_docs(root: Path) -> None:
    fill(root, "dataset_description.csv", "sub-1/1.dcm", "code/run.py", "docs/a.pdf", "protocol/p.pdf")
    assert set(scanned(root)[0]) == {"sub-1/1.dcm"}


def test_outside_sds_the_first_folder_is_the_subject(root: Path) -> None:
    fill(root, "Breast_MRI_001/sequence1/1.dcm", "Breast_MRI_002/1.dcm", "code/1.dcm", "loose.dcm")
    entries, scan = scanned(root)
    assert {path: (entry.unit, entry.subject) for path, entry in entries.items()} == {
        "Breast_MRI_001/sequence1/1.dcm": ("Breast_MRI_001", "Breast_MRI_001"),
        "Breast_MRI_002/1.dcm": ("Breast_MRI_002", "Breast_MRI_002"),
        "code/1.dcm": ("code", "code"),
        "loose.dcm": (".", None),
    }
    assert scan.findings == []


def test_derivatives_and_sources_are_left_out_by_default(root: Path) -> None:
    fill(root, "primary/sub-1/1.dcm", "derivative/sub-1/mask.dcm", "source/sub-1/raw.dcm")
    assert set(scanned(root)[0]) == {"primary/sub-1/1.dcm"}


def test_each_wanted_role_is_told_apart(root: Path) -> None:
    fill(root, "primary/sub-1/1.dcm", "derivatives/sub-1/mask.dcm", "sourcedata/sub-1/raw.dcm")
    assert {path: entry.role for path, entry in scanned(root, ROLES)[0].items()} == {
        "primary/sub-1/1.dcm": "primary",
        "derivatives/sub-1/mask.dcm": "derivative",
        "sourcedata/sub-1/raw.dcm": "source",
    }


def test_without_primary_the_derivatives_are_not_counted_twice(root: Path) -> None:
    fill(root, "sub-1/1.dcm", "derivative/sub-1/mask.dcm")
    assert {path: entry.role for path, entry in scanned(root, ROLES)[0].items()} == {
        "sub-1/1.dcm": "primary",
        "derivative/sub-1/mask.dcm": "derivative",
    }


@pytest.mark.parametrize("role", ["derivative", "source"])
def test_a_role_alone_can_be_asked_for(root: Path, role: str) -> None:
    fill(root, "primary/sub-1/1.dcm", "derivative/sub-1/1.dcm", "source/sub-1/1.dcm")
    entries = scanned(root, (role,))[0]
    assert {path: (entry.subject, entry.role) for path, entry in entries.items()} == {
        f"{role}/sub-1/1.dcm": ("sub-1", role)
    }


def test_the_six_and_the_optional_folders_of_sds_hold_no_primary_files(root: Path) -> None:
    others = ["code", "docs", "protocol", "auxiliary"]
    fill(root, "primary/sub-1/1.dcm", *(f"{folder}/sub-1/1.dcm" for folder in others))
    assert set(scanned(root)[0]) == {"primary/sub-1/1.dcm"}


def test_any_suffix_and_none_may_be_dicom(root: Path) -> None:
    names = {"1.DCM", "2.IMA", "IM000001", "1.2.840.1", "scan.nii.gz", "ünïcode – 名.dcm", "with space.dcm"}
    fill(root, *(f"primary/sub-1/{name}" for name in names))
    assert {path.rsplit("/", 1)[1] for path in scanned(root)[0]} == names


def test_an_entry_has_size_and_modification_time(root: Path) -> None:
    fill(root, "primary/sub-1/1.dcm", content="12345")
    os.utime(root / "primary/sub-1/1.dcm", ns=(0, 1_600_000_000_123_456_789))
    entry = scanned(root)[0]["primary/sub-1/1.dcm"]
    assert (entry.size, entry.mtime) == (5, 1_600_000_000_123_456_789)


def test_an_empty_root_has_no_files_and_no_findings(root: Path) -> None:
    assert scanned(root) == ({}, Scan())


def test_a_missing_root_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"dataset ds: the folder .*gone does not exist"):
        TreeSource.from_settings("ds", DatasetSettings(root=str(tmp_path / "gone")))


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, "file")
    with pytest.raises(SourceError, match="is not a folder"):
        TreeSource.from_settings("ds", DatasetSettings(root=str(tmp_path / "file")))


def test_the_location_is_a_uri(root: Path) -> None:
    assert TreeSource("ds", root).location == root.resolve().as_uri()


# -- junk -------------------------------------------------------------------------------------------------------------


def test_junk_is_left_out_and_counted_by_class(root: Path) -> None:
    fill(root, "primary/sub-1/1.dcm", "primary/sub-1/._1.dcm", "primary/sub-1/._2.dcm", "primary/sub-1/Thumbs.db")
    fill(root, "primary/__MACOSX/sub-1/1.dcm", "primary/sub-1/.DS_Store", "primary/sub-1/desktop.ini")
    entries, scan = scanned(root)
    assert set(entries) == {"primary/sub-1/1.dcm"}
    assert {finding.value: finding.count for finding in found(scan, "system-files-skipped")} == {
        "AppleDouble": 2,
        "Windows thumbnails": 1,
        "Windows folder settings": 1,
        "macOS archive folder": 1,
        "macOS folder settings": 1,
    }


def test_the_texts_and_sheets_of_every_version_are_no_files(root: Path) -> None:
    fill(root, "README", "README.md", "CHANGES", "CHANGES.rst", "LICENSE", ".dss", "sub-1/.dss", "sub-1/1.dcm")
    kinds = """dataset_description subjects samples manifest performances sites specimens submission resources
    code_description code_parameters curation""".split()
    fill(root, *(f"{kind}.tsv" for kind in kinds), "sub-1/plog.xlsx", "sub-1/manifest.xlsx")
    entries, scan = scanned(root)
    assert set(entries) == {"sub-1/1.dcm"}
    assert {finding.value: finding.count for finding in found(scan, "system-files-skipped")} == {
        "SDS standard": 2,
        "text of the dataset": 5,
        "plog": 1,
    }


def test_a_dicomdir_and_images_of_other_kinds_are_files(root: Path) -> None:
    fill(root, "primary/sub-1/DICOMDIR", "primary/sub-1/a.nrrd", "primary/sub-1/a.nii.gz", "primary/sub-1/a.tar.gz")
    assert {path.rpartition("/")[2] for path in scanned(root)[0]} == {"DICOMDIR", "a.nrrd", "a.nii.gz", "a.tar.gz"}


def test_sheets_below_primary_are_no_files(root: Path) -> None:
    fill(root, "primary/sub-1/1.dcm", "primary/manifest.xlsx", "primary/sub-1/manifest.csv")
    assert set(scanned(root)[0]) == {"primary/sub-1/1.dcm"}


def test_a_pipe_is_no_file(root: Path) -> None:
    fill(root, "primary/sub-1/1.dcm")
    os.mkfifo(root / "primary/sub-1/pipe.dcm")
    entries, scan = scanned(root)
    assert set(entries) == {"primary/sub-1/1.dcm"}
    assert [finding.path for finding in found(scan, "special-file-skipped")] == ["primary/sub-1/pipe.dcm"]


# -- symbolic links ---------------------------------------------------------------------------------------------------


def link(root: Path, path: str, target: str | Path) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).symlink_to(target)


def test_a_link_to_a_file_elsewhere_in_the_root_is_read(root: Path) -> None:
    fill(root, "store/a.dcm", content="123")
    link(root, "primary/sub-1/1.dcm", root / "store/a.dcm")
    entries, scan = scanned(root)
    assert {path: entry.size for path, entry in entries.items()} == {"primary/sub-1/1.dcm": 3}
    assert scan.findings == []


def test_a_link_to_a_folder_elsewhere_in_the_root_is_walked(root: Path) -> None:
    fill(root, "store/a.dcm", "store/deep/b.dcm")
    link(root, "primary/sub-1", root / "store")
    assert places(root) == {
        "primary/sub-1/a.dcm": ("sub-1", "sub-1", None),
        "primary/sub-1/deep/b.dcm": ("sub-1", "sub-1", None),
    }


def test_a_link_to_what_is_read_anyway_is_no_second_file(root: Path) -> None:
    fill(root, "primary/sub-1/1.dcm")
    link(root, "primary/sub-0/1.dcm", root / "primary/sub-1/1.dcm")
    link(root, "primary/sub-2", root / "primary/sub-1")
    entries, scan = scanned(root)
    assert set(entries) == {"primary/sub-1/1.dcm"}
    assert {finding.path for finding in found(scan, "link-repeated")} == {"primary/sub-0/1.dcm", "primary/sub-2"}


@pytest.mark.parametrize("target", ["secret.dcm", "folder"])
def test_a_link_out_of_the_root_is_not_followed(root: Path, target: str) -> None:
    fill(root.parent, "secret.dcm", "folder/1.dcm")
    fill(root, "primary/sub-1/1.dcm")
    link(root, "primary/sub-1/linked", root.parent / target)
    entries, scan = scanned(root)
    assert set(entries) == {"primary/sub-1/1.dcm"}
    assert [finding.path for finding in found(scan, "link-outside-dataset")] == ["primary/sub-1/linked"]


def test_primary_itself_as_a_link_out_of_the_root_is_not_followed(root: Path) -> None:
    fill(root.parent, "elsewhere/sub-1/1.dcm")
    link(root, "primary", root.parent / "elsewhere")
    entries, scan = scanned(root)
    assert entries == {}
    assert [finding.path for finding in found(scan, "link-outside-dataset")] == ["primary"]


def test_primary_as_a_link_within_the_root_is_followed(root: Path) -> None:
    fill(root, "data/sub-1/1.dcm")
    link(root, "primary", root / "data")
    assert places(root) == {"primary/sub-1/1.dcm": ("sub-1", "sub-1", None)}


def test_a_sheet_that_leads_out_of_the_root_is_not_read(root: Path) -> None:
    (root.parent / "private.csv").write_text("subject id,sex\nsub-1,F\n")
    link(root, "subjects.csv", root.parent / "private.csv")
    _, scan = scanned(root)
    assert scan.cells == []
    assert [finding.path for finding in found(scan, "link-outside-dataset")] == ["subjects.csv"]


def test_a_sibling_whose_name_begins_as_the_root_is_outside(root: Path) -> None:
    fill(root.parent, "ds-other/1.dcm")
    link(root, "primary/sub-1/1.dcm", root.parent / "ds-other/1.dcm")
    entries, scan = scanned(root)
    assert entries == {}
    assert [finding.code for finding in scan.findings] == ["link-outside-dataset"]


def test_hard_links_are_files_of_their_own(root: Path) -> None:
    fill(root, "primary/sub-1/1.dcm")
    (root / "primary/sub-2").mkdir()
    (root / "primary/sub-2/1.dcm").hardlink_to(root / "primary/sub-1/1.dcm")
    entries, scan = scanned(root)
    assert set(entries) == {"primary/sub-1/1.dcm", "primary/sub-2/1.dcm"}
    assert scan.findings == []


def test_a_broken_link_is_said(root: Path) -> None:
    fill(root, "primary/sub-1/1.dcm")
    link(root, "primary/sub-1/gone.dcm", root / "nowhere")
    entries, scan = scanned(root)
    assert set(entries) == {"primary/sub-1/1.dcm"}
    assert [finding.path for finding in found(scan, "link-broken")] == ["primary/sub-1/gone.dcm"]


@pytest.mark.parametrize("where", ["", "primary/"])
def test_a_link_to_itself_ends_the_walk_nowhere(root: Path, where: str) -> None:
    fill(root, "primary/sub-1/1.dcm")
    link(root, f"{where}circle", "circle")
    assert set(scanned(root)[0]) == {"primary/sub-1/1.dcm"}


@pytest.mark.parametrize("target", [".", "primary", "primary/sub-1"])
def test_a_link_to_a_folder_above_it_is_no_loop(root: Path, target: str) -> None:
    fill(root, "primary/sub-1/1.dcm")
    link(root, "primary/sub-1/up", root / target)
    entries, scan = scanned(root)
    assert set(entries) == {"primary/sub-1/1.dcm"}
    assert [finding.path for finding in found(scan, "link-repeated")] == ["primary/sub-1/up"]


def test_links_that_lead_into_each_other_end(root: Path) -> None:
    fill(root, "primary/sub-1/1.dcm", "a/1.dcm", "b/2.dcm")
    link(root, "a/to_b", root / "b")
    link(root, "b/to_a", root / "a")
    link(root, "primary/sub-2", root / "a")
    assert set(scanned(root)[0]) == {"primary/sub-1/1.dcm", "primary/sub-2/1.dcm", "primary/sub-2/to_b/2.dcm"}


def test_a_folder_reached_by_two_links_is_read_once(root: Path) -> None:
    fill(root, "store/x/1.dcm")
    link(root, "primary/sub-1", root / "store/x")
    link(root, "primary/sub-2", root / "store")
    assert set(scanned(root)[0]) == {"primary/sub-1/1.dcm"}


# -- what cannot be read ----------------------------------------------------------------------------------------------


@pytest.fixture
def unreadable(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes a folder refuse to be listed (permissions do not stop a superuser)."""
    refused: set[Path] = set()
    listed = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path) in refused:
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    return refused.add


def test_an_unreadable_folder_is_said_and_the_rest_is_read(root: Path, unreadable: Callable[[Path], None]) -> None:
    fill(root, "primary/sub-1/1.dcm", "primary/sub-2/2.dcm")
    unreadable(root / "primary/sub-1")
    entries, scan = scanned(root)
    assert set(entries) == {"primary/sub-2/2.dcm"}
    assert scan.unread_folders == ["primary/sub-1"]
    assert [(f.code, f.path, f.message) for f in scan.findings] == [
        ("folder-unreadable", "primary/sub-1", "Permission denied")
    ]


def test_an_unreadable_root_keeps_what_the_sheets_said(root: Path, unreadable: Callable[[Path], None]) -> None:
    cell = SheetCell("subjects", "subjects.csv", 2, "sub-1", None, "sex", "F")
    unreadable(root)
    entries, scan = scanned(root, previous_cells=[cell])
    assert (entries, scan.unread_folders, scan.cells) == ({}, [""], [cell])


# -- sheets -----------------------------------------------------------------------------------------------------------


def test_the_sheets_of_the_root_are_read(root: Path) -> None:
    (root / "subjects.csv").write_text("subject id,sex\nsub-1,F\n")
    _, scan = scanned(root)
    assert scan.cells == [
        SheetCell("subjects", "subjects.csv", 2, "sub-1", None, "subject id", "sub-1"),
        SheetCell("subjects", "subjects.csv", 2, "sub-1", None, "sex", "F"),
    ]


def test_a_damaged_sheet_is_said_and_the_files_are_read(root: Path) -> None:
    fill(root, "primary/sub-1/1.dcm")
    (root / "subjects.xlsx").write_bytes(b"PK\x03\x04 no workbook")
    entries, scan = scanned(root)
    assert set(entries) == {"primary/sub-1/1.dcm"}
    assert [(finding.code, finding.path) for finding in scan.findings] == [("sheet-unreadable", "subjects.xlsx")]


def test_flat_samples_keep_their_subjects_while_the_samples_sheet_is_damaged(root: Path) -> None:
    fill(root, "primary/sam-1/1.dcm")
    (root / "samples.xlsx").write_bytes(b"damaged")
    former = [SheetCell("samples", "samples.xlsx", 2, "sub-7", "sam-1", "subject id", "sub-7")]
    entries, scan = scanned(root, previous_cells=former)
    assert entries["primary/sam-1/1.dcm"].subject == "sub-7"
    assert scan.cells == former


def test_a_sheet_that_is_gone_says_nothing_any_more(root: Path) -> None:
    fill(root, "primary/sub-1/1.dcm")
    former = [SheetCell("subjects", "subjects.csv", 2, "sub-1", None, "sex", "F")]
    assert scanned(root, previous_cells=former)[1].cells == []
