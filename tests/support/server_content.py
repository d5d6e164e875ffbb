"""The content of a FHIR server, read and written without the client under test."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import orjson

Resource = dict[str, Any]
# does not use a proxy of the environment
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def get(url: str, path: str) -> Resource:
    """A resource or the Bundle of a search; `path` is relative to the base address, or a full address."""
    address = path if path.startswith("http") else f"{url}/{path}"
    request = urllib.request.Request(address, headers={"Cache-Control": "no-cache"})
    with _OPENER.open(request, timeout=60) as answer:
        return dict(json.load(answer))


def status(url: str, path: str) -> int:
    """The status of a GET."""
    try:
        get(url, path)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    return 200


def put(url: str, resource: Resource) -> None:
    """Store a resource under its id, as another client."""
    _send(f"{url}/{resource['resourceType']}/{resource['id']}", "PUT", resource)


def post(url: str, resource: Resource) -> Resource:
    """Post a resource, which gets an id of the server, or a Bundle; returns the answer."""
    kind = resource["resourceType"]
    return _send(url if kind == "Bundle" else f"{url}/{kind}", "POST", resource)


def delete(url: str, path: str) -> None:
    """Delete a resource, as another client."""
    with _OPENER.open(urllib.request.Request(f"{url}/{path}", method="DELETE"), timeout=60) as answer:
        answer.read()


def _send(address: str, method: str, resource: Resource) -> Resource:
    headers = {"Content-Type": "application/fhir+json", "Prefer": "return=representation"}
    request = urllib.request.Request(address, data=orjson.dumps(resource), method=method, headers=headers)
    with _OPENER.open(request, timeout=60) as answer:
        return dict(json.load(answer))


def search(url: str, query: str) -> list[Resource]:
    """All matches of a search, from all pages."""
    bundle = get(url, query)
    resources = []
    while True:
        resources += [entry["resource"] for entry in bundle.get("entry", [])]
        next_links = [link["url"] for link in bundle.get("link", []) if link["relation"] == "next"]
        if not next_links:
            return resources
        bundle = get(url, next_links[0])


def find_by_identifiers(url: str, kind: str, tokens: Iterable[tuple[str, str]]) -> list[Resource]:
    """All resources of a type with one of these identifiers; an empty value matches all values of a system."""
    query = ",".join(f"{_escape(system)}|{_escape(value)}" for system, value in tokens)
    return search(url, f"{kind}?identifier={quote(query, safe='')}&_count=100")


def _escape(token: str) -> str:
    return "".join(f"\\{character}" if character in "\\$,|" else character for character in token)


def without_meta(resource: Resource) -> Resource:
    """A resource without `meta`, which the server adds."""
    return {name: value for name, value in resource.items() if name != "meta"}


def version(resource: Resource) -> str:
    """The server's version of a resource."""
    return str(resource["meta"]["versionId"])
