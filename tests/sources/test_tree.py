"""A dataset as a folder tree: its files, their subjects and samples, and the findings.

The files are not DICOM: a tree never opens them.
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


def write(root: Path, *paths: str, content: str = "x") -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)


def scan_tree(root: Path, roles: tuple[str, ...] = ("primary",), **given: Any) -> tuple[dict[str, Entry], Scan]:
    scan = Scan(**given)
    entries = list(TreeSource("ds", root, roles).scan(scan))
    assert len({entry.path for entry in entries}) == len(entries)
    return {entry.path: entry for entry in entries}, scan


def entities_of(root: Path, roles: tuple[str, ...] = ("primary",)) -> dict[str, tuple[str, str | None, str | None]]:
    """Unit, subject and sample of each path."""
    return {path: (e.unit, e.subject, e.sample) for path, e in scan_tree(root, roles)[0].items()}


def with_code(scan: Scan, code: str) -> list[Finding]:
    return [finding for finding in scan.findings if finding.code == code]


class TestLayouts:
    def test_subjects_and_samples_below_primary(self, root: Path) -> None:
        write(root, "primary/sub-1/sam-1/1.dcm", "primary/sub-2/2.dcm")
        assert entities_of(root) == {
            "primary/sub-1/sam-1/1.dcm": ("sub-1", "sub-1", "sam-1"),
            "primary/sub-2/2.dcm": ("sub-2", "sub-2", None),
        }

    def test_only_primary_has_no_finding(self, root: Path) -> None:
        write(root, "primary/sub-1/sam-1/1.dcm")
        assert scan_tree(root)[1].findings == []

    def test_performances_are_above_or_below_samples(self, root: Path) -> None:
        write(
            root, "primary/sub-1/perf-1/sam-1/1.dcm", "primary/sub-1/sam-2/perf-2/2.dcm", "primary/sub-2/perf-1/3.dcm"
        )
        assert entities_of(root) == {
            "primary/sub-1/perf-1/sam-1/1.dcm": ("sub-1", "sub-1", "sam-1"),
            "primary/sub-1/sam-2/perf-2/2.dcm": ("sub-1", "sub-1", "sam-2"),
            "primary/sub-2/perf-1/3.dcm": ("sub-2", "sub-2", None),
        }

    def test_the_deepest_of_nested_samples_is_the_sample(self, root: Path) -> None:
        write(root, "primary/sub-1/sam-3/sam-4/1.dcm")
        assert entities_of(root) == {"primary/sub-1/sam-3/sam-4/1.dcm": ("sub-1", "sub-1", "sam-4")}

    def test_a_pool_is_the_subject_if_there_is_no_other(self, root: Path) -> None:
        write(root, "primary/pool-1/1.dcm", "primary/pool-1/sub-2/2.dcm")
        assert entities_of(root) == {
            "primary/pool-1/1.dcm": ("pool-1", "pool-1", None),
            "primary/pool-1/sub-2/2.dcm": ("sub-2", "sub-2", None),
        }

    def test_flat_samples_belong_to_the_subjects_of_the_samples_sheet(self, root: Path) -> None:
        write(root, "primary/sam-1/1.dcm", "primary/sam-2/perf-1/2.dcm", "primary/sam-3/3.dcm")
        (root / "samples.csv").write_text("sample id,subject id\nsam-1,sub-1\nsam-2,sub-2\n")
        assert entities_of(root) == {
            "primary/sam-1/1.dcm": ("sub-1", "sub-1", "sam-1"),
            "primary/sam-2/perf-1/2.dcm": ("sub-2", "sub-2", "sam-2"),
            "primary/sam-3/3.dcm": (".", None, "sam-3"),
        }

    def test_the_manifest_names_the_subjects_of_files_and_folders(self, root: Path) -> None:
        write(root, "primary/scans/a/1.dcm", "primary/scans/b/2.dcm", "primary/sub-1/3.dcm", "primary/scans/c/4.dcm")
        (root / "manifest.csv").write_text(
            "filename,entity\nprimary/scans/a/1.dcm,sub-5\nprimary/scans/b,sub-6\nprimary/sub-1/3.dcm,sub-7\n"
        )
        assert entities_of(root) == {
            "primary/scans/a/1.dcm": ("sub-5", "sub-5", None),
            "primary/scans/b/2.dcm": ("sub-6", "sub-6", None),
            "primary/scans/c/4.dcm": ("scans", "scans", None),
            "primary/sub-1/3.dcm": ("sub-1", "sub-1", None),
        }

    def test_a_flat_sample_of_several_subjects_belongs_to_none(self, root: Path) -> None:
        write(root, "primary/sam-1/1.dcm")
        (root / "samples.csv").write_text("sample id,subject id\nsam-1,sub-1\nsam-1,sub-2\n")
        assert entities_of(root) == {"primary/sam-1/1.dcm": (".", None, "sam-1")}

    def test_all_paths_of_the_standard(self, root: Path) -> None:
        write(
            root,
            "primary/pop-1/1.dcm",
            "primary/pool-2/perf-1/1.dcm",
            "primary/sub-1/perf-1/1.dcm",
            "primary/sub-2/perf-1/sam-2/1.dcm",
            "primary/sub-3/sub-3_sam-2/1.dcm",
            "primary/sub-4/sam-1/perf-1/site-1/1.dcm",
        )
        assert {path.removeprefix("primary/"): place[1:] for path, place in entities_of(root).items()} == {
            "pop-1/1.dcm": ("pop-1", None),
            "pool-2/perf-1/1.dcm": ("pool-2", None),
            "sub-1/perf-1/1.dcm": ("sub-1", None),
            "sub-2/perf-1/sam-2/1.dcm": ("sub-2", "sam-2"),
            "sub-3/sub-3_sam-2/1.dcm": ("sub-3", "sub-3_sam-2"),
            "sub-4/sam-1/perf-1/site-1/1.dcm": ("sub-4", "sam-1"),
        }

    def test_subjects_may_have_samples_of_the_same_id(self, root: Path) -> None:
        write(root, "primary/sub-1/sam-1/1.dcm", "primary/sub-2/sam-1/1.dcm")
        assert entities_of(root) == {
            "primary/sub-1/sam-1/1.dcm": ("sub-1", "sub-1", "sam-1"),
            "primary/sub-2/sam-1/1.dcm": ("sub-2", "sub-2", "sam-1"),
        }

    def test_names_may_have_blanks_and_other_scripts(self, root: Path) -> None:
        write(root, "primary/sub-Ä 1/sam-名 前/scan 1/Bild (ü).dcm", "Ordner/1.dcm")
        assert entities_of(root) == {
            "primary/sub-Ä 1/sam-名 前/scan 1/Bild (ü).dcm": ("sub-Ä 1", "sub-Ä 1", "sam-名 前")
        }

    def test_files_in_the_root_have_no_subject(self, root: Path) -> None:
        write(root, "1.dcm", "IM0002")
        assert entities_of(root) == {"1.dcm": (".", None, None), "IM0002": (".", None, None)}

    def test_subjects_without_primary_have_a_finding(self, root: Path) -> None:
        write(root, "sub-1/sam-1/1.dcm")
        entries, scan = scan_tree(root)
        assert (entries["sub-1/sam-1/1.dcm"].subject, entries["sub-1/sam-1/1.dcm"].role) == ("sub-1", "primary")
        assert [finding.code for finding in scan.findings] == ["sds-layout-deviation"]

    def test_an_sds_root_without_primary_skips_code_and_docs(self, root: Path) -> None:
        write(root, "dataset_description.csv", "sub-1/1.dcm", "code/run.py", "docs/a.pdf", "protocol/p.pdf")
        assert set(scan_tree(root)[0]) == {"sub-1/1.dcm"}

    def test_outside_sds_the_first_folder_is_the_subject(self, root: Path) -> None:
        write(root, "Breast_MRI_001/sequence1/1.dcm", "Breast_MRI_002/1.dcm", "code/1.dcm", "loose.dcm")
        entries, scan = scan_tree(root)
        assert {path: (entry.unit, entry.subject) for path, entry in entries.items()} == {
            "Breast_MRI_001/sequence1/1.dcm": ("Breast_MRI_001", "Breast_MRI_001"),
            "Breast_MRI_002/1.dcm": ("Breast_MRI_002", "Breast_MRI_002"),
            "code/1.dcm": ("code", "code"),
            "loose.dcm": (".", None),
        }
        assert scan.findings == []

    def test_only_primary_files_are_read_by_default(self, root: Path) -> None:
        write(root, "primary/sub-1/1.dcm", "derivative/sub-1/mask.dcm", "source/sub-1/raw.dcm")
        assert set(scan_tree(root)[0]) == {"primary/sub-1/1.dcm"}

    def test_several_roles_can_be_chosen(self, root: Path) -> None:
        write(root, "primary/sub-1/1.dcm", "derivatives/sub-1/mask.dcm", "sourcedata/sub-1/raw.dcm")
        assert {path: entry.role for path, entry in scan_tree(root, ROLES)[0].items()} == {
            "primary/sub-1/1.dcm": "primary",
            "derivatives/sub-1/mask.dcm": "derivative",
            "sourcedata/sub-1/raw.dcm": "source",
        }

    def test_without_primary_derivatives_are_listed_once(self, root: Path) -> None:
        write(root, "sub-1/1.dcm", "derivative/sub-1/mask.dcm")
        assert {path: entry.role for path, entry in scan_tree(root, ROLES)[0].items()} == {
            "sub-1/1.dcm": "primary",
            "derivative/sub-1/mask.dcm": "derivative",
        }

    @pytest.mark.parametrize("role", ["derivative", "source"])
    def test_a_single_role_can_be_chosen(self, root: Path, role: str) -> None:
        write(root, "primary/sub-1/1.dcm", "derivative/sub-1/1.dcm", "source/sub-1/1.dcm")
        entries = scan_tree(root, (role,))[0]
        assert {path: (entry.subject, entry.role) for path, entry in entries.items()} == {
            f"{role}/sub-1/1.dcm": ("sub-1", role)
        }

    def test_other_folders_of_sds_have_no_primary_files(self, root: Path) -> None:
        others = ["code", "docs", "protocol", "auxiliary"]
        write(root, "primary/sub-1/1.dcm", *(f"{folder}/sub-1/1.dcm" for folder in others))
        assert set(scan_tree(root)[0]) == {"primary/sub-1/1.dcm"}

    def test_files_of_any_suffix_may_be_dicom(self, root: Path) -> None:
        names = {"1.DCM", "2.IMA", "IM000001", "1.2.840.1", "scan.nii.gz", "ünïcode – 名.dcm", "with space.dcm"}
        write(root, *(f"primary/sub-1/{name}" for name in names))
        assert {path.rsplit("/", 1)[1] for path in scan_tree(root)[0]} == names

    def test_an_entry_has_size_and_modification_time(self, root: Path) -> None:
        write(root, "primary/sub-1/1.dcm", content="12345")
        os.utime(root / "primary/sub-1/1.dcm", ns=(0, 1_600_000_000_123_456_789))
        entry = scan_tree(root)[0]["primary/sub-1/1.dcm"]
        assert (entry.size, entry.mtime) == (5, 1_600_000_000_123_456_789)

    def test_an_empty_root_has_no_files_and_no_findings(self, root: Path) -> None:
        assert scan_tree(root) == ({}, Scan())

    def test_a_missing_root_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match=r"dataset ds: the folder .*gone does not exist"):
            TreeSource.from_settings("ds", DatasetSettings(root=str(tmp_path / "gone")))

    def test_a_root_that_is_a_file_is_refused(self, tmp_path: Path) -> None:
        write(tmp_path, "file")
        with pytest.raises(SourceError, match="is not a folder"):
            TreeSource.from_settings("ds", DatasetSettings(root=str(tmp_path / "file")))

    def test_the_location_is_a_uri(self, root: Path) -> None:
        assert TreeSource("ds", root).location == root.resolve().as_uri()


class TestSkippedFiles:
    def test_system_files_are_skipped_and_counted_by_class(self, root: Path) -> None:
        write(root, "primary/sub-1/1.dcm", "primary/sub-1/._1.dcm", "primary/sub-1/._2.dcm", "primary/sub-1/Thumbs.db")
        write(root, "primary/__MACOSX/sub-1/1.dcm", "primary/sub-1/.DS_Store", "primary/sub-1/desktop.ini")
        entries, scan = scan_tree(root)
        assert set(entries) == {"primary/sub-1/1.dcm"}
        assert {finding.value: finding.count for finding in with_code(scan, "system-files-skipped")} == {
            "AppleDouble": 2,
            "Windows thumbnails": 1,
            "Windows folder settings": 1,
            "macOS archive folder": 1,
            "macOS folder settings": 1,
        }

    def test_texts_and_sheets_of_every_version_are_skipped(self, root: Path) -> None:
        write(root, "README", "README.md", "CHANGES", "CHANGES.rst", "LICENSE", ".dss", "sub-1/.dss", "sub-1/1.dcm")
        kinds = """dataset_description subjects samples manifest performances sites specimens submission resources
    code_description code_parameters curation""".split()
        write(root, *(f"{kind}.tsv" for kind in kinds), "sub-1/plog.xlsx", "sub-1/manifest.xlsx")
        entries, scan = scan_tree(root)
        assert set(entries) == {"sub-1/1.dcm"}
        assert {finding.value: finding.count for finding in with_code(scan, "system-files-skipped")} == {
            "SDS standard": 2,
            "text of the dataset": 5,
            "plog": 1,
        }

    def test_a_dicomdir_and_images_of_other_formats_are_files(self, root: Path) -> None:
        write(
            root, "primary/sub-1/DICOMDIR", "primary/sub-1/a.nrrd", "primary/sub-1/a.nii.gz", "primary/sub-1/a.tar.gz"
        )
        assert {path.rpartition("/")[2] for path in scan_tree(root)[0]} == {
            "DICOMDIR",
            "a.nrrd",
            "a.nii.gz",
            "a.tar.gz",
        }

    def test_sheets_below_primary_are_skipped(self, root: Path) -> None:
        write(root, "primary/sub-1/1.dcm", "primary/manifest.xlsx", "primary/sub-1/manifest.csv")
        assert set(scan_tree(root)[0]) == {"primary/sub-1/1.dcm"}

    def test_a_pipe_is_skipped(self, root: Path) -> None:
        write(root, "primary/sub-1/1.dcm")
        os.mkfifo(root / "primary/sub-1/pipe.dcm")
        entries, scan = scan_tree(root)
        assert set(entries) == {"primary/sub-1/1.dcm"}
        assert [finding.path for finding in with_code(scan, "special-file-skipped")] == ["primary/sub-1/pipe.dcm"]


def link(root: Path, path: str, target: str | Path) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).symlink_to(target)


class TestSymbolicLinks:
    def test_a_link_to_a_file_elsewhere_in_the_root_is_read(self, root: Path) -> None:
        write(root, "store/a.dcm", content="123")
        link(root, "primary/sub-1/1.dcm", root / "store/a.dcm")
        entries, scan = scan_tree(root)
        assert {path: entry.size for path, entry in entries.items()} == {"primary/sub-1/1.dcm": 3}
        assert scan.findings == []

    def test_a_link_to_a_folder_elsewhere_in_the_root_is_scanned(self, root: Path) -> None:
        write(root, "store/a.dcm", "store/deep/b.dcm")
        link(root, "primary/sub-1", root / "store")
        assert entities_of(root) == {
            "primary/sub-1/a.dcm": ("sub-1", "sub-1", None),
            "primary/sub-1/deep/b.dcm": ("sub-1", "sub-1", None),
        }

    def test_a_link_to_a_listed_file_is_not_a_second_file(self, root: Path) -> None:
        write(root, "primary/sub-1/1.dcm")
        link(root, "primary/sub-0/1.dcm", root / "primary/sub-1/1.dcm")
        link(root, "primary/sub-2", root / "primary/sub-1")
        entries, scan = scan_tree(root)
        assert set(entries) == {"primary/sub-1/1.dcm"}
        assert {finding.path for finding in with_code(scan, "link-repeated")} == {
            "primary/sub-0/1.dcm",
            "primary/sub-2",
        }

    @pytest.mark.parametrize("target", ["secret.dcm", "folder"])
    def test_a_link_out_of_the_root_is_not_followed(self, root: Path, target: str) -> None:
        write(root.parent, "secret.dcm", "folder/1.dcm")
        write(root, "primary/sub-1/1.dcm")
        link(root, "primary/sub-1/linked", root.parent / target)
        entries, scan = scan_tree(root)
        assert set(entries) == {"primary/sub-1/1.dcm"}
        assert [finding.path for finding in with_code(scan, "link-outside-dataset")] == ["primary/sub-1/linked"]

    def test_primary_as_a_link_out_of_the_root_is_not_followed(self, root: Path) -> None:
        write(root.parent, "elsewhere/sub-1/1.dcm")
        link(root, "primary", root.parent / "elsewhere")
        entries, scan = scan_tree(root)
        assert entries == {}
        assert [finding.path for finding in with_code(scan, "link-outside-dataset")] == ["primary"]

    def test_primary_as_a_link_within_the_root_is_followed(self, root: Path) -> None:
        write(root, "data/sub-1/1.dcm")
        link(root, "primary", root / "data")
        assert entities_of(root) == {"primary/sub-1/1.dcm": ("sub-1", "sub-1", None)}

    def test_a_sheet_as_a_link_out_of_the_root_is_not_read(self, root: Path) -> None:
        (root.parent / "private.csv").write_text("subject id,sex\nsub-1,F\n")
        link(root, "subjects.csv", root.parent / "private.csv")
        _, scan = scan_tree(root)
        assert scan.cells == []
        assert [finding.path for finding in with_code(scan, "link-outside-dataset")] == ["subjects.csv"]

    def test_a_sibling_whose_name_begins_with_the_roots_is_outside(self, root: Path) -> None:
        write(root.parent, "ds-other/1.dcm")
        link(root, "primary/sub-1/1.dcm", root.parent / "ds-other/1.dcm")
        entries, scan = scan_tree(root)
        assert entries == {}
        assert [finding.code for finding in scan.findings] == ["link-outside-dataset"]

    def test_hard_links_are_separate_files(self, root: Path) -> None:
        write(root, "primary/sub-1/1.dcm")
        (root / "primary/sub-2").mkdir()
        (root / "primary/sub-2/1.dcm").hardlink_to(root / "primary/sub-1/1.dcm")
        entries, scan = scan_tree(root)
        assert set(entries) == {"primary/sub-1/1.dcm", "primary/sub-2/1.dcm"}
        assert scan.findings == []

    def test_a_broken_link_is_reported(self, root: Path) -> None:
        write(root, "primary/sub-1/1.dcm")
        link(root, "primary/sub-1/gone.dcm", root / "nowhere")
        entries, scan = scan_tree(root)
        assert set(entries) == {"primary/sub-1/1.dcm"}
        assert [finding.path for finding in with_code(scan, "link-broken")] == ["primary/sub-1/gone.dcm"]

    @pytest.mark.parametrize("where", ["", "primary/"])
    def test_a_link_to_itself_does_not_end_the_scan(self, root: Path, where: str) -> None:
        write(root, "primary/sub-1/1.dcm")
        link(root, f"{where}circle", "circle")
        assert set(scan_tree(root)[0]) == {"primary/sub-1/1.dcm"}

    @pytest.mark.parametrize("target", [".", "primary", "primary/sub-1"])
    def test_a_link_to_a_folder_above_is_not_a_loop(self, root: Path, target: str) -> None:
        write(root, "primary/sub-1/1.dcm")
        link(root, "primary/sub-1/up", root / target)
        entries, scan = scan_tree(root)
        assert set(entries) == {"primary/sub-1/1.dcm"}
        assert [finding.path for finding in with_code(scan, "link-repeated")] == ["primary/sub-1/up"]

    def test_links_to_each_other_end(self, root: Path) -> None:
        write(root, "primary/sub-1/1.dcm", "a/1.dcm", "b/2.dcm")
        link(root, "a/to_b", root / "b")
        link(root, "b/to_a", root / "a")
        link(root, "primary/sub-2", root / "a")
        assert set(scan_tree(root)[0]) == {"primary/sub-1/1.dcm", "primary/sub-2/1.dcm", "primary/sub-2/to_b/2.dcm"}

    def test_a_folder_reached_by_two_links_is_read_once(self, root: Path) -> None:
        write(root, "store/x/1.dcm")
        link(root, "primary/sub-1", root / "store/x")
        link(root, "primary/sub-2", root / "store")
        assert set(scan_tree(root)[0]) == {"primary/sub-1/1.dcm"}


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


class TestUnreadable:
    def test_an_unreadable_folder_is_reported(self, root: Path, unreadable: Callable[[Path], None]) -> None:
        write(root, "primary/sub-1/1.dcm", "primary/sub-2/2.dcm")
        unreadable(root / "primary/sub-1")
        entries, scan = scan_tree(root)
        assert set(entries) == {"primary/sub-2/2.dcm"}
        assert scan.unread_folders == ["primary/sub-1"]
        assert [(f.code, f.path, f.message) for f in scan.findings] == [
            ("folder-unreadable", "primary/sub-1", "Permission denied")
        ]

    def test_an_unreadable_root_keeps_the_previous_cells(self, root: Path, unreadable: Callable[[Path], None]) -> None:
        cell = SheetCell("subjects", "subjects.csv", 2, "sub-1", None, "sex", "F")
        unreadable(root)
        entries, scan = scan_tree(root, previous_cells=[cell])
        assert (entries, scan.unread_folders, scan.cells) == ({}, [""], [cell])


class TestSheets:
    def test_the_sheets_of_the_root_are_read(self, root: Path) -> None:
        (root / "subjects.csv").write_text("subject id,sex\nsub-1,F\n")
        _, scan = scan_tree(root)
        assert scan.cells == [
            SheetCell("subjects", "subjects.csv", 2, "sub-1", None, "subject id", "sub-1"),
            SheetCell("subjects", "subjects.csv", 2, "sub-1", None, "sex", "F"),
        ]

    def test_a_damaged_sheet_is_reported(self, root: Path) -> None:
        write(root, "primary/sub-1/1.dcm")
        (root / "subjects.xlsx").write_bytes(b"PK\x03\x04 no workbook")
        entries, scan = scan_tree(root)
        assert set(entries) == {"primary/sub-1/1.dcm"}
        assert [(finding.code, finding.path) for finding in scan.findings] == [("sheet-unreadable", "subjects.xlsx")]

    def test_a_damaged_samples_sheet_keeps_the_subjects_of_samples(self, root: Path) -> None:
        write(root, "primary/sam-1/1.dcm")
        (root / "samples.xlsx").write_bytes(b"damaged")
        previous = [SheetCell("samples", "samples.xlsx", 2, "sub-7", "sam-1", "subject id", "sub-7")]
        entries, scan = scan_tree(root, previous_cells=previous)
        assert entries["primary/sam-1/1.dcm"].subject == "sub-7"
        assert scan.cells == previous

    def test_a_removed_sheet_has_no_cells(self, root: Path) -> None:
        write(root, "primary/sub-1/1.dcm")
        previous = [SheetCell("subjects", "subjects.csv", 2, "sub-1", None, "sex", "F")]
        assert scan_tree(root, previous_cells=previous)[1].cells == []
