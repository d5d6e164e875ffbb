"""build: header rows, sheets and settings -> `identities` of a dataset, and its FHIR resources in shards.

Patients are matched over the whole dataset first; then the resources of each unit whose fingerprint changed are made,
and the shards are written in which they are. A unit that fails keeps its former resources, and is made again by the
next run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.construction.assembly import ShardTask, StoredUnit, assemble_shard, list_stored_units
from dicom_etl.construction.chunks import (
    BuiltChunk,
    Chunk,
    Source,
    build_chunk,
    chunk_key,
    chunks_folder,
    cut_units,
)
from dicom_etl.construction.header_units import HeaderUnits
from dicom_etl.construction.identities import Identities, match_dataset, matching_fingerprint
from dicom_etl.construction.plan import (
    BuildInputs,
    MappedSheets,
    find_changed_units,
    mapping_fingerprint,
    match_corrections,
)
from dicom_etl.engine import Engine, Progress
from dicom_etl.fhir.context import Context
from dicom_etl.fhir.corrections import Correction, read_corrections
from dicom_etl.fhir.endpoint import make_endpoint
from dicom_etl.findings import Finding, describe_error, make_finding, tabulate_findings
from dicom_etl.identity.crosswalk import CrosswalkEntry, read_crosswalk
from dicom_etl.identity.ids import ResourceIds
from dicom_etl.lake.commits import Commit, read_commits, remove_other_shards, require_undamaged, warn_of_damage
from dicom_etl.lake.fingerprints import compute_fingerprint
from dicom_etl.lake.schemas import (
    DATASET_FINDINGS,
    ENDPOINT_PATH,
    FINDINGS,
    IDENTITIES,
    SHEETS,
    make_path,
)
from dicom_etl.lake.shard_writer import exchange_folders
from dicom_etl.lake.shards import assign_shard
from dicom_etl.lake.tables import Lake
from dicom_etl.settings import DatasetSettings, Settings
from dicom_etl.sources import Source as DatasetSource
from dicom_etl.sources import SourceError
from dicom_etl.withdrawal.exclusion import exclude_findings
from dicom_etl.withdrawal.record import WithdrawalRecord

_SHORT = 4.0  # seconds of work below which starting worker processes, a second each, costs more than it gains
_UNIT, _ROW = 0.0004, 0.00002  # seconds of work that a unit and a header row take
_FEW_BYTES = 200_000_000  # the same for writing shards


@dataclass(frozen=True)
class Built:
    """What a build made."""

    dataset: str
    units: int
    units_made: int
    units_failed: int
    persons: int
    studies: int
    held: int
    findings: int


@dataclass(frozen=True)
class _Job:
    """A build of a dataset: what it works on."""

    lake: Lake
    dataset: str
    engine: Engine
    progress: Progress


def build(
    source: DatasetSource,
    lake: Lake,
    settings: Settings,
    dataset_settings: DatasetSettings,
    engine: Engine,
    *,
    subjects: Collection[str] | None = None,
    force: bool = False,
    progress: Progress = lambda *_: None,
) -> Built:
    """Make the resources of a dataset that are new or whose inputs changed.

    Raises:
        SourceError: there are no header tables.
        SettingsError: the crosswalk, the corrections file or the key of resource ids cannot be used.
    """
    name, ids = source.dataset, settings.resource_ids()
    with lake.lock(name, f"build of {name}"):
        extracted = read_commits(lake, "extract", name)
        require_undamaged(lake, "extract", name, extracted.values(), digests=False)
        units = HeaderUnits(extracted)
        if not units.marks:
            raise SourceError(f"dataset {name}: there are no header tables; extract it first")
        crosswalk = [line for line in read_crosswalk(settings.crosswalk) if line.dataset == name]
        lines = [line for line in read_corrections(settings.corrections) if line.dataset == name]
        context = _context(name, settings, dataset_settings, ids)
        served = make_endpoint(context, dataset_settings.endpoint, source.location)
        matched_by = matching_fingerprint(ids, dataset_settings, crosswalk, units)
        commits = _whole_commits(lake, name)
        state = compute_fingerprint(
            matched_by,
            mapping_fingerprint(),
            context.values(),
            [list(line) for line in lines],
            lake.compute_digest(SHEETS.path(dataset=name)),
            sorted(row.digest or "" for row in WithdrawalRecord.read(lake, name).rows),
            served,
            units.shards,
        )
        if not force and (summary := _unchanged(lake, name, state, units, commits, matched_by, served)):
            lake.remove_folder(chunks_folder(name))
            return summary
        _forget_state(lake, name)
        require_undamaged(lake, "extract", name, extracted.values(), digests=True)
        job = _Job(lake, name, engine, progress)
        identities = match_dataset(lake, name, ids, dataset_settings, crosswalk, units, matched_by)
        _write_endpoint(lake, name, served if _builds_some(identities) else None)
        touched = match_corrections(lake, name, sorted(set(units.shard_of.values())), lines)
        sheets = MappedSheets(lake.read(SHEETS, dataset=name))
        inputs = BuildInputs(units, identities, sheets, lines, touched, context)
        changed = _changed(job, inputs, commits, subjects=subjects, force=force)
        errors = _make(job, inputs, changed, commits)
        useless = [*_useless_crosswalk_lines(name, crosswalk, identities), *_useless_corrections(name, lines, touched)]
        useless = exclude_findings(useless, WithdrawalRecord.read(lake, name, ids))
        failures = [
            make_finding("build-failed", name, unit=unit, message=text) for unit, text in sorted(errors.items())
        ]
        skipped = frozenset() if subjects is None else frozenset(units.marks.keys() - set(subjects))
        found = _findings(lake, name, [*failures, *useless], skipped)
        summary = _summary(lake, name, units, identities, len(changed) - len(errors), len(errors), found)
        # with failures, or where units were left out, the next run looks again
        mark = "" if errors or skipped else _state_text(state, summary)
        lake.write(DATASET_FINDINGS, found, fingerprint=mark, stage="build", dataset=name)
    return summary


def _whole_commits(lake: Lake, dataset: str) -> dict[int, Commit]:
    """The commits whose files have the recorded sizes; damaged shards are named, and rebuilt."""
    commits = read_commits(lake, "build", dataset)
    return {shard: commit for shard, commit in commits.items() if not warn_of_damage(lake, commit)}


def _context(name: str, settings: Settings, dataset: DatasetSettings, ids: ResourceIds) -> Context:
    zone = dataset.time_zone or settings.time_zone
    return Context(
        dataset=name,
        ids=ids,
        zone=ZoneInfo(zone) if zone else None,
        endpoint_id=ids.resource_id("Endpoint", name),
        version=settings.fhir.version,
        strict=settings.fhir.strict,
        staff_names=settings.staff_names,
        contact_details=settings.contact_details,
        chest=settings.fhir.chest_code,
        dataset_system=settings.sds_dataset_system,
        study_system=settings.sds_study_system,
    )


# -- whether something changed ----------------------------------------------------------------------------------------


def _unchanged(
    lake: Lake,
    dataset: str,
    state: str,
    units: HeaderUnits,
    commits: Mapping[int, Commit],
    matched_by: str,
    served: dict[str, Any],
) -> Built | None:
    """The summary of the last build where it is of this state and all of it is stored; else None."""
    mark = lake.read_fingerprint(DATASET_FINDINGS, stage="build", dataset=dataset) or ""
    known, _, text = mark.partition(" ")
    if known != state or commits.keys() != set(units.shard_of.values()):
        return None
    if lake.read_fingerprint(IDENTITIES, dataset=dataset) != matched_by:
        return None
    counts = orjson.loads(text)
    if counts["persons"] and lake.read_bytes(make_path(ENDPOINT_PATH, dataset=dataset)) != _line(served):
        return None
    return Built(dataset, units_made=0, units_failed=0, **counts)


def _forget_state(lake: Lake, dataset: str) -> None:
    """Take back what says that all is of one state, before anything changes: a kill must not leave it."""
    if lake.read_fingerprint(DATASET_FINDINGS, stage="build", dataset=dataset):
        rows = lake.read(DATASET_FINDINGS, stage="build", dataset=dataset)
        lake.write(DATASET_FINDINGS, rows, stage="build", dataset=dataset)


def _line(resource: dict[str, Any]) -> bytes:
    return orjson.dumps(resource) + b"\n"


def _state_text(state: str, summary: Built) -> str:
    counts = {name: getattr(summary, name) for name in ("units", "persons", "studies", "held", "findings")}
    return f"{state} {orjson.dumps(counts).decode()}"


def _summary(
    lake: Lake, dataset: str, units: HeaderUnits, identities: Identities, made: int, failed: int, found: pa.Table
) -> Built:
    table = identities.table
    decided = table.filter(pc.equal(table["state"], "ok"))
    people = decided.group_by(["system", "value"]).aggregate([]).num_rows
    studies = len(pc.unique(table["study_uid"]))
    held = set(pc.unique(table.filter(pc.equal(table["state"], "held"))["study_uid"]).to_pylist())
    findings = found.num_rows
    for shard in read_commits(lake, "build", dataset):
        rows = lake.read(FINDINGS, ["code", "study_uid"], stage="build", dataset=dataset, shard=shard)
        findings += rows.num_rows
        held |= set(rows.filter(pc.equal(rows["code"], "study-held"))["study_uid"].to_pylist())
    return Built(dataset, len(units.marks), made, failed, people, studies - len(held), len(held), findings)


def _builds_some(identities: Identities) -> bool:
    return pc.any(pc.equal(identities.table["state"], "ok")).as_py() or False


def _write_endpoint(lake: Lake, dataset: str, served: dict[str, Any] | None) -> None:
    path = make_path(ENDPOINT_PATH, dataset=dataset)
    if served is None:
        lake.remove(path)
    elif lake.read_bytes(path) != (content := _line(served)):
        lake.write_bytes(path, content)


def _changed(
    job: _Job, inputs: BuildInputs, commits: dict[int, Commit], *, subjects: Collection[str] | None, force: bool
) -> list[str]:
    """The units to be made. Of a shard that is to be written the bytes are checked before they are taken over."""
    changed = list(find_changed_units(inputs, commits, subjects=subjects, force=force))
    former = next((commit.shards for commit in commits.values()), inputs.units.shards)
    touched = {assign_shard(unit, former) for unit in changed} if former == inputs.units.shards else set(commits)
    damaged = [
        shard for shard in sorted(touched & commits.keys()) if warn_of_damage(job.lake, commits[shard], digests=True)
    ]
    for shard in damaged:
        del commits[shard]
    return list(find_changed_units(inputs, commits, subjects=subjects, force=force)) if damaged else changed


# -- units ------------------------------------------------------------------------------------------------------------


def _make(job: _Job, inputs: BuildInputs, changed: list[str], commits: Mapping[int, Commit]) -> dict[str, str]:
    """Make the resources of units and write the shards that change; returns the errors of units."""
    lake, name = job.lake, job.dataset
    folder = chunks_folder(name)
    chunks = list(_chunks_of(job, inputs, changed))
    lake.remove_other_chunks(folder, {chunk.key for chunk in chunks})
    built, errors = _build_chunks(job, inputs, chunks)
    errors |= _write_shards(job, inputs, built, errors, commits)
    lake.remove_folder(folder)
    return errors


def _chunks_of(job: _Job, inputs: BuildInputs, changed: list[str]) -> Iterator[Chunk]:
    by_shard: dict[int, list[str]] = defaultdict(list)
    for unit in changed:
        by_shard[inputs.units.shard_of[unit]].append(unit)
    for shard in sorted(by_shard):
        weights = ((unit, _weight(inputs, unit)) for unit in sorted(by_shard[shard]))
        for batch in cut_units(weights):
            yield _chunk(job, inputs, batch)


def _weight(inputs: BuildInputs, unit: str) -> int:
    return sum(inputs.units.rows.get(source, 0) for source in inputs.sources(unit))


def _chunk(job: _Job, inputs: BuildInputs, batch: list[str]) -> Chunk:
    by_shard: dict[int, set[str]] = defaultdict(set)
    for source in {source for unit in batch for source in inputs.sources(unit)}:
        if source in inputs.units.shard_of:
            by_shard[inputs.units.shard_of[source]].add(source)
    return Chunk(
        job.lake,
        job.dataset,
        inputs.of_units(batch),
        tuple(Source(shard, tuple(sorted(units))) for shard, units in sorted(by_shard.items())),
        sum(_weight(inputs, unit) for unit in batch),
        chunk_key(inputs.fingerprints[unit] for unit in batch),
    )


def _build_chunks(
    job: _Job, inputs: BuildInputs, chunks: list[Chunk]
) -> tuple[list[tuple[Chunk, BuiltChunk]], dict[str, str]]:
    """Build chunks; the units of one that fails as a whole are built once more, each by itself."""
    total, done = sum(chunk.rows for chunk in chunks), 0
    is_short = sum(len(chunk.inputs.units) for chunk in chunks) * _UNIT + total * _ROW < _SHORT
    built: list[tuple[Chunk, BuiltChunk]] = []
    errors: dict[str, str] = {}
    todo = chunks
    while todo:
        alone: list[Chunk] = []
        for result in job.engine.map(build_chunk, todo, small=is_short, weight=lambda chunk: chunk.rows):
            chunk = result.item
            if result.value is not None:
                built.append((chunk, result.value))
                errors |= result.value.errors
            elif len(units := chunk.inputs.units) == 1:
                errors[units[0]] = describe_error(result.error)
            else:
                alone += [_chunk(job, inputs, [unit]) for unit in units]
                continue
            done += chunk.rows
            job.progress(f"build {job.dataset}", min(done, total), total)
        todo = alone
    return built, errors


def _write_shards(
    job: _Job,
    inputs: BuildInputs,
    built: list[tuple[Chunk, BuiltChunk]],
    errors: Mapping[str, str],
    commits: Mapping[int, Commit],
) -> dict[str, str]:
    """Write the shards whose units changed; returns the errors of those that could not be written."""
    lake, shards = job.lake, inputs.units.shards
    moves = next((commit.shards for commit in commits.values()), shards) != shards
    made = [unit for _, result in built for unit in result.lines]
    touched = {assign_shard(unit, shards) for unit in (*made, *errors)}
    known = set(inputs.units.marks)
    touched |= {shard for shard, commit in commits.items() if not known.issuperset(commit.unit_names)}
    former = commits if moves else {shard: commit for shard, commit in commits.items() if shard in touched}
    units = _stored(inputs, built, errors, former)
    tasks = [
        ShardTask(lake, job.dataset, shard, shards, moves, own)
        for shard, own in sorted(units.items())
        if moves or not _is_same(commits.get(shard), own)
    ]
    failed: dict[str, str] = {}
    small = sum(task.weight for task in tasks) < _FEW_BYTES
    for result in job.engine.map(assemble_shard, tasks, small=small, weight=lambda _: 1_000):
        if result.error is not None:
            if moves:
                raise result.error
            text = describe_error(result.error)
            failed |= {unit.unit: text for unit in result.item.units if unit.chunk}
    if moves:
        exchange_folders(lake, "build", job.dataset)
    remove_other_shards(lake, "build", job.dataset, units.keys() | (set() if moves else commits.keys() - touched))
    return failed


def _is_same(commit: Commit | None, units: Sequence[StoredUnit]) -> bool:
    """Whether a shard is stored as it is to be: these units, none of them of a chunk."""
    return (
        commit is not None
        and not any(unit.chunk for unit in units)
        and commit.units["unit"].to_pylist() == [unit.unit for unit in units]
        and commit.units["to_retry"].to_pylist() == [unit.to_retry for unit in units]
    )


def _stored(
    inputs: BuildInputs, built: list[tuple[Chunk, BuiltChunk]], errors: Mapping[str, str], commits: Mapping[int, Commit]
) -> dict[int, tuple[StoredUnit, ...]]:
    """By shard, its units and where their lines are; `commits` are those of the shards that units are taken from."""
    stored: dict[str, StoredUnit] = {}
    for commit in commits.values():
        stored |= {unit: row for unit, row in list_stored_units(commit).items() if unit in inputs.units.marks}
    for chunk, result in built:
        for unit, lines in result.lines.items():
            stored[unit] = StoredUnit(unit, inputs.fingerprints[unit], False, chunk.key, None, lines)
    for unit in errors:
        stored[unit] = stored.get(unit, StoredUnit(unit, None, True, None, None, {}))._replace(to_retry=True)
    by_shard: dict[int, list[StoredUnit]] = defaultdict(list)
    for unit in sorted(stored):
        by_shard[assign_shard(unit, inputs.units.shards)].append(stored[unit])
    return {shard: tuple(own) for shard, own in by_shard.items()}


# -- findings of the dataset ------------------------------------------------------------------------------------------


def _useless_corrections(
    dataset: str, lines: list[Correction], by_unit: Mapping[str, Collection[Correction]]
) -> Iterator[Finding]:
    used = {line for touching in by_unit.values() for line in touching}
    for line in lines:
        if line not in used:
            message = f"{line.line} ({line.tag}) speaks of no instance of the dataset"
            yield make_finding("correction-unmatched", dataset, subject=line.subject, message=message)


def _useless_crosswalk_lines(
    dataset: str, crosswalk: list[CrosswalkEntry], identities: Identities
) -> Iterator[Finding]:
    subjects = set(pc.unique(identities.table["subject"]).to_pylist()) if crosswalk else set()
    for line in crosswalk:
        if line.subject not in subjects:
            yield make_finding("crosswalk-unmatched", dataset, subject=line.subject)


def _findings(lake: Lake, dataset: str, found: list[Finding], skipped: Collection[str]) -> pa.Table:
    """The findings of the dataset; those of units that this run was not to make stay."""
    before = lake.read(DATASET_FINDINGS, stage="build", dataset=dataset).to_pylist() if skipped else []
    kept = [Finding(**row) for row in before if row["unit"] in skipped]
    return tabulate_findings([*kept, *found])
