"""Bundles (FHIR R4, 2.36): transactions and their answers, pages of a search, and histories.

Not here: the order of the pages of a search (`search`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from dicom_etl.fhir_client.answers import (
    ReceivedAnswer,
    check_status,
    has_error,
    is_operation_outcome,
    make_result,
    parse_object,
)
from dicom_etl.fhir_client.models import (
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
    """The JSON of a transaction (FHIR R4, 3.1.0.11.2) with these writes; their bodies are not changed.

    Raises:
        ValueError: a resource occurs twice, which the specification forbids.
    """
    paths = [request.path for request in requests]
    if len(set(paths)) < len(paths):
        raise ValueError("a resource occurs twice in a transaction")
    entries = []
    for request in requests:
        target = {"method": "PUT", "url": request.path}
        if request.if_match:
            target["ifMatch"] = request.if_match
        entries.append({"resource": orjson.Fragment(request.body), "request": target})
    return orjson.dumps({"resourceType": "Bundle", "type": "transaction", "entry": entries})


def read_transaction_results(received: ReceivedAnswer, requests: Sequence[WriteRequest]) -> list[WriteResult]:
    """The result of each write of a transaction, in the order of the requests.

    Entries are matched with requests by type and id, since servers may change the order; an entry without an id is
    matched by its position.

    Raises:
        FhirError: the answer or an entry is a failure, or the entries do not match the requests one to one.
    """
    check_status(received, 200)
    entries = _read_entries(received, parse_object(received, "a Bundle"), "transaction-response")
    if len(entries) != len(requests):
        raise received.make_invalid_error(f"has {len(entries)} entries for {len(requests)} requests")
    responses = [_read_response(received, entry) for entry in entries]
    results = [
        _make_entry_result(request, response)
        for request, response in zip(requests, _match_responses(received, requests, responses), strict=True)
    ]
    pairs = zip(requests, results, strict=True)
    server_ids = [(request.type, result.server_id) for request, result in pairs if result.server_id]
    if len(set(server_ids)) < len(server_ids):
        raise received.make_invalid_error("names one resource for two requests")
    return results


@dataclass(frozen=True)
class _Response:
    """An entry of a transaction's answer: its status, its `response`, and the resource if it was returned."""

    status: int
    entry: dict[str, Any]
    resource: dict[str, Any]

    @property
    def locations(self) -> list[Location]:
        """Type and id of the resource: of the location, then of the resource itself."""
        of_resource = Location(get_text(self.resource.get("resourceType")), get_text(self.resource.get("id")))
        location = parse_location(self.entry.get("location"))
        return [each for each in (location, of_resource) if each is not None and each.type and each.id]


def _make_entry_result(request: WriteRequest, response: _Response) -> WriteResult:
    location, etag = response.entry.get("location"), response.entry.get("etag")
    result = make_result(request, response.status, response.resource, location, etag)
    # HAPI writes the bare version, which is not an entity tag and cannot be used as If-Match
    return result if is_etag(result.etag) else replace(result, etag="")


def _read_response(received: ReceivedAnswer, entry: dict[str, Any]) -> _Response:
    response, resource = entry.get("response"), entry.get("resource")
    if not isinstance(response, dict):
        raise received.make_invalid_error("has an entry without a response")
    outcome = response.get("outcome")
    status = _read_status(response.get("status"))
    if status is None:
        raise received.make_invalid_error("has an entry whose status is not a number", content=outcome)
    if not 200 <= status < 300:
        error = received.make_status_error(status, outcome)
        error.may_have_arrived = True  # the Bundle is a success and its entry a failure: it may be stored
        raise error
    if has_error(outcome) or has_error(resource):
        raise received.make_invalid_error(
            "has an entry with an error", content=outcome if has_error(outcome) else resource
        )
    if not isinstance(resource, dict) or is_operation_outcome(resource):
        resource = {}
    return _Response(status, response, resource)


