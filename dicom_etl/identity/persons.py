"""Whose a study is: the rules by which a study gets its person, over a whole dataset.

Pure: from what the headers of a dataset say (one `Claim` per distinct combination) and the settings, to one `Person`
per study. Rules, in order:

1. `crosswalk`: a line of the crosswalk file names the subject's person.
2. `authority`: PatientID under an authority that the header names (UniversalEntityID and its type), else under the
   authority configured for the dataset; unless PatientIdentityRemoved is YES.
3. `patient-id`: PatientID within its dataset alone.
4. `subject`: where PatientID is absent, a placeholder, or (by rule 3) shared by several subjects.
5. `study`: where there is no subject either, a person of its own.

A study with two PatientIDs or under two subjects is held, unless the crosswalk decides.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import NamedTuple
from urllib.parse import quote

PERSONS_VERSION = 2

# PatientIDs that say "nobody", whole and without regard to case and punctuation
_PLACEHOLDERS = frozenset(
    """anonymous anonymized anonymised anonym anon deidentified deid removed unknown unk none null na nil noid
    nopatient patient patientid id test testpatient dummy default""".split()
)
# UniversalEntityIDType (HL7 v2 table 0301) -> what such an id must look like, and its URI. An OID that is none would
# make an authority that is nobody's.
_URI_OF_TYPE = {
    "ISO": (r"[0-2](\.(0|[1-9][0-9]*))+", "urn:oid:{}"),
    "UUID": (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "urn:uuid:{}"),  # FHIR's uri: in lower case
    "URI": (r"[A-Za-z][A-Za-z0-9+.-]*:\S+", "{}"),
    "DNS": (r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", "http://{}"),
}


class Claim(NamedTuple):
    """What some instances of a study say of their patient."""

    study_uid: str
    unit: str
    subject: str | None
    patient_id: str | None
    universal_id: str | None
    universal_id_type: str | None
    identity_removed: bool


Identifier = tuple[str, str, str]  # rule, system, value


class CrosswalkLine(NamedTuple):
    """A line of the crosswalk: whose a subject is."""

    dataset: str
    subject: str
    system: str
    value: str


@dataclass(frozen=True)
class Person:
    """The person of a study in a unit.

    `owner` is the unit that builds the study (a study decided by crosswalk may lie in several). `reason` is the code
    of the finding that tells why it is held, or why a later rule was needed.
    """

    study_uid: str
    unit: str
    subject: str | None
    system: str
    value: str
    rule: str
    state: str  # ok, held
    owner: str
    reason: str | None = None

    @property
    def shared(self) -> bool:
        """Whether other datasets can have the same person."""
        return self.rule in ("crosswalk", "authority")


@dataclass(frozen=True)
class Scope:
    """What the settings say of a dataset's persons."""

    dataset: str
    namespace: str
    authority: str | None
    crosswalk: Mapping[str, tuple[str, str]]  # subject -> system, value

    def system(self, of: str) -> str:
        """The system of identifiers that mean something in this dataset alone."""
        return _local_system(self.namespace, self.dataset, of)


@cache
def _local_system(namespace: str, dataset: str, of: str) -> str:
    return f"{namespace.rstrip('/')}/{quote(dataset, safe='')}/{of}"  # a URI holds no blanks


def is_placeholder(patient_id: str) -> bool:
    """Whether a PatientID names nobody."""
    plain = patient_id.lower()
    if not plain.isalnum():
        plain = "".join([character for character in plain if character.isalnum()])
    return plain in _PLACEHOLDERS or not plain.strip("0x")  # ----, 0000 and XXX among them


@lru_cache(maxsize=1024)
def universal_system(identifier: str | None, kind: str | None) -> str | None:
    """The URI of an issuer's UniversalEntityID (PS3.3 C.7.1.1); None where it is none of its type."""
    pattern, template = _URI_OF_TYPE.get((kind or "").upper(), ("", ""))
    plain = identifier or ""
    if (kind or "").upper() == "UUID":
        plain = plain.lower()
    return template.format(plain) if template and re.fullmatch(pattern, plain) else None


