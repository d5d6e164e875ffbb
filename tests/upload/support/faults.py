"""A proxy before a real FHIR server that loses, refuses, delays and cuts requests, by a seed, and counts its faults."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

import aiohttp
import orjson
from aiohttp import web
from yarl import URL

from dicom_etl.fhir_client.capabilities import UPLOADED_TYPES
from tests.support.http_server import serve

REFUSED = (408, 409, 429, 500, 502, 503, 504)
HIDDEN = (500, 502, 504)
KINDS = (
    "drop",  # the server does not get it
    "lost",  # the server executes it, and the answer does not arrive
    "late",  # the client is cut off, and the server executes it while the client retries
    "delay",
    *(f"refuse {status}" for status in REFUSED),
    *(f"hide {status}" for status in HIDDEN),  # the server executes it, and a gateway answers with an error
    "cut",  # the answer is shorter than its header says
    "truncate",  # a part of the answer, with a header that fits it
)
_PASSED_ON = ("Accept", "Content-Type", "Authorization", "Cache-Control", "Prefer", "If-Match")
_PASSED_BACK = ("Content-Type", "ETag", "Location")


@dataclass(frozen=True)
class Fault:
    """The fault of a request: its kind, or `pass`; `share`, between 0 and 1, is its extent (how long, how much)."""

    kind: str
    share: float


@dataclass
class Faults:
    """The faults of a seed.

    The fault of a request depends on its content and how often it was made, and not on other concurrent requests. So a
    seed repeats its faults as far as the client repeats its requests.

    Attributes:
        url: the address for the client.
        rate: the share of requests that have a fault; 0 lets all pass.
        made: how often each kind was made.
        asked: method and path of all requests.
        watch: called with the number of a request before it is passed on (False: it is not), and again, with True,
            after the server has answered it.
    """

    seed: int
    rate: float = 0.4
    url: str = ""
    made: Counter[str] = field(default_factory=Counter)
    asked: list[str] = field(default_factory=list)
    watch: Callable[[int, bool], bool] = lambda _number, _answered: True
    busy: int = 0
    _times: Counter[bytes] = field(default_factory=Counter)

    def next(self, method: str, path: str, body: bytes) -> Fault:
        """Return the fault of the next request."""
        self.asked.append(f"{method} {path}")
        content = hashlib.sha256(f"{method} {path}\n".encode() + body).digest()
        self._times[content] += 1
        chance = random.Random(f"{self.seed} {content.hex()} {self._times[content]}")
        if chance.random() >= self.rate:
            return Fault("pass", 0.0)
        fault = Fault(chance.choice(KINDS), chance.random())
        self.made[fault.kind] += 1
        return fault

    def settle(self) -> None:
        """Wait until no request is running: one that a client gave up may still be passed on."""
        deadline = time.monotonic() + 60
        while self.busy:
            assert time.monotonic() < deadline, "requests are on their way that do not end"
            time.sleep(0.005)


@contextmanager
def run_faulty_proxy(target: str, seed: int = 0, rate: float = 0.4) -> Iterator[Faults]:
    """Run a server on the loopback that passes requests on to `target`, apart from its faults."""
    faults = Faults(seed, rate)

    def make_application(session: aiohttp.ClientSession) -> web.Application:
        application = web.Application(client_max_size=2**30)
        application.router.add_route("*", "/{path:.*}", _Handler(session, target, faults).answer)
        return application

    with serve(make_application) as address:
        faults.url = f"{address}/fhir"
        yield faults


@dataclass(frozen=True)
class _Answer:
    status: int
    headers: dict[str, str]
    body: bytes


_STATEMENTS: dict[str, _Answer] = {}  # by server


def _shrunk(statement: _Answer) -> _Answer:
    """Remove the 140 types that are not uploaded from a CapabilityStatement: HAPI's takes as long as ten studies."""
    content = orjson.loads(statement.body)
    for rest in content["rest"]:
        rest["resource"] = [resource for resource in rest["resource"] if resource["type"] in UPLOADED_TYPES]
    return replace(statement, body=orjson.dumps(content))


@dataclass(frozen=True)
class _Handler:
    session: aiohttp.ClientSession
    target: str
    faults: Faults

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.faults.busy += 1
        try:
            body = await request.read()
            path = request.raw_path.removeprefix("/fhir").lstrip("/")
            fault = self.faults.next(request.method, path, body)
            number = len(self.faults.asked)
            if not self.faults.watch(number, False):
                fault = Fault("drop", 0.0)

            async def passed() -> _Answer:
                answer = await self._passed_on(request, path, body)
                self.faults.watch(number, True)
                return answer

            return await self._made(fault, request, passed)
        finally:
            self.faults.busy -= 1

    async def _made(
        self, fault: Fault, request: web.Request, passed: Callable[[], Awaitable[_Answer]]
    ) -> web.StreamResponse:
        kind, _, status = fault.kind.partition(" ")
        if kind == "refuse":
            return _refusal(int(status), fault)
        if kind in ("drop", "late"):
            _close(request)
        if kind in ("delay", "late"):
            await asyncio.sleep(0.05 * fault.share)
        if kind == "drop":
            return web.Response()
        answer = await passed()
        if kind == "hide":
            return web.Response(
                status=int(status), text="<html><body>Bad gateway</body></html>", content_type="text/html"
            )
        if kind in ("cut", "truncate") and answer.body:
            return await _shortened(kind, fault.share, request, answer)
        if kind == "lost":
            _close(request)
        return web.Response(status=answer.status, body=answer.body, headers=answer.headers)

    async def _passed_on(self, request: web.Request, path: str, body: bytes) -> _Answer:
        if path == "metadata" and self.target in _STATEMENTS:
            return _STATEMENTS[self.target]
        # the body was unzipped when it was read
        headers = {name: value for name, value in request.headers.items() if name in _PASSED_ON}
        headers["Host"] = urlsplit(self.target).netloc
        url = URL(f"{self.target}/{path}" if path else self.target, encoded=True)
        async with self.session.request(request.method, url, data=body or None, headers=headers) as response:
            kept = {name: response.headers[name] for name in _PASSED_BACK if name in response.headers}
            answer = _Answer(response.status, kept, await response.read())
        if path == "metadata":
            answer = _STATEMENTS[self.target] = _shrunk(answer)
        return answer


def _close(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.close()


def _refusal(status: int, fault: Fault) -> web.Response:
    # one in eight asks for a whole second: a test is no place to wait
    wait = {"Retry-After": "1" if fault.share > 7 / 8 else "0"} if status == 429 else {}
    return web.Response(status=status, headers=wait)


async def _shortened(kind: str, share: float, request: web.Request, answer: _Answer) -> web.StreamResponse:
    # one in four ends before it begins
    part = answer.body[: int(max(0.0, share - 0.25) / 0.75 * len(answer.body))]
    if kind == "truncate":
        return web.Response(status=answer.status, body=part, headers=answer.headers)
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    response.content_length = len(answer.body)
    with suppress(ConnectionResetError):  # the client may be gone by now
        await response.prepare(request)
        await response.write(part)
    _close(request)
    return response
