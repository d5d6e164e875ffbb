"""Templates: headers that were read in full, by which similar ones are read.

A template is a parsed header with its decoded values and, once a file is known that differs from it in a few elements,
a byte template in which these vary. Which templates are kept and tried is decided in `template_cache` and `reader`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple

from dicom_etl.headers.catalogue import catalogue, column_index
from dicom_etl.headers.fast.byte_template import ByteTemplate, Match
from dicom_etl.headers.fast.decoders import Decode
from dicom_etl.headers.fast.encoding import UNDEFINED_LENGTH, Element, Encoding, NotPlainError, is_padded
from dicom_etl.headers.fast.file_content import FileContent
from dicom_etl.headers.fast.parsed_header import (
    Branch,
    ColumnValue,
    ParsedHeader,
    alternative_branches,
    main_branches,
    read_branch,
    single_columns_for,
)
from dicom_etl.headers.fast.parser import Parser
from dicom_etl.headers.pixel_data import PIXEL_DATA_PROVIDER_URL, is_image_storage
from dicom_etl.headers.row import ColumnProblem, Row, SharedValues
from dicom_etl.headers.tag_profile import TagProfile
from dicom_etl.headers.values import Value, is_blank

_PLAIN_UID = re.compile(r"[0-9.]+")
_MAX_TAG_PROFILES = 1024
_MAX_CACHED_VALUE = 1024  # bytes of a value with columns in items: codes and requests are often the same


class _VaryingElement(NamedTuple):
    """What is done with the value of a varying element."""

    profile_index: int  # index in the tag profile; -1 if absent
    is_filled: bool  # in the header of the template
    is_padded: bool
    position: int  # of its column among the varying columns
    decode: Decode | None  # None: it is not the value of a single column


@dataclass(eq=False)
class _VaryingBranch:
    """A varying element with several columns, or with columns in its items."""

    number: int  # of the element, among the varying ones
    element: Element
    branch: Branch
    is_alternative: bool  # only columns without a value under their path have one here
    encoding: Encoding
    codecs: tuple[str, ...]


class Template:
    """A header that was read in full, by which similar ones are read."""

    byte_template: ByteTemplate | None = None
    has_matched = False  # whether a file has matched since the template entered the cache

    def __init__(self, header: ParsedHeader, varying: frozenset[int] = frozenset()) -> None:
        """Make a template of a header; `varying` are the tags in which similar headers differ from it."""
        self.header = header
        varying = header.with_alternatives(varying)
        self.varying = varying if varying and header.may_vary(varying) else frozenset[int]()
        self.shared = SharedValues(header.values, (), header.tag_profile)
        self._has_url = PIXEL_DATA_PROVIDER_URL in header.wanted
        if self.varying:
            self._prepare_match()

    def _prepare_match(self) -> None:
        header = self.header
        self.byte_template = ByteTemplate(header.buf, header.parser, self.varying)
        elements = self.byte_template.elements
        single_columns = single_columns_for(header.codecs, header.encoding.order == "<")
        branches = [
            _VaryingBranch(number, element, by_tag[element.tag], is_alternative, header.encoding, header.codecs)
            for by_tag, is_alternative in ((main_branches(), False), (alternative_branches(), True))
            for number, element in enumerate(elements)
            if not element.is_large and element.tag in by_tag
        ]
        columns = tuple(dict.fromkeys(index for varying in branches for index in varying.branch.all_columns()))
        self.shared = SharedValues(header.values, columns, header.tag_profile)
        self._branches = [
            varying
            for varying in branches
            if varying.is_alternative or single_columns[varying.element.tag, varying.element.vr] is None
        ]
        profile_indices = {tag: index for index, tag in enumerate(header.tag_profile.tags())}
        self._elements = [
            self._varying_element(
                element, profile_indices.get(element.tag, -1), single_columns[element.tag, element.vr]
            )
            for element in elements
        ]
        constant_problems = header.problems.keys() - set(columns)
        self._constant_problems = _sort_problems([header.problems[index] for index in constant_problems])
        self._tag_profiles: dict[tuple[int, ...], TagProfile] = {}
        self._required = [columns.index(index) for index in _required_columns() if index in columns]

    def _varying_element(
        self, element: Element, profile_index: int, single_column: tuple[int, Decode] | None
    ) -> _VaryingElement:
        if element.is_large:
            return _VaryingElement(-1, is_filled=True, is_padded=False, position=0, decode=None)
        is_filled = profile_index < 0 or self.header.tag_profile.is_filled(profile_index)
        column, decode = single_column or (None, None)
        position = 0 if column is None else self.shared.position[column]
        return _VaryingElement(profile_index, is_filled, is_padded(element.tag, element.vr), position, decode)

    def extend(self, buf: bytes, parser: Parser, varying: frozenset[int] = frozenset()) -> Template | None:
        """The template that also matches another header, which has the same elements; None if there is none.

        Args:
            buf: the bytes of the other header.
            parser: that has parsed them.
            varying: tags that are known to vary in headers of the same kind.
        """
        differing = self.header.differing_tags(buf, parser) - self.varying
        varying = varying.intersection(self.header.tags) | self.varying | differing
        return Template(self.header, varying) if differing and self.header.may_vary(varying) else None

    def own_row(self, end: Match, content: FileContent) -> Row:
        """The row of the header itself; `end` is where it ends.

        Raises:
            NotPlainError: a required UID is missing.
        """
        header = self.header
        if not all(header.values[index] for index in _required_columns()):
            raise NotPlainError("a required UID is missing")
        own = tuple([header.values[index] for index in self.shared.varying])
        problems = _sort_problems(header.problems.values()) if header.problems else ()
        return self._make_row(own, header.tag_profile, problems, end, content)

    def match(self, buf: bytes, at_end: bool, content: FileContent) -> Row | None:
        """The row of a similar file; None if the template does not match it.

        Raises:
            NotPlainError: only the reference reader handles it.
        """
        if self.byte_template is None:
            return None
        match = self.byte_template.match(buf, at_end, content.fetch)
        return self._read_differences(match, content) if match else None

    def _read_differences(self, match: Match, content: FileContent) -> Row:
        own: list[Value] = [None] * len(self.shared.varying)
        problems: list[ColumnProblem] = []
        toggled: list[int] = []
        for raw, (profile_index, is_filled, may_be_padded, position, decode) in zip(
            match.values, self._elements, strict=True
        ):
            # a value that begins with neither blank nor zero is filled
            if (
                (not raw or raw[0] <= 0x20 or not is_filled)
                and is_filled == is_blank(raw, may_be_padded)
                and profile_index >= 0
            ):
                toggled.append(profile_index)
            if decode and raw:
                own[position], problem = decode(raw)
                if problem:
                    problems.append(ColumnProblem(catalogue()[self.shared.varying[position]], problem))
        if match.undefined:
            self._correct_undefined(match, toggled)
        for branch in self._branches:
            if raw := match.values[branch.number]:
                problems += self._read_branch(branch, raw, match.undefined >> branch.number & 1, own, problems)
        tag_profile = self._tag_profile(tuple(toggled)) if toggled else self.shared.tag_profile
        for position in self._required:
            if not own[position]:
                raise NotPlainError("a required UID is missing")
        all_problems = _sort_problems([*self._constant_problems, *problems]) if problems else self._constant_problems
        return self._make_row(tuple(own), tag_profile, all_problems, match, content)

    def _correct_undefined(self, match: Match, toggled: list[int]) -> None:
        """Correct the status of values of undefined length, which are empty if their delimiter follows at once."""
        for number, (raw, element) in enumerate(zip(match.values, self._elements, strict=True)):
            if not match.undefined >> number & 1:
                continue
            if element.decode:
                raise NotPlainError("a sequence instead of a value")
            if raw.startswith(self.header.encoding.delimiter) and element.profile_index >= 0:
                if element.is_filled:
                    toggled.append(element.profile_index)
                else:
                    toggled.remove(element.profile_index)

    def _read_branch(
        self, varying: _VaryingBranch, raw: bytes, undefined: int, own: list[Value], problems: Sequence[ColumnProblem]
    ) -> list[ColumnProblem]:
        """Read the columns under an element; returns the problems with them.

        Args:
            varying: the element.
            raw: its value.
            undefined: 1 if that has undefined length, else 0.
            own: the values of the varying columns, which are set.
            problems: those with other elements.
        """
        branch_problems = []
        read = _read_cached_value if len(raw) <= _MAX_CACHED_VALUE else _read_value
        for index, value, problem in read(varying, raw, undefined):
            position, column = self.shared.position[index], catalogue()[index]
            if varying.is_alternative and (
                own[position] is not None or any(other.column is column for other in problems)
            ):
                continue
            own[position] = value
            if problem:
                branch_problems.append(ColumnProblem(column, problem))
        return branch_problems

    def _tag_profile(self, toggled: tuple[int, ...]) -> TagProfile:
        """The tag profile in which these elements are filled instead of empty, or vice versa."""
        tag_profile = self._tag_profiles.get(toggled)
        if tag_profile is None:
            tag_profile = self.shared.tag_profile.with_toggled(toggled)
            if len(self._tag_profiles) < _MAX_TAG_PROFILES:
                self._tag_profiles[toggled] = tag_profile
        return tag_profile

    def _make_row(
        self,
        own: tuple[Value, ...],
        tag_profile: TagProfile,
        problems: tuple[ColumnProblem, ...],
        end: Match,
        content: FileContent,
    ) -> Row:
        pixel_data = content.check_pixel_data(end, self.header.encoding.order)
        row = Row(self.shared, own, tag_profile, problems, pixel_data == "truncated", pixel_data_absent=False)
        if pixel_data != "absent" or self._has_url:
            return row
        _, sop_class_index = _required_columns()
        sop_class = str(row.value(sop_class_index))
        if not _PLAIN_UID.fullmatch(sop_class):
            raise NotPlainError("unusual SOP class UID")
        return row._replace(pixel_data_absent=_is_image_storage(sop_class))


def _read_value(varying: _VaryingBranch, raw: bytes, undefined: int) -> list[ColumnValue]:
    """Read the columns under an element; `undefined` is 1 if its value, `raw`, has undefined length."""
    key = varying.element.tag, varying.element.vr
    span = key, 0, UNDEFINED_LENGTH if undefined else len(raw), len(raw)
    return read_branch(raw, span, varying.branch, varying.encoding, varying.codecs)


_read_cached_value = lru_cache(maxsize=2048)(_read_value)


@lru_cache(maxsize=512)
def _is_image_storage(sop_class: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of UIDs that are not valid
        return is_image_storage(sop_class)


@cache
def _required_columns() -> tuple[int, int]:
    """The indices of SOPInstanceUID and SOPClassUID."""
    return column_index("SOPInstanceUID"), column_index("SOPClassUID")


def _sort_problems(problems: Iterable[ColumnProblem]) -> tuple[ColumnProblem, ...]:
    """Sort problems as the reference reader does: that with the character set first, the others by column."""
    return tuple(sorted(problems, key=lambda item: _sort_key(item.column.name)))


@cache
def _sort_key(name: str) -> int:
    return -1 if name == "SpecificCharacterSet" else column_index(name)
