"""Large private headers as one vendor of MR scanners writes them before the pixel data.

Little endian, "SV10": a number of tags, each 84 bytes and its items. Their contents are made up.
"""

from __future__ import annotations

import random
import struct
from functools import cache

_CONSTANT = tuple(f"ParameterOfTheImage{number:02}" for number in range(70))


def image_header(index: int, rng: random.Random) -> bytes:
    """About 12 KB, in which the tags of position and time differ between slices, also in length."""
    place = -112.5 + index * 1.25
    numbers = {
        "SliceLocation": (f"{place:.8f}",),
        "ImagePositionPatient": (f"{place * 0.016:.8f}", f"{-place * 0.03:.8f}", f"{place:.8f}"),
        "TimeAfterStart": (f"{index * 1.75:.8f}",),
        "ICE_Dims": (f"X_1_1_1_1_1_{index + 1}_1_1_1_{index + 1}_277",),
        "Actual3DImaPartNumber": (str(index),) if index % 4 else (),
        "MosaicRefAcqTimes": tuple(f"{rng.uniform(0, 2000):.4f}" for _ in range(20)),
    }
    parts = [b"SV10\4\3\2\1", struct.pack("<LL", len(_CONSTANT) + len(numbers), 77), _constant()]
    return b"".join([*parts, *(_tag(name, values) for name, values in numbers.items())])


@cache
def _constant() -> bytes:
    return b"".join(_tag(name, (name[-2:], "0.00000000", "ORIGINAL")) for name in _CONSTANT)


def _tag(name: str, values: tuple[str, ...]) -> bytes:
    parts = [struct.pack("<64sl4slll", name.encode(), len(values), b"FD\0\0", 4, max(6, len(values)), 77)]
    for value in values:
        content = value.encode() + b"\0"
        parts += [
            struct.pack("<4l", len(content), len(content), 77, len(content)),
            content,
            b"\0" * (-len(content) % 4),
        ]
    return b"".join(parts)


def protocol(rng: random.Random) -> bytes:
    """The protocol of a series as text: 45 to 90 KB."""
    lines = (
        f"sSliceArray.asSlice[{n}].dThickness\t=\t{rng.uniform(0, 9):.6f}" for n in range(rng.randrange(1000, 1900))
    )
    return b"SV10\4\3\2\1" + "\n".join(["### ASCCONV BEGIN ###", *lines, "### ASCCONV END ###"]).encode()
