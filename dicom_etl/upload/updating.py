"""Whether a resource of ours that the server has may be replaced: not what somebody else changed, nor to shrink it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dicom_etl.server.transactions import canonical, digest
from dicom_etl.upload.ledger import Row, lines, on_server
from dicom_etl.upload.parts import Candidate
from dicom_etl.upload.reconciling import is_alike, plain, version_of
from dicom_etl.upload.run import Run
from dicom_etl.upload.shrinking import loss

Resource = dict[str, Any]


def updating(candidate: Candidate, own: Resource, row: Row | None, run: Run) -> Candidate | None:
    """The resource as it is to be sent; None where it is held, or where the server has it as it should be.

    Args:
        candidate: a resource of ours.
        own: the server's.
        row: the ledger's.
        run: says what may be done.
    """
    if has(own, candidate, run):
        candidate.part.settle(candidate, version_of(own))
        return None
    if not run.options.overwrite and _is_changed(_as_made(own, candidate, run), row):
        text = f"version {version_of(own)} on the server is not the one that was sent; --overwrite replaces it"
        candidate.part.hold(candidate, "changed-on-server", text)
        return None
    lost = loss(own, candidate.resource)
    if lost and not run.options.prune:
        candidate.part.hold(candidate, "upload-shrinks", str(lost), version_of(own), _sent(own, candidate, run, row))
        return None
    return replace(candidate, if_match=version_of(own))


def _is_changed(own: Resource, row: Row | None) -> bool:
    """Whether somebody else wrote to it: its version moved, and its content is nothing that we sent.

    Where the server names no version, the content alone tells. What was never ours to store cannot be changed.
    """
    if row is None or not on_server(row) or row["hash"] is None:
        return False
    if version_of(own) and version_of(own) == row["version"]:
        return False
    return digest(canonical(plain(own))) not in (row["hash"], *lines(row["tried"]))


def _sent(own: Resource, candidate: Candidate, run: Run, row: Row | None) -> str | None:
    """The hash of what the server has, where that is what we sent and no answer told of."""
    here = digest(canonical(plain(_as_made(own, candidate, run))))
    return here if row is not None and here in lines(row["tried"]) else None


def has(own: Resource, candidate: Candidate, run: Run) -> bool:
    """Whether the server has a resource of ours as we make it."""
    return is_alike(_as_made(own, candidate, run), candidate.resource)


def _as_made(own: Resource, candidate: Candidate, run: Run) -> Resource:
    """The server's resource of ours under the id that we give it."""
    return run.addressing.without_our_identifier(own) | {"id": candidate.id}
