"""Damages files at random and reads them with both readers, among undamaged files that are similar.

    python -m tests.headers.fuzzing FOLDER SEED FILES

Prints one line of JSON for each hundred damaged files. The process ends with a traceback if a hundred take too long, or
if a reader allocates memory for a forged length, since memory is limited.
"""

from __future__ import annotations

import faulthandler
import json
import random
import resource
import struct
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from benchmarks.corpora import damaged, write_adverse, write_realistic
from dicom_etl.headers.fast import FastReader
from dicom_etl.headers.fast.encoding import (
    LONG_VRS,
    SHORT_VRS,
    UNDEFINED_LENGTH,
    Element,
    IncompleteData,
    NotPlainError,
)
from dicom_etl.headers.fast.parser import Parser, SkipValue
from tests.headers.compare import (
    NoRow,
    Result,
    RowContent,
    pydicom_data_files,
    read_fast,
    read_file_fast,
    read_file_with_reference,
    read_with_reference,
)
from tests.headers.dicom_bytes import BIG_ENDIAN, EXPLICIT, IMPLICIT, element, item, pydicom_files, sequence, siblings
from tests.headers.one_file_series import one_file_series

BATCH = 100
SECONDS = 30  # for a batch, which takes less than one
# The interpreter with its libraries maps 0.4 GB, and the largest header has 0.2 MB: a forged length of 2 or 4 GB cannot
# be allocated, and unlimited growth ends before it harms the machine. If pydicom runs out of memory, the file is
# unreadable; if the fast reader does, the process ends with the error.
MEMORY = 3 << 29
_LARGEST = 200_000  # bytes of a packaged file: pixels are not what is damaged
_DEEP = 200
_NESTED = 0x00080006  # LanguageCodeSequence, before all that files have in group 0008 but the character set

Series = list[bytes]
Damage = Callable[[random.Random, bytes], bytes]


class Place(NamedTuple):
    """An element of a file, and the byte order of its length."""

    element: Element
    order: str
    implicit: bool


