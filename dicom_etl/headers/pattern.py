"""A header that was read in full as the pattern of others: its decoded values, and the template made of it.

Which patterns are kept, and with which of them a file is compared, is decided in `patterns.py` and `fast.py`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

from dicom_etl.headers.catalogue import catalogue
from dicom_etl.headers.content import Content
from dicom_etl.headers.forms import UNDEFINED, Element, Form, Surprise, is_padded
from dicom_etl.headers.items import Branch, Placed, first_places, places_in, plans_for, second_places, values_under
from dicom_etl.headers.parsed import Parsed, is_blank, place_of
from dicom_etl.headers.reader import PIXEL_DATA_PROVIDER_URL, ColumnProblem, shows_images
from dicom_etl.headers.row import Base, Row
from dicom_etl.headers.shortcuts import Decode
from dicom_etl.headers.tag_profile import TagProfile
from dicom_etl.headers.template import Matched, Template
from dicom_etl.headers.values import Value
from dicom_etl.headers.walk import Walk

_PLAIN_UID = re.compile(r"[0-9.]+")
_MOST_TAG_PROFILES = 1024
_LONGEST_REMEMBERED = 1024  # bytes of a value with columns in items: codes and requests are often the same again


class _Varying(NamedTuple):
    """What to do with the value of a varying element."""

    presence: int  # its place in the tag profile, -1 if it has none
    filled: bool
    padded: bool
    slot: int  # of the one column that it is the value of, among the varied columns
    decode: Decode | None  # None: it is not the value of a column


@dataclass(eq=False)
class _Nested:
    """A varying element under which columns are looked for."""

    number: int  # among the varying elements
    element: Element
    branch: Branch
    is_second: bool  # the columns have their values there only if they have none in their first places
    form: Form
    encodings: tuple[str, ...]


class Pattern:
    """A header that was read in full, with its decoded values, and the template that was made of it.

    There is no template as long as no file is known that differs from it.
    """

    template: Template | None = None
    has_matched = False  # a file by its template, since it became one of several patterns

    def __init__(self, parsed: Parsed, varying: frozenset[int] = frozenset()) -> None:
        self.parsed = parsed
        varying = parsed.varying_with(varying)
        self.varying = varying if varying and parsed.may_vary(varying) else frozenset[int]()
        self.base = Base(parsed.values, (), parsed.tag_profile)
        self._has_url = PIXEL_DATA_PROVIDER_URL in parsed.found
        if self.varying:
            self._make_template()

    def _make_template(self) -> None:
        parsed = self.parsed
        self.template = Template(parsed.buf, parsed.walked, self.varying)
        elements = self.template.elements
        plans = plans_for(parsed.encodings, parsed.form.order == "<")
        branches = [
            _Nested(number, element, branches[element.tag], branches is second_places(), parsed.form, parsed.encodings)
            for branches in (first_places(), second_places())
            for number, element in enumerate(elements)
            if not element.large and element.tag in branches
        ]
        varied = tuple(dict.fromkeys(place for nested in branches for place in places_in(nested.branch)))
        self.base = Base(parsed.values, varied, parsed.tag_profile)
        self._nested = [n for n in branches if n.is_second or plans[n.element.tag, n.element.vr] is None]
        presences = {tag: number for number, tag in enumerate(parsed.tag_profile.tags())}
        self._steps = [
            self._step(element, presences.get(element.tag, -1), plans[element.tag, element.vr]) for element in elements
        ]
        constant = parsed.problems.keys() - set(varied)
        self._constant_problems = _sorted([parsed.problems[place] for place in constant])
        self._tag_profiles: dict[tuple[int, ...], TagProfile] = {}
        self._required = [varied.index(place) for place in _required() if place in varied]

    def _step(self, element: Element, presence: int, plan: tuple[int, Decode] | None) -> _Varying:
        if element.large:
            return _Varying(-1, True, False, 0, None)
        filled = presence < 0 or self.parsed.tag_profile.is_filled(presence)
        place, decode = plan or (None, None)
        slot = 0 if place is None else self.base.slots[place]
        return _Varying(presence, filled, is_padded(element.tag, element.vr), slot, decode)

    def taught(self, buf: bytes, walked: Walk, varying: frozenset[int] = frozenset()) -> Pattern | None:
        """The pattern with a template that another header, one like its own, matches; None if there is no such.

        Args:
            buf: the bytes of the other header.
            walked: the walk over them.
            varying: tags that are known to vary in headers with which these have something in common.
        """
        differing = self.parsed.differs(buf, walked) - self.varying
        varying = varying.intersection(self.parsed.tags) | self.varying | differing
        return Pattern(self.parsed, varying) if differing and self.parsed.may_vary(varying) else None

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
        for raw, (presence, filled, padded, slot, decode) in zip(matched.values, self._steps, strict=True):
            # what begins with neither blank nor zero is filled
            if (not raw or raw[0] <= 0x20 or not filled) and filled == is_blank(raw, padded) and presence >= 0:
                flips.append(presence)
            if decode and raw:
                changed[slot], problem = decode(raw)
                if problem:
                    problems.append(ColumnProblem(catalogue()[self.base.varied[slot]], problem))
        if matched.undefined:
            self._check_undefined(matched, flips)
        for nested in self._nested:
            if raw := matched.values[nested.number]:
                problems += self._look_into(nested, raw, matched.undefined >> nested.number & 1, changed, problems)
        tag_profile = self._tag_profile(tuple(flips)) if flips else self.base.tag_profile
        for slot in self._required:
            if not changed[slot]:
                raise Surprise("no instance")
        found = _sorted([*self._constant_problems, *problems]) if problems else self._constant_problems
        return self._row(tuple(changed), tag_profile, found, matched, content)

    def _check_undefined(self, matched: Matched, flips: list[int]) -> None:
        """Correct what was made of values of undefined length: they are empty when their delimiter follows at once."""
        for number, (raw, step) in enumerate(zip(matched.values, self._steps, strict=True)):
            if not matched.undefined >> number & 1:
                continue
            if step.decode:
                raise Surprise("a sequence where a value should be")
            if raw.startswith(self.parsed.form.delimiter) and step.presence >= 0:
                if step.filled:
                    flips.append(step.presence)
                else:
                    flips.remove(step.presence)

    def _look_into(
        self, nested: _Nested, raw: bytes, undefined: int, changed: list[Value], problems: Sequence[ColumnProblem]
    ) -> list[ColumnProblem]:
        """Put the values of columns that lie under an element where they belong; returns what was wrong with them.

        Args:
            nested: the element.
            raw: its value.
            undefined: whether that has undefined length.
            changed: the values of the varied columns.
            problems: those of the first places, where second ones are looked at.
        """
        found = []
        values = _remembered_values if len(raw) <= _LONGEST_REMEMBERED else _values
        for place, value, problem in values(nested, raw, undefined):
            slot, column = self.base.slots[place], catalogue()[place]
            if nested.is_second and (changed[slot] is not None or any(other.column is column for other in problems)):
                continue
            changed[slot] = value
            if problem:
                found.append(ColumnProblem(column, problem))
        return found

    def _tag_profile(self, flips: tuple[int, ...]) -> TagProfile:
        """The tag profile in which these elements are filled instead of empty, or the other way round."""
        tag_profile = self._tag_profiles.get(flips)
        if tag_profile is None:
            tag_profile = self.base.tag_profile.turned(flips)
            if len(self._tag_profiles) < _MOST_TAG_PROFILES:
                self._tag_profiles[flips] = tag_profile
        return tag_profile

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


def _values(nested: _Nested, raw: bytes, undefined: int) -> Iterable[Placed]:
    """The values of the columns under an element; `undefined` says whether its value, `raw`, has undefined length."""
    spot = nested.element.tag, nested.element.vr
    alone = spot, 0, UNDEFINED if undefined else len(raw), len(raw)
    return values_under(raw, alone, nested.branch, nested.form, nested.encodings)


_remembered_values = lru_cache(maxsize=2048)(_values)


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
