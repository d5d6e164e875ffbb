"""Looking up resources of this lake on the server: read by id where the id is known, else searched for.

Not here: resources of other clients (`patients`, `studies`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dicom_etl.fhir_client import FhirClient, ServerResource
from dicom_etl.upload.items import IdStrategy, UploadItem
from dicom_etl.upload.ledger import Attempt, Key, ResourceRow
from dicom_etl.upload.tasks import gather

_IDS_AT_ONCE = 50
_TOKENS_AT_ONCE = 25  # identifiers of up to 150 characters in one URL


async def read_by_id(
    client: FhirClient,
    items: Sequence[UploadItem],
    rows: Mapping[Key, ResourceRow],
    attempts: Mapping[Key, Sequence[Attempt]],
    strategy: IdStrategy,
) -> dict[Key, ServerResource | None]:
    """Read those items from the server that are there according to the ledger, or may have arrived.

    Returns:
        by key, the server's resource, or None where it has none; items whose id is not known are not in it.
    """
    ids: dict[Key, str] = {}
    for item in items:
        row = rows.get(item.key)
        known_id = strategy.find_known_id(item.id, row.server_id if row else None, has_attempts=item.key in attempts)
        if known_id is not None:
            ids[item.key] = known_id
    reads = await gather(client.read(key[0], server_id) for key, server_id in ids.items())
    return dict(zip(ids, reads, strict=True))


async def find_by_search(
    client: FhirClient, items: Sequence[UploadItem], strategy: IdStrategy
) -> dict[Key, ServerResource]:
    """Search for items, all of one type, that the ledger does not have; returns those that the server has.

    Raises:
        FhirError: the server could not be asked.
    """
    matches: dict[Key, ServerResource] = {}
    page = _IDS_AT_ONCE if strategy.is_client_assigned else _TOKENS_AT_ONCE
    for start in range(0, len(items), page):
        by_id = {item.id: item for item in items[start : start + page]}
        resource_type = items[start].type
        if strategy.is_client_assigned:
            search = {"_id": ",".join(by_id)}
        else:
            search = {"identifier": ",".join(map(strategy.make_token, by_id))}
        for resource in await client.search(resource_type, search | {"_count": str(len(by_id))}):
            for resource_id, item in by_id.items():
                if strategy.is_lake_resource(resource, resource_id):
                    matches[item.key] = ServerResource(resource)
    return matches
