"""What is to be uploaded: the resources that the build stage left in the lake, and each of them as an upload item.

Also under which id a resource goes to the server. Not here: what is decided about an item (`patients`, `studies`), and
what the ledger knows of it.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple
from urllib.parse import quote

import orjson

from dicom_etl.fhir_client import ServerResource, escape_token
from dicom_etl.identity.ids import ResourceIds
from dicom_etl.lake.commits import Commit, DamagedShardError, read_commits
from dicom_etl.lake.schemas import ENDPOINT_PATH, IDENTITIES, make_path
from dicom_etl.lake.shard_reader import read_lines, read_unit_lines
from dicom_etl.lake.shards import assign_shard
from dicom_etl.lake.tables import Lake
from dicom_etl.upload.ledger import Key

Resource = dict[str, Any]

SHARED_RULES = ("crosswalk", "authority")  # identifiers that mean the same in every dataset
_UID_SYSTEM = "urn:dicom:uid"
_WRITTEN_BY_SERVERS = ("versionId", "lastUpdated", "source")  # of meta
_REFERENCES = ("subject", "endpoint")


class NotBuiltError(Exception):
    """A dataset has no resources yet; the text says what to do."""


class UploadOptions(NamedTuple):
    """What an upload is asked for; see `stages.upload`."""

    prune: bool = False
    failed_only: bool = False
    dry_run: bool = False
    overwrite: bool = False
    existing_study: str = "hold"  # or merge, duplicate


# -- items and decisions ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UploadItem:
    """A resource of ours that may be sent. `hash` is that of `resource`, with its references as the server has them."""

    resource: Resource
    dataset: str
    unit: str | None = None
    subject: str | None = None
    business_key: str | None = None
    references: tuple[Key, ...] = ()  # Patient and Endpoint of a study, by our ids
    hash: str = ""
    body: bytes = b""  # the encode_canonical JSON of `resource`
    reason: str | None = None  # code of a finding that must be heard whatever becomes of it
    reason_text: str | None = None

    @property
    def type(self) -> str:
        """The resource type."""
        resource_type: str = self.resource["resourceType"]
        return resource_type

    @property
    def id(self) -> str:
        """Our id."""
        identity: str = self.resource["id"]
        return identity

    @property
    def key(self) -> Key:
        """Type and our id."""
        return self.resource["resourceType"], self.resource["id"]

    def with_hash(self) -> UploadItem:
        """The item with its encode_canonical JSON and its hash."""
        body = encode_canonical(self.resource)
        return replace(self, hash=digest(body), body=body)


class Action(StrEnum):
    """What is done with an item."""

    SEND = "send"
    HOLD = "hold"
    UNCHANGED = "unchanged"  # the server has it as it should be
    USE_EXTERNAL = "use-external"  # another client's Patient is used instead of ours


@dataclass(frozen=True, slots=True)
class Decision:
    """What is done with an item, and why.

    `reason` is the code of a finding and `text` its words: why it is held, or what must be heard although it is sent.
    `resource` is what is sent, `server` the resource that it replaces, or that stays. `is_external` says that the
    server's resource is another client's.
    """

    action: Action
    reason: str | None = None
    text: str | None = None
    resource: Resource | None = None
    server: ServerResource | None = None
    is_external: bool = False


# -- comparing --------------------------------------------------------------------------------------------------------


def encode_canonical(value: Any) -> bytes:
    """The one way to write a resource, or a part of one, whatever the order of its keys."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def digest(body: bytes) -> str:
    """SHA-256 of a encode_canonical resource, in hex."""
    return hashlib.sha256(body).hexdigest()


def strip_server_elements(resource: Mapping[str, Any]) -> Resource:
    """A resource without what a server writes into it: versions, times, and a narrative that says nothing else.

    A narrative with something that the elements do not say (FHIR R4, Narrative.status `additional`) is an author's.
    """
    text = resource.get("text")
    is_additional = isinstance(text, dict) and text.get("status") == "additional"
    dropped = {"meta"} if is_additional else {"meta", "text"}
    kept = {name: value for name, value in resource.items() if name not in dropped}
    meta = resource.get("meta")
    meta = {k: v for k, v in meta.items() if k not in _WRITTEN_BY_SERVERS} if isinstance(meta, dict) else {}
    return kept | ({"meta": meta} if meta else {})


