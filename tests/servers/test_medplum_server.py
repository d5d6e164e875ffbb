"""The answers of Medplum's FHIR router with its in-memory repository: the table of ``medplum/README.md``."""

import gzip
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import pytest

from tests.servers import medplum_server
from tests.servers.medplum_server import MedplumServer
from tests.servers.plugin import MedplumFactory
from tests.servers.server_process import connects

REPOSITORY = Path(__file__).parents[2]
SYSTEM = "urn:medplum-server-test"
STALE = 'W/"5ff2be3a-0000-4000-8000-000000000000"'
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Message
    body: Any

    @property
    def problem(self) -> str:
        """The text of the first issue of an OperationOutcome."""
        return str(self.body["issue"][0]["details"]["text"])


def send(method: str, url: str, body: Any = None, **headers: str) -> Answer:
    """The answer of the server, whatever its status; names of `headers` have underscores instead of hyphens."""
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, content, {"Content-Type": "application/fhir+json"} | names, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=60) as response:
            return Answer(response.status, response.headers, json.load(response))
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers, json.load(error))


def new_patient(**changes: Any) -> dict[str, Any]:
    """A Patient with an id and an identifier that no other test uses."""
    id_ = str(uuid.uuid4())
    return {"resourceType": "Patient", "id": id_, "identifier": [{"system": SYSTEM, "value": id_}], **changes}


def without_id(resource: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in resource.items() if name != "id"}


def without_meta(resource: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in resource.items() if name != "meta"}


def url_of(server: MedplumServer, resource: dict[str, Any]) -> str:
    return f"{server.base_url}/{resource['resourceType']}/{resource['id']}"


def put(server: MedplumServer, resource: dict[str, Any], **headers: str) -> Answer:
    return send("PUT", url_of(server, resource), resource, **headers)


def put_entry(resource: dict[str, Any], **request: str) -> dict[str, Any]:
    url = f"{resource['resourceType']}/{resource.get('id')}"
    return {"resource": resource, "request": {"method": "PUT", "url": url, **request}}


def post_bundle(server: MedplumServer, kind: str, *entries: dict[str, Any]) -> Answer:
    return send("POST", server.base_url, {"resourceType": "Bundle", "type": kind, "entry": list(entries)})


def search(server: MedplumServer, kind: str, **parameters: str) -> Answer:
    return send("GET", f"{server.base_url}/{kind}?{urlencode(parameters)}")


def ids(answer: Answer) -> list[str]:
    assert answer.status == 200
    return [entry["resource"]["id"] for entry in answer.body.get("entry", [])]


def test_the_capability_statement_permits_an_upload(medplum: MedplumServer) -> None:
    statement = send("GET", f"{medplum.base_url}/metadata").body

    assert (statement["resourceType"], statement["fhirVersion"]) == ("CapabilityStatement", "4.0.1")
    [rest] = statement["rest"]
    assert [interaction["code"] for interaction in rest["interaction"]] == ["transaction", "batch"]
    assert [resource["type"] for resource in rest["resource"]] == ["Patient", "Endpoint", "ImagingStudy"]
    for resource in rest["resource"]:
        assert {"code": "update"} in resource["interaction"]
        assert resource["updateCreate"] is True


def test_a_put_that_creates_is_answered_with_200_and_the_resource(medplum: MedplumServer) -> None:
    patient = new_patient()
    answer = put(medplum, patient, Prefer="return=minimal")

    assert answer.status == 200
    version = answer.body["meta"]["versionId"]
    assert re.fullmatch(UUID, version)
    assert answer.headers["ETag"] == f'W/"{version}"'
    assert answer.headers["Location"] is None
    assert without_meta(answer.body) == patient


def test_the_same_content_again_is_a_new_version(medplum: MedplumServer) -> None:
    patient = new_patient()
    first, second = put(medplum, patient), put(medplum, patient)

    assert first.body["meta"]["versionId"] != second.body["meta"]["versionId"]


def test_if_match_is_checked(medplum: MedplumServer) -> None:
    patient = new_patient()
    etag = put(medplum, patient).headers["ETag"]

    assert put(medplum, patient, If_Match=etag).status == 200
    stale = put(medplum, patient, If_Match=etag)
    assert (stale.status, stale.problem) == (412, "Precondition Failed")
    assert put(medplum, new_patient(), If_Match=etag).status == 404


def test_a_read_has_the_etag_and_an_unknown_id_is_404(medplum: MedplumServer) -> None:
    patient = new_patient()
    written = put(medplum, patient)
    read = send("GET", url_of(medplum, patient))

    assert (read.status, read.headers["ETag"]) == (200, written.headers["ETag"])
    assert read.body == written.body
    assert send("GET", url_of(medplum, new_patient())).status == 404


