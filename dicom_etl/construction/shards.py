"""Writing the shards whose units changed, with the workers of an engine.

Not here: the files of one shard (`assembly`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from dicom_etl.construction.assembly import ShardTask, StoredUnit, assemble_shard, list_stored_units
from dicom_etl.construction.building import UnitsBuilt
from dicom_etl.construction.plan import Plan
from dicom_etl.engine import Engine
from dicom_etl.findings import describe_error
from dicom_etl.lake.commits import Commit, remove_other_shards
from dicom_etl.lake.shard_writer import exchange_folders
from dicom_etl.lake.shards import assign_shard
from dicom_etl.lake.tables import Lake

# below this number of bytes, starting worker processes (a second each) costs more than it saves
FEW_BYTES = 200_000_000


def write_shards(lake: Lake, engine: Engine, dataset: str, plan: Plan, units_built: UnitsBuilt) -> None:
    """Write the shards that changed.

    A unit that failed keeps its previous resources. A shard that cannot be written fails its changed units: they are
    added to the errors of `units_built`.
    """
    units, commits = plan.inputs.units, plan.commits
    built = [unit for _, result in units_built.chunks for unit in result.lines]
    changed = {assign_shard(unit, units.shards) for unit in (*built, *units_built.errors)}
    changed |= {shard for shard, commit in commits.items() if not units.fingerprints.keys() >= set(commit.unit_names)}
    reused = commits if plan.is_resharded else {s: commit for s, commit in commits.items() if s in changed}
    shards = _assign_units(plan, units_built, reused)
    tasks = [
        ShardTask(lake, dataset, shard, units.shards, plan.is_resharded, stored)
        for shard, stored in sorted(shards.items())
        if plan.is_resharded or not _is_stored(commits.get(shard), stored)
    ]
    small = sum(task.weight for task in tasks) < FEW_BYTES
    for answer in engine.map(assemble_shard, tasks, small=small, weight=lambda _: 1_000):
        if answer.error is None:
            continue
        if plan.is_resharded:
            raise answer.error
        error = describe_error(answer.error)
        units_built.errors |= {unit.unit: error for unit in answer.item.units if unit.chunk}
    if plan.is_resharded:
        exchange_folders(lake, "build", dataset)
    unchanged = set() if plan.is_resharded else commits.keys() - changed
    remove_other_shards(lake, "build", dataset, shards.keys() | unchanged)


def _assign_units(
    plan: Plan, units_built: UnitsBuilt, commits: Mapping[int, Commit]
) -> dict[int, tuple[StoredUnit, ...]]:
    """The units of each shard, and where their resources are now: in a chunk, or in one of the shards of `commits`."""
    inputs = plan.inputs
    stored: dict[str, StoredUnit] = {}
    for commit in commits.values():
        units = list_stored_units(commit)
        stored |= {name: unit for name, unit in units.items() if name in inputs.units.fingerprints}
    for chunk, result in units_built.chunks:
        for name, lines in result.lines.items():
            stored[name] = StoredUnit(name, inputs.fingerprints[name], False, chunk.key, None, lines)
    for name in units_built.errors:
        stored[name] = stored.get(name, StoredUnit(name, None, True, None, None, {}))._replace(to_retry=True)
    by_shard: dict[int, list[StoredUnit]] = defaultdict(list)
    for name in sorted(stored):
        by_shard[assign_shard(name, inputs.units.shards)].append(stored[name])
    return {shard: tuple(units_of_shard) for shard, units_of_shard in by_shard.items()}


def _is_stored(commit: Commit | None, units: Sequence[StoredUnit]) -> bool:
    """Whether a shard has these units already, with nothing from a chunk among them."""
    return (
        commit is not None
        and not any(unit.chunk for unit in units)
        and commit.units["unit"].to_pylist() == [unit.unit for unit in units]
        and commit.units["to_retry"].to_pylist() == [unit.to_retry for unit in units]
    )
