"""The directory of a zip archive: what it lists, and which archives are refused. No member is inflated here."""

from __future__ import annotations

import stat
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest

from dicom_etl.sources.base import ArchiveError, NotAnArchiveError
from dicom_etl.sources.zip import directory as zip_directory
from dicom_etl.sources.zip.directory import LIMITS, Directory, Limits, read_directory
from tests.sources.zips import DEFLATED, DOS, ENCRYPTED, UTF8, Member, write_zip, zip_bytes


def directory(tmp_path: Path, *members: Member | str, limits: Limits = LIMITS) -> Directory:
    return read_directory(write_zip(tmp_path / "a.zip", *members), limits)


def refused(tmp_path: Path, *members: Member | str, limits: Limits = LIMITS) -> tuple[str, str]:
    """The code and the reason of a refusal."""
    with pytest.raises(ArchiveError) as caught:
        directory(tmp_path, *members, limits=limits)
    return caught.value.code, str(caught.value)


def code_of(path: Path) -> str | None:
    """The code that an archive is refused with, None if it is read."""
    try:
        read_directory(path)
    except ArchiveError as error:
        return error.code
    return None


# -- what is listed ---------------------------------------------------------------------------------------------------


def test_a_member_is_where_the_directory_says(tmp_path: Path) -> None:
    packed = b"\x4b\x04\x00"  # "a", deflated with fixed codes
    found = directory(tmp_path, Member("x/1.dcm", b"12345"), Member("2.dcm", b"a", DEFLATED, packed=packed))
    first, second = found.members["x/1.dcm"], found.members["2.dcm"]
    assert (first.offset, first.packed, first.size, first.deflated) == (0, 5, 5, False)
    # 30 bytes of local header, 7 of the name, 5 of content
    assert (second.offset, second.packed, second.size, second.deflated) == (42, 3, 1, True)
    assert second.crc == 0xE8B7BE43  # of "a"


def test_what_zipfile_writes_is_listed(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("sub-1")
        archive.writestr("sub-1/ü 名.dcm", b"123")
        archive.writestr("1.dcm", b"")
        archive.comment = b"a comment"
    assert {path: member.size for path, member in read_directory(tmp_path / "a.zip").members.items()} == {
        "sub-1/ü 名.dcm": 3,
        "1.dcm": 0,
    }


def test_an_archive_behind_other_bytes_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"#!/bin/sh\n" + zip_bytes("1.dcm"))
    assert read_directory(tmp_path / "a.zip").members["1.dcm"].offset == 10


def test_an_empty_archive_holds_nothing(tmp_path: Path) -> None:
    assert directory(tmp_path) == Directory()


def test_folders_are_no_members(tmp_path: Path) -> None:
    assert set(directory(tmp_path, Member("x/", b""), Member("./", b""), "x/1.dcm").members) == {"x/1.dcm"}


def test_dots_and_doubled_slashes_are_no_part_of_a_path(tmp_path: Path) -> None:
    assert set(directory(tmp_path, "./x//1.dcm", "x/./2.dcm", "..3.dcm").members) == {"x/1.dcm", "x/2.dcm", "..3.dcm"}


def test_backslashes_part_folders_under_windows_alone(tmp_path: Path) -> None:
    found = directory(tmp_path, Member(r"x\1.dcm", system=DOS), Member(r"y\2.dcm"))
    assert set(found.members) == {"x/1.dcm", r"y\2.dcm"}


def test_of_members_with_one_name_the_last_counts(tmp_path: Path) -> None:
    found = directory(tmp_path, Member("1.dcm", b"12"), Member("./1.dcm", b"123"), Member("1.dcm", b"1234"))
    assert {path: member.size for path, member in found.members.items()} == {"1.dcm": 4}
    assert found.repeated == ["1.dcm", "1.dcm"]


def test_names_are_utf_8_with_the_flag_and_without(tmp_path: Path) -> None:
    found = directory(tmp_path, Member("ü1.dcm", flags=UTF8), Member("ü2.dcm", flags=0))
    assert set(found.members) == {"ü1.dcm", "ü2.dcm"}


def test_a_name_in_another_encoding_is_left_out(tmp_path: Path) -> None:
    found = directory(tmp_path, Member(b"M\x81ller.dcm", flags=0), "1.dcm")
    assert set(found.members) == {"1.dcm"}
    assert found.undecodable == ["M\N{REPLACEMENT CHARACTER}ller.dcm"]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_no_files(tmp_path: Path, kind: int) -> None:
    found = directory(tmp_path, Member("odd", b"/etc/passwd", mode=kind | 0o777), Member("1", mode=stat.S_IFREG))
    assert (set(found.members), found.special) == ({"1"}, ["odd"])


# -- what is refused --------------------------------------------------------------------------------------------------


def test_the_limits() -> None:
    assert (
        Limits(
            members=100_000,
            member_bytes=2_147_483_648,
            total_bytes=17_179_869_184,
            ratio=1000,
            ratio_from=1_000_000,
            directory_bytes=33_554_432,
        )
        == LIMITS
    )


def test_too_many_members_are_refused(tmp_path: Path) -> None:
    limits = Limits(members=2)
    assert len(directory(tmp_path, "1", "2", limits=limits).members) == 2
    assert refused(tmp_path, "1", "2", "3", limits=limits) == (
        "archive-refused",
        "it has 3 members; at most 2 are read",
    )


def test_a_member_that_is_too_large_is_refused(tmp_path: Path) -> None:
    limits = Limits(member_bytes=4)
    assert directory(tmp_path, Member("1", b"1234"), limits=limits).members
    assert refused(tmp_path, Member("1", b"12345"), limits=limits)[1] == "'1' has 5 bytes; at most 4 are read"


