"""The bytes of a header as constant runs between elements that vary: a similar file is read as its differences.

Exact by construction: the runs and the varying elements are all bytes of a header, in order. What has not changed is
neither parsed nor decoded again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from dicom_etl.headers.fast.encoding import (
    EXPLICIT,
    LONG_VRS,
    PIXEL_REPRESENTATION,
    PIXEL_REPRESENTATION_LENGTHS,
    UNDEFINED_LENGTH,
    Element,
    Encoding,
    IncompleteData,
    NotPlainError,
    Unpack,
)
from dicom_etl.headers.fast.parser import Parser
from dicom_etl.headers.fast.sequences import find_sequence_end
from dicom_etl.headers.pixel_data import PIXEL_DATA_TAGS

_SPARE = 1024  # bytes by which the values of a file may be longer than those of the template
_READ_AHEAD = 4096  # bytes that are fetched beyond what is known to be needed
_MAX_FIRST_READ = 1 << 16
_MAX_VALUE = 1 << 20  # bytes of a varying value
_PIXEL_DATA_HEAD = 12  # bytes

# (position, number) -> bytes of the file from there, and whether they reach its end
Fetch = Callable[[int, int], tuple[bytes, bool]]


class _Restriction(NamedTuple):
    """How the value of a varying element is restricted."""

    lengths: range | None  # that are possible; None: all are
    skipped_to: int  # of a value that is skipped: how many bytes are fetched after it; else 0


_UNRESTRICTED = _Restriction(None, 0)


class _Segment(NamedTuple):
    """A constant run of bytes, and the varying element after it; the run includes its tag and VR."""

    run: bytes
    run_length: int
    unpack_length: Unpack  # of the value, from the bytes after the run
    value_offset: int  # bytes between the run and the value
    restriction: _Restriction | None  # None for most elements


class _FetchedValue(NamedTuple):
    """A value whose bytes were fetched."""

    position: int  # in the file
    buf: bytes  # from there on
    at_end: bool  # of the file
    end: int  # of the value in `buf`; -1: it does not end


class Match(NamedTuple):
    """What a file has in the varying elements of a template, and where its header ends."""

    values: list[bytes]  # b"" for values that are skipped
    undefined: int  # bit i: value i has undefined length
    tail: bytes  # from the end of the header on, 12 bytes if there are so many
    end: int  # of the header, in the file
    has_pixel_data: bool


class ByteTemplate:
    """The bytes of a parsed header, from which similar ones differ in the elements `varying` only."""

    def __init__(self, buf: bytes, parser: Parser, varying: frozenset[int]) -> None:
        """Make the template of a header that a parser has parsed; `varying` are tags."""
        self._parser = parser
        self._segments: list[_Segment] = []
        self.elements = parser.elements(buf, varying)  # that vary
        fetched_after = _bytes_after_skipped(self.elements, parser.end)
        run_start = 0
        for element in self.elements:
            encoding = EXPLICIT if element.start < parser.data_set_start else parser.encoding
            is_first = element.start == parser.data_set_start
            restriction = _restrict(element, encoding, fetched_after.get(element.tag, 0), is_first=is_first)
            self._segments.append(_make_segment(buf, run_start, element, encoding, restriction))
            run_start = element.end
        self._last_run = buf[run_start : parser.end]
        # up to the first value that is skipped; values may be a little longer in the next file
        end = next((element.start for element in self.elements if element.is_large), parser.end)
        self.first_read = min(end + _SPARE, _MAX_FIRST_READ)

    def match(self, buf: bytes, at_end: bool, fetch: Fetch) -> Match | None:  # noqa: C901  (the hot loop)
        """Read a file as differences from the template; None if it differs in other elements.

        Args:
            buf: the first bytes of the file.
            at_end: they are all of it.
            fetch: fetches more of them.
        """
        pos, base, n = 0, 0, len(buf)  # `buf` begins at `base` in the file
        values: list[bytes] = []
        add = values.append
        undefined = 0
        for run, run_length, unpack_length, value_offset, restriction in self._segments:
            if pos + run_length + 12 > n and not at_end:
                buf, at_end = fetch(base + pos, run_length + _READ_AHEAD)
                base, pos, n = base + pos, 0, len(buf)
            start = pos + run_length + value_offset
            if start > n or not buf.startswith(run, pos):
                return None
            length = unpack_length(buf, pos + run_length)[0]
            end = start + length
            if end <= n and not restriction:  # an undefined length is larger than any file
                add(buf[start:end])
                pos = end
                continue
            lengths, skipped_to = restriction or _UNRESTRICTED
            if lengths and length not in lengths:
                return None
            if end <= n:
                add(b"" if skipped_to else buf[start:end])
                pos = end
            elif skipped_to:
                if at_end:
                    return None
                add(b"")
                buf, at_end = fetch(base + end, skipped_to)
                base, pos, n = base + end, 0, len(buf)
            else:
                fetched = _FetchedValue(base + start, buf[start:], at_end, -1)
                base, buf, at_end, end = self._fetch_value(self.elements[len(values)], fetched, length, fetch)
                if end < 0:
                    return None
                if length == UNDEFINED_LENGTH:
                    undefined |= 1 << len(values)
                add(buf[:end])
                pos, n = end, len(buf)
        last_length = len(self._last_run)
        if pos + last_length + _PIXEL_DATA_HEAD > n and not at_end:
            buf, at_end = fetch(base + pos, last_length + _READ_AHEAD)
            base, pos = base + pos, 0
        return self._match_end(buf, pos, base, at_end, values, undefined)

    def _fetch_value(self, element: Element, fetched: _FetchedValue, length: int, fetch: Fetch) -> _FetchedValue:
        """Fetch more of a value until it ends.

        Args:
            element: that the value belongs to.
            fetched: the bytes that there are.
            length: of the value.
            fetch: as in `match`.
        """
        position, buf, at_end, _ = fetched
        while True:
            end = _find_end(element, buf, length, self._parser.encoding)
            if end is not None or at_end:
                return _FetchedValue(position, buf, at_end, -1 if end is None else end)
            number = length + _READ_AHEAD if length != UNDEFINED_LENGTH else max(3 * len(buf), 2 * _READ_AHEAD)
            if number > _MAX_VALUE:
                return _FetchedValue(position, buf, at_end, -1)
            buf, at_end = fetch(position, number)

    def _match_end(
        self, buf: bytes, pos: int, base: int, at_end: bool, values: list[bytes], undefined: int
    ) -> Match | None:
        """The match, if what follows the last varying element is as in the template."""
        if not buf.startswith(self._last_run, pos):
            return None
        pos += len(self._last_run)
        remaining = len(buf) - pos
        if not self._parser.has_pixel_data:
            is_end = at_end and not remaining
            return Match(values, undefined, b"", base + pos, has_pixel_data=False) if is_end else None
        if remaining < _PIXEL_DATA_HEAD:
            return None
        group, number = self._parser.encoding.item(buf, pos)[:2]
        if group << 16 | number not in PIXEL_DATA_TAGS:
            return None
        return Match(values, undefined, buf[pos : pos + _PIXEL_DATA_HEAD], base + pos, has_pixel_data=True)


def _bytes_after_skipped(elements: Sequence[Element], end: int) -> dict[int, int]:
    """By tag of a value that is skipped: the number of bytes up to the next of them, or to the header's end."""
    numbers = {}
    for element in reversed(elements):
        if element.is_large:
            numbers[element.tag] = end - element.end + _SPARE
            end = element.start
    return numbers


