"""ImagingStudies and Endpoints: whether the lake's may be sent, from what the server has.

On hold, with the code of a finding: an update that would remove series or instances, a resource that another client
changed since this lake sent it, and a study that another client has under the same StudyInstanceUID. Options decide
otherwise. `decide_study` and what it uses are pure; `look_up_studies` only reads.
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
    compute_content_hash,
    get_study_uids,
    is_in_namespace,
    is_same_content,
    make_uid_token,
    strip_server_elements,
)
from dicom_etl.upload.ledger import Attempt, Key, ResourceRow
from dicom_etl.upload.lookup import read_by_id
from dicom_etl.upload.tasks import gather

_UIDS_AT_ONCE = 25  # UIDs of up to 64 characters in one search
_PAGE = 100
_MAX_VERSIONS = 20  # of a history
_LISTS = ("identifier", "modality", "endpoint", "procedureCode", "reasonCode", "procedure", "reason", "basedOn", "note")


# -- what the server has ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StudyOnServer:
    """The server's counterparts of a study (or an Endpoint) of this lake.

    Attributes:
        current: the resource of this lake, as the server has it now.
        external: studies of other clients with the same StudyInstanceUID.
        has_arrived: whether an attempt without an answer reached the server; None where there was none.
    """

    current: ServerResource | None = None
    external: tuple[Resource, ...] = ()
    has_arrived: bool | None = None


class Namespace(NamedTuple):
    """The namespace of a lake, which distinguishes its studies from those of other clients."""

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
    """Look up studies on the server: by id where the ledger has it, else by a search for the UID.

    A search that does not find what the ledger has proves nothing: servers index late.

    Args:
        client: the client of the server.
        items: studies of this lake.
        rows: their rows in the ledger.
        attempts: their open attempts.
        namespace: distinguishes the lake's studies from those of other clients.
        reads_external: read studies of other clients completely, because the lake's may be merged into them; else
            their ids and identifiers are enough.

    Raises:
        FhirError: the server could not be asked.
    """
    current = await read_by_id(client, items, rows, attempts, namespace.strategy)
    to_search = [item for item in items if current.get(item.key) is None]
    external: dict[Key, list[Resource]] = defaultdict(list)
    matches = await find_studies(client, [item.business_key or "" for item in to_search])
    to_read: dict[Key, str] = {}
    for item in to_search:
        uid = item.business_key or ""
        for study in matches[uid]:
            if namespace.strategy.is_lake_resource(study, item.id):
                if item.key not in current:  # else a read by id has shown that it is deleted, whatever the index has
                    to_read[item.key] = str(study["id"])
            elif not is_in_namespace(study, uid, namespace.ids, namespace.strategy, namespace.dataset_system):
                external[item.key].append(study)
    reads = await gather(client.read("ImagingStudy", server_id) for server_id in to_read.values())
    current |= dict(zip(to_read, reads, strict=True))
    if reads_external:
        for key, studies in external.items():
            complete = await gather(client.read("ImagingStudy", str(study["id"])) for study in studies)
            external[key] = [server.resource for server in complete if server is not None]
    return {
        item.key: StudyOnServer(
            current.get(item.key),
            tuple(external[item.key]),
            await _has_arrived(client, item, current.get(item.key), attempts.get(item.key, ()), namespace.strategy),
        )
        for item in items
    }


async def find_studies(client: FhirClient, uids: Sequence[str]) -> dict[str, list[Resource]]:
    """Search for the server's ImagingStudies of each StudyInstanceUID; returns their ids and identifiers.

    Raises:
        FhirError: a search failed.
    """
    matches: dict[str, list[Resource]] = {uid: [] for uid in uids}
    ordered = sorted(matches)
    for start in range(0, len(ordered), _UIDS_AT_ONCE):
        chosen = ordered[start : start + _UIDS_AT_ONCE]
        search = {"identifier": ",".join(map(make_uid_token, chosen)), "_elements": "identifier", "_count": str(_PAGE)}
        for study in await client.search("ImagingStudy", search):
            for uid in get_study_uids(study) & set(chosen):
                matches[uid].append(study)
    return matches


async def _has_arrived(
    client: FhirClient,
    item: UploadItem,
    current: ServerResource | None,
    attempts: Sequence[Attempt],
    strategy: IdStrategy,
) -> bool | None:
    """Whether an attempt without an answer reached the server, as far as its history shows; None without attempts."""
    if not attempts:
        return None
    if current is None:
        return False
    server = strategy.normalize(current.resource, item.id)
    if any(attempt.hash == item.hash for attempt in attempts) and is_same_content(server, item.resource):
        return True
    return await has_stored(client, item.key, current, strategy, {attempt.server_hash for attempt in attempts})


async def has_stored(
    client: FhirClient,
    key: Key,
    server: ServerResource,
    strategy: IdStrategy,
    sent: Collection[str],
) -> bool:
    """Whether the server has, or had, one of the contents that were sent for a resource of this lake.

    Raises:
        FhirError: the server could not be asked.
    """
    resource_type, resource_id = key
    if strategy.compute_content_hash(server.resource, resource_id) in sent:
        return True
    versions = await client.read_history(resource_type, server.id, count=_MAX_VERSIONS)
    return any(
        version is not None and strategy.compute_content_hash(version.resource, resource_id) in sent
        for version in versions or ()
    )


# -- decisions --------------------------------------------------------------------------------------------------------


def decide_study(
    item: UploadItem,
    on_server: StudyOnServer,
    row: ResourceRow | None,
    attempts: Sequence[Attempt],
    options: UploadOptions,
    strategy: IdStrategy,
) -> Decision:
    """Decide what is done with a study or an Endpoint of this lake, from what the server has."""
    if on_server.current is not None:
        if row is not None and row.is_external:
            return _merge(item, on_server.current)
        return _decide_update(item, on_server, row, attempts, options, strategy)
    if on_server.external and options.existing_study != "duplicate":
        if options.existing_study == "merge" and len(on_server.external) == 1:
            return _merge(item, ServerResource(on_server.external[0]))
        names = ", ".join(sorted(f"ImagingStudy/{study['id']}" for study in on_server.external))
        text = f"{names} of another client has its StudyInstanceUID"
        if len(on_server.external) > 1:
            text = f"{names} of other clients have its StudyInstanceUID, so that it cannot be merged into one"
        return Decision(Action.HOLD, "study-exists-on-server", text)
    return Decision(Action.SEND, resource=item.resource)


def _decide_update(
    item: UploadItem,
    on_server: StudyOnServer,
    row: ResourceRow | None,
    attempts: Sequence[Attempt],
    options: UploadOptions,
    strategy: IdStrategy,
) -> Decision:
    current = on_server.current
    assert current is not None
    server = strategy.normalize(current.resource, item.id)
    if is_same_content(server, item.resource):
        return Decision(Action.UNCHANGED, server=current)
    if not options.overwrite:
        text = _describe_external_change(current, server, row, attempts, has_arrived=on_server.has_arrived)
        if text:
            return Decision(Action.HOLD, "changed-on-server", text, server=current)
    loss = find_content_loss(server, item.resource)
    if loss and not options.prune:
        return Decision(Action.HOLD, "update-removes-content", str(loss), server=current)
    return Decision(Action.SEND, resource=item.resource, server=current)


def _describe_external_change(
    current: ServerResource,
    server: Resource,
    row: ResourceRow | None,
    attempts: Sequence[Attempt],
    *,
    has_arrived: bool | None,
) -> str | None:
    """Describe why the server's resource is the work of another client; None where it is as this lake stored it.

    It is the lake's if its version is the one that was stored last, or its content is one that was sent; where the
    server names no versions, the content alone decides. Without a row or an attempt of this lake, any content will do.
    """
    content = compute_content_hash(server)
    if content in {attempt.server_hash for attempt in attempts}:
        return None
    version = current.version or "(unnamed)"
    if row is not None and row.is_owned:
        if is_same_version(row, current) or content == row.server_hash:
            return None
        return f"version {version} on the server is not the one that this lake stored"
    if not attempts:
        return None
    if has_arrived:
        return f"version {version} on the server replaced what this lake sent"
    return f"version {version} on the server is not what this lake sent, which did not arrive"


def is_same_version(row: ResourceRow, server: ServerResource) -> bool:
    """Whether the server has the version that was stored last; versions are opaque and only compared."""
    return bool(
        (row.version and server.version and row.version == server.version)
        or (row.etag and server.etag and row.etag == server.etag)
    )


def is_still_replaced(current: ServerResource | None, row: ResourceRow | None, attempts: Sequence[Attempt]) -> bool:
    """Whether a write of this lake replaced another client's version, and only this lake has written since.

    Later updates do not bring back what was replaced, so the finding stays.
    """
    if current is None or row is None or row.reason != "concurrent-overwrite":
        return False
    sent = {attempt.server_hash for attempt in attempts}
    return is_same_version(row, current) or compute_content_hash(current.resource) in sent


# -- content loss -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ContentLoss:
    """Numbers of series and instances of the server's study that the lake's study lacks."""

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


def find_content_loss(server: Mapping[str, Any], produced: Mapping[str, Any]) -> ContentLoss:
    """Count by UID what the lake's study lacks of the server's; an instance in another series is not lost."""
    series_before, instances_before = _collect_uids(server)
    series_after, instances_after = _collect_uids(produced)
    return ContentLoss(
        len(series_before - series_after),
        len(series_before),
        len(instances_before - instances_after),
        len(instances_before),
    )


def _collect_uids(study: Mapping[str, Any]) -> tuple[set[str], set[str]]:
    """Collect the UIDs of a study's series and instances."""
    all_series = _get_objects(study.get("series"))
    return (
        {str(series.get("uid", "")) for series in all_series},
        {str(instance.get("uid", "")) for series in all_series for instance in _get_objects(series.get("instance"))},
    )


