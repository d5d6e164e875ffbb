"""Tag profiles: which elements a header has, and which of them are filled.

A tag profile is the list of (tag, creator, status) of a top-level data set up to the pixel data, without group lengths
and file meta information. Its id is a hash of the list, so that workers need not agree on numbers; most instances of a
series have the same one.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

EMPTY, FILLED = 1, 2
END = 0x7FE00000  # PS3.5 8: pixel data and all that follows are not part of the header
_CODE_BYTES = 8

Tags = TypeVar("Tags", int, np.ndarray)


class Presence(NamedTuple):
    """An element of a header: its tag, the creator of a private one, and its status (EMPTY or FILLED)."""

    tag: int
    creator: str | None
    status: int


def is_private_creator(tag: int) -> bool:
    """Whether a tag is that of a private creator: (gggg,0010) to (gggg,00FF) with gggg odd (PS3.5 7.8.1)."""
    return bool(tag & 0x10000) and 0x10 <= tag & 0xFFFF <= 0xFF


def creator_tag(tags: Tags) -> Tags:
    """The tag of the private creator that reserves the block of a private element (PS3.5 7.8.1), or of many."""
    return tags >> 16 << 16 | (tags & 0xFFFF) >> 8


def element_code(tag: int, status: int) -> int:
    """An element of a tag profile as a number; that of an empty element is one less than that of a filled one."""
    return tag << 2 | status


def pack_codes(codes: list[int]) -> bytes:
    """The codes of a tag profile, in the order of the tags, as bytes."""
    packed = array("Q", codes)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


@dataclass(unsafe_hash=True)  # frozen ones take three times as long to create, and every file may have its own
class TagProfile:
    """A tag profile in the form in which headers are read."""

    codes: bytes  # packed codes of its elements (`element_code`, `pack_codes`)
    creators: tuple[tuple[int, str], ...] = ()  # tag and value of the private creators, sorted (PS3.5 7.8.1)

    _id: int | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def id(self) -> int:
        """The 64-bit id (signed, as Spark and Java read it)."""
        if self._id is None:  # `cached_property` takes a lock, which takes longer than the hash
            names = "\0".join([name for _, name in self.creators]).encode("utf-8", "surrogateescape")
            digest = hashlib.blake2b(self.codes + names, digest_size=8)
            self._id = int.from_bytes(digest.digest(), "big", signed=True)
        return self._id

    def is_filled(self, index: int) -> bool:
        """Whether the element with this index in the tag profile is filled."""
        return self.codes[index * _CODE_BYTES] & 3 == FILLED

    def with_toggled(self, indices: Iterable[int]) -> TagProfile:
        """The tag profile in which the elements with these indices are filled instead of empty, or vice versa."""
        codes = bytearray(self.codes)
        for index in indices:
            codes[index * _CODE_BYTES] ^= EMPTY ^ FILLED
        return TagProfile(bytes(codes), self.creators)

    def tags(self) -> list[int]:
        """The tags of its elements."""
        tags: list[int] = (np.frombuffer(self.codes, "<u8") >> np.uint64(2)).tolist()
        return tags

    def presences(self) -> tuple[Presence, ...]:
        """Its elements."""
        creators = dict(self.creators)
        codes = [int(code) for code in np.frombuffer(self.codes, "<u8")]
        return tuple(Presence(code >> 2, creators.get(creator_tag(code >> 2)), code & 3) for code in codes)


def tag_profile_columns(tag_profiles: Iterable[TagProfile]) -> dict[str, pa.Array]:
    """The columns `tag_profile`, `tag`, `creator` and `status` with a row for each element, in order."""
    profiles = sorted(tag_profiles, key=attrgetter("id"))
    lengths = [len(profile.codes) // _CODE_BYTES for profile in profiles]
    codes = np.frombuffer(b"".join([profile.codes for profile in profiles]), "<u8")
    numbers = np.repeat(np.arange(len(profiles)), lengths)  # of the profile of each row
    tags = (codes >> np.uint64(2)).astype(np.int64)
    return {
        "tag_profile": pa.array(np.array([profile.id for profile in profiles], np.int64)[numbers]),
        "tag": _tag_texts(tags),
        "creator": _creator_column(profiles, numbers, tags),
        "status": pa.array((codes & np.uint64(3)).astype(np.int8)),
    }


def _tag_texts(tags: np.ndarray) -> pa.Array:
    """`tag_text` of all tags at once."""
    digits = tags.astype(">u4").tobytes().hex().upper().encode()
    ends = 8 * np.arange(len(tags) + 1, dtype=np.int32)
    return pa.StringArray.from_buffers(len(tags), pa.py_buffer(ends), pa.py_buffer(digits))


def _creator_column(profiles: list[TagProfile], numbers: np.ndarray, tags: np.ndarray) -> pa.Array:
    """The creator of each element, null if it has none; `numbers` are those of the profiles of the elements."""
    creators = [(number << 32 | tag, name) for number, profile in enumerate(profiles) for tag, name in profile.creators]
    if not creators:
        return pa.nulls(len(tags), pa.string())
    keys = np.array([key for key, _ in creators], np.int64)  # sorted, since profiles and their creators are
    private = np.flatnonzero(tags & 0x10000)
    wanted = numbers[private] << 32 | creator_tag(tags[private])
    nearest = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    indices = np.full(len(tags), -1)
    indices[private] = np.where(keys[nearest] == wanted, nearest, -1)
    names = pa.array([name for _, name in creators], pa.string())
    return names.take(pa.array(indices, mask=indices < 0))


@lru_cache(maxsize=1 << 16)
def tag_text(tag: int) -> str:
    """A tag as it is written in tables: `GGGGEEEE`."""
    return f"{tag:08X}"
