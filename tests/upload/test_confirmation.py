"""The consequences of answers to writes, with a stub of `FhirClient` (`stub_client`): one batch at a time.

The stub has servers without history, without versions, with opaque ones, and those that answer 200 to what they create;
and other clients that write between lookup and write.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from dicom_etl.fhir_client import ServerResource
from dicom_etl.fhir_client.errors import (
    BusyError,
    FhirError,
    InvalidAnswerError,
    RejectedError,
    ServerFailureError,
    TimedOutError,
    UnreachableError,
)
from dicom_etl.identity.ids import ResourceIds
from dicom_etl.lake.tables import Lake
from dicom_etl.upload.confirmation import ReplacedVersion, confirm_indexed, find_replaced_version, read_back
from dicom_etl.upload.items import IdStrategy, UploadItem, UploadOptions, compute_content_hash
from dicom_etl.upload.ledger import Ledger, ResourceRow, State
from dicom_etl.upload.studies import Namespace
from dicom_etl.upload.transfer import Target, upload_items
from tests.upload.support.stub_client import StubClient

CLIENT = IdStrategy("https://site.example")
SERVER = IdStrategy("https://site.example", is_client_assigned=False)
IDS = ResourceIds.from_key("https://site.example", None)
SYSTEM = "https://site.example/dataset"
UID = {"system": "urn:dicom:uid", "value": "urn:oid:1.2"}
NAMED = {"system": SYSTEM, "value": "urn:uid:ds"}
STUDY_ID = IDS.resource_id("ImagingStudy", "ds", "1.2")
KEY = ("ImagingStudy", STUDY_ID)
MRN = {"system": "s", "value": "1"}


def study(**elements: Any) -> dict[str, Any]:
    known = {"resourceType": "ImagingStudy", "id": STUDY_ID, "identifier": [UID, NAMED], "status": "available"}
    return (
        known
        | {"subject": {"reference": "Patient/p"}, "series": [{"uid": "1", "instance": [{"uid": "1.1"}]}]}
        | elements
    )


def patient(**elements: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "id": "p", "identifier": [MRN], "gender": "female"} | elements


def item(resource: dict[str, Any]) -> UploadItem:
    is_study = resource["resourceType"] == "ImagingStudy"
    return UploadItem(resource, "ds", "u", "sub-1", "1.2" if is_study else "s|1").with_hash()


@dataclass
class Uploads:
    """A ledger and a server, and uploads from the one to the other."""

    ledger: Ledger
    client: StubClient = field(default_factory=StubClient)
    strategy: IdStrategy = CLIENT
    shared: dict[Any, Any] = field(default_factory=dict)

    def upload(self, resource: dict[str, Any], **options: Any) -> ResourceRow:
        """The ledger's row after an upload."""
        namespace = Namespace(IDS, self.strategy, SYSTEM)
        target = Target(self.client, self.ledger, namespace, UploadOptions(**options), 10**6, shared=self.shared)  # type: ignore[arg-type]
        asyncio.run(upload_items(target, [item(resource)]))
        return self.row(resource)

    def row(self, resource: dict[str, Any]) -> ResourceRow:
        key = resource["resourceType"], resource["id"]
        return self.ledger.read_rows([key]).result(30)[key]

    def open_attempts(self, resource: dict[str, Any]) -> int:
        key = resource["resourceType"], resource["id"]
        return len(self.ledger.read_attempts([key]).result(30).get(key, []))

    def writes(self) -> int:
        return len(self.client.methods("transaction")) + len(self.client.methods("put"))


@pytest.fixture
def uploads(tmp_path: Path) -> Iterator[Uploads]:
    with Ledger.from_lake(Lake(str(tmp_path / "lake")).open(), "server") as ledger:
        yield Uploads(ledger)


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicom_etl.upload.transfer.FIRST_PAUSE", 0.001)


