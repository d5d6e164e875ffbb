"""What a request to the server holds: one resource, or a transaction of several, and what the answer says of each.

Each resource is a PUT under our own id: sent twice it is the same, and no search is needed. On a server that gives ids
itself it is a conditional PUT until the id is known. How requests are sent is the matter of `sending`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import orjson

from dicom_etl.server.errors import ServerError

_LOCATION = re.compile(r"(?:^|/)([A-Z][A-Za-z]+)/([A-Za-z0-9.-]{1,64})(?:/_history/([^/?]+))?/?$")

Key = tuple[str, str]  # type, id


@dataclass(frozen=True)
class Item:
    """A resource as it is sent: canonical JSON and its digest."""

    type: str
    id: str
    body: bytes
    hash: str  # of the resource as we make it, which `body` may have more than
    at: str = ""  # its id on the server where that is another
    if_match: str = ""  # the version that it may replace; empty: any
    condition: str = ""  # the search that finds it on a server that gives ids itself
    is_new: bool = False  # the server was seen not to have it
    overwrote: str = ""  # the version that was written over, since it was not new after all
    adopts: bool = False  # it goes into somebody else's resource

    @property
    def key(self) -> Key:
        """What it is in the ledger."""
        return self.type, self.id

    @property
    def place(self) -> Key:
        """What it is on the server."""
        return self.type, self.at or self.id


I = TypeVar("I", bound=Item)  # noqa: E741


@dataclass(frozen=True)
class Outcome:
    """What became of a resource: `state` is stored, rejected or gave-up; retrying while it is tried again.

    `version` is the server's, empty where it does not say. `place` is its id there where the server gave it.
    """

    state: str
    status: int | None = None
    version: str | None = None
    attempts: int = 0
    error: str | None = None
    place: str | None = None


def canonical(resource: dict[str, Any]) -> bytes:
    """The one way to write a resource, whatever the order of its keys."""
    return orjson.dumps(resource, option=orjson.OPT_SORT_KEYS)


def digest(body: bytes) -> str:
    """SHA-256 of a canonical resource."""
    return hashlib.sha256(body).hexdigest()


class Packer(Generic[I]):
    """Fills bundles up to a number of resources and of bytes; a resource that is too large travels alone."""

    def __init__(self, resources: int, size: int) -> None:
        self._resources, self._size = resources, size
        self._items: list[I] = []
        self._keys: set[Key] = set()
        self._bytes = 0

    def add(self, item: I) -> list[I]:
        """Take an item; returns the bundle that it no longer fitted into, or an empty list."""
        full = (
            len(self._items) >= self._resources
            or self._bytes + len(item.body) > self._size
            or item.key in self._keys  # HAPI-0535: a resource stands in a transaction once
        )
        done = self.rest() if full else []
        self._items.append(item)
        self._keys.add(item.key)
        self._bytes += len(item.body)
        return done

    def rest(self) -> list[I]:
        """The bundle that was begun."""
        items, self._items, self._keys, self._bytes = self._items, [], set(), 0
        return items


def travels_alone(item: Item, size: float) -> bool:
    """Whether an item has more bytes than `size` and goes by a PUT of its own.

    A conditional PUT stays in a transaction: outside of one, HAPI makes two resources of two requests at once.
    """
    return len(item.body) > size and not item.condition


def shipments(items: Sequence[I], size: float) -> list[list[I]]:
    """What goes in one request each: the large items, one by one, and all others together."""
    together = [item for item in items if not travels_alone(item, size)]
    alone = [[item] for item in items if travels_alone(item, size)]
    return [together, *alone] if together else alone


def transaction(items: Sequence[Item]) -> dict[str, Any]:
    """The transaction bundle of some items, their JSON taken as it is."""
    return {
        "resourceType": "Bundle",
        "type": "transaction",
        "entry": [{"resource": orjson.Fragment(item.body), "request": _request(item)} for item in items],
    }


def _request(item: Item) -> dict[str, str]:
    if item.condition:
        return {"method": "PUT", "url": f"{item.type}?{item.condition}"}
    request = {"method": "PUT", "url": "/".join(item.place)}
    return request | {"ifMatch": f'W/"{item.if_match}"'} if item.if_match else request


def outcomes(answer: Any, attempts: int) -> dict[Key, Outcome]:
    """What a transaction's answer says of each resource, by the location that it names and never by position.

    Raises:
        ServerError: the answer is no transaction's, or says that something in it failed.
    """
    entries = answer.get("entry", []) if isinstance(answer, dict) else None
    if entries is None or answer.get("resourceType") != "Bundle":
        raise ServerError(502, "the answer to a transaction is no Bundle")
    found: dict[Key, Outcome] = {}
    for entry in entries:
        response = entry.get("response", {})
        status = int(str(response.get("status", "0"))[:3] or 0)
        if not 200 <= status < 300:
            raise ServerError(status, "the transaction holds a response that is no success")
        if match := _LOCATION.search(response.get("location", "")):
            version = match[3] or _etag(response.get("etag"))
            found[match[1], match[2]] = Outcome("stored", status, version, attempts)
    return found


def _etag(etag: str | None) -> str:
    return (etag or "").removeprefix("W/").strip('"')
