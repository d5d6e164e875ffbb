"""Where the server has resources of ours of which the ledger does not know that."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from dicom_etl.server.addressing import Addressing
from dicom_etl.server.client import Client
from dicom_etl.server.searching import searched
from dicom_etl.server.sending import Sender
from dicom_etl.server.transactions import Key
from dicom_etl.upload.reconciling import fetched


async def located(client: Client, sender: Sender, addressing: Addressing, keys: Collection[Key]) -> set[str]:
    """Where the server has those of some resources of ours that it has.

    Raises:
        FhirError: it could not be asked.
    """
    places: set[str] = set()
    for kind in sorted({kind for kind, _ in keys}):
        ids = sorted(identity for one, identity in keys if one == kind)
        if addressing.takes_ids:
            there = await sender.ask(lambda kind=kind, ids=ids: fetched(client, kind, ids, "identifier"))  # type: ignore[misc]
            places |= {f"{kind}/{identity}" for identity in there}
            continue
        for identity in ids:
            search = f"{kind}?{addressing.condition(identity)}&_elements=identifier"
            found = await searched(client, kind, partial(client.execute, search, method="get"), sender.ask)
            places |= {f"{kind}/{resource['id']}" for resource in found}
    return places
