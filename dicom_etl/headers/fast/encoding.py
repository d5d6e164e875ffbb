"""How the elements of a data set are encoded: VR and byte order (PS3.5 7.1 and 7.3), and the heads of elements.

A head is the first bytes of an element: its tag and VR. There are some thousand different ones, so the properties of
each are determined once and looked up by the bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from struct import Struct
from typing import Any, NamedTuple

from dicom_etl.headers.catalogue import catalogue
from dicom_etl.headers.pixel_data import PIXEL_DATA_PROVIDER_URL
from dicom_etl.headers.tag_profile import FILLED, element_code, is_private_creator
from dicom_etl.headers.values import PADDED_VRS, SPECIFIC_CHARACTER_SET, effective_vr

# PS3.5 7.1.2: the VRs with a length of 32 bits in explicit VR, and those with one of 16 bits
LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT IS FD FL LO LT PN SH SL SS ST TM UI UL US".split())
UNDEFINED_LENGTH = 0xFFFFFFFF
ITEM_GROUP = 0xFFFE0000  # items and their delimiters (PS3.5 7.5)
ITEM, ITEM_END, SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)

TRANSFER_SYNTAX_UID = 0x00020010
# pydicom converts it whenever it looks into a sequence of the same data set, and fails if it cannot
PIXEL_REPRESENTATION = 0x00280103
PIXEL_REPRESENTATION_LENGTHS = range(0, UNDEFINED_LENGTH, 2)  # whole numbers of values

_MAX_PRIVATE_HEADS, _MAX_HEADS = 1 << 13, 1 << 15  # that are kept


class NotPlainError(Exception):
    """A header that only the reference reader handles; it need not be damaged."""


class IncompleteData(Exception):  # noqa: N818  (not an error)
    """The bytes end within the header: continue with more of them."""


# Tag and VR of an element, the VR as in the file (None in implicit VR, and for delimiters).
ElementKey = tuple[int, bytes | None]

# How the parser treats an element: its value is wanted (its key); or it is PLAIN, as most are; or SPECIAL: it has a
# 32-bit length, or is a private creator, or is in no tag profile.
Treatment = ElementKey | tuple[()] | None
PLAIN: Treatment = ()
SPECIAL: Treatment = None

# The properties of a head: tag, treatment, whether its value may be padded, and its code in a tag profile if it is
# filled. Plain tuples, since the parser unpacks one for each element, which takes five times as long for named ones.
HeadProperties = tuple[int, Treatment, bool, int]

# A wanted value: key of its element, where it begins, its length in the file (it may be undefined), and where it ends.
# Plain tuples for the same reason.
ValueSpan = tuple[ElementKey, int, int, int]


class Element(NamedTuple):
    """An element in the bytes of a header."""

    tag: int
    vr: bytes | None  # None in implicit VR
    start: int  # of the element
    value: int  # start of its value
    length: int  # as in the file; it may be UNDEFINED_LENGTH
    end: int
    is_large: bool  # the value is skipped; its bytes may be missing


def is_plain_representation(vr: bytes | None, length: int) -> bool:
    """Whether pydicom can convert a PixelRepresentation; it refuses the file if it cannot."""
    return vr in (None, b"US", b"SS", b"UN") and length in PIXEL_REPRESENTATION_LENGTHS


def is_padded(tag: int, vr: bytes | None) -> bool:
    """Whether the value of an element may be padded, so that one of nothing but padding is empty."""
    name = vr.decode() if vr else None
    # private elements are in no dictionary, and too many for the cache of `effective_vr`
    return (name if tag & 0x10000 else effective_vr(tag, name)) in PADDED_VRS


@cache
def wanted_tags() -> frozenset[int]:
    """The top-level tags whose values are needed, without private creators."""
    paths = [*(column.path for column in catalogue()), *(column.alternative_path for column in catalogue())]
    tags = {path[0] for path in paths if path}
    return frozenset(tags | {SPECIFIC_CHARACTER_SET, PIXEL_DATA_PROVIDER_URL, PIXEL_REPRESENTATION})


# VR of a private element (b"" in implicit VR) -> its treatment, and whether its value may be padded
_PRIVATE = {
    vr: (SPECIAL if vr in LONG_VRS else PLAIN, vr.decode() in PADDED_VRS) for vr in (*LONG_VRS, *SHORT_VRS, b"")
}


class _Heads(dict[bytes, HeadProperties]):
    """Heads -> their properties, in one encoding."""

    def __init__(self, order: str, *, implicit: bool) -> None:
        super().__init__()
        self._unpack_tag, self._implicit = Struct(order + "HH").unpack_from, implicit

    def __missing__(self, head: bytes) -> HeadProperties:
        """Determine the properties of a head.

        Raises:
            NotPlainError: its VR is unknown.
        """
        group, number = self._unpack_tag(head)
        tag = group << 16 | number
        if group & 1 and number > 0xFF and tag < ITEM_GROUP:
            # there are very many private elements, and nothing but their VR is known of them
            if head[4:] not in _PRIVATE:
                raise NotPlainError("unknown VR")
            treatment, may_be_padded = _PRIVATE[head[4:]]
            properties = tag, treatment, may_be_padded, element_code(tag, FILLED)
        else:
            properties = self._public(tag, head)
        if len(self) < (_MAX_PRIVATE_HEADS if group & 1 else _MAX_HEADS):
            self[head] = properties
        return properties

    def _public(self, tag: int, head: bytes) -> HeadProperties:
        vr = None if self._implicit or tag >= ITEM_GROUP else head[4:]
        if vr is not None and vr not in LONG_VRS and vr not in SHORT_VRS:
            raise NotPlainError("unknown VR")
        # group lengths are in no tag profile, and delimiters are not elements
        is_special = vr in LONG_VRS or is_private_creator(tag) or not tag & 0xFFFF or tag >= ITEM_GROUP
        treatment = SPECIAL if is_special else (tag, vr) if tag in wanted_tags() else PLAIN
        return tag, treatment, is_padded(tag, vr), element_code(tag, FILLED)


Unpack = Callable[..., tuple[Any, ...]]


class Encoding(NamedTuple):
    """An encoding of a data set, with the functions that unpack its elements."""

    implicit: bool
    order: str  # of bytes, as in `struct`
    heads: _Heads
    head: Unpack  # the head of an element (a key of `heads`), and the length that follows (in explicit VR of 16 bits)
    item: Unpack  # group and number of the tag, and the length of an item or delimiter
    short: Unpack  # a length of 16 bits
    long: Unpack  # a length of 32 bits
    reserved_long: Unpack  # a length of 32 bits after two reserved bytes (PS3.5 7.1.2)
    delimiter: bytes  # the tag that ends a sequence


def _encoding(order: str, *, implicit: bool) -> Encoding:
    return Encoding(
        implicit=implicit,
        order=order,
        heads=_Heads(order, implicit=implicit),
        head=Struct(order + ("4sL" if implicit else "6sH")).unpack_from,
        item=Struct(order + "HHL").unpack_from,
        short=Struct(order + "H").unpack_from,
        long=Struct(order + "L").unpack_from,
        reserved_long=Struct(order + "2xL").unpack_from,
        delimiter=Struct(order + "HH").pack(*SEQUENCE_END),
    )


IMPLICIT, EXPLICIT = _encoding("<", implicit=True), _encoding("<", implicit=False)
BIG_ENDIAN = _encoding(">", implicit=False)