def test_the_history_always_has_the_newest_version_first(medplum: MedplumServer) -> None:
    patient = new_patient()
    versions = [put(medplum, patient).body["meta"]["versionId"] for _ in range(3)]

    for _ in range(2):
        history = send("GET", f"{url_of(medplum, patient)}/_history").body
        assert history["type"] == "history"
        assert [entry["resource"]["meta"]["versionId"] for entry in history["entry"]] == versions[::-1]
        assert all(list(entry) == ["resource"] for entry in history["entry"])  # neither request nor response
    vread = send("GET", f"{url_of(medplum, patient)}/_history/{versions[0]}")
    assert (vread.status, vread.body["meta"]["versionId"]) == (200, versions[0])


def test_a_deleted_resource_is_404_until_it_is_put_again(medplum: MedplumServer) -> None:
    patient = new_patient()
    put(medplum, patient)

    assert send("DELETE", url_of(medplum, patient), If_Match=STALE).status == 412
    deletion = send("DELETE", url_of(medplum, patient))
    assert (deletion.status, deletion.problem) == (200, "All OK")
    assert send("DELETE", url_of(medplum, patient)).status == 404
    assert send("GET", url_of(medplum, patient)).status == 404  # not 410
    assert send("GET", f"{url_of(medplum, patient)}/_history").status == 404
    assert put(medplum, patient).status == 200
    assert len(send("GET", f"{url_of(medplum, patient)}/_history").body["entry"]) == 2  # none of the deletion


def test_searches_take_several_ids_and_several_tokens(medplum: MedplumServer) -> None:
    first, second = new_patient(), new_patient()
    put(medplum, first)
    put(medplum, second)
    both = {first["id"], second["id"]}
    tokens = ",".join(f"{SYSTEM}|{id_}" for id_ in [*sorted(both), "nobody"])

    assert set(ids(search(medplum, "Patient", _id=",".join([*both, "nobody"])))) == both
    assert set(ids(search(medplum, "Patient", identifier=tokens))) == both
    assert ids(search(medplum, "Patient", identifier=first["id"])) == [first["id"]]  # in any system
    assert ids(search(medplum, "Patient", identifier=f"urn:other|{first['id']}")) == []


def test_a_search_may_be_posted(medplum: MedplumServer) -> None:
    patient = new_patient()
    put(medplum, patient)
    form = urlencode({"identifier": f"{SYSTEM}|{patient['id']}", "_count": "10"}).encode()
    kind = "application/x-www-form-urlencoded; charset=utf-8"

    assert ids(send("POST", f"{medplum.base_url}/Patient/_search", form, Content_Type=kind)) == [patient["id"]]


def test_a_page_links_to_the_next(medplum: MedplumServer) -> None:
    birth_date = "1871-02-03"
    patients = [new_patient(birthDate=birth_date) for _ in range(5)]
    for patient in patients:
        put(medplum, patient)

    pages = [search(medplum, "Patient", birthdate=birth_date, _count="2")]
    while links := pages[-1].body.get("link"):
        assert [link["relation"] for link in links] == ["next"]
        pages.append(send("GET", links[0]["url"]))
    assert [page.body["total"] for page in pages] == [5, 5, 5]
    assert [id_ for page in pages for id_ in ids(page)] == [patient["id"] for patient in patients]
    assert len(ids(search(medplum, "Patient", birthdate=birth_date))) == 5  # no _count: one page


def test_elements_is_ignored(medplum: MedplumServer) -> None:
    patient = new_patient(gender="female")
    put(medplum, patient)

    [entry] = search(medplum, "Patient", _id=patient["id"], _elements="identifier").body["entry"]
    assert without_meta(entry["resource"]) == patient
    assert entry["search"] == {"mode": "match"}


def test_an_unknown_search_parameter_or_type_finds_nothing(medplum: MedplumServer) -> None:
    patient = new_patient()
    put(medplum, patient)

    unknown = send("GET", f"{medplum.base_url}/Patient?_id={patient['id']}&nonsense=1", Prefer="handling=strict")
    assert (ids(unknown), unknown.body["total"]) == ([], 0)
    assert ids(search(medplum, "Nonsense", _id=patient["id"])) == []


def test_escaped_characters_of_a_token_are_not_understood(medplum: MedplumServer) -> None:
    value = f"a,b|c-{uuid.uuid4()}"
    patient = new_patient(identifier=[{"system": SYSTEM, "value": value}])
    put(medplum, patient)

    token = f"{SYSTEM}|{value.replace(',', chr(92) + ',').replace('|', chr(92) + '|')}"
    assert ids(search(medplum, "Patient", identifier=token)) == []  # it should be found: FHIR R4, 3.1.1.4.1.1


