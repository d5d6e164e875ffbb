"""The fast reader: a header as differences from one like it, and pydicom for all that is not plain.

What it says equals what `reader.read_header` says, value for value; tests hold the two equal over all files that
pydicom ships, over generated and over damaged ones.
"""

from __future__ import annotations

import io
import struct
from typing import BinaryIO, NamedTuple, cast

from dicom_etl.headers.content import Content, Inflated
from dicom_etl.headers.forms import NeedMore, Surprise
from dicom_etl.headers.parsed import Parsed
from dicom_etl.headers.pattern import Pattern
from dicom_etl.headers.patterns import Patterns, Register
from dicom_etl.headers.reader import read_header
from dicom_etl.headers.row import Base, Row
from dicom_etl.headers.template import Matched
from dicom_etl.headers.walk import DEFLATED, Jump, Walk, meta_of

__all__ = ["Base", "FastReader", "Row", "Work"]

_FIRST_READ = 8192
_MOST_BYTES = 1 << 23  # of a header; a larger one is pydicom's, which counts its elements
_MOST_JUMPS = 100
_MOST_KEPT = 1 << 18  # bytes of a header that is kept as a pattern of its series
_MOST_SHARED = 1 << 16  # and as one of all series
_MOST_SERIES, _MOST_OF_SERIES = 64, 4
_MOST_KINDS, _MOST_OF_KIND = 32, 12
_FEW = 4  # files of a series that are read by the patterns of others, before it is worth having its own
_SERIES = b"\x20\x00\x0e\x00"
_MODEL = b"\x08\x00\x90\x10"
_MODEL_BEFORE = 4096  # bytes
_SYNTAX = b"\x02\x00\x10\x00UI"  # comes early: what it says is found sooner than by a search for it
_LONGEST_KEY = 64


class Work(NamedTuple):
    """How many files were read in which way."""

    matched: int  # by a template
    walked: int  # in full, since no template matched
    handed_over: int  # to pydicom


class FastReader:
    """Reads headers one after the other; the more alike neighbours are, the faster.

    Patterns are kept twice. Within a series there are a few shapes of header, which differ in about ten elements. Files
    of one kind, that is of one model of scanner, have a few shapes, too, and differ in some fifty: their patterns read
    series of few files.
    """

    def __init__(self) -> None:
        self._last: Pattern | None = None
        self._first_read = _FIRST_READ
        self._series = Register(_MOST_SERIES, _MOST_OF_SERIES)
        self._kinds = Register(_MOST_KINDS, _MOST_OF_KIND)
        self._matched = self._walked = self._handed_over = 0

    @property
    def work(self) -> Work:
        """What was done so far."""
        return Work(self._matched, self._walked, self._handed_over)

    def read(self, file: BinaryIO, name: str, size: int) -> Row:
        """The header of an open file of `size` bytes.

        Raises:
            NotRead: the file gives no row.
            OSError: it cannot be read now.
        """
        try:
            return self._read(Content(file, size))
        except (Surprise, NeedMore, struct.error, ValueError, LookupError):
            # whatever the bytes have done here, pydicom decides
            self._handed_over += 1
        file.seek(0)
        header = read_header(_buffered(file), name, size)
        base = Base(header.values, (), header.tag_profile)
        return Row(base, (), header.tag_profile, header.problems, header.pixel_data_cut, header.pixel_data_absent)

    def _read(self, content: Content) -> Row:
        last = self._last
        buf, at_end = content.fetch(0, self._first_read)
        if last and (row := last.match(buf, at_end, content)):
            self._matched += 1
            return row
        if buf.startswith(DEFLATED, buf.find(_SYNTAX, 132, 1024) + 8):
            meta = meta_of(buf)
            if meta.syntax == DEFLATED:
                content = Inflated(content, buf[: meta.end])
                buf, at_end = content.fetch(0, content.size if content.size < 1 << 16 else self._first_read)
        series = self._series.of(_value_of(_SERIES, buf, len(buf)))
        if found := series.match(buf, at_end, content):
            pattern, row = found
            self._expect(pattern)
            self._matched += 1
            return row
        kind = None
        if series.files < _FEW:
            series.files += 1
            kind = self._kinds.of(_value_of(_MODEL, buf, _MODEL_BEFORE))
            if found := kind.match(buf, at_end, content):
                pattern, row = found
                self._expect(pattern, first=False)
                self._matched += 1
                return row
        row = self._learn(series, kind, buf, at_end, content)
        self._walked += 1
        return row

    def _learn(self, series: Patterns, kind: Patterns | None, buf: bytes, at_end: bool, content: Content) -> Row:
        """Walk a file in full, and keep what it teaches."""
        whole, walked, skipped = _walked(buf, at_end, content)
        taught = series.teach(whole, walked)
        if taught and (row := taught.match(buf, at_end, content)):
            self._expect(taught)
            return row
        parsed = Parsed(whole, walked)
        tail = whole[walked.end : walked.end + 12]
        row = Pattern(parsed).own_row(Matched([], 0, tail, walked.end + skipped, walked.pixels), content)
        # what varies within a series is left to its own patterns
        if kind and not series.kept and walked.end <= _MOST_SHARED and not kind.teach(whole, walked, together=True):
            kind.keep(parsed)
        if walked.end <= _MOST_KEPT and (kept := series.keep(parsed)):
            self._expect(kept)
        return row

    def _expect(self, pattern: Pattern, *, first: bool = True) -> None:
        """Expect the next file to be like one that a pattern matches, which is tried `first` if it is of one series."""
        self._last = pattern if first else None
        read = pattern.template.first_read if pattern.template else _FIRST_READ
        self._first_read = read if first else max(read, _FIRST_READ)


def _buffered(file: BinaryIO) -> BinaryIO:
    """pydicom reads in small pieces."""
    return cast(BinaryIO, io.BufferedReader(file)) if isinstance(file, io.RawIOBase) else file


def _value_of(tag: bytes, buf: bytes, before: int) -> bytes | None:
    """What is probably the value of an element; where to look for a pattern, and no more than that."""
    place = buf.find(tag, 132, before)
    if place < 0 or place + 8 > len(buf):
        return None
    begin = place + 8
    # in explicit VR two letters and 16 bits of length; in implicit VR 32 bits
    length = buf[place + 6] if buf[place + 4 : place + 6].isalpha() else buf[place + 4]
    return buf[begin : begin + min(length, _LONGEST_KEY)]


def _walked(buf: bytes, at_end: bool, content: Content) -> tuple[bytes, Walk, int]:
    """The walk over a header, with as many bytes as it takes; and how many were jumped over."""
    walk, skipped = Walk(inflated=content.inflated), 0
    while True:
        try:
            walk.walk(buf, at_end=at_end)
            return buf, walk, skipped
        except Jump as jump:
            skipped += jump.length
            if jump.value + skipped > content.size or len(walk.jumped) >= _MOST_JUMPS:
                raise Surprise("large values") from None
            more, at_end = content.fetch(jump.value + skipped, 2 * _FIRST_READ)
            buf = buf[: jump.value] + more
            walk.jumped[jump.value] = jump.length
        except NeedMore:
            if at_end or len(buf) > _MOST_BYTES // 3:
                raise Surprise("end of file") from None
            more, at_end = content.fetch(len(buf) + skipped, 2 * len(buf))
            buf += more
