"""Recovery: how several files change together, and what becomes of a change that a kill cut off.

Files of a shard are written under hidden names and renamed once a pending commit names them; folders are written in
a hidden folder and exchanged once a marker names them. What is named is completed, what is not is removed. On local
lakes alone: an object store has no renames.

Not here: what is written (`lake.commits`).
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
    """The tables in shards that a stage writes, without its commits."""
    return (header_table(), TAG_PROFILES, FILES, FINDINGS) if stage == "extract" else (FHIR_ELEMENTS, FINDINGS)


def list_stage_folders(stage: str, dataset: str) -> list[str]:
    """The folders of a dataset's shards, that of the commits last."""
    paths = [table.path(stage=stage, dataset=dataset, shard=0) for table in list_stage_tables(stage)]
    if stage == "build":
        paths += [make_path(RESOURCE_PATH, type=kind, dataset=dataset, shard=0) for kind in UNIT_RESOURCE_TYPES]
    return [*(path.rpartition("/")[0] for path in paths), f"commits/{stage}/{encode_name(dataset)}"]


def make_exchange_marker_path(stage: str, dataset: str) -> str:
    """The file that says that the folders of a dataset are being exchanged."""
    return f"commits/{stage}/.{encode_name(dataset)}{EXCHANGE}"


def recover_dataset(root: Path, dataset: str) -> None:
    """Complete what a killed run had decided, and remove what it had only begun; the caller holds the lock."""
    for stage in STAGES:
        folders = list_stage_folders(stage, dataset)
        marker = root / make_exchange_marker_path(stage, dataset)
        for left in marker.parent.glob(f".{marker.name}.*.tmp"):
            left.unlink(missing_ok=True)
        if marker.exists():
            complete_exchange(root, orjson.loads(marker.read_bytes()), marker)
        for name in folders:
            for unfinished in (make_new_path(name), make_old_path(name)):
                shutil.rmtree(root / unfinished, ignore_errors=True)
        _recover_shards(root, root / folders[-1])
        for name in folders:
            for left in (*(root / name).glob(f".*{NEW}"), *(root / name).glob(".*.tmp")):
                left.unlink(missing_ok=True)


def _recover_shards(root: Path, commits: Path) -> None:
    for pending in sorted(commits.glob(f".*{PENDING}")):
        known = orjson.loads((pq.read_metadata(pending).metadata or {})[COMMIT_KEY])
        target = pending.with_name(pending.name[1:].removesuffix(PENDING))
        complete_commit(root, pending, target, known["files"])


def complete_exchange(root: Path, folders: Sequence[str], marker: Path) -> None:
    """Put the new version of each folder in its place, then remove the marker and the old folders."""
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
    """Put the files of a shard in place, the commit last."""
    for path in files:
        written = make_hidden_path(root / path, NEW)
        if written.exists():
            written.replace(root / path)
    for folder in {(root / path).parent for path in files}:
        sync_folder(folder)
    pending.replace(target)
    sync_folder(target.parent)


def make_hidden_path(path: _Path, suffix: str) -> _Path:
    """The hidden sibling of a file, of one stable name."""
    return path.with_name(f".{path.name}{suffix}")


def make_new_path(path: str) -> str:
    """Where the new version of a folder, or of a file in it, is written before folders are exchanged.

    Not beside the old one: the `*` of DuckDB finds hidden folders, too.
    """
    return f".moving/new/{path}"


def make_old_path(path: str) -> str:
    """Where the old version of a folder is put by an exchange."""
    return f".moving/old/{path}"


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
