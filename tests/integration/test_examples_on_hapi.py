"""The main job on the example datasets, through the pipeline, into a real HAPI FHIR server."""

from pathlib import Path

import orjson
import pytest
from fhirpy import SyncFHIRClient

from dicom_etl.examples import write_examples
from dicom_etl.lake.schemas import ALL_FINDINGS
from dicom_etl.pipeline import Pipeline, RunOptions, run
from dicom_etl.settings import load_settings
from tests.servers.hapi_server import validate
from tests.support.datasets import write_instance
from tests.support.proxy import Reply, run_proxy

AUTHORITY = "urn:oid:2.25.323467493119269171179165005637713612697"


def pipeline(settings_file: Path, url: str, lake: str, **overrides) -> Pipeline:
    # the tests share a server: the same studies of another test's site are there, as another client's
    fhir = {"url": url, "existing_study": "duplicate"}
    settings = load_settings(settings_file, lake=lake, fhir=fhir, engine="serial", **overrides)
    return Pipeline(settings, notify=lambda _: None)


def load(etl: Pipeline, *names: str, **options):
    outcome = run(etl, names, options=RunOptions(**options))
    assert outcome.exit_code == 0, outcome
    return outcome


def counts(client: SyncFHIRClient, **search) -> dict[str, int]:
    kinds = ("Patient", "Endpoint", "ImagingStudy")
    return {kind: client.resources(kind).search(**search).count() for kind in kinds}


def versions(client: SyncFHIRClient) -> dict[str, str]:
    return {
        f"{kind}/{r['id']}": r["meta"]["versionId"]
        for kind in ("Patient", "Endpoint", "ImagingStudy")
        for r in client.resources(kind).fetch_all()
    }


def bodies(client: SyncFHIRClient) -> dict[str, bytes]:
    found = {}
    for kind in ("Patient", "Endpoint", "ImagingStudy"):
        for resource in client.resources(kind).fetch_all():
            content = {key: value for key, value in dict(resource).items() if key != "meta"}
            found[f"{kind}/{resource['id']}"] = orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
    return found


@pytest.fixture
def examples(tmp_path) -> Path:
    return write_examples(tmp_path / "demo").settings_file


def test_loading_twice_leaves_one_of_each_in_its_first_version(hapi_factory, examples, tmp_path):
    url = hapi_factory().base_url
    client = SyncFHIRClient(url)
    etl = pipeline(examples, url, str(tmp_path / "lake"))
    load(etl, "breast", "heart")
    # 4 + 4 subjects of which one person is in both; one Endpoint each; 8 + 9 studies
    assert counts(client) == {"Patient": 7, "Endpoint": 2, "ImagingStudy": 17}
    first, content = versions(client), bodies(client)
    assert set(first.values()) == {"1"}
    load(etl, "breast", "heart")
    load(etl, "heart")
    assert versions(client) == first

    # the shared patient: studies in both datasets, with the birth date that only the heart dataset knows
    found = client.resources("Patient").search(identifier=f"{AUTHORITY}|DEMO-0042").fetch_all()
    assert [patient["birthDate"] for patient in found] == ["1966-03-12"]
    assert client.resources("ImagingStudy").search(patient=found[0]["id"]).count() == 4

    # a setting changes what it touches: only studies that have a time get a new version
    text = examples.read_text().replace("Pacific/Auckland", "Europe/Berlin")
    examples.write_text(text)
    load(pipeline(examples, url, str(tmp_path / "lake")), "breast", "heart")
    after = versions(client)
    changed = {key for key in after if after[key] != first[key]}
    assert changed
    assert {key.split("/")[0] for key in changed} == {"ImagingStudy"}
    assert {after[key] for key in changed} == {"2"}
    now = bodies(client)
    assert {key for key in now if now[key] != content[key]} == changed


def test_the_order_of_loading_does_not_matter(hapi_factory, examples, tmp_path):
    contents = []
    for order in (("breast", "heart"), ("heart", "breast")):
        server = hapi_factory()
        etl = pipeline(examples, server.base_url, str(tmp_path / order[0]))
        for name in order:
            load(etl, name)
        before = versions(SyncFHIRClient(server.base_url))
        for name in order:
            load(etl, name)
        client = SyncFHIRClient(server.base_url)
        assert versions(client) == before
        contents.append(bodies(client))
    assert contents[0] == contents[1]


@pytest.mark.parametrize(("version", "server"), [("R4", "hapi"), ("R5", "hapi_r5")])
def test_every_resource_passes_validate_and_is_taken(request, examples, tmp_path, version, server):
    url = request.getfixturevalue(server).base_url
    settings = load_settings(
        examples,
        lake=str(tmp_path / "lake"),
        fhir={"url": url, "version": version},
        engine="serial",
        namespace="https://validate.test",
        staff_names=True,
        contact_details=True,
    )
    etl = Pipeline(settings, notify=lambda _: None)
    load(etl, "breast", "heart")
    checked = 0
    for file in (tmp_path / "lake/fhir").rglob("*.ndjson"):
        for line in file.read_bytes().splitlines():
            assert validate(url, orjson.loads(line)) == [], file.name
            checked += 1
    # 4 + 4 Patients, an Endpoint of each dataset, 17 studies
    assert checked == 8 + 2 + 17


