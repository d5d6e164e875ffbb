"""Tag profiles: which elements a header has, and which of them are filled.

A tag profile is the list of (tag, creator, status) of a top-level data set up to the pixel data, without group lengths
and file meta information. Its id is a hash of the list, so that workers need not agree on numbers; the instances of a
series nearly always share one.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple

import numpy as np
import pyarrow as pa

EMPTY, FILLED = 1, 2
END = 0x7FE00000  # PS3.5 8: pixel data and what follows is no header
_CODE = 8  # bytes


class Presence(NamedTuple):
    """An element that is there: its tag, the creator of a private one, EMPTY or FILLED."""

    tag: int
    creator: str | None
    status: int


def code_of(tag: int, status: int) -> int:
    """An element of a tag profile as a number; of one that is empty it is the number before that of a filled one."""
    return tag << 2 | status


def joined(codes: list[int]) -> bytes:
    """The codes of a tag profile, which lie in the order of the tags, as bytes."""
    found = array("Q", codes)
    if sys.byteorder == "big":
        found.byteswap()
    return found.tobytes()


@dataclass(unsafe_hash=True)  # frozen ones take three times as long to make, and every file may have its own
class TagProfile:
    """A tag profile as it is kept while headers are read."""

    codes: bytes  # those of its elements (`code_of`), `joined`
    creators: tuple[tuple[int, str], ...] = ()  # tag and value of the private creators, sorted (PS3.5 7.8.1)

    _id: int | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def id(self) -> int:
        """The 64-bit id (signed, as Spark and Java read it)."""
        if self._id is None:  # `cached_property` takes a lock, which takes longer than the hash
            self._id = self._hashed()
        return self._id

    def _hashed(self) -> int:
        names = "\0".join([name for _, name in self.creators]).encode("utf-8", "surrogateescape")
        digest = hashlib.blake2b(self.codes + names, digest_size=8)
        return int.from_bytes(digest.digest(), "big", signed=True)

    def is_filled(self, place: int) -> bool:
        """Whether the element at a place of the tag profile is filled."""
        return self.codes[place * _CODE] & 3 == FILLED

    def turned(self, places: Iterable[int]) -> TagProfile:
        """The tag profile in which the elements at these places are filled instead of empty, or the other way round."""
        codes = bytearray(self.codes)
        for place in places:
            codes[place * _CODE] ^= EMPTY ^ FILLED
        return TagProfile(bytes(codes), self.creators)

    def tags(self) -> list[int]:
        """The tags of its elements."""
        found: list[int] = (np.frombuffer(self.codes, "<u8") >> np.uint64(2)).tolist()
        return found

    def presences(self) -> tuple[Presence, ...]:
        """Its elements."""
        creators = dict(self.creators)
        codes = [int(code) for code in np.frombuffer(self.codes, "<u8")]
        return tuple(Presence(code >> 2, creators.get(_creator(code >> 2)), code & 3) for code in codes)


def _creator(tag: int) -> int:
    """The tag of the creator of a private element (PS3.5 7.8.1)."""
    return tag >> 16 << 16 | (tag & 0xFFFF) >> 8


def table_of(tag_profiles: Iterable[TagProfile]) -> dict[str, pa.Array]:
    """The columns `tag_profile`, `tag`, `creator` and `status`, a row for each element, in order."""
    found = sorted(tag_profiles, key=attrgetter("id"))
    lengths = [len(tag_profile.codes) // _CODE for tag_profile in found]
    codes = np.frombuffer(b"".join([tag_profile.codes for tag_profile in found]), "<u8")
    numbers = np.repeat(np.arange(len(found)), lengths)
    tags = (codes >> np.uint64(2)).astype(np.int64)
    return {
        "tag_profile": pa.array(np.array([tag_profile.id for tag_profile in found], np.int64)[numbers]),
        "tag": _texts(tags),
        "creator": _creators(found, numbers, tags),
        "status": pa.array((codes & np.uint64(3)).astype(np.int8)),
    }


def _texts(tags: np.ndarray) -> pa.Array:
    """`tag_text` of all tags at once."""
    digits = tags.astype(">u4").tobytes().hex().upper().encode()
    ends = 8 * np.arange(len(tags) + 1, dtype=np.int32)
    return pa.StringArray.from_buffers(len(tags), pa.py_buffer(ends), pa.py_buffer(digits))


def _creators(tag_profiles: list[TagProfile], numbers: np.ndarray, tags: np.ndarray) -> pa.Array:
    """The creator of each element, null where it has none."""
    known = [(number << 32 | tag, name) for number, one in enumerate(tag_profiles) for tag, name in one.creators]
    if not known:
        return pa.nulls(len(tags), pa.string())
    keys = np.array([key for key, _ in known], np.int64)
    private = np.flatnonzero(tags & 0x10000)
    wanted = numbers[private] << 32 | tags[private] >> 16 << 16 | (tags[private] & 0xFFFF) >> 8
    near = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    places = np.full(len(tags), -1)
    places[private] = np.where(keys[near] == wanted, near, -1)
    names = pa.array([name for _, name in known], pa.string())
    return names.take(pa.array(places, mask=places < 0))


@lru_cache(maxsize=1 << 16)
def tag_text(tag: int) -> str:
    """A tag as the tables write it: `GGGGEEEE`."""
    return f"{tag:08X}"
