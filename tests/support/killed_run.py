"""Runs `dicom-etl` and kills itself (SIGKILL) at an event: before or after a rename in the lake, or at an opened file.

Usage: ``python -m tests.support.killed_run EVENTS_FILE NUMBER ARGUMENTS...``, with the number of the event from 0;
with -1, all events are written to the file. Environment variables replace limits of the package: CHUNK_FILES (of a
chunk), FEW_FILES (that are processed without worker processes) and SHARD_ROWS (of a shard).
"""

import os
import signal
import sys
from pathlib import Path

from dicom_etl.cli import main
from dicom_etl.extraction import assembly, chunks, reading
from dicom_etl.extraction import shards as shard_writing
from dicom_etl.lake import shards
from dicom_etl.sources.tree import TreeSource
from dicom_etl.stages import build

KILL_AT = int(sys.argv[2]) if __name__ == "__main__" else -1
events: list[str] = []


def record(event: str) -> None:
    if len(events) == KILL_AT:
        os.kill(os.getpid(), signal.SIGKILL)
    events.append(event)


def record_moves(method):
    def move(self: Path, target: Path) -> Path:
        path = str(target).rpartition("/lake/")[2]
        record(f"before {path}")
        moved = method(self, target)
        record(f"after {path}")
        return moved

    return move


def open_file(self: TreeSource, path: str, method=TreeSource.open):
    record(f"open {path}")
    return method(self, path)


def run() -> None:
    chunks.PART_FILES = chunks.CHUNK_FILES = int(os.environ.get("CHUNK_FILES", chunks.PART_FILES))
    shards.SHARD_ROWS = assembly.SHARD_ROWS = int(os.environ.get("SHARD_ROWS", shards.SHARD_ROWS))
    if "FEW_FILES" in os.environ:
        reading.FEW_FILES = shard_writing.FEW_ROWS = build._FEW_BYTES = int(os.environ["FEW_FILES"])
        build._SHORT = 0.0
    Path.replace = record_moves(Path.replace)  # type: ignore[method-assign]
    Path.rename = record_moves(Path.rename)  # type: ignore[method-assign]
    TreeSource.open = open_file  # type: ignore[method-assign]
    sys.argv, events_file = ["dicom-etl", *sys.argv[3:]], Path(sys.argv[1])
    try:
        main()
    finally:
        events_file.write_text("\n".join(events))


if __name__ == "__main__":  # worker processes import this module
    run()
