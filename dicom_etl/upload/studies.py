"""ImagingStudies and Endpoints: whether one of ours may be sent, from what the server has of it.

Held, with the code of a finding: what would remove series or instances, what another client changed since we sent it,
and a study that another client has under the same UID. UploadOptions decide otherwise. `decide_study` and what it
uses are pure; `look_up_studies` only asks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dicom_etl.fhir_client import FhirClient, ServerResource
from dicom_etl.identity.ids import ResourceIds
from dicom_etl.upload.items import (
    Action,
    Decision,
    IdStrategy,
    Resource,
    UploadItem,
    UploadOptions,
    as_list,
    content_hash,
    is_in_namespace,
    is_same_content,
    strip_server_elements,
    study_uids,
    uid_token,
)
from dicom_etl.upload.ledger import Attempt, Key, ResourceRow
from dicom_etl.upload.lookup import read_by_id
from dicom_etl.upload.tasks import gather

_UIDS_AT_ONCE = 25  # UIDs of up to 64 characters in one search
_PAGE = 100
_HISTORY = 20  # versions that are looked at
_LISTS = ("identifier", "modality", "endpoint", "procedureCode", "reasonCode", "procedure", "reason", "basedOn", "note")


# -- what the server has ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StudyOnServer:
    """What the server has of a study (or an Endpoint) of ours.

    `external` are studies of other clients under the same StudyInstanceUID. `has_arrived`: what was attempted without
    an answer is, or was, on the server; None where nothing was.
    """

    own: ServerResource | None = None
    external: tuple[Resource, ...] = ()
    has_arrived: bool | None = None


class Namespace(NamedTuple):
    """What tells studies of our namespace from those of other clients."""

    ids: ResourceIds
    strategy: IdStrategy
    dataset_system: str


async def look_up_studies(
    client: FhirClient,
    items: Sequence[UploadItem],
    rows: Mapping[Key, ResourceRow],
    attempts: Mapping[Key, Sequence[Attempt]],
    namespace: Namespace,
    *,
    reads_external: bool,
) -> dict[Key, StudyOnServer]:
    """Ask the server for studies: by id where the ledger knows them, else by UID in a search.

    A search that does not find what the ledger knows says nothing: servers index late.

    Args:
        client: asks.
        items: studies of ours.
        rows: of the ledger.
        attempts: open ones.
        namespace: tells our studies from those of other clients.
        reads_external: read the studies of other clients as a whole, since ours may be merged into them; else their
            ids and identifiers are enough.

    Raises:
        FhirError: the server could not be asked.
    """
    own = await read_by_id(client, items, rows, attempts, namespace.strategy)
    unknown = [item for item in items if own.get(item.key) is None]
    external: dict[Key, list[Resource]] = defaultdict(list)
    found = await find_studies(client, [item.business_key or "" for item in unknown])
    to_read: dict[Key, str] = {}
    for item in unknown:
        uid = item.business_key or ""
        for study in found[uid]:
            if namespace.strategy.is_ours(study, item.id):
                if item.key not in own:  # what a read by id did not find is gone, also where an index still has it
                    to_read[item.key] = str(study["id"])
            elif not is_in_namespace(study, uid, namespace.ids, namespace.strategy, namespace.dataset_system):
                external[item.key].append(study)
    reads = await gather(client.read("ImagingStudy", identity) for identity in to_read.values())
    own |= dict(zip(to_read, reads, strict=True))
    if reads_external:
        for key, studies in external.items():
            whole = await gather(client.read("ImagingStudy", str(study["id"])) for study in studies)
            external[key] = [one.resource for one in whole if one is not None]
    return {
        item.key: StudyOnServer(
            own.get(item.key),
            tuple(external[item.key]),
            await _has_arrived(client, item, own.get(item.key), attempts.get(item.key, ()), namespace.strategy),
        )
        for item in items
    }


async def find_studies(client: FhirClient, uids: Sequence[str]) -> dict[str, list[Resource]]:
    """The ids and identifiers of the server's ImagingStudies of each StudyInstanceUID.

    Raises:
        FhirError: a search failed.
    """
    found: dict[str, list[Resource]] = {uid: [] for uid in uids}
    wanted = sorted(found)
    for start in range(0, len(wanted), _UIDS_AT_ONCE):
        some = wanted[start : start + _UIDS_AT_ONCE]
        search = {"identifier": ",".join(map(uid_token, some)), "_elements": "identifier", "_count": str(_PAGE)}
        for study in await client.search("ImagingStudy", search):
            for uid in study_uids(study) & set(some):
                found[uid].append(study)
    return found


async def _has_arrived(
    client: FhirClient,
    item: UploadItem,
    own: ServerResource | None,
    attempts: Sequence[Attempt],
    strategy: IdStrategy,
) -> bool | None:
    """Whether something that was sent without an answer reached the server, as far as its history says."""
    if not attempts:
        return None
    if own is None:
        return False
    produced = strategy.as_produced(own.resource, item.id)
    if any(attempt.hash == item.hash for attempt in attempts) and is_same_content(produced, item.resource):
        return True
    return await has_stored(client, item.key, own, strategy, {attempt.server_hash for attempt in attempts})


async def has_stored(
    client: FhirClient,
    item: Key,
    server: ServerResource,
    strategy: IdStrategy,
    sent: Collection[str],
) -> bool:
    """Whether the server has, or had, one of the contents that were sent for a resource of ours.

    Raises:
        FhirError: the server could not be asked.
    """
    resource_type, our_id = item
    if strategy.content_hash(server.resource, our_id) in sent:
        return True
    versions = await client.read_history(resource_type, server.id, count=_HISTORY)
    return any(one is not None and strategy.content_hash(one.resource, our_id) in sent for one in versions or ())


# -- decisions --------------------------------------------------------------------------------------------------------


def decide_study(
    item: UploadItem,
    seen: StudyOnServer,
    row: ResourceRow | None,
    attempts: Sequence[Attempt],
    options: UploadOptions,
    strategy: IdStrategy,
) -> Decision:
    """What is done with a study or an Endpoint of ours, from what the server has of it."""
    if seen.own is not None:
        if row is not None and row.is_external:
            return _merge(item, seen.own)
        return _decide_update(item, seen, row, attempts, options, strategy)
    if seen.external and options.existing_study != "duplicate":
        if options.existing_study == "merge" and len(seen.external) == 1:
            return _merge(item, ServerResource(seen.external[0]))
        names = ", ".join(sorted(f"ImagingStudy/{study['id']}" for study in seen.external))
        text = f"{names} of another client has its StudyInstanceUID"
        if len(seen.external) > 1:
            text = f"{names} of other clients have its StudyInstanceUID, so that ours cannot be merged into one"
        return Decision(Action.HOLD, "study-exists-on-server", text)
    return Decision(Action.SEND, resource=item.resource)


def _decide_update(
    item: UploadItem,
    seen: StudyOnServer,
    row: ResourceRow | None,
    attempts: Sequence[Attempt],
    options: UploadOptions,
    strategy: IdStrategy,
) -> Decision:
    own = seen.own
    assert own is not None
    server = strategy.as_produced(own.resource, item.id)
    if is_same_content(server, item.resource):
        return Decision(Action.UNCHANGED, server=own)
    if not options.overwrite and (text := _external_change(own, server, row, attempts, has_arrived=seen.has_arrived)):
        return Decision(Action.HOLD, "changed-on-server", text, server=own)
    loss = find_content_loss(server, item.resource)
    if loss and not options.prune:
        return Decision(Action.HOLD, "update-removes-content", str(loss), server=own)
    return Decision(Action.SEND, resource=item.resource, server=own)


def _external_change(
    own: ServerResource,
    server: Resource,
    row: ResourceRow | None,
    attempts: Sequence[Attempt],
    *,
    has_arrived: bool | None,
) -> str | None:
    """Why the server's resource is another client's work now; None where it is as we left it.

    Either its version is the one that was stored last, or its content is something that we sent. Where the server names
    no versions, the content alone tells. Of what was never ours to store nothing is expected.
    """
    content = content_hash(server)
    if content in {attempt.server_hash for attempt in attempts}:
        return None
    if row is not None and row.is_ours:
        if is_same_version(row, own) or content == row.server_hash:
            return None
        return f"version {own.version or '(unnamed)'} on the server is not the one that we stored"
    if not attempts:
        return None
    if has_arrived:
        return f"version {own.version or '(unnamed)'} on the server replaced what we sent"
    return f"version {own.version or '(unnamed)'} on the server is not what we sent, which did not arrive"


def is_same_version(row: ResourceRow, server: ServerResource) -> bool:
    """Whether the server has the version that was stored last. Versions are compared as they are, and never read."""
    return bool(
        (row.version and server.version and row.version == server.version)
        or (row.etag and server.etag and row.etag == server.etag)
    )


def is_still_replaced(own: ServerResource | None, row: ResourceRow | None, attempts: Sequence[Attempt]) -> bool:
    """Whether a write of ours replaced another client's version, and nobody but us has written since.

    Later updates of ours do not bring back what was replaced, so that the finding stays.
    """
    if own is None or row is None or row.reason != "concurrent-overwrite":
        return False
    return is_same_version(row, own) or content_hash(own.resource) in {attempt.server_hash for attempt in attempts}


# -- content loss -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ContentLoss:
    """How many series and instances of the server's study ours lacks."""

    series: int
    of_series: int
    instances: int
    of_instances: int

    def __bool__(self) -> bool:
        return bool(self.series or self.instances)

    def __str__(self) -> str:
        return (
            f"the update would remove {self.series} of {self.of_series} series and "
            f"{self.instances} of {self.of_instances} instances"
        )


