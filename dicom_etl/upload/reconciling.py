"""A Patient of ours and what the server has under its id: add-only, so that nobody's words are lost.

Another lake, another loader or a person may have written to the same Patient. What they added stays; what we said last
and say differently now is changed; where both say different things the server's stays, and that is told. Nothing here
talks to the server but `fetched`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import orjson

from dicom_etl.server.client import Client
from dicom_etl.server.searching import searched
from dicom_etl.upload.merging import same_date

_AT_ONCE = 50  # ids in one search: its URL stays below 2,000 characters
_SERVERS_OWN = ("versionId", "lastUpdated", "source")  # of meta: the server writes them

Resource = dict[str, Any]


class Reconciled(NamedTuple):
    """A Patient as it should stand on the server, and the elements of which server and we say different things."""

    patient: Resource
    contradictions: tuple[str, ...]


async def fetched(client: Client, kind: str, ids: Sequence[str], *elements: str) -> dict[str, Resource]:
    """The server's resources of a type, by id; those that it has not are left out.

    Args:
        client: asks.
        kind: the type.
        ids: of any number.
        elements: that are wanted; none: whole resources.

    Raises:
        FhirError: a search failed.
    """
    found: dict[str, Resource] = {}
    for start in range(0, len(ids), _AT_ONCE):
        some = ids[start : start + _AT_ONCE]
        search = {"_id": ",".join(some), "_count": str(len(some))}
        search |= {"_elements": ",".join(elements)} if elements else {}
        first = partial(client.execute, kind, method="get", params=search)
        found |= {resource["id"]: resource for resource in await searched(client, kind, first)}
    return {identity: found[identity] for identity in ids if identity in found}


def version_of(resource: Mapping[str, Any] | None) -> str:
    """The version that the server names; empty where it names none."""
    return str((resource or {}).get("meta", {}).get("versionId", ""))


def plain(resource: Mapping[str, Any]) -> Resource:
    """A resource without what a server writes into it: versions, times, and a narrative that says nothing else.

    A narrative with something that the elements do not say (FHIR R4, Narrative.status `additional`) is somebody's.
    """
    dropped = {"meta"} if resource.get("text", {}).get("status") == "additional" else {"meta", "text"}
    kept = {key: value for key, value in resource.items() if key not in dropped}
    meta = {key: value for key, value in resource.get("meta", {}).items() if key not in _SERVERS_OWN}
    return kept | ({"meta": meta} if meta else {})


def is_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two resources say the same, whatever the order of keys."""
    return _canonical(plain(one)) == _canonical(plain(other))


def reconciled(ours: Resource, before: Sequence[Mapping[str, Any]], theirs: Mapping[str, Any]) -> Reconciled:
    """Our Patient with what the server has.

    Args:
        ours: as it is made now.
        before: as we made it last, and as it was sent since and may have arrived; empty where neither is known, and
            then nothing of the server's is changed.
        theirs: the server's.
    """
    made: Resource = {}
    contradictory: list[str] = []
    for name in _names(ours, theirs):
        mine, there = ours.get(name), plain(theirs).get(name)
        old = [one[name] for one in before if name in one]
        if name in ("id", "resourceType"):
            made[name] = there or mine
        elif isinstance(mine if mine is not None else there, list):
            made[name] = _united(mine or [], [item for one in old for item in one], there or [])
        elif name == "meta":
            made[name] = _labels(mine, there)
        elif mine is None or there is None:
            made[name] = _one_sided(mine, old, there)
        elif mine == there or there in old:
            made[name] = mine
        else:
            made[name] = _more_precise(name, mine, there)
            if made[name] is None:
                made[name] = there
                contradictory.append(name)
    return Reconciled({k: v for k, v in made.items() if v not in (None, [], {})}, tuple(contradictory))


def _names(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys([*ours, *plain(theirs)]))


def _one_sided(mine: Any, old: Sequence[Any], there: Any) -> Any:
    """What one side alone says; what we said and no longer say goes, unless somebody changed it."""
    return mine if there is None else None if there in old else there


def _united(mine: Sequence[Any], old: Sequence[Any], there: Sequence[Any]) -> list[Any]:
    """Ours and the server's items; those that we made and no longer make go.

    In the server's order where it has them all, else in one that does not depend on who came first.
    """
    withdrawn = {_canonical(item) for item in old} - {_canonical(item) for item in mine}
    items = {_canonical(item): item for item in (*there, *mine)}
    kept = {text: item for text, item in items.items() if text not in withdrawn}
    has_all = len(kept) == len(there) and all(_canonical(item) in kept for item in there)
    return list(kept.values()) if has_all else [kept[text] for text in sorted(kept)]


def _labels(mine: Mapping[str, Any] | None, there: Mapping[str, Any] | None) -> Resource:
    """meta: its lists are united."""
    made: Resource = dict(there or {})
    for name, items in (mine or {}).items():
        made[name] = _united(items, [], made.get(name, []))
    return made


def _more_precise(name: str, mine: Any, there: Any) -> Any:
    """Of two dates of birth of which one is part of the other, the longer; None where they are different."""
    if name == "birthDate" and same_date(str(mine), str(there)):
        return max(mine, there, key=len)
    return None


def _canonical(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
