"""Names in paths and partition keys.

Dataset and unit names are free text (folder names, study UIDs, other scripts). Here they become one path segment
that every file system, object store and the Dagster UI takes. Columns of tables keep the true names; nothing
needs to be decoded, so that a name too long for a file system may end in a hash of itself.
"""

from __future__ import annotations

import hashlib
import re

_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_OUR_SUFFIX = re.compile(r"\.(parquet|ndjson|lock|json)$", re.IGNORECASE)
_KEPT = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.")
_LONGEST = 180  # bytes; leaves room for a suffix and a temporary name below the usual limit of 255


def encode_name(name: str) -> str:
    """`name` as one path segment or partition key: injective, and itself where it is plain.

    Percent-encoded are all characters outside `[A-Za-z0-9_.-]`, a leading dot, the last dot before a suffix that
    our own files use (else the folder of dataset `x.parquet` would be the file of dataset `x`), and the first
    letter of names that Windows reserves.

    Raises:
        ValueError: for an empty name.
    """
    if not name:
        raise ValueError("a dataset or a unit needs a name")
    plain = _PLAIN.fullmatch(name) and not _RESERVED.fullmatch(name) and not _OUR_SUFFIX.search(name)
    encoded = name if plain else _percent(name)
    if len(encoded) <= _LONGEST:
        return encoded
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return f"{encoded[:140].rsplit('%', 1)[0]}%-{digest}"


def _percent(name: str) -> str:
    raw = name.encode("utf-8", "surrogateescape")
    suffix = _OUR_SUFFIX.search(name)
    odd = {len(name[: suffix.start()].encode("utf-8", "surrogateescape"))} if suffix else set()
    if raw[:1] == b"." or _RESERVED.fullmatch(name):
        odd.add(0)
    return "".join(
        chr(byte) if byte in _KEPT and place not in odd else f"%{byte:02X}" for place, byte in enumerate(raw)
    )