def test_a_new_subject_that_reuses_a_patient_id_changes_the_patient_matching(hapi_factory, tmp_path):
    server = hapi_factory()
    client = SyncFHIRClient(server.base_url)
    (tmp_path / "s.toml").write_text("[datasets.ds]\nroot = 'ds'\n")
    etl = pipeline(tmp_path / "s.toml", server.base_url, str(tmp_path / "lake"), namespace="https://reuse.test")
    write_instance(tmp_path / "ds/sub-1/1.dcm", study="a", series="a", PatientID="P-77")
    load(etl, "ds")
    [before] = client.resources("ImagingStudy").fetch_all()
    [old] = client.resources("Patient").fetch_all()
    assert old["identifier"][0]["system"] == "https://reuse.test/ds/patient-id"

    write_instance(tmp_path / "ds/sub-2/1.dcm", study="b", series="b", PatientID="P-77")
    load(etl, "ds")
    studies = {study["id"]: study for study in client.resources("ImagingStudy").fetch_all()}
    assert len(studies) == 2
    patients = {patient["id"]: patient["identifier"][0] for patient in client.resources("Patient").fetch_all()}
    persons = [patients[study["subject"]["reference"].removeprefix("Patient/")] for study in studies.values()]
    assert {(p["system"], p["value"]) for p in persons} == {
        ("https://reuse.test/ds/subject", "sub-1"),
        ("https://reuse.test/ds/subject", "sub-2"),
    }
    assert studies[before["id"]]["meta"]["versionId"] == "2"
    # the Patient of no study stays, as a finding
    assert old["id"] in patients
    findings = etl.lake.read(ALL_FINDINGS, dataset="ds").to_pylist()
    assert [f["unit"] for f in findings if f["code"] == "orphaned-on-server"] == ["sub-1"]
    assert sorted(f["unit"] for f in findings if f["code"] == "patient-id-shared") == ["sub-1", "sub-2"]


def test_a_held_study_is_not_uploaded_until_the_crosswalk_decides(hapi_factory, tmp_path):
    server = hapi_factory()
    client = SyncFHIRClient(server.base_url)
    (tmp_path / "s.toml").write_text("crosswalk = 'crosswalk.csv'\n[datasets.ds]\nroot = 'ds'\n")
    header = "dataset,subject,system,value\n"
    (tmp_path / "crosswalk.csv").write_text(header)
    write_instance(tmp_path / "ds/sub-1/1.dcm", study="two ids", series="a", PatientID="X")
    write_instance(tmp_path / "ds/sub-1/2.dcm", study="two ids", series="a", PatientID="Y")
    write_instance(tmp_path / "ds/sub-2/1.dcm", study="two subjects", series="b", PatientID="Z")
    write_instance(tmp_path / "ds/sub-3/1.dcm", study="two subjects", series="b", PatientID="Z")
    etl = pipeline(tmp_path / "s.toml", server.base_url, str(tmp_path / "lake"))
    held = run(etl, ["ds"])
    assert held.exit_code == 1
    assert client.resources("ImagingStudy").search().count() == 0
    codes = {f["code"] for f in etl.lake.read(ALL_FINDINGS, dataset="ds").to_pylist() if f["severity"] == "error"}
    assert codes == {"study-two-patients", "study-two-subjects"}

    lines = "".join(f"ds,sub-{n},urn:oid:1.2.3,{who}\n" for n, who in ((1, "A"), (2, "B"), (3, "B")))
    (tmp_path / "crosswalk.csv").write_text(header + lines)
    load(pipeline(tmp_path / "s.toml", server.base_url, str(tmp_path / "lake")), "ds")
    assert client.resources("ImagingStudy").search().count() == 2
    studies = client.resources("ImagingStudy").fetch_all()
    assert sorted(study["numberOfInstances"] for study in studies) == [2, 2]
    assert client.resources("Patient").search().count() == 2


def test_a_server_that_was_down_gets_everything_in_the_next_run(hapi, examples, tmp_path):
    with run_proxy(hapi.base_url) as server:
        server.rule = lambda asked: Reply(status=503)
        etl = pipeline(examples, server.url, str(tmp_path / "lake"), namespace="https://down.test")
        down = run(etl, ["heart"])
        assert down.exit_code == 3
        assert "127.0.0.1" in down.unreachable
        assert "report" in down.summaries["heart"]
        server.rule = lambda asked: None
        up = load(pipeline(examples, server.url, str(tmp_path / "lake"), namespace="https://down.test"), "heart")
    assert up.summaries["heart"]["upload"].counts["ImagingStudy"] == {"stored": 9}
    assert up.summaries["heart"]["extract"].files_opened == 0
