"""Patients: merged from what all datasets have, matched with the server's, and merged with those.

A Patient whose identifier means the same everywhere may be on the server already, under an id of another client: then
that one is used, and no copy is made. A Patient that the server merged into another is followed to the surviving one; a
study never refers to one that is inactive or deleted. Merging only adds: values of other clients stay.
`decide_patient` and `merge_patient` are pure; `look_up_patients` only reads.
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
    get_identifiers,
    is_same_content,
    strip_server_elements,
)
from dicom_etl.upload.ledger import Attempt, Key, ResourceRow
from dicom_etl.upload.lookup import find_by_search, read_by_id

# elements of which a resource may have only one data type (FHIR R4, 2.1.0.6: choice of data types)
_CHOICES = ("deceased", "multipleBirth")
_EMPTY: tuple[Any, ...] = (None, [], {}, "")  # FHIR R4, 2.6.0.3: no element is empty
_UNKNOWN_VALUES = {"gender": "unknown"}
_IDENTIFIERS_AT_ONCE = 10  # in one search
_PAGE = 50
_MAX_LINKS = 5  # merges that are followed one after the other
_PATIENT_REFERENCE = re.compile(r"Patient/([A-Za-z0-9.-]{1,64})(?:/_history/[^/]+)?")


# -- merging ----------------------------------------------------------------------------------------------------------


class Contribution(NamedTuple):
    """A Patient as one dataset, or one unit, has it; `source` is its name."""

    source: str
    patient: Mapping[str, Any]


class Conflict(NamedTuple):
    """An element with different values; `sources` have one of them each, and is empty where the server differs."""

    element: str
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class MergedPatient:
    """A Patient as it should be on the server, what this lake contributes to it, and the conflicts."""

    patient: Resource
    contribution: Resource
    conflicts: tuple[Conflict, ...] = ()


class _Value(NamedTuple):
    source: str
    element: str  # as written: deceasedBoolean
    value: Any


def merge_patient(
    base: Sequence[Mapping[str, Any]],
    contributions: Sequence[Contribution],
    server: Mapping[str, Any] | None,
    replaced: Mapping[str, Any] | None = None,
) -> MergedPatient:
    """Merge all contributions to a Patient with what the server has, independently of the order in which they came.

    Lists are united and sorted. Of different single values, the one that was sent last is kept as long as any source
    has it, else that of the first source by name. Values that another client added on the server stay; values that this
    lake sent before and no longer has are removed. Where the lake and the server differ, the server's value stays, as a
    conflict.

    Args:
        base: what this lake sent before: what was stored last, then what was sent since and may have arrived. Empty:
            not known, and no value of the server is changed.
        contributions: of all datasets or units; at least one.
        server: the server's Patient; None where it has none.
        replaced: a version of another client that a write of this lake replaced.
    """
    contribution, conflicts = _merge_contributions(contributions, base[0] if base else None)
    if server is None:
        return MergedPatient(contribution, contribution, conflicts)
    patient, server_conflicts = _merge_with_server(contribution, base, server)
    if replaced is not None:
        patient, replaced_conflicts = _merge_with_server(strip_server_elements(replaced), (), patient)
        server_conflicts = (*server_conflicts, *replaced_conflicts)
    elements = dict.fromkeys(server_conflicts)
    return MergedPatient(patient, contribution, (*conflicts, *(Conflict(element) for element in elements)))


def is_same_date(date: str, other: str) -> bool:
    """Whether two FHIR dates may be the same day: 1980 and 1980-05-01 may."""
    return date.startswith(other) or other.startswith(date)


def _merge_contributions(
    contributions: Sequence[Contribution], stored: Mapping[str, Any] | None
) -> tuple[Resource, tuple[Conflict, ...]]:
    patient: Resource = {}
    conflicts = []
    for name, values in sorted(_group_by_element(contributions).items()):
        if isinstance(values[0].value, list):
            items = {encode_canonical(item): item for value in values for item in value.value}
            patient[name] = [items[text] for text in sorted(items)]
            continue
        different = _find_different(values)
        if len(different) > 1:
            conflicts.append(Conflict(name, tuple(sorted({value.source for value in values}))))
        sent_last = (value for value in different if stored is not None and stored.get(value.element) == value.value)
        chosen = next(sent_last, different[0])
        patient[chosen.element] = chosen.value
    return patient, tuple(conflicts)


def _group_by_element(contributions: Sequence[Contribution]) -> dict[str, list[_Value]]:
    """Group values by element, in the order of the sources' names (and then of the content)."""
    values: dict[str, list[_Value]] = {}
    ordered = sorted(
        contributions, key=lambda contribution: (contribution.source, encode_canonical(contribution.patient))
    )
    for source, patient in ordered:
        for element, value in patient.items():
            name = next((choice for choice in _CHOICES if element.startswith(choice)), element)
            if _UNKNOWN_VALUES.get(name) != value:
                values.setdefault(name, []).append(_Value(source, element, value))
    for source, patient in contributions:
        for name, unknown in _UNKNOWN_VALUES.items():
            if patient.get(name) == unknown and name not in values:
                values[name] = [_Value(source, name, unknown)]
    return values