def find_content_loss(server: Mapping[str, Any], ours: Mapping[str, Any]) -> ContentLoss:
    """What our study lacks of the server's, by UID. An instance in another series of the study is not lost."""
    series_before, instances_before = _uids(server)
    series_after, instances_after = _uids(ours)
    return ContentLoss(
        len(series_before - series_after),
        len(series_before),
        len(instances_before - instances_after),
        len(instances_before),
    )


def _uids(study: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    series = _objects(study.get("series"))
    return (
        {str(one.get("uid", "")) for one in series},
        {str(instance.get("uid", "")) for one in series for instance in _objects(one.get("instance"))},
    )


def _objects(items: Any) -> list[Mapping[str, Any]]:
    """The objects of a list that came from a server."""
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


# -- merging into the study of another client -------------------------------------------------------------------------


def _merge(item: UploadItem, other: ServerResource) -> Decision:
    merged = merge_into_existing(other.resource, item.resource)
    text = f"our series and instances are in ImagingStudy/{other.id} of another client"
    if is_same_content(other.resource, merged):
        return Decision(Action.UNCHANGED, "study-merged", text, server=other, is_external=True)
    return Decision(Action.SEND, "study-merged", text, resource=merged, server=other, is_external=True)


def merge_into_existing(server: Mapping[str, Any], ours: Mapping[str, Any]) -> Resource:
    """Another client's study with our series and instances in it; its values count before ours.

    Its subject and its id stay. Counts grow with what is listed and never shrink: a study may have more than its list
    shows.
    """
    merged = strip_server_elements(server)
    for name, value in ours.items():
        if name in _LISTS:
            merged[name] = _unite(as_list(server.get(name)), value)
        elif name not in ("id", "meta", "subject", "series", "numberOfSeries", "numberOfInstances"):
            merged.setdefault(name, value)
    merged["series"] = _merge_series(_objects(server.get("series")), ours.get("series", []))
    listed = sum(len(as_list(one.get("instance"))) for one in merged["series"])
    merged["numberOfSeries"] = max(_count(server.get("numberOfSeries")), len(merged["series"]))
    merged["numberOfInstances"] = max(_count(server.get("numberOfInstances")), listed)
    return merged


def _merge_series(theirs: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]]) -> list[Resource]:
    mine = {one["uid"]: one for one in ours}
    merged = [_merge_one_series(one, mine.pop(str(one.get("uid")), None)) for one in theirs]
    return [*merged, *(dict(one) for one in mine.values())]


def _merge_one_series(theirs: Mapping[str, Any], ours: Mapping[str, Any] | None) -> Resource:
    if ours is None:
        return dict(theirs)
    instances = _objects(theirs.get("instance"))
    known = {str(one.get("uid")) for one in instances}
    merged = {**ours, **theirs}
    merged["instance"] = [*instances, *(one for one in ours["instance"] if one["uid"] not in known)]
    merged["numberOfInstances"] = max(_count(theirs.get("numberOfInstances")), len(merged["instance"]))
    return merged


def _unite(theirs: Sequence[Any], ours: Collection[Any]) -> list[Any]:
    return [*theirs, *(item for item in ours if item not in theirs)]


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
