"""Upload items: the resources that the build stage left in the lake, read from there, each with what identifies it.

Also here: comparing two resources, and the id under which a resource goes to the server. Not here: what is decided
about an item (`patients`, `studies`), and what the ledger has of it.
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

SHARED_RULES = ("crosswalk", "authority")  # their identifiers mean the same in every dataset
_UID_SYSTEM = "urn:dicom:uid"
_WRITTEN_BY_SERVERS = ("versionId", "lastUpdated", "source")  # of meta
_REFERENCES = ("subject", "endpoint")


class NotBuiltError(Exception):
    """A dataset has no resources yet; the text names the command that makes them."""


class UploadOptions(NamedTuple):
    """The options of an upload; see `stages.upload`."""

    prune: bool = False
    failed_only: bool = False
    dry_run: bool = False
    overwrite: bool = False
    existing_study: str = "hold"  # or merge, duplicate


# -- items and decisions ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UploadItem:
    """A resource of this lake that may be sent.

    `hash` is the digest of `resource`, whose references have the ids that the server uses.
    """

    resource: Resource
    dataset: str
    unit: str | None = None
    subject: str | None = None
    business_key: str | None = None
    references: tuple[Key, ...] = ()  # Patient and Endpoints of a study, by their ids in the lake
    hash: str = ""
    body: bytes = b""  # the canonical JSON of `resource`
    reason: str | None = None  # code of a finding that is reported whatever is decided
    reason_text: str | None = None

    @property
    def type(self) -> str:
        """The resource type."""
        resource_type: str = self.resource["resourceType"]
        return resource_type

    @property
    def id(self) -> str:
        """The id in the lake."""
        resource_id: str = self.resource["id"]
        return resource_id

    @property
    def key(self) -> Key:
        """Type and id in the lake."""
        return self.resource["resourceType"], self.resource["id"]

    def with_hash(self) -> UploadItem:
        """Return the item with its canonical JSON and the digest of that."""
        body = encode_canonical(self.resource)
        return replace(self, hash=compute_digest(body), body=body)


class Action(StrEnum):
    """An action on an item."""

    SEND = "send"
    HOLD = "hold"
    UNCHANGED = "unchanged"  # the server has it as it should be
    USE_EXTERNAL = "use-external"  # another client's Patient is used instead


@dataclass(frozen=True, slots=True)
class Decision:
    """The action on an item, and its reason.

    `reason` is the code of a finding and `text` its text: why the item is held, or what is reported although it is
    sent. `resource` is what is sent, `server` the resource that it replaces, or that stays. `is_external`: the server's
    resource belongs to another client.
    """

    action: Action
    reason: str | None = None
    text: str | None = None
    resource: Resource | None = None
    server: ServerResource | None = None
    is_external: bool = False


# -- comparing --------------------------------------------------------------------------------------------------------


def encode_canonical(value: Any) -> bytes:
    """Encode a resource, or a part of one, as JSON that does not depend on the order of its keys."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def compute_digest(body: bytes) -> str:
    """Compute the SHA-256 of a canonical resource, in hex."""
    return hashlib.sha256(body).hexdigest()


def strip_server_elements(resource: Mapping[str, Any]) -> Resource:
    """Return a resource without elements that servers write: versions, times, and a generated narrative.

    A narrative with content beyond the elements (FHIR R4, Narrative.status `additional`) has an author, and stays.
    """
    text = resource.get("text")
    is_additional = isinstance(text, dict) and text.get("status") == "additional"
    dropped = {"meta"} if is_additional else {"meta", "text"}
    kept = {name: value for name, value in resource.items() if name not in dropped}
    meta = resource.get("meta")
    meta = {k: v for k, v in meta.items() if k not in _WRITTEN_BY_SERVERS} if isinstance(meta, dict) else {}
    return kept | ({"meta": meta} if meta else {})


def compute_content_hash(resource: Mapping[str, Any]) -> str:
    """Compute the digest of a resource's content, without its id, labels, and references to other resources.

    A server may move a study to the Patient that survives a merge, which does not change the study.
    """
    content = strip_server_elements(resource)
    for name in ("id", "meta", *_REFERENCES):
        content.pop(name, None)
    return compute_digest(encode_canonical(content))


