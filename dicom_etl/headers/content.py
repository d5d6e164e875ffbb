"""The bytes of a file, fetched piece by piece: of a deflated one as if it were not deflated."""

from __future__ import annotations

import zlib
from typing import BinaryIO

from dicom_etl.headers.forms import Surprise
from dicom_etl.headers.reader import pixels_cut
from dicom_etl.headers.template import Matched

_PIECE = 1 << 18
_MOST_KEPT = 1 << 23  # bytes of an inflated data set: more than headers have
_MOST_INFLATED = 1 << 28  # more is pydicom's, which has a limit too


class Content:
    """An open file whose size is known."""

    inflated = False

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def fetch(self, place: int, number: int) -> tuple[bytes, bool]:
        """Bytes from a place on, as many as asked for if the file has them; and whether they reach its end.

        Raises:
            Surprise: the file is shorter or longer than it was.
        """
        left = self.size - place
        if number >= left:
            return self._rest(place, left)
        if place:
            self.file.seek(place)
        content = self.file.read(number)
        while len(content) < number:
            more = self.file.read(number - len(content))
            if not more:
                raise Surprise("the file is shorter than it was")
            content += more
        return content, False

    def _rest(self, place: int, left: int) -> tuple[bytes, bool]:
        """All from a place on; nothing must follow."""
        if not self.size:
            raise Surprise("an empty file")
        if left < 0:
            raise Surprise("a value ends beyond the file")
        if not left:
            self.fetch(self.size - 1, 1)
            return b"", True
        self.file.seek(place)
        content = self.file.read(left + 1)
        while more := self.file.read(left + 1):
            content += more
        if len(content) != left:
            raise Surprise("the file is not as long as it was")
        return content, True

    def pixels(self, matched: Matched, order: str) -> str:
        """What is there of the pixel data: whole, cut, or absent."""
        if not matched.pixels:
            return "absent"
        return "cut" if pixels_cut(self.file, matched.tail, matched.end, self.size, order) else "whole"


class Inflated(Content):
    """A file whose data set was deflated (PS3.5 A.5).

    All of it is inflated, since a file that is cut cannot be inflated to its end, and then gives no row; the beginning
    alone is kept.
    """

    inflated = True

    def __init__(self, content: Content, head: bytes) -> None:
        """Inflate the data set of `content`, whose file meta information is `head`."""
        kept, size = _inflated(content.file, len(head))
        super().__init__(content.file, len(head) + size)
        self._kept = head + kept

    def fetch(self, place: int, number: int) -> tuple[bytes, bool]:
        """See `Content`."""
        end = min(place + number, self.size)
        if end > len(self._kept):
            raise Surprise("a very long header")
        return self._kept[place:end], place + number >= self.size

    def pixels(self, matched: Matched, order: str) -> str:  # noqa: ARG002
        """Whole: what is cut cannot be inflated."""
        return "whole"


def _inflated(file: BinaryIO, place: int) -> tuple[bytes, int]:
    """The beginning of the inflated bytes, and how many there are."""
    file.seek(place)
    piece = file.read(_PIECE)
    if len(piece) < 12 or piece[:2] == b"\0\0" or piece[:4] == b"\xfe\xff\x0d\xe0":
        raise Surprise("deflated bytes that pydicom takes for elements")
    kept, size, inflating = b"", 0, zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        while piece and not inflating.eof:
            found = inflating.decompress(piece, _PIECE)
            size += len(found)
            if len(kept) < _MOST_KEPT:
                kept += found
            if size > _MOST_INFLATED:
                raise Surprise("a data set that inflates too much")
            piece = inflating.unconsumed_tail or (b"" if inflating.eof else file.read(_PIECE))
        size += len(rest := inflating.flush())
    except zlib.error:
        raise Surprise("deflated bytes that are damaged") from None
    if not inflating.eof:
        raise Surprise("deflated bytes that are cut")
    return kept + rest if len(kept) < _MOST_KEPT else kept, size
