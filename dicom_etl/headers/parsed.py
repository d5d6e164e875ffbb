"""A header that was walked in full, and what its bytes say: the values of the catalogue and the layout."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache

from dicom_etl.headers.catalogue import Column, catalogue
from dicom_etl.headers.layout import EMPTY, FILLED, Presence, layout_id
from dicom_etl.headers.reader import CHARACTER_SET, ColumnProblem, layout_vr
from dicom_etl.headers.shortcuts import decoders_for
from dicom_etl.headers.values import PADDED, Decoded, Problem, Value, decode, encodings_of, text_of
from dicom_etl.headers.walk import UNDEFINED, Element, Form, Surprise, Walked, first_item, is_plain_charset, within

LATIN = ("iso8859",)
_TRANSFER_SYNTAX, _MEDIA_STORAGE_SOP_CLASS = 0x00020010, 0x00020002
_SOP_CLASS = 0x00080016
_new = tuple.__new__  # a third of the time of `Presence(...)`


@cache
def columns_under() -> Mapping[int, tuple[tuple[int, Column], ...]]:
    """The columns (with their places) whose first place lies under a top-level tag."""
    found: dict[int, list[tuple[int, Column]]] = defaultdict(list)
    for place, column in enumerate(catalogue()):
        found[column.path[0]].append((place, column))
    return {tag: tuple(columns) for tag, columns in found.items()}


@cache
def _second_places() -> tuple[tuple[int, Column], ...]:
    return tuple((place, column) for place, column in enumerate(catalogue()) if column.also)


@cache
def wanted() -> frozenset[int]:
    """The top-level tags whose values are needed."""
    return frozenset(columns_under()) | {column.also[0] for _, column in _second_places()}


@cache
def place_of(name: str) -> int:
    """The place of a column in the catalogue."""
    return [column.name for column in catalogue()].index(name)


class Parsed:
    """A header walked and decoded in full."""

    def __init__(self, buf: bytes, walked: Walked) -> None:
        self.walked, self.form = walked, walked.form
        self.buf = buf[: walked.end]
        self.by_tag = {element.tag: element for element in walked.elements}
        self.problems: dict[int, ColumnProblem] = {}
        self.encodings = self._encodings()
        if _SOP_CLASS in self.by_tag and self.by_tag[_SOP_CLASS].vr not in (None, b"UI"):
            raise Surprise("VR of the SOP class")
        self.values = self._values()
        self.presences = tuple(self._presences())
        self.layout = layout_id(self.presences)

    def _encodings(self) -> tuple[str, ...]:
        element = self.by_tag.get(CHARACTER_SET)
        if element is None:
            return LATIN
        raw = self.buf[element.value : element.end]
        if not is_plain_charset(element.vr, raw):
            raise Surprise("character set")
        text = text_of("CS", raw, LATIN)[0]
        encodings, known = encodings_of(text)
        if not known:
            place = place_of("SpecificCharacterSet")
            self.problems[place] = ColumnProblem(catalogue()[place], Problem("text-undecodable", text))
        return encodings

    def _values(self) -> tuple[Value, ...]:
        values: list[Value] = [None] * len(catalogue())
        columns, items = columns_under(), Items(self.buf, self.form)
        decoders = decoders_for(self.encodings, self.form.order == "<")
        for element in self.walked.elements:
            tag, vr, _, value, length, end, _ = element
            if tag not in columns or not length:
                continue
            for place, column in columns[tag]:
                if len(column.path) > 1 or vr == b"SQ" or length == UNDEFINED:
                    values[place], problem = items.value(element, column, column.path, self.encodings)
                else:
                    values[place], problem = decoders[place, vr](self.buf[value:end])
                if problem:
                    self.problems[place] = ColumnProblem(column, problem)
        for place, column in _second_places():
            second = self.by_tag.get(column.also[0])
            if values[place] is None and place not in self.problems and second is not None:
                values[place], problem = items.value(second, column, column.also, self.encodings)
                if problem:
                    self.problems[place] = ColumnProblem(column, problem)
        return tuple(values)

    def _presences(self) -> list[Presence]:
        creators = self._creators()
        buf, delimiter, found = self.buf, self.form.delimiter, []
        for tag, vr, _, value, length, end, large in self.walked.elements[self.walked.meta :]:
            if not tag & 0xFFFF:
                continue
            if not length:
                status = EMPTY
            elif large or (buf[value] > 0x20 and length != UNDEFINED):
                status = FILLED  # what begins with neither blank nor zero is filled
            else:
                status = status_of(buf[value:end], length == UNDEFINED, is_padded(tag, vr), delimiter)
            creator = creators.get(tag >> 16 << 16 | (tag & 0xFFFF) >> 8) if creators and tag & 0x10000 else None
            found.append(_new(Presence, (tag, creator, status)))
        return found

    def _creators(self) -> dict[int, str]:
        """Private creators (PS3.5 7.8.1) by the tag of their block."""
        return {
            tag: text_of("LO", self.buf[value:end], LATIN)[0]
            for tag, _, _, value, length, end, _ in self.walked.elements
            if tag & 0x10000 and 0x10 <= tag & 0xFFFF <= 0xFF and length not in (0, UNDEFINED)
        }

    def is_like(self, walked: Walked) -> bool:
        """Whether a header has the same elements, written alike: what headers must have in common for a template."""
        mine, theirs = self.walked.elements, walked.elements
        return len(mine) == len(theirs) and all(
            a.tag == b.tag and a.vr == b.vr and a.large == b.large for a, b in zip(mine, theirs, strict=True)
        )

    def differs(self, buf: bytes, walked: Walked) -> set[int]:
        """The tags in which a header that is like this one differs."""
        mine = self.buf
        return {
            a.tag
            for a, b in zip(self.walked.elements, walked.elements, strict=True)
            if not a.large and mine[a.start : a.end] != buf[b.start : b.end]
        }

    def may_vary(self, varying: Iterable[int]) -> bool:
        """Whether a template may leave these open: what other columns or the layout hang on must stay."""
        for tag in varying:
            if tag in (CHARACTER_SET, _TRANSFER_SYNTAX, _MEDIA_STORAGE_SOP_CLASS):
                return False
            if tag >> 16 & 1 and 0x10 <= tag & 0xFFFF <= 0xFF:
                return False
        return not any(
            column.also[0] in self.by_tag and (column.path[0] in varying or column.also[0] in varying)
            for _, column in _second_places()
        )


@lru_cache(maxsize=8192)
def is_padded(tag: int, vr: bytes | None) -> bool:
    """Whether blanks alone are an empty value."""
    return layout_vr(tag, vr and vr.decode()) in PADDED


def status_of(raw: bytes, undefined: bool | int, padded: bool, delimiter: bytes) -> int:
    """EMPTY or FILLED: a sequence of undefined length is empty when its delimiter follows at once."""
    if undefined:
        return EMPTY if raw.startswith(delimiter) else FILLED
    return EMPTY if not raw or (padded and not raw.strip(b" \0")) else FILLED


class Items:
    """Values in elements and in the first items of sequences."""

    def __init__(self, buf: bytes, form: Form) -> None:
        self._buf, self._form = buf, form
        self._parsed: dict[int, tuple[dict[int, Element], Form] | None] = {}

    def value(
        self, element: Element | None, column: Column, path: tuple[int, ...], encodings: tuple[str, ...]
    ) -> Decoded:
        """The value of a column that lies under an element, by the rest of the column's path."""
        form = self._form
        for tag in path[1:]:
            if element is None:
                return Decoded(None)
            found = self._first(element, form)
            if found is None:
                return Decoded(None)
            item, form = found
            if CHARACTER_SET in item:
                encodings = self._encodings(item[CHARACTER_SET], encodings)
            element = item.get(tag)
        if element is None:
            return Decoded(None)
        if element.vr == b"SQ" or element.length == UNDEFINED:
            raise Surprise("a sequence where a value should be")
        vr = column.vr if element.vr in (None, b"UN") else element.vr.decode()
        raw = self._buf[element.value : element.end]
        return decode(column.kind, vr, raw, encodings, form.order == "<")

    def _encodings(self, element: Element, inherited: tuple[str, ...]) -> tuple[str, ...]:
        return encodings_of(text_of("CS", self._buf[element.value : element.end], inherited)[0])[0]

    def _first(self, element: Element, form: Form) -> tuple[dict[int, Element], Form] | None:
        if element.start not in self._parsed:
            # pydicom knows a sequence whose VR was lost by the data dictionary, up to this length
            lost = element.vr == b"UN" and (element.length < 0xFFFF or element.length == UNDEFINED)
            if not lost and element.vr not in (b"SQ", None):
                raise Surprise("no sequence")
            bounds = first_item(self._buf, element, form)
            self._parsed[element.start] = (within(self._buf, *bounds), bounds[2]) if bounds else None
        return self._parsed[element.start]
