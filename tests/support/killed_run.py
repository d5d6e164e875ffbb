"""Runs `dicom-etl` and kills itself (SIGKILL) at the n-th event: before or after a rename in the lake, or when a
DICOM file is opened. Without n it writes the list of events. Usage: killed_run.py EVENTS_FILE N ARGUMENTS...
CHUNK_FILES in the environment says of how many files a unit is read in chunks, FEW_FILES how many are read, built
and written without worker processes, SHARD_ROWS how many rows a shard has at most.
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

WHEN = int(sys.argv[2]) if __name__ == "__main__" else -1
seen: list[str] = []


def happened(event: str) -> None:
    if len(seen) == WHEN:
        os.kill(os.getpid(), signal.SIGKILL)
    seen.append(event)


def moving(real):
    def move(self: Path, target: Path) -> Path:
        place = str(target).rpartition("/lake/")[2]
        happened(f"before {place}")
        moved = real(self, target)
        happened(f"after {place}")
        return moved

    return move


def opened(self: TreeSource, path: str, real=TreeSource.open):
    happened(f"open {path}")
    return real(self, path)


def run() -> None:
    chunks.PART_FILES = chunks.CHUNK_FILES = int(os.environ.get("CHUNK_FILES", chunks.PART_FILES))
    shards.SHARD_ROWS = assembly.SHARD_ROWS = int(os.environ.get("SHARD_ROWS", shards.SHARD_ROWS))
    if "FEW_FILES" in os.environ:
        reading.FEW_FILES = shard_writing.FEW_ROWS = build._FEW_BYTES = int(os.environ["FEW_FILES"])
        build._SHORT = 0.0
    Path.replace = moving(Path.replace)  # type: ignore[method-assign]
    Path.rename = moving(Path.rename)  # type: ignore[method-assign]
    TreeSource.open = opened  # type: ignore[method-assign]
    sys.argv, events = ["dicom-etl", *sys.argv[3:]], Path(sys.argv[1])
    try:
        main()
    finally:
        events.write_text("\n".join(seen))


if __name__ == "__main__":  # worker processes import this module
    run()
