"""Forms of the answers of servers and proxies: locations, versions, entity tags, statuses, pages.

HAPI is behind a proxy that changes the form of its answers; its content is read without the proxy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import pytest

from dicom_etl.fhir_client import FhirError
from dicom_etl.lake.tables import Lake
from dicom_etl.stages.upload import UploadSummary, upload
from dicom_etl.stages.verify import verify
from tests.servers.hapi_server import HapiServer
from tests.support.server_content import get, put, status, version, without_meta
from tests.support.upload_lakes import (
    DatasetFactory,
    Study,
    attempts,
    ledger_rows,
    settings_for,
    with_changes,
)
from tests.support.uploads import codes, patient_path, study_path
from tests.upload.support.odd_answers import Ask, Changed, Request, run_changing_proxy, with_json

ONE, TWO = Study("1", "P1"), Study("2", "P2", unit="sub-2", rule="authority")
NOTE = [{"text": "seen by the radiologist"}]
JSON = {"Content-Type": "application/fhir+json"}
Form = Callable[[Request, Changed], Changed]


@contextmanager
def run_hapi_with(hapi: HapiServer, form: Form) -> Iterator[str]:
    """Run HAPI with answers of another form; errors are not changed."""

    async def change(asked: Request, ask: Ask) -> Changed:
        answer = await ask()
        return form(asked, answer) if answer.status < 300 else answer

    with run_changing_proxy(hapi.base_url, change) as url:
        yield url


def load(lake: Lake, url: str, **fhir: Any) -> UploadSummary:
    [done] = upload(["A"], lake, settings_for(url, **({"retry_seconds": 0.5} | fhir)))
    return done


# -- what an answer to a write names ----------------------------------------------------------------------------------


def in_responses(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Form:
    """A form of the responses in a transaction's answer."""

    def form(asked: Request, answer: Changed) -> Changed:
        if asked.kind != "transaction":
            return answer
        bundle = orjson.loads(answer.body)
        bundle["entry"] = [entry | {"response": change(entry["response"])} for entry in bundle["entry"]]
        return with_json(answer, bundle)

    return form


