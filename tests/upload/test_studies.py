"""Whether a study or an Endpoint may be sent: decisions by tables, and the requests to a stub of `FhirClient`."""

import asyncio
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_etl.fhir_client import ServerResource
from dicom_etl.identity.ids import ResourceIds
from dicom_etl.upload.items import (
    Action,
    Decision,
    IdStrategy,
    UploadItem,
    UploadOptions,
    compute_content_hash,
    is_same_content,
)
from dicom_etl.upload.ledger import Attempt, ResourceRow, State
from dicom_etl.upload.studies import (
    ContentLoss,
    Namespace,
    StudyOnServer,
    decide_study,
    find_content_loss,
    find_studies,
    is_same_version,
    look_up_studies,
    merge_into_existing,
)
from tests.upload.support.stub_client import StubClient
from tests.upload.test_items import ODD, odd_resources

CLIENT = IdStrategy("https://site.example")
SERVER = IdStrategy("https://site.example", is_client_assigned=False)
IDS = ResourceIds.from_key("https://site.example", None)
SYSTEM = "https://site.example/dataset"
UID = {"system": "urn:dicom:uid", "value": "urn:oid:1.2"}


def series(**instances: list[str]) -> list[dict[str, Any]]:
    """Series by UID, with their instances."""
    return [
        {"uid": uid, "numberOfInstances": len(some), "instance": [{"uid": one} for one in some]}
        for uid, some in instances.items()
    ]


def study(identity: str = "s", **elements: Any) -> dict[str, Any]:
    return {
        "resourceType": "ImagingStudy",
        "id": identity,
        "identifier": [UID],
        "status": "available",
        "subject": {"reference": "Patient/p"},
        "series": series(s1=["a", "b"]),
    } | elements


PRODUCED = study(started="2026-01-01")
ITEM = UploadItem(PRODUCED, "ds", "u", business_key="1.2").with_hash()
MORE = study(series=series(s1=["a", "b", "c"]))
FORMER = study(started="2025-01-01")


def row(**values: Any) -> ResourceRow:
    known_row = {"server_id": "s", "hash": "h", "version": "1", "etag": 'W/"1"', "state": State.STORED}
    return ResourceRow("ImagingStudy", "s", "ds", **known_row | values)


def attempt(resource: dict[str, Any], **values: Any) -> Attempt:
    return Attempt("ImagingStudy", "s", "h", compute_content_hash(resource), "", **values)


def on_server(resource: dict[str, Any], version: str = "2", etag: str = "") -> ServerResource:
    return ServerResource(resource | ({"meta": {"versionId": version}} if version else {}), etag)


# -- decisions --------------------------------------------------------------------------------------------------------

CHANGED = "version 2 on the server is not the one that this lake stored"
REPLACED = "version 2 on the server replaced what this lake sent"
NOT_ARRIVED = "version 2 on the server is not what this lake sent, which did not arrive"
LOSS = "the update would remove 0 of 1 series and 1 of 3 instances"
S, U, H = Action.SEND, Action.UNCHANGED, Action.HOLD
CASES = [
    # what the server has, the ledger's row, open attempts, whether one arrived, options, action, reason, text
    ("nothing", None, None, [], None, {}, S, None, None),
    ("nothing, although it was stored", None, row(), [], None, {}, S, None, None),
    ("ours", PRODUCED, None, [], None, {}, U, None, None),
    ("ours, another version", PRODUCED, row(), [], None, {}, U, None, None),
    ("never stored, no attempt", FORMER, None, [], None, {}, S, None, None),
    ("as stored, by version", FORMER, row(version="2"), [], None, {}, S, None, None),
    ("as stored, by content", FORMER, row(server_hash=compute_content_hash(FORMER)), [], None, {}, S, None, None),
    ("changed", FORMER, row(), [], None, {}, H, "changed-on-server", CHANGED),
    ("changed, overwritten", FORMER, row(), [], None, {"overwrite": True}, S, None, None),
    ("only seen there", FORMER, row(hash=None), [], None, {}, S, None, None),
    ("what was attempted", FORMER, row(), [attempt(FORMER)], True, {}, S, None, None),
    ("one of what was attempted", FORMER, None, [attempt(PRODUCED), attempt(FORMER)], True, {}, S, None, None),
    ("arrived and replaced", FORMER, None, [attempt(PRODUCED)], True, {}, H, "changed-on-server", REPLACED),
    ("not arrived", FORMER, None, [attempt(PRODUCED)], False, {}, H, "changed-on-server", NOT_ARRIVED),
    ("not arrived, overwritten", FORMER, None, [attempt(PRODUCED)], False, {"overwrite": True}, S, None, None),
    ("stored last, attempt did not arrive", FORMER, row(version="2"), [attempt(PRODUCED)], False, {}, S, None, None),
    ("more", MORE, row(version="2"), [], None, {}, H, "update-removes-content", LOSS),
    ("more, pruned", MORE, row(version="2"), [], None, {"prune": True}, S, None, None),
    ("more, overwritten", MORE, row(), [], None, {"overwrite": True}, H, "update-removes-content", LOSS),
    ("more, overwritten and pruned", MORE, row(), [], None, {"overwrite": True, "prune": True}, S, None, None),
    ("more, changed", MORE, row(), [], None, {"prune": True}, H, "changed-on-server", CHANGED),
]


