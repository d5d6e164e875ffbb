"""What an answer does not say of a write: the version that it made, what it replaced, and whether searches find it.

A search that found nothing decided that a resource was new; it may have been wrong (an index that lags, a gateway that
answers for the server). So what was created is searched for once more: a search that finds it shows what else there is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from dicom_etl.fhir_client import FhirClient, ServerResource
from dicom_etl.fhir_client.errors import FhirError, InvalidAnswerError
from dicom_etl.upload.items import IdStrategy, Resource, is_in_namespace
from dicom_etl.upload.ledger import Key, ResourceRow
from dicom_etl.upload.patients import find_patients
from dicom_etl.upload.studies import Namespace, find_studies

FOUND_BY_SEARCH = ("study-exists-on-server", "duplicate-patient-on-server")  # reasons of resources that are stored

_HISTORY = 5  # versions that are looked at


@dataclass(frozen=True)
class ReplacedVersion:
    """A version of another client that a write of ours replaced; None and empty where the server does not keep it.

    `by` is our version.
    """

    resource_type: str
    resource: Resource | None
    version: str
    by: str


async def read_back(client: FhirClient, resource_type: str, server_id: str) -> ServerResource:
    """A resource that was just stored, since the answer named no version.

    Raises:
        FhirError: it could not be read, or is not there.
    """
    server = await client.read(resource_type, server_id)
    if server is None:
        raise InvalidAnswerError(f"the server took {resource_type}/{server_id} and does not have it")
    return server


async def find_replaced_version(
    client: FhirClient,
    item: Key,
    server_id: str,
    strategy: IdStrategy,
    *,
    sent: Collection[str],
    version: str = "",
) -> ReplacedVersion | None:
    """What came before our version of a resource that was to be new; None where nothing did.

    Args:
        client: asks.
        item: type and our id of the resource.
        server_id: its id there.
        strategy: of ids.
        sent: the content hashes of what we sent.
        version: that of ours, where it is known.

    Raises:
        FhirError: the server could not be asked.
    """
    resource_type, our_id = item
    try:
        versions = await client.read_history(resource_type, server_id, count=_HISTORY)
    except InvalidAnswerError:  # too large, say: then the server as good as keeps no history
        versions = None
    if versions is None:
        # a server that answers 201 to what it creates has said that this was there before
        return ReplacedVersion(resource_type, None, "", version) if client.has_answered_created else None
    is_own = [
        one is not None
        and ((version and one.version == version) or strategy.content_hash(one.resource, our_id) in sent)
        for one in versions
    ]
    if not any(is_own):
        return None
    newest = is_own.index(True)
    # an attempt may have arrived several times; an earlier version of ours may have the same content
    before = next((number for number in range(newest, len(versions)) if not is_own[number]), len(versions))
    replaced = versions[before] if before < len(versions) else None
    if replaced is None:  # ours is the first version, or the first one after a deletion
        return None
    ours = versions[newest]
    return ReplacedVersion(resource_type, replaced.resource, replaced.version, ours.version if ours else version)


def describe_replaced_version(replaced: ReplacedVersion, url: str, server_id: str) -> str:
    """The text of a finding: which version of ours replaced which one, and where both are; `url` is the server's."""
    history = f"{url}/{replaced.resource_type}/{server_id}/_history"
    before = f"version {replaced.version} of another client" if replaced.version else "a version of another client"
    by = replaced.by or "(unnamed)"
    return f"our version {by} replaced {before}, which was written at the same time; see {history}"


async def confirm_indexed(
    client: FhirClient,
    rows: Sequence[ResourceRow],
    shared: Mapping[Key, tuple[str, str]],
    namespace: Namespace,
    *,
    is_duplicate_wanted: bool,
) -> list[ResourceRow]:
    """Rows of resources that were created because a search found nothing, with what a search finds now.

    `is_indexed` tells whether it found ours. Those that another client has under another id have a reason; one that an
    earlier search gave stays where this one does not find even ours.

    Args:
        client: asks.
        rows: of ImagingStudies, and of Patients whose identifiers mean the same everywhere.
        shared: system and value of those identifiers.
        namespace: tells our studies from others.
        is_duplicate_wanted: whether the settings want ours beside another client's study.
    """
    former = {row.key: row for row in rows if row.reason in FOUND_BY_SEARCH}
    rows = [row.with_changes(reason=None, reason_text=None) if row.key in former else row for row in rows]
    studies = [row for row in rows if row.type == "ImagingStudy"]
    patients = [row for row in rows if row.type == "Patient" and row.key in shared]
    checked = {row.key: row for row in rows}
    try:
        found = await find_studies(client, [row.business_key or "" for row in studies]) if studies else {}
        for row in studies:
            checked[row.key] = _with_study(row, found[row.business_key or ""], namespace, is_duplicate_wanted)
        of_identifier = await find_patients(client, sorted({shared[row.key] for row in patients})) if patients else {}
        for row in patients:
            checked[row.key] = _with_patient(row, of_identifier[shared[row.key]])
    except FhirError:  # the next run looks again
        return [former.get(row.key, row).with_changes(is_indexed=False) for row in rows]
    for key, row in former.items():
        is_wanted = is_duplicate_wanted and row.type == "ImagingStudy"
        if not checked[key].is_indexed and not is_wanted:
            checked[key] = checked[key].with_changes(reason=row.reason, reason_text=row.reason_text)
    return [checked[row.key] for row in rows]


def _with_study(
    row: ResourceRow, found: Sequence[Resource], namespace: Namespace, is_duplicate_wanted: bool
) -> ResourceRow:
    ids = {str(study.get("id")) for study in found}
    row = row.with_changes(is_indexed=row.server_id in ids)
    uid = row.business_key or ""
    external = sorted(
        str(study["id"])
        for study in found
        if str(study["id"]) != row.server_id
        and not is_in_namespace(study, uid, namespace.ids, namespace.strategy, namespace.dataset_system)
    )
    if not external or is_duplicate_wanted or row.reason:
        return row
    names = ", ".join(f"ImagingStudy/{identity}" for identity in external)
    text = f"{names} of another client has its StudyInstanceUID, too; no search found it before ours was created"
    if len(external) > 1:
        text = f"{names} of other clients have its StudyInstanceUID, too; no search found them before ours was created"
    return row.with_changes(reason="study-exists-on-server", reason_text=text)


def _with_patient(row: ResourceRow, found: Sequence[Resource]) -> ResourceRow:
    ids = {str(patient.get("id")) for patient in found}
    row = row.with_changes(is_indexed=row.server_id in ids)
    others = sorted(ids - {row.server_id} - _merged_ids(found))
    if not others or row.reason:
        return row
    names = ", ".join(f"Patient/{identity}" for identity in others)
    return row.with_changes(reason="duplicate-patient-on-server", reason_text=names)


def _merged_ids(patients: Sequence[Resource]) -> set[str]:
    """The ids of Patients that were merged into others, and so are no copies."""
    merged = set()
    for patient in patients:
        links = patient.get("link")
        if isinstance(links, list) and any(isinstance(one, dict) and one.get("type") == "replaced-by" for one in links):
            merged.add(str(patient.get("id")))
    return merged