def test_references_are_searchable_and_not_checked(medplum: MedplumServer) -> None:
    patient = new_patient()
    study = {"resourceType": "ImagingStudy", "id": str(uuid.uuid4()), "status": "available"}
    study["subject"] = {"reference": f"Patient/{patient['id']}"}

    assert put(medplum, study).status == 200  # before its Patient
    assert ids(search(medplum, "ImagingStudy", subject=f"Patient/{patient['id']}")) == [study["id"]]
    assert ids(search(medplum, "ImagingStudy", patient=patient["id"])) == [study["id"]]
    put(medplum, patient)
    assert send("DELETE", url_of(medplum, patient)).status == 200  # although the study refers to it


def test_only_type_and_id_are_validated(medplum: MedplumServer) -> None:
    patient = new_patient(birthDate="soon", unknownElement=1)
    assert put(medplum, patient).status == 200

    other_id = send("PUT", url_of(medplum, new_patient()), patient)
    assert (other_id.status, other_id.problem) == (400, "Incorrect resource ID")
    other_type = send("PUT", f"{medplum.base_url}/Endpoint/{patient['id']}", patient)
    assert (other_type.status, other_type.problem) == (400, "Incorrect resource type")
    no_json = send("PUT", url_of(medplum, patient), b"<Patient/>")
    assert (no_json.status, no_json.problem) == (400, "The body is not JSON")


def test_a_gzip_body_is_read_and_another_encoding_is_415(medplum: MedplumServer) -> None:
    patient = new_patient()
    packed = gzip.compress(json.dumps(patient).encode())

    assert send("PUT", url_of(medplum, patient), packed, Content_Encoding="gzip").status == 200
    assert send("PUT", url_of(medplum, patient), packed, Content_Encoding="br").status == 415


def test_a_transaction_returns_resources_without_etags(medplum: MedplumServer) -> None:
    patient = new_patient()
    answer = post_bundle(medplum, "transaction", put_entry(patient))

    assert (answer.status, answer.body["type"]) == (200, "transaction-response")
    [entry] = answer.body["entry"]
    assert entry["response"].pop("outcome")["id"] == "ok"
    assert entry["response"] == {"status": "200", "location": f"Patient/{patient['id']}"}  # no etag, no _history
    assert re.fullmatch(UUID, entry["resource"]["meta"]["versionId"])


def test_a_transaction_is_refused_as_a_whole(medplum: MedplumServer) -> None:
    known, new = new_patient(), new_patient()
    version = put(medplum, known).body["meta"]["versionId"]

    answer = post_bundle(medplum, "transaction", put_entry(new), put_entry(known, ifMatch=STALE))
    assert (answer.status, answer.problem) == (412, "Precondition Failed")
    assert send("GET", url_of(medplum, new)).status == 404
    assert send("GET", url_of(medplum, known)).body["meta"]["versionId"] == version


def test_a_transaction_has_a_resource_once(medplum: MedplumServer) -> None:
    patient = new_patient()

    answer = post_bundle(medplum, "transaction", put_entry(patient), put_entry(patient))
    assert (answer.status, answer.problem) == (400, "Duplicate resource identity found in Bundle")


def test_a_transaction_has_at_most_50_updates(medplum: MedplumServer) -> None:
    entries = [put_entry(new_patient()) for _ in range(51)]

    answer = post_bundle(medplum, "transaction", *entries)
    assert (answer.status, answer.problem) == (400, "Transaction contains more update operations than allowed")
    assert post_bundle(medplum, "transaction", *entries[:50]).status == 200
    assert post_bundle(medplum, "batch", *entries).status == 200


def test_a_transaction_with_a_condition_has_at_most_8_entries(medplum: MedplumServer) -> None:
    patient = new_patient()
    conditional = put_entry(without_id(patient), url=f"Patient?identifier={SYSTEM}%7C{patient['id']}")
    others = [put_entry(new_patient()) for _ in range(8)]

    answer = post_bundle(medplum, "transaction", conditional, *others)
    assert answer.status == 400
    assert answer.problem == "Transaction requires strict isolation but has too many entries"
    assert post_bundle(medplum, "transaction", conditional, *others[:7]).status == 200


def test_a_batch_answers_for_each_entry(medplum: MedplumServer) -> None:
    known, new = new_patient(), new_patient()
    put(medplum, known)
    missing = {"request": {"method": "GET", "url": f"Patient/{uuid.uuid4()}"}}
    finding = {"request": {"method": "GET", "url": f"Patient?identifier={quote(SYSTEM)}%7C{known['id']}"}}

    answer = post_bundle(medplum, "batch", put_entry(known, ifMatch=STALE), put_entry(new), missing, finding)
    entries = answer.body["entry"]
    assert [entry["response"]["status"] for entry in entries] == ["412", "200", "404", "200"]
    assert entries[3]["resource"]["entry"][0]["resource"]["id"] == known["id"]


