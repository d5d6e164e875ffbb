"""Bundles (FHIR R4, 2.36): the transaction that is sent, and its answer, pages of a search, and histories.

Not here: how pages follow each other (`paging`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from dicom_etl.fhir_client.answers import (
    Received,
    check_status,
    has_error,
    is_operation_outcome,
    make_result,
    parse_object,
)
from dicom_etl.fhir_client.resources import (
    Location,
    ServerResource,
    WriteRequest,
    WriteResult,
    get_text,
    is_etag,
    parse_location,
)

# Bundle.entry.response.status begins with the number (FHIR R4, 2.36.4); some servers write the whole status line
_STATUS = re.compile(r"\s*(?:HTTP/\d(?:\.\d)?\s+)?(\d{3})(?!\d)")


# -- transactions -----------------------------------------------------------------------------------------------------


def make_transaction(requests: Sequence[WriteRequest]) -> bytes:
    """The JSON of a transaction (FHIR R4, 3.1.0.11.2) of some writes, whose bodies are taken as they are.

    Raises:
        ValueError: a resource occurs twice, which the specification forbids.
    """
    paths = [request.path for request in requests]
    if len(set(paths)) < len(paths):
        raise ValueError("a resource occurs twice in a transaction")
    entries = [{"resource": orjson.Fragment(request.body), "request": _entry_request(request)} for request in requests]
    return orjson.dumps({"resourceType": "Bundle", "type": "transaction", "entry": entries})


def _entry_request(request: WriteRequest) -> dict[str, str]:
    entry_request = {"method": "PUT", "url": request.path}
    return entry_request | {"ifMatch": request.if_match} if request.if_match else entry_request


def read_transaction_results(received: Received, requests: Sequence[WriteRequest]) -> list[WriteResult]:
    """The result of each write of a transaction, in the order of the requests.

    Entries are matched with requests by what they name, since servers neither keep the order nor name everything.

    Raises:
        FhirError: the answer is a failure, an entry is one, or the entries do not fit the requests one to one.
    """
    check_status(received, 200)
    entries = _read_entries(received, parse_object(received, "a Bundle"), "transaction-response")
    if len(entries) != len(requests):
        raise received.make_invalid(f"has {len(entries)} entries for {len(requests)} requests")
    responses = [_read_response(received, entry) for entry in entries]
    results = [
        _make_entry_result(request, response)
        for request, response in zip(requests, _match(received, requests, responses), strict=True)
    ]
    named = [(request.type, result.server_id) for request, result in zip(requests, results, strict=True)]
    named = [name for name in named if name[1]]
    if len(set(named)) < len(named):
        raise received.make_invalid("names one resource for two requests")
    return results


@dataclass(frozen=True)
class _Response:
    """An entry of a transaction's answer: its status, what it names, and the resource where it was returned."""

    status: int
    entry: dict[str, Any]
    resource: dict[str, Any]

    @property
    def names(self) -> list[Location]:
        """What it names, the surest first."""
        of_resource = Location(get_text(self.resource.get("resourceType")), get_text(self.resource.get("id")))
        location = parse_location(self.entry.get("location"))
        return [name for name in (location, of_resource) if name is not None and name.type and name.id]


def _make_entry_result(request: WriteRequest, response: _Response) -> WriteResult:
    location, etag = response.entry.get("location"), response.entry.get("etag")
    result = make_result(request, response.status, response.resource, location, etag)
    # HAPI writes the bare version, which is not an entity tag, and cannot be sent back as one
    return result if is_etag(result.etag) else replace(result, etag="")


def _read_response(received: Received, entry: dict[str, Any]) -> _Response:
    response, resource = entry.get("response"), entry.get("resource")
    if not isinstance(response, dict):
        raise received.make_invalid("has an entry without a response")
    outcome = response.get("outcome")
    status = _read_status(response.get("status"))
    if status is None:
        raise received.make_invalid("has an entry whose status is not a number", content=outcome)
    if not 200 <= status < 300:
        error = received.make_failure(status, outcome)
        error.may_have_arrived = True  # a server that reports failure and success at once may have written
        raise error
    if has_error(outcome) or has_error(resource):
        raise received.make_invalid("has an entry with an error", content=outcome if has_error(outcome) else resource)
    if not isinstance(resource, dict) or is_operation_outcome(resource):
        resource = {}
    return _Response(status, response, resource)


def _read_status(status: object) -> int | None:
    if isinstance(status, int) and not isinstance(status, bool):
        return status
    match = _STATUS.match(get_text(status))
    return int(match[1]) if match else None


