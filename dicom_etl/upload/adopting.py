"""An ImagingStudy of somebody else with the StudyInstanceUID of one of ours.

Whether it is somebody else's its id and identifiers show. Such a study is left alone,
and ours is held; or, if the settings say so, our series and instances are merged into it, and all that we do not know
of it stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from dicom_etl.server.client import Client
from dicom_etl.server.searching import searched
from dicom_etl.upload.reconciling import plain

_AT_ONCE = 25  # UIDs of up to 64 characters in one search
_PAGE = 100
_STUDY = "urn:dicom:uid"
_LISTS = ("identifier", "modality", "endpoint", "procedureCode", "reasonCode", "procedure", "reason", "basedOn", "note")

Resource = dict[str, Any]


async def studies_of(client: Client, uids: Sequence[str]) -> dict[str, list[Resource]]:
    """The server's ImagingStudies of each StudyInstanceUID: their ids and identifiers.

    Raises:
        FhirError: a search failed.
    """
    found: dict[str, list[Resource]] = {uid: [] for uid in uids}
    for start in range(0, len(uids), _AT_ONCE):
        some = uids[start : start + _AT_ONCE]
        tokens = ",".join(f"{_STUDY}|urn:oid:{uid}" for uid in some)
        search = {"identifier": tokens, "_elements": "identifier", "_count": str(_PAGE)}
        first = partial(client.execute, "ImagingStudy", method="get", params=search)
        for study in await searched(client, "ImagingStudy", first):
            for uid in uids_of(study) & set(some):
                found[uid].append(study)
    return found


def uids_of(study: Mapping[str, Any]) -> set[str]:
    """The StudyInstanceUIDs by which a study is known."""
    values = [str(i.get("value", "")) for i in study.get("identifier", []) if i.get("system") == _STUDY]
    return {value.removeprefix("urn:oid:") for value in values}


def datasets_of(study: Mapping[str, Any], dataset_system: str) -> list[str]:
    """The datasets that a study names: that of what this tool made, and those of which something was merged into it."""
    named = [i.get("value", "") for i in study.get("identifier", []) if i.get("system") == dataset_system]
    return [str(value).removeprefix("urn:uid:") for value in named]


def adopted(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Resource:
    """Their study with our series and instances in it; what they say of a thing counts before what we say.

    Its subject and its id stay theirs. Counts grow with what is listed and never shrink: a study may legitimately have
    more than its list shows.
    """
    made: Resource = plain(theirs)
    for name, value in ours.items():
        if name in _LISTS:
            made[name] = _united(theirs.get(name, []), value)
        elif name not in ("id", "meta", "subject", "series", "numberOfSeries", "numberOfInstances"):
            made.setdefault(name, value)
    made["series"] = _series(theirs.get("series", []), ours.get("series", []))
    listed = sum(len(one.get("instance", [])) for one in made["series"])
    made["numberOfSeries"] = max(theirs.get("numberOfSeries", 0), len(made["series"]))
    made["numberOfInstances"] = max(theirs.get("numberOfInstances", 0), listed)
    return made


def _series(theirs: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]]) -> list[Resource]:
    mine = {one["uid"]: one for one in ours}
    made = [_one_series(one, mine.pop(one.get("uid"), None)) for one in theirs]
    return [*made, *(dict(one) for one in mine.values())]


def _one_series(theirs: Mapping[str, Any], ours: Mapping[str, Any] | None) -> Resource:
    if ours is None:
        return dict(theirs)
    made = {**ours, **theirs}
    known = {one.get("uid") for one in theirs.get("instance", [])}
    made["instance"] = [*theirs.get("instance", []), *(one for one in ours["instance"] if one["uid"] not in known)]
    made["numberOfInstances"] = max(theirs.get("numberOfInstances", 0), len(made["instance"]))
    return made


def _united(theirs: Sequence[Any], ours: Sequence[Any]) -> list[Any]:
    return [*theirs, *(item for item in ours if item not in theirs)]