def _read_status(status: object) -> int | None:
    if isinstance(status, int) and not isinstance(status, bool):
        return status
    match = _STATUS.match(get_text(status))
    return int(match[1]) if match else None


def _match_responses(
    received: ReceivedAnswer, requests: Sequence[WriteRequest], responses: Sequence[_Response]
) -> list[_Response]:
    """The response to each request: the one with its type and id, otherwise the one at its position."""
    index_of = {(request.type, request.id): index for index, request in enumerate(requests) if request.id}
    matched: dict[int, _Response] = {}
    requested_types = {request.type for request in requests}
    without_id: list[int] = []
    for position, response in enumerate(responses):
        keys = [(location.type, location.id) for location in response.locations]
        indexes = [index_of[key] for key in keys if key in index_of]
        if not indexes:
            without_id.append(position)
        elif indexes[0] in matched:
            raise received.make_invalid_error("names one resource twice")
        else:
            matched[indexes[0]] = response
    for position in without_id:
        types = {location.type for location in responses[position].locations} & requested_types
        if position in matched or types - {requests[position].type}:
            raise received.make_invalid_error("does not say which entry belongs to which request")
        matched[position] = responses[position]
    return [matched[index] for index in range(len(requests))]


# -- pages of a search ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SearchPage:
    """A page of a search.

    Attributes:
        resources: the matches of the requested type.
        matches: number of matches on this page.
        total: number of matches on all pages; None if the server does not give it.
        next_link: address of the next page as the server gives it; empty on the last page.
    """

    resources: list[dict[str, Any]]
    matches: int
    total: int | None
    next_link: str


def read_search_page(received: ReceivedAnswer, resource_type: str) -> SearchPage:
    """A page of a search (FHIR R4, 3.1.1).

    Included resources, OperationOutcomes without an error, and resources of other types are omitted.

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
        raise received.make_invalid_error("has a resource without an id")
    total = bundle.get("total")
    if "total" in bundle and (not isinstance(total, int) or isinstance(total, bool)):
        raise received.make_invalid_error("has a total that is not a number")
    return SearchPage(requested, len(matches), total, _read_next_link(received, bundle))


def _read_entry_resource(received: ReceivedAnswer, entry: dict[str, Any]) -> dict[str, Any]:
    resource = entry.get("resource")
    if not isinstance(resource, dict) or not isinstance(resource.get("resourceType"), str):
        raise received.make_invalid_error("has an entry without a resource")
    if has_error(resource):
        raise received.make_invalid_error("has an entry with an error", content=resource)
    return resource


def _read_next_link(received: ReceivedAnswer, bundle: dict[str, Any]) -> str:
    links = bundle.get("link", [])
    if not isinstance(links, list) or not all(isinstance(link, dict) for link in links):
        raise received.make_invalid_error("has links that are not a list of objects")
    urls = [link.get("url") for link in links if link.get("relation") == "next"]
    if not urls:
        return ""
    if any(url != urls[0] for url in urls) or not get_text(urls[0]):
        raise received.make_invalid_error("has a link to the next page without an address")
    return get_text(urls[0])


# -- histories --------------------------------------------------------------------------------------------------------


def read_history(received: ReceivedAnswer, resource_type: str, resource_id: str) -> list[ServerResource | None]:
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
            raise received.make_invalid_error("has versions of another resource")
        etag = get_text(response.get("etag")) if isinstance(response, dict) else ""
        versions.append(ServerResource(resource, etag if is_etag(etag) else ""))
    return versions


def _read_entries(received: ReceivedAnswer, bundle: dict[str, Any], bundle_type: str) -> list[dict[str, Any]]:
    """The entries of a Bundle of this type; an empty list if the element is missing."""
    if bundle.get("resourceType") != "Bundle" or bundle.get("type") != bundle_type:
        raise received.make_invalid_error(f"is not a Bundle of type {bundle_type}", content=bundle)
    entries = bundle.get("entry", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise received.make_invalid_error("has entries that are not a list of objects")
    return entries
