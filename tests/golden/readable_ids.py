"""Readable ids for the resources of a build, which has UUIDs without a meaning for a reader.

The id of a Patient is the value of its identifier, that of an ImagingStudy its StudyInstanceUID, that of the Endpoint
the name of its dataset.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

Resource = dict[str, Any]


def with_readable_ids(resources: list[Resource], dataset: str, folder: Path, folder_uri: str) -> list[Resource]:
    """The distinct resources of a dataset with readable ids and references, sorted by id.

    Args:
        resources: all of the dataset: a reference to any other resource stays as it is.
        dataset: its name.
        folder: an absolute path, as in the address of the Endpoint.
        folder_uri: the URI that replaces it.
    """
    references = {
        f"{resource['resourceType']}/{resource['id']}": f"{resource['resourceType']}/{_id(resource, dataset)}"
        for resource in resources
    }
    distinct: list[Resource] = []
    for resource in resources:
        readable = _replace_references(resource, references) | {"id": _id(resource, dataset)}
        if readable["resourceType"] == "Endpoint":
            readable["address"] = readable["address"].replace(folder.as_uri(), folder_uri)
        if readable not in distinct:
            distinct.append(readable)
    return sorted(distinct, key=lambda resource: str(resource["id"]))


def _id(resource: Resource, dataset: str) -> str:
    if resource["resourceType"] == "Endpoint":
        return dataset
    return str(resource["identifier"][0]["value"]).removeprefix("urn:oid:")


def _replace_references(value: Any, references: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {
            key: references.get(item, item) if key == "reference" else _replace_references(item, references)
            for key, item in value.items()
        }
    return [_replace_references(item, references) for item in value] if isinstance(value, list) else value
