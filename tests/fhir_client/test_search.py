"""Searches over several pages: requests at the base address, completeness, and searches without an end."""

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest

from dicom_etl.fhir_client import FhirClient, InvalidAnswerError, NotFoundError, escape_token
from dicom_etl.fhir_client.search import PageRequest, find_next_request
from tests.support.fhir_answers import get_error, json_reply, next_link, operation_outcome, patient, run, searchset
from tests.support.proxy import ReceivedRequest, Reply, run_proxy

IDS = [f"p{number}" for number in range(5)]
BASE = "https://proxy.example/r/fhir"


async def search(client: FhirClient) -> Any:
    return await client.search("Patient", {"_id": ",".join(IDS)})


def give_pages(request: ReceivedRequest) -> Reply:
    """A server with two resources per page, whatever was requested, and an OperationOutcome on each page."""
    query = parse_qs(urlsplit(request.path).query)
    ids = query["_id"][0].split(",") if "_id" in query else query["rest"][0].split(",")
    page = searchset(*map(patient, ids[:2]), total=len(IDS))
    page["entry"].append({"resource": {"resourceType": "OperationOutcome"}, "search": {"mode": "outcome"}})
    return json_reply(page | (next_link(f"/fhir?rest={','.join(ids[2:])}") if ids[2:] else {}))


class TestPages:
    def test_all_pages_are_read(self) -> None:
        with run_proxy(rule=give_pages) as server:
            assert [resource["id"] for resource in run(server.url, search)] == IDS
            assert [request.path for request in server.requests] == [
                "Patient?_id=p0%2Cp1%2Cp2%2Cp3%2Cp4",
                "?rest=p2,p3,p4",
                "?rest=p4",
            ]

    def test_pages_are_yielded_one_by_one(self) -> None:
        async def pages(client: FhirClient) -> list[int]:
            return [len(page) async for page in client.iterate_search("Patient", {"_id": ",".join(IDS)})]

        with run_proxy(rule=give_pages) as server:
            assert run(server.url, pages) == [2, 2, 1]

    def test_resources_of_overlapping_pages_are_returned_once(self) -> None:
        def give_overlapping_pages(request: ReceivedRequest) -> Reply:
            start = int(parse_qs(urlsplit(request.path).query).get("from", ["0"])[0])
            page = searchset(*map(patient, IDS[start : start + 3]), total=5)
            return json_reply(page | (next_link(f"/fhir/Patient?from={start + 2}") if start < 2 else {}))

        with run_proxy(rule=give_overlapping_pages) as server:
            assert [resource["id"] for resource in run(server.url, search)] == IDS

    @pytest.mark.parametrize(
        ("link", "path", "query"),
        [
            (f"{BASE}?_getpages=1&x=%7C", "", "_getpages=1&x=%7C"),
            (f"{BASE}/?_getpages=1", "", "_getpages=1"),
            (f"{BASE}/Patient?page=2", "Patient", "page=2"),
            ("/r/fhir/Patient?page=2", "Patient", "page=2"),
            ("Patient?page=2", "Patient", "page=2"),
            ("?page=2", "", "page=2"),
            ("http://inside:8080/fhir?_getpages=1", "", "_getpages=1"),
            ("http://inside:8080/hapi/fhir/Patient?page=2", "Patient", "page=2"),
            ("http://inside:8080/hapi/fhir/Patient/_search?page=2", "Patient/_search", "page=2"),
            ("http://inside:8080/r/fhir/R4/Patient?page=2", "Patient", "page=2"),
            (f"{BASE}/R4/Patient?page=2", "R4/Patient", "page=2"),
            ("https://attacker.example/r/fhir/Patient?page=2", "Patient", "page=2"),
            ("//attacker.example/x?page=2", "", "page=2"),
            ("Patient?a=b c\u00e9\r\nX: y", "Patient", "a=b%20c%C3%A9X:%20y"),
            ("Patient?a=b#fragment", "Patient", "a=b"),
        ],
    )
    def test_the_next_page_is_requested_at_the_base_address(self, link: str, path: str, query: str) -> None:
        first = PageRequest("Patient", "family=x")
        assert find_next_request(BASE, "Patient", first, link) == PageRequest(path, query)

    @pytest.mark.parametrize("link", ["http://[1", "/r/fhir/..%2f../x", f"{BASE}/%2e%2e/x", "http://h:port\u2100/"])
    def test_a_link_that_is_not_an_address_at_the_server_is_refused(self, link: str) -> None:
        with pytest.raises(InvalidAnswerError, match="not an address at the server"):
            find_next_request(BASE, "Patient", PageRequest("Patient", ""), link)

    def test_pages_of_a_search_in_the_body_are_requested_by_post(self) -> None:
        """If the server builds the link from the parameters, they are sent in the body again."""

        def rule(request: ReceivedRequest) -> Reply:
            pairs = dict(parse_qsl(request.body.decode()))
            start = int(pairs.get("from", 0))
            page = searchset(patient(IDS[start]))
            more = (
                next_link(f"http://inside/fhir/Patient?identifier=urn%3Ax%7COssian&from={start + 1}")
                if start < 2
                else {}
            )
            return json_reply(page | more)

        with run_proxy(rule=rule) as server:
            matches = run(
                server.url, lambda client: client.search("Patient", {"identifier": "urn:x|Ossian"}, in_body=True)
            )
            assert [resource["id"] for resource in matches] == IDS[:3]
            assert [(request.method, request.path) for request in server.requests] == [("POST", "Patient/_search")] * 3
            assert server.requests[2].body == b"identifier=urn%3Ax%7COssian&from=2"

    def test_a_link_with_an_identifier_is_not_requested(self) -> None:
        link = next_link("http://inside/fhir/pages?what=urn%3Ax%7COssian&from=1")
        with run_proxy(rule=lambda _: json_reply(searchset(patient()) | link)) as server:
            error = get_error(
                server.url, lambda client: client.search("Patient", {"identifier": "urn:x|Ossian"}, in_body=True)
            )
            assert len(server.requests) == 1
        assert "contains the values" in str(error)
        assert "Ossian" not in str(error)

    def test_pages_without_search_values_are_requested_by_get(self) -> None:
        def rule(request: ReceivedRequest) -> Reply:
            if request.method == "POST":
                return json_reply(searchset(patient("p0")) | next_link("/fhir?_getpages=1f0c&_getpagesoffset=20"))
            return json_reply(searchset(patient("p1")))

        with run_proxy(rule=rule) as server:
            run(server.url, lambda client: client.search("Patient", {"identifier": "urn:x|Ossian"}, in_body=True))
            assert server.requests[1].path == "?_getpages=1f0c&_getpagesoffset=20"


