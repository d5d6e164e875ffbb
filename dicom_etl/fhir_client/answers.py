"""Validation of a server's answers: an answer becomes the requested result, or a `FhirError`.

An answer with a success status is a success only if its body conforms to the specification. An OperationOutcome with
an error, the JSON of a gateway, an HTML page, or JSON of another structure is an InvalidAnswerError; it is never taken
for "not found" or "stored". JSON of any structure raises no other errors than these.

Not here: Bundles (`bundles`), and the order of the pages of a search (`search`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson

from dicom_etl.fhir_client.errors import FhirError, InvalidAnswerError, RejectedError, make_error
from dicom_etl.fhir_client.models import (
    ServerResource,
    WriteRequest,
    WriteResult,
    get_text,
    get_version,
    parse_etag,
    parse_location,
)
from dicom_etl.fhir_client.transport import Answer

_MAX_REASON_LENGTH = 400  # characters
_MAX_ISSUES = 20  # of an OperationOutcome, in an error message
_MAX_DEPTH = 254  # levels; orjson writes no more, although it reads 1024
# objects and lists, of some 100 bytes of memory each; a study of 50,000 instances has 150,000
_MAX_CONTAINERS = 700_000
_MESSAGE_MEMBERS = ("error", "message", "detail", "errorMessage")  # of JSON that is not FHIR


@dataclass(frozen=True)
class ReceivedAnswer:
    """An answer and the context for error messages about it.

    Attributes:
        answer: the answer, unchanged.
        redact: removes from a server's text what must not be shown.
        advice_on_denial: what to do about a 401.
    """

    answer: Answer
    redact: Callable[[str], str] = str
    advice_on_denial: str = ""

    def make_invalid_error(self, problem: str, *, content: Any = None) -> InvalidAnswerError:
        """The error of an answer whose status is a success and whose body is not, with the server's text.

        Args:
            problem: the problem: the rest of a sentence that begins with "the answer".
            content: the JSON of the body.
        """
        text = self._shorten(" ".join(_extract_texts(content)))
        reason = f"the answer {problem}" + (f" ({text})" if text else "")
        advice = "check fhir.url" if content is None and self.answer.body[:1] == b"<" else ""
        return InvalidAnswerError(reason, status=self.answer.status, advice=advice)

    def make_status_error(self, status: int, content: Any) -> FhirError:
        """The error of a failure status, with the server's text."""
        reason = self._shorten(" ".join(_extract_texts(content))) or _get_phrase(status)
        advice = self.advice_on_denial if status == 401 and self.advice_on_denial else None
        is_confirmed = is_operation_outcome(content) or not self.answer.body.strip()
        retry_after = self.answer.retry_after
        error = make_error(status, reason, advice=advice, retry_after=retry_after, is_confirmed=is_confirmed)
        names_unsupported = any(issue.get("code") == "not-supported" for issue in _get_issues(content))
        if isinstance(error, RejectedError) and names_unsupported:
            error.is_unsupported = True
        return error

    def _shorten(self, text: str) -> str:
        redacted = self.redact(text) if text else ""
        printable = "".join(c if c.isprintable() else " " for c in redacted).strip()
        return printable if len(printable) <= _MAX_REASON_LENGTH else printable[: _MAX_REASON_LENGTH - 1] + "…"


# -- status and JSON --------------------------------------------------------------------------------------------------


def check_status(received: ReceivedAnswer, *allowed: int) -> None:
    """Check that the status is allowed.

    Raises:
        FhirError: of the class that belongs to the status; InvalidAnswerError if it is another success status.
    """
    status = received.answer.status
    if status in allowed:
        return
    if not 200 <= status < 300:
        raise received.make_status_error(status, parse_json(received.answer.body))
    raise received.make_invalid_error("has an unexpected status", content=parse_json(received.answer.body))


def parse_json(body: bytes) -> Any:
    """The JSON of a body; None if it is not JSON, needs too much memory, or is nested too deeply to be serialized."""
    containers = body.count(b"[") + body.count(b"{")
    if containers > _MAX_CONTAINERS:
        return None
    try:
        content = orjson.loads(body)
        if containers > _MAX_DEPTH:
            orjson.dumps(content)
    except (ValueError, TypeError):  # TypeError: orjson.JSONEncodeError
        return None
    return content


def parse_object(received: ReceivedAnswer, expected: str) -> dict[str, Any]:
    """The JSON object of an answer.

    Args:
        received: the answer.
        expected: what the object should be, for the error message.

    Raises:
        InvalidAnswerError: it is empty, truncated, not JSON or not an object, or an OperationOutcome with an error.
    """
    body = received.answer.body.strip()
    if not body:
        raise received.make_invalid_error("is empty")
    content = parse_json(body)
    if content is None and body != b"null":
        problem = "is not complete, too large, or not JSON" if body[:1] in b"{[" else "is not JSON"
        raise received.make_invalid_error(problem)
    if not isinstance(content, dict):
        raise received.make_invalid_error(f"is not {expected}, but JSON of another type")
    if has_error(content):
        raise received.make_invalid_error("is an OperationOutcome with an error", content=content)
    return content


# -- OperationOutcome -------------------------------------------------------------------------------------------------


def is_operation_outcome(content: object) -> bool:
    """Whether JSON is an OperationOutcome."""
    return isinstance(content, dict) and content.get("resourceType") == "OperationOutcome"


def has_error(content: object) -> bool:
    """Whether JSON is an OperationOutcome that reports an error, or one whose issues cannot be read."""
    if not isinstance(content, dict) or not is_operation_outcome(content):
        return False
    issues = content.get("issue", [])
    if not isinstance(issues, list):
        return True
    return any(not isinstance(issue, dict) or issue.get("severity") not in _HARMLESS for issue in issues)


