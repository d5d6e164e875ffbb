"""build: header rows, sheets and settings -> `identities` of a dataset, FHIR resources of each unit.

Whose a study is, is decided over the whole dataset first; then each unit whose fingerprint changed is made. The
findings of a unit are written last and are its commit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pydicom

from dicom_etl.engine import Engine, Progress
from dicom_etl.fhir import imaging_study, patient
from dicom_etl.fhir.checks import errors
from dicom_etl.fhir.context import Context
from dicom_etl.fhir.endpoint import endpoint
from dicom_etl.fhir.rows import Group, Place
from dicom_etl.findings import finding, findings_table
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
from dicom_etl.settings import DatasetSettings, Settings
from dicom_etl.sources import Source, SourceError

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


class BuildTask(NamedTuple):
    """A unit whose resources are to be made; travels to a worker."""

    lake: Lake
    unit: str
    persons: tuple[Person, ...]  # of the studies that lie in this unit
    sources: tuple[str, ...]  # the units in which its own studies lie
    context: Context
    endpoint: dict[str, Any]
    fingerprint: str


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
        SettingsError: the crosswalk cannot be read.
    """
    name = source.dataset
    with lake.lock(name, f"build of {name}"):
        made_from = _header_marks(lake, name)
        if not made_from:
            raise SourceError(f"dataset {name}: there are no header tables; extract it first")
        whose = _identities(lake, settings, dataset_settings, name, made_from)
        _remove_gone(lake, name, made_from)
        context = _context(name, settings, dataset_settings)
        served = endpoint(context.endpoint_id, name, settings.site, dataset_settings.endpoint, source.location)
        tasks = [
            task
            for task in _tasks(lake, whose, made_from, context, served)
            if (subjects is None or task.unit in subjects) and (force or not _is_made(lake, name, task))
        ]
        failures = _run(lake, engine, tasks, progress, name)
    states = {person.study_uid: person.state for people in whose.values() for person in people}
    held = sum(state == "held" for state in states.values())
    people = {(p.system, p.value) for people in whose.values() for p in people if p.state == "ok"}
    findings = lake.row_count(DATASET_FINDINGS, stage="build", dataset=name) + sum(
        lake.row_count(FINDINGS, stage="build", dataset=name, unit=unit) for unit in made_from
    )
    made = len(tasks) - failures
    return Built(name, len(made_from), made, failures, len(people), len(states) - held, held, findings)


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
        staff_names=settings.staff_names,
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


# -- units ------------------------------------------------------------------------------------------------------------