def _get_objects(items: Any) -> list[Mapping[str, Any]]:
    """Return the objects of a list of a server, which may be malformed."""
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


# -- merging into the study of another client -------------------------------------------------------------------------


def _merge(item: UploadItem, existing: ServerResource) -> Decision:
    merged = merge_into_existing(existing.resource, item.resource)
    text = f"series and instances of this lake are in ImagingStudy/{existing.id} of another client"
    if is_same_content(existing.resource, merged):
        return Decision(Action.UNCHANGED, "study-merged", text, server=existing, is_external=True)
    return Decision(Action.SEND, "study-merged", text, resource=merged, server=existing, is_external=True)


def merge_into_existing(existing: Mapping[str, Any], produced: Mapping[str, Any]) -> Resource:
    """Merge the lake's series and instances into another client's study, whose values take precedence.

    Its subject and its id stay. Counts grow with what is listed and never shrink: a study may have more than its list
    shows.
    """
    merged = strip_server_elements(existing)
    for name, value in produced.items():
        if name in _LISTS:
            present = as_list(existing.get(name))
            merged[name] = [*present, *(item for item in value if item not in present)]
        elif name not in ("id", "meta", "subject", "series", "numberOfSeries", "numberOfInstances"):
            merged.setdefault(name, value)
    merged["series"] = _merge_series_lists(_get_objects(existing.get("series")), produced.get("series", []))
    listed = sum(len(as_list(series.get("instance"))) for series in merged["series"])
    merged["numberOfSeries"] = max(_to_count(existing.get("numberOfSeries")), len(merged["series"]))
    merged["numberOfInstances"] = max(_to_count(existing.get("numberOfInstances")), listed)
    return merged


def _merge_series_lists(existing: Sequence[Mapping[str, Any]], produced: Sequence[Mapping[str, Any]]) -> list[Resource]:
    to_add = {series["uid"]: series for series in produced}
    merged = [_merge_series(series, to_add.pop(str(series.get("uid")), None)) for series in existing]
    return [*merged, *(dict(series) for series in to_add.values())]


def _merge_series(existing: Mapping[str, Any], produced: Mapping[str, Any] | None) -> Resource:
    if produced is None:
        return dict(existing)
    instances = _get_objects(existing.get("instance"))
    uids = {str(instance.get("uid")) for instance in instances}
    merged = {**produced, **existing}
    merged["instance"] = [*instances, *(instance for instance in produced["instance"] if instance["uid"] not in uids)]
    merged["numberOfInstances"] = max(_to_count(existing.get("numberOfInstances")), len(merged["instance"]))
    return merged


def _to_count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
