"""The example datasets through the whole pipeline into a real HAPI FHIR server."""

from pathlib import Path

import orjson
import pytest
from fhirpy import SyncFHIRClient

from dicom_etl.examples import write_examples
from dicom_etl.lake.schemas import ALL_FINDINGS
from dicom_etl.pipeline import Pipeline, RunOptions, run
from dicom_etl.settings import load_settings
from tests.servers.hapi_server import validate, wipe
from tests.support.datasets import write_instance
from tests.support.proxy import Reply, run_proxy

AUTHORITY = "urn:oid:2.25.323467493119269171179165005637713612697"


def pipeline(settings_file: Path, url: str, lake: str, **overrides) -> Pipeline:
    # the tests share a server, which has the same studies from other tests in other namespaces
    fhir = {"url": url, "existing_study": "duplicate"}
    settings = load_settings(settings_file, lake=lake, fhir=fhir, engine="serial", **overrides)
    return Pipeline(settings, notify=lambda _: None)


def load(etl: Pipeline, *names: str, **options):
    result = run(etl, names, options=RunOptions(**options))
    assert result.exit_code == 0, result
    return result


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
    content = {}
    for kind in ("Patient", "Endpoint", "ImagingStudy"):
        for resource in client.resources(kind).fetch_all():
            elements = {key: value for key, value in dict(resource).items() if key != "meta"}
            content[f"{kind}/{resource['id']}"] = orjson.dumps(elements, option=orjson.OPT_SORT_KEYS)
    return content


@pytest.fixture
def examples(tmp_path) -> Path:
    return write_examples(tmp_path / "demo").settings_file


def test_a_second_load_changes_no_resource(empty_hapi, examples, tmp_path):
    url = empty_hapi.base_url
    client = SyncFHIRClient(url)
    etl = pipeline(examples, url, str(tmp_path / "lake"))
    load(etl, "breast", "heart")
    # 4 + 4 subjects, of which one patient is in both; one Endpoint each; 8 + 9 studies
    assert counts(client) == {"Patient": 7, "Endpoint": 2, "ImagingStudy": 17}
    first_versions, first_bodies = versions(client), bodies(client)
    assert set(first_versions.values()) == {"1"}
    load(etl, "breast", "heart")
    load(etl, "heart")
    assert versions(client) == first_versions

    # the shared patient has studies in both datasets, and the birth date that only the heart dataset has
    (patient,) = client.resources("Patient").search(identifier=f"{AUTHORITY}|DEMO-0042").fetch_all()
    assert patient["birthDate"] == "1966-03-12"
    assert client.resources("ImagingStudy").search(patient=patient["id"]).count() == 4

    # a setting changes only what depends on it: studies with a time get a new version
    text = examples.read_text().replace("Pacific/Auckland", "Europe/Berlin")
    examples.write_text(text)
    load(pipeline(examples, url, str(tmp_path / "lake")), "breast", "heart")
    after = versions(client)
    changed = {key for key in after if after[key] != first_versions[key]}
    assert changed
    assert {key.split("/")[0] for key in changed} == {"ImagingStudy"}
    assert {after[key] for key in changed} == {"2"}
    new_bodies = bodies(client)
    assert {key for key in new_bodies if new_bodies[key] != first_bodies[key]} == changed


def test_the_order_in_which_datasets_are_loaded_has_no_effect(empty_hapi, examples, tmp_path):
    contents = []
    for order in (("breast", "heart"), ("heart", "breast")):
        wipe(empty_hapi)
        etl = pipeline(examples, empty_hapi.base_url, str(tmp_path / order[0]))
        for name in order:
            load(etl, name)
        before = versions(SyncFHIRClient(empty_hapi.base_url))
        for name in order:
            load(etl, name)
        client = SyncFHIRClient(empty_hapi.base_url)
        assert versions(client) == before
        contents.append(bodies(client))
    assert contents[0] == contents[1]


@pytest.mark.parametrize(("version", "server"), [("R4", "hapi"), ("R5", "hapi_r5")])
def test_every_resource_is_valid_and_accepted(request, examples, tmp_path, version, server):
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
    validated = 0
    for file in (tmp_path / "lake/fhir").rglob("*.ndjson"):
        for line in file.read_bytes().splitlines():
            assert validate(url, orjson.loads(line)) == [], file.name
            validated += 1
    # 4 + 4 Patients, an Endpoint of each dataset, 17 studies
    assert validated == 8 + 2 + 17


