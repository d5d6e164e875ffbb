"""Confirmation of writes: the new version, the version that it replaced, and whether searches find the resource.

A resource was new because a search had not found it, which may have been wrong (an index that lags, a gateway that
answers for the server). So what was created is searched for once more: a search that finds it shows duplicates, too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from dicom_etl.fhir_client import FhirClient, ServerResource
from dicom_etl.fhir_client.errors import FhirError, InvalidAnswerError
from dicom_etl.upload.items import IdStrategy, Resource, as_list, is_in_namespace
from dicom_etl.upload.ledger import Key, ResourceRow
from dicom_etl.upload.patients import find_patients
from dicom_etl.upload.studies import Namespace, find_studies

FOUND_BY_SEARCH = ("study-exists-on-server", "duplicate-patient-on-server")  # reasons of resources that are stored

_MAX_VERSIONS = 5  # of a history


@dataclass(frozen=True)
class ReplacedVersion:
    """A version of another client that a write of this lake replaced.

    `resource` is None and `version` empty where the server does not keep it; `by` is the version of this lake.
    """

    resource_type: str
    resource: Resource | None
    version: str
    by: str


async def read_back(client: FhirClient, resource_type: str, server_id: str) -> ServerResource:
    """Read a resource that was just stored, because the answer named no version.

    Raises:
        FhirError: it could not be read, or is not there.
    """
    server = await client.read(resource_type, server_id)
    if server is None:
        raise InvalidAnswerError(f"the server accepted {resource_type}/{server_id} and does not have it")
    return server


async def find_replaced_version(
    client: FhirClient,
    key: Key,
    server_id: str,
    strategy: IdStrategy,
    *,
    sent: Collection[str],
    version: str = "",
) -> ReplacedVersion | None:
    """Find the version before this lake's, of a resource that was sent as a new one; None where there is none.

    Args:
        client: the client of the server.
        key: type and id of the resource in the lake.
        server_id: its id on the server.
        strategy: client-assigned or server-assigned ids.
        sent: the content hashes of what this lake sent.
        version: the version of this lake, where it is known.

    Raises:
        FhirError: the server could not be asked.
    """
    resource_type, resource_id = key
    try:
        versions = await client.read_history(resource_type, server_id, count=_MAX_VERSIONS)
    except InvalidAnswerError:  # for example too large: treated as if the server kept no history
        versions = None
    if versions is None:
        # a server that answers 201 when it creates has shown, by another status, that the resource existed before
        return ReplacedVersion(resource_type, None, "", version) if client.has_answered_created else None
    is_of_lake = [
        server is not None
        and (
            (version and server.version == version)
            or strategy.compute_content_hash(server.resource, resource_id) in sent
        )
        for server in versions
    ]
    if not any(is_of_lake):
        return None
    newest = is_of_lake.index(True)
    # an attempt may have arrived several times; an earlier version of this lake may have the same content
    before = next((number for number in range(newest, len(versions)) if not is_of_lake[number]), len(versions))
    replaced = versions[before] if before < len(versions) else None
    if replaced is None:  # the lake's version is the first one, or the first one after a deletion
        return None
    lake_version = versions[newest]
    by = lake_version.version if lake_version else version
    return ReplacedVersion(resource_type, replaced.resource, replaced.version, by)


def describe_replaced_version(replaced: ReplacedVersion, url: str, server_id: str) -> str:
    """Describe which version of this lake replaced which other one; `url` is the server's."""
    history = f"{url}/{replaced.resource_type}/{server_id}/_history"
    before = f"version {replaced.version} of another client" if replaced.version else "a version of another client"
    by = replaced.by or "(unnamed)"
    return f"version {by} of this lake replaced {before}, which was written at the same time; see {history}"


async def confirm_indexed(
    client: FhirClient,
    rows: Sequence[ResourceRow],
    shared: Mapping[Key, tuple[str, str]],
    namespace: Namespace,
    *,
    is_duplicate_wanted: bool,
) -> list[ResourceRow]:
    """Search for resources that were created because a search had not found them; returns their updated rows.

    `is_indexed` is whether the search finds the resource itself. Where another client has the same under another id,
    the row gets a reason; a reason from an earlier search stays as long as this search does not find the resource.

    Args:
        client: the client of the server.
        rows: of ImagingStudies, and of Patients whose identifiers mean the same everywhere.
        shared: system and value of those identifiers.
        namespace: distinguishes the lake's studies from those of other clients.
        is_duplicate_wanted: whether the settings want a study beside another client's study.
    """
    former = {row.key: row for row in rows if row.reason in FOUND_BY_SEARCH}
    rows = [row.with_changes(reason=None, reason_text=None) if row.key in former else row for row in rows]
    studies = [row for row in rows if row.type == "ImagingStudy"]
    patients = [row for row in rows if row.type == "Patient" and row.key in shared]
    confirmed = {row.key: row for row in rows}
    try:
        by_uid = await find_studies(client, [row.business_key or "" for row in studies]) if studies else {}
        for row in studies:
            confirmed[row.key] = _confirm_study(row, by_uid[row.business_key or ""], namespace, is_duplicate_wanted)
        by_identifier = await find_patients(client, sorted({shared[row.key] for row in patients})) if patients else {}
        for row in patients:
            confirmed[row.key] = _confirm_patient(row, by_identifier[shared[row.key]])
    except FhirError:  # the next run searches again
        return [former.get(row.key, row).with_changes(is_indexed=False) for row in rows]
    for key, row in former.items():
        is_wanted = is_duplicate_wanted and row.type == "ImagingStudy"
        if not confirmed[key].is_indexed and not is_wanted:
            confirmed[key] = confirmed[key].with_changes(reason=row.reason, reason_text=row.reason_text)
    return [confirmed[row.key] for row in rows]


def _confirm_study(
    row: ResourceRow, matches: Sequence[Resource], namespace: Namespace, is_duplicate_wanted: bool
) -> ResourceRow:
    ids = {str(study.get("id")) for study in matches}
    row = row.with_changes(is_indexed=row.server_id in ids)
    uid = row.business_key or ""
    external = sorted(
        str(study["id"])
        for study in matches
        if str(study["id"]) != row.server_id
        and not is_in_namespace(study, uid, namespace.ids, namespace.strategy, namespace.dataset_system)
    )
    if not external or is_duplicate_wanted or row.reason:
        return row
    names = ", ".join(f"ImagingStudy/{server_id}" for server_id in external)
    text = f"{names} of another client has its StudyInstanceUID, too; no search found it before this one was created"
    if len(external) > 1:
        text = (
            f"{names} of other clients have its StudyInstanceUID, too; no search found them before this one was created"
        )
    return row.with_changes(reason="study-exists-on-server", reason_text=text)


def _confirm_patient(row: ResourceRow, matches: Sequence[Resource]) -> ResourceRow:
    ids = {str(patient.get("id")) for patient in matches}
    row = row.with_changes(is_indexed=row.server_id in ids)
    merged = {str(patient.get("id")) for patient in matches if _is_merged(patient)}
    others = sorted(ids - {row.server_id} - merged)
    if not others or row.reason:
        return row
    names = ", ".join(f"Patient/{server_id}" for server_id in others)
    return row.with_changes(reason="duplicate-patient-on-server", reason_text=names)


def _is_merged(patient: Resource) -> bool:
    """Whether a Patient was merged into another one, and so is not a duplicate."""
    links = as_list(patient.get("link"))
    return any(isinstance(link, dict) and link.get("type") == "replaced-by" for link in links)
