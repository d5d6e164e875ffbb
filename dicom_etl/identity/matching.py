"""Patient matching: the rules that assign each study of a dataset to a patient.

Pure functions of the header values of a whole dataset (one `PatientEvidence` per distinct combination) and of the
settings; the result is one `PatientMatch` per study and unit. The rules, in order:

1. `crosswalk`: an entry of the crosswalk file names the subject's patient.
2. `authority`: PatientID under an authority that the header names (UniversalEntityID and its type), else under the
   authority configured for the dataset; not applied if PatientIdentityRemoved is YES.
3. `patient-id`: PatientID, valid only within its dataset.
4. `subject`: if PatientID is absent, a placeholder, or (by rule 3) shared by several subjects.
5. `study`: if there is no subject either, the study gets a patient for itself.

A study with two PatientIDs or under two subjects is held, unless the crosswalk decides.

Not here: the crosswalk file (`crosswalk`) and the table of the matches (`construction.identities`).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple
from urllib.parse import quote

MATCHING_VERSION = 2  # counts up when a rule changes, so that all datasets are matched again

# PatientIDs that identify nobody, compared whole and without regard to case and punctuation
_PLACEHOLDERS = frozenset(
    """anonymous anonymized anonymised anonym anon deidentified deid removed unknown unk none null na nil noid
    nopatient patient patientid id test testpatient dummy default""".split()
)
# UniversalEntityIDType (HL7 v2 table 0301) -> pattern of such an id, and its URI. An invalid OID would create an
# authority that does not exist.
_URI_OF_TYPE = {
    "ISO": (r"[0-2](\.(0|[1-9][0-9]*))+", "urn:oid:{}"),
    "UUID": (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "urn:uuid:{}"),  # FHIR's uri: in lower case
    "URI": (r"[A-Za-z][A-Za-z0-9+.-]*:\S+", "{}"),
    "DNS": (r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", "http://{}"),
}


class PatientEvidence(NamedTuple):
    """The values that some instances of a study have of the attributes that identify a patient."""

    study_uid: str
    unit: str
    subject: str | None
    patient_id: str | None
    universal_id: str | None
    universal_id_type: str | None
    identity_removed: bool


class _Identifier(NamedTuple):
    rule: str
    system: str
    value: str


@dataclass(frozen=True)
class PatientMatch:
    """The patient of a study in a unit: an identifier (`system`, `value`) and the rule that it comes from.

    `building_unit` is the unit that builds the study (a study decided by the crosswalk may be in several units).
    `reason` is the finding code that explains why the study is held, or why a later rule was applied.
    """

    study_uid: str
    unit: str
    subject: str | None
    system: str
    value: str
    rule: str
    state: str  # ok, held
    building_unit: str
    reason: str | None = None


@dataclass(frozen=True)
class MatchingScope:
    """The settings of a dataset that patient matching depends on."""

    dataset: str
    namespace: str
    authority: str | None
    crosswalk: Mapping[str, tuple[str, str]]  # subject -> system, value

    def local_system(self, kind: str) -> str:
        """The system (a URI) of identifiers of a kind that are valid only within this dataset."""
        return _local_system(self.namespace, self.dataset, kind)


@cache
def _local_system(namespace: str, dataset: str, kind: str) -> str:
    return f"{namespace.rstrip('/')}/{quote(dataset, safe='')}/{kind}"  # a URI has no blanks


def is_placeholder(patient_id: str) -> bool:
    """Whether a PatientID identifies nobody."""
    plain = patient_id.lower()
    if not plain.isalnum():
        plain = "".join([character for character in plain if character.isalnum()])
    return plain in _PLACEHOLDERS or not plain.strip("0x")  # ----, 0000 and XXX among them


@lru_cache(maxsize=1024)
def authority_uri(identifier: str | None, kind: str | None) -> str | None:
    """The URI of an issuer's UniversalEntityID of a type (PS3.3 C.7.1.1); None if it is not valid for its type."""
    pattern, template = _URI_OF_TYPE.get((kind or "").upper(), ("", ""))
    plain = identifier or ""
    if (kind or "").upper() == "UUID":
        plain = plain.lower()
    return template.format(plain) if template and re.fullmatch(pattern, plain) else None


