"""The fast reader: a series as differences from its first file, and pydicom for all that is not plain.

What it says equals what `reader.read_header` says, value for value; a test holds the two equal over all files that
pydicom ships and over generated ones.
"""

from __future__ import annotations

import io
import math
import re
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import BinaryIO, NamedTuple, cast

from dicom_etl.headers.catalogue import Column, catalogue
from dicom_etl.headers.layout import EMPTY, FILLED, Presence, layout_id
from dicom_etl.headers.reader import (
    CHARACTER_SET,
    PIXEL_DATA_PROVIDER_URL,
    ColumnProblem,
    layout_vr,
    pixels_cut,
    read_header,
    shows_images,
)
from dicom_etl.headers.template import Matched, Template
from dicom_etl.headers.values import PADDED, Decoded, Problem, Value, decode, encodings_of, text_of
from dicom_etl.headers.walk import (
    UNDEFINED,
    Element,
    Jump,
    NeedMore,
    Surprise,
    Walked,
    first_item,
    walk,
    within,
)

_FIRST_READ = 8192
_MOST_BYTES = 1 << 26  # of a header; a larger one is pydicom's
_MOST_TEMPLATES = 16
_TRANSFER_SYNTAX = 0x00020010
_LATIN = ("iso8859",)
_DELIMITER = b"\xfe\xff\xdd\xe0"

_DS = rb"[+-]?(?:\d+\.?\d*|\.\d+)"
_PLAIN_NUMBERS = re.compile(rb"%b(?:\\%b)*[ \0]*" % (_DS, _DS))


@dataclass(frozen=True, eq=False)
class Base:
    """What the rows of a template share: the values of its own file, and which columns vary."""

    values: tuple[Value, ...]
    varied: tuple[int, ...]  # places in the catalogue
    layout: int
    presences: tuple[Presence, ...]


class Row(NamedTuple):
    """A header as a base and the values of its varying columns."""

    base: Base
    changed: tuple[Value, ...]
    layout: int
    presences: tuple[Presence, ...]
    problems: tuple[ColumnProblem, ...]
    pixel_data_cut: bool
    pixel_data_absent: bool

    def values(self) -> tuple[Value, ...]:
        """All values, in the order of the catalogue."""
        values = list(self.base.values)
        for place, value in zip(self.base.varied, self.changed, strict=True):
            values[place] = value
        return tuple(values)

    def value(self, place: int) -> Value:
        """The value of one column."""
        varied = self.base.varied
        return self.changed[varied.index(place)] if place in varied else self.base.values[place]


@cache
def _by_tag() -> Mapping[int, tuple[tuple[int, Column], ...]]:
    """The columns (with their places) whose first place lies under a top-level tag."""
    found: dict[int, list[tuple[int, Column]]] = defaultdict(list)
    for place, column in enumerate(catalogue()):
        found[column.path[0]].append((place, column))
    return {tag: tuple(columns) for tag, columns in found.items()}


@cache
def _second_places() -> tuple[tuple[int, Column], ...]:
    return tuple((place, column) for place, column in enumerate(catalogue()) if column.also)


@cache
def _wanted() -> frozenset[int]:
    return frozenset(_by_tag()) | {column.also[0] for _, column in _second_places()}


@cache
def _place(name: str) -> int:
    return [column.name for column in catalogue()].index(name)


