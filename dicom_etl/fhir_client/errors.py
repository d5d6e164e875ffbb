"""Errors of requests to a server; their class tells whether a later attempt may succeed.

    FhirError                     a request failed
    ├── TransientError            a later attempt may succeed
    │   ├── UnreachableError      no connection was made, or it was lost
    │   │   └── TimedOutError     no answer within the time limit
    │   ├── BusyError             429, 503
    │   ├── ServerFailureError    408, other 5xx
    │   └── InvalidAnswerError    a success status, with a body that does not conform to the specification
    ├── ConflictError             409, 412
    └── PermanentError            the same request will fail again
        ├── AccessDeniedError     401, 403
        ├── NotFoundError         404, 410
        ├── RejectedError         other 4xx, redirects, 501, 505
        └── UnsuitableServerError the server cannot do what is needed

`make_error` is the only place that maps status codes to classes. Every error is one sentence without credentials and
without identifying values: text from a server is redacted before it becomes part of an error (`redaction`).
"""

from __future__ import annotations

from fhirpy.base.exceptions import BaseFHIRError

_NO_CLIENT_IDS = "client-assigned IDs are not enabled"  # HAPI-0959
_ADVICE = {
    401: "check fhir.auth and its secret",
    403: "this account does not have the permission: ask the server's administrator",
    404: "check fhir.url",
    405: "check fhir.url",
    408: "the server is slow: run again",
    409: "the resource is being modified, or other resources refer to it: run again",
    413: "lower fhir.max_bundle_bytes, or raise the server's limit",
    429: "the server is busy: run again later",
}


class FhirError(BaseFHIRError):
    """A request failed.

    Attributes:
        reason: what happened, with the server's text.
        status: HTTP status; None if there was no answer.
        advice: what to do about it; may be empty.
        attempts: number of times the request was sent.
        may_have_arrived: whether the server may have executed the request, in any of the attempts.
    """

    attempts: int = 1
    may_have_arrived: bool = False

    def __init__(self, reason: str, *, status: int | None = None, advice: str = "") -> None:
        self.reason, self.status, self.advice = reason, status, advice
        super().__init__(reason)

    def __str__(self) -> str:
        prefix = f"HTTP {self.status}: " if self.status is not None else ""
        return prefix + self.reason + (f"; {self.advice}" if self.advice else "")


class TransientError(FhirError):
    """A later attempt may succeed. `retry_after`: seconds that the server asks to wait, or None."""

    retry_after: float | None = None


class UnreachableError(TransientError):
    """No connection was made, or it was lost."""


class TimedOutError(UnreachableError):
    """No answer within the time limit."""

    may_have_arrived = True


class BusyError(TransientError):
    """The server asks for fewer requests (429, 503)."""


class ServerFailureError(TransientError):
    """The server failed (408, 5xx)."""

    may_have_arrived = True


class InvalidAnswerError(TransientError):
    """A success status with a body that does not conform to the specification."""

    may_have_arrived = True


class ConflictError(FhirError):
    """The resource has another version now, is being written, or is referenced by other resources (409, 412).

    Attributes:
        may_pass: whether the cause may be two simultaneous writes, so that the next attempt may succeed (409).
    """

    may_pass: bool = False


class PermanentError(FhirError):
    """The same request will fail again."""


class AccessDeniedError(PermanentError):
    """The server does not accept the credentials or the account (401, 403); every other request will fail as well."""


class NotFoundError(PermanentError):
    """Nothing exists at this address (404, 410).

    Attributes:
        is_deleted: the server had the resource before (410).
        is_confirmed: the answer has an OperationOutcome or no body; so it is from a FHIR server, not from a gateway.
    """

    is_deleted: bool = False
    is_confirmed: bool = False


class RejectedError(PermanentError):
    """The server does not accept this request.

    Attributes:
        is_unsupported: the server does not support the interaction at all (405, 501).
    """

    is_unsupported: bool = False


class UnsuitableServerError(PermanentError):
    """The server cannot do what is needed; nothing was written to it."""


def make_error(
    status: int, reason: str, *, advice: str | None = None, retry_after: float | None = None, is_confirmed: bool = False
) -> FhirError:
    """The error of an answer whose status is not a success.

    Args:
        status: HTTP status.
        reason: the server's text, redacted.
        advice: what to do; None: the advice for the status.
        retry_after: seconds that the server asks to wait.
        is_confirmed: for 404 and 410, whether a FHIR server gave the answer.
    """
    error = _choose_class(status)(
        reason, status=status, advice=_choose_advice(status, reason) if advice is None else advice
    )
    if isinstance(error, TransientError):
        error.retry_after = retry_after
    if status == 503:  # also the answer of a proxy when the server behind it took too long, or closed the connection
        error.may_have_arrived = True
    if isinstance(error, ConflictError):
        error.may_pass = status == 409
    if isinstance(error, NotFoundError):
        error.is_deleted, error.is_confirmed = status == 410, is_confirmed
    if isinstance(error, RejectedError):
        error.is_unsupported = status in (405, 501)
    return error


_CLASSES: dict[int, type[FhirError]] = {
    401: AccessDeniedError,
    403: AccessDeniedError,
    404: NotFoundError,
    408: ServerFailureError,
    409: ConflictError,
    410: NotFoundError,
    412: ConflictError,
    429: BusyError,
    501: RejectedError,  # RFC 9110, 15.6.2: the server does not know the method; waiting does not help
    503: BusyError,
    505: RejectedError,
}


def _choose_class(status: int) -> type[FhirError]:
    if status in _CLASSES:
        return _CLASSES[status]
    if 500 <= status < 600:
        return ServerFailureError
    return RejectedError if 300 <= status < 500 else InvalidAnswerError


def _choose_advice(status: int, reason: str) -> str:
    if _NO_CLIENT_IDS in reason:
        return 'the server assigns ids itself: set fhir.client_assigned_ids = "no"'
    if status in (301, 302, 303, 307, 308):
        return "set fhir.url to the address that the server redirects to"
    return _ADVICE.get(status, "see the server's log" if 500 <= status < 600 else "")
