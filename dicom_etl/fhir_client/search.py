"""Searches over several pages: requests for the next page, and detection of searches that do not end or are incomplete.

The specification is FHIR R4, 3.1.1. Not here: the content of a page (`bundles`), and sending requests (`client`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urljoin, urlsplit

from dicom_etl.fhir_client.bundles import SearchPage
from dicom_etl.fhir_client.errors import InvalidAnswerError
from dicom_etl.fhir_client.models import KEPT_IN_QUERY

_MAX_REPEATED_PAGES = 3
_MIN_VALUE_LENGTH = 4  # a shorter value may be part of any address


@dataclass(frozen=True)
class PageRequest:
    """The request for a page: path relative to the base address, and query; `in_body`: query as the form of a POST."""

    path: str
    query: str
    in_body: bool = False


@dataclass
class SearchProgress:
    """State of a search over its pages, to detect a search that does not end or is not complete.

    Attributes:
        max_pages: largest number of pages.
    """

    max_pages: int
    _pages: int = 0
    _matches: int = 0
    _total: int | None = None
    _repeated_pages: int = 0
    _seen: set[tuple[str, str]] = field(default_factory=set)
    _requested: set[PageRequest] = field(default_factory=set)

    def add_request(self, request: PageRequest) -> None:
        """Record the request for the next page.

        Raises:
            InvalidAnswerError: that page was requested before, or there are too many.
        """
        if request in self._requested:
            raise InvalidAnswerError("the pages of the search repeat: the link to the next page is to an earlier one")
        if self._pages >= self.max_pages:
            raise InvalidAnswerError(f"the search does not end within {self.max_pages:,} pages")
        self._requested.add(request)
        self._pages += 1

    def add_page(self, page: SearchPage) -> list[dict[str, Any]]:
        """The resources of a page that were on no earlier page.

        Raises:
            InvalidAnswerError: the last pages contained nothing new.
        """
        new = []
        for resource in page.resources:
            key = (resource["resourceType"], resource["id"])
            if key not in self._seen:
                self._seen.add(key)
                new.append(resource)
        # the total also counts matches of other types
        self._matches += len(new) + page.matches - len(page.resources)
        self._total = page.total if page.total is not None else self._total
        self._repeated_pages = 0 if new else self._repeated_pages + 1
        if self._repeated_pages >= _MAX_REPEATED_PAGES and page.next_link:
            raise InvalidAnswerError(f"the search does not end: {self._repeated_pages} pages contained nothing new")
        return new

    def finish(self) -> None:
        """Check that the pages contained as many matches as the server counted.

        Raises:
            InvalidAnswerError: they contained fewer.
        """
        if self._total is not None and self._total > self._matches:
            raise InvalidAnswerError(
                f"the search found {self._total} resources, but its pages contained {self._matches}"
            )


def find_next_request(base_url: str, resource_type: str, first: PageRequest, link: str) -> PageRequest:
    """The request for the next page, always at the base address of the client.

    A server behind a proxy may use an address that the client cannot reach, and no other server may receive the token.

    Args:
        base_url: base address of the client.
        resource_type: type to search for.
        first: request for the first page; if its query was in the body, its values must not be in an address.
        link: link to the next page as the server gave it.

    Raises:
        InvalidAnswerError: the link is not an address, or contains values that must not be in an address.
    """
    address = _parse_link(base_url, link)
    if address is None:
        raise InvalidAnswerError("the link to the next page of the search is not an address at the server")
    path, query, is_same_host = address
    root = urlsplit(base_url).path
    searches = [name for name in (resource_type, f"{resource_type}/_search") if path.endswith(f"/{name}")]
    if searches and not is_same_host:  # its base path may extend that of the client: /fhir and /fhir/R4
        path = searches[0]
    elif path == root or path.startswith(f"{root}/"):
        path = path[len(root) :].strip("/")
    else:
        path = searches[0] if searches else ""
    if first.in_body and path in (resource_type, f"{resource_type}/_search"):
        return PageRequest(f"{resource_type}/_search", query, in_body=True)
    if first.in_body and _contains_values(path + "?" + query, first.query):
        raise InvalidAnswerError("the link to the next page of the search contains the values that were searched for")
    return PageRequest(path, query)


def _parse_link(base_url: str, link: str) -> tuple[str, str, bool] | None:
    """Path and query of a link, percent-encoded, and whether its host is that of the base address.

    None if it is not an address, or has `..` in its path.
    """
    try:
        parts = urlsplit(urljoin(f"{base_url}/", link))
        path, query = quote(parts.path, safe=KEPT_IN_QUERY), quote(parts.query, safe=KEPT_IN_QUERY)
    except ValueError:  # also UnicodeError
        return None
    is_same_host = parts.netloc.lower() == urlsplit(base_url).netloc.lower()
    return None if ".." in unquote(path).split("/") else (path, query, is_same_host)


def _contains_values(address: str, query: str) -> bool:
    values = [value for name, value in parse_qsl(query) if not name.startswith("_")]
    plain = unquote(address.replace("+", " "))
    parts = [part for value in values for part in value.split(",")]
    return any(part in plain for part in parts if len(part) >= _MIN_VALUE_LENGTH)


def escape_token(text: str) -> str:
    """Escape a part of a search token (FHIR R4, 3.1.1.4.1.1); percent-encoding is applied afterwards."""
    for character in "\\$,|":
        text = text.replace(character, f"\\{character}")
    return text
