"""Patients: one of what several datasets say, matched with what the server has, and merged with it.

A Patient whose identifier means the same everywhere may be on the server already, under an id of another client: then
that one is used, and not copied. A Patient that the server merged into another is followed to the one that survives; a
study never goes to one that is inactive or deleted. Merging only adds: what others said stays. `decide_patient` and
`merge_patient` are pure; `look_up_patients` only asks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import orjson

from dicom_etl.fhir_client import FhirClient, ServerResource, escape_token
from dicom_etl.upload.items import (
    Action,
    Decision,
    IdStrategy,
    Resource,
    UploadItem,
    as_list,
    encode_canonical,
    identifiers,
    is_same_content,
    strip_server_elements,
)
from dicom_etl.upload.ledger import Attempt, Key, ResourceRow
from dicom_etl.upload.lookup import find_by_search, read_by_id

# elements of which a resource may have one form alone (FHIR R4, 2.1.0.6: choice of data types)
_CHOICES = ("deceased", "multipleBirth")
_EMPTY: tuple[Any, ...] = (None, [], {}, "")  # FHIR R4, 2.6.0.3: no element is empty
_SAYS_NOTHING = {"gender": "unknown"}
_IDENTIFIERS_AT_ONCE = 10  # in one search
_PAGE = 50
_LINKS = 5  # merges that are followed one after the other
_PATIENT_REFERENCE = re.compile(r"Patient/([A-Za-z0-9.-]{1,64})(?:/_history/[^/]+)?")


# -- merging ----------------------------------------------------------------------------------------------------------


class Contribution(NamedTuple):
    """What one dataset, or unit, says of a Patient."""

    by: str
    patient: Mapping[str, Any]


class Conflict(NamedTuple):
    """An element of which contributors say different things; `by` is empty where the server does."""

    element: str
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class MergedPatient:
    """A Patient as it should be on the server, what we say of it, and what could not be agreed on."""

    patient: Resource
    contribution: Resource
    conflicts: tuple[Conflict, ...] = ()


class _Value(NamedTuple):
    by: str
    element: str  # as written: deceasedBoolean
    value: Any


def merge_patient(
    base: Sequence[Mapping[str, Any]],
    contributions: Sequence[Contribution],
    server: Mapping[str, Any] | None,
    replaced: Mapping[str, Any] | None = None,
) -> MergedPatient:
    """One Patient of all contributions and of what the server has, whatever the order in which they came.

    Lists are united and sorted. Of different single values, the one that we said last counts as long as somebody still
    says it, else that of the first contributor by name. What another client added on the server stays; what we said
    before and no longer say goes; where both say different things, the server's value stays, as a conflict.

    Args:
        base: what we said before: as stored last, then what was sent since and may have arrived. Empty: not known, and
            nothing of the server's is changed.
        contributions: of all datasets or units; at least one.
        server: the server's Patient; None where it has none.
        replaced: a version of another client that a write of ours replaced.
    """
    ours, conflicts = _merge_contributions(contributions, base[0] if base else None)
    if server is None:
        return MergedPatient(ours, ours, conflicts)
    patient, with_server = _merge_with_server(ours, base, server)
    if replaced is not None:
        patient, with_replaced = _merge_with_server(strip_server_elements(replaced), (), patient)
        with_server = (*with_server, *with_replaced)
    elements = dict.fromkeys(with_server)
    return MergedPatient(patient, ours, (*conflicts, *(Conflict(element) for element in elements)))


def is_same_date(one: str, other: str) -> bool:
    """Whether two FHIR dates may be the same day: 1980 and 1980-05-01 may."""
    return one.startswith(other) or other.startswith(one)


def _merge_contributions(
    contributions: Sequence[Contribution], stored: Mapping[str, Any] | None
) -> tuple[Resource, tuple[Conflict, ...]]:
    patient: Resource = {}
    conflicts = []
    for name, values in sorted(_by_element(contributions).items()):
        if isinstance(values[0].value, list):
            items = {encode_canonical(item): item for one in values for item in one.value}
            patient[name] = [items[text] for text in sorted(items)]
            continue
        different = _different(values)
        if len(different) > 1:
            conflicts.append(Conflict(name, tuple(sorted({one.by for one in values}))))
        last = (one for one in different if stored is not None and stored.get(one.element) == one.value)
        chosen = next(last, different[0])
        patient[chosen.element] = chosen.value
    return patient, tuple(conflicts)


def _by_element(contributions: Sequence[Contribution]) -> dict[str, list[_Value]]:
    """The values of each element, in the order of the contributors' names (and then of the content)."""
    values: dict[str, list[_Value]] = {}
    for by, patient in sorted(contributions, key=lambda one: (one.by, encode_canonical(one.patient))):
        for element, value in patient.items():
            name = next((choice for choice in _CHOICES if element.startswith(choice)), element)
            if _SAYS_NOTHING.get(name) != value:
                values.setdefault(name, []).append(_Value(by, element, value))
    for by, patient in contributions:
        for name, nothing in _SAYS_NOTHING.items():
            if patient.get(name) == nothing and name not in values:
                values[name] = [_Value(by, name, nothing)]
    return values


