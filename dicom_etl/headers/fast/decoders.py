"""Decoders: `values.decode` prepared for one column, VR, character set and byte order, with shortcuts for plain values.

A shortcut gives the same result as `decode`, or calls it.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable
from functools import lru_cache
from struct import Struct

from dicom_etl.headers.catalogue import Kind, catalogue
from dicom_etl.headers.values import Problem, Value, decode

# returns the fields of a `Decoded`, which takes three times as long to create
Decode = Callable[[bytes], tuple[Value, Problem | None]]

# possessive quantifiers: no backtracking, so that a hostile value cannot take long
_NUMBER = rb"[+-]?+(?:\d++(?:\.\d*+)?+|\.\d++)"
_ONE_NUMBER = re.compile(_NUMBER)
_NUMBERS = re.compile(rb"%b(?:\\%b)*+" % (_NUMBER, _NUMBER))
_INTEGER = re.compile(rb"[+-]?+\d++")
_MAX_NUMBER = 300  # digits: longer ones may be infinite
_MAX_INTEGER = 18  # digits
_MAX_CACHED_NAME = 300  # bytes
_PADDING = b" \0"
_ESCAPE, _BACKSLASH = 0x1B, 0x5C  # as numbers: `bytes in bytes` takes ten times as long
# padding of one of several values; in names, also empty component groups at the end
_PADDED = re.compile(rb"[ \0]\\|\\[ \0]")
_PADDED_NAME = re.compile(rb"[ \0=]\\|\\[ \0]|=\Z")


class Decoders(dict[tuple[int, bytes | None], Decode]):
    """Decoders for elements that are not sequences, by the index of the column and the VR in the file."""

    def __init__(self, codecs: tuple[str, ...], *, little: bool) -> None:
        super().__init__()
        self._codecs, self._little = codecs, little

    def __missing__(self, key: tuple[int, bytes | None]) -> Decode:
        index, vr = key
        column = catalogue()[index]
        # the file meta information is always little endian (PS3.10 7.1)
        little = self._little or column.tag >> 16 == 2
        name = column.vr if vr in (None, b"UN") else vr.decode()

        def general(raw: bytes) -> tuple[Value, Problem | None]:
            return decode(column.kind, name, raw, self._codecs, little)

        shortcut = _SHORTCUTS.get((column.kind, name))
        self[key] = shortcut(general) if shortcut and little else general
        return self[key]

    def with_codecs(self, codecs: tuple[str, ...]) -> Decoders:
        """The decoders for another character set, with the same byte order."""
        return decoders_for(codecs, self._little)


@lru_cache(maxsize=256)
def decoders_for(codecs: tuple[str, ...], little: bool) -> Decoders:
    """The decoders for the Python codecs and the byte order of a data set."""
    return Decoders(codecs, little=little)


def _shortcut_text(general: Decode) -> Decode:
    is_padded = _PADDED.search

    def plain(raw: bytes) -> tuple[Value, Problem | None]:
        if not raw.isascii() or _ESCAPE in raw:
            return general(raw)
        text = raw.strip(_PADDING)
        if _BACKSLASH in text and is_padded(text):
            return general(raw)
        return text.decode() or None, None

    return plain


def _shortcut_unsplit(general: Decode) -> Decode:
    def plain(raw: bytes) -> tuple[Value, Problem | None]:
        if not raw.isascii() or _ESCAPE in raw:
            return general(raw)
        return raw.rstrip(_PADDING).decode() or None, None

    return plain


def _shortcut_name(general: Decode) -> Decode:
    is_padded, decode_cached = _PADDED_NAME.search, lru_cache(maxsize=4096)(general)

    def plain(raw: bytes) -> tuple[Value, Problem | None]:
        text = raw.strip(_PADDING)
        may_be_padded = _BACKSLASH in text or text.endswith(b"=")
        if not raw.isascii() or _ESCAPE in raw or (may_be_padded and is_padded(text)):
            # slow, and there are few different names
            return decode_cached(raw) if len(raw) < _MAX_CACHED_NAME else general(raw)
        return text.decode() or None, None

    return plain


def _shortcut_integer(general: Decode) -> Decode:
    fullmatch = _INTEGER.fullmatch

    def plain(raw: bytes) -> tuple[Value, Problem | None]:
        text = raw.strip(_PADDING)
        if not text:
            return None, None
        if len(text) <= _MAX_INTEGER and (text.isdigit() or fullmatch(text)):
            return int(text), None
        return general(raw)

    return plain


def _shortcut_number(general: Decode) -> Decode:
    fullmatch = _ONE_NUMBER.fullmatch

    def plain(raw: bytes) -> tuple[Value, Problem | None]:
        text = raw.strip(_PADDING)
        if not text:
            return None, None
        return (float(text), None) if len(text) < _MAX_NUMBER and fullmatch(text) else general(raw)

    return plain


def _shortcut_numbers(general: Decode) -> Decode:
    fullmatch = _NUMBERS.fullmatch

    def plain(raw: bytes) -> tuple[Value, Problem | None]:
        text = raw.strip(_PADDING)
        if not text:
            return None, None
        if fullmatch(text):
            numbers = list(map(float, text.split(b"\\")))
            if len(text) < _MAX_NUMBER or all(map(math.isfinite, numbers)):
                return numbers, None
        return general(raw)

    return plain


def _shortcut_date(general: Decode) -> Decode:
    def plain(raw: bytes) -> tuple[Value, Problem | None]:
        if len(raw) == 8 and (date := _date_of_digits(raw)):
            return date, None
        return general(raw)

    return plain


@lru_cache(maxsize=1 << 14)
def _date_of_digits(raw: bytes) -> datetime.date | None:
    """The date of eight digits. A file has the same one several times, and so have other files."""
    try:
        return datetime.date(int(raw[:4]), int(raw[4:6]), int(raw[6:])) if raw.isdigit() else None
    except ValueError:
        return None


def _shortcut_double(general: Decode) -> Decode:
    unpack = Struct("<d").unpack

    def plain(raw: bytes) -> tuple[Value, Problem | None]:
        if len(raw) == 8 and math.isfinite(number := unpack(raw)[0]):
            return number, None
        return general(raw)

    return plain


def _shortcut_short(general: Decode) -> Decode:
    unpack = Struct("<H").unpack

    def plain(raw: bytes) -> tuple[Value, Problem | None]:
        return (unpack(raw)[0], None) if len(raw) == 2 else general(raw)

    return plain


_SHORTCUTS: dict[tuple[Kind, str], Callable[[Decode], Decode]] = {
    ("text", "UI"): _shortcut_text,
    ("text", "CS"): _shortcut_text,
    ("text", "TM"): _shortcut_text,
    ("text", "LO"): _shortcut_text,
    ("text", "SH"): _shortcut_text,
    ("text", "AS"): _shortcut_text,
    ("text", "DT"): _shortcut_text,
    ("text", "PN"): _shortcut_name,
    ("text", "ST"): _shortcut_unsplit,
    ("text", "UT"): _shortcut_unsplit,
    ("text", "UR"): _shortcut_unsplit,
    ("integer", "IS"): _shortcut_integer,
    ("integer", "US"): _shortcut_short,
    ("number", "DS"): _shortcut_number,
    ("number", "FD"): _shortcut_double,
    ("numbers", "DS"): _shortcut_numbers,
    ("date", "DA"): _shortcut_date,
}