def _find_different(values: Sequence[_Value]) -> list[_Value]:
    """List the different values of an element, without dates that are part of a more precise one."""
    first: dict[bytes, _Value] = {}
    for value in values:
        first.setdefault(encode_canonical([value.element, value.value]), value)
    different = list(first.values())
    if different[0].element != "birthDate":
        return different
    return [
        value
        for value in different
        if not any(other.value != value.value and str(other.value).startswith(value.value) for other in different)
    ]


def _merge_with_server(
    contribution: Resource, base: Sequence[Mapping[str, Any]], server: Mapping[str, Any]
) -> tuple[Resource, tuple[str, ...]]:
    """Merge a contribution into the server's Patient; also returns the elements in which they differ."""
    merged: Resource = {}
    conflicts = []
    on_server = {name: value for name, value in strip_server_elements(server).items() if value not in _EMPTY}
    for name in dict.fromkeys([*contribution, *on_server]):
        value, server_value = contribution.get(name), on_server.get(name)
        sent_before = [patient[name] for patient in base if name in patient]
        if name in ("id", "resourceType"):
            merged[name] = server_value or value
        elif _has_other_form(name, base, on_server):
            conflicts.append(name)
        elif isinstance(value if value is not None else server_value, list):
            merged[name] = _unite(value or [], [item for items in sent_before for item in items], as_list(server_value))
        elif name == "meta":
            merged[name] = _unite_labels(value or {}, server_value or {})
        elif value is None:  # the server alone has it: another client added it, or this lake no longer has it
            merged[name] = None if server_value in sent_before else server_value
        elif server_value is None or value == server_value or server_value in sent_before:
            merged[name] = value
        elif name == "birthDate" and is_same_date(str(value), str(server_value)):
            merged[name] = max(str(value), str(server_value), key=len)  # the more precise
        else:
            merged[name] = server_value
            conflicts.append(name)
    return {name: value for name, value in merged.items() if value not in _EMPTY}, tuple(conflicts)


def _has_other_form(name: str, base: Sequence[Mapping[str, Any]], on_server: Mapping[str, Any]) -> bool:
    """Whether another client has set an element on the server in another data type, which excludes this one."""
    choice = next((choice for choice in _CHOICES if name.startswith(choice)), None)
    if choice is None or name in on_server:
        return False
    others = [(other, value) for other, value in on_server.items() if other.startswith(choice)]
    return any(all(patient.get(other) != value for patient in base) for other, value in others)


def _unite(items: Sequence[Any], sent_before: Sequence[Any], server_items: Sequence[Any]) -> list[Any]:
    """Unite the lake's and the server's items, without those that the lake sent before and no longer has.

    In the server's order where it has them all, else in one that does not depend on who came first.
    """
    removed = set(map(encode_canonical, sent_before)) - set(map(encode_canonical, items))
    kept = {encode_canonical(item): item for item in (*server_items, *items) if encode_canonical(item) not in removed}
    has_all = len(kept) == len(server_items) and all(encode_canonical(item) in kept for item in server_items)
    return list(kept.values()) if has_all else [kept[key] for key in sorted(kept)]


def _unite_labels(labels: Mapping[str, Any], server_labels: Mapping[str, Any]) -> Resource:
    """Unite the lists of two meta elements."""
    united = dict(server_labels)
    for name, items in labels.items():
        united[name] = _unite(items, [], as_list(united.get(name))) if isinstance(items, list) else items
    return united


