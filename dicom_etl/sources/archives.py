"""What a zip archive holds, by its central directory alone: nothing is inflated here (that is `members.py`).

Archives are as untrusted as what lies in them: an archive beyond a limit, or one that no honest program writes, is
refused as a whole.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import struct
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple


@dataclass(frozen=True)
class Limits:
    """What an archive may be at most."""

    members: int = 100_000
    member_bytes: int = 2 << 30  # inflated
    total_bytes: int = 16 << 30  # inflated
    # inflated to packed, of members above `ratio_from` bytes: real label maps reach some hundreds, zeros 1,032
    ratio: int = 1000
    ratio_from: int = 1_000_000
    directory_bytes: int = 32 << 20  # read and parsed before its members can be counted


LIMITS = Limits()
MARK = "!"  # makes a folder of an archive, as in a.zip!/x.dcm
_SUFFIX = ".zip"
_INNER = re.compile(re.escape(f"{_SUFFIX}{MARK}/"), re.IGNORECASE)
_SIGNATURES = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")  # APPNOTE 4.3: a member, an empty archive, a split one
LOCAL_HEADER = 30  # bytes, without name and extra field
_UTF8_FLAG = 0x800
_ENCRYPTED_FLAGS = 0x1 | 0x40 | 0x2000
_UNIX = 3
_DOS = 0
# What zipfile raises on damaged archives; OSError of a seek to a forged place.
_DAMAGED = (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, OverflowError, struct.error)


class NoArchiveError(Exception):
    """The file is no zip archive, whatever its name."""


class ArchiveError(Exception):
    """An archive is not looked into: a code of the findings, and why."""

    def __init__(self, code: str, why: str) -> None:
        super().__init__(why)
        self.code = code


class Packed(NamedTuple):
    """A member: where its local header lies, how long it is packed and inflated."""

    offset: int
    packed: int
    size: int
    deflated: bool
    crc: int


@dataclass
class Directory:
    """The files of an archive by path, and the names that are none."""

    members: dict[str, Packed] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)
    undecodable: list[str] = field(default_factory=list)
    special: list[str] = field(default_factory=list)  # symbolic links, devices


def is_archive_name(name: str) -> bool:
    """Whether a file of this name is looked at as an archive."""
    return name.lower().endswith(_SUFFIX)


def archive_stem(name: str) -> str:
    """The name of an archive without its suffix."""
    return name[: -len(_SUFFIX)]


def splits(path: str) -> Iterator[tuple[str, str]]:
    """The ways to read a path as an archive and a member. Folders may be named `x.zip!` too: there can be several."""
    for match in _INNER.finditer(path):
        yield path[: match.end() - len(MARK) - 1], path[match.end() :]


def state_of(file: io.FileIO) -> tuple[int, ...]:
    """What changes when a file does."""
    seen = os.fstat(file.fileno())
    return seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns


@lru_cache(maxsize=1)
def cached_directory(archive: Path, state: tuple[int, ...]) -> Directory:
    """The directory of an archive in a known state; members are read one archive after the other, so one is kept.

    No file stays open for it, and nothing of it travels with a source to another process.
    """
    with _open(archive) as file:
        if state_of(file) != state:
            raise OSError(errno.EIO, "the archive changed while it was read")
        return _directory(file, LIMITS)


def read_directory(archive: Path, limits: Limits | None = None) -> Directory:
    """The directory of an archive.

    Raises:
        NoArchiveError: it is none.
        ArchiveError: it is damaged or refused.
        OSError: it cannot be read now.
    """
    with _open(archive) as file:
        return _directory(file, limits or LIMITS)


def _open(archive: Path) -> io.FileIO:
    return archive.open("rb", buffering=0)


def _directory(file: io.FileIO, limits: Limits) -> Directory:
    infos = _infos(file, limits)
    size = file.seek(0, os.SEEK_END)
    _check_archive(infos, limits)
    for info in infos:
        _check_member(info, limits, size)
    _check_overlap(infos)
    return _listed(infos)


class _Guarded:
    """What zipfile reads: no more than a limit at once. Keeps a read error, which zipfile takes for "no zip"."""

    def __init__(self, file: io.FileIO, most: int) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read
        self._most = most
        self.error: OSError | None = None

    def read(self, size: int = -1) -> bytes:
        if size > self._most:
            raise _refused(f"its directory has {size:,} bytes; at most {self._most:,} are read")
        try:
            return self._read(size) or b""
        except OSError as error:
            self.error = error
            raise


def _infos(file: io.FileIO, limits: Limits) -> list[zipfile.ZipInfo]:
    guarded = _Guarded(file, limits.directory_bytes)
    try:
        with zipfile.ZipFile(guarded) as archive:
            infos: list[zipfile.ZipInfo] = archive.infolist()
            return infos
    except _DAMAGED as error:
        if guarded.error:
            raise guarded.error from None
        file.seek(0)
        if file.read(4) not in _SIGNATURES:
            raise NoArchiveError from None
        raise ArchiveError("archive-damaged", f"{type(error).__name__}: {error}"[:200]) from error


def _refused(why: str) -> ArchiveError:
    return ArchiveError("archive-refused", why)


def _check_archive(infos: Sequence[zipfile.ZipInfo], limits: Limits) -> None:
    if len(infos) > limits.members:
        raise _refused(f"it has {len(infos):,} members; at most {limits.members:,} are read")
    total = sum(info.file_size for info in infos)
    if total > limits.total_bytes:
        raise _refused(f"its members have {total:,} bytes; at most {limits.total_bytes:,} are read")


def _check_member(info: zipfile.ZipInfo, limits: Limits, size: int) -> None:
    name, packed, inflated = repr(info.orig_filename[:200]), info.compress_size, info.file_size
    if info.flag_bits & _ENCRYPTED_FLAGS:
        raise _refused(f"{name} is encrypted")
    if _is_unsafe(info):
        raise _refused(f"the name {name} leads out of the archive or is none")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _refused(f"{name} is packed by method {info.compress_type}; stored and deflated members are read")
    if inflated > limits.member_bytes:
        raise _refused(f"{name} has {inflated:,} bytes; at most {limits.member_bytes:,} are read")
    if inflated > limits.ratio_from and inflated > limits.ratio * packed:
        raise _refused(f"{name} inflates to more than {limits.ratio} times its packed size")
    if info.compress_type == zipfile.ZIP_STORED and packed != inflated:
        raise ArchiveError("archive-damaged", f"{name} is stored in {packed:,} bytes and said to have {inflated:,}")
    if info.header_offset < 0 or info.header_offset + LOCAL_HEADER + packed > size:
        raise ArchiveError("archive-damaged", f"{name} lies beyond the end of the archive")


def _check_overlap(infos: Sequence[zipfile.ZipInfo]) -> None:
    """Members that share their bytes are how a small archive claims to hold much."""
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise _refused(f"{info.orig_filename[:200]!r} overlaps another member")
        end = info.header_offset + LOCAL_HEADER + info.compress_size


def _is_unsafe(info: zipfile.ZipInfo) -> bool:
    name = _slashed(info.orig_filename, info)
    absolute = name.startswith("/") or re.match(r"[A-Za-z]:/", name) is not None
    return absolute or not name or "\0" in name or ".." in name.split("/")


def _slashed(name: str, info: zipfile.ZipInfo) -> str:
    """Some programs under Windows write backslashes, against APPNOTE 4.4.17; elsewhere they are part of a name."""
    return name.replace("\\", "/") if info.create_system == _DOS else name


def _listed(infos: Sequence[zipfile.ZipInfo]) -> Directory:
    directory = Directory()
    for info in infos:
        name = _text(info)
        if name is None:
            raw = info.orig_filename.encode("cp437")
            directory.undecodable.append(raw.decode("utf-8", "replace"))
            continue
        name = _slashed(name, info)
        path = "/".join(part for part in name.split("/") if part not in ("", "."))
        if name.endswith("/") or not path:
            continue
        if _is_special(info):
            directory.special.append(path)
            continue
        if path in directory.members:
            directory.repeated.append(path)
        deflated = info.compress_type == zipfile.ZIP_DEFLATED
        directory.members[path] = Packed(info.header_offset, info.compress_size, info.file_size, deflated, info.CRC)
    return directory


def _text(info: zipfile.ZipInfo) -> str | None:
    """A name as text, None if it is not UTF-8.

    Where the flag for UTF-8 is not set, zipfile reads code page 437; most programs wrote UTF-8 all the same.
    """
    if info.flag_bits & _UTF8_FLAG:
        return info.orig_filename
    try:
        return info.orig_filename.encode("cp437").decode("utf-8")
    except UnicodeDecodeError:
        return None


def _is_special(info: zipfile.ZipInfo) -> bool:
    kind = stat.S_IFMT(info.external_attr >> 16) if info.create_system == _UNIX else 0
    return kind not in (0, stat.S_IFREG)
