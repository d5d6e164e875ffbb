"""The check that a server can take an upload, before any resource is sent."""

import asyncio
import copy
from typing import Any

import pytest

from dicom_etl.fhir_client import FhirClient, UnreachableError, UnsuitableServerError, capabilities, check_server
from dicom_etl.fhir_client.capabilities import Capabilities
from tests.support.fhir_answers import STATEMENT, json_reply, no_pause, operation_outcome, reply_in_turn
from tests.support.proxy import Reply, run_proxy


def change_statement(change: Any) -> dict[str, Any]:
    statement = copy.deepcopy(STATEMENT)
    change(statement)
    return statement


def test_without_update_create_client_ids_are_permitted() -> None:
    assert Capabilities(STATEMENT).find_problem("R4") is None


@pytest.mark.parametrize(
    ("change", "text"),
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
def test_a_missing_capability_is_named(change: Any, text: str) -> None:
    problem = Capabilities(change_statement(change)).find_problem("R4")

    assert problem is not None
    assert text in problem


def check(url: str, client_assigned_ids: bool | None = None, **client: Any) -> bool:
    async def whole() -> bool:
        async with FhirClient(url, sleep=no_pause, **client) as opened:
            return await check_server(opened, "R4", client_assigned_ids)

    return asyncio.run(whole())


def test_a_suitable_server_is_checked_with_one_request() -> None:
    with run_proxy(rule=lambda _: json_reply(STATEMENT)) as server:
        assert check(server.url)
        assert [request.path for request in server.requests] == ["metadata"]
        assert "Cache-Control" not in server.requests[0].headers


def test_the_setting_on_ids_takes_precedence_over_the_server() -> None:
    assigning = change_statement(lambda s: s["rest"][0]["resource"][1].update(updateCreate=False))
    with run_proxy(rule=lambda _: json_reply(assigning)) as server:
        assert not check(server.url)
        assert check(server.url, True)
        server.rule = lambda _: json_reply(STATEMENT)
        assert check(server.url)
        assert not check(server.url, False)
    assert Capabilities(assigning).assigns_ids
    assert Capabilities(STATEMENT).accepts_client_ids


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (Reply(401), "no credentials were sent"),
        (Reply(403), "this account does not have the permission"),
        (Reply(404), "check fhir.url"),
        (Reply(302), "set fhir.url to the address"),
        (Reply(200, b"<p>"), "does not answer /metadata as a FHIR server does: HTTP 200: the answer is not JSON"),
        (Reply(200), "the answer is empty"),
        (json_reply({"message": "warming up"}), "warming up"),
        (json_reply(operation_outcome("exception", "not ready")), "not ready"),
        (json_reply({"resourceType": "Bundle"}), "is not a CapabilityStatement"),
        (json_reply([STATEMENT]), "JSON of another type"),
    ],
)
def test_a_server_with_an_unusable_answer_is_unsuitable(reply: Reply, text: str) -> None:
    with run_proxy(rule=lambda _: reply) as server, pytest.raises(UnsuitableServerError) as caught:
        check(server.url)
    assert text in str(caught.value)
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
def test_an_invalid_statement_is_one_sentence(element: str, value: Any) -> None:
    statement = copy.deepcopy(STATEMENT)
    (statement if element in statement else statement["rest"][0])[element] = value
    if (element, value) == ("fhirVersion", "4.0.1\n"):
        statement["fhirVersion"] = "\n"
    with run_proxy(rule=lambda _: json_reply(statement)) as server, pytest.raises(UnsuitableServerError) as caught:
        check(server.url)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failing_server_is_unreachable(status: int) -> None:
    with run_proxy(rule=lambda _: Reply(status, headers={"Retry-After": "100"})) as server:
        with pytest.raises(UnreachableError, match=f"answers, but is failing: HTTP {status}"):
            check(server.url)
        assert len(server.requests) == 1


@pytest.mark.parametrize("status", [409, 412])
def test_a_conflict_on_the_statement_is_unreachable(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "RETRY_SECONDS", 0.0)
    with (
        run_proxy(rule=lambda _: Reply(status)) as server,
        pytest.raises(UnreachableError, match=f"answers, but is failing: HTTP {status}"),
    ):
        check(server.url)


def test_a_conflict_on_the_statement_is_retried() -> None:
    with run_proxy(rule=reply_in_turn(Reply(409), json_reply(STATEMENT))) as server:
        assert check(server.url)
        assert len(server.requests) == 2


def test_a_missing_server_is_unreachable() -> None:
    with pytest.raises(UnreachableError, match="cannot be reached"):
        check("http://127.0.0.1:1/fhir", retry_seconds=0)