def once(method: str, action: Any) -> Any:
    """Make a function that acts at the first call of a method."""
    left = [action]

    def on_call(called: str, _what: Any) -> None:
        if called == method and left:
            left.pop()()

    return on_call


def fail(error: FhirError) -> Any:
    def raise_error() -> None:
        raise error

    return raise_error


# -- read_back --------------------------------------------------------------------------------------------------------


def test_a_stored_resource_is_read_back() -> None:
    client = StubClient()
    client.store(patient())
    assert asyncio.run(read_back(client, "Patient", "p")).version == "1"  # type: ignore[arg-type]


def test_a_stored_resource_that_is_missing_may_have_arrived() -> None:
    with pytest.raises(InvalidAnswerError, match="the server accepted Patient/p and does not have it") as failure:
        asyncio.run(read_back(StubClient(), "Patient", "p"))  # type: ignore[arg-type]
    assert failure.value.may_have_arrived


# -- find_replaced_version ---------------------------------------------------------------------------------------------

PRODUCED, OTHER, THIRD = study(), study(description="another client's"), study(description="a third")
HISTORIES = [
    # newest first, by version; ours is known by this version; what was replaced and by which version
    ("created", [("1", PRODUCED)], "1", None),
    ("created, no version known", [("1", PRODUCED)], "", None),
    ("replaced", [("2", PRODUCED), ("1", OTHER)], "2", ("1", "2")),
    ("replaced, no version known", [("2", PRODUCED), ("1", OTHER)], "", ("1", "2")),
    ("opaque", [("b/=Ä", PRODUCED), ("a", OTHER)], "b/=Ä", ("a", "b/=Ä")),
    ("altered by the server", [("2", THIRD), ("1", OTHER)], "2", ("1", "2")),
    ("replaced again", [("3", THIRD), ("2", PRODUCED), ("1", OTHER)], "2", ("1", "2")),
    ("sent twice", [("2", PRODUCED), ("1", PRODUCED)], "", None),
    ("sent twice, replaced", [("3", PRODUCED), ("2", PRODUCED), ("1", OTHER)], "", ("1", "3")),
    ("between two of ours", [("3", PRODUCED), ("2", OTHER), ("1", PRODUCED)], "3", ("2", "3")),
    ("between two of ours, no version known", [("3", PRODUCED), ("2", OTHER), ("1", PRODUCED)], "", ("2", "3")),
    ("after a deletion", [("3", PRODUCED), ("2", None), ("1", OTHER)], "3", None),
    ("deleted since", [("2", None), ("1", PRODUCED)], "1", None),
    ("ours is not found", [("2", THIRD), ("1", OTHER)], "9", None),
    ("ours is not found, no version known", [("2", THIRD), ("1", OTHER)], "", None),
    ("empty", [], "1", None),
]


@pytest.mark.parametrize(
    ("history", "version", "expected"), [case[1:] for case in HISTORIES], ids=[case[0] for case in HISTORIES]
)
def test_the_version_that_a_write_replaced(history: list[Any], version: str, expected: tuple[str, str] | None) -> None:
    client = StubClient()
    for number, resource in reversed(history):
        stored = resource | {"meta": {"versionId": number}} if resource else None
        client.versions["ImagingStudy", STUDY_ID].append(stored)
    work = find_replaced_version(
        client,  # type: ignore[arg-type]
        ("ImagingStudy", STUDY_ID),
        STUDY_ID,
        IdStrategy("urn:x"),
        sent={compute_content_hash(PRODUCED)},
        version=version,
    )
    found = asyncio.run(work)
    assert ((found.version, found.by) if found else None) == expected
    if found:
        assert found.resource_type == "ImagingStudy"
        assert found.resource is not None
        assert "description" in found.resource