def match_patients(evidence: Iterable[PatientEvidence], scope: MatchingScope) -> list[PatientMatch]:
    """Match each study of a dataset to a patient.

    Args:
        evidence: all of the dataset's.
        scope: its settings.

    Returns:
        One match per study and unit, sorted by study and unit.
    """
    studies: dict[str, list[PatientEvidence]] = defaultdict(list)
    for item in evidence:
        studies[item.study_uid].append(item)
    identifiers = {uid: _identify_patient(items, scope) for uid, items in studies.items()}
    subjects_of_id = _subjects_of_local_ids(studies, identifiers)
    return [
        match
        for uid in sorted(studies)
        for match in _match_study(uid, studies[uid], identifiers[uid], scope, subjects_of_id)
    ]


def _identify_patient(evidence: list[PatientEvidence], scope: MatchingScope) -> _Identifier | None:
    """The identifier that the PatientID of a study gives by rules 2 and 3."""
    with_id = [item for item in evidence if item.patient_id]
    if not with_id or is_placeholder(with_id[0].patient_id or ""):
        return None
    value = with_id[0].patient_id or ""
    if not any(item.identity_removed for item in evidence):
        systems = {system for item in with_id if (system := authority_uri(item.universal_id, item.universal_id_type))}
        # the authority that the header names takes precedence over the default of the dataset
        system = min(systems) if systems else scope.authority
        if system:
            return _Identifier("authority", system, value)
    return _Identifier("patient-id", scope.local_system("patient-id"), value)


def _subjects_of_local_ids(
    studies: Mapping[str, list[PatientEvidence]], identifiers: Mapping[str, _Identifier | None]
) -> dict[str, set[str | None]]:
    """PatientID of rule 3 -> the subjects in which it occurs; with more than one it identifies nobody."""
    subjects: dict[str, set[str | None]] = defaultdict(set)
    for uid, identifier in identifiers.items():
        if identifier and identifier.rule == "patient-id":
            subjects[identifier.value].update([item.subject for item in studies[uid]])
    return subjects


def _match_study(
    uid: str,
    evidence: list[PatientEvidence],
    identifier: _Identifier | None,
    scope: MatchingScope,
    subjects_of_id: Mapping[str, set[str | None]],
) -> list[PatientMatch]:
    locations = sorted({(item.unit, item.subject) for item in evidence}, key=lambda pair: (pair[0], pair[1] or ""))
    first_unit = locations[0][0]
    subjects = {subject for _, subject in locations}
    crosswalk_entries = {scope.crosswalk.get(subject or "") for subject in subjects}
    patient_ids = {item.patient_id for item in evidence if item.patient_id}
    state, reason = "ok", None
    if len(crosswalk_entries) == 1 and (decided := next(iter(crosswalk_entries))):
        match = _Identifier("crosswalk", *decided)
    elif len(subjects) > 1:
        match = _Identifier("subject", scope.local_system("subject"), "")
        state, reason = "held", "study-two-subjects"
    elif len(patient_ids) > 1:
        match = _Identifier("patient-id", scope.local_system("patient-id"), "")
        state, reason = "held", "study-two-patients"
    else:
        match, reason = _match_single(uid, evidence, identifier, scope, subjects_of_id)
    return [
        PatientMatch(
            uid,
            unit,
            subject,
            match.system,
            match.value,
            match.rule,
            state,
            building_unit=first_unit if state == "ok" else unit,
            reason=reason,
        )
        for unit, subject in locations
    ]


def _match_single(
    uid: str,
    evidence: list[PatientEvidence],
    identifier: _Identifier | None,
    scope: MatchingScope,
    subjects_of_id: Mapping[str, set[str | None]],
) -> tuple[_Identifier, str | None]:
    """The identifier and the reason for a study of one subject with at most one PatientID."""
    subject = evidence[0].subject
    if identifier and (identifier.rule == "authority" or len(subjects_of_id[identifier.value]) == 1):
        is_incomplete = len({bool(item.patient_id) for item in evidence}) > 1
        return identifier, "patient-id-incomplete" if is_incomplete else None
    if identifier:
        reason: str | None = "patient-id-shared"
    else:
        reason = "patient-id-placeholder" if any(item.patient_id for item in evidence) else None
    if subject:
        return _Identifier("subject", scope.local_system("subject"), subject), reason
    return _Identifier("study", scope.local_system("study"), uid), "patient-unresolved"
