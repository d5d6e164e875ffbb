"""Which entry of a transaction's answer belongs to which request, and what it says of it."""

from typing import Any

import orjson
import pytest

from dicom_etl.fhir_client import InvalidAnswerError, WriteRequest, WriteResult
from dicom_etl.fhir_client.answers import ReceivedAnswer
from dicom_etl.fhir_client.bundles import read_transaction_results
from dicom_etl.fhir_client.transport import Answer
from tests.support.fhir_answers import conditional, patient, transaction_response, write


def read(requests: list[WriteRequest], *entries: dict[str, Any]) -> list[WriteResult]:
    bundle = transaction_response() | {"entry": list(entries)}
    return read_transaction_results(ReceivedAnswer(Answer(200, orjson.dumps(bundle))), requests)


def entry(status: Any = "200 OK", resource: Any = None, **response: Any) -> dict[str, Any]:
    return {"response": {"status": status, **response}} | ({"resource": resource} if resource else {})


def test_entries_are_matched_by_location_in_any_order() -> None:
    assert read(
        [write("a"), write("b")],
        entry(location="https://h/fhir/Patient/b/_history/7"),
        entry("201 Created", location="Patient/a", etag='W/"x-3"'),
    ) == [WriteResult(201, "a", "x-3", 'W/"x-3"'), WriteResult(200, "b", "7", "")]


def test_entries_without_a_location_are_matched_by_their_resource_in_any_order() -> None:
    assert read([write("a"), write("b")], entry(resource=patient("b", "2")), entry(resource=patient("a", "u-1"))) == [
        WriteResult(200, "a", "u-1", ""),
        WriteResult(200, "b", "2", ""),
    ]


def test_entries_that_name_nothing_are_matched_by_position() -> None:
    """FHIR/fhir-candle#52: location and etag are empty; other servers name a location for what they created only."""
    assert read(
        [write("a"), write("b"), write("c")],
        entry(etag='W/"5"'),
        entry("201", location="", etag=""),
        entry("201", location="Patient/c/_history/1"),
    ) == [WriteResult(200, "a", "5", 'W/"5"'), WriteResult(201, "b", "", ""), WriteResult(201, "c", "1", "")]


def test_a_position_that_another_entry_takes_cannot_be_known() -> None:
    with pytest.raises(InvalidAnswerError, match="which entry belongs to which request"):
        read([write("a"), write("b")], entry(location="Patient/b"), entry())


def test_a_position_with_a_resource_of_another_type_cannot_be_known() -> None:
    requests = [conditional("x"), conditional("y", "Endpoint")]
    with pytest.raises(InvalidAnswerError, match="which entry belongs to which request"):
        read(requests, entry(location="Endpoint/7"), entry(location="Patient/8"))


def test_conditional_requests_get_the_id_that_the_server_names() -> None:
    requests = [conditional("x"), write("a"), conditional("y"), conditional("z")]
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
        read([conditional("x"), conditional("y")], entry(location="Patient/7"), entry(location="Patient/7"))


def test_a_server_that_stores_under_another_id_is_not_corrected() -> None:
    assert read([write("a")], entry("201", location="Patient/77/_history/1")) == [WriteResult(201, "77", "1", "")]


def test_an_etag_that_is_none_is_a_version_and_not_sent_back() -> None:
    """HAPI writes the bare version (measured with 8.8.0)."""
    assert read([write("a")], entry(etag="12")) == [WriteResult(200, "a", "12", "")]


@pytest.mark.parametrize("location", [None, 5, [], "x" * 9_000, "Patient/", "a", "Patient/a/b/c", "?"])
def test_a_location_that_is_none_is_passed_over(location: Any) -> None:
    assert read([write("a")], entry(location=location)) == [WriteResult(200, "a", "", "")]
