"""Under which address a resource goes onto the server: our own id, or a search where the server gives ids itself.

A server that takes no ids of ours gets each resource with one more identifier, made from our id, and a conditional PUT
(FHIR R4, 3.1.0.5.3) that finds it by that. Once the ledger knows the server's id it is a plain PUT. Two writers at once
could make two resources so (measured), hence one request at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from urllib.parse import quote

import orjson

from dicom_etl.server.client import escaped
from dicom_etl.server.transactions import Item, canonical

I = TypeVar("I", bound=Item)  # noqa: E741


@dataclass(frozen=True)
class Addressing:
    """How resources are addressed. `site` is the namespace of the identifier that stands for our id."""

    site: str
    takes_ids: bool = True

    def in_flight(self, wanted: int) -> int:
        """How many bundles may be on their way."""
        return wanted if self.takes_ids else 1

    def addressed(self, item: I) -> I:
        """An item as it is sent."""
        if self.takes_ids or item.adopts:
            return item
        resource = orjson.loads(item.body)
        identifier = self._identifier(item.id)
        others = [one for one in resource.get("identifier", []) if one != identifier]
        resource["identifier"] = [*others, identifier]
        if item.at:
            return replace(item, body=canonical(resource | {"id": item.at}))
        resource.pop("id", None)
        return replace(item, body=canonical(resource), condition=self.condition(item.id))

    def is_ours(self, resource: Mapping[str, Any], identity: str) -> bool:
        """Whether a resource carries the identifier that stands for our id."""
        return not self.takes_ids and self._identifier(identity) in resource.get("identifier", [])

    def without_our_identifier(self, resource: Mapping[str, Any]) -> dict[str, Any]:
        """A resource of the server as we make it."""
        if self.takes_ids:
            return dict(resource)
        kept = [one for one in resource.get("identifier", []) if one.get("system") != self._system]
        rest = {name: value for name, value in resource.items() if name != "identifier"}
        return rest | {"identifier": kept} if kept else rest

    def _identifier(self, identity: str) -> dict[str, str]:
        return {"system": self._system, "value": identity}

    def condition(self, identity: str) -> str:
        """The search that finds our resource; percent-encoded, so that no character of it can mean another."""
        return "identifier=" + quote(f"{escaped(self._system)}|{escaped(identity)}", safe="")

    @property
    def _system(self) -> str:
        return f"{self.site.rstrip('/')}/resource-id"
