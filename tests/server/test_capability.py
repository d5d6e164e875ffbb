"""Servers that cannot be used, told apart before anything is sent."""

import asyncio
import copy
from typing import Any

import orjson
import pytest

from dicom_etl.server.capability import first_contact, unsuitable
from dicom_etl.server.client import Client
from dicom_etl.server.errors import UnreachableError, UnsuitableServerError
from tests.server.proxy import Reply, proxy

STATEMENT: dict[str, Any] = {
    "resourceType": "CapabilityStatement",
    "fhirVersion": "4.0.1",
    "rest": [
        {
            "mode": "server",
            "interaction": [{"code": "transaction"}],
            "resource": [
                {"type": kind, "interaction": [{"code": "read"}, {"code": "update"}]}
                for kind in ("Patient", "Endpoint", "ImagingStudy", "Observation")
            ],
        }
    ],
}


def changed(change: Any) -> dict[str, Any]:
    statement = copy.deepcopy(STATEMENT)
    change(statement)
    return statement


def test_a_server_that_does_not_speak_of_update_create_is_taken_at_its_word():
    assert unsuitable(STATEMENT, "R4") is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update(fhirVersion="5.0.0"), "speaks FHIR 5.0.0, and the resources are R4"),
        (lambda s: s.pop("fhirVersion"), "speaks FHIR none"),
        (lambda s: s.update(resourceType="Basic"), "is no FHIR server"),
        (lambda s: s["rest"][0]["interaction"].clear(), "does not take transactions"),
        (lambda s: s["rest"][0]["resource"].pop(1), "does not let Endpoint resources be written"),
        (lambda s: s["rest"][0]["resource"][2]["interaction"].pop(), "does not let ImagingStudy resources be written"),
        (
            lambda s: s["rest"][0]["resource"][0].update(updateCreate=False, conditionalUpdate=False),
            "lets the client neither choose ids of Patient resources nor find them",
        ),
        (lambda s: s.pop("rest"), "does not take transactions"),
    ],
)
def test_what_is_missing_is_named(change, words):
    complaint = unsuitable(changed(change), "R4")

    assert complaint is not None
    assert words in complaint


def contact(url: str) -> None:
    async def whole() -> None:
        async with Client(url) as client:
            await first_contact(client, "R4")

    asyncio.run(whole())


def test_a_suitable_server_is_met_with_one_request():
    with proxy(rule=lambda _: Reply(200, orjson.dumps(STATEMENT))) as server:
        contact(server.url)
        assert [one.path for one in server.asked] == ["metadata"]


@pytest.mark.parametrize(
    ("reply", "words"),
    [(Reply(401), "check the token"), (Reply(404), "check fhir.url"), (Reply(200, b"<p>"), "not JSON")],
)
def test_who_answers_and_lets_nobody_in_is_unsuitable(reply, words):
    with proxy(rule=lambda _: reply) as server, pytest.raises(UnsuitableServerError, match=words):
        contact(server.url)


def test_nobody_there_is_unreachable():
    with pytest.raises(UnreachableError, match="cannot be reached"):
        contact("http://127.0.0.1:1/fhir")