@pytest.mark.parametrize("problem", ["keeps none", "cannot be read"])
@pytest.mark.parametrize("tells_creates", [True, False])
def test_without_a_history_the_status_shows_a_replacement(problem: str, tells_creates: bool) -> None:
    client = StubClient()
    client.has_answered_created, client.keeps_history = tells_creates, problem != "keeps none"
    if problem == "cannot be read":
        client.on_call = once("read_history", fail(InvalidAnswerError("the answer is too large")))
    work = find_replaced_version(
        client,  # type: ignore[arg-type]
        ("ImagingStudy", STUDY_ID),
        STUDY_ID,
        IdStrategy("urn:x"),
        sent=[compute_content_hash(PRODUCED)],
        version="7",
    )
    assert asyncio.run(work) == (ReplacedVersion("ImagingStudy", None, "", "7") if tells_creates else None)


def test_other_errors_are_raised() -> None:
    client = StubClient()
    client.on_call = once("read_history", fail(BusyError("busy", status=429)))
    with pytest.raises(BusyError):
        asyncio.run(find_replaced_version(client, KEY, STUDY_ID, CLIENT, sent=[]))  # type: ignore[arg-type]


# -- confirm_indexed --------------------------------------------------------------------------------------------------


def confirm(client: StubClient, *rows: ResourceRow, wanted: bool = False) -> list[ResourceRow]:
    shared = {("Patient", "p"): ("s", "1")}
    namespace = Namespace(IDS, CLIENT, SYSTEM)
    work = confirm_indexed(client, rows, shared, namespace, is_duplicate_wanted=wanted)  # type: ignore[arg-type]
    return asyncio.run(work)


def created(kind: str = "ImagingStudy", identity: str = STUDY_ID, **values: Any) -> ResourceRow:
    known = {"business_key": "1.2", "server_id": identity, "hash": "h", "state": State.STORED}
    return ResourceRow(kind, identity, "ds", "u", **known | values)


def test_a_resource_that_a_search_finds_is_indexed() -> None:
    client = StubClient()
    client.store(study())
    client.store(patient())
    rows = confirm(client, created(is_indexed=False), created("Patient", "p", is_indexed=False))
    assert [(one.is_indexed, one.reason) for one in rows] == [(True, None), (True, None)]
    assert [what[0] for what in client.methods("search")] == ["ImagingStudy", "Patient"]


def test_a_resource_that_no_search_finds_is_not_indexed() -> None:
    client = StubClient()
    client.unindexed = {client.store(study()), client.store(patient())}
    rows = confirm(client, created(), created("Patient", "p"))
    assert [(one.is_indexed, one.reason) for one in rows] == [(False, None), (False, None)]


def test_after_a_failed_search_the_next_run_searches_again() -> None:
    client = StubClient()
    client.on_call = once("search", fail(BusyError("busy")))
    assert [one.is_indexed for one in confirm(client, created())] == [False]


@pytest.mark.parametrize("wanted", [False, True])
def test_a_study_of_another_client_is_reported(wanted: bool) -> None:
    client = StubClient()
    client.store(study())
    client.store(study(id="x", identifier=[UID]))
    client.store(
        study(id=IDS.resource_id("ImagingStudy", "b", "1.2"), identifier=[UID, NAMED | {"value": "urn:uid:b"}])
    )
    (row,) = confirm(client, created(), wanted=wanted)
    text = (
        "ImagingStudy/x of another client has its StudyInstanceUID, too; no search found it before this one was created"
    )
    assert (row.reason, row.reason_text) == ((None, None) if wanted else ("study-exists-on-server", text))
    assert row.is_indexed
    client.store(study(id="y", identifier=[UID]))
    (row,) = confirm(client, created())
    assert row.reason_text == (
        "ImagingStudy/x, ImagingStudy/y of other clients have its StudyInstanceUID, too; no search found them before "
        "this one was created"
    )


def test_a_duplicate_patient_is_reported_unless_it_was_merged() -> None:
    client = StubClient()
    client.store(patient())
    client.store(patient(id="merged", link=[{"type": "replaced-by", "other": {"reference": "Patient/p"}}]))
    assert confirm(client, created("Patient", "p"))[0].reason is None
    client.store(patient(id="x", link="odd"))
    row = confirm(client, created("Patient", "p"))[0]
    assert (row.reason, row.reason_text) == ("duplicate-patient-on-server", "Patient/x")