class FastReader:
    """Reads headers one after the other; the more alike neighbours are, the faster."""

    def __init__(self) -> None:
        self._templates: list[_Series] = []

    def read(self, file: BinaryIO, name: str, size: int) -> Row:
        """The header of an open file of `size` bytes.

        Raises:
            NotRead: the file gives no row.
            OSError: it cannot be read now.
        """
        try:
            return self._read(_Bytes(file, size))
        except (Surprise, struct.error):
            file.seek(0)
            header = read_header(_buffered(file), name, size)
        number = layout_id(header.layout)
        base = Base(header.values, (), number, header.layout)
        return Row(
            base, (), number, header.layout, header.problems, header.pixel_data_cut, header.pixel_data_absent
        )

    def _read(self, source: _Bytes) -> Row:
        first = self._templates[0].template.first_read if self._templates else _FIRST_READ
        buf, at_end = source.fetch(0, first)
        for number, series in enumerate(self._templates):
            if matched := series.template.match(buf, at_end, source.fetch):
                if number:
                    self._templates.insert(0, self._templates.pop(number))
                return series.row(matched, source)
        return self._learn(buf, at_end, source)

    def _learn(self, buf: bytes, at_end: bool, source: _Bytes) -> Row:
        """Walk a file in full, and keep what it teaches."""
        buf, walked, skipped = _walked(buf, at_end, source)
        parsed = _Parsed(buf, walked)
        series = self._taught(parsed)
        end = Matched([], 0, buf[walked.end : walked.end + 12], walked.end + skipped, walked.pixels)
        return series.own_row(end, source)

    def _taught(self, parsed: _Parsed) -> _Series:
        varying: frozenset[int] = frozenset()
        for old in self._templates:
            if old.parsed.shape == parsed.shape and old.parsed.series == parsed.series:
                varying = old.template.varying | old.parsed.differs(parsed)
                self._templates.remove(old)
                break
        series = _Series(parsed, varying if parsed.may_vary(varying) else frozenset())
        self._templates.insert(0, series)
        del self._templates[_MOST_TEMPLATES:]
        return series