# -- what the server has ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PatientOnServer:
    """The server's counterparts of a Patient of this lake.

    Attributes:
        current: the Patient under the lake's id, or that of another client which is used instead.
        is_deleted: the server had it, and no longer does.
        candidates: other active Patients with its identifier; None where they were not searched for.
        survivor: the Patient into which it was merged.
        is_inactive: the server has it as not in use, without a replacement.
        replaced: a version of another client that a write of this lake replaced.
    """

    current: ServerResource | None = None
    is_deleted: bool = False
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
    """Look up Patients on the server: by id where the ledger has it, else by a search for identifier or id.

    Args:
        client: the client of the server.
        items: Patients of this lake.
        rows: their rows in the ledger.
        attempts: their open attempts.
        strategy: client-assigned or server-assigned ids.
        shared: system and value of those whose identifiers mean the same everywhere.

    Raises:
        FhirError: the server could not be asked.
    """
    read = await read_by_id(client, items, rows, attempts, strategy)
    results = {}
    for key, server in read.items():
        row = rows.get(key)
        is_deleted = server is None and row is not None and row.is_on_server
        results[key] = PatientOnServer(is_deleted=True) if is_deleted else await _follow_links(client, server)
    deleted = {item.key for item in items if item.key in read and results[item.key].is_deleted and item.key in shared}
    to_match = [item for item in items if item.key in deleted or (item.key not in read and item.key in shared)]
    matches = await find_patients(client, sorted({shared[item.key] for item in to_match}))
    for item in to_match:
        result = await _match_patient(client, item, matches[shared[item.key]], strategy)
        # a Patient that a read by id did not return is deleted, even where an index still has it
        results[item.key] = replace(result, current=None, is_deleted=True) if item.key in deleted else result
    to_search = [item for item in items if item.key not in read and item.key not in shared]
    by_key = await find_by_search(client, to_search, strategy)
    return results | {item.key: await _follow_links(client, by_key.get(item.key)) for item in to_search}


async def _follow_links(client: FhirClient, patient: ServerResource | None) -> PatientOnServer:
    """Follow a Patient to the one that it was merged into (FHIR R4, Patient.link of type replaced-by)."""
    if patient is None:
        return PatientOnServer()
    target: ServerResource | None = patient
    for _ in range(_MAX_LINKS):
        if target is None:
            return PatientOnServer(patient, is_inactive=True)
        replacement = _find_replacement(target.resource, client.url)
        if replacement is None:
            is_inactive = target.resource.get("active") is False
            survivor = target if target.id != patient.id and not is_inactive else None
            return PatientOnServer(patient, survivor=survivor, is_inactive=is_inactive)
        target = await client.read("Patient", replacement) if replacement else None
    return PatientOnServer(patient, is_inactive=True)


def _find_replacement(patient: Mapping[str, Any], url: str) -> str | None:
    """Return the id of the Patient that replaces one; None where none does, empty where it is on another server."""
    for link in as_list(patient.get("link")):
        if isinstance(link, dict) and link.get("type") == "replaced-by":
            other = link.get("other")
            reference = str(other.get("reference", "")) if isinstance(other, dict) else ""
            match = _PATIENT_REFERENCE.fullmatch(reference.removeprefix(f"{url}/"))
            return match[1] if match else ""
    return None


async def find_patients(
    client: FhirClient, identifiers: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], list[Resource]]:
    """Search for the server's Patients with each identifier (system, value), active or not.

    Raises:
        FhirError: the search failed.
    """
    matches: dict[tuple[str, str], list[Resource]] = {identifier: [] for identifier in identifiers}
    for start in range(0, len(identifiers), _IDENTIFIERS_AT_ONCE):
        chosen = identifiers[start : start + _IDENTIFIERS_AT_ONCE]
        tokens = ",".join(f"{escape_token(system)}|{escape_token(value)}" for system, value in chosen)
        # in the body: identifiers of persons must not be in URLs, which servers log
        for patient in await client.search("Patient", {"identifier": tokens, "_count": str(_PAGE)}, in_body=True):
            # servers may ignore case, or a parameter that they do not know
            present = [(identifier.get("system"), identifier.get("value")) for identifier in get_identifiers(patient)]
            for identifier in chosen:
                if identifier in present:
                    matches[identifier].append(patient)
    return matches


async def _match_patient(
    client: FhirClient, item: UploadItem, patients: Sequence[Resource], strategy: IdStrategy
) -> PatientOnServer:
    """Tell the lake's Patient from others with the same identifier; those that were merged are followed."""
    current = next((patient for patient in patients if strategy.is_lake_resource(patient, item.id)), None)
    if current is not None:
        result = await _follow_links(client, ServerResource(current))
        if result.survivor or result.is_inactive:
            return result
    others: dict[str, Resource] = {}
    is_inactive = False
    for patient in patients:
        if patient is current:
            continue
        other = await _follow_links(client, ServerResource(patient))
        is_inactive |= other.is_inactive
        active = other.survivor.resource if other.survivor else patient
        if not other.is_inactive and not strategy.is_lake_resource(active, item.id):
            others[str(active["id"])] = active
    candidates = tuple(others[server_id] for server_id in sorted(others))
    if current is not None:
        return PatientOnServer(ServerResource(current), candidates=candidates)
    return PatientOnServer(candidates=candidates, is_inactive=is_inactive and not candidates)