def _different(values: Sequence[_Value]) -> list[_Value]:
    """The different values, first by name first; a date that is part of a more precise one does not count."""
    first: dict[bytes, _Value] = {}
    for one in values:
        first.setdefault(encode_canonical([one.element, one.value]), one)
    different = list(first.values())
    if different[0].element != "birthDate":
        return different
    return [
        one
        for one in different
        if not any(other.value != one.value and str(other.value).startswith(one.value) for other in different)
    ]


def _merge_with_server(
    ours: Resource, base: Sequence[Mapping[str, Any]], server: Mapping[str, Any]
) -> tuple[Resource, tuple[str, ...]]:
    """Our Patient with what the server has, and the elements of which both say different things."""
    merged: Resource = {}
    conflicts = []
    theirs = {name: value for name, value in strip_server_elements(server).items() if value not in _EMPTY}
    for name in dict.fromkeys([*ours, *theirs]):
        mine, there = ours.get(name), theirs.get(name)
        before = [one[name] for one in base if name in one]
        if name in ("id", "resourceType"):
            merged[name] = there or mine
        elif _has_other_form(name, base, theirs):
            conflicts.append(name)
        elif isinstance(mine if mine is not None else there, list):
            merged[name] = _unite(mine or [], [item for one in before for item in one], as_list(there))
        elif name == "meta":
            merged[name] = _unite_labels(mine or {}, there or {})
        elif mine is None or there is None:
            merged[name] = mine if there is None else None if there in before else there
        elif mine == there or there in before:
            merged[name] = mine
        elif name == "birthDate" and is_same_date(str(mine), str(there)):
            merged[name] = max(str(mine), str(there), key=len)  # the more precise
        else:
            merged[name] = there
            conflicts.append(name)
    return {name: value for name, value in merged.items() if value not in _EMPTY}, tuple(conflicts)


def _has_other_form(name: str, base: Sequence[Mapping[str, Any]], theirs: Mapping[str, Any]) -> bool:
    """Whether the server has an element in another form, which it may not have beside this one, and not from us."""
    choice = next((choice for choice in _CHOICES if name.startswith(choice)), None)
    if choice is None or name in theirs:
        return False
    others = [(other, value) for other, value in theirs.items() if other.startswith(choice)]
    return any(all(one.get(other) != value for one in base) for other, value in others)


def _unite(mine: Sequence[Any], before: Sequence[Any], there: Sequence[Any]) -> list[Any]:
    """Our items and the server's; those that we said before and no longer say go.

    In the server's order where it has them all, else in one that does not depend on who came first.
    """
    withdrawn = set(map(encode_canonical, before)) - set(map(encode_canonical, mine))
    kept = {encode_canonical(item): item for item in (*there, *mine) if encode_canonical(item) not in withdrawn}
    has_all = len(kept) == len(there) and all(encode_canonical(item) in kept for item in there)
    return list(kept.values()) if has_all else [kept[key] for key in sorted(kept)]


def _unite_labels(mine: Mapping[str, Any], there: Mapping[str, Any]) -> Resource:
    """meta: its lists are united."""
    labels = dict(there)
    for name, items in mine.items():
        labels[name] = _unite(items, [], as_list(labels.get(name))) if isinstance(items, list) else items
    return labels


# -- what the server has ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PatientOnServer:
    """What the server has for one of our Patients.

    `own` is under our id, or under that of the other client's Patient that is used; `is_gone` says that the server had
    it and has it no longer; `candidates` are other Patients of its identifier that are alive, None where they were not
    asked for; `survivor` is the one into which it was merged. `is_inactive`: the server says that it is not in use, and
    not what takes its place. `replaced` is a version of another client that a write of ours replaced.
    """

    own: ServerResource | None = None
    is_gone: bool = False
    candidates: tuple[Resource, ...] | None = None
    survivor: ServerResource | None = None
    is_inactive: bool = False
    replaced: Resource | None = None


