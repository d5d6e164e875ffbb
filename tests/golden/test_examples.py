"""Golden resources of the example datasets, written by hand from their headers and sheets by the rules of the mapping.

`examples/D.json` has the Patients, the Endpoint and the ImagingStudies of dataset D as they must be in the lake, and
the findings of its build as [code, subject, tag]. Resources are compared with readable ids (`readable_ids`); the folder
of the example is `file:///example`.

The instances of a long series are written as their count, the first and the last one. Those between are like the first,
with the numbers that follow and the UIDs that pydicom reads from the files.
"""

import json
import uuid
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pydicom
import pytest
from pydicom.errors import InvalidDicomError

from dicom_etl.examples import ExampleTree, write_examples
from dicom_etl.fhir.validation import find_errors
from dicom_etl.lake.schemas import DATASET_FINDINGS, FINDINGS, RESOURCE_TYPES
from dicom_etl.lake.shard_reader import read_shards
from dicom_etl.pipeline import Pipeline, RunResult, run
from dicom_etl.settings import load_settings
from tests.golden.readable_ids import Resource, with_readable_ids

InstanceUids = dict[int | None, str]
"""InstanceNumber -> SOPInstanceUID, of a series."""
SeriesOfDatasets = dict[str, dict[str, InstanceUids]]
"""Dataset -> SeriesInstanceUID -> its instances."""

FOLDER = Path(__file__).parent / "examples"
GOLDEN: Mapping[str, dict[str, Any]] = {
    file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(FOLDER.glob("*.json"))
}
KINDS = [(dataset, kind) for dataset in GOLDEN for kind in RESOURCE_TYPES]


class BuiltExample(NamedTuple):
    """The example datasets after a build."""

    tree: ExampleTree
    result: RunResult
    etl: Pipeline
    readable: dict[tuple[str, str], list[Resource]]  # by dataset and type, with readable ids
    resources: list[Resource]  # as in the lake


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> BuiltExample:
    """The example after crawl, extract and build, with the settings that are part of it."""
    tree = write_examples(tmp_path_factory.mktemp("golden") / "demo")
    settings = load_settings(tree.settings_file, engine="serial")
    etl = Pipeline(settings, notify=lambda _: None)
    result = run(etl, tree.datasets, ("crawl", "extract", "build"))
    readable: dict[tuple[str, str], list[Resource]] = defaultdict(list)
    resources: list[Resource] = []
    for dataset in tree.datasets:
        stored = list(read_stored(Path(settings.lake), dataset))
        resources += stored
        for resource in with_readable_ids(stored, dataset, tree.directory.resolve(), "file:///example"):
            readable[dataset, resource["resourceType"]].append(resource)
    return BuiltExample(tree, result, etl, readable, resources)


@pytest.fixture(scope="module")
def series_of_files(built: BuiltExample) -> SeriesOfDatasets:
    """The instances of each series in the files of each dataset, as read by pydicom."""
    series: SeriesOfDatasets = {}
    for dataset in built.tree.datasets:
        series[dataset] = defaultdict(dict)
        for header in read_headers(built.tree.directory / dataset):
            number = header.get("InstanceNumber")
            instances = series[dataset][str(header.SeriesInstanceUID)]
            instances[None if number is None else int(number)] = str(header.SOPInstanceUID)
    return series


def test_there_is_a_golden_file_for_each_dataset(built: BuiltExample) -> None:
    assert tuple(GOLDEN) == built.tree.datasets
    assert {kind: sum(len(GOLDEN[name][kind]) for name in GOLDEN) for kind in RESOURCE_TYPES} == {
        "Patient": 8,  # one of them is in both datasets
        "Endpoint": 2,
        "ImagingStudy": 17,
    }


@pytest.mark.parametrize(("dataset", "kind"), KINDS)
def test_resources_are_as_written_by_hand(
    dataset: str, kind: str, built: BuiltExample, series_of_files: SeriesOfDatasets
) -> None:
    expected = {item["id"]: with_all_instances(item, series_of_files[dataset]) for item in GOLDEN[dataset][kind]}
    resources = built.readable[dataset, kind]
    assert sorted(resource["id"] for resource in resources) == sorted(expected)
    for resource in resources:
        assert resource == expected[resource["id"]], resource["id"]


