"""Searches with all their pages: below our own address, complete, and with an end."""

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest

from dicom_etl.fhir_client import FhirClient, InvalidAnswerError, NotFoundError, escape_token
from dicom_etl.fhir_client.search import PageRequest, find_next_request
from tests.support.fhir_answers import fail, following, json_reply, outcome, patient, run, searchset
from tests.support.proxy import ReceivedRequest, Reply, run_proxy

IDS = [f"p{number}" for number in range(5)]
BASE = "https://proxy.example/r/fhir"


async def search(client: FhirClient) -> Any:
    return await client.search("Patient", {"_id": ",".join(IDS)})


def paging(asked: ReceivedRequest) -> Reply:
    """A server that gives two at a time, whatever it is asked for, and a remark with each page."""
    query = parse_qs(urlsplit(asked.path).query)
    ids = query["_id"][0].split(",") if "_id" in query else query["rest"][0].split(",")
    page = searchset(*map(patient, ids[:2]), total=len(IDS))
    page["entry"].append({"resource": {"resourceType": "OperationOutcome"}, "search": {"mode": "outcome"}})
    return json_reply(page | (following(f"/fhir?rest={','.join(ids[2:])}") if ids[2:] else {}))


def test_a_server_may_give_fewer_at_a_time_than_it_was_asked_for() -> None:
    with run_proxy(rule=paging) as server:
        assert [resource["id"] for resource in run(server.url, search)] == IDS
        assert [asked.path for asked in server.requests] == [
            "Patient?_id=p0%2Cp1%2Cp2%2Cp3%2Cp4",
            "?rest=p2,p3,p4",
            "?rest=p4",
        ]


def test_pages_come_one_by_one() -> None:
    async def pages(client: FhirClient) -> list[int]:
        return [len(page) async for page in client.iterate_search("Patient", {"_id": ",".join(IDS)})]

    with run_proxy(rule=paging) as server:
        assert run(server.url, pages) == [2, 2, 1]


def test_each_resource_is_given_once_though_pages_overlap() -> None:
    def overlapping(asked: ReceivedRequest) -> Reply:
        start = int(parse_qs(urlsplit(asked.path).query).get("from", ["0"])[0])
        page = searchset(*map(patient, IDS[start : start + 3]), total=5)
        return json_reply(page | (following(f"/fhir/Patient?from={start + 2}") if start < 2 else {}))

    with run_proxy(rule=overlapping) as server:
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
def test_the_next_page_is_asked_below_our_own_address(link: str, path: str, query: str) -> None:
    first = PageRequest("Patient", "family=x")
    assert find_next_request(BASE, "Patient", first, link) == PageRequest(path, query)


@pytest.mark.parametrize("link", ["http://[1", "/r/fhir/..%2f../x", f"{BASE}/%2e%2e/x", "http://h:port\u2100/"])
def test_what_is_not_an_address_below_is_refused(link: str) -> None:
    with pytest.raises(InvalidAnswerError, match="not an address at the server"):
        find_next_request(BASE, "Patient", PageRequest("Patient", ""), link)


def test_further_pages_of_a_search_in_the_body_repeat_no_identifier_in_an_address() -> None:
    """A server that builds the next link from the parameters gets them in the body again."""

    def rule(asked: ReceivedRequest) -> Reply:
        pairs = dict(parse_qsl(asked.body.decode()))
        start = int(pairs.get("from", 0))
        page = searchset(patient(IDS[start]))
        more = (
            following(f"http://inside/fhir/Patient?identifier=urn%3Ax%7COssian&from={start + 1}") if start < 2 else {}
        )
        return json_reply(page | more)

    with run_proxy(rule=rule) as server:
        found = run(server.url, lambda client: client.search("Patient", {"identifier": "urn:x|Ossian"}, in_body=True))
        assert [resource["id"] for resource in found] == IDS[:3]
        assert [(asked.method, asked.path) for asked in server.requests] == [("POST", "Patient/_search")] * 3
        assert server.requests[2].body == b"identifier=urn%3Ax%7COssian&from=2"


def test_a_page_that_would_repeat_an_identifier_in_its_address_is_not_asked() -> None:
    link = following("http://inside/fhir/pages?what=urn%3Ax%7COssian&from=1")
    with run_proxy(rule=lambda _: json_reply(searchset(patient()) | link)) as server:
        error = fail(server.url, lambda client: client.search("Patient", {"identifier": "urn:x|Ossian"}, in_body=True))
        assert len(server.requests) == 1
    assert "contains the values" in str(error)
    assert "Ossian" not in str(error)


