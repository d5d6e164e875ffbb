"""The directory of a zip archive: its members, and the archives that are refused. No member is inflated."""

from __future__ import annotations

import stat
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest

from dicom_etl.sources.base import ArchiveError, NotAnArchiveError
from dicom_etl.sources.zip.directory import LIMITS, Directory, Limits, read_directory
from tests.support.zip_archives import DEFLATED, DOS, ENCRYPTED, UTF8, Member, write_zip, zip_bytes


def list_members(tmp_path: Path, *members: Member | str, limits: Limits = LIMITS) -> Directory:
    return read_directory(write_zip(tmp_path / "a.zip", *members), limits)


def refusal(tmp_path: Path, *members: Member | str, limits: Limits = LIMITS) -> tuple[str, str]:
    """The code and the reason of a refusal."""
    with pytest.raises(ArchiveError) as caught:
        list_members(tmp_path, *members, limits=limits)
    return caught.value.code, str(caught.value)


def refusal_code(path: Path) -> str | None:
    """The code that an archive is refused with, None if it is read."""
    try:
        read_directory(path)
    except ArchiveError as error:
        return error.code
    return None


class TestListing:
    def test_offset_and_sizes_of_members(self, tmp_path: Path) -> None:
        packed = b"\x4b\x04\x00"  # "a", deflated with fixed codes
        listed = list_members(tmp_path, Member("x/1.dcm", b"12345"), Member("2.dcm", b"a", DEFLATED, packed=packed))
        first, second = listed.members["x/1.dcm"], listed.members["2.dcm"]
        assert (first.offset, first.packed, first.size, first.is_deflated) == (0, 5, 5, False)
        # 30 bytes of local header, 7 of the name, 5 of content
        assert (second.offset, second.packed, second.size, second.is_deflated) == (42, 3, 1, True)
        assert second.crc == 0xE8B7BE43  # of "a"

    def test_an_archive_of_zipfile_is_listed(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.mkdir("sub-1")
            archive.writestr("sub-1/ü 名.dcm", b"123")
            archive.writestr("1.dcm", b"")
            archive.comment = b"a comment"
        assert {path: member.size for path, member in read_directory(tmp_path / "a.zip").members.items()} == {
            "sub-1/ü 名.dcm": 3,
            "1.dcm": 0,
        }

    def test_an_archive_behind_other_bytes_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "a.zip").write_bytes(b"#!/bin/sh\n" + zip_bytes("1.dcm"))
        assert read_directory(tmp_path / "a.zip").members["1.dcm"].offset == 10

    def test_an_empty_archive_has_no_members(self, tmp_path: Path) -> None:
        assert list_members(tmp_path) == Directory()

    def test_folders_are_not_members(self, tmp_path: Path) -> None:
        assert set(list_members(tmp_path, Member("x/", b""), Member("./", b""), "x/1.dcm").members) == {"x/1.dcm"}

    def test_dots_and_double_slashes_are_removed_from_paths(self, tmp_path: Path) -> None:
        assert set(list_members(tmp_path, "./x//1.dcm", "x/./2.dcm", "..3.dcm").members) == {
            "x/1.dcm",
            "x/2.dcm",
            "..3.dcm",
        }

    def test_backslashes_separate_folders_only_on_windows(self, tmp_path: Path) -> None:
        listed = list_members(tmp_path, Member(r"x\1.dcm", system=DOS), Member(r"y\2.dcm"))
        assert set(listed.members) == {"x/1.dcm", r"y\2.dcm"}

    def test_the_last_of_members_with_one_name_is_listed(self, tmp_path: Path) -> None:
        listed = list_members(tmp_path, Member("1.dcm", b"12"), Member("./1.dcm", b"123"), Member("1.dcm", b"1234"))
        assert {path: member.size for path, member in listed.members.items()} == {"1.dcm": 4}
        assert listed.repeated == ["1.dcm", "1.dcm"]

    def test_names_are_utf_8_with_or_without_the_flag(self, tmp_path: Path) -> None:
        listed = list_members(tmp_path, Member("ü1.dcm", flags=UTF8), Member("ü2.dcm", flags=0))
        assert set(listed.members) == {"ü1.dcm", "ü2.dcm"}

    def test_a_name_in_another_encoding_is_not_listed(self, tmp_path: Path) -> None:
        listed = list_members(tmp_path, Member(b"M\x81ller.dcm", flags=0), "1.dcm")
        assert set(listed.members) == {"1.dcm"}
        assert listed.undecodable == ["M\N{REPLACEMENT CHARACTER}ller.dcm"]

    @pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
    def test_links_and_devices_are_not_files(self, tmp_path: Path, kind: int) -> None:
        listed = list_members(
            tmp_path, Member("odd", b"/etc/passwd", mode=kind | 0o777), Member("1", mode=stat.S_IFREG)
        )
        assert (set(listed.members), listed.special) == ({"1"}, ["odd"])