def main(folder: Path, seed: int, files: int) -> None:
    """Damage and read a number of files."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    faulthandler.enable()
    faulthandler.dump_traceback_later(120, exit=True)  # for what comes before the first batch
    warnings.simplefilter("ignore")
    rng = random.Random(seed)
    series = [*_generated(folder, seed), *_packaged(), *_one_file_series(seed)]
    comparison = _Comparison(rng, series, folder / "damaged.dcm")
    for number in range(0, files, BATCH):
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        print(json.dumps(comparison.batch(number)), flush=True)
    faulthandler.cancel_dump_traceback_later()


class _Comparison:
    """Both readers on damaged files; one fast reader for all, so that its templates are tried on damaged files, too."""

    def __init__(self, rng: random.Random, series: list[Series], path: Path) -> None:
        self._rng, self._series, self._path = rng, series, path
        self._reader = FastReader()

    def batch(self, begin: int) -> dict[str, object]:
        """Compare a hundred files; how many with each kind of damage gave a row, or none for which reason."""
        outcomes: dict[str, Counter[str]] = {kind: Counter() for kind in DAMAGES}
        differences: list[str] = []
        before = self._reader.counts
        good, group = 0, list[bytes]()
        for number in range(begin, begin + BATCH):
            if not number % 4:
                group = self._neighbours()
                good += len(group)
                for content in group:
                    read_fast(self._reader, content)
            kind = [*DAMAGES][number % len(DAMAGES)]
            fast, slow = self._both(DAMAGES[kind](self._rng, self._rng.choice(group)))
            outcomes[kind][_outcome(slow)] += 1
            if fast != slow:
                differences.append(f"file {number}, {kind}: {_difference(fast, slow)}")
        after = self._reader.counts
        counts = {name: now - then for name, now, then in zip(after._fields, after, before, strict=True)}
        return {"good": good, "outcomes": outcomes, "differences": differences, "counts": counts}

    def _neighbours(self) -> Series:
        series = self._rng.choice(self._series)
        start = self._rng.randrange(max(1, len(series) - 2))
        return series[start : start + 3]

    def _both(self, content: bytes) -> tuple[Result, Result]:
        """The results for a file that is opened as a stage opens it: in memory, forged lengths would be harmless."""
        self._path.write_bytes(content)
        size = len(content)
        with self._path.open("rb", buffering=0) as raw:
            fast = read_file_fast(self._reader, raw, "1.dcm", size)
        with self._path.open("rb") as file:
            return fast, read_file_with_reference(file, "1.dcm", size)


def _places(content: bytes) -> list[Place]:
    """The elements of a file, as far as they can be parsed."""
    parser = Parser()
    with suppress(NotPlainError, IncompleteData, SkipValue, LookupError):
        parser.parse(content, at_end=True)
    found = parser.elements(content) if parser.starts else []
    return [
        Place(
            at,
            "<" if number < parser.meta_count else parser.encoding.order,
            number >= parser.meta_count and parser.encoding.implicit,
        )
        for number, at in enumerate(found)
        if at.end >= at.value
    ]


def _at_random(rng: random.Random, content: bytes, damage: Callable[[random.Random, bytes, Place], bytes]) -> bytes:
    places = _places(content)
    return damage(rng, content, rng.choice(places)) if places else _flip_bytes(rng, content)


# -- kinds of damage --------------------------------------------------------------------------------------------------


def _flip_bytes(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 2, 5, 40))):
        changed[rng.randrange(128, min(len(content), rng.choice((200, 4000, len(content)))))] ^= rng.randrange(1, 256)
    return bytes(changed)


def _truncate(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(min(len(content), rng.choice((140, 5000, len(content)))))]


def _forge_length(rng: random.Random, content: bytes) -> bytes:
    return _at_random(rng, content, _change_length)


def _forge_four_gigabytes(rng: random.Random, content: bytes) -> bytes:
    return _at_random(rng, content, _length_of_gigabytes)


def _length_of_gigabytes(rng: random.Random, content: bytes, place: Place) -> bytes:
    """An element says that it has 4 GB or 2; in explicit VR one of a VR that can say so."""
    at, order, implicit = place
    length = struct.pack(order + "L", rng.choice((0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFF0, 0xFFFF0000, 0x7FFFFFFE)))
    if implicit:
        return content[: at.start + 4] + length + content[at.value :]
    vr = at.vr if at.vr in LONG_VRS else rng.choice(sorted(LONG_VRS))
    return content[: at.start + 4] + vr + b"\0\0" + length + content[at.value :]


def _nest_deeply(rng: random.Random, content: bytes) -> bytes:
    """A sequence in a sequence, 200 deep, of defined or undefined length; in some the ends are missing."""
    places = [place for place in _places(content) if place.element.tag >> 16 != 2]
    place = next((place for place in places if place.element.tag > _NESTED), None)
    if place is None:
        return _flip_bytes(rng, content)
    syntax = IMPLICIT if place.implicit else EXPLICIT if place.order == "<" else BIG_ENDIAN
    tag = rng.choice((_NESTED, _NESTED, 0x00080004))
    defined, nest = rng.random() < 0.5, b""
    for _ in range(_DEEP):
        vr = "UN" if rng.random() < 0.002 else "SQ"
        nest = sequence(tag, item(nest, defined=defined, order=place.order), defined=defined, syntax=syntax, vr=vr)
    nest = nest[: rng.choice((len(nest), len(nest), len(nest) - 8, len(nest) // 2))]
    at = place.element.start if rng.random() < 0.8 else rng.choice(places).element.end
    return content[:at] + nest + content[at:]


def _alter_element(rng: random.Random, content: bytes) -> bytes:
    """One or two elements are others, so that the file stays readable for longer than a damaged one."""
    for _ in range(rng.choice((1, 1, 2))):
        content = _at_random(rng, content, rng.choice(_ALTERATIONS))
    return content


DAMAGES: dict[str, Damage] = {
    "bytes flipped": _flip_bytes,
    "cut": _truncate,
    "length forged": _forge_length,
    "length of 4 GB": _forge_four_gigabytes,
    "nested 200 deep": _nest_deeply,
    "element altered": _alter_element,
    "several": damaged,
}


def _change_vr(rng: random.Random, content: bytes, place: Place) -> bytes:
    at = place.element
    vr = rng.choice((*sorted(SHORT_VRS), *sorted(LONG_VRS), b"??", b"\0\0", b"ZZ"))
    return content[: at.start + 4] + vr + content[at.start + 6 :]


def _change_length(rng: random.Random, content: bytes, place: Place) -> bytes:
    at = place.element
    length = rng.choice(
        (0, at.length - 1, at.length + 1, at.length - 2, at.length + 2, 8, 0x4141, 0xFFFF, UNDEFINED_LENGTH)
    )
    width = 2 if at.vr in SHORT_VRS else 4
    number = (length & (1 << 8 * width) - 1).to_bytes(width, "little" if place.order == "<" else "big")
    return content[: at.value - width] + number + content[at.value :]


def _change_tag(rng: random.Random, content: bytes, place: Place) -> bytes:
    at = place.element
    group = rng.choice((at.tag >> 16, at.tag >> 16, 0x0002, 0x0008, 0x0009, 0xFFFC, 0xFFFE, 0x7FE0, 0x0000))
    numbers = (at.tag & 0xFFFF, 0x0000, 0x0005, 0x0010, 0x0018, 0xE000, 0xE00D, 0xE0DD, rng.randrange(1 << 16))
    tag = struct.pack(place.order + "HH", group, rng.choice(numbers))
    return content[: at.start] + tag + content[at.start + 4 :]


def _change_value(rng: random.Random, content: bytes, place: Place) -> bytes:
    at = place.element
    texts = b" ", b"\0", b"\\", b"\xff", b"\x1b$B", b"1", b"-.1e3\\2", b"ISO_IR 100"
    delimiters = [struct.pack(place.order + "HH", 0xFFFE, number) for number in (0xE0DD, 0xE000)]
    value = rng.choice((*texts, *delimiters, rng.randbytes(16))) * rng.choice((1, 1, 4, (at.end - at.value) // 2 + 1))
    length = at.end - at.value
    return content[: at.value] + value[:length].ljust(length) + content[at.end :]


def _remove_element(_: random.Random, content: bytes, place: Place) -> bytes:
    return content[: place.element.start] + content[place.element.end :]


def _repeat_element(_: random.Random, content: bytes, place: Place) -> bytes:
    start, end = place.element.start, place.element.end
    return content[:end] + content[start:end] + content[end:]


def _insert_element(rng: random.Random, content: bytes, place: Place) -> bytes:
    """One more element, of an odd group or of the same."""
    tag = place.element.tag + rng.choice((1, 0x00010010 - (place.element.tag & 0xFFFF)))
    syntax = IMPLICIT if place.implicit else EXPLICIT if place.order == "<" else BIG_ENDIAN
    new = element(tag, rng.choice((b"", b"  ", b"\0\0", b"one more")), rng.choice(("LO", "UN", "OB")), syntax=syntax)
    return content[: place.element.end] + new + content[place.element.end :]


def _change_byte(rng: random.Random, content: bytes, place: Place) -> bytes:
    at = rng.randrange(place.element.start, max(place.element.end, place.element.start + 1))
    return content[:at] + rng.randbytes(1) + content[at + 1 :]


_ALTERATIONS = (
    _change_vr,
    _change_length,
    _change_tag,
    _change_value,
    _change_value,
    _remove_element,
    _repeat_element,
    _insert_element,
    _change_byte,
    _change_byte,
)


# -- good files -------------------------------------------------------------------------------------------------------


def _generated(folder: Path, seed: int) -> Iterator[Series]:
    """The files of two corpora by folder: those of one or a few series."""
    for name, write in (("realistic", write_realistic), ("adverse", write_adverse)):
        write(folder / name, 250, seed)
        paths = sorted(path for path in (folder / name).rglob("*") if path.is_file())
        for _, found in groupby(paths, key=lambda path: path.parent):
            yield [path.read_bytes()[:_LARGEST] for path in found]


def _packaged() -> Iterator[Series]:
    """A packaged file as a series."""
    for path in (*pydicom_files(), *pydicom_data_files()):
        if path.stat().st_size > _LARGEST:
            continue
        content = path.read_bytes()
        if isinstance(read_with_reference(content, path.name), RowContent):
            yield siblings(content)


def _one_file_series(seed: int) -> Iterator[Series]:
    """Neighbours in a collection of many patients."""
    files = list(one_file_series(320, seed))
    return (files[start : start + 8] for start in range(0, len(files), 8))


def _outcome(found: Result) -> str:
    return f"{found.kind} {found.code}" if isinstance(found, NoRow) else "row"


def _difference(fast: Result, slow: Result) -> str:
    if isinstance(fast, NoRow) or isinstance(slow, NoRow):
        return f"{_outcome(fast)} and not {_outcome(slow)}"
    names = [name for name, one, other in zip(RowContent._fields, fast, slow, strict=True) if one != other]
    values = [pair for pair in zip(fast.values, slow.values, strict=True) if pair[0] != pair[1]]
    return f"{names} {values}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
