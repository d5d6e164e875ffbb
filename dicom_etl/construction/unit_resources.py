"""The FHIR resources of single units: a pure function of the header rows of some units and of their other inputs.

Not here: reading rows and storing resources (`chunk_builder`), and the content of a resource (`fhir`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple

import orjson
import pyarrow as pa

from dicom_etl.fhir import imaging_study, patient
from dicom_etl.fhir.context import Context
from dicom_etl.fhir.corrections import Correction, apply_corrections
from dicom_etl.fhir.elements import list_element_rows
from dicom_etl.fhir.rows import FindingCollector, HeaderRows
from dicom_etl.fhir.validation import find_errors
from dicom_etl.findings import Finding
from dicom_etl.identity.matching import PatientMatch

__all__ = ["COLUMNS", "UnitInputs", "UnitResources", "build_resources"]

Resource = dict[str, Any]
PatientKey = tuple[str, str]  # system and value of its identifier

_MAPPED_COLUMNS = tuple(dict.fromkeys([*imaging_study.COLUMNS, *patient.COLUMNS]))
COLUMNS: tuple[str, ...] = ("unit", *_MAPPED_COLUMNS)
# in strict mode these hold a study: a value is present and FHIR cannot represent it
_HELD_IF_STRICT = frozenset({"value-omitted", "instance-excluded"})


class UnitInputs(NamedTuple):
    """The inputs of a unit's resources without header rows."""

    unit: str
    matches: tuple[PatientMatch, ...]  # of the studies that are in this unit
    context: Context  # with the sheets of this unit's subjects
    corrections: tuple[Correction, ...]  # that match its studies


class UnitResources(NamedTuple):
    """The resources of a unit; if it failed, all but `error` is empty."""

    unit: str
    lines: dict[str, bytes]  # NDJSON by resource type, sorted by id
    counts: dict[str, int]  # of resources, by type
    findings: list[Finding]
    elements: list[dict[str, Any]]  # rows of FHIR_ELEMENTS
    error: BaseException | None = None


def build_resources(units: Sequence[UnitInputs], rows: pa.Table) -> Iterator[UnitResources]:
    """Build the resources of each unit; an exception fails only the unit that raised it.

    Args:
        units: in any order; results come in the same order.
        rows: `COLUMNS` of all instances of all studies that these units build, whatever unit they are stored in;
            without duplicates.
    """
    header_rows = HeaderRows.from_table(rows, _MAPPED_COLUMNS)
    row_numbers = header_rows.row_numbers_by("StudyInstanceUID")
    for unit in units:
        try:
            yield _build_unit(unit, header_rows, row_numbers)
        except Exception as error:  # noqa: BLE001  (whatever it is: the stage reports it as a finding of the unit)
            yield UnitResources(unit.unit, {}, {}, [], [], error)


def _build_unit(unit: UnitInputs, header_rows: HeaderRows, row_numbers: Mapping[str, Sequence[int]]) -> UnitResources:
    context = unit.context
    findings = FindingCollector(context.dataset, unit.unit, next((match.subject for match in unit.matches), None))
    for match in unit.matches:
        if match.reason:
            _narrow_to_study(findings, match).add(match.reason)
    matches = [match for match in unit.matches if match.building_unit == unit.unit and match.state == "ok"]
    rows = header_rows.select(sorted({row for match in matches for row in row_numbers.get(match.study_uid, ())}))
    if unit.corrections:
        rows = apply_corrections(rows.copy(), unit.corrections, findings)
    _report_divided_series(rows, findings)
    studies = rows.group_by("StudyInstanceUID")
    patients, held = _build_patients(matches, studies, context, findings)
    imaging_studies = _build_studies(matches, studies, held, context, findings)
    resources = {"Patient": patients, "ImagingStudy": imaging_studies}
    for resources_of_type in resources.values():
        resources_of_type.sort(key=itemgetter("id"))
    return UnitResources(
        unit=unit.unit,
        lines={
            kind: b"".join(orjson.dumps(item, option=orjson.OPT_APPEND_NEWLINE) for item in items)
            for kind, items in resources.items()
        },
        counts={kind: len(items) for kind, items in resources.items()},
        findings=findings.collected,
        elements=[
            row for item in chain(*resources.values()) for row in list_element_rows(item, context.dataset, unit.unit)
        ],
    )