def persons(claims: Iterable[Claim], scope: Scope) -> list[Person]:
    """One person per study and unit, sorted by study and unit."""
    studies: dict[str, list[Claim]] = defaultdict(list)
    for claim in claims:
        studies[claim.study_uid].append(claim)
    identifiers = {uid: _identifier(of_study, scope) for uid, of_study in studies.items()}
    local = _subjects_of_local_ids(studies, identifiers)
    return [
        person for uid in sorted(studies) for person in _of_study(uid, studies[uid], identifiers[uid], scope, local)
    ]


def _identifier(claims: list[Claim], scope: Scope) -> Identifier | None:
    """The identifier that a PatientID gives by rules 2 and 3."""
    named = [claim for claim in claims if claim.patient_id]
    if not named or is_placeholder(named[0].patient_id or ""):
        return None
    value = named[0].patient_id or ""
    if not any(claim.identity_removed for claim in claims):
        systems = {s for c in named if (s := universal_system(c.universal_id, c.universal_id_type))}
        # the header's own words about its id weigh more than what the dataset has by default
        system = min(systems) if systems else scope.authority
        if system:
            return "authority", system, value
    return "patient-id", scope.system("patient-id"), value


def _subjects_of_local_ids(
    studies: Mapping[str, list[Claim]], identifiers: Mapping[str, Identifier | None]
) -> dict[str, set[str | None]]:
    """The subjects in which each PatientID of rule 3 occurs; more than one means that it is nobody's."""
    subjects: dict[str, set[str | None]] = defaultdict(set)
    for uid, identifier in identifiers.items():
        if identifier and identifier[0] == "patient-id":
            subjects[identifier[2]].update([claim.subject for claim in studies[uid]])
    return subjects


def _of_study(
    uid: str, claims: list[Claim], identifier: Identifier | None, scope: Scope, local: Mapping[str, set[str | None]]
) -> list[Person]:
    places = sorted({(claim.unit, claim.subject) for claim in claims}, key=lambda p: (p[0], p[1] or ""))
    owner = places[0][0]
    subjects = {subject for _, subject in places}
    mapped = {scope.crosswalk.get(subject or "") for subject in subjects}
    ids = {claim.patient_id for claim in claims if claim.patient_id}
    state, reason = "ok", None
    if len(mapped) == 1 and (decided := next(iter(mapped))):
        rule, (system, value) = "crosswalk", decided
    elif len(subjects) > 1:
        rule, system, value = "subject", scope.system("subject"), ""
        state, reason = "held", "study-two-subjects"
    elif len(ids) > 1:
        rule, system, value = "patient-id", scope.system("patient-id"), ""
        state, reason = "held", "study-two-patients"
    else:
        rule, system, value, reason = _single(uid, claims, identifier, scope, local)
    return [
        Person(uid, unit, subject, system, value, rule, state, owner if state == "ok" else unit, reason)
        for unit, subject in places
    ]


def _single(
    uid: str, claims: list[Claim], identifier: Identifier | None, scope: Scope, local: Mapping[str, set[str | None]]
) -> tuple[str, str, str, str | None]:
    """(rule, system, value, reason) of a study of one subject with at most one PatientID."""
    subject = claims[0].subject
    gaps = "patient-id-incomplete" if len({bool(claim.patient_id) for claim in claims}) > 1 else None
    if identifier and (identifier[0] == "authority" or len(local[identifier[2]]) == 1):
        return *identifier, gaps
    if identifier:
        reason: str | None = "patient-id-shared"
    else:
        reason = "patient-id-placeholder" if any(claim.patient_id for claim in claims) else None
    if subject:
        return "subject", scope.system("subject"), subject, reason
    return "study", scope.system("study"), uid, "patient-unresolved"