def test_an_existing_reason_stays() -> None:
    client = StubClient()
    client.store(study())
    client.store(study(id="x", identifier=[UID]))
    before = created(reason="concurrent-overwrite", reason_text="text")
    assert confirm(client, before) == [before]


# -- a batch: what is stored ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [CLIENT, SERVER])
@pytest.mark.parametrize("names_versions", [True, False])
@pytest.mark.parametrize("tells_creates", [True, False])
@pytest.mark.parametrize("keeps_history", [True, False])
@pytest.mark.parametrize("names_ids", [True, False])
def test_on_every_server_a_study_is_stored_once_and_then_updated(
    uploads: Uploads,
    strategy: IdStrategy,
    names_versions: bool,
    tells_creates: bool,
    keeps_history: bool,
    names_ids: bool,
) -> None:
    client = uploads.client
    client.names_versions, client.tells_creates = names_versions, tells_creates
    client.keeps_history, client.names_ids = keeps_history, names_ids
    client.version_name = lambda number: f"v/{'x' * number}=Ä"
    uploads.strategy = strategy
    first = uploads.upload(study())
    assert (first.state, first.reason, first.is_indexed, first.is_owned) == (State.STORED, None, True, True)
    assert first.version == ("v/x=Ä" if names_versions else "")
    assert uploads.open_attempts(study()) == 0
    assert uploads.writes() == 1

    assert uploads.upload(study()).state is State.STORED
    assert uploads.writes() == 1  # it is as it should be

    changed = study(description="new")
    second = uploads.upload(changed)
    assert (second.state, second.reason) == (State.STORED, None)
    assert uploads.writes() == 2
    assert second.server_id == first.server_id
    current = client.current(("ImagingStudy", str(second.server_id)))
    assert current is not None
    assert current["description"] == "new"

    # changed again without an external write: no conflict
    third = uploads.upload(study(description="newer"))
    assert (third.state, third.reason) == (State.STORED, None)
    assert len([one for one in client.versions if one[0] == "ImagingStudy" and client.current(one)]) == 1


@pytest.mark.parametrize("strategy", [CLIENT, SERVER])
@pytest.mark.parametrize("names_versions", [True, False])
def test_a_study_that_was_up_to_date_can_be_changed_later(
    uploads: Uploads, strategy: IdStrategy, names_versions: bool
) -> None:
    """The ledger had no row of it, gets one for the unchanged study, and the next run has a change to send."""
    uploads.client.names_versions, uploads.strategy = names_versions, strategy
    body, _ = strategy.prepare_update(study(), "17" if strategy is SERVER else None)
    uploads.client.store(body)
    assert uploads.upload(study()).state is State.STORED
    assert uploads.writes() == 0
    row = uploads.upload(study(description="new"))
    assert (row.state, row.reason) == (State.STORED, None)
    assert uploads.writes() == 1


@pytest.mark.parametrize("strategy", [CLIENT, SERVER])
@pytest.mark.parametrize("names_versions", [True, False])
def test_a_study_that_another_client_changed_is_held(
    uploads: Uploads, strategy: IdStrategy, names_versions: bool
) -> None:
    uploads.client.names_versions, uploads.strategy = names_versions, strategy
    place = ("ImagingStudy", str(uploads.upload(study()).server_id))
    uploads.client.store((uploads.client.current(place) or {}) | {"note": [{"text": "n"}]})
    row = uploads.upload(study(description="new"))
    assert (row.state, row.reason) == (State.HELD, "changed-on-server")
    assert uploads.writes() == 1
    assert uploads.upload(study(description="new"), overwrite=True).state is State.STORED


def test_a_dry_run_writes_nothing_to_the_server(uploads: Uploads) -> None:
    row = uploads.upload(study(), dry_run=True)
    assert row.state is State.STORED
    assert uploads.writes() == 0
    assert uploads.client.versions == {}


