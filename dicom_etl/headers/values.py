"""Raw bytes of an element -> the value of a column.

Both readers decode with these functions. A value that does not fit its column is None and comes with a problem that
names the raw text, so that nothing is lost and nothing is invented.
"""

from __future__ import annotations

import datetime
import math
import re
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from struct import Struct
from struct import error as StructError  # noqa: N812  (struct's own name is lower case)
from typing import Any, NamedTuple

from pydicom.charset import convert_encodings, decode_bytes

from dicom_etl.headers.catalogue import Kind

Value = str | int | float | datetime.date | list[float] | None

# PS3.5 6.2: the VRs whose characters SpecificCharacterSet governs, and those of one value with blanks in front
_TEXT = frozenset("LO LT PN SH ST UC UT".split())
_UNSPLIT = frozenset("LT ST UT UR".split())
_PN_DELIMITERS = {0x5C, 0x5E, 0x3D}
_TEXT_DELIMITERS = {0x0D, 0x0A, 0x09, 0x0C, 0x5C}
_BINARY = {"US": "H", "SS": "h", "UL": "L", "SL": "l", "FL": "f", "FD": "d", "UV": "Q", "SV": "q"}
# blank padding of these is no value (PS3.5 6.2); in binary VRs zeros are numbers
PADDED = frozenset("AE AS CS DA DS DT IS LO LT PN SH ST TM UC UI UR UT".split())

_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_DATE = re.compile(r"(\d{4})(\.?)(\d\d)\2(\d\d)")
_INT64 = 2**63
_ESCAPE = 0x1B  # as a number: `bytes in bytes` takes ten times as long


class Problem(NamedTuple):
    """Why a value is not in its column: a code of the findings, the raw text."""

    code: str
    raw: str


class Decoded(NamedTuple):
    """The value of a column and what was wrong with it."""

    value: Value
    problem: Problem | None = None


def is_empty(vr: str | None, raw: bytes | None) -> bool:
    """Whether a value is empty: of no length, or of nothing but padding where the VR is padded text."""
    if not raw:
        return True
    return vr in PADDED and not raw.strip(b" \0")


@lru_cache(maxsize=256)
def encodings_of(character_set: str) -> tuple[tuple[str, ...], bool]:
    """Python encodings of SpecificCharacterSet (its values joined by `\\`), and whether all of them are known."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        encodings = convert_encodings(character_set.split("\\") if "\\" in character_set else character_set)
    return tuple(encodings), not caught


def decode(kind: Kind, vr: str, raw: bytes, encodings: Sequence[str], little: bool = True) -> Decoded:
    """The value of a column of this kind from the bytes of an element.

    Args:
        kind: of the column.
        vr: as the file says it, or of the data dictionary where the file says none.
        raw: the value field.
        encodings: Python encodings of the data set.
        little: byte order of binary values.
    """
    if is_empty(vr, raw):
        return Decoded(None)
    if code := _BINARY.get(vr):
        return _numbers(kind, raw, code, little)
    text, sound = text_of(vr, raw, encodings)
    if not text:
        return Decoded(None)
    value = _CONVERTERS[kind](text)
    if value is None:
        return Decoded(None, Problem("value-invalid", text))
    return Decoded(value, None if sound else Problem("charset-error", text))


def text_of(vr: str, raw: bytes, encodings: Sequence[str]) -> tuple[str, bool]:
    """The text of an element without padding, values joined by `\\`; and whether all bytes could be decoded."""
    raw = raw.rstrip(b" \0")
    if vr in _TEXT and (_ESCAPE in raw or not raw.isascii()):
        text, sound = _decoded(vr, raw, encodings)
    else:
        text, sound = raw.decode("latin-1"), True
    if vr in _UNSPLIT:
        return text.rstrip(" \0"), sound
    if "\\" in text:
        return "\\".join(_unpadded(vr, part) for part in text.split("\\")), sound
    return _unpadded(vr, text), sound


def _unpadded(vr: str, text: str) -> str:
    text = text.strip(" \0")
    # PS3.5 6.2.1.1: empty component groups at the end of a name say nothing
    return text.rstrip("=") if vr == "PN" and text.endswith("=") else text


def _decoded(vr: str, raw: bytes, encodings: Sequence[str]) -> tuple[str, bool]:
    if _ESCAPE not in raw:
        try:
            return raw.decode(encodings[0]), True
        except UnicodeError:
            return raw.decode(encodings[0], errors="replace"), False
    delimiters = _PN_DELIMITERS if vr == "PN" else _TEXT_DELIMITERS
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # in one piece: `=`, `^` and `\` are also halves of characters in ISO 2022 encodings (秋 is 3D 29)
        text = decode_bytes(raw, list(encodings), delimiters)
    # of all escape sequences, that of GB 2312 alone is left in by pydicom
    return text.replace("\x1b$)A", ""), not caught


def _numbers(kind: Kind, raw: bytes, code: str, little: bool) -> Decoded:
    try:
        numbers = [n for (n,) in Struct(("<" if little else ">") + code).iter_unpack(raw)]
    except StructError:
        return Decoded(None, Problem("value-invalid", f"{len(raw)} bytes"))
    if kind == "text":
        return Decoded("\\".join(str(n) for n in numbers))
    finite = all(math.isfinite(n) for n in numbers)
    if kind == "numbers" and finite:
        return Decoded([float(n) for n in numbers])
    if kind == "number" and finite and len(numbers) == 1:
        return Decoded(float(numbers[0]))
    if kind == "integer" and finite and len(numbers) == 1:
        number = int(numbers[0])
        if number == numbers[0] and -_INT64 <= number < _INT64:
            return Decoded(number)
    return Decoded(None, Problem("value-invalid", "\\".join(str(n) for n in numbers)))


def _date(text: str) -> datetime.date | None:
    """DA (PS3.5 6.2), and its legacy form YYYY.MM.DD."""
    match = _DATE.fullmatch(text)
    try:
        return datetime.date(int(match[1]), int(match[3]), int(match[4])) if match else None
    except ValueError:
        return None


def _number(text: str) -> float | None:
    number = float(text) if _DECIMAL.fullmatch(text) else math.nan
    return number if math.isfinite(number) else None


def _integer(text: str) -> int | None:
    if not _DECIMAL.fullmatch(text):
        return None
    try:
        number = int(text)
    except ValueError:
        real = float(text)
        if not math.isfinite(real) or real != int(real):
            return None
        number = int(real)
    return number if -_INT64 <= number < _INT64 else None


def _several(text: str) -> list[float] | None:
    numbers = [_number(part) for part in text.split("\\")]
    return None if None in numbers else numbers  # type: ignore[return-value]  # no None is left


_CONVERTERS: dict[Kind, Callable[[str], Any]] = {
    "text": str,
    "date": _date,
    "integer": _integer,
    "number": _number,
    "numbers": _several,
}
