"""Which columns lie where in a header, and the values of those that lie in the first items of sequences.

The paths of the catalogue are kept as trees: a sequence is looked into once for all of its columns, and of an item
only what is there is looked at.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, lru_cache
from typing import NamedTuple

from dicom_etl.headers.catalogue import catalogue
from dicom_etl.headers.forms import UNDEFINED, Element, Form, Surprise
from dicom_etl.headers.nested import first_item
from dicom_etl.headers.reader import CHARACTER_SET
from dicom_etl.headers.shortcuts import Decode, Decoders, decoders_for
from dicom_etl.headers.values import Problem, Value, encodings_of, text_of

Path = tuple[int, ...]
Placed = tuple[int, Value, Problem | None]  # the place of a column in the catalogue, its value, what was wrong with it


class Branch(NamedTuple):
    """The columns whose paths begin alike."""

    places: tuple[int, ...]  # of the columns that end here
    deeper: Mapping[int, Branch]  # tag in the first item -> those that go on


def _branches(paths: Iterable[tuple[int, Path]]) -> Mapping[int, Branch]:
    """The branches at the beginning of paths, each with the place of its column, by tag."""
    under: dict[int, list[tuple[int, Path]]] = defaultdict(list)
    for place, path in paths:
        under[path[0]].append((place, path[1:]))
    return {
        tag: Branch(tuple(place for place, rest in several if not rest), _branches((p, r) for p, r in several if r))
        for tag, several in under.items()
    }


@cache
def first_places() -> Mapping[int, Branch]:
    """Top-level tag -> the columns under it."""
    return _branches((place, column.path) for place, column in enumerate(catalogue()))


class Plans(dict[tuple[int, bytes | None], tuple[tuple[int, Decode], ...] | None]):
    """Tag and VR of a top-level element -> the places of its columns and how to decode them; None: look into it."""

    def __init__(self, decoders: Decoders) -> None:
        super().__init__()
        self._decoders = decoders

    def __missing__(self, key: tuple[int, bytes | None]) -> tuple[tuple[int, Decode], ...] | None:
        tag, vr = key
        branch = first_places().get(tag, Branch((), {}))
        plain = tuple((place, self._decoders[place, vr]) for place in branch.places)
        self[key] = None if branch.deeper or (plain and vr == b"SQ") else plain
        return self[key]


@lru_cache(maxsize=256)
def plans_for(encodings: tuple[str, ...], little: bool) -> Plans:
    """The plans for the Python encodings and the byte order of a data set."""
    return Plans(decoders_for(encodings, little))


@cache
def second_places() -> Mapping[int, Branch]:
    """Top-level tag -> the columns under it that have a value nowhere else."""
    return _branches((place, column.also) for place, column in enumerate(catalogue()) if column.also)


def places_in(branch: Branch) -> Iterator[int]:
    """The columns of a branch."""
    yield from branch.places
    for deeper in branch.deeper.values():
        yield from places_in(deeper)


def values_under(
    buf: bytes, element: Element, branch: Branch, form: Form, encodings: tuple[str, ...]
) -> Iterator[Placed]:
    """The values of the columns of a branch that are there under an element.

    Raises:
        Surprise, NeedMore: the element is not as plain as it should be.
    """
    _, vr, _, value, length, end, _ = element
    if branch.places:
        if vr == b"SQ" or length == UNDEFINED:
            raise Surprise("a sequence where a value should be")
        decoders, raw = decoders_for(encodings, form.order == "<"), buf[value:end]
        for place in branch.places:
            yield place, *decoders[place, vr](raw)
    if branch.deeper:
        yield from _values_in_item(buf, element, branch.deeper, form, encodings)


def _values_in_item(
    buf: bytes, element: Element, branches: Mapping[int, Branch], form: Form, encodings: tuple[str, ...]
) -> Iterator[Placed]:
    # pydicom knows a sequence whose VR was lost by the data dictionary, up to this length
    lost = element.vr == b"UN" and (element.length < 0xFFFF or element.length == UNDEFINED)
    if not lost and element.vr not in (b"SQ", None):
        raise Surprise("no sequence")
    first = first_item(buf, element, form)
    if first is None:
        return
    item, form = first
    if CHARACTER_SET in item:
        encodings = encodings_of(text_of("CS", _raw(buf, item[CHARACTER_SET]), encodings)[0])[0]
    for tag in item.keys() & branches.keys():
        yield from values_under(buf, item[tag], branches[tag], form, encodings)


def _raw(buf: bytes, element: Element) -> bytes:
    return buf[element.value : element.end]
