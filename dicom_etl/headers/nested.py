"""Sequences (PS3.5 7.5): where they end, and the elements of their first item.

Those of undefined length are walked to their end, since pydicom reads on from there.
"""

from __future__ import annotations

import re
from functools import lru_cache

from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_has_tag, dictionary_VR

from dicom_etl.headers.forms import (
    DELIMITERS,
    EXPLICIT,
    IMPLICIT,
    LONG,
    PIXEL_REPRESENTATION,
    SPECIAL,
    UNDEFINED,
    Form,
    Found,
    NeedMore,
    Surprise,
    is_plain_representation,
)
from dicom_etl.headers.reader import CHARACTER_SET

Elements = dict[int, Found]
_NAME_OF_CHARSET = re.compile(r"ISO[A-Za-z0-9_ -]*")
_DEEPEST = 64  # nested sequences; deeper ones are hostile


def after_sequence(buf: bytes, tag: int, vr: bytes | None, pos: int, n: int, form: Form, depth: int = 0) -> int:
    """Where a value of undefined length ends that begins at `pos`; the bytes end at `n`."""
    if depth > _DEEPEST:
        raise Surprise("depth")
    if vr is None:
        _check_implicit(buf, tag, pos, n, form)
    elif vr not in (b"SQ", b"UN"):  # PS3.5 6.2.2: UN of undefined length is a sequence
        raise Surprise("undefined length")
    item = form.item
    while True:
        if pos + 8 > n:
            raise NeedMore
        group, number, length = item(buf, pos)
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
    if is_vr(buf, pos + 4) or form.item(buf, pos)[0] == 0xFFFE:
        return form
    if form is not EXPLICIT:
        raise Surprise("implicit VR in big endian")
    return IMPLICIT


def is_vr(buf: bytes, pos: int) -> bool:
    """Whether pydicom takes the bytes for a VR where it looks which of both, implicit or explicit, it reads."""
    return 0x40 < buf[pos] < 0x5B and 0x40 < buf[pos + 1] < 0x5B


def _after_item(buf: bytes, pos: int, stop: int | None, n: int, form: Form, depth: int) -> int:
    """Where an item ends; one of defined length (`stop`) must end where its last element ends."""
    head, heads, limit = form.head, form.heads, n - 8
    last_end = n if stop is None else stop
    while pos != stop:
        if pos > limit:
            raise NeedMore
        key, length = head(buf, pos)
        tag, look, _, _ = heads[key]
        if look or look is SPECIAL or length == UNDEFINED:
            if tag >= DELIMITERS:
                return _after_delimiter(buf, pos, stop, form)
            pos = _after_element(buf, pos, n, form, depth)[2]
        else:
            pos += 8 + length
        if pos > last_end and stop is not None:
            raise Surprise("item")
    return pos


def _after_delimiter(buf: bytes, pos: int, stop: int | None, form: Form) -> int:
    if form.item(buf, pos) != (0xFFFE, 0xE00D, 0) or stop is not None:
        raise Surprise("delimiter")
    return pos + 8


def _after_element(buf: bytes, pos: int, n: int, form: Form, depth: int) -> tuple[int, int, int]:
    """Of an element of an item: where its value begins, its length, and where it ends."""
    key, length = form.head(buf, pos)
    tag, value, vr = form.heads[key][0], pos + 8, key[4:] or None
    if vr in LONG:
        if value + 4 > n:
            raise NeedMore
        length = form.long(buf, value)[0]
        value += 4
    if tag == CHARACTER_SET:
        _check_charset(buf, vr, value, length, n)
    if tag == PIXEL_REPRESENTATION and not is_plain_representation(vr, length):
        raise Surprise("PixelRepresentation")
    if length == UNDEFINED:
        return value, length, after_sequence(buf, tag, vr, value, n, form, depth + 1)
    return value, length, value + length


def _elements(buf: bytes, pos: int, stop: int | None, n: int, form: Form) -> tuple[Elements, int]:
    """The elements of an item, and where it ends, as `_after_item`."""
    found: Elements = {}
    head, heads, last = form.head, form.heads, -1
    while pos != stop:
        if pos + 8 > n:
            raise NeedMore
        key, length = head(buf, pos)
        tag, look, _, _ = heads[key]
        if tag >= DELIMITERS:
            return found, _after_delimiter(buf, pos, stop, form)
        value = pos + 8
        if look or look is SPECIAL or length == UNDEFINED:
            value, length, pos = _after_element(buf, pos, n, form, 0)
        else:
            pos = value + length
        if tag <= last or (stop is not None and pos > stop):
            raise Surprise("order")
        last = tag
        found[tag] = (tag, key[4:] or None), value, length, pos
    return found, pos


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


def first_item(buf: bytes, element: Found, form: Form) -> tuple[Elements, Form] | None:
    """The elements of the first item of a sequence, and how they are written; None where there is no item.

    The other items are looked at, too: pydicom refuses the sequence when one of them is damaged.
    """
    found = None
    _, pos, sequence_length, end = element
    while pos < end:
        if pos + 8 > end:
            raise Surprise("item")
        group, number, length = form.item(buf, pos)
        pos += 8
        if group == 0xFFFE and number == 0xE0DD and pos == end and sequence_length == UNDEFINED:
            break
        if group != 0xFFFE or number != 0xE000:
            raise Surprise("item")
        stop = None if length == UNDEFINED else pos + length
        if stop is not None and stop > end:
            raise Surprise("item")
        inner = form_of_item(buf, pos, stop, end, form)
        if found is not None:
            pos = _after_item(buf, pos, stop, end, inner, 0)
            continue
        elements, pos = _elements(buf, pos, stop, end, inner)
        found = elements, inner
        if sequence_length == UNDEFINED:
            break  # the walk has seen the others
    return found
