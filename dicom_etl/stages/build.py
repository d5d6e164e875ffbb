"""build: header rows, sheets and settings -> `identities` of a dataset, FHIR resources of each unit.

Whose a study is, is decided over the whole dataset first; then each unit whose fingerprint changed is made. The
findings of a unit are written last and are its commit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow.compute as pc
import pydicom

from dicom_etl.engine import Engine, Progress
from dicom_etl.fhir import imaging_study
from dicom_etl.fhir.context import SUBJECT_FIELDS, Context, samples_of
from dicom_etl.fhir.corrections import CORRECTED_FROM, Correction, read_corrections
from dicom_etl.fhir.endpoint import endpoint
from dicom_etl.fhir.mapping import MAPPING_TABLES
from dicom_etl.findings import Finding, finding, findings_table
from dicom_etl.identity.crosswalk import read_crosswalk
from dicom_etl.identity.ids import resource_id
from dicom_etl.identity.names import encode_name
from dicom_etl.identity.persons import PERSONS_VERSION, Claim, Person, Scope, persons
from dicom_etl.lake.fingerprints import fingerprint, version_of
from dicom_etl.lake.schemas import (
    DATASET_FINDINGS,
    FINDINGS,
    IDENTITIES,
    INVENTORY,
    RESOURCE_TYPES,
    RESOURCES,
    SHEETS,
    headers,
    place,
)
from dicom_etl.lake.tables import Lake, grouped
from dicom_etl.lake.withdrawn import Withdrawn
from dicom_etl.settings import DatasetSettings, Settings
from dicom_etl.sources import Source, SourceError
from dicom_etl.stages.left_out import findings_kept
from dicom_etl.stages.resources import BuildTask, build_unit

_FEW_ROWS = 20_000  # below, starting worker processes costs more than it gains
_CLAIM = (
    "StudyInstanceUID",
    "unit",
    "subject",
    "PatientID",
    "IssuerOfPatientIDUniversalID",
    "IssuerOfPatientIDUniversalIDType",
    "PatientIdentityRemoved",
)


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


def build(
    source: Source,
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
        SettingsError: the crosswalk or the corrections file cannot be read.
    """
    name = source.dataset
    with lake.lock(name, f"build of {name}"):
        made_from = _header_marks(lake, name)
        if not made_from:
            raise SourceError(f"dataset {name}: there are no header tables; extract it first")
        whose = _identities(lake, settings, dataset_settings, name, made_from)
        _remove_gone(lake, name, made_from)
        context = _context(name, settings, dataset_settings)
        served = endpoint(context, dataset_settings.endpoint, source.location)
        lines = [line for line in read_corrections(settings.corrections) if line.dataset == name]
        by_unit = _corrections_by_unit(lake, name, made_from, lines)
        tasks = [
            task
            for task in _tasks(lake, whose, made_from, context, by_unit, served)
            if (subjects is None or task.unit in subjects) and (force or not _is_made(lake, name, task))
        ]
        useless = [*_useless_crosswalk_lines(settings, name, whose), *_useless_corrections(name, lines, by_unit)]
        useless = findings_kept(useless, Withdrawn.of(lake, name))  # they would name who was withdrawn
        failures = _run(lake, engine, tasks, progress, name)
        passed_over = () if subjects is None else set(made_from) - set(subjects)
        _tell(lake, name, [*failures, *useless], passed_over)
    held, studies = _held(lake, name, whose)
    people = {(p.system, p.value) for people in whose.values() for p in people if p.state == "ok"}
    findings = lake.row_count(DATASET_FINDINGS, stage="build", dataset=name) + sum(
        lake.row_count(FINDINGS, stage="build", dataset=name, unit=unit) for unit in made_from
    )
    made = len(tasks) - len(failures)
    return Built(name, len(made_from), made, len(failures), len(people), studies - held, held, findings)


def _held(lake: Lake, dataset: str, whose: Mapping[str, list[Person]]) -> tuple[int, int]:
    """How many studies are held: whose person is undecided, or that a unit could not make; and how many there are."""
    states = {person.study_uid: person.state for people in whose.values() for person in people}
    held = {study for study, state in states.items() if state == "held"}
    for unit in whose:
        if not lake.row_count(FINDINGS, stage="build", dataset=dataset, unit=unit):
            continue
        found = lake.read(FINDINGS, ["code", "study_uid"], stage="build", dataset=dataset, unit=unit)
        held |= set(found.filter(pc.equal(found["code"], "study-held"))["study_uid"].to_pylist())
    return len(held), len(states)