async def look_up_patients(
    client: FhirClient,
    items: Sequence[UploadItem],
    rows: Mapping[Key, ResourceRow],
    attempts: Mapping[Key, Sequence[Attempt]],
    strategy: IdStrategy,
    shared: Mapping[Key, tuple[str, str]],
) -> dict[Key, PatientOnServer]:
    """Ask the server for Patients: by id where the ledger knows them, else by identifier or id in a search.

    Args:
        client: asks.
        items: Patients of ours.
        rows: of the ledger.
        attempts: open ones.
        strategy: of ids.
        shared: system and value of those whose identifiers mean the same everywhere.

    Raises:
        FhirError: the server could not be asked.
    """
    own = await read_by_id(client, items, rows, attempts, strategy)
    seen = {}
    for key, server in own.items():
        row = rows.get(key)
        is_gone = server is None and row is not None and row.is_on_server
        seen[key] = PatientOnServer(is_gone=True) if is_gone else await _follow(client, server)
    unknown = [one for one in items if one.key not in own]
    lost = {one.key for one in items if one.key in own and seen[one.key].is_gone and one.key in shared}
    to_match = [one for one in items if one.key in lost or (one.key not in own and one.key in shared)]
    found = await find_patients(client, sorted({shared[one.key] for one in to_match}))
    for one in to_match:
        match = await _match(client, one, found[shared[one.key]], strategy)
        # what a read by id did not find is gone, also where an index still has it
        seen[one.key] = replace(match, own=None, is_gone=True) if one.key in lost else match
    own_only = [one for one in unknown if one.key not in shared]
    places = await find_by_search(client, own_only, strategy)
    return seen | {one.key: await _follow(client, places.get(one.key)) for one in own_only}


async def _follow(client: FhirClient, own: ServerResource | None) -> PatientOnServer:
    """A Patient with the one that it was merged into (FHIR R4, Patient.link of type replaced-by)."""
    if own is None:
        return PatientOnServer()
    current: ServerResource | None = own
    for _ in range(_LINKS):
        if current is None:
            return PatientOnServer(own, is_inactive=True)
        replacement = _replacement(current.resource, client.url)
        if replacement is None:
            is_inactive = current.resource.get("active") is False
            survivor = current if current.id != own.id and not is_inactive else None
            return PatientOnServer(own, survivor=survivor, is_inactive=is_inactive)
        current = await client.read("Patient", replacement) if replacement else None
    return PatientOnServer(own, is_inactive=True)


def _replacement(patient: Mapping[str, Any], url: str) -> str | None:
    """The id of the Patient that replaces one; None where none does, empty where it is not one of this server."""
    for link in as_list(patient.get("link")):
        if isinstance(link, dict) and link.get("type") == "replaced-by":
            other = link.get("other")
            reference = str(other.get("reference", "")) if isinstance(other, dict) else ""
            match = _PATIENT_REFERENCE.fullmatch(reference.removeprefix(f"{url}/"))
            return match[1] if match else ""
    return None


async def find_patients(client: FhirClient, wanted: Sequence[tuple[str, str]]) -> dict[tuple[str, str], list[Resource]]:
    """The server's Patients of each identifier (system, value), whatever their state.

    Raises:
        FhirError: the search failed.
    """
    found: dict[tuple[str, str], list[Resource]] = {identifier: [] for identifier in wanted}
    for start in range(0, len(wanted), _IDENTIFIERS_AT_ONCE):
        some = wanted[start : start + _IDENTIFIERS_AT_ONCE]
        tokens = ",".join(f"{escape_token(system)}|{escape_token(value)}" for system, value in some)
        # in the body: what a person is known by has no place in URLs, which servers log
        for patient in await client.search("Patient", {"identifier": tokens, "_count": str(_PAGE)}, in_body=True):
            # servers may ignore case, or a parameter that they do not know
            has = [(one.get("system"), one.get("value")) for one in identifiers(patient)]
            for identifier in some:
                if identifier in has:
                    found[identifier].append(patient)
    return found


