"""The FHIR resources of units: a function of the header rows of a batch of units and of what was decided for them.

Pure: nothing is read or written. Not here: which units are built, and which patient a study belongs to.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import orjson
import pyarrow as pa

from dicom_etl.fhir import imaging_study, patient
from dicom_etl.fhir.context import Context
from dicom_etl.fhir.corrections import Correction, apply_corrections
from dicom_etl.fhir.elements import element_rows
from dicom_etl.fhir.rows import FindingCollector, HeaderRows
from dicom_etl.fhir.validation import find_errors
from dicom_etl.findings import Finding
from dicom_etl.identity.matching import PatientMatch

__all__ = ["COLUMNS", "UnitInputs", "UnitResources", "make_resources"]

Resource = dict[str, Any]
PersonKey = tuple[str, str]  # system and value of its identifier

_MAPPED = tuple(dict.fromkeys([*imaging_study.COLUMNS, *patient.COLUMNS]))
COLUMNS: tuple[str, ...] = ("unit", *_MAPPED)
# what strict mode does not accept: a value that is present and that FHIR cannot represent
_NOT_STRICT = frozenset({"value-omitted", "instance-excluded"})


class UnitInputs(NamedTuple):
    """What the resources of a unit are made from, beside the header rows."""

    unit: str
    persons: tuple[PatientMatch, ...]  # of the studies that are in this unit
    context: Context  # with the sheets of this unit's subjects
    corrections: tuple[Correction, ...]  # that apply to its studies


class UnitResources(NamedTuple):
    """The resources of a unit; of one that failed the error alone."""

    unit: str
    lines: dict[str, bytes]  # NDJSON by resource type, sorted by id
    counts: dict[str, int]  # resources by type
    findings: list[Finding]
    elements: list[dict[str, Any]]  # rows of FHIR_ELEMENTS
    error: BaseException | None = None


def make_resources(plans: Sequence[UnitInputs], rows: pa.Table) -> Iterator[UnitResources]:
    """Make the resources of each planned unit; what one unit raises fails that unit alone.

    Args:
        plans: of the units, in any order; results come in the same order.
        rows: `COLUMNS` of all instances of all studies that the units own, whatever unit they are stored in;
            duplicates left out.
    """
    batch = HeaderRows.from_table(rows, _MAPPED)
    studies = batch.indices_by("StudyInstanceUID")
    for plan in plans:
        try:
            yield _make_unit(plan, batch, studies)
        except Exception as error:  # noqa: BLE001  (whatever a unit raises; the stage makes a finding of it)
            yield UnitResources(plan.unit, {}, {}, [], [], error)


def _make_unit(plan: UnitInputs, batch: HeaderRows, studies: Mapping[str, Sequence[int]]) -> UnitResources:
    context = plan.context
    findings = FindingCollector(context.dataset, plan.unit, next((person.subject for person in plan.persons), None))
    _report_persons(plan.persons, findings)
    own = [person for person in plan.persons if person.building_unit == plan.unit and person.state == "ok"]
    rows = batch.select(sorted({row for person in own for row in studies.get(person.study_uid, ())}))
    if plan.corrections:
        rows = apply_corrections(rows.copy(), plan.corrections, findings)
    _report_series(rows, findings)
    groups = rows.group_by("StudyInstanceUID")
    people = _group_persons(own)
    ids = {key: context.ids.resource_id("Patient", *key) for key in people}
    patients, faults = _make_patients(people, ids, groups, context, findings)
    studies_made = _make_studies(own, ids, faults, groups, context, findings)
    made = {"Patient": patients, "ImagingStudy": studies_made}
    for resources in made.values():
        resources.sort(key=_id)
    return UnitResources(
        plan.unit,
        {kind: b"".join(map(_line, resources)) for kind, resources in made.items()},
        {kind: len(resources) for kind, resources in made.items()},
        findings.collected,
        [row for resource in chain(*made.values()) for row in element_rows(resource, context.dataset, plan.unit)],
    )


def _id(resource: Resource) -> str:
    return str(resource["id"])


def _line(resource: Resource) -> bytes:
    return orjson.dumps(resource, option=orjson.OPT_APPEND_NEWLINE)


def _report_persons(people: Iterable[PatientMatch], findings: FindingCollector) -> None:
    for person in people:
        if person.reason:
            _at(person, findings).add(person.reason)


def _at(person: PatientMatch, findings: FindingCollector) -> FindingCollector:
    """The findings of a study; the subject is the person's own, also where it has none."""
    return FindingCollector(
        findings.dataset, findings.unit, person.subject, person.study_uid, collected=findings.collected
    )