def _header_marks(lake: Lake, dataset: str) -> dict[str, str]:
    """The fingerprint of the header table of each unit that has one.

    Also of a unit whose extraction has to be done again: what its table says is older, but a unit left out would change
    what the PatientIDs of the others mean.
    """
    units = pc.unique(lake.read(INVENTORY, ["unit"], dataset=dataset)["unit"]).to_pylist()
    marks = {unit: lake.fingerprint(headers(), dataset=dataset, unit=unit) for unit in sorted(units)}
    return {unit: mark for unit, mark in marks.items() if mark is not None}


def _context(name: str, settings: Settings, dataset: DatasetSettings) -> Context:
    zone = dataset.time_zone or settings.time_zone
    return Context(
        dataset=name,
        site=settings.site,
        zone=ZoneInfo(zone) if zone else None,
        endpoint_id=resource_id(settings.site, "Endpoint", name),
        version=settings.fhir.version,
        strict=settings.fhir.strict,
        staff_names=settings.staff_names,
        contact_details=settings.contact_details,
        chest=settings.fhir.chest_code,
        dataset_system=settings.sds_dataset_system,
        study_system=settings.sds_study_system,
    )


def _remove_gone(lake: Lake, dataset: str, units: Iterable[str]) -> None:
    """Remove the resources of units that are gone; the commit first."""
    kept, folder = {encode_name(unit) for unit in units}, encode_name(dataset)
    for tables, suffix in [
        ("findings/build", ".parquet"),
        *((f"fhir/{kind}", ".ndjson") for kind in RESOURCE_TYPES),
    ]:
        lake.sweep(f"{tables}/{folder}")
        for name in lake.names(f"{tables}/{folder}", suffix):
            if name not in kept:
                lake.remove(f"{tables}/{folder}/{name}{suffix}")


# -- whose a study is -------------------------------------------------------------------------------------------------


def _identities(
    lake: Lake, settings: Settings, dataset: DatasetSettings, name: str, made_from: Mapping[str, str]
) -> dict[str, list[Person]]:
    """The persons of the studies, by the unit in which the study lies; decided anew when something changed."""
    lines = [line for line in read_crosswalk(settings.crosswalk) if line.dataset == name]
    mark = fingerprint(
        PERSONS_VERSION,
        settings.site,
        dataset.assigning_authority,
        [list(line) for line in sorted(lines)],
        sorted(made_from.items()),
    )
    if lake.fingerprint(IDENTITIES, dataset=name) != mark:
        crosswalk = {line.subject: (line.system, line.value) for line in lines}
        scope = Scope(name, settings.site, dataset.assigning_authority, crosswalk)
        rows = [_identity_row(settings.site, name, p) for p in persons(_claims(lake, name, made_from), scope)]
        lake.write_rows(IDENTITIES, rows, fingerprint=mark, dataset=name)
    stored = lake.read(IDENTITIES, dataset=name).to_pylist()
    fields = Person.__dataclass_fields__
    return {
        unit: [Person(**{key: row[key] for key in fields}) for row in rows]
        for unit, rows in grouped(stored, "unit").items()
    }


def _identity_row(site: str, dataset: str, person: Person) -> dict[str, Any]:
    identified = resource_id(site, "Patient", person.system, person.value) if person.state == "ok" else None
    return {"dataset": dataset, "patient": identified, **asdict(person)}


def _claims(lake: Lake, dataset: str, units: Iterable[str]) -> list[Claim]:
    """What each study's instances say of their patient: distinct combinations, read unit by unit."""
    claims = []
    for unit in units:
        rows = lake.read(headers(), [*_CLAIM, "duplicate"], dataset=dataset, unit=unit)
        kept = rows.filter(pc.and_(pc.is_null(rows["duplicate"]), pc.is_valid(rows["StudyInstanceUID"])))
        for row in kept.group_by(list(_CLAIM)).aggregate([]).to_pylist():
            study, lying_in, subject, patient_id, universal, kind, removed = (row[column] for column in _CLAIM)
            is_removed = (removed or "").upper() == "YES"
            claims.append(Claim(study, lying_in, subject, patient_id, universal, kind, is_removed))
    return sorted(claims, key=str)


# -- corrections and other lines of people -----------------------------------------------------------------------------


def _corrections_by_unit(
    lake: Lake, dataset: str, units: Iterable[str], lines: list[Correction]
) -> dict[str, tuple[Correction, ...]]:
    """The corrections that speak of some instance of each unit."""
    found: dict[str, tuple[Correction, ...]] = {}
    for unit in units if lines else ():
        rows = lake.read(headers(), [*CORRECTED_FROM], dataset=dataset, unit=unit)
        places = [tuple(row.values()) for row in rows.group_by([*CORRECTED_FROM]).aggregate([]).to_pylist()]
        found[unit] = tuple(line for line in lines if any(line.touches(here) for here in places))
    return found


