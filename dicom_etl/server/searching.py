"""Searches with all their pages: a server may give fewer entries at a time than it is asked for (FHIR R4, 3.1.1.5)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import urljoin, urlsplit

from dicom_etl.server.client import Client

Request = Callable[[], Awaitable[Any]]
Resource = dict[str, Any]


async def _once(request: Request) -> Any:
    return await request()


async def searched(
    client: Client, kind: str, first: Request, ask: Callable[[Request], Awaitable[Any]] = _once
) -> list[Resource]:
    """The resources of a type that a search finds, on all its pages; what else the server says with them is left out.

    Args:
        client: asks for the further pages.
        kind: the type.
        first: asks for the first page.
        ask: how each page is asked for, with patience say.

    Raises:
        FhirError: a page could not be had.
    """
    found: list[Resource] = []
    seen: set[str] = set()
    request = first
    while True:
        bundle = await ask(request)
        resources = [entry.get("resource", {}) for entry in bundle.get("entry", [])]
        found += [resource for resource in resources if resource.get("resourceType") == kind]
        page = next_page(bundle, kind, client.url)
        if page is None or page in seen:
            return found
        seen.add(page)
        request = partial(client.execute, page, method="get")


def next_page(bundle: Mapping[str, Any], kind: str, base: str) -> str | None:
    """The address of the next page, always below the address that we were given.

    A server behind a proxy may name itself by an address that we cannot reach, and nobody else is to get our token.
    """
    link = next((one["url"] for one in bundle.get("link", []) if one.get("relation") == "next"), None)
    if link is None:
        return None
    parts, root = urlsplit(urljoin(f"{base}/", link)), urlsplit(base).path
    if parts.path == root or parts.path.startswith(f"{root}/"):
        rest = parts.path.removeprefix(root)
    else:
        rest = f"/{kind}" if parts.path.endswith(f"/{kind}") else ""
    return f"{base}{rest}?{parts.query}"