# -- decisions --------------------------------------------------------------------------------------------------------


def decide_patient(  # noqa: PLR0911 - one line per case
    item: UploadItem,
    on_server: PatientOnServer,
    row: ResourceRow | None,
    attempts: Sequence[Attempt],
    strategy: IdStrategy,
) -> Decision:
    """Decide what is done with a Patient of this lake, from what the server has."""
    current, survivor = on_server.current, on_server.survivor
    if survivor is not None:
        text = f"Patient/{current.id if current else ''} was merged into Patient/{survivor.id}, which is used"
        return Decision(Action.USE_EXTERNAL, "patient-merged-on-server", text, server=survivor, is_external=True)
    if on_server.is_inactive:
        text = "the server has it as not in use, and names no Patient that replaces it"
        return Decision(Action.HOLD, "patient-inactive-on-server", text)
    is_external = row is not None and row.is_external
    if current is not None and is_external:
        return _use_external(item, current)
    candidates = on_server.candidates or ()
    if current is None and candidates:
        if len(candidates) > 1:
            return Decision(Action.HOLD, "patient-ambiguous", _list_patients(candidates))
        return _use_external(item, ServerResource(candidates[0]))
    if on_server.is_deleted:
        text = "another client deleted it on the server; `dicom-etl verify --repair` uploads it again"
        return Decision(Action.HOLD, "patient-deleted-on-server", text)
    return _merge(item, on_server, row, attempts, strategy)


def _use_external(item: UploadItem, other: ServerResource) -> Decision:
    if elements := find_conflicting_elements(item.resource, other.resource):
        verb = "differs" if len(elements) == 1 else "differ"
        text = f"{' and '.join(elements)} of Patient/{other.id} {verb} from the lake's Patient"
        return Decision(Action.HOLD, "patient-conflict", text)
    return Decision(Action.USE_EXTERNAL, server=other, is_external=True)


def _merge(
    item: UploadItem,
    on_server: PatientOnServer,
    row: ResourceRow | None,
    attempts: Sequence[Attempt],
    strategy: IdStrategy,
) -> Decision:
    base = [orjson.loads(text) for text in list_contributions(row, attempts)]
    server = strategy.normalize(on_server.current.resource, item.id) if on_server.current else None
    merged = merge_patient(base, [Contribution("", item.resource)], server, on_server.replaced)
    reason, text = item.reason, item.reason_text
    if merged.conflicts:
        elements = " and ".join(conflict.element for conflict in merged.conflicts)
        verb_phrase = "differs on the server, whose value stays"
        if len(merged.conflicts) > 1:
            verb_phrase = "differ on the server, whose values stay"
        reason, text = "patient-conflict", f"{elements} {verb_phrase}"
    elif on_server.candidates:
        reason, text = "duplicate-patient-on-server", _list_patients(on_server.candidates)
    if server is not None and is_same_content(server, merged.patient):
        return Decision(Action.UNCHANGED, reason, text, server=on_server.current)
    return Decision(Action.SEND, reason, text, resource=merged.patient, server=on_server.current)


def list_contributions(row: ResourceRow | None, attempts: Sequence[Attempt]) -> list[str]:
    """List what this lake contributed to a Patient before, as JSON: what was stored last, then what was sent since."""
    stored = [row.contribution] if row is not None and row.is_owned and row.contribution else []
    return stored + [attempt.contribution for attempt in attempts if attempt.contribution]


def find_conflicting_elements(patient: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """List the elements by which two Patients must be different persons: birthDate and gender, where both have it."""
    conflicts = []
    dates = patient.get("birthDate"), other.get("birthDate")
    if all(dates) and not is_same_date(str(dates[0]), str(dates[1])):
        conflicts.append("birthDate")
    genders = {str(resource.get("gender")) for resource in (patient, other)} - {"None", "unknown"}
    if len(genders) > 1:
        conflicts.append("gender")
    return conflicts


def _list_patients(patients: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"Patient/{patient['id']}" for patient in patients)
