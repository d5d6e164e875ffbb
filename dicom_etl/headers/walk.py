"""Walks the bytes of a header, element by element, as far as they are plain: in order, of known VRs, well nested.

Everything else is a `Surprise`, and pydicom decides: what is accepted here must be read by pydicom, and read alike.
Nothing is decoded here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from functools import lru_cache
from struct import Struct
from typing import Any, NamedTuple

from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_has_tag, dictionary_VR

from dicom_etl.headers.layout import END
from dicom_etl.headers.reader import CHARACTER_SET, layout_vr
from dicom_etl.headers.values import PADDED

# PS3.5 7.1.2: VRs whose length has 32 bits in explicit VR, and those of 16 bits
LONG = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
SHORT = frozenset(b"AE AS AT CS DA DS DT FL FD IS LO LT PN SH SL SS ST TM UI UL US".split())
UNDEFINED = 0xFFFFFFFF
PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
LARGE = 8192  # bytes; a value as large as this that nobody wants is jumped over
DEFLATED = b"1.2.840.10008.1.2.1.99"

_BIG_ENDIAN = b"1.2.840.10008.1.2.2"
_IMPLICIT_VR = b"1.2.840.10008.1.2"
_STANDARD = b"1.2.840.10008.1.2."
_DIRECTORY = b"1.2.840.10008.1.3.10"
_UID = re.compile(rb"[0-9.]*")
_NAME_OF_CHARSET = re.compile(r"ISO[A-Za-z0-9_ -]*")
_CONVERTED = frozenset({0x0000, 0x0002, 0x0010})  # of the file meta information, by pydicom
_LAST_BEFORE = 0x0007FFFF  # the data set begins with group 0008: commands (PS3.7) are not stored
_DEEPEST = 64  # nested sequences; deeper ones are hostile
_MOST_ELEMENTS = 100_000
_MOST_META = 1 << 16  # bytes of one value of the file meta information


class Surprise(Exception):  # noqa: N818  (nothing is wrong: pydicom reads the file)
    """Something that is not plain."""


class NeedMore(Exception):  # noqa: N818  (no error either)
    """The bytes end inside the header."""


class Jump(Exception):  # noqa: N818
    """A large value that nobody wants ends beyond the bytes: they may go on after it."""

    def __init__(self, value: int, length: int) -> None:
        super().__init__()
        self.value, self.length = value, length


class Form(NamedTuple):
    """How elements are written (PS3.5 7.1, 7.3)."""

    implicit: bool
    order: str  # of bytes, as in `struct`
    head: Callable[..., tuple[Any, ...]]  # tag, VR and 16 bits in explicit VR; tag and length in implicit VR
    item: Callable[..., tuple[Any, ...]]  # tag and length
    short: Callable[..., tuple[Any, ...]]
    long: Callable[..., tuple[Any, ...]]
    delimiter: bytes  # the tag that ends a sequence


def _form(order: str, *, implicit: bool) -> Form:
    head = Struct(order + ("HHL" if implicit else "HH2sH")).unpack_from
    short, long = Struct(order + "H").unpack_from, Struct(order + "L").unpack_from
    delimiter = Struct(order + "HH").pack(0xFFFE, 0xE0DD)
    return Form(implicit, order, head, Struct(order + "HHL").unpack_from, short, long, delimiter)


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


_new = tuple.__new__  # a third of the time of `Element(...)`


class Walked(NamedTuple):
    """A header: its elements (file meta information too), where it ends, how it is written, whether pixels follow."""

    elements: list[Element]
    meta: int  # how many of the elements are file meta information
    end: int
    form: Form
    pixels: bool


class Walk:
    """The walk over one header, which goes on where it was when there are more bytes of it.

    The bytes are those of the beginning of a file, or of more of it, without the values in `jumped`: where a value is
    missing -> its length.
    """

    def __init__(self, wanted: Collection[int], *, inflated: bool = False) -> None:
        """Begin to walk.

        Args:
            wanted: tags whose values are needed.
            inflated: the data set was deflated, and is no longer.
        """
        self.jumped: dict[int, int] = {}
        self._wanted, self._inflated = wanted, inflated
        self.elements: list[Element] = []
        self._meta, self._form = 0, EXPLICIT

    def _begin(self, buf: bytes) -> None:
        elements, syntax, pos = meta_of(buf)
        if (syntax == DEFLATED) != self._inflated:
            raise Surprise("deflated")
        self._form = _form_of(syntax)
        if self._form.implicit and _is_vr(buf, pos + 4):
            raise Surprise("explicit VR under an implicit transfer syntax")
        self.elements, self._meta = elements, len(elements)

    def walk(self, buf: bytes, *, at_end: bool) -> Walked:  # noqa: C901, PLR0912  (the hot loop: calls would double it)
        """The elements of the header; `at_end` says that the bytes end where the file ends.

        Raises:
            NeedMore, Jump: go on with more bytes.
            Surprise: the header is not plain.
        """
        if not self.elements:
            self._begin(buf)
        elements, jumped, form, wanted = self.elements, self.jumped, self._form, self._wanted
        implicit, head, long = form.implicit, form.head, form.long
        n, pos, last, vr = len(buf), elements[-1].end, max(elements[-1].tag, _LAST_BEFORE), None
        while True:
            if pos + 12 > n:
                if pos == n and at_end:
                    return Walked(elements, self._meta, pos, form, pixels=False)
                if pos + 8 > n or not at_end:
                    raise NeedMore
            start = pos
            value = pos + 8
            if implicit:
                group, number, length = head(buf, pos)
            else:
                group, number, vr, length = head(buf, pos)
                if vr not in SHORT:
                    if vr not in LONG:
                        raise Surprise("VR")
                    if pos + 12 > n:
                        raise NeedMore
                    length = long(buf, value)[0]
                    value += 4
            tag = group << 16 | number
            if tag <= last:
                raise Surprise("order")
            if tag >= END:
                if tag not in PIXELS:
                    raise Surprise("after the header")
                return Walked(elements, self._meta, pos, form, pixels=True)
            last = tag
            large = False
            if length == UNDEFINED:
                pos = after_sequence(buf, tag, vr, value, n, form)
            elif length >= LARGE and tag not in wanted and not _must_be_seen(tag, vr):
                large = True
                pos = value if value in jumped else value + length
                if pos > n:
                    raise Jump(value, length)
            else:
                pos = value + length
                if pos > n:
                    raise NeedMore
            elements.append(_new(Element, (tag, vr, start, value, length, pos, large)))
            if len(elements) > _MOST_ELEMENTS:
                raise Surprise("number of elements")


def meta_of(buf: bytes) -> tuple[list[Element], bytes, int]:
    """The file meta information (PS3.10 7.1), the transfer syntax, and where the data set begins."""
    if buf[128:132] != b"DICM":
        raise Surprise("preamble")
    elements: list[Element] = []
    syntax, pos, last, n = b"", 132, -1, len(buf)
    while True:
        if pos + 12 > n:
            raise NeedMore
        if buf[pos : pos + 2] != b"\x02\x00":
            return elements, syntax, pos
        group, number, vr, length, value = _head(buf, pos, n, EXPLICIT)
        if number <= last or length > _MOST_META or vr is None:
            raise Surprise("file meta information")
        end = value + length
        if end > n:
            raise NeedMore
        if number in _CONVERTED or last < 0:
            content = buf[value:end].rstrip(b"\0 ")
            _check_meta(number, vr, length, content)
            if number == 0x10:
                syntax = content
        last = number
        elements.append(Element(group << 16 | number, vr, pos, value, length, end, large=False))
        pos = end


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


def _is_vr(buf: bytes, pos: int) -> bool:
    """Whether pydicom takes the bytes for a VR where it looks which of both, implicit or explicit, it reads."""
    return 0x40 < buf[pos] < 0x5B and 0x40 < buf[pos + 1] < 0x5B


def _must_be_seen(tag: int, vr: bytes | None) -> bool:
    """Whether the value decides on the layout: blank text is empty, and private creators are named (PS3.5 7.8.1)."""
    return layout_vr(tag, vr and vr.decode()) in PADDED or bool(tag >> 16 & 1 and tag & 0xFFFF <= 0xFF)


# -- sequences of undefined length (PS3.5 7.5); all of them are walked, since pydicom reads on from where it ends ------


def after_sequence(buf: bytes, tag: int, vr: bytes | None, pos: int, n: int, form: Form, depth: int = 0) -> int:
    """Where a value of undefined length ends that begins at `pos`; the bytes end at `n`."""
    if depth > _DEEPEST:
        raise Surprise("depth")
    if vr is None:
        _check_implicit(buf, tag, pos, n, form)
    elif vr not in (b"SQ", b"UN"):  # PS3.5 6.2.2: UN of undefined length is a sequence
        raise Surprise("undefined length")
    while True:
        if pos + 8 > n:
            raise NeedMore
        group, number, length = form.item(buf, pos)
        pos += 8
        if group != 0xFFFE:
            raise Surprise("item")
        if number != 0xE000:
            if number != 0xE0DD:
                raise Surprise("item")
            return pos
        stop = None if length == UNDEFINED else pos + length
        if stop is not None and stop > n:
            raise NeedMore
        pos = _after_item(buf, pos, stop, n, form_of_item(buf, pos, stop, n, form), depth)


def _check_implicit(buf: bytes, tag: int, pos: int, n: int, form: Form) -> None:
    """Of no VR and undefined length: pydicom reads a sequence where the data dictionary or an item says so."""
    if not (sequence := _is_sequence(tag)):
        if pos + 8 > n:
            raise NeedMore
        group, number, _ = form.item(buf, pos)
        # else it seeks the next delimiter, whatever is before it
        if group != 0xFFFE or number not in ((0xE0DD,) if sequence is False else (0xE000, 0xE0DD)):
            raise Surprise("undefined length")


@lru_cache(maxsize=8192)
def _is_sequence(tag: int) -> bool | None:
    """Whether the data dictionary has a sequence under a tag; None where it has nothing."""
    if tag >> 16 & 1 or not dictionary_has_tag(tag):
        return None
    return dictionary_VR(tag) == "SQ"


def form_of_item(buf: bytes, pos: int, stop: int | None, n: int, form: Form) -> Form:
    """How an item is written: in explicit VR, those of a sequence that was once UN stay implicit (PS3.5 6.2.2)."""
    if form.implicit or pos == stop:
        return form
    if pos + 8 > n:
        raise NeedMore
    if _is_vr(buf, pos + 4) or form.item(buf, pos)[0] == 0xFFFE:
        return form
    if form is not EXPLICIT:
        raise Surprise("implicit VR in big endian")
    return IMPLICIT


def _after_item(buf: bytes, pos: int, stop: int | None, n: int, form: Form, depth: int) -> int:
    """Where an item ends; one of defined length (`stop`) must end where its last element ends."""
    while pos != stop:
        if pos + 8 > n:
            raise NeedMore
        group, number, vr, length, value = _head(buf, pos, n, form)
        if group == 0xFFFE:
            if number != 0xE00D or stop is not None or length:
                raise Surprise("delimiter")
            return value
        tag = group << 16 | number
        if tag == CHARACTER_SET:
            _check_charset(buf, vr, value, length, n)
        pos = after_sequence(buf, tag, vr, value, n, form, depth + 1) if length == UNDEFINED else value + length
        if stop is not None and pos > stop:
            raise Surprise("item")
    return pos


def _head(buf: bytes, pos: int, n: int, form: Form) -> tuple[int, int, bytes | None, int, int]:
    """Group, number, VR, length, and where the value begins; delimiters have no VR (PS3.5 7.5)."""
    if form.implicit:
        group, number, length = form.head(buf, pos)
        return group, number, None, length, pos + 8
    group, number, vr, length = form.head(buf, pos)
    if vr in SHORT:
        return group, number, vr, length, pos + 8
    if vr not in LONG:
        if group == 0xFFFE:
            return group, number, None, form.long(buf, pos + 4)[0], pos + 8
        raise Surprise("VR")
    if pos + 12 > n:
        raise NeedMore
    return group, number, vr, form.long(buf, pos + 8)[0], pos + 12


def _check_charset(buf: bytes, vr: bytes | None, value: int, length: int, n: int) -> None:
    """pydicom looks at each SpecificCharacterSet that it passes, and some upset it."""
    if value + length > n:
        raise NeedMore
    if not is_plain_charset(vr, buf[value : value + length]):
        raise Surprise("character set")


@lru_cache(maxsize=1024)
def is_plain_charset(vr: bytes | None, raw: bytes) -> bool:
    """Whether a SpecificCharacterSet is one of the standard's, or looks like one."""
    names = [name.strip(" ") for name in raw.rstrip(b" \0").decode("latin-1").split("\\")]
    if vr not in (None, b"CS", b"UN") or len(raw) >= 0xFFFF:
        return False
    return all(name in python_encoding or _NAME_OF_CHARSET.fullmatch(name) for name in names)


