"""Entries of a transaction's answer: which request they belong to, and which id and version they have."""

from typing import Any

import orjson
import pytest

from dicom_etl.fhir_client import InvalidAnswerError, WriteRequest, WriteResult
from dicom_etl.fhir_client.answers import ReceivedAnswer
from dicom_etl.fhir_client.bundles import read_transaction_results
from dicom_etl.fhir_client.transport import Answer
from tests.support.fhir_answers import conditional_request, patient, transaction_response, write_request


def read(requests: list[WriteRequest], *entries: dict[str, Any]) -> list[WriteResult]:
    bundle = transaction_response() | {"entry": list(entries)}
    return read_transaction_results(ReceivedAnswer(Answer(200, orjson.dumps(bundle))), requests)


def entry(status: Any = "200 OK", resource: Any = None, **response: Any) -> dict[str, Any]:
    return {"response": {"status": status, **response}} | ({"resource": resource} if resource else {})


def test_entries_are_matched_by_location_in_any_order() -> None:
    assert read(
        [write_request("a"), write_request("b")],
        entry(location="https://h/fhir/Patient/b/_history/7"),
        entry("201 Created", location="Patient/a", etag='W/"x-3"'),
    ) == [WriteResult(201, "a", "x-3", 'W/"x-3"'), WriteResult(200, "b", "7", "")]


def test_entries_without_a_location_are_matched_by_resource() -> None:
    assert read(
        [write_request("a"), write_request("b")], entry(resource=patient("b", "2")), entry(resource=patient("a", "u-1"))
    ) == [
        WriteResult(200, "a", "u-1", ""),
        WriteResult(200, "b", "2", ""),
    ]


def test_entries_without_an_id_are_matched_by_position() -> None:
    """FHIR/fhir-candle#52: location and etag are empty; other servers give a location only after a create."""
    assert read(
        [write_request("a"), write_request("b"), write_request("c")],
        entry(etag='W/"5"'),
        entry("201", location="", etag=""),
        entry("201", location="Patient/c/_history/1"),
    ) == [WriteResult(200, "a", "5", 'W/"5"'), WriteResult(201, "b", "", ""), WriteResult(201, "c", "1", "")]


def test_a_position_that_is_taken_is_an_error() -> None:
    with pytest.raises(InvalidAnswerError, match="which entry belongs to which request"):
        read([write_request("a"), write_request("b")], entry(location="Patient/b"), entry())


def test_a_position_with_another_type_is_an_error() -> None:
    requests = [conditional_request("x"), conditional_request("y", "Endpoint")]
    with pytest.raises(InvalidAnswerError, match="which entry belongs to which request"):
        read(requests, entry(location="Endpoint/7"), entry(location="Patient/8"))


def test_conditional_requests_have_the_ids_of_the_server() -> None:
    requests = [conditional_request("x"), write_request("a"), conditional_request("y"), conditional_request("z")]
    assert read(
        requests,
        entry("201", location="https://h/Patient/101/_history/0c-1"),
        entry(location="Patient/a/_history/2"),
        entry(resource=patient("102", "4")),
        entry(etag='W/"9"'),
    ) == [
        WriteResult(201, "101", "0c-1", ""),
        WriteResult(200, "a", "2", ""),
        WriteResult(200, "102", "4", ""),
        WriteResult(200, "", "9", 'W/"9"'),
    ]


def test_two_conditional_requests_are_two_resources() -> None:
    with pytest.raises(InvalidAnswerError, match="one resource for two requests"):
        read(
            [conditional_request("x"), conditional_request("y")],
            entry(location="Patient/7"),
            entry(location="Patient/7"),
        )


def test_the_id_of_a_result_is_that_of_the_server() -> None:
    assert read([write_request("a")], entry("201", location="Patient/77/_history/1")) == [
        WriteResult(201, "77", "1", "")
    ]


def test_an_invalid_etag_is_a_version_but_not_an_etag() -> None:
    """HAPI writes the bare version (measured with 8.8.0)."""
    assert read([write_request("a")], entry(etag="12")) == [WriteResult(200, "a", "12", "")]


@pytest.mark.parametrize("location", [None, 5, [], "x" * 9_000, "Patient/", "a", "Patient/a/b/c", "?"])
def test_an_invalid_location_is_ignored(location: Any) -> None:
    assert read([write_request("a")], entry(location=location)) == [WriteResult(200, "a", "", "")]
