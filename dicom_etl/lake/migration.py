"""Removal of derived tables, so that the next run rebuilds them from the source files.

Never removed: the record of withdrawals, the upload's ledger, locks and `lake.json`. Inventory and sheets stay too:
they are how the next crawl knows that a subject is missing.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack

import orjson

from dicom_etl.identity.names import encode_name
from dicom_etl.lake.recovery import STAGES
from dicom_etl.lake.schemas import IDENTITIES, SCHEMA_VERSION
from dicom_etl.lake.tables import Lake

_BY_DATASET = ("headers", "tag_profiles", "files", "fhir_elements", "quality")
_BY_KIND = {"fhir": ("Patient", "Endpoint", "ImagingStudy"), "findings": ("extract", "build", "upload")}
_OF_FORMER_SCHEMAS = ("layouts",)


def is_outdated(lake: Lake) -> bool:
    """Whether a lake was written under an older schema."""
    content = lake.read_bytes("lake.json")
    try:
        return content is not None and int(orjson.loads(content)["schema"]) < SCHEMA_VERSION
    except (ValueError, KeyError, TypeError):
        return False


def clear(lake: Lake, datasets: Collection[str]) -> None:
    """Remove the derived tables of datasets; of an outdated lake those of all, and say that it is of this schema.

    Raises:
        LockHeldError: a run writes one of the datasets; nothing was removed.
    """
    with ExitStack() as held:
        for name in sorted(datasets):
            held.enter_context(lake.lock(name, f"rebuild of {name}"))
        if is_outdated(lake):
            for folder in (*reversed(_folders()), ".pieces", "identities", *_OF_FORMER_SCHEMAS):
                lake.remove_folder(folder)
            lake.write_bytes("lake.json", orjson.dumps({"schema": SCHEMA_VERSION}))
        for name in datasets:
            _clear_dataset(lake, name)


def _clear_dataset(lake: Lake, dataset: str) -> None:
    name = encode_name(dataset)
    for folder in (*reversed(_folders()), *(f".pieces/{stage}" for stage in STAGES)):
        lake.remove_folder(f"{folder}/{name}")
    lake.remove(IDENTITIES.path(dataset=dataset))


def _folders() -> list[str]:
    """The folders that hold a folder of each dataset, those of commits last."""
    kinds = [f"{parent}/{kind}" for parent, children in _BY_KIND.items() for kind in children]
    return [*_BY_DATASET, *kinds, *(f"commits/{stage}" for stage in STAGES)]
