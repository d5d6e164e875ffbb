"""Zipped series in a tree: whose the members are, what is said of the rest, and that they are read like files."""

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
from dicom_etl.sources.zip import directory
from tests.sources.zips import DEFLATED, ENCRYPTED, WRITTEN, Member, write_zip
from tests.support.datasets import Tree, header, make_tree, write_instance


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "ds" / "primary").mkdir(parents=True)
    return tmp_path / "ds"


def fill(path: Path, content: str = "x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def scanned(root: Path, *roles: str) -> tuple[dict[str, Entry], Scan]:
    scan = Scan()
    entries = list(TreeSource("ds", root, roles or ("primary",)).scan(scan))
    assert len({entry.path for entry in entries}) == len(entries)
    return {entry.path: entry for entry in entries}, scan


def places(root: Path, *roles: str) -> dict[str, tuple[str | None, str | None]]:
    """Subject and sample of each path."""
    return {path: (entry.subject, entry.sample) for path, entry in scanned(root, *roles)[0].items()}


def said(scan: Scan) -> list[tuple[str, str | None, int]]:
    return [(finding.code, finding.path, finding.count) for finding in scan.findings]


# -- what the members are ---------------------------------------------------------------------------------------------


def test_each_member_is_a_file(root: Path) -> None:
    write_zip(root / "primary/sub-1/sam-1/a.zip", Member("x/1.dcm", b"123"), Member("2.dcm", b"12345", DEFLATED))
    entries, scan = scanned(root)
    assert [entries[path] for path in sorted(entries)] == [
        Entry("primary/sub-1/sam-1/a.zip!/2.dcm", "sub-1", "sub-1", "sam-1", "primary", 5, WRITTEN * 10**9),
        Entry("primary/sub-1/sam-1/a.zip!/x/1.dcm", "sub-1", "sub-1", "sam-1", "primary", 3, WRITTEN * 10**9),
    ]
    assert scan == Scan()


def test_folders_outside_and_inside_say_subject_and_sample_together(root: Path) -> None:
    write_zip(root / "primary/all.zip", "sub-1/sam-1/1.dcm", "sub-2/perf-1/sam-3/2.dcm")
    write_zip(root / "primary/sub-3/samples.ZIP", "sam-1/1.dcm", "sam-2/scan/2.dcm", "3.dcm")
    assert places(root) == {
        "primary/all.zip!/sub-1/sam-1/1.dcm": ("sub-1", "sam-1"),
        "primary/all.zip!/sub-2/perf-1/sam-3/2.dcm": ("sub-2", "sam-3"),
        "primary/sub-3/samples.ZIP!/sam-1/1.dcm": ("sub-3", "sam-1"),
        "primary/sub-3/samples.ZIP!/sam-2/scan/2.dcm": ("sub-3", "sam-2"),
        "primary/sub-3/samples.ZIP!/3.dcm": ("sub-3", None),
    }


def test_an_archive_named_as_a_subject_or_sample_is_one(root: Path) -> None:
    write_zip(root / "primary/sub-1.zip", "sam-1/1.dcm")
    write_zip(root / "primary/sub-2.zip", "sub-2/sam-1/1.dcm")
    write_zip(root / "primary/sub-3/sam-4.zip", "scan/1.dcm")
    assert places(root) == {
        "primary/sub-1.zip!/sam-1/1.dcm": ("sub-1", "sam-1"),
        "primary/sub-2.zip!/sub-2/sam-1/1.dcm": ("sub-2", "sam-1"),
        "primary/sub-3/sam-4.zip!/scan/1.dcm": ("sub-3", "sam-4"),
    }


def test_outside_sds_the_first_folder_is_the_subject_and_without_one_the_archive(root: Path) -> None:
    write_zip(root / "primary/Breast_MRI.zip", "Breast_MRI_001/sequence1/1.dcm", "loose.dcm")
    write_zip(root / "primary/Breast_MRI_003/scans.zip", "sequence1/1.dcm")
    assert places(root) == {
        "primary/Breast_MRI.zip!/Breast_MRI_001/sequence1/1.dcm": ("Breast_MRI_001", None),
        "primary/Breast_MRI.zip!/loose.dcm": ("Breast_MRI", None),
        "primary/Breast_MRI_003/scans.zip!/sequence1/1.dcm": ("Breast_MRI_003", None),
    }


def test_an_archive_in_the_root_is_read_where_there_is_no_primary(root: Path) -> None:
    (root / "primary").rmdir()
    write_zip(root / "sub-1.zip", "sam-1/1.dcm")
    assert places(root) == {"sub-1.zip!/sam-1/1.dcm": ("sub-1", "sam-1")}


@pytest.mark.parametrize("top", ["", "example_sds_dataset/"])
def test_a_packed_dataset_is_read_as_one(root: Path, top: str) -> None:
    (root / "primary").rmdir()
    inside = ["primary/sub-1/sam-1/1.dcm", "derivative/sub-1/mask.dcm", "docs/a.pdf", "dataset_description.xlsx"]
    write_zip(root / "all.zip", *(f"{top}{path}" for path in inside))
    assert places(root) == {f"all.zip!/{top}primary/sub-1/sam-1/1.dcm": ("sub-1", "sam-1")}
    entries = scanned(root, "primary", "derivative")[0]
    assert {path: entry.role for path, entry in entries.items()} == {
        f"all.zip!/{top}primary/sub-1/sam-1/1.dcm": "primary",
        f"all.zip!/{top}derivative/sub-1/mask.dcm": "derivative",
    }


def test_role_folders_packed_one_by_one_have_their_roles(root: Path) -> None:
    (root / "primary").rmdir()
    write_zip(root / "primary.zip", "sub-1/1.dcm")
    write_zip(root / "derivative.zip", "sub-1/mask.dcm")
    assert places(root) == {"primary.zip!/sub-1/1.dcm": ("sub-1", None)}
    entries = scanned(root, "primary", "derivative")[0]
    assert {path: entry.role for path, entry in entries.items()} == {
        "primary.zip!/sub-1/1.dcm": "primary",
        "derivative.zip!/sub-1/mask.dcm": "derivative",
    }


def test_the_manifest_names_the_subject_of_an_archive(root: Path) -> None:
    write_zip(root / "primary/scans/a.zip", "x/1.dcm")
    (root / "manifest.csv").write_text("filename,entity\nprimary/scans/a.zip,sub-4\n")
    assert places(root) == {"primary/scans/a.zip!/x/1.dcm": ("sub-4", None)}


# -- what is said of the rest -----------------------------------------------------------------------------------------


def test_junk_is_counted_and_sheets_are_no_files(root: Path) -> None:
    inside = ["1.dcm", "._1.dcm", "x/.DS_Store", "__MACOSX/1.dcm", "__MACOSX/2.dcm", "manifest.xlsx"]
    write_zip(root / "primary/sub-1/a.zip", *inside)
    entries, scan = scanned(root)
    assert set(entries) == {"primary/sub-1/a.zip!/1.dcm"}
    assert {finding.value: finding.count for finding in scan.findings} == {
        "AppleDouble": 1,
        "macOS folder settings": 1,
        "macOS archive folder": 1,
    }


def test_an_archive_in_an_archive_is_not_looked_into(root: Path) -> None:
    write_zip(root / "primary/sub-1/a.zip", "1.dcm", "b.zip", "x/c.ZIP")
    entries, scan = scanned(root)
    assert set(entries) == {"primary/sub-1/a.zip!/1.dcm"}
    assert said(scan) == [("archive-nested", "primary/sub-1/a.zip", 2)]


def test_odd_members_are_said_once_for_an_archive(root: Path) -> None:
    write_zip(
        root / "primary/sub-1/a.zip",
        "1.dcm",
        "1.dcm",
        Member(b"\x81.dcm", flags=0),
        Member("link", b"/etc/passwd", mode=stat.S_IFLNK),
    )
    entries, scan = scanned(root)
    assert set(entries) == {"primary/sub-1/a.zip!/1.dcm"}
    assert said(scan) == [
        ("archive-names-repeated", "primary/sub-1/a.zip!/1.dcm", 1),
        ("name-undecodable", "primary/sub-1/a.zip!/\N{REPLACEMENT CHARACTER}.dcm", 1),
        ("special-file-skipped", "primary/sub-1/a.zip!/link", 1),
    ]


def test_a_refused_archive_leaves_the_rest(root: Path) -> None:
    fill(root / "primary/sub-1/1.dcm")
    write_zip(root / "primary/sub-1/a.zip", "1.dcm", Member("2.dcm", flags=ENCRYPTED))
    write_zip(root / "primary/sub-1/b.zip", "3.dcm")
    entries, scan = scanned(root)
    assert set(entries) == {"primary/sub-1/1.dcm", "primary/sub-1/b.zip!/3.dcm"}
    assert said(scan) == [("archive-refused", "primary/sub-1/a.zip", 1)]
    assert scan.findings[0].message == "'2.dcm' is encrypted"
    assert scan.unread_folders == []


def test_a_damaged_archive_leaves_the_rest_and_what_was_known_of_it(root: Path) -> None:
    fill(root / "primary/sub-1/1.dcm")
    whole = write_zip(root / "primary/sub-1/a.zip", "1.dcm").read_bytes()
    (root / "primary/sub-1/a.zip").write_bytes(whole[:-30])
    entries, scan = scanned(root)
    assert set(entries) == {"primary/sub-1/1.dcm"}
    assert said(scan) == [("archive-damaged", "primary/sub-1/a.zip", 1)]
    assert scan.unread_folders == ["primary/sub-1/a.zip!"]


def test_an_archive_beside_a_folder_of_its_members_name_is_refused(root: Path) -> None:
    write_zip(root / "primary/sub-1/a.zip", "1.dcm")
    fill(root / "primary/sub-1/a.zip!/1.dcm")
    entries, scan = scanned(root)
    assert {path: entry.size for path, entry in entries.items()} == {"primary/sub-1/a.zip!/1.dcm": 1}
    assert said(scan) == [("archive-refused", "primary/sub-1/a.zip", 1)]


def test_a_file_that_only_has_the_name_of_an_archive_is_a_file(root: Path) -> None:
    fill(root / "primary/sub-1/a.zip", "no archive")
    entries, scan = scanned(root)
    assert {path: entry.size for path, entry in entries.items()} == {"primary/sub-1/a.zip": 10}
    assert scan.findings == []


def test_a_link_to_an_archive_is_followed_inside_the_root_alone(root: Path) -> None:
    write_zip(root / "store/a.zip", "1.dcm")
    write_zip(root.parent / "outside.zip", "1.dcm")
    (root / "primary/sub-1").mkdir()
    (root / "primary/sub-1/in.zip").symlink_to(root / "store/a.zip")
    (root / "primary/sub-1/out.zip").symlink_to(root.parent / "outside.zip")
    entries, scan = scanned(root)
    assert set(entries) == {"primary/sub-1/in.zip!/1.dcm"}
    assert said(scan) == [("link-outside-dataset", "primary/sub-1/out.zip", 1)]


# -- opening ----------------------------------------------------------------------------------------------------------


def opened(root: Path, path: str) -> bytes:
    with TreeSource("ds", root).open(path) as file:
        return file.read()


def test_a_member_is_opened_by_its_path(root: Path) -> None:
    write_zip(root / "primary/sub-1/a.zip", Member("x/ü 名.dcm", b"12345" * 9, DEFLATED))
    assert opened(root, "primary/sub-1/a.zip!/x/ü 名.dcm") == b"12345" * 9


def test_a_file_is_opened_unbuffered(root: Path) -> None:
    fill(root / "primary/1.dcm", "12345")
    with TreeSource("ds", root).open("primary/1.dcm") as file:
        assert isinstance(file, io.RawIOBase)
        assert (file.read(3), file.read(3), file.read(3)) == (b"123", b"45", b"")


def test_a_file_whose_path_only_looks_like_a_member_is_opened(root: Path) -> None:
    fill(root / "primary/a.zip!/1.dcm", "file")
    fill(root / "primary/b.zip!c.dcm", "name")
    write_zip(root / "primary/c.zip!/d.zip", Member("1.dcm", b"member"))
    assert opened(root, "primary/a.zip!/1.dcm") == b"file"
    assert opened(root, "primary/b.zip!c.dcm") == b"name"
    assert opened(root, "primary/c.zip!/d.zip!/1.dcm") == b"member"


@pytest.mark.parametrize("path", ["primary/a.zip!/2.dcm", "primary/b.zip!/1.dcm", "primary/1.dcm/2.dcm", "no.dcm"])
def test_what_is_not_there_is_a_file_that_is_not_found(root: Path, path: str) -> None:
    write_zip(root / "primary/a.zip", "1.dcm")
    with pytest.raises(FileNotFoundError):
        opened(root, path)


def test_a_source_that_opened_members_travels_and_equals_a_new_one(root: Path) -> None:
    write_zip(root / "primary/a.zip", Member("1.dcm", b"12345"))
    source, new = TreeSource("ds", root), TreeSource("ds", root)
    source.open("primary/a.zip!/1.dcm").close()
    assert source == new
    assert hash(source) == hash(new)
    assert pickle.dumps(source) == pickle.dumps(new)
    with pickle.loads(pickle.dumps(source)).open("primary/a.zip!/1.dcm") as file:
        assert file.read() == b"12345"


# -- through the stages -----------------------------------------------------------------------------------------------


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


def test_a_zipped_series_gives_the_rows_that_its_files_would(tree: Tree) -> None:
    members = [
        dicom(number, InstanceNumber=number, PatientName="Müller", SpecificCharacterSet="ISO_IR 100")
        for number in range(5)
    ]
    pack(tree, *members)
    for number, member in enumerate(members):
        fill(tree.root / f"primary/sub-1/plain/{number}.dcm", "")
        (tree.root / f"primary/sub-1/plain/{number}.dcm").write_bytes(member.content)
    tree.crawl()
    tree.extract()
    found = rows(tree)
    assert len(found) == 10
    for number in range(5):
        packed, plain = found[f"a.zip!/x/{number}.dcm"], found[f"plain/{number}.dcm"]
        differ = {name for name in packed if packed[name] != plain[name]}
        assert differ == {"path", "duplicate"}
        assert (packed["duplicate"], plain["duplicate"]) == (None, "identical")


def test_what_an_archive_of_zipfile_holds_is_read(tree: Tree, tmp_path: Path) -> None:
    (tree.root / "primary").mkdir()
    plain = write_instance(tmp_path / "1.dcm", PatientID="P-9")
    with zipfile.ZipFile(tree.root / "primary/sub-1.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(plain, "sam-1/1.dcm")
    tree.crawl()
    tree.extract()
    (row,) = read_unit(tree.lake, header_table(), dataset="ds", unit="sub-1").to_pylist()
    assert (row["subject"], row["sample"], row["PatientID"]) == ("sub-1", "sam-1", "P-9")


def test_members_have_the_size_inside_and_the_time_of_the_archive(tree: Tree) -> None:
    member = dicom(1)
    pack(tree, member)
    tree.crawl()
    row = inventory(tree)["primary/sub-1/a.zip!/x/1.dcm"]
    assert row["size"] == len(member.content)
    assert row["mtime"] == datetime.datetime(2023, 11, 14, 22, 13, 20, tzinfo=datetime.UTC)


def test_an_unchanged_archive_is_not_read_again(tree: Tree) -> None:
    pack(tree, dicom(1), dicom(2))
    tree.crawl()
    assert tree.extract().files_opened == 2
    tree.crawl()
    assert tree.extract().files_opened == 0


def test_a_changed_archive_is_read_again_as_a_whole(tree: Tree) -> None:
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


def test_a_damaged_member_is_a_finding_and_the_others_are_loaded(tree: Tree) -> None:
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


def test_a_member_that_is_gone_since_the_crawl_is_said(tree: Tree) -> None:
    pack(tree, dicom(1), dicom(2))
    tree.crawl()
    pack(tree, dicom(1), later=5)
    tree.extract()
    assert kinds(tree) == {"1.dcm": ("dicom", "pixel-data-absent"), "2.dcm": ("unreadable", "file-missing")}


@pytest.fixture
def unanswering(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk does not answer for archives."""

    def refuse(archive: Path) -> io.FileIO:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(directory, "_open", refuse)


def test_an_archive_that_cannot_be_read_now_is_not_gone(tree: Tree, request: pytest.FixtureRequest) -> None:
    pack(tree, dicom(1), dicom(2))
    fill(tree.root / "primary/sub-1/a.zip.txt")
    tree.crawl()
    before = inventory(tree)
    request.getfixturevalue("unanswering")
    assert tree.crawl().removed == 0
    assert inventory(tree) == before
    assert [(f["code"], f["path"]) for f in tree.findings("crawl")] == [("file-unreadable", "primary/sub-1/a.zip")]


def test_an_archive_that_is_still_being_copied_is_not_gone(tree: Tree) -> None:
    path = pack(tree, dicom(1), dicom(2))
    tree.crawl()
    tree.extract()
    before = inventory(tree), rows(tree)
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    assert tree.crawl().removed == 0
    assert tree.extract().files_opened == 0
    assert (inventory(tree), rows(tree)) == before


def test_a_file_with_the_name_of_an_archive_is_not_gone_while_the_disk_does_not_answer(
    tree: Tree, request: pytest.FixtureRequest
) -> None:
    fill(tree.root / "primary/sub-1/a.zip", "no archive")
    tree.crawl()
    before = inventory(tree)
    request.getfixturevalue("unanswering")
    assert tree.crawl().removed == 0
    assert inventory(tree) == before


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"), [("a.zip", True), ("A.ZIP", True), ("azip", False), ("a.zip.dcm", False)]
)
def test_the_suffix_makes_the_name_of_an_archive(name: str, expected: bool) -> None:
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
def test_a_path_is_split_at_each_archive(path: str, expected: list[tuple[str, str]]) -> None:
    assert list(split_member_path(path)) == expected
