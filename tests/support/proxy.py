"""A web server on the loopback that counts what it is asked, and answers itself or passes on to a real server."""

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
    """A request: method, path with query below the base address, headers, body (as it was before it was packed)."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def is_posted(self) -> bool:
        """Whether it is a POST that writes: a search may be one, too."""
        return self.method == "POST" and not self.path.endswith("/_search")


@dataclass(frozen=True)
class Reply:
    """An answer of our own. `cut` closes the connection, after the real server has answered."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False


Rule = Callable[[ReceivedRequest], Reply | None]


@dataclass
class Proxy:
    """What was asked so far, and the rule that answers before the real server does."""

    url: str
    target: str | None = None  # the server behind
    requests: list[ReceivedRequest] = field(default_factory=list)
    rule: Rule = lambda _: None

    def post_requests(self) -> list[ReceivedRequest]:
        """The POSTs that write."""
        return [one for one in self.requests if one.is_posted]

    def request_lines(self, *methods: str) -> list[str]:
        """Method and path of the requests, but those for /metadata."""
        return [
            f"{one.method} {one.path}"
            for one in self.requests
            if not one.path.startswith("metadata") and (not methods or one.method in methods)
        ]


@contextmanager
def run_proxy(
    target: str | None = None, rule: Rule = lambda _: None, *, tls: ssl.SSLContext | None = None
) -> Iterator[Proxy]:
    """A server that applies `rule` and passes what it leaves alone to `target`; with `tls`, it speaks HTTPS itself."""
    started: list[Proxy] = []
    with serve(lambda session: _application(session, target, started), tls=tls) as address:
        started.append(Proxy(f"{address}/fhir", target, rule=rule))
        yield started[0]


def _application(session: aiohttp.ClientSession, target: str | None, started: Sequence[Proxy]) -> web.Application:
    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        path = request.raw_path.removeprefix("/fhir").lstrip("/")
        asked = ReceivedRequest(request.method, path, dict(request.headers), body)
        started[0].requests.append(asked)
        reply = started[0].rule(asked)
        if reply is None or reply.cut:
            passed = await _pass_on(session, target, asked)
            if reply is None:
                return passed
            assert request.transport is not None
            request.transport.close()
            return passed
        return web.Response(status=reply.status, body=reply.body, headers=reply.headers)

    application = web.Application(client_max_size=2**30)
    application.router.add_route("*", "/{path:.*}", answer)
    return application


async def _pass_on(session: aiohttp.ClientSession, target: str | None, asked: ReceivedRequest) -> web.Response:
    assert target is not None, "the rule must answer everything when there is no server behind"
    headers = {
        name: value
        for name, value in asked.headers.items()
        if name in ("Accept", "Content-Type", "Authorization", "Cache-Control", "Prefer", "If-Match")
    }
    headers["Host"] = urlsplit(target).netloc
    url = f"{target}/{asked.path}" if asked.path else target
    async with session.request(
        asked.method, URL(url, encoded=True), data=asked.body or None, headers=headers
    ) as response:
        content = await response.read()
        kept = {n: response.headers[n] for n in ("Content-Type", "ETag", "Location") if n in response.headers}
        return web.Response(status=response.status, body=content, headers=kept)
