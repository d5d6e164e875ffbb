"""A web server on the loopback that records requests, and answers them itself or passes them on to a real server."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web
from yarl import URL

from tests.support.http_server import serve


@dataclass(frozen=True)
class ReceivedRequest:
    """A request: method, path and query relative to the base address, headers, and body (inflated)."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def is_write_post(self) -> bool:
        """Whether it is a POST that is not a search."""
        return self.method == "POST" and not self.path.endswith("/_search")


@dataclass(frozen=True)
class Reply:
    """An answer of the proxy. `cut`: pass the request on, then close the connection without an answer."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False


Rule = Callable[[ReceivedRequest], Reply | None]


@dataclass
class Proxy:
    """A running proxy.

    Attributes:
        url: its base address.
        target: base address of the server behind it.
        requests: the requests so far.
        rule: answers a request, or returns None to pass it on.
    """

    url: str
    target: str | None = None
    requests: list[ReceivedRequest] = field(default_factory=list)
    rule: Rule = lambda _: None

    def post_requests(self) -> list[ReceivedRequest]:
        """The POSTs that are not searches."""
        return [request for request in self.requests if request.is_write_post]

    def request_lines(self, *methods: str) -> list[str]:
        """Method and path of the requests with these methods (default: all), except for /metadata."""
        return [
            f"{request.method} {request.path}"
            for request in self.requests
            if not request.path.startswith("metadata") and (not methods or request.method in methods)
        ]


@contextmanager
def run_proxy(
    target: str | None = None, rule: Rule = lambda _: None, *, tls: ssl.SSLContext | None = None
) -> Iterator[Proxy]:
    """Run a proxy that applies `rule` and passes other requests on to `target`; with `tls`, it is an HTTPS server."""
    started: list[Proxy] = []
    with serve(lambda session: _application(session, target, started), tls=tls) as address:
        started.append(Proxy(f"{address}/fhir", target, rule=rule))
        yield started[0]


def _application(session: aiohttp.ClientSession, target: str | None, started: Sequence[Proxy]) -> web.Application:
    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        path = request.raw_path.removeprefix("/fhir").lstrip("/")
        received = ReceivedRequest(request.method, path, dict(request.headers), body)
        started[0].requests.append(received)
        reply = started[0].rule(received)
        if reply is None or reply.cut:
            response = await _pass_on(session, target, received)
            if reply is not None:
                assert request.transport is not None
                request.transport.close()
            return response
        return web.Response(status=reply.status, body=reply.body, headers=reply.headers)

    application = web.Application(client_max_size=2**30)
    application.router.add_route("*", "/{path:.*}", answer)
    return application


async def _pass_on(session: aiohttp.ClientSession, target: str | None, request: ReceivedRequest) -> web.Response:
    assert target is not None, "without a server behind the proxy, the rule must answer every request"
    headers = {
        name: value
        for name, value in request.headers.items()
        if name in ("Accept", "Content-Type", "Authorization", "Cache-Control", "Prefer", "If-Match")
    }
    headers["Host"] = urlsplit(target).netloc
    url = f"{target}/{request.path}" if request.path else target
    async with session.request(
        request.method, URL(url, encoded=True), data=request.body or None, headers=headers
    ) as response:
        content = await response.read()
        kept_headers = {n: response.headers[n] for n in ("Content-Type", "ETag", "Location") if n in response.headers}
        return web.Response(status=response.status, body=content, headers=kept_headers)
