"""Sequences (PS3.5 7.5): where they end, and the elements of their first item.

A sequence of undefined length is parsed to its end, since the next element follows it.
"""

from __future__ import annotations

import re
from functools import lru_cache

from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_has_tag, dictionary_VR

from dicom_etl.headers.fast.encoding import (
    EXPLICIT,
    IMPLICIT,
    ITEM,
    ITEM_END,
    ITEM_GROUP,
    LONG_VRS,
    PIXEL_REPRESENTATION,
    SEQUENCE_END,
    SPECIAL,
    UNDEFINED_LENGTH,
    Encoding,
    IncompleteData,
    NotPlainError,
    ValueSpan,
    is_plain_representation,
)
from dicom_etl.headers.values import SPECIFIC_CHARACTER_SET

Elements = dict[int, ValueSpan]
_CHARACTER_SET_TERM = re.compile(r"ISO[A-Za-z0-9_ -]*")
_MAX_DEPTH = 64  # of nested sequences; deeper ones are hostile


def find_sequence_end(
    buf: bytes, tag: int, vr: bytes | None, pos: int, n: int, encoding: Encoding, depth: int = 0
) -> int:
    """Find the end of a value of undefined length.

    Args:
        buf: the bytes of the header.
        tag: of the element.
        vr: of the element; None in implicit VR.
        pos: where the value begins.
        n: where the bytes end.
        encoding: of the element.
        depth: of the sequence, in other sequences of undefined length.

    Raises:
        IncompleteData, NotPlainError: see there.
    """
    if depth > _MAX_DEPTH:
        raise NotPlainError("sequences are nested too deeply")
    if vr is None:
        _check_implicit(buf, tag, pos, n, encoding)
    elif vr not in (b"SQ", b"UN"):  # PS3.5 6.2.2: UN of undefined length is a sequence
        raise NotPlainError("undefined length of a value that is no sequence")
    unpack_item = encoding.item
    while True:
        if pos + 8 > n:
            raise IncompleteData
        group, number, length = unpack_item(buf, pos)
        pos += 8
        if (group, number) == SEQUENCE_END:
            return pos
        if (group, number) != ITEM:
            raise NotPlainError("something other than an item")
        stop = None if length == UNDEFINED_LENGTH else pos + length
        if stop is not None and stop > n:
            raise IncompleteData
        pos = _find_item_end(buf, pos, stop, n, _item_encoding(buf, pos, stop, n, encoding), depth)


def _check_implicit(buf: bytes, tag: int, pos: int, n: int, encoding: Encoding) -> None:
    """Check that pydicom takes a value without VR for a sequence: by the data dictionary, or since an item follows."""
    is_sequence = _is_sequence(tag)
    if is_sequence:
        return
    if pos + 8 > n:
        raise IncompleteData
    group, number, _ = encoding.item(buf, pos)
    # else it looks for the next delimiter, whatever is before it
    if (group, number) not in ((SEQUENCE_END,) if is_sequence is False else (ITEM, SEQUENCE_END)):
        raise NotPlainError("undefined length of a value that is no sequence")


@lru_cache(maxsize=8192)
def _is_sequence(tag: int) -> bool | None:
    """Whether a tag is that of a sequence in the data dictionary; None if it is not in there."""
    if tag >> 16 & 1 or not dictionary_has_tag(tag):
        return None
    return dictionary_VR(tag) == "SQ"


def _item_encoding(buf: bytes, pos: int, stop: int | None, n: int, encoding: Encoding) -> Encoding:
    """The encoding of an item: in explicit VR, items of a sequence that was once UN stay implicit (PS3.5 6.2.2)."""
    if encoding.implicit or pos == stop:
        return encoding
    if pos + 8 > n:
        raise IncompleteData
    if is_vr_like(buf, pos + 4) or encoding.item(buf, pos)[0] == ITEM[0]:
        return encoding
    if encoding is not EXPLICIT:
        raise NotPlainError("implicit VR in big endian")
    return IMPLICIT


def is_vr_like(buf: bytes, pos: int) -> bool:
    """Whether two bytes look like a VR to pydicom, when it decides between implicit and explicit VR."""
    return 0x40 < buf[pos] < 0x5B and 0x40 < buf[pos + 1] < 0x5B


