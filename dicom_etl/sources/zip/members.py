"""Members of a zip archive as seekable files that never return more bytes than the archive's directory declares.

The files of zipfile would do, but they inflate from the start for each step back, and accept data that is longer than
declared.

Not here: the list of members (`directory`).
"""

from __future__ import annotations

import errno
import io
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from dicom_etl.sources.base import ArchiveError, NotAnArchiveError
from dicom_etl.sources.zip.directory import LOCAL_HEADER, Member, read_cached_directory, read_state

_LOCAL_SIGNATURE = b"PK\x03\x04"
_BLOCK = 1 << 12
_HEAD = 1 << 20  # inflated bytes at the beginning that are kept for steps back, about


def open_member(archive: Path, name: str) -> BinaryIO:
    """Open a member of an archive, as the archive is now.

    Raises:
        FileNotFoundError: the archive or the member does not exist.
        OSError: it cannot be read now.
    """
    file = io.FileIO(archive, "rb")
    try:
        member = read_cached_directory(archive, read_state(file)).members.get(name)
        if member is None:
            raise FileNotFoundError(errno.ENOENT, "no such member of the archive", f"{archive}!/{name}")
    except (ArchiveError, NotAnArchiveError) as error:  # it was readable at the crawl
        file.close()
        raise OSError(errno.EIO, f"the archive cannot be read: {error}") from error
    except BaseException:
        file.close()
        raise
    return cast(BinaryIO, _MemberFile(file, member))


def _damaged(reason: str) -> OSError:
    """EINVAL, as of a seek to a forged length: the fault of the file itself, which no other attempt will change."""
    return OSError(errno.EINVAL, f"the member of the archive is damaged: {reason}")


class _Content(Protocol):
    def read(self, start: int, end: int) -> bytes: ...


class _MemberFile(io.RawIOBase):
    """The inflated bytes of a member: a raw file, except that reads are short only at its end."""

    def __init__(self, file: io.FileIO, member: Member) -> None:
        self._file, self._size, self._at = file, member.size, 0
        self._content: _Content = _Deflated(file, member) if member.is_deflated else _Stored(file, member)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        goal = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence] + offset
        if goal < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._at = goal
        return goal

    def read(self, size: int | None = -1, /) -> bytes:
        end = self._size if size is None or size < 0 else min(self._at + size, self._size)
        if self._at >= end:
            return b""
        data = self._content.read(self._at, end)
        self._at = end
        return data

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]  # the types that BufferedReader passes
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class _PackedBytes:
    """The bytes of a member as they are in the archive."""

    def __init__(self, file: io.FileIO, member: Member) -> None:
        self._file, self._member = file, member
        self._start = -1

    def read(self, at: int, number: int) -> bytes:
        """At most `number` bytes from `at` on; fewer only at the end."""
        if self._start < 0:
            self._start = self._find_data()
        number = min(number, self._member.packed - at)
        self._file.seek(self._start + at)
        content = self._file.read(number) if number > 0 else b""
        while len(content) < number and (more := self._file.read(number - len(content))):
            content += more
        return content

    def _find_data(self) -> int:
        """The offset of the data: behind the local header, whose extra field may differ from the directory's."""
        self._file.seek(self._member.offset)
        header = self._file.read(LOCAL_HEADER)
        if len(header) < LOCAL_HEADER or not header.startswith(_LOCAL_SIGNATURE):
            raise _damaged("it has no local header")
        name, extra = struct.unpack_from("<HH", header, 26)
        return self._member.offset + LOCAL_HEADER + int(name) + int(extra)


class _Stored:
    """A member that is not compressed."""

    def __init__(self, file: io.FileIO, member: Member) -> None:
        self._packed = _PackedBytes(file, member)

    def read(self, start: int, end: int) -> bytes:
        content = self._packed.read(start, end - start)
        if len(content) < end - start:
            raise _damaged("it ends early")
        return content


class _Deflated:
    """A deflated member. It is inflated from its start; its head, where headers are read, is kept."""

    def __init__(self, file: io.FileIO, member: Member) -> None:
        self._packed, self._member = _PackedBytes(file, member), member
        self._head = bytearray()
        self._restart()

    def _restart(self) -> None:
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._fed = self._inflated = self._crc = 0

    def read(self, start: int, end: int) -> bytes:
        # as long as the head grows, nothing beyond it was inflated: the next bytes belong to it
        while len(self._head) < min(end, _HEAD):
            self._head += self._inflate(max(min(end, _HEAD) - len(self._head), _BLOCK))
        data = bytes(self._head[start:end])
        return data if len(data) == end - start else data + self._read_beyond(start + len(data), end)

    def _read_beyond(self, start: int, end: int) -> bytes:
        """Bytes beyond the head."""
        if start < self._inflated:
            self._restart()
        while self._inflated < start:
            self._inflate(min(start - self._inflated, _HEAD))
        blocks = []
        while self._inflated < end:
            blocks.append(self._inflate(min(end - self._inflated, _HEAD)))
        return b"".join(blocks)

    def _inflate(self, max_bytes: int) -> bytes:
        """The next bytes, at least one and at most `max_bytes`, never beyond the declared size."""
        data = self._step(min(max_bytes, self._member.size - self._inflated))
        if not data:
            raise _damaged(f"it ends after {self._inflated:,} of {self._member.size:,} bytes")
        self._inflated += len(data)
        self._crc = zlib.crc32(data, self._crc)
        if self._inflated == self._member.size:
            self._check_end()
        return data

    def _step(self, max_bytes: int) -> bytes:
        """The next bytes of the inflater; empty at its end."""
        while not self._inflater.eof:
            packed = self._inflater.unconsumed_tail
            if not packed:
                packed = self._packed.read(self._fed, 4 * _BLOCK)
                self._fed += len(packed)
            try:
                data = self._inflater.decompress(packed, max_bytes)
            except zlib.error as error:
                raise _damaged(str(error)) from None
            if data or not packed:
                return data
        return b""

    def _check_end(self) -> None:
        if self._step(1):
            raise _damaged(f"it is longer than the {self._member.size:,} bytes that are declared")
        if not self._inflater.eof:
            raise _damaged("its end is missing")
        if self._crc != self._member.crc:
            raise _damaged("its checksum is wrong")