# -- a batch: other clients at the same time --------------------------------------------------------------------------


def test_a_version_between_lookup_and_update_is_not_lost(uploads: Uploads) -> None:
    uploads.upload(study())
    uploads.client.on_call = once("transaction", lambda: uploads.client.store(study(note=[{"text": "n"}])))
    row = uploads.upload(study(description="new"))
    assert (row.state, row.reason) == (State.HELD, "changed-on-server")
    assert uploads.open_attempts(study()) == 0
    current = uploads.client.current(("ImagingStudy", STUDY_ID))
    assert current is not None
    assert current["note"] == [{"text": "n"}]


@pytest.mark.parametrize("tells_creates", [True, False])
def test_a_study_that_replaced_another_clients_is_reported(uploads: Uploads, tells_creates: bool) -> None:
    uploads.client.tells_creates = tells_creates
    uploads.client.on_call = once("transaction", lambda: uploads.client.store(OTHER))
    row = uploads.upload(study())
    assert (row.state, row.reason) == (State.STORED, "concurrent-overwrite")
    assert row.reason_text == (
        "version 2 of this lake replaced version 1 of another client, which was written at the same time; see "
        f"https://server.example/fhir/ImagingStudy/{STUDY_ID}/_history"
    )


def test_a_patient_that_replaced_another_clients_is_merged_with_it(uploads: Uploads) -> None:
    other = patient(telecom=[{"value": "1"}], gender="male")
    uploads.client.on_call = once("transaction", lambda: uploads.client.store(other))
    row = uploads.upload(patient())
    assert (row.state, row.reason) == (State.STORED, "patient-conflict")
    current = uploads.client.current(("Patient", "p"))
    assert current is not None
    assert current | {"meta": {}} == patient(telecom=[{"value": "1"}]) | {"meta": {}}
    assert (row.version, uploads.open_attempts(patient())) == ("3", 0)


def test_a_resource_that_another_client_keeps_changing_fails(uploads: Uploads) -> None:
    uploads.upload(patient())

    def on_call(method: str, _what: Any) -> None:
        if method == "transaction":
            uploads.client.store(patient(telecom=[{"value": str(len(uploads.client.calls))}]))

    uploads.client.on_call = on_call
    row = uploads.upload(patient(gender="male"))
    assert (row.state, row.reason, row.http_status) == (State.FAILED, "upload-failed", 412)
    assert str(row.reason_text).startswith(
        "refused 10 times, although it was read again each time: another client keeps modifying it"
    )
    assert uploads.open_attempts(patient()) == 0


# -- a batch: no answer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", [CLIENT, SERVER])
@pytest.mark.parametrize("error", [TimedOutError("late"), ServerFailureError("gateway", status=502)])
@pytest.mark.parametrize("arrives", [True, False])
@pytest.mark.parametrize("next_resource", [study(), study(description="new")])
def test_an_unanswered_attempt_is_looked_up_by_the_next_run(
    uploads: Uploads, strategy: IdStrategy, error: FhirError, arrives: bool, next_resource: dict[str, Any]
) -> None:
    client, uploads.strategy = uploads.client, strategy
    hook = once("transaction", fail(error))
    if arrives:
        client.after_write = hook
    else:
        client.on_call = hook
    row = uploads.upload(study())
    assert (row.state, row.reason, row.is_on_server) == (State.UNCONFIRMED, "upload-unconfirmed", False)
    assert uploads.open_attempts(study()) == 1

    client.on_call = client.after_write = lambda *_: None
    row = uploads.upload(next_resource)
    assert (row.state, row.reason, row.is_owned) == (State.STORED, None, True)
    assert uploads.open_attempts(study()) == 0
    assert uploads.writes() == (1 if arrives and next_resource == study() else 2)
    assert len([one for one in client.versions if client.current(one)]) == 1


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (UnreachableError("no connection"), State.FAILED, "upload-failed"),
        (BusyError("busy", status=429), State.FAILED, "upload-failed"),
        (RejectedError("no", status=422), State.REJECTED, "upload-rejected"),
    ],
)
def test_a_request_that_was_not_delivered_leaves_no_attempt(
    uploads: Uploads, error: FhirError, state: State, reason: str
) -> None:
    uploads.client.on_call = once("transaction", fail(error))
    row = uploads.upload(study())
    assert (row.state, row.reason, row.http_status) == (state, reason, error.status)
    assert uploads.open_attempts(study()) == 0