def _find_item_end(buf: bytes, pos: int, stop: int | None, n: int, encoding: Encoding, depth: int) -> int:
    """Find the end of an item that begins at `pos`; one of defined length must end at `stop`, with an element."""
    unpack_head, heads, limit = encoding.head, encoding.heads, n - 8
    while pos != stop:
        if pos > limit:
            raise IncompleteData
        key, length = unpack_head(buf, pos)
        tag, treatment, _, _ = heads[key]
        if treatment or treatment is SPECIAL or length == UNDEFINED_LENGTH:
            if tag >= ITEM_GROUP:
                return _after_item_end(buf, pos, stop, encoding)
            _, _, pos = _find_value(buf, pos, n, encoding, depth)
        else:
            pos += 8 + length
        if stop is not None and pos > stop:
            raise NotPlainError("an element ends beyond its item")
    return pos


def _after_item_end(buf: bytes, pos: int, stop: int | None, encoding: Encoding) -> int:
    if encoding.item(buf, pos) != (*ITEM_END, 0) or stop is not None:
        raise NotPlainError("the end of an item is missing")
    return pos + 8


def _find_value(buf: bytes, pos: int, n: int, encoding: Encoding, depth: int) -> tuple[int, int, int]:
    """Find the value of the element of an item at `pos`: where it begins, its length, and where it ends."""
    key, length = encoding.head(buf, pos)
    tag, value, vr = encoding.heads[key][0], pos + 8, key[4:] or None
    if vr in LONG_VRS:
        if value + 4 > n:
            raise IncompleteData
        length = encoding.long(buf, value)[0]
        value += 4
    if tag == SPECIFIC_CHARACTER_SET:  # pydicom looks at each one that it passes, and fails on some
        if value + length > n:
            raise IncompleteData
        if not is_plain_character_set(vr, buf[value : value + length]):
            raise NotPlainError("unsupported character set")
    if tag == PIXEL_REPRESENTATION and not is_plain_representation(vr, length):
        raise NotPlainError("unusual PixelRepresentation")
    if length == UNDEFINED_LENGTH:
        return value, length, find_sequence_end(buf, tag, vr, value, n, encoding, depth + 1)
    return value, length, value + length


@lru_cache(maxsize=1024)
def is_plain_character_set(vr: bytes | None, raw: bytes) -> bool:
    """Whether the terms of a SpecificCharacterSet are in the standard, or look like those."""
    terms = [term.strip(" ") for term in raw.rstrip(b" \0").decode("latin-1").split("\\")]
    if vr not in (None, b"CS", b"UN") or len(raw) >= 0xFFFF:
        return False
    return all(term in python_encoding or _CHARACTER_SET_TERM.fullmatch(term) for term in terms)


def read_first_item(buf: bytes, sequence: ValueSpan, encoding: Encoding) -> tuple[Elements, Encoding] | None:
    """The elements of the first item of a sequence, and their encoding; None if it has no item.

    The other items are checked too, since pydicom refuses the sequence if one of them is damaged.

    Raises:
        IncompleteData, NotPlainError: see there.
    """
    first = None
    _, pos, sequence_length, end = sequence
    while pos < end:
        if pos + 8 > end:
            raise NotPlainError("something other than an item")
        group, number, length = encoding.item(buf, pos)
        pos += 8
        if (group, number) == SEQUENCE_END and pos == end and sequence_length == UNDEFINED_LENGTH:
            break
        if (group, number) != ITEM:
            raise NotPlainError("something other than an item")
        stop = None if length == UNDEFINED_LENGTH else pos + length
        if stop is not None and stop > end:
            raise NotPlainError("an item ends beyond its sequence")
        item_encoding = _item_encoding(buf, pos, stop, end, encoding)
        if first is not None:
            pos = _find_item_end(buf, pos, stop, end, item_encoding, 0)
            continue
        elements, pos = _read_elements(buf, pos, stop, end, item_encoding)
        first = elements, item_encoding
        if sequence_length == UNDEFINED_LENGTH:
            break  # the parser has checked the others
    return first


def _read_elements(buf: bytes, pos: int, stop: int | None, n: int, encoding: Encoding) -> tuple[Elements, int]:
    """The elements of an item that begins at `pos`, and where it ends (see `_find_item_end`)."""
    elements: Elements = {}
    unpack_head, heads, last = encoding.head, encoding.heads, -1
    while pos != stop:
        if pos + 8 > n:
            raise IncompleteData
        key, length = unpack_head(buf, pos)
        tag, treatment, _, _ = heads[key]
        if tag >= ITEM_GROUP:
            return elements, _after_item_end(buf, pos, stop, encoding)
        value = pos + 8
        if treatment or treatment is SPECIAL or length == UNDEFINED_LENGTH:
            value, length, pos = _find_value(buf, pos, n, encoding, 0)
        else:
            pos = value + length
        if tag <= last or (stop is not None and pos > stop):
            raise NotPlainError("elements are not in order")
        last = tag
        elements[tag] = (tag, key[4:] or None), value, length, pos
    return elements, pos
