"""A small DICOM encoder (PS3.5 7, PS3.10 7.1) that writes thousands of files a second.

The writer of pydicom takes a millisecond or more per file, and corrects its input. This one also writes undefined
lengths, empty sequences and unusual padding. It does not check what a header contains.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from pydicom.datadict import dictionary_VR, tag_for_keyword

UNDEFINED = 0xFFFFFFFF
_LONG = frozenset("OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_NUMBERS = {"US": "H", "SS": "h", "UL": "L", "SL": "l", "FL": "f", "FD": "d", "AT": "H", "UV": "Q", "SV": "q"}
_PADDED_WITH_ZERO = frozenset("UI OB UN".split())


@dataclass(frozen=True)
class Syntax:
    """A transfer syntax (PS3.5 10): its UID and its encoding."""

    uid: str
    implicit: bool = False
    big: bool = False
    deflated: bool = False
    encapsulated: bool = False

    @property
    def order(self) -> str:
        """The byte order, as `struct` writes it."""
        return ">" if self.big else "<"


IMPLICIT = Syntax("1.2.840.10008.1.2", implicit=True)
EXPLICIT = Syntax("1.2.840.10008.1.2.1")
DEFLATED = Syntax("1.2.840.10008.1.2.1.99", deflated=True)
BIG_ENDIAN = Syntax("1.2.840.10008.1.2.2", big=True)
JPEG = Syntax("1.2.840.10008.1.2.4.50", encapsulated=True)
JPEG_LOSSLESS = Syntax("1.2.840.10008.1.2.4.70", encapsulated=True)
JPEG_2000 = Syntax("1.2.840.10008.1.2.4.90", encapsulated=True)
RLE = Syntax("1.2.840.10008.1.2.5", encapsulated=True)

# SpecificCharacterSet (PS3.3 C.12.1.1.2) -> Python's codec
CODECS = {
    "": "ascii",
    "ISO_IR 6": "ascii",
    "ISO_IR 100": "latin-1",
    "ISO_IR 101": "iso8859-2",
    "ISO_IR 144": "iso8859-5",
    "ISO_IR 192": "utf-8",
    "GB18030": "gb18030",
    "\\ISO 2022 IR 87": "iso2022_jp",
}


@dataclass(frozen=True)
class Sequence:
    """The value of an SQ element: its items, and whether lengths are written or delimiters."""

    items: tuple[Elements, ...] = ()
    undefined: bool = False
    undefined_items: bool = False


# Text; bytes as they are; numbers of a binary VR; items.
Value = str | bytes | tuple[float, ...] | Sequence
Elements = Mapping[int, tuple[str, Value]]  # tag -> VR and value


@cache
def tag_of(keyword: str) -> int:
    """The tag of a keyword of PS3.6."""
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise ValueError(f"{keyword} is no keyword of PS3.6")
    return tag


@cache
def vr_of(tag: int) -> str:
    """The VR of a tag in PS3.6 (the first, if it names two)."""
    return dictionary_VR(tag)[:2]


def elements(values: Mapping[str, Value]) -> dict[int, tuple[str, Value]]:
    """Elements from values by keyword."""
    return {(tag := tag_of(keyword)): (vr_of(tag), value) for keyword, value in values.items()}


def is_binary(vr: str) -> bool:
    """Whether a VR holds binary numbers."""
    return vr in _NUMBERS


def encode(tag: int, vr: str, value: Value, syntax: Syntax, codec: str) -> bytes:
    """One element; values of odd length are padded."""
    if isinstance(value, Sequence):
        content, undefined = _items(value, syntax, codec), value.undefined
    else:
        content, undefined = _bytes(vr, value, syntax, codec), False
        if len(content) & 1:
            content += b"\0" if vr in _PADDED_WITH_ZERO else b" "
    return head(tag, vr, UNDEFINED if undefined else len(content), syntax) + content


def head(tag: int, vr: str, length: int, syntax: Syntax) -> bytes:
    """Tag, VR and length of an element."""
    order = syntax.order
    if syntax.implicit:
        return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, length)
    if vr in _LONG:
        return struct.pack(order + "HH2sHL", tag >> 16, tag & 0xFFFF, vr.encode(), 0, length)
    return struct.pack(order + "HH2sH", tag >> 16, tag & 0xFFFF, vr.encode(), length)


def _bytes(vr: str, value: str | bytes | tuple[float, ...], syntax: Syntax, codec: str) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode(codec)
    return struct.pack(f"{syntax.order}{len(value)}{_NUMBERS[vr]}", *value)


def _items(sequence: Sequence, syntax: Syntax, codec: str) -> bytes:
    order, parts = syntax.order, []
    for item in sequence.items:
        content = encode_all(item, syntax, codec)
        length = UNDEFINED if sequence.undefined_items else len(content)
        parts += [struct.pack(order + "HHL", 0xFFFE, 0xE000, length), content]
        if sequence.undefined_items:
            parts.append(struct.pack(order + "HHL", 0xFFFE, 0xE00D, 0))
    if sequence.undefined:
        parts.append(struct.pack(order + "HHL", 0xFFFE, 0xE0DD, 0))
    return b"".join(parts)


def encode_all(items: Elements, syntax: Syntax, codec: str) -> bytes:
    """Elements in the order of their tags."""
    return b"".join(encode(tag, *items[tag], syntax, codec) for tag in sorted(items))


def joined(encoded: Mapping[int, bytes], syntax: Syntax, *, group_lengths: bool = False) -> bytes:
    """Encoded elements in the order of their tags, with group lengths (PS3.5 7.2, retired) if requested."""
    if not group_lengths:
        return b"".join([encoded[tag] for tag in sorted(encoded)])
    groups: dict[int, list[bytes]] = {}
    for tag in sorted(encoded):
        groups.setdefault(tag >> 16, []).append(encoded[tag])
    parts = []
    for group, members in groups.items():
        content = b"".join(members)
        parts += [encode(group << 16, "UL", (len(content),), syntax, "ascii"), content]
    return b"".join(parts)


def pixel_data(content: bytes, syntax: Syntax, *, fragments: int = 1, vr: str = "OW") -> bytes:
    """The pixel data element; encapsulated (PS3.5 A.4) if the syntax requires it."""
    if not syntax.encapsulated:
        return encode(0x7FE00010, vr, content, syntax, "ascii")
    size = (len(content) // fragments + 1) // 2 * 2
    pieces = [content[start : start + size] for start in range(0, len(content), size)]
    parts = [head(0x7FE00010, "OB", UNDEFINED, syntax), struct.pack("<HHL", 0xFFFE, 0xE000, 0)]
    for piece in pieces:
        padded = piece + b"\0" * (len(piece) & 1)
        parts += [struct.pack("<HHL", 0xFFFE, 0xE000, len(padded)), padded]
    return b"".join([*parts, struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)])


def file_meta(sop_class: str, sop_instance: str, syntax: Syntax, *, length: bool = True, **more: str) -> bytes:
    """The file meta information (PS3.10 7.1), always explicit VR little endian; `length`: with its group length."""
    meta: dict[str, Value] = {
        "FileMetaInformationVersion": b"\0\1",
        "MediaStorageSOPClassUID": sop_class,
        "MediaStorageSOPInstanceUID": sop_instance,
        "TransferSyntaxUID": syntax.uid,
        **more,
    }
    content = encode_all(elements(meta), EXPLICIT, "ascii")
    return (encode(0x00020000, "UL", (len(content),), EXPLICIT, "ascii") if length else b"") + content


def part10(meta: bytes, content: bytes, syntax: Syntax, preamble: bytes = bytes(128)) -> bytes:
    """A file: preamble, file meta information, data set."""
    if syntax.deflated:
        deflating = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
        content = deflating.compress(content) + deflating.flush()
        content += b"\0" * (len(content) & 1)
    return b"".join([preamble, b"DICM", meta, content])