def is_same_content(server: Mapping[str, Any], produced: Mapping[str, Any]) -> bool:
    """Whether the server has a resource as the lake produces it.

    The order of lists does not count, and the server may have more labels (tags, profiles).
    """
    server_content, produced_content = strip_server_elements(server), strip_server_elements(produced)
    if encode_canonical(server_content) == encode_canonical(produced_content):
        return True
    server_labels, labels = server_content.pop("meta", {}), produced_content.pop("meta", {})
    has_labels = all(
        item in as_list(server_labels.get(name)) if isinstance(items, list) else server_labels.get(name) == items
        for name, items in labels.items()
        for item in (items if isinstance(items, list) else [items])
    )
    return has_labels and _sort_lists(server_content) == _sort_lists(produced_content)


def _sort_lists(value: Any) -> Any:
    """Return a value with all its lists sorted."""
    if isinstance(value, dict):
        return {name: _sort_lists(item) for name, item in value.items()}
    if isinstance(value, list):
        return sorted((_sort_lists(item) for item in value), key=encode_canonical)
    return value


def as_list(value: Any) -> list[Any]:
    """Return a list as it is, and an empty one for anything else that a server may have instead."""
    return value if isinstance(value, list) else []


# -- ids on the server ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IdStrategy:
    """The id under which a resource goes to the server: that of the lake, or one that the server assigns.

    A server that assigns ids gets each resource with one more identifier, made from the id in the lake, and a
    conditional update (FHIR R4, 3.1.0.5.3) that finds it by that. Once its id is known it is a plain update. Two
    concurrent conditional updates could create two resources (measured with HAPI), hence one request at a time.
    """

    namespace: str
    is_client_assigned: bool = True

    def prepare_update(self, resource: Resource, server_id: str | None) -> tuple[Resource, str]:
        """Return a resource as it is sent, and the condition of its update: empty where it has an id."""
        resource_id = str(resource["id"])
        if self.is_client_assigned:
            return (resource if server_id in (None, resource_id) else resource | {"id": server_id}), ""
        added = self._make_identifier(resource_id)
        others = [identifier for identifier in as_list(resource.get("identifier")) if identifier != added]
        identified = resource | {"identifier": [*others, added]}
        if server_id:
            return identified | {"id": server_id}, ""
        del identified["id"]
        return identified, self.make_condition(resource_id)

    def is_lake_resource(self, server: Mapping[str, Any], resource_id: str) -> bool:
        """Whether a resource of the server is the one that has this id in the lake."""
        if self.is_client_assigned:
            return server.get("id") == resource_id
        return self._make_identifier(resource_id) in as_list(server.get("identifier"))

    def normalize(self, server: Resource, resource_id: str) -> Resource:
        """Return a resource of the server as the lake produces it: with this id, without the added identifier."""
        if self.is_client_assigned:
            return server | {"id": resource_id}
        kept = [
            identifier
            for identifier in as_list(server.get("identifier"))
            if not (isinstance(identifier, dict) and identifier.get("system") == self.identifier_system)
        ]
        others = {name: value for name, value in server.items() if name != "identifier"}
        return others | {"id": resource_id} | ({"identifier": kept} if kept else {})

    def compute_content_hash(self, server: Resource, resource_id: str) -> str:
        """Compute the content hash of a resource of the server, comparable with that of what was sent for it."""
        return compute_content_hash(self.normalize(server, resource_id))

    def find_known_id(self, resource_id: str, server_id: str | None, *, has_attempts: bool) -> str | None:
        """Return the id by which a resource of this lake is read; None where it must be searched for.

        Args:
            resource_id: its id in the lake.
            server_id: its id on the server, as the ledger has it.
            has_attempts: whether it was sent without an answer, and so may be there.
        """
        return server_id or (resource_id if has_attempts and self.is_client_assigned else None)

    def make_condition(self, resource_id: str) -> str:
        """Make the search that finds a resource of this lake; percent-encoded, so that no character is special."""
        return "identifier=" + quote(self.make_token(resource_id), safe="")

    def make_token(self, resource_id: str) -> str:
        """Make the search token of the added identifier."""
        return f"{escape_token(self.identifier_system)}|{escape_token(resource_id)}"

    def _make_identifier(self, resource_id: str) -> dict[str, str]:
        return {"system": self.identifier_system, "value": resource_id}

    @property
    def identifier_system(self) -> str:
        """The system of the added identifier."""
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
    def unit_of_study(self) -> str:
        """The unit that builds the study; of a study that no unit builds, the unit of this row."""
        return self.building_unit or self.unit

    @property
    def is_shared(self) -> bool:
        """Whether the Patient's identifier means the same in every dataset."""
        return self.rule in SHARED_RULES


