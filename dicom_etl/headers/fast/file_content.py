"""The bytes of a file, fetched as they are needed; those of a deflated data set after inflation."""

from __future__ import annotations

import zlib
from typing import BinaryIO

from dicom_etl.headers.fast.byte_template import Match
from dicom_etl.headers.fast.encoding import NotPlainError
from dicom_etl.headers.pixel_data import PixelData, is_truncated

_STEP = 1 << 18  # bytes that are inflated at once
_MAX_KEPT = 1 << 23  # bytes of an inflated data set: more than headers have
_MAX_INFLATED = 1 << 28  # larger ones are left to pydicom, which has a limit too


class FileContent:
    """An open file of known size."""

    inflated = False

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def fetch(self, position: int, number: int) -> tuple[bytes, bool]:
        """Fetch so many bytes, or all up to the end of the file; and whether they reach it.

        Raises:
            NotPlainError: the file is shorter or longer than `size`.
        """
        remaining = self.size - position
        if number >= remaining:
            return self._fetch_rest(position, remaining)
        if position:
            self.file.seek(position)
        content = self.file.read(number)
        while len(content) < number:
            more = self.file.read(number - len(content))
            if not more:
                raise NotPlainError("the file is shorter than its size")
            content += more
        return content, False

    def _fetch_rest(self, position: int, remaining: int) -> tuple[bytes, bool]:
        """Fetch all bytes from a position on; nothing must follow."""
        if not self.size:
            raise NotPlainError("an empty file")
        if remaining < 0:
            raise NotPlainError("a value ends beyond the file")
        if not remaining:
            self.fetch(self.size - 1, 1)
            return b"", True
        self.file.seek(position)
        content = self.file.read(remaining + 1)
        while more := self.file.read(remaining + 1):
            content += more
        if len(content) != remaining:
            raise NotPlainError("the file has another size")
        return content, True

    def check_pixel_data(self, match: Match, order: str) -> PixelData:
        """Whether the pixel data are complete, truncated or absent; `order`: byte order, as in `struct`."""
        if not match.has_pixel_data:
            return "absent"
        return "truncated" if is_truncated(self.file, match.tail, match.end, self.size, order) else "complete"


class InflatedContent(FileContent):
    """A file whose data set was deflated (PS3.5 A.5), as if it were not.

    All of it is inflated, since a truncated file cannot be inflated to its end, and then gives no row; only the
    beginning is kept.
    """

    inflated = True

    def __init__(self, content: FileContent, head: bytes) -> None:
        """Inflate the data set of `content`, whose file meta information is `head`."""
        beginning, size = _inflate(content.file, len(head))
        super().__init__(content.file, len(head) + size)
        self._kept = head + beginning

    def fetch(self, position: int, number: int) -> tuple[bytes, bool]:
        """See `FileContent`."""
        end = min(position + number, self.size)
        if end > len(self._kept):
            raise NotPlainError("a very long header")
        return self._kept[position:end], position + number >= self.size

    def check_pixel_data(self, match: Match, order: str) -> PixelData:  # noqa: ARG002
        """Complete: a truncated data set cannot be inflated."""
        return "complete"


def _inflate(file: BinaryIO, position: int) -> tuple[bytes, int]:
    """Inflate a data set: the beginning of its bytes, and their number."""
    file.seek(position)
    deflated = file.read(_STEP)
    if len(deflated) < 12 or deflated[:2] == b"\0\0" or deflated[:4] == b"\xfe\xff\x0d\xe0":
        raise NotPlainError("deflated bytes that pydicom takes for elements")
    kept, size, inflating = b"", 0, zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        while deflated and not inflating.eof:
            inflated = inflating.decompress(deflated, _STEP)
            size += len(inflated)
            if len(kept) < _MAX_KEPT:
                kept += inflated
            if size > _MAX_INFLATED:
                raise NotPlainError("a data set that inflates to very many bytes")
            deflated = inflating.unconsumed_tail or (b"" if inflating.eof else file.read(_STEP))
        size += len(rest := inflating.flush())
    except zlib.error:
        raise NotPlainError("deflated bytes that are damaged") from None
    if not inflating.eof:
        raise NotPlainError("deflated bytes that are truncated")
    return kept + rest if len(kept) < _MAX_KEPT else kept, size