class TestRefusals:
    def test_default_limits(self) -> None:
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

    def test_too_many_members(self, tmp_path: Path) -> None:
        limits = Limits(members=2)
        assert len(list_members(tmp_path, "1", "2", limits=limits).members) == 2
        assert refusal(tmp_path, "1", "2", "3", limits=limits) == (
            "archive-refused",
            "it has 3 members; at most 2 are read",
        )

    def test_a_member_that_is_too_large(self, tmp_path: Path) -> None:
        limits = Limits(member_bytes=4)
        assert list_members(tmp_path, Member("1", b"1234"), limits=limits).members
        assert refusal(tmp_path, Member("1", b"12345"), limits=limits)[1] == "'1' has 5 bytes; at most 4 are read"

    def test_members_that_are_too_large_together(self, tmp_path: Path) -> None:
        limits = Limits(total_bytes=6)
        assert list_members(tmp_path, Member("1", b"123"), Member("2", b"123"), limits=limits).members
        assert refusal(tmp_path, Member("1", b"123"), Member("2", b"1234"), limits=limits) == (
            "archive-refused",
            "its members have 7 bytes; at most 6 are read",
        )

    def test_a_large_member_that_inflates_too_much(self, tmp_path: Path) -> None:
        packed = bytes(2_000)
        fine = Member("1", method=DEFLATED, packed=packed, size=2_000_000)
        bomb = Member("1", method=DEFLATED, packed=packed, size=2_000_001)
        small = Member("1", method=DEFLATED, packed=b"\0", size=1_000_000)
        assert list_members(tmp_path, fine).members
        assert list_members(tmp_path, small).members
        assert refusal(tmp_path, bomb) == ("archive-refused", "'1' inflates to more than 1000 times its packed size")

    def test_a_directory_that_is_too_large(self, tmp_path: Path) -> None:
        limits = Limits(directory_bytes=46)  # one member whose name is empty
        assert refusal(tmp_path, "1", limits=limits) == (
            "archive-refused",
            "its directory has 47 bytes; at most 46 are read",
        )

    def test_an_encrypted_member(self, tmp_path: Path) -> None:
        assert refusal(tmp_path, "1", Member("2", flags=ENCRYPTED)) == ("archive-refused", "'2' is encrypted")

    @pytest.mark.parametrize(
        "name", ["/etc/passwd", "../1.dcm", "x/../../1.dcm", "x/..", "C:/1.dcm", "1.dcm\0.txt", "", "\0"]
    )
    def test_an_unsafe_name(self, tmp_path: Path, name: str) -> None:
        code, why = refusal(tmp_path, "1", name)
        assert (code, why) == ("archive-refused", f"the name {name!r} leads out of the archive or is not a path")

    @pytest.mark.parametrize("name", [r"..\1.dcm", r"C:\1.dcm", r"\1.dcm", r"\\server\1.dcm"])
    def test_an_unsafe_name_of_windows(self, tmp_path: Path, name: str) -> None:
        assert refusal(tmp_path, Member(name, system=DOS))[0] == "archive-refused"

    @pytest.mark.parametrize("method", [1, 9, 12, 14, 93, 99])
    def test_other_compression_methods(self, tmp_path: Path, method: int) -> None:
        assert refusal(tmp_path, Member("1", method=method)) == (
            "archive-refused",
            f"'1' is compressed by method {method}; only stored and deflated members are read",
        )

    def test_members_that_share_bytes(self, tmp_path: Path) -> None:
        assert refusal(tmp_path, Member("1", bytes(100)), Member("2", b"12", offset=40)) == (
            "archive-refused",
            "'2' overlaps another member",
        )


class TestDamage:
    @pytest.mark.parametrize(
        "member",
        [Member("1", b"123", offset=5_000), Member("1", size=2), Member("1", packed=b"12", size=1)],
        ids=["beyond the end", "stored longer", "stored shorter"],
    )
    def test_impossible_offsets_and_sizes_are_damage(self, tmp_path: Path, member: Member) -> None:
        assert refusal(tmp_path, member)[0] == "archive-damaged"

    @pytest.mark.parametrize("left", [4, 40, 100, -1])
    def test_a_truncated_archive_is_damaged(self, tmp_path: Path, left: int) -> None:
        (tmp_path / "a.zip").write_bytes(zip_bytes("1.dcm", "2.dcm", "3.dcm")[:left])
        with pytest.raises(ArchiveError) as caught:
            read_directory(tmp_path / "a.zip")
        assert caught.value.code == "archive-damaged"

    def test_a_name_with_the_flag_that_is_not_utf_8_is_damage(self, tmp_path: Path) -> None:
        assert refusal(tmp_path, Member(b"\xff.dcm", flags=UTF8))[0] == "archive-damaged"

    @pytest.mark.parametrize("content", [b"", b"x", b"no archive at all", bytes(128) + b"DICM" + bytes(300)])
    def test_a_file_with_only_the_name_is_not_an_archive(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.zip").write_bytes(content)
        with pytest.raises(NotAnArchiveError):
            read_directory(tmp_path / "a.zip")

    def test_any_damage_to_a_directory_is_detected_or_harmless(self, tmp_path: Path) -> None:
        whole = zip_bytes("1.dcm", Member("x/2.dcm", b"1" * 50, DEFLATED))
        start = whole.index(b"PK\x01\x02")
        codes = set()
        for place in range(start, len(whole)):
            for value in (0x00, 0xFF):
                changed = bytearray(whole)
                changed[place] = value
                (tmp_path / "a.zip").write_bytes(changed)
                codes.add(refusal_code(tmp_path / "a.zip"))
        assert codes == {None, "archive-damaged", "archive-refused"}

    def test_a_read_error_is_not_damage(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
            monkeypatch.setattr(Path, "open", lambda *_, **__: Broken(file))
            with pytest.raises(OSError, match="Input/output error"):
                read_directory(path)

    def test_nothing_is_inflated(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_inflating(*_: object) -> None:
            raise AssertionError("inflated")

        path = write_zip(tmp_path / "a.zip", Member("1.dcm", b"1" * 1000, DEFLATED))
        monkeypatch.setattr(zlib, "decompressobj", no_inflating)
        monkeypatch.setattr(zipfile.ZipFile, "open", no_inflating)
        assert read_directory(path).members["1.dcm"].size == 1000
