"""The main job on the example datasets, through the pipeline, into a real HAPI FHIR server."""

import re
from pathlib import Path

import orjson
import pytest
from fhirpy import SyncFHIRClient

from dicom_etl.examples import write_examples
from dicom_etl.pipeline import Options, Pipeline, run
from dicom_etl.settings import load_settings
from tests.servers.hapi_server import validate

DOCS = Path(__file__).parents[2] / "docs"
AUTHORITY = "urn:oid:2.25.323467493119269171179165005637713612697"


def pipeline(settings_file: Path, url: str, lake: str, **overrides) -> Pipeline:
    settings = load_settings(settings_file, lake=lake, fhir={"url": url}, engine="serial", **overrides)
    return Pipeline(settings, tell=lambda _: None)


def load(etl: Pipeline, *names: str, **options):
    outcome = run(etl, names, options=Options(**options))
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


def test_every_resource_passes_validate(hapi, examples, tmp_path):
    etl = pipeline(examples, hapi.base_url, str(tmp_path / "lake"), site="https://validate.test")
    load(etl, "breast", "heart")
    checked = 0
    for file in (tmp_path / "lake/fhir").rglob("*.ndjson"):
        for line in file.read_bytes().splitlines():
            assert validate(hapi.base_url, orjson.loads(line)) == [], file.name
            checked += 1
    # 4 + 4 Patients and Endpoints (one line in each subject's file), 17 studies
    assert checked == 8 + 8 + 17


def test_the_documented_questions_have_answers(hapi_factory, examples, tmp_path):
    url = hapi_factory().base_url
    load(pipeline(examples, url, str(tmp_path / "lake")), "breast", "heart")
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "questions.md").read_text(), re.DOTALL)
    assert len(blocks) == 5
    said: dict = {"FHIR_URL": url}
    exec("\n".join(blocks), said)
    assert len(said["studies"]) == 4
    assert said["datasets"] == {"breast", "heart"}
    assert len(said["breasts"]) == 2
    assert said["study"]["id"] == said["studies"][0]["id"]