@dataclass(frozen=True)
class DatasetResources:
    """The resources that the build stage left of a dataset, and the Patient of each study."""

    lake: Lake
    dataset: str
    identities: tuple[StudyIdentity, ...]

    @classmethod
    def read(cls, lake: Lake, dataset: str) -> DatasetResources:
        """Read the identities of a dataset.

        Raises:
            NotBuiltError: it has none.
        """
        if not lake.exists(IDENTITIES.path(dataset=dataset)):
            raise NotBuiltError(f"dataset {dataset} has no resources yet; build it first")
        table = lake.read(IDENTITIES, list(StudyIdentity._fields), dataset=dataset)
        columns = (table[name].to_pylist() for name in StudyIdentity._fields)
        return cls(lake, dataset, tuple(map(StudyIdentity._make, zip(*columns, strict=True))))

    @cached_property
    def resolved(self) -> list[StudyIdentity]:
        """The identities of studies whose Patient is decided, and which are built."""
        return [identity for identity in self.identities if identity.state == "ok"]

    @cached_property
    def units(self) -> list[str]:
        """All units of the identities."""
        return sorted(
            {unit for identity in self.identities for unit in (identity.unit, identity.building_unit) if unit}
        )

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
            fingerprints |= {unit: value for unit, value in zip(*columns, strict=True) if value is not None}
        return fingerprints

    def fingerprint(self, unit: str) -> str:
        """Return the fingerprint of a unit's resources; empty where it was never built."""
        return self._fingerprints.get(unit, "")

    def study_bytes(self, unit: str) -> int:
        """Return the size of a unit's ImagingStudies in NDJSON, in bytes."""
        if not self._commits:
            return 0
        commit = self._commits.get(assign_shard(unit, next(iter(self._commits.values())).shards))
        row = commit.rows.get(unit) if commit else None
        return int(row["ImagingStudy_length"] or 0) if row else 0

    @cached_property
    def units_by_patient(self) -> dict[str, list[str]]:
        """By Patient id, the units that build its studies."""
        units: dict[str, set[str]] = defaultdict(set)
        for identity in self.resolved:
            units[identity.patient].add(identity.unit_of_study)
        return {patient: sorted(names) for patient, names in units.items()}

    @cached_property
    def patients_by_unit(self) -> dict[str, set[str]]:
        """By unit, the Patients of the studies that it builds."""
        patients: dict[str, set[str]] = defaultdict(set)
        for identity in self.resolved:
            patients[identity.unit_of_study].add(identity.patient)
        return patients

    @cached_property
    def shared_patients(self) -> set[str]:
        """The Patients whose identifiers mean the same in every dataset."""
        return {identity.patient for identity in self.resolved if identity.is_shared}

    @cached_property
    def study_uids_by_unit(self) -> dict[str, set[str]]:
        """By unit, the StudyInstanceUIDs of the studies that it builds."""
        uids: dict[str, set[str]] = defaultdict(set)
        for identity in self.resolved:
            uids[identity.unit_of_study].add(identity.study_uid)
        return uids

    @cached_property
    def identifier_by_patient(self) -> dict[str, str]:
        """By Patient id, its identifier as `system|value`."""
        return {identity.patient: f"{identity.system}|{identity.value}" for identity in self.resolved}

    @cached_property
    def subject_by_unit(self) -> dict[str, str | None]:
        """By unit, its subject."""
        return {identity.unit: identity.subject for identity in self.identities}

    @cached_property
    def identities_by_study(self) -> dict[str, list[StudyIdentity]]:
        """The identities by StudyInstanceUID."""
        studies: dict[str, list[StudyIdentity]] = defaultdict(list)
        for identity in self.identities:
            studies[identity.study_uid].append(identity)
        return studies

    def read_endpoint(self) -> Resource | None:
        """Read the Endpoint of the dataset; None where no study is built."""
        content = self.lake.read_bytes(make_path(ENDPOINT_PATH, dataset=self.dataset))
        return orjson.loads(content) if content else None

    def read_resources(self, resource_type: str, unit: str) -> Iterator[Resource]:
        """Read the Patients or ImagingStudies of a unit.

        Raises:
            DamagedShardError: they differ from the commit of their shard.
        """
        for line in self._read_lines(resource_type, unit).splitlines():
            yield orjson.loads(line)

    def _read_lines(self, resource_type: str, unit: str) -> bytes:
        if not self._commits:
            return b""
        commit = self._commits.get(assign_shard(unit, next(iter(self._commits.values())).shards))
        try:
            return read_unit_lines(self.lake, commit, resource_type, unit) if commit else b""
        except (DamagedShardError, OSError):  # a build may have ended since the commits were read
            return read_lines(self.lake, resource_type, dataset=self.dataset, unit=unit)

    def read_study_items(self, unit: str) -> Iterator[UploadItem]:
        """Read the ImagingStudies of a unit as items; their references still have the ids of the lake."""
        for study in self.read_resources("ImagingStudy", unit):
            uid = get_study_uid(study)
            identities = self.identities_by_study.get(uid, ())
            identity = next((candidate for candidate in identities if candidate.unit == unit), None)
            subject = identity.subject if identity else self.subject_by_unit.get(unit)
            references = [("Patient", get_referenced_id(study["subject"]))]
            references += [("Endpoint", get_referenced_id(endpoint)) for endpoint in study.get("endpoint", [])]
            yield UploadItem(study, self.dataset, unit, subject, uid, tuple(references))


