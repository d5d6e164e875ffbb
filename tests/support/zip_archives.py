"""Zip archives written byte by byte, so that tests can have archives that no honest program writes."""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

STORED, DEFLATED = 0, 8
UTF8, ENCRYPTED = 0x800, 0x1
DOS, UNIX = 0, 3
WRITTEN = 1_700_000_000


def deflated(content: bytes) -> bytes:
    """A raw deflate stream."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


@dataclass
class Member:
    """A member: `content` is the declared content; all other fields are derived from it unless they are given."""

    name: str | bytes
    content: bytes = b"x"
    method: int = STORED
    packed: bytes | None = None
    size: int | None = None
    crc: int | None = None
    flags: int = UTF8
    system: int = UNIX
    mode: int = 0
    offset: int | None = None
    local_extra: bytes = b""

    @property
    def raw_name(self) -> bytes:
        return self.name.encode() if isinstance(self.name, str) else self.name

    @property
    def raw(self) -> bytes:
        if self.packed is not None:
            return self.packed
        return deflated(self.content) if self.method == DEFLATED else self.content

    def facts(self) -> bytes:
        """Version needed, flags, method, time, date, checksum, sizes, length of the name (APPNOTE 4.3.7)."""
        crc = zlib.crc32(self.content) if self.crc is None else self.crc
        size = len(self.content) if self.size is None else self.size
        return struct.pack("<5H3LH", 20, self.flags, self.method, 0, 33, crc, len(self.raw), size, len(self.raw_name))


def zip_bytes(*members: Member | str) -> bytes:
    """An archive of members; a plain name is a member of one byte."""
    body, directory, count = b"", b"", 0
    for member in (m if isinstance(m, Member) else Member(m) for m in members):
        offset = len(body) if member.offset is None else member.offset
        extra = struct.pack("<H", len(member.local_extra))
        body += b"PK\x03\x04" + member.facts() + extra + member.raw_name + member.local_extra + member.raw
        rest = struct.pack("<4H2L", 0, 0, 0, 0, member.mode << 16, offset)
        directory += b"PK\x01\x02" + bytes([20, member.system]) + member.facts() + rest + member.raw_name
        count += 1
    end = struct.pack("<4H2LH", 0, 0, count, count, len(directory), len(body), 0)
    return body + directory + b"PK\x05\x06" + end


def write_zip(path: Path, *members: Member | str) -> Path:
    """Write an archive of members, with a constant modification time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zip_bytes(*members))
    os.utime(path, (WRITTEN, WRITTEN))
    return path
