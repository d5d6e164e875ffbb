"""A header as constant runs of bytes between the elements that vary: a series is read as differences from it.

Exact by construction: runs and varying elements are all the bytes of a header, in order. What has not changed is
neither parsed nor decoded again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dicom_etl.headers.forms import (
    EXPLICIT,
    LONG,
    PIXEL_REPRESENTATION,
    PLAIN_REPRESENTATIONS,
    UNDEFINED,
    Element,
    Form,
    NeedMore,
    Surprise,
)
from dicom_etl.headers.nested import after_sequence
from dicom_etl.headers.walk import PIXELS, Walk

_SPARE = 1024  # bytes by which the values of a file may be longer than those of the template
_MORE = 4096  # bytes that are fetched beyond what is known to be needed
_MOST_FIRST_READ = 1 << 16
_MOST_BYTES = 1 << 20  # of a value

Fetch = Callable[[int, int], tuple[bytes, bool]]


class Part(NamedTuple):
    """A constant run with tag and VR of the varying element after it, and where that has its length and its value."""

    run: bytes
    size: int  # of the run
    length_of: Callable[..., tuple[Any, ...]]  # from the bytes after the run
    value_at: int  # bytes after the run
    unlike: Unlike | None  # None for most elements


class Unlike(NamedTuple):
    """How an element is unlike most."""

    lengths: range | None  # that are possible; None: all are
    beyond: int  # of a value that is jumped over: bytes that are fetched after it; else 0


_LIKE = Unlike(None, 0)


class Matched(NamedTuple):
    """What a file has in the varying elements: their values (of large ones nothing), and where it ends."""

    values: list[bytes]
    undefined: int  # bit i: element i has undefined length
    tail: bytes  # from the end of the header on, 12 bytes if there are so many
    end: int  # of the header, in the file
    pixels: bool


class Template:
    """The header of a file whose followers differ in `varying` only."""

    def __init__(self, buf: bytes, walked: Walk, varying: frozenset[int]) -> None:
        self._walked = walked
        self._parts: list[Part] = []
        run, elements = 0, walked.elements(buf, varying)
        self.elements = elements  # that vary
        beyond = _beyond(elements, walked.end)
        for element in elements:
            form = EXPLICIT if element.start < walked.data_set else walked.form
            first = element.start == walked.data_set
            self._parts.append(_part(buf, run, element, form, beyond.get(element.tag, 0), first=first))
            run = element.end
        self._last_run = buf[run : walked.end]
        # up to the first value that is jumped over; values may be a little longer in the next file
        end = next((e.start for e in elements if e.large), walked.end)
        self.first_read = min(end + _SPARE, _MOST_FIRST_READ)

    def match(self, buf: bytes, at_end: bool, fetch: Fetch) -> Matched | None:  # noqa: C901  (the hot loop)
        """What a file has in the varying elements, or None where it is not of this template.

        Args:
            buf: the first bytes of the file.
            at_end: they are all of it.
            fetch: (place, number) -> bytes of the file from there, and whether they reach its end.
        """
        pos, base, n = 0, 0, len(buf)
        values: list[bytes] = []
        add = values.append
        undefined = 0
        for run, size, length_of, value_at, unlike in self._parts:
            if pos + size + 12 > n and not at_end:
                buf, at_end = fetch(base + pos, size + _MORE)
                base, pos, n = base + pos, 0, len(buf)
            start = pos + size + value_at
            if start > n or not buf.startswith(run, pos):
                return None
            length = length_of(buf, pos + size)[0]
            end = start + length
            if end <= n and not unlike:  # an undefined length is more than there ever is
                add(buf[start:end])
                pos = end
                continue
            lengths, beyond = unlike or _LIKE
            if lengths and length not in lengths:
                return None
            if end <= n:
                add(b"" if beyond else buf[start:end])
                pos = end
            elif beyond:
                if at_end:
                    return None
                add(b"")
                buf, at_end = fetch(base + end, beyond)
                base, pos, n = base + end, 0, len(buf)
            else:
                have = base + start, buf[start:], at_end
                base, buf, at_end, end = self._rest(self.elements[len(values)], have, length, fetch)
                if end < 0:
                    return None
                if length == UNDEFINED:
                    undefined |= 1 << len(values)
                add(buf[:end])
                pos, n = end, len(buf)
        size = len(self._last_run)
        if pos + size + 12 > n and not at_end:
            buf, at_end = fetch(base + pos, size + _MORE)
            base, pos = base + pos, 0
        return self._matched(buf, pos, base, at_end, values, undefined)

    def _rest(
        self, element: Element, have: tuple[int, bytes, bool], length: int, fetch: Fetch
    ) -> tuple[int, bytes, bool, int]:
        """The bytes from a value on, fetched until it ends in them; and where it ends, -1 if it does not.

        Args:
            element: that the value belongs to.
            have: place of the value, the bytes there are of it, and whether they are all.
            length: of the value.
            fetch: as in `match`.
        """
        place, buf, at_end = have
        while True:
            end = _end(element, buf, length, self._walked.form)
            if end is not None or at_end:
                return place, buf, at_end, -1 if end is None else end
            wanted = length + _MORE if length != UNDEFINED else max(3 * len(buf), 2 * _MORE)
            if wanted > _MOST_BYTES:
                return place, buf, at_end, -1
            buf, at_end = fetch(place, wanted)

    def _matched(
        self, buf: bytes, pos: int, base: int, at_end: bool, values: list[bytes], undefined: int
    ) -> Matched | None:
        """The match, if what follows the last varying element is what follows the template's."""
        if not buf.startswith(self._last_run, pos):
            return None
        pos += len(self._last_run)
        left = len(buf) - pos
        if not self._walked.pixels:
            return Matched(values, undefined, b"", base + pos, pixels=False) if at_end and not left else None
        if left < 12:
            return None
        group, number = self._walked.form.item(buf, pos)[:2]
        if group << 16 | number not in PIXELS:
            return None
        return Matched(values, undefined, buf[pos : pos + 12], base + pos, pixels=True)


