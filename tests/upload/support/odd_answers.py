"""A proxy before a real FHIR server that changes answers, and a grammar of answers that no server should give."""

from __future__ import annotations

import gzip
import random
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

import aiohttp
import orjson
from aiohttp import web
from yarl import URL

from tests.support.http_server import serve

_PASSED_ON = ("Accept", "Content-Type", "Cache-Control", "Prefer", "If-Match")
_PASSED_BACK = ("Content-Type", "ETag", "Location")


@dataclass(frozen=True)
class Request:
    """A request: its kind is search, read, history, put, transaction, delete or metadata."""

    method: str
    path: str
    body: bytes

    @property
    def kind(self) -> str:
        """The kind of the request, from its method and path."""
        path = self.path.partition("?")[0]
        if path == "metadata":
            return "metadata"
        if self.method in ("PUT", "DELETE"):
            return self.method.lower()
        if "/_history" in path:
            return "history"
        if path.endswith("/_search"):
            return "search"
        if self.method == "POST":
            return "transaction"
        return "read" if "/" in path else "search"


@dataclass(frozen=True)
class Changed:
    """An answer. `chunks`: after the body, this many chunks of 64 kB, without an end in sight."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    chunks: int = 0


@dataclass(frozen=True)
class Ask:
    """Passes the request on to the server; without a call the server does not get it."""

    asked: Request
    pass_on: Callable[[Request], Awaitable[Changed]]

    async def __call__(self) -> Changed:
        """The answer of the server."""
        return await self.pass_on(self.asked)

    async def other(self, request: Request) -> Changed:
        """The answer of the server to another request."""
        return await self.pass_on(request)


Change = Callable[[Request, Ask], Awaitable[Changed]]


@contextmanager
def run_changing_proxy(target: str, change: Change, *, if_match: Callable[[str], str] = str) -> Iterator[str]:
    """Run a proxy with the answers of `change`; yields its address.

    Args:
        target: the server behind.
        change: makes each answer.
        if_match: makes what the server gets of an If-Match, and of a transaction.
    """

    def make_application(session: aiohttp.ClientSession) -> web.Application:
        async def handle(request: web.Request) -> web.StreamResponse:
            path = request.raw_path.removeprefix("/fhir").lstrip("/")
            asked = Request(request.method, path, await request.read())
            headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
            if "If-Match" in headers:
                headers["If-Match"] = if_match(headers["If-Match"])

            def pass_on(one: Request) -> Awaitable[Changed]:
                if one.kind == "transaction":
                    one = replace(one, body=if_match(one.body.decode()).encode())
                return _ask(session, target, one, headers)

            answer = await change(asked, Ask(asked, pass_on))
            return await _send(request, answer)

        application = web.Application(client_max_size=2**30)
        application.router.add_route("*", "/{path:.*}", handle)
        return application

    with serve(make_application) as address:
        yield f"{address}/fhir"


async def _ask(session: aiohttp.ClientSession, target: str, asked: Request, headers: dict[str, str]) -> Changed:
    url = URL(f"{target}/{asked.path}" if asked.path else target, encoded=True)
    headers = headers | {"Host": urlsplit(target).netloc}
    async with session.request(asked.method, url, data=asked.body or None, headers=headers) as response:
        kept = {name: response.headers[name] for name in _PASSED_BACK if name in response.headers}
        return Changed(response.status, await response.read(), kept)


async def _send(request: web.Request, answer: Changed) -> web.StreamResponse:
    if not answer.chunks:
        return web.Response(status=answer.status, body=answer.body, headers=answer.headers)
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    with suppress(ConnectionError):  # the client has enough
        await response.prepare(request)
        await response.write(answer.body)
        for _ in range(answer.chunks):
            await response.write(b" " * 65_536)
    return response


# -- the grammar ------------------------------------------------------------------------------------------------------

KINDS = ("search", "read", "history", "put", "transaction", "metadata")
_STATUSES = (200, 200, 200, 201, 202, 204, 206, 299, 300, 302, 304, 400, 401, 403, 404, 405, 408, 409, 410, 412, 413)
STATUSES = (*_STATUSES, 415, 422, 429, 500, 501, 502, 503, 504, 505, 511, 599)
_FHIR, _HTML = "application/fhir+json", "text/html"
_OUTCOME = {"resourceType": "OperationOutcome"}


def _json(content: object) -> bytes:
    return orjson.dumps(content)


def _issue(severity: object) -> bytes:
    return _json(_OUTCOME | {"issue": [{"severity": severity, "code": "exception", "diagnostics": "odd"}]})


def _bundle(kind: str, **more: object) -> bytes:
    return _json({"resourceType": "Bundle", "type": kind, **more})


def _large_json() -> bytes:
    return b'{"resourceType": "Bundle", "type": "searchset", "entry": [' + b"{}," * 20_000_000 + b"{}]}"


FIXED: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "spaces": lambda: b" \r\n ",
    "login page": lambda: b"<!DOCTYPE html><html><body><form action='/login'></form></body></html>",
    "null": lambda: b"null",
    "true": lambda: b"true",
    "number": lambda: b"1e999",
    "list": lambda: b"[]",
    "text": lambda: b'"OK"',
    "object": lambda: b"{}",
    "error object": lambda: b'{"error": {"code": 500}}',
    "message": lambda: b'{"message": "Endpoint request timed out"}',
    "outcome error": lambda: _issue("error"),
    "outcome fatal": lambda: _issue("fatal"),
    "outcome of a list": lambda: _issue([]),
    "outcome without issues": lambda: _json(_OUTCOME | {"issue": None}),
    "nothing found": lambda: _bundle("searchset", total=0),
    "total without entries": lambda: _bundle("searchset", total=3),
    "negative total": lambda: _bundle("searchset", total=-1),
    "entry null": lambda: _bundle("searchset", entry=None),
    "entry without resource": lambda: _bundle("searchset", entry=[{"search": {"mode": "match"}}]),
    "entries of numbers": lambda: _bundle("searchset", entry=[1, 2]),
    "link without url": lambda: _bundle("searchset", link=[{"relation": "next"}]),
    "link to itself": lambda: _bundle("searchset", link=[{"relation": "next", "url": "Patient?x=1"}]),
    "link elsewhere": lambda: _bundle("searchset", link=[{"relation": "next", "url": "http://127.0.0.1:1/x"}]),
    "batch-response": lambda: _bundle("batch-response", entry=[]),
    "no responses": lambda: _bundle("transaction-response"),
    "outcome alone": lambda: _bundle("transaction-response", entry=[{"response": {"outcome": _OUTCOME}}]),
    "status OK": lambda: _bundle("transaction-response", entry=[{"response": {"status": "OK"}}]),
    "history": lambda: _bundle("history", entry=[]),
    "Patient without id": lambda: b'{"resourceType": "Patient"}',
    "Patient x": lambda: b'{"resourceType": "Patient", "id": "x", "meta": {"versionId": "1"}}',
    "deep": lambda: b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    "NUL": lambda: b"\0" * 100,
    "UTF-16": lambda: '{"resourceType": "Patient"}'.encode("utf-16"),
    "not UTF-8": lambda: b'{"resourceType": "\xff\xfe"}',
    "lone surrogate": lambda: b'{"resourceType": "\\ud800"}',
    "large": _large_json,
}
_HEADERS: tuple[dict[str, str], ...] = (
    {},
    {},
    {"Content-Type": _HTML},
    {"Content-Type": ""},
    {"Retry-After": "0"},
    {"Retry-After": "soon"},
    {"Retry-After": "-1e400"},
    {"Retry-After": "99999"},
    {"Content-Encoding": "gzip"},
    {"Content-Encoding": "br"},
    {"Content-Encoding": "gzip, gzip"},
    {"ETag": ""},
    {"ETag": 'W/"1"'},
    {"ETag": "\u00e9"},
    {"Location": "http://127.0.0.1:1/fhir/Patient/x/_history/1"},
    {"Location": "//"},
    {"Set-Cookie": "a=b"},
)


@dataclass
class Grammar:
    """The odd answers of a seed: to which kinds of requests, how often, and which.

    `made` lists the odd answers. Those that no client can detect are not used: a success that names a version for a
    write that the server never got, and "not found" of a FHIR server for an existing resource.
    """

    seed: int
    is_honest: bool = False
    only: str = ""
    made: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        every_run_has = self._chance.choice(("search", "read", "transaction"))
        self.kinds = [every_run_has, *self._chance.sample(KINDS, self._chance.randint(0, 2))]
        self._rate = self._chance.choice((0.2, 0.5, 1.0))
        if self.only:
            self.kinds, self._rate = ["search", "read", "history", "put", "transaction"], 1.0

    async def change(self, asked: Request, ask: Ask) -> Changed:
        """The answer to a request."""
        is_true = bool(self.made) and self._chance.random() >= self._rate  # the first one is odd in any case
        if self.is_honest or asked.kind not in self.kinds or is_true:
            return await ask()
        is_passed_on = self._chance.random() < 0.5
        true = await ask() if is_passed_on else None
        return self._make(asked, true)

    def _make(self, asked: Request, true: Changed | None) -> Changed:
        status = self._chance.choice(STATUSES)
        name, body = self._body(asked, true)
        status = 200 if self.only else status
        headers = {"Content-Type": _FHIR} | self._chance.choice(_HEADERS)
        if true is None and asked.kind in ("put", "transaction"):
            headers = {key: value for key, value in headers.items() if key not in ("ETag", "Location")}
        if asked.kind in ("read", "history") and status in (404, 410):
            name, body = "login page", FIXED["login page"]()
        self.made.append(f"{asked.kind}: {status} {name} {headers}{'' if true else ' (hidden)'}")
        if status in (204, 304):
            return Changed(status, b"", headers)
        if name == "gzip bomb":
            return Changed(status, body, headers | {"Content-Encoding": "gzip"})
        return Changed(status, body, headers, 4_000 if name == "endless" else 0)

    def _body(self, asked: Request, true: Changed | None) -> tuple[str, bytes]:
        names = [*FIXED, "gzip bomb", "endless"] + ["truncated", "renamed", "untyped", "twice", "entry lost"] * (
            3 if true else 0
        )
        name = self.only or self._chance.choice(names)
        body = true.body if true else b""
        if name in FIXED:
            return name, FIXED[name]()
        made = {
            "gzip bomb": lambda: _BOMB,
            "endless": lambda: b'{"resourceType": "Bundle", "type": "searchset"',
            "truncated": lambda: body[: self._chance.randrange(len(body) + 1)],
            "renamed": lambda: re.sub(rb'"id":\s*"', b'"id": "z', body),
            "untyped": lambda: body.replace(b"resourceType", b"resourcetype"),
            "twice": lambda: body + body,
            "entry lost": lambda: re.sub(rb'"entry":\s*\[\s*\{.*?\},', b'"entry": [', body, count=1, flags=re.DOTALL),
        }
        return name, made[name]()


_BOMB = gzip.compress(b"[" + b" " * 300_000_000 + b"]")


def with_json(answer: Changed, content: object) -> Changed:
    """An answer with another JSON."""
    return replace(answer, body=orjson.dumps(content))
