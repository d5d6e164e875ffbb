"""Layouts: which elements a header has, and which of them are filled.

A layout is the list of (tag, creator, status) of a top-level data set up to the pixel data, without group lengths and
file meta information. Its id is a hash of the list, so that workers need not agree on numbers; the instances of a
series nearly always share one.
"""

from __future__ import annotations

import hashlib
import struct
from functools import lru_cache
from typing import NamedTuple

EMPTY, FILLED = 1, 2
END = 0x7FE00000  # PS3.5 8: pixel data and what follows is no header


class Presence(NamedTuple):
    """An element that is there: its tag, the creator of a private one, EMPTY or FILLED."""

    tag: int
    creator: str | None
    status: int


def layout_id(layout: tuple[Presence, ...]) -> int:
    """The 64-bit id of a layout (signed, as Spark and Java read it)."""
    numbers = struct.pack(f"<{len(layout)}Q", *[tag << 2 | status for tag, _, status in layout])
    creators = "\0".join([creator or "" for _, creator, _ in layout]).encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(numbers + creators, digest_size=8)
    return int.from_bytes(digest.digest(), "big", signed=True)


@lru_cache(maxsize=1 << 16)
def tag_text(tag: int) -> str:
    """A tag as the tables write it: `GGGGEEEE`."""
    return f"{tag:08X}"