def _tasks(
    lake: Lake,
    whose: Mapping[str, list[Person]],
    made_from: Mapping[str, str],
    context: Context,
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
        sheet = _subject_sheet(sheets, lying)
        here = replace(context, subject_sheet=sheet)
        print_ = fingerprint(
            mark,
            [made_from[source] for source in sorted(sources)],
            [asdict(person) for person in lying],
            {key: str(value) for key, value in asdict(here).items() if key != "subject_sheet"},
            sheet,
            served,
        )
        tasks.append(BuildTask(lake, unit, lying, tuple(sorted(sources)), here, served, print_))
    return tasks


def _mapping_mark() -> str:
    tables = ("annex_l.json", "body_part_aliases.csv")
    return fingerprint(
        imaging_study.MAPPING_VERSION,
        pydicom.__version__,  # its tables name modalities, SOP classes and SNOMED codes
        version_of(*(f"dicom_etl.fhir.tables:{table}" for table in tables)),
    )


def _subject_sheet(sheets: Mapping[Any, list[dict[str, Any]]], people: Iterable[Person]) -> dict[str, str]:
    """What the subjects sheet says of the subject of a unit."""
    subjects = {person.subject for person in people if person.subject}
    rows = [row for subject in sorted(subjects) for row in sheets.get(subject, ()) if row["sheet"] == "subjects"]
    return {row["field"]: row["value"] for row in rows}


def _is_made(lake: Lake, dataset: str, task: BuildTask) -> bool:
    if lake.fingerprint(FINDINGS, stage="build", dataset=dataset, unit=task.unit) != task.fingerprint:
        return False
    return all(lake.exists(place(RESOURCES, type=t, dataset=dataset, unit=task.unit)) for t in RESOURCE_TYPES)


def _run(lake: Lake, engine: Engine, tasks: list[BuildTask], progress: Progress, dataset: str) -> int:
    sizes = {t.unit: sum(lake.row_count(headers(), dataset=dataset, unit=s) for s in t.sources) for t in tasks}
    total, done, failures = sum(sizes.values()), 0, []
    for result in engine.map(build_unit, tasks, small=total < _FEW_ROWS, weight=lambda task: sizes[task.unit]):
        done += sizes[result.item.unit]
        if result.error:
            reason = f"{type(result.error).__name__}: {result.error}"[:300]
            failures.append(finding("build-failed", dataset, unit=result.item.unit, message=reason))
        progress(f"build {dataset}", done, total)
    lake.write(DATASET_FINDINGS, findings_table(failures), stage="build", dataset=dataset)
    return len(failures)


# -- one unit, in a worker --------------------------------------------------------------------------------------------


def build_unit(task: BuildTask) -> int:
    """Make and write the resources of a unit; returns how many."""
    dataset, lake = task.context.dataset, task.lake
    here = Place(dataset, task.unit, next((p.subject for p in task.persons), None))
    _tell_persons(task.persons, here)
    own = [person for person in task.persons if person.owner == task.unit and person.state == "ok"]
    rows = _rows(task, own)
    _tell_series(rows, here)
    made = {
        "Patient": _patients(own, rows, task.context, here),
        "ImagingStudy": _studies(own, rows, task.context, here),
        "Endpoint": [task.endpoint] if own else [],
    }
    where = {"dataset": dataset, "unit": task.unit}
    lake.remove(FINDINGS.path(stage="build", **where))  # no commit while the resources change
    written = 0
    for kind in RESOURCE_TYPES:
        valid = [resource for resource in made[kind] if _is_valid(resource, here)]
        lines = b"".join(orjson.dumps(resource) + b"\n" for resource in sorted(valid, key=lambda r: str(r["id"])))
        lake.write_bytes(place(RESOURCES, type=kind, **where), lines)
        written += len(valid)
    lake.write(FINDINGS, findings_table(here.found), fingerprint=task.fingerprint, stage="build", **where)
    return written


def _rows(task: BuildTask, own: list[Person]) -> Group:
    columns = list(dict.fromkeys([*imaging_study.COLUMNS, *patient.COLUMNS]))
    studies = pa.array([person.study_uid for person in own], pa.string())
    tables = []
    for unit in task.sources:
        rows = task.lake.read(headers(), [*columns, "duplicate"], dataset=task.context.dataset, unit=unit)
        tables.append(rows.filter(pc.and_(pc.is_null(rows["duplicate"]), pc.is_in(rows["StudyInstanceUID"], studies))))
    return Group.of(pa.concat_tables(tables), columns)


def _tell_persons(people: Iterable[Person], here: Place) -> None:
    for person in people:
        if person.reason:
            replace(here, subject=person.subject).within(study_uid=person.study_uid).add(person.reason)


def _tell_series(rows: Group, here: Place) -> None:
    for series, group in rows.by("SeriesInstanceUID").items():
        studies = group.distinct("StudyInstanceUID")
        if series and len(studies) > 1:
            here.within(series_uid=series).add("series-two-studies", message=f"it stands in {len(studies)} studies")


def _patients(own: list[Person], rows: Group, context: Context, here: Place) -> list[dict[str, Any]]:
    by_person: dict[tuple[str, str], list[Person]] = defaultdict(list)
    for person in own:
        by_person[person.system, person.value].append(person)
    made = []
    for key, people in sorted(by_person.items()):
        studies = {person.study_uid for person in people}
        uids = rows.columns["StudyInstanceUID"]
        theirs = rows.where(lambda row, uids=uids, studies=studies: uids[row] in studies)  # type: ignore[misc]
        made.append(patient.patient(resource_id(context.site, "Patient", *key), people[0], theirs, context, here))
    return made


def _studies(own: list[Person], rows: Group, context: Context, here: Place) -> list[dict[str, Any]]:
    groups = rows.by("StudyInstanceUID")
    made = []
    for person in own:
        resource = imaging_study.imaging_study(
            resource_id(context.site, "ImagingStudy", context.dataset, person.study_uid),
            resource_id(context.site, "Patient", person.system, person.value),
            groups[person.study_uid],
            context,
            replace(here, subject=person.subject).within(study_uid=person.study_uid),
        )
        if resource:
            made.append(resource)
    return made


def _is_valid(resource: dict[str, Any], here: Place) -> bool:
    """Whether a resource may be written; what is wrong becomes a finding."""
    wrong = errors(resource)
    for text in wrong[:5]:
        here.add("resource-invalid", message=f"{resource['resourceType']} {resource['id']}: {text}"[:300])
    return not wrong
