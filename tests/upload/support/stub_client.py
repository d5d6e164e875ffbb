"""A FHIR server in memory with the methods of `FhirClient` that the upload uses, for tests without a server.

Its attributes determine what it answers and when it fails; it keeps all versions of its resources.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import orjson

from dicom_etl.fhir_client import ServerResource, WriteRequest, WriteResult
from dicom_etl.fhir_client.errors import ConflictError, FhirError

Resource = dict[str, Any]
Key = tuple[str, str]


class StubClient:
    """See the module.

    Attributes:
        versions: by type and id, oldest first; None is a deletion.
        calls: the requests in order, each as method and argument.
        on_call: called before each request; an error that it raises is the answer, and it may write as another client.
        after_write: called after each write has been stored; an error that it raises replaces the answer.
        names_versions, keeps_history, tells_creates, names_ids: features of the server; all True by default.
        version_name: of the n-th version of a resource.
        unindexed: resources that no search finds.
    """

    url = "https://server.example/fhir"

    def __init__(self) -> None:
        self.versions: dict[Key, list[Resource | None]] = defaultdict(list)
        self.calls: list[tuple[str, Any]] = []
        self.on_call: Callable[[str, Any], None] = lambda _method, _what: None
        self.after_write: Callable[[str, Any], None] = lambda _method, _what: None
        self.names_versions = self.keeps_history = self.tells_creates = self.names_ids = True
        self.version_name: Callable[[int], str] = str
        self.unindexed: set[Key] = set()
        self.stop_reason: str | None = None
        self.is_unreachable = self.has_answered_created = False
        self.retries: list[bool] = []

    # -- what another client does

    def store(self, resource: Resource) -> Key:
        """Write a resource as another client."""
        key = str(resource["resourceType"]), str(resource["id"])
        versions = self.versions[key]
        meta = dict(resource["meta"]) if isinstance(resource.get("meta"), dict) else {}
        if self.names_versions:
            meta["versionId"] = self.version_name(len(versions) + 1)
        versions.append(resource | ({"meta": meta} if meta else {}))
        return key

    def current(self, key: Key) -> Resource | None:
        """Return the current version of a resource."""
        return self.versions[key][-1] if self.versions[key] else None

    def methods(self, name: str) -> list[Any]:
        """List the arguments of the calls of one method."""
        return [what for method, what in self.calls if method == name]

    # -- the methods of FhirClient

    async def read(self, resource_type: str, resource_id: str) -> ServerResource | None:
        self._note("read", (resource_type, resource_id))
        found = self.current((resource_type, resource_id))
        return ServerResource(found, self._etag(found)) if found is not None else None

    async def read_history(
        self, resource_type: str, resource_id: str, *, count: int = 10
    ) -> list[ServerResource | None] | None:
        self._note("read_history", (resource_type, resource_id))
        if not self.keeps_history:
            return None
        newest = list(reversed(self.versions[resource_type, resource_id]))[:count]
        return [ServerResource(one) if one is not None else None for one in newest]

    async def search(
        self, resource_type: str, parameters: Mapping[str, str], *, in_body: bool = False
    ) -> list[Resource]:
        self._note("search", (resource_type, dict(parameters)))
        found = [(key, one) for key in sorted(self.versions) if (one := self.current(key)) is not None]
        matches = [one for key, one in found if key[0] == resource_type and key not in self.unindexed]
        if "_id" in parameters:
            return [one for one in matches if one["id"] in parameters["_id"].split(",")]
        if "subject" in parameters:
            return [one for one in matches if one.get("subject", {}).get("reference") == parameters["subject"]]
        return [one for one in matches if self.has_identifier(one, parameters["identifier"])]

    async def put(self, request: WriteRequest) -> WriteResult:
        self._note("put", request.path)
        result = self._write(request)
        self.after_write("put", request.path)
        return result

    async def transaction(self, requests: Sequence[WriteRequest], *, retry: bool = True) -> list[WriteResult]:
        paths = [request.path for request in requests]
        self.retries.append(retry)
        self._note("transaction", paths)
        before = {key: list(versions) for key, versions in self.versions.items()}
        try:
            results = [self._write(request) for request in requests]
        except FhirError:
            self.versions = defaultdict(list, before)
            raise
        self.after_write("transaction", paths)
        return results

    async def delete(self, resource_type: str, resource_id: str) -> bool:
        self._note("delete", (resource_type, resource_id))
        versions = self.versions[resource_type, resource_id]
        was_there = bool(versions) and versions[-1] is not None
        if was_there:
            versions.append(None)
        return was_there

    # -- how

    def _note(self, method: str, what: Any) -> None:
        self.calls.append((method, what))
        self.on_call(method, what)

    def _write(self, request: WriteRequest) -> WriteResult:
        resource = orjson.loads(request.body)
        if request.condition:
            resource["id"] = self._find(request) or f"server-{len(self.versions)}"
        found = self.current((request.type, resource["id"]))
        if request.if_match and (found is None or self._etag(found) != request.if_match):
            raise ConflictError("another version", status=412)
        key = self.store(resource)
        is_created = found is None and self.tells_creates
        self.has_answered_created |= is_created
        stored = self.versions[key][-1]
        assert stored is not None
        version = stored.get("meta", {}).get("versionId", "")
        names_id = self.names_ids or not request.condition
        return WriteResult(201 if is_created else 200, key[1] if names_id else "", version, self._etag(stored))

    def _find(self, request: WriteRequest) -> str | None:
        tokens = unquote(request.condition).removeprefix("identifier=")
        found = [one for key in self.versions if key[0] == request.type and (one := self.current(key)) is not None]
        return next((str(one["id"]) for one in found if self.has_identifier(one, tokens)), None)

    def has_identifier(self, resource: Resource, tokens: str) -> bool:
        """Whether a resource has one of some identifiers."""
        wanted = [re.sub(r"\\(.)", r"\1", token) for token in re.split(r"(?<!\\),", tokens)]
        identifiers = resource.get("identifier")
        return any(
            isinstance(one, dict) and f"{one.get('system')}|{one.get('value')}" in wanted
            for one in (identifiers if isinstance(identifiers, list) else [])
        )

    def _etag(self, resource: Resource) -> str:
        meta = resource.get("meta")
        version = meta.get("versionId", "") if isinstance(meta, dict) else ""
        return f'W/"{version}"' if version else ""
