"""An open member of a zip archive: a seekable file that never gives more than the archive's directory declares.

zipfile's own would do, but it inflates from the start for each step back, and takes data that is longer than declared
for whole. What an archive holds is in `archives.py`.
"""

from __future__ import annotations

import errno
import io
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, Protocol, cast

from dicom_etl.sources.archives import LOCAL_HEADER, ArchiveError, NoArchiveError, Packed, cached_directory, state_of

_LOCAL_SIGNATURE = b"PK\x03\x04"
_BLOCK = 1 << 12
_KEPT = 1 << 20  # inflated bytes that are kept for steps back, about


def open_member(archive: Path, name: str) -> BinaryIO:
    """Open a member of an archive, as the archive is now.

    Raises:
        FileNotFoundError: there is no such archive or member.
        OSError: it cannot be read now.
    """
    file = io.FileIO(archive, "rb")
    try:
        member = cached_directory(archive, state_of(file)).members.get(name)
        if member is None:
            raise FileNotFoundError(errno.ENOENT, "no such member of the archive", f"{archive}!/{name}")
    except (ArchiveError, NoArchiveError) as error:  # it was whole at the crawl
        file.close()
        raise OSError(errno.EIO, f"the archive cannot be read: {error}") from error
    except BaseException:
        file.close()
        raise
    return cast(BinaryIO, _Member(file, member))


def _damaged(why: str) -> OSError:
    """EINVAL, as of a seek to a forged length: the file's own fault, and no other attempt will change it."""
    return OSError(errno.EINVAL, f"the member of the archive is damaged: {why}")


class _Content(Protocol):
    def read(self, start: int, end: int) -> bytes: ...


class _Member(io.RawIOBase):
    """The inflated bytes of a member. Like a raw file, but reads are short at the end alone."""

    def __init__(self, file: io.FileIO, member: Packed) -> None:
        self._file, self._size, self._at = file, member.size, 0
        self._content: _Content = _Deflated(file, member) if member.deflated else _Stored(file, member)

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
        piece = self._content.read(self._at, end)
        self._at = end
        return piece

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]  # what BufferedReader gives
        piece = self.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


class _Packed:
    """The bytes of a member as they lie in the archive."""

    def __init__(self, file: io.FileIO, member: Packed) -> None:
        self._file, self._member = file, member
        self._start = -1

    def read(self, at: int, number: int) -> bytes:
        """Bytes from `at` on, as many as there are."""
        if self._start < 0:
            self._start = self._data_start()
        number = min(number, self._member.packed - at)
        self._file.seek(self._start + at)
        content = self._file.read(number) if number > 0 else b""
        while len(content) < number and (more := self._file.read(number - len(content))):
            content += more
        return content

    def _data_start(self) -> int:
        """The data follow the local header, whose extra field may differ from the directory's."""
        self._file.seek(self._member.offset)
        header = self._file.read(LOCAL_HEADER)
        if len(header) < LOCAL_HEADER or not header.startswith(_LOCAL_SIGNATURE):
            raise _damaged("it has no local header")
        name, extra = struct.unpack_from("<HH", header, 26)
        return self._member.offset + LOCAL_HEADER + int(name) + int(extra)


class _Stored:
    """A member that is not compressed."""

    def __init__(self, file: io.FileIO, member: Packed) -> None:
        self._packed = _Packed(file, member)

    def read(self, start: int, end: int) -> bytes:
        content = self._packed.read(start, end - start)
        if len(content) < end - start:
            raise _damaged("it ends early")
        return content


class _Deflated:
    """A deflated member. Inflates from the start on; the beginning is kept, where headers are read."""

    def __init__(self, file: io.FileIO, member: Packed) -> None:
        self._packed, self._member = _Packed(file, member), member
        self._head = bytearray()
        self._restart()

    def _restart(self) -> None:
        self._inflating = zlib.decompressobj(-zlib.MAX_WBITS)
        self._fed = self._made = self._crc = 0

    def read(self, start: int, end: int) -> bytes:
        # while the head grows nothing else was inflated: what is made is the head
        while len(self._head) < min(end, _KEPT):
            self._head += self._inflated(max(min(end, _KEPT) - len(self._head), _BLOCK))
        piece = bytes(self._head[start:end])
        return piece if len(piece) == end - start else piece + self._beyond(start + len(piece), end)

    def _beyond(self, start: int, end: int) -> bytes:
        """Bytes behind the head."""
        if start < self._made:
            self._restart()
        while self._made < start:
            self._inflated(min(start - self._made, _KEPT))
        pieces = []
        while self._made < end:
            pieces.append(self._inflated(min(end - self._made, _KEPT)))
        return b"".join(pieces)

    def _inflated(self, most: int) -> bytes:
        """The next bytes, at least one and at most `most`, never beyond the declared size."""
        piece = self._step(min(most, self._member.size - self._made))
        if not piece:
            raise _damaged(f"it ends after {self._made:,} of {self._member.size:,} bytes")
        self._made += len(piece)
        self._crc = zlib.crc32(piece, self._crc)
        if self._made == self._member.size:
            self._check_end()
        return piece

    def _step(self, most: int) -> bytes:
        """What the inflater gives next; empty at its end."""
        while not self._inflating.eof:
            fresh = self._inflating.unconsumed_tail or self._feed()
            try:
                piece = self._inflating.decompress(fresh, most)
            except zlib.error as error:
                raise _damaged(str(error)) from None
            if piece or not fresh:
                return piece
        return b""

    def _feed(self) -> bytes:
        fresh = self._packed.read(self._fed, 4 * _BLOCK)
        self._fed += len(fresh)
        return fresh

    def _check_end(self) -> None:
        if self._step(1):
            raise _damaged(f"it is longer than the {self._member.size:,} bytes that are declared")
        if not self._inflating.eof:
            raise _damaged("its end is missing")
        if self._crc != self._member.crc:
            raise _damaged("its check sum is wrong")
