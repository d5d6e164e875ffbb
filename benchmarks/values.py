"""Plausible values of each VR, drawn at random."""

from __future__ import annotations

import random
from collections.abc import Callable

from benchmarks import encoding
from benchmarks.encoding import Value

_WORDS = "NORMAL HEAD FIRST sag_2 No B80s ADULT none 3.2.1 RAS AXIAL auto".split()


def random_value(vr: str, rng: random.Random) -> Value:
    """A plausible value of a VR."""
    if encoding.is_binary(vr):
        number = rng.random() * 900
        return (number,) if vr in {"FL", "FD"} else (int(number),) * (2 if vr == "AT" else 1)
    if vr in {"OB", "OW", "UN"}:
        return rng.randbytes(rng.choice((8, 16, 48, 300)))
    if vr == "DS":
        return f"{rng.uniform(-300, 300):.6g}"
    if vr == "IS":
        return str(rng.randrange(5000))
    return _SHAPES[vr](rng) if vr in _SHAPES else rng.choice(_WORDS)


_SHAPES: dict[str, Callable[[random.Random], str]] = {
    "UI": lambda rng: f"1.2.840.99999.3.{rng.randrange(10**9)}",
    "DA": lambda rng: f"20{rng.randrange(10, 24)}{rng.randrange(1, 13):02}{rng.randrange(1, 29):02}",
    "TM": lambda rng: time_of_day(rng.uniform(0, 86_399)),
    "DT": lambda rng: f"20{rng.randrange(10, 24)}0101{time_of_day(rng.uniform(0, 86_399))}",
    "AS": lambda rng: f"{rng.randrange(100):03}Y",
    "PN": lambda rng: f"{rng.choice(_WORDS)}^{rng.choice(_WORDS)}",
    "CS": lambda rng: rng.choice(_WORDS).upper().replace(".", "_"),
    "LT": lambda rng: " ".join(rng.choices(_WORDS, k=rng.randrange(1, 40))),
    "ST": lambda rng: " ".join(rng.choices(_WORDS, k=rng.randrange(1, 20))),
}


def time_of_day(seconds: float) -> str:
    whole = int(seconds)
    return f"{whole // 3600:02}{whole // 60 % 60:02}{whole % 60:02}.{int(seconds % 1 * 1e6):06}"