def first_item(buf: bytes, element: Element, form: Form) -> tuple[int, int, Form] | None:
    """Where the first item of a sequence begins and ends, and how it is written; None where there is none.

    The others are looked at, too: pydicom refuses the sequence when one of them is damaged.
    """
    found, pos, end = None, element.value, element.end
    while pos < end:
        if pos + 8 > end:
            raise Surprise("item")
        group, number, length = form.item(buf, pos)
        pos += 8
        if group == 0xFFFE and number == 0xE0DD and pos == end and element.length == UNDEFINED:
            break
        if group != 0xFFFE or number != 0xE000:
            raise Surprise("item")
        stop = None if length == UNDEFINED else pos + length
        if stop is not None and stop > end:
            raise Surprise("item")
        inner = form_of_item(buf, pos, stop, end, form)
        after = _after_item(buf, pos, stop, end, inner, 0)
        if found is None:
            found = pos, after if stop is not None else after - 8, inner
            if element.length == UNDEFINED:
                break  # the walk has seen the others
        pos = after
    return found


def within(buf: bytes, begin: int, stop: int, form: Form) -> dict[int, Element]:
    """The elements of an item that `first_item` has found."""
    found: dict[int, Element] = {}
    pos, last = begin, -1
    while pos < stop:
        group, number, vr, length, value = _head(buf, pos, stop, form)
        tag = group << 16 | number
        if tag <= last:
            raise Surprise("order")
        last = tag
        end = after_sequence(buf, tag, vr, value, stop, form) if length == UNDEFINED else value + length
        found[tag] = Element(tag, vr, pos, value, length, end, large=False)
        pos = end
    return found
