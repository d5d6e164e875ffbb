"""Calls of a FHIR client, and answers for the proxy (`tests.support.proxy`) that no real server gives."""

from __future__ import annotations

import asyncio
import contextlib
import socketserver
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import orjson

from dicom_etl.fhir_client import FhirClient, FhirError, WriteRequest
from tests.support.proxy import ReceivedRequest, Reply

T = TypeVar("T")
Call = Callable[[FhirClient], Awaitable[T]]
STATEMENT: dict[str, Any] = {
    "resourceType": "CapabilityStatement",
    "fhirVersion": "4.0.1",
    "rest": [
        {
            "mode": "server",
            "interaction": [{"code": "transaction"}],
            "resource": [
                {"type": kind, "interaction": [{"code": "read"}, {"code": "update"}]}
                for kind in ("Patient", "Endpoint", "ImagingStudy", "Observation")
            ],
        }
    ],
}


async def no_pause(_: float) -> None:
    return None


def run(url: str, call: Call[T], **client: Any) -> T:
    """The result of a call; the client does not pause between attempts."""

    async def whole() -> T:
        async with FhirClient(url, **({"sleep": no_pause} | client)) as opened:
            return await call(opened)

    return asyncio.run(whole())


def get_error(url: str, call: Call[Any], **client: Any) -> FhirError:
    """The error of a call that must fail."""
    try:
        result = run(url, call, **client)
    except FhirError as error:
        return error
    raise AssertionError(f"no error, but {result!r}")


def reply_in_turn(*replies: Reply) -> Callable[[ReceivedRequest], Reply]:
    """A rule that gives these replies one after the other, and then always the last one."""
    remaining = list(replies)
    return lambda _: remaining.pop(0) if len(remaining) > 1 else remaining[0]


def json_reply(content: Any, status: int = 200, **headers: str) -> Reply:
    return Reply(status, orjson.dumps(content), {"Content-Type": "application/fhir+json", **headers})


def operation_outcome(code: str, diagnostics: str, severity: str = "error") -> dict[str, Any]:
    issue = {"severity": severity, "code": code, "diagnostics": diagnostics}
    return {"resourceType": "OperationOutcome", "issue": [issue]}


def patient(identity: str = "a", version: str | None = "1", **more: Any) -> dict[str, Any]:
    meta = {"meta": {"versionId": version}} if version is not None else {}
    return {"resourceType": "Patient", "id": identity, **meta, **more}


def write_request(identity: str = "a", resource_type: str = "Patient", **more: Any) -> WriteRequest:
    body = orjson.dumps({"resourceType": resource_type, "id": identity}, option=orjson.OPT_SORT_KEYS)
    return WriteRequest(resource_type, identity, body, **more)


def conditional_request(value: str, resource_type: str = "Patient") -> WriteRequest:
    return WriteRequest(
        resource_type, "", orjson.dumps({"resourceType": resource_type}), condition=f"identifier={value}"
    )


def searchset(*resources: dict[str, Any], **more: Any) -> dict[str, Any]:
    entries = [{"resource": resource, "search": {"mode": "match"}} for resource in resources]
    return {"resourceType": "Bundle", "type": "searchset", "entry": entries, **more}


def next_link(url: str) -> dict[str, Any]:
    """The member `link` of a page, with the address of the next page."""
    return {"link": [{"relation": "self", "url": "x"}, {"relation": "next", "url": url}]}


def transaction_response(*responses: dict[str, Any]) -> dict[str, Any]:
    entries = [{"response": response} for response in responses]
    return {"resourceType": "Bundle", "type": "transaction-response", "entry": entries}


@contextlib.contextmanager
def run_raw_server(answer: Callable[[Callable[[bytes], object]], None]) -> Iterator[str]:
    """The address of a server that sends bytes: `answer` is called for each request with a function that sends."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            received = b""
            while b"\r\n\r\n" not in received:
                if not (chunk := self.request.recv(65_536)):
                    return
                received += chunk
            with contextlib.suppress(OSError):  # the client may close the connection at any time
                answer(self.request.sendall)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/fhir"
    finally:
        server.shutdown()
        server.server_close()
