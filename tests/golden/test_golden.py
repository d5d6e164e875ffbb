"""Golden cases: DICOM header values, and the FHIR resources that the standards and the mapping table require for them.

Each file in `cases/` is one case; a case only has what it is about. `defaults.json` has what is the same in most cases:
the tags of all files, the one file of a dataset, and resources with a name. All expected values were written by hand,
from the sections of the standards that a case names.

A case has
- `about`, and `source` (sections of the standards);
- `settings` (in them, `dataset` has those of the dataset);
- `tags` of all files, added to the default ones; null removes a tag;
- `files`: `path`, more `tags`, and `bytes` (hexadecimal) that the standard has for them;
- `sheets`, `corrections` and `crosswalk` as CSV;
- `expected` resources by type, sorted by id: a whole resource, the name of a default one, or an object with this name
  as `default` and other elements by their path (`series.0.laterality`); null removes an element;
- `findings`: code and tag of all findings of the build.

Resources are compared with readable ids (`readable_ids`); the folder of the files is `file:///golden`.
"""

import json
import uuid
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from dicom_etl.fhir.validation import find_errors
from dicom_etl.lake.schemas import INVENTORY, RESOURCE_TYPES
from dicom_etl.settings import Settings
from tests.golden.readable_ids import Resource, with_readable_ids
from tests.servers.hapi_server import HapiServer, validate
from tests.support.datasets import DEFAULTS as WRITTEN_BY_DEFAULT
from tests.support.datasets import Tree, make_tree, write_instance

Case = dict[str, Any]

DATASET = "golden"
FOLDER = Path(__file__).parent


def read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


DEFAULTS = read_json(FOLDER / "defaults.json")
CASES: Mapping[str, Case] = {file.stem: read_json(file) for file in sorted((FOLDER / "cases").glob("*.json"))}

# HAPI's copy of the DICOM terms for R4 (version 01) claims to be complete and lacks the newer modalities of CID 33
NOT_IN_R4 = "Unknown code 'http://dicom.nema.org/resources/ontology/DCM#DOC'"


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize("name", CASES)
def test_golden(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    tree = make_dataset(case, tmp_path)
    tree.run()
    units = sorted(set(tree.lake.read(INVENTORY, ["unit"], dataset=DATASET)["unit"].to_pylist()))
    resources = [resource for unit in units for kind in RESOURCE_TYPES for resource in tree.resources(kind, unit)]
    for resource in resources:
        assert uuid.UUID(resource["id"]).version == 8
        assert str(uuid.UUID(resource["id"])) == resource["id"]
    readable = with_readable_ids(resources, DATASET, tree.root, "file:///golden")
    for kind, expected in expected_resources(case).items():
        assert [resource for resource in readable if resource["resourceType"] == kind] == expected
    findings = [finding for unit in (None, *units) for finding in tree.findings("build", unit)]
    codes = sorted((finding["code"], finding["tag"] or "") for finding in findings)
    assert codes == sorted((code, tag or "") for code, tag in case["findings"])


@pytest.mark.parametrize("name", CASES)
def test_expected_resources_are_valid(name: str) -> None:
    for resource in list_expected(CASES[name]):
        assert find_errors(resource, version_of(CASES[name])) == []


def test_hapi_accepts_the_resources_of_r4(hapi: HapiServer) -> None:
    assert list_issues(hapi, "R4") == {}


def test_hapi_accepts_the_resources_of_r5(hapi_r5: HapiServer) -> None:
    assert list_issues(hapi_r5, "R5") == {}


def list_issues(server: HapiServer, version: str) -> dict[str, list[str]]:
    """The issues that HAPI has with the golden resources of a version, by case; equal resources are sent once."""
    issues_by_case: dict[str, list[str]] = {}
    validated: set[str] = set()
    for name, case in CASES.items():
        for resource in list_expected(case) if version_of(case) == version else ():
            text = json.dumps(resource, sort_keys=True)
            issues = [] if text in validated else validate(server.base_url, resource)
            if issues := [issue for issue in issues if (version, issue["diagnostics"]) != ("R4", NOT_IN_R4)]:
                texts = [f"{issue.get('location')}: {issue['diagnostics']}" for issue in issues]
                issues_by_case.setdefault(name, []).extend(texts)
            validated.add(text)
    return issues_by_case


def version_of(case: Case) -> str:
    return str(case.get("settings", {}).get("fhir", {}).get("version", "R4"))


# -- expected resources -----------------------------------------------------------------------------------------------


def expected_resources(case: Case) -> dict[str, list[Resource]]:
    """The expected resources of a case by type, with the default ones in full."""
    return {kind: [expand(kind, item) for item in items] for kind, items in case["expected"].items()}


def list_expected(case: Case) -> Iterator[Resource]:
    for resources in expected_resources(case).values():
        yield from resources


def expand(kind: str, item: str | Resource) -> Resource:
    """A resource of a type: a default one with other elements, or a whole one."""
    if isinstance(item, str):
        item = {"default": item}
    if "default" not in item:
        return item
    resource: Resource = deepcopy(DEFAULTS[kind][item["default"]])
    for path, value in item.items():
        if path != "default":
            set_element(resource, path, value)
    return resource


def set_element(resource: Resource, path: str, value: Any) -> None:
    """Set the element at a path of names and indices; None removes it."""
    target: Any = resource
    *outer, last = (int(step) if step.isdecimal() else step for step in path.split("."))
    for step in outer:
        target = target[step]
    if value is None:
        del target[last]
    else:
        target[last] = value


# -- the dataset ------------------------------------------------------------------------------------------------------


def make_dataset(case: Case, tmp_path: Path) -> Tree:
    """The dataset of a case, with its files, sheets and settings."""
    settings = dict(case.get("settings", {}))
    tree = make_tree(tmp_path, DATASET, **settings.pop("dataset", {}))
    tags = DEFAULTS["tags"] | case.get("tags", {})
    for file in case.get("files", DEFAULTS["files"]):
        write_file(tree.root / file["path"], tags | file["tags"], file.get("bytes", ""))
    for name, text in case.get("sheets", {}).items():
        (tree.root / name).write_text(text, encoding="utf-8")
    for name in ("crosswalk", "corrections"):
        if name in case:
            (tmp_path / f"{name}.csv").write_text(case[name], encoding="utf-8")
            settings[name] = str(tmp_path / f"{name}.csv")
    tree.settings = Settings(**settings)
    return tree


def write_file(path: Path, tags: dict[str, Any], expected_bytes: str) -> None:
    """Write a file with only these tags (None: without the tag), and check that it has these bytes (hexadecimal)."""
    write_instance(path, **(dict.fromkeys(WRITTEN_BY_DEFAULT) | tags))
    assert bytes.fromhex(expected_bytes) in path.read_bytes()