def give_endless_pages(page: Callable[[int], dict[str, Any]]) -> Callable[[ReceivedRequest], Reply]:
    """A server with a link to a next page on every page."""
    number = 0

    def rule(_: ReceivedRequest) -> Reply:
        nonlocal number
        number += 1
        return json_reply(page(number) | next_link(f"/fhir?page={number}"))

    return rule


class TestEndlessSearches:
    def test_a_page_that_links_to_itself_is_an_error(self) -> None:
        with run_proxy(rule=lambda _: json_reply(searchset(patient()) | next_link("/fhir?again=1"))) as server:
            error = get_error(server.url, search)
            assert len(server.requests) == 2
        assert (type(error), "repeat" in str(error)) == (InvalidAnswerError, True)

    def test_three_repeated_pages_are_an_error(self) -> None:
        with run_proxy(rule=give_endless_pages(lambda _: searchset(patient()))) as server:
            assert "3 pages contained nothing new" in str(get_error(server.url, search))
            assert len(server.requests) == 4

    def test_some_empty_pages_are_accepted(self) -> None:
        def page(number: int) -> dict[str, Any]:
            return searchset(*([patient(f"p{number}")] if number % 3 == 0 else []))

        endless = give_endless_pages(page)

        def rule(request: ReceivedRequest) -> Reply:
            return json_reply(searchset()) if request.path == "?page=9" else endless(request)

        with run_proxy(rule=rule) as server:
            assert [resource["id"] for resource in run(server.url, search)] == ["p3", "p6", "p9"]

    def test_the_number_of_pages_is_limited(self) -> None:
        with run_proxy(rule=give_endless_pages(lambda number: searchset(patient(str(number))))) as server:
            error = get_error(server.url, lambda client: client.search("Patient", {}, max_pages=7))
            assert len(server.requests) == 7
        assert "does not end within 7 pages" in str(error)

    def test_fewer_resources_than_the_total_are_an_error(self) -> None:
        def rule(request: ReceivedRequest) -> Reply:
            return json_reply(searchset(patient("p9"), total=3) if "page" in request.path else first)

        first = searchset(patient("p1"), total=3) | next_link("/fhir?page=2")
        with run_proxy(rule=rule) as server:
            assert "found 3 resources, but its pages contained 2" in str(get_error(server.url, search))


def lose_second_page(times: int, status: int = 410) -> Callable[[ReceivedRequest], Reply]:
    """A server that answers so many requests for the second page with an error."""
    remaining = [times]

    def rule(request: ReceivedRequest) -> Reply:
        if "page" not in request.path:
            return json_reply(searchset(patient("p0"), total=2) | next_link("/fhir?page=2"))
        if remaining[0]:
            remaining[0] -= 1
            return json_reply(operation_outcome("processing", "HAPI-1163: Search ID does not exist"), status)
        return json_reply(searchset(patient("p1"), total=2))

    return rule


class TestExpiredPages:
    @pytest.mark.parametrize("status", [404, 410])
    def test_a_search_is_restarted_once_when_a_page_has_expired(self, status: int) -> None:
        with run_proxy(rule=lose_second_page(1, status)) as server:
            assert [resource["id"] for resource in run(server.url, search)] == ["p0", "p1"]
            assert len(server.requests) == 4

    def test_pages_that_expire_again_are_an_error(self) -> None:
        with run_proxy(rule=lose_second_page(9)) as server:
            error = get_error(server.url, search)
            assert len(server.requests) == 4
        assert type(error) is InvalidAnswerError
        assert str(error).startswith(
            "HTTP 410: a page of the search had expired, also after the search was restarted; run"
        )

    def test_a_missing_first_page_is_an_error(self) -> None:
        with run_proxy(rule=lambda _: json_reply(operation_outcome("not-found", "no such type"), 404)) as server:
            assert type(get_error(server.url, search)) is NotFoundError
            assert len(server.requests) == 1

    @pytest.mark.parametrize(
        ("text", "escaped"), [("A|B", "A\\|B"), ("A,B$C\\", "A\\,B\\$C\\\\"), ("A B%7C", "A B%7C")]
    )
    def test_a_token_is_escaped(self, text: str, escaped: str) -> None:
        assert escape_token(text) == escaped
