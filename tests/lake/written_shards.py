"""Shards of the stage build for tests: every file of a generation contains the name of the generation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dicom_etl.construction.assembly import StoredUnit, commit_rows
from dicom_etl.construction.chunks import UnitLines
from dicom_etl.findings import make_finding, tabulate_findings
from dicom_etl.lake.commits import Commit, hash_lines
from dicom_etl.lake.schemas import FHIR_ELEMENTS, FINDINGS, RESOURCE_PATH, UNIT_RESOURCE_TYPES, make_path
from dicom_etl.lake.shard_reader import read_consistently
from dicom_etl.lake.shard_writer import ShardWriter, exchange_folders
from dicom_etl.lake.shards import assign_shard
from dicom_etl.lake.tables import Lake

UNITS = ("sub-1", "sub-2", "sub-3", "sub-4")  # of four shards: 3, 1, 2, 0


def make_line(kind: str, unit: str, generation: str) -> bytes:
    return f'{{"resourceType":"{kind}","id":"{unit}","generation":"{generation}"}}\n'.encode()


def write_shard(
    lake: Lake,
    generation: str,
    units: Sequence[str] = UNITS,
    *,
    shard: int = 0,
    shards: int = 1,
    new_folders: bool = False,
) -> None:
    """Write a shard of units, each with a line of each type and a finding."""
    writer = ShardWriter(lake, "build", "ds", shard, shards, new_folders=new_folders)
    for kind in UNIT_RESOURCE_TYPES:
        writer.write_lines(kind, [make_line(kind, unit, generation) for unit in units])
    writer.write_table(FHIR_ELEMENTS, [])
    writer.write_table(
        FINDINGS, [tabulate_findings(make_finding("study-held", "ds", unit=unit, message=generation) for unit in units)]
    )
    lines = {unit: {kind: make_line(kind, unit, generation) for kind in UNIT_RESOURCE_TYPES} for unit in units}
    writer.commit(commit_rows([_stored(unit, generation, lines[unit]) for unit in units]))


def _stored(unit: str, generation: str, lines: dict[str, bytes]) -> StoredUnit:
    positions = {kind: UnitLines(0, len(text), 1, hash_lines(text)) for kind, text in lines.items()}
    return StoredUnit(unit, generation, False, None, None, positions)


def write_dataset(lake: Lake, generation: str, shards: int) -> None:
    """Write all units into a number of shards, in new folders, and exchange the folders."""
    for shard in range(shards):
        units = [unit for unit in UNITS if assign_shard(unit, shards) == shard]
        write_shard(lake, generation, units, shard=shard, shards=shards, new_folders=True)
    exchange_folders(lake, "build", "ds")


def read_generations(lake: Lake, shard: int = 0) -> set[str] | None:
    """The generations in all files of a shard, read together; None if the shard does not exist."""

    def read(commit: Commit) -> set[str]:
        rows = lake.read(FINDINGS, ["message"], stage="build", dataset="ds", shard=shard)
        paths = (make_path(RESOURCE_PATH, type=kind, dataset="ds", shard=shard) for kind in UNIT_RESOURCE_TYPES)
        lines = b"".join(lake.read_bytes(path) or b"" for path in paths).splitlines()
        names = {text.rpartition(b":")[2].strip(b'"}').decode() for text in lines}
        return {*rows["message"].to_pylist(), *commit.units["fingerprint"].to_pylist(), *names}

    return read_consistently(lake, "build", "ds", shard, read)


def read_files(lake: Lake) -> dict[str, bytes]:
    """All files of the lake except for locks and `lake.json`, which has a random id; hidden ones too."""
    root = Path(lake.root)
    files = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith(("locks/", "lake.json"))}
