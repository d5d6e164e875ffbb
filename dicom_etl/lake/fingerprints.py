"""Fingerprints: a digest of all that an output was made from. Equal fingerprint: not made again."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import Any

import orjson


def fingerprint(*parts: Any) -> str:
    """32 hex digits of the parts (anything that JSON holds; the keys of a mapping in any order)."""
    canonical = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    return hashlib.sha256(canonical).hexdigest()[:32]


@cache
def version_of(*files: str) -> str:
    """The digest of data files of the package (`package:file`), so that a changed table remakes what it made."""
    digest = hashlib.sha256()
    for name in files:
        package, file = name.split(":")
        digest.update(resources.files(package).joinpath(file).read_bytes())
    return digest.hexdigest()[:16]