def test_a_failure_keeps_what_is_known_of_the_server(uploads: Uploads) -> None:
    before = uploads.upload(study())
    uploads.client.on_call = once("transaction", fail(BusyError("busy", status=429)))
    after = uploads.upload(study(description="new"))
    assert after.state is State.FAILED
    kept = ("server_id", "version", "etag", "hash", "server_hash")
    assert [getattr(after, name) for name in kept] == [getattr(before, name) for name in kept]


@pytest.mark.parametrize("method", ["search", "read"])
def test_nothing_is_sent_if_the_server_cannot_be_asked(uploads: Uploads, method: str) -> None:
    if method == "read":
        uploads.upload(study())
    writes = uploads.writes()
    uploads.client.on_call = once(method, fail(BusyError("busy", status=429)))
    row = uploads.upload(study(description="new"))
    assert (row.state, row.reason) == (State.FAILED, "upload-failed")
    assert uploads.writes() == writes


def test_an_attempt_stays_open_until_the_replaced_version_is_known(uploads: Uploads) -> None:
    uploads.client.tells_creates = False
    uploads.client.on_call = once("read_history", fail(BusyError("busy", status=429)))
    row = uploads.upload(study())
    assert (row.state, uploads.open_attempts(study())) == (State.UNCONFIRMED, 1)
    assert uploads.upload(study()).state is State.STORED
    assert uploads.open_attempts(study()) == 0


def test_the_next_run_finds_what_a_killed_run_replaced(uploads: Uploads) -> None:
    uploads.client.on_call = once("transaction", lambda: uploads.client.store(OTHER))
    uploads.client.after_write = once("transaction", fail(TimedOutError("late")))
    assert uploads.upload(study()).state is State.UNCONFIRMED
    row = uploads.upload(study())
    assert (row.state, row.reason) == (State.STORED, "concurrent-overwrite")
    assert uploads.open_attempts(study()) == 0


def test_a_removed_patient_value_disappears_after_a_lost_answer(uploads: Uploads) -> None:
    uploads.client.after_write = once("transaction", fail(TimedOutError("late")))
    assert uploads.upload(patient(name=[{"family": "A"}])).state is State.UNCONFIRMED
    uploads.client.store((uploads.client.current(("Patient", "p")) or {}) | {"telecom": [{"value": "1"}]})
    row = uploads.upload(patient())
    current = uploads.client.current(("Patient", "p"))
    assert current is not None
    assert row.state is State.STORED
    assert "name" not in current
    assert current["telecom"] == [{"value": "1"}]
    assert orjson.loads(row.contribution or "") == patient()


def test_the_etag_that_was_read_is_sent_back_verbatim(uploads: Uploads) -> None:
    uploads.upload(study())
    seen: list[str] = []

    async def read(resource_type: str, resource_id: str) -> ServerResource:
        found = uploads.client.current((resource_type, resource_id))
        assert found is not None
        return ServerResource(found, '"strong-Ä"')

    transaction = uploads.client.transaction

    async def note_transaction(requests: Any, *, retry: bool = True) -> Any:
        seen.extend(request.if_match for request in requests)
        return await transaction([replace(request, if_match="") for request in requests], retry=retry)

    uploads.client.read, uploads.client.transaction = read, note_transaction  # type: ignore[method-assign,assignment]
    uploads.upload(study(description="new"))
    assert seen == ['"strong-Ä"']
