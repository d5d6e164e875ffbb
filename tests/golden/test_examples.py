"""Golden resources of the example datasets: what their headers and sheets ask for by the mapping, written by hand.

`examples/D.json` holds the Patients, the Endpoint and the ImagingStudies of dataset D as they should be in the
lake, whole, and its build findings as [code, subject, tag]. Ids are UUIDs of no meaning to a reader, so that actual
resources get readable ones before they are compared: a Patient the value of its identifier, an ImagingStudy its
StudyInstanceUID, the Endpoint the name of the dataset; the folder of the example is `file:///example`.

The instances of a long series are written as their count, the first and the last: those between them are as the first,
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

Resource = dict[str, Any]
Numbered = dict[int | None, str]
"""InstanceNumber -> SOPInstanceUID, of a series."""
Files = dict[str, dict[str, Numbered]]
"""Dataset -> SeriesInstanceUID -> its instances."""

FOLDER = Path(__file__).parent / "examples"
GOLDEN: Mapping[str, dict[str, Any]] = {
    file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(FOLDER.glob("*.json"))
}
KINDS = [(dataset, kind) for dataset in GOLDEN for kind in RESOURCE_TYPES]


class Built(NamedTuple):
    """The example, what a run said, and its resources with readable ids, by dataset and type."""

    tree: ExampleTree
    outcome: RunResult
    etl: Pipeline
    resources: dict[tuple[str, str], list[Resource]]
    written: list[Resource]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The example through crawl, extract and build, with the settings that stand in it."""
    tree = write_examples(tmp_path_factory.mktemp("golden") / "demo")
    settings = load_settings(tree.settings_file, engine="serial")
    etl = Pipeline(settings, notify=lambda _: None)
    outcome = run(etl, tree.datasets, ("crawl", "extract", "build"))
    resources: dict[tuple[str, str], list[Resource]] = {}
    written: list[Resource] = []
    for dataset in tree.datasets:
        of_dataset = list(_written(Path(settings.lake), dataset))
        written += of_dataset
        for resource in _readable(of_dataset, dataset, tree.directory):
            resources.setdefault((dataset, resource["resourceType"]), []).append(resource)
    return Built(tree, outcome, etl, resources, written)


@pytest.fixture(scope="module")
def files(built: Built) -> Files:
    """What plain pydicom finds in the files of each dataset: the instances of each series, by its UID."""
    found: Files = {}
    for dataset in built.tree.datasets:
        of_dataset = found[dataset] = defaultdict(dict)
        for header in _headers(built.tree.directory / dataset):
            number = header.get("InstanceNumber")
            of_series = of_dataset[str(header.SeriesInstanceUID)]
            of_series[None if number is None else int(number)] = str(header.SOPInstanceUID)
    return found


def test_the_golden_files_are_those_of_the_datasets(built: Built) -> None:
    assert tuple(GOLDEN) == built.tree.datasets
    assert {kind: sum(len(GOLDEN[name][kind]) for name in GOLDEN) for kind in RESOURCE_TYPES} == {
        "Patient": 8,  # one of them is in both datasets
        "Endpoint": 2,
        "ImagingStudy": 17,
    }


@pytest.mark.parametrize(("dataset", "kind"), KINDS)
def test_the_resources_are_those_that_were_written_by_hand(dataset: str, kind: str, built: Built, files: Files) -> None:
    expected = {one["id"]: _whole(one, files[dataset]) for one in GOLDEN[dataset][kind]}
    actual = built.resources[dataset, kind]
    assert sorted(one["id"] for one in actual) == sorted(expected)
    for one in actual:
        assert one == expected[one["id"]], one["id"]


@pytest.mark.parametrize("dataset", GOLDEN)
def test_every_instance_of_the_files_is_there_once(dataset: str, built: Built, files: Files) -> None:
    there = [one for study in built.resources[dataset, "ImagingStudy"] for one in study["series"]]
    for one in there:
        uids = [instance["uid"] for instance in one["instance"]]
        assert len(set(uids)) == len(uids) == one["numberOfInstances"]
        assert set(uids) == set(files[dataset][one["uid"]].values())
    assert sorted(one["uid"] for one in there) == sorted(files[dataset])