def test_pages_that_hapi_keeps_are_asked_by_get() -> None:
    def rule(asked: ReceivedRequest) -> Reply:
        if asked.method == "POST":
            return json_reply(searchset(patient("p0")) | following("/fhir?_getpages=1f0c&_getpagesoffset=20"))
        return json_reply(searchset(patient("p1")))

    with run_proxy(rule=rule) as server:
        run(server.url, lambda client: client.search("Patient", {"identifier": "urn:x|Ossian"}, in_body=True))
        assert server.requests[1].path == "?_getpages=1f0c&_getpagesoffset=20"


# -- searches without an end ------------------------------------------------------------------------------------------


def test_a_page_that_names_itself_as_the_next_is_an_error() -> None:
    with run_proxy(rule=lambda _: json_reply(searchset(patient()) | following("/fhir?again=1"))) as server:
        error = fail(server.url, search)
        assert len(server.requests) == 2
    assert (type(error), "repeat" in str(error)) == (InvalidAnswerError, True)


def counting(page: Callable[[int], dict[str, Any]]) -> Callable[[ReceivedRequest], Reply]:
    """A server whose pages never end."""
    number = 0

    def rule(_: ReceivedRequest) -> Reply:
        nonlocal number
        number += 1
        return json_reply(page(number) | following(f"/fhir?page={number}"))

    return rule


def test_three_pages_without_news_are_an_error() -> None:
    with run_proxy(rule=counting(lambda _: searchset(patient()))) as server:
        assert "3 pages contained nothing new" in str(fail(server.url, search))
        assert len(server.requests) == 4


def test_some_empty_pages_are_not() -> None:
    def page(number: int) -> dict[str, Any]:
        return searchset(*([patient(f"p{number}")] if number % 3 == 0 else []))

    endless = counting(page)

    def rule(asked: ReceivedRequest) -> Reply:
        return json_reply(searchset()) if asked.path == "?page=9" else endless(asked)

    with run_proxy(rule=rule) as server:
        assert [resource["id"] for resource in run(server.url, search)] == ["p3", "p6", "p9"]


def test_a_search_has_at_most_so_many_pages() -> None:
    with run_proxy(rule=counting(lambda number: searchset(patient(str(number))))) as server:
        error = fail(server.url, lambda client: client.search("Patient", {}, max_pages=7))
        assert len(server.requests) == 7
    assert "does not end within 7 pages" in str(error)


def test_fewer_resources_than_the_server_counted_are_an_error() -> None:
    def rule(asked: ReceivedRequest) -> Reply:
        return json_reply(searchset(patient("p9"), total=3) if "page" in asked.path else first)

    first = searchset(patient("p1"), total=3) | following("/fhir?page=2")
    with run_proxy(rule=rule) as server:
        assert "found 3 resources, but its pages contained 2" in str(fail(server.url, search))


# -- searches whose pages expire --------------------------------------------------------------------------------------


def expiring(times: int, status: int = 410) -> Callable[[ReceivedRequest], Reply]:
    """A server that has lost the second page so often."""
    left = [times]

    def rule(asked: ReceivedRequest) -> Reply:
        if "page" not in asked.path:
            return json_reply(searchset(patient("p0"), total=2) | following("/fhir?page=2"))
        if left[0]:
            left[0] -= 1
            return json_reply(outcome("processing", "HAPI-1163: Search ID does not exist"), status)
        return json_reply(searchset(patient("p1"), total=2))

    return rule


@pytest.mark.parametrize("status", [404, 410])
def test_a_search_whose_page_has_expired_is_begun_anew_once(status: int) -> None:
    with run_proxy(rule=expiring(1, status)) as server:
        assert [resource["id"] for resource in run(server.url, search)] == ["p0", "p1"]
        assert len(server.requests) == 4


def test_a_search_whose_pages_always_expire_is_an_error() -> None:
    with run_proxy(rule=expiring(9)) as server:
        error = fail(server.url, search)
        assert len(server.requests) == 4
    assert type(error) is InvalidAnswerError
    assert str(error).startswith("HTTP 410: a page of the search had expired, also after the search was restarted; run")


def test_a_first_page_that_is_not_there_is_not_nothing() -> None:
    with run_proxy(rule=lambda _: json_reply(outcome("not-found", "no such type"), 404)) as server:
        assert type(fail(server.url, search)) is NotFoundError
        assert len(server.requests) == 1


@pytest.mark.parametrize(("text", "escaped"), [("A|B", "A\\|B"), ("A,B$C\\", "A\\,B\\$C\\\\"), ("A B%7C", "A B%7C")])
def test_a_token_is_escaped(text: str, escaped: str) -> None:
    assert escape_token(text) == escaped
