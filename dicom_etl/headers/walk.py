"""Walks the bytes of a header, element by element, as far as they are plain: in order, of known VRs, well nested.

Everything else is a `Surprise`, and pydicom decides: what is accepted here must be read by pydicom, and read alike.
Nothing is decoded here.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cached_property
from typing import NamedTuple

from dicom_etl.headers.forms import (
    BIG_ENDIAN,
    EXPLICIT,
    IMPLICIT,
    SPECIAL,
    UNDEFINED,
    Element,
    Form,
    Known,
    NeedMore,
    Surprise,
)
from dicom_etl.headers.layout import EMPTY, END, FILLED, code_of, empty_code
from dicom_etl.headers.nested import after_sequence, is_vr

PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
LARGE = 8192  # bytes; a value as large as this that nobody wants is jumped over
DEFLATED = b"1.2.840.10008.1.2.1.99"

_BIG_ENDIAN = b"1.2.840.10008.1.2.2"
_IMPLICIT_VR = b"1.2.840.10008.1.2"
_STANDARD = b"1.2.840.10008.1.2."
_DIRECTORY = b"1.2.840.10008.1.3.10"
_UID = re.compile(rb"[0-9.]*")
_TRANSFER_SYNTAX = 0x00020010
_CONVERTED = frozenset({0x00020000, 0x00020002, _TRANSFER_SYNTAX})  # of the file meta information, by pydicom
_LAST_BEFORE = 0x0007FFFF  # the data set begins with group 0008: commands (PS3.7) are not stored
_LONGEST_HEAD = 12  # bytes of an element before its value
_MOST_META = 1 << 16  # bytes of one value of the file meta information


class Jump(Exception):  # noqa: N818  (no error)
    """A large value that nobody wants ends beyond the bytes: they may go on after it."""

    def __init__(self, value: int, length: int) -> None:
        super().__init__()
        self.value, self.length = value, length


# of an element its VR, where it begins, where its value begins, its length, and where it ends
Found = tuple[bytes | None, int, int, int, int]


class Meta(NamedTuple):
    """The file meta information (PS3.10 7.1)."""

    heads: list[bytes]  # the first bytes of each element
    starts: list[int]
    found: dict[int, Found]  # those whose values are wanted
    syntax: bytes  # the transfer syntax
    end: int  # where the data set begins


class Walk:
    """The walk over one header, which goes on where it was when there are more bytes of it.

    The bytes are those of the beginning of a file, or of more of it, without the values in `jumped`: where a value is
    missing -> its length.
    """

    def __init__(self, *, inflated: bool = False) -> None:
        """Begin to walk; `inflated` says that the data set was deflated, and is no longer."""
        self.jumped: dict[int, int] = {}
        self._inflated = inflated
        self.heads: list[bytes] = []  # the first bytes of each element
        self.starts: list[int] = []
        self.found: dict[int, Found] = {}
        self.codes: list[bytes] = []
        self.creators: list[tuple[int, int, int]] = []  # private ones: tag, where the value begins and ends
        self.large: list[int] = []  # tags of the values that are jumped over
        self.meta, self.end, self.form, self.pixels = 0, 0, EXPLICIT, False
        self._last = _LAST_BEFORE  # the tag before `end`

    def _begin(self, buf: bytes) -> None:
        meta = meta_of(buf)
        if (meta.syntax == DEFLATED) != self._inflated:
            raise Surprise("deflated")
        self.form = _form_of(meta.syntax)
        if self.form.implicit and is_vr(buf, meta.end + 4):
            raise Surprise("explicit VR under an implicit transfer syntax")
        self.heads, self.starts, self.found = meta.heads, meta.starts, meta.found
        self.meta, self.end = len(meta.heads), meta.end

    def walk(self, buf: bytes, *, at_end: bool) -> None:
        """Walk to the end of the header; `at_end` says that the bytes end where the file ends.

        Raises:
            NeedMore, Jump: go on with more bytes.
            Surprise: the header is not plain.
        """
        if not self.heads:
            self._begin(buf)
        head, heads = self.form.head, self.form.heads
        add_head, add_start, add_code = self.heads.append, self.starts.append, self.codes.append
        n, pos, last = len(buf), self.end, self._last
        limit = n - _LONGEST_HEAD
        while pos <= limit or not self._ends(pos, last, n, at_end=at_end):
            key, length = head(buf, pos)
            tag, look, is_padded, filled = heads[key]
            if not last < tag < END:
                self.end = pos
                return self._pixels(tag, last)
            value = pos + 8
            end = value + length
            if look < SPECIAL and length < LARGE and end <= n:
                # what begins with neither blank nor zero is filled
                if length and (buf[value] > 0x20 or not is_padded or buf[value:end].strip(b" \0")):
                    add_code(filled)
                else:
                    add_code(empty_code(filled))
                if look:
                    self.found[tag] = key[4:] or None, pos, value, length, end
            else:
                self.end, self._last = pos, last
                end = self._special(buf, heads.known(key), length)
            add_head(key)
            add_start(pos)
            pos, last = end, tag
        return None

    def _ends(self, pos: int, last: int, n: int, *, at_end: bool) -> bool:
        """Whether the file ends here; there are fewer bytes than an element may have at least."""
        self.end, self._last = pos, last
        if pos + 8 > n or not at_end:
            if pos == n and at_end:
                return True
            raise NeedMore
        return False

    def _pixels(self, tag: int, last: int) -> None:
        if tag <= last:
            raise Surprise("order")
        if tag not in PIXELS:
            raise Surprise("after the header")
        self.pixels = True

    def _special(self, buf: bytes, known: Known, length: int) -> int:
        """Where an element ends that is not like most: with a long length or value, not all there, a creator."""
        n, start = len(buf), self.end
        value = start + 8
        if known.is_long:
            if start + 12 > n:
                raise NeedMore
            length = self.form.long(buf, value)[0]
            value += 4
        end, is_filled = self._value_end(buf, known, value, length)
        if known.tag & 0xFFFF:
            self.codes.append(code_of(known.tag, FILLED if is_filled else EMPTY))
        if known.is_wanted:
            self.found[known.tag] = known.vr, start, value, length, end
        elif known.is_creator and length not in (0, UNDEFINED):
            self.creators.append((known.tag, value, end))
        return end

    def _value_end(self, buf: bytes, known: Known, value: int, length: int) -> tuple[int, bool]:
        """Where a value ends in the bytes, and whether it is filled."""
        if length == UNDEFINED:
            end = after_sequence(buf, known.tag, known.vr, value, len(buf), self.form)
            return end, not buf.startswith(self.form.delimiter, value)
        end, is_large = value + length, length >= LARGE and known.is_skippable
        if is_large and value in self.jumped:
            end = value
        elif end > len(buf):
            raise Jump(value, length) if is_large else NeedMore
        if is_large:
            self.large.append(known.tag)
            return end, True
        return end, bool(length) and not (known.is_padded and not buf[value:end].strip(b" \0"))

    @property
    def data_set(self) -> int:
        """Where the data set begins."""
        return self.starts[self.meta] if self.meta < len(self.starts) else self.end

    @cached_property
    def tags(self) -> list[int]:
        """The tags of all elements."""
        meta, rest = EXPLICIT.heads, self.form.heads
        return [meta[head][0] for head in self.heads[: self.meta]] + [rest[head][0] for head in self.heads[self.meta :]]

    def is_like(self, other: Walk) -> bool:
        """Whether a header has the same elements, written alike: what headers must have in common for a template."""
        return self.form is other.form and self.heads == other.heads and self.large == other.large

    def bounds(self) -> list[tuple[int, int]]:
        """Where each element begins and ends."""
        return list(zip(self.starts, [*self.starts[1:], self.end], strict=True))

    def elements(self, buf: bytes, tags: Collection[int] | None = None) -> list[Element]:
        """Elements of the header that was walked: all, or those of some tags and all that are large."""
        large = set(self.large)
        wanted = range(UNDEFINED) if tags is None else large.union(tags)
        found = []
        for number, (tag, head, (start, end)) in enumerate(zip(self.tags, self.heads, self.bounds(), strict=True)):
            if tag in wanted:
                form = EXPLICIT if number < self.meta else self.form
                known = form.heads.known(head)
                value = start + (12 if known.is_long else 8)
                length = form.long(buf, start + 8)[0] if known.is_long else form.head(buf, start)[1]
                found.append(Element(tag, known.vr, start, value, length, end, tag in large))
        return found


def meta_of(buf: bytes) -> Meta:
    """The file meta information that the bytes begin with."""
    if buf[128:132] != b"DICM":
        raise Surprise("preamble")
    meta = Meta([], [], {}, b"", 0)
    syntax, pos, last, n = b"", 132, -1, len(buf)
    head, heads = EXPLICIT.head, EXPLICIT.heads
    while True:
        if pos + 12 > n:
            raise NeedMore
        if buf[pos : pos + 2] != b"\x02\x00":
            return meta._replace(syntax=syntax, end=pos)
        key, length = head(buf, pos)
        known = heads.known(key)
        tag, value = known.tag, pos + 8
        if known.is_long:
            length = EXPLICIT.long(buf, value)[0]
            value += 4
        if tag <= last or length > _MOST_META:
            raise Surprise("file meta information")
        end = value + length
        if end > n:
            raise NeedMore
        if last < 0 or tag in _CONVERTED:
            content = buf[value:end].rstrip(b"\0 ")
            _check_meta(tag & 0xFFFF, known.vr, length, content)
            syntax = content if tag == _TRANSFER_SYNTAX else syntax
        if known.is_wanted:
            meta.found[tag] = known.vr, pos, value, length, end
        meta.heads.append(key)
        meta.starts.append(pos)
        pos, last = end, tag


def _check_meta(number: int, vr: bytes | None, length: int, content: bytes) -> None:
    """What pydicom converts while it reads the file meta information must be such that it changes nothing.

    It converts the first element (so that it be one that has no text), the group length, the transfer syntax and the
    SOP class; the last tells a DICOMDIR.
    """
    if number in {0x02, 0x10}:
        plain = vr == b"UI" and _UID.fullmatch(content) and content != _DIRECTORY
    elif number == 0:
        plain = vr == b"UL" and length == 4
    else:
        plain = number == 1 and vr == b"OB"
    if not plain:
        raise Surprise("file meta information")


def _form_of(syntax: bytes) -> Form:
    if syntax == _IMPLICIT_VR:
        return IMPLICIT
    if syntax == _BIG_ENDIAN:
        return BIG_ENDIAN
    if not syntax.startswith(_STANDARD):
        raise Surprise("transfer syntax")  # absent, or private (PS3.5 10.2)
    return EXPLICIT
