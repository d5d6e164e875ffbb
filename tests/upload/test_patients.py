"""The choice of a Patient: decisions by tables, and the requests to a stub of `FhirClient`."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_etl.fhir_client import ServerResource
from dicom_etl.upload.items import Action, Decision, IdStrategy, UploadItem
from dicom_etl.upload.ledger import Attempt, ResourceRow, State
from dicom_etl.upload.patients import (
    PatientOnServer,
    decide_patient,
    find_conflicting_elements,
    find_patients,
    is_same_date,
    list_contributions,
    look_up_patients,
)
from tests.upload.support.stub_client import StubClient
from tests.upload.test_items import ODD, odd_resources

CLIENT = IdStrategy("https://site.example")
SERVER = IdStrategy("https://site.example", is_client_assigned=False)
MARK = {"system": "https://site.example/resource-id", "value": "p"}
MRN = {"system": "s", "value": "1"}
PRODUCED = {
    "resourceType": "Patient",
    "id": "p",
    "identifier": [MRN],
    "birthDate": "1980-05-01",
    "gender": "female",
}
ITEM = UploadItem(PRODUCED, "ds", "u").with_hash()
KEY = ("Patient", "p")


def patient(identity: str, **elements: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "id": identity, "identifier": [MRN]} | elements


def merged_into(identity: str, *, link: str = "replaced-by", **elements: Any) -> dict[str, Any]:
    return {"link": [{"other": {"reference": identity}, "type": link}], "active": False} | elements


def decide(result: PatientOnServer, row: ResourceRow | None = None, attempts: Any = ()) -> Decision:
    return decide_patient(ITEM, result, row, attempts, CLIENT)


def row(**values: Any) -> ResourceRow:
    return ResourceRow("Patient", "p", "ds", **{"server_id": "p", "hash": "h", "state": State.STORED} | values)


# -- conflicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "elements"),
    [
        ({}, []),
        ({"gender": "female", "birthDate": "1980-05-01"}, []),
        ({"gender": "unknown", "birthDate": "1980-05"}, []),
        ({"gender": None, "birthDate": None}, []),
        ({"birthDate": "1980"}, []),
        ({"gender": "male"}, ["gender"]),
        ({"gender": "other"}, ["gender"]),
        ({"birthDate": "1980-06"}, ["birthDate"]),
        ({"birthDate": "1979-05-01", "gender": "male"}, ["birthDate", "gender"]),
        ({"birthDate": ["1980-05-01"]}, ["birthDate"]),
    ],
)
def test_only_values_of_both_can_conflict(other: dict[str, Any], elements: list[str]) -> None:
    assert find_conflicting_elements(PRODUCED, other) == elements
    assert find_conflicting_elements(other, PRODUCED) == elements


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1980", "1980-05-01", True),
        ("1980-05", "1980-05", True),
        ("1980-05", "1980-06-01", False),
        ("1980", "1981", False),
    ],
)
def test_dates_that_may_be_the_same_day(one: str, other: str, same: bool) -> None:
    assert is_same_date(one, other) is same
    assert is_same_date(other, one) is same


# -- decisions --------------------------------------------------------------------------------------------------------


def test_a_patient_that_the_server_does_not_have_is_sent() -> None:
    assert decide(PatientOnServer(candidates=())) == Decision(Action.SEND, resource=PRODUCED)


def test_an_identical_patient_is_unchanged() -> None:
    current = ServerResource(PRODUCED | {"meta": {"versionId": "4"}})
    assert decide(PatientOnServer(current), row()) == Decision(Action.UNCHANGED, server=current)


def test_values_of_another_client_stay_and_the_lakes_are_sent() -> None:
    current = ServerResource(patient("p", birthDate="1980", telecom=[{"value": "1"}]))
    decision = decide(PatientOnServer(current), row())
    assert decision == Decision(Action.SEND, resource=PRODUCED | {"telecom": [{"value": "1"}]}, server=current)


def test_a_different_value_of_the_server_stays_as_a_conflict() -> None:
    current = ServerResource(PRODUCED | {"gender": "male"})
    assert decide(PatientOnServer(current), row()) == Decision(
        Action.UNCHANGED, "patient-conflict", "gender differs on the server, whose value stays", server=current
    )


def test_values_sent_without_an_answer_are_the_lakes() -> None:
    current = ServerResource(PRODUCED | {"gender": "male"})
    attempt = Attempt("Patient", "p", "h", "s", "", contribution='{"gender":"male"}')
    assert decide(PatientOnServer(current), None, [attempt]) == Decision(Action.SEND, resource=PRODUCED, server=current)


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        ([patient("x")], (Action.USE_EXTERNAL, None, None)),
        (
            [patient("x", gender="male")],
            (Action.HOLD, "patient-conflict", "gender of Patient/x differs from the lake's Patient"),
        ),
        ([patient("x"), patient("y")], (Action.HOLD, "patient-ambiguous", "Patient/x, Patient/y")),
    ],
)
def test_a_patient_of_another_client(candidates: list[Any], expected: tuple[Any, ...]) -> None:
    decision = decide(PatientOnServer(candidates=tuple(candidates)))
    assert (decision.action, decision.reason, decision.text) == expected
    if decision.action is Action.USE_EXTERNAL:
        assert decision.server == ServerResource(candidates[0])
        assert decision.is_external


def test_a_duplicate_patient_is_reported() -> None:
    decision = decide(PatientOnServer(ServerResource(PRODUCED), candidates=(patient("x"),)), row())
    assert (decision.action, decision.reason, decision.text) == (
        Action.UNCHANGED,
        "duplicate-patient-on-server",
        "Patient/x",
    )


def test_the_external_patient_stays_in_use() -> None:
    current = ServerResource(patient("x", name=[{"family": "A"}]))
    external = row(server_id="x", is_external=True)
    assert decide(PatientOnServer(current), external) == Decision(Action.USE_EXTERNAL, server=current, is_external=True)
    other = ServerResource(patient("x", birthDate="1999"))
    assert decide(PatientOnServer(other), external).reason == "patient-conflict"


def test_a_merged_patient_is_followed() -> None:
    survivor = ServerResource(patient("x"))
    decision = decide(PatientOnServer(ServerResource(PRODUCED), survivor=survivor), row())
    assert decision == Decision(
        Action.USE_EXTERNAL,
        "patient-merged-on-server",
        "Patient/p was merged into Patient/x, which is used",
        server=survivor,
        is_external=True,
    )


def test_no_study_refers_to_an_inactive_or_deleted_patient() -> None:
    assert decide(PatientOnServer(ServerResource(PRODUCED), is_inactive=True)).reason == "patient-inactive-on-server"
    decision = decide(PatientOnServer(is_deleted=True), row())
    assert (decision.action, decision.reason) == (Action.HOLD, "patient-deleted-on-server")
    assert "`dicom-etl verify --repair`" in str(decision.text)


@pytest.mark.parametrize("strategy", [CLIENT, SERVER])
@given(current=odd_resources, survivor=st.none() | odd_resources, is_external=st.booleans())
def test_no_malformed_patient_raises(
    strategy: IdStrategy, current: dict[str, Any], survivor: dict[str, Any] | None, is_external: bool
) -> None:
    candidate = current | {"id": "x"}
    for result in (
        PatientOnServer(ServerResource(current), survivor=ServerResource(survivor) if survivor is not None else None),
        PatientOnServer(candidates=(candidate,)),
        PatientOnServer(ServerResource(current), candidates=(candidate, candidate), replaced=survivor),
    ):
        assert decide_patient(ITEM, result, row(is_external=is_external), (), strategy).action in Action


# -- what we said before ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "attempts", "contributions"),
    [
        (None, [], []),
        ({"contribution": "a"}, [], ["a"]),
        ({"contribution": "a"}, ["b", None, "c"], ["a", "b", "c"]),
        ({"contribution": "a", "is_external": True}, ["b"], ["b"]),
        ({"contribution": "a", "server_id": None}, ["b"], ["b"]),
        ({"contribution": "a", "hash": None}, [], []),
        ({"contribution": None}, [], []),
    ],
)
def test_contributions_are_the_stored_one_and_those_sent_since(
    values: dict[str, Any] | None, attempts: list[str | None], contributions: list[str]
) -> None:
    sent = [Attempt("Patient", "p", "h", "s", "", contribution=text) for text in attempts]
    assert list_contributions(row(**values) if values is not None else None, sent) == contributions


# -- what the server is asked -----------------------------------------------------------------------------------------


def look(
    client: StubClient,
    *,
    known_row: ResourceRow | None = None,
    attempts: Any = None,
    shared: bool = False,
    strategy: IdStrategy = CLIENT,
) -> PatientOnServer:
    rows = {KEY: known_row} if known_row else {}
    result = asyncio.run(
        look_up_patients(
            client,  # type: ignore[arg-type]
            [ITEM],
            rows,
            {KEY: attempts} if attempts else {},
            strategy,
            {KEY: ("s", "1")} if shared else {},
        )
    )
    return result[KEY]


def test_a_patient_in_the_ledger_is_read_and_not_searched_for() -> None:
    client = StubClient()
    client.store(patient("p"))
    result = look(client, known_row=row(), shared=True)
    assert result.current is not None
    assert client.calls == [("read", ("Patient", "p"))]


def test_a_patient_sent_without_an_answer_is_read() -> None:
    client = StubClient()
    assert look(client, attempts=[Attempt("Patient", "p", "h", "s", "")]) == PatientOnServer()
    assert client.calls == [("read", ("Patient", "p"))]


def test_an_unknown_patient_is_searched_for_by_id_or_identifier() -> None:
    client = StubClient()
    assert look(client) == PatientOnServer()
    assert look(client, shared=True) == PatientOnServer(candidates=())
    assert look(client, strategy=SERVER) == PatientOnServer()
    assert [what for _, what in client.calls] == [
        ("Patient", {"_id": "p", "_count": "1"}),
        ("Patient", {"identifier": "s|1", "_count": "50"}),
        ("Patient", {"identifier": "https://site.example/resource-id|p", "_count": "1"}),
    ]


def test_a_patient_that_is_missing_was_deleted() -> None:
    client = StubClient()
    assert look(client, known_row=row()) == PatientOnServer(is_deleted=True)
    # also where an index still has it, and another client's may take its place
    client.store(patient("x"))
    assert look(client, known_row=row(), shared=True) == PatientOnServer(
        is_deleted=True, candidates=(client.versions["Patient", "x"][0],)
    )


MERGES = [
    # links of p; existing Patients; the survivor's id, or None; inactive
    ({}, [], None, False),
    ({"active": False}, [], None, True),
    (merged_into("Patient/x"), [patient("x")], "x", False),
    (merged_into("Patient/x/_history/2"), [patient("x")], "x", False),
    (merged_into("https://server.example/fhir/Patient/x"), [patient("x")], "x", False),
    (merged_into("Patient/x"), [patient("x", **merged_into("Patient/y")), patient("y")], "y", False),
    (merged_into("Patient/x"), [patient("x", active=False)], None, True),
    (merged_into("Patient/x"), [], None, True),  # the survivor does not exist
    (merged_into("Patient/p"), [], None, True),  # into itself
    (merged_into("Patient/x"), [patient("x", **merged_into("Patient/p"))], None, True),  # in a circle
    (merged_into("Patient/x", link="replaces", active=True), [patient("x")], None, False),
    (merged_into("Patient/x", link="seealso", active=True), [patient("x")], None, False),
    # nothing that is a Patient of this server
    (merged_into("https://other.example/fhir/Patient/x"), [patient("x")], None, True),
    (merged_into("RelatedPerson/x"), [patient("x")], None, True),
    (merged_into("urn:uuid:4f6a"), [], None, True),
    (merged_into("#x"), [], None, True),
    (merged_into(""), [], None, True),
    ({"link": [{"type": "replaced-by", "other": {"identifier": MRN}}]}, [], None, True),
    ({"link": [{"type": "replaced-by"}]}, [], None, True),
    # shapes that are not links
    ({"link": {"type": "replaced-by", "other": {"reference": "Patient/x"}}}, [patient("x")], None, False),
    ({"link": ["Patient/x"]}, [patient("x")], None, False),
]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("links", "others", "survivor", "is_inactive"), MERGES)
def test_merges_on_the_server_are_followed(
    links: dict[str, Any], others: list[Any], survivor: str | None, is_inactive: bool, shared: bool
) -> None:
    client = StubClient()
    client.store(patient("p", **links))
    for other in others:
        client.store(other)
    for result in (look(client, known_row=row(), shared=shared), look(client)):
        assert (result.survivor.id if result.survivor else None) == survivor
        assert result.is_inactive is is_inactive
        assert result.current is not None
    assert len(client.methods("read")) < 20


def test_only_active_candidates_count() -> None:
    client = StubClient()
    client.store(patient("a", **merged_into("Patient/c")))
    client.store(patient("b", active=False))
    client.store(patient("c"))
    client.store(patient("d"))
    result = look(client, shared=True)
    assert [one["id"] for one in result.candidates or ()] == ["c", "d"]
    assert not result.is_inactive


def test_no_patient_is_created_beside_inactive_candidates() -> None:
    client = StubClient()
    client.store(patient("b", active=False))
    assert look(client, shared=True) == PatientOnServer(candidates=(), is_inactive=True)


def test_surplus_search_results_are_ignored() -> None:
    client = StubClient()
    client.store(patient("x", identifier=[{"system": "S", "value": "1"}]))
    for number, odd in enumerate(ODD):
        client.store(patient(f"odd{number}", identifier=odd))
        client.store(patient(f"odd-value{number}", identifier=[{"system": odd, "value": odd}]))
    client.has_identifier = lambda _resource, _tokens: True  # type: ignore[method-assign]
    client.store(patient("y"))
    found = asyncio.run(find_patients(client, [("s", "1")]))  # type: ignore[arg-type]
    assert [one["id"] for one in found["s", "1"]] == ["y"]


def test_identifiers_are_searched_for_in_the_body_of_few_requests() -> None:
    client = StubClient()
    wanted = [("s", f"{number},|") for number in range(25)]
    assert asyncio.run(find_patients(client, wanted)) == {one: [] for one in wanted}  # type: ignore[arg-type]
    searches = client.methods("search")
    assert len(searches) == 3
    assert searches[0][1]["identifier"].startswith(r"s|0\,\|,s|1\,\|")


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("element", ["link", "active", "identifier", "meta"])
def test_malformed_patients_of_the_server_do_not_raise(element: str, odd: Any) -> None:
    client = StubClient()
    client.store(patient("p") | {element: odd})
    client.store(patient("x") | {element: odd})
    for strategy in (CLIENT, SERVER):
        assert look(client, known_row=row(), strategy=strategy).current is not None
        look(client, shared=True, strategy=strategy)
        look(client, strategy=strategy)
