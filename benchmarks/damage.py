"""Kinds of damage to files: bits, truncation, forged lengths, nesting, other syntaxes. See `corpora.damaged`."""

from __future__ import annotations

import random
import struct

from benchmarks import encoding


def damaged(rng: random.Random, data: bytes) -> bytes:
    """`data` with one to three kinds of damage; never unchanged, rarely still a valid file."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        data = rng.choice(_DAMAGES)(rng, data)
    return data


def _flipped(rng: random.Random, data: bytes) -> bytes:
    """Bits flipped, mostly in the header."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 5, 40)) if data else 0):
        changed[rng.randrange(min(len(data), rng.choice((200, 4000, len(data)))))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(min(len(data), rng.choice((140, 5000, len(data)))) + 1)]


def _forged_length(rng: random.Random, data: bytes) -> bytes:
    """Another length of an element: small, odd, beyond the file, 4 GB, undefined."""
    at = _element_at(rng, data)
    if at is None:
        return _cut(rng, data)
    length = rng.choice((0, 1, 3, 7, 0xFFFE, 0x7FFFFFFF, 0xFFFFFFF0, 0xFFFFFFFE, 0xFFFFFFFF, rng.randrange(1 << 32)))
    vr = data[at + 4 : at + 6].decode("latin-1")
    if vr in {"OB", "OW", "SQ", "UN", "UT"}:
        return data[: at + 8] + struct.pack("<L", length) + data[at + 12 :]
    if vr.isalpha() and vr.isupper():
        return data[: at + 6] + struct.pack("<H", length & 0xFFFF) + data[at + 8 :]
    return data[: at + 4] + struct.pack("<L", length) + data[at + 8 :]


def _nested(rng: random.Random, data: bytes) -> bytes:
    """A sequence in a sequence, 200 deep, where an element begins; in some the delimiters are missing."""
    at = _element_at(rng, data)
    at = len(data) if at is None else at
    implicit = encoding.IMPLICIT.uid.encode() + b"\0" in data[:1000]
    syntax = encoding.IMPLICIT if implicit else encoding.EXPLICIT
    opened = encoding.head(0x00081140, "SQ", encoding.UNDEFINED, syntax) + struct.pack(
        "<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    closed = struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    depth = rng.choice((200, 200, 3000))
    return data[:at] + opened * depth + closed * rng.choice((depth, depth, depth - 1, 0)) + data[at:]


def _moved(rng: random.Random, data: bytes) -> bytes:
    """Some bytes removed, repeated, or set to zero."""
    if not data:
        return data
    start = rng.randrange(len(data))
    end = start + rng.choice((1, 2, 8, 100, 5000))
    return data[:start] + rng.choice((b"", data[start:end] * 2, bytes(end - start))) + data[end:]


def _other_syntax(rng: random.Random, data: bytes) -> bytes:
    """Another transfer syntax in the file meta information, of the same padded length if there is one."""
    wanted = rng.choice((encoding.IMPLICIT, encoding.EXPLICIT, encoding.DEFLATED, encoding.BIG_ENDIAN, encoding.RLE))
    at = data.find(b"\x02\0\x10\0UI")
    if at < 0:
        return _flipped(rng, data)
    length = int.from_bytes(data[at + 6 : at + 8], "little")
    return data[: at + 8] + wanted.uid.encode()[:length].ljust(length, b"\0") + data[at + 8 + length :]


def _text_damage(rng: random.Random, data: bytes) -> bytes:
    """Escape sequences and bytes of other character sets in a text element."""
    at = data.find(b"\x10\0\x10\0PN")
    if at < 0:
        return _flipped(rng, data)
    junk = rng.choice(
        (b"\x1b$B;3ED\x1b(B^x", b"\xff\xfe\xfd\xfc", b"\x1b$)C\xb1\xe8", b"\x1b", b"====^^^^", b"\\\\\\\\")
    )
    length = int.from_bytes(data[at + 6 : at + 8], "little")
    return data[: at + 8] + junk[:length].ljust(length) + data[at + 8 + length :]


def _element_at(rng: random.Random, data: bytes) -> int | None:
    """Where an element probably begins: a group that is in headers, and an even group before it."""
    tag = struct.pack(
        "<H", rng.choice((0x0002, 0x0008, 0x0008, 0x0010, 0x0018, 0x0020, 0x0028, 0x0029, 0x0040, 0x7FE0))
    )
    start = data.find(tag, rng.randrange(132, 140 + min(len(data), 6000)))
    return start if 0 <= start <= len(data) - 12 else None


_DAMAGES = (_flipped, _cut, _forged_length, _forged_length, _nested, _moved, _other_syntax, _text_damage)
