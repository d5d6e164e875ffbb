"""A parsed header: the values of the catalogue and the tag profile, decoded from its bytes.

The paths of the catalogue are kept as a tree, so that a sequence is parsed once for all columns in its first item.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, cached_property, lru_cache
from typing import NamedTuple

from dicom_etl.headers.catalogue import catalogue, column_index
from dicom_etl.headers.fast.decoders import Decode, Decoders, decoders_for
from dicom_etl.headers.fast.encoding import (
    PIXEL_REPRESENTATION,
    TRANSFER_SYNTAX_UID,
    UNDEFINED_LENGTH,
    ElementKey,
    Encoding,
    NotPlainError,
    ValueSpan,
    is_plain_representation,
)
from dicom_etl.headers.fast.parser import Parser
from dicom_etl.headers.fast.sequences import is_plain_character_set, read_first_item
from dicom_etl.headers.row import ColumnProblem
from dicom_etl.headers.tag_profile import TagProfile, is_private_creator, pack_codes
from dicom_etl.headers.values import (
    DEFAULT_CODECS,
    SPECIFIC_CHARACTER_SET,
    Problem,
    Value,
    decode_text,
    read_character_set,
)

_SOP_CLASS_UID, _MEDIA_STORAGE_SOP_CLASS_UID = 0x00080016, 0x00020002
# other values depend on these, so a template has them as they are
_NEVER_VARYING = frozenset({SPECIFIC_CHARACTER_SET, TRANSFER_SYNTAX_UID, _MEDIA_STORAGE_SOP_CLASS_UID})

Path = tuple[int, ...]
# the index of a column in the catalogue, its value, and the problem with it
ColumnValue = tuple[int, Value, Problem | None]


# -- the paths of the catalogue ---------------------------------------------------------------------------------------


class Branch(NamedTuple):
    """The columns whose paths have the same beginning."""

    columns: tuple[int, ...]  # indices of the columns whose paths end here
    items: Mapping[int, Branch]  # tag in the first item -> the columns whose paths continue with it

    def all_columns(self) -> Iterator[int]:
        """The indices of all columns of the branch."""
        yield from self.columns
        for branch in self.items.values():
            yield from branch.all_columns()


def _make_branches(paths: Iterable[tuple[int, Path]]) -> Mapping[int, Branch]:
    """The branches for the first tags of paths, each path with the index of its column."""
    by_tag: dict[int, list[tuple[int, Path]]] = defaultdict(list)
    for index, path in paths:
        by_tag[path[0]].append((index, path[1:]))
    return {
        tag: Branch(
            tuple(index for index, rest in columns if not rest),
            _make_branches((index, rest) for index, rest in columns if rest),
        )
        for tag, columns in by_tag.items()
    }


@cache
def main_branches() -> Mapping[int, Branch]:
    """Top-level tag -> the columns with paths that begin with it."""
    return _make_branches((index, column.path) for index, column in enumerate(catalogue()))


@cache
def alternative_branches() -> Mapping[int, Branch]:
    """Top-level tag -> the columns with alternative paths that begin with it."""
    columns = enumerate(catalogue())
    return _make_branches((index, column.alternative_path) for index, column in columns if column.alternative_path)


class SingleColumns(dict[ElementKey, tuple[int, Decode] | None]):
    """Key of a top-level element -> the index of its only column, and the decoder; None: it has several, or items."""

    def __init__(self, decoders: Decoders) -> None:
        super().__init__()
        self._decoders = decoders

    def __missing__(self, key: ElementKey) -> tuple[int, Decode] | None:
        tag, vr = key
        branch = main_branches().get(tag, Branch((), {}))
        is_single = len(branch.columns) == 1 and not branch.items and vr != b"SQ"
        self[key] = (branch.columns[0], self._decoders[branch.columns[0], vr]) if is_single else None
        return self[key]


@lru_cache(maxsize=256)
def single_columns_for(codecs: tuple[str, ...], little: bool) -> SingleColumns:
    """The single columns for the Python codecs and the byte order of a data set."""
    return SingleColumns(decoders_for(codecs, little))


def read_branch(
    buf: bytes, element: ValueSpan, branch: Branch, encoding: Encoding, codecs: tuple[str, ...]
) -> list[ColumnValue]:
    """Read the columns of a branch that have a value in an element or in the first items below it.

    Raises:
        IncompleteData, NotPlainError: see there.
    """
    values: list[ColumnValue] = []
    _add_values(values, buf, element, branch, encoding, decoders_for(codecs, encoding.order == "<"))
    return values


def _add_values(
    values: list[ColumnValue], buf: bytes, element: ValueSpan, branch: Branch, encoding: Encoding, decoders: Decoders
) -> None:
    (_, vr), start, length, end = element
    columns, items = branch
    if columns:
        if vr == b"SQ" or length == UNDEFINED_LENGTH:
            raise NotPlainError("a sequence instead of a value")
        raw = buf[start:end]
        values += [(index, *decoders[index, vr](raw)) for index in columns]
    if not items:
        return
    # pydicom finds out by the data dictionary that an element of VR UN is a sequence, up to this length
    is_unknown = vr == b"UN" and (length < 0xFFFF or length == UNDEFINED_LENGTH)
    if not is_unknown and vr not in (b"SQ", None):
        raise NotPlainError("a value instead of a sequence")
    first = read_first_item(buf, element, encoding)
    if first is None:
        return
    item, item_encoding = first
    if SPECIFIC_CHARACTER_SET in item:
        _, start, _, end = item[SPECIFIC_CHARACTER_SET]
        decoders = decoders.with_codecs(read_character_set(buf[start:end]).codecs)
    for tag, item_branch in items.items():
        if tag in item:
            _add_values(values, buf, item[tag], item_branch, item_encoding, decoders)


# -- headers ----------------------------------------------------------------------------------------------------------


class ParsedHeader:
    """A header that was parsed and decoded in full."""

    def __init__(self, buf: bytes, parser: Parser) -> None:
        """Decode the header that a parser has parsed.

        Raises:
            NotPlainError: only the reference reader handles it.
        """
        self.parser, self.encoding = parser, parser.encoding
        self.buf = buf[: parser.end]
        self.wanted = parser.wanted
        self.problems: dict[int, ColumnProblem] = {}  # by index of the column
        self.codecs = self._read_codecs()
        if _SOP_CLASS_UID in self.wanted:
            (_, vr), *_ = self.wanted[_SOP_CLASS_UID]
            if vr not in (None, b"UI"):
                raise NotPlainError("unusual VR of the SOP class UID")
        if PIXEL_REPRESENTATION in self.wanted:
            (_, vr), _, length, _ = self.wanted[PIXEL_REPRESENTATION]
            if not is_plain_representation(vr, length):
                raise NotPlainError("unusual PixelRepresentation")
        self.values = self._read_values()
        creators = [(tag, _decode_creator(self.buf[start:end])) for tag, start, end in parser.creators]
        self.tag_profile = TagProfile(pack_codes(parser.codes), tuple(creators))

    def _read_codecs(self) -> tuple[str, ...]:
        if SPECIFIC_CHARACTER_SET not in self.wanted:
            return DEFAULT_CODECS
        (_, vr), start, _, end = self.wanted[SPECIFIC_CHARACTER_SET]
        raw = self.buf[start:end]
        if not is_plain_character_set(vr, raw):
            raise NotPlainError("unsupported character set")
        codecs, problem = read_character_set(raw)
        self._add_problem(column_index("SpecificCharacterSet"), problem)
        return codecs

    def _read_values(self) -> tuple[Value, ...]:
        values: list[Value] = [None] * len(catalogue())
        buf = self.buf
        single_columns = single_columns_for(self.codecs, self.encoding.order == "<")
        for key, start, length, end in self.wanted.values():
            if not length:
                continue
            single = single_columns[key]
            if single is None or length == UNDEFINED_LENGTH:
                branch = main_branches().get(key[0])
                for index, values[index], problem in self._read_branch(key[0], branch) if branch else ():
                    self._add_problem(index, problem)
                continue
            index, decode = single
            values[index], problem = decode(buf[start:end])
            if problem:
                self._add_problem(index, problem)
        for tag, branch in alternative_branches().items():
            for index, value, problem in self._read_branch(tag, branch) if tag in self.wanted else ():
                if values[index] is None and index not in self.problems:
                    values[index] = value
                    self._add_problem(index, problem)
        return tuple(values)

    def _read_branch(self, tag: int, branch: Branch) -> list[ColumnValue]:
        return read_branch(self.buf, self.wanted[tag], branch, self.encoding, self.codecs)

    def _add_problem(self, index: int, problem: Problem | None) -> None:
        if problem:
            self.problems[index] = ColumnProblem(catalogue()[index], problem)

    @cached_property
    def tags(self) -> list[int]:
        """The tags of all elements."""
        return self.parser.tags(self.buf)

    def has_same_elements(self, buf: bytes, parser: Parser) -> bool:
        """Whether another header has the same elements, so that a template of this one may fit it."""
        return self.parser.has_same_elements(self.buf, parser, buf)

    def differing_tags(self, buf: bytes, parser: Parser) -> set[int]:
        """The tags of the elements in which another header with the same elements differs."""
        large = set(self.parser.large)
        pairs = zip(self.tags, self.parser.bounds(), parser.bounds(), strict=True)
        return {
            tag
            for tag, (start, end), (other_start, other_end) in pairs
            if self.buf[start:end] != buf[other_start:other_end] and tag not in large
        }

    def may_vary(self, varying: frozenset[int]) -> bool:
        """Whether a template may leave these elements open: neither other values nor the tag profile depend on them."""
        return varying.isdisjoint(_NEVER_VARYING) and not any(map(is_private_creator, varying))

    def with_alternatives(self, varying: frozenset[int]) -> frozenset[int]:
        """These tags, and those that must vary with them: if one path of a column varies, the other one does, too."""
        for tags in _alternative_tags():
            if not tags.isdisjoint(varying):
                varying |= tags.intersection(self.wanted)
        return varying


@cache
def _alternative_tags() -> tuple[frozenset[int], ...]:
    """Top-level tags of which one decides whether a column takes its value from another, in groups without overlap."""
    groups: list[frozenset[int]] = []
    for tag, branch in alternative_branches().items():
        group = frozenset([tag, *(catalogue()[index].tag for index in branch.all_columns())])
        group = group.union(*(other for other in groups if not other.isdisjoint(group)))
        groups = [*(other for other in groups if other.isdisjoint(group)), group]
    return tuple(groups)


@lru_cache(maxsize=4096)
def _decode_creator(raw: bytes) -> str:
    return decode_text("LO", raw, DEFAULT_CODECS)[0]