class _Bytes:
    """A file whose bytes are fetched piece by piece."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def fetch(self, place: int, number: int) -> tuple[bytes, bool]:
        """Bytes from a place on, and whether they reach the end of the file."""
        if place:
            self.file.seek(place)
        content = self.file.read(number)
        return content, place + len(content) >= self.size


def _buffered(file: BinaryIO) -> BinaryIO:
    """pydicom reads in small pieces."""
    return cast(BinaryIO, io.BufferedReader(file)) if isinstance(file, io.RawIOBase) else file


def _walked(buf: bytes, at_end: bool, source: _Bytes) -> tuple[bytes, Walked, int]:
    """The walk over a header, with as many bytes as it takes; and how many were jumped over."""
    jumped: dict[int, int] = {}
    while True:
        skipped = sum(jumped.values())
        try:
            return buf, walk(buf, jumped, _wanted(), at_end=at_end), skipped
        except Jump as jump:
            goal = jump.value + jump.length + skipped
            if goal > source.size:
                raise Surprise("cut") from None
            more, at_end = source.fetch(goal, 2 * _FIRST_READ)
            buf = buf[: jump.value] + more
            jumped[jump.value] = jump.length
        except NeedMore:
            if at_end or len(buf) > _MOST_BYTES:
                raise Surprise("end of file") from None
            more, at_end = source.fetch(len(buf) + skipped, 2 * len(buf))
            buf += more


class _Parsed:
    """A header walked and decoded in full."""

    def __init__(self, buf: bytes, walked: Walked) -> None:
        self.buf, self.walked = buf, walked
        self.shape = tuple((element.tag, element.vr, element.large) for element in walked.elements)
        self.by_tag = {element.tag: element for element in walked.elements}
        charset = self._raw(CHARACTER_SET)
        text = text_of("CS", charset, _LATIN)[0] if charset else ""
        self.encodings, known = encodings_of(text) if charset is not None else (_LATIN, True)
        self.problems: dict[int, ColumnProblem] = {}
        if not known:
            place = _place("SpecificCharacterSet")
            self.problems[place] = ColumnProblem(catalogue()[place], Problem("text-undecodable", text))
        self.values = self._values()
        self.series = self.values[_place("SeriesInstanceUID")]
        self.presences = tuple(self._presences())
        self.layout = layout_id(self.presences)

    def _raw(self, tag: int) -> bytes | None:
        element = self.by_tag.get(tag)
        return None if element is None else self.buf[element.value : element.end]

    def _values(self) -> tuple[Value, ...]:
        values: list[Value] = [None] * len(catalogue())
        columns, items = _by_tag(), _Items(self.buf, self.walked.implicit)
        for element in self.walked.elements:
            for place, column in columns.get(element.tag, ()):
                encodings = _LATIN if element.tag >> 16 == 2 else self.encodings
                values[place] = self._note(place, column, items.value(element, column, column.path, encodings))
        for place, column in _second_places():
            element_ = self.by_tag.get(column.also[0])
            if values[place] is None and place not in self.problems and element_ is not None:
                decoded = items.value(element_, column, column.also, self.encodings)
                values[place] = self._note(place, column, decoded)
        return tuple(values)

    def _note(self, place: int, column: Column, decoded: Decoded) -> Value:
        if decoded.problem:
            self.problems[place] = ColumnProblem(column, decoded.problem)
        return decoded.value

    def _presences(self) -> Iterable[Presence]:
        creators = {
            e.tag: text_of("LO", self.buf[e.value : e.end], _LATIN)[0]
            for e in self.walked.elements
            if e.tag >> 16 & 1 and 0x10 <= e.tag & 0xFFFF <= 0xFF and e.end > e.value
        }
        for element in self.walked.elements:
            if element.tag >= 0x00030000 and element.tag & 0xFFFF:
                creator = creators.get(element.tag >> 16 << 16 | (element.tag & 0xFFFF) >> 8)
                yield Presence(element.tag, creator, self._status(element))

    def _status(self, element: Element) -> int:
        if element.large:
            return FILLED
        raw = self.buf[element.value : element.end]
        return _status(raw, element.length == UNDEFINED, _is_padded(element))

    def differs(self, other: _Parsed) -> set[int]:
        """The tags in which a header of the same shape differs."""
        mine, theirs = self.walked.elements, other.walked.elements
        return {
            a.tag
            for a, b in zip(mine, theirs, strict=True)
            if not a.large and self.buf[a.start : a.end] != other.buf[b.start : b.end]
        }

    def may_vary(self, varying: Iterable[int]) -> bool:
        """Whether a template may leave these open: what other columns or the layout hang on must stay."""
        for tag in varying:
            if tag in (CHARACTER_SET, _TRANSFER_SYNTAX) or (tag >> 16 & 1 and 0x10 <= tag & 0xFFFF <= 0xFF):
                return False
        return not any(
            column.also[0] in self.by_tag and (column.path[0] in varying or column.also[0] in varying)
            for _, column in _second_places()
        )


def _is_padded(element: Element) -> bool:
    vr = element.vr.decode() if element.vr else None
    return layout_vr(element.tag, vr) in PADDED


def _status(raw: bytes, undefined: bool, padded: bool) -> int:
    """EMPTY or FILLED: a sequence of undefined length is empty when its delimiter follows at once."""
    if undefined:
        return EMPTY if raw.startswith(_DELIMITER) else FILLED
    return EMPTY if not raw or (padded and not raw.strip(b" \0")) else FILLED


class _Items:
    """Values in elements and in the first items of sequences."""

    def __init__(self, buf: bytes, implicit: bool) -> None:
        self._buf, self._implicit = buf, implicit
        self._parsed: dict[int, dict[int, Element] | None] = {}

    def value(
        self, element: Element | None, column: Column, path: tuple[int, ...], encodings: tuple[str, ...]
    ) -> Decoded:
        """The value of a column that lies under an element, by the rest of the column's path."""
        for tag in path[1:]:
            if element is None:
                return Decoded(None)
            if element.vr not in (b"SQ", None):
                raise Surprise("no sequence")
            item = self._first(element)
            if item is None:
                return Decoded(None)
            if CHARACTER_SET in item:
                inner = item[CHARACTER_SET]
                text = text_of("CS", self._buf[inner.value : inner.end], encodings)[0]
                encodings = encodings_of(text)[0]
            element = item.get(tag)
        if element is None:
            return Decoded(None)
        if element.vr == b"SQ" or element.length == UNDEFINED:
            raise Surprise("a sequence where a value should be")
        vr = column.vr if element.vr in (None, b"UN") else element.vr.decode()
        return decode(column.kind, vr, self._buf[element.value : element.end], encodings)

    def _first(self, element: Element) -> dict[int, Element] | None:
        if element.start not in self._parsed:
            bounds = first_item(self._buf, element, self._implicit)
            item = within(self._buf, *bounds, self._implicit) if bounds else None
            self._parsed[element.start] = item
        return self._parsed[element.start]


