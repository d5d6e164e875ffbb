"""A header as constant runs of bytes between the elements that vary: a series is read as differences from it.

Exact by construction: runs and varying elements are all the bytes of a header, in order. What has not changed is
neither parsed nor decoded again.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import NamedTuple

from dicom_etl.headers.walk import LONG, PIXELS, UNDEFINED, NeedMore, Surprise, Walked, after_sequence

_TAG = Struct("<HH").unpack_from
_U16, _U32 = Struct("<H").unpack_from, Struct("<L").unpack_from
_SHORT, _LONG, _IMPLICIT = range(3)  # how the length of an element is written


class Part(NamedTuple):
    """A constant run, and the varying element after it; the last part has none."""

    run: bytes
    prefix: bytes  # tag and VR
    form: int
    large: bool  # its value is jumped over


class Matched(NamedTuple):
    """What a file has in the varying elements: their values (of large ones the length alone), and where it ends."""

    values: list[bytes]
    undefined: int  # bit i: element i has undefined length
    tail: bytes  # from the end of the header on, 12 bytes if there are so many
    end: int  # of the header, in the file
    pixels: bool


class Template:
    """The header of a file whose followers differ in `varying` only."""

    def __init__(self, buf: bytes, walked: Walked, varying: frozenset[int]) -> None:
        self.buf, self.walked, self.varying = buf, walked, varying
        self.shape = tuple((element.tag, element.vr, element.large) for element in walked.elements)
        self.tags: list[int] = []
        self.parts: list[Part] = []
        run = 0
        for element in walked.elements:
            if element.large or element.tag in varying:
                form = _LONG if element.vr in LONG else _IMPLICIT if element.vr is None else _SHORT
                width = 4 if element.vr is None else 6
                prefix = buf[element.start : element.start + width]
                self.parts.append(Part(buf[run : element.start], prefix, form, element.large))
                self.tags.append(element.tag)
                run = element.end
        self.parts.append(Part(buf[run : walked.end], b"", 0, large=False))
        # up to the first value that is jumped over; values may be a little longer in the next file
        self.first_read = next((e.start for e in walked.elements if e.large), walked.end) + 1024

    def match(self, buf: bytes, at_end: bool, fetch: Callable[[int, int], tuple[bytes, bool]]) -> Matched | None:
        """What a file has in the varying elements, or None where it is not of this template.

        Args:
            buf: the first bytes of the file.
            at_end: they are all of it.
            fetch: (place, number) -> bytes of the file from there, and whether they reach its end.
        """
        pos, base, n = 0, 0, len(buf)
        values: list[bytes] = []
        undefined = 0
        for run, prefix, form, large in self.parts:
            size = len(run)
            if pos + size + 12 > n and not at_end:
                buf, at_end = fetch(base + pos, size + 4096)
                base, pos, n = base + pos, 0, len(buf)
            if not buf.startswith(run, pos):
                return None
            pos += size
            if not prefix:
                break
            if not buf.startswith(prefix, pos) or pos + (12 if form == _LONG else 8) > n:
                return None
            if form == _SHORT:
                length, pos = _U16(buf, pos + 6)[0], pos + 8
            elif form == _LONG:
                length, pos = _U32(buf, pos + 8)[0], pos + 12
            else:
                length, pos = _U32(buf, pos + 4)[0], pos + 8
            if large:
                if length == UNDEFINED or length < 1:
                    return None
                values.append(b"")
                pos += length
                if pos > n:
                    if at_end:
                        return None
                    buf, at_end = fetch(base + pos, 8192)
                    base, pos, n = base + pos, 0, len(buf)
                continue
            end = self._end(buf, pos, length, n)
            while end is None and not at_end:  # the value goes on beyond the bytes
                buf, at_end = fetch(base + pos, max(length + 4096 if length != UNDEFINED else 0, 3 * (n - pos), 8192))
                base, pos, n = base + pos, 0, len(buf)
                end = self._end(buf, pos, length, n)
            if end is None or end < 0:
                return None
            if length == UNDEFINED:
                undefined |= 1 << len(values)
            values.append(buf[pos:end])
            pos = end
        return self._matched(buf, pos, base, at_end, values, undefined)

    def _end(self, buf: bytes, pos: int, length: int, n: int) -> int | None:
        """Where a value ends; None where the bytes do not reach so far, -1 where it is not plain."""
        if length != UNDEFINED:
            return pos + length if pos + length <= n else None
        try:
            return after_sequence(buf, pos, n, self.walked.implicit)
        except NeedMore:
            return None
        except Surprise:
            return -1

    def _matched(
        self, buf: bytes, pos: int, base: int, at_end: bool, values: list[bytes], undefined: int
    ) -> Matched | None:
        """The match, if what follows the header is what follows the template's."""
        left = len(buf) - pos
        if not self.walked.pixels:
            return Matched(values, undefined, b"", base + pos, False) if at_end and not left else None
        if left < 12:
            return None
        group, number = _TAG(buf, pos)
        if group << 16 | number not in PIXELS:
            return None
        return Matched(values, undefined, buf[pos : pos + 12], base + pos, True)
