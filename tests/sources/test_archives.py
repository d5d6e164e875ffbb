"""Archives in a tree: the subjects of their members, the findings, and that members are read like files."""

from __future__ import annotations

import datetime
import io
import os
import pickle
import stat
import zipfile
from pathlib import Path
from typing import Any

import pydicom
import pytest

from dicom_etl.lake.schemas import FILES, INVENTORY, header_table
from dicom_etl.lake.shard_reader import read_unit
from dicom_etl.sources import Entry, Scan, TreeSource
from dicom_etl.sources.archives import is_archive_name, split_member_path
from tests.support.datasets import Tree, header, make_tree, write_instance
from tests.support.zip_archives import DEFLATED, ENCRYPTED, WRITTEN, Member, write_zip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "ds" / "primary").mkdir(parents=True)
    return tmp_path / "ds"


def write_text(path: Path, content: str = "x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def scan_tree(root: Path, *roles: str) -> tuple[dict[str, Entry], Scan]:
    scan = Scan()
    entries = list(TreeSource("ds", root, roles or ("primary",)).scan(scan))
    assert len({entry.path for entry in entries}) == len(entries)
    return {entry.path: entry for entry in entries}, scan


def entities_of(root: Path, *roles: str) -> dict[str, tuple[str | None, str | None]]:
    """Subject and sample of each path."""
    return {path: (entry.subject, entry.sample) for path, entry in scan_tree(root, *roles)[0].items()}


def findings_of(scan: Scan) -> list[tuple[str, str | None, int]]:
    return [(finding.code, finding.path, finding.count) for finding in scan.findings]


class TestMembersAsFiles:
    def test_each_member_is_a_file(self, root: Path) -> None:
        write_zip(root / "primary/sub-1/sam-1/a.zip", Member("x/1.dcm", b"123"), Member("2.dcm", b"12345", DEFLATED))
        entries, scan = scan_tree(root)
        assert [entries[path] for path in sorted(entries)] == [
            Entry("primary/sub-1/sam-1/a.zip!/2.dcm", "sub-1", "sub-1", "sam-1", "primary", 5, WRITTEN * 10**9),
            Entry("primary/sub-1/sam-1/a.zip!/x/1.dcm", "sub-1", "sub-1", "sam-1", "primary", 3, WRITTEN * 10**9),
        ]
        assert scan == Scan()

    def test_folders_outside_and_inside_name_subject_and_sample(self, root: Path) -> None:
        write_zip(root / "primary/all.zip", "sub-1/sam-1/1.dcm", "sub-2/perf-1/sam-3/2.dcm")
        write_zip(root / "primary/sub-3/samples.ZIP", "sam-1/1.dcm", "sam-2/scan/2.dcm", "3.dcm")
        assert entities_of(root) == {
            "primary/all.zip!/sub-1/sam-1/1.dcm": ("sub-1", "sam-1"),
            "primary/all.zip!/sub-2/perf-1/sam-3/2.dcm": ("sub-2", "sam-3"),
            "primary/sub-3/samples.ZIP!/sam-1/1.dcm": ("sub-3", "sam-1"),
            "primary/sub-3/samples.ZIP!/sam-2/scan/2.dcm": ("sub-3", "sam-2"),
            "primary/sub-3/samples.ZIP!/3.dcm": ("sub-3", None),
        }

    def test_an_archive_may_be_named_after_a_subject_or_sample(self, root: Path) -> None:
        write_zip(root / "primary/sub-1.zip", "sam-1/1.dcm")
        write_zip(root / "primary/sub-2.zip", "sub-2/sam-1/1.dcm")
        write_zip(root / "primary/sub-3/sam-4.zip", "scan/1.dcm")
        assert entities_of(root) == {
            "primary/sub-1.zip!/sam-1/1.dcm": ("sub-1", "sam-1"),
            "primary/sub-2.zip!/sub-2/sam-1/1.dcm": ("sub-2", "sam-1"),
            "primary/sub-3/sam-4.zip!/scan/1.dcm": ("sub-3", "sam-4"),
        }

    def test_outside_sds_the_first_folder_or_the_archive_is_the_subject(self, root: Path) -> None:
        write_zip(root / "primary/Breast_MRI.zip", "Breast_MRI_001/sequence1/1.dcm", "loose.dcm")
        write_zip(root / "primary/Breast_MRI_003/scans.zip", "sequence1/1.dcm")
        assert entities_of(root) == {
            "primary/Breast_MRI.zip!/Breast_MRI_001/sequence1/1.dcm": ("Breast_MRI_001", None),
            "primary/Breast_MRI.zip!/loose.dcm": ("Breast_MRI", None),
            "primary/Breast_MRI_003/scans.zip!/sequence1/1.dcm": ("Breast_MRI_003", None),
        }

    def test_archives_in_the_root_are_read_without_primary(self, root: Path) -> None:
        (root / "primary").rmdir()
        write_zip(root / "sub-1.zip", "sam-1/1.dcm")
        assert entities_of(root) == {"sub-1.zip!/sam-1/1.dcm": ("sub-1", "sam-1")}

    @pytest.mark.parametrize("top", ["", "example_sds_dataset/"])
    def test_an_archived_dataset_is_read_like_a_tree(self, root: Path, top: str) -> None:
        (root / "primary").rmdir()
        inside = ["primary/sub-1/sam-1/1.dcm", "derivative/sub-1/mask.dcm", "docs/a.pdf", "dataset_description.xlsx"]
        write_zip(root / "all.zip", *(f"{top}{path}" for path in inside))
        assert entities_of(root) == {f"all.zip!/{top}primary/sub-1/sam-1/1.dcm": ("sub-1", "sam-1")}
        entries = scan_tree(root, "primary", "derivative")[0]
        assert {path: entry.role for path, entry in entries.items()} == {
            f"all.zip!/{top}primary/sub-1/sam-1/1.dcm": "primary",
            f"all.zip!/{top}derivative/sub-1/mask.dcm": "derivative",
        }

    def test_archived_role_folders_have_their_roles(self, root: Path) -> None:
        (root / "primary").rmdir()
        write_zip(root / "primary.zip", "sub-1/1.dcm")
        write_zip(root / "derivative.zip", "sub-1/mask.dcm")
        assert entities_of(root) == {"primary.zip!/sub-1/1.dcm": ("sub-1", None)}
        entries = scan_tree(root, "primary", "derivative")[0]
        assert {path: entry.role for path, entry in entries.items()} == {
            "primary.zip!/sub-1/1.dcm": "primary",
            "derivative.zip!/sub-1/mask.dcm": "derivative",
        }

    def test_the_manifest_names_the_subject_of_an_archive(self, root: Path) -> None:
        write_zip(root / "primary/scans/a.zip", "x/1.dcm")
        (root / "manifest.csv").write_text("filename,entity\nprimary/scans/a.zip,sub-4\n")
        assert entities_of(root) == {"primary/scans/a.zip!/x/1.dcm": ("sub-4", None)}


class TestFindings:
    def test_system_files_are_counted_and_sheets_skipped(self, root: Path) -> None:
        inside = ["1.dcm", "._1.dcm", "x/.DS_Store", "__MACOSX/1.dcm", "__MACOSX/2.dcm", "manifest.xlsx"]
        write_zip(root / "primary/sub-1/a.zip", *inside)
        entries, scan = scan_tree(root)
        assert set(entries) == {"primary/sub-1/a.zip!/1.dcm"}
        assert {finding.value: finding.count for finding in scan.findings} == {
            "AppleDouble": 1,
            "macOS folder settings": 1,
            "macOS archive folder": 1,
        }

    def test_a_nested_archive_is_not_read(self, root: Path) -> None:
        write_zip(root / "primary/sub-1/a.zip", "1.dcm", "b.zip", "x/c.ZIP")
        entries, scan = scan_tree(root)
        assert set(entries) == {"primary/sub-1/a.zip!/1.dcm"}
        assert findings_of(scan) == [("archive-nested", "primary/sub-1/a.zip", 2)]

    def test_unusual_members_are_reported_once_per_archive(self, root: Path) -> None:
        write_zip(
            root / "primary/sub-1/a.zip",
            "1.dcm",
            "1.dcm",
            Member(b"\x81.dcm", flags=0),
            Member("link", b"/etc/passwd", mode=stat.S_IFLNK),
        )
        entries, scan = scan_tree(root)
        assert set(entries) == {"primary/sub-1/a.zip!/1.dcm"}
        assert findings_of(scan) == [
            ("archive-names-repeated", "primary/sub-1/a.zip!/1.dcm", 1),
            ("name-undecodable", "primary/sub-1/a.zip!/\N{REPLACEMENT CHARACTER}.dcm", 1),
            ("special-file-skipped", "primary/sub-1/a.zip!/link", 1),
        ]

    def test_a_refused_archive_does_not_affect_others(self, root: Path) -> None:
        write_text(root / "primary/sub-1/1.dcm")
        write_zip(root / "primary/sub-1/a.zip", "1.dcm", Member("2.dcm", flags=ENCRYPTED))
        write_zip(root / "primary/sub-1/b.zip", "3.dcm")
        entries, scan = scan_tree(root)
        assert set(entries) == {"primary/sub-1/1.dcm", "primary/sub-1/b.zip!/3.dcm"}
        assert findings_of(scan) == [("archive-refused", "primary/sub-1/a.zip", 1)]
        assert scan.findings[0].message == "'2.dcm' is encrypted"
        assert scan.unread_folders == []

    def test_a_damaged_archive_does_not_affect_others(self, root: Path) -> None:
        write_text(root / "primary/sub-1/1.dcm")
        whole = write_zip(root / "primary/sub-1/a.zip", "1.dcm").read_bytes()
        (root / "primary/sub-1/a.zip").write_bytes(whole[:-30])
        entries, scan = scan_tree(root)
        assert set(entries) == {"primary/sub-1/1.dcm"}
        assert findings_of(scan) == [("archive-damaged", "primary/sub-1/a.zip", 1)]
        assert scan.unread_folders == ["primary/sub-1/a.zip!"]

    def test_an_archive_whose_member_paths_exist_is_refused(self, root: Path) -> None:
        write_zip(root / "primary/sub-1/a.zip", "1.dcm")
        write_text(root / "primary/sub-1/a.zip!/1.dcm")
        entries, scan = scan_tree(root)
        assert {path: entry.size for path, entry in entries.items()} == {"primary/sub-1/a.zip!/1.dcm": 1}
        assert findings_of(scan) == [("archive-refused", "primary/sub-1/a.zip", 1)]

    def test_a_file_with_only_the_name_of_an_archive_is_a_file(self, root: Path) -> None:
        write_text(root / "primary/sub-1/a.zip", "no archive")
        entries, scan = scan_tree(root)
        assert {path: entry.size for path, entry in entries.items()} == {"primary/sub-1/a.zip": 10}
        assert scan.findings == []

    def test_a_link_to_an_archive_is_followed_only_inside_the_root(self, root: Path) -> None:
        write_zip(root / "store/a.zip", "1.dcm")
        write_zip(root.parent / "outside.zip", "1.dcm")
        (root / "primary/sub-1").mkdir()
        (root / "primary/sub-1/in.zip").symlink_to(root / "store/a.zip")
        (root / "primary/sub-1/out.zip").symlink_to(root.parent / "outside.zip")
        entries, scan = scan_tree(root)
        assert set(entries) == {"primary/sub-1/in.zip!/1.dcm"}
        assert findings_of(scan) == [("link-outside-dataset", "primary/sub-1/out.zip", 1)]


def read_file(root: Path, path: str) -> bytes:
    with TreeSource("ds", root).open(path) as file:
        return file.read()


class TestOpening:
    def test_a_member_is_opened_by_its_path(self, root: Path) -> None:
        write_zip(root / "primary/sub-1/a.zip", Member("x/ü 名.dcm", b"12345" * 9, DEFLATED))
        assert read_file(root, "primary/sub-1/a.zip!/x/ü 名.dcm") == b"12345" * 9

    def test_a_file_is_opened_unbuffered(self, root: Path) -> None:
        write_text(root / "primary/1.dcm", "12345")
        with TreeSource("ds", root).open("primary/1.dcm") as file:
            assert isinstance(file, io.RawIOBase)
            assert (file.read(3), file.read(3), file.read(3)) == (b"123", b"45", b"")

    def test_a_file_whose_path_resembles_a_member_is_opened(self, root: Path) -> None:
        write_text(root / "primary/a.zip!/1.dcm", "file")
        write_text(root / "primary/b.zip!c.dcm", "name")
        write_zip(root / "primary/c.zip!/d.zip", Member("1.dcm", b"member"))
        assert read_file(root, "primary/a.zip!/1.dcm") == b"file"
        assert read_file(root, "primary/b.zip!c.dcm") == b"name"
        assert read_file(root, "primary/c.zip!/d.zip!/1.dcm") == b"member"

    @pytest.mark.parametrize("path", ["primary/a.zip!/2.dcm", "primary/b.zip!/1.dcm", "primary/1.dcm/2.dcm", "no.dcm"])
    def test_missing_files_are_not_found(self, root: Path, path: str) -> None:
        write_zip(root / "primary/a.zip", "1.dcm")
        with pytest.raises(FileNotFoundError):
            read_file(root, path)

    def test_a_source_that_opened_members_can_be_sent_to_workers(self, root: Path) -> None:
        write_zip(root / "primary/a.zip", Member("1.dcm", b"12345"))
        source, new = TreeSource("ds", root), TreeSource("ds", root)
        source.open("primary/a.zip!/1.dcm").close()
        assert source == new
        assert hash(source) == hash(new)
        assert pickle.dumps(source) == pickle.dumps(new)
        with pickle.loads(pickle.dumps(source)).open("primary/a.zip!/1.dcm") as file:
            assert file.read() == b"12345"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return make_tree(tmp_path)


def dicom(number: int, **tags: Any) -> Member:
    """A deflated member `x/NUMBER.dcm` that is a small DICOM file."""
    content = header(instance=f"zipped-{number}", **tags)
    content.file_meta = pydicom.dataset.FileMetaDataset()
    content.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    target = io.BytesIO()
    pydicom.dcmwrite(target, content, enforce_file_format=True)
    return Member(f"x/{number}.dcm", target.getvalue(), DEFLATED)


def pack(tree: Tree, *members: Member, later: int = 0) -> Path:
    path = write_zip(tree.root / "primary/sub-1/a.zip", *members)
    os.utime(path, (WRITTEN + later, WRITTEN + later))
    return path


def rows(tree: Tree) -> dict[str, dict[str, Any]]:
    table = read_unit(tree.lake, header_table(), dataset="ds", unit="sub-1")
    return {row["path"].removeprefix("primary/sub-1/"): row for row in table.to_pylist()}


def inventory(tree: Tree) -> dict[str, dict[str, Any]]:
    return {row["path"]: row for row in tree.lake.read(INVENTORY, dataset="ds").to_pylist()}


def kinds(tree: Tree) -> dict[str, tuple[str, str | None]]:
    table = read_unit(tree.lake, FILES, dataset="ds", unit="sub-1")
    return {row["path"].rpartition("/")[2]: (row["kind"], row["reason"]) for row in table.to_pylist()}


@pytest.fixture
def unreadable_archives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening an archive fails with a disk error."""

    open_path = Path.open

    def refuse(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.suffix == ".zip":
            raise OSError(5, "Input/output error")
        return open_path(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)


class TestStages:
    def test_an_archived_series_has_the_rows_of_its_files(self, tree: Tree) -> None:
        members = [
            dicom(number, InstanceNumber=number, PatientName="Müller", SpecificCharacterSet="ISO_IR 100")
            for number in range(5)
        ]
        pack(tree, *members)
        for number, member in enumerate(members):
            write_text(tree.root / f"primary/sub-1/plain/{number}.dcm", "")
            (tree.root / f"primary/sub-1/plain/{number}.dcm").write_bytes(member.content)
        tree.crawl()
        tree.extract()
        row_of_path = rows(tree)
        assert len(row_of_path) == 10
        for number in range(5):
            packed, plain = row_of_path[f"a.zip!/x/{number}.dcm"], row_of_path[f"plain/{number}.dcm"]
            differ = {name for name in packed if packed[name] != plain[name]}
            assert differ == {"path", "duplicate"}
            assert (packed["duplicate"], plain["duplicate"]) == (None, "identical")

    def test_an_archive_of_zipfile_is_read(self, tree: Tree, tmp_path: Path) -> None:
        (tree.root / "primary").mkdir()
        plain = write_instance(tmp_path / "1.dcm", PatientID="P-9")
        with zipfile.ZipFile(tree.root / "primary/sub-1.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(plain, "sam-1/1.dcm")
        tree.crawl()
        tree.extract()
        (row,) = read_unit(tree.lake, header_table(), dataset="ds", unit="sub-1").to_pylist()
        assert (row["subject"], row["sample"], row["PatientID"]) == ("sub-1", "sam-1", "P-9")

    def test_members_have_their_size_and_the_time_of_the_archive(self, tree: Tree) -> None:
        member = dicom(1)
        pack(tree, member)
        tree.crawl()
        row = inventory(tree)["primary/sub-1/a.zip!/x/1.dcm"]
        assert row["size"] == len(member.content)
        assert row["mtime"] == datetime.datetime(2023, 11, 14, 22, 13, 20, tzinfo=datetime.UTC)

    def test_an_unchanged_archive_is_not_read_again(self, tree: Tree) -> None:
        pack(tree, dicom(1), dicom(2))
        tree.crawl()
        assert tree.extract().files_opened == 2
        tree.crawl()
        assert tree.extract().files_opened == 0

    def test_a_changed_archive_is_read_again_completely(self, tree: Tree) -> None:
        pack(tree, dicom(1), dicom(2))
        tree.crawl()
        tree.extract()
        pack(tree, dicom(1, PatientID="P-7"), dicom(2), dicom(3), later=5)
        tree.crawl()
        assert tree.extract().files_opened == 3
        assert {path: row["PatientID"] for path, row in rows(tree).items()} == {
            "a.zip!/x/1.dcm": "P-7",
            "a.zip!/x/2.dcm": "P-1",
            "a.zip!/x/3.dcm": "P-1",
        }

    def test_a_damaged_member_is_a_finding(self, tree: Tree) -> None:
        longer, spoilt = dicom(1), dicom(2)
        longer.size = 200
        spoilt.packed = b"\xff" * 300
        pack(tree, longer, spoilt, dicom(3))
        tree.crawl()
        tree.extract()
        assert kinds(tree) == {
            "1.dcm": ("unreadable", "header-unreadable"),
            "2.dcm": ("unreadable", "header-unreadable"),
            "3.dcm": ("dicom", "pixel-data-absent"),
        }
        messages = {(f["path"] or "")[-5:]: f["message"] for f in tree.findings("extract", "sub-1")}
        assert "longer than the 200 bytes that are declared" in messages["1.dcm"]
        assert "the member of the archive is damaged" in messages["2.dcm"]

    def test_a_member_removed_since_the_crawl_is_reported(self, tree: Tree) -> None:
        pack(tree, dicom(1), dicom(2))
        tree.crawl()
        pack(tree, dicom(1), later=5)
        tree.extract()
        assert kinds(tree) == {"1.dcm": ("dicom", "pixel-data-absent"), "2.dcm": ("unreadable", "file-missing")}

    def test_an_unreadable_archive_is_not_missing(self, tree: Tree, request: pytest.FixtureRequest) -> None:
        pack(tree, dicom(1), dicom(2))
        write_text(tree.root / "primary/sub-1/a.zip.txt")
        tree.crawl()
        before = inventory(tree)
        request.getfixturevalue("unreadable_archives")
        assert tree.crawl().removed == 0
        assert inventory(tree) == before
        assert [(f["code"], f["path"]) for f in tree.findings("crawl")] == [("file-unreadable", "primary/sub-1/a.zip")]

    def test_an_incomplete_archive_is_not_missing(self, tree: Tree) -> None:
        path = pack(tree, dicom(1), dicom(2))
        tree.crawl()
        tree.extract()
        before = inventory(tree), rows(tree)
        whole = path.read_bytes()
        path.write_bytes(whole[:-30])
        assert tree.crawl().removed == 0
        assert tree.extract().files_opened == 0
        assert (inventory(tree), rows(tree)) == before

    def test_an_unreadable_file_named_as_an_archive_is_not_missing(
        self, tree: Tree, request: pytest.FixtureRequest
    ) -> None:
        write_text(tree.root / "primary/sub-1/a.zip", "no archive")
        tree.crawl()
        before = inventory(tree)
        request.getfixturevalue("unreadable_archives")
        assert tree.crawl().removed == 0
        assert inventory(tree) == before


class TestNames:
    @pytest.mark.parametrize(
        ("name", "expected"), [("a.zip", True), ("A.ZIP", True), ("azip", False), ("a.zip.dcm", False)]
    )
    def test_archives_are_recognised_by_suffix(self, name: str, expected: bool) -> None:
        assert is_archive_name(name) is expected

    @pytest.mark.parametrize(
        ("path", "expected"),
        [
            ("sub-1/a.zip!/x/1.dcm", [("sub-1/a.zip", "x/1.dcm")]),
            ("A.ZIP!/1", [("A.ZIP", "1")]),
            ("a.zip!/b.zip!/1", [("a.zip", "b.zip!/1"), ("a.zip!/b.zip", "1")]),
            ("a.zip", []),
            ("a.zip!", []),
            ("azip!/1", []),
        ],
    )
    def test_a_member_path_is_split_at_each_archive(self, path: str, expected: list[tuple[str, str]]) -> None:
        assert list(split_member_path(path)) == expected
