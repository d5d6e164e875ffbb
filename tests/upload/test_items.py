"""Upload items: comparing resources, ids on the server, and references; without a server."""

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_etl.identity.ids import ResourceIds
from dicom_etl.upload.items import (
    IdStrategy,
    UploadItem,
    compute_content_hash,
    get_dataset_names,
    get_identifiers,
    get_referenced_id,
    get_study_uids,
    is_in_namespace,
    is_same_content,
    resolve_references,
    strip_server_elements,
)

CLIENT = IdStrategy("https://site.example/")
SERVER = IdStrategy("https://site.example/", is_client_assigned=False)
MARK = {"system": "https://site.example/resource-id", "value": "p"}
PATIENT = {"resourceType": "Patient", "id": "p", "gender": "female", "name": [{"family": "A"}, {"family": "B"}]}

# values of every type, in the place of any element
ODD = [None, True, 0, -1.5, "", "text", [], ["text"], [None], [[]], {}, {"a": 1}, [{"a": []}], [{}]]
ELEMENTS = (
    "id meta text identifier link name subject endpoint series modality birthDate gender active status "
    "numberOfSeries numberOfInstances note basedOn"
).split()
anything = st.recursive(
    st.sampled_from([None, True, 0, "", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["system", "value", "uid", "instance", "reference", "tag", "type"]), inner)
    ),
    max_leaves=8,
)
odd_resources = st.dictionaries(st.sampled_from(ELEMENTS), anything, max_size=8)


# -- comparing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"meta": {"versionId": "3", "lastUpdated": "2026-01-01", "source": "#x"}}, True),
        ({"meta": {"tag": [{"code": "t"}]}}, True),  # a label that the server adds
        ({"meta": None}, True),
        ({"meta": ["x"]}, True),
        ({"text": {"status": "generated", "div": "<div>A</div>"}}, True),
        ({"text": None}, True),
        ({"text": {"status": "additional", "div": "<div>A</div>"}}, False),
        ({"name": [{"family": "B"}, {"family": "A"}]}, True),
        ({"name": [{"family": "A"}]}, False),
        ({"name": [{"family": "A"}, {"family": "B"}, {"family": "B"}]}, False),
        ({"gender": "male"}, False),
        ({"active": True}, False),
        ({"id": "q"}, False),
    ],
)
def test_the_same_content(change: dict[str, Any], same: bool) -> None:
    assert is_same_content(PATIENT | change, PATIENT) is same


def test_the_order_of_lists_and_keys_does_not_matter() -> None:
    produced = {"identifier": [{"system": "x", "value": "1"}, {"system": "y", "value": "0"}]}
    server = {"identifier": [{"value": "0", "system": "y"}, {"value": "1", "system": "x"}]}
    assert is_same_content(server, produced)


@pytest.mark.parametrize(
    ("labels", "same"),
    [
        ([{"code": "a"}], True),
        ([{"code": "b"}, {"code": "a"}], True),
        ([{"code": "b"}], False),
        ([], False),
        (None, False),
        ("a", False),
        ({"code": "a"}, False),
        (7, False),
    ],
)
def test_the_labels_of_the_lake_must_be_present(labels: Any, same: bool) -> None:
    produced = PATIENT | {"meta": {"tag": [{"code": "a"}]}}
    assert is_same_content(PATIENT | {"meta": {"tag": labels, "profile": ["p"]}}, produced) is same


def test_only_elements_written_by_servers_are_stripped() -> None:
    server = PATIENT | {
        "meta": {"versionId": "1", "lastUpdated": "x", "source": "y", "profile": ["p"], "tag": [{"code": "t"}]},
        "text": {"status": "empty"},
    }
    before = deepcopy(server)
    assert strip_server_elements(server) == PATIENT | {"meta": {"profile": ["p"], "tag": [{"code": "t"}]}}
    assert server == before