def test_a_conditional_update_creates_with_201_and_updates_with_200(medplum: MedplumServer) -> None:
    patient = new_patient()
    url = f"{medplum.base_url}/Patient?identifier={SYSTEM}%7C{patient['id']}"

    first, second = (send("PUT", url, without_id(patient)) for _ in range(2))
    assert (first.status, second.status) == (201, 200)
    assert re.fullmatch(UUID, first.body["id"])
    assert first.body["id"] == second.body["id"]
    assert first.headers["Location"] == f"{medplum.base_url}/Patient/{first.body['id']}"
    with_id = send("PUT", f"{url}-other", patient)
    assert with_id.status == 400
    assert with_id.problem == "Cannot perform create as update with client-assigned ID"
    assert send("POST", f"{medplum.base_url}/Patient", without_id(patient)).status == 201
    assert send("PUT", url, without_id(patient)).status == 412  # two match


def test_a_transaction_resolves_references_between_conditional_entries(medplum: MedplumServer) -> None:
    patient, uid, full_url = new_patient(), f"urn:oid:2.25.{uuid.uuid4().int}", f"urn:uuid:{uuid.uuid4()}"
    study = {"resourceType": "ImagingStudy", "status": "available", "subject": {"reference": full_url}}
    study["identifier"] = [{"system": "urn:dicom:uid", "value": uid}]
    entries = [  # the reference precedes the resource that it refers to
        put_entry(study, url=f"ImagingStudy?identifier=urn:dicom:uid%7C{uid}"),
        put_entry(without_id(patient), url=f"Patient?identifier={SYSTEM}%7C{patient['id']}") | {"fullUrl": full_url},
    ]

    first, again = (post_bundle(medplum, "transaction", *entries).body["entry"] for _ in range(2))
    assert [entry["response"]["status"] for entry in (*first, *again)] == ["201", "201", "200", "200"]
    assert first[0]["resource"]["subject"] == {"reference": first[1]["response"]["location"]}
    assert [entry["response"]["location"] for entry in first] == [entry["response"]["location"] for entry in again]


def test_a_server_may_refuse_client_ids(medplum_assigning: MedplumServer) -> None:
    server, patient = medplum_assigning, new_patient()
    [rest] = send("GET", f"{server.base_url}/metadata").body["rest"]

    assert {resource["updateCreate"] for resource in rest["resource"]} == {False}
    assert put(server, patient).status == 404
    assert post_bundle(server, "transaction", put_entry(patient)).status == 404
    url = f"{server.base_url}/Patient?identifier={SYSTEM}%7C{patient['id']}"
    created = send("PUT", url, without_id(patient))
    assert created.status == 201
    assert put(server, created.body).status == 200


def test_a_separate_server_is_empty_and_listens_on_127_0_0_1(
    medplum: MedplumServer, medplum_factory: MedplumFactory
) -> None:
    put(medplum, new_patient())
    private = medplum_factory()

    assert ids(search(private, "Patient")) == []
    port = urlsplit(private.base_url).port
    assert port is not None
    assert connects("127.0.0.1", port)
    assert not connects("127.0.0.2", port)
    assert not connects("::1", port)


def test_a_stopped_server_frees_its_port(tmp_path: Path) -> None:
    with medplum_server.run_medplum(folder=tmp_path) as server:
        port = urlsplit(server.base_url).port
        assert port is not None

    assert not connects("127.0.0.1", port)


def test_a_server_ends_with_its_owner(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    server = medplum_server.start(tmp_path, owner=owner.pid)
    try:
        owner.communicate()
        deadline = time.monotonic() + 10
        port = urlsplit(server.base_url).port
        assert port is not None
        while connects("127.0.0.1", port) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not connects("127.0.0.1", port)
    finally:
        medplum_server.stop(server)


@pytest.mark.parametrize(
    ("version", "is_used"),
    [
        ("v20.20.2", False),
        ("v22.17.0", False),
        ("v22.18.0", True),
        ("v23.5.0", False),
        ("v24.1.0", False),
        ("v24.2.0", True),
        ("no version", False),
    ],
)
def test_the_node_of_the_system_is_used_if_it_is_new_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, is_used: bool
) -> None:
    node = tmp_path / "node"
    node.write_text(f"#!/bin/sh\necho {version}\n")
    node.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    assert (medplum_server.find_node() == str(node)) is is_used


def test_without_node_that_of_the_python_package_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    version = subprocess.run([medplum_server.find_node(), "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.startswith("v24.")


def test_the_lock_file_names_no_registry() -> None:
    lock = json.loads((medplum_server.MEDPLUM / "package-lock.json").read_text(encoding="utf-8"))

    assert all("resolved" not in package for package in lock["packages"].values())