async def _match(
    client: FhirClient, item: UploadItem, found: Sequence[Resource], strategy: IdStrategy
) -> PatientOnServer:
    """Ours and others among the Patients of an identifier; those that were merged are followed."""
    own = next((one for one in found if strategy.is_ours(one, item.id)), None)
    if own is not None:
        seen = await _follow(client, ServerResource(own))
        if seen.survivor or seen.is_inactive:
            return seen
    others: dict[str, Resource] = {}
    is_inactive = False
    for patient in found:
        if patient is own:
            continue
        other = await _follow(client, ServerResource(patient))
        is_inactive |= other.is_inactive
        alive = other.survivor.resource if other.survivor else patient
        if not other.is_inactive and not strategy.is_ours(alive, item.id):
            others[str(alive["id"])] = alive
    candidates = tuple(others[identity] for identity in sorted(others))
    if own is not None:
        return PatientOnServer(ServerResource(own), candidates=candidates)
    return PatientOnServer(candidates=candidates, is_inactive=is_inactive and not candidates)


# -- decisions --------------------------------------------------------------------------------------------------------


def decide_patient(  # noqa: PLR0911 - one line per case
    item: UploadItem, seen: PatientOnServer, row: ResourceRow | None, attempts: Sequence[Attempt], strategy: IdStrategy
) -> Decision:
    """What is done with a Patient of ours, from what the server has."""
    if seen.survivor is not None:
        text = f"Patient/{seen.own.id if seen.own else ''} was merged into Patient/{seen.survivor.id}, which is used"
        return Decision(Action.USE_EXTERNAL, "patient-merged-on-server", text, server=seen.survivor, is_external=True)
    if seen.is_inactive:
        text = "the server says that it is not in use, and not which Patient takes its place"
        return Decision(Action.HOLD, "patient-inactive-on-server", text)
    is_external = row is not None and row.is_external
    if seen.own is not None and is_external:
        return _use_external(item, seen.own)
    candidates = seen.candidates or ()
    if seen.own is None and candidates:
        if len(candidates) > 1:
            return Decision(Action.HOLD, "patient-ambiguous", _list(candidates))
        return _use_external(item, ServerResource(candidates[0]))
    if seen.is_gone:
        text = "another client deleted it on the server; `dicom-etl verify --repair` uploads ours"
        return Decision(Action.HOLD, "patient-deleted-on-server", text)
    return _merge(item, seen, row, attempts, strategy)


def _use_external(item: UploadItem, other: ServerResource) -> Decision:
    if elements := find_conflicting_elements(item.resource, other.resource):
        verb = "differs" if len(elements) == 1 else "differ"
        text = f"{' and '.join(elements)} of Patient/{other.id} {verb} from ours"
        return Decision(Action.HOLD, "patient-conflict", text)
    return Decision(Action.USE_EXTERNAL, server=other, is_external=True)


def _merge(
    item: UploadItem, seen: PatientOnServer, row: ResourceRow | None, attempts: Sequence[Attempt], strategy: IdStrategy
) -> Decision:
    base = [orjson.loads(text) for text in list_contributions(row, attempts)]
    server = strategy.as_produced(seen.own.resource, item.id) if seen.own else None
    merged = merge_patient(base, [Contribution("", item.resource)], server, seen.replaced)
    reason, text = item.reason, item.reason_text
    if merged.conflicts:
        elements = " and ".join(conflict.element for conflict in merged.conflicts)
        words = "differs on the server, whose value stays"
        if len(merged.conflicts) > 1:
            words = "differ on the server, whose values stay"
        reason, text = "patient-conflict", f"{elements} {words}"
    elif seen.candidates:
        reason, text = "duplicate-patient-on-server", _list(seen.candidates)
    if server is not None and is_same_content(server, merged.patient):
        return Decision(Action.UNCHANGED, reason, text, server=seen.own)
    return Decision(Action.SEND, reason, text, resource=merged.patient, server=seen.own)


def list_contributions(row: ResourceRow | None, attempts: Sequence[Attempt]) -> list[str]:
    """What we said of a Patient before, as JSON: what was stored last, then what was sent since."""
    stored = [row.contribution] if row is not None and row.is_ours and row.contribution else []
    return stored + [one.contribution for one in attempts if one.contribution]


def find_conflicting_elements(ours: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The elements that show two Patients to be two persons: birthDate and gender, where both say it."""
    conflicts = []
    births = ours.get("birthDate"), other.get("birthDate")
    if all(births) and not is_same_date(str(births[0]), str(births[1])):
        conflicts.append("birthDate")
    genders = {str(one.get("gender")) for one in (ours, other)} - {"None", "unknown"}
    if len(genders) > 1:
        conflicts.append("gender")
    return conflicts


def _list(patients: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"Patient/{patient['id']}" for patient in patients)