def test_the_digest_is_that_of_the_content() -> None:
    study = {"resourceType": "ImagingStudy", "id": "s", "status": "available", "series": [{"uid": "1"}]}
    same = compute_content_hash(study)
    for change in (
        {"id": "other"},
        {"meta": {"versionId": "9", "tag": [{"code": "t"}]}},
        {"subject": {"reference": "Patient/survivor"}},
        {"endpoint": [{"reference": "Endpoint/1"}]},
        {"text": {"status": "generated"}},
    ):
        assert compute_content_hash(study | change) == same
    for change in ({"status": "cancelled"}, {"series": []}, {"description": "x"}, {"text": {"status": "additional"}}):
        assert compute_content_hash(study | change) != same
    assert compute_content_hash(dict(reversed(study.items()))) == same


# -- odd shapes -------------------------------------------------------------------------------------------------------


@given(server=odd_resources, produced=odd_resources)
def test_no_shape_of_a_resource_raises(server: dict[str, Any], produced: dict[str, Any]) -> None:
    assert is_same_content(server, PATIENT) in (True, False)
    assert is_same_content(server, server)
    assert strip_server_elements(strip_server_elements(server)) == strip_server_elements(server)
    assert len(compute_content_hash(server)) == 64
    assert all(isinstance(one, dict) for one in get_identifiers(server))
    assert all(isinstance(uid, str) for uid in get_study_uids(server))
    assert all(isinstance(name, str) for name in get_dataset_names(server, "s"))
    assert isinstance(get_referenced_id(server.get("subject")), str)
    for strategy in (CLIENT, SERVER):
        assert strategy.is_lake_resource(server, "p") in (True, False)
        assert strategy.normalize(server, "p")["id"] == "p"
        body, _ = strategy.prepare_update(produced | {"id": "p"}, "17")
        assert body["id"] == "17"
    assert not is_in_namespace(server, "1.2", ResourceIds.from_key("n", None), CLIENT, "s")


@pytest.mark.parametrize("odd", ODD)
def test_malformed_identifiers_match_no_resource(odd: Any) -> None:
    server = {"id": "17", "identifier": odd}
    assert not SERVER.is_lake_resource(server, "p")
    assert SERVER.normalize(server, "p")["id"] == "p"


# -- ids on the server ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("server_id", [None, "p"])
def test_a_client_assigned_id_matches(server_id: str | None) -> None:
    assert CLIENT.prepare_update(PATIENT, server_id) == (PATIENT, "")


def test_a_resource_with_another_server_id_is_sent_with_that_id() -> None:
    assert CLIENT.prepare_update(PATIENT, "17") == (PATIENT | {"id": "17"}, "")
    assert CLIENT.normalize(PATIENT | {"id": "17"}, "p") == PATIENT
    assert CLIENT.is_lake_resource({"id": "p"}, "p")
    assert not CLIENT.is_lake_resource({"id": "17", "identifier": [MARK]}, "p")


def test_a_server_that_assigns_ids_gets_an_identifier_and_a_condition() -> None:
    body, condition = SERVER.prepare_update(PATIENT, None)
    assert body == {name: value for name, value in PATIENT.items() if name != "id"} | {"identifier": [MARK]}
    assert condition == "identifier=https%3A%2F%2Fsite.example%2Fresource-id%7Cp"


def test_with_a_known_id_it_is_a_plain_update() -> None:
    other = {"system": "s", "value": "1"}
    assert SERVER.prepare_update(PATIENT | {"identifier": [other]}, "17") == (
        PATIENT | {"id": "17", "identifier": [other, MARK]},
        "",
    )


def test_the_added_identifier_is_present_once_and_not_compared() -> None:
    other = {"system": "s", "value": "1"}
    body, _ = SERVER.prepare_update(PATIENT | {"identifier": [MARK, other]}, "17")
    assert body["identifier"] == [other, MARK]
    assert SERVER.is_lake_resource(body, "p")
    assert not SERVER.is_lake_resource(body, "q")
    assert SERVER.normalize(body, "p") == PATIENT | {"identifier": [other]}
    assert SERVER.normalize(PATIENT | {"id": "17", "identifier": [MARK]}, "p") == PATIENT


