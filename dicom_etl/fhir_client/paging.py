"""Pages of a search: how they follow each other, and when that is not a search any more (FHIR R4, 3.1.1.5).

Not here: what a page contains (`bundles`), and the requests (`client`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urljoin, urlsplit

from dicom_etl.fhir_client.bundles import SearchPage
from dicom_etl.fhir_client.errors import InvalidAnswerError
from dicom_etl.fhir_client.resources import KEPT_IN_QUERY

_PAGES_WITHOUT_NEWS = 3
_SHORTEST_VALUE = 4  # characters; a shorter one may be part of anything


@dataclass(frozen=True)
class PageRequest:
    """The request for a page: its path below the base address, and its query; `in_body`: as the form of a POST."""

    path: str
    query: str
    in_body: bool = False


@dataclass
class SearchProgress:
    """What the pages of one search gave so far, to notice one that does not end or is not complete.

    Attributes:
        max_pages: largest number of pages.
    """

    max_pages: int
    _pages: int = 0
    _matches: int = 0
    _total: int | None = None
    _without_news: int = 0
    _seen: set[tuple[str, str]] = field(default_factory=set)
    _requested: set[PageRequest] = field(default_factory=set)

    def add_request(self, request: PageRequest) -> None:
        """Note the request for the next page.

        Raises:
            InvalidAnswerError: that page was requested before, or there are too many.
        """
        if request in self._requested:
            raise InvalidAnswerError("the pages of the search repeat: a page names an earlier one as the next")
        if self._pages >= self.max_pages:
            raise InvalidAnswerError(f"the search does not end within {self.max_pages:,} pages")
        self._requested.add(request)
        self._pages += 1

    def add_page(self, page: SearchPage) -> list[dict[str, Any]]:
        """The resources of a page that were on no earlier page.

        Raises:
            InvalidAnswerError: the last pages gave nothing new.
        """
        new = []
        for resource in page.resources:
            key = (resource["resourceType"], resource["id"])
            if key not in self._seen:
                self._seen.add(key)
                new.append(resource)
        # matches of other types are not resources that were searched for, but the total counts them
        self._matches += len(new) + page.matches - len(page.resources)
        self._total = page.total if page.total is not None else self._total
        self._without_news = 0 if new else self._without_news + 1
        if self._without_news >= _PAGES_WITHOUT_NEWS and page.next_link:
            raise InvalidAnswerError(f"the search does not end: {self._without_news} pages gave nothing new")
        return new

    def finish(self) -> None:
        """Check that the pages gave all matches that the server counted.

        Raises:
            InvalidAnswerError: they gave fewer.
        """
        if self._total is not None and self._total > self._matches:
            raise InvalidAnswerError(f"the search found {self._total} resources, but its pages gave {self._matches}")


def find_next_request(base_url: str, resource_type: str, first: PageRequest, link: str) -> PageRequest:
    """The request for the page that a link names, always below the address that we were given.

    A server behind a proxy may name itself by an address that we cannot reach, and no other server may get our token.

    Args:
        base_url: our address of the server.
        resource_type: type that is searched for.
        first: request for the first page. If that had its query in the body, no value of it may be in an address.
        link: what the server names.

    Raises:
        InvalidAnswerError: the link is not an address, or repeats what must not be in an address.
    """
    address = _parse_link(base_url, link)
    if address is None:
        raise InvalidAnswerError("the link to the next page of the search is not an address below the server's")
    path, query, is_ours = address
    root = urlsplit(base_url).path
    searches = [name for name in (resource_type, f"{resource_type}/_search") if path.endswith(f"/{name}")]
    if searches and not is_ours:  # its base may begin as ours does, and go on: /fhir and /fhir/R4
        path = searches[0]
    elif path == root or path.startswith(f"{root}/"):
        path = path[len(root) :].strip("/")
    else:
        path = searches[0] if searches else ""
    if first.in_body and path in (resource_type, f"{resource_type}/_search"):
        return PageRequest(f"{resource_type}/_search", query, in_body=True)
    if first.in_body and _contains_values(path + "?" + query, first.query):
        raise InvalidAnswerError("the link to the next page of the search repeats the values that were searched for")
    return PageRequest(path, query)


def _parse_link(base_url: str, link: str) -> tuple[str, str, bool] | None:
    """Path and query of a link, percent-encoded, and whether it names the server as we do.

    None where it is not an address, or has `..` in its path.
    """
    try:
        parts = urlsplit(urljoin(f"{base_url}/", link))
        path, query = quote(parts.path, safe=KEPT_IN_QUERY), quote(parts.query, safe=KEPT_IN_QUERY)
    except ValueError:  # also UnicodeError
        return None
    is_ours = parts.netloc.lower() == urlsplit(base_url).netloc.lower()
    return None if ".." in unquote(path).split("/") else (path, query, is_ours)


def _contains_values(address: str, query: str) -> bool:
    values = [value for name, value in parse_qsl(query) if not name.startswith("_")]
    plain = unquote(address.replace("+", " "))
    parts = [part for value in values for part in value.split(",")]
    return any(part in plain for part in parts if len(part) >= _SHORTEST_VALUE)


def escape_token(text: str) -> str:
    """A part of a token in a search (FHIR R4, 3.1.1.4.1.1); percent-encoding comes on top of that."""
    for character in "\\$,|":
        text = text.replace(character, f"\\{character}")
    return text
