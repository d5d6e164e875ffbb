"""Rules for values: the bytes of an element -> the value of a column. Both readers use them.

A value that does not fit its column becomes None, with a problem that has the raw text, so that nothing is lost and
nothing is invented.
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
from pydicom.datadict import dictionary_has_tag, dictionary_VR

from dicom_etl.headers.catalogue import Kind

Value = str | int | float | datetime.date | list[float] | None

SPECIFIC_CHARACTER_SET = 0x00080005
DEFAULT_CODECS = ("iso8859",)  # Python codecs of a data set without SpecificCharacterSet

# PS3.5 6.2: the VRs that SpecificCharacterSet applies to, and those with a single value that may begin with blanks
_TEXT = frozenset("LO LT PN SH ST UC UT".split())
_UNSPLIT = frozenset("LT ST UT UR".split())
_PN_DELIMITERS = {0x5C, 0x5E, 0x3D}
_TEXT_DELIMITERS = {0x0D, 0x0A, 0x09, 0x0C, 0x5C}
_BINARY = {"US": "H", "SS": "h", "UL": "L", "SL": "l", "FL": "f", "FD": "d", "UV": "Q", "SV": "q"}
# VRs in which blanks and zero bytes are padding (PS3.5 6.2); in binary VRs zero bytes are numbers
PADDED_VRS = frozenset("AE AS CS DA DS DT IS LO LT PN SH ST TM UC UI UR UT".split())

_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_DATE = re.compile(r"(\d{4})(\.?)(\d\d)\2(\d\d)")
_INT64 = 2**63
_ESCAPE = 0x1B  # as a number: `bytes in bytes` takes ten times as long


class Problem(NamedTuple):
    """Why a value is not in its column: the code of a finding, and the raw text."""

    code: str
    raw: str


class Decoded(NamedTuple):
    """The value of a column, and the problem with it."""

    value: Value
    problem: Problem | None = None


class CharacterSet(NamedTuple):
    """The Python codecs of a SpecificCharacterSet, and the problem with it."""

    codecs: tuple[str, ...]
    problem: Problem | None


def is_blank(raw: bytes, padded: bool) -> bool:
    """Whether a value is empty: no bytes, or, where the VR is `padded`, nothing but padding."""
    return not raw or (padded and not raw.strip(b" \0"))


def is_empty(vr: str | None, raw: bytes | None) -> bool:
    """Whether a value of a VR (None: unknown) is empty."""
    return is_blank(raw or b"", vr in PADDED_VRS)


@lru_cache(maxsize=8192)
def effective_vr(tag: int, vr: str | None) -> str | None:
    """The VR that decides whether a value is empty: that of the file, else (None or UN) of the data dictionary."""
    if (vr is None or vr == "UN") and not tag >> 16 & 1 and dictionary_has_tag(tag):
        return dictionary_VR(tag)
    return vr


def read_character_set(raw: bytes) -> CharacterSet:
    """The character set that the value of a SpecificCharacterSet names."""
    text, _ = decode_text("CS", raw, DEFAULT_CODECS)
    codecs, is_known = find_codecs(text)
    return CharacterSet(codecs, None if is_known else Problem("charset-error", text))


@lru_cache(maxsize=256)
def find_codecs(character_set: str) -> tuple[tuple[str, ...], bool]:
    """The Python codecs of a SpecificCharacterSet (values joined by `\\`), and whether all of its terms are known."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        codecs = convert_encodings(character_set.split("\\") if "\\" in character_set else character_set)
    return tuple(codecs), not caught


def decode(kind: Kind, vr: str, raw: bytes, codecs: Sequence[str], little: bool = True) -> Decoded:
    """Decode the bytes of an element to the value of a column.

    Args:
        kind: of the column.
        vr: that of the file, or of the data dictionary if the file has none.
        raw: the value field.
        codecs: Python codecs of the data set's character set.
        little: whether binary values are little endian.
    """
    if is_empty(vr, raw):
        return Decoded(None)
    if code := _BINARY.get(vr):
        return _decode_binary(kind, raw, code, little)
    text, is_complete = decode_text(vr, raw, codecs)
    if not text:
        return Decoded(None)
    value = _CONVERTERS[kind](text)
    if value is None:
        return Decoded(None, Problem("value-invalid", text))
    return Decoded(value, None if is_complete else Problem("charset-error", text))


def decode_text(vr: str, raw: bytes, codecs: Sequence[str]) -> tuple[str, bool]:
    """The text of an element without padding, values joined by `\\`; and whether all bytes could be decoded."""
    raw = raw.rstrip(b" \0")
    if vr in _TEXT and (_ESCAPE in raw or not raw.isascii()):
        text, is_complete = _decode_characters(vr, raw, codecs)
    else:
        text, is_complete = raw.decode("latin-1"), True
    if vr in _UNSPLIT:
        return text.rstrip(" \0"), is_complete
    if "\\" in text:
        return "\\".join(_remove_padding(vr, part) for part in text.split("\\")), is_complete
    return _remove_padding(vr, text), is_complete


def _remove_padding(vr: str, text: str) -> str:
    text = text.strip(" \0")
    # PS3.5 6.2.1.1: empty component groups at the end of a name have no meaning
    return text.rstrip("=") if vr == "PN" and text.endswith("=") else text


def _decode_characters(vr: str, raw: bytes, codecs: Sequence[str]) -> tuple[str, bool]:
    if _ESCAPE not in raw:
        try:
            return raw.decode(codecs[0]), True
        except UnicodeError:
            return raw.decode(codecs[0], errors="replace"), False
    delimiters = _PN_DELIMITERS if vr == "PN" else _TEXT_DELIMITERS
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        # not split before: `=`, `^` and `\` are also halves of characters in ISO 2022 encodings (秋 is 3D 29)
        text = decode_bytes(raw, list(codecs), delimiters)
    # the escape sequence of GB 2312 is the only one that pydicom does not remove
    return text.replace("\x1b$)A", ""), not caught


def _decode_binary(kind: Kind, raw: bytes, code: str, little: bool) -> Decoded:
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


def _parse_date(text: str) -> datetime.date | None:
    """DA (PS3.5 6.2), and its legacy form YYYY.MM.DD."""
    match = _DATE.fullmatch(text)
    try:
        return datetime.date(int(match[1]), int(match[3]), int(match[4])) if match else None
    except ValueError:
        return None


def _parse_number(text: str) -> float | None:
    number = float(text) if _DECIMAL.fullmatch(text) else math.nan
    return number if math.isfinite(number) else None


def _parse_integer(text: str) -> int | None:
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


def _parse_numbers(text: str) -> list[float] | None:
    numbers = [_parse_number(part) for part in text.split("\\")]
    return None if None in numbers else numbers  # type: ignore[return-value]  # no None is left


_CONVERTERS: dict[Kind, Callable[[str], Any]] = {
    "text": str,
    "date": _parse_date,
    "integer": _parse_integer,
    "number": _parse_number,
    "numbers": _parse_numbers,
}