def _narrow_to_study(findings: FindingCollector, match: PatientMatch) -> FindingCollector:
    """The collector for a study. Its subject is that of the match, even if it has none: `within` would keep another."""
    return FindingCollector(
        findings.dataset, findings.unit, match.subject, match.study_uid, collected=findings.collected
    )


def _report_divided_series(rows: HeaderRows, findings: FindingCollector) -> None:
    """Report series whose instances belong to several studies."""
    if len(rows.distinct("StudyInstanceUID")) < 2:
        return
    for series_uid, series_rows in rows.group_by("SeriesInstanceUID").items():
        studies = series_rows.distinct("StudyInstanceUID")
        if series_uid and len(studies) > 1:
            findings.within(series_uid=series_uid).add("series-two-studies", message=f"it is in {len(studies)} studies")


# -- Patients ---------------------------------------------------------------------------------------------------------


def _build_patients(
    matches: Iterable[PatientMatch],
    studies: Mapping[str, HeaderRows],
    context: Context,
    findings: FindingCollector,
) -> tuple[list[Resource], dict[str, str]]:
    """The Patients, sorted by identifier, and by study the reason why it is held: its Patient cannot be written."""
    by_patient: dict[PatientKey, list[PatientMatch]] = defaultdict(list)
    for match in matches:
        by_patient[match.system, match.value].append(match)
    patients: list[Resource] = []
    held: dict[str, str] = {}
    for key, patient_matches in sorted(by_patient.items()):
        study_uids = [match.study_uid for match in patient_matches]
        previous_findings = len(findings.collected)
        rows = HeaderRows.union([studies[uid] for uid in study_uids])
        patient_id = context.ids.resource_id("Patient", *key)
        resource = patient.make_patient(patient_id, patient_matches[0], rows, context, findings)
        if reason := _reason_to_hold(resource, findings, previous_findings, context):
            held |= dict.fromkeys(study_uids, f"its Patient: {reason}")
        else:
            patients.append(resource)
    return patients, held


def _reason_to_hold(
    resource: Resource, findings: FindingCollector, previous_findings: int, context: Context
) -> str | None:
    """Why a resource may not be written: it is not valid, or strict mode does not accept one of its findings.

    `previous_findings` is the number of findings that were collected before the resource was made.
    """
    if context.strict:
        codes = {finding.code for finding in findings.collected[previous_findings:]} & _HELD_IF_STRICT
        if codes:
            return f"strict mode and {', '.join(sorted(codes))}"
    errors = find_errors(resource, context.version)
    for error in errors[:5]:
        findings.add("resource-invalid", message=f"{resource['resourceType']} {resource['id']}: {error}"[:300])
    return "it is not valid" if errors else None


# -- ImagingStudies ---------------------------------------------------------------------------------------------------


def _build_studies(
    matches: Iterable[PatientMatch],
    studies: Mapping[str, HeaderRows],
    held: Mapping[str, str],
    context: Context,
    findings: FindingCollector,
) -> list[Resource]:
    """The ImagingStudies that may be written; each of the others is a finding. `held`: reasons known already."""
    resources = []
    for match in matches:
        study_findings = _narrow_to_study(findings, match)
        resource, reason = _build_study(match, studies[match.study_uid], context, study_findings)
        if reason := held.get(match.study_uid) or reason:
            study_findings.add("study-held", message=reason)
        elif resource:
            resources.append(resource)
    return resources


def _build_study(
    match: PatientMatch, rows: HeaderRows, context: Context, findings: FindingCollector
) -> tuple[Resource | None, str | None]:
    """The ImagingStudy of a match, and the reason why it may not be written."""
    previous_findings = len(findings.collected)
    study_id = context.ids.resource_id("ImagingStudy", context.dataset, match.study_uid)
    patient_id = context.ids.resource_id("Patient", match.system, match.value)
    resource = imaging_study.make_imaging_study(study_id, patient_id, rows, context, findings)
    if resource is None:
        return None, "FHIR cannot represent any of its instances"
    return resource, _reason_to_hold(resource, findings, previous_findings, context)