def content_hash(resource: Mapping[str, Any]) -> str:
    """The digest of what a resource says, without its id, labels, and references to other resources.

    A server may move a study to the Patient that survives a merge, and that is no change of the study.
    """
    content = strip_server_elements(resource)
    for name in ("id", "meta", *_REFERENCES):
        content.pop(name, None)
    return digest(encode_canonical(content))


def is_same_content(server: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Whether the server has a resource as we make it; the order of lists, and labels that the server adds, aside."""
    one, other = strip_server_elements(server), strip_server_elements(ours)
    if encode_canonical(one) == encode_canonical(other):
        return True
    labels, wanted = one.pop("meta", {}), other.pop("meta", {})
    has_labels = all(
        item in as_list(labels.get(name)) if isinstance(items, list) else labels.get(name) == items
        for name, items in wanted.items()
        for item in (items if isinstance(items, list) else [items])
    )
    return has_labels and _sort_lists(one) == _sort_lists(other)


def _sort_lists(value: Any) -> Any:
    """A value with the items of each list in one order."""
    if isinstance(value, dict):
        return {name: _sort_lists(item) for name, item in value.items()}
    if isinstance(value, list):
        return sorted((_sort_lists(item) for item in value), key=encode_canonical)
    return value


def as_list(value: Any) -> list[Any]:
    """A list as it is, and nothing of whatever else a server may have in its place."""
    return value if isinstance(value, list) else []


# -- ids on the server ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IdStrategy:
    """Under which id a resource goes to the server: ours, or one that the server assigns.

    A server that assigns ids gets each resource with one more identifier, made from our id, and a conditional update
    (FHIR R4, 3.1.0.5.3) that finds it by that. Once its id is known it is a plain update. Two conditional updates at
    once could create two resources (measured with HAPI), hence one request at a time.
    """

    namespace: str
    is_client_assigned: bool = True

    def address(self, resource: Resource, server_id: str | None) -> tuple[Resource, str]:
        """A resource as it is sent, and the condition of its update: empty where it has an id."""
        ours = str(resource["id"])
        if self.is_client_assigned:
            return (resource if server_id in (None, ours) else resource | {"id": server_id}), ""
        others = [one for one in as_list(resource.get("identifier")) if one != self._identifier(ours)]
        marked = resource | {"identifier": [*others, self._identifier(ours)]}
        if server_id:
            return marked | {"id": server_id}, ""
        del marked["id"]
        return marked, self.condition(ours)

    def is_ours(self, server: Mapping[str, Any], ours: str) -> bool:
        """Whether a resource of the server is the one that we call by this id."""
        if self.is_client_assigned:
            return server.get("id") == ours
        return self._identifier(ours) in as_list(server.get("identifier"))

    def as_produced(self, server: Resource, ours: str) -> Resource:
        """A resource of the server under our id, and without the identifier made from it."""
        if self.is_client_assigned:
            return server | {"id": ours}
        kept = [one for one in as_list(server.get("identifier")) if not self._has_system(one)]
        rest = {name: value for name, value in server.items() if name != "identifier"}
        return rest | {"id": ours} | ({"identifier": kept} if kept else {})

    def content_hash(self, server: Resource, ours: str) -> str:
        """The content hash of a resource of the server, as that of what was sent for our resource of this id."""
        return content_hash(self.as_produced(server, ours))

    def find_known_id(self, ours: str, server_id: str | None, *, has_attempts: bool) -> str | None:
        """The id by which a resource of ours is read; None where it has to be searched for.

        Args:
            ours: our id.
            server_id: that on the server, as the ledger knows it.
            has_attempts: whether it was sent without an answer, and so may be there.
        """
        return server_id or (ours if has_attempts and self.is_client_assigned else None)

    def condition(self, ours: str) -> str:
        """The search that finds our resource; percent-encoded, so that no character of it can mean another."""
        return "identifier=" + quote(self.token(ours), safe="")

    def token(self, ours: str) -> str:
        """The search token of the identifier that is made from our id."""
        return f"{escape_token(self.system)}|{escape_token(ours)}"

    def _has_system(self, identifier: Any) -> bool:
        return isinstance(identifier, dict) and identifier.get("system") == self.system

    def _identifier(self, ours: str) -> dict[str, str]:
        return {"system": self.system, "value": ours}

    @property
    def system(self) -> str:
        """The system of that identifier."""
        return f"{self.namespace.rstrip('/')}/resource-id"


# -- what the lake produces -------------------------------------------------------------------------------------------


class StudyIdentity(NamedTuple):
    """The Patient of a study in a unit: a row of the identities. The unit `building_unit` builds the study."""

    unit: str
    subject: str | None
    study_uid: str
    system: str | None
    value: str | None
    rule: str | None
    state: str
    building_unit: str | None
    patient: str

    @property
    def is_shared(self) -> bool:
        """Whether the Patient's identifier means the same in every dataset."""
        return self.rule in SHARED_RULES


@dataclass(frozen=True)
class DatasetResources:
    """The resources that the build stage left of a dataset, and which Patient each study belongs to."""

    lake: Lake
    dataset: str
    identities: tuple[StudyIdentity, ...]

    @classmethod
    def read(cls, lake: Lake, dataset: str) -> DatasetResources:
        """Read the identities.

        Raises:
            NotBuiltError: there are none.
        """
        if not lake.exists(IDENTITIES.path(dataset=dataset)):
            raise NotBuiltError(f"dataset {dataset} has no resources yet; build it first")
        table = lake.read(IDENTITIES, list(StudyIdentity._fields), dataset=dataset)
        columns = (table[name].to_pylist() for name in StudyIdentity._fields)
        return cls(lake, dataset, tuple(map(StudyIdentity._make, zip(*columns, strict=True))))

    @cached_property
    def resolved(self) -> list[StudyIdentity]:
        """Those whose study is built."""
        return [one for one in self.identities if one.state == "ok"]

    @cached_property
    def units(self) -> list[str]:
        """All units that the identities know."""
        return sorted({unit for one in self.identities for unit in (one.unit, one.building_unit) if unit})

    @cached_property
    def built_units(self) -> list[str]:
        """The units whose build is committed."""
        return [unit for unit in self.units if unit in self._fingerprints]

    @cached_property
    def _commits(self) -> dict[int, Commit]:
        return read_commits(self.lake, "build", self.dataset)

    @cached_property
    def _fingerprints(self) -> dict[str, str]:
        fingerprints: dict[str, str] = {}
        for commit in self._commits.values():
            columns = (commit.units[name].to_pylist() for name in ("unit", "fingerprint"))
            fingerprints |= {unit: mark for unit, mark in zip(*columns, strict=True) if mark is not None}
        return fingerprints

    def fingerprint(self, unit: str) -> str:
        """What changes when the resources of a unit do; empty where it was never built."""
        return self._fingerprints.get(unit, "")

    def study_bytes(self, unit: str) -> int:
        """The bytes of a unit's ImagingStudies, in NDJSON."""
        if not self._commits:
            return 0
        commit = self._commits.get(assign_shard(unit, next(iter(self._commits.values())).shards))
        row = commit.rows.get(unit) if commit else None
        return int(row["ImagingStudy_length"] or 0) if row else 0

    @cached_property
    def units_by_patient(self) -> dict[str, list[str]]:
        """By Patient id, the units that build its studies."""
        units: dict[str, set[str]] = defaultdict(set)
        for one in self.resolved:
            units[one.patient].add(one.building_unit or one.unit)
        return {patient: sorted(owners) for patient, owners in units.items()}

    @cached_property
    def patients_by_unit(self) -> dict[str, set[str]]:
        """By unit, the Patients of the studies that it builds."""
        patients: dict[str, set[str]] = defaultdict(set)
        for one in self.resolved:
            patients[one.building_unit or one.unit].add(one.patient)
        return patients

    @cached_property
    def shared_patients(self) -> set[str]:
        """The Patients whose identifiers mean the same in every dataset."""
        return {one.patient for one in self.resolved if one.is_shared}

    @cached_property
    def study_uids_by_unit(self) -> dict[str, set[str]]:
        """By unit, the StudyInstanceUIDs of the studies that it builds."""
        uids: dict[str, set[str]] = defaultdict(set)
        for one in self.resolved:
            uids[one.building_unit or one.unit].add(one.study_uid)
        return uids

    @cached_property
    def identifier_by_patient(self) -> dict[str, str]:
        """By Patient id, its identifier."""
        return {one.patient: f"{one.system}|{one.value}" for one in self.resolved}

    @cached_property
    def subject_by_unit(self) -> dict[str, str | None]:
        """By unit, its subject."""
        return {one.unit: one.subject for one in self.identities}

    @cached_property
    def identities_by_study(self) -> dict[str, list[StudyIdentity]]:
        """The identities by StudyInstanceUID."""
        studies: dict[str, list[StudyIdentity]] = defaultdict(list)
        for one in self.identities:
            studies[one.study_uid].append(one)
        return studies

    def read_endpoint(self) -> Resource | None:
        """The Endpoint of the dataset; None where no study is built."""
        content = self.lake.read_bytes(make_path(ENDPOINT_PATH, dataset=self.dataset))
        return orjson.loads(content) if content else None

    def read_resources(self, resource_type: str, unit: str) -> Iterator[Resource]:
        """The Patients or ImagingStudies of a unit.

        Raises:
            DamagedShardError: they are not what the commit of their shard says.
        """
        for line in self._lines(resource_type, unit).splitlines():
            yield orjson.loads(line)

    def _lines(self, resource_type: str, unit: str) -> bytes:
        if not self._commits:
            return b""
        commit = self._commits.get(assign_shard(unit, next(iter(self._commits.values())).shards))
        try:
            return read_unit_lines(self.lake, commit, resource_type, unit) if commit else b""
        except (DamagedShardError, OSError):  # a build may have ended since the commits were read
            return read_lines(self.lake, resource_type, dataset=self.dataset, unit=unit)

    def read_study_items(self, unit: str) -> Iterator[UploadItem]:
        """The ImagingStudies of a unit as items; their references are still by our ids."""
        for study in self.read_resources("ImagingStudy", unit):
            uid = study_uid(study)
            row = next((one for one in self.identities_by_study.get(uid, ()) if one.unit == unit), None)
            subject = row.subject if row else self.subject_by_unit.get(unit)
            references = [("Patient", referenced_id(study["subject"]))]
            references += [("Endpoint", referenced_id(endpoint)) for endpoint in study.get("endpoint", [])]
            yield UploadItem(study, self.dataset, unit, subject, uid, tuple(references))


def resolve_references(item: UploadItem, server_ids: Mapping[Key, str]) -> UploadItem:
    """A study that refers to what it needs by the ids that these have on the server."""
    study = item.resource
    patient, *endpoints = item.references
    subject = study["subject"] | {"reference": f"Patient/{server_ids.get(patient, patient[1])}"}
    study = study | {"subject": subject}
    if endpoints:
        study["endpoint"] = [{"reference": f"Endpoint/{server_ids.get(key, key[1])}"} for key in endpoints]
    return replace(item, resource=study).with_hash()


def referenced_id(reference: Any) -> str:
    """The id that a reference such as Patient/ID names, also of a version; empty where it names none."""
    text = reference.get("reference") if isinstance(reference, dict) else None
    return text.partition("/_history/")[0].rpartition("/")[2] if isinstance(text, str) else ""


def study_uid(study: Mapping[str, Any]) -> str:
    """The StudyInstanceUID of a study of ours."""
    return next(iter(sorted(study_uids(study))), str(study["id"]))


def study_uids(study: Mapping[str, Any]) -> set[str]:
    """The StudyInstanceUIDs by which a study is known (FHIR R4, ImagingStudy.identifier)."""
    values = [str(one.get("value", "")) for one in identifiers(study) if one.get("system") == _UID_SYSTEM]
    return {value.removeprefix("urn:oid:") for value in values}


def uid_token(uid: str) -> str:
    """The search token of a StudyInstanceUID."""
    return f"{_UID_SYSTEM}|urn:oid:{escape_token(uid)}"


def identifiers(resource: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The identifiers of a resource of a server, which may be of any shape."""
    found = resource.get("identifier")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def datasets_of(study: Mapping[str, Any], dataset_system: str) -> list[str]:
    """The datasets that a study names: that of a study of ours, and those of which something was merged into it."""
    values = [str(one.get("value", "")) for one in identifiers(study) if one.get("system") == dataset_system]
    return [value.removeprefix("urn:uid:") for value in values]


def is_in_namespace(study: Mapping[str, Any], uid: str, ids: ResourceIds, strategy: IdStrategy, system: str) -> bool:
    """Whether a study of this UID is a resource of some dataset of our namespace: its id follows from that."""
    ours: Sequence[str] = [ids.resource_id("ImagingStudy", dataset, uid) for dataset in datasets_of(study, system)]
    return any(strategy.is_ours(study, identity) for identity in ours)
