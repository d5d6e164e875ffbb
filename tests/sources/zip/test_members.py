"""An open member of an archive: a file like any other, with no more bytes than the directory declares."""

from __future__ import annotations

import hashlib
import io
import os
import random
import zipfile
from pathlib import Path
from typing import BinaryIO, cast

import pytest

from dicom_etl.sources.zip import members
from dicom_etl.sources.zip.members import open_member
from tests.support.zip_archives import DEFLATED, STORED, Member, deflated, write_zip

# longer than the head that is kept for steps back, and without repetitions
LONG = b"".join(number.to_bytes(4, "big") for number in range(400_000))


def open_written_member(tmp_path: Path, member: Member) -> BinaryIO:
    return open_member(write_zip(tmp_path / "a.zip", Member("first", b"first"), member), str(member.name))


@pytest.fixture(params=[STORED, DEFLATED], ids=["stored", "deflated"])
def long(request: pytest.FixtureRequest, tmp_path: Path) -> BinaryIO:
    return open_written_member(tmp_path, Member("long", LONG, request.param))


class TestReading:
    def test_a_member_is_read_completely(self, long: BinaryIO) -> None:
        with long as file:
            assert file.read() == LONG
            assert file.read() == b""

    def test_reads_are_short_only_at_the_end(self, long: BinaryIO) -> None:
        with long as file:
            sizes = [len(file.read(300_000)) for _ in range(7)]
        assert sizes == [300_000] * 5 + [100_000, 0]

    def test_seeking_forwards_and_backwards(self, long: BinaryIO) -> None:
        with long as file:
            for at in (1_599_996, 0, 1_200_000, 1_199_998, 4, 1_048_574, 1_599_996):
                assert file.seek(at) == at
                assert file.tell() == at
                assert file.read(4) == LONG[at : at + 4]
                assert file.tell() == at + 4

    def test_random_seeks_and_reads(self, long: BinaryIO) -> None:
        chance = random.Random(7)
        with long as file:
            for _ in range(60):
                at, number = chance.randrange(len(LONG)), chance.choice([0, 1, 100, 20_000, 200_000])
                file.seek(at)
                assert file.read(number) == LONG[at : at + number]

    def test_seeking_from_the_end_and_from_the_position(self, long: BinaryIO) -> None:
        with long as file:
            assert file.seek(-4, os.SEEK_END) == 1_599_996
            assert file.seek(-6, os.SEEK_CUR) == 1_599_990
            assert file.read(2) == LONG[1_599_990:1_599_992]

    def test_there_is_nothing_beyond_the_end(self, long: BinaryIO) -> None:
        with long as file:
            file.seek(5_000_000)
            assert file.read(10) == b""

    def test_seeking_before_the_start_is_an_error(self, long: BinaryIO) -> None:
        with long as file, pytest.raises(OSError, match="Invalid argument"):
            file.seek(-1)

    def test_a_member_can_be_buffered_and_hashed_like_a_file(self, long: BinaryIO) -> None:
        with long as file:
            buffered = io.BufferedReader(cast(io.RawIOBase, file))
            assert buffered.read(10) == LONG[:10]
            file.seek(0)
            digest = hashlib.file_digest(cast(io.BufferedReader, file), "sha256")
        assert digest.digest() == hashlib.sha256(LONG).digest()

    def test_a_member_has_no_file_number(self, long: BinaryIO) -> None:
        with long as file, pytest.raises(OSError, match="fileno"):
            file.fileno()

    def test_an_empty_member_is_empty(self, tmp_path: Path) -> None:
        with open_written_member(tmp_path, Member("1", b"", DEFLATED)) as file:
            assert file.read(10) == b""

    def test_an_extra_field_of_only_the_local_header_is_skipped(self, tmp_path: Path) -> None:
        with open_written_member(tmp_path, Member("1", b"12345", local_extra=b"\xfe\xca\x04\x00abcd")) as file:
            assert file.read() == b"12345"

    def test_closing_a_member_closes_the_archive(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        files: list[io.FileIO] = []

        class Noted(io.FileIO):
            def __init__(self, path: Path, mode: str) -> None:
                super().__init__(path, mode)
                files.append(self)

        monkeypatch.setattr(members.io, "FileIO", Noted)
        file = open_written_member(tmp_path, Member("1"))
        assert [archive.closed for archive in files] == [False]
        file.close()
        assert [archive.closed for archive in files] == [True]
        with pytest.raises(FileNotFoundError):
            open_member(tmp_path / "a.zip", "2")
        assert [archive.closed for archive in files] == [True, True]


class TestDamage:
    @pytest.mark.parametrize(
        ("member", "why"),
        [
            (Member("1", b"12345", DEFLATED, packed=deflated(b"123456")), "longer than the 5 bytes that are declared"),
            (Member("1", b"12345", DEFLATED, packed=deflated(b"1234")), "it ends after 4 of 5 bytes"),
            (Member("1", b"12345", DEFLATED, packed=deflated(b"12345")[:-1]), "its end is missing"),
            (Member("1", b"12345", DEFLATED, packed=b"\x07"), "invalid block type"),
            (Member("1", b"12345", DEFLATED, packed=b""), "it ends after 0 of 5 bytes"),
            (Member("1", b"12345", DEFLATED, crc=1), "its checksum is wrong"),
            (Member("1", b"12345", offset=1), "it has no local header"),
        ],
        ids=lambda value: "" if isinstance(value, Member) else value,
    )
    def test_a_damaged_member_is_an_error_with_the_reason(self, tmp_path: Path, member: Member, why: str) -> None:
        path = write_zip(tmp_path / "a.zip", member)
        with open_member(path, "1") as file, pytest.raises(OSError, match=f"member of the archive is damaged: .*{why}"):
            file.read()

    def test_no_more_is_inflated_than_declared(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        inflated: list[int] = []

        class Counting:
            def __init__(self, _: int) -> None:
                self._inside = inflater(-15)

            def decompress(self, packed: bytes, max_bytes: int) -> bytes:
                content = self._inside.decompress(packed, max_bytes)
                inflated.append(len(content))
                return content

            @property
            def unconsumed_tail(self) -> bytes:
                return self._inside.unconsumed_tail

            @property
            def eof(self) -> bool:
                return self._inside.eof

        inflater = members.zlib.decompressobj
        monkeypatch.setattr(members.zlib, "decompressobj", Counting)
        bomb = Member("1", b"0" * 1000, DEFLATED, packed=deflated(bytes(5_000_000)))
        with open_written_member(tmp_path, bomb) as file, pytest.raises(OSError, match="longer than the 1,000 bytes"):
            file.read()
        assert sum(inflated) == 1001

    def test_reading_a_header_inflates_only_the_head(self, tmp_path: Path) -> None:
        spoilt = deflated(LONG)[:100_000] + b"\xff" * 100_000
        with open_written_member(tmp_path, Member("1", LONG, DEFLATED, packed=spoilt)) as file:
            assert file.read(8192) == LONG[:8192]


class TestArchives:
    def test_a_missing_member_is_not_found(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            open_member(write_zip(tmp_path / "a.zip", "1.dcm"), "2.dcm")

    def test_a_missing_archive_is_not_found(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            open_member(tmp_path / "a.zip", "2.dcm")

    @pytest.mark.parametrize("content", [b"no archive", b"PK\x03\x04 damaged"])
    def test_an_archive_that_became_another_file_cannot_be_read(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.zip").write_bytes(content)
        with pytest.raises(OSError, match="the archive cannot be read") as caught:
            open_member(tmp_path / "a.zip", "1.dcm")
        assert not isinstance(caught.value, FileNotFoundError)

    def test_the_directory_is_read_once_for_all_members(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_zip(tmp_path / "a.zip", *(f"{number}.dcm" for number in range(20)))
        reads = []
        read = zipfile.ZipFile
        monkeypatch.setattr(zipfile, "ZipFile", lambda file: reads.append(file) or read(file))
        for number in range(20):
            open_member(path, f"{number}.dcm").close()
        assert len(reads) == 1

    @pytest.mark.parametrize("change", ["size", "time"])
    def test_a_changed_archive_is_read_again(self, tmp_path: Path, change: str) -> None:
        path = write_zip(tmp_path / "a.zip", Member("1.dcm", b"12345"))
        with open_member(path, "1.dcm") as file:
            assert file.read() == b"12345"
        if change == "size":
            write_zip(path, Member("0.dcm", b"00"), Member("1.dcm", b"abc"))
        else:
            write_zip(path, Member("1.dcm", b"abcde"))
            os.utime(path, (1_700_000_001, 1_700_000_001))
        with open_member(path, "1.dcm") as file:
            assert file.read().startswith(b"abc")

    def test_two_archives_can_be_open_at_once(self, tmp_path: Path) -> None:
        path_1 = write_zip(tmp_path / "1.zip", Member("1.dcm", b"one" * 9, DEFLATED))
        path_2 = write_zip(tmp_path / "2.zip", Member("1.dcm", b"two" * 9, DEFLATED))
        with open_member(path_1, "1.dcm") as first, open_member(path_2, "1.dcm") as second:
            assert (first.read(3), second.read(3), first.read(3)) == (b"one", b"two", b"one")
