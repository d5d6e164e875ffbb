"""Golden cases: DICOM header values and the FHIR resources that the standards and the mapping table ask for.

Each file under `cases/` is one case. Its expected resources were written by hand from the sections that it names, and
stand there whole. Ids are UUIDs of no meaning to a reader, so that the resources of the build get readable ones before
they are compared: a Patient the value of its identifier, an ImagingStudy its StudyInstanceUID, the Endpoint the name of
the dataset; the folder that the files lie in is `file:///golden`.

A case has `about`, `source` (sections of the standards), `settings` (`dataset` in them: those of the dataset), `all`
(tags that all files have), `files` (`path`, `tags` over those, `holds`: bytes that the standard has for them),
`sheets`, `corrections` and `crosswalk` as CSV, `expected` (resources by type, sorted by id) and `findings` (code and
tag of each finding of the build, all of them).
"""

import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from dicom_etl.fhir.validation import find_errors
from dicom_etl.lake.schemas import INVENTORY, RESOURCE_TYPES
from dicom_etl.settings import Settings
from tests.servers.hapi_server import HapiServer, validate
from tests.support.datasets import DEFAULTS, Tree, make_tree, write_instance

Resource = dict[str, Any]
Case = dict[str, Any]

DATASET = "golden"
FILES = sorted((Path(__file__).parent / "cases").glob("*.json"))
CASES: Mapping[str, Case] = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in FILES}

# HAPI's copy of the DICOM terms for R4 (version 01) says that it is complete and lacks the newer modalities of CID 33
NOT_IN_R4 = "Unknown code 'http://dicom.nema.org/resources/ontology/DCM#DOC'"


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize("name", CASES)
def test_golden(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    tree = _tree(case, tmp_path)
    tree.run()
    units = sorted(set(tree.lake.read(INVENTORY, ["unit"], dataset=DATASET)["unit"].to_pylist()))
    resources = [one for unit in units for kind in RESOURCE_TYPES for one in tree.resources(kind, unit)]
    for resource in resources:
        assert uuid.UUID(resource["id"]).version == 8
        assert str(uuid.UUID(resource["id"])) == resource["id"]
    readable = _readable(resources, tree.root)
    for kind, expected in case["expected"].items():
        assert [one for one in readable if one["resourceType"] == kind] == expected
    found = [finding for unit in (None, *units) for finding in tree.findings("build", unit)]
    assert _codes((one["code"], one["tag"]) for one in found) == _codes(map(tuple, case["findings"]))


@pytest.mark.parametrize("name", CASES)
def test_what_is_expected_is_valid(name: str) -> None:
    for resource in _expected(CASES[name]):
        assert find_errors(resource, _version(CASES[name])) == []


def test_hapi_takes_the_resources_of_r4(hapi: HapiServer) -> None:
    assert _refused(hapi, "R4") == {}


def test_hapi_takes_the_resources_of_r5(hapi_r5: HapiServer) -> None:
    assert _refused(hapi_r5, "R5") == {}


def _refused(server: HapiServer, version: str) -> dict[str, list[str]]:
    """What HAPI says against the golden resources of a version, by case; equal resources are sent once."""
    said: dict[str, list[str]] = {}
    seen: set[str] = set()
    for name, case in CASES.items():
        for resource in _expected(case) if _version(case) == version else ():
            text = json.dumps(resource, sort_keys=True)
            issues = [] if text in seen else validate(server.base_url, resource)
            if against := [issue for issue in issues if (version, issue["diagnostics"]) != ("R4", NOT_IN_R4)]:
                said.setdefault(name, []).extend(f"{one.get('location')}: {one['diagnostics']}" for one in against)
            seen.add(text)
    return said


def _expected(case: Case) -> Iterator[Resource]:
    for resources in case["expected"].values():
        yield from resources


def _version(case: Case) -> str:
    return str(case.get("settings", {}).get("fhir", {}).get("version", "R4"))


def _codes(pairs: Any) -> list[tuple[str, str]]:
    return sorted((code, tag or "") for code, tag in pairs)


# -- the dataset ------------------------------------------------------------------------------------------------------


def _tree(case: Case, tmp_path: Path) -> Tree:
    """The dataset of a case, with its files, sheets and settings."""
    settings = dict(case.get("settings", {}))
    tree = make_tree(tmp_path, DATASET, **settings.pop("dataset", {}))
    for file in case["files"]:
        _write(tree.root / file["path"], case["all"] | file["tags"], file.get("holds", ""))
    for name, text in case.get("sheets", {}).items():
        (tree.root / name).write_text(text, encoding="utf-8")
    for name in ("crosswalk", "corrections"):
        if name in case:
            (tmp_path / f"{name}.csv").write_text(case[name], encoding="utf-8")
            settings[name] = str(tmp_path / f"{name}.csv")
    tree.settings = Settings(**settings)
    return tree


def _write(path: Path, tags: dict[str, Any], holds: str) -> None:
    """Write a file of these tags and no others; `holds` are bytes (hexadecimal) that the standard has for them."""
    nothing = dict.fromkeys(DEFAULTS)
    write_instance(path, **(nothing | tags))
    assert bytes.fromhex(holds) in path.read_bytes()


# -- readable ids -----------------------------------------------------------------------------------------------------


def _readable(resources: list[Resource], root: Path) -> list[Resource]:
    """The resources with readable ids, equal ones once, sorted by id."""
    names = {f"{one['resourceType']}/{one['id']}": f"{one['resourceType']}/{_name(one)}" for one in resources}
    named = []
    for resource in resources:
        key = f"{resource['resourceType']}/{resource['id']}"
        one = _referring(resource, names) | {"id": names[key].partition("/")[2]}
        if one["resourceType"] == "Endpoint":
            one["address"] = one["address"].replace(root.as_uri(), f"file:///{DATASET}")
        if one not in named:
            named.append(one)
    return sorted(named, key=lambda one: str(one["id"]))


def _name(resource: Resource) -> str:
    if resource["resourceType"] == "Endpoint":
        return DATASET
    return str(resource["identifier"][0]["value"]).removeprefix("urn:oid:")


def _referring(value: Any, names: Mapping[str, str]) -> Any:
    """The value with the references in it replaced."""
    if isinstance(value, dict):
        return {
            key: names.get(one, one) if key == "reference" else _referring(one, names) for key, one in value.items()
        }
    return [_referring(one, names) for one in value] if isinstance(value, list) else value
