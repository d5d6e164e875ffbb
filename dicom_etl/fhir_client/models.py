"""Resources on the server, requests to write resources, and their results; ids and versions in answers.

Versions are opaque strings (numbers, UUIDs, or whatever a proxy made of an ETag): compared, never interpreted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

_ETAG = re.compile(r'(?:W/)?"(.*)"', re.DOTALL)
# FHIR R4, 3.1.0.1.3: the location of a version is [base]/[type]/[id]/_history/[vid]
_LOCATION = re.compile(r"(?:^|/)([A-Z][A-Za-z]{0,63})/([A-Za-z0-9.-]{1,64})(?:/_history/([^/?#\s]{1,256}))?/?$")
_MAX_LOCATION_LENGTH = 4_000
_MAX_VERSION_LENGTH = 256


@dataclass(frozen=True)
class ServerResource:
    """A resource on the server.

    Attributes:
        resource: its JSON.
        etag: the header, unchanged; empty if there was none.
    """

    resource: dict[str, Any]
    etag: str = ""

    @property
    def id(self) -> str:
        """The id on the server."""
        return get_text(self.resource.get("id"))

    @property
    def version(self) -> str:
        """`meta.versionId`; empty if the server gives none."""
        return get_version(self.resource)

    @property
    def if_match(self) -> str:
        """The `If-Match` that permits replacing only this version; empty if neither ETag nor version is known."""
        if self.etag:
            return self.etag
        return f'W/"{self.version}"' if self.version and '"' not in self.version else ""


@dataclass(frozen=True)
class WriteRequest:
    """A PUT of one resource.

    Attributes:
        type: resource type.
        id: its id on the server; empty if there is a condition.
        body: its canonical JSON.
        if_match: sent unchanged; empty: any version may be replaced.
        condition: query of a conditional update (FHIR R4, 3.1.0.4.3), percent-encoded.
    """

    type: str
    id: str
    body: bytes
    if_match: str = ""
    condition: str = ""

    def __post_init__(self) -> None:
        if bool(self.id) == bool(self.condition):
            raise ValueError("a write has either an id or a condition")
        if not (self.if_match.isprintable() and self.condition.isprintable()):
            raise ValueError("a header or an address contains a control character")

    @property
    def path(self) -> str:
        """The address relative to the base address."""
        if self.condition:
            return f"{self.type}?{quote(self.condition, safe=KEPT_IN_QUERY)}"
        return f"{self.type}/{quote(self.id, safe='')}"


@dataclass(frozen=True)
class WriteResult:
    """The result of a successful PUT.

    Attributes:
        status: 201 if the resource was created, otherwise 200.
        server_id: its id; empty if the answer to a conditional update does not contain it.
        version: opaque; empty if the server gives none.
        etag: unchanged; empty if there was none.
        attempts: number of times the request was sent.
    """

    status: int
    server_id: str
    version: str
    etag: str
    attempts: int = 1


@dataclass(frozen=True)
class Location:
    """Type, id and version in the location of a resource."""

    type: str
    id: str
    version: str = ""


KEPT_IN_QUERY = "%!$&'()*+,;=:@/?~-._|"  # characters that are not percent-encoded again


def get_text(value: object) -> str:
    """The value if it is a string, otherwise the empty string."""
    return value if isinstance(value, str) else ""


def get_version(resource: Mapping[str, Any]) -> str:
    """`meta.versionId`, also if a server writes it as a number; empty if there is none."""
    meta = resource.get("meta")
    version = meta.get("versionId") if isinstance(meta, dict) else None
    text = str(version) if isinstance(version, int) and not isinstance(version, bool) else get_text(version)
    return _check_version(text)


def _check_version(text: str) -> str:
    return text if text.isprintable() and len(text) <= _MAX_VERSION_LENGTH else ""


def parse_location(location: object) -> Location | None:
    """Type, id and version of a `Location` (FHIR R4, 3.1.0.1.3), relative or absolute; None if it has none."""
    text = get_text(location)
    match = _LOCATION.search(text) if len(text) <= _MAX_LOCATION_LENGTH else None
    return Location(match[1], match[2], match[3] or "") if match else None


def is_etag(text: str) -> bool:
    """Whether a text is an entity tag (RFC 9110, 8.8.3) that can be sent in a header."""
    return text.isprintable() and _ETAG.fullmatch(text) is not None


def parse_etag(etag: object) -> str:
    """The text inside the quotes of an ETag (RFC 9110, 8.8.3)."""
    text = get_text(etag).strip()
    match = _ETAG.fullmatch(text)
    return _check_version(match[1] if match else text)
