"""Removal of derived tables, so that the next run rebuilds them from the source files; records of older versions.

Never removed: the record of withdrawals, the upload ledger, locks and the id of the lake. Inventory and sheets stay,
too, since the next crawl needs them to detect missing subjects.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack

import pyarrow as pa

from dicom_etl.identity.name_encoding import encode_name
from dicom_etl.lake.description import LakeDescription
from dicom_etl.lake.location import DESCRIPTION_FILE
from dicom_etl.lake.recovery import STAGES
from dicom_etl.lake.row_groups import read_parquet
from dicom_etl.lake.schemas import IDENTITIES, WITHDRAWN
from dicom_etl.lake.tables import Lake, LakeError

_BY_DATASET = ("headers", "tag_profiles", "files", "fhir_elements", "quality")
_BY_KIND = {"fhir": ("Patient", "Endpoint", "ImagingStudy"), "findings": ("extract", "build", "upload")}
_PREVIOUS_FOLDERS = ("layouts", "outcomes", ".pieces")  # of schemas 1 and 3
_PREVIOUS_COLUMNS = {"site": "namespace", "left": "pending_deletions"}  # of the records of withdrawals until schema 3


def needs_rebuild(lake: Lake, id_key: str | None) -> bool:
    """Whether all datasets of a lake must be rebuilt together: its schema is older, or its ids have another key.

    Args:
        lake: an existing lake.
        id_key: fingerprint of the key that resource ids are made with.
    """
    description = lake.describe()
    return description.is_outdated or description.has_other_key(id_key)


def clear_datasets(lake: Lake, datasets: Collection[str], id_key: str | None = None) -> None:
    """Remove the derived tables of some datasets; if the whole lake must be rebuilt, those of all datasets.

    Args:
        lake: an existing lake; if it must be rebuilt, it gets a new `lake.json`.
        datasets: names of the datasets.
        id_key: fingerprint of the key that resource ids are made with; None: that of the lake.

    Raises:
        LockHeldError: a run writes one of the datasets; nothing was removed.
        LakeError: a record of withdrawals is damaged; nothing was removed.
    """
    is_whole = needs_rebuild(lake, id_key)
    to_lock = set(datasets)
    if is_whole:
        # a dataset that was withdrawn as a whole has no table but its record of withdrawals
        for path in _withdrawal_paths(lake):
            to_lock.update(_read_withdrawals(lake, path)["dataset"].to_pylist())
    with ExitStack() as held:
        for name in sorted(to_lock):
            held.enter_context(lake.lock(name, f"rebuild of {name}"))
        if is_whole:
            previous = lake.describe()
            _rewrite_withdrawals(lake)
            for folder in (*reversed(_folders()), ".chunks", "identities", *_PREVIOUS_FOLDERS):
                lake.remove_folder(folder)
            # last, so that a partly cleared lake is still refused
            lake.write_bytes(DESCRIPTION_FILE, LakeDescription.new(id_key or previous.id_key, previous.lake_id).dump())
        for name in datasets:
            _clear_dataset(lake, name)


def _clear_dataset(lake: Lake, dataset: str) -> None:
    name = encode_name(dataset)
    for folder in (*reversed(_folders()), *(f".chunks/{stage}" for stage in STAGES)):
        lake.remove_folder(f"{folder}/{name}")
    lake.remove(IDENTITIES.path(dataset=dataset))


def _folders() -> list[str]:
    """The folders that contain a folder of each dataset, those of commits last."""
    kinds = [f"{parent}/{kind}" for parent, children in _BY_KIND.items() for kind in children]
    return [*_BY_DATASET, *kinds, *(f"commits/{stage}" for stage in STAGES)]


# -- withdrawals ------------------------------------------------------------------------------------------------------


def read_withdrawals(lake: Lake, dataset: str) -> pa.Table:
    """The record of withdrawals of a dataset in the columns of this version, also if an older version wrote it.

    Raises:
        LakeError: it is damaged.
    """
    path = WITHDRAWN.path(dataset=dataset)
    return _read_withdrawals(lake, path) if lake.exists(path) else WITHDRAWN.schema.empty_table()


def _read_withdrawals(lake: Lake, path: str) -> pa.Table:
    try:
        with lake.resolve(path).open("rb") as file:
            rows = read_parquet(file)
        rows = rows.rename_columns([_PREVIOUS_COLUMNS.get(name, name) for name in rows.column_names])
        if "id_key" not in rows.column_names:  # until schema 2
            rows = rows.append_column("id_key", pa.nulls(rows.num_rows, pa.string()))
        return rows.select(WITHDRAWN.schema.names).cast(WITHDRAWN.schema)
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise LakeError(
            f"{path} is damaged ({error}): restore this file from a backup, since without it the subjects that were "
            "withdrawn would be loaded again"
        ) from error


def _rewrite_withdrawals(lake: Lake) -> None:
    """Write all records of withdrawals in the columns of this version; the caller holds the locks of their datasets."""
    for path in _withdrawal_paths(lake):
        rows = _read_withdrawals(lake, path)
        for dataset in rows["dataset"].unique().to_pylist():
            lake.write(WITHDRAWN, rows, dataset=dataset)


def _withdrawal_paths(lake: Lake) -> list[str]:
    return [f"withdrawn/{name}.parquet" for name in lake.list_names("withdrawn", ".parquet")]