def _report_series(rows: HeaderRows, findings: FindingCollector) -> None:
    """Report series that are in several studies."""
    if len(rows.distinct("StudyInstanceUID")) < 2:
        return
    for series, group in rows.group_by("SeriesInstanceUID").items():
        studies = group.distinct("StudyInstanceUID")
        if series and len(studies) > 1:
            findings.within(series_uid=series).add("series-two-studies", message=f"it stands in {len(studies)} studies")


# -- Patients ---------------------------------------------------------------------------------------------------------


def _group_persons(own: Iterable[PatientMatch]) -> dict[PersonKey, list[PatientMatch]]:
    """The entries of each person in the studies of the unit, sorted by identifier."""
    people: dict[PersonKey, list[PatientMatch]] = defaultdict(list)
    for person in own:
        people[person.system, person.value].append(person)
    return {key: people[key] for key in sorted(people)}


def _make_patients(
    people: Mapping[PersonKey, list[PatientMatch]],
    ids: Mapping[PersonKey, str],
    groups: Mapping[str, HeaderRows],
    context: Context,
    findings: FindingCollector,
) -> tuple[list[Resource], dict[str, str]]:
    """The Patients, and by study why it cannot be made: its Patient is not as it must be."""
    made: list[Resource] = []
    faults: dict[str, str] = {}
    for key, persons in people.items():
        studies = [person.study_uid for person in persons]
        before = len(findings.collected)
        rows = HeaderRows.union([groups[study] for study in studies])
        resource = patient.make_patient(ids[key], persons[0], rows, context, findings)
        if reason := _find_fault(resource, before, context, findings):
            faults |= dict.fromkeys(studies, f"its Patient: {reason}")
        else:
            made.append(resource)
    return made, faults


def _find_fault(resource: Resource, before: int, context: Context, findings: FindingCollector) -> str | None:
    """Why a resource may not be written: it is not valid, or strict mode does not accept a finding made since."""
    if context.strict and (codes := {finding.code for finding in findings.collected[before:]} & _NOT_STRICT):
        return f"strict mode and {', '.join(sorted(codes))}"
    texts = find_errors(resource, context.version)
    for text in texts[:5]:
        findings.add("resource-invalid", message=f"{resource['resourceType']} {resource['id']}: {text}"[:300])
    return "it is not valid" if texts else None


# -- ImagingStudies ---------------------------------------------------------------------------------------------------


def _make_studies(
    own: Iterable[PatientMatch],
    ids: Mapping[PersonKey, str],
    faults: Mapping[str, str],
    groups: Mapping[str, HeaderRows],
    context: Context,
    findings: FindingCollector,
) -> list[Resource]:
    made = []
    for person in own:
        at = _at(person, findings)
        resource, reason = _make_study(person, ids[person.system, person.value], groups[person.study_uid], context, at)
        reason = faults.get(person.study_uid) or reason
        if reason:
            at.add("study-held", message=reason)
        elif resource:
            made.append(resource)
    return made


def _make_study(
    person: PatientMatch, patient_id: str, rows: HeaderRows, context: Context, findings: FindingCollector
) -> tuple[Resource | None, str | None]:
    """The ImagingStudy of a person, and why it may not be written."""
    before = len(findings.collected)
    identifier = context.ids.resource_id("ImagingStudy", context.dataset, person.study_uid)
    resource = imaging_study.make_imaging_study(identifier, patient_id, rows, context, findings)
    if resource is None:
        return None, "none of its instances can stand in FHIR"
    return resource, _find_fault(resource, before, context, findings)
