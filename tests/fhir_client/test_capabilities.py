"""Servers that cannot be used, told apart before anything is sent."""

import asyncio
import copy
from typing import Any

import pytest

from dicom_etl.fhir_client import FhirClient, UnreachableError, UnsuitableServerError, capabilities, check_server
from dicom_etl.fhir_client.capabilities import Capabilities
from tests.support.fhir_answers import STATEMENT, in_turn, json_reply, no_pause, outcome
from tests.support.proxy import Reply, run_proxy


def changed(change: Any) -> dict[str, Any]:
    statement = copy.deepcopy(STATEMENT)
    change(statement)
    return statement


def test_a_server_that_does_not_mention_update_create_permits_it() -> None:
    assert Capabilities(STATEMENT).find_problem("R4") is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update(fhirVersion="5.0.0"), "has FHIR version 5.0.0, but the resources have R4"),
        (lambda s: s.pop("fhirVersion"), "has FHIR version none"),
        (lambda s: s["rest"][0]["interaction"].clear(), "does not accept transactions"),
        (lambda s: s["rest"][0]["resource"].pop(1), "does not permit writing Endpoint resources"),
        (lambda s: s["rest"][0]["resource"][2]["interaction"].pop(), "does not permit writing ImagingStudy resources"),
        (
            lambda s: s["rest"][0]["resource"][0].update(updateCreate=False, conditionalUpdate=False),
            "permits neither client-assigned ids nor conditional updates of Patient resources",
        ),
        (lambda s: s.pop("rest"), "does not accept transactions"),
    ],
)
def test_what_is_missing_is_named(change: Any, words: str) -> None:
    complaint = Capabilities(changed(change)).find_problem("R4")

    assert complaint is not None
    assert words in complaint


def contact(url: str, client_assigned_ids: bool | None = None, **client: Any) -> bool:
    async def whole() -> bool:
        async with FhirClient(url, sleep=no_pause, **client) as opened:
            return await check_server(opened, "R4", client_assigned_ids)

    return asyncio.run(whole())


def test_a_suitable_server_is_met_with_one_request() -> None:
    with run_proxy(rule=lambda _: json_reply(STATEMENT)) as server:
        assert contact(server.url)
        assert [asked.path for asked in server.requests] == ["metadata"]
        assert "Cache-Control" not in server.requests[0].headers


def test_who_assigns_ids_is_what_the_settings_say_or_else_the_server() -> None:
    assigning = changed(lambda s: s["rest"][0]["resource"][1].update(updateCreate=False))
    with run_proxy(rule=lambda _: json_reply(assigning)) as server:
        assert not contact(server.url)
        assert contact(server.url, True)
        server.rule = lambda _: json_reply(STATEMENT)
        assert contact(server.url)
        assert not contact(server.url, False)
    assert Capabilities(assigning).assigns_ids
    assert Capabilities(STATEMENT).accepts_client_ids


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(401), "no credentials were sent"),
        (Reply(403), "this account does not have the permission"),
        (Reply(404), "check fhir.url"),
        (Reply(302), "set fhir.url to the address"),
        (Reply(200, b"<p>"), "does not answer /metadata as a FHIR server does: HTTP 200: the answer is not JSON"),
        (Reply(200), "the answer is empty"),
        (json_reply({"message": "warming up"}), "warming up"),
        (json_reply(outcome("exception", "not ready")), "not ready"),
        (json_reply({"resourceType": "Bundle"}), "is not a CapabilityStatement"),
        (json_reply([STATEMENT]), "JSON of another type"),
    ],
)
def test_a_server_that_answers_and_cannot_be_used_is_unsuitable(reply: Reply, words: str) -> None:
    with run_proxy(rule=lambda _: reply) as server, pytest.raises(UnsuitableServerError) as caught:
        contact(server.url)
    assert words in str(caught.value)
    assert str(caught.value).startswith(server.url)
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    ("element", "value"),
    [
        *(("rest", value) for value in (None, {}, "server", [None], [[]], [{"mode": ["server"]}], 5)),
        *(("fhirVersion", value) for value in (None, 4.0, [], {}, "", "4.0.1\n", True)),
        *(("interaction", value) for value in (None, {}, [None], [{"code": None}], [{"code": []}], "transaction")),
        *(("resource", value) for value in (None, {}, [None], [{"type": None}], [{"type": "Patient"}], 5)),
    ],
)
def test_an_odd_statement_is_one_sentence(element: str, value: Any) -> None:
    statement = copy.deepcopy(STATEMENT)
    (statement if element in statement else statement["rest"][0])[element] = value
    if (element, value) == ("fhirVersion", "4.0.1\n"):
        statement["fhirVersion"] = "\n"
    with run_proxy(rule=lambda _: json_reply(statement)) as server, pytest.raises(UnsuitableServerError) as caught:
        contact(server.url)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_failing_is_unreachable(status: int) -> None:
    with run_proxy(rule=lambda _: Reply(status, headers={"Retry-After": "100"})) as server:
        with pytest.raises(UnreachableError, match=f"answers, but is failing: HTTP {status}"):
            contact(server.url)
        assert len(server.requests) == 1


@pytest.mark.parametrize("status", [409, 412])
def test_a_conflict_about_the_statement_is_a_server_that_is_failing(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capabilities, "_RETRY_SECONDS", 0.0)
    with (
        run_proxy(rule=lambda _: Reply(status)) as server,
        pytest.raises(UnreachableError, match=f"answers, but is failing: HTTP {status}"),
    ):
        contact(server.url)


def test_a_conflict_about_the_statement_is_retried() -> None:
    with run_proxy(rule=in_turn(Reply(409), json_reply(STATEMENT))) as server:
        assert contact(server.url)
        assert len(server.requests) == 2


def test_nobody_there_is_unreachable() -> None:
    with pytest.raises(UnreachableError, match="cannot be reached"):
        contact("http://127.0.0.1:1/fhir", retry_seconds=0)
