"""Damages files at random and reads them with both readers, among good files that are like them.

    python -m tests.headers.fuzzing FOLDER SEED FILES [--all]

Prints one line for each difference, and at last how many files were read in which way. Memory is bounded, so that a
forged length that asks for gigabytes is an error.
"""

from __future__ import annotations

import random
import resource
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from benchmarks.corpora import damaged
from dicom_etl.headers.fast import FastReader
from dicom_etl.headers.walk import LONG, SHORT, UNDEFINED, Element, Jump, NeedMore, Surprise, Walk
from tests.headers.compare import Refused, Said, decided, said
from tests.headers.files import shipped

_MEMORY = 2 << 30
_LARGEST = 200_000  # bytes of a packaged file: pixels are not what is damaged
Series = list[bytes]


def main(folder: Path, seed: int, files: int) -> None:
    """Damage and read so many files."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    rng = random.Random(seed)
    series = [*_generated(folder), *_packaged()]
    reader, outcomes = FastReader(), Counter[str]()
    for number in range(files):
        one = rng.choice(series)
        start = rng.randrange(max(1, len(one) - 3))
        for content in one[start : start + 4]:
            said(reader, content)
        content = rng.choice((damaged, altered))(rng, rng.choice(one[start : start + 4]))
        fast, slow = said(reader, content), decided(content)
        outcomes[_outcome(slow)] += 1
        if fast != slow:
            print(f"seed {seed}, file {number}: {_difference(fast, slow)}")
    print(dict(outcomes), reader.work)


def altered(rng: random.Random, content: bytes) -> bytes:
    """A file in which one or two elements are others, so that it stays readable for longer than a damaged one."""
    for _ in range(rng.choice((1, 1, 2))):
        elements = _elements(content)
        if not elements:
            return damaged(rng, content)
        content = rng.choice(_ALTERATIONS)(rng, content, rng.choice(elements))
    return content


def _elements(content: bytes) -> list[Element]:
    walk = Walk(())
    try:
        return walk.walk(content, at_end=True).elements
    except (Surprise, NeedMore, Jump):
        return walk.elements


def _other_vr(rng: random.Random, content: bytes, at: Element) -> bytes:
    vr = rng.choice((*SHORT, *LONG, b"??", b"\0\0", b"ZZ"))
    return content[: at.start + 4] + vr + content[at.start + 6 :]


def _other_length(rng: random.Random, content: bytes, at: Element) -> bytes:
    length = rng.choice((0, at.length - 1, at.length + 1, at.length - 2, at.length + 2, 8, 0x4141, 0xFFFF, UNDEFINED))
    width = 2 if at.vr in SHORT else 4
    place = at.value - width
    return content[:place] + (length & (1 << 8 * width) - 1).to_bytes(width, "little") + content[at.value :]


def _other_tag(rng: random.Random, content: bytes, at: Element) -> bytes:
    group = rng.choice((at.tag >> 16, at.tag >> 16, 0x0002, 0x0008, 0x0009, 0xFFFC, 0xFFFE, 0x7FE0, 0x0000))
    number = rng.choice(
        (at.tag & 0xFFFF, 0x0000, 0x0005, 0x0010, 0x0018, 0xE000, 0xE00D, 0xE0DD, rng.randrange(1 << 16))
    )
    return content[: at.start] + group.to_bytes(2, "little") + number.to_bytes(2, "little") + content[at.start + 4 :]


def _other_value(rng: random.Random, content: bytes, at: Element) -> bytes:
    values = (
        b" ",
        b"\0",
        b"\\",
        b"\xff",
        b"\x1b$B",
        b"1",
        b"-.1e3\\2",
        b"ISO_IR 100",
        b"\xfe\xff\xdd\xe0",
        b"\xfe\xff\x00\xe0",
    )
    value = rng.choice((*values, rng.randbytes(16))) * rng.choice((1, 1, 4, (at.end - at.value) // 2 + 1))
    length = at.end - at.value
    return content[: at.value] + value[:length].ljust(length) + content[at.end :]


def _gone(_: random.Random, content: bytes, at: Element) -> bytes:
    return content[: at.start] + content[at.end :]


def _twice(_: random.Random, content: bytes, at: Element) -> bytes:
    return content[: at.end] + content[at.start : at.end] + content[at.end :]


def _one_byte(rng: random.Random, content: bytes, at: Element) -> bytes:
    place = rng.randrange(at.start, max(at.end, at.start + 1))
    return content[:place] + rng.randbytes(1) + content[place + 1 :]


_ALTERATIONS = (_other_vr, _other_length, _other_tag, _other_value, _other_value, _gone, _twice, _one_byte, _one_byte)


def _generated(folder: Path) -> Iterator[Series]:
    """The files of a corpus by folder: those of one or a few series."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for _, found in groupby(paths, key=lambda path: path.parent):
        yield [path.read_bytes()[:_LARGEST] for path in found]


def _packaged() -> Iterator[Series]:
    """A packaged file as a series: copies with other SOPInstanceUIDs."""
    for path in shipped():
        content = path.read_bytes()
        found = decided(content, path.name)
        if len(content) <= _LARGEST and isinstance(found, Said):
            place = content.find(b"\x08\x00\x18\x00") + 20
            yield [content[:place] + b"%d" % number + content[place + 1 :] for number in range(3)]


def _outcome(found: Said | Refused) -> str:
    return f"{found.kind} {found.code}" if isinstance(found, Refused) else "row"


def _difference(fast: Said | Refused, slow: Said | Refused) -> str:
    if isinstance(fast, Refused) or isinstance(slow, Refused):
        return f"{_outcome(fast)} and not {_outcome(slow)}"
    names = [name for name, one, other in zip(Said._fields, fast, slow, strict=True) if one != other]
    values = [pair for pair in zip(fast.values, slow.values, strict=True) if pair[0] != pair[1]]
    return f"{names} {values}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
