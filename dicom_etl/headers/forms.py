"""How elements are written (PS3.5 7.1 and 7.3), and what their first bytes say.

The first bytes of an element, its tag and VR, are looked up as they are: there are some thousand different ones, and
what follows from them is worked out once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from struct import Struct
from typing import Any, NamedTuple

from dicom_etl.headers.catalogue import catalogue
from dicom_etl.headers.reader import CHARACTER_SET, PIXEL_DATA_PROVIDER_URL, tag_profile_vr
from dicom_etl.headers.tag_profile import FILLED
from dicom_etl.headers.values import PADDED

# PS3.5 7.1.2: VRs whose length has 32 bits in explicit VR, and those of 16 bits
LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
SHORT = frozenset(b"AE AS AT CS DA DS DT IS FD FL LO LT PN SH SL SS ST TM UI UL US".split())
UNDEFINED = 0xFFFFFFFF
PIXEL_REPRESENTATION = 0x00280103  # pydicom converts it wherever it looks into a sequence beside it
DELIMITERS = 0xFFFE0000  # the group of items and of what ends them (PS3.5 7.5)
PLAIN_REPRESENTATIONS = range(0, UNDEFINED, 2)  # lengths of a PixelRepresentation that are whole numbers of values
_MOST_PRIVATE, _MOST_KNOWN = 1 << 13, 1 << 15  # heads that are remembered


class Surprise(Exception):  # noqa: N818  (nothing is wrong: pydicom reads the file)
    """Something that is not plain."""


class NeedMore(Exception):  # noqa: N818  (no error either)
    """The bytes end inside the header."""


# tag and VR (None in implicit VR, and of delimiters), of elements whose values are needed
Spot = tuple[int, bytes | None]
# How an element is looked at: with a value that is needed; or as most are (PLAIN); or with a long length, a creator, in
# no tag profile (SPECIAL).
Look = Spot | tuple[()] | None
PLAIN: Look = ()
SPECIAL: Look = None

# What the walk over a header asks for each element: its tag, how it is to be looked at, whether blanks alone are an
# empty value, and its code in a tag profile if it is filled.
Head = tuple[int, Look, bool, int]

# An element that is looked into: what it is, where its value begins, its length in the file, and where it ends.
Found = tuple[Spot, int, int, int]


class _Heads(dict[bytes, Head]):
    """First bytes of elements -> what they say, in one form."""

    def __init__(self, order: str, *, implicit: bool) -> None:
        super().__init__()
        self._tag, self._implicit = Struct(order + "HH").unpack_from, implicit

    def __missing__(self, head: bytes) -> Head:
        """What they say, worked out.

        Raises:
            Surprise: they say no VR that is known.
        """
        group, number = self._tag(head)
        tag = group << 16 | number
        if group & 1 and number > 0xFF and tag < DELIMITERS:
            # there are very many private elements, of which nothing is known but their VR
            if head[4:] not in _PRIVATE:
                raise Surprise("VR")
            look, padded = _PRIVATE[head[4:]]
            found = tag, look, padded, tag << 2 | FILLED
        else:
            found = self._public(tag, head)
        if len(self) < (_MOST_PRIVATE if group & 1 else _MOST_KNOWN):
            self[head] = found
        return found

    def _public(self, tag: int, head: bytes) -> Head:
        vr = None if self._implicit or tag >= DELIMITERS else head[4:]
        if vr is not None and vr not in LONG and vr not in SHORT:
            raise Surprise("VR")
        # group lengths are in no tag profile, and delimiters are no elements
        is_special = vr in LONG or is_creator(tag) or not tag & 0xFFFF or tag >= DELIMITERS
        look = SPECIAL if is_special else (tag, vr) if tag in wanted_tags() else PLAIN
        return tag, look, is_padded(tag, vr), tag << 2 | FILLED


def is_creator(tag: int) -> bool:
    """Whether a tag is that of a creator of private elements (PS3.5 7.8.1)."""
    return bool(tag & 0x10000) and 0x10 <= tag & 0xFFFF <= 0xFF


def is_plain_representation(vr: bytes | None, length: int) -> bool:
    """Whether a PixelRepresentation can be converted: pydicom refuses the file where it cannot."""
    return vr in (None, b"US", b"SS", b"UN") and length in PLAIN_REPRESENTATIONS


def is_padded(tag: int, vr: bytes | None) -> bool:
    """Whether blanks alone are an empty value."""
    text = vr and vr.decode()
    # private elements are very many, and of no dictionary: they must not fill the memory of the others
    return (text if tag & 0x10000 else tag_profile_vr(tag, text)) in PADDED


# VR of a private element (b"" in implicit VR) -> what follows from it, as in `Head`
_PRIVATE = {VR: (SPECIAL if VR in LONG else PLAIN, VR.decode() in PADDED) for VR in (*LONG, *SHORT, b"")}


@cache
def wanted_tags() -> frozenset[int]:
    """The top-level tags whose values are needed, but for private creators."""
    places = {column.path[0] for column in catalogue()} | {column.also[0] for column in catalogue() if column.also}
    return frozenset(places | {CHARACTER_SET, PIXEL_DATA_PROVIDER_URL, PIXEL_REPRESENTATION})


class Form(NamedTuple):
    """How elements are written."""

    implicit: bool
    order: str  # of bytes, as in `struct`
    head: Callable[..., tuple[Any, ...]]  # what `heads` knows, and the length (in explicit VR that of 16 bits)
    heads: _Heads
    item: Callable[..., tuple[Any, ...]]  # tag and length
    short: Callable[..., tuple[Any, ...]]
    long: Callable[..., tuple[Any, ...]]
    reserved_long: Callable[..., tuple[Any, ...]]  # after two reserved bytes (PS3.5 7.1.2)
    delimiter: bytes  # the tag that ends a sequence


def _form(order: str, *, implicit: bool) -> Form:
    head = Struct(order + ("4sL" if implicit else "6sH")).unpack_from
    short, long = Struct(order + "H").unpack_from, Struct(order + "L").unpack_from
    delimiter = Struct(order + "HH").pack(0xFFFE, 0xE0DD)
    item = Struct(order + "HHL").unpack_from
    reserved_long = Struct(order + "2xL").unpack_from
    return Form(implicit, order, head, _Heads(order, implicit=implicit), item, short, long, reserved_long, delimiter)


IMPLICIT, EXPLICIT, BIG_ENDIAN = _form("<", implicit=True), _form("<", implicit=False), _form(">", implicit=False)


class Element(NamedTuple):
    """An element: where it begins, where its value begins, where it ends in the bytes.

    `length` is that of the file, UNDEFINED too. `large` says that the value is jumped over; its bytes may be missing.
    """

    tag: int
    vr: bytes | None  # None in implicit VR
    start: int
    value: int
    length: int
    end: int
    large: bool