@pytest.mark.parametrize(
    ("server", "known_row", "attempts", "has_arrived", "options", "action", "reason", "text"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_the_decision_about_a_study_of_the_lake(
    server: Any, known_row: Any, attempts: Any, has_arrived: Any, options: Any, action: Action, reason: Any, text: Any
) -> None:
    current = on_server(server) if server else None
    decision = decide_study(
        ITEM, StudyOnServer(current, has_arrived=has_arrived), known_row, attempts, UploadOptions(**options), CLIENT
    )
    assert (decision.action, decision.reason, decision.text) == (action, reason, text)
    assert decision.server == current
    assert decision.resource == (PRODUCED if action is S else None)
    assert not decision.is_external


@pytest.mark.parametrize(
    ("server", "known_row", "attempts", "has_arrived", "options", "action", "reason", "text"),
    [case[1:] for case in CASES],
    ids=[case[0] for case in CASES],
)
def test_the_decision_is_the_same_with_server_assigned_ids(
    server: Any, known_row: Any, attempts: Any, has_arrived: Any, options: Any, action: Action, reason: Any, text: Any
) -> None:
    current = on_server(SERVER.prepare_update(server, "17")[0]) if server else None
    decision = decide_study(
        ITEM, StudyOnServer(current, has_arrived=has_arrived), known_row, attempts, UploadOptions(**options), SERVER
    )
    assert (decision.action, decision.reason, decision.text) == (action, reason, text)


def test_endpoints_are_decided_in_the_same_way() -> None:
    endpoint = {"resourceType": "Endpoint", "id": "e", "address": "https://a"}
    item, other = UploadItem(endpoint, "ds").with_hash(), endpoint | {"address": "https://b"}
    known_row = ResourceRow("Endpoint", "e", "ds", server_id="e", hash="h", version="1")

    def decide(server: Any, row: ResourceRow | None, **options: bool) -> Decision:
        result = StudyOnServer(on_server(server) if server else None)
        return decide_study(item, result, row, (), UploadOptions(**options), CLIENT)

    assert decide(None, None) == Decision(S, resource=endpoint)
    assert decide(endpoint, None).action is U
    assert decide(other, None).action is S
    assert decide(other, known_row).reason == "changed-on-server"
    assert decide(other, known_row, overwrite=True).action is S


def test_an_external_study_holds_the_lakes() -> None:
    result = StudyOnServer(external=(study("x"),))
    assert decide_study(ITEM, result, None, (), UploadOptions(), CLIENT) == Decision(
        H, "study-exists-on-server", "ImagingStudy/x of another client has its StudyInstanceUID"
    )
    assert decide_study(ITEM, result, None, (), UploadOptions(existing_study="duplicate"), CLIENT).action is S


def test_a_study_is_merged_into_an_external_one() -> None:
    external = study("x", series=series(s1=["a"]))
    decision = decide_study(
        ITEM, StudyOnServer(external=(external,)), None, (), UploadOptions(existing_study="merge"), CLIENT
    )
    assert (decision.action, decision.reason, decision.is_external) == (S, "study-merged", True)
    assert decision.text == "series and instances of this lake are in ImagingStudy/x of another client"
    assert decision.server == ServerResource(external)
    assert decision.resource is not None
    assert decision.resource["id"] == "x"
    again = decide_study(
        ITEM, StudyOnServer(ServerResource(decision.resource)), row(is_external=True), (), UploadOptions(), CLIENT
    )
    assert (again.action, again.reason, again.is_external) == (U, "study-merged", True)


def test_a_study_is_not_merged_into_one_of_several() -> None:
    result = StudyOnServer(external=(study("y"), study("x")))
    assert decide_study(ITEM, result, None, (), UploadOptions(existing_study="merge"), CLIENT) == Decision(
        H,
        "study-exists-on-server",
        "ImagingStudy/x, ImagingStudy/y of other clients have its StudyInstanceUID, so that it cannot be merged into "
        "one",
    )


@pytest.mark.parametrize(
    ("known_row", "server", "same"),
    [
        (("1", None), ("1", ""), True),
        (("1", None), ("2", ""), False),
        ((None, 'W/"1"'), ("", 'W/"1"'), True),
        ((None, 'W/"1"'), ("", 'W/"2"'), False),
        ((None, 'W/"1"'), ("", '"1"'), False),  # opaque: as it is
        (("9c/Ä=", 'W/"x"'), ("9c/Ä=", 'W/"y"'), True),
        (("01", None), ("1", ""), False),
        (("", ""), ("", ""), False),  # nothing is known
        ((None, None), ("", ""), False),
        ((None, None), ("1", 'W/"1"'), False),
        (("1", 'W/"1"'), ("", ""), False),
        (("", 'W/"1"'), ("1", 'W/"1"'), True),
    ],
)
def test_versions_are_compared_verbatim(known_row: Any, server: Any, same: bool) -> None:
    assert is_same_version(row(version=known_row[0], etag=known_row[1]), on_server(PRODUCED, *server)) is same


def test_without_versions_the_content_decides() -> None:
    known_row = row(version="", etag="", server_hash=compute_content_hash(FORMER))
    result = StudyOnServer(on_server(FORMER, ""))
    assert decide_study(ITEM, result, known_row, (), UploadOptions(), CLIENT).action is S
    result = StudyOnServer(on_server(FORMER | {"description": "x"}, ""))
    decision = decide_study(ITEM, result, known_row, (), UploadOptions(), CLIENT)
    assert decision.text == "version (unnamed) on the server is not the one that this lake stored"


def test_a_study_moved_by_a_patient_merge_was_not_changed() -> None:
    moved = FORMER | {"subject": {"reference": "Patient/survivor"}}
    known_row = row(server_hash=compute_content_hash(FORMER))
    assert decide_study(ITEM, StudyOnServer(on_server(moved)), known_row, (), UploadOptions(), CLIENT).action is S


@pytest.mark.parametrize("strategy", [CLIENT, SERVER])
@given(server=odd_resources, options=st.sampled_from(["hold", "merge", "duplicate"]), is_external=st.booleans())
def test_no_malformed_study_raises(
    strategy: IdStrategy, server: dict[str, Any], options: str, is_external: bool
) -> None:
    given_options = UploadOptions(existing_study=options)
    for result in (StudyOnServer(ServerResource(server)), StudyOnServer(external=(server | {"id": "x"},))):
        for known_row in (None, row(is_external=is_external)):
            decision = decide_study(ITEM, result, known_row, [attempt(PRODUCED)], given_options, strategy)
            assert decision.action in Action
    decide_study(ITEM, StudyOnServer(ServerResource(server)), row(), (), UploadOptions(), strategy)


# -- content loss -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("server", "produced", "loss"),
    [
        (series(), series(), (0, 0, 0, 0)),
        (series(s1=["a"]), series(s1=["a", "b"], s2=["c"]), (0, 1, 0, 1)),
        (series(s1=["a", "b"], s2=["c"]), series(s1=["a"]), (1, 2, 2, 3)),
        (series(s1=["a", "b"]), series(s1=["a", "c"]), (0, 1, 1, 2)),  # exchanged
        (series(s1=["a"], s2=["b"]), series(s1=["a", "b"], s2=[]), (0, 2, 0, 2)),  # in another series
        (series(s1=["a"]), series(s2=["a"]), (1, 1, 0, 1)),
        ([{"uid": "s1"}], series(), (1, 1, 0, 0)),
        ([{"instance": [{"uid": "a"}]}], series(s1=["a"]), (1, 1, 0, 1)),
        (None, series(s1=["a"]), (0, 0, 0, 0)),
        ("s1", series(s1=["a"]), (0, 0, 0, 0)),
        ([None, "s1", {"uid": ["s1"], "instance": {"uid": "a"}}], series(s1=["a"]), (1, 1, 0, 0)),
    ],
)
def test_the_content_that_an_update_would_remove(server: Any, produced: Any, loss: tuple[int, int, int, int]) -> None:
    found = find_content_loss({"series": server}, {"series": produced})
    assert found == ContentLoss(*loss)
    assert bool(found) is (loss[0] + loss[2] > 0)


def test_the_text_of_a_content_loss() -> None:
    assert str(ContentLoss(1, 2, 2, 3)) == "the update would remove 1 of 2 series and 2 of 3 instances"


# -- merging into another client's study ------------------------------------------------------------------------------

TWO = {"series": [{"uid": "1", "instance": [{"uid": "1.1"}, {"uid": "1.2"}]}, {"uid": "2", "instance": []}]}


@pytest.mark.parametrize(
    ("server", "merged", "instances"),
    [
        ([{"number": 7}], [{"number": 7}, *TWO["series"]], 2),
        (
            [{"uid": "1", "instance": [{"number": 9}, {"uid": "1.1"}]}],
            [
                {"uid": "1", "instance": [{"number": 9}, {"uid": "1.1"}, {"uid": "1.2"}], "numberOfInstances": 3},
                {"uid": "2", "instance": []},
            ],
            3,
        ),
        (
            [{"uid": "1", "numberOfInstances": 50, "description": "x"}],
            [
                {"uid": "1", "numberOfInstances": 50, "description": "x", "instance": [{"uid": "1.1"}, {"uid": "1.2"}]},
                {"uid": "2", "instance": []},
            ],
            2,
        ),
        ([{"uid": "9", "instance": None}], [{"uid": "9", "instance": None}, *TWO["series"]], 2),
        ([{"uid": "9", "instance": 5}], [{"uid": "9", "instance": 5}, *TWO["series"]], 2),
        (
            [{"uid": "1", "instance": [{"uid": ["1.1"]}], "numberOfInstances": True}],
            [
                {"uid": "1", "instance": [{"uid": ["1.1"]}, {"uid": "1.1"}, {"uid": "1.2"}], "numberOfInstances": 3},
                {"uid": "2", "instance": []},
            ],
            3,
        ),
        (None, TWO["series"], 2),
        ("1", TWO["series"], 2),
    ],
    ids=["series without UID", "instance", "counts", "null", "number", "UID is a list", "no series", "a text"],
)
def test_series_and_instances_are_added(server: Any, merged: Any, instances: int) -> None:
    base = {"resourceType": "ImagingStudy", "id": "x"}
    assert merge_into_existing(base | {"series": server}, TWO) == base | {
        "series": merged,
        "numberOfSeries": len(merged),
        "numberOfInstances": instances,
    }


def test_values_of_the_other_client_take_precedence() -> None:
    server = {
        "resourceType": "ImagingStudy",
        "id": "x",
        "meta": {"versionId": "1", "tag": [{"code": "t"}]},
        "text": {"status": "generated"},
        "subject": {"reference": "Patient/theirs"},
        "status": "registered",
        "description": "",
        "modality": [{"code": "CT"}],
        "numberOfSeries": 10,
        "numberOfInstances": 100,
        "series": [],
    }
    produced = study(
        modality=[{"code": "CT"}, {"code": "MR"}], description="ours", started="2026", note=[{"text": "n"}]
    )
    before = deepcopy((server, produced))
    assert merge_into_existing(server, produced) == {
        "resourceType": "ImagingStudy",
        "id": "x",
        "meta": {"tag": [{"code": "t"}]},
        "subject": {"reference": "Patient/theirs"},
        "status": "registered",
        "description": "",
        "started": "2026",
        "identifier": [UID],
        "modality": [{"code": "CT"}, {"code": "MR"}],
        "note": [{"text": "n"}],
        "numberOfSeries": 10,
        "numberOfInstances": 100,
        "series": series(s1=["a", "b"]),
    }
    assert (server, produced) == before


some_uids = st.lists(st.sampled_from("abcd"), unique=True, max_size=3)
some_series = st.dictionaries(st.sampled_from(["s1", "s2", "s3"]), some_uids, max_size=3)


@given(server=some_series, produced=some_series, further=some_series, count=st.integers(0, 9))
def test_merging_adds_and_merging_again_changes_nothing(server: Any, produced: Any, further: Any, count: int) -> None:
    existing, new_study = study("x", series=series(**server), numberOfInstances=count), study(series=series(**produced))
    merged = merge_into_existing(existing, new_study)
    assert not find_content_loss(merged, merge_into_existing(merged, new_study))
    assert merge_into_existing(merged, new_study) == merged
    assert not find_content_loss(existing, merged)
    assert not find_content_loss(new_study, merged)
    assert merged["numberOfInstances"] >= count
    third = study(series=series(**further))
    one = merge_into_existing(merged, third)
    other = merge_into_existing(merge_into_existing(existing, third), new_study)
    assert is_same_content(one, other)


@given(server=odd_resources)
def test_no_malformed_external_study_raises(server: dict[str, Any]) -> None:
    merged = merge_into_existing(server, PRODUCED)
    assert not find_content_loss(PRODUCED, merged)
    assert merge_into_existing(merged, PRODUCED) == merged


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("element", ["identifier", "series", "subject", "meta", "numberOfSeries", "note", "text"])
def test_malformed_elements_of_an_external_study_do_not_raise(element: str, odd: Any) -> None:
    merged = merge_into_existing(study("x") | {element: odd}, PRODUCED)
    assert not find_content_loss(PRODUCED, merged)
    assert isinstance(merged["numberOfSeries"], int)
    assert not isinstance(merged["numberOfSeries"], bool)


# -- what the server is asked -----------------------------------------------------------------------------------------

RESOURCE_ID = IDS.resource_id("ImagingStudy", "ds", "1.2")
NAMED = {"system": SYSTEM, "value": "urn:uid:ds"}
UNKNOWN_STUDY = study(RESOURCE_ID, identifier=[UID, NAMED])
UNKNOWN_ITEM = UploadItem(UNKNOWN_STUDY, "ds", "u", business_key="1.2").with_hash()


def look(
    client: StubClient,
    *,
    known_row: ResourceRow | None = None,
    attempts: Any = (),
    strategy: Any = CLIENT,
    reads: bool = False,
) -> StudyOnServer:
    namespace = Namespace(IDS, strategy, SYSTEM)
    rows = {UNKNOWN_ITEM.key: known_row} if known_row else {}
    sent = {UNKNOWN_ITEM.key: list(attempts)} if attempts else {}
    result = asyncio.run(look_up_studies(client, [UNKNOWN_ITEM], rows, sent, namespace, reads_external=reads))  # type: ignore[arg-type]
    return result[UNKNOWN_ITEM.key]


def test_a_study_in_the_ledger_is_read_by_its_id() -> None:
    client = StubClient()
    client.store(UNKNOWN_STUDY)
    assert look(client, known_row=row(server_id=RESOURCE_ID)).current is not None
    assert client.calls == [("read", ("ImagingStudy", RESOURCE_ID))]


def test_an_unknown_study_is_searched_for_by_its_uid() -> None:
    client = StubClient()
    assert look(client) == StudyOnServer()
    assert client.calls == [
        (
            "search",
            ("ImagingStudy", {"identifier": "urn:dicom:uid|urn:oid:1.2", "_elements": "identifier", "_count": "100"}),
        )
    ]


@pytest.mark.parametrize("strategy", [CLIENT, SERVER])
def test_a_study_without_a_ledger_row_is_found(strategy: IdStrategy) -> None:
    client = StubClient()
    client.store(
        strategy.prepare_update(UNKNOWN_STUDY, None if strategy is CLIENT else "17")[0]
        | {"id": RESOURCE_ID if strategy is CLIENT else "17"}
    )
    result = look(client, strategy=strategy)
    assert result.current is not None
    assert result.external == ()
    assert result.has_arrived is None


def test_studies_of_other_datasets_of_the_lake_are_not_external() -> None:
    client = StubClient()
    other = IDS.resource_id("ImagingStudy", "other", "1.2")
    client.store(study(other, identifier=[UID, {"system": SYSTEM, "value": "urn:uid:other"}]))
    client.store(study("x"))
    client.store(study("pretends", identifier=[UID, NAMED]))  # the identifier of the lake, and another id
    assert [one["id"] for one in look(client).external] == ["pretends", "x"]


def test_a_study_that_a_read_does_not_find_was_deleted() -> None:
    client = StubClient()
    client.store(UNKNOWN_STUDY)
    client.read = lambda *_: asyncio.sleep(0, None)  # type: ignore[method-assign]
    assert look(client, known_row=row(server_id=RESOURCE_ID)) == StudyOnServer()


def test_external_studies_are_read_completely_for_a_merge() -> None:
    client = StubClient()
    client.store(study("x", description="whole"))
    assert look(client).external[0]["id"] == "x"
    assert client.methods("read") == []
    assert look(client, reads=True).external[0]["description"] == "whole"
    assert client.methods("read") == [("ImagingStudy", "x")]


@pytest.mark.parametrize("strategy", [CLIENT, SERVER])
@pytest.mark.parametrize(
    ("stored", "keeps_history", "has_arrived"),
    [
        ([], True, False),
        ([UNKNOWN_STUDY], True, True),
        ([UNKNOWN_STUDY, FORMER], True, True),  # the version of another client is newer
        ([FORMER], True, False),
        ([UNKNOWN_STUDY, FORMER], False, False),  # nothing proves it
        ([UNKNOWN_STUDY, None, FORMER], True, True),
        ([UNKNOWN_STUDY | {"meta": {"tag": []}, "text": {"status": "generated"}}], True, True),
    ],
)
def test_whether_an_attempt_has_arrived(
    strategy: IdStrategy, stored: list[Any], keeps_history: bool, has_arrived: bool
) -> None:
    client = StubClient()
    client.keeps_history = keeps_history
    identity = RESOURCE_ID if strategy is CLIENT else "17"
    for one in stored:
        if one is None:
            client.versions["ImagingStudy", identity].append(None)
        else:
            client.store(strategy.prepare_update(one | {"id": RESOURCE_ID}, identity)[0])
    result = look(client, attempts=[attempt(UNKNOWN_STUDY)], strategy=strategy)
    assert result.has_arrived is has_arrived


def test_many_uids_are_searched_for_in_few_requests() -> None:
    client = StubClient()
    uids = [f"1.{number}" for number in range(60)]
    assert asyncio.run(find_studies(client, uids)) == {uid: [] for uid in uids}  # type: ignore[arg-type]
    assert len(client.methods("search")) == 3


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("element", ["identifier", "meta", "series", "subject", "text"])
def test_malformed_studies_of_the_server_do_not_raise(element: str, odd: Any) -> None:
    client = StubClient()
    client.store(UNKNOWN_STUDY | {element: odd})
    client.store(study("x") | {element: odd})
    for strategy in (CLIENT, SERVER):
        look(client, known_row=row(server_id=RESOURCE_ID), attempts=[attempt(FORMER)], strategy=strategy)
        look(client, attempts=[attempt(FORMER)], strategy=strategy, reads=True)
