"""Walks the bytes of a header, element by element, as far as they are plain: little endian, in order, of known VRs.

Everything else is a `Surprise`, and pydicom decides. Nothing is decoded here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from struct import Struct
from typing import NamedTuple

from dicom_etl.headers.layout import END

# PS3.5 7.1.2: VRs whose length has 32 bits in explicit VR, and those of 16 bits
LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
SHORT = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
PADDED = frozenset(b"AE AS CS DA DS DT IS LO LT PN SH ST TM UC UI UR UT".split())
UNDEFINED = 0xFFFFFFFF
PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
LARGE = 8192  # bytes; a value as large as this that nobody wants is jumped over

_EXPLICIT = Struct("<HH2sH").unpack_from
_IMPLICIT = Struct("<HHL").unpack_from
_U32 = Struct("<L").unpack_from
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_BIG_ENDIAN = b"1.2.840.10008.1.2.2"
_IMPLICIT_VR = b"1.2.840.10008.1.2"
_DIRECTORY = b"1.2.840.10008.1.3.10"
_DEEPEST = 64  # nested sequences; deeper ones are hostile


class Surprise(Exception):  # noqa: N818  (nothing is wrong: pydicom reads the file)
    """Something that is not plain."""


class NeedMore(Exception):  # noqa: N818  (no error either)
    """The bytes end inside the header."""


class Jump(Exception):  # noqa: N818
    """A large value that nobody wants ends beyond the bytes: they may go on after it."""

    def __init__(self, value: int, length: int) -> None:
        super().__init__()
        self.value, self.length = value, length


class Element(NamedTuple):
    """A top-level element: where it begins, where its value begins, where it ends in the bytes.

    `length` is that of the file, UNDEFINED too. `large` says that the value is jumped over; its bytes may be missing.
    """

    tag: int
    vr: bytes | None  # None in implicit VR
    start: int
    value: int
    length: int
    end: int
    large: bool


class Walked(NamedTuple):
    """A header: its elements (file meta information too), where it ends, whether pixel data follows."""

    elements: tuple[Element, ...]
    end: int
    implicit: bool
    pixels: bool


def walk(buf: bytes, jumped: Mapping[int, int], wanted: Collection[int], *, at_end: bool) -> Walked:
    """The elements of the header that begins at the first byte.

    Args:
        buf: the beginning of a file, without the values in `jumped`.
        jumped: where in `buf` a value is missing -> its length.
        wanted: tags whose values are needed.
        at_end: `buf` ends where the file ends.
    """
    elements, syntax, pos = _meta(buf)
    if syntax in (b"", _DEFLATED, _BIG_ENDIAN) or not syntax.startswith(_IMPLICIT_VR):
        raise Surprise("transfer syntax")
    implicit = syntax == _IMPLICIT_VR
    n, last, unpack = len(buf), 0x0007FFFF, _IMPLICIT if implicit else _EXPLICIT
    if implicit and buf[pos + 4 : pos + 6].isalpha() and buf[pos + 4 : pos + 6].isupper():
        raise Surprise("explicit VR under an implicit transfer syntax")
    while True:
        if pos + 12 > n:
            if pos == n and at_end:
                return Walked(tuple(elements), pos, implicit, pixels=False)
            if pos + 8 > n or not at_end:
                raise NeedMore
        start = pos
        if implicit:
            (group, number, length), vr = unpack(buf, pos), None
            value = pos + 8
        else:
            group, number, vr, length = unpack(buf, pos)
            value = pos + 8
            if vr in LONG:
                if pos + 12 > n:
                    raise NeedMore
                length = _U32(buf, value)[0]
                value += 4
            elif vr not in SHORT:
                raise Surprise("VR")
        tag = group << 16 | number
        if tag >= END:
            if tag not in PIXELS:
                raise Surprise("after the header")
            return Walked(tuple(elements), pos, implicit, pixels=True)
        if tag <= last:
            raise Surprise("order")
        last = tag
        large = False
        if length == UNDEFINED:
            if vr == b"UN":
                raise Surprise("UN of undefined length")
            pos = _after_items(buf, value, n, implicit, 0)
        elif length >= LARGE and tag not in wanted and vr not in PADDED and not (implicit and number <= 0xFF):
            large = True
            pos = value if value in jumped else value + length
            if pos > n:
                raise Jump(value, length)
        else:
            pos = value + length
            if pos > n:
                raise NeedMore
        elements.append(Element(tag, vr, start, value, length, pos, large))


def _meta(buf: bytes) -> tuple[list[Element], bytes, int]:
    """The file meta information (PS3.10 7.1), the transfer syntax, and where the data set begins."""
    if buf[128:132] != b"DICM":
        raise Surprise("preamble")
    elements: list[Element] = []
    syntax, pos, last, n = b"", 132, 0, len(buf)
    while True:
        if pos + 12 > n:
            raise NeedMore
        group, number, vr, length = _EXPLICIT(buf, pos)
        if group != 2:
            return elements, syntax, pos
        value = pos + 8
        if vr in LONG:
            length = _U32(buf, value)[0]
            value += 4
        elif vr not in SHORT:
            raise Surprise("VR")
        end = value + length
        if end > n:
            raise NeedMore
        if number <= last and number:
            raise Surprise("order")
        last = number
        content = buf[value:end].rstrip(b"\0 ")
        if number == 0x10:
            syntax = content
        elif number == 2 and content == _DIRECTORY:
            raise Surprise("DICOMDIR")
        elements.append(Element(group << 16 | number, vr, pos, value, length, end, large=False))
        pos = end


def after_sequence(buf: bytes, pos: int, n: int, implicit: bool) -> int:
    """Where a sequence of undefined length ends whose items begin at `pos`; the bytes end at `n`."""
    return _after_items(buf, pos, n, implicit, 0)


def _after_items(buf: bytes, pos: int, n: int, implicit: bool, depth: int) -> int:
    """Where a sequence of undefined length ends whose items begin at `pos` (PS3.5 7.5)."""
    if depth > _DEEPEST:
        raise Surprise("depth")
    while True:
        if pos + 8 > n:
            raise NeedMore
        group, number, length = _IMPLICIT(buf, pos)
        pos += 8
        if group != 0xFFFE:
            raise Surprise("item")
        if number == 0xE0DD:
            return pos
        if number != 0xE000:
            raise Surprise("item")
        if length == UNDEFINED:
            pos = _after_item(buf, pos, n, implicit, depth)
        elif pos + length > n:
            raise NeedMore
        else:
            _check_item(buf, pos, pos + length, implicit, depth)
            pos += length


def _check_item(buf: bytes, pos: int, stop: int, implicit: bool, depth: int) -> None:
    """An item of defined length must end where its last element ends: pydicom reads on from there."""
    while pos < stop:
        if pos + 8 > stop:
            raise Surprise("item")
        if buf[pos : pos + 2] == b"\xfe\xff":
            raise Surprise("delimiter")
        pos, length, vr = value_at(buf, pos, stop, implicit)
        if length != UNDEFINED:
            pos += length
        elif vr == b"UN":
            raise Surprise("UN of undefined length")
        else:
            pos = _after_items(buf, pos, stop, implicit, depth + 1)
    if pos != stop:
        raise Surprise("item")


def _after_item(buf: bytes, pos: int, n: int, implicit: bool, depth: int) -> int:
    while True:
        if pos + 8 > n:
            raise NeedMore
        group, number, length = _IMPLICIT(buf, pos)
        if group == 0xFFFE:
            if number != 0xE00D:
                raise Surprise("delimiter")
            return pos + 8
        pos, length, vr = value_at(buf, pos, n, implicit)
        if length == UNDEFINED:
            if vr == b"UN":
                raise Surprise("UN of undefined length")
            pos = _after_items(buf, pos, n, implicit, depth + 1)
        else:
            pos += length


def value_at(buf: bytes, pos: int, n: int, implicit: bool) -> tuple[int, int, bytes | None]:
    """(where its value begins, length, VR) of the element at `pos`."""
    if implicit:
        return pos + 8, _U32(buf, pos + 4)[0], None
    _, _, vr, length = _EXPLICIT(buf, pos)
    if vr in LONG:
        if pos + 12 > n:
            raise NeedMore
        return pos + 12, _U32(buf, pos + 8)[0], vr
    if vr not in SHORT:
        raise Surprise("VR")
    return pos + 8, length, vr


def first_item(buf: bytes, element: Element, implicit: bool) -> tuple[int, int] | None:
    """Where the first item of a sequence begins and ends; None where it has none."""
    end = element.end
    if element.value + 8 > end:
        return None
    group, number, length = _IMPLICIT(buf, element.value)
    if group != 0xFFFE or number not in (0xE000, 0xE0DD):
        raise Surprise("item")
    if number == 0xE0DD:
        return None
    begin = element.value + 8
    stop = begin + length if length != UNDEFINED else _after_item(buf, begin, end, implicit, 0) - 8
    if stop > end:
        raise Surprise("item")
    return begin, stop


def within(buf: bytes, begin: int, stop: int, implicit: bool) -> dict[int, Element]:
    """The elements of an item that lies between two places."""
    found: dict[int, Element] = {}
    pos, last = begin, 0
    while pos < stop:
        if pos + 8 > stop:
            raise Surprise("item")
        group, number, _ = _IMPLICIT(buf, pos)
        tag = group << 16 | number
        if implicit and pos == begin and buf[pos + 4 : pos + 6].isalpha() and buf[pos + 4 : pos + 6].isupper():
            raise Surprise("explicit VR in an implicit item")
        value, length, vr = value_at(buf, pos, stop, implicit)
        if tag <= last:
            raise Surprise("order")
        last = tag
        if length == UNDEFINED:
            if vr == b"UN":
                raise Surprise("UN of undefined length")
            end = _after_items(buf, value, stop, implicit, 0)
        else:
            end = value + length
        if end > stop:
            raise Surprise("item")
        found[tag] = Element(tag, vr, pos, value, length, end, large=False)
        pos = end
    return found
