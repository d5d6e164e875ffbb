"""Resources of ours on the server: read by id where that is known, else searched for by id or identifier.

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
    """The server's resources of those items that the ledger knows to be there, or that may have arrived; read by id."""
    places: dict[Key, str] = {}
    for item in items:
        row = rows.get(item.key)
        known_id = strategy.find_known_id(item.id, row.server_id if row else None, has_attempts=item.key in attempts)
        if known_id is not None:
            places[item.key] = known_id
    reads = await gather(client.read(key[0], identity) for key, identity in places.items())
    return dict(zip(places, reads, strict=True))


async def find_by_search(
    client: FhirClient, items: Sequence[UploadItem], strategy: IdStrategy
) -> dict[Key, ServerResource]:
    """Resources of ours, all of one type, that no ledger knows and the server has all the same.

    Raises:
        FhirError: the server could not be asked.
    """
    found: dict[Key, ServerResource] = {}
    most = _IDS_AT_ONCE if strategy.is_client_assigned else _TOKENS_AT_ONCE
    for start in range(0, len(items), most):
        some = {one.id: one for one in items[start : start + most]}
        resource_type = items[start].type
        if strategy.is_client_assigned:
            search = {"_id": ",".join(some)}
        else:
            search = {"identifier": ",".join(map(strategy.token, some))}
        for resource in await client.search(resource_type, search | {"_count": str(len(some))}):
            for identity, item in some.items():
                if strategy.is_ours(resource, identity):
                    found[item.key] = ServerResource(resource)
    return found