def test_members_that_are_too_large_together_are_refused(tmp_path: Path) -> None:
    limits = Limits(total_bytes=6)
    assert directory(tmp_path, Member("1", b"123"), Member("2", b"123"), limits=limits).members
    assert refused(tmp_path, Member("1", b"123"), Member("2", b"1234"), limits=limits) == (
        "archive-refused",
        "its members have 7 bytes; at most 6 are read",
    )


def test_a_large_member_that_inflates_too_much_is_refused(tmp_path: Path) -> None:
    packed = bytes(2_000)
    fine = Member("1", method=DEFLATED, packed=packed, size=2_000_000)
    bomb = Member("1", method=DEFLATED, packed=packed, size=2_000_001)
    small = Member("1", method=DEFLATED, packed=b"\0", size=1_000_000)
    assert directory(tmp_path, fine).members
    assert directory(tmp_path, small).members
    assert refused(tmp_path, bomb) == ("archive-refused", "'1' inflates to more than 1000 times its packed size")


def test_a_directory_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    limits = Limits(directory_bytes=46)  # one member whose name is empty
    assert refused(tmp_path, "1", limits=limits) == (
        "archive-refused",
        "its directory has 47 bytes; at most 46 are read",
    )


def test_an_encrypted_member_refuses_the_archive(tmp_path: Path) -> None:
    assert refused(tmp_path, "1", Member("2", flags=ENCRYPTED)) == ("archive-refused", "'2' is encrypted")


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../1.dcm", "x/../../1.dcm", "x/..", "C:/1.dcm", "1.dcm\0.txt", "", "\0"]
)
def test_an_unsafe_name_refuses_the_archive(tmp_path: Path, name: str) -> None:
    code, why = refused(tmp_path, "1", name)
    assert (code, why) == ("archive-refused", f"the name {name!r} leads out of the archive or is not a path")


@pytest.mark.parametrize("name", [r"..\1.dcm", r"C:\1.dcm", r"\1.dcm", r"\\server\1.dcm"])
def test_an_unsafe_name_of_windows_refuses_the_archive(tmp_path: Path, name: str) -> None:
    assert refused(tmp_path, Member(name, system=DOS))[0] == "archive-refused"


@pytest.mark.parametrize("method", [1, 9, 12, 14, 93, 99])
def test_other_ways_to_pack_are_refused(tmp_path: Path, method: int) -> None:
    assert refused(tmp_path, Member("1", method=method)) == (
        "archive-refused",
        f"'1' is compressed by method {method}; only stored and deflated members are read",
    )


def test_members_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, Member("1", bytes(100)), Member("2", b"12", offset=40)) == (
        "archive-refused",
        "'2' overlaps another member",
    )


# -- what is damaged, what is none ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "member",
    [Member("1", b"123", offset=5_000), Member("1", size=2), Member("1", packed=b"12", size=1)],
    ids=["beyond the end", "stored longer", "stored shorter"],
)
def test_a_member_that_cannot_be_where_it_is_said_to_be_is_damage(tmp_path: Path, member: Member) -> None:
    assert refused(tmp_path, member)[0] == "archive-damaged"


@pytest.mark.parametrize("left", [4, 40, 100, -1])
def test_a_cut_archive_is_damaged(tmp_path: Path, left: int) -> None:
    (tmp_path / "a.zip").write_bytes(zip_bytes("1.dcm", "2.dcm", "3.dcm")[:left])
    with pytest.raises(ArchiveError) as caught:
        read_directory(tmp_path / "a.zip")
    assert caught.value.code == "archive-damaged"


def test_a_name_that_is_not_the_utf_8_it_claims_is_damage(tmp_path: Path) -> None:
    assert refused(tmp_path, Member(b"\xff.dcm", flags=UTF8))[0] == "archive-damaged"


@pytest.mark.parametrize("content", [b"", b"x", b"no archive at all", bytes(128) + b"DICM" + bytes(300)])
def test_a_file_that_only_has_the_name_is_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(NotAnArchiveError):
        read_directory(tmp_path / "a.zip")


def test_any_damage_to_a_directory_is_said_as_one_or_harmless(tmp_path: Path) -> None:
    whole = zip_bytes("1.dcm", Member("x/2.dcm", b"1" * 50, DEFLATED))
    start = whole.index(b"PK\x01\x02")
    codes = set()
    for place in range(start, len(whole)):
        for value in (0x00, 0xFF):
            changed = bytearray(whole)
            changed[place] = value
            (tmp_path / "a.zip").write_bytes(changed)
            codes.add(code_of(tmp_path / "a.zip"))
    assert codes == {None, "archive-damaged", "archive-refused"}


def test_a_read_error_is_none_of_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, file: Any) -> None:
            self.seek, self.tell, self.fileno = file.seek, file.tell, file.fileno

        def read(self, size: int = -1) -> bytes:
            raise OSError(5, "Input/output error")

        def __enter__(self) -> Broken:
            return self

        def __exit__(self, *_: object) -> None: ...

    path = write_zip(tmp_path / "a.zip", "1.dcm")
    with path.open("rb", buffering=0) as file:
        monkeypatch.setattr(zip_directory, "_open", lambda _: Broken(file))
        with pytest.raises(OSError, match="Input/output error"):
            read_directory(path)


def test_nothing_is_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_inflating(*_: object) -> None:
        raise AssertionError("inflated")

    path = write_zip(tmp_path / "a.zip", Member("1.dcm", b"1" * 1000, DEFLATED))
    monkeypatch.setattr(zlib, "decompressobj", no_inflating)
    monkeypatch.setattr(zipfile.ZipFile, "open", no_inflating)
    assert read_directory(path).members["1.dcm"].size == 1000