class _Varying(NamedTuple):
    """What to do with the value of a varying element."""

    element: Element
    presence: int | None  # its place in the layout
    status: int
    padded: bool
    columns: tuple[tuple[int, Column, Callable[[bytes], Decoded] | None], ...]  # place among the varied columns


class _Series:
    """A template with the decoded values of its own file."""

    def __init__(self, parsed: _Parsed, varying: frozenset[int]) -> None:
        self.parsed = parsed
        self.template = Template(parsed.buf, parsed.walked, varying)
        columns = [
            place
            for tag in self.template.tags
            if not parsed.by_tag[tag].large
            for place, _ in _by_tag().get(tag, ())
        ]
        self.base = Base(parsed.values, tuple(columns), parsed.layout, parsed.presences)
        self._steps = self._plan(columns)
        self._constant_problems = tuple(
            problem for place, problem in parsed.problems.items() if place not in columns
        )
        self._layouts: dict[tuple[int, ...], tuple[int, tuple[Presence, ...]]] = {}
        self._sop_instance, self._sop_class = _place("SOPInstanceUID"), _place("SOPClassUID")
        self._needs_check = {self._sop_instance, self._sop_class} & set(columns)
        self._has_url = PIXEL_DATA_PROVIDER_URL in parsed.by_tag

    def _plan(self, columns: list[int]) -> list[_Varying]:
        places = {presence.tag: number for number, presence in enumerate(self.parsed.presences)}
        slots = {place: slot for slot, place in enumerate(columns)}
        steps = []
        for tag in self.template.tags:
            element = self.parsed.by_tag[tag]
            presence = places.get(tag)
            status = self.parsed.presences[presence].status if presence is not None else FILLED
            decoders = tuple(
                (slots[place], column, self._decoder(element, column)) for place, column in _by_tag().get(tag, ())
            )
            steps.append(
                _Varying(element, presence, status, _is_padded(element), () if element.large else decoders)
            )
        return steps

    def _decoder(self, element: Element, column: Column) -> Callable[[bytes], Decoded] | None:
        """How to decode a plain element; None where it is a sequence."""
        if len(column.path) > 1:
            return None
        vr = column.vr if element.vr in (None, b"UN") else element.vr.decode()
        encodings = _LATIN if element.tag >> 16 == 2 else self.parsed.encodings
        return _decoder(column.kind, vr, encodings)

    def own_row(self, end: Matched, source: _Bytes) -> Row:
        """The row of the template's own file."""
        parsed = self.parsed
        changed = tuple(parsed.values[place] for place in self.base.varied)
        if not parsed.values[self._sop_instance] or not parsed.values[self._sop_class]:
            raise Surprise("no instance")
        return self._row(changed, parsed.layout, parsed.presences, tuple(parsed.problems.values()), end, source)

    def row(self, matched: Matched, source: _Bytes) -> Row:
        """The row of a file that matches."""
        changed: list[Value] = [None] * len(self.base.varied)
        problems: list[ColumnProblem] = []
        flips: list[int] = []
        undefined = matched.undefined
        for number, (raw, step) in enumerate(zip(matched.values, self._steps, strict=True)):
            is_undefined = bool(undefined >> number & 1)
            if step.presence is not None and not step.element.large:
                status = _status(raw, is_undefined, step.padded)
                if status != step.status:
                    flips.append(step.presence)
            for slot, column, decoder in step.columns:
                if decoder is not None:
                    if is_undefined:
                        raise Surprise("a sequence where a value should be")
                    value, problem = decoder(raw)
                else:
                    value, problem = self._nested(raw, is_undefined, step.element, column)
                changed[slot] = value
                if problem:
                    problems.append(ColumnProblem(column, problem))
        layout, presences = self._layout(tuple(flips)) if flips else (self.base.layout, self.base.presences)
        for place in self._needs_check:
            if not changed[self.base.varied.index(place)]:
                raise Surprise("no instance")
        found = (*self._constant_problems, *problems) if problems else self._constant_problems
        return self._row(tuple(changed), layout, presences, found, matched, source)

    def _nested(self, raw: bytes, undefined: bool, element: Element, column: Column) -> Decoded:
        length = UNDEFINED if undefined else len(raw)
        alone = Element(element.tag, element.vr, 0, 0, length, len(raw), large=False)
        return _Items(raw, self.parsed.walked.implicit).value(alone, column, column.path, self.parsed.encodings)

    def _layout(self, flips: tuple[int, ...]) -> tuple[int, tuple[Presence, ...]]:
        """The layout in which these elements are filled instead of empty, or the other way round."""
        if flips not in self._layouts:
            presences = list(self.base.presences)
            for place in flips:
                tag, creator, status = presences[place]
                presences[place] = Presence(tag, creator, EMPTY if status == FILLED else FILLED)
            self._layouts[flips] = layout_id(tuple(presences)), tuple(presences)
        return self._layouts[flips]

    def _row(
        self,
        changed: tuple[Value, ...],
        layout: int,
        presences: tuple[Presence, ...],
        problems: tuple[ColumnProblem, ...],
        end: Matched,
        source: _Bytes,
    ) -> Row:
        cut = end.pixels and pixels_cut(source.file, end.tail, end.end, source.size, "<")
        row = Row(self.base, changed, layout, presences, problems, cut, False)
        if end.pixels or self._has_url:
            return row
        return row._replace(pixel_data_absent=shows_images(str(row.value(self._sop_class))))