def test_a_new_subject_with_a_known_patient_id_changes_the_matching(empty_hapi, tmp_path):
    client = SyncFHIRClient(empty_hapi.base_url)
    (tmp_path / "s.toml").write_text("[datasets.ds]\nroot = 'ds'\n")
    etl = pipeline(tmp_path / "s.toml", empty_hapi.base_url, str(tmp_path / "lake"), namespace="https://reuse.test")
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
    identifiers = [patients[study["subject"]["reference"].removeprefix("Patient/")] for study in studies.values()]
    assert {(identifier["system"], identifier["value"]) for identifier in identifiers} == {
        ("https://reuse.test/ds/subject", "sub-1"),
        ("https://reuse.test/ds/subject", "sub-2"),
    }
    assert studies[before["id"]]["meta"]["versionId"] == "2"
    # the Patient without a study stays on the server, with a finding
    assert old["id"] in patients
    findings = etl.lake.read(ALL_FINDINGS, dataset="ds").to_pylist()
    assert [f["unit"] for f in findings if f["code"] == "orphaned-on-server"] == ["sub-1"]
    assert sorted(f["unit"] for f in findings if f["code"] == "patient-id-shared") == ["sub-1", "sub-2"]


def test_a_held_study_is_not_uploaded_until_the_crosswalk_decides(empty_hapi, tmp_path):
    client = SyncFHIRClient(empty_hapi.base_url)
    (tmp_path / "s.toml").write_text("crosswalk = 'crosswalk.csv'\n[datasets.ds]\nroot = 'ds'\n")
    header = "dataset,subject,system,value\n"
    (tmp_path / "crosswalk.csv").write_text(header)
    write_instance(tmp_path / "ds/sub-1/1.dcm", study="two ids", series="a", PatientID="X")
    write_instance(tmp_path / "ds/sub-1/2.dcm", study="two ids", series="a", PatientID="Y")
    write_instance(tmp_path / "ds/sub-2/1.dcm", study="two subjects", series="b", PatientID="Z")
    write_instance(tmp_path / "ds/sub-3/1.dcm", study="two subjects", series="b", PatientID="Z")
    etl = pipeline(tmp_path / "s.toml", empty_hapi.base_url, str(tmp_path / "lake"))
    held = run(etl, ["ds"])
    assert held.exit_code == 1
    assert client.resources("ImagingStudy").search().count() == 0
    codes = {f["code"] for f in etl.lake.read(ALL_FINDINGS, dataset="ds").to_pylist() if f["severity"] == "error"}
    assert codes == {"study-two-patients", "study-two-subjects"}

    lines = "".join(f"ds,sub-{n},urn:oid:1.2.3,{value}\n" for n, value in ((1, "A"), (2, "B"), (3, "B")))
    (tmp_path / "crosswalk.csv").write_text(header + lines)
    load(pipeline(tmp_path / "s.toml", empty_hapi.base_url, str(tmp_path / "lake")), "ds")
    assert client.resources("ImagingStudy").search().count() == 2
    studies = client.resources("ImagingStudy").fetch_all()
    assert sorted(study["numberOfInstances"] for study in studies) == [2, 2]
    assert client.resources("Patient").search().count() == 2


def test_after_a_server_was_down_the_next_run_loads_everything(hapi, examples, tmp_path):
    with run_proxy(hapi.base_url) as server:
        server.rule = lambda request: Reply(status=503)
        etl = pipeline(examples, server.url, str(tmp_path / "lake"), namespace="https://down.test")
        down = run(etl, ["heart"])
        assert down.exit_code == 3
        assert "127.0.0.1" in down.unreachable
        assert "report" in down.summaries["heart"]
        server.rule = lambda request: None
        up = load(pipeline(examples, server.url, str(tmp_path / "lake"), namespace="https://down.test"), "heart")
    assert up.summaries["heart"]["upload"].counts["ImagingStudy"] == {"stored": 9}
    assert up.summaries["heart"]["extract"].files_opened == 0
