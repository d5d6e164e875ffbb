"""Deletion: the rows of orphaned resources by tables, and what is deleted from a stub of `FhirClient`."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dicom_etl.fhir_client.errors import AccessDeniedError, ConflictError, UnreachableError
from dicom_etl.identity.ids import ResourceIds
from dicom_etl.lake.tables import Lake
from dicom_etl.upload.deletion import (
    DeletionResult,
    LedgerWithdrawal,
    Withdrawal,
    delete_orphaned,
    delete_resources,
    locate_resources,
    make_orphaned_row,
)
from dicom_etl.upload.items import IdStrategy, UploadOptions, compute_content_hash
from dicom_etl.upload.ledger import Attempt, Key, Ledger, ResourceRow, State
from dicom_etl.upload.studies import Namespace
from dicom_etl.upload.transfer import Target
from tests.upload.support.stub_client import StubClient
from tests.upload.test_items import ODD

CLIENT = IdStrategy("https://site.example")
SERVER = IdStrategy("https://site.example", is_client_assigned=False)
SYSTEM = "https://site.example/dataset"
IDS = ResourceIds.from_key("https://site.example", None)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.from_lake(Lake(str(tmp_path / "lake")).open(), "server") as opened:
        yield opened


def row(kind: str = "ImagingStudy", identity: str = "s", **values: Any) -> ResourceRow:
    known = {"dataset": "ds", "unit": "u1", "server_id": identity, "hash": "h", "state": State.STORED, "version": "1"}
    return ResourceRow(kind, identity, **known | values)


# -- rows that the lake no longer produces ----------------------------------------------------------------------------

EXTERNAL = "not deleted: ImagingStudy/x belongs to another client; remove the series of this lake there"
DROPPED = [
    # type, values of the row, open attempts, the state afterwards (None: forgotten), reason, text
    ("ours", "ImagingStudy", {}, False, "orphaned", "orphaned-on-server", None),
    ("ours, with a reason", "ImagingStudy", {"reason": "study-merged"}, False, "orphaned", "orphaned-on-server", None),
    ("never there", "ImagingStudy", {"server_id": None, "hash": None}, False, None, None, None),
    ("only seen there", "ImagingStudy", {"hash": None, "state": State.HELD}, False, None, None, None),
    ("failed, there before", "ImagingStudy", {"state": State.FAILED}, False, "orphaned", "orphaned-on-server", None),
    (
        "unconfirmed",
        "ImagingStudy",
        {"server_id": None, "hash": None, "state": State.UNCONFIRMED},
        True,
        "orphaned",
        "orphaned-on-server",
        None,
    ),
    (
        "merged into another client's",
        "ImagingStudy",
        {"server_id": "x", "is_external": True},
        False,
        "orphaned",
        "orphaned-on-server",
        EXTERNAL,
    ),
    ("another client's Patient", "Patient", {"server_id": "x", "is_external": True}, False, None, None, None),
    ("another client's Patient, attempted", "Patient", {"is_external": True}, True, None, None, None),
    ("our Patient", "Patient", {}, False, "orphaned", "orphaned-on-server", None),
    (
        "concurrent overwrite",
        "ImagingStudy",
        {"reason": "concurrent-overwrite", "reason_text": "version 2 of this lake replaced version 1"},
        False,
        "orphaned",
        "concurrent-overwrite",
        "not deleted: version 2 of this lake replaced version 1",
    ),
]


@pytest.mark.parametrize(
    ("kind", "values", "has_attempts", "state", "reason", "text"),
    [case[1:] for case in DROPPED],
    ids=[case[0] for case in DROPPED],
)
def test_the_row_of_a_resource_that_is_no_longer_produced(
    kind: str, values: Any, has_attempts: bool, state: str | None, reason: str | None, text: str | None
) -> None:
    before = row(kind, **values)
    after = make_orphaned_row(before, has_attempts=has_attempts)
    if state is None:
        assert after is None
        return
    assert after is not None
    assert (after.state, after.reason, after.reason_text) == (state, reason, text)
    assert (after.server_id, after.hash, after.version) == (before.server_id, before.hash, before.version)
    assert make_orphaned_row(after, has_attempts=has_attempts) is after


# -- what is deleted --------------------------------------------------------------------------------------------------


def orphaned(kind: str = "ImagingStudy", identity: str = "s", **values: Any) -> ResourceRow:
    return row(kind, identity, **{"state": State.ORPHANED, "reason": "orphaned-on-server"} | values)


def prune(
    client: StubClient, ledger: Ledger, rows: list[ResourceRow], *, strategy: IdStrategy = CLIENT, dry_run: bool = False
) -> tuple[list[str], set[Key]]:
    """Delete orphaned rows; returns the ids of the deleted ones, and their types and ids on the server."""
    namespace = Namespace(IDS, strategy, SYSTEM)
    target = Target(client, ledger, namespace, UploadOptions(prune=True, dry_run=dry_run), 10**6)  # type: ignore[arg-type]
    ledger.write_rows(rows)
    deleted: set[Key] = set()
    gone = asyncio.run(delete_orphaned(target, rows, deleted))
    return [one.id for one in gone], deleted


def read_reasons(ledger: Ledger) -> dict[str, str | None]:
    return {one.id: one.reason_text for one in ledger.read_where().result(30)}


def store_all(client: StubClient, *resources: dict[str, Any]) -> None:
    for one in resources:
        client.store(one)


STUDY = {"resourceType": "ImagingStudy", "id": "s", "subject": {"reference": "Patient/p"}}
PATIENT = {"resourceType": "Patient", "id": "p"}
ENDPOINT = {"resourceType": "Endpoint", "id": "e"}


def test_studies_are_deleted_before_what_they_refer_to(ledger: Ledger) -> None:
    client = StubClient()
    store_all(client, STUDY, PATIENT, ENDPOINT)
    rows = [orphaned("Endpoint", "e"), orphaned("Patient", "p"), orphaned()]
    assert prune(client, ledger, rows)[0] == ["s", "p", "e"]
    assert client.methods("delete") == [("ImagingStudy", "s"), ("Patient", "p"), ("Endpoint", "e")]
    assert read_reasons(ledger) == {}


@pytest.mark.parametrize(
    "subject",
    [
        {"reference": "Patient/p"},
        {"reference": "https://server.example/fhir/Patient/p"},
        {"reference": "Patient/p/_history/3"},
    ],
)
def test_a_patient_stays_while_a_study_refers_to_it(ledger: Ledger, subject: Any) -> None:
    client = StubClient()
    store_all(client, PATIENT)
    found = [STUDY | {"id": "x", "subject": subject}]
    client.search = lambda *_: asyncio.sleep(0, found)  # type: ignore[method-assign]
    assert prune(client, ledger, [orphaned("Patient", "p")])[0] == []
    assert client.methods("delete") == []
    assert read_reasons(ledger) == {
        "p": "not deleted: HTTP 409: 1 ImagingStudy resource on the server refers to it, for example x"
    }


@pytest.mark.parametrize("subject", [*ODD, {"reference": "Patient/other"}, {"identifier": {"value": "p"}}])
def test_studies_of_other_patients_do_not_keep_a_patient(ledger: Ledger, subject: Any) -> None:
    client = StubClient()
    store_all(client, PATIENT)
    found = [STUDY | {"id": "x", "subject": subject}]  # a server that does not know the parameter gives all studies
    client.search = lambda *_: asyncio.sleep(0, found)  # type: ignore[method-assign]
    assert prune(client, ledger, [orphaned("Patient", "p")])[0] == ["p"]


def test_external_content_stays_until_a_person_has_handled_it(ledger: Ledger) -> None:
    client = StubClient()
    named = {"system": SYSTEM, "value": "urn:uid:ds"}
    store_all(client, STUDY | {"id": "x", "identifier": [named]}, STUDY | {"id": "y", "identifier": []})
    client.store(STUDY)
    rows = [
        orphaned(identity="a", server_id="x", is_external=True),
        orphaned(identity="b", server_id="y", is_external=True),  # no longer names the dataset
        orphaned(identity="c", server_id="z", is_external=True),  # no longer on the server
        orphaned(identity="s", reason="concurrent-overwrite", version="1"),
        orphaned(identity="t", server_id="s", reason="concurrent-overwrite", version="0"),  # written again
    ]
    assert prune(client, ledger, rows) == ([], set())
    assert client.methods("delete") == []
    assert set(read_reasons(ledger)) == {"a", "s"}


def test_a_dry_run_deletes_nothing(ledger: Ledger) -> None:
    client = StubClient()
    store_all(client, STUDY, PATIENT)
    gone, deleted = prune(client, ledger, [orphaned(), orphaned("Patient", "p")], dry_run=True)
    assert (gone, deleted) == (["s", "p"], {("ImagingStudy", "s"), ("Patient", "p")})
    assert client.methods("delete") == []


def test_a_refusal_is_recorded_with_a_new_time(ledger: Ledger) -> None:
    client = StubClient()

    def on_call(method: str, _what: Any) -> None:
        if method == "delete":
            raise AccessDeniedError("no", status=403)

    client.on_call = on_call
    before = orphaned()
    assert prune(client, ledger, [before]) == ([], set())
    (after,) = ledger.read_where().result(30)
    assert (after.reason_text, after.http_status) == ("not deleted: HTTP 403: no", 403)
    assert after.time > before.time


def test_unanswered_attempts_are_searched_for_with_server_assigned_ids(ledger: Ledger) -> None:
    client = StubClient()
    store_all(client, SERVER.prepare_update(STUDY, "17")[0])
    rows = [orphaned(server_id=None, hash=None), orphaned(identity="t", server_id=None, hash=None)]
    sent = [Attempt("ImagingStudy", row.id, "h", compute_content_hash(STUDY), "") for row in rows]
    ledger.write_attempts(sent, rows).result(30)
    gone, deleted = prune(client, ledger, rows, strategy=SERVER)
    assert (gone, deleted) == (["s"], {("ImagingStudy", "17")})  # what never arrived is forgotten
    assert ledger.read_where().result(30) == []
    assert client.methods("delete") == [("ImagingStudy", "17")]


@pytest.mark.parametrize(("by_id", "methods"), [(True, {"read"}), (False, {"search"})])
def test_resources_are_located(by_id: bool, methods: set[str]) -> None:
    client = StubClient()
    store_all(client, STUDY, PATIENT)
    keys = [("ImagingStudy", "s"), ("Patient", "p"), ("Patient", "q")]
    places = asyncio.run(locate_resources(client, CLIENT, keys, by_id=by_id))  # type: ignore[arg-type]
    assert places == {("ImagingStudy", "s"), ("Patient", "p")}
    assert {method for method, _ in client.calls} == methods


def test_resources_are_deleted_in_order_until_the_first_error() -> None:
    client = StubClient()
    refusals = {("ImagingStudy", "s"): ConflictError("needed", status=409), ("Patient", "q"): UnreachableError("gone")}

    def on_call(method: str, what: Any) -> None:
        if method == "delete" and what in refusals:
            raise refusals[what]

    client.on_call = on_call
    places = [("Endpoint", "e"), ("Patient", "q"), ("Patient", "p"), ("ImagingStudy", "s")]
    done = asyncio.run(delete_resources(client, places))  # type: ignore[arg-type]
    assert done == DeletionResult({("Patient", "p")}, {("ImagingStudy", "s")}, refusals["Patient", "q"])


# -- withdrawals ------------------------------------------------------------------------------------------------------

SUBJECT = Withdrawal("ds", "u1", frozenset({"1.2"}), frozenset({"p", "n"}), frozenset({"n"}), is_all=False)
LAST = replace(SUBJECT, is_all=True)
DATASET = Withdrawal("ds", None, frozenset({"1.2", "1.3"}), frozenset({"p", "n"}), frozenset({"n"}), is_all=True)
CONCERNED = [
    # row, whether a subject, the last subject and the dataset concern it
    ("study of the unit", row(), (True, True, True)),
    ("study of another unit", row(unit="u2", business_key="1.9"), (False, False, True)),
    ("study that is partly the subject's", row(unit="u2", business_key="1.2"), (True, True, True)),
    ("the same study of another dataset", row(dataset="other", business_key="1.2"), (False, False, False)),
    ("same unit of another dataset", row(dataset="other"), (False, False, False)),
    ("own Patient of the unit", row("Patient", "o"), (True, True, True)),
    ("own Patient of another unit", row("Patient", "o", unit="u2", business_key="1.2"), (False, False, True)),
    ("shared Patient", row("Patient", "p", unit=None), (True, True, True)),
    ("shared Patient, by another dataset", row("Patient", "p", unit=None, dataset="other"), (True, True, True)),
    ("shared Patient that others need", row("Patient", "n", unit=None), (False, False, False)),
    ("another shared Patient", row("Patient", "x", unit=None, dataset="other"), (False, False, False)),
    ("another shared Patient of the dataset", row("Patient", "x", unit=None), (False, False, True)),
    ("Endpoint", row("Endpoint", "e", unit=None), (False, True, True)),
    ("Endpoint of another dataset", row("Endpoint", "e", unit=None, dataset="other"), (False, False, False)),
]


@pytest.mark.parametrize(("known", "concerned"), [case[1:] for case in CONCERNED], ids=[case[0] for case in CONCERNED])
def test_the_rows_that_a_withdrawal_includes(known: ResourceRow, concerned: tuple[bool, bool, bool]) -> None:
    assert tuple(one.includes(known) for one in (SUBJECT, LAST, DATASET)) == concerned


@pytest.mark.parametrize(
    ("known", "has_attempts", "deletes"),
    [
        (row(), False, True),
        (row(state=State.FAILED), False, True),
        (row(hash=None), False, True),
        (row(server_id=None), False, False),
        (row(server_id=None), True, True),
        (row(is_external=True), True, False),
        (row("Patient", "p", unit=None), False, True),
        (row("Patient", "n"), False, False),  # of one that others need
        (row("Endpoint", "n", unit=None), False, True),  # the id is that of a Patient
    ],
)
def test_the_resources_that_a_withdrawal_deletes(known: ResourceRow, has_attempts: bool, deletes: bool) -> None:
    assert SUBJECT.deletes(known, has_attempts=has_attempts) is deletes


def test_a_withdrawal_deletes_its_rows_and_no_others(ledger: Ledger) -> None:
    rows = [
        row(identity="mine"),
        row(identity="partly", unit="u2", business_key="1.2"),
        row(identity="stays", unit="u3", business_key="1.9"),
        row(identity="lost", server_id=None, state=State.UNCONFIRMED),
        row(identity="merged", server_id="x", is_external=True),
        row("Patient", "p", unit=None, server_id="17"),
        row("Patient", "n", unit=None),
        row("Endpoint", "e", unit=None),
    ]
    ledger.write_attempts([Attempt("ImagingStudy", "lost", "h", "s", "")], rows)
    ledger.write_fingerprints("ds", {"u1": "f1", "u2": "f2", "u3": "f3"})
    withdrawn = LedgerWithdrawal(ledger, SUBJECT)
    content = withdrawn.read_content()
    assert content.resources == {("ImagingStudy", "mine"), ("ImagingStudy", "partly"), ("Patient", "17")}
    assert content.uncertain == {("ImagingStudy", "lost")}
    assert content.external == {"ImagingStudy/x"}
    assert (content.kept_patients, content.has_dataset) == (1, True)
    withdrawn.delete_rows()
    assert {one.id for one in ledger.read_where().result(30)} == {"stays", "n", "e"}
    assert ledger.read_attempts([("ImagingStudy", "lost")]).result(30) == {}
    assert ledger.read_fingerprints("ds").result(30) == {"u3": "f3"}
