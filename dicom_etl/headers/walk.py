"""Walks the bytes of a header, element by element, as far as they are plain: in order, of known VRs, well nested.

Everything else is a `Surprise`, and pydicom decides: what is accepted here must be read by pydicom, and read alike.
Nothing is decoded here.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import lru_cache
from typing import NamedTuple

from dicom_etl.headers.forms import (
    BIG_ENDIAN,
    EXPLICIT,
    IMPLICIT,
    LONG,
    SPECIAL,
    UNDEFINED,
    Element,
    Form,
    Found,
    Head,
    NeedMore,
    Surprise,
    is_creator,
    wanted_tags,
)
from dicom_etl.headers.nested import after_sequence, is_vr
from dicom_etl.headers.tag_profile import END

PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
LARGE = 8192  # bytes; a value as large as this that nobody wants is jumped over
DEFLATED = b"1.2.840.10008.1.2.1.99"

_BIG_ENDIAN = b"1.2.840.10008.1.2.2"
_IMPLICIT_VR = b"1.2.840.10008.1.2"
_STANDARD = b"1.2.840.10008.1.2."
_DIRECTORY = b"1.2.840.10008.1.3.10"
_UID = re.compile(rb"[0-9.]{,64}")
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


class Meta(NamedTuple):
    """The file meta information (PS3.10 7.1)."""

    starts: list[int]  # where each element begins
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
        self.starts: list[int] = []  # where each element begins
        self.found: dict[int, Found] = {}
        self.codes: list[int] = []
        self.creators: list[tuple[int, int, int]] = []  # private ones: tag, where the value begins and ends
        self.large: list[int] = []  # tags of the values that are jumped over
        self.meta, self.end, self.form, self.pixels = 0, 0, EXPLICIT, False
        self._last = _LAST_BEFORE  # the tag before `end`
        self._heads: list[bytes] = []  # of the elements that were walked over when they were last asked for

    def _begin(self, buf: bytes) -> None:
        meta = meta_of(buf)
        if (meta.syntax == DEFLATED) != self._inflated:
            raise Surprise("deflated")
        self.form = _form_of(meta.syntax)
        if self.form.implicit and is_vr(buf, meta.end + 4):
            raise Surprise("explicit VR under an implicit transfer syntax")
        self.starts, self.found = meta.starts, meta.found
        self.meta, self.end = len(meta.starts), meta.end

    def walk(self, buf: bytes, *, at_end: bool) -> None:
        """Walk to the end of the header; `at_end` says that the bytes end where the file ends.

        Raises:
            NeedMore, Jump: go on with more bytes.
            Surprise: the header is not plain.
        """
        if not self.starts:
            self._begin(buf)
        head, heads, found = self.form.head, self.form.heads, self.found
        add_start, add_code = self.starts.append, self.codes.append
        n, pos, last = len(buf), self.end, self._last
        limit = n - _LONGEST_HEAD
        while pos <= limit or not self._ends(pos, last, n, at_end=at_end):
            key, length = head(buf, pos)
            tag, look, is_padded, code = heads[key]
            value = pos + 8
            end = value + length
            # one condition for all that is as usual; the head of the next element is there, too
            while look is not SPECIAL and last < tag < END and length < LARGE and end <= limit:
                # what begins with neither blank nor zero is filled
                if length and (buf[value] > 0x20 or not is_padded or buf[value:end].strip(b" \0")):
                    add_code(code)
                else:
                    add_code(code - 1)
                if look:
                    found[tag] = look, value, length, end
                add_start(pos)
                pos, last = end, tag
                key, length = head(buf, pos)
                tag, look, is_padded, code = heads[key]
                value = pos + 8
                end = value + length
            self.end, self._last = pos, last
            if not last < tag < END:
                return self._pixels(tag, last)
            pos, last = self._special(buf, key, heads[key], length), tag
            add_start(self.end)
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

    def _special(self, buf: bytes, key: bytes, head: Head, length: int) -> int:
        """Where an element ends that is not like most: with a long length or value, not all there, a creator."""
        tag, _, is_padded, code = head
        vr, value = key[4:] or None, self.end + 8
        if vr in LONG:
            if value + 4 > len(buf):
                raise NeedMore
            length = self.form.long(buf, value)[0]
            value += 4
        if length == UNDEFINED:
            end = after_sequence(buf, tag, vr, value, len(buf), self.form)
            is_filled = not buf.startswith(self.form.delimiter, value)
        elif length >= LARGE and not (is_padded or tag in wanted_tags() or is_creator(tag)):
            end, is_filled = self._jump(tag, value, length, len(buf)), True
        else:
            end = value + length
            if end > len(buf):
                raise NeedMore
            is_filled = bool(length) and not (is_padded and not buf[value:end].strip(b" \0"))
        if tag & 0xFFFF:
            self.codes.append(code if is_filled else code - 1)
        if tag in wanted_tags():
            self.found[tag] = (tag, vr), value, length, end
        elif is_creator(tag) and length not in (0, UNDEFINED):
            self.creators.append((tag, value, end))
        return end

    def _jump(self, tag: int, value: int, length: int, n: int) -> int:
        """Where a large value ends that nobody wants."""
        end = value if value in self.jumped else value + length
        if end > n:
            raise Jump(value, length)
        self.large.append(tag)
        return end

    @property
    def data_set(self) -> int:
        """Where the data set begins."""
        return self.starts[self.meta] if self.meta < len(self.starts) else self.end

    def heads(self, buf: bytes) -> list[bytes]:
        """The first bytes of all elements of the header that was walked."""
        if len(self._heads) != len(self.starts):
            size = 4 if self.form.implicit else 6
            meta, rest = self.starts[: self.meta], self.starts[self.meta :]
            self._heads = [buf[start : start + 6] for start in meta] + [buf[start : start + size] for start in rest]
        return self._heads

    def tags(self, buf: bytes) -> list[int]:
        """The tags of all elements of the header that was walked."""
        found, meta, rest = self.heads(buf), EXPLICIT.heads, self.form.heads
        return [meta[head][0] for head in found[: self.meta]] + [rest[head][0] for head in found[self.meta :]]

    def is_like(self, buf: bytes, other: Walk, its_buf: bytes) -> bool:
        """Whether a header has the same elements, written alike: what headers must have in common for a template."""
        if self.form is not other.form or len(self.starts) != len(other.starts) or self.large != other.large:
            return False
        return self.heads(buf) == other.heads(its_buf)

    def bounds(self) -> list[tuple[int, int]]:
        """Where each element begins and ends."""
        return list(zip(self.starts, [*self.starts[1:], self.end], strict=True))

    def elements(self, buf: bytes, tags: Collection[int] | None = None) -> list[Element]:
        """Elements of the header that was walked: all, or those of some tags and all that are large."""
        large = set(self.large)
        wanted = range(UNDEFINED) if tags is None else large.union(tags)
        found = []
        for number, (tag, head, (start, end)) in enumerate(
            zip(self.tags(buf), self.heads(buf), self.bounds(), strict=True)
        ):
            if tag in wanted:
                form, vr = EXPLICIT if number < self.meta else self.form, head[4:] or None
                value = start + (12 if vr in LONG else 8)
                length = form.long(buf, start + 8)[0] if vr in LONG else form.head(buf, start)[1]
                found.append(Element(tag, vr, start, value, length, end, tag in large))
        return found


def meta_of(buf: bytes) -> Meta:
    """The file meta information that the bytes begin with."""
    if buf[128:132] != b"DICM":
        raise Surprise("preamble")
    starts: list[int] = []
    found: dict[int, Found] = {}
    syntax, pos, last, n = b"", 132, -1, len(buf)
    head, heads, wanted = EXPLICIT.head, EXPLICIT.heads, wanted_tags()
    while True:
        if pos + 12 > n:
            raise NeedMore
        key, length = head(buf, pos)
        if key[:2] != b"\x02\x00":
            return Meta(starts, found, syntax, pos)
        tag, vr, value = heads[key][0], key[4:], pos + 8
        if vr in LONG:
            length = EXPLICIT.long(buf, value)[0]
            value += 4
        if tag <= last or length > _MOST_META:
            raise Surprise("file meta information")
        end = value + length
        if end > n:
            raise NeedMore
        if last < 0 or tag in _CONVERTED:
            content = buf[value:end].rstrip(b"\0 ")
            _check_meta(tag & 0xFFFF, vr, length, content if tag & 0xFFFF > 1 else b"")
            syntax = content if tag == _TRANSFER_SYNTAX else syntax
        if tag in wanted:
            found[tag] = (tag, vr), value, length, end
        starts.append(pos)
        pos, last = end, tag


@lru_cache(maxsize=1024)
def _check_meta(number: int, vr: bytes, length: int, content: bytes) -> None:
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
