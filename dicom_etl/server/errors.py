"""What can go wrong between us and a FHIR server, and what to do about it.

Every error is one sentence without resource content and without credentials: a server's OperationOutcome is reduced
to its codes and diagnostics, with the values taken out that the server repeats (`echoes`); any other body to the name
of its status.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import orjson
from fhirpy.base.exceptions import BaseFHIRError

_LONGEST_REASON = 400
_NO_IDS = "client-assigned IDs are not enabled"  # HAPI-0959
_ADVICE = {
    401: "check fhir.auth and its secret",
    403: "this account may not do that: ask the server's administrator",
    404: "check fhir.url",
    405: "check fhir.url",
    408: "the server is slow: run again",
    409: "something else changes or needs the resource: run again",
    413: "lower fhir.max_bundle_bytes, or raise the server's limit",
    429: "the server is busy: run again later",
}


class FhirError(BaseFHIRError):
    """A request came to nothing. `attempts` says how often it was tried."""

    attempts: int = 1


class UnreachableError(FhirError):
    """The network, or a server that does not answer."""


class TimedOutError(UnreachableError):
    """No answer in the time allowed; the server may have done what it was asked all the same."""


class UnsuitableServerError(FhirError):
    """A server that cannot do what the upload needs; nothing was sent to it."""


class ServerError(FhirError):
    """An answer other than success.

    Attributes:
        status: HTTP status.
        reason: the server's words: codes and diagnostics alone.
        retry_after: seconds that the server asks to wait.
        advice: what to do about it.
    """

    def __init__(
        self, status: int, reason: str, retry_after: float | None = None, *, advice: str | None = None
    ) -> None:
        self.status, self.reason, self.retry_after = status, reason, retry_after
        self.advice = advice or _advice(status, reason)
        super().__init__(status, reason)

    def __str__(self) -> str:
        advice = self.advice
        return f"HTTP {self.status}: {self.reason}" + (f"; {advice}" if advice else "")


def _advice(status: int, reason: str) -> str:
    if _NO_IDS in reason:
        return 'the server gives ids itself: set fhir.client_assigned_ids = "no"'
    return _ADVICE.get(status, "see the server's log" if status >= 500 else "")


def reason_of(status: int, body: bytes, harmless: Callable[[str], str] = str) -> str:
    """What a server says of a failure: the codes and diagnostics of its OperationOutcome, else the status' name.

    `harmless` takes out of its words what must not be told.
    """
    try:
        outcome = orjson.loads(body)
        issues = outcome["issue"] if outcome["resourceType"] == "OperationOutcome" else []
        said = [_issue(issue) for issue in issues if issue.get("severity") in ("fatal", "error")]
    except (ValueError, KeyError, TypeError, AttributeError):
        said = []
    text = harmless("; ".join(said)) or _phrase(status)
    clean = "".join(c if c.isprintable() else " " for c in text)
    return clean if len(clean) <= _LONGEST_REASON else clean[: _LONGEST_REASON - 1] + "…"


def _issue(issue: dict[str, Any]) -> str:
    words = issue.get("diagnostics") or issue.get("details", {}).get("text") or ""
    return f"{issue.get('code', 'error')}: {words}" if words else str(issue.get("code", "error"))


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "no reason given"
