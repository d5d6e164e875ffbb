"""The central directory of a zip archive: its members, and the reasons to refuse it.

Not here: the content of members (`members`); nothing is inflated to list them.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from dicom_etl.sources.base import ArchiveDirectory, ArchiveError, NotAnArchiveError


@dataclass(frozen=True)
class Limits:
    """Upper limits of an archive that is read."""

    members: int = 100_000
    member_bytes: int = 2 << 30  # inflated
    total_bytes: int = 16 << 30  # inflated
    # inflated to packed size, of members above `ratio_from` bytes: real label maps reach some hundreds, zeros 1,032
    ratio: int = 1000
    ratio_from: int = 1_000_000
    directory_bytes: int = 32 << 20  # read and parsed before its members can be counted


LIMITS = Limits()
_SIGNATURES = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")  # APPNOTE 4.3: a member, an empty archive, a split one
LOCAL_HEADER = 30  # bytes, without name and extra field
_UTF8_FLAG = 0x800
_ENCRYPTED_FLAGS = 0x1 | 0x40 | 0x2000
_UNIX = 3
_DOS = 0
# errors of zipfile on damaged archives; OSError is of a seek to a forged position
_DAMAGED = (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, OverflowError, struct.error)


class Member(NamedTuple):
    """A member: the offset of its local header, its packed and inflated size in bytes, and its CRC-32."""

    offset: int
    packed: int
    size: int
    is_deflated: bool
    crc: int


@dataclass
class Directory(ArchiveDirectory):
    """The directory of a zip archive."""

    members: dict[str, Member] = field(default_factory=dict)


def read_state(file: io.FileIO) -> tuple[int, ...]:
    """Device, inode, size and modification time of a file: these differ when it was changed or replaced."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=1)
def read_cached_directory(archive: Path, state: tuple[int, ...]) -> Directory:
    """The directory of an archive in a given state; one is kept, since archives are read one after the other.

    No file stays open for it, and it is not sent with a source to other processes.
    """
    with archive.open("rb", buffering=0) as file:
        if read_state(file) != state:
            raise OSError(errno.EIO, "the archive changed while it was read")
        return _read_directory(file, LIMITS)


def read_directory(archive: Path, limits: Limits | None = None) -> Directory:
    """The directory of an archive.

    Raises:
        NotAnArchiveError: the file is not a zip archive.
        ArchiveError: it is damaged or refused.
        OSError: it cannot be read now.
    """
    with archive.open("rb", buffering=0) as file:
        return _read_directory(file, limits or LIMITS)


def _read_directory(file: io.FileIO, limits: Limits) -> Directory:
    infos = _read_infos(file, limits)
    size = file.seek(0, os.SEEK_END)
    _check_archive(infos, limits)
    for info in infos:
        _check_member(info, limits, size)
    _check_overlap(infos)
    return _build_directory(infos)


class _GuardedFile:
    """A file for zipfile: a limit on each read, and a record of read errors, which zipfile reports as "not a zip"."""

    def __init__(self, file: io.FileIO, max_bytes: int) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read
        self._max_bytes = max_bytes
        self.error: OSError | None = None

    def read(self, size: int = -1) -> bytes:
        if size > self._max_bytes:
            raise _refused(f"its directory has {size:,} bytes; at most {self._max_bytes:,} are read")
        try:
            return self._read(size) or b""
        except OSError as error:
            self.error = error
            raise


def _read_infos(file: io.FileIO, limits: Limits) -> list[zipfile.ZipInfo]:
    guarded = _GuardedFile(file, limits.directory_bytes)
    try:
        with zipfile.ZipFile(guarded) as archive:
            infos: list[zipfile.ZipInfo] = archive.infolist()
            return infos
    except _DAMAGED as error:
        if guarded.error:
            raise guarded.error from None
        file.seek(0)
        if file.read(4) not in _SIGNATURES:
            raise NotAnArchiveError from None
        raise ArchiveError("archive-damaged", f"{type(error).__name__}: {error}"[:200]) from error


def _refused(reason: str) -> ArchiveError:
    return ArchiveError("archive-refused", reason)


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
        raise _refused(f"the name {name} leads out of the archive or is not a path")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _refused(
            f"{name} is compressed by method {info.compress_type}; only stored and deflated members are read"
        )
    if inflated > limits.member_bytes:
        raise _refused(f"{name} has {inflated:,} bytes; at most {limits.member_bytes:,} are read")
    if inflated > limits.ratio_from and inflated > limits.ratio * packed:
        raise _refused(f"{name} inflates to more than {limits.ratio} times its packed size")
    if info.compress_type == zipfile.ZIP_STORED and packed != inflated:
        raise ArchiveError("archive-damaged", f"{name} is stored in {packed:,} bytes but declared with {inflated:,}")
    if info.header_offset < 0 or info.header_offset + LOCAL_HEADER + packed > size:
        raise ArchiveError("archive-damaged", f"{name} extends beyond the end of the archive")


def _check_overlap(infos: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse members that share bytes, by which a small archive can declare a large content (a zip bomb)."""
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise _refused(f"{info.orig_filename[:200]!r} overlaps another member")
        end = info.header_offset + LOCAL_HEADER + info.compress_size


def _is_unsafe(info: zipfile.ZipInfo) -> bool:
    name = _with_slashes(info.orig_filename, info)
    is_absolute = name.startswith("/") or re.match(r"[A-Za-z]:/", name) is not None
    return is_absolute or not name or "\0" in name or ".." in name.split("/")


def _with_slashes(name: str, info: zipfile.ZipInfo) -> str:
    """The name with slashes where Windows wrote backslashes, against APPNOTE 4.4.17; elsewhere they are characters."""
    return name.replace("\\", "/") if info.create_system == _DOS else name


def _build_directory(infos: Sequence[zipfile.ZipInfo]) -> Directory:
    directory = Directory()
    for info in infos:
        name = _decode_name(info)
        if name is None:
            raw = info.orig_filename.encode("cp437")
            directory.undecodable.append(raw.decode("utf-8", "replace"))
            continue
        name = _with_slashes(name, info)
        path = "/".join(segment for segment in name.split("/") if segment not in ("", "."))
        if name.endswith("/") or not path:
            continue
        file_type = stat.S_IFMT(info.external_attr >> 16) if info.create_system == _UNIX else 0
        if file_type not in (0, stat.S_IFREG):
            directory.special.append(path)
            continue
        if path in directory.members:
            directory.repeated.append(path)
        is_deflated = info.compress_type == zipfile.ZIP_DEFLATED
        directory.members[path] = Member(info.header_offset, info.compress_size, info.file_size, is_deflated, info.CRC)
    return directory


def _decode_name(info: zipfile.ZipInfo) -> str | None:
    """The name of a member as text, None if it is not UTF-8.

    Without the flag for UTF-8, zipfile decodes by code page 437, although most programs write UTF-8 all the same.
    """
    if info.flag_bits & _UTF8_FLAG:
        return info.orig_filename
    try:
        return info.orig_filename.encode("cp437").decode("utf-8")
    except UnicodeDecodeError:
        return None
