"""A header that was walked in full, and what its bytes say: the values of the catalogue and the tag profile."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, cached_property, lru_cache

from dicom_etl.headers.catalogue import catalogue
from dicom_etl.headers.forms import (
    PIXEL_REPRESENTATION,
    UNDEFINED,
    Surprise,
    is_creator,
    is_plain_representation,
)
from dicom_etl.headers.items import (
    Branch,
    Placed,
    first_places,
    places_in,
    plans_for,
    second_places,
    values_under,
)
from dicom_etl.headers.nested import is_plain_charset
from dicom_etl.headers.reader import CHARACTER_SET, ColumnProblem
from dicom_etl.headers.tag_profile import TagProfile, joined
from dicom_etl.headers.values import Problem, Value, encodings_of, text_of
from dicom_etl.headers.walk import Walk

LATIN = ("iso8859",)
_TRANSFER_SYNTAX, _MEDIA_STORAGE_SOP_CLASS = 0x00020010, 0x00020002
_SOP_CLASS = 0x00080016
_CONSTANT = frozenset({CHARACTER_SET, _TRANSFER_SYNTAX, _MEDIA_STORAGE_SOP_CLASS})


@cache
def place_of(name: str) -> int:
    """The place of a column in the catalogue."""
    return [column.name for column in catalogue()].index(name)


class Parsed:
    """A header walked and decoded in full."""

    def __init__(self, buf: bytes, walked: Walk) -> None:
        self.walked, self.form = walked, walked.form
        self.buf = buf[: walked.end]
        self.found = walked.found
        self.problems: dict[int, ColumnProblem] = {}
        self.encodings = self._encodings()
        if _SOP_CLASS in self.found and self.found[_SOP_CLASS][0][1] not in (None, b"UI"):
            raise Surprise("VR of the SOP class")
        if representation := self.found.get(PIXEL_REPRESENTATION):
            (_, vr), _, length, _ = representation
            if not is_plain_representation(vr, length):
                raise Surprise("PixelRepresentation")
        self.values = self._values()
        self.tag_profile = TagProfile(joined(walked.codes), self._creators())

    def _encodings(self) -> tuple[str, ...]:
        if CHARACTER_SET not in self.found:
            return LATIN
        (_, vr), value, _, end = self.found[CHARACTER_SET]
        raw = self.buf[value:end]
        if not is_plain_charset(vr, raw):
            raise Surprise("character set")
        text = text_of("CS", raw, LATIN)[0]
        encodings, are_known = encodings_of(text)
        if not are_known:
            self._note(place_of("SpecificCharacterSet"), Problem("charset-error", text))
        return encodings

    def _values(self) -> tuple[Value, ...]:
        values: list[Value] = [None] * len(catalogue())
        buf = self.buf
        plans = plans_for(self.encodings, self.form.order == "<")
        for spot, value, length, end in self.found.values():
            if not length:
                continue
            plan = plans[spot]
            if plan is None or length == UNDEFINED:
                self._look_into(spot[0], values)
                continue
            place, decode = plan
            values[place], problem = decode(buf[value:end])
            if problem:
                self._note(place, problem)
        self._look_elsewhere(values)
        return tuple(values)

    def _look_into(self, tag: int, values: list[Value]) -> None:
        branch = first_places().get(tag)
        for place, values[place], problem in self._under(tag, branch) if branch else ():
            if problem:
                self._note(place, problem)

    def _look_elsewhere(self, values: list[Value]) -> None:
        """Fill what has no value from its second place."""
        for tag, branch in second_places().items():
            for place, found, problem in self._under(tag, branch) if tag in self.found else ():
                if values[place] is None and place not in self.problems:
                    values[place] = found
                    if problem:
                        self._note(place, problem)

    def _under(self, tag: int, branch: Branch) -> Iterable[Placed]:
        return values_under(self.buf, self.found[tag], branch, self.form, self.encodings)

    def _note(self, place: int, problem: Problem) -> None:
        self.problems[place] = ColumnProblem(catalogue()[place], problem)

    def _creators(self) -> tuple[tuple[int, str], ...]:
        """Private creators (PS3.5 7.8.1) by their tags."""
        return tuple([(tag, _creator(self.buf[value:end])) for tag, value, end in self.walked.creators])

    @cached_property
    def tags(self) -> list[int]:
        """The tags of all elements."""
        return self.walked.tags(self.buf)

    def is_like(self, buf: bytes, walked: Walk) -> bool:
        """Whether a header is one that a template of this one may match."""
        return self.walked.is_like(self.buf, walked, buf)

    def differs(self, buf: bytes, walked: Walk) -> set[int]:
        """The tags in which a header that is like this one differs."""
        mine, large = self.buf, set(self.walked.large)
        pairs = zip(self.tags, self.walked.bounds(), walked.bounds(), strict=True)
        return {
            tag for tag, (begin, end), (start, stop) in pairs if mine[begin:end] != buf[start:stop] and tag not in large
        }

    def may_vary(self, varying: frozenset[int]) -> bool:
        """Whether a template may leave these open: what other columns or the tag profile hang on must stay."""
        return varying.isdisjoint(_CONSTANT) and not any(map(is_creator, varying))

    def varying_with(self, varying: frozenset[int]) -> frozenset[int]:
        """These tags and those that a template must leave open with them: the places of a column vary together."""
        for places in _alternatives():
            if not places.isdisjoint(varying):
                varying |= places.intersection(self.found)
        return varying


@cache
def _alternatives() -> tuple[frozenset[int], ...]:
    """Top-level tags of which one decides whether another gives a column its value, in groups that share none."""
    groups: list[frozenset[int]] = []
    for second, branch in second_places().items():
        group = frozenset([second, *(catalogue()[place].tag for place in places_in(branch))])
        group = group.union(*(other for other in groups if not other.isdisjoint(group)))
        groups = [*(other for other in groups if other.isdisjoint(group)), group]
    return tuple(groups)


@lru_cache(maxsize=4096)
def _creator(raw: bytes) -> str:
    return text_of("LO", raw, LATIN)[0]


def is_blank(raw: bytes, padded: bool) -> bool:
    """Whether a value of defined length is empty; one of nothing but padding is, if its VR is `padded` text."""
    return not raw or (padded and not raw.strip(b" \0"))