def test_a_person_of_both_datasets_is_one_and_all_others_are_not(built: Built) -> None:
    ids = {kind: {one["id"] for one in built.written if one["resourceType"] == kind} for kind in RESOURCE_TYPES}
    assert {kind: len(found) for kind, found in ids.items()} == {"Patient": 7, "Endpoint": 2, "ImagingStudy": 17}
    assert {str(uuid.UUID(one)) for found in ids.values() for one in found} == set().union(*ids.values())
    assert {uuid.UUID(one).version for found in ids.values() for one in found} == {8}


@pytest.mark.parametrize("dataset", GOLDEN)
def test_the_findings_of_the_build_are_those_that_were_written_by_hand(dataset: str, built: Built) -> None:
    lake = built.etl.lake
    found = lake.read(DATASET_FINDINGS, stage="build", dataset=dataset).to_pylist()
    for rows in read_shards(lake, FINDINGS, stage="build", dataset=dataset):
        found += rows.to_pylist()
    assert _sorted([row["code"], row["subject"], row["tag"]] for row in found) == _sorted(GOLDEN[dataset]["findings"])


def test_no_study_is_held(built: Built) -> None:
    assert built.outcome.exit_code == 0
    assert {name: stages["build"].held for name, stages in built.outcome.summaries.items()} == dict.fromkeys(GOLDEN, 0)


@pytest.mark.parametrize(("dataset", "kind"), KINDS)
def test_what_is_expected_is_valid(dataset: str, kind: str, files: Files) -> None:
    for resource in GOLDEN[dataset][kind]:
        assert find_errors(_whole(resource, files[dataset])) == []


# -- what is in the lake ----------------------------------------------------------------------------------------------


def _written(lake: Path, dataset: str) -> Iterator[Resource]:
    for kind in RESOURCE_TYPES:
        for file in sorted((lake / "fhir" / kind / dataset).glob("*.ndjson")):
            yield from (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())


def _sorted(findings: Any) -> list[list[str | None]]:
    return sorted(findings, key=lambda finding: [part or "" for part in finding])


def _headers(folder: Path) -> Iterator[pydicom.FileDataset]:
    for path in folder.glob("primary/**/*"):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True) if path.is_file() else None
        except InvalidDicomError:
            continue
        if header is not None and "StudyInstanceUID" in header:
            yield header


# -- readable ids -----------------------------------------------------------------------------------------------------


def _readable(resources: list[Resource], dataset: str, directory: Path) -> Iterator[Resource]:
    """The resources with readable ids and references; those that are equal once."""
    names = {_key(one): f"{one['resourceType']}/{_name(one, dataset)}" for one in resources}
    seen: list[Resource] = []
    for resource in resources:
        one = _referring(resource, names) | {"id": _name(resource, dataset)}
        if one["resourceType"] == "Endpoint":
            one["address"] = one["address"].replace(directory.resolve().as_uri(), "file:///example")
        if one not in seen:
            seen.append(one)
            yield one


def _key(resource: Resource) -> str:
    return f"{resource['resourceType']}/{resource['id']}"


def _name(resource: Resource, dataset: str) -> str:
    if resource["resourceType"] == "Endpoint":
        return dataset
    return str(resource["identifier"][0]["value"]).removeprefix("urn:oid:")


def _referring(value: Any, names: Mapping[str, str]) -> Any:
    """The value with the references in it replaced; one that refers to nothing in the dataset stays as it is."""
    if isinstance(value, dict):
        return {
            key: names.get(one, one) if key == "reference" else _referring(one, names) for key, one in value.items()
        }
    return [_referring(one, names) for one in value] if isinstance(value, list) else value


# -- what is expected -------------------------------------------------------------------------------------------------


def _whole(resource: Resource, series: Mapping[str, Numbered]) -> Resource:
    """An expected resource with all instances of its long series."""
    if resource["resourceType"] != "ImagingStudy":
        return resource
    return resource | {"series": [one | {"instance": _instances(one, series)} for one in resource["series"]]}


def _instances(one: dict[str, Any], series: Mapping[str, Numbered]) -> list[dict[str, Any]]:
    written = one["instance"]
    if isinstance(written, list):
        return written
    uids, first, last = series[one["uid"]], written["first"], written["last"]
    numbers = range(first["number"], last["number"] + 1)
    whole = [first | {"uid": uids[number], "number": number} for number in numbers]
    assert (len(whole), whole[0], whole[-1]) == (written["count"], first, last)
    return whole