def _match(received: Received, requests: Sequence[WriteRequest], responses: Sequence[_Response]) -> list[_Response]:
    """The response of each request: the one that names it, else the one at its place."""
    index_of = {(request.type, request.id): index for index, request in enumerate(requests) if request.id}
    matched: dict[int, _Response] = {}
    requested_types = {request.type for request in requests}
    unnamed: list[int] = []
    for position, response in enumerate(responses):
        named = [index_of[name.type, name.id] for name in response.names if (name.type, name.id) in index_of]
        if not named:
            unnamed.append(position)
        elif named[0] in matched:
            raise received.make_invalid("names one resource twice")
        else:
            matched[named[0]] = response
    for position in unnamed:
        types = {name.type for name in responses[position].names} & requested_types
        if position in matched or types - {requests[position].type}:
            raise received.make_invalid("does not say which entry belongs to which request")
        matched[position] = responses[position]
    return [matched[index] for index in range(len(requests))]


# -- pages of a search ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SearchPage:
    """A page of a search.

    Attributes:
        resources: the matches of the requested type.
        matches: number of matches on this page.
        total: number of matches on all pages; None where the server does not say.
        next_link: address of the next page as the server names it; empty on the last page.
    """

    resources: list[dict[str, Any]]
    matches: int
    total: int | None
    next_link: str


def read_search_page(received: Received, resource_type: str) -> SearchPage:
    """A page of a search (FHIR R4, 3.1.1).

    Included resources, outcomes without an error, and resources of other types are left out.

    Raises:
        FhirError: the answer is a failure, or not a Bundle of type searchset whose entries can be read.
    """
    check_status(received, 200)
    bundle = parse_object(received, "a Bundle of type searchset")
    matches = []
    for entry in _read_entries(received, bundle, "searchset"):
        resource = _read_entry_resource(received, entry)
        search = entry.get("search")
        mode = search.get("mode") if isinstance(search, dict) else None
        if mode not in ("include", "outcome") and not is_operation_outcome(resource):
            matches.append(resource)
    requested = [resource for resource in matches if resource["resourceType"] == resource_type]
    if not all(isinstance(resource.get("id"), str) for resource in requested):
        raise received.make_invalid("has a resource without an id")
    total = bundle.get("total")
    if "total" in bundle and (not isinstance(total, int) or isinstance(total, bool)):
        raise received.make_invalid("has a total that is not a number")
    return SearchPage(requested, len(matches), total, _read_next_link(received, bundle))


def _read_entry_resource(received: Received, entry: dict[str, Any]) -> dict[str, Any]:
    resource = entry.get("resource")
    if not isinstance(resource, dict) or not isinstance(resource.get("resourceType"), str):
        raise received.make_invalid("has an entry without a resource")
    if has_error(resource):
        raise received.make_invalid("has an entry with an error", content=resource)
    return resource


def _read_next_link(received: Received, bundle: dict[str, Any]) -> str:
    links = bundle.get("link", [])
    if not isinstance(links, list) or not all(isinstance(link, dict) for link in links):
        raise received.make_invalid("has links that are not a list of objects")
    urls = [link.get("url") for link in links if link.get("relation") == "next"]
    if not urls:
        return ""
    if any(url != urls[0] for url in urls) or not get_text(urls[0]):
        raise received.make_invalid("has a link to the next page without an address")
    return get_text(urls[0])


# -- histories --------------------------------------------------------------------------------------------------------


def read_history(received: Received, resource_type: str, resource_id: str) -> list[ServerResource | None]:
    """The versions of a resource (FHIR R4, 3.1.0.10), newest first; None for a deletion.

    Raises:
        FhirError: the answer is a failure, or not a Bundle of type history with versions of that resource.
    """
    check_status(received, 200)
    bundle = parse_object(received, "a Bundle of type history")
    versions: list[ServerResource | None] = []
    for entry in _read_entries(received, bundle, "history"):
        resource, request, response = (entry.get(name) for name in ("resource", "request", "response"))
        if resource is None or (isinstance(request, dict) and request.get("method") == "DELETE"):
            versions.append(None)
            continue
        resource = _read_entry_resource(received, entry)
        if is_operation_outcome(resource):
            continue
        if (resource["resourceType"], resource.get("id")) != (resource_type, resource_id):
            raise received.make_invalid("has versions of another resource")
        etag = get_text(response.get("etag")) if isinstance(response, dict) else ""
        versions.append(ServerResource(resource, etag if is_etag(etag) else ""))
    return versions


def _read_entries(received: Received, bundle: dict[str, Any], bundle_type: str) -> list[dict[str, Any]]:
    """The entries of a Bundle of this type; none where the element is missing."""
    if bundle.get("resourceType") != "Bundle" or bundle.get("type") != bundle_type:
        raise received.make_invalid(f"is not a Bundle of type {bundle_type}", content=bundle)
    entries = bundle.get("entry", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise received.make_invalid("has entries that are not a list of objects")
    return entries
