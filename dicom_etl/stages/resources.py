"""The resources of one unit, made and written by a worker of the build.

Not here: which units are made, and whose a study is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from dicom_etl.fhir import imaging_study, patient
from dicom_etl.fhir.checks import errors
from dicom_etl.fhir.context import Context
from dicom_etl.fhir.corrections import Correction, corrected
from dicom_etl.fhir.rows import Group, Place
from dicom_etl.findings import findings_table
from dicom_etl.identity.ids import resource_id
from dicom_etl.identity.persons import Person
from dicom_etl.lake.schemas import FINDINGS, RESOURCE_TYPES, RESOURCES, headers, place
from dicom_etl.lake.tables import Lake

Resource = dict[str, Any]
_COLUMNS = tuple(dict.fromkeys([*imaging_study.COLUMNS, *patient.COLUMNS]))
# what strict mode does not let pass: something that is there and cannot stand in FHIR
_NOT_STRICT = frozenset({"value-left-out", "instance-left-out"})


class BuildTask(NamedTuple):
    """A unit whose resources are to be made; travels to a worker."""

    lake: Lake
    unit: str
    persons: tuple[Person, ...]  # of the studies that lie in this unit
    sources: tuple[str, ...]  # the units in which its own studies lie
    context: Context
    corrections: tuple[Correction, ...]  # that speak of its studies
    endpoint: Resource
    fingerprint: str


def build_unit(task: BuildTask) -> int:
    """Make and write the resources of a unit; returns how many."""
    dataset, lake = task.context.dataset, task.lake
    here = Place(dataset, task.unit, next((p.subject for p in task.persons), None))
    _tell_persons(task.persons, here)
    own = [person for person in task.persons if person.owner == task.unit and person.state == "ok"]
    rows = corrected(_rows(task, own), task.corrections, here)
    _tell_series(rows, here)
    patients, troubled = _patients(own, rows, task.context, here)
    made = {
        "Patient": patients,
        "ImagingStudy": _studies(own, troubled, rows, task.context, here),
        "Endpoint": [task.endpoint] if own else [],
    }
    where = {"dataset": dataset, "unit": task.unit}
    lake.remove(FINDINGS.path(stage="build", **where))  # no commit while the resources change
    for kind in RESOURCE_TYPES:
        lines = b"".join(orjson.dumps(resource) + b"\n" for resource in sorted(made[kind], key=lambda r: str(r["id"])))
        lake.write_bytes(place(RESOURCES, type=kind, **where), lines)
    lake.write(FINDINGS, findings_table(here.found), fingerprint=task.fingerprint, stage="build", **where)
    return sum(map(len, made.values()))


def _rows(task: BuildTask, own: list[Person]) -> Group:
    studies = pa.array([person.study_uid for person in own], pa.string())
    tables = []
    for unit in task.sources:
        rows = task.lake.read(headers(), [*_COLUMNS, "duplicate"], dataset=task.context.dataset, unit=unit)
        tables.append(rows.filter(pc.and_(pc.is_null(rows["duplicate"]), pc.is_in(rows["StudyInstanceUID"], studies))))
    return Group.of(pa.concat_tables(tables), _COLUMNS)


def _tell_persons(people: Iterable[Person], here: Place) -> None:
    for person in people:
        if person.reason:
            replace(here, subject=person.subject).within(study_uid=person.study_uid).add(person.reason)


def _tell_series(rows: Group, here: Place) -> None:
    for series, group in rows.by("SeriesInstanceUID").items():
        studies = group.distinct("StudyInstanceUID")
        if series and len(studies) > 1:
            here.within(series_uid=series).add("series-two-studies", message=f"it stands in {len(studies)} studies")


# -- Patients ---------------------------------------------------------------------------------------------------------


def _patients(own: list[Person], rows: Group, context: Context, here: Place) -> tuple[list[Resource], dict[str, str]]:
    """The Patients, and by study why it cannot be made since its Patient is not as it must be."""
    by_person: dict[tuple[str, str], list[Person]] = defaultdict(list)
    for person in own:
        by_person[person.system, person.value].append(person)
    made: list[Resource] = []
    troubled: dict[str, str] = {}
    for key, people in sorted(by_person.items()):
        studies = {person.study_uid for person in people}
        uids = rows.columns["StudyInstanceUID"]
        theirs = rows.where(lambda row, uids=uids, studies=studies: uids[row] in studies)  # type: ignore[misc]
        before = len(here.found)
        resource = patient.patient(resource_id(context.site, "Patient", *key), people[0], theirs, context, here)
        if reason := _trouble(resource, before, context, here):
            troubled |= dict.fromkeys(studies, f"its Patient: {reason}")
        else:
            made.append(resource)
    return made, troubled


def _trouble(resource: Resource, before: int, context: Context, here: Place) -> str | None:
    """Why a resource may not be written: it is not valid, or strict mode does not let pass what was found since."""
    if context.strict and (codes := {found.code for found in here.found[before:]} & _NOT_STRICT):
        return f"strict mode and {', '.join(sorted(codes))}"
    wrong = errors(resource, context.version)
    for text in wrong[:5]:
        here.add("resource-invalid", message=f"{resource['resourceType']} {resource['id']}: {text}"[:300])
    return "it is not valid" if wrong else None


# -- ImagingStudies ---------------------------------------------------------------------------------------------------


def _studies(own: list[Person], troubled: dict[str, str], rows: Group, context: Context, here: Place) -> list[Resource]:
    groups = rows.by("StudyInstanceUID")
    made = []
    for person in own:
        at = replace(here, subject=person.subject).within(study_uid=person.study_uid)
        resource, reason = _study(person, groups[person.study_uid], context, at)
        reason = troubled.get(person.study_uid) or reason
        if reason:
            at.add("study-held", message=reason)
        elif resource:
            made.append(resource)
    return made


def _study(person: Person, rows: Group, context: Context, at: Place) -> tuple[Resource | None, str | None]:
    """The ImagingStudy of a person, and why it may not be written."""
    before = len(at.found)
    resource = imaging_study.imaging_study(
        resource_id(context.site, "ImagingStudy", context.dataset, person.study_uid),
        resource_id(context.site, "Patient", person.system, person.value),
        rows,
        context,
        at,
    )
    if resource is None:
        return None, "none of its instances can stand in FHIR"
    return resource, _trouble(resource, before, context, at)
