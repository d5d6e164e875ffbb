"""FHIR readiness: for each element that depends on data, how often it could be filled, and why not.

Where a unit was built, its resources say whether an element is there; else the header values say whether it could be.
Why it is not there always comes from the headers. Constants and counts that we compute are no elements here.

Not here: making resources.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from dicom_etl.fhir import terminology
from dicom_etl.fhir.datetimes import moment, offset_of
from dicom_etl.fhir.imaging_study import SHEET_SIDES
from dicom_etl.identity.persons import is_placeholder
from dicom_etl.quality.checks import Measure, Tally
from dicom_etl.quality.facts import Group

__all__ = ["WATCHED_KEYWORDS", "Built", "Outcomes", "collect", "readiness"]

Resource = Mapping[str, Any]
Samples = Mapping[tuple[str | None, str | None], Mapping[str, str]]  # subject and sample -> what the sheet says
Outcomes = Mapping[tuple[str, str | None], Mapping[str, str]]  # (study, series) -> keyword -> outcome

_BEST = ("unknown", "absent", "empty", "unusable", "some", "filled")
_REASON = {
    "unknown": "absent",
    "absent": "absent",
    "empty": "empty",
    "unusable": "not usable (a dummy or not valid)",
}
_PAIRED_SIDES = ("Laterality", "ImageLaterality", "FrameLaterality")


@dataclass
class Built:
    """What the resources of a dataset say, as far as readiness asks; filled by `collect`."""

    units: set[str] = field(default_factory=set)  # units that were built
    studies: dict[str, Resource] = field(default_factory=dict)  # by study UID, without their series
    series: dict[tuple[str, str], Resource] = field(default_factory=dict)  # without their instances
    patients: dict[str, Resource] = field(default_factory=dict)  # by id
    persons: dict[str, Mapping[str, Any]] = field(default_factory=dict)  # study UID -> row of IDENTITIES


def collect(built: Built, unit: str, resources: Iterable[Resource]) -> None:
    """Take the resources of a unit."""
    built.units.add(unit)
    for resource in resources:
        if resource["resourceType"] == "Patient":
            built.patients[resource["id"]] = resource
        elif resource["resourceType"] == "ImagingStudy":
            uid = next(i["value"] for i in resource["identifier"] if i["system"] == "urn:dicom:uid")
            uid = uid.removeprefix("urn:oid:")
            built.studies[uid] = {key: value for key, value in resource.items() if key != "series"}
            for series in resource.get("series", ()):
                built.series[uid, series["uid"]] = {k: v for k, v in series.items() if k != "instance"}


class _Case(NamedTuple):
    """A study, a series or a person, judged for one element."""

    group: Group
    outcomes: Mapping[str, str]
    resource: Resource | None
    built: bool
    zone: bool  # the dataset's time zone is known
    sex_in_sheet: bool = False
    rule: str | None = None
    sample: Mapping[str, str] = MappingProxyType({})  # what the samples sheet says of all its samples


class _Element(NamedTuple):
    """A line of the table of elements."""

    check: str
    keywords: tuple[str, ...]  # whose states tell why it is not there
    there: Callable[[Resource, _Case], bool]  # in a resource
    could: Callable[[_Case], bool]  # by the headers
    why: Callable[[_Case], str | None] = lambda _: None  # a reason beyond the states
    applies: Callable[[_Case], bool] = lambda _: True


def readiness(
    studies: Sequence[Group],
    series: Sequence[Group],
    outcomes: Outcomes,
    built: Built,
    *,
    zone: bool,
    sex_in_sheet: frozenset[str],
    samples: Samples = MappingProxyType({}),
) -> list[Measure]:
    """The measures of all elements.

    Args:
        studies, series: the facts.
        outcomes: per study and series, how the tags of `WATCHED_KEYWORDS` that apply to it are filled.
        built: what the resources say.
        zone: whether a time zone is set for the dataset.
        sex_in_sheet: the subjects whose sex the sheet gives.
        samples: what the samples sheet says.
    """
    measures: list[Measure] = []
    of_studies = [_study_case(group, outcomes, built, zone) for group in studies]
    of_series = [_series_case(group, outcomes, built, zone, samples) for group in series]
    persons = _persons(of_studies, built, sex_in_sheet)
    for level, elements, cases in (
        ("study", _STUDY, of_studies),
        ("series", _SERIES, of_series),
        ("patient", _PATIENT, persons),
    ):
        for element in elements:
            tally = Tally(element.check, level)
            for case in cases:
                if element.applies(case):
                    tally.add(_failure(element, case))
            measures += tally.measures()
    return measures


def _failure(element: _Element, case: _Case) -> str | None:
    """Why the element is not there; None where it is."""
    if case.built and case.resource is None:
        return "not built (held or left out)"
    if element.there(case.resource, case) if case.resource is not None else element.could(case):
        return None
    if reason := element.why(case):
        return reason
    best = max((case.outcomes.get(k, "absent") for k in element.keywords), key=_BEST.index)
    return _REASON.get(best, "instances disagree" if case.group.instances > 1 else "left out")


def _study_case(group: Group, outcomes: Outcomes, built: Built, zone: bool) -> _Case:
    is_built = any(row["unit"] in built.units for row in group.rows)
    resource = built.studies.get(group.study)
    return _Case(group, outcomes.get((group.study, None), {}), resource, is_built, zone)


def _series_case(group: Group, outcomes: Outcomes, built: Built, zone: bool, samples: Samples) -> _Case:
    is_built = any(row["unit"] in built.units for row in group.rows)
    resource = built.series.get((group.study, group.series or ""))
    said = [samples.get(place, {}) for place in {(row["subject"], row["sample"]) for row in group.rows}]
    agreed = {field: value for field, value in said[0].items() if all(one.get(field) == value for one in said)}
    outcome = outcomes.get((group.study, group.series), {})
    return _Case(group, outcome, resource, is_built, zone, sample=agreed)


def _persons(studies: Iterable[_Case], built: Built, sex_in_sheet: frozenset[str]) -> list[_Case]:
    """The persons: as `build` decided them, else by PatientID, else by subject."""
    cases: dict[tuple[str, str], list[_Case]] = defaultdict(list)
    for case in studies:
        cases[_person_key(case, built)].append(case)
    return [_person_case(key, cases[key], built, sex_in_sheet) for key in sorted(cases)]


def _person_key(case: _Case, built: Built) -> tuple[str, str]:
    person = built.persons.get(case.group.study)
    if case.built and person:
        return ("patient", person["patient"]) if person["patient"] else ("held", case.group.study)
    ids = [value for value in case.group.values("PatientID") if not is_placeholder(value)]
    subject = case.group.rows[0]["subject"]
    return ("id", ids[0]) if ids else ("subject", subject) if subject else ("study", case.group.study)


def _person_case(key: tuple[str, str], studies: Sequence[_Case], built: Built, sex_in_sheet: frozenset[str]) -> _Case:
    outcomes: dict[str, str] = {}
    for study in studies:
        for keyword, outcome in study.outcomes.items():
            outcomes[keyword] = max(outcomes.get(keyword, outcome), outcome, key=_BEST.index)
    first = studies[0]
    rows = [row for study in studies for row in study.group.rows]
    person = built.persons.get(first.group.study) if first.built else None
    return _Case(
        Group(first.group.study, None, rows),
        outcomes,
        built.patients.get(key[1]) if key[0] == "patient" else None,
        key[0] in ("patient", "held"),
        first.zone,
        any(row["subject"] in sex_in_sheet for row in rows),
        person["rule"] if person else None,
    )


# -- rules ------------------------------------------------------------------------------------------------------------


def _has(name: str) -> Callable[[Resource, _Case], bool]:
    return lambda resource, _: bool(resource.get(name))


def _one(column: str) -> Callable[[_Case], bool]:
    return lambda case: len(case.group.values(column)) == 1


def _has_time(case: _Case) -> bool:
    return any(
        (value := moment(row["StudyDate"], row["StudyTime"], row["TimezoneOffsetFromUTC"], None).value)
        and (len(value) > 10 or (case.zone and _why_no_time(case) is None))
        for row in case.group.rows
    )


def _why_no_time(case: _Case) -> str | None:
    """Why a date has no time beside it; None where nothing is in its way."""
    if not case.group.values("StudyDate"):
        return None
    if not case.group.values("StudyTime"):
        return "no StudyTime"
    offsets = case.group.values("TimezoneOffsetFromUTC")
    if not case.zone and not any(offset_of(offset) for offset in offsets):
        return "no time zone"
    dates = [row for row in case.group.rows if row["StudyDate"] and row["StudyTime"]]
    codes = {moment(r["StudyDate"], r["StudyTime"], "+0000", None).code for r in dates}
    return "StudyTime is partial or not valid" if dates and None not in codes else None


def _accession(resource: Resource, _case: _Case) -> bool:
    """Among the identifiers, or in R5 as that of the order."""
    identifiers = [*resource["identifier"], *(order["identifier"] for order in resource.get("basedOn", ()))]
    codings = [c for i in identifiers for c in i.get("type", {}).get("coding", ())]
    return any(coding.get("code") == "ACSN" for coding in codings)


def _has_site(resource: Resource, _case: _Case) -> bool:
    """As Coding, or in R5 as a concept of a CodeableReference."""
    site = resource.get("bodySite", {})
    return bool(site.get("code") or site.get("concept", {}).get("coding"))


def _could_code_site(case: _Case) -> bool:
    row = case.group
    codes, schemes = row.values("AnatomicRegionCodeValue"), row.values("AnatomicRegionSchemeDesignator")
    if len(codes) == len(schemes) == 1 and terminology.coded(codes[0], schemes[0], None):
        return True
    parts = row.values("BodyPartExamined")
    if not (parts or codes):
        parts = [part for field, part in case.sample.items() if field == "sample anatomical location"]
    return len(parts) == 1 and terminology.body_site(parts[0]) is not None


def _why_no_site(case: _Case) -> str | None:
    parts = case.group.values("BodyPartExamined")
    if len(parts) == 1 and terminology.body_site(parts[0]) is None:
        return "text is no term of Annex L"
    return None


def _sides(case: _Case) -> set[str]:
    return {side for column in _PAIRED_SIDES for side in case.group.values(column)}


def _side_is_asked(case: _Case) -> bool:
    """Series that have a side, whose body part is one of a pair, or whose body part does not tell.

    A body part that is not known counts: else it would improve the figure to leave it out.
    """
    if not any(keyword in case.outcomes for keyword in _PAIRED_SIDES):
        return False
    paired = [terminology.is_paired(part) for part in case.group.values("BodyPartExamined")]
    return bool(_sides(case) - {"U"}) or not paired or any(pair is not False for pair in paired)


def _could_tell_side(case: _Case) -> bool:
    sides = _sides(case)
    if not sides:
        return case.sample.get("laterality", "").lower() in SHEET_SIDES
    return len(sides) == 1 and terminology.laterality(next(iter(sides))) is not None


def _why_no_side(case: _Case) -> str | None:
    sides = _sides(case)
    if len(sides) > 1:
        return "images of several sides"
    if "U" in sides:
        return "said to be unpaired"
    if sides:
        return "none of R, L, B"
    paired = [terminology.is_paired(part) for part in case.group.values("BodyPartExamined")]
    return None if True in paired else "undecided: the body part does not tell whether it is paired"


def _is_own_identifier(case: _Case) -> bool:
    if case.rule is not None:
        return case.rule in ("crosswalk", "authority", "patient-id")
    return any(not is_placeholder(value) for value in case.group.values("PatientID"))


def _why_no_identifier(case: _Case) -> str | None:
    ids = case.group.values("PatientID")
    if ids and all(map(is_placeholder, ids)):
        return "PatientID is a placeholder"
    return "PatientID stands for several subjects" if ids else None


def _could_tell_sex(case: _Case) -> bool:
    sexes = case.group.values("PatientSex")
    return case.sex_in_sheet if not sexes else len(sexes) == 1 and sexes[0] in {"M", "F", "O"}


# -- the table --------------------------------------------------------------------------------------------------------

_SITE = ("BodyPartExamined", "AnatomicRegionSequence")
_STUDY = (
    _Element("fhir-started", ("StudyDate",), _has("started"), lambda case: bool(case.group.values("StudyDate"))),
    _Element(
        "fhir-started-time",
        ("StudyDate",),
        lambda resource, _: len(resource.get("started", "")) > 10,
        _has_time,
        _why_no_time,
    ),
    _Element("fhir-accession", ("AccessionNumber",), _accession, _one("AccessionNumber")),
    _Element("fhir-study-description", ("StudyDescription",), _has("description"), _one("StudyDescription")),
)
_SERIES = (
    _Element("fhir-series-description", ("SeriesDescription",), _has("description"), _one("SeriesDescription")),
    _Element(
        "fhir-body-site",
        _SITE,
        _has_site,
        _could_code_site,
        _why_no_site,
        lambda case: any(keyword in case.outcomes for keyword in _SITE),
    ),
    _Element("fhir-laterality", _PAIRED_SIDES, _has("laterality"), _could_tell_side, _why_no_side, _side_is_asked),
)
_PATIENT = (
    _Element(
        "fhir-patient-identifier",
        ("PatientID",),
        lambda _, case: _is_own_identifier(case),
        _is_own_identifier,
        _why_no_identifier,
    ),
    _Element("fhir-patient-birth-date", ("PatientBirthDate",), _has("birthDate"), _one("PatientBirthDate")),
    _Element("fhir-patient-gender", ("PatientSex",), _has("gender"), _could_tell_sex),
)
WATCHED_KEYWORDS: tuple[str, ...] = tuple(
    dict.fromkeys(keyword for element in (*_STUDY, *_SERIES, *_PATIENT) for keyword in element.keywords)
)