def _restrict(element: Element, encoding: Encoding, skipped_to: int, *, is_first: bool) -> _Restriction | None:
    """The restriction of a varying element; `is_first`: it is the first one of the data set."""
    lengths = None
    if element.is_large:
        lengths = range(1, UNDEFINED_LENGTH)
    elif element.tag == 0x00020000:
        lengths = range(4, 5)  # pydicom converts it, and refuses others
    elif element.tag == PIXEL_REPRESENTATION:
        lengths = PIXEL_REPRESENTATION_LENGTHS
    elif encoding.implicit and is_first:
        lengths = range(0x4141)  # pydicom would take a larger one for a VR
    return _Restriction(lengths, skipped_to) if lengths or skipped_to else None


def _make_segment(
    buf: bytes, run_start: int, element: Element, encoding: Encoding, restriction: _Restriction | None
) -> _Segment:
    head, unpack_length, value_offset = 6, encoding.short, 2
    if encoding.implicit:
        head, unpack_length, value_offset = 4, encoding.long, 4
    elif element.vr in LONG_VRS:
        unpack_length, value_offset = encoding.reserved_long, 6
    run = buf[run_start : element.start + head]
    return _Segment(run, len(run), unpack_length, value_offset, restriction)


def _find_end(element: Element, buf: bytes, length: int, encoding: Encoding) -> int | None:
    """Find the end of a value that begins with the bytes; None: they do not reach it, -1: the value is not plain."""
    if length != UNDEFINED_LENGTH:
        return length if length <= len(buf) else None
    try:
        return find_sequence_end(buf, element.tag, element.vr, 0, len(buf), encoding)
    except IncompleteData:
        return None
    except NotPlainError:
        return -1
