"""`values.decode` made ready for one column, VR, character set and byte order, with short cuts for plain values.

A short cut gives what `decode` gives, or leaves the value to it.
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

# the fields of a `Decoded`, which takes three times as long to make
Decode = Callable[[bytes], tuple[Value, Problem | None]]

# nothing is tried twice: a hostile value cannot take long
_NUMBER = rb"[+-]?+(?:\d++(?:\.\d*+)?+|\.\d++)"
_ONE_NUMBER = re.compile(_NUMBER + rb"[ \0]*+")
_NUMBERS = re.compile(rb"%b(?:\\%b)*+[ \0]*+" % (_NUMBER, _NUMBER))
_LONGEST_NUMBER = 300  # digits: longer ones may be infinite
_SPECIAL = re.compile(rb"[\\\x1b\x80-\xff]|\A[ \0]|=\Z")  # several values, other character sets, blanks in front


class Decoders(dict[tuple[int, bytes | None], Decode]):
    """How to decode the bytes of an element that is no sequence: by the place of its column, and the VR in the file."""

    def __init__(self, encodings: tuple[str, ...], *, little: bool) -> None:
        super().__init__()
        self._encodings, self._little = encodings, little

    def __missing__(self, key: tuple[int, bytes | None]) -> Decode:
        place, vr = key
        column = catalogue()[place]
        # the file meta information is always little endian (PS3.10 7.1)
        little = self._little or column.tag >> 16 == 2
        name = column.vr if vr in (None, b"UN") else vr.decode()

        def general(raw: bytes) -> tuple[Value, Problem | None]:
            return decode(column.kind, name, raw, self._encodings, little)

        short_cut = _SHORT_CUTS.get((column.kind, name))
        self[key] = short_cut(general) if short_cut and little else general
        return self[key]


@lru_cache(maxsize=256)
def decoders_for(encodings: tuple[str, ...], little: bool) -> Decoders:
    """The decoders for the Python encodings and the byte order of a data set."""
    return Decoders(encodings, little=little)


def _text(general: Decode) -> Decode:
    def plain(raw: bytes) -> tuple[Value, Problem | None]:
        text = raw.rstrip(b"\0 ")
        return (text.decode("ascii"), None) if text and not _SPECIAL.search(text) else general(raw)

    return plain


def _integer(general: Decode) -> Decode:
    def plain(raw: bytes) -> tuple[Value, Problem | None]:
        digits = raw.rstrip(b" ")
        return (int(digits), None) if len(digits) < 19 and digits.isdigit() else general(raw)

    return plain


def _number(general: Decode) -> Decode:
    def plain(raw: bytes) -> tuple[Value, Problem | None]:
        if len(raw) < _LONGEST_NUMBER and _ONE_NUMBER.fullmatch(raw):
            return float(raw.rstrip(b"\0 ")), None
        return general(raw)

    return plain


def _numbers(general: Decode) -> Decode:
    def plain(raw: bytes) -> tuple[Value, Problem | None]:
        if _NUMBERS.fullmatch(raw):
            found = [float(part) for part in raw.rstrip(b"\0 ").split(b"\\")]
            if all(map(math.isfinite, found)):
                return found, None
        return general(raw)

    return plain


def _date(general: Decode) -> Decode:
    def plain(raw: bytes) -> tuple[Value, Problem | None]:
        if len(raw) == 8 and raw.isdigit():
            try:
                return datetime.date(int(raw[:4]), int(raw[4:6]), int(raw[6:])), None
            except ValueError:
                pass
        return general(raw)

    return plain


def _short(general: Decode) -> Decode:
    unpack = Struct("<H").unpack

    def plain(raw: bytes) -> tuple[Value, Problem | None]:
        return (unpack(raw)[0], None) if len(raw) == 2 else general(raw)

    return plain


_SHORT_CUTS: dict[tuple[Kind, str], Callable[[Decode], Decode]] = {
    ("text", "UI"): _text,
    ("text", "CS"): _text,
    ("text", "TM"): _text,
    ("text", "LO"): _text,
    ("text", "SH"): _text,
    ("text", "PN"): _text,
    ("integer", "IS"): _integer,
    ("integer", "US"): _short,
    ("number", "DS"): _number,
    ("numbers", "DS"): _numbers,
    ("date", "DA"): _date,
}