@cache
def _decoder(kind: str, vr: str, encodings: tuple[str, ...]) -> Callable[[bytes], Decoded]:
    """`values.decode` for one kind, VR and character set, with short cuts for the plainest values."""

    def general(raw: bytes) -> Decoded:
        return decode(kind, vr, raw, encodings)  # type: ignore[arg-type]  # the kinds of the catalogue

    def identifier(raw: bytes) -> Decoded:
        text = raw.rstrip(b"\0 ")
        if not text or b"\\" in text or text[0] in b" \0":
            return general(raw)
        return Decoded(text.decode("latin-1"))

    def integer(raw: bytes) -> Decoded:
        digits = raw.rstrip(b" ")
        return Decoded(int(digits)) if digits.isdigit() and len(digits) < 19 else general(raw)

    def number(raw: bytes) -> Decoded:
        if _PLAIN_NUMBERS.fullmatch(raw) and b"\\" not in raw and len(raw) < 300:
            return Decoded(float(raw.rstrip(b"\0 ")))
        return general(raw)

    def numbers(raw: bytes) -> Decoded:
        if _PLAIN_NUMBERS.fullmatch(raw):
            found = [float(part) for part in raw.rstrip(b"\0 ").split(b"\\")]
            if all(map(math.isfinite, found)):
                return Decoded(found)
        return general(raw)

    short_cuts = {
        ("text", "UI"): identifier,
        ("text", "CS"): identifier,
        ("text", "TM"): identifier,
        ("integer", "IS"): integer,
        ("number", "DS"): number,
        ("numbers", "DS"): numbers,
    }
    return short_cuts.get((kind, vr), general)