def _beyond(elements: Sequence[Element], end: int) -> dict[int, int]:
    """Of the values that are jumped over: how much there is up to the next of them, or the header's end."""
    found = {}
    for element in reversed(elements):
        if element.large:
            found[element.tag] = end - element.end + _SPARE
            end = element.start
    return found


def _part(buf: bytes, begin: int, element: Element, form: Form, beyond: int, *, first: bool) -> Part:
    """A run and the varying element after it.

    Args:
        buf: the header.
        begin: where the run begins.
        element: that varies.
        form: how the element is written.
        beyond: as in `Unlike`.
        first: it is the first of the data set.
    """
    lengths = None
    if element.large:
        lengths = range(1, UNDEFINED)
    elif element.tag == 0x00020000:
        lengths = range(4, 5)  # pydicom converts it, and refuses others
    elif element.tag == PIXEL_REPRESENTATION:
        lengths = PLAIN_REPRESENTATIONS
    elif form.implicit and first:
        lengths = range(0x4141)  # pydicom would take a longer one for a VR
    head, length_of, value_at = 6, form.short, 2
    if form.implicit:
        head, length_of, value_at = 4, form.long, 4
    elif element.vr in LONG:
        length_of, value_at = form.reserved_long, 6
    run = buf[begin : element.start + head]
    unlike = Unlike(lengths, beyond) if lengths or beyond else None
    return Part(run, len(run), length_of, value_at, unlike)


def _end(element: Element, buf: bytes, length: int, form: Form) -> int | None:
    """Where a value ends that begins with the bytes; None where they do not reach so far, -1 where it is not plain."""
    if length != UNDEFINED:
        return length if length <= len(buf) else None
    try:
        return after_sequence(buf, element.tag, element.vr, 0, len(buf), form)
    except NeedMore:
        return None
    except Surprise:
        return -1
