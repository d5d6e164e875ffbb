"""The fast reader: a series as differences from its first file, and pydicom for all that is not plain.

What it says equals what `reader.read_header` says, value for value; tests hold the two equal over all files that
pydicom ships, over generated and over damaged ones.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import BinaryIO, NamedTuple, cast

from dicom_etl.headers.catalogue import Column, catalogue
from dicom_etl.headers.content import Content, Inflated
from dicom_etl.headers.forms import UNDEFINED, Element, NeedMore, Surprise, is_padded
from dicom_etl.headers.items import Branch, first_places, places_in, values_under
from dicom_etl.headers.parsed import Parsed, place_of, status_of
from dicom_etl.headers.reader import PIXEL_DATA_PROVIDER_URL, ColumnProblem, read_header, shows_images
from dicom_etl.headers.shortcuts import Decode, decoders_for
from dicom_etl.headers.tag_profile import FILLED, TagProfile
from dicom_etl.headers.template import Matched, Template
from dicom_etl.headers.values import Value
from dicom_etl.headers.walk import DEFLATED, Jump, Walk, meta_of

_FIRST_READ = 8192
_MOST_BYTES = 1 << 23  # of a header; a larger one is pydicom's, which counts its elements
_MOST_JUMPS = 100
_MOST_KEPT = 1 << 18  # bytes of a header that is kept as a template
_MOST_FAMILIES, _MOST_TEMPLATES = 64, 4
_SERIES = b"\x20\x00\x0e\x00"
_SYNTAX = b"\x02\x00\x10\x00UI"  # comes early: what it says is found sooner than by a search for it
_LONGEST_UID = 64

_PLAIN_UID = re.compile(r"[0-9.]+")


@dataclass(eq=False)  # frozen ones take three times as long to make
class Base:
    """What the rows of a template share: the values of its own file, and which columns vary."""

    values: tuple[Value, ...]
    varied: tuple[int, ...]  # places in the catalogue
    tag_profile: TagProfile

    @cached_property
    def slots(self) -> dict[int, int]:
        """Where among the varying columns each of them stands."""
        return {place: slot for slot, place in enumerate(self.varied)}


class Row(NamedTuple):
    """A header as a base and the values of its varying columns."""

    base: Base
    changed: tuple[Value, ...]
    tag_profile: TagProfile
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
        base = self.base
        slot = base.slots.get(place) if base.varied else None
        return base.values[place] if slot is None else self.changed[slot]


class Work(NamedTuple):
    """How many files were read in which way."""

    matched: int  # by a template
    walked: int  # in full, since no template matched
    handed_over: int  # to pydicom


class FastReader:
    """Reads headers one after the other; the more alike neighbours are, the faster.

    Templates are kept by series: within one there are a few shapes of header.
    """

    def __init__(self) -> None:
        self._last: _Series | None = None
        self._families: dict[bytes | None, _Family] = {}
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
        first = last.template.first_read if last and last.template else _FIRST_READ
        buf, at_end = content.fetch(0, first)
        if last and (row := last.match(buf, at_end, content)):
            self._matched += 1
            return row
        if buf.startswith(DEFLATED, buf.find(_SYNTAX, 132, 1024) + 8):
            meta = meta_of(buf)
            if meta.syntax == DEFLATED:
                content = Inflated(content, buf[: meta.end])
                buf, at_end = content.fetch(0, content.size if content.size < 1 << 16 else first)
        key = _series_of(buf)
        family = self._family(key)
        for series in family.series:
            if row := series.match(buf, at_end, content):
                self._last = series
                self._matched += 1
                return row
        return self._learn(family, buf, at_end, content)

    def _learn(self, family: _Family, buf: bytes, at_end: bool, content: Content) -> Row:
        """Walk a file in full, and keep what it teaches."""
        whole, walked, skipped = _walked(buf, at_end, content)
        for number, old in enumerate(family.series):
            if old.parsed.is_like(whole, walked) and (learnt := old.taught(whole, walked)):
                family.series[number], family.in_vain = learnt, 0
                if row := learnt.match(buf, at_end, content):
                    self._last = learnt
                    self._walked += 1
                    return row
        parsed = Parsed(whole, walked)
        varying = frozenset([tag for sibling in family.series for tag in sibling.varying])
        series = _Series(parsed, varying.intersection(walked.tags(whole)) if varying else varying)
        tail = whole[walked.end : walked.end + 12]
        row = series.own_row(Matched([], 0, tail, walked.end + skipped, walked.pixels), content)
        if walked.end <= _MOST_KEPT and family.wants_more():
            family.series.insert(0, series)
            del family.series[_MOST_TEMPLATES:]
            self._last = series
        self._walked += 1
        return row

    def _family(self, key: bytes | None) -> _Family:
        """The family of a series, which counts as used."""
        family = self._families.pop(key, None) or _Family([])
        self._families[key] = family
        if len(self._families) > _MOST_FAMILIES:
            del self._families[next(iter(self._families))]
        return family


@dataclass
class _Family:
    """The headers that are kept of one SeriesInstanceUID, the newest first."""

    series: list[_Series]
    in_vain: int = 0  # were kept, and since then none was like another

    def wants_more(self) -> bool:
        """Whether one more is worth its keep: of files that have nothing in common fewer and fewer are."""
        self.in_vain += 1
        return self.in_vain <= _MOST_TEMPLATES or not self.in_vain & (self.in_vain - 1)


def _buffered(file: BinaryIO) -> BinaryIO:
    """pydicom reads in small pieces."""
    return cast(BinaryIO, io.BufferedReader(file)) if isinstance(file, io.RawIOBase) else file


def _series_of(buf: bytes) -> bytes | None:
    """What is probably the SeriesInstanceUID; where to look for a template, and no more than that."""
    place = buf.find(_SERIES, 132)
    if place < 0:
        return None
    begin = place + 8
    length = buf[place + 6] if buf[place + 4 : place + 6] == b"UI" else buf[place + 4]
    return buf[begin : begin + min(length, _LONGEST_UID)]


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


class _Varying(NamedTuple):
    """What to do with the value of a varying element."""

    element: Element
    presence: int  # its place in the tag profile, -1 if it has none
    filled: bool
    padded: bool
    columns: tuple[tuple[int, Column, Decode], ...]  # place among the varied columns
    branch: Branch | None  # of the columns that lie in items


class _Series:
    """A header that was read in full, with its decoded values, and the template that was made of it.

    There is no template as long as no file is known that differs from it.
    """

    template: Template | None = None

    def __init__(self, parsed: Parsed, varying: frozenset[int] = frozenset()) -> None:
        self.parsed = parsed
        self.varying = varying if varying and parsed.may_vary(varying) else frozenset[int]()
        self.base = Base(parsed.values, (), parsed.tag_profile)
        self._has_url = PIXEL_DATA_PROVIDER_URL in parsed.found
        if self.varying:
            self._make_template()

    def _make_template(self) -> None:
        parsed = self.parsed
        self.template = Template(parsed.buf, parsed.walked, self.varying)
        elements = self.template.elements
        branches = [first_places()[e.tag] for e in elements if not e.large and e.tag in first_places()]
        varied = [place for branch in branches for place in places_in(branch)]
        self.base = Base(parsed.values, tuple(varied), parsed.tag_profile)
        places = {tag: number for number, tag in enumerate(parsed.tag_profile.tags())}
        self._steps = [self._step(element, places.get(element.tag, -1)) for element in elements]
        constant = parsed.problems.keys() - set(varied)
        self._constant_problems = _sorted([parsed.problems[place] for place in constant])
        self._tag_profiles: dict[tuple[int, ...], TagProfile] = {}
        self._required = [varied.index(place) for place in _required() if place in varied]

    def _step(self, element: Element, presence: int) -> _Varying:
        tag, vr = element.tag, element.vr
        if element.large:
            return _Varying(element, -1, True, False, (), None)
        filled = presence < 0 or self.parsed.tag_profile.is_filled(presence)
        branch = first_places().get(tag)
        if branch is None:
            return _Varying(element, presence, filled, is_padded(tag, vr), (), None)
        decoders = decoders_for(self.parsed.encodings, self.parsed.form.order == "<")
        in_items = branch if branch.deeper or vr == b"SQ" else None
        columns = [(self.base.slots[place], catalogue()[place], decoders[place, vr]) for place in branch.places]
        return _Varying(element, presence, filled, is_padded(tag, vr), () if in_items else tuple(columns), in_items)

    def taught(self, buf: bytes, walked: Walk) -> _Series | None:
        """The series with a template that another header, one like its own, matches; None if there is no such."""
        varying = self.varying | self.parsed.differs(buf, walked)
        return _Series(self.parsed, varying) if self.parsed.may_vary(varying) else None

    def own_row(self, end: Matched, content: Content) -> Row:
        """The row of the file itself."""
        parsed = self.parsed
        instance, sop_class = _required()
        if not (parsed.values[instance] and parsed.values[sop_class]):
            raise Surprise("no instance")
        changed = tuple([parsed.values[place] for place in self.base.varied])
        problems = _sorted(parsed.problems.values()) if parsed.problems else ()
        return self._row(changed, parsed.tag_profile, problems, end, content)

    def match(self, buf: bytes, at_end: bool, content: Content) -> Row | None:
        """The row of a file that matches the template; None if it does not."""
        if self.template is None:
            return None
        matched = self.template.match(buf, at_end, content.fetch)
        return self._differences(matched, content) if matched else None

    def _differences(self, matched: Matched, content: Content) -> Row:
        changed: list[Value] = [None] * len(self.base.varied)
        problems: list[ColumnProblem] = []
        flips: list[int] = []
        undefined = matched.undefined
        for raw, (element, presence, filled, padded, columns, branch) in zip(matched.values, self._steps, strict=True):
            is_undefined = undefined & 1
            undefined >>= 1
            # what begins with neither blank nor zero is filled
            if presence >= 0 and (not raw or raw[0] <= 0x20 or is_undefined or not filled):
                status = status_of(raw, is_undefined, padded, self.parsed.form.delimiter)
                if filled != (status == FILLED):
                    flips.append(presence)
            if branch or (is_undefined and columns):
                problems += self._nested(raw, is_undefined, element, changed)
                continue
            for slot, column, decode in columns:
                changed[slot], problem = decode(raw)
                if problem:
                    problems.append(ColumnProblem(column, problem))
        tag_profile = self._tag_profile(tuple(flips)) if flips else self.base.tag_profile
        for slot in self._required:
            if not changed[slot]:
                raise Surprise("no instance")
        found = _sorted([*self._constant_problems, *problems]) if problems else self._constant_problems
        return self._row(tuple(changed), tag_profile, found, matched, content)

    def _nested(self, raw: bytes, undefined: int, element: Element, changed: list[Value]) -> Iterator[ColumnProblem]:
        """Put the values of columns that lie under an element where they belong; yields what was wrong with them."""
        tag, vr = element.tag, element.vr
        alone = (tag, vr), 0, UNDEFINED if undefined else len(raw), len(raw)
        if not raw:
            return
        form, encodings = self.parsed.form, self.parsed.encodings
        for place, value, problem in values_under(raw, alone, first_places()[tag], form, encodings):
            changed[self.base.slots[place]] = value
            if problem:
                yield ColumnProblem(catalogue()[place], problem)

    def _tag_profile(self, flips: tuple[int, ...]) -> TagProfile:
        """The tag profile in which these elements are filled instead of empty, or the other way round."""
        if flips not in self._tag_profiles:
            self._tag_profiles[flips] = self.base.tag_profile.turned(flips)
        return self._tag_profiles[flips]

    def _row(
        self,
        changed: tuple[Value, ...],
        tag_profile: TagProfile,
        problems: tuple[ColumnProblem, ...],
        end: Matched,
        content: Content,
    ) -> Row:
        pixels = content.pixels(end, self.parsed.form.order)
        row = Row(self.base, changed, tag_profile, problems, pixels == "cut", pixel_data_absent=False)
        if pixels != "absent" or self._has_url:
            return row
        sop_class = str(row.value(_required()[1]))
        if not _PLAIN_UID.fullmatch(sop_class):
            raise Surprise("SOP class")
        return row._replace(pixel_data_absent=_shows_images(sop_class))


@lru_cache(maxsize=512)
def _shows_images(sop_class: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of UIDs that are none
        return shows_images(sop_class)


@cache
def _required() -> tuple[int, int]:
    """The places of SOPInstanceUID and SOPClassUID."""
    return place_of("SOPInstanceUID"), place_of("SOPClassUID")


def _sorted(problems: Iterable[ColumnProblem]) -> tuple[ColumnProblem, ...]:
    """In the order of `read_header`: that of the character set comes first."""
    return tuple(sorted(problems, key=lambda found: _order(found.column.name)))


@cache
def _order(name: str) -> int:
    return -1 if name == "SpecificCharacterSet" else place_of(name)
