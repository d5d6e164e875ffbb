"""Recovery: completion or removal of a change of several files that a kill interrupted.

Files of a shard are written under hidden names, and renamed after a pending commit lists them; folders are written into
a hidden folder, and exchanged after a marker lists them. After a kill, what is listed is completed, and everything else
is removed. Only for local lakes: an object store has no renames.

Not here: the content of commits (`lake.commits`).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

import orjson
import pyarrow.parquet as pq

from dicom_etl.identity.name_encoding import encode_name
from dicom_etl.lake.schemas import (
    FHIR_ELEMENTS,
    FILES,
    FINDINGS,
    RESOURCE_PATH,
    TAG_PROFILES,
    UNIT_RESOURCE_TYPES,
    Table,
    header_table,
    make_path,
)

COMMIT_KEY = b"dicom_etl.commit"  # of the footer: the files of a shard
NEW, PENDING, EXCHANGE = ".new", ".pending", ".exchange"

_Path = TypeVar("_Path", Path, PurePosixPath)


STAGES = ("extract", "build")


def list_stage_tables(stage: str) -> tuple[Table, ...]:
    """The tables in shards that a stage writes, except for its commits."""
    return (header_table(), TAG_PROFILES, FILES, FINDINGS) if stage == "extract" else (FHIR_ELEMENTS, FINDINGS)


def list_stage_folders(stage: str, dataset: str) -> list[str]:
    """The folders of the shards of a dataset, that of the commits last."""
    paths = [table.path(stage=stage, dataset=dataset, shard=0) for table in list_stage_tables(stage)]
    if stage == "build":
        paths += [make_path(RESOURCE_PATH, type=kind, dataset=dataset, shard=0) for kind in UNIT_RESOURCE_TYPES]
    return [*(path.rpartition("/")[0] for path in paths), f"commits/{stage}/{encode_name(dataset)}"]


def make_exchange_marker_path(stage: str, dataset: str) -> str:
    """The path of the marker that exists while the folders of a dataset are exchanged; it lists them."""
    return f"commits/{stage}/.{encode_name(dataset)}{EXCHANGE}"


def recover_dataset(root: Path, dataset: str) -> None:
    """Complete the changes that a killed run had committed, and remove incomplete ones; the caller holds the lock."""
    for stage in STAGES:
        folders = list_stage_folders(stage, dataset)
        marker = root / make_exchange_marker_path(stage, dataset)
        for file in marker.parent.glob(f".{marker.name}.*.tmp"):
            file.unlink(missing_ok=True)
        if marker.exists():
            complete_exchange(root, orjson.loads(marker.read_bytes()), marker)
        for name in folders:
            for unfinished in (make_new_path(name), make_old_path(name)):
                shutil.rmtree(root / unfinished, ignore_errors=True)
        _recover_shards(root, root / folders[-1])
        for name in folders:
            for file in (*(root / name).glob(f".*{NEW}"), *(root / name).glob(".*.tmp")):
                file.unlink(missing_ok=True)


def _recover_shards(root: Path, commits: Path) -> None:
    for pending in sorted(commits.glob(f".*{PENDING}")):
        footer = orjson.loads((pq.read_metadata(pending).metadata or {})[COMMIT_KEY])
        target = pending.with_name(pending.name[1:].removesuffix(PENDING))
        complete_commit(root, pending, target, footer["files"])


def complete_exchange(root: Path, folders: Sequence[str], marker: Path) -> None:
    """Replace each folder by its new version, then remove the marker and the old versions."""
    for name in folders:
        folder, new, old = root / name, root / make_new_path(name), root / make_old_path(name)
        if new.exists():
            old.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
            sync_folder(folder.parent)
    marker.unlink()
    sync_folder(marker.parent)
    for name in folders:
        shutil.rmtree(root / make_old_path(name), ignore_errors=True)


def complete_commit(root: Path, pending: Path, target: Path, files: Iterable[str]) -> None:
    """Rename the files of a shard to their final names, the commit last."""
    for path in files:
        written = make_hidden_path(root / path, NEW)
        if written.exists():
            written.replace(root / path)
    for folder in {(root / path).parent for path in files}:
        sync_folder(folder)
    pending.replace(target)
    sync_folder(target.parent)


def make_hidden_path(path: _Path, suffix: str) -> _Path:
    """The path of the hidden file beside a file; it is always the same, so that recovery finds it."""
    return path.with_name(f".{path.name}{suffix}")


def make_new_path(path: str) -> str:
    """The path of the new version of a folder, or of a file in it, until folders are exchanged.

    It is not beside the old version, since a glob in DuckDB also matches hidden folders.
    """
    return f".moving/new/{path}"


def make_old_path(path: str) -> str:
    """The path of the old version of a folder while folders are exchanged."""
    return f".moving/old/{path}"


def sync_folder(folder: Path) -> None:
    """Sync a folder, so that renames in it survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
