"""The parser: one pass over the bytes of a header, as long as they are plain: in order, of known VRs, well nested.

What it accepts must be read by pydicom, with the same result; everything else is a `NotPlainError`. Nothing is decoded
here.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from typing import NamedTuple

from dicom_etl.headers.fast.encoding import (
    BIG_ENDIAN,
    EXPLICIT,
    IMPLICIT,
    LONG_VRS,
    SPECIAL,
    TRANSFER_SYNTAX_UID,
    UNDEFINED_LENGTH,
    Element,
    Encoding,
    HeadProperties,
    IncompleteData,
    NotPlainError,
    ValueSpan,
    wanted_tags,
)
from dicom_etl.headers.fast.sequences import find_sequence_end, is_vr_like
from dicom_etl.headers.pixel_data import PIXEL_DATA_TAGS
from dicom_etl.headers.tag_profile import END, is_private_creator
from dicom_etl.headers.values import is_blank

DEFLATED = b"1.2.840.10008.1.2.1.99"
LARGE_VALUE = 8192  # bytes; values of this length that are not needed are skipped

_BIG_ENDIAN = b"1.2.840.10008.1.2.2"
_IMPLICIT_VR = b"1.2.840.10008.1.2"
_STANDARD_SYNTAXES = b"1.2.840.10008.1.2."
_DICOMDIR = b"1.2.840.10008.1.3.10"
_UID = re.compile(rb"[0-9.]{,64}")
_CONVERTED = frozenset({0x00020000, 0x00020002, TRANSFER_SYNTAX_UID})  # of the file meta information, by pydicom
_LAST_BEFORE_DATA_SET = 0x0007FFFF  # it begins with group 0008: commands (PS3.7) are not stored
_MAX_HEAD = 12  # bytes of an element before its value
_MAX_META_VALUE = 1 << 16  # bytes of one value of the file meta information


class SkipValue(Exception):  # noqa: N818  (not an error)
    """A large value that is not needed ends beyond the bytes: continue with the bytes that follow it."""

    def __init__(self, start: int, length: int) -> None:
        super().__init__()
        self.start, self.length = start, length


class CreatorSpan(NamedTuple):
    """The value of a private creator: its tag, where it begins and ends."""

    tag: int
    start: int
    end: int


class FileMeta(NamedTuple):
    """The file meta information (PS3.10 7.1)."""

    starts: list[int]  # of its elements
    wanted: dict[int, ValueSpan]  # the values that are needed, by tag
    transfer_syntax: bytes
    end: int  # where the data set begins


class Parser:
    """Parses one header; after `IncompleteData` or `SkipValue` it continues where it was, with more bytes.

    The bytes are those at the beginning of the file, without the values in `skipped`.
    """

    def __init__(self, *, inflated: bool = False) -> None:
        """Begin to parse; `inflated`: the data set was deflated, and the bytes are those after inflation."""
        self.skipped: dict[int, int] = {}  # where the bytes of a value are missing -> its length
        self._inflated = inflated
        self.starts: list[int] = []  # of the elements
        self.meta_count = 0  # elements of the file meta information
        self.wanted: dict[int, ValueSpan] = {}  # the values that are needed, by tag
        self.codes: list[int] = []  # of the tag profile
        self.creators: list[CreatorSpan] = []
        self.large: list[int] = []  # tags of large values that are not needed
        self.end = 0  # of the header, as far as it is parsed
        self.encoding, self.has_pixel_data = EXPLICIT, False
        self._last = _LAST_BEFORE_DATA_SET  # the tag before `end`
        self._heads: list[bytes] = []

    def parse(self, buf: bytes, *, at_end: bool) -> None:
        """Parse to the end of the header; `at_end`: the bytes end where the file ends.

        Raises:
            IncompleteData, SkipValue: continue with more bytes.
            NotPlainError: the header is not plain.
        """
        if not self.starts:
            self._begin(buf)
        unpack_head, heads, wanted = self.encoding.head, self.encoding.heads, self.wanted
        add_start, add_code = self.starts.append, self.codes.append
        n, pos, last = len(buf), self.end, self._last
        limit = n - _MAX_HEAD
        while pos <= limit or not self._is_end(pos, last, n, at_end=at_end):
            key, length = unpack_head(buf, pos)
            tag, treatment, may_be_padded, filled_code = heads[key]
            value = pos + 8
            end = value + length
            # the hot loop: one condition for elements that are not special; the head of the next one is there, too
            while treatment is not SPECIAL and last < tag < END and length < LARGE_VALUE and end <= limit:
                # `is_blank`, in line; a value that begins with neither blank nor zero is filled
                if length and (buf[value] > 0x20 or not may_be_padded or buf[value:end].strip(b" \0")):
                    add_code(filled_code)
                else:
                    add_code(filled_code - 1)
                if treatment:
                    wanted[tag] = treatment, value, length, end
                add_start(pos)
                pos, last = end, tag
                key, length = unpack_head(buf, pos)
                tag, treatment, may_be_padded, filled_code = heads[key]
                value = pos + 8
                end = value + length
            self.end, self._last = pos, last
            if not last < tag < END:
                if tag <= last:
                    raise NotPlainError("elements are not in order")
                if tag not in PIXEL_DATA_TAGS:
                    raise NotPlainError("no pixel data after the header")
                self.has_pixel_data = True
                return
            pos, last = self._parse_special(buf, key, heads[key], length), tag
            add_start(self.end)

    def _begin(self, buf: bytes) -> None:
        meta = parse_file_meta(buf)
        if (meta.transfer_syntax == DEFLATED) != self._inflated:
            raise NotPlainError("data set inflated, but not deflated" if self._inflated else "deflated data set")
        self.encoding = _encoding_of(meta.transfer_syntax)
        if self.encoding.implicit and is_vr_like(buf, meta.end + 4):
            raise NotPlainError("explicit VR in a transfer syntax of implicit VR")
        self.starts, self.wanted = meta.starts, meta.wanted
        self.meta_count, self.end = len(meta.starts), meta.end

    def _is_end(self, pos: int, last: int, n: int, *, at_end: bool) -> bool:
        """Whether the file ends at `pos`, which has fewer bytes after it than the longest head."""
        self.end, self._last = pos, last
        if pos + 8 > n or not at_end:
            if pos == n and at_end:
                return True
            raise IncompleteData
        return False

    def _parse_special(self, buf: bytes, key: bytes, properties: HeadProperties, length: int) -> int:
        """Find the end of an element with a 32-bit length or large value, or at the end of the bytes, or a creator."""
        tag, _, may_be_padded, filled_code = properties
        vr, value = key[4:] or None, self.end + 8
        if vr in LONG_VRS:
            if value + 4 > len(buf):
                raise IncompleteData
            length = self.encoding.long(buf, value)[0]
            value += 4
        if length == UNDEFINED_LENGTH:
            end = find_sequence_end(buf, tag, vr, value, len(buf), self.encoding)
            is_filled = not buf.startswith(self.encoding.delimiter, value)
        elif length >= LARGE_VALUE and not (may_be_padded or tag in wanted_tags() or is_private_creator(tag)):
            end, is_filled = self._skip(tag, value, length, len(buf)), True
        else:
            end = value + length
            if end > len(buf):
                raise IncompleteData
            is_filled = not is_blank(buf[value:end], may_be_padded)
        if tag & 0xFFFF:
            self.codes.append(filled_code if is_filled else filled_code - 1)
        if tag in wanted_tags():
            self.wanted[tag] = (tag, vr), value, length, end
        elif is_private_creator(tag) and length not in (0, UNDEFINED_LENGTH):
            self.creators.append(CreatorSpan(tag, value, end))
        return end

    def _skip(self, tag: int, value: int, length: int, n: int) -> int:
        """Find the end of a large value that is not needed."""
        end = value if value in self.skipped else value + length
        if end > n:
            raise SkipValue(value, length)
        self.large.append(tag)
        return end

    @property
    def data_set_start(self) -> int:
        """Where the data set begins."""
        return self.starts[self.meta_count] if self.meta_count < len(self.starts) else self.end

    def heads(self, buf: bytes) -> list[bytes]:
        """The heads of all elements."""
        if len(self._heads) != len(self.starts):
            meta, data_set = self.starts[: self.meta_count], self.starts[self.meta_count :]
            size = 4 if self.encoding.implicit else 6
            self._heads = [buf[start : start + 6] for start in meta] + [buf[start : start + size] for start in data_set]
        return self._heads

    def tags(self, buf: bytes) -> list[int]:
        """The tags of all elements."""
        heads, meta_heads, data_set_heads = self.heads(buf), EXPLICIT.heads, self.encoding.heads
        return [meta_heads[head][0] for head in heads[: self.meta_count]] + [
            data_set_heads[head][0] for head in heads[self.meta_count :]
        ]

    def bounds(self) -> list[tuple[int, int]]:
        """Where each element begins and ends."""
        return list(zip(self.starts, [*self.starts[1:], self.end], strict=True))

    def elements(self, buf: bytes, tags: Collection[int] | None = None) -> list[Element]:
        """The elements with these tags and all that are large; None: all elements."""
        large = set(self.large)
        selected = range(UNDEFINED_LENGTH) if tags is None else large.union(tags)
        elements = []
        for number, (tag, head, (start, end)) in enumerate(
            zip(self.tags(buf), self.heads(buf), self.bounds(), strict=True)
        ):
            if tag in selected:
                encoding, vr = EXPLICIT if number < self.meta_count else self.encoding, head[4:] or None
                value = start + (12 if vr in LONG_VRS else 8)
                length = encoding.long(buf, start + 8)[0] if vr in LONG_VRS else encoding.head(buf, start)[1]
                elements.append(Element(tag, vr, start, value, length, end, tag in large))
        return elements

    def has_same_elements(self, buf: bytes, other: Parser, other_buf: bytes) -> bool:
        """Whether another header has the same elements in the same encoding, so that one template fits both."""
        if self.encoding is not other.encoding or len(self.starts) != len(other.starts) or self.large != other.large:
            return False
        return self.heads(buf) == other.heads(other_buf)


def parse_file_meta(buf: bytes) -> FileMeta:
    """Parse the file meta information at the beginning of a file.

    Raises:
        IncompleteData, NotPlainError: see there.
    """
    if buf[128:132] != b"DICM":
        raise NotPlainError("no preamble")
    starts: list[int] = []
    wanted: dict[int, ValueSpan] = {}
    syntax, pos, last, n = b"", 132, -1, len(buf)
    unpack_head, heads, tags = EXPLICIT.head, EXPLICIT.heads, wanted_tags()
    while True:
        if pos + 12 > n:
            raise IncompleteData
        key, length = unpack_head(buf, pos)
        if key[:2] != b"\x02\x00":
            return FileMeta(starts, wanted, syntax, pos)
        tag, vr, value = heads[key][0], key[4:], pos + 8
        if vr in LONG_VRS:
            length = EXPLICIT.long(buf, value)[0]
            value += 4
        if tag <= last or length > _MAX_META_VALUE:
            raise NotPlainError("unusual file meta information")
        end = value + length
        if end > n:
            raise IncompleteData
        if last < 0 or tag in _CONVERTED:
            content = buf[value:end].rstrip(b"\0 ")
            _check_meta_element(tag & 0xFFFF, vr, length, content if tag & 0xFFFF > 1 else b"")
            syntax = content if tag == TRANSFER_SYNTAX_UID else syntax
        if tag in tags:
            wanted[tag] = (tag, vr), value, length, end
        starts.append(pos)
        pos, last = end, tag


@lru_cache(maxsize=1024)
def _check_meta_element(number: int, vr: bytes, length: int, content: bytes) -> None:
    """Check that it makes no difference that pydicom converts an element while it reads the file meta information.

    It converts the first element (which must not be text), the group length, the transfer syntax and the SOP class;
    that of a DICOMDIR is refused.
    """
    if number in {0x02, 0x10}:
        is_plain = vr == b"UI" and _UID.fullmatch(content) and content != _DICOMDIR
    elif number == 0:
        is_plain = vr == b"UL" and length == 4
    else:
        is_plain = number == 1 and vr == b"OB"
    if not is_plain:
        raise NotPlainError("unusual file meta information")


def _encoding_of(transfer_syntax: bytes) -> Encoding:
    if transfer_syntax == _IMPLICIT_VR:
        return IMPLICIT
    if transfer_syntax == _BIG_ENDIAN:
        return BIG_ENDIAN
    if not transfer_syntax.startswith(_STANDARD_SYNTAXES):
        raise NotPlainError("no standard transfer syntax")  # absent, or private (PS3.5 10.2)
    return EXPLICIT
