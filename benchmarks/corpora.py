"""Corpora of DICOM files with the same bytes in every run: a realistic one, an adverse one; and damaged files.

All use a seeded `random.Random`, and none a clock. The files are made in `realistic.py`, `adverse.py` and
`damage.py`.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import NamedTuple

from benchmarks.adverse import AdverseFile
from benchmarks.damage import damaged
from benchmarks.realistic import all_series

__all__ = ["Corpus", "damaged", "write_adverse", "write_realistic"]

WRITTEN = 1_700_000_000  # modification time of every file, so that the inventory of a corpus is always the same, too
_FULL = 5_000  # files of a corpus with series of realistic length; smaller corpora have as many, but shorter series


class Corpus(NamedTuple):
    """The numbers of a corpus."""

    files: int
    series: int
    size: int  # bytes


def write_realistic(folder: Path, files: int = _FULL, seed: int = 1) -> Corpus:
    """Write `files` files of realistic series below `folder`, as primary/sub-*/sam-*/*."""
    rng = random.Random(seed)
    noise = rng.randbytes(1 << 17)
    written, size = 0, 0
    for series, one in enumerate(all_series(rng, noise, files / _FULL), 1):
        for name, content in one.files(min(one.length, files - written)):
            size += _write(folder / "primary" / name, content)
            written += 1
        if written == files:
            return Corpus(written, series, size)
    raise AssertionError("studies repeat for ever")


def _write(path: Path, content: bytes) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (WRITTEN, WRITTEN))
    return len(content)


def write_adverse(folder: Path, files: int = _FULL, seed: int = 1) -> Corpus:
    """Write `files` valid files below `folder` that have little in common; the series of a folder are mixed."""
    rng = random.Random(seed)
    noise = rng.randbytes(1 << 16)
    series = [(f"1.2.3.{n // 3}", f"1.2.3.{n // 3}.{rng.randrange(10**6)}") for n in range(max(12, files // 80))]
    names, size = set[str](), 0
    for number in range(files):
        uids = series[number] if number < len(series) else rng.choice(series)
        while (name := f"{rng.randrange(16**8):08x}") in names:
            pass
        names.add(name)
        place = f"sub-{int(uids[0].rsplit('.', 1)[1]) % max(2, files // 250) + 1}/sam-{1 + number % 2}"
        suffix = rng.choice((".dcm", ".dcm", ".IMA", ""))
        content = AdverseFile(rng, noise).content(*uids, f"{uids[1]}.{number}")
        size += _write(folder / "primary" / place / (name + suffix), content)
    return Corpus(files, len(series), size)