def without(*names: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda response: {name: value for name, value in response.items() if name not in names}


def in_headers(change: Callable[[dict[str, str]], dict[str, str]]) -> Form:
    """A form of the headers of all answers."""
    return lambda _, answer: Changed(answer.status, answer.body, change(answer.headers))


def etag(change: Callable[[str], str]) -> Form:
    """A form of all entity tags."""
    return in_headers(lambda headers: headers | ({"ETag": change(headers["ETag"])} if "ETag" in headers else {}))


def base(url: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda response: response | {"location": url + response["location"]}


def only_outcome(asked: Request, answer: Changed) -> Changed:
    """Entries with nothing but a resource: an OperationOutcome of severity information."""
    if asked.kind != "transaction":
        return answer
    issue = {"severity": "information", "code": "informational"}
    outcome = {"resourceType": "OperationOutcome", "issue": [issue]}
    bundle = orjson.loads(answer.body)
    bundle["entry"] = [
        {"response": {"status": entry["response"]["status"], "outcome": outcome}} for entry in bundle["entry"]
    ]
    return with_json(answer, bundle)


FORMS: dict[str, Form] = {
    "no location": in_responses(without("location")),
    "no location of updates": in_responses(
        lambda response: response if response["status"].startswith("201") else without("location")(response)
    ),
    "no location, no etag": in_responses(without("location", "etag")),
    "location and etag empty": in_responses(lambda response: response | {"location": "", "etag": ""}),
    "location and etag null": in_responses(lambda response: response | {"location": None, "etag": None}),
    "location absolute": in_responses(base("http://inside.example:8080/fhir/")),
    "location of another base": in_responses(base("https://h/tenant/Patient/fhir/R4/")),
    "location without version": in_responses(
        lambda response: without("etag")(response | {"location": response["location"].partition("/_history")[0]})
    ),
    "only outcomes": only_outcome,
    "status line": in_responses(lambda response: response | {"status": f"HTTP/1.1 {response['status']}"}),
    "status a number": in_responses(lambda response: response | {"status": int(response["status"][:3])}),
    "etag strong": etag(lambda tag: tag.removeprefix("W/")),
    "etag missing": in_headers(lambda headers: {name: text for name, text in headers.items() if name != "ETag"}),
    "etag and location missing": in_headers(lambda _: dict(JSON)),
    "Location behind another base": in_headers(
        lambda headers: (
            headers | {"Location": re.sub(r".*/(\w+/[^/]+/_history)", r"/x/\1", headers.get("Location", ""))}
        )
    ),
}


@pytest.mark.parametrize("single_request_bytes", [0, 1_000_000])
@pytest.mark.parametrize("name", FORMS)
def test_a_study_grows_twice_whatever_the_answers_contain(
    lake: Lake, hapi: HapiServer, factory: DatasetFactory, name: str, single_request_bytes: int
) -> None:
    """No version of the lake counts as another client's, and another client's is detected."""
    path = study_path(factory, "A", "1")
    with run_hapi_with(hapi, FORMS[name]) as url:
        for count in (1, 2, 3):
            study = with_changes(ONE, series={str(number): 2 for number in range(count)}, patient={"gender": "female"})
            factory.build(lake, "A", [study, TWO])
            done = load(lake, url, single_request_bytes=single_request_bytes)
            assert done.counts["ImagingStudy"] == {"stored": 1} | ({"unchanged": 1} if count > 1 else {"stored": 2})
            assert without_meta(get(hapi.base_url, path)) == factory.imaging_study("A", study)
            assert version(get(hapi.base_url, path)) == str(count)
            assert codes(lake, "A") == []
            assert attempts(lake) == []
        load(lake, url)
        assert version(get(hapi.base_url, path)) == "3"
        put(hapi.base_url, factory.imaging_study("A", study) | {"note": NOTE})
        factory.build(lake, "A", [ONE, TWO])
        assert load(lake, url).counts["ImagingStudy"]["held"] == 1
        assert codes(lake, "A") == ["changed-on-server"]
        assert get(hapi.base_url, path)["note"] == NOTE


@pytest.mark.parametrize("suffix", ["-gzip", "--gzip", ";gzip"])
def test_an_etag_changed_by_a_proxy_is_not_an_external_change(
    lake: Lake, hapi: HapiServer, factory: DatasetFactory, suffix: str
) -> None:
    """Apache (mod_deflate) and Jetty add a suffix inside the quotes, and remove it from an If-Match."""

    async def change(asked: Request, ask: Ask) -> Changed:
        answer = await ask()
        tag = answer.headers.get("ETag")
        return Changed(answer.status, answer.body, answer.headers | ({"ETag": f'{tag[:-1]}{suffix}"'} if tag else {}))

    path = study_path(factory, "A", "1")
    with run_changing_proxy(hapi.base_url, change, if_match=lambda text: text.replace(suffix, "")) as url:
        for count in (1, 2, 3):
            study = with_changes(ONE, series={str(number): 2 for number in range(count)})
            factory.build(lake, "A", [study])
            assert load(lake, url, single_request_bytes=0).counts["ImagingStudy"] == {"stored": 1}
            assert without_meta(get(hapi.base_url, path)) == factory.imaging_study("A", study)
            assert codes(lake, "A") == []


# -- versions ---------------------------------------------------------------------------------------------------------

VERSIONS: dict[str, Callable[[str], str]] = {
    "UUID": lambda number: f"0e6a1736-dda9-4f73-9ea7-a5174e2c{int(number):04d}",
    "global counter": lambda number: str(9_000_000_000_000_000_000 + 37 * int(number)),
    "date": lambda number: f"2026-01-01T00:00:0{number}.000+00:00",
    "with slashes": lambda number: f"7/{number}/x",
    "hexadecimal": lambda number: f"0x0{number}",
    "decreasing": lambda number: str(100 - int(number)),
}


@pytest.mark.parametrize("single_request_bytes", [0, 1_000_000])
@pytest.mark.parametrize("name", VERSIONS)
def test_a_version_is_whatever_the_server_names(
    lake: Lake, hapi: HapiServer, factory: DatasetFactory, name: str, single_request_bytes: int
) -> None:
    """Answers and If-Match have versions of another form than HAPI's."""
    renumber = VERSIONS[name]
    numbers = {renumber(str(number)): str(number) for number in range(1, 10)}

    def form(_: Request, answer: Changed) -> Changed:
        body = re.sub(
            rb'("versionId":\s*")(\d+)"', lambda m: m[1] + renumber(m[2].decode()).encode() + b'"', answer.body
        )
        body = re.sub(rb'("etag":\s*")(\d+)"', lambda m: m[1] + renumber(m[2].decode()).encode() + b'"', body)
        body = re.sub(rb"(/_history/)(\d+)", lambda m: m[1] + renumber(m[2].decode()).encode(), body)
        headers = dict(answer.headers)
        if "ETag" in headers:
            headers["ETag"] = f'W/"{renumber(headers["ETag"][3:-1])}"'
        headers.pop("Location", None)
        return Changed(answer.status, body, headers)

    async def change(asked: Request, ask: Ask) -> Changed:
        return form(asked, await ask())

    def own(text: str) -> str:
        for other, number in numbers.items():
            text = text.replace(f'\\"{other}\\"', f'\\"{number}\\"').replace(f'"{other}"', f'"{number}"')
        return text

    path = study_path(factory, "A", "1")
    with run_changing_proxy(hapi.base_url, change, if_match=own) as url:
        for count in (1, 2, 3):
            study = with_changes(ONE, series={str(number): 2 for number in range(count)})
            factory.build(lake, "A", [study])
            done = load(lake, url, single_request_bytes=single_request_bytes)
            assert done.counts["ImagingStudy"] == {"stored": 1}
            assert ledger_rows(lake, url, "A")[path]["version"] == renumber(str(count))
            assert without_meta(get(hapi.base_url, path)) == factory.imaging_study("A", study)
        put(hapi.base_url, factory.imaging_study("A", study) | {"note": NOTE})
        factory.build(lake, "A", [ONE])
        assert load(lake, url).counts["ImagingStudy"] == {"held": 1}
        assert get(hapi.base_url, path)["note"] == NOTE


# -- successes that are none ------------------------------------------------------------------------------------------


def outcome(severity: str) -> dict[str, Any]:
    return {"resourceType": "OperationOutcome", "issue": [{"severity": severity, "code": "exception"}]}


FALSE: dict[str, bytes] = {
    "OperationOutcome": orjson.dumps(outcome("error")),
    "message": b'{"message": "Endpoint request timed out"}',
    "another resource": b'{"resourceType": "Patient", "id": "x", "meta": {"versionId": "1"}}',
    "login page": b"<!DOCTYPE html><html><body><form action='/login'></form></body></html>",
    "list": b"[]",
    "null": b"null",
    "empty": b"",
    "harmless OperationOutcome": orjson.dumps(outcome("information")),
}


@pytest.mark.parametrize("is_update", [False, True])
@pytest.mark.parametrize("single_request_bytes", [0, 1_000_000])
@pytest.mark.parametrize("name", FALSE)
def test_an_unchecked_answer_does_not_make_a_resource_stored(
    lake: Lake, hapi: HapiServer, factory: DatasetFactory, name: str, single_request_bytes: int, is_update: bool
) -> None:
    path, lies = study_path(factory, "A", "1"), [False]

    async def change(asked: Request, ask: Ask) -> Changed:
        is_write = asked.kind in ("put", "transaction") and b"ImagingStudy" in asked.body
        return Changed(200, FALSE[name], dict(JSON)) if lies[0] and is_write else await ask()

    with run_changing_proxy(hapi.base_url, change) as url:
        factory.build(lake, "A", [TWO, ONE] if is_update else [TWO])
        load(lake, url)
        study = with_changes(ONE, series={"1": 2, "2": 2})
        factory.build(lake, "A", [TWO, study])
        for lies[0] in (True, True, False):
            done = load(lake, url, single_request_bytes=single_request_bytes)
            if lies[0]:
                assert done.counts["ImagingStudy"] == {"unchanged": 1, "unconfirmed": 1}
                assert codes(lake, "A") == ["upload-unconfirmed"]
        assert done.counts["ImagingStudy"] == {"unchanged": 1, "stored": 1}
        assert without_meta(get(hapi.base_url, path)) == factory.imaging_study("A", study)
        assert codes(lake, "A") == []
        assert attempts(lake) == []


# -- searches and their pages -----------------------------------------------------------------------------------------

NO_SEARCH: dict[str, Changed] = {
    "OperationOutcome": Changed(200, FALSE["OperationOutcome"], dict(JSON)),
    "message": Changed(200, FALSE["message"], dict(JSON)),
    "login page": Changed(200, FALSE["login page"], {"Content-Type": "text/html"}),
    "list": Changed(200, b"[]", dict(JSON)),
    "null": Changed(200, b"null", dict(JSON)),
    "empty body": Changed(200, b"", dict(JSON)),
    "no content": Changed(204, b"", {}),
    "total without entries": Changed(200, b'{"resourceType":"Bundle","type":"searchset","total":1}', dict(JSON)),
    "entries null": Changed(200, b'{"resourceType":"Bundle","type":"searchset","entry":null}', dict(JSON)),
    "link null": Changed(200, b'{"resourceType":"Bundle","type":"searchset","link":null}', dict(JSON)),
    "entry without resource": Changed(200, b'{"resourceType":"Bundle","type":"searchset","entry":[{}]}', dict(JSON)),
    "another type of Bundle": Changed(200, b'{"resourceType":"Bundle","type":"collection"}', dict(JSON)),
}


@pytest.mark.parametrize("name", NO_SEARCH)
def test_an_answer_that_is_not_a_search_result_is_an_error(
    lake: Lake, hapi: HapiServer, factory: DatasetFactory, name: str
) -> None:
    """Nothing is created; a study in the ledger is read by its id, does not lose content, and grows."""
    lies = [False]

    async def change(asked: Request, ask: Ask) -> Changed:
        return NO_SEARCH[name] if lies[0] and asked.kind == "search" else await ask()

    large = with_changes(TWO, series={"1": 4})
    with run_changing_proxy(hapi.base_url, change) as url:
        factory.build(lake, "A", [ONE, large])
        load(lake, url)
        new = Study("3", "P3", unit="sub-3")
        factory.build(lake, "A", [with_changes(ONE, series={"1": 3}), TWO, new])
        lies[0] = True
        done = load(lake, url)
        assert done.counts["ImagingStudy"] == {"failed": 1, "held": 1, "stored": 1}
        assert status(hapi.base_url, study_path(factory, "A", "3")) == 404
        assert status(hapi.base_url, patient_path(factory, "A", new)) == 404
        assert get(hapi.base_url, study_path(factory, "A", "1"))["numberOfInstances"] == 3
        assert get(hapi.base_url, study_path(factory, "A", "2"))["numberOfInstances"] == 4
        assert "update-removes-content" in codes(lake, "A")
        with pytest.raises(FhirError):
            verify(["A"], lake, settings_for(url, retry_seconds=0.5))
        lies[0] = False
        assert load(lake, url).counts["ImagingStudy"] == {"held": 1, "stored": 1, "unchanged": 1}
        assert without_meta(get(hapi.base_url, study_path(factory, "A", "3"))) == factory.imaging_study("A", new)


@pytest.mark.parametrize("status_code", [404, 410])
@pytest.mark.parametrize("times", [1, 99])
def test_an_expired_page_is_requested_once_more(
    lake: Lake, hapi: HapiServer, factory: DatasetFactory, status_code: int, times: int
) -> None:
    """HAPI clusters without a shared search cache answer so; `times`: how often."""
    dataset = f"set-{factory.name}"
    factory.build(lake, dataset, [Study(str(number), f"P{number}", unit=f"sub-{number}") for number in range(6)])
    left = [times]

    async def change(asked: Request, ask: Ask) -> Changed:
        if "_getpages" in asked.path and left[0]:
            left[0] -= 1
            return Changed(status_code, orjson.dumps(outcome("error")), dict(JSON))
        if asked.kind == "search" and "_count=500" in asked.path:
            asked = Request(asked.method, asked.path.replace("_count=500", "_count=2"), asked.body)
            return await ask.other(asked)
        return await ask()

    with run_changing_proxy(hapi.base_url, change) as url:
        settings = settings_for(url, retry_seconds=0.5)
        upload([dataset], lake, settings)
        if times == 1:
            verified = verify([dataset], lake, settings)
            assert [one.counts["ok"] for one in verified.comparisons] == [12, 1]
            assert verified.exit_code == 0
        else:
            with pytest.raises(FhirError, match="expired"):
                verify([dataset], lake, settings)
    assert left[0] == (0 if times == 1 else 97)