def test_the_sent_and_the_stored_resource_have_the_same_hash() -> None:
    for strategy in (CLIENT, SERVER):
        body, _ = strategy.prepare_update(PATIENT, "17")
        assert strategy.compute_content_hash(body | {"meta": {"versionId": "1"}}, "p") == compute_content_hash(PATIENT)


@pytest.mark.parametrize(
    ("produced", "token", "condition"),
    [
        ("a|b", r"https://n/resource-id|a\|b", "identifier=https%3A%2F%2Fn%2Fresource-id%7Ca%5C%7Cb"),
        ("a,b&c", r"https://n/resource-id|a\,b&c", "identifier=https%3A%2F%2Fn%2Fresource-id%7Ca%5C%2Cb%26c"),
    ],
)
def test_special_characters_of_an_id_are_escaped(produced: str, token: str, condition: str) -> None:
    strategy = IdStrategy("https://n", is_client_assigned=False)
    assert (strategy.make_token(produced), strategy.make_condition(produced)) == (token, condition)


# -- references and UIDs ----------------------------------------------------------------------------------------------


def test_a_study_refers_to_the_ids_on_the_server() -> None:
    study = {
        "resourceType": "ImagingStudy",
        "id": "s",
        "subject": {"reference": "Patient/p", "display": "x"},
        "endpoint": [{"reference": "Endpoint/e"}],
    }
    item = UploadItem(study, "ds", references=(("Patient", "p"), ("Endpoint", "e")))
    moved = resolve_references(item, {("Patient", "p"): "17"})
    assert moved.resource["subject"] == {"reference": "Patient/17", "display": "x"}
    assert moved.resource["endpoint"] == [{"reference": "Endpoint/e"}]
    assert resolve_references(item, {}).resource == study
    assert resolve_references(item, {}).hash != moved.hash
    assert item.resource == study


@pytest.mark.parametrize(
    ("reference", "identity"),
    [
        ({"reference": "Patient/1"}, "1"),
        ({"reference": "https://h/fhir/Patient/1"}, "1"),
        ({"reference": "Patient/1/_history/3"}, "1"),
        ({"reference": ""}, ""),
        ({"reference": None}, ""),
        ({"reference": ["Patient/1"]}, ""),
        ({"identifier": {"value": "1"}}, ""),
        ("Patient/1", ""),
        (["Patient/1"], ""),
        (None, ""),
    ],
)
def test_the_id_in_a_reference(reference: Any, identity: str) -> None:
    assert get_referenced_id(reference) == identity


def test_studies_of_the_namespace_are_recognised_by_their_id() -> None:
    ids = ResourceIds.from_key("https://site.example", None)
    produced = ids.resource_id("ImagingStudy", "ds", "1.2")
    named = {"system": "https://site.example/dataset", "value": "urn:uid:ds"}
    study = {"id": produced, "identifier": [named]}
    assert is_in_namespace(study, "1.2", ids, CLIENT, "https://site.example/dataset")
    assert not is_in_namespace(study | {"id": "x"}, "1.2", ids, CLIENT, "https://site.example/dataset")
    assert not is_in_namespace(study, "1.3", ids, CLIENT, "https://site.example/dataset")
    assert not is_in_namespace(study, "1.2", ids, CLIENT, "https://other.example/dataset")
    assert not is_in_namespace({"id": produced}, "1.2", ids, CLIENT, "https://site.example/dataset")


@pytest.mark.parametrize(
    ("identifier", "uids"),
    [
        ([{"system": "urn:dicom:uid", "value": "urn:oid:1.2"}], {"1.2"}),
        ([{"system": "urn:dicom:uid", "value": "1.2"}], {"1.2"}),
        ([{"system": "other", "value": "urn:oid:1.2"}], set()),
        ([{"system": "urn:dicom:uid", "value": "urn:oid:1"}, {"system": "urn:dicom:uid", "value": "2"}], {"1", "2"}),
        ("1.2", set()),
        (None, set()),
    ],
)
def test_the_uids_of_a_study(identifier: Any, uids: set[str]) -> None:
    assert get_study_uids({"identifier": identifier}) == uids
