"""Resource ids: the same thing has the same id in every run, on every machine.

An id is a UUIDv5 (RFC 9562) of (site, resource type, key). `site` is a setting, so that two sites that load the same
public dataset into one server do not write over each other.
"""

from __future__ import annotations

import uuid
from functools import cache

import orjson


def resource_id(site: str, resource_type: str, *key: str) -> str:
    """The id of the resource of `resource_type` with this `key` (its parts in order), as 36 characters."""
    # JSON keeps ("a", "b|c") and ("a|b", "c") apart, which a plain join would not
    name = orjson.dumps([resource_type, *key]).decode()
    return str(uuid.uuid5(_namespace(site), name))


@cache
def _namespace(site: str) -> uuid.UUID:
    return uuid.uuid5(uuid.NAMESPACE_URL, site)
