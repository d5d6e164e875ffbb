"""Removal of derived tables, so that the next run rebuilds them from the source files.

Never removed: the record of withdrawals, the upload's ledger, locks and the id of the lake. Inventory and sheets stay
too: they are how the next crawl knows that a subject is missing.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack

from dicom_etl.identity.name_encoding import encode_name
from dicom_etl.lake.description import FILE, LakeDescription
from dicom_etl.lake.recovery import STAGES
from dicom_etl.lake.schemas import IDENTITIES
from dicom_etl.lake.tables import Lake

_BY_DATASET = ("headers", "tag_profiles", "files", "fhir_elements", "quality")
_BY_KIND = {"fhir": ("Patient", "Endpoint", "ImagingStudy"), "findings": ("extract", "build", "upload")}
_OF_FORMER_SCHEMAS = ("layouts", "outcomes", ".pieces")  # of schemas 1 and 3


def must_be_rebuilt(lake: Lake, id_key: str | None) -> bool:
    """Whether all datasets of a lake have to be rebuilt together: its schema is older, or its ids have another key.

    Args:
        lake: exists.
        id_key: the fingerprint of the key with which resource ids are made.
    """
    description = lake.describe()
    return description.is_outdated or description.has_other_key(id_key)


def clear(lake: Lake, datasets: Collection[str], id_key: str | None = None) -> None:
    """Remove the derived tables of datasets; those of all, and a new `lake.json`, where all must be rebuilt.

    Args:
        lake: exists.
        datasets: their names.
        id_key: the fingerprint of the key with which resource ids are made; None: that of the lake.

    Raises:
        LockHeldError: a run writes one of the datasets; nothing was removed.
    """
    with ExitStack() as held:
        for name in sorted(datasets):
            held.enter_context(lake.lock(name, f"rebuild of {name}"))
        if must_be_rebuilt(lake, id_key):
            former = lake.describe()
            for folder in (*reversed(_folders()), ".chunks", "identities", *_OF_FORMER_SCHEMAS):
                lake.remove_folder(folder)
            # last: a lake that was cleared in part is still refused
            lake.write_bytes(FILE, LakeDescription.new(id_key or former.id_key, former.lake_id).dump())
        for name in datasets:
            _clear_dataset(lake, name)


def _clear_dataset(lake: Lake, dataset: str) -> None:
    name = encode_name(dataset)
    for folder in (*reversed(_folders()), *(f".chunks/{stage}" for stage in STAGES)):
        lake.remove_folder(f"{folder}/{name}")
    lake.remove(IDENTITIES.path(dataset=dataset))


def _folders() -> list[str]:
    """The folders that hold a folder of each dataset, those of commits last."""
    kinds = [f"{parent}/{kind}" for parent, children in _BY_KIND.items() for kind in children]
    return [*_BY_DATASET, *kinds, *(f"commits/{stage}" for stage in STAGES)]
