"""Writing of shards: the files of a shard are replaced together (`lake.commits` explains how).

Not here: completion of a change that a kill interrupted (`lake.recovery`).
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import orjson
import pyarrow as pa

from dicom_etl.lake import recovery
from dicom_etl.lake.commits import make_damage_marker_path, remove_other_shards
from dicom_etl.lake.row_groups import write_row_groups
from dicom_etl.lake.schemas import COMMITS, RESOURCE_PATH, Table, make_path
from dicom_etl.lake.tables import Lake


class ShardWriter:
    """Writes the files of one shard under hidden names; `commit` renames them together."""

    def __init__(
        self, lake: Lake, stage: str, dataset: str, shard: int, shards: int, *, new_folders: bool = False
    ) -> None:
        """Start writing a shard.

        Args:
            lake: where the shard is written.
            stage: `extract` or `build`.
            dataset: the dataset of the shard, whose lock the caller holds.
            shard: its number.
            shards: how many shards the dataset has.
            new_folders: write into the folders that `exchange_folders` moves to their final location.
        """
        self._lake, self._stage, self._dataset = lake, stage, dataset
        self._shard, self._shards = shard, shards
        self._new_folders = new_folders
        self._files: dict[str, tuple[int, str]] = {}
        if not (lake.is_local or new_folders):
            lake.remove(COMMITS[stage].path(dataset=dataset, shard=shard))

    def write_table(self, table: Table, batches: Iterable[pa.Table], groups: Sequence[int] | None = None) -> None:
        """Write a table of the shard from batches in the order of its rows; `groups` are the sizes of row groups."""
        with self._file(self._path(table)) as sink:
            write_row_groups(sink, table, batches, groups, metadata={})

    def write_lines(self, kind: str, blocks: Iterable[bytes]) -> None:
        """Write the NDJSON file of a resource type from blocks of whole lines."""
        with self._file(make_path(RESOURCE_PATH, type=kind, dataset=self._dataset, shard=self._shard)) as sink:
            for block in blocks:
                sink.write(block)

    def commit(self, units: pa.Table) -> None:
        """Write the commit, then rename all files to their final names.

        Args:
            units: a row per unit, with the columns of the commits of the stage.

        Raises:
            LakeError: the lock of the dataset was lost.
        """
        self._lake.require_locks()
        self._write_commit(units)
        self._lake.remove(make_damage_marker_path(self._stage, self._dataset, self._shard))

    def _write_commit(self, units: pa.Table) -> None:
        table = COMMITS[self._stage]
        footer = orjson.dumps(
            {
                "stage": self._stage,
                "dataset": self._dataset,
                "shard": self._shard,
                "shards": self._shards,
                "files": self._files,
            },
            option=orjson.OPT_SORT_KEYS,
        )
        content = io.BytesIO()
        write_row_groups(content, table, [units], metadata={recovery.COMMIT_KEY: footer})
        path = self._path(table)
        if self._new_folders or not self._lake.is_local:
            with self._file(path) as sink:
                sink.write(content.getvalue())
            return
        target = Path(self._lake.root, path)
        for folder in {Path(self._lake.root, file).parent for file in self._files}:
            recovery.sync_folder(folder)
        self._lake.write_bytes(
            str(recovery.make_hidden_path(PurePosixPath(path), recovery.PENDING)), content.getvalue()
        )
        recovery.complete_commit(
            Path(self._lake.root), recovery.make_hidden_path(target, recovery.PENDING), target, self._files
        )

    def _path(self, table: Table) -> str:
        return table.path(stage=self._stage, dataset=self._dataset, shard=self._shard)

    @contextmanager
    def _file(self, path: str) -> Iterator[IO[bytes]]:
        if not self._lake.is_local:
            buffer = io.BytesIO()
            yield buffer
            content = buffer.getvalue()
            written_to = recovery.make_new_path(path) if self._new_folders else path
            self._lake.write_bytes(str(written_to), content)
            self._files[path] = len(content), hashlib.sha256(content).hexdigest()
            return
        target = Path(self._lake.root, path)
        hidden = recovery.make_hidden_path(target, recovery.NEW)
        written = Path(self._lake.root, recovery.make_new_path(path)) if self._new_folders else hidden
        written.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with written.open("wb") as file:
            sink = _HashedFile(file)
            yield sink  # type: ignore[misc]  # it has the methods of a file that pyarrow uses
            file.flush()
            os.fsync(file.fileno())
        self._files[path] = sink.size, sink.digest


class _HashedFile(io.RawIOBase):
    """A file that computes its size and SHA-256 while it is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._sha256 = file, hashlib.sha256()
        self.size = 0

    def write(self, content: Any) -> int:
        self._sha256.update(content)
        written = self._file.write(content)
        self.size += written
        return written

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.size

    @property
    def digest(self) -> str:
        return self._sha256.hexdigest()


def exchange_folders(lake: Lake, stage: str, dataset: str) -> None:
    """Replace the folders of a dataset by the new ones, after all of its shards were written there."""
    folders = recovery.list_stage_folders(stage, dataset)
    if not lake.is_local:
        _copy_new_folders(lake, stage, dataset)
        return
    for folder in folders:
        _keep_other_files(Path(lake.root, folder), Path(lake.root, recovery.make_new_path(folder)))
    marker = recovery.make_exchange_marker_path(stage, dataset)
    lake.write_bytes(marker, orjson.dumps(folders))
    recovery.complete_exchange(Path(lake.root), folders, Path(lake.root, marker))


def _copy_new_folders(lake: Lake, stage: str, dataset: str) -> None:
    """Copy the files of new folders to their final paths on an object store; no commit exists until all are copied."""
    remove_other_shards(lake, stage, dataset, ())
    for folder in recovery.list_stage_folders(stage, dataset):
        new = recovery.make_new_path(folder)
        for name in lake.list_names(new):
            lake.write_bytes(f"{folder}/{name}", lake.read_bytes(f"{new}/{name}") or b"")
    lake.remove_new_folders(dataset)


def _keep_other_files(folder: Path, new: Path) -> None:
    """Copy the files that are not shards (the findings of the dataset) into the new folder."""
    new.mkdir(parents=True, exist_ok=True, mode=0o700)
    for file in folder.iterdir() if folder.is_dir() else ():
        if not file.name.startswith(".") and not file.name.split(".")[0].isdecimal():
            with (new / file.name).open("wb") as copy:
                copy.write(file.read_bytes())
                copy.flush()
                os.fsync(copy.fileno())
    recovery.sync_folder(new)
