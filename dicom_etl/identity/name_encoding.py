"""Encoding of dataset and unit names as path segments and partition keys.

These names are free text (folder names, study UIDs, other scripts). They are encoded as one path segment that all file
systems, object stores and the Dagster UI accept. Columns of tables contain the original names, so nothing is ever
decoded, and a name that is too long for a file system may end in a hash of itself.
"""

from __future__ import annotations

import hashlib
import re

_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_LAKE_SUFFIX = re.compile(r"\.(parquet|ndjson|lock|json)$", re.IGNORECASE)
_UNCHANGED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.")
_MAX_LENGTH = 180  # bytes; a suffix and the prefix of a temporary name must fit into the usual limit of 255


def encode_name(name: str) -> str:
    """Encode `name` as one path segment; different names have different encodings, and plain names stay as they are.

    Percent-encoded are all characters outside `[A-Za-z0-9_.-]`, a leading dot, the dot before a suffix of the lake's
    files (otherwise the folder of dataset `x.parquet` would be the file of dataset `x`), and the first letter of names
    that Windows reserves.

    Raises:
        ValueError: the name is empty.
    """
    if not name:
        raise ValueError("a dataset or a unit needs a name")
    is_plain = _PLAIN.fullmatch(name) and not _RESERVED.fullmatch(name) and not _LAKE_SUFFIX.search(name)
    encoded = name if is_plain else _percent_encode(name)
    if len(encoded) <= _MAX_LENGTH:
        return encoded
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    return f"{encoded[:140].rsplit('%', 1)[0]}%-{digest}"


def _percent_encode(name: str) -> str:
    raw = name.encode("utf-8", "surrogateescape")
    suffix = _LAKE_SUFFIX.search(name)
    escaped = {len(name[: suffix.start()].encode("utf-8", "surrogateescape"))} if suffix else set()
    if raw[:1] == b"." or _RESERVED.fullmatch(name):
        escaped.add(0)
    return "".join(
        chr(byte) if byte in _UNCHANGED and at not in escaped else f"%{byte:02X}" for at, byte in enumerate(raw)
    )