_HARMLESS = ("warning", "information", "success")  # FHIR R4 and R5, value set issue-severity


def _get_issues(content: object) -> list[dict[str, Any]]:
    """The issues of an OperationOutcome, without those that are not objects."""
    if not isinstance(content, dict) or not is_operation_outcome(content):
        return []
    issues = content.get("issue")
    return [issue for issue in issues if isinstance(issue, dict)] if isinstance(issues, list) else []


def _extract_texts(content: object) -> list[str]:
    """The texts that explain a failure: codes and diagnostics of an OperationOutcome, or the message of a gateway."""
    if not isinstance(content, dict):
        return []
    if not is_operation_outcome(content):
        return [text for name in _MESSAGE_MEMBERS if (text := get_text(content.get(name)))][:1]
    issues = _get_issues(content)
    errors = [issue for issue in issues if issue.get("severity") not in _HARMLESS] or issues
    texts = [_describe_issue(issue) for issue in errors[:_MAX_ISSUES]]
    return [f"{text};" for text in texts[:-1]] + texts[-1:]


def _describe_issue(issue: dict[str, Any]) -> str:
    details = issue.get("details")
    text = get_text(issue.get("diagnostics")) or (get_text(details.get("text")) if isinstance(details, dict) else "")
    code = get_text(issue.get("code")) or "error"
    return f"{code}: {text}" if text else code


def _get_phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "no reason given"


# -- single resources -------------------------------------------------------------------------------------------------


def read_resource(received: ReceivedAnswer, resource_type: str, resource_id: str, version: str = "") -> ServerResource:
    """The resource of a read (FHIR R4, 3.1.0.1), or of a vread.

    Args:
        received: the answer.
        resource_type: its type.
        resource_id: its id.
        version: its version; empty: any version.

    Raises:
        FhirError: the answer is a failure, or not that resource.
    """
    check_status(received, 200)
    resource = parse_object(received, f"a {resource_type} resource")
    _check_identity(received, resource, resource_type, resource_id)
    if version and get_version(resource) not in ("", version):
        raise received.make_invalid_error("is another version of the resource")
    return ServerResource(resource, received.answer.etag)


def read_put_result(received: ReceivedAnswer, request: WriteRequest) -> WriteResult:
    """The result of a PUT (FHIR R4, 3.1.0.1.8): the body is empty, the resource, or an OperationOutcome.

    Raises:
        FhirError: the answer is a failure, or does not confirm that the resource was stored.
    """
    check_status(received, 200, 201)
    answer = received.answer
    resource: dict[str, Any] = {}
    if answer.body.strip():
        content = parse_object(received, f"a {request.type} resource")
        if not is_operation_outcome(content):
            _check_identity(received, content, request.type, request.id)
            resource = content
    return make_result(request, answer.status, resource, answer.location, answer.etag)


def make_result(
    request: WriteRequest, status: int, resource: dict[str, Any], location: object, etag: object
) -> WriteResult:
    """The result of a write, with id and version from the resource, its location or its ETag.

    If the server stored the resource under another id than that of the request, the result has the server's id.

    Args:
        request: the write.
        status: HTTP status.
        resource: as stored; empty if it was not returned.
        location: `Location`, or `Bundle.entry.response.location`.
        etag: `ETag`, or `Bundle.entry.response.etag`.
    """
    stored_at = parse_location(location)
    if stored_at is not None and stored_at.type != request.type:
        stored_at = None  # not the location of this resource
    server_id = get_text(resource.get("id")) or (stored_at.id if stored_at else "") or request.id
    version = get_version(resource) or (stored_at.version if stored_at else "") or parse_etag(etag)
    return WriteResult(status, server_id, version, get_text(etag))


def check_deletion(received: ReceivedAnswer) -> None:
    """Check that a resource was deleted (FHIR R4, 3.1.0.7.1).

    Raises:
        FhirError: the answer is a failure, or does not confirm the deletion.
    """
    check_status(received, 200, 202, 204)
    if received.answer.body.strip() and received.answer.status != 202:
        content = parse_object(received, "an OperationOutcome")
        if not is_operation_outcome(content):
            raise received.make_invalid_error("is not an OperationOutcome", content=content)


def read_capability_statement(received: ReceivedAnswer) -> dict[str, Any]:
    """The CapabilityStatement of a server (FHIR R4, 3.1.0.9).

    Raises:
        FhirError: the answer is a failure, or something else.
    """
    check_status(received, 200)
    statement = parse_object(received, "a CapabilityStatement")
    if statement.get("resourceType") != "CapabilityStatement":
        raise received.make_invalid_error("is not a CapabilityStatement", content=statement)
    return statement


def read_content(received: ReceivedAnswer, *, needs_body: bool) -> Any:
    """The resource of an answer to any request; None if it has no body, or was not modified (304).

    Raises:
        FhirError: the answer is a failure, or its body is not a resource, or a required body is missing.
    """
    if received.answer.status == 304:
        return None
    check_status(received, *range(200, 300))
    if not received.answer.body.strip() and not needs_body:
        return None
    content = parse_object(received, "a resource")
    if not isinstance(content.get("resourceType"), str):
        raise received.make_invalid_error("is not a resource", content=content)
    return content


def _check_identity(received: ReceivedAnswer, resource: dict[str, Any], resource_type: str, resource_id: str) -> None:
    if resource.get("resourceType") != resource_type:
        raise received.make_invalid_error(f"is not a {resource_type} resource", content=resource)
    server_id = resource.get("id")
    if not isinstance(server_id, str) or (resource_id and server_id != resource_id):
        raise received.make_invalid_error(f"is another {resource_type} resource", content=resource)
