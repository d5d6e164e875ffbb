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
from dicom_etl.headers.forms import UNDEFINED, Form, Found, Spot, Surprise
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


class Plans(dict[Spot, tuple[int, Decode] | None]):
    """Tag and VR of a top-level element -> the place of its one column and how to decode it; None: look into it."""

    def __init__(self, decoders: Decoders) -> None:
        super().__init__()
        self._decoders = decoders

    def __missing__(self, key: Spot) -> tuple[int, Decode] | None:
        tag, vr = key
        branch = first_places().get(tag, Branch((), {}))
        plain = len(branch.places) == 1 and not branch.deeper and vr != b"SQ"
        self[key] = (branch.places[0], self._decoders[branch.places[0], vr]) if plain else None
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
    buf: bytes, element: Found, branch: Branch, form: Form, encodings: tuple[str, ...]
) -> Iterable[Placed]:
    """The values of the columns of a branch that are there under an element.

    Raises:
        Surprise, NeedMore: the element is not as plain as it should be.
    """
    found: list[Placed] = []
    _gather(found, buf, element, branch, form, decoders_for(encodings, form.order == "<"))
    return found


def _gather(found: list[Placed], buf: bytes, element: Found, branch: Branch, form: Form, decoders: Decoders) -> None:
    (_, vr), value, length, end = element
    places, deeper = branch
    if places:
        if vr == b"SQ" or length == UNDEFINED:
            raise Surprise("a sequence where a value should be")
        raw = buf[value:end]
        found += [(place, *decoders[place, vr](raw)) for place in places]
    if not deeper:
        return
    # pydicom knows a sequence whose VR was lost by the data dictionary, up to this length
    lost = vr == b"UN" and (length < 0xFFFF or length == UNDEFINED)
    if not lost and vr not in (b"SQ", None):
        raise Surprise("no sequence")
    first = first_item(buf, element, form)
    if first is None:
        return
    item, form = first
    if CHARACTER_SET in item:
        _, value, _, end = item[CHARACTER_SET]
        decoders = decoders.of(encodings_of(text_of("CS", buf[value:end], decoders.encodings)[0])[0])
    for tag, below in deeper.items():
        if tag in item:
            _gather(found, buf, item[tag], below, form, decoders)