@pytest.mark.parametrize("dataset", GOLDEN)
def test_every_instance_of_the_files_is_in_one_study(
    dataset: str, built: BuiltExample, series_of_files: SeriesOfDatasets
) -> None:
    all_series = [series for study in built.readable[dataset, "ImagingStudy"] for series in study["series"]]
    for series in all_series:
        uids = [instance["uid"] for instance in series["instance"]]
        assert len(set(uids)) == len(uids) == series["numberOfInstances"]
        assert set(uids) == set(series_of_files[dataset][series["uid"]].values())
    assert sorted(series["uid"] for series in all_series) == sorted(series_of_files[dataset])


def test_only_the_patient_of_both_datasets_is_shared(built: BuiltExample) -> None:
    ids = {kind: {item["id"] for item in built.resources if item["resourceType"] == kind} for kind in RESOURCE_TYPES}
    assert {kind: len(kind_ids) for kind, kind_ids in ids.items()} == {"Patient": 7, "Endpoint": 2, "ImagingStudy": 17}
    all_ids = set().union(*ids.values())
    assert {str(uuid.UUID(resource_id)) for resource_id in all_ids} == all_ids
    assert {uuid.UUID(resource_id).version for resource_id in all_ids} == {8}


@pytest.mark.parametrize("dataset", GOLDEN)
def test_findings_are_as_written_by_hand(dataset: str, built: BuiltExample) -> None:
    lake = built.etl.lake
    findings = lake.read(DATASET_FINDINGS, stage="build", dataset=dataset).to_pylist()
    for rows in read_shards(lake, FINDINGS, stage="build", dataset=dataset):
        findings += rows.to_pylist()
    expected = GOLDEN[dataset]["findings"]
    assert sort([finding["code"], finding["subject"], finding["tag"]] for finding in findings) == sort(expected)


def test_no_study_is_held(built: BuiltExample) -> None:
    assert built.result.exit_code == 0
    assert {name: stages["build"].held for name, stages in built.result.summaries.items()} == dict.fromkeys(GOLDEN, 0)


@pytest.mark.parametrize(("dataset", "kind"), KINDS)
def test_expected_resources_are_valid(dataset: str, kind: str, series_of_files: SeriesOfDatasets) -> None:
    for resource in GOLDEN[dataset][kind]:
        assert find_errors(with_all_instances(resource, series_of_files[dataset])) == []


# -- resources in the lake, and headers of the files ------------------------------------------------------------------


def read_stored(lake: Path, dataset: str) -> Iterator[Resource]:
    for kind in RESOURCE_TYPES:
        for file in sorted((lake / "fhir" / kind / dataset).glob("*.ndjson")):
            yield from (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())


def sort(findings: Any) -> list[list[str | None]]:
    return sorted(findings, key=lambda finding: [value or "" for value in finding])


def read_headers(folder: Path) -> Iterator[pydicom.FileDataset]:
    for path in folder.glob("primary/**/*"):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True) if path.is_file() else None
        except InvalidDicomError:
            continue
        if header is not None and "StudyInstanceUID" in header:
            yield header


# -- expected resources -----------------------------------------------------------------------------------------------


def with_all_instances(resource: Resource, instance_uids: Mapping[str, InstanceUids]) -> Resource:
    """An expected resource with all instances of its long series; `instance_uids` by SeriesInstanceUID."""
    if resource["resourceType"] != "ImagingStudy":
        return resource
    series = [item | {"instance": list_instances(item, instance_uids)} for item in resource["series"]]
    return resource | {"series": series}


def list_instances(series: dict[str, Any], instance_uids: Mapping[str, InstanceUids]) -> list[dict[str, Any]]:
    expected = series["instance"]
    if isinstance(expected, list):
        return expected
    uids, first, last = instance_uids[series["uid"]], expected["first"], expected["last"]
    numbers = range(first["number"], last["number"] + 1)
    instances = [first | {"uid": uids[number], "number": number} for number in numbers]
    assert (len(instances), instances[0], instances[-1]) == (expected["count"], first, last)
    return instances