def resolve_references(item: UploadItem, server_ids: Mapping[Key, str]) -> UploadItem:
    """Return a study that refers to its Patient and Endpoints by the ids that these have on the server."""
    study = item.resource
    patient, *endpoints = item.references
    subject = study["subject"] | {"reference": f"Patient/{server_ids.get(patient, patient[1])}"}
    study = study | {"subject": subject}
    if endpoints:
        study["endpoint"] = [{"reference": f"Endpoint/{server_ids.get(key, key[1])}"} for key in endpoints]
    return replace(item, resource=study).with_hash()


# -- elements of resources --------------------------------------------------------------------------------------------


def get_referenced_id(reference: Any) -> str:
    """Return the id in a reference such as Patient/ID, also to a version of it; empty where it has none."""
    text = reference.get("reference") if isinstance(reference, dict) else None
    return text.partition("/_history/")[0].rpartition("/")[2] if isinstance(text, str) else ""


def get_study_uid(study: Mapping[str, Any]) -> str:
    """Return the StudyInstanceUID of a study of this lake."""
    return next(iter(sorted(get_study_uids(study))), str(study["id"]))


def get_study_uids(study: Mapping[str, Any]) -> set[str]:
    """Return the StudyInstanceUIDs among the identifiers of a study (FHIR R4, ImagingStudy.identifier)."""
    identifiers = get_identifiers(study)
    values = [str(identifier.get("value", "")) for identifier in identifiers if identifier.get("system") == _UID_SYSTEM]
    return {value.removeprefix("urn:oid:") for value in values}


def make_uid_token(uid: str) -> str:
    """Make the search token of a StudyInstanceUID."""
    return f"{_UID_SYSTEM}|urn:oid:{escape_token(uid)}"


def get_identifiers(resource: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the identifiers of a resource of a server, which may be malformed."""
    identifiers = resource.get("identifier")
    if not isinstance(identifiers, list):
        return []
    return [identifier for identifier in identifiers if isinstance(identifier, dict)]


def get_dataset_names(study: Mapping[str, Any], dataset_system: str) -> list[str]:
    """Return the datasets that a study names: the one it comes from, and those that were merged into it."""
    identifiers = get_identifiers(study)
    values = [
        str(identifier.get("value", "")) for identifier in identifiers if identifier.get("system") == dataset_system
    ]
    return [value.removeprefix("urn:uid:") for value in values]


def is_in_namespace(study: Mapping[str, Any], uid: str, ids: ResourceIds, strategy: IdStrategy, system: str) -> bool:
    """Whether a study of this UID comes from a dataset of the lake's namespace: then its id can be computed.

    Args:
        study: a study of the server.
        uid: its StudyInstanceUID.
        ids: of the namespace.
        strategy: client-assigned or server-assigned ids.
        system: of the identifiers that name datasets.
    """
    candidates: Sequence[str] = [
        ids.resource_id("ImagingStudy", dataset, uid) for dataset in get_dataset_names(study, system)
    ]
    return any(strategy.is_lake_resource(study, resource_id) for resource_id in candidates)
