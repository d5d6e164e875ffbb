"""The benchmark of the upload: each contender uploads everything, with the expected requests."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import orjson
import pytest

from benchmarks.upload import CONTENDERS, SEQUENTIAL, Load, Step, measured
from dicom_etl.settings import FhirSettings, Settings
from tests.servers.hapi_server import HapiServer

STUDIES = 3
STEPS = {step.label: step for steps in CONTENDERS for step in steps}


@pytest.fixture
def load(tmp_path: Path) -> Load:
    return Load.new(tmp_path, STUDIES, Settings(fhir=FhirSettings(max_bundle_entries=2)))


def saves(endpoints: int) -> Counter[str]:
    return Counter({"POST Patient": STUDIES, "POST ImagingStudy": STUDIES, "POST Endpoint": endpoints})


def writes(requests: Counter[str]) -> dict[str, int]:
    return {kind: number for kind, number in requests.items() if not kind.startswith("GET ")}


def test_a_study_is_as_large_as_one_of_a_build(load: Load) -> None:
    for patient, study in load.pairs():
        assert 35_000 < len(orjson.dumps(study)) < 40_000
        assert "id" not in patient | study


def test_the_upload_sends_each_resource_once(load: Load, hapi: HapiServer) -> None:
    first, again, verified = (measured(step, hapi, load).requests for step in CONTENDERS[0])

    # transactions: the Endpoint, two Patients, one Patient; each study is too large for a transaction
    assert writes(first) == {"POST transaction": 3, "PUT ImagingStudy": 3}
    assert writes(again) == writes(verified) == {}
    assert again["GET metadata"] == 1
    assert again.total() < first.total()


@pytest.mark.parametrize(
    ("label", "wanted"),
    [
        (SEQUENTIAL, saves(1)),
        ("save(), an Endpoint for each study", saves(STUDIES)),
        (
            "search, then save()",
            saves(1) + Counter({"GET Patient": STUDIES, "GET ImagingStudy": STUDIES, "GET Endpoint": 1}),
        ),
    ],
)
def test_other_contenders_send_resources_one_by_one(
    label: str, wanted: Counter[str], load: Load, hapi: HapiServer
) -> None:
    sample = measured(STEPS[label], hapi, load)

    assert sample.requests == wanted
    assert sample.seconds > 0


def test_an_incomplete_upload_is_an_error(load: Load, hapi: HapiServer) -> None:
    with pytest.raises(SystemExit, match="idle: the server has"):
        measured(Step("idle", lambda url, load: None), hapi, load)
