"""Whether a study may be sent, from what the server has of it.

Held, with the code of a finding: what would take series or instances away, what somebody else changed since we sent it,
and what the server has of somebody else. `prune`, `overwrite` and the setting `existing_study` decide otherwise.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dicom_etl.server.transactions import Key, canonical
from dicom_etl.upload.adopting import adopted, datasets_of, studies_of
from dicom_etl.upload.ledger import Row, on_server
from dicom_etl.upload.parts import Candidate
from dicom_etl.upload.reconciling import fetched, is_alike, plain, version_of
from dicom_etl.upload.run import Run
from dicom_etl.upload.shrinking import loss
from dicom_etl.upload.updating import updating

Resource = dict[str, Any]


@dataclass
class There:
    """What the server has of a study: ours, and those of somebody else with the same StudyInstanceUID."""

    own: Resource | None = None
    foreign: list[Resource] = field(default_factory=list)


async def look_up(run: Run, bundle: Sequence[Candidate]) -> dict[Key, There]:
    """What the server has of the studies of a bundle: where the ledger knows them, else by their UIDs.

    Raises:
        FhirError: a search failed.
    """
    places = {c.key: str(_row(c)["id_on_server"]) for c in bundle if on_server(c.part.ledger.get(c.key))}
    there = await fetched(run.client, "ImagingStudy", sorted(set(places.values()))) if places else {}
    unknown = {_uid(c): c for c in bundle if places.get(c.key) not in there}
    foreign: dict[Key, list[str]] = defaultdict(list)
    for uid, studies in (await studies_of(run.client, sorted(unknown)) if unknown else {}).items():
        candidate = unknown[uid]
        for study in studies:
            if study["id"] == candidate.id or run.addressing.is_ours(study, candidate.id):
                places[candidate.key] = study["id"]
            elif _is_foreign(study, uid, run):
                foreign[candidate.key].append(study["id"])
    more = {*places.values(), *(one for ids in foreign.values() for one in ids)} - there.keys()
    there |= await fetched(run.client, "ImagingStudy", sorted(more)) if unknown and more else {}
    return {
        c.key: There(there.get(places.get(c.key, "")), [there[one] for one in foreign[c.key] if one in there])
        for c in bundle
    }


def _is_foreign(study: Resource, uid: str, run: Run) -> bool:
    """Whether a study is somebody else's: no dataset that it names is one of ours that would have it under that id."""
    ours = [run.ids.resource_id("ImagingStudy", dataset, uid) for dataset in datasets_of(study, run.dataset_system)]
    return not any(study["id"] == identity or run.addressing.is_ours(study, identity) for identity in ours)


def own_place(candidate: Candidate, there: There) -> Candidate:
    """The candidate where the server has it."""
    return replace(candidate, at="" if there.own is None or there.own["id"] == candidate.id else there.own["id"])


def judge(candidate: Candidate, there: There, run: Run) -> Candidate | None:
    """The study as it is to be sent; None where it is held, or where the server has it as it should be.

    Args:
        candidate: a study of ours.
        there: what the server has of it.
        run: says what may be done.
    """
    candidate, row = own_place(candidate, there), candidate.part.ledger.get(candidate.key)
    if there.own is not None and row is not None and row["linked"]:
        return _adopting(candidate, there.own)
    if there.own is not None:
        return _restoring(candidate, there.own, run) or updating(candidate, there.own, row, run)
    if there.foreign and run.fhir.existing_study != "duplicate":
        return _beside_foreign(candidate, there.foreign, run)
    return replace(candidate, is_new=True)


def _restoring(candidate: Candidate, own: Resource, run: Run) -> Candidate | None:
    """What ours replaced, to be put back, where ours would have been held if that had been seen before."""
    if candidate.lost is None or run.options.prune or version_of(own) != str(int(candidate.overwrote) + 1):
        return None  # meant, or somebody wrote after us
    taken = loss(candidate.lost, candidate.resource)
    if not taken:
        return None
    body = canonical(plain(candidate.lost) | {"id": own["id"]})
    return replace(candidate, body=body, if_match=version_of(own), restores=("upload-shrinks", str(taken)))


def _beside_foreign(candidate: Candidate, foreign: Sequence[Resource], run: Run) -> Candidate | None:
    names = ", ".join(sorted(f"ImagingStudy/{study['id']}" for study in foreign))
    if run.fhir.existing_study == "merge" and len(foreign) == 1:
        return _adopting(candidate, foreign[0])
    several = "" if len(foreign) == 1 else ": several, so that none can be added to"
    candidate.part.hold(candidate, "study-on-server", f"{names} of somebody else has its StudyInstanceUID{several}")
    return None


def _adopting(candidate: Candidate, theirs: Resource) -> Candidate | None:
    candidate = replace(candidate, at=theirs["id"], adopts=True)
    made = adopted(theirs, candidate.resource)
    if is_alike(made, theirs):
        candidate.part.settle(candidate, version_of(theirs))
        return None
    return replace(candidate, body=canonical(made), if_match=version_of(theirs))


def _row(candidate: Candidate) -> Row:
    return candidate.part.ledger.get(candidate.key) or {}


def _uid(candidate: Candidate) -> str:
    return str(candidate.row["key"])