def _useless_corrections(
    dataset: str, lines: list[Correction], by_unit: Mapping[str, Collection[Correction]]
) -> Iterator[Finding]:
    used = {line for touching in by_unit.values() for line in touching}
    for line in lines:
        if line not in used:
            message = f"{line.line} ({line.tag}) speaks of no instance of the dataset"
            yield finding("correction-useless", dataset, subject=line.subject, message=message)


def _useless_crosswalk_lines(
    settings: Settings, dataset: str, whose: Mapping[str, Iterable[Person]]
) -> Iterator[Finding]:
    subjects = {person.subject for people in whose.values() for person in people}
    for line in read_crosswalk(settings.crosswalk):
        if line.dataset == dataset and line.subject not in subjects:
            yield finding("crosswalk-useless", dataset, subject=line.subject)


# -- units ------------------------------------------------------------------------------------------------------------


def _tasks(
    lake: Lake,
    whose: Mapping[str, list[Person]],
    made_from: Mapping[str, str],
    context: Context,
    corrections: Mapping[str, tuple[Correction, ...]],
    served: dict[str, Any],
) -> list[BuildTask]:
    """One task per unit, with the fingerprint of all that its resources are made from."""
    units_of_study: dict[str, set[str]] = defaultdict(set)
    for people in whose.values():
        for person in people:
            units_of_study[person.study_uid].add(person.unit)
    sheets = grouped(lake.read(SHEETS, dataset=context.dataset).to_pylist(), "subject")
    mark = _mapping_mark()
    tasks = []
    for unit in made_from:
        lying = tuple(whose.get(unit, ()))
        sources = {other for p in lying if p.owner == unit for other in units_of_study[p.study_uid]} or {unit}
        here = _with_sheets(context, sheets, lying)
        lines = tuple(dict.fromkeys(line for source in sorted(sources) for line in corrections.get(source, ())))
        print_ = fingerprint(
            mark,
            [made_from[source] for source in sorted(sources)],
            [asdict(person) for person in lying],
            asdict(here) | {"zone": str(here.zone)},
            [list(line) for line in lines],
            served,
        )
        tasks.append(BuildTask(lake, unit, lying, tuple(sorted(sources)), here, lines, served, print_))
    return tasks


def _mapping_mark() -> str:
    return fingerprint(
        imaging_study.MAPPING_VERSION,
        pydicom.__version__,  # its tables name modalities, SOP classes and SNOMED codes
        version_of(*(f"dicom_etl.fhir.tables:{table}" for table in MAPPING_TABLES)),
    )


def _with_sheets(context: Context, sheets: Mapping[Any, list[dict[str, Any]]], people: Iterable[Person]) -> Context:
    """The context with what the sheets say of the subject of a unit and of its samples, as far as it is mapped."""
    rows = [row for subject in sorted({p.subject for p in people if p.subject}) for row in sheets.get(subject, ())]
    subject = {r["field"]: r["value"] for r in rows if r["sheet"] == "subjects" and r["field"] in SUBJECT_FIELDS}
    samples: dict[str, dict[str, str]] = defaultdict(dict)
    for (_, sample), said in samples_of(rows).items():
        if sample:
            samples[sample] |= said
    return replace(context, subject_sheet=subject, sample_sheets=dict(samples))


def _is_made(lake: Lake, dataset: str, task: BuildTask) -> bool:
    if lake.fingerprint(FINDINGS, stage="build", dataset=dataset, unit=task.unit) != task.fingerprint:
        return False
    return all(lake.exists(place(RESOURCES, type=t, dataset=dataset, unit=task.unit)) for t in RESOURCE_TYPES)


def _run(lake: Lake, engine: Engine, tasks: list[BuildTask], progress: Progress, dataset: str) -> list[Finding]:
    """Make the units; returns a finding for each that failed."""
    sizes = {t.unit: sum(lake.row_count(headers(), dataset=dataset, unit=s) for s in t.sources) for t in tasks}
    total, done, failures = sum(sizes.values()), 0, []
    for result in engine.map(build_unit, tasks, small=total < _FEW_ROWS, weight=lambda task: sizes[task.unit]):
        done += sizes[result.item.unit]
        if result.error:
            reason = f"{type(result.error).__name__}: {result.error}"[:300]
            failures.append(finding("build-failed", dataset, unit=result.item.unit, message=reason))
        progress(f"build {dataset}", done, total)
    return failures


def _tell(lake: Lake, dataset: str, found: list[Finding], passed_over: Collection[str]) -> None:
    """Write the findings of the dataset; those of units that this run was not to make stay."""
    before = lake.read(DATASET_FINDINGS, stage="build", dataset=dataset).to_pylist()
    kept = [Finding(**row) for row in before if row["unit"] in passed_over]
    lake.write(DATASET_FINDINGS, findings_table([*kept, *found]), stage="build", dataset=dataset)
