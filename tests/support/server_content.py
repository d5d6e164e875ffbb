"""What a FHIR server holds, asked without the client that is tested."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

import orjson

Resource = dict[str, Any]
# a proxy of the environment must not see requests for 127.0.0.1
_PLAIN = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def get(url: str, path: str) -> Resource:
    """A resource or a search's bundle; `path` is below the base address, or a whole address."""
    where = path if path.startswith("http") else f"{url}/{path}"
    request = urllib.request.Request(where, headers={"Cache-Control": "no-cache"})
    with _PLAIN.open(request, timeout=60) as answer:
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
    """Store a resource under its id, as another client would."""
    _send(f"{url}/{resource['resourceType']}/{resource['id']}", "PUT", resource)


def post(url: str, resource: Resource) -> Resource:
    """What the server answers to a resource (which gets an id of the server's) or a bundle."""
    kind = resource["resourceType"]
    return _send(url if kind == "Bundle" else f"{url}/{kind}", "POST", resource)


def delete(url: str, path: str) -> None:
    """Delete a resource, as another client does."""
    with _PLAIN.open(urllib.request.Request(f"{url}/{path}", method="DELETE"), timeout=60) as answer:
        answer.read()


def _send(where: str, method: str, resource: Resource) -> Resource:
    headers = {"Content-Type": "application/fhir+json", "Prefer": "return=representation"}
    request = urllib.request.Request(where, data=orjson.dumps(resource), method=method, headers=headers)
    with _PLAIN.open(request, timeout=60) as answer:
        return dict(json.load(answer))


def search(url: str, query: str) -> list[Resource]:
    """All matches of a search, page by page."""
    bundle = get(url, query)
    resources = []
    while True:
        resources += [entry["resource"] for entry in bundle.get("entry", [])]
        following = [link["url"] for link in bundle.get("link", []) if link["relation"] == "next"]
        if not following:
            return resources
        bundle = get(url, following[0])


def find_by_identifiers(url: str, kind: str, tokens: Iterable[tuple[str, str]]) -> list[Resource]:
    """All resources of a type that have one of some identifiers; an empty value stands for all of a system."""
    wanted = ",".join(f"{_escaped(system)}|{_escaped(value)}" for system, value in tokens)
    return search(url, f"{kind}?identifier={quote(wanted, safe='')}&_count=100")


def _escaped(token: str) -> str:
    return "".join(f"\\{character}" if character in "\\$,|" else character for character in token)


def without_meta(resource: Resource) -> Resource:
    """A resource without what the server adds."""
    return {name: value for name, value in resource.items() if name != "meta"}


def version(resource: Resource) -> str:
    """The server's version of a resource."""
    return str(resource["meta"]["versionId"])
